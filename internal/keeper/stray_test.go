package keeper_test

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

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
