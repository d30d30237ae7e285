package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// diskSize is how much a disk may come to hold; it takes only what is written.
const diskSize = 16 << 30

// disk is a new ext4 file system of its own, in a file. Before ext4 takes an inode it passes all those near it that were
// deleted in the last minutes, one by one: on the machine's own file system, what was removed after one sample, or by
// any other program, makes the next sample's files slow to be made, whose ever they are.
type disk struct{ file, dir string }

func newDisk(ctx context.Context, tmp string) (*disk, error) {
	d := &disk{file: filepath.Join(tmp, "disk"), dir: filepath.Join(tmp, "d")}
	err := errors.Join(os.Mkdir(d.dir, 0o711), os.WriteFile(d.file, nil, 0o600), os.Truncate(d.file, diskSize))
	if err == nil {
		err = command(ctx, "mkfs.ext4", "-q", d.file)
	}
	if err == nil {
		err = command(ctx, "mount", "-o", "loop", d.file, d.dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("a file system for a measurement: %w", err), os.RemoveAll(d.file), os.RemoveAll(d.dir))
	}
	return d, os.Chmod(d.dir, 0o711) // a container's user must get through
}

// Close takes it away with all that is on it.
func (d *disk) Close() error {
	if err := unix.Unmount(d.dir, 0); err != nil {
		return fmt.Errorf("unmounting %s: %w", d.dir, err)
	}
	return errors.Join(os.Remove(d.dir), os.Remove(d.file))
}

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
