package keeper_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/keeper"
)

// libcSignals are 32 to 34, which C libraries keep to themselves: whether they are ignored is inherited from whoever ran
// the test, and means nothing to a program.
const libcSignals = 0b111 << 31

// ignored returns the signals that a process ignores, as the mask in /proc, less the C library's own.
func ignored(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`SigIgn:\s*(\S+)`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no SigIgn in\n%s", text)
	}
	mask, err := strconv.ParseUint(string(m[1]), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%016x", mask&^libcSignals)
}

// TestContainersIgnoreNoSignal: whatever the keeper was started with and became since, a container's process ignores no
// signal that it did not choose to: `docker kill -s HUP` ends it.
func TestContainersIgnoreNoSignal(t *testing.T) {
	h := newHost(t)
	if err := h.c.Shutdown(h.ctx()); err != nil {
		t.Fatal(err)
	}
	// As nohup, a shell's background jobs and earlier keepers leave it.
	script := filepath.Join(t.TempDir(), "keeper")
	text := fmt.Sprintf("#!/bin/sh\ntrap '' HUP INT QUIT PIPE TERM USR1\nexec %s \"$@\"\n", keeperBinary)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	h.cfg.Binary = script
	h.connect()
	for _, when := range []string{"started while they were ignored", "upgraded", "upgraded again"} {
		s := h.spec("sleep")
		st := h.runReady(s)
		if got := ignored(t, st.PID); got != "0000000000000000" {
			t.Errorf("%s: a container ignores %s", when, got)
		}
		if got := ignored(t, h.c.PID()); got != "0000000000000000" {
			t.Errorf("%s: the keeper ignores %s", when, got)
		}
		// The keeper itself outlives them.
		for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT} {
			if err := unix.Kill(h.c.PID(), sig); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.c.Signal(h.ctx(), s.ID, "", int(unix.SIGTERM), false); err != nil {
			t.Fatal(err)
		}
		mustExit(t, h.exit(s.ID, ""), 7)
		if err := h.c.Delete(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
		if err := h.c.Upgrade(h.ctx(), keeperBinary); err != nil {
			t.Fatal(err)
		}
	}
}

// TestExecWaitsForItsInput: an exec reads as soon as it runs, which is before the keeper and the client have their ends.
func TestExecWaitsForItsInput(t *testing.T) {
	h := newHostWith(t, "keeper.launch.runs=stop")
	stopped := func() { h.eventually("the keeper stopped", func() bool { return state(h.c.PID()) == "T" }) }
	goOn := func() {
		if err := unix.Kill(h.c.PID(), unix.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	s := h.spec("sleep")
	var wg sync.WaitGroup
	wg.Go(func() { stopped(); goOn() })
	h.run(s)
	wg.Wait()
	p := keeper.Process{Container: s.ID, ExecID: newID(), OpenStdin: true, Process: mustJSON(process("cat"))}
	wg.Go(func() {
		stopped()
		pid := slices.Max(children(h.c.PID()))
		h.eventually("the exec waits for input, or has taken the pipe for ended", func() bool {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			call, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
			return string(line) == "/tool\x00cat\x00" && strings.HasPrefix(string(call), "0 0x0 ") || state(pid) == "Z"
		})
		goOn()
	})
	if _, err := h.c.Exec(h.ctx(), p); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	a := h.attach(keeper.AttachOptions{ID: s.ID, ExecID: p.ExecID, Stdin: true, Stdout: true})
	_, _ = io.WriteString(a.Stdin(), "input")
	_ = a.CloseWrite()
	if out, _ := readAll(t, a); out != "input" {
		t.Errorf("the exec gave back %q", out)
	}
	mustExit(t, h.exit(s.ID, p.ExecID), 0)
}

// state is the letter of a process' state, "" if there is no such process.
func state(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	letter, _, _ := strings.Cut(after, " ")
	return letter
}

// children are the processes whose parent pid is.
func children(pid int) (list []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range tasks {
		text, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				list = append(list, child)
			}
		}
	}
	return list
}
