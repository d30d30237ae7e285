package keeper_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

func TestExitCodes(t *testing.T) {
	h := newHost(t)
	for _, tc := range []struct {
		name string
		args []string
		sig  int
		want int
	}{
		{name: "success", args: []string{"exit", "0"}},
		{name: "three", args: []string{"exit", "3"}, want: 3},
		{name: "killed", args: []string{"sleep"}, sig: 9, want: 137},
		{name: "ends on SIGTERM", args: []string{"sleep"}, sig: 15, want: 7},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := h.spec(tc.args...)
			st := h.create(s)
			if st.State != keeper.Created || st.PID == 0 {
				t.Fatalf("created: %+v", st)
			}
			out := h.attach(keeper.AttachOptions{ID: s.ID, Stdout: true})
			st = h.start(s.ID)
			if st.State == keeper.Created || st.StartedAt.IsZero() {
				t.Errorf("started: %+v", st)
			}
			if tc.sig != 0 {
				readUntil(t, out, "ready\n")
				if err := h.c.Signal(h.ctx(), s.ID, "", tc.sig, false); err != nil {
					t.Fatal(err)
				}
			}
			mustExit(t, h.exit(s.ID, ""), tc.want)
			st, err := h.c.Status(h.ctx(), s.ID, "")
			if err != nil {
				t.Fatal(err)
			}
			mustExit(t, st, tc.want)
			if err := h.c.Delete(h.ctx(), s.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := h.c.Status(h.ctx(), s.ID, ""); !fault.Is(err, fault.NotFound) {
				t.Errorf("after Delete: %v", err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	h := newHost(t)
	missing := h.spec("exit", "0")
	missing.Bundle = bundle(missing.ID, func(s *specs.Spec) { s.Process.Args = []string{"/no-such-program"} })
	if _, err := h.c.Create(h.ctx(), missing); err == nil {
		_, err = h.c.Start(h.ctx(), missing.ID)
		t.Errorf("a program that is not there: created; start says %v", err)
	} else if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("a program that is not there: %v", err)
	}
	bad := h.spec("exit", "0")
	bad.Bundle = json.RawMessage(`{"root":null}`)
	if _, err := h.c.Create(h.ctx(), bad); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("bad spec: %v", err)
	}
	evil := h.spec("exit", "0")
	evil.ID = "../../etc"
	if _, err := h.c.Create(h.ctx(), evil); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("bad ID: %v", err)
	}
	s := h.spec("sleep")
	h.create(s)
	if _, err := h.c.Create(h.ctx(), s); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := h.c.Exec(h.ctx(), keeper.Process{Container: s.ID, ExecID: newID(), Process: mustJSON(process("exit", "0"))}); !fault.Is(err, fault.Conflict) {
		t.Errorf("exec in a container that does not run: %v", err)
	}
	h.start(s.ID)
	if _, err := h.c.Start(h.ctx(), s.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("started twice: %v", err)
	}
	if err := h.c.Shutdown(h.ctx()); !fault.Is(err, fault.Conflict) {
		t.Errorf("shutdown with a container: %v", err)
	}
	if _, err := h.c.Attach(h.ctx(), keeper.AttachOptions{ID: newID()}); !fault.Is(err, fault.NotFound) {
		t.Errorf("attach to nothing: %v", err)
	}
	if list, err := h.c.List(h.ctx()); err != nil || len(list) != 1 {
		t.Errorf("List: %v %v: what was refused stayed", list, err)
	}
}

func mustJSON(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

func TestStreams(t *testing.T) {
	h := newHost(t)
	s := h.spec("both")
	h.create(s)
	a := h.attach(keeper.AttachOptions{ID: s.ID, Stdout: true, Stderr: true})
	b := h.attach(keeper.AttachOptions{ID: s.ID, Stderr: true})
	h.start(s.ID)
	if out, err := readAll(t, a); out != "to stdout\n" || err != "to stderr\n" {
		t.Errorf("first client: %q %q", out, err)
	}
	if out, err := readAll(t, b); out != "" || err != "to stderr\n" {
		t.Errorf("second client: %q %q", out, err)
	}
	h.exit(s.ID, "")
	streams := map[string]string{}
	for _, e := range logEntries(t, s.Log.Path) {
		streams[e.Stream] += e.Log
	}
	if streams["stdout"] != "to stdout\n" || streams["stderr"] != "to stderr\n" {
		t.Errorf("log: %q", streams)
	}
}

func TestStdin(t *testing.T) {
	h := newHost(t)
	s := h.spec("cat")
	s.OpenStdin, s.StdinOnce = true, true
	h.create(s)
	a := h.attach(keeper.AttachOptions{ID: s.ID, Stdin: true, Stdout: true})
	h.start(s.ID)
	text := strings.Repeat("0123456789abcde\n", 20000)
	go func() {
		_, _ = io.WriteString(a.Stdin(), text)
		_ = a.CloseWrite()
	}()
	if out, _ := readAll(t, a); out != text {
		t.Errorf("%d bytes came back, want %d", len(out), len(text))
	}
	mustExit(t, h.exit(s.ID, ""), 0)

	// Without StdinOnce the input stays open for the next client.
	s = h.spec("cat")
	s.OpenStdin = true
	h.run(s)
	for _, line := range []string{"first\n", "second\n"} {
		a := h.attach(keeper.AttachOptions{ID: s.ID, Stdin: true, Stdout: true})
		_, _ = io.WriteString(a.Stdin(), line)
		readUntil(t, a, line)
		_ = a.CloseWrite()
		_ = a.Close()
	}
	if st, err := h.c.Status(h.ctx(), s.ID, ""); err != nil || st.State != keeper.Running {
		t.Errorf("after the clients have gone: %+v %v", st, err)
	}
}

func TestTerminal(t *testing.T) {
	h := newHost(t)
	s := h.spec("tty")
	s.Terminal, s.OpenStdin = true, true
	s.Bundle = bundle(s.ID, func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Process.ConsoleSize = &specs.Box{Height: 30, Width: 100}
	}, "tty")
	h.create(s)
	a := h.attach(keeper.AttachOptions{ID: s.ID, Stdin: true, Stdout: true})
	h.start(s.ID)
	if got := readUntil(t, a, "\r\nsize 30x100\r\n"); !strings.HasPrefix(got, "tty\r\n") {
		t.Errorf("output %q", got)
	}
	if err := h.c.Resize(h.ctx(), s.ID, "", 11, 22); err != nil {
		t.Fatal(err)
	}
	readUntil(t, a, "size 11x22\r\n")
	_, _ = io.WriteString(a.Stdin(), "typed")
	readUntil(t, a, "typed") // the terminal's echo
	if err := h.c.Signal(h.ctx(), s.ID, "", 15, false); err != nil {
		t.Fatal(err)
	}
	readAll(t, a)
	mustExit(t, h.exit(s.ID, ""), 7)
}

func TestExec(t *testing.T) {
	h := newHost(t)
	s := h.spec("sleep")
	h.run(s)
	exec := func(p keeper.Process) keeper.Process {
		p.Container, p.ExecID = s.ID, newID()
		st, err := h.c.Exec(h.ctx(), p)
		if err != nil {
			t.Fatalf("Exec: %v", err)
		}
		if st.PID == 0 && st.State != keeper.Exited {
			t.Errorf("exec %+v", st)
		}
		return p
	}
	// What is printed before the first attach is not lost, nor after the process has ended.
	p := exec(keeper.Process{Process: mustJSON(process("print", "hello ", "there"))})
	mustExit(t, h.exit(s.ID, p.ExecID), 0)
	if out, _ := readAll(t, h.attach(keeper.AttachOptions{ID: s.ID, ExecID: p.ExecID, Stdout: true})); out != "hello there" {
		t.Errorf("exec printed %q", out)
	}
	p = exec(keeper.Process{Process: mustJSON(process("exit", "4"))})
	mustExit(t, h.exit(s.ID, p.ExecID), 4)

	p = exec(keeper.Process{OpenStdin: true, Process: mustJSON(process("cat"))})
	a := h.attach(keeper.AttachOptions{ID: s.ID, ExecID: p.ExecID, Stdin: true, Stdout: true})
	_, _ = io.WriteString(a.Stdin(), "through the exec")
	_ = a.CloseWrite()
	if out, _ := readAll(t, a); out != "through the exec" {
		t.Errorf("exec gave back %q", out)
	}
	mustExit(t, h.exit(s.ID, p.ExecID), 0)

	tty := process("tty")
	tty.Terminal = true
	p = exec(keeper.Process{Terminal: true, OpenStdin: true, Process: mustJSON(tty)})
	a = h.attach(keeper.AttachOptions{ID: s.ID, ExecID: p.ExecID, Stdout: true})
	if err := h.c.Resize(h.ctx(), s.ID, p.ExecID, 5, 6); err != nil {
		t.Fatal(err)
	}
	readUntil(t, a, "size 5x6\r\n")
	if err := h.c.Signal(h.ctx(), s.ID, p.ExecID, 9, false); err != nil {
		t.Fatal(err)
	}
	mustExit(t, h.exit(s.ID, p.ExecID), 137)

	missing := process()
	missing.Args = []string{"/nothing"}
	if _, err := h.c.Exec(h.ctx(), keeper.Process{Container: s.ID, ExecID: newID(), Process: mustJSON(missing)}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("exec of a program that is not there: %v", err)
	}
	// An exec nobody attaches to is not held up however much it prints.
	p = exec(keeper.Process{Process: mustJSON(process("spew", "3000000"))})
	mustExit(t, h.exit(s.ID, p.ExecID), 0)
}

func TestPauseUpdateSignalAll(t *testing.T) {
	h := newHost(t)
	s := h.spec("sleep")
	h.runReady(s)
	a := h.attach(keeper.AttachOptions{ID: s.ID, Stdout: true})
	if err := h.c.Pause(h.ctx(), s.ID); err != nil {
		t.Fatal(err)
	}
	if st, _ := h.c.Status(h.ctx(), s.ID, ""); !st.Paused {
		t.Errorf("paused: %+v", st)
	}
	if _, err := h.c.Exec(h.ctx(), keeper.Process{Container: s.ID, ExecID: newID(), Process: mustJSON(process("exit", "0"))}); !fault.Is(err, fault.Conflict) {
		t.Errorf("exec in a paused container: %v", err)
	}
	// The signal waits until it is thawed.
	if err := h.c.Signal(h.ctx(), s.ID, "", int(unix.SIGUSR1), true); err != nil {
		t.Fatal(err)
	}
	if err := h.c.Resume(h.ctx(), s.ID); err != nil {
		t.Fatal(err)
	}
	readUntil(t, a, "line 1\n")
	if err := h.c.Update(h.ctx(), s.ID, json.RawMessage(`{"pids":{"limit":77}}`)); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, dir := range cgroupDirs() {
		if text, err := os.ReadFile(filepath.Join(dir, "pids.max")); err == nil && filepath.Base(dir) == s.ID {
			found = true
			if strings.TrimSpace(string(text)) != "77" {
				t.Errorf("pids.max %q", text)
			}
		}
	}
	if !found {
		t.Error("no pids.max found")
	}
	st, err := h.c.Exec(h.ctx(), keeper.Process{Container: s.ID, ExecID: newID(), Process: mustJSON(process("exit", "0"))})
	if err != nil {
		t.Fatalf("exec after an update: %v", err)
	}
	mustExit(t, h.exit(s.ID, st.ExecID), 0)
	// A paused container can be killed and deleted.
	if err := h.c.Pause(h.ctx(), s.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.c.Delete(h.ctx(), s.ID); err != nil {
		t.Fatal(err)
	}
	mustExit(t, h.exit(s.ID, ""), 137)
}

// spew is what the tool prints.
func spew(n int) []byte {
	x := uint64(88172645463325252)
	out := make([]byte, n)
	for i := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		c := byte(x >> 32)
		if (i/100000)%2 == 1 && c == '\n' {
			c = '.'
		}
		out[i] = c
	}
	return out
}

// dockerEntries is what dockerd's json-file has for these bytes, up to the time of each entry.
func dockerEntries(p []byte) []string {
	var out []string
	add := func(line []byte, newline string) {
		text, _ := json.Marshal(string(line) + newline)
		// Docker's encoder has no short forms for these three.
		s := strings.NewReplacer(`\\`, `\\`, `\b`, `\u0008`, `\f`, `\u000c`, `\t`, `\u0009`).Replace(string(text))
		out = append(out, `{"log":`+s+`,"stream":"stdout","attrs":{"tag":"t"},"time":"`)
	}
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		switch {
		case i >= 0 && i < 16384:
			add(p[:i], "\n")
			p = p[i+1:]
		case len(p) >= 16384:
			add(p[:16384], "")
			p = p[16384:]
		default:
			add(p, "")
			p = nil
		}
	}
	return out
}

func TestLogIsDockersByteForByte(t *testing.T) {
	h := newHost(t)
	const size = 5 << 20
	want := dockerEntries(spew(size))
	for _, maxSize := range []int64{0, 1 << 20} {
		t.Run(fmt.Sprint("max-size ", maxSize), func(t *testing.T) {
			s := h.spec("spew", strconv.Itoa(size))
			s.Log.Attrs = map[string]string{"tag": "t"}
			s.Log.MaxSize, s.Log.MaxFiles = maxSize, 100
			h.run(s)
			mustExit(t, h.exit(s.ID, ""), 0)
			files, _ := filepath.Glob(s.Log.Path + "*")
			if maxSize > 0 && len(files) < 5 {
				t.Errorf("files %v: no rotation", files)
			}
			slices.SortFunc(files, func(a, b string) int { return number(b) - number(a) })
			var got []string
			for _, f := range files {
				text, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				if number(f) > 0 {
					last := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
					if int64(len(text)) < maxSize || int64(last) >= maxSize {
						t.Errorf("%s has %d bytes, its last entry begins at %d: rotated too early or too late", f, len(text), last)
					}
				}
				got = append(got, strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")...)
			}
			if len(got) != len(want) {
				t.Fatalf("%d entries, want %d", len(got), len(want))
			}
			for i := range got {
				if !strings.HasPrefix(got[i], want[i]) {
					t.Fatalf("entry %d is\n%.200q\nwant\n%.200q", i, got[i], want[i])
				}
			}
		})
	}
}

// number is a rotated file's number, 0 for the current one.
func number(path string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Ext(path), "."))
	return n
}

func TestDaemonGoesAndComesBack(t *testing.T) {
	h := newHost(t)
	s, quick := h.spec("sleep"), h.spec("exit", "3")
	st := h.runReady(s)
	h.create(quick)
	pid := h.c.PID()
	if err := h.c.Close(); err != nil {
		t.Fatal(err)
	}
	// While nobody is there: one prints, another is told to end.
	if err := unix.Kill(st.PID, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	h.eventually("the line is in the log", func() bool { return strings.HasSuffix(logText(t, s.Log.Path), "line 1\n") })
	if err := unix.Kill(st.PID, unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	h.connect()
	if h.c.PID() != pid {
		t.Errorf("keeper %d, want the one of before, %d", h.c.PID(), pid)
	}
	mustExit(t, h.exit(s.ID, ""), 5)
	if got := logText(t, s.Log.Path); got != "ready\nline 1\nlast words" {
		t.Errorf("log %q", got)
	}
	h.start(quick.ID)
	mustExit(t, h.exit(quick.ID, ""), 3)
}

func TestKeeperIsKilled(t *testing.T) {
	h := newHost(t)
	s, tty, cat, created, gone := h.spec("sleep"), h.spec("tty"), h.spec("cat"), h.spec("exit", "6"), h.spec("sleep")
	tty.Terminal = true
	tty.Bundle = bundle(tty.ID, func(s *specs.Spec) { s.Process.Terminal = true }, "tty")
	cat.OpenStdin, cat.StdinOnce = true, true
	st := h.run(s)
	ttySt := h.run(tty)
	h.run(cat)
	h.create(created)
	goneSt := h.run(gone)
	before := h.attach(keeper.AttachOptions{ID: tty.ID, Stdout: true})
	exec, err := h.c.Exec(h.ctx(), keeper.Process{Container: s.ID, ExecID: newID(), Process: mustJSON(process("sleep"))})
	if err != nil {
		t.Fatal(err)
	}
	readUntil(t, h.attach(keeper.AttachOptions{ID: s.ID, ExecID: exec.ExecID, Stdout: true}), "ready\n")
	h.eventually("all are ready", func() bool {
		return logText(t, s.Log.Path) == "ready\n" && logText(t, gone.Log.Path) == "ready\n" && strings.Contains(logText(t, tty.Log.Path), "size")
	})
	pid := h.c.PID()
	// The daemon is stopped from starting another keeper until the containers have done something meanwhile.
	binary := hideBinary(t)
	h.kill9(pid)
	if err := unix.Kill(st.PID, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(goneSt.PID, unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	h.eventually("the process has exited", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", goneSt.PID))
		return err != nil
	})
	binary()
	h.eventually("a new keeper is there", func() bool { return h.c.PID() != 0 && h.c.PID() != pid })

	gst := h.exit(gone.ID, "")
	if !gst.ExitUnknown { // kernels before 6.15 cannot tell
		mustExit(t, gst, 5)
	}
	if got := logText(t, gone.Log.Path); got != "ready\nlast words" {
		t.Errorf("log of the one that went meanwhile: %q", got)
	}
	a := h.attach(keeper.AttachOptions{ID: s.ID, Stdout: true})
	if err := h.c.Signal(h.ctx(), s.ID, "", int(unix.SIGUSR1), false); err != nil {
		t.Fatal(err)
	}
	readUntil(t, a, "line 2\n")
	if got := logText(t, s.Log.Path); got != "ready\nline 1\nline 2\n" {
		t.Errorf("log %q", got)
	}
	// The terminal did not hang up.
	ta := h.attach(keeper.AttachOptions{ID: tty.ID, Stdout: true})
	if err := h.c.Resize(h.ctx(), tty.ID, "", 8, 9); err != nil {
		t.Fatal(err)
	}
	readUntil(t, ta, "size 8x9\r\n")
	readUntil(t, before, "size 8x9\r\n") // an attach of before goes on
	// Standard input did not end.
	ca := h.attach(keeper.AttachOptions{ID: cat.ID, Stdin: true, Stdout: true})
	_, _ = io.WriteString(ca.Stdin(), "still here")
	readUntil(t, ca, "still here")
	_ = ca.CloseWrite()
	readAll(t, ca)
	cst := h.exit(cat.ID, "")
	if !cst.ExitUnknown {
		mustExit(t, cst, 0)
	}
	// One that was created before can be started, and execs work in adopted ones.
	h.start(created.ID)
	if st := h.exit(created.ID, ""); !st.ExitUnknown {
		mustExit(t, st, 6)
	}
	ea := h.attach(keeper.AttachOptions{ID: s.ID, ExecID: exec.ExecID, Stdout: true})
	if err := h.c.Signal(h.ctx(), s.ID, exec.ExecID, int(unix.SIGUSR1), false); err != nil {
		t.Fatal(err)
	}
	readUntil(t, ea, "line 1\n")
	if err := h.c.Signal(h.ctx(), s.ID, exec.ExecID, 15, false); err != nil {
		t.Fatal(err)
	}
	if st := h.exit(s.ID, exec.ExecID); !st.ExitUnknown {
		mustExit(t, st, 7)
	}
	p, err := h.c.Exec(h.ctx(), keeper.Process{Container: s.ID, ExecID: newID(), Process: mustJSON(process("exit", "9"))})
	if err != nil {
		t.Fatal(err)
	}
	mustExit(t, h.exit(s.ID, p.ExecID), 9)
	if err := h.c.Signal(h.ctx(), tty.ID, "", 15, false); err != nil {
		t.Fatal(err)
	}
	if st := h.exit(tty.ID, ""); !st.ExitUnknown {
		mustExit(t, st, 7)
	}
	_ = ttySt
}

// hideBinary moves the keeper's program away and returns what puts it back.
func hideBinary(t *testing.T) func() {
	t.Helper()
	if err := os.Rename(keeperBinary, keeperBinary+".away"); err != nil {
		t.Fatal(err)
	}
	back := func() { _ = os.Rename(keeperBinary+".away", keeperBinary) }
	t.Cleanup(back)
	return back
}

// A log survives its keeper being killed again and again while it is written.
func TestLogIsWholeAfterKills(t *testing.T) {
	h := newHost(t)
	const n = 300000
	s := h.spec("count", strconv.Itoa(n))
	s.Log.MaxSize, s.Log.MaxFiles = 4<<20, 1000
	h.run(s)
	for range 8 {
		pid := h.c.PID()
		size := dirSize(filepath.Dir(s.Log.Path))
		h.eventually("the log grows", func() bool {
			return dirSize(filepath.Dir(s.Log.Path)) != size || strings.Contains(tail(s.Log.Path), `done\n`)
		})
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.eventually("a new keeper is there", func() bool { now := h.c.PID(); return now != 0 && now != pid })
	}
	h.eventually("everything is printed", func() bool { return strings.Contains(tail(s.Log.Path), `done\n`) })
	if err := h.c.Signal(h.ctx(), s.ID, "", int(unix.SIGTERM), false); err != nil {
		t.Fatal(err)
	}
	h.exit(s.ID, "")
	files, _ := filepath.Glob(s.Log.Path + "*")
	slices.SortFunc(files, func(a, b string) int { return number(b) - number(a) })
	next := 0
	for _, f := range files {
		for _, e := range logEntries(t, f) {
			if e.Log == "done\n" {
				continue
			}
			if want := strconv.Itoa(next) + "\n"; e.Log != want {
				t.Fatalf("%s: %q, want %q", f, e.Log, want)
			}
			next++
		}
	}
	if next != n {
		t.Errorf("%d lines, want %d", next, n)
	}
}

func dirSize(dir string) (n int64) {
	list, _ := os.ReadDir(dir)
	for _, d := range list {
		if fi, err := d.Info(); err == nil {
			n += fi.Size()
		}
	}
	return n
}

func tail(path string) string {
	text, _ := os.ReadFile(path)
	return string(bytes.TrimSpace(text[max(0, len(text)-100):]))
}

func TestUpgradeInPlace(t *testing.T) {
	h := newHost(t)
	s, tty := h.spec("sleep"), h.spec("tty")
	tty.Terminal = true
	tty.Bundle = bundle(tty.ID, func(s *specs.Spec) { s.Process.Terminal = true }, "tty")
	h.runReady(s)
	h.run(tty)
	pid := h.c.PID()
	if err := h.c.Upgrade(h.ctx(), "/no/such/program"); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("upgrade to nothing: %v", err)
	}
	if err := h.c.Upgrade(h.ctx(), keeperBinary); err != nil {
		t.Fatal(err)
	}
	if h.c.PID() != pid {
		t.Errorf("keeper %d, want the same process, %d", h.c.PID(), pid)
	}
	a := h.attach(keeper.AttachOptions{ID: tty.ID, Stdout: true})
	if err := h.c.Resize(h.ctx(), tty.ID, "", 8, 9); err != nil {
		t.Fatal(err)
	}
	readUntil(t, a, "size 8x9\r\n")
	if err := h.c.Signal(h.ctx(), s.ID, "", int(unix.SIGUSR2), false); err != nil {
		t.Fatal(err)
	}
	mustExit(t, h.exit(s.ID, ""), 5) // whatever the kernel: it is the keeper's child still
	if got := logText(t, s.Log.Path); got != "ready\nlast words" {
		t.Errorf("log %q", got)
	}
}

func TestOOM(t *testing.T) {
	h := newHost(t)
	s := h.spec("eat")
	limit := int64(64 << 20)
	s.Bundle = bundle(s.ID, func(s *specs.Spec) {
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	}, "eat")
	h.run(s)
	oom, st := false, keeper.Status{}
	h.event(func(e keeper.Event) bool {
		oom = oom || e.Type == keeper.EventOOM
		if e.Type == keeper.EventExit {
			st = e.Status
		}
		return oom && st.State == keeper.Exited
	})
	mustExit(t, st, 137)
	if !st.OOMKilled {
		t.Errorf("%+v: not said to be killed for memory", st)
	}
}

func TestKeeperLivesInItsOwnSession(t *testing.T) {
	h := newHost(t)
	sid, err := unix.Getsid(h.c.PID())
	if err != nil || sid != h.c.PID() {
		t.Errorf("session %d %v, want its own, %d", sid, err, h.c.PID())
	}
	fi, err := os.Stat(keeper.SocketPath(h.root))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket %v %v", fi.Mode(), err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", h.c.PID()))
	if err != nil || !strings.Contains(string(text), cgroupParent+"/sampan-keeper-") {
		t.Errorf("groups of the keeper:\n%s", text)
	}
}

// Whatever step of a create its keeper dies at, the caller gets a container or an error, and never half of one.
func TestKeeperDiesWhileMakingAContainer(t *testing.T) {
	for _, point := range []string{"keeper.create.after-record", "keeper.create.after-init"} {
		for _, action := range []string{"kill", "fail"} {
			t.Run(point+"="+action, func(t *testing.T) {
				h := newHostWith(t, point+"="+action)
				s := h.spec("exit", "3")
				st, err := h.c.Create(h.ctx(), s)
				if action == "fail" {
					if err == nil {
						t.Fatalf("created: %+v", st)
					}
					if list, err := h.c.List(h.ctx()); err != nil || len(list) > 0 {
						t.Errorf("List: %v %v", list, err)
					}
					return // the host's end checks that nothing stays
				}
				if err != nil {
					t.Fatal(err)
				}
				h.start(s.ID)
				mustExit(t, h.exit(s.ID, ""), 3)
			})
		}
	}
}

func TestKeeperDiesWhileStarting(t *testing.T) {
	for _, point := range []string{"keeper.start.stopped", "keeper.start.continued"} {
		t.Run(point, func(t *testing.T) {
			h := newHostWith(t, point+"=kill")
			s := h.spec("exit", "3")
			st := h.run(s)
			if st.StartedAt.IsZero() {
				t.Errorf("%+v", st)
			}
			mustExit(t, h.exit(s.ID, ""), 3)
		})
	}
}

func TestKeeperDiesBetweenAnExitAndItsReport(t *testing.T) {
	h := newHostWith(t, "keeper.exit.before-drain=kill")
	s := h.spec("print", "all ", "of ", "it")
	h.run(s)
	mustExit(t, h.exit(s.ID, ""), 0)
	if got := logText(t, s.Log.Path); got != "all of it" {
		t.Errorf("log %q", got)
	}
}

func TestKeeperDiesWhileDeleting(t *testing.T) {
	h := newHostWith(t, "keeper.delete.after-destroy=kill")
	s := h.spec("exit", "0")
	h.run(s)
	h.exit(s.ID, "")
	if err := h.c.Delete(h.ctx(), s.ID); err != nil {
		t.Fatal(err)
	}
	if list, err := h.c.List(h.ctx()); err != nil || len(list) > 0 {
		t.Errorf("List: %v %v", list, err)
	}
}

// No thread of the keeper stays in a container's mount namespace: /proc/PID tells of the main one.
func TestKeeperStaysInItsMountNamespace(t *testing.T) {
	h := newHost(t)
	own := map[string]bool{}
	for _, pid := range []string{"self", strconv.Itoa(h.c.PID())} {
		ns, err := os.Readlink("/proc/" + pid + "/ns/mnt")
		if err != nil {
			t.Fatal(err)
		}
		own[ns] = true
	}
	for range 20 {
		s := h.spec("exit", "0")
		h.run(s)
		h.exit(s.ID, "")
	}
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", h.c.PID()))
	if err != nil || len(own) != 1 || !own[ns] {
		t.Errorf("mount namespace %s %v, want %v", ns, err, own)
	}
}
