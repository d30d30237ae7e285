package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/sys/cgroup"
)

// A container is paused by its control group, and libcontainer is not asked for that: it gives up after a fifth of a
// second, in which it thaws the group again and again. It looks at the group itself wherever it matters to it.

// freezeLimit is how long the processes of a container that is being paused may take to stand still.
const freezeLimit = 10 * time.Second

var errFreezeLimit = fmt.Errorf("that takes longer than %v", freezeLimit)

// pause freezes a container.
func (s *Server) pause(id string) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	switch st := c.status(); {
	case st.State != keeper.Running:
		return notRunning(st)
	case st.Paused:
		return nil
	}
	freeze := func() error {
		if err := s.freeze(c); err != nil {
			return err
		}
		return c.change(func(r *record) { r.Status.Paused = r.Status.State == keeper.Running })
	}
	if !c.entering.tryAlone(pausePatience, func() { err = freeze() }) {
		err = freeze() // the container holds up what comes into it; that is given up once it is frozen
	}
	return err
}

// freeze stops the processes of a container, or leaves everything as it was. A keeper that dies meanwhile leaves that to
// the next.
func (s *Server) freeze(c *container) error {
	ctx, cancel := context.WithTimeoutCause(s.program.hurry.context(), freezeLimit, errFreezeLimit)
	defer cancel()
	err := cgroup.Freeze(ctx, c.rec.Cgroups, func(held cgroup.Held) error {
		return c.change(func(r *record) { r.Held = held })
	}, func() { _ = failpoint.Hit("keeper.pause.lifted") })
	if c.rec.Held != nil {
		err = errors.Join(err, c.change(func(r *record) { r.Held = nil }))
	}
	switch {
	case err == nil:
		return nil
	case c.status().State == keeper.Exited:
		return notRunning(c.status()) // just now
	case errors.Is(err, errReplacing):
		return fault.New(fault.Unavailable, "pausing container %s: %w", c.rec.ID, err)
	case errors.Is(err, errFreezeLimit):
		return fault.New(fault.DeadlineExceeded, "pausing container %s: %w; it goes on: end what does not stop, or try again", c.rec.ID, err)
	}
	return fmt.Errorf("pausing container %s: %w", c.rec.ID, err)
}

// takeBackPause lets a container go on in whose pause the keeper before died.
func (r *record) takeBackPause() error {
	err := errors.Join(cgroup.Thaw(r.Cgroups), r.Held.Restore())
	r.Held = nil
	return err
}

// resume thaws a container.
func (s *Server) resume(id string) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	switch st := c.status(); {
	case st.State != keeper.Running:
		return notRunning(st)
	case !st.Paused:
		return nil
	}
	return c.thaw()
}

func (c *container) thaw() error {
	if err := cgroup.Thaw(c.rec.Cgroups); err != nil {
		return fmt.Errorf("resuming container %s: %w", c.rec.ID, err)
	}
	return c.change(func(r *record) { r.Status.Paused = false })
}

// letDie is called when a container has been sent SIGKILL. With version 1 of cgroups a frozen process does not die, whoever
// froze it: the container itself, by a group that it made, or somebody by a group above it. Other containers that were put
// below it are left as they are.
func (s *Server) letDie(c *container) error {
	if c.rec.Cgroups["freezer"] == "" && !c.status().Paused {
		return nil
	}
	if err := letGroupDie(c.rec.Cgroups, s.groupsBeside(c)); err != nil {
		return fmt.Errorf("container %s was killed and cannot die yet: %w", c.rec.ID, err)
	}
	if !c.status().Paused {
		return nil
	}
	return c.change(func(r *record) { r.Status.Paused = false })
}

// letGroupDie is letDie for the groups of a container, and what is below them but not in the folders besides.
func letGroupDie(groups cgroup.Groups, besides map[string]bool) error {
	if err := cgroup.ThawBelow(groups, besides); err != nil {
		return err
	}
	above := cgroup.FrozenAbove(cgroup.Groups{"freezer": groups["freezer"]})
	if above == "" {
		return nil
	}
	// First all are killed, so that none goes on where it was.
	pids := cgroup.Processes(groups["freezer"], besides)
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	if err := cgroup.MoveOut(groups, pids...); err != nil {
		return fault.New(fault.FailedPrecondition, "a control group above it is frozen, thaw that (%s): %w", cgroup.ThawCommand(above), err)
	}
	return nil
}

// groupsBeside are the control groups by which the other containers are frozen.
func (s *Server) groupsBeside(c *container) map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	groups := map[string]bool{}
	for _, other := range s.containers {
		if other == nil || other == c {
			continue
		}
		for _, controller := range []string{"freezer", ""} {
			if group := other.rec.Cgroups[controller]; group != "" {
				groups[group] = true
			}
		}
	}
	return groups
}

// notBelowFrozen is an error if nothing can start in the groups of a container, as one above them is frozen.
func notBelowFrozen(p *proc) error {
	above := cgroup.FrozenAbove(p.rec.Cgroups)
	if above == "" {
		return nil
	}
	return fault.New(fault.FailedPrecondition, "container %s cannot start, as a control group above its own is frozen: thaw that (%s) and try again, or start the container under another --cgroup-parent",
		p.rec.ID, cgroup.ThawCommand(above))
}
