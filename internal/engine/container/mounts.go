package container

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"

	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
)

// plannedMount is a mount that every start of a container makes.
type plannedMount struct {
	MountPoint
	Volume       string // the volume this container holds
	Anonymous    bool   // the volume goes with the last container that has it, if that is asked for
	Fresh        bool   // not yet filled from the image
	NoCopy       bool
	NonRecursive bool
	// WritableInside leaves mounts inside a read-only bind as they are.
	WritableInside bool
	// AnyPropagation says that nobody asked for the propagation: another will do where the host cannot.
	AnyPropagation bool
	CreateSource   bool
	Subpath        string
	TmpfsOptions   string
	Hidden         bool   // made by --tmpfs, which inspect shows in HostConfig.Tmpfs only
	Rootfs         string // image: the name its snapshot is held under
}

// planMounts decides a new container's mounts, creating and acquiring its volumes; u takes that back.
func (m *Manager) planMounts(ctx context.Context, c *ctr, u *undo.Stack) error {
	cfg := &c.rec.Config
	plan := map[string]plannedMount{}

	var held []string // volumes that the container holds, those that another mount has taken the place of among them
	hold := func(name string) {
		held = append(held, name)
		u.Add(func() error { return m.Volumes.Release(context.WithoutCancel(ctx), name, c.id) })
	}
	for _, from := range cfg.Host.VolumesFrom {
		if err := m.planVolumesFrom(ctx, c, from, plan, hold); err != nil {
			return err
		}
	}
	given := map[string]bool{}
	for _, mt := range cfg.Host.Mounts {
		p, err := planMount(mt)
		if err == nil {
			err = m.overOwnFolders(&p, mt.Propagation)
		}
		if err != nil {
			return err
		}
		if given[p.Destination] {
			return fault.New(fault.InvalidArgument, "Duplicate mount point: %s", p.Destination)
		}
		given[p.Destination] = true
		if p.Type == MountVolume {
			v, err := m.Volumes.CreateFor(ctx, volume.Volume{Name: mt.Source, Driver: cmp.Or(mt.Driver, cfg.Host.VolumeDriver, "local"),
				Labels: mt.Labels, Options: mt.DriverOpts, Anonymous: mt.Source == ""}, c.id)
			if err != nil {
				return err
			}
			p.Volume, p.Name, p.Driver = v.Name, v.Name, v.Driver
			p.Anonymous = mt.Source == ""
			if p.Anonymous {
				u.Add(func() error { return m.Volumes.Remove(context.WithoutCancel(ctx), v.Name, true) })
			}
			hold(v.Name)
		}
		plan[p.Destination] = p
	}
	for target, opts := range cfg.Host.Tmpfs {
		dst, err := cleanTarget(target)
		if err != nil {
			return err
		}
		if given[dst] {
			return fault.New(fault.InvalidArgument, "Duplicate mount point: %s", dst)
		}
		plan[dst] = plannedMount{MountPoint: MountPoint{Type: MountTmpfs, Destination: dst, RW: true}, TmpfsOptions: opts, Hidden: true}
	}
	for _, target := range cfg.Volumes {
		dst, err := cleanTarget(target)
		if err != nil {
			return err
		}
		if _, has := plan[dst]; has {
			continue
		}
		v, err := m.Volumes.CreateFor(ctx, volume.Volume{Driver: cmp.Or(cfg.Host.VolumeDriver, "local"), Anonymous: true}, c.id)
		if err != nil {
			return err
		}
		u.Add(func() error { return m.Volumes.Remove(context.WithoutCancel(ctx), v.Name, true) })
		hold(v.Name)
		plan[dst] = plannedMount{MountPoint: MountPoint{Type: MountVolume, Name: v.Name, Destination: dst, Driver: v.Driver, RW: true},
			Volume: v.Name, Anonymous: true, Fresh: true}
	}

	for _, p := range plan {
		if p.Volume != "" {
			v, err := m.Volumes.Get(p.Volume)
			if err != nil {
				return err
			}
			p.Source = v.Mountpoint
		}
		if p.Type == MountImage {
			img, err := m.Images.Get(ctx, p.Source)
			if err != nil {
				return err
			}
			p.Rootfs = c.id + "-image-" + strconv.Itoa(len(c.rec.ExtraRootfs))
			if err := m.Images.PrepareRootfs(ctx, p.Rootfs, img.ID); err != nil {
				return err
			}
			u.Add(func() error { return m.Images.RemoveRootfs(context.WithoutCancel(ctx), p.Rootfs) })
			c.rec.ExtraRootfs = append(slices.Clip(c.rec.ExtraRootfs), p.Rootfs)
			c.rec.MountedImages = append(slices.Clip(c.rec.MountedImages), img.ID)
		}
		c.rec.MountPlan = append(c.rec.MountPlan, p)
	}
	for _, name := range held {
		if !slices.ContainsFunc(c.rec.MountPlan, func(p plannedMount) bool { return p.Volume == name }) {
			if err := m.Volumes.Release(ctx, name, c.id); err != nil {
				return err
			}
		}
	}
	// A parent's mount comes before what is mounted inside it.
	slices.SortFunc(c.rec.MountPlan, func(a, b plannedMount) int {
		if n := strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/"); n != 0 {
			return n
		}
		return strings.Compare(a.Destination, b.Destination)
	})
	c.rec.Mounts = mountPoints(c.rec.MountPlan)
	return nil
}

func mountPoints(plan []plannedMount) []MountPoint {
	var mps []MountPoint
	for _, p := range plan {
		if !p.Hidden {
			mps = append(mps, p.MountPoint)
		}
	}
	return mps
}

// planVolumesFrom plans the mounts of another container, whose volumes the new one holds before that one can give them up.
func (m *Manager) planVolumesFrom(ctx context.Context, c *ctr, from string, plan map[string]plannedMount, hold func(name string)) error {
	ref, mode, _ := strings.Cut(from, ":")
	rw := true
	switch mode {
	case "", "rw", "z", "Z":
	case "ro":
		rw = false
	default:
		return fault.New(fault.InvalidArgument, "invalid mode: %s: volumes-from takes ro or rw", mode)
	}
	other, err := m.find(ref)
	if err != nil {
		return fault.As(fault.InvalidArgument, err) // not 404, see checkJoins
	}
	other.mu.Lock()
	defer other.mu.Unlock()
	if s := &other.rec.State; s.Status == StatusRemoving || s.Dead {
		return fault.New(fault.Conflict, "cannot take the volumes of container %s, which is being removed", ref)
	}
	for _, p := range other.rec.MountPlan {
		if p.Type != MountVolume && p.Type != MountBind {
			continue
		}
		if p.Volume != "" {
			if err := m.Volumes.Reserve(ctx, p.Volume, c.id); err != nil {
				return err
			}
			hold(p.Volume)
		}
		p.RW, p.Mode = p.RW && rw, "" // the other's mode is not this one's
		p.Fresh = false
		plan[p.Destination] = p
	}
	return nil
}

// overOwnFolders sees to binds of folders in which this daemon mounts the root file systems and volumes of containers: the
// end of such a mount must reach the container that sees it, or it would hold it for ever.
func (m *Manager) overOwnFolders(p *plannedMount, asked string) error {
	if p.Type != MountBind {
		return nil
	}
	for _, own := range []string{filepath.Dir(m.Root), m.ExecRoot} {
		if !within(p.Source, own) && !within(own, p.Source) {
			continue
		}
		switch asked {
		case "":
			p.Propagation, p.AnyPropagation = "rslave", true
		case "rslave", "rshared":
		default:
			return fault.New(fault.InvalidArgument, `invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the daemon root, daemon root: %q, bind mount source: %q, propagation: %q`,
				own, p.Source, asked)
		}
	}
	return nil
}

// within reports whether a path is a folder or lies in it.
func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

// planMount checks one mount that was asked for.
func planMount(mt Mount) (plannedMount, error) {
	dst, err := cleanTarget(mt.Target)
	if err != nil {
		return plannedMount{}, err
	}
	bad := func(format string, args ...any) (plannedMount, error) {
		return plannedMount{}, fault.New(fault.InvalidArgument, "invalid mount config for type %q: "+format, append([]any{string(mt.Type)}, args...)...)
	}
	p := plannedMount{
		MountPoint:   MountPoint{Type: mt.Type, Source: mt.Source, Destination: dst, Mode: mt.Mode, RW: !mt.ReadOnly},
		NonRecursive: mt.NonRecursive, NoCopy: mt.NoCopy, Subpath: mt.Subpath,
	}
	switch mt.Type {
	case MountBind:
		if mt.Source == "" {
			return bad("field Source must not be empty")
		}
		if !filepath.IsAbs(mt.Source) {
			return bad("invalid mount path: '%s' mount path must be absolute", mt.Source)
		}
		p.Source = filepath.Clean(mt.Source)
		if _, err := os.Stat(p.Source); errors.Is(err, fs.ErrNotExist) && !mt.CreateMountpoint {
			return bad("bind source path does not exist: %s", p.Source)
		}
		switch {
		case !mt.ReadOnly && mt.ReadOnlyNonRecursive:
			return bad("mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive")
		case !mt.ReadOnly && mt.ReadOnlyForceRecursive:
			return bad("mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive")
		case mt.ReadOnlyNonRecursive && mt.ReadOnlyForceRecursive:
			return bad("mount options conflict: BindOptions.ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
		case mt.ReadOnlyForceRecursive && mt.Propagation != "rprivate":
			return bad("mount options conflict: BindOptions.ReadOnlyForceRecursive needs BindOptions.Propagation rprivate")
		}
		p.WritableInside = mt.ReadOnlyNonRecursive
		p.CreateSource = mt.CreateMountpoint
		p.Propagation = cmp.Or(mt.Propagation, "rprivate")
		if !slices.Contains([]string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}, p.Propagation) {
			return bad("invalid propagation mode: %s", p.Propagation)
		}
	case MountVolume:
		if err := checkSubpath(mt.Subpath); err != nil {
			return bad("%w", err)
		}
		if mt.Subpath != "" && mt.Source == "" {
			return bad("must not set Subpath when using anonymous volumes")
		}
		p.Source = ""
		p.Mode = cmp.Or(p.Mode, "z") // as Docker shows it
		p.Fresh = !mt.NoCopy
	case MountTmpfs:
		if mt.Source != "" {
			return bad("field Source must not be specified")
		}
		var opts []string
		if mt.TmpfsSize > 0 {
			opts = append(opts, "size="+strconv.FormatInt(mt.TmpfsSize, 10))
		}
		if mt.TmpfsMode != 0 {
			opts = append(opts, "mode="+strconv.FormatUint(uint64(mt.TmpfsMode), 8))
		}
		for _, o := range mt.TmpfsOptions {
			opts = append(opts, strings.Join(o, "="))
		}
		if mt.ReadOnly {
			opts = append(opts, "ro")
		}
		p.TmpfsOptions = strings.Join(opts, ",")
		p.Mode = mt.Mode
	case MountImage:
		if mt.Source == "" {
			return bad("field Source must not be empty")
		}
		if err := checkSubpath(mt.Subpath); err != nil {
			return bad("%w", err)
		}
		p.RW = false
	default:
		return plannedMount{}, fault.New(fault.InvalidArgument, "mount type unknown: %q", string(mt.Type))
	}
	return p, nil
}

func cleanTarget(target string) (string, error) {
	if target == "" {
		return "", fault.New(fault.InvalidArgument, "invalid mount config: field Target must not be empty")
	}
	if !path.IsAbs(target) {
		return "", fault.New(fault.InvalidArgument, "invalid mount path: '%s' mount path must be absolute", target)
	}
	dst := path.Clean(target)
	if dst == "/" {
		return "", fault.New(fault.InvalidArgument, "invalid specification: destination can't be '/'")
	}
	return dst, nil
}

// fillVolumes copies what the image has at a volume's place into the volume while it is empty. The container's root
// file system is mounted at rootfs.
func (m *Manager) fillVolumes(ctx context.Context, c *ctr, rootfs string) error {
	for i, p := range c.rec.MountPlan {
		if !p.Fresh || p.Volume == "" {
			continue
		}
		if !p.NoCopy {
			from, err := securejoin.SecureJoin(rootfs, p.Destination)
			if err != nil {
				return err
			}
			to, err := m.Volumes.Acquire(ctx, p.Volume, c.id)
			if err != nil {
				return err
			}
			err = fillVolume(ctx, from, to, p.Subpath)
			if err = errors.Join(err, m.Volumes.Unmount(ctx, p.Volume, c.id)); err != nil {
				return errorf("filling volume %s from the image's %s: %w", p.Volume, p.Destination, err)
			}
		}
		plan := slices.Clone(c.rec.MountPlan)
		plan[i].Fresh = false
		c.rec.MountPlan = plan
	}
	return nil
}

// fillVolume copies from into a volume, or into a folder of it.
func fillVolume(ctx context.Context, from, to, sub string) error {
	if sub == "" {
		return volume.CopyUp(ctx, from, to)
	}
	f, err := openSubpath(to, sub)
	if err != nil {
		return nil //nolint:nilerr // nothing to fill; the start will say that it is not there
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.IsDir() {
		return err
	}
	return volume.CopyUp(ctx, from, procFD(f))
}

// needsFill reports whether fillVolumes has work to do.
func (c *ctr) needsFill() bool {
	return slices.ContainsFunc(c.rec.MountPlan, func(p plannedMount) bool { return p.Fresh && p.Volume != "" && !p.NoCopy })
}

// useVolumes mounts a container's volumes and returns what ends that.
func (m *Manager) useVolumes(ctx context.Context, c *ctr) (done func() error, err error) {
	u := undo.New()
	for _, p := range c.rec.MountPlan {
		if p.Volume == "" {
			continue
		}
		if _, err := m.Volumes.Acquire(ctx, p.Volume, c.id); err != nil {
			return nil, errors.Join(err, u.Run())
		}
		u.Add(func() error { return m.Volumes.Unmount(ctx, p.Volume, c.id) })
	}
	return u.Run, nil
}

// makeSource makes sure that the source of the n-th mount is there and returns its path. The owners of what is in volumes
// and images are shifted by the user namespace shift, unless that is nil; those of the host's own files never are.
func (m *Manager) makeSource(ctx context.Context, c *ctr, n int, p plannedMount, shift *os.File, u *undo.Stack) (string, error) {
	src, sub := p.Source, ""
	switch p.Type {
	case MountBind:
		if _, err := os.Stat(p.Source); errors.Is(err, fs.ErrNotExist) {
			if !p.CreateSource {
				return "", fault.New(fault.InvalidArgument, "invalid mount config for type \"bind\": bind source path does not exist: %s", p.Source)
			}
			if err := os.MkdirAll(p.Source, 0o755); err != nil {
				return "", fault.New(fault.InvalidArgument, "error while creating mount source path '%s': %w", p.Source, err)
			}
		} else if err != nil {
			return "", fault.New(fault.InvalidArgument, "bind source path %s: %w", p.Source, err)
		}
		return p.Source, nil
	case MountImage:
		target := filepath.Join(m.execDir(), c.id, p.Rootfs[len(c.id)+1:])
		if err := os.MkdirAll(target, 0o700); err != nil {
			return "", err
		}
		r, err := m.Images.MountRootfsShifted(ctx, p.Rootfs, target, shift)
		if err != nil {
			return "", err
		}
		u.Add(func() error { return m.Images.UnmountRootfs(context.WithoutCancel(ctx), p.Rootfs, target) })
		src, sub = r.Path, p.Subpath
	case MountVolume:
		var err error
		if src, err = m.Volumes.Acquire(ctx, p.Volume, c.id); err != nil {
			return "", err
		}
		u.Add(func() error { return m.Volumes.Unmount(ctx, p.Volume, c.id) })
		sub = p.Subpath
	}
	if p.Type != MountVolume {
		shift = nil
	}
	if sub == "" && shift == nil {
		return src, nil
	}
	return m.mountSubpath(c, n, src, sub, shift, u)
}
