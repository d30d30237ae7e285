package container

import (
	"context"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/sampan-cloud/sampan/internal/keeper"
)

// restoreAtOnce bounds how many containers are brought back at the same time.
const restoreAtOnce = 16

// Restore brings the records and the keeper's containers together after the daemon's start: what runs goes on, exits
// that happened meanwhile are recorded, interrupted starts are undone, and restart policies are applied. It returns
// when all of that is decided; restarts go on in the background.
func (m *Manager) Restore(ctx context.Context) error {
	list, err := m.Keeper.List(ctx)
	if err != nil {
		return errorf("containers of the keeper: %w", err)
	}
	m.background(m.follow)
	kept := map[string]keeper.Status{}
	for _, st := range list {
		if st.ExecID == "" {
			kept[st.ID] = st
		}
	}

	var again []*ctr
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, restoreAtOnce)
	for _, c := range m.all() {
		st, known := kept[c.id]
		delete(kept, c.id)
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if m.restoreOne(context.WithoutCancel(ctx), c, st, known) {
				mu.Lock()
				again = append(again, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()

	// What the keeper has and no folder does was being created or removed when the daemon went.
	for id := range kept {
		if exists(m.Root + "/" + id) {
			m.log.Error("a container runs whose record cannot be read; it is left alone", "container", id)
			continue
		}
		m.log.Warn("ending a container that has no record", "container", id)
		if err := m.Keeper.Delete(ctx, id); err != nil {
			m.log.Error("container without a record", "container", id, "error", err)
		}
	}
	m.startAgain(again)
	return nil
}

// restoreOne brings one container's record up to date and reports whether its restart policy wants it started.
func (m *Manager) restoreOne(ctx context.Context, c *ctr, st keeper.Status, known bool) (start bool) {
	c.mu.Lock()
	s := &c.rec.State
	was := *s
	switch {
	case known && st.State == keeper.Running:
		m.adopt(c, st)
		c.mu.Unlock()
		return false
	case known && st.State == keeper.Exited && (was.Running && !was.Restarting || st.StartedAt.After(was.StartedAt)):
		if !was.Running {
			m.adopt(c, st) // it started and ended without a record of the start
		} else if c.run == nil {
			c.begin()
			m.ship(c) // what it printed at last
		}
		m.ended(ctx, c, st) // unlocks, and applies the restart policy
		return false
	case was.Running && !was.Restarting:
		// Neither the keeper nor anybody else saw it end: the host was restarted, or worse.
		if c.run == nil {
			c.begin()
			m.ship(c)
		}
		c.stopAsked = true // decided below, without a pause
		autoRemove := c.rec.Config.Host.AutoRemove
		m.ended(ctx, c, keeper.Status{ID: c.id, ExitUnknown: true, ExitCode: -1, ExitedAt: time.Now()})
		if autoRemove {
			return false
		}
		c.mu.Lock()
		c.stopAsked = false
	default:
		// Not running. A start may have been cut off half-way.
		if known || m.hasMounts(c) {
			m.cleanup(ctx, c)
		}
		if was.Restarting {
			s.Running, s.Restarting, s.Status = false, false, StatusExited
			m.saveLogged(c)
		}
	}
	defer c.mu.Unlock()
	switch {
	case s.Status == StatusRemoving:
		s.Status = StatusDead
		s.Dead = true
		c.publish()
		m.background(func(ctx context.Context) { m.autoRemove(c) })
		return false
	case c.rec.Config.Host.AutoRemove && c.rec.EverStarted:
		m.background(func(ctx context.Context) { m.autoRemove(c) })
		return false
	}
	if !c.rec.EverStarted || !wantsStart(&c.rec, was.Restarting) {
		return false
	}
	// Shown from now on: whoever tidies up after Restore must see that it is about to use its network.
	s.Status, s.Running, s.Restarting = StatusRestarting, true, true
	m.saveLogged(c)
	return true
}

// adopt takes over a container that runs. The caller holds c.mu.
func (m *Manager) adopt(c *ctr, st keeper.Status) {
	if _, err := m.useVolumes(m.ctx, c); err != nil { // counted again as mounted: this daemon knows nothing yet
		m.log.Warn("volume of a running container", "container", c.id, "error", err)
	}
	s := &c.rec.State
	if s.Running && !s.Restarting && s.PID == st.PID {
		c.begin()
		m.ship(c)
		s.Paused, s.OOMKilled = st.Paused, s.OOMKilled || st.OOMKilled
		if s.Status = StatusRunning; s.Paused {
			s.Status = StatusPaused
		}
		if s.Health != nil && c.rec.Config.Health != nil {
			m.resumeHealth(c)
		}
		c.publish()
		return
	}
	m.running(c, st, false)
}

func (m *Manager) hasMounts(c *ctr) bool {
	dir := m.execDir() + "/" + c.id
	if !exists(dir) {
		return false
	}
	on, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	return err != nil || len(on) > 0 || exists(dir)
}

// wantsStart reports whether a restart policy brings a container back when the daemon starts.
func wantsStart(r *record, wasRestarting bool) bool {
	switch p := r.Config.Host.Restart; p.Name {
	case "always":
		return true
	case "unless-stopped":
		return !r.ManuallyStopped
	case "on-failure":
		failed := r.State.ExitCode != 0 || r.State.ExitUnknown
		return !r.ManuallyStopped && failed && (p.MaxRetries == 0 || r.RestartCount < p.MaxRetries || wasRestarting)
	}
	return false
}

// startAgain starts containers whose policy asks for it: first those that join nobody's namespaces, then the others.
func (m *Manager) startAgain(cs []*ctr) {
	var first, second []*ctr
	for _, c := range cs {
		h := c.snapshot().Config.Host
		if strings.HasPrefix(h.NetworkMode+" "+h.IpcMode+" "+h.PidMode, "container:") ||
			strings.Contains(h.IpcMode+h.PidMode, "container:") {
			second = append(second, c)
		} else {
			first = append(first, c)
		}
	}
	m.background(func(ctx context.Context) {
		for _, group := range [][]*ctr{first, second} {
			var wg sync.WaitGroup
			slots := make(chan struct{}, restoreAtOnce)
			for _, c := range group {
				slots <- struct{}{}
				wg.Go(func() {
					defer func() { <-slots }()
					if ctx.Err() != nil {
						return
					}
					m.restartNow(c)
				})
			}
			wg.Wait()
		}
	})
}

// Held returns what of the floors beside this one belongs to containers after Restore: the sandboxes of those that run
// or are about to, and the names of all root file systems. Containers whose records cannot be read are in both, so that
// nobody tidies away what may still be repaired.
func (m *Manager) Held() (sandboxes, rootfs []string) {
	for _, c := range m.all() {
		c.mu.Lock()
		if c.rec.State.Running {
			sandboxes = append(sandboxes, c.id)
		}
		rootfs = append(append(rootfs, c.id), c.rec.ExtraRootfs...)
		c.mu.Unlock()
	}
	dirs, err := os.ReadDir(m.Root)
	if err != nil {
		m.log.Error("container folder", "error", err)
	}
	for _, d := range dirs {
		m.mu.RLock()
		known := m.byID[d.Name()] != nil
		m.mu.RUnlock()
		if !known && isID(d.Name()) {
			sandboxes, rootfs = append(sandboxes, d.Name()), append(rootfs, d.Name())
		}
	}
	return sandboxes, rootfs
}
