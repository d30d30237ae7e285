package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

// trashPrefix marks the folder of a removed container that is not deleted yet.
const trashPrefix = ".removed-"

// errorf is fmt.Errorf with the kind of the error it wraps, so that context added on the way keeps what a caller can do.
func errorf(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return fault.As(fault.KindOf(err), err)
}

// Remove removes a container. force ends it first; volumes removes its anonymous volumes. With link, id is
// "LINKING/ALIAS" and only that link is removed.
func (m *Manager) Remove(ctx context.Context, id string, force, volumes, link bool) error {
	if link {
		return m.unlink(id)
	}
	c, err := m.find(id)
	if err != nil {
		return err
	}
	if err := m.remove(context.WithoutCancel(ctx), c, force, volumes); err != nil {
		return fault.As(fault.KindOf(err), errorf("cannot remove container %q: %w", id, err))
	}
	return nil
}

func (m *Manager) remove(ctx context.Context, c *ctr, force, volumes bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.rec.State
	for {
		switch {
		case c.waiters.gone():
			return fault.New(fault.NotFound, "No such container: %s", c.id)
		case s.Status == StatusRemoving, c.forced:
			return fault.New(fault.Conflict, "removal of container %s is already in progress", c.id)
		}
		if !s.Running {
			break
		}
		switch {
		case force:
		case s.Paused:
			return fault.New(fault.Conflict, "container is paused and must be unpaused first")
		default:
			return fault.New(fault.Conflict, "container is %s: stop the container before removing or force remove", s.Status)
		}
		c.forced = true
		volumes = volumes || c.rec.Config.Host.AutoRemove // which its end would have removed with it
		c.mu.Unlock()
		err := m.kill(ctx, c)
		c.mu.Lock()
		c.forced = false
		if err != nil && s.Running && !fault.Is(err, fault.Conflict) {
			return errorf("could not kill container: %w", err)
		}
	}
	// The lock is held: nobody starts it any more.
	before := s.Status
	c.restart.stop()
	c.rec.State.Status = StatusRemoving
	m.saveLogged(c)
	if err := m.destroy(ctx, c, volumes); err != nil {
		if c.rec.State.Status = StatusDead; before == StatusCreated {
			c.rec.State.Status = before
		}
		c.rec.State.Dead = c.rec.State.Status == StatusDead
		c.rec.State.Error = err.Error()
		m.saveLogged(c)
		return err
	}
	m.mu.Lock()
	delete(m.byID, c.id)
	if m.byName[c.rec.Config.Name] == c.id {
		delete(m.byName, c.rec.Config.Name)
	}
	maps.DeleteFunc(m.execs, func(_ string, e *execution) bool { return e.c == c })
	m.mu.Unlock()
	c.dropPending(nil)
	m.event(&c.rec.Container, "destroy")
	r := c.rec.State.result()
	r.errMsg = "" // the removal itself went well
	c.waiters.told(r, true)
	return nil
}

// destroy deletes what a container has on disk. It can be repeated after a failure.
func (m *Manager) destroy(ctx context.Context, c *ctr, volumes bool) error {
	c.shipping.finish()
	if err := m.unmountAll(ctx, c); err != nil {
		return err
	}
	for _, name := range append([]string{c.id}, c.rec.ExtraRootfs...) {
		if err := m.Images.RemoveRootfs(ctx, name); err != nil && !fault.Is(err, fault.NotFound) {
			return fmt.Errorf("root file system: %w", err)
		}
	}
	if err := failpoint.Hit("engine/container.remove.after-rootfs"); err != nil {
		return err
	}
	for _, p := range c.rec.MountPlan {
		if p.Volume == "" {
			continue
		}
		err := m.Volumes.Release(ctx, p.Volume, c.id)
		if err == nil && volumes && p.Anonymous {
			err = m.Volumes.Remove(ctx, p.Volume, false)
		}
		if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
			m.log.Warn("volume of a removed container", "container", c.id, "volume", p.Volume, "error", err)
		}
	}
	// Renamed first: a crash while deleting must not leave half a container.
	trash := filepath.Join(m.Root, trashPrefix+c.id)
	if err := os.Rename(c.dir, trash); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	m.ids.give(c.id, c.rec.IDs)
	if err := os.RemoveAll(trash); err != nil {
		m.log.Warn("deleting a removed container's folder", "path", trash, "error", err)
	}
	return nil
}

// unmountAll takes down every mount that a start of the container made on the host. It is repeatable.
func (m *Manager) unmountAll(ctx context.Context, c *ctr) error {
	return errors.Join(m.unmountVolumes(ctx, c), m.unmountRootfs(ctx, c))
}

func (m *Manager) unmountVolumes(ctx context.Context, c *ctr) error {
	var errs []error
	for _, p := range c.rec.MountPlan {
		if p.Volume == "" {
			continue
		}
		if err := m.Volumes.Unmount(ctx, p.Volume, c.id); err != nil && !fault.Is(err, fault.NotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// unmountRootfs takes down the mounts below the container's folder of the exec root, and the folder.
func (m *Manager) unmountRootfs(ctx context.Context, c *ctr) error {
	dir := filepath.Join(m.execDir(), c.id)
	if !exists(dir) {
		return nil
	}
	errs := []error{m.Images.UnmountRootfs(ctx, c.id, filepath.Join(dir, "rootfs"))}
	for _, name := range c.rec.ExtraRootfs {
		errs = append(errs, m.Images.UnmountRootfs(ctx, name, filepath.Join(dir, name[len(c.id)+1:])))
	}
	if shm := m.shmPath(c.id); exists(shm) {
		if on, err := mountinfo.Mounted(shm); err == nil && on {
			errs = append(errs, unix.Unmount(shm, unix.MNT_DETACH))
		}
	}
	errs = append(errs, m.unmountSubpaths(c.id), m.dropUserNS(c.id))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return m.removeExecDir(c.id)
}

func (w *waiters) gone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.removed
}
