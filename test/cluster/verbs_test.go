package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestWaitingForServices: the docker command waits for a service unless told otherwise, and its waiting ends.
func TestWaitingForServices(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 2, 1)
	h := l.Hosts[0]
	// The command waits for as long as an update is monitored, five seconds unless told otherwise.
	for _, args := range [][]string{
		{"service", "create", "--no-resolve-image", "--name", "web", "--replicas", "2", "--update-monitor", "500ms", "--rollback-monitor", "500ms", image},
		{"service", "scale", "web=4"},
		{"service", "scale", "web=1"},
		{"service", "update", "--env-add", "A=b", "web"},
		{"service", "rollback", "web"},
		{"service", "create", "--no-resolve-image", "--name", "everywhere", "--mode", "global", "--update-monitor", "500ms", image},
	} {
		out := Docker(t, h, args...)
		if !strings.Contains(out, "converged") && !strings.Contains(out, "rolled back") {
			t.Errorf("docker %s ends with %q", strings.Join(args, " "), out[max(0, len(out)-200):])
		}
	}
}

// TestConnectFromAnywhere: a standalone container is connected to a cluster network that its host does not have yet,
// on a worker as on a manager; and what cannot be says why.
func TestConnectFromAnywhere(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 2, 1)
	manager, worker := l.Hosts[0], l.Hosts[1]
	Docker(t, manager, "network", "create", "-d", "overlay", "--attachable", "--subnet", "10.10.0.0/24", "n")
	Docker(t, manager, "network", "create", "-d", "overlay", "closed")
	for _, h := range l.Hosts {
		Docker(t, h, "network", "create", "own")
		Docker(t, h, "run", "-d", "--name", "on-"+h.Name, "--network", "own", image)
		Refused(t, h, []string{"closed", "not manually attachable"}, "network", "connect", "closed", "on-"+h.Name)
		Refused(t, h, []string{"network nothing not found"}, "network", "connect", "nothing", "on-"+h.Name)
		Docker(t, h, "network", "connect", "--alias", "also-"+h.Name, "n", "on-"+h.Name)
	}
	Soon(t, manager, "exec", "on-"+manager.Name, "/probe", "get", "http://also-"+worker.Name+":8080")
	Soon(t, worker, "exec", "on-"+worker.Name, "/probe", "get", "http://on-"+manager.Name+":8080")
	for _, h := range l.Hosts {
		Docker(t, h, "restart", "-t", "0", "on-"+h.Name)
		if nets := Docker(t, h, "inspect", "-f", "{{range $n, $e := .NetworkSettings.Networks}}{{$n}} {{end}}", "on-"+h.Name); strings.TrimSpace(nets) != "n own" {
			t.Errorf("%s: after a restart the container is on %q", h.Name, nets)
		}
		// What is left of an earlier run is taken away behind the new one's back.
		for range 3 {
			Docker(t, h, "kill", "on-"+h.Name)
			Docker(t, h, "start", "on-"+h.Name)
			Soon(t, h, "exec", "on-"+h.Name, "/probe", "get", "http://also-"+h.Name+":8080")
		}
	}
	Soon(t, manager, "exec", "on-"+manager.Name, "/probe", "get", "http://on-"+worker.Name+":8080")
	Soon(t, worker, "exec", "on-"+worker.Name, "/probe", "get", "http://on-"+manager.Name+":8080")
	for _, h := range l.Hosts {
		Docker(t, h, "network", "disconnect", "n", "on-"+h.Name)
	}
	Eventually(t, 60*time.Second, "the network unused", removed(l, "n"))
}

// TestDataPathOptions: another UDP port for what hosts say to each other's containers, and pools of the user's own.
func TestDataPathOptions(t *testing.T) {
	t.Parallel()
	l := New(t, 2)
	a, b := l.Hosts[0], l.Hosts[1]
	Docker(t, a, "swarm", "init", "--advertise-addr", a.Addr.String(), "--data-path-port", "7789", "--data-path-addr", a.Addr.String(),
		"--default-addr-pool", "10.77.0.0/16", "--default-addr-pool-mask-length", "26")
	Docker(t, b, "swarm", "join", "--token", Docker(t, a, "swarm", "join-token", "-q", "worker"), a.Addr.String()+":2377")
	Docker(t, a, "network", "create", "-d", "overlay", "n")
	if subnet := Docker(t, a, "network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "n"); !strings.HasPrefix(subnet, "10.77.") || !strings.HasSuffix(subnet, "/26") {
		t.Errorf("the network has %s, want a /26 of 10.77.0.0/16", subnet)
	}
	service(t, a, "web", 4, "--network", "n", "--publish", "8080:8080")
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", a.Addr), 4)
	for _, h := range l.Hosts {
		if err := h.Do(func() error {
			sockets, err := os.ReadFile("/proc/thread-self/net/udp")
			if err == nil && (!strings.Contains(string(sockets), fmt.Sprintf(":%04X ", 7789)) || strings.Contains(string(sockets), fmt.Sprintf(":%04X ", 4789))) {
				err = fmt.Errorf("another UDP port than 7789 is open:\n%s", sockets)
			}
			return err
		}); err != nil {
			t.Errorf("%s: %v", h.Name, err)
		}
	}
}

// TestAllRebooted: every host loses its power at once and boots again; the services run again without anybody's help.
func TestAllRebooted(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 3, 3)
	h := l.Hosts[0]
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 6, "--network", "n", "--publish", "8080:8080")
	for range 2 {
		if err := l.Each(func(h *testhost.Host) error { return h.Reboot(t.Context()) }); err != nil {
			t.Fatal(err)
		}
		if err := l.StartAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		Eventually(t, 60*time.Second, "the control API", func(ctx context.Context) error {
			out, err := h.Docker(ctx, "node", "ls", "--format", "{{.Hostname}} {{.Status}}")
			if err == nil && strings.Count(out, " Ready") != 3 {
				err = errors.New(out)
			}
			return err
		})
		running(t, h, "web", 6)
		answers(t, l.Client, fmt.Sprintf("http://%s:8080", l.Hosts[1].Addr), 6)
	}
}

// TestQuorumLost: without most of its managers a cluster cannot be changed and says so; what runs goes on, a task that
// dies is not forgotten, and the managers' return is enough to go on. If they never return, one starts over.
func TestQuorumLost(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 3, 3)
	h := l.Hosts[0]
	Docker(t, h, "network", "create", "-d", "overlay", "--attachable", "n")
	service(t, h, "web", 3, "--network", "n", "--publish", "8080:8080")
	client := fmt.Sprintf("http://%s:8080", h.Addr)
	answers(t, l.Client, client, 3)
	for _, lost := range l.Hosts[1:] {
		if err := lost.KillDaemon(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	answers(t, l.Client, client, 3)
	own := Docker(t, h, "ps", "-q")
	Docker(t, h, "exec", strings.Fields(own)[0], "/probe", "get", "http://web:8080")
	Eventually(t, 60*time.Second, "a change refused, with the reason", func(ctx context.Context) error {
		_, err := h.Docker(ctx, "service", "scale", "-d", "web=5")
		if err == nil || !strings.Contains(err.Error(), "leader") {
			return fmt.Errorf("scale: %v", err)
		}
		return nil
	})
	if info := Docker(t, h, "info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.Error}}"); !strings.Contains(info, "does not have a leader") {
		t.Errorf("docker info says %q", info)
	}
	for _, back := range l.Hosts[1:] {
		if err := back.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	Eventually(t, 60*time.Second, "changes again", func(ctx context.Context) error {
		_, err := h.Docker(ctx, "service", "scale", "-d", "web=4")
		return err
	})
	running(t, h, "web", 4)

	for _, lost := range l.Hosts[1:] {
		if err := lost.Lose(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	Docker(t, h, "swarm", "init", "--force-new-cluster", "--advertise-addr", h.Addr.String())
	running(t, h, "web", 4, l.Hosts[1:]...)
	answers(t, l.Client, client, 4)
	Docker(t, h, "service", "scale", "-d", "web=2")
	running(t, h, "web", 2, l.Hosts[1:]...)
	if managers := Docker(t, h, "info", "-f", "{{.Swarm.Managers}}"); managers != "1" {
		t.Errorf("%s managers after starting over, want 1", managers)
	}
}

// TestHeartbeatPeriodChanges: a cluster whose heartbeat period is made longer and shorter again declares nobody down.
func TestHeartbeatPeriodChanges(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 2, 1)
	h := l.Hosts[0]
	service(t, h, "web", 2)
	for _, period := range []string{"4s", "5s"} { // the second is Docker's default, which stands for Sampan's
		Docker(t, h, "swarm", "update", "--dispatcher-heartbeat", period)
		Docker(t, h, "service", "update", "--label-add", "period="+period, "web") // which waits for five seconds
	}
	if out := Docker(t, h, "node", "ls", "--format", "{{.Status}}"); out != "Ready\nReady" {
		t.Errorf("nodes are %q", out)
	}
	if log, err := os.ReadFile(h.LogPath()); err != nil || strings.Contains(string(log), "counts as down") {
		t.Errorf("a node was declared down (%v):\n%s", err, h.LogTail(20))
	}
}

// TestLeaderCutOff: the leading manager is cut off. Its side leads no more and says so, the others go on, and after the
// cable is back there is one truth. How long it took until the replicas answered again is logged.
func TestLeaderCutOff(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 3, 3)
	cut, h := l.Hosts[0], l.Hosts[1]
	Docker(t, cut, "network", "create", "-d", "overlay", "n")
	service(t, cut, "web", 6, "--network", "n", "--publish", "8080:8080")
	began := time.Now()
	if err := cut.Cut(); err != nil {
		t.Fatal(err)
	}
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr), 4)
	running(t, h, "web", 6, cut)
	t.Logf("six tasks run elsewhere %v after the cut", time.Since(began).Round(10*time.Millisecond))
	Refused(t, cut, []string{"does not have a leader"}, "service", "scale", "-d", "web=9")
	if out := Docker(t, cut, "node", "ls", "--format", "{{.ManagerStatus}}"); strings.Contains(out, "Leader") {
		t.Errorf("on the side that was cut off somebody leads:\n%s", out)
	}
	Docker(t, h, "service", "scale", "-d", "web=5")
	running(t, h, "web", 5, cut)
	if err := cut.Heal(); err != nil {
		t.Fatal(err)
	}
	status(t, h, cut, "Ready")
	Eventually(t, 60*time.Second, "one truth", func(ctx context.Context) error {
		containers := 0
		for _, host := range l.Hosts {
			if out, err := host.Docker(ctx, "service", "ls", "--format", "{{.Replicas}}"); err != nil || out != "5/5" {
				return fmt.Errorf("%s: %s %w", host.Name, out, err)
			}
			out, err := host.Docker(ctx, "ps", "-q")
			if err != nil {
				return err
			}
			containers += len(strings.Fields(out))
		}
		if containers != 5 {
			return fmt.Errorf("%d containers", containers)
		}
		return nil
	})
}
