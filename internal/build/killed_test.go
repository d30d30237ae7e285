package build

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// fakeBuilder is a program whose process does nothing and whose socket answers by serve. What it left is taken away when
// the channel that it returns is closed.
func fakeBuilder(t *testing.T, serve func(net.Conn)) (*program, chan<- struct{}) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &Service{log: slog.New(slog.DiscardHandler), cfg: Config{ExecRoot: filepath.Join(t.TempDir(), "none")}}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	p := &program{s: s, cmd: cmd, end: func() {}, exited: make(chan struct{}), done: make(chan struct{}),
		transport: &http.Transport{DialContext: dial}, calls: &http.Transport{DialContext: dial}}
	served := make(chan struct{})
	go p.watch(served, "")
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-p.done })
	return p, served
}

const killed = "the builder is gone, and this build with it: it ended with signal: killed"

// TestHowABuilderEndedIsToldAtOnce: on a machine with much to do, taking down the steps of a builder that was killed takes
// longer than a client can be left without a word.
func TestHowABuilderEndedIsToldAtOnce(t *testing.T) {
	p, served := fakeBuilder(t, func(c net.Conn) { _ = c.Close() })
	defer close(served)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if why := p.ended(); !strings.Contains(why, killed) {
		t.Errorf("while its steps are taken down: %q, want %q", why, killed)
	}
}

// TestTunnelTellsOfTheBuildersEnd: a client that is sending when the builder dies is told why, as one that waits is.
func TestTunnelTellsOfTheBuildersEnd(t *testing.T) {
	dead := make(chan struct{})
	p, served := fakeBuilder(t, func(c net.Conn) {
		b := bufio.NewReader(c)
		if _, err := http.ReadRequest(b); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
		_, _ = b.ReadByte()
		_ = c.Close() // before the process is known to have ended
		close(dead)
	})
	defer close(served)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _ = p.forward(w, r) }))
	defer front.Close()
	c, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /grpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-dead
	got := make(chan error, 1)
	go func() {
		f, err := http2.NewFramer(nil, in).ReadFrame()
		if g, ok := f.(*http2.GoAwayFrame); err == nil && (!ok || !strings.Contains(string(g.DebugData()), killed)) {
			t.Errorf("frame %v, want GOAWAY with %q", f, killed)
		}
		got <- err
	}()
	// The client sends on, until it is told. The process ends only when some of that has failed to reach the builder.
	for i := 0; ; i++ {
		if i == 20 {
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-got:
			if err != nil {
				t.Errorf("no frame: %v", err)
			}
			return
		case <-time.After(5 * time.Millisecond):
			_, _ = c.Write(make([]byte, 1024))
		}
	}
}

// TestBuildersWithOldOptionsEnd: what was configured anew holds for the next build, and no build that runs is ended for it.
func TestBuildersWithOldOptionsEnd(t *testing.T) {
	p, served := fakeBuilder(t, func(c net.Conn) { _ = c.Close() })
	defer close(served)
	p.s.live = p
	if !p.use() {
		t.Fatal("it is not to be had")
	}
	p.s.Configure(func(o *Options) { o.Settings.NoGC = true })
	select {
	case <-p.exited:
		t.Fatal("a builder with work was ended")
	default:
	}
	if args := strings.Join(p.s.args(), " "); !strings.Contains(args, `"NoGC":true`) {
		t.Errorf("the next one is started with %s", args)
	}
	p.leave()
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on with what held before")
	}
	if p.use() {
		t.Error("one that is ending can still be used")
	}
}
