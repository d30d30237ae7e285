package onehost

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestDaemonGone: the daemon's end harms no container, whichever way it ends: they run on, are reached by name and
// published port, write logs, and the next daemon knows their exit codes.
func TestDaemonGone(t *testing.T) {
	for name, end := range map[string]func(*testhost.Host, context.Context) error{"kill -9": (*testhost.Host).KillDaemon, "SIGTERM": (*testhost.Host).Stop} {
		t.Run(name, func(t *testing.T) {
			l, h := one(t)
			Docker(t, h, "network", "create", "n")
			Docker(t, h, "run", "-d", "--name", "web", "--network", "n", "-p", "8080:8080", image)
			Docker(t, h, "run", "-d", "--name", "ticker", "--network", "n", image, "tick")
			Docker(t, h, "run", "-d", "--name", "caller", "--network", "n", image, "sleep")
			ends := Docker(t, h, "run", "-d", "--name", "ends", "-v", "/dev:/hostdev", image, "fail-after", "1s")
			fetch(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr))
			pid := Docker(t, h, "inspect", "-f", "{{.State.Pid}}", "web")

			if err := end(h, t.Context()); err != nil {
				t.Fatal(err)
			}
			fetch(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr))
			if err := h.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			equal(t, "the same process", Docker(t, h, "inspect", "-f", "{{.State.Pid}}", "web"), pid)
			contains(t, "by name", Docker(t, h, "exec", "caller", "/probe", "get", "http://web:8080"), " ")
			fetch(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr))
			Docker(t, h, "stop", "ticker")
			equal(t, "exit code", Docker(t, h, "inspect", "-f", "{{.State.ExitCode}}", "ticker"), "7")
			wholeTicks(t, Docker(t, h, "logs", "ticker"))
			Eventually(t, 60*time.Second, "the container that ended meanwhile", func(ctx context.Context) error {
				out, err := h.Docker(ctx, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", ends)
				if err == nil && out != "exited 1" {
					err = errors.New(out)
				}
				return err
			})
		})
	}
}

// TestKeeperGone: the keeper's end harms no container either; a new keeper takes them over.
func TestKeeperGone(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "network", "create", "n")
	Docker(t, h, "run", "-d", "--name", "ticker", "--network", "n", image, "tick")
	Docker(t, h, "run", "-d", "--name", "web", "--network", "n", image)
	old := h.KeeperPID()
	if err := h.KillKeeper(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 60*time.Second, "a new keeper", func(context.Context) error {
		if pid := h.KeeperPID(); pid == 0 || pid == old {
			return fmt.Errorf("keeper is process %d", pid)
		}
		return nil
	})
	contains(t, "names", Docker(t, h, "run", "--rm", "--network", "n", image, "get", "http://web:8080"), " ")
	equal(t, "exec", Docker(t, h, "exec", "ticker", "/probe", "echo", "still here"), "still here")
	Docker(t, h, "stop", "ticker")
	equal(t, "status", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "ticker"), "exited")
}

// wholeTicks fails the test unless the log of a ticker has every number once, in order, and its end.
func wholeTicks(t *testing.T, logs string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(logs), "\n")
	for i, line := range lines[:len(lines)-1] {
		if want := fmt.Sprintf("tick %d", i); line != want {
			t.Fatalf("line %d of the log is %q, want %q", i, line, want)
		}
	}
	if want := fmt.Sprintf("last %d", len(lines)-2); lines[len(lines)-1] != want {
		t.Errorf("the log ends with %q, want %q", lines[len(lines)-1], want)
	}
}
