package network

import (
	"context"
	"sync"

	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// teardowns takes away what is left of detached sandboxes, one after the other: the kernel holds one lock for all of it,
// and deleting a link takes it many milliseconds. The addresses of a sandbox are free when its links are gone, and not
// before: two links with one address would answer for each other.
type teardowns struct {
	m     *Manager
	mu    sync.Mutex
	queue []*sandbox
	busy  bool
	idle  chan struct{} // closed when the queue is empty
}

func newTeardowns(m *Manager) *teardowns {
	t := &teardowns{m: m, idle: make(chan struct{})}
	close(t.idle)
	return t
}

// add takes over a sandbox that is in no book any more.
func (t *teardowns) add(sb *sandbox) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue = append(t.queue, sb)
	if !t.busy {
		t.busy, t.idle = true, make(chan struct{})
		go t.run()
	}
}

func (t *teardowns) run() {
	for {
		t.mu.Lock()
		if len(t.queue) == 0 {
			t.busy = false
			close(t.idle)
			t.mu.Unlock()
			return
		}
		sb := t.queue[0]
		t.queue = t.queue[1:]
		t.mu.Unlock()
		sb.op.Lock()
		if err := t.m.leaveAll(sb); err != nil {
			t.m.log.Error("removing the links of a sandbox", "sandbox", sb.Spec.ID, "error", err)
		}
		if sb.NetNS != "" {
			if err := netns.Remove(sb.NetNS); err != nil {
				t.m.log.Error("removing the namespace of a sandbox", "sandbox", sb.Spec.ID, "error", err)
			}
		}
		sb.op.Unlock()
	}
}

// wait waits until what is queued now is done.
func (t *teardowns) wait(ctx context.Context) {
	t.mu.Lock()
	idle := t.idle
	t.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// close waits for everything that was promised.
func (t *teardowns) close() { t.wait(context.Background()) }
