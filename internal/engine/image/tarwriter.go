package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/engine/image/layer"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// tarWriter writes files as an OCI layer or an export has them: numeric owners, hard links kept, extended attributes in
// PAX records, times in whole seconds, sockets left out.
type tarWriter struct {
	tw    *tar.Writer
	links map[inode]string // files with several names → the first that was written
}

type inode struct{ dev, ino uint64 }

func newTarWriter(w io.Writer) *tarWriter {
	return &tarWriter{tw: tar.NewWriter(w), links: map[inode]string{}}
}

func (t *tarWriter) close() error { return t.tw.Close() }

// tree writes everything below root, folders before what is in them, in order of name. It does not cross into other
// file systems, so that what is mounted in the container stays out.
func (t *tarWriter) tree(ctx context.Context, root string) error {
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return err
	}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the container is at work
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if path == root {
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := t.file(root, strings.TrimPrefix(path, root), info); err != nil {
			return err
		}
		if sys, ok := info.Sys().(*syscall.Stat_t); ok && d.IsDir() && sys.Dev != st.Dev {
			return filepath.SkipDir // a mount point: the folder itself is written, as Docker does
		}
		return nil
	})
}

// file writes the file path of the tree under root.
func (t *tarWriter) file(root, path string, info fs.FileInfo) error {
	if info.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	source := filepath.Join(root, path)
	var link string
	var err error
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(source); err != nil {
			return skipGone(err)
		}
	}
	h, err := tar.FileInfoHeader(nameless{info}, link)
	if err != nil {
		return err
	}
	h.Format = tar.FormatPAX
	h.Name = strings.TrimPrefix(path, "/")
	if info.IsDir() {
		h.Name += "/"
	}
	h.Uname, h.Gname = "", ""
	h.ModTime = h.ModTime.Truncate(time.Second)
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		h.Uid, h.Gid = int(st.Uid), int(st.Gid)
		if info.Mode()&fs.ModeDevice != 0 {
			h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
		}
		if st.Nlink > 1 && !info.IsDir() {
			id := inode{uint64(st.Dev), st.Ino}
			if first, ok := t.links[id]; ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
				return t.tw.WriteHeader(h)
			}
			t.links[id] = h.Name
		}
	}
	if err := addXattrs(h, source); err != nil {
		return skipGone(err)
	}
	if h.Typeflag != tar.TypeReg {
		return t.tw.WriteHeader(h)
	}
	f, err := os.OpenFile(source, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return skipGone(err)
	}
	defer f.Close()
	if err := t.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(t.tw, io.LimitReader(f, h.Size))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// A file that is cut short while it is read is filled up: the archive stays whole.
	for n < h.Size {
		m, err := t.tw.Write(make([]byte, min(h.Size-n, 64<<10)))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		n += int64(m)
	}
	return nil
}

// whiteout writes that path of the layers below is gone.
func (t *tarWriter) whiteout(path string) error {
	return t.marker(filepath.Join(filepath.Dir(path), whiteoutPrefix+filepath.Base(path)))
}

// opaque writes that nothing of the layers below is to be seen in folder path.
func (t *tarWriter) opaque(path string) error {
	return t.marker(filepath.Join(path, whiteoutOpaque))
}

func (t *tarWriter) marker(path string) error {
	return t.tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg,
		Name:     strings.TrimPrefix(path, "/"),
		ModTime:  time.Unix(0, 0),
		Format:   tar.FormatPAX,
	})
}

// nameless hides the platform's stat from tar.FileInfoHeader, which would look up the host's names for the container's
// numbers.
type nameless struct{ fs.FileInfo }

func (nameless) Sys() any { return nil }

func skipGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// addXattrs adds the attributes that belong to a file wherever it goes: file capabilities and the user's. Labels of a
// security module, overlayfs' marks and the like belong to this host.
func addXattrs(h *tar.Header, path string) error {
	names, err := listXattrs(path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name != "security.capability" && !strings.HasPrefix(name, "user.") {
			continue
		}
		v, err := getXattr(path, name)
		if err != nil {
			return err
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[layer.XattrRecord+name] = string(v)
	}
	return nil
}

func listXattrs(path string) ([]string, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := unix.Llistxattr(path, buf)
		switch err {
		case nil:
			return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }), nil
		case unix.ERANGE:
			continue
		case unix.ENOTSUP:
			return nil, nil
		}
		return nil, &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
}

func getXattr(path, name string) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := unix.Lgetxattr(path, name, buf)
		switch err {
		case nil:
			return buf[:n], nil
		case unix.ERANGE:
			continue
		case unix.ENODATA:
			return nil, nil
		}
		return nil, &fs.PathError{Op: "getxattr " + name, Path: path, Err: err}
	}
}
