// Package scheduler chooses a node for each task that has its addresses: one that can take it, and among those the one
// that spreads the service best. A task that no node can take waits, with the reason in its status.
package scheduler

import (
	"context"
	"log/slog"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control/loop"
	"github.com/sampan-cloud/sampan/internal/state"
)

// Scheduler is the loop.
type Scheduler struct {
	store  state.Store
	logger *slog.Logger
}

// New returns the loop over a store.
func New(store state.Store, logger *slog.Logger) *Scheduler {
	return &Scheduler{store: store, logger: logger}
}

// Run works until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	l := loop.Loop{Store: s.store, Kinds: []cloud.Kind{cloud.KindNode, cloud.KindTask}, Settle: time.Millisecond, Pass: s.pass}
	return l.Run(ctx)
}

func (s *Scheduler) pass(ctx context.Context) (again time.Time) {
	if err := s.schedule(ctx); err != nil && ctx.Err() == nil {
		s.logger.Warn("schedule: will try again", "error", err)
		return time.Now().Add(loop.Retry)
	}
	return time.Time{}
}

func (s *Scheduler) schedule(ctx context.Context) error {
	now := time.Now().UTC()
	var decisions []decision
	s.store.View(func(tx state.Tx) {
		decisions = decide(state.List[*cloud.Node](tx, state.By{}), state.List[*cloud.Task](tx, state.By{}), now)
	})
	var changes []func(state.WriteTx) error
	for _, d := range decisions {
		changes = append(changes, func(tx state.WriteTx) error {
			t := state.Get[*cloud.Task](tx, d.task.ID)
			if t == nil || t.Version != d.task.Version {
				return nil // its event brings the next decision
			}
			t = state.Clone(t)
			if d.node == "" {
				t.Status.Err = d.reason
				return tx.Put(t)
			}
			if n := state.Get[*cloud.Node](tx, d.node); n == nil {
				return nil
			}
			t.NodeID, t.Generic = d.node, d.generic
			t.Status.State, t.Status.Timestamp = cloud.TaskAssigned, now
			t.Status.Message, t.Status.Err = "scheduler assigned task to node", ""
			return tx.Put(t)
		})
	}
	if len(changes) == 0 {
		return nil
	}
	return s.store.Batch(ctx, changes)
}
