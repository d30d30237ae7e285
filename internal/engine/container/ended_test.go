package container

import (
	"context"
	"slices"
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
