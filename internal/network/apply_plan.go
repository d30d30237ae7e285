package network

import (
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/network/ingress"
	"github.com/sampan-cloud/sampan/internal/network/lb"
	"github.com/sampan-cloud/sampan/internal/network/overlay"
)

// plan is what a view asks of this host, in the terms of those who do it. It is never changed once it is in use (but for
// the MTUs that overlays turn out to have); what is as in the plan before it is shared with it, so that comparing two is
// comparing pointers.
type plan struct {
	empty   bool // no cluster
	nets    map[string]*netPlan
	ingress string // ID of the ingress network; empty: none
	leg     netip.Prefix
	leg6    netip.Prefix
	legs    map[netip.Addr]uint32 // of all nodes: address on the ingress network to mark
	ports   []*ingress.Port
}

// netPlan is one network.
type netPlan struct {
	spec    *cloud.Network
	overlay overlay.Network
	vips    *vipSet
	names   keeper.Names
	peers   []netip.Addr
	mtu     int
}

// vipSet are the virtual IPs of a network.
type vipSet struct{ byAddr map[netip.Addr]*lb.VIP }

func newPlan(view *cloud.NodeView, self string, old *plan) *plan {
	p := &plan{nets: map[string]*netPlan{}, legs: map[netip.Addr]uint32{}, empty: view == nil}
	if view == nil {
		return p
	}
	if old == nil {
		old = &plan{}
	}
	local := underlay(view.Peers[self])
	members := byNetwork(view)
	services := map[string][]*cloud.VirtualService{}
	for _, s := range view.Services {
		services[s.NetworkID] = append(services[s.NetworkID], s)
	}
	for id, n := range view.Networks {
		if n.Spec.Driver != "" && n.Spec.Driver != cloud.DriverOverlay {
			continue
		}
		slices.SortFunc(services[id], func(a, b *cloud.VirtualService) int { return strings.Compare(a.ServiceID, b.ServiceID) })
		np := &netPlan{spec: n, overlay: overlay.Network{ID: id, VNI: n.Status.VNI, MTU: n.Status.MTU, Local: local}}
		np.overlay.Remotes, np.peers = remotes(view, self, n, members[id])
		var before *vipSet
		if o := old.nets[id]; o != nil {
			before = o.vips
		}
		groups := group(members[id])
		np.vips = vips(services[id], groups, before)
		np.names = names(n, services[id], groups, members[id])
		p.nets[id] = np
		if n.Spec.Ingress {
			p.ingress = id
			p.ports = published(services[id], groups, old.ports)
			p.findLegs(view, self, n)
		}
	}
	return p
}

// byNetwork sorts the members: first by network, then by address, so that everything made from them is the same for the
// same view.
func byNetwork(view *cloud.NodeView) map[string][]*cloud.Member {
	out := map[string][]*cloud.Member{}
	for _, m := range view.Members {
		out[m.NetworkID] = append(out[m.NetworkID], m)
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b *cloud.Member) int {
			if c := slices.CompareFunc(a.Addrs, b.Addrs, netip.Addr.Compare); c != 0 {
				return c
			}
			return strings.Compare(a.ID, b.ID)
		})
	}
	return out
}

func underlay(p *cloud.Peer) netip.Addr {
	if p == nil || len(p.Addrs) == 0 {
		return netip.Addr{}
	}
	return p.Addrs[0].Unmap()
}

// remotes are the addresses that other nodes have on a network, ready or not, and these nodes' underlay addresses.
func remotes(view *cloud.NodeView, self string, n *cloud.Network, members []*cloud.Member) (map[netip.Addr]overlay.Remote, []netip.Addr) {
	out := map[netip.Addr]overlay.Remote{}
	peers := map[netip.Addr]bool{}
	add := func(nodeID string, addrs []netip.Addr) {
		node := underlay(view.Peers[nodeID])
		if nodeID == self || !node.IsValid() || len(addrs) == 0 {
			return
		}
		mac := cloud.MAC(first(addrs))
		for _, a := range addrs {
			if a.Is6() && !a.Is4In6() && !haveIPv6() {
				continue
			}
			out[a.Unmap()] = overlay.Remote{Node: node, MAC: mac}
			peers[node] = true
		}
	}
	for _, m := range members {
		add(m.NodeID, m.Addrs)
	}
	if n.Spec.Ingress {
		for id, p := range view.Peers {
			add(id, p.Ingress.Addrs)
		}
	}
	return out, slices.SortedFunc(maps.Keys(peers), netip.Addr.Compare)
}

// first is the address that an interface's hardware address is made from: that of IPv4 if it has one.
func first(addrs []netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() {
			return a
		}
	}
	return addrs[0]
}

// crew are the members of a service on one network, by address, and the names of the ready ones.
type crew struct {
	ready, draining []netip.Addr
	names           []string
}

func group(members []*cloud.Member) map[string]*crew {
	out := map[string]*crew{}
	for _, m := range members {
		if m.ServiceID == "" {
			continue
		}
		c := out[m.ServiceID]
		if c == nil {
			c = &crew{}
			out[m.ServiceID] = c
		}
		if m.Ready && m.Name != "" {
			c.names = append(c.names, m.Name)
		}
		for _, a := range m.Addrs {
			if m.Ready {
				c.ready = append(c.ready, a.Unmap())
			} else {
				c.draining = append(c.draining, a.Unmap())
			}
		}
	}
	return out
}

// sameFamily are those of addrs that a packet to the given address can be sent to.
func sameFamily(addrs []netip.Addr, as netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if a.Is4() == as.Is4() {
			out = append(out, a)
		}
	}
	return out
}

func vips(services []*cloud.VirtualService, crews map[string]*crew, before *vipSet) *vipSet {
	s := &vipSet{byAddr: map[netip.Addr]*lb.VIP{}}
	changed := before == nil
	for _, svc := range services {
		if svc.Mode == cloud.EndpointDNSRR {
			continue
		}
		c := crews[svc.ServiceID]
		if c == nil {
			c = &crew{}
		}
		for _, addr := range svc.VIPs {
			addr = addr.Unmap()
			v := &lb.VIP{Addr: addr, Members: sameFamily(c.ready, addr), Draining: sameFamily(c.draining, addr)}
			if before != nil {
				if o := before.byAddr[addr]; o != nil && slices.Equal(o.Members, v.Members) && slices.Equal(o.Draining, v.Draining) {
					v = o
				} else {
					changed = true
				}
			}
			s.byAddr[addr] = v
		}
	}
	if !changed && len(before.byAddr) == len(s.byAddr) {
		return before
	}
	return s
}

func published(services []*cloud.VirtualService, crews map[string]*crew, before []*ingress.Port) []*ingress.Port {
	known := map[ingress.Endpoint]*ingress.Port{}
	for _, p := range before {
		known[p.Endpoint] = p
	}
	var out []*ingress.Port
	seen := map[ingress.Endpoint]bool{}
	for _, svc := range services {
		for _, pc := range svc.Ports {
			if pc.Published == 0 || pc.Mode == cloud.PublishHost {
				continue
			}
			protocol := pc.Protocol
			if protocol == "" {
				protocol = cloud.TCP
			}
			p := &ingress.Port{Endpoint: ingress.Endpoint{Protocol: protocol, Port: pc.Published}, Target: pc.Target}
			if seen[p.Endpoint] {
				continue // the allocator gives a port once; were it given twice, the first one has it
			}
			seen[p.Endpoint] = true
			if c := crews[svc.ServiceID]; c != nil {
				p.Members, p.Draining = c.ready, c.draining
			}
			if o := known[p.Endpoint]; o != nil && o.Target == p.Target && slices.Equal(o.Members, p.Members) && slices.Equal(o.Draining, p.Draining) {
				p = o
			}
			out = append(out, p)
		}
	}
	return out
}

// findLegs learns where the nodes, this one too, are joined to the ingress network.
func (p *plan) findLegs(view *cloud.NodeView, self string, n *cloud.Network) {
	for id, peer := range view.Peers {
		for _, a := range peer.Ingress.Addrs {
			a = a.Unmap()
			if peer.Ingress.Mark&cloud.IngressMarkMask == 0 || a.Is6() && !haveIPv6() {
				continue
			}
			p.legs[a] = peer.Ingress.Mark & cloud.IngressMarkMask
			if id != self {
				continue
			}
			for _, s := range n.Status.Subnets {
				if s.Subnet.Contains(a) && a.Is4() {
					p.leg = netip.PrefixFrom(a, s.Subnet.Bits())
				} else if s.Subnet.Contains(a) {
					p.leg6 = netip.PrefixFrom(a, s.Subnet.Bits())
				}
			}
		}
	}
}

// haveIPv6 reports whether the kernel speaks it.
var haveIPv6 = sync.OnceValue(func() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
})

// network is the plan as the manager knows networks.
func (n *netPlan) network() *Network {
	s := n.spec.Spec
	return &Network{ID: n.spec.ID, Created: n.spec.CreatedAt, Scope: ScopeSwarm, Subnets: n.spec.Status.Subnets,
		VNI: n.spec.Status.VNI, MTU: n.mtu, Peers: n.peers,
		Spec: Spec{Name: s.Name, Driver: DriverOverlay, IPAMDriver: "default", IPAM: s.IPAM, IPAMOptions: s.IPAMOptions, Internal: s.Internal,
			Attachable: s.Attachable, Ingress: s.Ingress, IPv4: true, IPv6: s.IPv6, Options: s.Options, Labels: s.Labels}}
}
