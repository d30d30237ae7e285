// Package logs reads the log files of containers: Docker's json-file format, one JSON object a line, rotated to PATH.1,
// PATH.2 and so on, perhaps compressed. A reader that follows survives rotation. The files are written by the keeper;
// this package never changes them.
package logs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Entry is one entry of a log: a line with its newline, or a piece of a line that was too long or unfinished.
type Entry struct {
	Stderr bool
	Time   time.Time
	Line   []byte
	Attrs  map[string]string
}

// Options choose entries.
type Options struct {
	Stdout, Stderr bool
	Tail           int // negative: all
	Since, Until   time.Time
	// Follow waits at the end for more, until Ended is closed and everything is read.
	Follow bool
	Ended  <-chan struct{}
}

const (
	// maxLine bounds what is kept of a line without an end: the writer's are far shorter, so it is damage.
	maxLine = 4 << 20
	// maxRotated bounds how many rotated files are looked for.
	maxRotated = 1000
	// maxScans bounds how often the files are looked at again because they were rotated meanwhile.
	maxScans  = 100
	blockSize = 128 << 10
)

// Reader reads a log in the order of writing. It is for one goroutine.
type Reader struct {
	path  string
	opts  Options
	files []*source // what is still to be read, oldest first; the first is being read

	changed chan struct{} // following only
	stop    func()

	last time.Time // of the newest entry read
	text slab
}

// source is one file of the log.
type source struct {
	f       *os.File
	r       *bufio.Reader
	gz      bool
	skip    int // entries to pass over: the tail begins later
	partial []byte
	tooLong bool
	off     int64 // where the line that is being read begins
	dropped int64 // bytes of it that are not kept
}

// fromLineStart makes the next look begin where the unfinished line does: after a crash the writer takes such a line
// back and writes another in its place, and what was read of the first must not be joined to the rest of the second.
func (s *source) fromLineStart() error {
	if s.gz {
		return nil
	}
	st, err := s.f.Stat()
	if err != nil || len(s.partial) == 0 && s.dropped == 0 && st.Size() >= s.off {
		return err
	}
	s.partial, s.dropped, s.tooLong = nil, 0, false
	return s.seek(min(s.off, st.Size()))
}

// Open opens a log. One that does not exist yet is empty. w is needed to follow.
func Open(path string, o Options, w *Watcher) (*Reader, error) {
	r := &Reader{path: path, opts: o, stop: func() {}}
	if o.Follow {
		if w == nil {
			return nil, errors.New("a log is followed with a watcher only")
		}
		var err error
		// Watched before the first look, so that no change falls between.
		if r.changed, r.stop, err = w.watch(filepath.Dir(path)); err != nil {
			return nil, err
		}
	}
	if err := r.open(); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

// Close gives the reader up.
func (r *Reader) Close() error {
	r.stop()
	r.stop = func() {}
	var errs []error
	for _, s := range r.files {
		errs = append(errs, s.f.Close())
	}
	r.files = nil
	return errors.Join(errs...)
}

// open opens the files that hold the tail.
func (r *Reader) open() (err error) {
	need := 0
	r.files, err = r.scan(func(n int, s *source) (verdict, error) {
		if n == 0 {
			need = r.opts.Tail
		}
		if need >= 0 {
			have, err := s.seekTail(need)
			if err != nil {
				return stop, fmt.Errorf("log %s: %w", s.f.Name(), err)
			}
			if need -= have; need <= 0 {
				return takeAndStop, nil
			}
		}
		if !r.opts.Since.IsZero() && s.firstTime().Before(r.opts.Since) {
			return takeAndStop, nil // what is older is not asked for
		}
		return take, nil
	})
	return err
}

type verdict uint8

const (
	stop        verdict = iota // neither this file nor an older one
	take                       // this one, and look at older ones
	takeAndStop                // this one is the oldest
)

// scan opens the files of the log from the newest to the oldest as long as judge wants them, and returns them oldest
// first. n counts the files judged in one try: a log that is rotated meanwhile is looked at once more, since its files
// change places, until it holds still.
func (r *Reader) scan(judge func(n int, s *source) (verdict, error)) ([]*source, error) {
	for try := 0; ; try++ {
		found, err := r.scanOnce(judge)
		if err != nil {
			closeAll(found)
			return nil, err
		}
		now, err := os.Stat(r.path)
		switch {
		case try == maxScans:
			return found, nil
		case errors.Is(err, fs.ErrNotExist):
			if len(found) == 0 {
				return nil, nil
			}
		case err != nil:
			closeAll(found)
			return nil, err
		case len(found) > 0:
			if st, err := found[len(found)-1].f.Stat(); err == nil && os.SameFile(st, now) {
				return found, nil
			}
		}
		closeAll(found)
	}
}

func (r *Reader) scanOnce(judge func(n int, s *source) (verdict, error)) (found []*source, err error) {
	for n, judged, holes := 0, 0, 0; n < maxRotated && holes < 2; n++ {
		s, err := openSource(r.path, n)
		if errors.Is(err, fs.ErrNotExist) {
			holes++ // a rotation that is under way leaves one
			continue
		}
		if err != nil {
			return found, err
		}
		holes = 0
		if s.in(found) { // moved up while this looks
			_ = s.f.Close()
			continue
		}
		v, err := judge(judged, s)
		if judged++; err != nil || v == stop {
			_ = s.f.Close()
			return found, err
		}
		found = append([]*source{s}, found...)
		if v == takeAndStop {
			break
		}
	}
	return found, nil
}

func rotated(path string, n int) string {
	if n == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, n)
}

func openSource(path string, n int) (*source, error) {
	f, err := os.Open(rotated(path, n))
	if err == nil {
		return &source{f: f, r: bufio.NewReaderSize(f, blockSize)}, nil
	}
	if n == 0 || !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if f, err = os.Open(rotated(path, n) + ".gz"); err != nil {
		return nil, err
	}
	s := &source{f: f, gz: true}
	if err := s.rewind(); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("log %s: %w", f.Name(), err)
	}
	return s, nil
}

func same(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// in reports whether the file is one of those opened already.
func (s *source) in(opened []*source) bool {
	return slices.ContainsFunc(opened, func(o *source) bool { return same(s.f, o.f) })
}

// rewind goes to the file's beginning.
func (s *source) rewind() error {
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if !s.gz {
		s.r = bufio.NewReaderSize(s.f, blockSize)
		return nil
	}
	z, err := gzip.NewReader(bufio.NewReader(s.f))
	if err != nil {
		return err
	}
	s.r = bufio.NewReaderSize(z, blockSize)
	return nil
}

// seekTail goes to where the last n entries begin and returns how many there are.
func (s *source) seekTail(n int) (int, error) {
	if s.gz {
		lines := 0
		for {
			_, err := s.r.ReadSlice('\n')
			if err == nil {
				lines++
			} else if !errors.Is(err, bufio.ErrBufferFull) {
				break
			}
		}
		s.skip = max(0, lines-n)
		return min(lines, n), s.rewind()
	}
	size, err := s.f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		// A line that is being written now belongs to what comes.
		at, _, err := s.findBack(size, 1)
		if err != nil {
			return 0, err
		}
		return 0, s.seek(at)
	}
	at, have, err := s.findBack(size, n+1)
	if err != nil {
		return 0, err
	}
	if at > 0 || have > n {
		have = n
	}
	return have, s.seek(at)
}

func (s *source) seek(at int64) error {
	_, err := s.f.Seek(at, io.SeekStart)
	s.r.Reset(s.f)
	s.off = at
	return err
}

// findBack looks from end backward for the nth newline and returns the offset after it; with fewer, 0 and their count.
func (s *source) findBack(end int64, n int) (at int64, found int, err error) {
	buf := make([]byte, blockSize)
	for end > 0 {
		from := max(0, end-blockSize)
		b := buf[:end-from]
		if _, err := s.f.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		for {
			i := bytes.LastIndexByte(b, '\n')
			if i < 0 {
				break
			}
			if found++; found == n {
				return from + int64(i) + 1, found, nil
			}
			b = b[:i]
		}
		end = from
	}
	return 0, found, nil
}

// firstTime is the time of the file's first entry, zero if it cannot be told. The position stays.
func (s *source) firstTime() time.Time {
	var line []byte
	if s.gz {
		line, _ = s.r.ReadBytes('\n')
		if s.rewind() != nil {
			return time.Time{}
		}
	} else {
		buf := make([]byte, blockSize)
		n, _ := s.f.ReadAt(buf, 0)
		line, _, _ = bytes.Cut(buf[:n], []byte{'\n'})
	}
	e, err := decode(line, new(slab))
	if err != nil {
		return time.Time{}
	}
	return e.Time
}

// next returns the next whole line, which is good until the next call; io.EOF if there is none yet. What there is of a compressed file's line is kept for the
// next call; of another it is read anew (fromLineStart).
func (s *source) next() ([]byte, error) {
	for {
		b, err := s.r.ReadSlice('\n')
		if err == nil && len(s.partial) == 0 && !s.tooLong && s.dropped == 0 {
			s.off += int64(len(b))
			if s.skip > 0 {
				s.skip--
				continue
			}
			return b, nil
		}
		s.partial = append(s.partial, b...)
		if s.tooLong = s.tooLong || len(s.partial) > maxLine; s.tooLong {
			s.dropped += int64(len(s.partial))
			s.partial = s.partial[:0]
		}
		switch {
		case err == nil:
			s.off += int64(len(s.partial)) + s.dropped
			s.dropped = 0
			line, long := s.partial, s.tooLong
			s.partial, s.tooLong = s.partial[len(s.partial):], false
			if cap(s.partial) < 1024 {
				s.partial = nil
			}
			if long {
				continue
			}
			if s.skip > 0 {
				s.skip--
				continue
			}
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader):
			return nil, io.EOF // a compressed file that was not finished
		default:
			return nil, err
		}
	}
}

// Ready reports whether Next would return at once, with no more reading of files: who sends entries on sends what it has
// gathered when it would not.
func (r *Reader) Ready() bool {
	if len(r.files) == 0 {
		return false
	}
	in := r.files[0].r
	b, _ := in.Peek(in.Buffered())
	return bytes.IndexByte(b, '\n') >= 0
}

// Next returns the next entry; io.EOF at the end, which with Follow comes after Ended. A damaged line is passed over.
func (r *Reader) Next(ctx context.Context) (Entry, error) {
	var until <-chan time.Time
	if r.opts.Follow && !r.opts.Until.IsZero() {
		t := time.NewTimer(time.Until(r.opts.Until))
		defer t.Stop()
		until = t.C
	}
	for ended := false; ; {
		e, err := r.entry()
		if err == nil {
			return e, nil
		}
		if !errors.Is(err, errNoMore) {
			return Entry{}, err
		}
		if !r.opts.Follow || ended {
			return Entry{}, io.EOF
		}
		if moved, err := r.advance(); err != nil {
			return Entry{}, err
		} else if moved {
			continue
		}
		select {
		case <-r.changed:
		case <-r.opts.Ended:
			ended = true // one more look: it was written before the end was told
			if _, err := r.advance(); err != nil {
				return Entry{}, err
			}
		case <-until:
			return Entry{}, io.EOF
		case <-ctx.Done():
			return Entry{}, ctx.Err()
		}
	}
}

var errNoMore = errors.New("no more entries for now")

// entry returns the next entry that is asked for out of what is open.
func (r *Reader) entry() (Entry, error) {
	for len(r.files) > 0 {
		s := r.files[0]
		line, err := s.next()
		if errors.Is(err, io.EOF) {
			if len(r.files) == 1 {
				if err := s.fromLineStart(); err != nil {
					return Entry{}, fmt.Errorf("log %s: %w", s.f.Name(), err)
				}
				return Entry{}, errNoMore
			}
			_ = s.f.Close()
			r.files = r.files[1:]
			continue
		}
		if err != nil {
			return Entry{}, fmt.Errorf("log %s: %w", s.f.Name(), err)
		}
		e, err := decode(line, &r.text)
		if err != nil {
			continue
		}
		r.last = e.Time
		switch {
		case !r.opts.Until.IsZero() && e.Time.After(r.opts.Until):
			return Entry{}, io.EOF
		case e.Time.Before(r.opts.Since), e.Stderr && !r.opts.Stderr, !e.Stderr && !r.opts.Stdout:
			continue
		}
		return e, nil
	}
	return Entry{}, errNoMore
}

// advance looks whether the log was rotated away under the reader, or has begun, and queues the files after the one
// that is read. The current file is read to its end once more before they are: it stays the first.
func (r *Reader) advance() (bool, error) {
	now, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var current *os.File
	if len(r.files) > 0 {
		current = r.files[len(r.files)-1].f
		st, err := current.Stat()
		if err != nil {
			return false, err
		}
		if os.SameFile(st, now) {
			return false, nil
		}
	}
	newer, err := r.scan(func(n int, s *source) (verdict, error) {
		switch {
		case current == nil:
			return take, nil
		case same(s.f, current):
			return stop, nil
		case n > 0 && !s.firstTime().After(r.last):
			// The file being read is no longer there, or compressed: what began before its newest entry is known already.
			return stop, nil
		}
		return take, nil
	})
	r.files = append(r.files, newer...)
	return len(newer) > 0, err
}

func closeAll(ss []*source) {
	for _, s := range ss {
		_ = s.f.Close()
	}
}
