package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

// A container with a user namespace sees the same layers as all others: they are mounted with their owners shifted into
// its range of IDs, and so is the folder it writes to. On disk a file of the container's root is one of user 0, so images
// are stored once, and what a container wrote is committed, copied and compared as if it had no user namespace.
// overlayfs itself cannot be mounted so; what it is made of can, from Linux 5.19.

// shiftPrefix begins the names of the temporary mounts under ExecRoot that this takes.
const shiftPrefix = "shift-"

// shift mounts the store with shifted owners for as long as an overlay mount is made, and puts the paths there in place
// of dir and lower. An overlay mount keeps hold of its folders; it cannot be shifted itself.
func (s *Store) shift(containerID string, ns *os.File, dir *string, lower []string) (done func(), err error) {
	at := filepath.Join(s.cfg.ExecRoot, shiftPrefix+containerID)
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, err
	}
	if err := userns.Mount(s.cfg.Root, at, ns); err != nil {
		_ = os.Remove(at)
		return nil, err
	}
	*dir = at + strings.TrimPrefix(*dir, s.cfg.Root)
	for i, l := range lower {
		lower[i] = at + strings.TrimPrefix(l, s.cfg.Root)
	}
	return func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			s.log.Warn("temporary mount not taken away", "dir", at, "err", err)
		}
		_ = os.Remove(at)
	}, nil
}

// CanShift tries whether this kernel and the file system of the store can show root file systems with shifted owners
// (MountRootfsShifted), and says what is missing if not.
func (s *Store) CanShift() (err error) {
	dir, err := os.MkdirTemp(filepath.Join(s.cfg.Root, rootfsFolder), hiddenPrefix+"try-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	target := filepath.Join(dir, "at")
	for _, d := range []string{filepath.Join(dir, upperFolder), filepath.Join(dir, workFolder), target} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	const first = 100_000
	r := []userns.Range{{Outside: first, Count: 1}}
	ns, err := userns.Open(userns.Mapping{UIDs: r, GIDs: r}.WithRoot())
	if err != nil {
		return err
	}
	defer ns.Close()
	lower := []string{filepath.Join(s.cfg.Root, initFolder)}
	shifted := dir
	done, err := s.shift(filepath.Base(dir), ns, &shifted, lower)
	if err != nil {
		return err
	}
	defer done()
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: s.overlayOptions(lower, shifted)}
	if err := m.Mount(target); err != nil {
		return fault.New(fault.FailedPrecondition, "overlayfs on ID-mapped mounts: %w: this needs Linux 5.19 or newer", err)
	}
	defer func() { _ = unix.Unmount(target, unix.MNT_DETACH) }()
	var st unix.Stat_t
	made := filepath.Join(target, "etc", "made")
	if err := errors.Join(os.WriteFile(made, nil, 0o644), os.Chown(made, first, first), unix.Stat(filepath.Join(dir, upperFolder, "etc", "made"), &st)); err != nil {
		return fault.New(fault.FailedPrecondition, "overlayfs on ID-mapped mounts does not take a file: %w", err)
	}
	if st.Uid != 0 {
		return fault.New(fault.FailedPrecondition, "overlayfs on ID-mapped mounts keeps a file of user 0 as one of %d", st.Uid)
	}
	return nil
}
