package keeper_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// TestKilledWhileExecsBegin: a container that is killed while processes are being put into it is gone soon, whatever
// became of those.
func TestKilledWhileExecsBegin(t *testing.T) {
	h := newHost(t)
	for range 6 {
		s := h.spec("sleep")
		h.runReady(s)
		stop := make(chan struct{})
		var begun, execs sync.WaitGroup
		for range 6 {
			begun.Add(1)
			var once sync.Once
			execs.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					_, err := h.c.Exec(h.ctx(), keeper.Process{Container: s.ID, ExecID: newID(), Process: mustJSON(process("exit", "0"))})
					once.Do(begun.Done)
					if err != nil {
						return
					}
				}
			})
		}
		begun.Wait()
		if err := h.c.Signal(h.ctx(), s.ID, "", int(unix.SIGKILL), false); err != nil {
			t.Fatal(err)
		}
		mustExit(t, h.exit(s.ID, ""), 137)
		close(stop)
		execs.Wait()
		if err := h.c.Delete(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStopperHoldsNobodyUp: a container that stops each process that is put into it, before that is its program, keeps
// nobody else from starting anything, also when a start somewhere else has broken off.
func TestStopperHoldsNobodyUp(t *testing.T) {
	h := newHost(t)
	stopper, other := h.spec("stopper"), h.spec("sleep")
	h.runReady(other)
	h.runReady(stopper)
	ctx := h.ctx()
	var execs sync.WaitGroup
	defer execs.Wait()
	returned := make(chan struct{}, 8)
	for range cap(returned) {
		execs.Go(func() {
			_, _ = h.c.Exec(ctx, keeper.Process{Container: stopper.ID, ExecID: newID(), Process: mustJSON(process("exit", "0"))})
			returned <- struct{}{}
		})
	}
	defer func() {
		t.Logf("%d of %d were held up", cap(returned)-len(returned), cap(returned))
		if err := h.c.Delete(h.ctx(), stopper.ID); err != nil {
			t.Error(err)
		}
	}()
	broken := keeper.Process{Container: other.ID, ExecID: newID(), Process: mustJSON(process())}
	for range 5 { // what breaks off is looked for
		broken.ExecID = newID()
		p := process()
		p.Args = []string{"/missing"}
		broken.Process = mustJSON(p)
		bound, cancel := context.WithTimeout(ctx, 20*time.Second)
		_, err := h.c.Exec(bound, broken)
		cancel()
		if !fault.Is(err, fault.InvalidArgument) {
			t.Fatalf("a process of another container: %v", err)
		}
	}
}
