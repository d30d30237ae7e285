package keeper_test

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/testhost"
)

// busy is a container of processes that do nothing but compute, with a share of the CPU. They end with the test, whatever
// has become of their container.
func (h *host) busy(processes int, cpu string) keeper.Spec {
	h.t.Helper()
	s := h.spec("busy", strconv.Itoa(processes))
	h.t.Cleanup(func() { endGroups(s.ID) })
	h.runReady(s)
	if err := h.c.Update(h.ctx(), s.ID, json.RawMessage(`{"cpu":`+cpu+`}`)); err != nil {
		h.t.Fatal(err)
	}
	return s
}

// endGroups thaws the control groups of a container and kills what is in them.
func endGroups(id string) {
	for _, group := range groupsOf(id) {
		_ = os.WriteFile(filepath.Join(group, "freezer.state"), []byte("THAWED"), 0)
		_ = os.WriteFile(filepath.Join(group, "cgroup.freeze"), []byte("0"), 0)
	}
	for _, pid := range groupProcesses(id) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// groupProcesses are the processes in the control groups of a container.
func groupProcesses(id string) []int {
	var pids []int
	for _, group := range groupsOf(id) {
		text, _ := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		for line := range strings.Lines(string(text)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// cpuLimits are the limits that a container's groups have on the CPU, by file.
func cpuLimits(id string) map[string]string {
	limits := map[string]string{}
	for _, group := range groupsOf(id) {
		for _, file := range []string{"cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.weight", "cpu.max"} {
			if text, err := os.ReadFile(filepath.Join(group, file)); err == nil {
				limits[file] = strings.TrimSpace(string(text))
			}
		}
	}
	return limits
}

// hardlyRuns are limits with which a process comes to its next step late.
var hardlyRuns = map[string]string{
	"few shares beside who has many": `{"shares":2}`,
	"throttled":                      `{"quota":1000,"period":1000000}`,
}

// TestPauseOfWhatHardlyRuns: a process is frozen when it gets to run next. Many of them with next to nothing of the CPU are
// paused all the same, and have no more of it afterwards than before.
func TestPauseOfWhatHardlyRuns(t *testing.T) {
	for name, cpu := range hardlyRuns {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			s := h.busy(100, cpu)
			h.busy(4, `{"shares":262144}`)
			before := cpuLimits(s.ID)
			for range 3 {
				if err := h.c.Pause(h.ctx(), s.ID); err != nil {
					t.Fatal(err)
				}
				if st, err := h.c.Status(h.ctx(), s.ID, ""); err != nil || !st.Paused {
					t.Errorf("paused: %+v %v", st, err)
				}
				if after := cpuLimits(s.ID); len(before) == 0 || !maps.Equal(before, after) {
					t.Errorf("limits %v while it is paused, %v before", after, before)
				}
				if err := h.c.Resume(h.ctx(), s.ID); err != nil {
					t.Fatal(err)
				}
			}
			// As throttled it would take long to end.
			if err := h.c.Update(h.ctx(), s.ID, json.RawMessage(`{"cpu":{"quota":-1}}`)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPauseOfWhatBecomesAnother: a process with threads that becomes another program can be paused whenever that is. With
// version 1 of cgroups it waits for its threads and does not stop, and they, once frozen, do not end.
func TestPauseOfWhatBecomesAnother(t *testing.T) {
	h := newHost(t)
	s := h.spec("changer", "20")
	h.t.Cleanup(func() { endGroups(s.ID) })
	h.runReady(s)
	for range 10 {
		if err := h.c.Pause(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
		if err := h.c.Resume(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeeperDiesInAPause: a pause in which the keeper is killed is taken back by the next one, which is asked again, and the
// limits that were lifted for it are what they were.
func TestKeeperDiesInAPause(t *testing.T) {
	h := newHostWith(t, "keeper.pause.lifted=kill")
	s := h.busy(100, `{"shares":2}`)
	h.busy(4, `{"shares":262144}`)
	before, first := cpuLimits(s.ID), h.c.PID()
	if err := h.c.Pause(h.ctx(), s.ID); err != nil {
		t.Fatal(err)
	}
	if now := h.c.PID(); now == first {
		t.Error("the keeper was not killed")
	}
	if after := cpuLimits(s.ID); !maps.Equal(before, after) {
		t.Errorf("limits %v after the pause, %v before", after, before)
	}
	if err := h.c.Resume(h.ctx(), s.ID); err != nil {
		t.Fatal(err)
	}
	for file, state := range frozenFiles(s.ID) {
		if state != "THAWED" && state != "0" {
			t.Errorf("%s: %s", file, state)
		}
	}
}

// frozenFiles is what the groups of a container say of being frozen by themselves, by file.
func frozenFiles(id string) map[string]string {
	states := map[string]string{}
	for _, group := range groupsOf(id) {
		for _, file := range []string{"freezer.state", "cgroup.freeze"} {
			if text, err := os.ReadFile(filepath.Join(group, file)); err == nil {
				states[filepath.Join(group, file)] = strings.TrimSpace(string(text))
			}
		}
	}
	return states
}

// TestUpdateOfWhatWasPaused: a change of limits while a container is paused, or later with another keeper, leaves it paused
// or not as it is.
func TestUpdateOfWhatWasPaused(t *testing.T) {
	h := newHost(t)
	s := h.spec("sleep")
	h.runReady(s)
	paused := func(want bool) {
		t.Helper()
		if err := h.c.Update(h.ctx(), s.ID, json.RawMessage(`{"pids":{"limit":77}}`)); err != nil {
			t.Fatal(err)
		}
		got := false
		for _, state := range frozenFiles(s.ID) {
			got = got || state == "FROZEN" || state == "1"
		}
		if got != want {
			t.Errorf("paused %v, want %v", got, want)
		}
	}
	for range 2 {
		if err := h.c.Pause(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
		paused(true)
		if err := h.c.Resume(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	first := h.c.PID()
	h.kill9(first)
	h.eventually("a new keeper is there", func() bool { now := h.c.PID(); return now != 0 && now != first })
	paused(false)
}

// parentGroup makes a control group for containers in every hierarchy, and returns its path in them. It is removed, and
// those in it with it, before the host's end.
func parentGroup(h *host) string {
	h.t.Helper()
	name := "parent-" + newID()[:8]
	hierarchies, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		hierarchies = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	for _, procs := range hierarchies {
		if err := os.MkdirAll(filepath.Join(filepath.Dir(procs), cgroupParent, name), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	h.t.Cleanup(func() {
		endGroups(name)
		list, _ := h.c.List(h.ctx())
		for _, st := range list { // of a test that failed
			_ = h.c.Delete(h.ctx(), st.ID)
		}
		for _, dir := range cgroupDirs() {
			if strings.Contains(dir, name) {
				_ = os.Remove(dir)
			}
		}
	})
	return filepath.Join(cgroupParent, name)
}

// below is a container that sleeps in a group below another.
func (h *host) below(parent string) keeper.Spec {
	s := h.spec("sleep")
	s.Bundle = bundle(s.ID, func(spec *specs.Spec) { spec.Linux.CgroupsPath = filepath.Join(parent, s.ID) }, "sleep")
	return s
}

// TestStartBelowAFrozenGroup: nothing starts below a frozen group; that is said at once, with what to do.
func TestStartBelowAFrozenGroup(t *testing.T) {
	h := newHost(t)
	parent := parentGroup(h)
	for version, freeze := range freezers(h, filepath.Base(parent)) {
		freeze(true)
		for _, s := range []keeper.Spec{h.below(parent), h.below(parent + "/not/yet")} {
			bound, cancel := context.WithTimeout(h.ctx(), testhost.Patient(5*time.Second))
			_, err := h.c.Create(bound, s)
			cancel()
			if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), parent+"/") || !strings.Contains(err.Error(), "thaw") {
				t.Errorf("%s: %v", version, err)
			}
			if groups := groupsOf(s.ID); len(groups) > 0 {
				t.Errorf("%s: left behind: %v", version, groups)
			}
		}
		freeze(false)
		s := h.below(parent)
		h.runReady(s)
		h.delete(s.ID)
	}
}

// TestFrozenWhileAStartBegins: a start that meets the freezing of a group above it ends, and leaves nothing that would go on
// when that is thawed.
func TestFrozenWhileAStartBegins(t *testing.T) {
	h := newHostWith(t, "keeper.create.checked=stop")
	parent := parentGroup(h)
	for version, freeze := range freezers(h, filepath.Base(parent)) {
		s := h.below(parent)
		var create sync.WaitGroup
		var err error
		bound, cancel := context.WithTimeout(h.ctx(), testhost.Patient(20*time.Second))
		create.Go(func() { _, err = h.c.Create(bound, s) })
		h.eventually("the keeper has stopped", func() bool { return state(h.c.PID()) == "T" })
		freeze(true)
		if err := unix.Kill(h.c.PID(), unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		create.Wait()
		cancel()
		if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "thaw") {
			t.Errorf("%s: %v", version, err)
		}
		h.eventually("nothing is left of the start", func() bool { return len(children(h.c.PID())) == 0 && len(groupsOf(s.ID)) == 0 })
		freeze(false)
	}
}

// TestEndBelowAFrozenGroup: what is frozen by a group above it is killed and deleted like any other container, at each step
// of its life.
func TestEndBelowAFrozenGroup(t *testing.T) {
	h := newHost(t)
	parent := parentGroup(h)
	versions := freezers(h, filepath.Base(parent))
	for _, version := range slices.Sorted(maps.Keys(versions)) {
		freeze := versions[version]
		created, running, paused, shared := h.below(parent), h.below(parent), h.below(parent), h.below(parent)
		h.create(created)
		h.runReady(running)
		h.runReady(paused)
		h.runReady(shared)
		if version == "version 1" || len(versions) == 1 { // what version 1 has frozen does not count as that for version 2
			if err := h.c.Pause(h.ctx(), paused.ID); err != nil {
				t.Fatal(err)
			}
		}
		freeze(true)
		bound, cancel := context.WithTimeout(h.ctx(), testhost.Patient(20*time.Second))
		if _, err := h.c.Start(bound, created.ID); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "thaw") {
			t.Errorf("%s: the start of one that was created before: %v", version, err)
		}
		for _, s := range []keeper.Spec{running, paused} {
			if err := h.c.Signal(bound, s.ID, "", int(unix.SIGKILL), false); err != nil {
				t.Errorf("%s: %v", version, err)
			}
			mustExit(t, h.exit(s.ID, ""), 137)
		}
		for _, s := range []keeper.Spec{created, running, paused, shared} {
			if err := h.c.Delete(bound, s.ID); err != nil {
				t.Errorf("%s: %v", version, err)
			}
		}
		cancel()
		freeze(false)
	}
}

// TestEndOfAGroupFrozenInside: a container that runs others, and has one of them paused, dies when it is killed.
func TestEndOfAGroupFrozenInside(t *testing.T) {
	h := newHost(t)
	s := h.spec("busy", "1")
	h.t.Cleanup(func() { endGroups(s.ID) })
	h.runReady(s)
	pids := groupProcesses(s.ID)
	for _, group := range groupsOf(s.ID) {
		inner := filepath.Join(group, "inner")
		for _, file := range []string{"freezer.state", "cgroup.freeze"} {
			if _, err := os.Stat(filepath.Join(group, file)); err != nil {
				continue
			}
			if err := os.Mkdir(inner, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(inner, "cgroup.procs"), []byte(strconv.Itoa(slices.Max(pids))), 0); err != nil {
				t.Fatal(err)
			}
			text := "FROZEN"
			if file == "cgroup.freeze" {
				text = "1"
			}
			if err := os.WriteFile(filepath.Join(inner, file), []byte(text), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	bound, cancel := context.WithTimeout(h.ctx(), testhost.Patient(20*time.Second))
	defer cancel()
	if err := h.c.Signal(bound, s.ID, "", int(unix.SIGKILL), false); err != nil {
		t.Fatal(err)
	}
	mustExit(t, h.exit(s.ID, ""), 137)
	if err := h.c.Delete(bound, s.ID); err != nil {
		t.Error(err)
	}
}

// TestContainerBelowAnother: a container whose control group is below another's stays paused when the other is killed, and
// ends soon when the other, with its group, is deleted.
func TestContainerBelowAnother(t *testing.T) {
	h := newHost(t)
	upper := h.below(cgroupParent)
	h.runReady(upper)
	lower := h.below(filepath.Join(cgroupParent, upper.ID))
	h.runReady(lower)
	if err := h.c.Pause(h.ctx(), lower.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.c.Signal(h.ctx(), upper.ID, "", int(unix.SIGKILL), false); err != nil {
		t.Fatal(err)
	}
	mustExit(t, h.exit(upper.ID, ""), 137)
	for file, state := range frozenFiles(lower.ID) {
		if (strings.HasSuffix(file, ".state") || len(frozenFiles(lower.ID)) == 1) && state != "FROZEN" && state != "1" {
			t.Errorf("the lower one's %s: %s", file, state)
		}
	}
	bound, cancel := context.WithTimeout(h.ctx(), testhost.Patient(5*time.Second))
	defer cancel()
	if err := h.c.Delete(bound, upper.ID); err != nil {
		t.Error(err)
	}
	mustExit(t, h.exit(lower.ID, ""), 137)
}

// groupsOf are the folders of a container's control groups.
func groupsOf(id string) []string {
	return slices.DeleteFunc(cgroupDirs(), func(dir string) bool { return filepath.Base(dir) != id })
}

func (h *host) delete(id string) {
	h.t.Helper()
	if err := h.c.Delete(h.ctx(), id); err != nil {
		h.t.Fatal(err)
	}
}
