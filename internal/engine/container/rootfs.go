package container

import (
	"cmp"
	"context"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

// Size returns the bytes of a container's writable layer and of its whole root file system.
func (m *Manager) Size(ctx context.Context, id string) (rw, rootfs int64, err error) {
	c, err := m.find(id)
	if err != nil {
		return 0, 0, err
	}
	return m.Images.RootfsUsage(ctx, c.id)
}

// Diff returns what a container has changed of its image.
func (m *Manager) Diff(ctx context.Context, id string) ([]image.Change, error) {
	c, err := m.find(id)
	if err != nil {
		return nil, err
	}
	changes, err := m.Images.RootfsDiff(ctx, c.id)
	return withoutMountPoints(changes), err
}

// ownMountPoints are what the runtime makes in every root file system to mount on.
var ownMountPoints = []string{"/dev", "/dev/console", "/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/sys", "/sys/fs", "/sys/fs/cgroup",
	"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", initTarget}

// withoutMountPoints leaves out what is not the container's doing: mount points, and folders changed by them alone.
func withoutMountPoints(changes []image.Change) []image.Change {
	hollow := map[string]bool{}
	kept := slices.DeleteFunc(slices.Clone(changes), func(c image.Change) bool {
		if c.Kind != image.Added || !slices.Contains(ownMountPoints, c.Path) {
			return false
		}
		hollow[path.Dir(c.Path)] = true
		return true
	})
	return slices.DeleteFunc(slices.Clone(kept), func(c image.Change) bool {
		return hollow[c.Path] && !slices.ContainsFunc(kept, func(o image.Change) bool { return strings.HasPrefix(o.Path, c.Path+"/") })
	})
}

// Export writes a container's root file system, without its volumes, as a tar archive.
func (m *Manager) Export(ctx context.Context, id string, w io.Writer) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	s := c.snapshot()
	if s.State.Status == StatusRemoving || s.State.Dead {
		return fault.New(fault.Conflict, "You cannot export container %s which is being removed", c.id)
	}
	err = m.withRootfs(ctx, c, func(root *os.Root, ids userns.Mapping) error {
		return writeTar(ctx, w, root, ".", "", true, ids)
	})
	if err != nil {
		return errorf("export of container %s: %w", short(c.id), err)
	}
	m.event(&s, "export")
	return nil
}

// withRootfs calls f with the mounted root file system, which stays mounted for that long whether the container runs on or
// not. The owners of the files there are shifted by ids.
func (m *Manager) withRootfs(ctx context.Context, c *ctr, f func(root *os.Root, ids userns.Mapping) error) error {
	c.mu.Lock()
	if c.waiters.gone() {
		c.mu.Unlock()
		return fault.New(fault.NotFound, "No such container: %s", c.id)
	}
	target, err := m.rootfsTarget(c)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	if c.run != nil {
		ids := c.rec.IDs
		root, err := os.OpenRoot(target) // with the lock, or the container's end could come before
		c.mu.Unlock()
		if err != nil {
			return err
		}
		defer root.Close()
		return c.orRemoved(f(root, ids))
	}
	defer c.mu.Unlock()
	r, err := m.mountIdle(ctx, c, target)
	if err != nil {
		return err
	}
	defer func() {
		if err := m.unmountAll(context.WithoutCancel(ctx), c); err != nil {
			m.log.Warn("unmounting a root file system", "container", c.id, "error", err)
		}
	}()
	root, err := os.OpenRoot(r.Path)
	if err != nil {
		return err
	}
	defer root.Close()
	return f(root, userns.Mapping{})
}

// orRemoved is what came of a look into a container that ran. One that was removed meanwhile may not have been seen whole, as
// its files go without an error.
func (c *ctr) orRemoved(err error) error {
	if s := c.snapshot().State; err == nil && (s.Status == StatusRemoving || s.Dead) {
		return fault.New(fault.Conflict, "container %s was removed meanwhile", short(c.id))
	}
	return err
}

// mountIdle mounts the root file system of a container that does not run on target. What the first start would make in it
// is there already.
func (m *Manager) mountIdle(ctx context.Context, c *ctr, target string) (image.Rootfs, error) {
	r, err := m.Images.MountRootfs(ctx, c.id, target)
	if err != nil {
		if rerr := m.removeExecDir(c.id); rerr != nil {
			m.log.Warn("a mount point stays", "container", c.id, "error", rerr)
		}
		return r, err
	}
	if !c.rec.EverStarted {
		if err := makeWorkdir(r.Path, c.rec.Config.WorkingDir, c.rec.MountPlan, userns.Mapping{}); err != nil {
			m.log.Debug("no working directory before the start", "container", c.id, "error", err) // the start will say so
		}
	}
	return r, err
}

// Commit makes an image of a container. pause stops its processes for that long.
func (m *Manager) Commit(ctx context.Context, id string, r image.CommitRequest, pause bool) (image.Image, error) {
	c, err := m.find(id)
	if err != nil {
		return image.Image{}, err
	}
	s := c.snapshot()
	if s.State.Status == StatusRemoving || s.State.Dead {
		return image.Image{}, fault.New(fault.Conflict, "You cannot commit container %s which is being removed", c.id)
	}
	if pause && s.State.Running && !s.State.Paused && !s.State.Restarting {
		switch err := m.Pause(ctx, c.id); {
		case fault.Is(err, fault.Conflict): // it has ended by itself meanwhile, or somebody else paused it
		case err != nil:
			return image.Image{}, err
		default:
			defer func() {
				if err := m.Unpause(context.WithoutCancel(ctx), c.id); err != nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) {
					m.log.Error("a container stays paused after a commit", "container", c.id, "error", err)
				}
			}()
		}
	}
	r.ContainerID, r.ParentID = c.id, firstNonEmpty(s.ImageDigest, s.ImageID)
	r.Config = imageConfig(&s.Config, r.Config)
	img, err := m.Images.Commit(ctx, r)
	if err != nil && c.waiters.gone() {
		return image.Image{}, fault.New(fault.NotFound, "No such container: %s", c.id)
	}
	if err != nil {
		return image.Image{}, err
	}
	m.imageEvent(&img, "create", img.ID)
	if r.Ref != "" {
		m.imageEvent(&img, "tag", image.Familiar(r.Ref))
	}
	m.event(&s, "commit", "comment", r.Comment, "imageID", img.ID, "imageRef", image.Familiar(r.Ref))
	return img, nil
}

// imageEvent publishes what happened to an image that a container was made into, under the name that it happened to.
func (m *Manager) imageEvent(img *image.Image, action, name string) {
	attrs := map[string]string{}
	maps.Copy(attrs, img.Labels)
	attrs["name"] = name
	m.Events.Publish(events.Event{Type: "image", Action: action, ID: img.ID, Attrs: attrs})
}

// imageConfig is the image configuration that would run a container as this one runs, with over laid over it: what over
// says replaces what the container has, entry by entry where there are several.
func imageConfig(cfg *Config, over image.Image) image.Image {
	ic := &over.Config
	ic.User = cmp.Or(ic.User, cfg.User)
	ic.WorkingDir = cmp.Or(ic.WorkingDir, cfg.WorkingDir)
	ic.StopSignal = cmp.Or(ic.StopSignal, cfg.StopSignal)
	ic.Env = setEnv(addEnv(ic.Env, cfg.Env))
	if len(ic.Entrypoint) == 0 {
		if len(ic.Cmd) == 0 {
			ic.Cmd = cfg.Cmd
		}
		if ic.Entrypoint == nil {
			ic.Entrypoint = cfg.Entrypoint
		}
	}
	labels := map[string]string{}
	maps.Copy(labels, cfg.Labels)
	maps.Copy(labels, ic.Labels)
	ic.Labels = labels
	ports, volumes := map[string]struct{}{}, map[string]struct{}{}
	for _, p := range cfg.ExposedPorts {
		ports[utoa(p.Port)+"/"+p.Protocol] = struct{}{}
	}
	for _, v := range cfg.Volumes {
		volumes[v] = struct{}{}
	}
	maps.Copy(ports, ic.ExposedPorts)
	maps.Copy(volumes, ic.Volumes)
	ic.ExposedPorts, ic.Volumes = ports, volumes
	if over.Shell == nil {
		over.Shell = cfg.Shell
	}
	if h := cfg.Health; h != nil && over.Healthcheck == nil {
		over.Healthcheck = &image.Healthcheck{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod,
			StartInterval: h.StartInterval, Retries: h.Retries}
	}
	return over
}
