package dispatcher

import (
	"context"
	"reflect"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// silentMessage tells a node that was lost from one that left.
const silentMessage = "heartbeat failure"

// keepNodes declares nodes down that are silent for too long.
func (t *term) keepNodes() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		for _, node := range t.clock.advance(now.Sub(last), t.period()) {
			t.declareDown(node)
		}
		last = now
		t.mu.Lock()
		waiting := len(t.model.held) > 0
		t.mu.Unlock()
		if waiting {
			t.nudge() // a planned stop may have waited long enough
		}
	}
}

// declareDown takes the node's tasks out of every name, virtual address and published port at once, and writes the
// node's state, which makes the orchestrator replace them.
func (t *term) declareDown(node string) {
	t.logger.Warn("a node does not answer and counts as down", "node", node)
	t.mu.Lock()
	t.model.setDown(node, true)
	s := t.sessions[node]
	t.mu.Unlock()
	if s != nil {
		s.end(fault.New(fault.Unavailable, "no heartbeat came for too long: begin a new session"))
	}
	t.logs.nodeGone(node, true)
	t.nudge()
	go t.persist(t.ctx, node, func(n *cloud.Node) {
		n.Status.State, n.Status.Message = cloud.NodeDown, silentMessage
	}, func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.model.down[node]
	})
}

// persist edits a node's object, trying again while ctx lasts and the change is still wanted.
func (t *term) persist(ctx context.Context, node string, edit func(*cloud.Node), wanted func() bool) {
	for ctx.Err() == nil && wanted() {
		err := t.store.Update(ctx, func(tx state.WriteTx) error {
			n := state.Get[*cloud.Node](tx, node)
			if n == nil {
				return nil
			}
			c := state.Clone(n)
			edit(c)
			if reflect.DeepEqual(c, state.Clone(n)) {
				return nil
			}
			return tx.Put(c)
		})
		if err == nil {
			return
		}
		t.logger.Warn("write a node's state: will try again", "node", node, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Heartbeat keeps the caller's session alive.
func (d *Dispatcher) Heartbeat(ctx context.Context, r *rpc.HeartbeatRequest) (*rpc.HeartbeatResponse, error) {
	t, err := d.current()
	if err != nil {
		return nil, err
	}
	node, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	period, ok := t.clock.beat(node, r.GetSession())
	if !ok {
		return nil, fault.New(fault.NotFound, "session %q is not open: begin a new one", r.GetSession())
	}
	return &rpc.HeartbeatResponse{Period: int64(period)}, nil
}
