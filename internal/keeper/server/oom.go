package server

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/keeper"
)

// oomWatcher watches memory.events of version 2 groups: one inotify descriptor for all, as a host has few of these.
type oomWatcher struct {
	mu    sync.Mutex
	file  *os.File
	marks map[int32]*oomMark
}

type oomMark struct {
	path string
	last uint64
	tell func()
}

// watchOOM has it told when the kernel kills a process of a container for memory.
func (s *Server) watchOOM(c *container) {
	path := c.rec.Cgroups["memory"]
	tell := func() { s.pushEvent(keeper.Event{Type: keeper.EventOOM, Status: c.status()}) }
	var err error
	switch {
	case c.rec.Status.State == keeper.Exited:
	case cgroups.IsCgroup2UnifiedMode():
		err = s.oom.watch(filepath.Join(c.rec.Cgroups[""], "memory.events"), tell)
	case path != "":
		err = watchOOMv1(path, tell)
	}
	if err != nil {
		s.log.Debug("no out-of-memory events", "container", c.rec.ID, "err", err)
	}
}

// watchOOMv1 asks a version 1 memory controller for an eventfd's notification.
func watchOOMv1(dir string, tell func()) error {
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return err
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	ev := os.NewFile(uintptr(fd), "oom")
	line := fmt.Sprintf("%d %d", fd, control.Fd())
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		_ = ev.Close()
		return err
	}
	go func() {
		defer ev.Close()
		buf := make([]byte, 8)
		for {
			if n, err := ev.Read(buf); err != nil || n != 8 {
				return
			}
			// Removing the group notifies too.
			if _, err := os.Stat(filepath.Join(dir, "cgroup.event_control")); err != nil {
				return
			}
			tell()
		}
	}()
	return nil
}

// watch tells of every rise of oom_kill in a memory.events file.
func (w *oomWatcher) watch(path string, tell func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return os.NewSyscallError("inotify_init1", err)
		}
		w.file, w.marks = os.NewFile(uintptr(fd), "inotify"), map[int32]*oomMark{}
		go w.run(w.file)
	}
	wd, err := unix.InotifyAddWatch(fdOf(w.file), path, unix.IN_MODIFY)
	if err != nil {
		return &os.PathError{Op: "inotify_add_watch", Path: path, Err: err}
	}
	n, _ := oomKills(path)
	w.marks[int32(wd)] = &oomMark{path: path, last: n, tell: tell}
	return nil
}

func (w *oomWatcher) run(f *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return
		}
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			wd, mask := int32(binary.NativeEndian.Uint32(p)), binary.NativeEndian.Uint32(p[4:])
			p = p[min(len(p), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(p[12:]))):]
			w.mu.Lock()
			m := w.marks[wd]
			if mask&unix.IN_IGNORED != 0 {
				delete(w.marks, wd)
				m = nil
			}
			w.mu.Unlock()
			if m == nil {
				continue
			}
			if kills, err := oomKills(m.path); err == nil && kills > m.last {
				m.last = kills
				m.tell()
			}
		}
	}
}

// oomKills reads oom_kill from a memory.events file.
func oomKills(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if v, ok := bytes.CutPrefix(lines.Bytes(), []byte("oom_kill ")); ok {
			return strconv.ParseUint(string(v), 10, 64)
		}
	}
	return 0, fmt.Errorf("no oom_kill in %s", path)
}
