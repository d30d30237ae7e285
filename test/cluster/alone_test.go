package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestOnTheirOwn: while most managers are away, hosts look after their tasks from what they were told last: containers
// that are killed run again, as do those of a host that was booted, names, virtual addresses and published ports lead to
// them, and the managers' return changes nothing that is right.
func TestOnTheirOwn(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 4, 3)
	h, worker := l.Hosts[0], l.Hosts[3]
	away := l.Hosts[1:3]
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 2, "--network", "n", "--publish", "8080:8080", "--constraint", "node.hostname=="+worker.Name)
	service(t, h, "api", 1, "--network", "n", "--constraint", "node.hostname=="+h.Name)
	service(t, h, "once", 1, "--network", "n", "--constraint", "node.hostname=="+worker.Name, "--restart-condition", "none")
	for _, host := range away {
		if err := host.Lose(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	killAll := func() {
		for _, host := range []*testhost.Host{h, worker} {
			for id := range strings.FieldsSeq(Docker(t, host, "ps", "-q")) {
				Docker(t, host, "kill", id)
			}
		}
	}
	serves := func(when string) {
		t.Helper()
		Eventually(t, 60*time.Second, "containers again "+when, func(ctx context.Context) error {
			for host, want := range map[*testhost.Host]int{h: 1, worker: 2} {
				out, err := host.Docker(ctx, "ps", "-q")
				if err != nil {
					return err
				}
				if n := len(strings.Fields(out)); n != want {
					return fmt.Errorf("%d on %s, want %d", n, host.Name, want)
				}
			}
			return nil
		})
		for _, host := range []*testhost.Host{h, worker} {
			answers(t, l.Client, fmt.Sprintf("http://%s:8080", host.Addr), 2)
			id := strings.Fields(Docker(t, host, "ps", "-q"))[0]
			Soon(t, host, "exec", id, "/probe", "get", "http://web:8080")
			Soon(t, host, "exec", id, "/probe", "get", "http://api:8080") // which may have been started this moment
			if n := strings.Count(Docker(t, host, "exec", id, "/probe", "lookup", "tasks.web"), "10."); n != 2 {
				t.Errorf("%s: on %s tasks.web has %d addresses, want 2", when, host.Name, n)
			}
		}
	}
	Eventually(t, 60*time.Second, "the loss of the quorum noticed", func(ctx context.Context) error {
		out, err := h.Docker(ctx, "info", "-f", "{{.Swarm.Error}}")
		if err == nil && !strings.Contains(out, "does not have a leader") {
			err = errors.New("a leader there is")
		}
		return err
	})
	killAll() // at once: the hosts do not know yet for how long nobody can hear of it
	serves("after they were killed as the managers went")
	killAll()
	serves("after they were killed again")

	// The daemon alone, and the whole host, come back with no manager to ask.
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := worker.KillDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, pid := range testhost.CgroupProcesses(worker.CgroupParent()) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // the containers, while nobody looks
	}
	if err := worker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 60*time.Second, "the worker's containers without any manager", func(ctx context.Context) error {
		if out, err := worker.Docker(ctx, "ps", "-q"); err != nil || len(strings.Fields(out)) != 2 {
			return fmt.Errorf("%q %w", out, err)
		}
		return nil
	})
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	serves("after the daemons were started")
	if err := worker.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := worker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	serves("after the worker was booted")

	before := Docker(t, worker, "ps", "-q", "--no-trunc")
	for _, host := range away {
		if err := host.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := host.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	managers(t, h, l.Hosts[:3]...)
	running(t, h, "web", 2)
	running(t, h, "api", 1)
	Eventually(t, 60*time.Second, "the task that is not restarted noted as failed", func(ctx context.Context) error {
		out, err := h.Docker(ctx, "service", "ps", "--format", "{{.CurrentState}}", "once")
		if err == nil && !strings.HasPrefix(out, "Failed") {
			err = errors.New(out)
		}
		return err
	})
	if now := Docker(t, worker, "ps", "-q", "--no-trunc"); now != before {
		t.Errorf("the managers' return replaced what ran:\n%s\nby\n%s", before, now)
	}
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr), 2)
}
