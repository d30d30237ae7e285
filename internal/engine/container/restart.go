package container

import (
	"context"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// The pauses between restarts double from the first to the last; a run of at least steadyRun starts over.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = time.Minute
	steadyRun  = 10 * time.Second
)

// backoff is where a container stands with its restart policy. It is guarded by the container's lock.
type backoff struct {
	pause   time.Duration // the last one taken
	retries int           // restarts since somebody started it
	cancel  func()        // ends the pause that is under way
}

func (b *backoff) reset() {
	b.stop()
	b.pause, b.retries = 0, 0
}

// stop gives up a restart that is waiting.
func (b *backoff) stop() {
	if b.cancel != nil {
		b.cancel()
		b.cancel = nil
	}
}

// next decides whether a container that ran for ran and ended with code is started again, and after which pause.
func (b *backoff) next(p RestartPolicy, code int, ran time.Duration) (time.Duration, bool) {
	switch {
	case ran >= steadyRun, b.pause == 0:
		b.pause = firstPause
	default:
		b.pause = min(2*b.pause, lastPause)
	}
	restart := false
	switch p.Name {
	case "always", "unless-stopped":
		restart = true
	case "on-failure":
		restart = code != 0 && (p.MaxRetries == 0 || b.retries < p.MaxRetries)
	}
	if restart {
		b.retries++
	}
	return b.pause, restart
}

// restartLater starts c again after the pause, unless its backoff is stopped before. The caller holds c.mu.
func (m *Manager) restartLater(c *ctr, pause time.Duration) {
	ctx, cancel := context.WithCancel(m.ctx)
	c.restart.cancel = cancel
	m.background(func(context.Context) {
		defer cancel()
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		c.mu.Lock()
		given := ctx.Err() != nil
		if !given {
			c.restart.cancel = nil
		}
		c.mu.Unlock()
		if !given {
			m.restartNow(c)
		}
	})
}

// restartNow starts a container that waits for its restart. What it needs may come later (a network whose managers are
// not reached yet): then it goes on waiting if its policy has no end.
func (m *Manager) restartNow(c *ctr) {
	c.mu.Lock()
	if !c.rec.State.Restarting || m.ctx.Err() != nil {
		c.mu.Unlock()
		return
	}
	err := m.startLocked(context.WithoutCancel(m.ctx), c)
	if err == nil {
		c.mu.Unlock()
		return
	}
	m.log.Error("container not restarted", "container", c.id, "error", err)
	policy := c.rec.Config.Host.Restart
	endless := policy.Name == "always" || policy.Name == "unless-stopped"
	if kind := fault.KindOf(err); endless && (kind == fault.Unavailable || kind == fault.NotFound || kind == fault.DeadlineExceeded) {
		s := &c.rec.State
		s.Status, s.Running, s.Restarting = StatusRestarting, true, true
		m.saveLogged(c)
		pause, _ := c.restart.next(policy, s.ExitCode, 0)
		m.restartLater(c, pause)
		c.mu.Unlock()
		return
	}
	remove := c.rec.Config.Host.AutoRemove
	r := c.rec.State.result()
	c.mu.Unlock()
	c.waiters.told(r, false)
	if remove {
		m.autoRemove(c)
	}
}

// giveUpRestart turns a container that waits for its restart into a stopped one. The caller holds c.mu.
func (m *Manager) giveUpRestart(c *ctr) {
	c.restart.stop()
	s := &c.rec.State
	s.Restarting, s.Running, s.Status = false, false, StatusExited
	m.saveLogged(c)
	c.waiters.told(s.result(), false)
}
