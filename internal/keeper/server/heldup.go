package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/cgroup"
)

// A container can hold up what is put into it for as long as it likes: it stops it or, privileged, freezes its own group. So
// can who freezes that group from outside. Nobody else is to wait for it.

const (
	// startLimit is how long a process may take to become a container's program.
	startLimit = 30 * time.Second
	// pausePatience is how long a pause waits for what is on its way into the container.
	pausePatience = 3 * time.Second
	// endPatience is how long libcontainer is waited for when what it started was killed.
	endPatience = 2 * time.Second
)

var (
	errFrozen    = errors.New("its control group is frozen")
	errReplacing = errors.New("the keeper is about to be replaced by another build, and does not wait")
)

// boundStart is the context of a start in a container: it ends when that takes too long, when the container is seen to be
// frozen, and when the keeper cannot wait.
func (s *Server) boundStart(c *container) (context.Context, func()) {
	ctx, cancel := context.WithTimeout(s.program.hurry.context(), startLimit)
	ctx, over := untilFrozen(ctx, c.rec.Cgroups)
	return ctx, func() {
		over()
		cancel()
	}
}

// untilFrozen is a context that ends when the groups of a start are seen to be frozen. Most starts are over before it looks.
func untilFrozen(ctx context.Context, groups cgroup.Groups) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	watch := time.AfterFunc(patience, func() {
		look := time.NewTicker(patience / 4)
		defer look.Stop()
		for !cgroup.Frozen(groups) {
			select {
			case <-look.C:
			case <-ctx.Done():
				return
			}
		}
		cancel(errFrozen)
	})
	return ctx, func() {
		watch.Stop()
		cancel(nil)
	}
}

// heldUp is the error of a start whose context has ended.
func heldUp(ctx context.Context, p *proc, err error) error {
	if above := notBelowFrozen(p); above != nil {
		return above
	}
	kind := fault.DeadlineExceeded
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errFrozen):
		kind = fault.Conflict
	case errors.Is(cause, errReplacing):
		kind = fault.Unavailable
	}
	return fault.New(kind, "a process that is put into container %s does not get on, it is stopped or frozen: %w (%w)", p.rec.ID, context.Cause(ctx), err)
}

// bounded begins a process, but waits no longer than ctx allows: what has been made of it by then is killed.
func (s *Server) bounded(ctx context.Context, p *proc, config *configs.Config, begin beginner) beginner {
	return func(ends processEnds, socket *consoleSocket) (int, error) {
		began := time.Now()
		type result struct {
			pid int
			err error
		}
		done := make(chan result, 1)
		go func() {
			pid, err := begin(ends, socket)
			done <- result{pid, err}
		}()
		select {
		case r := <-done:
			return r.pid, r.err
		case <-ctx.Done():
		}
		s.killArriving(p, config, time.Since(began))
		bound := time.NewTimer(endPatience)
		defer bound.Stop()
		select {
		case r := <-done:
			if r.err == nil { // this moment
				return r.pid, nil
			}
			return 0, heldUp(ctx, p, r.err)
		case <-bound.C:
		}
		go func() {
			if r := <-done; r.err == nil {
				s.log.Warn("a process that was given up began after all; it is ended", "container", p.rec.ID, "pid", r.pid)
			}
			s.reapStrays()
		}()
		return 0, heldUp(ctx, p, errors.New("what was killed of it has not ended yet"))
	}
}

// killArriving kills the children of this process that are in a container, are not known, and not older than given: what
// was made by a start that began so long ago. They are not reaped: whoever makes them waits for them.
func (s *Server) killArriving(p *proc, config *configs.Config, age time.Duration) {
	known := map[int]bool{}
	for _, other := range s.all() {
		known[other.status().PID] = true
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return
	}
	const hz = 100 // USER_HZ, of every architecture that counts
	oldest := uint64(max(0, time.Duration(now.Nano())-age)) / uint64(time.Second/hz)
	namespace := ""
	if config.Namespaces.IsPrivate(configs.NEWPID) {
		namespace, _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.status().PID))
	}
	for _, pid := range children() {
		if st, err := readStat(pid); known[pid] || err != nil || st.ticks < oldest || st.state == 'Z' {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); (err == nil && ns != "" && ns == namespace) || inGroup(pid, p.rec.Cgroups) {
			s.log.Info("killing what a start that is held up has made", "container", p.rec.ID, "pid", pid)
			_ = unix.Kill(pid, unix.SIGKILL)
			if err := cgroup.MoveOut(p.rec.Cgroups, pid); err != nil {
				s.log.Warn("what was killed stays in a frozen group and dies when that is thawed", "container", p.rec.ID, "pid", pid, "err", err)
			}
		}
	}
}

// inGroup tells whether a process is in one of a container's control groups.
func inGroup(pid int, groups map[string]string) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 || f[2] == "/" {
			continue
		}
		for _, group := range groups {
			if strings.HasSuffix(group, f[2]) {
				return true
			}
		}
	}
	return false
}
