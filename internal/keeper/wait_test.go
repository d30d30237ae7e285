package keeper_test

import (
	"context"
	"sync"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

func TestWait(t *testing.T) {
	h := newHost(t)
	s := h.spec("sleep")
	h.create(s)
	out := h.attach(keeper.AttachOptions{ID: s.ID, Stdout: true})
	h.start(s.ID)
	readUntil(t, out, "ready\n")
	early, cancel := context.WithCancel(h.ctx())
	cancel()
	if _, err := h.c.Wait(early, s.ID, ""); !fault.Is(err, fault.DeadlineExceeded) && !fault.Is(err, fault.Unavailable) {
		t.Errorf("a wait that was given up: %v", err)
	}
	var wg sync.WaitGroup
	for range 3 { // whoever waits is told, whether it came before the exit or after
		wg.Go(func() {
			st, err := h.c.Wait(h.ctx(), s.ID, "")
			if err != nil {
				t.Error(err)
			} else if st.ExitCode != 137 {
				t.Errorf("it ended with %d, want 137", st.ExitCode)
			}
		})
	}
	if err := h.c.Signal(h.ctx(), s.ID, "", 9, false); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if st, err := h.c.Wait(h.ctx(), s.ID, ""); err != nil || st.ExitCode != 137 {
		t.Errorf("a wait for what has ended: %+v, %v", st, err)
	}
	mustExit(t, h.exit(s.ID, ""), 137) // the event is there all the same
	if err := h.c.Delete(h.ctx(), s.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := h.c.Wait(h.ctx(), s.ID, ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("a wait for what is not there: %v", err)
	}
}
