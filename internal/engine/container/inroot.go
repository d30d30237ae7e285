package container

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// openInRoot opens path as a process chrooted to root would, following links inside it and never out of it, whatever
// other processes rename meanwhile. A FIFO or device does not block.
func openInRoot(root *os.File, path string, flags int) (*os.File, error) {
	path = strings.TrimLeft(path, "/")
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH != 0 {
		how.Flags = uint64(flags | unix.O_CLOEXEC)
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		// EAGAIN: something was renamed during the walk.
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return nil, &os.PathError{Op: "open", Path: "/" + path, Err: err}
		}
	}
}
