package container

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// follow takes what the keeper tells until the manager or the keeper's channel is closed. Each event is handled in a
// goroutine of its own, so that one container's end never waits for another's; the container's lock puts the events
// of one container in order.
func (m *Manager) follow(ctx context.Context) {
	events := m.Keeper.Events()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			m.background(func(ctx context.Context) { m.handle(ctx, e) })
		case <-ctx.Done():
			return
		}
	}
}

func (m *Manager) handle(ctx context.Context, e keeper.Event) {
	st := e.Status
	if st.ExecID != "" {
		if e.Type == keeper.EventExit {
			m.execEnded(st)
		}
		return
	}
	m.mu.RLock()
	c := m.byID[st.ID]
	m.mu.RUnlock()
	if c == nil {
		return
	}
	switch e.Type {
	case keeper.EventExit:
		c.mu.Lock()
		if !c.rec.State.Running || c.run == nil || st.PID != 0 && st.PID != c.rec.State.PID {
			c.mu.Unlock() // told twice, or of an earlier run
			return
		}
		m.ended(context.WithoutCancel(ctx), c, st)
	case keeper.EventOOM:
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.rec.State.Running {
			return
		}
		c.rec.State.OOMKilled = true
		m.saveLogged(c)
		m.event(&c.rec.Container, "oom")
	}
}

// ended takes everything of a run down that its process left and decides what comes next. The end is told as soon as what
// others could want, addresses, ports and volumes, is free; the rest of the run goes while they hear of it, and before
// anything can be done with the container again. The caller holds c.mu; ended releases it.
func (m *Manager) ended(ctx context.Context, c *ctr, st keeper.Status) {
	code := st.ExitCode
	if st.ExitUnknown {
		code = unknownExit
	}
	at := st.ExitedAt.UTC()
	if st.ExitedAt.IsZero() {
		at = time.Now().UTC()
	}
	ran := c.run.lasted(at.Sub(c.rec.State.StartedAt))
	c.run.stopHealth()

	s := &c.rec.State
	policy := c.rec.Config.Host.Restart
	pause, restart := c.restart.next(policy, code, ran)
	restart = restart && !c.stopAsked && m.ctx.Err() == nil
	health := s.Health
	if st.OOMKilled && !s.OOMKilled { // the exit was seen before the kernel's notification was read
		m.event(&c.rec.Container, "oom")
	}
	*s = State{Status: StatusExited, ExitCode: code, ExitUnknown: st.ExitUnknown, OOMKilled: s.OOMKilled || st.OOMKilled,
		StartedAt: s.StartedAt, FinishedAt: at, Health: health}
	if health != nil && health.Status != "none" {
		h := *health
		h.Status = "unhealthy"
		s.Health = &h
	}
	if st.ExitUnknown {
		s.Error = "the exit code is unknown: nobody saw the process end"
	}
	if restart {
		c.rec.RestartCount++
		s.Status, s.Running, s.Restarting = StatusRestarting, true, true
	}
	had := c.rec.Container
	c.rec.Networks = emptied(c.rec.Networks)
	back := m.giveBack(ctx, c)
	// On disk before the keeper forgets it: a daemon killed in between would have nobody left to ask for the exit code.
	if err := c.write(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Error("a container's end not written; it is current in memory", "container", c.id, "error", err)
	}
	down := m.takeDown(ctx, c)
	back()
	m.forgetExecs(c.id, code)
	c.publish()
	m.networkEvents(&had, "disconnect")
	m.volumeEvents(&had, "unmount")
	m.event(&c.rec.Container, "die", "exitCode", strconv.Itoa(code), "execDuration", strconv.Itoa(int(ran.Seconds())))
	close(c.run.ended)
	c.run = nil
	c.ended.Store(nil)
	if restart {
		m.restartLater(c, pause)
	}
	remove := !restart && c.rec.Config.Host.AutoRemove && c.manualRestart.Load() == nil && !c.forced && s.Status != StatusRemoving
	c.waiters.told(s.result(), false) // under the lock: who listens after the next start does not hear of this end
	down()
	c.mu.Unlock()
	if remove {
		m.autoRemove(c)
	}
}

// cleanup takes down what a start that was cut off left. Restore tries again what failed.
func (m *Manager) cleanup(ctx context.Context, c *ctr) {
	down := m.takeDown(ctx, c)
	m.giveBack(ctx, c)()
	down()
}

// giveBack begins to free what other containers can use, the network and the volumes; wait returns when that is done.
// Failures are logged, here as in takeDown: nothing that follows an exit may be held up by them.
func (m *Manager) giveBack(ctx context.Context, c *ctr) (wait func()) {
	var detached, unmounted error
	var wg sync.WaitGroup
	if !strings.HasPrefix(c.rec.Config.Host.NetworkMode, "container:") {
		wg.Go(func() { detached = m.Networks.Detach(ctx, c.id) })
	}
	wg.Go(func() { unmounted = m.unmountVolumes(ctx, c) })
	return func() {
		wg.Wait()
		if err := errors.Join(detached, unmounted); err != nil {
			m.log.Error("giving back network and volumes after a container's end", "container", c.id, "error", err)
		}
	}
}

// takeDown begins to take the keeper's part, with the control groups, and the root file system's mounts down; wait
// returns when that is done.
func (m *Manager) takeDown(ctx context.Context, c *ctr) (wait func()) {
	var deleted, unmounted error
	var wg sync.WaitGroup
	wg.Go(func() { deleted = m.Keeper.Delete(ctx, c.id) })
	wg.Go(func() { unmounted = m.unmountRootfs(ctx, c) })
	return func() {
		wg.Wait()
		if fault.Is(deleted, fault.NotFound) {
			deleted = nil // a start that did not come that far, or a keeper that never had it
		}
		if err := errors.Join(deleted, unmounted); err != nil {
			m.log.Error("taking down what a container's end left", "container", c.id, "error", err)
		}
	}
}

// autoRemove removes a container made with --rm, with its anonymous volumes.
func (m *Manager) autoRemove(c *ctr) {
	err := m.remove(context.WithoutCancel(m.ctx), c, false, true)
	if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) { // somebody removes it, or has started it again
		m.log.Error("automatic removal of a container", "container", c.id, "error", err)
	}
}
