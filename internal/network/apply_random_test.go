package network_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/network"
	"github.com/sampan-cloud/sampan/internal/network/ingress"
	"github.com/sampan-cloud/sampan/internal/network/lb"
	"github.com/sampan-cloud/sampan/internal/network/overlay"
)

// TestNothingStale changes a view at random, breaks applying at random places, restarts the manager now and then, and
// compares what is in the kernel and the name server with the view after each Apply that says it succeeded.
func TestNothingStale(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s := newSwarm(t, 1)
	h := s.hosts[0]
	for i := range 4 {
		name := fmt.Sprintf("far%d", i)
		s.view.Peers[name] = &cloud.Peer{NodeID: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 99, 0, byte(100 + i)})},
			Ingress: cloud.IngressLeg{Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(200 + i)})}, Mark: uint32(i+9) << cloud.IngressMarkShift}}
	}
	nets := []string{ingressID, redID, blueID}
	s.network(redID, "red", "10.10.0.0/24", 4097)
	s.network(blueID, "blue", "10.11.0.0/24", 4098)
	s.apply()
	subnet := map[string]byte{}
	for _, id := range nets {
		subnet[id] = s.view.Networks[id].Status.Subnets[0].Subnet.Addr().As4()[1]
	}
	third := func(id string, last int) string { return fmt.Sprintf("10.%d.0.%d", subnet[id], last) }
	// Two sandboxes here see it all: one on each of red and blue, and on the ingress network.
	boxes := map[string]string{} // by network
	for i, id := range []string{redID, blueID} {
		name := "here" + id
		sb, err := h.m.Attach(t.Context(), network.SandboxSpec{ID: name, Owner: name,
			Endpoints: []network.EndpointSpec{on(id, third(id, 250)), on(ingressID, third(ingressID, 250+i))}})
		must(t, err)
		boxes[id] = sb.NetNS
	}
	names := failpoint.Record()
	s.apply()
	points := slices.DeleteFunc(names(), func(p string) bool { return p == "" })

	services := []string{"a", "b", "c"}
	broken := 0
	for step := range 150 {
		for range 1 + r.IntN(4) {
			id := nets[r.IntN(len(nets))]
			service, slot := services[r.IntN(len(services))], r.IntN(6)
			task := fmt.Sprintf("%s.%d", service, slot)
			key := cloud.MemberID(task, id)
			switch m := s.view.Members[key]; {
			case r.IntN(5) == 0:
				v := &cloud.VirtualService{ServiceID: "id-" + service, NetworkID: id, Name: service, VIPs: []netip.Addr{ip(third(id, 100+slices.Index(services, service)))}}
				if r.IntN(4) == 0 {
					v.Mode = cloud.EndpointDNSRR
				}
				if id == ingressID {
					v.Ports = []cloud.PortConfig{{Protocol: cloud.TCP, Published: 8000 + uint16(slices.Index(services, service)), Target: uint16(80 + r.IntN(2))}}
				}
				if _, there := s.view.Services[v.Key()]; there && r.IntN(2) == 0 {
					delete(s.view.Services, v.Key())
				} else {
					s.view.Services[v.Key()] = v
				}
			case m == nil:
				s.member(id, 0, service, task, third(id, 10+slot+10*slices.Index(services, service))).NodeID = fmt.Sprintf("far%d", r.IntN(4))
			case r.IntN(3) == 0:
				delete(s.view.Members, key)
			case r.IntN(3) == 0:
				c := *m
				c.NodeID = []string{"far0", "far1", "far2", h.Name}[r.IntN(4)]
				s.view.Members[key] = &c
			default:
				c := *m
				c.Ready = !m.Ready
				s.view.Members[key] = &c
			}
		}
		if r.IntN(10) == 0 {
			must(t, h.m.Close())
			h.start()
		}
		disable := func() {}
		if r.IntN(3) == 0 {
			disable = failpoint.Enable(points[r.IntN(len(points))], failpoint.Fail)
		}
		err := h.m.Apply(t.Context(), s.view, h.Name)
		disable()
		if err != nil {
			broken++
		}
		if err != nil && r.IntN(2) == 0 {
			continue // the next view comes before the retry
		} else if err != nil {
			must(t, h.m.Apply(t.Context(), s.view, h.Name))
		}
		if d := s.difference(boxes); d != "" {
			t.Fatalf("step %d: %s", step, d)
		}
	}
	if broken == 0 {
		t.Errorf("no Apply was broken off by any of the failpoints %v", points)
	}
}

// difference says where the first host differs from the view. It is computed from the view in the plainest way.
func (s *swarm) difference(boxes map[string]string) string {
	s.t.Helper()
	h := s.hosts[0]
	ready := func(networkID, serviceID string) []netip.Addr {
		out := []netip.Addr{}
		for _, m := range s.view.Members {
			if m.NetworkID == networkID && m.ServiceID == serviceID && m.Ready {
				out = append(out, m.Addrs...)
			}
		}
		slices.SortFunc(out, netip.Addr.Compare)
		return out
	}
	vips := map[string]map[netip.Addr][]netip.Addr{}
	for id, n := range s.view.Networks {
		remotes := map[netip.Addr]overlay.Remote{}
		for _, m := range s.view.Members {
			if m.NetworkID == id && m.NodeID != h.Name {
				remotes[m.Addrs[0]] = overlay.At(m.Addrs[0], s.view.Peers[m.NodeID].Addrs[0])
			}
		}
		for node, p := range s.view.Peers {
			if n.Spec.Ingress && node != h.Name {
				remotes[p.Ingress.Addrs[0]] = overlay.At(p.Ingress.Addrs[0], p.Addrs[0])
			}
		}
		d := overlay.New(overlay.Config{Dir: filepath.Join(h.Dir, "exec", "netns"), Host: h.NS})
		got, err := d.Remotes(id)
		must(s.t, err)
		must(s.t, d.Close())
		if !maps.Equal(got, remotes) {
			return fmt.Sprintf("network %s forwards %v, want %v", n.Spec.Name, got, remotes)
		}
		vips[id] = map[netip.Addr][]netip.Addr{}
		for _, v := range s.view.Services {
			if v.NetworkID != id {
				continue
			}
			want := ready(id, v.ServiceID)
			if got := h.names.lookup(id, "tasks."+v.Name); !slices.Equal(got, want) {
				return fmt.Sprintf("tasks.%s on %s is %v, want %v", v.Name, n.Spec.Name, got, want)
			}
			if v.Mode != cloud.EndpointDNSRR {
				vips[id][v.VIPs[0]] = want
				want = v.VIPs
			}
			if got := h.names.lookup(id, v.Name); !slices.Equal(got, want) {
				return fmt.Sprintf("%s on %s is %v, want %v", v.Name, n.Spec.Name, got, want)
			}
		}
		for _, m := range s.view.Members {
			want := []netip.Addr(nil)
			if m.NetworkID != id {
				continue
			}
			if m.Ready {
				want = m.Addrs
			}
			if got := h.names.lookup(id, m.Name); !slices.Equal(got, want) {
				return fmt.Sprintf("%s on %s is %v, want %v", m.Name, n.Spec.Name, got, want)
			}
		}
	}
	for id, path := range boxes {
		want := maps.Clone(vips[id])
		maps.Copy(want, vips[ingressID])
		got, err := lb.Open(path, "").VIPs()
		must(s.t, err)
		if !maps.EqualFunc(got, want, slices.Equal) {
			return fmt.Sprintf("sandbox on %s has virtual IPs %v, want %v", id, got, want)
		}
	}
	want := map[ingress.Endpoint][]netip.AddrPort{}
	for _, v := range s.view.Services {
		for _, p := range v.Ports {
			list := []netip.AddrPort{}
			for _, a := range ready(ingressID, v.ServiceID) {
				list = append(list, netip.AddrPortFrom(a, p.Target))
			}
			want[ingress.Endpoint{Protocol: p.Protocol, Port: p.Published}] = list
		}
	}
	got, err := ingress.NewHost(h.NS, nil, nil).Published()
	must(s.t, err)
	if !maps.EqualFunc(got, want, slices.Equal) {
		return fmt.Sprintf("published are %v, want %v", got, want)
	}
	return ""
}
