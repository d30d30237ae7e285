// Package layer turns the archives that images' layers are into folders that overlayfs can stack. It knows archives and
// file systems and nothing of images, stores and registries.
//
// A layer is extracted without looking at those below it, so that the layers of an image can be extracted all at once.
// What does depend on them, the owner and mode of folders that the archive implies and does not hold, Apply reports and
// Adopt sets when they are there.
package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // of aufs, other than the opaque mark

	// XattrRecord precedes the name of an extended attribute among an entry's PAX records.
	XattrRecord = "SCHILY.xattr."
	// OpaqueXattr marks a folder that hides what the layers below have in it.
	OpaqueXattr = "trusted.overlay.opaque"

	// copySize is how much of a file is read and written at once.
	copySize = 256 << 10
	// holeSize is the smallest run of zeros that is left out of a file.
	holeSize = 32 << 10
	// openDirs bounds the folders that are kept open.
	openDirs = 64
	// maxLinked bounds how often a folder is made where a link points to: a layer never needs that in earnest.
	maxLinked = 1000
)

// Applied is what an extraction leaves to be done.
type Applied struct {
	// Implied are the folders, highest first, that were made because the archive has something in them, without an entry
	// of their own: the layers below say whose they are. "/" is one of them when the archive has no entry for it.
	Implied []string
}

// Apply extracts an uncompressed layer archive into the empty folder dir, as the specification of OCI layers has it.
// lowest says that no layer lies below: then there is nothing to hide, and whiteouts are left out; else they become
// character devices 0:0, and opaque folders get their attribute.
//
// Whatever the archive says, nothing outside of dir is touched: every name is resolved by the kernel as if dir were the
// root, links in it included.
func Apply(ctx context.Context, dir string, archive io.Reader, lowest bool) (Applied, error) {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return Applied{}, err
	}
	defer root.Close()
	x := &extraction{
		root: root, lowest: lowest, implied: map[string]bool{"/": true}, times: map[string][2]unix.Timespec{},
		hidden: map[string]bool{}, buf: make([]byte, copySize),
	}
	defer x.closeDirs()
	if err := x.run(ctx, tar.NewReader(archive)); err != nil {
		return Applied{}, err
	}
	return x.finish()
}

// extraction is one Apply.
type extraction struct {
	root   *os.File
	lowest bool
	buf    []byte

	dirs    map[string]*os.File         // folders kept open, by their name in the archive
	implied map[string]bool             // folders made for what is in them
	order   []string                    // the same, in the order of their making
	hidden  map[string]bool             // names with a whiteout
	linked  int                         // links followed to where a folder had to be made
	times   map[string][2]unix.Timespec // access and modification of folders: set last, as what is put in changes them
}

func (x *extraction) closeDirs() {
	for _, d := range x.dirs {
		_ = d.Close()
	}
	x.dirs = nil
}

func (x *extraction) run(ctx context.Context, t *tar.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if strings.ContainsRune(h.Name, 0) || strings.ContainsRune(h.Linkname, 0) {
			return fault.New(fault.InvalidArgument, "layer: %q: a name with a zero byte", h.Name)
		}
		name := path.Clean("/" + h.Name)
		if name == "/" {
			err = x.top(h)
		} else {
			err = x.entry(name, h, t)
		}
		if err != nil {
			var kind *fault.Error
			if errors.As(err, &kind) {
				return err
			}
			return fmt.Errorf("%s: %w", strings.TrimPrefix(name, "/"), err)
		}
	}
}

// top takes the entry of the root folder itself.
func (x *extraction) top(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return nil
	}
	delete(x.implied, "/")
	d, err := x.dir("/")
	if err != nil {
		return err
	}
	return x.attributes(int(d.Fd()), ".", "/", h)
}

func (x *extraction) entry(name string, h *tar.Header, r io.Reader) error {
	base := path.Base(name)
	if rest, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return x.whiteout(path.Dir(name), base, rest)
	}
	d, err := x.dir(path.Dir(name))
	if err != nil {
		return err
	}
	fd := int(d.Fd())
	err = x.make(fd, base, name, h, r)
	if errors.Is(err, fs.ErrExist) {
		if err := x.makeRoom(fd, base, name, h.Typeflag == tar.TypeDir); err != nil {
			return err
		}
		if d, err = x.dir(path.Dir(name)); err != nil {
			return err
		}
		fd = int(d.Fd())
		err = x.make(fd, base, name, h, r)
		if errors.Is(err, fs.ErrExist) && h.Typeflag == tar.TypeDir {
			err = nil // two folders are one, with the attributes of the later entry
		}
	}
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeLink:
		return nil // everything about it is its first name's
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont: //nolint:staticcheck // see make
		return nil // done while it was open
	case tar.TypeDir:
		delete(x.implied, name)
		if x.hidden[name] {
			if err := x.hideBelow(name); err != nil {
				return err
			}
		}
	}
	return x.attributes(fd, base, name, h)
}

// make makes the file of an entry; fs.ErrExist if there is one.
func (x *extraction) make(fd int, base, name string, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont: //nolint:staticcheck // old archives have TypeRegA
		return x.regular(fd, base, h, r)
	case tar.TypeDir:
		return unix.Mkdirat(fd, base, 0o700)
	case tar.TypeSymlink:
		return unix.Symlinkat(h.Linkname, fd, base)
	case tar.TypeLink:
		return x.link(fd, base, h.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		return unix.Mknodat(fd, base, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	}
	return fault.New(fault.InvalidArgument, "layer: %s has the unknown type %q", strings.TrimPrefix(name, "/"), h.Typeflag)
}

// regular writes a file. Long runs of zeros become holes.
func (x *extraction) regular(fd int, base string, h *tar.Header, r io.Reader) error {
	out, err := unix.Openat(fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(h.Mode&0o777))
	if err != nil {
		return err
	}
	defer unix.Close(out)
	if err := x.content(out, h, r); err != nil {
		return err
	}
	return fileAttributes(out, h)
}

// content writes what is in a file.
func (x *extraction) content(out int, h *tar.Header, r io.Reader) error {
	var at int64
	hole := false
	for at < h.Size {
		n, err := io.ReadFull(r, x.buf[:min(h.Size-at, copySize)])
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		for b := x.buf[:n]; len(b) > 0; {
			piece := b
			if h.Size > holeSize {
				piece = b[:min(len(b), holeSize)]
			}
			if hole = len(piece) == holeSize && allZero(piece); !hole {
				// As much as there is up to the next hole goes in one call.
				for len(piece) < len(b) {
					next := b[len(piece):min(len(b), len(piece)+holeSize)]
					if len(next) == holeSize && allZero(next) {
						break
					}
					piece = b[:len(piece)+len(next)]
				}
				if err := writeAt(out, piece, at); err != nil {
					return err
				}
			}
			at += int64(len(piece))
			b = b[len(piece):]
		}
	}
	if hole {
		return unix.Ftruncate(out, h.Size)
	}
	return nil
}

func writeAt(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

var zeros [holeSize]byte

func allZero(b []byte) bool { return b[0] == 0 && string(b) == string(zeros[:len(b)]) }

// link makes a hard link to an earlier entry of the archive, which may be a symbolic link itself.
func (x *extraction) link(fd int, base, target string) error {
	clean := path.Clean("/" + target)
	from, err := x.open(path.Dir(clean))
	if err == nil {
		defer from.Close()
		err = unix.Linkat(int(from.Fd()), path.Base(clean), fd, base, 0)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.InvalidArgument, "layer: hard link to %s, which is not in the same layer", target)
	}
	return err
}

// whiteout takes an entry .wh.NAME in the folder dir.
func (x *extraction) whiteout(dir, base, hides string) error {
	switch {
	case base == whiteoutOpaque:
		if _, err := x.dir(dir); err != nil || x.lowest {
			return err
		}
		return x.hideBelow(dir)
	case strings.HasPrefix(base, whiteoutMeta):
		return nil
	case hides == "" || hides == "." || hides == "..":
		return fault.New(fault.InvalidArgument, "layer: %s: invalid name of a whiteout", strings.TrimPrefix(path.Join(dir, base), "/"))
	}
	d, err := x.dir(dir)
	if err != nil || x.lowest {
		return err
	}
	name := path.Join(dir, hides)
	x.hidden[name] = true
	fd := int(d.Fd())
	var st unix.Stat_t
	err = unix.Fstatat(fd, hides, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return unix.Mknodat(fd, hides, unix.S_IFCHR, 0)
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		// It hides what the layers below have there, never what this one has, whichever comes first in the archive.
		return x.hideBelow(name)
	}
	return nil
}

// hideBelow makes a folder of this layer opaque.
func (x *extraction) hideBelow(dir string) error {
	d, err := x.dir(dir)
	if err != nil {
		return err
	}
	return unix.Lsetxattr(procPath(int(d.Fd()), "."), OpaqueXattr, []byte("y"), 0)
}

// makeRoom removes what is in an entry's place, unless both are folders. The folders kept open may be closed by it.
func (x *extraction) makeRoom(fd int, base, name string, wantDir bool) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err := unix.Unlinkat(fd, base, 0)
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			x.closeDirs() // one of them may have been reached through it
		}
		return err
	}
	if wantDir {
		return nil
	}
	x.closeDirs()
	parent, err := x.open(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	in, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", parent.Fd()))
	if err != nil {
		return err
	}
	defer in.Close()
	return in.RemoveAll(base)
}

// open opens a folder with the layer as its root: links are followed, and lead nowhere else.
func (x *extraction) open(name string) (*os.File, error) {
	rel := "." + name
	for {
		fd, err := unix.Openat2(int(x.root.Fd()), rel, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), name), nil
		case unix.EAGAIN, unix.EINTR: // something was renamed meanwhile, somewhere
			continue
		}
		return nil, &fs.PathError{Op: "open", Path: strings.TrimPrefix(name, "/"), Err: err}
	}
}

// dir returns a folder that is kept open, made with those above it if it is not there.
func (x *extraction) dir(name string) (*os.File, error) {
	if d := x.dirs[name]; d != nil {
		return d, nil
	}
	d, err := x.open(name)
	if name != "/" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)) {
		if err := x.imply(name); err != nil {
			return nil, err
		}
		d, err = x.open(name)
	}
	if err != nil {
		return nil, err
	}
	if len(x.dirs) >= openDirs {
		x.closeDirs()
	}
	if x.dirs == nil {
		x.dirs = map[string]*os.File{}
	}
	x.dirs[name] = d
	return d, nil
}

// imply makes a folder for which the archive has no entry so far.
func (x *extraction) imply(name string) error {
	up, err := x.dir(path.Dir(name))
	if err != nil {
		return err
	}
	fd, base := int(up.Fd()), path.Base(name)
	if x.hidden[name] {
		// A whiteout of this layer: the folder comes in its place and hides what was below it.
		var st unix.Stat_t
		if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			if err := unix.Unlinkat(fd, base, 0); err != nil {
				return err
			}
		}
	}
	if err := unix.Mkdirat(fd, base, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return x.implyTarget(fd, base, name)
		}
		return err
	}
	if err := unix.Fchmodat(fd, base, 0o755, 0); err != nil { // whatever the umask is
		return err
	}
	if x.hidden[name] {
		return x.hideBelow(name)
	}
	x.implied[name] = true
	x.order = append(x.order, name)
	return nil
}

// implyTarget makes the folder that a link in an entry's path points to. Where there is no link but a file, the entry
// cannot be.
func (x *extraction) implyTarget(fd int, base, name string) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, base, buf)
	if err == unix.EINVAL {
		return unix.ENOTDIR
	}
	if err != nil {
		return err
	}
	if x.linked++; x.linked > maxLinked {
		return unix.ELOOP
	}
	target := string(buf[:n])
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(name), target)
	}
	_, err = x.dir(path.Clean("/" + target))
	return err
}

// finish sets the times of folders and tells which were implied.
func (x *extraction) finish() (Applied, error) {
	var a Applied
	if x.implied["/"] {
		a.Implied = append(a.Implied, "/")
	}
	for _, name := range x.order {
		if x.implied[name] {
			a.Implied = append(a.Implied, name)
		}
	}
	for name, ts := range x.times {
		d, err := x.open(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue // replaced by a later entry
		}
		if err != nil {
			return a, err
		}
		err = unix.UtimesNanoAt(unix.AT_FDCWD, procPath(int(d.Fd()), "."), ts[:], 0)
		_ = d.Close()
		if err != nil {
			return a, fmt.Errorf("%s: times: %w", strings.TrimPrefix(name, "/"), err)
		}
	}
	return a, nil
}

// Adopt gives the implied folders of a layer in dir the attributes that they have in the layers below it. below tells
// where a folder is in those, as overlayfs would find it; "" when it is not there or no folder.
func (a Applied) Adopt(dir string, below func(name string) (string, error)) error {
	if len(a.Implied) == 0 {
		return nil
	}
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	x := &extraction{root: root}
	for _, name := range a.Implied {
		from, err := below(name)
		if err != nil {
			return err
		}
		if from == "" {
			continue
		}
		d, err := x.open(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue // replaced later in the archive
		}
		if err != nil {
			return err
		}
		err = copyAttributes(from, procPath(int(d.Fd()), "."))
		_ = d.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", strings.TrimPrefix(name, "/"), err)
		}
	}
	return nil
}
