package cluster

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

// TestWorkerLost: a host is cut off and killed; its replicas run elsewhere, and it takes up its part again when it is
// back.
func TestWorkerLost(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 3, 1)
	h, lost := l.Hosts[0], l.Hosts[2]
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 6, "--network", "n", "--publish", "8080:8080")
	if err := lost.Lose(t.Context()); err != nil {
		t.Fatal(err)
	}
	running(t, h, "web", 6, lost)
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr), 6)
	status(t, h, lost, "Down")
	if err := lost.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lost.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	status(t, h, lost, "Ready")
	Docker(t, h, "service", "scale", "-d", "web=9")
	running(t, h, "web", 9)
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", lost.Addr), 9)
}

// TestLeaderLost: the leading manager dies; the API answers on another one and the cluster goes on being controlled.
func TestLeaderLost(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 3, 3)
	lost, h := l.Hosts[0], l.Hosts[1]
	Docker(t, lost, "network", "create", "-d", "overlay", "n")
	service(t, lost, "web", 6, "--network", "n", "--publish", "8080:8080")
	if err := lost.Lose(t.Context()); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 60*time.Second, "the API of another manager", func(ctx context.Context) error {
		out, err := h.Docker(ctx, "node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}")
		if err == nil && !strings.Contains(out, "Leader") {
			err = errors.New(out)
		}
		return err
	})
	running(t, h, "web", 6, lost)
	Docker(t, h, "service", "scale", "-d", "web=8")
	running(t, h, "web", 8, lost)
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", l.Hosts[2].Addr), 8)
}

// TestPartitionHeals: a host that is only cut off keeps running what it has; when the cable is back, what was replaced
// meanwhile is stopped there.
func TestPartitionHeals(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 3, 1)
	h, cut := l.Hosts[0], l.Hosts[2]
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 6, "--network", "n", "--publish", "8080:8080")
	mine := strings.Count(Docker(t, cut, "ps", "-q")+"\n", "\n")
	if err := cut.Cut(); err != nil {
		t.Fatal(err)
	}
	running(t, h, "web", 6, cut)
	if n := strings.Count(Docker(t, cut, "ps", "-q")+"\n", "\n"); n != mine {
		t.Errorf("%d containers on the host that was cut off, had %d", n, mine)
	}
	if err := cut.Heal(); err != nil {
		t.Fatal(err)
	}
	status(t, h, cut, "Ready")
	Eventually(t, 60*time.Second, "as many containers as tasks", func(ctx context.Context) error {
		n := 0
		for _, host := range l.Hosts {
			out, err := host.Docker(ctx, "ps", "-q")
			if err != nil {
				return err
			}
			n += len(strings.Fields(out))
		}
		if n != 6 {
			return fmt.Errorf("%d containers", n)
		}
		return nil
	})
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", cut.Addr), 6)
}

// TestDaemonsKilledUnderLoad: daemons and keepers are killed while requests stream; none of that stops a container, so
// no request fails.
func TestDaemonsKilledUnderLoad(t *testing.T) {
	l := Cluster(t, 3, 3)
	h := l.Hosts[0]
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 6, "--network", "n", "--publish", "8080:8080")
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", l.Hosts[1].Addr), 6)
	containers := Docker(t, l.Hosts[1], "ps", "-q", "--no-trunc")
	stop := stream(l.Client, fmt.Sprintf("http://%s:8080", l.Hosts[1].Addr))
	victim := l.Hosts[1]
	if err := victim.KillDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := victim.KeeperPID()
	if err := victim.KillKeeper(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 60*time.Second, "a new keeper", func(context.Context) error {
		if pid := victim.KeeperPID(); pid == 0 || pid == old {
			return errors.New("none yet")
		}
		return nil
	})
	status(t, h, victim, "Ready")
	running(t, h, "web", 6)
	noneFailed(t, stop)
	if now := Docker(t, victim, "ps", "-q", "--no-trunc"); now != containers {
		t.Errorf("containers changed from\n%s\nto\n%s", containers, now)
	}
}

// status waits until the node of host shows the status.
func status(t *testing.T, h, host *testhost.Host, want string) {
	t.Helper()
	Eventually(t, 60*time.Second, host.Name+" is "+want, func(ctx context.Context) error {
		out, err := h.Docker(ctx, "node", "ls", "--format", "{{.Hostname}} {{.Status}}")
		if err == nil && !strings.Contains(out, host.Name+" "+want) {
			err = errors.New(out)
		}
		return err
	})
}
