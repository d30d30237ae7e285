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

const (
	settle = time.Millisecond
	retry  = 200 * time.Millisecond
)

// Run works until ctx ends.
func (a *Allocator) Run(ctx context.Context) error {
	events := a.store.Watch(ctx, func(state.Tx) {}, cloud.KindCluster, cloud.KindNode, cloud.KindNetwork, cloud.KindService,
		cloud.KindTask, cloud.KindAttachment)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events:
			if !ok {
				return nil
			}
			if !drain(ctx, events) {
				return nil
			}
		case <-timer.C:
		}
		if err := a.allocate(ctx); err != nil && ctx.Err() == nil {
			if !fault.Is(err, fault.OutOfDate) {
				a.logger.Warn("allocate: will try again", "error", err)
			}
			timer.Reset(retry)
		}
	}
}

// drain takes what else arrives within the settling time; false: the watch ended.
func drain(ctx context.Context, events <-chan state.Event) bool {
	t := time.NewTimer(settle)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case _, ok := <-events:
			if !ok {
				return false
			}
		case <-t.C:
			return true
		}
	}
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
