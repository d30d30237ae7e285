package layer

import (
	"archive/tar"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// attributes sets owner, extended attributes, mode and times of what was just made.
func (x *extraction) attributes(fd int, base, name string, h *tar.Header) error {
	if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	// After the owner, as a change of that takes file capabilities away.
	if err := SetXattrs(h, func(name string, value []byte) error { return unix.Lsetxattr(procPath(fd, base), name, value, 0) }); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		// And the owner's change may take setuid away. What was made under this name is no link that could be followed.
		if err := unix.Fchmodat(fd, base, uint32(h.Mode&0o7777), 0); err != nil {
			return err
		}
	}
	ts := timesOf(h)
	if h.Typeflag == tar.TypeDir {
		x.times[name] = ts
		return nil
	}
	return unix.UtimesNanoAt(fd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// timesOf are access and modification of an entry.
func timesOf(h *tar.Header) [2]unix.Timespec {
	at := h.AccessTime
	if at.Before(h.ModTime) {
		at = h.ModTime
	}
	return [2]unix.Timespec{timespec(at), timespec(h.ModTime)}
}

// timespec is a time as far as the kernel has one; the zero time is the epoch.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// SetXattrs sets the extended attributes that an archive's entry has, but for those that are not for archives to set, and as
// far as the file system and the kind of file have such.
func SetXattrs(h *tar.Header, set func(name string, value []byte) error) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, XattrRecord)
		if !ok || strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay.") {
			continue // overlayfs' own marks
		}
		switch err := set(name, []byte(value)); err {
		case nil, unix.ENOTSUP:
		case unix.EPERM:
			// The user's attributes are for files and folders only.
			if strings.HasPrefix(name, "user.") && h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
				continue
			}
			return fmt.Errorf("attribute %s: %w", name, err)
		default:
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

// procPath is a path that leads to a name in an open folder, whatever the folder's own path has become.
func procPath(fd int, base string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", fd, base) }

// fileAttributes is attributes for an open file. Most files of a layer are root's and have a mode that they are made with:
// each change that is not needed is one less for the file system to write down.
func fileAttributes(fd int, h *tar.Header) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if int(st.Uid) != h.Uid || int(st.Gid) != h.Gid {
		if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if err := SetXattrs(h, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) }); err != nil {
		return err
	}
	if mode := uint32(h.Mode & 0o7777); st.Mode&0o7777 != mode {
		if err := unix.Fchmod(fd, mode); err != nil {
			return err
		}
	}
	ts := timesOf(h)
	return unix.UtimesNanoAt(fd, "", ts[:], unix.AT_EMPTY_PATH)
}

// copyAttributes gives the folder to what the folder from has.
func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	names := make([]byte, 64<<10) // the kernel's own limit
	n, err := unix.Llistxattr(from, names)
	if err == unix.ENOTSUP {
		n, err = 0, nil
	}
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(from, name, value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(to, name, value[:n], 0); err != nil && err != unix.ENOTSUP {
			return err
		}
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, 0)
}
