package container

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// endedKeeper is a keeper whose containers end while they are being paused or updated.
type endedKeeper struct{ Keeper }

func (endedKeeper) Pause(context.Context, string) error {
	return fault.New(fault.Conflict, "container is not running")
}

func (k endedKeeper) Update(ctx context.Context, id string, r keeper.Resources) error {
	if err := k.Signal(ctx, id, "", 9, false); err != nil {
		return err
	}
	for {
		list, err := k.List(ctx)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(list, func(s keeper.Status) bool { return s.ID == id && s.State == keeper.Exited }) {
			return k.Keeper.Update(ctx, id, r)
		}
	}
}

// TestUpdateOfOneThatEnds: a container that ends while it is being updated has what was asked for at its next start.
func TestUpdateOfOneThatEnds(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{}, "wait")
	b.leave()
	b.wrap = func(k Keeper) Keeper { return endedKeeper{k} }
	b.back()
	if _, err := b.m.Update(t.Context(), id, Resources{CPUShares: 300}, nil); err != nil {
		t.Error(err)
	}
	if c, err := b.m.Get(id); err != nil || c.Config.Host.Resources.CPUShares != 300 {
		t.Errorf("%+v %v", c.Config.Host.Resources, err)
	}
}

// TestCommitOfOneThatEnds: a container that ends while it is being committed is committed as it ended.
func TestCommitOfOneThatEnds(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{}, "wait")
	b.leave()
	b.wrap = func(k Keeper) Keeper { return endedKeeper{k} }
	b.back()
	if _, err := b.m.Commit(t.Context(), id, image.CommitRequest{Ref: "new:1"}, true); err != nil {
		t.Error(err)
	}
}

// slowKeeper takes nothing away before it is let, and fails to make what it is still to take away.
type slowKeeper struct {
	Keeper
	let      <-chan struct{}
	deleting atomic.Int32
}

func (k *slowKeeper) Delete(ctx context.Context, id string) error {
	k.deleting.Add(1)
	defer k.deleting.Add(-1)
	<-k.let
	return k.Keeper.Delete(ctx, id)
}

func (k *slowKeeper) Create(ctx context.Context, spec keeper.Spec) (keeper.Status, error) {
	if k.deleting.Load() > 0 {
		return keeper.Status{}, errors.New("started beside what is left of the run before")
	}
	return k.Keeper.Create(ctx, spec)
}

// TestEndIsToldFirst: who waits for a container hears of its end, with its network given back, before its groups and mounts
// are gone; nothing can be done with it until they are.
func TestEndIsToldFirst(t *testing.T) {
	b := newBed(t)
	let := make(chan struct{})
	b.leave()
	b.wrap = func(k Keeper) Keeper { return &slowKeeper{Keeper: k, let: let} }
	b.back()
	id := b.run(Config{}, "exit", "3")
	if code := b.wait(id, "not-running"); code != 3 {
		t.Errorf("exit code %d", code)
	}
	if s := b.state(id); s.Running || s.Status != StatusExited || s.ExitCode != 3 {
		t.Errorf("%+v", s)
	}
	b.networks.mu.Lock()
	if b.networks.held[id] {
		t.Error("the network is still held")
	}
	b.networks.mu.Unlock()
	again := make(chan error, 1)
	go func() { again <- b.m.Start(t.Context(), id) }()
	close(let)
	if err := <-again; err != nil {
		t.Error(err)
	}
	if code := b.wait(id, "not-running"); code != 3 {
		t.Errorf("exit code %d", code)
	}
}
