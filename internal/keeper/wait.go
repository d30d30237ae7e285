package keeper

import (
	"context"
	"sync"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// exits wakes those who wait for the end of one process.
type exits struct {
	mu sync.Mutex
	m  map[wire.Target]map[chan struct{}]bool
}

func (e *exits) listen(t wire.Target) (told <-chan struct{}, forget func()) {
	ch := make(chan struct{}, 1)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.m == nil {
		e.m = map[wire.Target]map[chan struct{}]bool{}
	}
	if e.m[t] == nil {
		e.m[t] = map[chan struct{}]bool{}
	}
	e.m[t][ch] = true
	return ch, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if delete(e.m[t], ch); len(e.m[t]) == 0 {
			delete(e.m, t)
		}
	}
}

func (e *exits) tell(t wire.Target) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.m[t] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Wait returns the final status of a container or exec, once it has exited. It is an error (fault.NotFound) if there is
// no such process. The exit is told to Events all the same.
func (c *Client) Wait(ctx context.Context, id, execID string) (Status, error) {
	told, forget := c.exits.listen(wire.Target{ID: id, ExecID: execID})
	defer forget()
	for {
		st, err := c.Status(ctx, id, execID)
		if err != nil || st.State == Exited {
			return st, err
		}
		select {
		case <-told:
		case <-ctx.Done():
			return st, fault.New(fault.DeadlineExceeded, "waiting for the end of container %s: %w", id, ctx.Err())
		}
	}
}
