package control_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

// TestNoStaleEntryWhateverHappens does everything that can happen to a cluster, at random and at once, and then looks
// for what other systems are reported to leave behind: an address in a name, a virtual IP or a published port that leads
// nowhere, one that is missing, or one that leads to somebody else.
func TestNoStaleEntryWhateverHappens(t *testing.T) {
	rounds := 4
	if testing.Short() {
		rounds = 3
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			run(t, 4, 3, func(t *testing.T, s *sim) {
				c := chaos{s: s, rnd: rand.New(rand.NewPCG(uint64(seed), 7))}
				s.network("front")
				s.network("back")
				c.create()
				c.create()
				for range 40 {
					c.step()
					if c.rnd.IntN(3) > 0 {
						s.pass(time.Duration(c.rnd.IntN(1500)) * time.Millisecond)
					}
				}
				c.calm()
				s.eventually("everything is as it should be: "+strings.Join(c.done, ", "), func() bool { return c.wrong() == "" })
				s.pass(30 * time.Second)
				if w := c.wrong(); w != "" {
					t.Errorf("%s\nafter %s\n%s", w, strings.Join(c.done, ", "), s.describe())
				}
			})
		})
	}
}

type chaos struct {
	s    *sim
	rnd  *rand.Rand
	made int
	done []string
}

func (c *chaos) note(format string, args ...any) {
	c.done = append(c.done, fmt.Sprintf(format, args...))
}

func pick[T any](r *rand.Rand, from []T) (T, bool) {
	var none T
	if len(from) == 0 {
		return none, false
	}
	return from[r.IntN(len(from))], true
}

func (c *chaos) host() *host {
	name, _ := pick(c.rnd, slices.Sorted(maps.Keys(c.s.hosts)))
	return c.s.hosts[name]
}

func (c *chaos) create() {
	c.made++
	nets := [][]string{{"front"}, {"back"}, {"front", "back"}, {}}[c.rnd.IntN(4)]
	spec := webSpec(fmt.Sprintf("svc%d", c.made), []string{"web:1", "web:2", "slow:1"}[c.rnd.IntN(3)], uint64(c.rnd.IntN(6)), nets...)
	if c.rnd.IntN(3) == 0 {
		spec.Endpoint.Ports = []cloud.PortConfig{{Target: 80, Protocol: cloud.TCP}}
	}
	if c.rnd.IntN(3) == 0 {
		spec.Update.Order = cloud.StartFirst
	}
	if c.rnd.IntN(4) == 0 {
		spec.Mode = cloud.ServiceMode{Global: true}
	}
	c.s.create(spec)
	c.note("create %s %v", spec.Name, spec.Mode)
}

func (c *chaos) step() {
	s, r := c.s, c.rnd
	switch r.IntN(11) {
	case 0:
		if c.made < 6 {
			c.create()
		}
	case 1:
		if svc, ok := pick(r, list[*cloud.Service](s)); ok && len(list[*cloud.Service](s)) > 1 {
			must(s.t, s.api.RemoveService(s.t.Context(), svc.ID))
			c.note("remove %s", svc.Spec.Name)
		}
	case 2, 3:
		if svc, ok := pick(r, list[*cloud.Service](s)); ok && !svc.Spec.Mode.Global {
			n := uint64(r.IntN(7))
			s.update(svc.ID, func(sp *cloud.ServiceSpec) { sp.Mode.Replicas = n })
			c.note("scale %s %d", svc.Spec.Name, n)
		}
	case 4:
		if svc, ok := pick(r, list[*cloud.Service](s)); ok {
			img := []string{"web:1", "web:2", "slow:1", "crash:1", "gone:1"}[r.IntN(5)]
			s.update(svc.ID, func(sp *cloud.ServiceSpec) { sp.Task.Container.Image = img })
			c.note("update %s %s", svc.Spec.Name, img)
		}
	case 5:
		h := c.host()
		cut := r.IntN(2) == 0
		h.setCut(cut)
		c.note("cut %s %t", h.name, cut)
	case 6:
		h := c.host()
		if task, ok := pick(r, h.runningTasks()); ok {
			h.kill(task, 1)
			c.note("kill on %s", h.name)
		}
	case 7:
		h := c.host()
		h.crash()
		h.boot()
		c.note("daemon %s", h.name)
	case 8:
		i := r.IntN(4) - 1
		s.elect(i)
		c.note("leader %d", i)
	case 9:
		h := c.host()
		a := []cloud.Availability{cloud.AvailabilityActive, cloud.AvailabilityDrain, cloud.AvailabilityPause}[r.IntN(3)]
		s.setAvailability(h.name, a)
		c.note("%s %s", h.name, a)
	case 10:
		h := c.host()
		h.mu.Lock()
		h.applyDelay = time.Duration(r.IntN(400)) * time.Millisecond
		h.mu.Unlock()
	}
}

// calm ends all that hinders the cluster.
func (c *chaos) calm() {
	s := c.s
	for _, name := range slices.Sorted(maps.Keys(s.hosts)) {
		s.hosts[name].setCut(false)
		s.setAvailability(name, cloud.AvailabilityActive)
	}
	s.elect(0)
	for _, svc := range list[*cloud.Service](s) {
		s.update(svc.ID, func(sp *cloud.ServiceSpec) { sp.Task.Container.Image = "web:1" })
	}
}

// wrong says what is not as it should be, "" for nothing.
func (c *chaos) wrong() string {
	s := c.s
	byAddr := map[netip.Addr]string{}
	alive := map[string]*cloud.Task{}
	for _, t := range s.tasks("") {
		if t.Serving() {
			alive[t.ID] = t
		} else if t.Desired <= cloud.TaskRunning {
			return fmt.Sprintf("task %s.%d is %s", t.ServiceName, t.Slot, t.Status.State)
		}
	}
	for _, svc := range list[*cloud.Service](s) {
		want, have := int(svc.Spec.Mode.Replicas), 0
		if svc.Spec.Mode.Global {
			want = len(s.hosts)
		}
		for _, t := range alive {
			if t.ServiceID == svc.ID {
				have++
			}
		}
		if have != want {
			return fmt.Sprintf("service %s has %d tasks, want %d", svc.Spec.Name, have, want)
		}
		for _, v := range svc.Endpoint.VIPs {
			for _, a := range v.Addrs {
				if other := byAddr[a.Addr()]; other != "" {
					return fmt.Sprintf("address %s is of %s and %s", a.Addr(), svc.Spec.Name, other)
				}
				byAddr[a.Addr()] = svc.Spec.Name
			}
		}
	}
	running := 0
	for name, h := range s.hosts {
		for _, id := range h.runningTasks() {
			running++
			if t := alive[id]; t == nil || t.NodeID != name {
				return fmt.Sprintf("host %s runs task %s, which should not be there", name, id)
			}
		}
	}
	if running != len(alive) {
		return fmt.Sprintf("%d containers for %d tasks", running, len(alive))
	}
	for _, t := range alive {
		for _, n := range t.Networks {
			for _, a := range n.Addrs {
				if other := byAddr[a.Addr()]; other != "" {
					return fmt.Sprintf("address %s is of %s and %s", a.Addr(), t.ID, other)
				}
				byAddr[a.Addr()] = t.ID
			}
		}
	}
	for name, h := range s.hosts {
		if w := c.wrongOn(name, h, alive); w != "" {
			return "host " + name + ": " + w
		}
	}
	return ""
}

// wrongOn compares what a host has in its kernel with what there is.
func (c *chaos) wrongOn(name string, h *host, alive map[string]*cloud.Task) string {
	v := h.applied()
	if v == nil {
		return "nothing applied"
	}
	nets := map[string]bool{}
	for _, n := range list[*cloud.Network](c.s) {
		if n.Spec.Ingress {
			nets[n.ID] = true
		}
	}
	for _, t := range alive {
		if t.NodeID == name {
			for _, n := range t.Networks {
				nets[n.NetworkID] = true
			}
		}
	}
	if have := slices.Sorted(maps.Keys(v.Networks)); !slices.Equal(have, slices.Sorted(maps.Keys(nets))) {
		return fmt.Sprintf("networks %v, want %v", have, nets)
	}
	plain := func(prefixes []netip.Prefix) (out []netip.Addr) {
		for _, p := range prefixes {
			out = append(out, p.Addr())
		}
		return out
	}
	want := map[string][]netip.Addr{}
	for _, t := range alive {
		for _, n := range t.Networks {
			if nets[n.NetworkID] {
				want[cloud.MemberID(t.ID, n.NetworkID)] = plain(n.Addrs)
			}
		}
	}
	for id, m := range v.Members {
		addrs, ok := want[id]
		if !ok {
			return fmt.Sprintf("a member that is not there: %s of %s, ready %t", id, m.ServiceName, m.Ready)
		}
		if !m.Ready || !slices.Equal(m.Addrs, addrs) {
			return fmt.Sprintf("member %s of %s: ready %t, addresses %v, want %v", id, m.ServiceName, m.Ready, m.Addrs, addrs)
		}
	}
	if len(v.Members) != len(want) {
		return fmt.Sprintf("%d members, want %d", len(v.Members), len(want))
	}
	services := 0
	for _, svc := range list[*cloud.Service](c.s) {
		for _, vip := range svc.Endpoint.VIPs {
			if !nets[vip.NetworkID] {
				continue
			}
			services++
			vs := v.Services[svc.ID+"/"+vip.NetworkID]
			if vs == nil || vs.Name != svc.Spec.Name || !slices.Equal(vs.VIPs, plain(vip.Addrs)) {
				return fmt.Sprintf("service %s is %+v, want address %v", svc.Spec.Name, vs, vip.Addrs)
			}
		}
	}
	if len(v.Services) != services {
		return fmt.Sprintf("%d services, want %d", len(v.Services), services)
	}
	if len(v.Peers) != len(c.s.hosts) {
		return fmt.Sprintf("%d peers", len(v.Peers))
	}
	for id, t := range v.Tasks {
		if alive[id] == nil && !t.Status.State.Ended() && t.Desired <= cloud.TaskRunning {
			return fmt.Sprintf("task %s is still wanted here", id)
		}
	}
	return ""
}

func TestStandaloneContainerOnAnAttachableNetwork(t *testing.T) {
	run(t, 2, 1, func(t *testing.T, s *sim) {
		id := s.network("net")
		s.create(webSpec("web", "web:1", 2, "net"))
		s.serve("web", 2)
		h := s.hosts["node2"]
		ask := &rpc.AttachRequest{Network: "net", ContainerId: "c1", Name: "box", Aliases: []string{"b"}}
		got, err := h.agent.Attach(t.Context(), ask)
		must(t, err)
		again, err := h.agent.Attach(t.Context(), ask)
		must(t, err)
		if got.Network.ID != id || len(got.Attachment.Addrs) != 1 || again.Attachment.ID != got.Attachment.ID {
			t.Errorf("first %+v, then %+v", got.Attachment, again.Attachment)
		}
		key := cloud.MemberID(got.Attachment.ID, id)
		s.eventually("the other host knows it by name", func() bool {
			m := s.hosts["node1"].applied().Members[key]
			return m != nil && m.Ready && m.Name == "box" && m.Aliases[0] == "b"
		})
		if _, err := h.agent.Attach(t.Context(), &rpc.AttachRequest{Network: "net", ContainerId: "c2", Addrs: []string{got.Attachment.Addrs[0].Addr().String()}}); err == nil {
			t.Error("an address was given twice")
		}
		if err := s.api.RemoveNetwork(t.Context(), "net"); err == nil {
			t.Error("a network in use was removed")
		}
		must(t, h.agent.Detach(t.Context(), "c1", ""))
		s.eventually("nobody knows it any more", func() bool { return s.hosts["node1"].applied().Members[key] == nil })
	})
}
