package network

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// How long a sandbox that was detached waits for others to go with: until none has come for teardownQuiet, and never
// longer than teardownMost or in greater company than teardownCrowd.
const (
	teardownQuiet = 300 * time.Millisecond
	teardownMost  = 2 * time.Second
	teardownCrowd = 64
)

// teardowns takes away what is left of detached sandboxes, many in one step: deleting links takes the kernel many
// milliseconds, however many they are, and meanwhile no container can be joined to a network. The addresses of a sandbox
// are free when its links are gone, and not before: two links with one address would answer for each other.
type teardowns struct {
	m     *Manager
	more  chan struct{} // something was added
	hurry chan struct{} // somebody waits

	mu    sync.Mutex
	queue []*sandbox
	busy  bool
	gone  chan struct{} // closed when what is in the queue is gone, or what was in it last
	// legs are the sandboxes, by ID, whose legs in the cluster's networks are still to go: these go by the sandbox's ID,
	// and one of the same ID (a container that was started again) must not lose its own with them.
	legs map[string]bool
}

func newTeardowns(m *Manager) *teardowns {
	t := &teardowns{m: m, more: make(chan struct{}, 1), hurry: make(chan struct{}, 1), gone: make(chan struct{}), legs: map[string]bool{}}
	close(t.gone)
	return t
}

// add takes over a sandbox that is in no book any more.
func (t *teardowns) add(sb *sandbox) {
	onCluster := t.m.onCluster(sb)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == 0 {
		t.gone = make(chan struct{})
	}
	t.queue = append(t.queue, sb)
	if onCluster {
		t.legs[sb.Spec.ID] = true
	}
	if !t.busy {
		t.busy = true
		go t.run()
	}
	nudge(t.more)
	if len(t.queue) >= teardownCrowd {
		nudge(t.hurry)
	}
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (t *teardowns) run() {
	for {
		t.gather()
		t.mu.Lock()
		batch, gone := t.queue, t.gone
		t.queue = nil
		t.busy = len(batch) > 0
		t.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		t.m.takeAway(batch)
		t.mu.Lock()
		for _, sb := range batch {
			delete(t.legs, sb.Spec.ID)
		}
		t.mu.Unlock()
		close(gone)
	}
}

// gather waits until it is worth while to begin. With nothing in the queue it returns at once.
func (t *teardowns) gather() {
	t.mu.Lock()
	empty := len(t.queue) == 0
	t.mu.Unlock()
	if empty {
		return
	}
	quiet, most := time.NewTimer(teardownQuiet), time.NewTimer(teardownMost)
	defer quiet.Stop()
	defer most.Stop()
	for {
		select {
		case <-t.more:
			quiet.Reset(teardownQuiet)
		case <-quiet.C:
			return
		case <-most.C:
			return
		case <-t.hurry:
			return
		}
	}
}

// onCluster reports whether the sandbox, which nobody else has any more, is on a network of the cluster.
func (m *Manager) onCluster(sb *sandbox) bool {
	return slices.ContainsFunc(sb.all(), func(e *Endpoint) bool { return m.networkOf(e).Scope == ScopeSwarm })
}

// takeAway removes links and namespaces of sandboxes.
func (m *Manager) takeAway(batch []*sandbox) {
	var links []string
	for _, sb := range batch {
		sb.op.Lock()
		for _, e := range sb.all() {
			if _, bridged := m.driverOf(m.networkOf(e)).(*bridgeDriver); bridged {
				links = append(links, hostLink(e.ID))
			}
		}
		sb.op.Unlock()
	}
	if err := m.host.Do(func() error { return link.DelAll(links) }); err != nil {
		m.log.Error("removing the links of sandboxes", "error", err)
	}
	for _, sb := range batch {
		sb.op.Lock()
		err := m.leaveAll(sb)
		if sb.NetNS != "" {
			err = errors.Join(err, netns.Remove(sb.NetNS))
		}
		sb.op.Unlock()
		m.mu.Lock()
		close(m.leaving[sb])
		delete(m.leaving, sb)
		m.mu.Unlock()
		if err != nil {
			m.log.Error("removing a sandbox", "sandbox", sb.Spec.ID, "error", err)
		}
	}
}

// waitFor waits until an earlier sandbox of that ID has left the cluster's networks.
func (t *teardowns) waitFor(ctx context.Context, id string) {
	for ctx.Err() == nil {
		t.mu.Lock()
		there := t.legs[id]
		t.mu.Unlock()
		if !there {
			return
		}
		t.wait(ctx)
	}
}

// wait waits until what is queued now is gone.
func (t *teardowns) wait(ctx context.Context) {
	t.mu.Lock()
	gone := t.gone
	if len(t.queue) > 0 {
		nudge(t.hurry)
	}
	t.mu.Unlock()
	select {
	case <-gone:
	case <-ctx.Done():
	}
}

// close waits for everything that was promised.
func (t *teardowns) close() { t.wait(context.Background()) }
