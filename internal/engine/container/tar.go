package container

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/engine/image/layer"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

// archiveBuffer is what is gathered of an archive before it is handed on: an archive of many small files would else wake its
// reader several times for each.
const archiveBuffer = 256 << 10

// writeTar writes name in root, with everything below it, as an archive whose entries begin with entry. With whole the
// top folder itself has no entry. Owners are written as ids has them inside. Of the folders whose entries are in hollow, and
// of those that the kernel makes up, nothing is written but themselves.
func writeTar(ctx context.Context, w io.Writer, root *os.Root, name, entry string, whole bool, ids userns.Mapping, hollow ...string) error {
	top, err := root.Open(".")
	if err != nil {
		return err
	}
	defer top.Close()
	// Names are of one part: whatever is renamed meanwhile, nothing outside of root is reached.
	dir, base := top, path.Clean(name)
	if parent := path.Dir(base); parent != "." {
		if dir, err = root.Open(parent); err != nil {
			return err
		}
		defer dir.Close()
		base = path.Base(base)
	}
	out := bufio.NewWriterSize(w, archiveBuffer)
	a := &archiver{w: tar.NewWriter(out), ids: ids, seen: map[[2]uint64]string{}, hollow: hollow, buf: make([]byte, archiveBuffer)}
	if err := a.add(ctx, dir, base, entry, whole); err != nil {
		return err
	}
	if err := a.w.Close(); err != nil {
		return err
	}
	return out.Flush()
}

type archiver struct {
	w    *tar.Writer
	ids  userns.Mapping       // what the owners inside are in what is seen of root
	seen map[[2]uint64]string // device and inode of files with several names, to the first in the archive
	// hollow are the entries of folders that are written without what is in them.
	hollow []string
	buf    []byte
}

// add writes what has the name base in a folder, and everything below it.
func (a *archiver) add(ctx context.Context, dir *os.File, base, entry string, skipSelf bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFSOCK {
		return nil // tar has no sockets
	}
	if !skipSelf {
		if err := a.one(dir, base, entry, &st); err != nil {
			return err
		}
	}
	if kind != unix.S_IFDIR || slices.Contains(a.hollow, entry) {
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), base)
	defer d.Close()
	if up, err := madeUp(fd); err != nil || up {
		return err // what is in it is no part of a container, some of it cannot be read, and some has no end
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		err := a.add(ctx, d, n, joinEntry(entry, n), false)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			return err
		}
	}
	return nil
}

func joinEntry(dir, name string) string {
	switch {
	case dir == "":
		return name
	case strings.HasSuffix(dir, "/"):
		return dir + name
	}
	return dir + "/" + name
}

// header is the entry of a file.
func (a *archiver) header(entry string, st *unix.Stat_t) *tar.Header {
	h := &tar.Header{Name: entry, Format: tar.FormatPAX, Mode: int64(st.Mode & 0o7777), ModTime: time.Unix(st.Mtim.Unix())}
	h.Uid, h.Gid = a.ids.In(int(st.Uid), int(st.Gid))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		if !strings.HasSuffix(h.Name, "/") {
			h.Name += "/"
		}
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)) //nolint:unconvert // not on every architecture
	default:
		h.Typeflag = tar.TypeReg
	}
	return h
}

// one writes one file.
func (a *archiver) one(dir *os.File, base, entry string, st *unix.Stat_t) error {
	h := a.header(entry, st)
	if h.Typeflag == tar.TypeSymlink {
		link := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(dir.Fd()), base, link)
		if err != nil {
			return err
		}
		h.Linkname = string(link[:n])
	}
	if h.Typeflag != tar.TypeReg {
		return a.w.WriteHeader(h)
	}
	if st.Nlink > 1 {
		key := [2]uint64{st.Dev, st.Ino}
		if first, known := a.seen[key]; known {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return a.w.WriteHeader(h)
		}
		a.seen[key] = h.Name
	}
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return err
	}
	if now.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%s was replaced while it was read", entry)
	}
	made, err := content(fd, entry)
	if err != nil {
		return err
	}
	if h.Size = now.Size; made != nil {
		h.Size = int64(len(made))
	}
	var attr [256]byte
	if n, err := unix.Fgetxattr(fd, "security.capability", attr[:]); err == nil && n > 0 {
		h.PAXRecords = map[string]string{layer.XattrRecord + "security.capability": string(attr[:n])}
	}
	if err := a.w.WriteHeader(h); err != nil {
		return err
	}
	if made != nil {
		_, err := a.w.Write(made)
		return err
	}
	for left := h.Size; left > 0; {
		piece := a.buf[:min(left, int64(len(a.buf)))]
		n, err := unix.Read(fd, piece)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "read", Path: entry, Err: err}
		}
		if n == 0 {
			// It has become shorter; the archive must keep what it promised.
			_, err := io.CopyN(a.w, zeros{}, left)
			return err
		}
		if _, err := a.w.Write(piece[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// madeUp reports whether a file or folder is one by which the kernel shows something, as in /proc and /sys.
func madeUp(fd int) (bool, error) {
	var on unix.Statfs_t
	if err := unix.Fstatfs(fd, &on); err != nil {
		return false, err
	}
	switch int64(on.Type) { //nolint:unconvert // not on every architecture
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC:
		return true, nil
	}
	return false, nil
}

// content is what is in a file that the kernel makes up as it is read, such as /proc/meminfo: its size says nothing. For
// other files it is nil.
func content(fd int, entry string) ([]byte, error) {
	if up, err := madeUp(fd); err != nil || !up {
		return nil, err
	}
	made, piece := []byte{}, make([]byte, 32<<10)
	for {
		n, err := unix.Read(fd, piece)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: entry, Err: err}
		case n == 0:
			return made, nil
		case len(made)+n > maxMadeUp:
			return nil, fault.New(fault.InvalidArgument, "%s has no end that could be waited for", entry)
		}
		made = append(made, piece[:n]...)
	}
}

// maxMadeUp is how much the kernel may make up for one file.
const maxMadeUp = 16 << 20

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

var noOwner = [2]int{-1, -1}

// extraction unpacks an archive into a folder of a container. Every name is resolved as a process chrooted to root
// would; nothing outside can be reached.
type extraction struct {
	root      *os.File
	base      string
	keepKinds bool           // refuse to replace a folder by something else, and the other way round
	owner     [2]int         // of everything, unless noOwner
	ids       userns.Mapping // what the owners inside are in what is seen of root

	dirName string // the folder of the last entry, kept open
	dir     *os.File
	times   []dirTime // set last: what is put into a folder changes its time
	buf     []byte
}

type dirTime struct {
	name string
	at   time.Time
}

func (x *extraction) close() {
	if x.dir != nil {
		_ = x.dir.Close()
	}
}

func (x *extraction) run(ctx context.Context, r io.Reader) error {
	t := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fault.New(fault.InvalidArgument, "archive: %w", err)
		}
		name := path.Clean("/" + h.Name)
		if name == "/" || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := x.entry(name, h, t); err != nil {
			var kind *fault.Error
			if errors.As(err, &kind) {
				return err
			}
			return fmt.Errorf("extracting %s: %w", h.Name, err)
		}
	}
	// What follows the end of the archive is padding; reading it lets the sender finish.
	_, _ = io.Copy(io.Discard, r)
	for _, d := range slices.Backward(x.times) {
		dir, err := x.parent(path.Dir(d.name))
		if err != nil {
			return err
		}
		setTime(dir, path.Base(d.name), d.at)
	}
	return nil
}

// parent opens the folder that an entry goes into, making it if needed.
func (x *extraction) parent(name string) (*os.File, error) {
	if x.dir != nil && x.dirName == name {
		return x.dir, nil
	}
	full := "/" + x.base + "/" + name
	f, err := openInRoot(x.root, full, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) && name != "/" {
		up, err2 := x.parent(path.Dir(name))
		if err2 != nil {
			return nil, err2
		}
		if err2 := unix.Mkdirat(int(up.Fd()), path.Base(name), 0o755); err2 != nil && !errors.Is(err2, fs.ErrExist) {
			return nil, err2
		}
		if uid, gid := x.ids.Out(0, 0); !x.ids.None() {
			if err2 := unix.Fchownat(int(up.Fd()), path.Base(name), uid, gid, unix.AT_SYMLINK_NOFOLLOW); err2 != nil {
				return nil, err2
			}
		}
		f, err = openInRoot(x.root, full, unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return nil, err
	}
	x.close()
	x.dir, x.dirName = f, name
	return f, nil
}

func (x *extraction) entry(name string, h *tar.Header, r io.Reader) error {
	dir, err := x.parent(path.Dir(name))
	if err != nil {
		return err
	}
	fd, base := int(dir.Fd()), path.Base(name)
	// Made first and room made after, if it must be: most copies go where nothing is.
	err = x.make(fd, base, false, h, r)
	if errors.Is(err, fs.ErrExist) {
		busy, err2 := x.makeRoom(dir, base, h)
		if err2 != nil {
			return err2
		}
		err = x.make(fd, base, busy, h, r)
		if errors.Is(err, fs.ErrExist) && h.Typeflag == tar.TypeDir {
			err = nil // two folders are one, with the attributes of the entry
		}
	}
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeLink:
		return nil // owner, mode and time are the first name's
	case tar.TypeReg, tar.TypeRegA: //nolint:staticcheck // see make
		return nil // done while it was open
	case tar.TypeDir:
		x.times = append(x.times, dirTime{name, h.ModTime})
	}
	uid, gid, err := x.ownerOf(h)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(fd, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	at := fmt.Sprintf("%s/%s", procFD(dir), base)
	if err := layer.SetXattrs(h, func(name string, value []byte) error { return unix.Lsetxattr(at, name, value, 0) }); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		setTime(dir, base, h.ModTime)
		return nil
	}
	if err := chmodAt(fd, base, uint32(h.Mode&0o7777)); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeDir {
		setTime(dir, base, h.ModTime)
	}
	return nil
}

// make makes the file of an entry; fs.ErrExist if there is one, unless it is busy: a file that is written in place.
func (x *extraction) make(fd int, base string, busy bool, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return unix.Mkdirat(fd, base, 0o700)
	case tar.TypeReg, tar.TypeRegA: //nolint:staticcheck // old archives have it
		return x.regular(fd, base, busy, h, r)
	case tar.TypeSymlink:
		return unix.Symlinkat(h.Linkname, fd, base)
	case tar.TypeLink:
		return x.link(fd, base, h.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		return unix.Mknodat(fd, base, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	}
	return fault.New(fault.InvalidArgument, "archive: %s has the unknown type %q", h.Name, h.Typeflag)
}

// ownerOf is whose an entry becomes, as the file system has it.
func (x *extraction) ownerOf(h *tar.Header) (uid, gid int, err error) {
	uid, gid = h.Uid, h.Gid
	if x.owner != noOwner {
		uid, gid = x.owner[0], x.owner[1]
	}
	if !x.ids.Has(uid, gid) {
		return 0, 0, fault.New(fault.InvalidArgument, "archive: %s belongs to %d:%d, which the container's user namespace does not have", h.Name, uid, gid)
	}
	uid, gid = x.ids.Out(uid, gid)
	return uid, gid, nil
}

// regular makes a file; busy: there is one that is written in place. What the file has by its making already, as most
// have owner and mode, is not set again.
func (x *extraction) regular(dir int, base string, busy bool, h *tar.Header, r io.Reader) error {
	uid, gid, err := x.ownerOf(h)
	if err != nil {
		return err
	}
	mode := uint32(h.Mode & 0o7777)
	flags := unix.O_CREAT | unix.O_EXCL
	if busy {
		flags = unix.O_TRUNC // a file that is a mount is written in place
	}
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|flags, mode&0o777)
	if err != nil {
		return err
	}
	if err := x.fill(fd, h, r, uid, gid, mode); err != nil {
		_ = unix.Close(fd)
		return err
	}
	return unix.Close(fd)
}

// fill writes what is in an open file, and its attributes.
func (x *extraction) fill(fd int, h *tar.Header, r io.Reader, uid, gid int, mode uint32) error {
	if x.buf == nil {
		x.buf = make([]byte, archiveBuffer)
	}
	for left := h.Size; left > 0; {
		piece := x.buf[:min(left, int64(len(x.buf)))]
		if _, err := io.ReadFull(r, piece); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if err := writeAll(fd, piece); err != nil {
			return err
		}
		left -= int64(len(piece))
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if int(st.Uid) != uid || int(st.Gid) != gid {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return err
		}
		st.Mode &^= unix.S_ISUID | unix.S_ISGID // the change may have taken them
	}
	// After the owner, as a change of that takes file capabilities away.
	if err := layer.SetXattrs(h, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) }); err != nil {
		return err
	}
	if st.Mode&0o7777 != mode {
		if err := unix.Fchmod(fd, mode); err != nil {
			return err
		}
	}
	if ts, err := unix.TimeToTimespec(h.ModTime); err == nil && !h.ModTime.IsZero() {
		// A time is a nicety: a file system without it is no reason to fail.
		_ = unix.UtimesNanoAt(fd, "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH)
	}
	return nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("write", err)
		}
		b = b[n:]
	}
	return nil
}

// chmodAt changes the mode of an entry that is no link. It goes through a handle: chmod itself would follow a link that
// somebody puts in its place.
func chmodAt(dir int, base string, mode uint32) error {
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return err
	}
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
}

func setTime(dir *os.File, base string, at time.Time) {
	if at.IsZero() {
		return
	}
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return
	}
	// A time is a nicety: a file system without it is no reason to fail.
	_ = unix.UtimesNanoAt(int(dir.Fd()), base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// makeRoom removes what is in an entry's place, unless both are folders. busy: it cannot be removed but written.
func (x *extraction) makeRoom(dir *os.File, base string, h *tar.Header) (busy bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	isDir, wantDir := st.Mode&unix.S_IFMT == unix.S_IFDIR, h.Typeflag == tar.TypeDir
	switch {
	case isDir && wantDir:
		return false, nil
	case isDir && x.keepKinds:
		return false, fault.New(fault.InvalidArgument, "cannot overwrite directory %q with non-directory %q", filepath.Join(x.base, h.Name), h.Name)
	case wantDir && x.keepKinds:
		return false, fault.New(fault.InvalidArgument, "cannot overwrite non-directory %q with directory %q", filepath.Join(x.base, h.Name), h.Name)
	case isDir:
		in, err := os.OpenRoot(procFD(dir))
		if err != nil {
			return false, err
		}
		defer in.Close()
		return false, in.RemoveAll(base)
	}
	err = unix.Unlinkat(int(dir.Fd()), base, 0)
	if errors.Is(err, unix.EBUSY) && h.Typeflag == tar.TypeReg {
		return true, nil
	}
	return false, err
}

// link makes a hard link to an earlier entry of the archive.
func (x *extraction) link(fd int, base, target string) error {
	clean := path.Clean("/" + target)
	from, err := openInRoot(x.root, "/"+x.base+"/"+path.Dir(clean), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer from.Close()
	return unix.Linkat(int(from.Fd()), path.Base(clean), fd, base, 0)
}
