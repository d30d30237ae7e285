package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/diskusage"
)

// A container's root file system is a folder ROOT/rootfs/ID:
//
//	fs/     the writable layer, the upper folder of its overlay mount
//	work/   overlayfs' own
//	chain   a symbolic link whose target is the name of the layers below (not a path)
//
// It is no snapshot of the snapshotter on purpose: a snapshot costs two databases two fsyncs each, at creation and at
// removal, which is most of what it takes to start a container. Here creation is a few mkdirs and a rename.
//
// What that means for a crash: the folder is built under another name and renamed, so the process can die anywhere and
// leaves either nothing, or a whole root file system, or a folder named ".…" that the next Open deletes. After a loss of
// power the file system's own journal decides: a folder made in the last seconds may be gone (then MountRootfs says so,
// and the container is one that was created in those seconds), but it cannot be half there, as everything in it is
// metadata of the journal and the chain link has no content to lose. The layers below are pinned by a lease that is
// written, fsync included, before the first container stands on them and dropped only after the last one is gone; in
// between, containers come and go without a write to any database.
const rootfsFolder = "rootfs"

const (
	upperFolder  = "fs"
	workFolder   = "work"
	chainLink    = "chain"
	scratchChain = "scratch" // an image without layers
	hiddenPrefix = "."       // being made or being deleted
	pinPrefix    = "rootfs/"
	initFolder   = "init"
	lookPrefix   = "look-" // of temporary mounts under ExecRoot
)

// rootfsTable is what is known of root file systems without looking.
type rootfsTable struct {
	// mu is held for reading while a container takes hold of a chain, for writing while idle pins are dropped.
	mu sync.RWMutex
	// chains are those that are pinned, or about to be.
	chains sync.Map // chain → *layers
	// ending are the mounts that the kernel is still writing out: container ID → chan struct{}, closed at the end.
	ending sync.Map
	// options are overlayfs' mount options that this kernel knows.
	options []string
}

// layers are the folders of a chain, highest first.
type layers struct {
	mu     sync.Mutex
	leased bool
	dirs   []string
}

var plainName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func (s *Store) rootfsDir(containerID string) (string, error) {
	if !plainName.MatchString(containerID) {
		return "", fault.New(fault.InvalidArgument, "invalid container ID %q", containerID)
	}
	return filepath.Join(s.cfg.Root, rootfsFolder, containerID), nil
}

// openRootfs finds what this kernel's overlayfs can do and clears what a crash left.
func (s *Store) openRootfs(ctx context.Context) error {
	for _, o := range []struct{ parameter, option string }{
		// An index would bind the upper folder to its layers' inodes, and a renamed folder or a metadata-only copy would
		// make the upper folder unreadable to everything that looks at it alone: diff, commit, usage.
		{"index", "index=off"},
		{"redirect_dir", "redirect_dir=off"},
		{"metacopy", "metacopy=off"},
	} {
		if _, err := os.Stat("/sys/module/overlay/parameters/" + o.parameter); err == nil {
			s.rootfs.options = append(s.rootfs.options, o.option)
		}
	}
	if err := makeInitLayer(filepath.Join(s.cfg.Root, initFolder)); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(s.cfg.Root, rootfsFolder))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), hiddenPrefix) {
			s.deleteLater(filepath.Join(s.cfg.Root, rootfsFolder, e.Name()))
		}
	}
	looks, err := filepath.Glob(filepath.Join(s.cfg.ExecRoot, lookPrefix+"*"))
	if err != nil {
		return err
	}
	shifts, err := filepath.Glob(filepath.Join(s.cfg.ExecRoot, shiftPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range append(looks, shifts...) {
		_ = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		_ = os.Remove(dir)
	}
	pins, err := s.leases().List(ctx)
	if err != nil {
		return err
	}
	for _, p := range pins {
		if chain, ok := strings.CutPrefix(p.ID, pinPrefix); ok {
			s.rootfs.chains.Store(chain, &layers{leased: true})
		}
	}
	return nil
}

// deleteLater deletes a folder that nothing refers to any more.
func (s *Store) deleteLater(dir string) {
	s.removals.Go(func() {
		if err := os.RemoveAll(dir); err != nil {
			s.log.Warn("folder of a removed root file system not deleted; tried again at the next start", "dir", dir, "err", err)
		}
	})
}

// PrepareRootfs makes a writable root file system for a container on the layers of an image, given by its ID or, where it
// is for several platforms, by the digest of one's manifest. From then
// on the layers stay, whatever happens to the image, until RemoveRootfs.
func (s *Store) PrepareRootfs(ctx context.Context, containerID, imageID string) error {
	dir, err := s.rootfsDir(containerID)
	if err != nil {
		return err
	}
	img, err := s.findPlatform(ctx, imageID)
	if err != nil {
		return err
	}
	chain := scratchChain
	if chains := chainsOf(img.Layers); len(chains) > 0 {
		chain = chains[len(chains)-1]
	}
	if slices.ContainsFunc(img.Manifests, func(m Manifest) bool { return m.Descriptor.Digest == img.Manifest.Digest && m.Unpacked == 0 }) {
		if err := s.unpacked(ctx, img); err != nil {
			return err
		}
	}
	s.rootfs.mu.RLock()
	defer s.rootfs.mu.RUnlock()
	lower, err := s.pin(s.ns(ctx), chain)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("engine/image.rootfs.pinned"); err != nil {
		return err
	}

	u := undo.New()
	defer u.Run()
	tmp := filepath.Join(s.cfg.Root, rootfsFolder, hiddenPrefix+"new-"+rand.Text())
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return fmt.Errorf("root file system of container %s: %w", containerID, err)
	}
	u.Add(func() error { return os.RemoveAll(tmp) })
	upper := filepath.Join(tmp, upperFolder)
	err = errors.Join(
		os.Mkdir(upper, 0o755),
		os.Mkdir(filepath.Join(tmp, workFolder), 0o711),
		os.Symlink(chain, filepath.Join(tmp, chainLink)),
	)
	// The mount shows the upper folder's own mode and owner as those of "/".
	var st unix.Stat_t
	if err == nil && unix.Stat(lower[0], &st) == nil {
		err = errors.Join(os.Chown(upper, int(st.Uid), int(st.Gid)), unix.Chmod(upper, st.Mode&0o7777))
	}
	if err == nil {
		err = failpoint.Hit("engine/image.rootfs.made")
	}
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
	}
	if errors.Is(err, unix.EEXIST) {
		return fault.New(fault.AlreadyExists, "container %s has a root file system already", containerID)
	}
	if err != nil {
		return fmt.Errorf("root file system of container %s: %w", containerID, err)
	}
	u.Done()
	return nil
}

// pin makes sure that chain stays and returns its folders. The caller holds rootfs.mu for reading.
func (s *Store) pin(ctx context.Context, chain string) ([]string, error) {
	if chain == scratchChain {
		return []string{filepath.Join(s.cfg.Root, initFolder)}, nil
	}
	v, _ := s.rootfs.chains.LoadOrStore(chain, &layers{})
	l := v.(*layers)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dirs != nil {
		return l.dirs, nil
	}
	if !l.leased {
		err := s.db.Update(func(tx *bolt.Tx) error { // one transaction: a lease without its resource would pin nothing
			ctx := boltutil.WithTransaction(ctx, tx)
			m := s.leases()
			lease, err := m.Create(ctx, leases.WithID(pinPrefix+chain))
			if err != nil {
				return err
			}
			return m.AddResource(ctx, lease, leases.Resource{ID: viewPrefix + chain, Type: resourceSnapshot})
		})
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return nil, fmt.Errorf("pinning layers %s: %w", chain, err)
		}
		l.leased = true
	}
	mounts, err := s.snapshots().Mounts(ctx, viewPrefix+chain)
	if errdefs.IsNotFound(err) {
		return nil, fault.New(fault.NotFound, "layers %s are gone: pull or load the image again", chain)
	}
	if err != nil {
		return nil, fmt.Errorf("layers %s: %w", chain, err)
	}
	one, lower, err := foldersOf(mounts)
	if err != nil {
		return nil, fmt.Errorf("layers %s: %w", chain, err)
	}
	if one != "" {
		lower = []string{one} // a view of a single layer is a bind mount of it
	}
	l.dirs = append(slices.Clip(lower), filepath.Join(s.cfg.Root, initFolder))
	return l.dirs, nil
}

// makeInitLayer makes the folder that lies below the layers of every image: the places that every container has
// something mounted on. So a runtime finds them also in an image FROM scratch and need not make them in the writable
// layer, where diff and commit would take them for the container's own. What an image itself has there hides them.
func makeInitLayer(dir string) error {
	for _, d := range []string{"", "dev", "dev/pts", "dev/shm", "etc", "proc", "sys"} {
		path := filepath.Join(dir, d)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDONLY, 0o755)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	if err := os.Symlink("/proc/mounts", filepath.Join(dir, "etc/mtab")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// chainUnder returns the chain a container's root file system stands on, and its folders.
func (s *Store) chainUnder(ctx context.Context, containerID string) (dir string, chain string, lower []string, err error) {
	if dir, err = s.rootfsDir(containerID); err != nil {
		return "", "", nil, err
	}
	chain, err = os.Readlink(filepath.Join(dir, chainLink))
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil, fault.New(fault.NotFound, "container %s has no root file system on this host: remove it and create it again", containerID)
	}
	if err != nil {
		return "", "", nil, err
	}
	s.rootfs.mu.RLock()
	defer s.rootfs.mu.RUnlock()
	lower, err = s.pin(s.ns(ctx), chain)
	return dir, chain, lower, err
}

// MountRootfs mounts a container's root file system on target, which it creates if need be. If something is mounted
// there already, that is taken for it.
func (s *Store) MountRootfs(ctx context.Context, containerID, target string) (Rootfs, error) {
	return s.MountRootfsShifted(ctx, containerID, target, nil)
}

// MountRootfsShifted is MountRootfs with the owners of all files shifted by a user namespace, which must have the host's
// root in it (userns.Mapping.WithRoot); nil: they are not shifted. What is written is kept unshifted, so that the same
// file system can be mounted with another namespace the next time, or with none.
func (s *Store) MountRootfsShifted(ctx context.Context, containerID, target string, ns *os.File) (Rootfs, error) {
	dir, _, lower, err := s.chainUnder(ctx, containerID)
	if err != nil {
		return Rootfs{}, err
	}
	r := Rootfs{Path: target, Upper: filepath.Join(dir, upperFolder)}
	if err := os.MkdirAll(target, 0o711); err != nil {
		return Rootfs{}, fmt.Errorf("root file system of container %s: %w", containerID, err)
	}
	if mounted, err := mountinfo.Mounted(target); err == nil && mounted {
		return r, nil
	}
	lower = slices.Clone(lower)
	// Two mounts must not share an upper folder.
	if ended, ok := s.rootfs.ending.Load(containerID); ok {
		select {
		case <-ended.(chan struct{}):
		case <-ctx.Done():
			return Rootfs{}, ctx.Err()
		}
	}
	if ns != nil {
		done, err := s.shift(containerID, ns, &dir, lower)
		if err != nil {
			return Rootfs{}, fmt.Errorf("root file system of container %s: %w", containerID, err)
		}
		defer done()
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: s.overlayOptions(lower, dir)}
	if err := m.Mount(target); err != nil {
		return Rootfs{}, fmt.Errorf("mounting the root file system of container %s on %s: %w", containerID, target, err)
	}
	return r, nil
}

func (s *Store) overlayOptions(lower []string, dir string) []string {
	return append([]string{
		"lowerdir=" + strings.Join(lower, ":"),
		"upperdir=" + filepath.Join(dir, upperFolder),
		"workdir=" + filepath.Join(dir, workFolder),
	}, s.rootfs.options...)
}

// UnmountRootfs takes the mount on target away, at once for everybody who looks for it and from processes that still
// have files open there when they close them. It does nothing if there is none.
//
// The end of an overlay mount writes out the whole file system below it, which takes milliseconds up to seconds on a busy
// disk. So the mount is only taken out of the tree here; a descriptor keeps it alive for a moment longer and is closed in
// the background, where nobody waits for the write, except a MountRootfs of the same container.
func (s *Store) UnmountRootfs(_ context.Context, containerID, target string) error {
	if mounted, err := mountinfo.Mounted(target); err == nil && !mounted {
		_ = os.Remove(target)
		return nil
	}
	fd, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		fd = -1
	}
	err = unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if fd >= 0 {
		ended := make(chan struct{})
		s.rootfs.ending.Store(containerID, ended)
		s.removals.Go(func() {
			defer close(ended)
			defer s.rootfs.ending.CompareAndDelete(containerID, ended)
			_ = unix.Close(fd)
		})
	}
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmounting the root file system of container %s from %s: %w", containerID, target, err)
	}
	_ = os.Remove(target)
	return nil
}

// RemoveRootfs deletes a container's root file system. The files go in the background. It does nothing if there is none.
func (s *Store) RemoveRootfs(_ context.Context, containerID string) error {
	dir, err := s.rootfsDir(containerID)
	if err != nil {
		return err
	}
	gone := filepath.Join(s.cfg.Root, rootfsFolder, hiddenPrefix+"gone-"+rand.Text())
	if err := os.Rename(dir, gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("removing the root file system of container %s: %w", containerID, err)
	}
	s.deleteLater(gone)
	return nil
}

// Keep removes the root file systems of all containers but the given ones, and then what no longer serves anything. The
// container manager calls it once at start, when it knows which containers there are.
func (s *Store) Keep(ctx context.Context, containerIDs []string) error {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Root, rootfsFolder))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), hiddenPrefix) && !slices.Contains(containerIDs, e.Name()) {
			errs = append(errs, s.RemoveRootfs(ctx, e.Name()))
		}
	}
	errs = append(errs, s.GC(ctx))
	// Of layers that the database does not have any more, the folders: who collected them may have been killed before
	// these were gone, and a collection looks for them only if it removes a layer itself.
	if c, ok := s.layers.(snapshots.Cleaner); ok {
		if err := c.Cleanup(ctx); !errdefs.IsNotFound(err) { // the database of a host that never had a layer is not made yet
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// usedChains are the chains that root file systems stand on.
func (s *Store) usedChains() (map[string]bool, error) {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Root, rootfsFolder))
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, e := range entries {
		// A hidden folder may be one in the making, but not while rootfs.mu is held for writing.
		if strings.HasPrefix(e.Name(), hiddenPrefix) {
			continue
		}
		chain, err := os.Readlink(filepath.Join(s.cfg.Root, rootfsFolder, e.Name(), chainLink))
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, err
		}
		used[chain] = true
	}
	return used, nil
}

// dropIdlePins unpins the chains that no root file system stands on.
func (s *Store) dropIdlePins(ctx context.Context) error {
	s.rootfs.mu.Lock()
	defer s.rootfs.mu.Unlock()
	used, err := s.usedChains()
	if err != nil {
		return err
	}
	var errs []error
	s.rootfs.chains.Range(func(k, _ any) bool {
		chain := k.(string)
		if used[chain] {
			return true
		}
		err := s.leases().Delete(ctx, leases.Lease{ID: pinPrefix + chain})
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
			return true
		}
		s.rootfs.chains.Delete(chain)
		return true
	})
	return errors.Join(errs...)
}

// RootfsUsage is the space that a container's own files take, and that with its image's.
func (s *Store) RootfsUsage(ctx context.Context, containerID string) (rw, total int64, err error) {
	dir, chain, _, err := s.chainUnder(ctx, containerID)
	if err != nil {
		return 0, 0, err
	}
	if rw, err = diskusage.Of(ctx, filepath.Join(dir, upperFolder)); err != nil {
		return 0, 0, meanwhile(dir, containerID, fmt.Errorf("size of container %s: %w", containerID, err))
	}
	total = rw
	ctx = s.ns(ctx)
	for chain != "" && chain != scratchChain {
		u, err := s.snapshots().Usage(ctx, chain)
		if err != nil {
			return 0, 0, meanwhile(dir, containerID, fmt.Errorf("size of container %s: %w", containerID, err))
		}
		info, err := s.snapshots().Stat(ctx, chain)
		if err != nil {
			return 0, 0, meanwhile(dir, containerID, fmt.Errorf("size of container %s: %w", containerID, err))
		}
		total += u.Size
		chain = info.Parent
	}
	return rw, total, meanwhile(dir, containerID, nil)
}

// meanwhile is err, or nil, of a look at the root file system of a container that nobody kept from being removed. If it has
// been, what was seen may be a part only, and it is fault.NotFound.
func meanwhile(dir, containerID string, err error) error {
	if _, serr := os.Lstat(dir); errors.Is(serr, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "No such container: %s", containerID)
	}
	return err
}

// ExportLayer writes a container's whole root file system as a tar archive.
func (s *Store) ExportLayer(ctx context.Context, containerID string, w io.Writer) error {
	dir, _, lower, err := s.chainUnder(ctx, containerID)
	if err != nil {
		return err
	}
	root, done, err := s.look(dir, lower)
	if err != nil {
		return meanwhile(dir, containerID, fmt.Errorf("export of container %s: %w", containerID, err))
	}
	defer done()
	t := newTarWriter(w)
	if err = t.tree(ctx, root); err != nil {
		err = fmt.Errorf("export of container %s: %w", containerID, err)
	}
	if err = meanwhile(dir, containerID, err); err != nil {
		return err
	}
	return t.close()
}

// mountedContainers are the containers whose root file system is mounted now.
func (s *Store) mountedContainers() map[string]bool {
	upper := "upperdir=" + filepath.Join(s.cfg.Root, rootfsFolder) + "/"
	shifted := regexp.MustCompile("^upperdir=" + regexp.QuoteMeta(filepath.Join(s.cfg.ExecRoot, shiftPrefix)) + "([^/]*)/")
	out := map[string]bool{}
	_, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		if i.FSType == "overlay" {
			for o := range strings.SplitSeq(i.VFSOptions, ",") {
				if m := shifted.FindStringSubmatch(o); m != nil {
					out[m[1]] = true
				}
				if rest, ok := strings.CutPrefix(o, upper); ok {
					out[strings.TrimSuffix(rest, "/"+upperFolder)] = true
				}
			}
		}
		return true, false
	})
	if err != nil {
		s.log.Warn("mounts cannot be read", "err", err)
	}
	return out
}

// look gives a place where the root file system in dir can be read: where it is mounted, or else a mount of its own.
func (s *Store) look(dir string, lower []string) (root string, done func(), err error) {
	upper := "upperdir=" + filepath.Join(dir, upperFolder)
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		match := i.FSType == "overlay" && slices.Contains(strings.Split(i.VFSOptions, ","), upper)
		return !match, match
	})
	if err != nil {
		return "", nil, err
	}
	if len(mounts) > 0 {
		return mounts[0].Mountpoint, func() {}, nil
	}
	target, err := os.MkdirTemp(s.cfg.ExecRoot, lookPrefix)
	if err != nil {
		return "", nil, err
	}
	// Read-only, with the writable layer as the highest of the lower ones: two mounts must not share an upper folder, and
	// the container may be started meanwhile.
	stack := append([]string{filepath.Join(dir, upperFolder)}, lower...)
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: append([]string{"ro", "lowerdir=" + strings.Join(stack, ":")}, s.rootfs.options...)}
	if err := m.Mount(target); err != nil {
		_ = os.Remove(target)
		return "", nil, err
	}
	return target, func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			s.log.Warn("temporary mount not taken away", "dir", target, "err", err)
		}
		_ = os.Remove(target)
	}, nil
}
