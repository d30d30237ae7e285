// Package allocator gives out what must be unique in the cluster: network numbers and subnets, virtual addresses and
// dynamic published ports of services, addresses of tasks and standalone containers, and each node's place on the ingress
// network. Everything given is written into the object that has it; what is free follows from the state, so there is no
// second book that could disagree.
package allocator

import (
	"context"
	"log/slog"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control/loop"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
)

// Allocator is the loop. Its cursors make addresses go round: one that was released is not given again before the rest
// of its subnet was, so that a late packet or a cached name does not meet a stranger.
type Allocator struct {
	store   state.Store
	logger  *slog.Logger
	cursors *cursors
}

// New returns the loop over a store.
func New(store state.Store, logger *slog.Logger) *Allocator {
	return &Allocator{store: store, logger: logger, cursors: newCursors()}
}

// Run works until ctx ends.
func (a *Allocator) Run(ctx context.Context) error {
	l := loop.Loop{Store: a.store, Settle: time.Millisecond, Pass: a.pass, Kinds: []cloud.Kind{cloud.KindCluster, cloud.KindNode,
		cloud.KindNetwork, cloud.KindService, cloud.KindTask, cloud.KindAttachment}}
	return l.Run(ctx)
}

func (a *Allocator) pass(ctx context.Context) (again time.Time) {
	err := a.allocate(ctx)
	if err == nil || ctx.Err() != nil {
		return time.Time{}
	}
	if !fault.Is(err, fault.OutOfDate) {
		a.logger.Warn("allocate: will try again", "error", err)
	}
	return time.Now().Add(loop.Retry)
}

// allocate gives everything that lacks something what it lacks. Networks come first, as the rest builds on them.
func (a *Allocator) allocate(ctx context.Context) error {
	var p *pass
	a.store.View(func(tx state.Tx) { p = a.newPass(tx) })
	p.networks()
	p.nodes()
	p.services()
	p.tasks()
	p.attachments()
	if len(p.changes) == 0 {
		return nil
	}
	return a.store.Batch(ctx, p.changes)
}

// write replaces an object by what edit makes of it, unless it changed since the snapshot.
func write[T cloud.Object](p *pass, seen T, edit func(T)) {
	id, version := seen.GetMeta().ID, seen.GetMeta().Version
	p.changes = append(p.changes, func(tx state.WriteTx) error {
		now, ok := tx.Get(seen.ObjectKind(), id).(T)
		if !ok || now.GetMeta().Version != version {
			return nil // its event brings the next pass
		}
		now = state.Clone(now)
		edit(now)
		return tx.Put(now)
	})
}
