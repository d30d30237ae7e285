package layer

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func random(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32N(7))
	}
	return b
}

func TestDecompress(t *testing.T) {
	data := random(3 << 20)
	into := func(w io.WriteCloser, b *bytes.Buffer) []byte {
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	var g, z, x bytes.Buffer
	zw, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	xw, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[Compression][]byte{Plain: data, Gzip: into(gzip.NewWriter(&g), &g), Zstd: into(zw, &z), XZ: into(xw, &x)}
	if path, err := exec.LookPath("bzip2"); err == nil {
		cmd := exec.CommandContext(t.Context(), path, "-c")
		cmd.Stdin = bytes.NewReader(data)
		if cases[Bzip2], err = cmd.Output(); err != nil {
			t.Fatal(err)
		}
	}
	for want, b := range cases {
		r, got, err := Decompress(iotest.HalfReader(bytes.NewReader(b)))
		if err != nil || got != want {
			t.Errorf("%s: taken for %s: %v", want, got, err)
			continue
		}
		out, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(out, data) {
			t.Errorf("%s: %d bytes, %v", want, len(out), err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
	// Frames to be skipped, of archives that can be sought in, come before and after.
	skip := append([]byte{0x5e, 0x2a, 0x4d, 0x18, 4, 0, 0, 0}, "abcd"...)
	r, got, err := Decompress(bytes.NewReader(append(append(skip, cases[Zstd]...), skip...)))
	if err != nil || got != Zstd {
		t.Fatalf("zstd with a frame to be skipped: %s, %v", got, err)
	}
	if out, err := io.ReadAll(r); err != nil || !bytes.Equal(out, data) {
		t.Errorf("zstd with frames to be skipped: %d bytes, %v", len(out), err)
	}
	// Several members one after the other, as estargz has them, are one stream.
	two := append(bytes.Clone(cases[Gzip]), cases[Gzip]...)
	if r, _, err = Decompress(bytes.NewReader(two)); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(r); err != nil || len(out) != 2*len(data) {
		t.Errorf("two gzip members: %d bytes, %v", len(out), err)
	}
	for _, short := range [][]byte{{}, {1}, {0x1f, 0x8b}} {
		if r, _, err := Decompress(bytes.NewReader(short)); err == nil {
			if out, err := io.ReadAll(r); err != nil || !bytes.Equal(out, short) {
				t.Errorf("%v: %v, %v", short, out, err)
			}
		}
	}
}

func TestPipe(t *testing.T) {
	data := random(5<<20 + 17)
	sum := sha256.New()
	p := NewPipe(iotest.HalfReader(bytes.NewReader(data)), sum)
	out, err := io.ReadAll(iotest.OneByteReader(io.LimitReader(p, 10)))
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(p)
	if err != nil || !bytes.Equal(append(out, rest...), data) {
		t.Fatalf("%d bytes, %v", len(out)+len(rest), err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("another digest")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	// An error comes after what was read before it, and stays.
	broken := errors.New("broken")
	p = NewPipe(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)), nil)
	if out, err := io.ReadAll(p); !errors.Is(err, broken) || len(out) != len(data) {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	if _, err := p.Read(make([]byte, 1)); !errors.Is(err, broken) {
		t.Errorf("after the end: %v", err)
	}
	_ = p.Close()
	// Given up half-way, it ends.
	p = NewPipe(bytes.NewReader(data), nil)
	if _, err := p.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	_ = p.Close()
}
