package container

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

// checkSubpath refuses a path that cannot be one inside a volume or image.
func checkSubpath(sub string) error {
	if sub != "" && (path.IsAbs(sub) || !filepath.IsLocal(sub)) {
		return fault.New(fault.InvalidArgument, "subpath must be a relative path within the volume: %q", sub)
	}
	return nil
}

// openSubpath opens a path inside a volume or image. A link on the way that leads out of it is refused, whoever changes
// it meanwhile.
func openSubpath(root, sub string) (*os.File, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), sub, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), sub), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.EXDEV):
			return nil, fault.New(fault.InvalidArgument, "path concatenation escapes the base directory, subpath: %s", sub)
		default:
			return nil, fault.New(fault.InvalidArgument, "cannot access path %s: %w", sub, err)
		}
	}
}

// mountSubpath makes the source of a mount that shows a part of a volume or image: that part mounted in the container's
// own folder, as whoever can write to the volume could replace it by a link before the container's start gets there. With
// shift the owners of files there are shifted by that user namespace; sub may then be empty, for all of the volume.
func (m *Manager) mountSubpath(c *ctr, n int, root, sub string, shift *os.File, u *undo.Stack) (string, error) {
	f, err := openSubpath(root, firstNonEmpty(sub, "."))
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	target := filepath.Join(m.execDir(), c.id, subpathPrefix+strconv.Itoa(n))
	if st.IsDir() {
		err = os.MkdirAll(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return "", err
	}
	if shift != nil {
		err := userns.Mount(procFD(f), target, shift)
		if err == nil {
			u.Add(func() error { return unix.Unmount(target, unix.MNT_DETACH) })
			return target, nil
		}
		if !fault.Is(err, fault.FailedPrecondition) {
			return "", err
		}
		m.log.Warn("the owners of a volume's files are not those that the container has", "container", c.id, "error", err)
	}
	if err := unix.Mount(procFD(f), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", &os.PathError{Op: "bind mount", Path: firstNonEmpty(sub, root), Err: err}
	}
	u.Add(func() error { return unix.Unmount(target, unix.MNT_DETACH) })
	return target, nil
}

// subpathPrefix begins the names of what mountSubpath mounts on.
const subpathPrefix = "sub-"

// unmountSubpaths takes down what mountSubpath made. It is repeatable.
func (m *Manager) unmountSubpaths(id string) error {
	mounts, err := filepath.Glob(filepath.Join(m.execDir(), id, subpathPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range mounts {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, &os.PathError{Op: "unmount", Path: p, Err: err})
		}
	}
	return errors.Join(errs...)
}
