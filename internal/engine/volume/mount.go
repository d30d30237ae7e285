package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cfs "github.com/containerd/continuity/fs"
	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

// checkOptions checks the options of the local driver: type, device and o, as mount(8) takes them.
func checkOptions(o map[string]string) error {
	for k := range o {
		if !slices.Contains([]string{"type", "device", "o"}, k) {
			if k == "size" {
				return errors.New("quota size requested but no quota support")
			}
			return fmt.Errorf("invalid option: %q", k)
		}
	}
	if len(o) == 0 {
		return nil
	}
	for _, k := range []string{"device", "type"} {
		if o[k] == "" {
			// A bind mount names no type.
			if k == "type" && isBind(o) {
				continue
			}
			return fmt.Errorf("missing required option: %q", k)
		}
	}
	return nil
}

func isBind(o map[string]string) bool {
	words := strings.Split(o["o"], ",")
	return slices.Contains(words, "bind") || slices.Contains(words, "rbind")
}

func hasMount(o map[string]string) bool { return o["device"] != "" }

// mountVolume mounts what a volume's options name on its folder, unless something is mounted there.
func mountVolume(ctx context.Context, v Volume) error {
	if mounted, err := mountinfo.Mounted(v.Mountpoint); err != nil {
		return err
	} else if mounted {
		return nil
	}
	typ, device, options := v.Options["type"], v.Options["device"], v.Options["o"]
	var words []string
	for w := range strings.SplitSeq(options, ",") {
		if w = strings.TrimSpace(w); w != "" {
			words = append(words, w)
		}
	}
	if strings.HasPrefix(typ, "nfs") || typ == "cifs" {
		// The kernel takes addresses, not names.
		for i, w := range words {
			if host, ok := strings.CutPrefix(w, "addr="); ok && net.ParseIP(host) == nil {
				ips, err := net.DefaultResolver.LookupIP(ctx, "ip", host)
				if err != nil {
					return fmt.Errorf("error resolving passed in network volume address: %w", err)
				}
				words[i] = "addr=" + ips[0].String()
			}
		}
	}
	if isBind(v.Options) && typ == "" {
		typ = "none"
	}
	if err := mount.Mount(device, v.Mountpoint, typ, strings.Join(words, ",")); err != nil {
		shown := options
		for _, w := range words {
			if secret, ok := strings.CutPrefix(w, "password="); ok && secret != "" {
				shown = strings.ReplaceAll(shown, secret, "********")
			}
		}
		var cause unix.Errno // what is around it repeats the options, passwords included
		if errors.As(err, &cause) {
			err = cause
		}
		err = fmt.Errorf("failed to mount local volume: mount %s:%s, type: %s, options: %s: %w", device, v.Mountpoint, typ, shown, err)
		if errors.Is(err, unix.ENODEV) {
			err = fmt.Errorf("%w: this kernel does not know file systems of the type %q: load its module (modprobe %s), or choose another type", err, typ, typ)
		}
		return err
	}
	return nil
}

// unmountAll takes away whatever is mounted on dir.
func unmountAll(dir string) error {
	for range 16 {
		mounted, err := mountinfo.Mounted(dir)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && !mounted) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return fmt.Errorf("unmount %s: more than 16 mounts lie there", dir)
}

// copyMark is a file beside a volume's data while image content is copied into it. A copy that was cut off is known by it.
const copyMark = "copying"

// CopyUp fills an empty volume with what an image has at the place where the volume will be mounted: files with owner,
// mode, times, attributes, links and holes, and owner and mode of the folder itself. fromRootfsDir is that place in the
// mounted root file system, links in the path resolved within it; if it is missing or no folder nothing is copied. A
// volume that holds something is left alone. After a failure the volume is empty again, after a crash the next Open
// empties it: no container can have started with it.
func CopyUp(ctx context.Context, fromRootfsDir, volumePath string) error {
	st, err := os.Lstat(fromRootfsDir)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && !st.IsDir()) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", volumePath, err)
	}
	dir, err := os.Open(volumePath)
	if err != nil {
		return fmt.Errorf("volume %s: %w", volumePath, err)
	}
	defer dir.Close() // and with it the lock
	// Of two containers that start with the same fresh volume one copies and the other waits until it is whole.
	if err := lockFolder(dir); err != nil {
		return fmt.Errorf("volume %s: %w", volumePath, err)
	}
	if names, err := dir.Readdirnames(1); len(names) > 0 {
		return nil
	} else if err != nil && err != io.EOF {
		return fmt.Errorf("volume %s: %w", volumePath, err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	mark := ""
	if filepath.Base(volumePath) == dataFolder {
		mark = filepath.Join(filepath.Dir(volumePath), copyMark)
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			return fmt.Errorf("volume %s: %w", volumePath, err)
		}
	}
	err = failpoint.Hit("engine/volume.copyup.marked")
	if err == nil {
		err = cfs.CopyDir(volumePath, fromRootfsDir, cfs.WithAllowXAttrErrors())
	}
	if err == nil {
		err = failpoint.Hit("engine/volume.copyup.copied")
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("copying %s to volume %s: %w", fromRootfsDir, volumePath, err), clearFolder(volumePath))
	}
	if mark != "" {
		err = errors.Join(err, os.Remove(mark))
	}
	return err
}

func lockFolder(dir *os.File) error {
	for {
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != unix.EINTR {
			return err
		}
	}
}

func clearFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}
