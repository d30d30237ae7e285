package keeper_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/testhost"
)

// freezers freeze or thaw a container's control groups behind the keeper's back, by version of cgroups.
func freezers(h *host, id string) map[string]func(frozen bool) {
	h.t.Helper()
	all := map[string]func(bool){}
	add := func(version, group, file, freeze, thaw, told, frozenText, thawedText string) {
		if _, err := os.Stat(filepath.Join(group, file)); err != nil {
			return
		}
		all[version] = func(frozen bool) {
			h.t.Helper()
			value, want := thaw, thawedText
			if frozen {
				value, want = freeze, frozenText
			}
			if err := os.WriteFile(filepath.Join(group, file), []byte(value), 0); err != nil {
				h.t.Fatal(err)
			}
			h.eventually("it is "+want, func() bool {
				text, _ := os.ReadFile(filepath.Join(group, told))
				return strings.Contains(string(text), want)
			})
		}
	}
	for _, group := range cgroupDirs() {
		if filepath.Base(group) == id {
			add("version 1", group, "freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN", "THAWED")
			add("version 2", group, "cgroup.freeze", "1", "0", "cgroup.events", "frozen 1", "frozen 0")
		}
	}
	if len(all) == 0 {
		h.t.Fatal("no control group of the container can be frozen")
	}
	return all
}

// execIn is an exec that ends at once. It comes into its container by the short way, with a terminal by libcontainer's init.
func execIn(id string, terminal bool) keeper.Process {
	p := process("exit", "0")
	p.Terminal = terminal
	return keeper.Process{Container: id, ExecID: newID(), Process: mustJSON(p), Terminal: terminal}
}

var kindsOfExec = map[string]bool{"an exec": false, "an exec with a terminal": true}

// TestExecInAFrozenGroup: a container whose control group was frozen behind the keeper's back (one that is privileged can do
// that itself) gets no process, which would be made and not get on.
func TestExecInAFrozenGroup(t *testing.T) {
	h := newHost(t)
	s := h.spec("sleep")
	h.runReady(s)
	for version, freeze := range freezers(h, s.ID) {
		freeze(true)
		bound, cancel := context.WithTimeout(h.ctx(), testhost.Patient(5*time.Second))
		_, err := h.c.Exec(bound, execIn(s.ID, false))
		cancel()
		freeze(false)
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: an exec in a frozen group: %v", version, err)
		}
		h.output(s.ID, process("pid"))
	}
}

// TestFrozenWhileAnExecBegins: a container that is frozen when an exec in it has been let in and not begun yet holds up
// nobody else, and that exec only for a moment; what was made of it is gone when the container is thawed.
func TestFrozenWhileAnExecBegins(t *testing.T) {
	for name, terminal := range kindsOfExec {
		t.Run(name, func(t *testing.T) {
			h := newHostWith(t, "keeper.exec.checked=stop")
			s := h.spec("sleep")
			h.runReady(s)
			for version, freeze := range freezers(h, s.ID) {
				before := len(children(h.c.PID()))
				bound, cancel := context.WithTimeout(h.ctx(), testhost.Patient(20*time.Second))
				var exec sync.WaitGroup
				var err error
				exec.Go(func() { _, err = h.c.Exec(bound, execIn(s.ID, terminal)) })
				h.eventually("the keeper has stopped", func() bool { return state(h.c.PID()) == "T" })
				freeze(true)
				if err := unix.Kill(h.c.PID(), unix.SIGCONT); err != nil {
					t.Fatal(err)
				}
				exec.Wait()
				cancel()
				if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "frozen") {
					t.Errorf("%s: the exec: %v", version, err)
				}
				other := h.spec("sleep")
				h.runReady(other)
				if err := h.c.Delete(h.ctx(), other.ID); err != nil {
					t.Fatal(err)
				}
				freeze(false)
				h.eventually("nothing is left of the exec", func() bool { return len(children(h.c.PID())) == before })
			}
		})
	}
}

// TestPausedWhileExecsBegin: a pause that meets execs leaves none half-way until the container goes on: each has begun or is
// refused. Nobody else notices.
func TestPausedWhileExecsBegin(t *testing.T) {
	h := newHost(t)
	s := h.spec("sleep")
	h.runReady(s)
	for round := range 6 {
		var execs sync.WaitGroup
		begun := make(chan struct{}, 64)
		bound, cancel := context.WithTimeout(h.ctx(), testhost.Patient(20*time.Second))
		for i := range 4 {
			execs.Go(func() {
				for {
					_, err := h.c.Exec(bound, execIn(s.ID, i == 0))
					if fault.Is(err, fault.Conflict) { // on a slow machine also one on its way, which the pause did not wait for
						return
					}
					if err != nil {
						t.Errorf("round %d: %v", round, err)
						return
					}
					select {
					case begun <- struct{}{}:
					default:
					}
				}
			})
		}
		for range 1 + round {
			<-begun
		}
		if err := h.c.Pause(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
		execs.Wait()
		cancel()
		if err := h.c.Resume(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUpgradeBesideAStopper: a container that stops each process that is put into it does not keep the keeper from becoming
// another program.
func TestUpgradeBesideAStopper(t *testing.T) {
	for name, terminal := range kindsOfExec {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			s := h.spec("stopper")
			h.runReady(s)
			// arriving are the processes on their way into the container; one that is let in before it was stopped is an exec
			// like any other.
			arriving := func() []int {
				pids := children(h.c.PID())
				list, err := h.c.List(h.ctx())
				if err != nil {
					t.Error(err)
				}
				return slices.DeleteFunc(pids, func(pid int) bool {
					return slices.ContainsFunc(list, func(st keeper.Status) bool { return st.PID == pid })
				})
			}
			stopped := func() bool {
				return slices.ContainsFunc(arriving(), func(pid int) bool { return state(pid) == "T" })
			}
			ctx, cancel := context.WithCancel(h.ctx())
			var exec sync.WaitGroup
			exec.Go(func() {
				for !stopped() && ctx.Err() == nil { // now and then one slips through
					_, _ = h.c.Exec(ctx, execIn(s.ID, terminal))
				}
			})
			h.eventually("an exec is held up", stopped)
			bound, cancelBound := context.WithTimeout(h.ctx(), testhost.Patient(25*time.Second))
			defer cancelBound()
			if err := h.c.Upgrade(bound, keeperBinary); err != nil {
				t.Errorf("the upgrade: %v", err)
			}
			cancel()
			exec.Wait()
			h.eventually("nothing is left of the exec", func() bool { return len(arriving()) == 0 })
		})
	}
}
