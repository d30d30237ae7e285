package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network/ipam"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// restore takes over what an earlier daemon left: networks, then sandboxes with their addresses and ports, then the
// firewall as a whole, then names; at the end what belongs to nobody goes.
func (m *Manager) restore(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.restoreNetworks(); err != nil {
		return err
	}
	found, bad, err := load[sandbox](m.boxes)
	if err != nil {
		return err
	}
	for id, err := range bad {
		m.log.Error("a sandbox's record cannot be read: it is removed", "sandbox", id, "error", err)
		_ = m.boxes.remove(id)
	}
	for id, sb := range found {
		if err := m.restoreSandbox(ctx, sb); err != nil {
			m.log.Warn("a sandbox is gone", "sandbox", id, "error", err)
			_ = m.boxes.remove(id)
		}
	}
	segments, mappings := map[string]segment{}, []mapping(nil)
	for _, n := range m.networks {
		if n.Scope == ScopeLocal && n.Spec.Driver == DriverBridge {
			segments[n.ID] = n.segment()
		}
	}
	for _, sb := range m.sandboxes {
		mappings = append(mappings, sb.mappings()...)
	}
	if err := m.fw.load(segments, mappings); err != nil {
		return err
	}
	if err := m.sweep(); err != nil {
		m.log.Error("removing what no sandbox uses", "error", err)
	}
	return m.restoreLive(ctx)
}

// restoreLive does what needs the sandboxes without the lock: what runs in the daemon, and names.
func (m *Manager) restoreLive(ctx context.Context) error {
	boxes := make([]*sandbox, 0, len(m.sandboxes))
	for _, sb := range m.sandboxes {
		boxes = append(boxes, sb)
	}
	m.mu.Unlock()
	defer m.mu.Lock()
	for _, sb := range boxes {
		var lost []BoundPort
		err := m.host.Do(func() error { lost = m.ports.claim(sb.Spec.ID, sb.Bound); return nil })
		if err != nil {
			return err
		}
		for _, p := range lost {
			m.log.Warn("another program has taken a published port while no daemon was there: from the host itself it may be reached instead",
				"sandbox", sb.Spec.ID, "port", netip.AddrPortFrom(p.HostIP, p.HostPort), "protocol", p.Protocol)
		}
		m.ports.proxies(sb.Spec.ID, m.dialFromHost, sb.proxied)
		for _, j := range sb.Joined {
			if m.networkOf(&j.Endpoint).Scope == ScopeSwarm {
				if err := m.cluster.attached(ctx, m.ref(sb)); err != nil {
					m.log.Error("virtual IPs of a sandbox", "sandbox", sb.Spec.ID, "error", err)
				}
				break
			}
		}
	}
	if err := m.dns.publish(ctx); err != nil {
		m.log.Error("the name server could not be told: it goes on with what it has", "error", err)
	}
	return nil
}

func (m *Manager) restoreNetworks() error {
	found, bad, err := load[Network](m.nets)
	if err != nil {
		return err
	}
	for id, err := range bad {
		return fault.New(fault.Internal, "network %s: its record %s cannot be read (restore it, or remove the file to lose the network): %w", id, m.nets.path(id), err)
	}
	for id, n := range found {
		n.Members = nil
		if n.Spec.Name == NameBridge && m.replaceBridge(n) {
			if err := errors.Join(m.nets.remove(id), link.Del(m.nl, n.Link)); err != nil {
				return err
			}
			continue
		}
		for _, c := range n.Subnets {
			_, err := m.space.Take(ipam.Request{Subnet: c.Subnet, Range: c.Range, Gateway: c.Gateway, Aux: c.Aux}, c.Subnet.Addr().Is6(), nil)
			if err != nil {
				return fmt.Errorf("network %s: subnet %s: %w", n.Spec.Name, c.Subnet, err)
			}
		}
		m.networks[id] = n
	}
	for _, n := range m.networks {
		if n.Spec.Driver == DriverBridge {
			if _, err := m.bridges.ensure(n); err != nil {
				return fmt.Errorf("network %s: %w", n.Spec.Name, err)
			}
		}
	}
	last, _, err := load[clusterState](m.rest)
	if err != nil {
		return err
	}
	if c := last[clusterFile]; c != nil {
		for id, n := range c.Networks {
			n.Scope = ScopeSwarm
			m.networks[id] = n
		}
		m.names = c.Names
	}
	return m.predefined()
}

// replaceBridge reports whether the network "bridge" is to be made anew because the daemon's configuration differs and
// nobody is on it. What somebody is on stays as it is.
func (m *Manager) replaceBridge(n *Network) bool {
	b := m.cfg.Bridge
	want := m.bridgeSpec()
	same := len(n.Subnets) > 0 && n.MTU == b.MTU && n.Spec.Options[optICC] == want.Options[optICC] && !b.Disabled
	if same && b.BIP.IsValid() {
		c := n.Subnets[0]
		same = c.Subnet == b.BIP.Masked() && c.Gateway == b.BIP.Addr() && (!b.FixedCIDR.IsValid() || c.Range == b.FixedCIDR)
	}
	if same {
		return false
	}
	found, _, err := load[sandbox](m.boxes)
	if err != nil {
		return false
	}
	for _, sb := range found {
		if sb.on(n.ID) != nil {
			m.log.Warn("the network \"bridge\" stays as it is, though the daemon's configuration differs: containers are on it")
			return false
		}
	}
	return true
}

func (m *Manager) bridgeSpec() Spec {
	spec := Spec{Name: NameBridge, Driver: DriverBridge, IPAMDriver: "default", IPv4: true, Options: map[string]string{
		optDefault: "true", optICC: fmt.Sprint(!m.cfg.Bridge.NoICC), optMasquerade: "true", optHostIP: "0.0.0.0",
		optBridgeName: defaultBridge, optMTU: fmt.Sprint(m.cfg.Bridge.MTU)}}
	if bip := m.cfg.Bridge.BIP; bip.IsValid() {
		spec.IPAM = []cloud.IPAMConfig{{Subnet: bip.Masked(), Range: m.cfg.Bridge.FixedCIDR, Gateway: bip.Addr()}}
	}
	return spec
}

// predefined makes the networks that every host has.
func (m *Manager) predefined() error {
	specs := []Spec{{Name: NameHost, Driver: DriverHost, IPAMDriver: "default", IPv4: true}, {Name: NameNone, Driver: DriverNull, IPAMDriver: "default", IPv4: true}}
	if !m.cfg.Bridge.Disabled {
		specs = append(specs, m.bridgeSpec())
	}
	for _, s := range specs {
		if _, err := m.find(s.Name); err == nil {
			continue
		}
		if _, err := m.createLocked(s, newID()); err != nil {
			return fmt.Errorf("network %s: %w", s.Name, err)
		}
	}
	return nil
}

// ensureGatewayBridge makes the network by which sandboxes on overlays reach the world.
func (m *Manager) ensureGatewayBridge() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.find(gatewayBridge); err == nil {
		return nil
	}
	_, err := m.createLocked(Spec{Name: gatewayBridge, Driver: DriverBridge, IPAMDriver: "default", IPv4: true, Options: map[string]string{
		optBridgeName: gatewayBridge, optICC: "false", optMasquerade: "true"}}, newID())
	return err
}

// restoreSandbox takes a sandbox over. m.mu is held.
func (m *Manager) restoreSandbox(ctx context.Context, sb *sandbox) error {
	var ns *netns.NS
	if sb.NetNS != "" {
		var err error
		if ns, err = netns.Open(sb.NetNS); err != nil {
			return err
		}
		defer func() { _ = ns.Close() }()
	}
	remade := false
	for _, e := range sb.all() {
		n := m.networks[e.NetworkID]
		if n == nil || n.Scope != ScopeLocal || n.Spec.Driver != DriverBridge {
			continue
		}
		for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
			if !p.IsValid() {
				continue
			}
			if s := m.space.Subnet(p.Masked()); s == nil {
				return fault.New(fault.Conflict, "its address %s is not in a subnet of network %s any more", p, e.NetworkName)
			} else if _, err := s.Alloc(p.Addr()); err != nil {
				return err
			}
		}
		if !present(ns, e.Interface) {
			remade = true
			if err := allowIPv6(ns, e.IPv6.IsValid()); err != nil {
				return err
			}
		}
		if err := m.bridges.attach(ctx, n, e, ns); err != nil {
			m.log.Error("an interface of a sandbox", "sandbox", sb.Spec.ID, "network", e.NetworkName, "error", err)
		}
	}
	if remade { // otherwise the routes may be what the container made of them
		if err := m.routes(sb, ns); err != nil {
			m.log.Error("the routes of a sandbox", "sandbox", sb.Spec.ID, "error", err)
		}
	}
	m.sandboxes[sb.Spec.ID] = sb
	return nil
}

// present reports whether the namespace has the interface.
func present(ns *netns.NS, name string) bool {
	h, err := ns.Netlink()
	if err != nil {
		return false
	}
	defer h.Close()
	_, err = link.Get(h, name)
	return err == nil
}

// sweep removes namespaces, and links on our bridges, that belong to no sandbox: of attaches and teardowns that a killed
// daemon did not finish.
func (m *Manager) sweep() error {
	keep, links := map[string]bool{}, map[string]bool{}
	for _, sb := range m.sandboxes {
		keep[sb.NetNS] = true
		for _, e := range sb.all() {
			links[hostLink(e.ID)] = true
		}
	}
	bridges := map[int]bool{}
	for _, n := range m.networks {
		if n.Scope == ScopeLocal && n.Spec.Driver == DriverBridge {
			if index, err := link.Index(m.nl, n.Link); err == nil {
				bridges[index] = true
			}
		}
	}
	all, err := m.nl.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range all {
		a := l.Attrs()
		if l.Type() == "veth" && bridges[a.MasterIndex] && strings.HasPrefix(a.Name, "veth") && !links[a.Name] {
			errs = append(errs, link.Del(m.nl, a.Name))
		}
	}
	return errors.Join(append(errs, m.spares.sweep(keep))...)
}
