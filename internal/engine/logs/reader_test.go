package logs

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// writer writes a log as the keeper does: an entry a line, rotated when it is told to.
type writer struct {
	t    *testing.T
	path string
	f    *os.File
	n    int
}

func newWriter(t *testing.T) *writer {
	t.Helper()
	w := &writer{t: t, path: filepath.Join(t.TempDir(), "x-json.log")}
	w.open()
	t.Cleanup(func() { _ = w.f.Close() })
	return w
}

func (w *writer) open() {
	w.t.Helper()
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		w.t.Fatal(err)
	}
	w.f = f
}

func entryLine(n int) string {
	stream := "stdout"
	if n%3 == 2 {
		stream = "stderr"
	}
	b, _ := json.Marshal(wireEntry{Log: fmt.Sprintf("%d\n", n), Stream: stream, Time: epoch.Add(time.Duration(n) * time.Second), Attrs: map[string]string{"k": "v"}})
	return string(b) + "\n"
}

func (w *writer) write(count int) {
	w.t.Helper()
	for range count {
		w.raw(entryLine(w.n))
		w.n++
	}
}

func (w *writer) raw(s string) {
	w.t.Helper()
	if _, err := w.f.WriteString(s); err != nil {
		w.t.Fatal(err)
	}
}

// rotate puts the file aside, keeping files in all.
func (w *writer) rotate(files int, compress bool) {
	w.t.Helper()
	_ = w.f.Close()
	ext := ""
	if compress {
		ext = ".gz"
	}
	for i := files - 1; i > 1; i-- {
		_ = os.Rename(fmt.Sprintf("%s.%d%s", w.path, i-1, ext), fmt.Sprintf("%s.%d%s", w.path, i, ext))
	}
	if files < 2 {
		_ = os.Remove(w.path)
	} else if err := os.Rename(w.path, w.path+".1"); err != nil {
		w.t.Fatal(err)
	}
	w.open()
	if !compress {
		return
	}
	data, err := os.ReadFile(w.path + ".1")
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := os.Create(w.path + ".1.gz")
	if err != nil {
		w.t.Fatal(err)
	}
	z := gzip.NewWriter(out)
	_, err = z.Write(data)
	if err := errors.Join(err, z.Close(), out.Close(), os.Remove(w.path+".1")); err != nil {
		w.t.Fatal(err)
	}
}

func numbers(t *testing.T, path string, o Options) []int {
	t.Helper()
	r, err := Open(path, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out []int
	for {
		e, err := r.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, number(t, e))
	}
}

func number(t *testing.T, e Entry) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSuffix(string(e.Line), "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := epoch.Add(time.Duration(n) * time.Second); !e.Time.Equal(want) || e.Stderr != (n%3 == 2) || e.Attrs["k"] != "v" {
		t.Errorf("entry %+v", e)
	}
	return n
}

func upTo(from, to int) []int {
	var out []int
	for n := from; n < to; n++ {
		out = append(out, n)
	}
	return out
}

func TestChoosing(t *testing.T) {
	all := Options{Stdout: true, Stderr: true, Tail: -1}
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprintf("compress=%v", compress), func(t *testing.T) {
			w := newWriter(t)
			w.write(10)
			w.rotate(4, compress)
			w.write(10)
			w.rotate(4, compress)
			w.write(10)
			for _, c := range []struct {
				name string
				o    Options
				want []int
			}{
				{"all", all, upTo(0, 30)},
				{"stdout", Options{Stdout: true, Tail: 6}, []int{24, 25, 27, 28}},
				{"stderr", Options{Stderr: true, Tail: 6}, []int{26, 29}},
				{"tail 0", Options{Stdout: true, Stderr: true}, nil},
				{"tail 1", Options{Stdout: true, Stderr: true, Tail: 1}, []int{29}},
				{"tail of a file", Options{Stdout: true, Stderr: true, Tail: 10}, upTo(20, 30)},
				{"tail over files", Options{Stdout: true, Stderr: true, Tail: 15}, upTo(15, 30)},
				{"tail over all", Options{Stdout: true, Stderr: true, Tail: 29}, upTo(1, 30)},
				{"tail too long", Options{Stdout: true, Stderr: true, Tail: 99}, upTo(0, 30)},
				{"since", Options{Stdout: true, Stderr: true, Tail: -1, Since: epoch.Add(12 * time.Second)}, upTo(12, 30)},
				{"until", Options{Stdout: true, Stderr: true, Tail: -1, Until: epoch.Add(12 * time.Second)}, upTo(0, 13)},
				{"since and until", Options{Stdout: true, Stderr: true, Tail: -1, Since: epoch.Add(8 * time.Second), Until: epoch.Add(12 * time.Second)}, upTo(8, 13)},
			} {
				if got := numbers(t, w.path, c.o); !slices.Equal(got, c.want) {
					t.Errorf("%s: %v, want %v", c.name, got, c.want)
				}
			}
		})
	}
	if got := numbers(t, filepath.Join(t.TempDir(), "none"), all); got != nil {
		t.Errorf("a log that is not there: %v", got)
	}
}

// A tail is found whatever the sizes of lines and blocks.
func TestLongTail(t *testing.T) {
	w := newWriter(t)
	long := strings.Repeat("x", 20000)
	for n := range 50 {
		b, _ := json.Marshal(wireEntry{Log: fmt.Sprintf("%d %s\n", n, long), Stream: "stdout", Time: epoch})
		w.raw(string(b) + "\n")
	}
	for _, tail := range []int{0, 1, 2, 3, 25, 49, 50, 51} {
		r, err := Open(w.path, Options{Stdout: true, Tail: tail}, nil)
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for {
			e, err := r.Next(t.Context())
			if err != nil {
				break
			}
			if count++; len(e.Line) < 20000 {
				t.Fatalf("line of %d bytes", len(e.Line))
			}
		}
		_ = r.Close()
		if count != min(tail, 50) {
			t.Errorf("tail %d gave %d", tail, count)
		}
	}
}

func TestDamage(t *testing.T) {
	w := newWriter(t)
	w.write(2)
	w.raw("{\"log\":\"torn\n\x00\x00\x00\nnot json\n")
	w.write(2)
	w.raw(strings.Repeat("y", maxLine+10) + "\n")
	w.write(1)
	w.raw(`{"log":"unfinished`)
	if got := numbers(t, w.path, Options{Stdout: true, Stderr: true, Tail: -1}); !slices.Equal(got, upTo(0, 5)) {
		t.Errorf("%v", got)
	}
}

// follower reads in the background and hands over what it reads.
func follow(t *testing.T, path string, o Options) (next func() int, ended chan struct{}, end func() []int) {
	t.Helper()
	watcher, err := NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	o.Stdout, o.Stderr, o.Follow, o.Ended = true, true, true, ended
	r, err := Open(path, o, watcher)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan int, 100000)
	done := make(chan error, 1)
	go func() {
		defer close(got)
		for {
			e, err := r.Next(context.Background())
			if err != nil {
				done <- err
				return
			}
			got <- number(t, e)
		}
	}()
	next = func() int {
		t.Helper()
		select {
		case n, ok := <-got:
			if !ok {
				t.Fatalf("the follower ended: %v", <-done)
			}
			return n
		case <-time.After(time.Minute):
			t.Fatal("the follower sees nothing")
		}
		return 0
	}
	end = func() []int {
		t.Helper()
		close(ended)
		var rest []int
		for n := range got {
			rest = append(rest, n)
		}
		if err := <-done; !errors.Is(err, io.EOF) {
			t.Errorf("end: %v", err)
		}
		if err := errors.Join(r.Close(), watcher.Close()); err != nil {
			t.Error(err)
		}
		return rest
	}
	return next, ended, end
}

func TestFollow(t *testing.T) {
	for _, c := range []struct {
		name     string
		files    int
		compress bool
	}{{"rotated", 3, false}, {"compressed", 3, true}, {"one file", 1, false}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWriter(t)
			w.write(5)
			next, _, end := follow(t, w.path, Options{Tail: 2})
			want := 3
			expect := func() {
				t.Helper()
				for want < w.n {
					if n := next(); n != want {
						t.Fatalf("got %d, want %d", n, want)
					}
					want++
				}
			}
			expect()
			for range 4 {
				w.write(3)
				expect()
				w.rotate(c.files, c.compress)
				w.write(3)
				expect()
			}
			line := entryLine(w.n)
			w.raw(line[:10]) // seen once it is whole
			w.write(0)
			w.raw(line[10:])
			w.n++
			expect()
			w.write(2)
			if rest := end(); !slices.Equal(rest, upTo(want, w.n)) {
				t.Errorf("after the end: %v", rest)
			}
		})
	}
}

// Two rotations between two looks lose nothing as long as the files are there.
func TestFollowManyRotations(t *testing.T) {
	w := newWriter(t)
	next, _, end := follow(t, w.path, Options{Tail: -1})
	w.write(1)
	if n := next(); n != 0 {
		t.Fatal(n)
	}
	for range 40 {
		w.write(20)
		w.rotate(100, false)
	}
	w.write(5)
	got := end()
	if !slices.Equal(got, upTo(1, w.n)) {
		for i := 1; i < len(got); i++ {
			if got[i] != got[i-1]+1 {
				t.Errorf("after %d comes %d", got[i-1], got[i])
			}
		}
		t.Errorf("got %d entries of %d", len(got), w.n-1)
	}
}

func TestFollowFromNothing(t *testing.T) {
	w := newWriter(t)
	if err := os.Remove(w.path); err != nil {
		t.Fatal(err)
	}
	next, _, end := follow(t, w.path, Options{Tail: 0})
	w.open()
	w.write(1)
	if n := next(); n != 0 {
		t.Error(n)
	}
	end()
}

// After a crash the writer takes back half an entry and writes it again.
func TestFollowTakenBack(t *testing.T) {
	w := newWriter(t)
	w.write(1)
	next, _, end := follow(t, w.path, Options{Tail: -1})
	next()
	st, _ := w.f.Stat()
	w.raw(entryLine(7)[:30])
	if err := os.Truncate(w.path, st.Size()); err != nil {
		t.Fatal(err)
	}
	w.write(2)
	if a, b := next(), next(); a != 1 || b != 2 {
		t.Errorf("got %d %d", a, b)
	}
	end()
}

func TestFollowUntil(t *testing.T) {
	w := newWriter(t)
	watcher, err := NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	path := w.path
	synctest.Test(t, func(t *testing.T) {
		r := &Reader{path: path, opts: Options{Stdout: true, Stderr: true, Tail: -1, Follow: true, Until: time.Now().Add(time.Hour)},
			changed: make(chan struct{}), stop: func() {}}
		if err := r.open(); err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		begin := time.Now()
		if _, err := r.Next(t.Context()); !errors.Is(err, io.EOF) || time.Since(begin) != time.Hour {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	r, err := Open(path, Options{Stdout: true, Tail: -1, Follow: true}, watcher)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cancel()
	if _, err := r.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte(entryLine(1)+entryLine(2)), 1)
	f.Add([]byte("{}\n\n{\"log\":1}\n"), -1)
	f.Add([]byte("{\"log\":\"a\\u0000\",\"time\":\"x\"}\n\xff\xfe"), 0)
	f.Fuzz(func(t *testing.T, data []byte, tail int) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path, Options{Stdout: true, Stderr: true, Tail: tail}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for count := 0; ; count++ {
			if _, err := r.Next(t.Context()); err != nil {
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				if tail >= 0 && count > tail {
					t.Fatalf("tail %d gave %d", tail, count)
				}
				return
			}
		}
	})
}
