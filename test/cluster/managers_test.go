package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// managersOf returns the managers as h knows them, a line each: host name and manager status, in order.
func managersOf(ctx context.Context, h *testhost.Host) ([]string, error) {
	out, err := h.Docker(ctx, "node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}")
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); strings.Contains(line, " ") {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// managers waits until h knows exactly these managers, one of them leading and all of them reachable.
func managers(t *testing.T, h *testhost.Host, want ...*testhost.Host) {
	t.Helper()
	Eventually(t, 60*time.Second, fmt.Sprintf("%d managers", len(want)), func(ctx context.Context) error {
		lines, err := managersOf(ctx, h)
		if err != nil {
			return err
		}
		leaders := 0
		for _, line := range lines {
			name, status, _ := strings.Cut(line, " ")
			if status == "Leader" {
				leaders++
			} else if status != "Reachable" {
				return errors.New(line)
			}
			if !slices.ContainsFunc(want, func(h *testhost.Host) bool { return h.Name == name }) {
				return fmt.Errorf("%s is none", name)
			}
		}
		if leaders != 1 || len(lines) != len(want) {
			return fmt.Errorf("managers are %q", lines)
		}
		return nil
	})
}

// joinAll makes hosts managers of first's cluster, all of them at once.
func joinAll(t *testing.T, first *testhost.Host, hosts ...*testhost.Host) {
	t.Helper()
	token := Docker(t, first, "swarm", "join-token", "-q", "manager")
	errs := make(chan error, len(hosts))
	for _, h := range hosts {
		go func() {
			_, err := h.Docker(t.Context(), "swarm", "join", "--token", token, "--advertise-addr", h.Addr.String(), first.Addr.String()+":2377")
			errs <- err
		}()
	}
	for range hosts {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// TestFiveManagers: four managers join the first at once. Two are lost for good, the first and leading one among them;
// the other three control the cluster, forget the dead, and can lose one more, which shows that the dead count no longer.
// A host in the place of the first one becomes a manager as it did.
func TestFiveManagers(t *testing.T) {
	t.Parallel()
	l := New(t, 5)
	first, second, h := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	Docker(t, first, "swarm", "init", "--advertise-addr", first.Addr.String())
	joinAll(t, first, l.Hosts[1:]...)
	managers(t, h, l.Hosts...)
	Docker(t, first, "network", "create", "-d", "overlay", "n")
	service(t, first, "web", 5, "--network", "n", "--publish", "8080:8080")

	for _, lost := range []*testhost.Host{first, second} {
		if err := lost.Lose(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	running(t, h, "web", 5, first, second)
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr), 5)
	for _, lost := range []*testhost.Host{first, second} {
		status(t, h, lost, "Down")
		Refused(t, h, []string{"must be demoted"}, "node", "rm", "--force", lost.Name)
		Docker(t, h, "node", "demote", lost.Name)
		Eventually(t, 60*time.Second, lost.Name+" removed", func(ctx context.Context) error {
			_, err := h.Docker(ctx, "node", "rm", "--force", lost.Name)
			return err
		})
	}
	managers(t, h, l.Hosts[2:]...)

	// The first host comes back with nothing of its own, and is a manager again at the address of the dead one.
	if err := first.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(first.DataRoot()); err != nil {
		t.Fatal(err)
	}
	if err := first.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	Load(t, first)
	joinAll(t, h, first)
	managers(t, first, append(slices.Clone(l.Hosts[2:]), first)...)

	// One of four may be lost, were there still six none could.
	if err := l.Hosts[4].Lose(t.Context()); err != nil {
		t.Fatal(err)
	}
	running(t, first, "web", 5, l.Hosts[4])
	Docker(t, first, "service", "scale", "-d", "web=7")
	running(t, first, "web", 7, l.Hosts[4])
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", first.Addr), 7)
}

// TestManagersAtTheirMost: a cluster takes seven managers and says clearly that it takes no more.
func TestManagersAtTheirMost(t *testing.T) {
	t.Parallel()
	l := New(t, 8)
	first, eighth := l.Hosts[0], l.Hosts[7]
	Docker(t, first, "swarm", "init", "--advertise-addr", first.Addr.String())
	joinAll(t, first, l.Hosts[1:7]...)
	managers(t, first, l.Hosts[:7]...)
	token := Docker(t, first, "swarm", "join-token", "-q", "manager")
	Refused(t, eighth, []string{"7 managers already", "demote one first, or join as a worker"}, "swarm", "join", "--token", token, first.Addr.String()+":2377")
	if out := Docker(t, first, "node", "ls", "-q"); strings.Count(out+"\n", "\n") != 7 {
		t.Errorf("the refused host left a node behind:\n%s", out)
	}
	Docker(t, eighth, "swarm", "join", "--token", Docker(t, first, "swarm", "join-token", "-q", "worker"), first.Addr.String()+":2377")
	Refused(t, first, []string{"7 managers already"}, "node", "promote", eighth.Name)

	// Three of seven may be lost at once.
	for _, lost := range l.Hosts[:3] {
		if err := lost.Lose(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	h := l.Hosts[3]
	service(t, h, "web", 4)
	for _, lost := range l.Hosts[:3] {
		Docker(t, h, "node", "demote", lost.Name)
	}
	managers(t, h, l.Hosts[3:7]...)
	Docker(t, h, "node", "promote", eighth.Name)
	managers(t, h, l.Hosts[3:8]...)
}
