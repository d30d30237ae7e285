// Package diskusage tells what folders take on the disk, also while others work in them.
package diskusage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Of returns the bytes that a folder and everything below it take: those of their blocks, a file of several names counted
// once. What goes while it looks is left out; a folder that is not there itself is fs.ErrNotExist.
func Of(ctx context.Context, dir string) (bytes int64, err error) {
	if _, err := os.Lstat(dir); err != nil {
		return 0, err
	}
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !info.IsDir() {
			id := inode{uint64(st.Dev), st.Ino} //nolint:unconvert // not on every architecture
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		bytes += st.Blocks * 512
		return nil
	})
	return bytes, err
}
