package container

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

const (
	defaultInterval      = 30 * time.Second
	defaultTimeout       = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultRetries       = 3

	maxProbeOutput  = 4096
	probeStartLimit = 30 * time.Second
	healthLog       = 5
)

// The health statuses.
const (
	healthStarting  = "starting"
	healthHealthy   = "healthy"
	healthUnhealthy = "unhealthy"
)

// prober runs a health check once.
type prober func(ctx context.Context) HealthResult

// startHealth begins the health checks of a run, if the container has one. The caller holds c.mu.
func (m *Manager) startHealth(c *ctr) {
	h := c.rec.Config.Health
	if h == nil || len(h.Test) == 0 || h.Test[0] == "NONE" {
		return
	}
	c.rec.State.Health = &HealthState{Status: healthStarting}
	m.resumeHealth(c)
}

// resumeHealth begins checking where the state stands. The caller holds c.mu.
func (m *Manager) resumeHealth(c *ctr) {
	cfg := *c.rec.Config.Health
	ctx, cancel := context.WithCancel(m.ctx)
	r, started := c.run, c.rec.State.StartedAt
	mon := &monitor{
		cfg: cfg, age: func() time.Duration { return r.lasted(time.Since(started)) }, status: c.rec.State.Health.Status, streak: c.rec.State.Health.FailingStreak,
		probe:  func(ctx context.Context) HealthResult { return m.probe(ctx, c, &cfg) },
		paused: func() bool { return c.snapshot().State.Paused },
		report: func(r HealthResult, status string, streak int) { m.reportHealth(ctx, c, r, status, streak) },
	}
	c.run.stopHealth = cancel
	m.background(func(context.Context) { mon.run(ctx) })
}

// monitor is the loop of one run's health checks.
type monitor struct {
	cfg    Health
	age    func() time.Duration // of the run, whatever the wall clock was set to meanwhile
	status string
	streak int
	probe  prober
	paused func() bool
	report func(r HealthResult, status string, streak int)
}

func (h *monitor) run(ctx context.Context) {
	t := time.NewTimer(h.interval())
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if !h.paused() {
			age := h.age()
			r := h.probe(ctx)
			if ctx.Err() != nil {
				return
			}
			h.judge(r, age)
			h.report(r, h.status, h.streak)
		}
		t.Reset(h.interval())
	}
}

// interval is the pause before the next probe: shorter while the container starts.
func (h *monitor) interval() time.Duration {
	if h.status == healthStarting && h.age() < h.cfg.StartPeriod {
		return cmp.Or(h.cfg.StartInterval, defaultStartInterval)
	}
	return cmp.Or(h.cfg.Interval, defaultInterval)
}

// judge draws the consequence of one result, of a probe that began when the run was as old as age.
func (h *monitor) judge(r HealthResult, age time.Duration) {
	if r.ExitCode == 0 {
		h.status, h.streak = healthHealthy, 0
		return
	}
	if h.status == healthStarting && age < h.cfg.StartPeriod {
		return
	}
	if h.streak++; h.streak >= cmp.Or(h.cfg.Retries, defaultRetries) {
		h.status = healthUnhealthy
	}
}

// reportHealth makes a result visible. The record is written when the status changes: after a daemon's end the container is
// what it was, and who sends requests to healthy ones alone goes on.
func (m *Manager) reportHealth(ctx context.Context, c *ctr, r HealthResult, status string, streak int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil || c.rec.State.Health == nil {
		return
	}
	m.checks.all.Add(1)
	if r.ExitCode != 0 {
		m.checks.failed.Add(1)
	}
	old := c.rec.State.Health
	log := append(slices.Clone(old.Log), r)
	c.rec.State.Health = &HealthState{Status: status, FailingStreak: streak, Log: log[max(0, len(log)-healthLog):]}
	c.publish()
	if status != old.Status {
		m.event(&c.rec.Container, "health_status: "+status)
		m.saveLogged(c)
	}
}

// probe runs the check's command in the container.
func (m *Manager) probe(ctx context.Context, c *ctr, h *Health) HealthResult {
	start := time.Now().UTC()
	code, out, err := m.runProbe(ctx, c, h)
	if err != nil {
		code, out = -1, err.Error()
	}
	return HealthResult{Start: start, End: time.Now().UTC(), ExitCode: code, Output: out}
}

func (m *Manager) runProbe(ctx context.Context, c *ctr, h *Health) (int, string, error) {
	snap := c.snapshot()
	cmd := h.Test[1:]
	if h.Test[0] == "CMD-SHELL" {
		shell := snap.Config.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		cmd = slices.Concat(shell, cmd)
	}
	if len(cmd) == 0 {
		return 0, "", fault.New(fault.InvalidArgument, "the health check has no command")
	}
	e, err := m.newExec(c, ExecConfig{Cmd: cmd, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return 0, "", err
	}
	defer func() {
		m.mu.Lock()
		delete(m.execs, e.id)
		m.mu.Unlock()
	}()
	m.execEvent(&snap, "exec_create", e)

	startCtx, cancel := context.WithTimeout(ctx, probeStartLimit)
	defer cancel()
	if err := m.startExec(startCtx, e, &snap, ExecStartOptions{}); err != nil {
		return 0, "", err
	}
	s, err := m.attachExec(startCtx, e)
	if err != nil {
		return 0, "", err
	}
	defer s.Close()

	var out limited
	read := make(chan struct{})
	go func() {
		defer close(read)
		for {
			_, b, err := s.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					m.log.Debug("output of a health check", "container", c.id, "error", err)
				}
				return
			}
			out.write(b)
		}
	}()
	limit := cmp.Or(h.Timeout, defaultTimeout)
	t := time.NewTimer(limit)
	defer t.Stop()
	end := func() { // the check alone: the container goes on, whether the check took too long or the daemon ends
		if err := m.Keeper.Signal(context.WithoutCancel(ctx), c.id, e.id, 9, false); err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
			m.log.Warn("ending a health check", "container", c.id, "error", err)
		}
	}
	select {
	case <-e.done:
		// A child that holds the output open must not hold up the verdict.
		select {
		case <-read:
		case <-t.C:
			_ = s.Close()
			<-read
		}
		return *e.code, out.String(), nil
	case <-t.C:
		end()
		_ = s.Close()
		<-read
		msg := fmt.Sprintf("Health check exceeded timeout (%v)", limit)
		if o := out.String(); o != "" {
			msg += ": " + o
		}
		return -1, msg, nil
	case <-ctx.Done():
		end()
		_ = s.Close()
		<-read
		return 0, "", ctx.Err()
	}
}

// limited keeps the first bytes of a probe's output.
type limited struct {
	buf       bytes.Buffer
	truncated bool
}

func (l *limited) write(b []byte) {
	room := maxProbeOutput - l.buf.Len()
	if len(b) > room {
		b, l.truncated = b[:room], true
	}
	l.buf.Write(b)
}

func (l *limited) String() string {
	if l.truncated {
		return l.buf.String() + "..."
	}
	return l.buf.String()
}

// checks counts health checks since the daemon's start.
type checks struct{ all, failed atomic.Uint64 }

// HealthChecks is how many health checks were made since the daemon's start, and how many of them failed.
func (m *Manager) HealthChecks() (all, failed uint64) {
	return m.checks.all.Load(), m.checks.failed.Load()
}
