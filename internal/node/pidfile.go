package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lockPidFile writes the process ID and holds a lock on the file, so that two daemons never share folders. It fails when
// another process holds it.
func lockPidFile(path string) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	var f *os.File
	for f == nil {
		if f, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644); err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			text, _ := os.ReadFile(path)
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("pidfile %s: sampand already runs as process %s: stop it, or give this one its own --pidfile, --data-root, --exec-root and --host", path, strings.TrimSpace(string(text)))
			}
			return nil, fmt.Errorf("pidfile %s: %w", path, err)
		}
		// A daemon that was ending may have removed it between the two.
		if is, err := f.Stat(); err == nil {
			if named, err := os.Stat(path); err != nil || !os.SameFile(is, named) {
				_ = f.Close()
				f = nil
			}
		}
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, err
	}
	return func() {
		_ = os.Remove(path)
		_ = f.Close()
	}, nil
}

// lockFolder holds a lock on a folder until release: a second daemon that is started with a pidfile of its own would
// take the containers it finds there for leftovers.
func lockFolder(flag, dir string) (release func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s %s is in use by another sampand: stop it, or give this one its own --pidfile, --data-root, --exec-root and --host", flag, dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { _ = f.Close() }, nil
}
