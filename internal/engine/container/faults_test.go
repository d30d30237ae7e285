package container

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

// Every step of a start may fail; nothing half-made stays and the next start works.
func TestStartIsUndone(t *testing.T) {
	b := newBed(t)
	cfg := Config{Volumes: []string{"/data"}, Host: HostConfig{IpcMode: "shareable"}}
	names := failpoint.Record()
	first := b.run(cfg)
	if err := b.m.Kill(t.Context(), first, ""); err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, n := range names() {
		if strings.HasPrefix(n, "engine/container.start.") {
			points = append(points, n)
		}
	}
	if len(points) < 6 {
		t.Fatalf("failpoints of a start: %v", points)
	}
	for _, point := range points {
		t.Run(strings.TrimPrefix(point, "engine/container.start."), func(t *testing.T) {
			id := b.create(cfg)
			s, err := b.m.Attach(t.Context(), id, AttachOptions{Stdout: true, Stream: true})
			if err != nil {
				t.Fatal(err)
			}
			disable := failpoint.Enable(point, failpoint.Fail)
			err = b.m.Start(t.Context(), id)
			disable()
			if err == nil || !strings.Contains(err.Error(), point) {
				t.Fatalf("start: %v", err)
			}
			if _, _, err := s.Next(); err == nil {
				// Output of a process that ran for a moment may come first.
				readAll(t, s)
			}
			for _, mp := range b.mounts() {
				if strings.Contains(mp, id) {
					t.Errorf("mount left: %s", mp)
				}
			}
			if left, err := b.client.List(t.Context()); err != nil || len(left) > 0 {
				t.Errorf("left in the keeper: %v %v", left, err)
			}
			b.networks.mu.Lock()
			if b.networks.held[id] {
				t.Error("network not given back")
			}
			b.networks.mu.Unlock()
			if st := b.state(id); st.Running || st.Status != StatusCreated || st.ExitCode == 0 || st.Error == "" {
				t.Errorf("state %+v", st)
			}
			b.start(id)
			b.ready(id, "ready")
			if err := b.m.Remove(t.Context(), id, true, true, false); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestCreateIsUndone(t *testing.T) {
	b := newBed(t)
	for _, point := range []string{"engine/container.create.after-rootfs", "engine/container.create.after-volumes"} {
		disable := failpoint.Enable(point, failpoint.Fail)
		_, _, err := b.m.Create(t.Context(), Config{Image: "prog", Name: "again", Volumes: []string{"/data"}}, "")
		disable()
		if err == nil {
			t.Fatal("no error")
		}
		if n := len(b.m.List()); n != 0 {
			t.Errorf("%d containers after a failed create", n)
		}
	}
	b.create(Config{Name: "again", Volumes: []string{"/data"}}) // the name is free
}

func TestRemoveCanBeRepeated(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{}, "exit", "0")
	b.wait(id, "not-running")
	disable := failpoint.Enable("engine/container.remove.after-rootfs", failpoint.Fail)
	err := b.m.Remove(t.Context(), id, false, false, false)
	disable()
	if err == nil {
		t.Fatal("no error")
	}
	if s := b.state(id); s.Status != StatusDead || !s.Dead {
		t.Errorf("state %+v", s)
	}
	if err := b.m.Start(t.Context(), id); !fault.Is(err, fault.Conflict) {
		t.Errorf("start of a dead container: %v", err)
	}
	if err := b.m.Remove(t.Context(), id, false, false, false); err != nil {
		t.Fatal(err)
	}
}

// Start, stop, kill and rm from everywhere at once: each call succeeds or says why not, and nothing is left.
func TestConcurrency(t *testing.T) {
	b := newBed(t)
	var ids []string
	for range 3 {
		ids = append(ids, b.create(Config{}, "trap", "0"))
	}
	var wg sync.WaitGroup
	zero := 0
	for i := range 6 {
		for _, id := range ids {
			wg.Go(func() {
				for n := range 4 {
					var err error
					switch (i + n) % 4 {
					case 0, 1:
						err = b.m.Start(t.Context(), id)
					case 2:
						err = b.m.Stop(t.Context(), id, "", &zero)
					case 3:
						err = b.m.Kill(t.Context(), id, "")
					}
					if err != nil && !fault.Is(err, fault.NotModified) && !fault.Is(err, fault.Conflict) {
						t.Errorf("step %d: %v", (i+n)%4, err)
					}
				}
			})
		}
	}
	wg.Wait()
	for _, id := range ids {
		for range 3 {
			wg.Go(func() {
				err := b.m.Remove(t.Context(), id, true, true, false)
				if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
					t.Errorf("remove: %v", err)
				}
			})
		}
	}
	wg.Wait()
	if left := b.m.List(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestNames(t *testing.T) {
	b := newBed(t)
	id := b.create(Config{Name: "/web"})
	_, _, err := b.m.Create(t.Context(), Config{Image: "prog", Name: "web"}, "")
	want := fmt.Sprintf(`Conflict. The container name "/web" is already in use by container "%s". You have to remove (or rename) that container to be able to reuse that name.`, id)
	if !fault.Is(err, fault.AlreadyExists) || err.Error() != want {
		t.Errorf("%v", err)
	}
	for _, ref := range []string{id, id[:12], "web", "/web"} {
		if c, err := b.m.Get(ref); err != nil || c.ID != id {
			t.Errorf("get %s: %v %v", ref, c.ID, err)
		}
	}
	if _, err := b.m.Get("nosuch"); !fault.Is(err, fault.NotFound) || err.Error() != "No such container: nosuch" {
		t.Errorf("%v", err)
	}
	other := b.create(Config{})
	if c, _ := b.m.Get(other); !strings.Contains(c.Config.Name, "_") {
		t.Errorf("random name %q", c.Config.Name)
	}
	if err := b.m.Rename(t.Context(), other, "web"); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("rename to a taken name: %v", err)
	}
	if err := b.m.Rename(t.Context(), id, "front"); err != nil {
		t.Fatal(err)
	}
	if err := b.m.Rename(t.Context(), other, "web"); err != nil {
		t.Errorf("the old name is not free: %v", err)
	}
	for _, bad := range []string{"a b", "-x", "x"} {
		if _, _, err := b.m.Create(t.Context(), Config{Image: "prog", Name: bad}, ""); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("name %q: %v", bad, err)
		}
	}
	if err := b.m.Remove(t.Context(), "front", false, false, false); err != nil {
		t.Fatal(err)
	}
	b.create(Config{Name: "front"})
}
