package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestWiring: three hosts, one overlay; services reach each other by name wherever they are, the address space is the
// network's own, published ports answer on every host, and the client's address is seen.
func TestWiring(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 3, 3)
	h := l.Hosts[0]
	var before testhost.Residue
	Eventually(t, 60*time.Second, "every host's leg in the ingress network", func(context.Context) (err error) {
		if before, err = l.TakeResidue(); err != nil {
			return err
		}
		for _, host := range l.Hosts {
			if !before["link "+host.Name+"/sampan_ingress"] {
				return errors.New(host.Name + " has none")
			}
		}
		return nil
	})
	Docker(t, h, "network", "create", "-d", "overlay", "--attachable", "--subnet", "10.10.0.0/24", "shop")
	service(t, h, "web", 3, "--network", "shop", "--publish", "8080:8080")
	service(t, h, "api", 6, "--network", "shop", "--endpoint-mode", "dnsrr")

	for _, host := range l.Hosts {
		vip := strings.TrimSpace(Docker(t, host, "run", "--rm", "--network", "shop", image, "lookup", "web"))
		if !strings.HasPrefix(vip, "10.10.0.") || strings.Contains(vip, "\n") {
			t.Errorf("on %s web resolves to %q, want one virtual address", host.Name, vip)
		}
		if n := strings.Count(Docker(t, host, "run", "--rm", "--network", "shop", image, "lookup", "tasks.web"), "10.10.0."); n != 3 {
			t.Errorf("on %s tasks.web has %d addresses, want 3", host.Name, n)
		}
		if n := strings.Count(Docker(t, host, "run", "--rm", "--network", "shop", image, "lookup", "api"), "10.10.0."); n != 6 {
			t.Errorf("on %s the dnsrr service api has %d addresses, want 6", host.Name, n)
		}
		Docker(t, host, "run", "--rm", "--network", "shop", image, "get", "http://web:8080")
		answers(t, l.Client, fmt.Sprintf("http://%s:8080", host.Addr), 3)
		body, err := get(l.Client.HTTP(3*time.Second), fmt.Sprintf("http://%s:8080", host.Addr))
		if err != nil || !strings.HasSuffix(body, " "+l.Client.Addr.String()) {
			t.Errorf("through %s the task saw another client than %s: %q, %v", host.Name, l.Client.Addr, body, err)
		}
	}
	// Every task calls both services.
	for _, host := range l.Hosts {
		for id := range strings.FieldsSeq(Docker(t, host, "ps", "-q", "--filter", "label=com.docker.swarm.service.name=api")) {
			Docker(t, host, "exec", id, "/probe", "get", "http://web:8080")
			Docker(t, host, "exec", id, "/probe", "get", "http://api:8080")
		}
	}
	Docker(t, h, "service", "scale", "-d", "web=5")
	running(t, h, "web", 5)
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", l.Hosts[1].Addr), 5)
	logs := Docker(t, h, "service", "logs", "web")
	if n := strings.Count(logs, "serving "); n != 5 {
		t.Errorf("service logs has %d of 5 tasks:\n%s", n, logs)
	}
	Docker(t, h, "service", "rm", "web", "api")
	Eventually(t, 60*time.Second, "the network unused", removed(l, "shop"))
	NothingLeft(t, l, before)
}

// TestRefusals: bad requests get Docker's words and change nothing.
func TestRefusals(t *testing.T) {
	t.Parallel()
	l := New(t, 3)
	a, b, c := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	Refused(t, a, []string{"This node is not a swarm manager"}, "service", "ls")
	Docker(t, a, "swarm", "init", "--advertise-addr", a.Addr.String())
	Refused(t, a, []string{"already part of a swarm"}, "swarm", "init")
	worker := Docker(t, a, "swarm", "join-token", "-q", "worker")
	remote := a.Addr.String() + ":2377"
	Refused(t, b, []string{"invalid join token"}, "swarm", "join", "--token", "SWMTKN-1-nonsense", remote)
	digest := strings.Split(worker, "-")
	other := digest[2][:1] + digest[2][2:] + digest[2][1:2]
	Refused(t, b, []string{"fingerprint"}, "swarm", "join", "--token", "SWMTKN-1-"+other+"-"+digest[3], remote)
	Refused(t, b, []string{"join token"}, "swarm", "join", "--token", "SWMTKN-1-"+digest[2]+"-"+strings.Repeat("0", len(digest[3])), remote)
	Refused(t, b, []string{"10.99.0.77:2377"}, "swarm", "join", "--token", worker, "10.99.0.77:2377")
	Docker(t, b, "swarm", "join", "--token", worker, remote)
	Refused(t, b, []string{"already part of a swarm"}, "swarm", "join", "--token", worker, remote)
	Refused(t, b, []string{"Worker nodes can't be used to view or modify cluster state"}, "node", "ls")
	old := worker
	worker = Docker(t, a, "swarm", "join-token", "-q", "--rotate", "worker")
	Refused(t, c, []string{"join token"}, "swarm", "join", "--token", old, remote)
	Docker(t, c, "swarm", "join", "--token", worker, remote)

	Docker(t, a, "network", "create", "-d", "overlay", "--subnet", "10.10.0.0/24", "n")
	Refused(t, a, []string{"already exists"}, "network", "create", "-d", "overlay", "n")
	Refused(t, a, []string{"overlap"}, "network", "create", "-d", "overlay", "--subnet", "10.10.0.0/25", "m")
	service(t, a, "s", 1, "--network", "n", "--publish", "8080:8080")
	Refused(t, a, []string{"already exists"}, "service", "create", "--name", "s", image)
	Refused(t, a, []string{"8080", "already in use"}, "service", "create", "--name", "t", "--publish", "8080:80", image)
	Refused(t, a, []string{"nothing"}, "service", "create", "--name", "t", "--network", "nothing", image)
	Refused(t, a, []string{"no such service: nothing"}, "service", "inspect", "nothing")
	Refused(t, a, []string{"in use by service"}, "network", "rm", "n")
	Refused(t, a, []string{"constraint"}, "service", "create", "--name", "t", "--constraint", "node.nonsense", image)
	Docker(t, a, "service", "create", "-d", "--no-resolve-image", "--name", "huge", "--reserve-cpu", "500", image)
	Eventually(t, 60*time.Second, "the reason why huge is pending", func(ctx context.Context) error {
		out, err := a.Docker(ctx, "service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "huge")
		if err == nil && (!strings.HasPrefix(out, "Pending") || !strings.Contains(out, "insufficient resources on 3 nodes")) {
			err = errors.New(out)
		}
		return err
	})
	Docker(t, a, "service", "create", "-d", "--no-resolve-image", "--name", "ghost", "ghost:1")
	Eventually(t, 60*time.Second, "the missing image named", func(ctx context.Context) error {
		out, err := a.Docker(ctx, "service", "ps", "--no-trunc", "--format", "{{.Error}}", "ghost")
		if err == nil && !strings.Contains(out, "No such image: ghost:1") {
			err = errors.New(out)
		}
		return err
	})
	Refused(t, a, []string{"manager", "--force"}, "swarm", "leave")
}

// TestReachedByIPv6: a service's published port answers by IPv6 on every host and sees the client's address; its tasks
// are found by SRV.
func TestReachedByIPv6(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 2, 1)
	at := func(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("fd99::%d/64", i)) }
	for i, m := range []*testhost.Machine{l.Client, l.Hosts[0].Machine, l.Hosts[1].Machine} {
		if err := m.AddAddr(at(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	h := l.Hosts[0]
	Docker(t, h, "network", "create", "-d", "overlay", "--attachable", "shop")
	service(t, h, "web", 3, "--network", "shop", "--publish", "8080:8080", "--label", "sampan.port.http=8080")
	for i := 2; i <= 3; i++ {
		url := fmt.Sprintf("http://[%s]:8080", at(i).Addr())
		answers(t, l.Client, url, 3)
		body, err := get(l.Client.HTTP(3*time.Second), url)
		if err != nil || !strings.HasSuffix(body, " "+at(1).Addr().String()) {
			t.Errorf("by %s the task saw another client than %s: %q, %v", url, at(1).Addr(), body, err)
		}
	}
	for _, port := range []string{"http", "8080"} {
		servers := strings.Fields(Docker(t, l.Hosts[1], "run", "--rm", "--network", "shop", image, "services", port, "tcp", "web"))
		if len(servers) != 3 || !strings.HasPrefix(servers[0], "web.") || !strings.HasSuffix(servers[0], ".:8080") {
			t.Errorf("by SRV: %q", servers)
		}
	}
}
