package logs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Watcher tells readers when something in a folder changes. All folders share one inotify instance, as a user may have
// only 128 of them.
type Watcher struct {
	file *os.File
	done chan struct{}

	mu    sync.Mutex
	dirs  map[string]*watch
	byWD  map[int32]*watch
	close bool
}

type watch struct {
	wd   int32
	dir  string
	subs map[chan struct{}]struct{}
}

// NewWatcher starts a watcher.
func NewWatcher() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching log files: inotify: %w", err)
	}
	w := &Watcher{
		// Non-blocking: reads wait in Go's poller and end at Close.
		file: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{}),
		dirs: map[string]*watch{}, byWD: map[int32]*watch{},
	}
	go w.run()
	return w, nil
}

// Close ends the watcher. Readers that follow are not told anything afterwards.
func (w *Watcher) Close() error {
	w.mu.Lock()
	if w.close {
		w.mu.Unlock()
		return nil
	}
	w.close = true
	w.mu.Unlock()
	err := w.file.Close()
	<-w.done
	return err
}

// watch returns a channel with a token whenever something in dir has changed since the last token was taken.
func (w *Watcher) watch(dir string) (changed chan struct{}, stop func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.close {
		return nil, nil, errors.New("the log watcher is closed")
	}
	one, ok := w.dirs[dir]
	if !ok {
		wd, err := w.add(dir)
		if err != nil {
			return nil, nil, fmt.Errorf("watching %s: %w", dir, err)
		}
		one = &watch{wd: wd, dir: dir, subs: map[chan struct{}]struct{}{}}
		w.dirs[dir], w.byWD[wd] = one, one
	}
	ch := make(chan struct{}, 1)
	one.subs[ch] = struct{}{}
	return ch, func() { w.leave(one, ch) }, nil
}

func (w *Watcher) add(dir string) (wd int32, err error) {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) {
		var n int
		n, err = unix.InotifyAddWatch(int(fd), dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF|unix.IN_ONLYDIR)
		wd = int32(n)
	})
	return wd, errors.Join(err, cerr)
}

func (w *Watcher) leave(one *watch, ch chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(one.subs, ch)
	if len(one.subs) > 0 || w.dirs[one.dir] != one {
		return
	}
	delete(w.dirs, one.dir)
	delete(w.byWD, one.wd)
	if raw, err := w.file.SyscallConn(); err == nil && !w.close {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(one.wd)) })
	}
}

func (w *Watcher) run() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return
		}
		w.mu.Lock()
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(p))
			mask := binary.NativeEndian.Uint32(p[4:])
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(p[12:]))
			p = p[min(size, len(p)):]
			if mask&unix.IN_Q_OVERFLOW != 0 {
				for _, one := range w.byWD {
					one.tell()
				}
				continue
			}
			one := w.byWD[wd]
			if one == nil {
				continue
			}
			one.tell()
			if mask&unix.IN_IGNORED != 0 { // the folder is gone
				delete(w.byWD, wd)
				if w.dirs[one.dir] == one {
					delete(w.dirs, one.dir)
				}
			}
		}
		w.mu.Unlock()
	}
}

func (w *watch) tell() {
	for ch := range w.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
