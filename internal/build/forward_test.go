package build

import (
	"bytes"
	"io"
	"testing"

	"golang.org/x/net/http2"
)

// TestGoAwayAfterFrames: the last frame of a connection whose other end has died is one that clients can read, and it is
// written only where it would not end up inside another.
func TestGoAwayAfterFrames(t *testing.T) {
	var stream bytes.Buffer
	stream.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
	answer := stream.Len()
	f := http2.NewFramer(&stream, nil)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	first := stream.Len()
	if err := f.WriteData(1, false, []byte("some bytes")); err != nil {
		t.Fatal(err)
	}
	whole := map[int]bool{answer: true, first: true, stream.Len(): true}
	for n := range stream.Len() + 1 {
		for _, piece := range []int{1, 7, n + 1} {
			var tail frameTail
			if _, err := io.CopyBuffer(struct{ io.Writer }{&tail}, struct{ io.Reader }{bytes.NewReader(stream.Bytes()[:n])}, make([]byte, piece)); err != nil {
				t.Fatal(err)
			}
			if tail.whole() != whole[n] {
				t.Fatalf("after %d bytes in pieces of %d: whole is %v", n, piece, tail.whole())
			}
		}
	}
	got, err := http2.NewFramer(nil, bytes.NewReader(goAway("the reason"))).ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	if g, ok := got.(*http2.GoAwayFrame); !ok || string(g.DebugData()) != "the reason" || g.ErrCode != http2.ErrCodeInternal {
		t.Errorf("frame %v", got)
	}
}
