package keeper_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// executing puts processes into a container, several at once and over and over; it returns when each has begun. stop ends
// that and waits for it.
func executing(h *host, id string) (stop func()) {
	stopped := make(chan struct{})
	var begun, execs sync.WaitGroup
	for range 6 {
		begun.Add(1)
		var once sync.Once
		execs.Go(func() {
			for {
				select {
				case <-stopped:
					return
				default:
				}
				_, err := h.c.Exec(h.ctx(), keeper.Process{Container: id, ExecID: newID(), Process: mustJSON(process("exit", "0"))})
				once.Do(begun.Done)
				if err != nil {
					return
				}
			}
		})
	}
	begun.Wait()
	return sync.OnceFunc(func() {
		close(stopped)
		execs.Wait()
	})
}

// TestKilledWhileExecsBegin: a container that is killed while processes are being put into it is gone soon, whatever
// became of those.
func TestKilledWhileExecsBegin(t *testing.T) {
	h := newHost(t)
	for range 6 {
		s := h.spec("sleep")
		h.runReady(s)
		stop := executing(h, s.ID)
		if err := h.c.Signal(h.ctx(), s.ID, "", int(unix.SIGKILL), false); err != nil {
			t.Fatal(err)
		}
		mustExit(t, h.exit(s.ID, ""), 137)
		stop()
		if err := h.c.Delete(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDeletedWhileExecsBegin: health checks come whenever they like. A container that ends in the middle of one is deleted
// whole all the same, and can be made anew at once, as a restart does.
func TestDeletedWhileExecsBegin(t *testing.T) {
	h := newHost(t)
	for range 25 {
		s := h.spec("sleep")
		h.runReady(s)
		stop := executing(h, s.ID)
		if err := h.c.Delete(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
		h.run(s)
		stop()
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

// TestKilledBetweenChildAndReport: what makes a process in a container is killed when it has made it and not yet said so.
// The child is not left: as long as it is there, unreaped, its container cannot end.
func TestKilledBetweenChildAndReport(t *testing.T) {
	h := newHostWith(t, "keeper.enter.started=stop")
	s := h.spec("sleep")
	h.runReady(s)
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	var exec sync.WaitGroup
	exec.Go(func() {
		if _, err := h.c.Exec(h.ctx(), keeper.Process{Container: s.ID, ExecID: newID(), Process: mustJSON(process("exit", "0"))}); err != nil {
			t.Errorf("it was not started the long way: %v", err)
		}
	})
	h.eventually("the keeper stopped", func() bool { return state(h.c.PID()) == "T" })
	maker := 0
	for _, pid := range children(h.c.PID()) {
		if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); string(line) == "sampan-keeper\x00enter\x00" {
			maker = pid
		}
	}
	const traced = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(maker), 0, traced, 0, 0); errno != 0 {
		t.Fatalf("tracing %d: %v", maker, errno)
	}
	if err := unix.Kill(h.c.PID(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(maker, nil, unix.WALL, nil); err != nil { // it has made the child
		t.Fatal(err)
	}
	child, err := unix.PtraceGetEventMsg(maker)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(int(child), nil, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	if err := unix.PtraceDetach(int(child)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(maker, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(maker, nil, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	exec.Wait()
	h.eventually("the child is reaped", func() bool { return state(int(child)) == "" })
}
