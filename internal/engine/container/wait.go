package container

import (
	"context"
	"slices"
	"sync"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// waiters are those who wait for a container to end or to be gone.
type waiters struct {
	mu      sync.Mutex
	list    []*waiter
	removed bool
}

type waiter struct {
	removal bool // waits for the removal only
	ch      chan waitResult
}

type waitResult struct {
	code   int
	errMsg string
}

// unknownExit is the code shown for an exit that nobody saw.
const unknownExit = 255

func (s *State) result() waitResult {
	if s.ExitUnknown {
		return waitResult{unknownExit, s.Error}
	}
	return waitResult{s.ExitCode, s.Error}
}

// told reports an end, or with removed the container's removal, which also ends every other wait. The state that led
// to it must be published before.
func (w *waiters) told(r waitResult, removed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removed = w.removed || removed
	w.list = slices.DeleteFunc(w.list, func(one *waiter) bool {
		if one.removal && !removed {
			return false
		}
		one.ch <- r
		return true
	})
}

// listen registers a waiter unless met already says that there is nothing to wait for.
func (w *waiters) listen(removal bool, met func() bool) *waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.removed || met != nil && met() {
		return nil
	}
	one := &waiter{removal: removal, ch: make(chan waitResult, 1)}
	w.list = append(w.list, one)
	return one
}

func (w *waiters) leave(one *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = slices.DeleteFunc(w.list, func(o *waiter) bool { return o == one })
}

// Wait returns when the condition is met: "not-running" (at once if it is not), "next-exit" or "removed". ready is
// called once it listens.
func (m *Manager) Wait(ctx context.Context, id, condition string, ready func()) (code int, errMsg string, err error) {
	c, err := m.find(id)
	if err != nil {
		return 0, "", err
	}
	var met func() bool
	switch condition {
	case "", "not-running":
		met = func() bool { s := c.snapshot().State; return !s.Running && !s.Restarting }
	case "next-exit", "removed":
	default:
		return 0, "", fault.New(fault.InvalidArgument, "invalid condition: %q", condition)
	}
	w := c.waiters.listen(condition == "removed", met)
	if ready != nil {
		ready()
	}
	if w == nil {
		s := c.snapshot().State
		r := s.result()
		return r.code, r.errMsg, nil
	}
	select {
	case r := <-w.ch:
		return r.code, r.errMsg, nil
	case <-ctx.Done():
		c.waiters.leave(w)
		return 0, "", ctx.Err()
	}
}
