package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// beforeKeeper does something before a container is made.
type beforeKeeper struct {
	Keeper
	create func()
}

func (k *beforeKeeper) Create(ctx context.Context, s keeper.Spec) (keeper.Status, error) {
	if k.create != nil {
		k.create()
	}
	return k.Keeper.Create(ctx, s)
}

// TestJoinedContainerEndsDuringTheStart: who starts a container that joins another's namespaces is told if that one ends
// meanwhile, and what to do.
func TestJoinedContainerEndsDuringTheStart(t *testing.T) {
	b := newBed(t)
	k := &beforeKeeper{}
	if err := b.m.Close(); err != nil {
		t.Fatal(err)
	}
	b.wrap = func(under Keeper) Keeper { k.Keeper = under; return k }
	b.open()
	for kind, host := range map[string]HostConfig{"network": {NetworkMode: "container:donor"}, "PID": {PidMode: "container:donor"}, "IPC": {IpcMode: "container:donor"}} {
		donor := b.run(Config{Name: "donor", Host: HostConfig{IpcMode: "shareable"}}, "wait")
		b.ready(donor, "ready")
		id := b.create(Config{Host: host}, "wait")
		k.create = func() {
			if err := b.m.Kill(t.Context(), donor, ""); err != nil {
				t.Error(err)
			}
		}
		err := b.m.Start(t.Context(), id)
		k.create = nil
		if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), kind+" namespace of container donor, which has just ended: start it first") {
			t.Errorf("%s: %v", kind, err)
		}
		if err := b.m.Remove(t.Context(), donor, true, true, false); err != nil {
			t.Error(err)
		}
	}
}

// TestVolumesWhileOthersPrune: volumes that nobody uses are removed again and again, and no creation of a container
// suffers from it.
func TestVolumesWhileOthersPrune(t *testing.T) {
	b := newBed(t)
	vols := b.m.Volumes.(*volume.Store)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, v := range vols.List() {
					if err := vols.Remove(t.Context(), v.Name, false); err != nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) {
						t.Error(err)
					}
				}
			}
		})
	}
	cfg := Config{Image: "prog", Volumes: []string{"/anonymous"}, Host: HostConfig{Mounts: []Mount{{Type: MountVolume, Source: "named", Target: "/named"}}}}
	for range 60 {
		id, _, err := b.m.Create(t.Context(), cfg, "")
		if err != nil {
			t.Error(err)
			break
		}
		c, err := b.m.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		for _, mt := range c.Mounts {
			if _, err := vols.Get(mt.Name); err != nil {
				t.Errorf("a container has lost the volume on %s: %v", mt.Destination, err)
			}
		}
		if err := b.m.Remove(t.Context(), id, false, false, false); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

// TestVolumesFromOneThatIsRemoved are either had or refused with the reason.
func TestVolumesFromOneThatIsRemoved(t *testing.T) {
	b := newBed(t)
	vols := b.m.Volumes.(*volume.Store)
	for range 40 {
		donor := b.create(Config{Volumes: []string{"/anonymous"}})
		gone := make(chan error, 1)
		go func() { gone <- b.m.Remove(t.Context(), donor, false, true, false) }()
		id, _, err := b.m.Create(t.Context(), Config{Image: "prog", Host: HostConfig{VolumesFrom: []string{donor}}}, "")
		if rerr := <-gone; rerr != nil {
			t.Fatal(rerr)
		}
		if err != nil {
			if !strings.Contains(err.Error(), "No such container") && !strings.Contains(err.Error(), "which is being removed") {
				t.Errorf("refused with %v", err)
			}
			continue
		}
		c, err := b.m.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := vols.Get(c.Mounts[0].Name); err != nil {
			t.Errorf("its volume is gone: %v", err)
		}
		if err := b.m.Remove(t.Context(), id, false, true, false); err != nil {
			t.Error(err)
		}
	}
	for _, v := range vols.List() {
		if len(vols.Users(v.Name)) > 0 {
			t.Errorf("volume %s is still in use by %v", v.Name, vols.Users(v.Name))
		}
	}
}

// TestExecInOneThatEnds: whatever becomes of the container meanwhile, the answer says so, and no exec of a container that
// is gone is kept.
func TestExecInOneThatEnds(t *testing.T) {
	b := newBed(t)
	for n := range 12 {
		id := b.run(Config{Name: fmt.Sprintf("c%d", n), User: "alice"}, "wait")
		ended := make(chan error, 1)
		go func() { ended <- b.m.Remove(t.Context(), id, true, true, false) }()
		for {
			e, err := b.m.ExecCreate(t.Context(), id, ExecConfig{Cmd: []string{"/bin/prog", "exit", "0"}, User: "alice"})
			if err == nil {
				_, err = b.m.ExecStart(t.Context(), e, ExecStartOptions{Detach: true})
			}
			if err == nil {
				continue
			}
			if !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) || strings.Contains(err.Error(), "unable to find user") {
				t.Errorf("exec in a container that ends: %v (%v)", err, fault.KindOf(err))
			}
			break
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	b.m.mu.RLock()
	defer b.m.mu.RUnlock()
	if len(b.m.execs) > 0 {
		t.Errorf("%d execs of containers that are gone are kept", len(b.m.execs))
	}
}

// TestManyAtOnce: of several who create, rename, start or remove the same at one time, one has his way and the others are
// told why not.
func TestManyAtOnce(t *testing.T) {
	b := newBed(t)
	const many = 6
	at := func(what string, allowed []fault.Kind, f func(n int) error) (won int) {
		var wg sync.WaitGroup
		errs := make([]error, many)
		for n := range many {
			wg.Go(func() { errs[n] = f(n) })
		}
		wg.Wait()
		for _, err := range errs {
			if err == nil {
				won++
				continue
			}
			ok := false
			for _, k := range allowed {
				ok = ok || fault.Is(err, k)
			}
			if !ok {
				t.Errorf("%s: %v (%v)", what, err, fault.KindOf(err))
			}
		}
		if won != 1 {
			t.Errorf("%s: %d had their way: %v", what, won, errors.Join(errs...))
		}
		return won
	}
	at("create", []fault.Kind{fault.AlreadyExists}, func(int) error {
		_, _, err := b.m.Create(t.Context(), Config{Name: "one", Image: "prog"}, "")
		return err
	})
	var others [many]string
	for n := range others {
		others[n] = b.create(Config{})
	}
	at("rename", []fault.Kind{fault.AlreadyExists}, func(n int) error { return b.m.Rename(t.Context(), others[n], "two") })
	at("start", []fault.Kind{fault.NotModified}, func(int) error { return b.m.Start(t.Context(), "one") })
	at("removal", []fault.Kind{fault.Conflict, fault.NotFound}, func(int) error { return b.m.Remove(t.Context(), "one", true, true, false) })
}

// TestExportOfOneThatIsRemoved is no archive of a part that says nothing.
func TestExportOfOneThatIsRemoved(t *testing.T) {
	b := newBed(t)
	var id string
	for what, read := range map[string]func(w io.Writer) error{
		"export": func(w io.Writer) error { return b.m.Export(t.Context(), id, w) },
		"copy": func(w io.Writer) error {
			r, _, err := b.m.CopyFrom(t.Context(), id, "/")
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(w, r)
			return err
		},
	} {
		id = b.run(Config{}, "wait")
		b.ready(id, "ready")
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() {
			err := read(w)
			_ = w.Close()
			done <- err
		}()
		if _, err := r.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := b.m.Remove(t.Context(), id, true, true, false); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, r)
		if err := <-done; !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "was removed meanwhile") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// leavingKeeper does what it is asked for and then cancels the request, as a client that leaves at that moment does.
type leavingKeeper struct {
	Keeper
	leave func()
}

func (k *leavingKeeper) after(ctx context.Context, f func(ctx context.Context) error) error {
	err := f(ctx)
	k.leave()
	return errors.Join(err, ctx.Err())
}

func (k *leavingKeeper) Pause(ctx context.Context, id string) error {
	return k.after(ctx, func(ctx context.Context) error { return k.Keeper.Pause(ctx, id) })
}

func (k *leavingKeeper) Resume(ctx context.Context, id string) error {
	return k.after(ctx, func(ctx context.Context) error { return k.Keeper.Resume(ctx, id) })
}

func (k *leavingKeeper) Update(ctx context.Context, id string, r keeper.Resources) error {
	return k.after(ctx, func(ctx context.Context) error { return k.Keeper.Update(ctx, id, r) })
}

func (k *leavingKeeper) Exec(ctx context.Context, p keeper.Process) (st keeper.Status, err error) {
	err = k.after(ctx, func(ctx context.Context) (err error) { st, err = k.Keeper.Exec(ctx, p); return err })
	return st, err
}

// TestClientLeavesInTheMiddle: what was done to a container before its client went away is known afterwards.
func TestClientLeavesInTheMiddle(t *testing.T) {
	b := newBed(t)
	k := &leavingKeeper{}
	if err := b.m.Close(); err != nil {
		t.Fatal(err)
	}
	b.wrap = func(under Keeper) Keeper { k.Keeper = under; return k }
	b.open()
	id := b.run(Config{}, "wait")
	leaving := func() context.Context {
		var ctx context.Context
		ctx, k.leave = context.WithCancel(t.Context())
		return ctx
	}
	if err := b.m.Pause(leaving(), id); err != nil || !b.state(id).Paused {
		t.Errorf("pause: %v, paused is %v", err, b.state(id).Paused)
	}
	if err := b.m.Unpause(leaving(), id); err != nil || b.state(id).Paused {
		t.Errorf("unpause: %v, paused is %v", err, b.state(id).Paused)
	}
	_, err := b.m.Update(leaving(), id, Resources{Memory: 64 << 20, MemorySwap: -1}, nil)
	if c, gerr := b.m.Get(id); err != nil || gerr != nil || c.Config.Host.Resources.Memory != 64<<20 {
		t.Errorf("update: %v, %v, the memory limit is %d", err, gerr, c.Config.Host.Resources.Memory)
	}
	e, err := b.m.ExecCreate(t.Context(), id, ExecConfig{Cmd: []string{"/bin/prog", "wait"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.m.ExecStart(leaving(), e, ExecStartOptions{Detach: true})
	if is, gerr := b.m.ExecGet(e); err != nil || gerr != nil || !is.Running {
		t.Errorf("exec: %v, %v, it runs is %v", err, gerr, is.Running)
	}
	ctx := leaving()
	renamed := make(chan error, 1)
	b.networks.renaming = func(ctx context.Context) error {
		k.leave()
		renamed <- ctx.Err()
		return ctx.Err()
	}
	if err := errors.Join(b.m.Rename(ctx, id, "other"), <-renamed); err != nil {
		t.Errorf("rename: %v", err)
	}
}
