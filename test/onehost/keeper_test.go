package onehost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// otherKeeper builds the keeper as another release would be.
func otherKeeper(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sampan-keeper")
	if err := testhost.BuildKeeper(t.Context(), path, "next"); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReleaseUpgradesTheKeeper: a daemon whose keeper program is another than the one that runs makes that one become
// it, in place, under load: containers, logs, exit codes, names and those attached do not notice.
func TestReleaseUpgradesTheKeeper(t *testing.T) {
	_, h := one(t)
	next := otherKeeper(t)
	Docker(t, h, "network", "create", "n")
	Docker(t, h, "run", "-d", "--name", "web", "--network", "n", image)
	Docker(t, h, "run", "-d", "--name", "ticker", "--network", "n", image, "tick")
	Docker(t, h, "run", "-d", "--name", "caller", "--network", "n", image, "sleep")
	Docker(t, h, "run", "-d", "--name", "flood", image, "count", "400000")
	keeper := h.KeeperPID()
	for round, program := range []string{next, "", next} { // there, back to the first one, and there again
		if err := h.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		var flags []string
		if program != "" {
			flags = []string{"--keeper", program}
		}
		if err := h.Start(t.Context(), flags...); err != nil {
			t.Fatal(err)
		}
		if got := h.KeeperPID(); got != keeper {
			t.Fatalf("round %d: the keeper is process %d, want the same as before, %d", round, got, keeper)
		}
		contains(t, "by name", Soon(t, h, "exec", "caller", "/probe", "get", "http://web:8080"), " ")
	}
	log, err := os.ReadFile(filepath.Join(h.ExecRoot(), "keeper.log"))
	if n := bytes.Count(log, []byte("replacing the program")); err != nil || n != 3 {
		t.Errorf("the keeper became another program %d times, want 3 (%v)", n, err)
	}
	// The same program once more: nothing to do.
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context(), "--keeper", next); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(filepath.Join(h.ExecRoot(), "keeper.log")); bytes.Count(again, []byte("replacing the program")) != 3 {
		t.Error("the keeper became the program that it is")
	}
	equal(t, "exit code of what ended meanwhile", Docker(t, h, "wait", "flood"), "0")
	lines := strings.Split(Docker(t, h, "logs", "flood"), "\n")
	if len(lines) != 400000 {
		t.Errorf("%d lines in the log, want 400000", len(lines))
	}
	for i, line := range lines {
		if want := fmt.Sprintf("line %d", i); line != want {
			t.Fatalf("line %d of the log is %q", i, line)
		}
	}
	Docker(t, h, "stop", "ticker")
	equal(t, "exit code", Docker(t, h, "inspect", "-f", "{{.State.ExitCode}}", "ticker"), "7")
	wholeTicks(t, Docker(t, h, "logs", "ticker"))
}

// TestForegroundOutlivesTheKeeper: `docker run`, `attach` and `exec` go on when the keeper is killed, byte for byte, and
// end as the process ended.
func TestForegroundOutlivesTheKeeper(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "sleeper", image, "sleep")
	type result struct {
		what string
		out  string
		err  error
	}
	ended := make(chan result, 3)
	run := func(what string, args ...string) {
		out, err := h.Docker(t.Context(), args...)
		ended <- result{what, out, err}
	}
	go run("run", "run", "--name", "fg", image, "tick")
	go run("exec", "exec", "sleeper", "/probe", "tick")
	printed := func(name string) func(context.Context) error {
		return func(ctx context.Context) error {
			out, err := h.Docker(ctx, "logs", "--tail", "1", name)
			if err == nil && out == "" {
				err = errors.New("no line yet")
			}
			return err
		}
	}
	Eventually(t, 60*time.Second, "the first line", printed("fg"))
	go run("attach", "attach", "--no-stdin", "fg")
	Eventually(t, 60*time.Second, "the exec runs", func(ctx context.Context) error {
		out, err := h.Docker(ctx, "top", "sleeper")
		if err == nil && !strings.Contains(out, "tick") {
			err = errors.New(out)
		}
		return err
	})
	for range 3 {
		old := h.KeeperPID()
		if err := h.KillKeeper(); err != nil {
			t.Fatal(err)
		}
		Eventually(t, 60*time.Second, "a new keeper, and another line", func(ctx context.Context) error {
			if pid := h.KeeperPID(); pid == 0 || pid == old {
				return fmt.Errorf("keeper is process %d", pid)
			}
			before, err := h.Docker(ctx, "logs", "--tail", "1", "fg")
			if err != nil {
				return err
			}
			return testhost.WaitFor(ctx, 10*time.Second, "a line", func(ctx context.Context) error {
				if now, err := h.Docker(ctx, "logs", "--tail", "1", "fg"); err != nil || now == before {
					return fmt.Errorf("%q %v", now, err)
				}
				return nil
			})
		})
	}
	Docker(t, h, "exec", "sleeper", "/probe", "signal-others")
	Docker(t, h, "stop", "fg")
	for range 3 {
		r := <-ended
		if r.what != "attach" { // which begins in the middle
			wholeTicks(t, r.out)
		} else if lines := strings.Split(r.out, "\n"); len(lines) < 2 || !strings.HasPrefix(lines[len(lines)-1], "last ") {
			t.Errorf("attach: %q", r.out)
		}
		var exit *exec.ExitError
		if !errors.As(r.err, &exit) || exit.ExitCode() != 7 {
			t.Errorf("%s: %v, want exit code 7", r.what, r.err)
		}
	}
}

// TestSecondDaemon: a daemon that shares something with one that runs says which, and what to do, and leaves nothing.
func TestSecondDaemon(t *testing.T) {
	l, h := one(t)
	Docker(t, h, "run", "-d", "--name", "web", image)
	dir := t.TempDir()
	refused := func(name string, m *testhost.Machine, want []string, flags ...string) {
		t.Helper()
		own := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		all := map[string]string{"--data-root": own + "/data", "--exec-root": own + "/exec", "--pidfile": own + "/pid", "--host": "unix://" + own + "/sock"}
		for i := 0; i < len(flags); i += 2 {
			all[flags[i]] = flags[i+1]
		}
		args := []string{"--net=" + m.NetNS, l.Binaries.Path("sampand"), "--cgroup-parent", h.CgroupParent() + "-second"}
		for k, v := range all {
			args = append(args, k, v)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "nsenter", args...).CombinedOutput()
		if err == nil || ctx.Err() != nil {
			t.Errorf("%s: it ran: %v\n%s", name, err, out)
		}
		contains(t, name, string(out), want...)
		for _, pid := range testhost.ProcessesWith(own) {
			t.Errorf("%s: process %d is left", name, pid)
		}
	}
	refused("same network namespace", h.Machine, []string{"another sampand", h.DataRoot(), fmt.Sprint(h.DaemonPID()), "network namespace of its own"})
	refused("same data root", l.Client, []string{"--data-root " + h.DataRoot() + " is in use"}, "--data-root", h.DataRoot())
	refused("same exec root", l.Client, []string{"--exec-root " + h.ExecRoot() + " is in use"}, "--exec-root", h.ExecRoot())
	refused("same pidfile", l.Client, []string{"already runs as process " + fmt.Sprint(h.DaemonPID())}, "--pidfile", filepath.Join(h.Dir, "sampand.pid"))
	refused("same socket", l.Client, []string{"another program answers there"}, "--host", h.DockerHost())
	refused("a start that fails late", l.Client, []string{"listen on"}, "--host", "unix:///proc/none/sock")
	equal(t, "the first one's container", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "web"), "running")
	contains(t, "and its networks", Docker(t, h, "run", "--rm", image, "echo", "works"), "works")
}

// TestQuietStart: a daemon's log has nothing at a start that is not its own.
func TestQuietStart(t *testing.T) {
	_, h := one(t)
	text, err := os.ReadFile(h.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "time=") || !strings.Contains(line, " level=") || !strings.Contains(line, " msg=") || strings.Contains(line, "level=warning") {
			t.Errorf("not a line of ours: %s", line)
		}
	}
}
