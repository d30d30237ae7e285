package container

import (
	"context"
	"strconv"
	"syscall"
	"time"

	"github.com/moby/sys/signal"

	"github.com/sampan-cloud/sampan/internal/fault"
)

const (
	defaultStopTimeout = 10 // seconds
	killPatience       = 10 * time.Second
)

// Stop ends a container: its stop signal, then after timeout seconds (nil: the container's own, negative: never)
// SIGKILL. fault.NotModified if it does not run. It goes on when ctx ends: half a stop is no use to anybody.
func (m *Manager) Stop(ctx context.Context, id, sig string, timeout *int) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	if !c.snapshot().State.Running {
		return fault.New(fault.NotModified, "container is already stopped")
	}
	if err := m.stop(context.WithoutCancel(ctx), c, sig, timeout); err != nil {
		return fault.As(fault.KindOf(err), errorf("cannot stop container: %s: %w", id, err))
	}
	return nil
}

func (m *Manager) stop(ctx context.Context, c *ctr, sigName string, timeout *int) error {
	snap := c.snapshot()
	sig, err := stopSignal(&snap.Config, sigName)
	if err != nil {
		return err
	}
	seconds := defaultStopTimeout
	if t := m.defaults.Load().StopTimeout; t != nil {
		seconds = *t
	}
	if t := snap.Config.StopTimeout; t != nil {
		seconds = *t
	}
	if timeout != nil {
		seconds = *timeout
	}
	w, sendErr := m.end(ctx, c, sig)
	if w == nil {
		return nil // it has ended meanwhile
	}
	defer c.waiters.leave(w)
	patience := time.Duration(seconds) * time.Second
	if sendErr != nil {
		patience = 2 * time.Second
	}
	if seconds < 0 && sendErr == nil {
		<-w.ch
	} else if !w.within(patience) {
		m.log.Info("container did not end in time, killing it", "container", c.id, "signal", int(sig), "after", patience)
		if err := m.signal(ctx, c, syscall.SIGKILL); err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
			return err
		}
		if !w.within(killPatience) {
			return fault.New(fault.Internal, "tried to kill container, but did not receive an exit event")
		}
	}
	now := c.snapshot()
	m.event(&now, "stop")
	return nil
}

// within reports whether the wait was over in time.
func (w *waiter) within(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-w.ch:
		return true
	case <-t.C:
		return false
	}
}

// stopSignal is the signal given, else the container's own, else SIGTERM.
func stopSignal(cfg *Config, given string) (syscall.Signal, error) {
	name := firstNonEmpty(given, cfg.StopSignal)
	if name == "" {
		return syscall.SIGTERM, nil
	}
	s, err := signal.ParseSignal(name)
	if err != nil {
		return 0, fault.As(fault.InvalidArgument, err)
	}
	return s, nil
}

// signal sends a signal to a container's process, as something that it may go on after.
func (m *Manager) signal(ctx context.Context, c *ctr, sig syscall.Signal) error {
	m.lockListening(ctx, c, sig)
	defer c.mu.Unlock()
	if !c.rec.State.Running {
		return fault.New(fault.Conflict, "container %s is not running", c.id)
	}
	return m.send(ctx, c, sig, false)
}

// end sends a signal that the container is meant to end by, so that no restart policy brings it back. The waiter is told
// of the end of the very run that got the signal, and not of one before it: a container that ends by itself over and over
// may do so while this waits for its turn. The caller leaves the waiter. It is nil if the container does not run.
func (m *Manager) end(ctx context.Context, c *ctr, sig syscall.Signal) (*waiter, error) {
	m.lockListening(ctx, c, sig)
	defer c.mu.Unlock()
	if !c.rec.State.Running {
		return nil, fault.New(fault.Conflict, "container %s is not running", c.id)
	}
	w := c.waiters.listen(false, nil)
	return w, m.send(ctx, c, sig, true)
}

// send is signal and end for a container that runs. The caller holds c.mu.
func (m *Manager) send(ctx context.Context, c *ctr, sig syscall.Signal, stopping bool) error {
	s := &c.rec.State
	if stopping {
		c.stopAsked = true
		if !c.rec.ManuallyStopped {
			c.rec.ManuallyStopped = true
			m.saveLogged(c)
		}
	}
	if s.Restarting {
		if stopping {
			m.giveUpRestart(c)
		}
		return nil
	}
	if err := m.Keeper.Signal(ctx, c.id, "", int(sig), false); err != nil {
		if fault.Is(err, fault.NotFound) {
			return err // it has just ended; its exit is on the way
		}
		return errorf("signal %d could not be sent: %w", sig, err) // callers say to whom and what for
	}
	if s.Paused && (stopping || sig == syscall.SIGKILL) {
		// A frozen process takes no signal until it is thawed.
		if err := m.Keeper.Resume(ctx, c.id); err != nil {
			if !fault.Is(err, fault.Conflict) { // or it has ended
				m.log.Warn("thawing a container to end it", "container", c.id, "error", err)
			}
		} else {
			s.Paused, s.Status = false, StatusRunning
			m.saveLogged(c)
		}
	}
	m.event(&c.rec.Container, "kill", "signal", strconv.Itoa(int(sig)))
	return nil
}

// Kill sends a signal, SIGKILL by default; with that it returns when the container has ended.
func (m *Manager) Kill(ctx context.Context, id, sigName string) error {
	sig := syscall.SIGKILL
	if sigName != "" {
		var err error
		if sig, err = signal.ParseSignal(sigName); err != nil {
			return fault.As(fault.InvalidArgument, err)
		}
		if !signal.ValidSignalForPlatform(sig) {
			return fault.New(fault.InvalidArgument, "the linux daemon does not support signal %d", sig)
		}
	}
	c, err := m.find(id)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if sig == syscall.SIGKILL {
		return m.kill(ctx, c)
	}
	cfg := c.snapshot().Config
	own, err := stopSignal(&cfg, "")
	if err != nil {
		return err
	}
	if sig != own && sig != syscall.SIGTERM {
		return m.signal(ctx, c, sig)
	}
	w, err := m.end(ctx, c, sig)
	if w != nil {
		c.waiters.leave(w)
	}
	return err
}

// kill ends a container at once and waits for that.
func (m *Manager) kill(ctx context.Context, c *ctr) error {
	w, err := m.end(ctx, c, syscall.SIGKILL)
	if w == nil {
		return err
	}
	defer c.waiters.leave(w)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if !w.within(killPatience) {
		return fault.New(fault.Internal, "tried to kill container %s, but did not receive an exit event", short(c.id))
	}
	return nil
}

// Restart stops a container, if it runs, and starts it.
func (m *Manager) Restart(ctx context.Context, id, sig string, timeout *int) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	c.mu.Lock()
	over := make(chan struct{})
	c.manualRestart.Store(&over)
	c.mu.Unlock()
	defer func() {
		c.manualRestart.CompareAndSwap(&over, nil) // unless a later call has put its own
		close(over)
	}()
	if c.snapshot().State.Running {
		if err := m.stop(ctx, c, sig, timeout); err != nil {
			return fault.As(fault.KindOf(err), errorf("Cannot restart container %s: %w", id, err))
		}
	}
	if err := m.Start(ctx, c.id); err != nil && !fault.Is(err, fault.NotModified) {
		return err
	}
	now := c.snapshot()
	m.event(&now, "restart")
	return nil
}

// Pause freezes every process of a container. It goes on when ctx ends, as do Unpause, Update and Disconnect: what is done
// in the kernel must be in the record too.
func (m *Manager) Pause(ctx context.Context, id string) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.rec.State
	switch {
	case s.Paused:
		return fault.New(fault.Conflict, "Container %s is already paused", id)
	case s.Restarting:
		return fault.New(fault.Conflict, "Container %s is restarting, wait until the container is running", id)
	case !s.Running:
		return fault.New(fault.Conflict, "Container %s is not running", id)
	}
	if err := m.Keeper.Pause(ctx, c.id); err != nil {
		return errorf("cannot pause container %s: %w", id, err)
	}
	s.Paused, s.Status = true, StatusPaused
	m.saveLogged(c)
	m.event(&c.rec.Container, "pause")
	return nil
}

// Unpause lets a paused container go on.
func (m *Manager) Unpause(ctx context.Context, id string) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.rec.State
	if !s.Paused {
		return fault.New(fault.Conflict, "Container %s is not paused", id)
	}
	if err := m.Keeper.Resume(ctx, c.id); err != nil {
		return errorf("cannot resume container %s: %w", id, err)
	}
	s.Paused, s.Status = false, StatusRunning
	m.saveLogged(c)
	m.event(&c.rec.Container, "unpause")
	return nil
}
