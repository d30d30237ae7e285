// Package orchestrator keeps as many tasks of each service as its specification asks for, and of the right kind: it makes
// tasks, replaces those that ended or lost their node, rolls changes of the specification over them, and forgets the old
// ones. It places nothing and gives no addresses.
//
// What is to be done for a service follows from its stored state and the time alone (planService), so a leader that dies
// in the middle of an update is followed by one that goes on from there.
package orchestrator

import (
	"context"
	"log/slog"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control/loop"
	"github.com/sampan-cloud/sampan/internal/state"
)

// Orchestrator is the loop.
type Orchestrator struct {
	store  state.Store
	logger *slog.Logger
}

// New returns the loop over a store.
func New(store state.Store, logger *slog.Logger) *Orchestrator {
	return &Orchestrator{store: store, logger: logger}
}

// Run works until ctx ends.
func (o *Orchestrator) Run(ctx context.Context) error {
	dirty := map[string]bool{} // service IDs, also of services that are gone
	wakes := map[string]time.Time{}
	l := loop.Loop{
		Store: o.store, Kinds: []cloud.Kind{cloud.KindService, cloud.KindTask, cloud.KindNode, cloud.KindCluster}, Settle: 2 * time.Millisecond,
		Begin: func(tx state.Tx) { markAll(tx, dirty) },
		Note:  func(e state.Event) { o.mark(e, dirty) },
		Pass:  func(ctx context.Context) time.Time { return o.pass(ctx, dirty, wakes) },
	}
	return l.Run(ctx)
}

// pass looks at the services that changed and those whose time has come, and returns the next such time.
func (o *Orchestrator) pass(ctx context.Context, dirty map[string]bool, wakes map[string]time.Time) (next time.Time) {
	now := time.Now()
	for id, at := range wakes {
		if !at.After(now) {
			dirty[id] = true
		}
	}
	for id := range dirty {
		delete(dirty, id)
		delete(wakes, id)
		if at := o.reconcile(ctx, id); !at.IsZero() {
			wakes[id] = at
		}
	}
	for _, at := range wakes {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

func markAll(tx state.Tx, dirty map[string]bool) {
	for _, s := range state.List[*cloud.Service](tx, state.By{}) {
		dirty[s.ID] = true
	}
	for _, t := range state.List[*cloud.Task](tx, state.By{}) {
		dirty[t.ServiceID] = true
	}
}

func (o *Orchestrator) mark(e state.Event, dirty map[string]bool) {
	switch e.Kind {
	case cloud.KindService:
		dirty[e.ID] = true
	case cloud.KindTask:
		t, ok := e.Object.(*cloud.Task)
		if !ok {
			t, ok = e.Removed.(*cloud.Task)
		}
		if ok {
			dirty[t.ServiceID] = true
		}
	default: // nodes and the cluster's settings change rarely and may concern every service
		o.store.View(func(tx state.Tx) { markAll(tx, dirty) })
	}
}

// reconcile brings one service nearer to its specification and returns when to look again, the zero time for not before
// something changes.
func (o *Orchestrator) reconcile(ctx context.Context, id string) time.Time {
	var p plan
	began := time.Now()
	now := began.UTC()
	o.store.View(func(tx state.Tx) { p = planFor(tx, id, now) })
	if err := o.carryOut(ctx, id, &p); err != nil {
		if ctx.Err() == nil {
			o.logger.Warn("orchestrate service: will try again", "service", id, "error", err)
		}
		return began.Add(loop.Retry)
	}
	if p.wake.IsZero() {
		return p.wake
	}
	return began.Add(p.wake.Sub(now)) // which comes when so much has passed, whatever the clock is set to meanwhile
}

func planFor(tx state.Tx, id string, now time.Time) plan {
	w := world{now: now, nodes: map[string]*cloud.Node{}, history: defaultHistory}
	for _, n := range state.List[*cloud.Node](tx, state.By{}) {
		w.nodes[n.ID] = n
	}
	for _, c := range state.List[*cloud.Cluster](tx, state.By{}) {
		w.history = c.Spec.TaskHistoryLimit
	}
	tasks := state.List[*cloud.Task](tx, state.ByService(id))
	if svc := state.Get[*cloud.Service](tx, id); svc != nil {
		return planService(svc, tasks, w)
	}
	return planRemoval(tasks, w)
}

// carryOut writes a plan down. New tasks come last: a crash in between leaves too few, which the next plan mends.
func (o *Orchestrator) carryOut(ctx context.Context, id string, p *plan) error {
	var changes []func(state.WriteTx) error
	if p.service != nil {
		changes = append(changes, func(tx state.WriteTx) error {
			svc := state.Get[*cloud.Service](tx, id)
			// What others write to the service meanwhile (its addresses, say) does not keep the plan from being noted.
			if svc == nil || svc.SpecVersion != p.specVersion {
				return nil // changed by a user: the next plan sees it
			}
			svc = state.Clone(svc)
			p.service(svc)
			return tx.Put(svc)
		})
	}
	for _, d := range p.desire {
		changes = append(changes, func(tx state.WriteTx) error {
			t := state.Get[*cloud.Task](tx, d.task)
			if t == nil || t.Desired >= d.state {
				return nil
			}
			t = state.Clone(t)
			t.Desired = d.state
			return tx.Put(t)
		})
	}
	for _, orphan := range p.orphan {
		changes = append(changes, func(tx state.WriteTx) error {
			t := state.Get[*cloud.Task](tx, orphan)
			if t == nil || t.Status.State.Ended() {
				return nil
			}
			t = state.Clone(t)
			t.Status.State, t.Status.Timestamp = cloud.TaskOrphaned, time.Now().UTC()
			t.Status.Message = "the node of this task is gone"
			return tx.Put(t)
		})
	}
	for _, gone := range p.remove {
		changes = append(changes, func(tx state.WriteTx) error {
			t := state.Get[*cloud.Task](tx, gone.ID)
			if t == nil {
				return nil
			}
			// A task that was not placed yet may have been meanwhile; then it is stopped in good order first.
			if t.Status.State != gone.Status.State || t.NodeID != gone.NodeID {
				return nil
			}
			return tx.Delete(cloud.KindTask, gone.ID)
		})
	}
	for _, t := range p.create {
		changes = append(changes, func(tx state.WriteTx) error {
			if svc := state.Get[*cloud.Service](tx, id); svc == nil || svc.SpecVersion != t.SpecVersion {
				return nil
			}
			t.Version = 0 // the change may run more than once
			return tx.Put(t)
		})
	}
	if len(changes) == 0 {
		return nil
	}
	return o.store.Batch(ctx, changes)
}
