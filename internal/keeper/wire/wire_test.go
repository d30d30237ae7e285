package wire

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out [2]*Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[i] = NewConn(c.(*net.UnixConn))
		t.Cleanup(func() { _ = c.Close() })
	}
	return out[0], out[1]
}

func TestDescriptorsGoWithTheirMessages(t *testing.T) {
	a, b := pair(t)
	go func() {
		for i := range 50 {
			r, w, _ := os.Pipe()
			_, _ = w.Write([]byte{byte(i)})
			body, _ := json.Marshal(strings.Repeat("x", i*1000))
			_ = a.Send(Message{ID: uint64(2 * i), Body: body})
			_ = a.Send(Message{ID: uint64(2*i + 1), Body: body}, int(r.Fd()), int(w.Fd()))
			_ = r.Close()
			_ = w.Close()
		}
	}()
	for i := range 100 {
		m, fds, err := b.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.ID != uint64(i) || len(fds) != 2*(i%2) {
			t.Fatalf("message %d with %d descriptors, want %d with %d", m.ID, len(fds), i, 2*(i%2))
		}
		if len(fds) == 2 {
			var got [1]byte
			if _, err := unix.Read(fds[0], got[:]); err != nil || int(got[0]) != i/2 {
				t.Errorf("message %d has another's descriptors: %v %v", i, got, err)
			}
		}
		CloseFDs(fds)
	}
}

func TestFaultsKeepTheirKind(t *testing.T) {
	if ErrorOf(nil).Fault() != nil {
		t.Error("no error became one")
	}
	err := ErrorOf(fault.New(fault.NotFound, "No such container: x")).Fault()
	if !fault.Is(err, fault.NotFound) || err.Error() != "No such container: x" {
		t.Errorf("%v", err)
	}
}

func TestLyingLengths(t *testing.T) {
	for name, in := range map[string][]byte{
		"too long":          {0xff, 0xff, 0xff, 0xff},
		"longer than bytes": {0x03, 0xff, 0xff, 0xff, 'x'},
		"cut":               {0, 0, 0, 9, 'x'},
	} {
		if _, err := ReadFrame(bytes.NewReader(in)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, m := range []string{`{}`, `{"id":1,"op":"hello","body":{"version":1}}`, `{"fds":-1}`, `{"fds":65}`, `{"err":{"kind":2,"text":"x"}}`, `[`} {
		f.Add(AppendFrame(nil, []byte(m)))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		m, err := DecodeMessage(r)
		if err != nil {
			return
		}
		if m.FDs < 0 || m.FDs > MaxFDs {
			t.Fatalf("%d descriptors accepted", m.FDs)
		}
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatalf("decoded and cannot be encoded: %v", err)
		}
		if _, err := DecodeMessage(bytes.NewReader(AppendFrame(nil, text))); err != nil {
			t.Fatalf("encoded and cannot be decoded: %v", err)
		}
	})
}

func FuzzReadStreamFrame(f *testing.F) {
	f.Add(AppendStreamFrame(nil, FrameStdout, []byte("hello")))
	f.Add(AppendStreamFrame(nil, FrameEnd, nil))
	f.Add([]byte{9, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		kind, p, err := ReadStreamFrame(bytes.NewReader(in), make([]byte, 4))
		if err != nil {
			return
		}
		if again := AppendStreamFrame(nil, kind, p); !bytes.Equal(again, in[:len(again)]) {
			t.Fatalf("%x became %x", in, again)
		}
	})
}
