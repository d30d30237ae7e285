package server

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// logFile writes one container's log: Docker's json-file format, entry for entry what dockerd makes of the same bytes,
// with its rotation (a file is put aside before the first entry that comes when it has its size).
type logFile struct {
	spec  keeper.LogSpec
	attrs []byte
	log   *slog.Logger
	now   func() time.Time

	mu      sync.Mutex
	f       *os.File
	size    int64
	j       *journal
	batch   []byte
	streams [3]lineState
	lost    int           // entries that could not be written since the last warning
	warned  time.Time     // when
	gzip    chan struct{} // closed when the last compression has ended
}

// lineState is what is known of a stream's current line.
type lineState struct {
	rest []byte // not in the log yet; shorter than maxLine
	mark        // of what is in the log or the batch
}

// newLog opens the log of a container, for which it makes the folder; nil without error for a log that is not kept.
func newLog(spec keeper.LogSpec, journalPath string, log *slog.Logger) (*logFile, error) {
	switch spec.Driver {
	case "json-file", "spool":
	case "none", "":
		return nil, nil
	default:
		return nil, fault.New(fault.InvalidArgument, "the keeper writes no log of driver %q: it knows json-file, spool and none", spec.Driver)
	}
	if !filepath.IsAbs(spec.Path) {
		return nil, fault.New(fault.InvalidArgument, "the log file's path must be absolute, not %q", spec.Path)
	}
	l := &logFile{spec: spec, log: log, now: time.Now}
	l.spec.MaxFiles = max(1, spec.MaxFiles)
	if len(spec.Attrs) > 0 {
		l.attrs, _ = json.Marshal(spec.Attrs)
	}
	var err error
	if l.j, err = openJournal(journalPath); err != nil {
		return nil, fmt.Errorf("journal of the log %s: %w", spec.Path, err)
	}
	if err := os.MkdirAll(filepath.Dir(spec.Path), 0o710); err != nil {
		l.j.close()
		return nil, err
	}
	if err := l.open(os.O_APPEND); err != nil {
		l.j.close()
		return nil, fmt.Errorf("log file: %w", err)
	}
	if keep := l.j.recover(l.size); keep != l.size {
		if err := l.f.Truncate(keep); err != nil {
			log.Error("cannot cut off half an entry from a log", "path", spec.Path, "err", err)
		} else {
			l.size = keep
		}
	}
	for s := 1; s <= 2; s++ {
		l.streams[s].mark = l.j.mark(s)
	}
	return l, nil
}

func (l *logFile) open(flags int) error {
	f, err := os.OpenFile(l.spec.Path, os.O_WRONLY|os.O_CREATE|flags, 0o640)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	l.f, l.size = f, fi.Size()
	return nil
}

// done returns how many bytes of a stream are in the log.
func (l *logFile) done(stream int) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.streams[stream].done)
}

// write takes the next bytes of a stream.
func (l *logFile) write(stream int, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.streams[stream]
	data := p
	if len(s.rest) > 0 {
		data = append(s.rest, p...)
	}
	for {
		q := bytes.IndexByte(data[:min(len(data), maxLine)], '\n')
		switch {
		case q >= 0:
			l.entry(stream, s, data[:q], true, 1)
			data = data[q+1:]
		case len(data) >= maxLine:
			l.entry(stream, s, data[:maxLine], false, 0)
			data = data[maxLine:]
		default:
			l.flush(stream, s)
			s.rest = append(s.rest[:0:0], data...)
			return
		}
	}
}

// finish writes what is left of a stream that has ended.
func (l *logFile) finish(stream int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.streams[stream]
	if len(s.rest) > 0 {
		l.entry(stream, s, s.rest, false, 0)
		s.rest = nil
		l.flush(stream, s)
	}
}

// entry adds an entry to the batch; end is the number of bytes of the stream that it stands for beside line.
func (l *logFile) entry(stream int, s *lineState, line []byte, newline bool, end int) {
	if l.spec.MaxSize > 0 && l.size+int64(len(l.batch)) >= l.spec.MaxSize {
		l.flush(stream, s)
		if l.size >= l.spec.MaxSize {
			l.rotate()
		}
	} else if len(l.batch) >= 256<<10 {
		l.flush(stream, s)
	}
	at := l.now().UTC()
	if s.partial {
		at = time.Unix(0, s.time).UTC()
	}
	l.batch = appendEntry(l.batch, line, newline, stream, l.attrs, at)
	s.done += uint64(len(line) + end)
	s.partial, s.time = !newline, at.UnixNano()
}

// flush writes the batch, which is of one stream only.
func (l *logFile) flush(stream int, s *lineState) {
	if len(l.batch) == 0 {
		return
	}
	defer func() {
		l.batch = l.batch[:0]
		if cap(l.batch) > 64<<10 {
			l.batch = nil
		}
	}()
	l.j.intend(stream, l.size, l.size+int64(len(l.batch)), s.mark)
	err := fs.ErrClosed
	if l.f == nil {
		err = l.open(os.O_APPEND)
	}
	if l.f != nil {
		_, err = l.f.Write(l.batch)
	}
	if err != nil {
		// As dockerd does: what cannot be written is lost, the container goes on. No half entry stays.
		if l.f != nil {
			_ = l.f.Truncate(l.size)
		}
		l.warn(err)
	} else {
		l.size += int64(len(l.batch))
	}
	l.j.settle(stream, s.mark)
}

func (l *logFile) warn(err error) {
	l.lost++
	if now := l.now(); now.Sub(l.warned) > time.Minute {
		l.log.Error("cannot write to a container's log: its output is lost until this is mended", "path", l.spec.Path, "writes", l.lost, "err", err)
		l.warned, l.lost = now, 0
	}
}

// rotate puts the file aside and begins another one.
func (l *logFile) rotate() {
	if l.gzip != nil {
		<-l.gzip // one at a time: the next shift would pull the file away from under it
		l.gzip = nil
	}
	_ = l.f.Close()
	l.f = nil
	path, compress := l.spec.Path, l.spec.Compress && l.spec.MaxFiles > 1
	if err := shift(path, l.spec.MaxFiles, compress); err != nil {
		l.warn(fmt.Errorf("rotating: %w", err))
	}
	l.size = 0
	if err := l.open(os.O_APPEND | os.O_TRUNC); err != nil {
		l.warn(fmt.Errorf("rotating: %w", err))
		return
	}
	if compress {
		done := make(chan struct{})
		l.gzip = done
		last := l.now().UTC()
		go func() {
			defer close(done)
			if err := compressFile(path+".1", last); err != nil {
				l.log.Error("cannot compress a log file", "path", path+".1", "err", err)
			}
		}()
	}
}

// shift renames PATH.1 to PATH.2 and so on, and PATH to PATH.1; with one file there is none to put aside.
func shift(path string, files int, compress bool) error {
	if files < 2 {
		return ignoreMissing(os.Remove(path))
	}
	ext := ""
	if compress {
		ext = ".gz"
	}
	for i := files - 1; i > 1; i-- {
		if err := ignoreMissing(os.Rename(fmt.Sprintf("%s.%d%s", path, i-1, ext), fmt.Sprintf("%s.%d%s", path, i, ext))); err != nil {
			return err
		}
	}
	if files == 2 && compress {
		if err := ignoreMissing(os.Remove(path + ".1.gz")); err != nil {
			return err
		}
	}
	return ignoreMissing(os.Rename(path, path+".1"))
}

// compressFile replaces a file by PATH.gz. The header tells the time of its last entry, as Docker's does.
func compressFile(path string, last time.Time) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return ignoreMissing(err)
	}
	defer in.Close()
	out, err := os.OpenFile(path+".gz", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path + ".gz")
		}
	}()
	defer out.Close()
	w := gzip.NewWriter(out)
	w.Extra, _ = json.Marshal(struct {
		LastTime time.Time `json:"lastTime"`
	}{last})
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.Remove(path)
}

// close ends the log. Nothing may be written after it.
func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		_ = l.f.Close()
		l.f = nil
	}
	if l.gzip != nil {
		<-l.gzip
		l.gzip = nil
	}
	l.j.close()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
