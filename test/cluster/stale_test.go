package cluster

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apiswarm "github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/network/ingress"
	"github.com/sampan-cloud/sampan/internal/network/lb"
	"github.com/sampan-cloud/sampan/internal/network/overlay"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestNothingStaleOnWholeHosts changes a cluster at random: services are scaled, updated, removed and made anew, tasks,
// daemons and keepers killed, hosts drained, cut off and booted. After each step it compares, on every host, the virtual
// IPs in a sandbox's kernel, the published ports in the host's, the forwarding entries of the overlay and the answers of
// the name server with the tasks that run. SAMPAN_STEPS says how many steps, SAMPAN_STALE_SEED repeats a run.
func TestNothingStaleOnWholeHosts(t *testing.T) {
	t.Parallel()
	steps, seed := Number(t, "SAMPAN_STEPS", 3), Number(t, "SAMPAN_STALE_SEED", rand.Uint64())
	t.Logf("SAMPAN_STALE_SEED=%d", seed)
	c := &chaos{t: t, lab: Cluster(t, 3, 3), rnd: rand.New(rand.NewPCG(seed, 1)), watch: map[*testhost.Host]watcher{}, made: map[string]bool{}}
	Docker(t, c.lab.Hosts[0], "network", "create", "-d", "overlay", "--attachable", "n")
	c.network = Docker(t, c.lab.Hosts[0], "network", "inspect", "-f", "{{.ID}}", "n")
	for _, h := range c.lab.Hosts {
		Docker(t, h, "run", "-d", "--name", "watch", "--restart", "always", "--network", "n", image)
	}
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		c.create(name)
	}
	c.settle("the beginning")
	for step := range steps {
		var did []string
		for range 1 + c.rnd.IntN(3) {
			did = append(did, c.act(step))
		}
		c.settle(fmt.Sprintf("step %d: %s", step, strings.Join(did, ", ")))
	}
}

// shapes are the services, with what the docker command is told of each.
var shapes = map[string][]string{
	"balanced": {"--replicas", "3", "--publish", "8001:8080", "--publish", "8001:8081/udp", "--update-order", "start-first", "--update-parallelism", "2"},
	"listed":   {"--replicas", "2", "--endpoint-mode", "dnsrr"},
	"all":      {"--mode", "global", "--publish", "8002:8080"},
}

type chaos struct {
	t       *testing.T
	lab     *testhost.Lab
	rnd     *rand.Rand
	network string
	watch   map[*testhost.Host]watcher
	made    map[string]bool
	drained *testhost.Host
}

// watcher is the container on a host out of whose sandbox the test looks.
type watcher struct {
	sandbox string
	addr    netip.Addr
}

func (c *chaos) create(name string) {
	c.t.Helper()
	Docker(c.t, c.any(), slices.Concat([]string{"service", "create", "-d", "--no-resolve-image", "--name", name, "--network", "n", "--restart-delay", "200ms",
		"--stop-grace-period", "2s", "--update-delay", "0s"}, shapes[name], []string{image})...)
	c.made[name] = true
}

func (c *chaos) any() *testhost.Host { return c.lab.Hosts[c.rnd.IntN(len(c.lab.Hosts))] }

// act does one thing and says what.
func (c *chaos) act(step uint64) string {
	c.t.Helper()
	h := c.any()
	must := func(err error) {
		c.t.Helper()
		if err != nil {
			c.t.Fatal(err)
		}
	}
	// A cut is long, so it comes once at the least, and not often.
	if step == 2 || c.rnd.IntN(12) == 0 {
		must(h.Cut())
		others := slices.DeleteFunc(slices.Clone(c.lab.Hosts), func(o *testhost.Host) bool { return o == h })
		if c.rnd.IntN(2) == 0 { // long enough to be noticed
			status(c.t, others[0], h, "Down")
			Docker(c.t, others[0], "service", "update", "-d", "--force", slices.Sorted(maps.Keys(c.made))[0])
		}
		if c.rnd.IntN(2) == 0 {
			must(h.Reboot(c.t.Context()))
			must(h.Start(c.t.Context()))
			return "booted " + h.Name
		}
		must(h.Heal())
		return "cut off " + h.Name
	}
	name := slices.Sorted(maps.Keys(shapes))[c.rnd.IntN(len(shapes))]
	if !c.made[name] {
		c.create(name)
		return "created " + name
	}
	switch c.rnd.IntN(7) {
	case 0, 1:
		if name == "all" {
			name = "balanced"
		}
		if !c.made[name] {
			c.create(name)
		}
		n := c.rnd.IntN(6)
		Docker(c.t, h, "service", "scale", "-d", fmt.Sprintf("%s=%d", name, n))
		return fmt.Sprintf("scaled %s to %d", name, n)
	case 2:
		Docker(c.t, h, "service", "update", "-d", "--force", name)
		return "updated " + name
	case 3:
		Docker(c.t, h, "service", "rm", name)
		delete(c.made, name)
		return "removed " + name
	case 4:
		for id := range strings.FieldsSeq(Docker(c.t, h, "ps", "-q", "--filter", "label=com.docker.swarm.service.name="+name)) {
			_, _ = h.Docker(c.t.Context(), "kill", id) // it may just have ended
		}
		return "killed the tasks of " + name + " on " + h.Name
	case 5:
		if c.drained != nil {
			Docker(c.t, h, "node", "update", "--availability", "active", c.drained.Name)
			c.drained = nil
			return "everybody is active"
		}
		c.drained = h
		Docker(c.t, c.any(), "node", "update", "--availability", "drain", h.Name)
		return "drained " + h.Name
	}
	must(h.KillDaemon(c.t.Context()))
	if c.rnd.IntN(2) == 0 {
		must(h.KillKeeper())
	}
	for id := range strings.FieldsSeq(Docker(c.t, c.lab.Hosts[(slices.Index(c.lab.Hosts, h)+1)%3], "ps", "-q", "--filter", "label=com.docker.swarm.service.name="+name)) {
		_, _ = c.lab.Hosts[(slices.Index(c.lab.Hosts, h)+1)%3].Docker(c.t.Context(), "kill", id)
	}
	must(h.Start(c.t.Context()))
	return "killed the programs of " + h.Name
}

// settle waits until the cluster has what is wanted and every host agrees with it.
func (c *chaos) settle(when string) {
	c.t.Helper()
	began := time.Now()
	defer func() { c.t.Logf("%s: all agree after %v", when, time.Since(began).Round(10*time.Millisecond)) }()
	Eventually(c.t, 60*time.Second, "nothing stale after "+when, func(ctx context.Context) error {
		for _, h := range c.lab.Hosts {
			if err := c.findWatcher(ctx, h); err != nil {
				return err
			}
		}
		api, err := c.lab.Hosts[0].Client()
		if err != nil {
			return err
		}
		defer api.Close()
		w, err := c.truth(ctx, api)
		if err != nil {
			return err
		}
		for _, h := range c.lab.Hosts {
			if err := c.compare(ctx, h, w); err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
		}
		again, err := c.truth(ctx, api)
		if err == nil && fmt.Sprint(*w) != fmt.Sprint(*again) {
			err = fmt.Errorf("the tasks changed while they were compared")
		}
		return err
	})
}

func (c *chaos) findWatcher(ctx context.Context, h *testhost.Host) error {
	out, err := h.Docker(ctx, "inspect", "-f", "{{.State.Running}} {{.NetworkSettings.SandboxKey}} {{.NetworkSettings.Networks.n.IPAddress}}", "watch")
	f := strings.Fields(out)
	if err != nil || len(f) != 3 || f[0] != "true" {
		return fmt.Errorf("%s: the container that watches: %q %w", h.Name, out, err)
	}
	addr, err := netip.ParseAddr(f[2])
	c.watch[h] = watcher{f[1], addr}
	return err
}

// want is what every host should have.
type want struct {
	names     map[string][]netip.Addr           // answers of the name server
	vips      map[netip.Addr][]netip.Addr       // of the network, with their members
	published map[ingress.Endpoint][]netip.Addr // with the members' addresses on the ingress network
	homes     map[netip.Addr]string             // of what is on the network: the hosts
}

// truth is what follows from the services and tasks that a manager tells; an error as long as the services do not have
// what they want.
func (c *chaos) truth(ctx context.Context, api *client.Client) (*want, error) {
	services, err := api.ServiceList(ctx, client.ServiceListOptions{})
	if err != nil {
		return nil, err
	}
	tasks, err := api.TaskList(ctx, client.TaskListOptions{})
	if err != nil {
		return nil, err
	}
	nodes, err := api.NodeList(ctx, client.NodeListOptions{})
	if err != nil {
		return nil, err
	}
	hosts, active := map[string]string{}, 0
	for _, n := range nodes.Items {
		if n.Status.State != apiswarm.NodeStateReady {
			return nil, fmt.Errorf("%s is %s", n.Description.Hostname, n.Status.State)
		}
		hosts[n.ID] = n.Description.Hostname
		if n.Spec.Availability == apiswarm.NodeAvailabilityActive {
			active++
		}
	}
	w := &want{names: map[string][]netip.Addr{}, vips: map[netip.Addr][]netip.Addr{}, published: map[ingress.Endpoint][]netip.Addr{}, homes: map[netip.Addr]string{}}
	for h, watch := range c.watch {
		w.homes[watch.addr] = h.Name
	}
	members, inward := map[string][]netip.Addr{}, map[string][]netip.Addr{}
	for _, t := range tasks.Items {
		if t.Status.State < apiswarm.TaskStateRunning && t.DesiredState == apiswarm.TaskStateRunning && t.Status.State != apiswarm.TaskStateRunning {
			return nil, fmt.Errorf("task %s is %s", t.ID, t.Status.State)
		}
		ended := slices.Contains([]apiswarm.TaskState{"complete", "shutdown", "failed", "rejected", "orphaned", "remove"}, t.Status.State)
		if !ended && t.DesiredState != apiswarm.TaskStateRunning {
			return nil, fmt.Errorf("task %s is %s and to be %s", t.ID, t.Status.State, t.DesiredState)
		}
		if ended {
			continue
		}
		for _, a := range t.NetworksAttachments {
			for _, p := range a.Addresses {
				switch {
				case a.Network.ID == c.network:
					members[t.ServiceID] = append(members[t.ServiceID], p.Addr())
					w.homes[p.Addr()] = hosts[t.NodeID]
				case a.Network.Spec.Ingress:
					inward[t.ServiceID] = append(inward[t.ServiceID], p.Addr())
				}
			}
		}
	}
	for name := range shapes {
		w.names[name], w.names["tasks."+name] = nil, nil
	}
	for _, s := range services.Items {
		number := active
		if r := s.Spec.Mode.Replicated; r != nil {
			number = int(*r.Replicas)
		}
		all := sorted(members[s.ID])
		if len(all) != number {
			return nil, fmt.Errorf("%s has %d tasks of %d", s.Spec.Name, len(all), number)
		}
		w.names["tasks."+s.Spec.Name], w.names[s.Spec.Name] = all, all
		for _, v := range s.Endpoint.VirtualIPs {
			if v.NetworkID == c.network {
				w.names[s.Spec.Name] = []netip.Addr{v.Addr.Addr()}
				w.vips[v.Addr.Addr()] = all
			}
		}
		for _, p := range s.Endpoint.Ports {
			w.published[ingress.Endpoint{Protocol: cloud.Protocol(p.Protocol), Port: uint16(p.PublishedPort)}] = sorted(inward[s.ID])
		}
	}
	return w, nil
}

func sorted(in []netip.Addr) []netip.Addr {
	out := slices.Clone(in)
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// compare says where the host has something else than it should.
func (c *chaos) compare(ctx context.Context, h *testhost.Host, w *want) error {
	for name, addrs := range w.names {
		out, err := h.Docker(ctx, "exec", "watch", "/probe", "lookup", name)
		// A name that nobody has is asked of the host's own servers, which cannot be reached.
		if err != nil && !strings.Contains(err.Error(), "no such host") && !strings.Contains(err.Error(), "server misbehaving") {
			return err
		}
		var got []netip.Addr
		for _, f := range strings.Fields(out) {
			if a, err := netip.ParseAddr(f); err == nil {
				got = append(got, a)
			}
		}
		if got = sorted(got); !slices.Equal(got, addrs) {
			return fmt.Errorf("%s is %v, want %v", name, got, addrs)
		}
	}
	vips, err := lb.Open(c.watch[h].sandbox, "").VIPs()
	if err != nil {
		return err
	}
	if !maps.EqualFunc(vips, w.vips, slices.Equal) {
		return fmt.Errorf("virtual IPs are %v, want %v", vips, w.vips)
	}
	ns, err := netns.Open(h.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	published, err := ingress.NewHost(ns, nil, nil).Published()
	if err != nil {
		return err
	}
	got := map[ingress.Endpoint][]netip.Addr{}
	for e, members := range published {
		got[e] = []netip.Addr{}
		for _, m := range members {
			got[e] = append(got[e], m.Addr())
		}
		got[e] = sorted(got[e])
	}
	if !maps.EqualFunc(got, w.published, slices.Equal) {
		return fmt.Errorf("published are %v, want %v", got, w.published)
	}
	d := overlay.New(overlay.Config{Dir: filepath.Join(h.ExecRoot(), "netns"), Host: ns})
	defer d.Close()
	remotes, err := d.Remotes(c.network)
	if err != nil {
		return err
	}
	far := map[netip.Addr]overlay.Remote{}
	for a, home := range w.homes {
		i := slices.IndexFunc(c.lab.Hosts, func(o *testhost.Host) bool { return o.Name == home })
		if home != h.Name && i >= 0 {
			far[a] = overlay.At(a, c.lab.Hosts[i].Addr)
		}
	}
	if !maps.Equal(remotes, far) {
		return fmt.Errorf("the overlay forwards %v, want %v", remotes, far)
	}
	return nil
}
