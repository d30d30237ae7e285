package network

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network/ipam"
	"github.com/sampan-cloud/sampan/internal/sys/link"
)

// All of this file is called with Manager.mu held.

// takeSubnet takes one subnet for a network and enters it there, complete.
func (m *Manager) takeSubnet(n *Network, r ipam.Request, v6 bool) error {
	var avoid []netip.Prefix
	n.limit(&r, v6)
	if !r.Given() {
		var err error
		if avoid, err = m.routed(n.Link); err != nil {
			return err
		}
	}
	s, err := m.space.Take(n.ID, r, v6, avoid)
	if err != nil {
		return err
	}
	n.Subnets = append(n.Subnets, cloud.IPAMConfig{Subnet: s.Prefix, Range: r.Range, Gateway: s.Gateway, Aux: s.Aux})
	return nil
}

// limit says what a network's kind asks of its subnets.
func (n *Network) limit(r *ipam.Request, v6 bool) {
	switch n.Spec.Driver {
	case DriverMacvlan, DriverIPvlan:
		// The gateway, if any, is a router outside, and several networks may lead to one physical network.
		r.NoGateway, r.Shared = true, true
	case DriverBridge:
		o := n.bridge()
		r.NoGateway = v6 && o.mode6 == modeIsolated || !v6 && (o.mode4 == modeIsolated || o.inhibit4 && n.Spec.Internal)
	}
}

func (m *Manager) giveSubnets(n *Network) {
	for _, c := range n.Subnets {
		m.space.Give(n.ID, c.Subnet)
	}
}

// routed are the prefixes that the host has routes to: a subnet that is chosen for a user must not hide them. Those by the
// network's own bridge, which a daemon with another data root has left, are its own.
func (m *Manager) routed(own string) ([]netip.Prefix, error) {
	index, err := link.Index(m.nl, own)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	routes, err := m.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil || index != 0 && r.LinkIndex == index {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		if p := netip.PrefixFrom(a.Unmap(), bits); ok && p.IsValid() && bits > 0 {
			out = append(out, p)
		}
	}
	return out, nil
}

// allocate gives an endpoint addresses of a network of this host.
func (m *Manager) allocate(n *Network, j *joined, es EndpointSpec, no6 bool) error {
	want4, want6 := es.IPv4.Unmap(), es.IPv6
	for _, c := range n.Subnets {
		if no6 && c.Subnet.Addr().Is6() {
			continue
		}
		s := m.space.Subnet(n.ID, c.Subnet)
		if s == nil {
			return fault.New(fault.Internal, "network %s: subnet %s is not in the books", n.Spec.Name, c.Subnet)
		}
		into, gateway, onLink, want := &j.IPv4, &j.Gateway4, &j.OnLink4, want4
		if c.Subnet.Addr().Is6() {
			into, gateway, onLink, want = &j.IPv6, &j.Gateway6, &j.OnLink6, want6
		}
		if into.IsValid() || want.IsValid() && !c.Subnet.Contains(want) {
			continue // the network has several subnets of the family
		}
		a, err := s.Alloc(want)
		if err != nil {
			if fault.Is(err, fault.Exhausted) && !want.IsValid() && more(n, c) {
				continue
			}
			m.free(&j.Endpoint)
			return err
		}
		*into = netip.PrefixFrom(a, c.Subnet.Bits())
		if *onLink = n.onLink(); !*onLink {
			*gateway = n.gateway(c)
		}
	}
	for want, got := range map[netip.Addr]netip.Prefix{want4: j.IPv4, want6: j.IPv6} {
		if want.IsValid() && got.Addr() != want {
			m.free(&j.Endpoint)
			return fault.New(fault.InvalidArgument, "invalid endpoint settings: no configured subnet contains IP address %s", want)
		}
	}
	if !j.IPv4.IsValid() && !j.IPv6.IsValid() && !n.Spec.NoAddresses {
		return fault.New(fault.Exhausted, "no available IPv4 addresses on this network's address pools: %s (%s)", n.Spec.Name, n.ID)
	}
	for _, a := range es.LinkLocal {
		bits := 16
		if a = a.Unmap(); a.Is6() {
			bits = 64
		}
		if !a.IsLinkLocalUnicast() {
			m.free(&j.Endpoint)
			return fault.New(fault.InvalidArgument, "invalid link-local address %s: it is in neither 169.254.0.0/16 nor fe80::/64", a)
		}
		j.LinkLocal = append(j.LinkLocal, netip.PrefixFrom(a, bits))
	}
	return nil
}

// more reports whether the network has another subnet of the same family after c.
func more(n *Network, c subnet) bool {
	found := false
	for _, o := range n.Subnets {
		if found && o.Subnet.Addr().Is6() == c.Subnet.Addr().Is6() {
			return true
		}
		found = found || o.Subnet == c.Subnet
	}
	return false
}

// free gives an endpoint's addresses back; those of the cluster are not ours.
func (m *Manager) free(e *Endpoint) {
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if !p.IsValid() {
			continue
		}
		n := m.networks[e.NetworkID]
		if n == nil || n.Scope != ScopeLocal {
			continue
		}
		if s := m.space.Subnet(n.ID, p.Masked()); s != nil {
			s.Free(p.Addr())
		}
	}
}
