package server

import (
	"bytes"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// drainTo reads a client's queue to its end.
func drainTo(s *subscriber) (text, reason string) {
	var b strings.Builder
	for {
		list, over, reason := s.next()
		for _, c := range list {
			b.Write(c.data)
		}
		if over {
			return b.String(), reason
		}
	}
}

func attached(f *fanout, stdout, stderr bool) *subscriber {
	s, _, _ := f.add(stdout, stderr, nil, nil)
	return s
}

func TestClientThatDoesNotReadIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanout(false, false)
		lazy, eager := attached(f, true, true), attached(f, true, true)
		got := make(chan string)
		go func() {
			text, _ := drainTo(eager)
			got <- text
		}()
		piece := []byte(strings.Repeat("x", 64<<10))
		for range 64 {
			f.send(1, piece) // is held up once, for the stall limit, and then never again
		}
		f.end()
		if n := len(<-got); n != 64*len(piece) {
			t.Errorf("the client that reads got %d bytes, want %d", n, 64*len(piece))
		}
		if _, reason := drainTo(lazy); !strings.Contains(reason, "dropped") {
			t.Errorf("the other one: %q", reason)
		}
	})
}

func TestSlowClientLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanout(false, false)
		s := attached(f, true, false)
		go func() {
			for range 100 {
				f.send(1, make([]byte, 64<<10))
				f.send(2, []byte("not asked for"))
			}
			f.end()
		}()
		synctest.Wait() // until the queue is full
		text, reason := drainTo(s)
		if len(text) != 100*64<<10 || reason != "" {
			t.Errorf("%d bytes, %q", len(text), reason)
		}
	})
}

func TestBacklogIsForTheFirst(t *testing.T) {
	f := newFanout(true, false)
	f.send(1, []byte("before"))
	f.send(1, make([]byte, backlogLimit)) // does not fit: not kept
	first := attached(f, true, true)
	second := attached(f, true, true)
	f.send(1, []byte(" after"))
	f.end()
	if text, _ := drainTo(first); text != "before after" {
		t.Errorf("first: %q", text)
	}
	if text, _ := drainTo(second); text != " after" {
		t.Errorf("second: %q", text)
	}
	if text, reason := drainTo(attached(f, true, true)); text != "" || reason != "" {
		t.Errorf("after the end: %q %q", text, reason)
	}
}

// What an exec prints before its client has attached comes to that client, however much it is.
func TestFirstClientGetsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanout(true, true)
		go func() {
			for i := range 100 {
				f.send(1, bytes.Repeat([]byte{byte('a' + i%26)}, 64<<10))
			}
			f.end()
		}()
		synctest.Wait() // it is held up
		text, reason := drainTo(attached(f, true, true))
		if len(text) != 100*64<<10 || reason != "" {
			t.Fatalf("%d bytes came, want %d (%q)", len(text), 100*64<<10, reason)
		}
		for i := range len(text) {
			if want := byte('a' + i/(64<<10)%26); text[i] != want {
				t.Fatalf("byte %d is %q, want %q", i, text[i], want)
			}
		}
	})
}

// An exec whose client never comes goes on after a while.
func TestNobodyAttaches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanout(true, true)
		began := time.Now()
		for range 100 {
			f.send(1, make([]byte, 64<<10))
		}
		if held := time.Since(began); held != stallLimit {
			t.Errorf("it was held up for %v, want %v once", held, stallLimit)
		}
	})
}

// Two streams that fill what is kept at the same time lose nothing of either.
func TestFirstClientGetsEverythingOfBothStreams(t *testing.T) {
	for range 20 {
		f := newFanout(true, true)
		const piece, pieces = 4 << 10, 200 // more than is kept, by both
		var pumps sync.WaitGroup
		for stream := 1; stream <= 2; stream++ {
			pumps.Go(func() {
				for range pieces {
					f.send(stream, make([]byte, piece))
				}
			})
		}
		for full := false; !full; runtime.Gosched() {
			f.mu.Lock()
			full = f.backlogSize+piece > backlogLimit
			f.mu.Unlock()
		}
		s := attached(f, true, true)
		go func() { pumps.Wait(); f.end() }()
		if text, _ := drainTo(s); len(text) != 2*pieces*piece {
			t.Fatalf("%d bytes came, want %d", len(text), 2*pieces*piece)
		}
	}
}

// Who does not come back to one keeper is not waited for by the next.
func TestNobodyReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanout(true, true)
		f.adopt(0, 0, true)
		began := time.Now()
		f.awaitReturn()
		if held := time.Since(began); held != stallLimit {
			t.Errorf("it was held up for %v, want %v", held, stallLimit)
		}
		if n := f.attached(); n != 0 {
			t.Errorf("%d are said to be attached, none is", n)
		}
		if _, _, err := f.add(true, true, nil, func(int, int64, int64) ([]byte, error) { return nil, nil }); err != nil || f.attached() != 1 {
			t.Error("one that comes after all is not attached:", err)
		}
	})
}
