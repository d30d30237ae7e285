package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/engine/image/layer"
)

// upperEntry is one path of an overlay's upper folder.
type upperEntry struct {
	path   string // absolute, as in the container
	info   fs.FileInfo
	kind   ChangeKind
	opaque bool // a folder that hides what the layers below have in it
}

// walkUpper visits what the upper folder holds, folders before what is in them, in order of name. lower are the folders
// of the layers below, highest first.
func walkUpper(ctx context.Context, upper string, lower []string, visit func(upperEntry) error) error {
	return walkUpperAt(ctx, upper, "/", lower, visit)
}

func walkUpperAt(ctx context.Context, upper, at string, lower []string, visit func(upperEntry) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(upper, at))
	if at != "/" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) {
		return nil // the container is at work
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		x := upperEntry{path: filepath.Join(at, e.Name()), info: info, kind: Added}
		below := lower
		switch {
		case isWhiteout(info):
			x.kind = Deleted
		case info.IsDir():
			if x.opaque, err = isOpaque(filepath.Join(upper, x.path)); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			}
			if x.opaque {
				below = nil
			}
			fallthrough
		default:
			if in, err := lookBelow(lower, x.path); err != nil {
				return err
			} else if in != nil {
				x.kind = Modified
			}
		}
		if err := visit(x); err != nil {
			return err
		}
		if info.IsDir() {
			if err := walkUpperAt(ctx, upper, x.path, below, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

func isWhiteout(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0
}

func isOpaque(dir string) (bool, error) {
	var b [1]byte
	n, err := unix.Lgetxattr(dir, layer.OpaqueXattr, b[:])
	if err == unix.ENODATA || err == unix.ENOTSUP || err == unix.ERANGE {
		return false, nil
	}
	return n == 1 && b[0] == 'y', err
}

// lookBelow finds a path in the layers, highest first, as overlayfs would; nil when it is not there.
func lookBelow(lower []string, path string) (fs.FileInfo, error) {
	_, info, err := findBelow(lower, path)
	return info, err
}

// findBelow is lookBelow and tells where the file is.
func findBelow(lower []string, path string) (string, fs.FileInfo, error) {
	for _, folder := range lower {
		at, parts := folder, strings.Split(strings.Trim(path, "/"), "/")
		hidden := false // what lower layers have here is not seen
		for i, part := range parts {
			at = filepath.Join(at, part)
			info, err := os.Lstat(at)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
				break
			}
			if err != nil {
				return "", nil, err
			}
			if isWhiteout(info) {
				return "", nil, nil
			}
			if i == len(parts)-1 {
				return at, info, nil
			}
			if !info.IsDir() {
				return "", nil, nil
			}
			if o, err := isOpaque(at); err != nil {
				return "", nil, err
			} else if o {
				hidden = true
			}
		}
		if hidden {
			return "", nil, nil
		}
	}
	return "", nil, nil
}

// listBelow are the names that the layers show in a folder.
func listBelow(lower []string, dir string) ([]string, error) {
	seen := map[string]bool{} // name → there
	for _, folder := range lower {
		// The folder in this layer counts only if no higher layer replaced it.
		at := filepath.Join(folder, dir)
		entries, err := os.ReadDir(at)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if _, known := seen[e.Name()]; !known {
				in, err := lookBelow(lower, filepath.Join(dir, e.Name()))
				if err != nil {
					return nil, err
				}
				seen[e.Name()] = in != nil
			}
		}
	}
	var names []string
	for n, there := range seen {
		if there {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names, nil
}

// RootfsDiff lists what a container changed in its root file system, sorted by path.
func (s *Store) RootfsDiff(ctx context.Context, containerID string) ([]Change, error) {
	dir, _, lower, err := s.chainUnder(ctx, containerID)
	if err != nil {
		return nil, err
	}
	upper := filepath.Join(dir, upperFolder)
	changes := []Change{}
	err = walkUpper(ctx, upper, lower, func(e upperEntry) error {
		changes = append(changes, Change{Path: e.path, Kind: e.kind})
		if !e.opaque || e.kind == Added {
			return nil
		}
		// The folder was removed and made again: what it had and has no longer is gone.
		names, err := listBelow(lower, e.path)
		if err != nil {
			return err
		}
		for _, n := range names {
			if _, err := os.Lstat(filepath.Join(upper, e.path, n)); errors.Is(err, fs.ErrNotExist) {
				changes = append(changes, Change{Path: filepath.Join(e.path, n), Kind: Deleted})
			}
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("changes of container %s: %w", containerID, err)
	}
	if err := meanwhile(dir, containerID, err); err != nil {
		return nil, err
	}
	slices.SortFunc(changes, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return changes, nil
}
