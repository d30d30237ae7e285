package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
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
	segments, all := map[string]segment{}, []publication(nil)
	for _, n := range m.networks {
		if n.Scope == ScopeLocal && n.Spec.Driver == DriverBridge && !n.Spec.ConfigOnly {
			segments[n.ID] = n.segment()
		}
	}
	for _, sb := range m.sandboxes {
		all = append(all, sb.published())
	}
	if err := m.fw.load(segments, all); err != nil {
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
		if sb.BoundAs == "" && len(sb.Bound) > 0 { // of a daemon that did not note it
			kind := m.bindTo(sb).kind()
			m.mu.Lock()
			sb.BoundAs = kind
			m.mu.Unlock()
		}
		var lost []BoundPort
		err := m.host.Do(func() error { lost = m.ports.claim(sb.Spec.ID, sb.Bound); return nil })
		if err != nil {
			return err
		}
		for _, p := range lost {
			m.log.Warn("another program has taken a published port while no daemon was there: from the host itself it may be reached instead",
				"sandbox", sb.Spec.ID, "port", netip.AddrPortFrom(p.HostIP, p.HostPort), "protocol", p.Protocol)
		}
		if !m.cfg.NoProxy {
			m.ports.proxies(sb.Spec.ID, m.dialFromHost, sb.proxied)
		}
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
			err := m.nets.remove(id)
			if !n.Foreign {
				err = errors.Join(err, link.Del(m.nl, n.Link))
			}
			if err != nil {
				return err
			}
			continue
		}
		for _, c := range n.Subnets {
			r := ipam.Request{Subnet: c.Subnet, Range: c.Range, Gateway: c.Gateway, Aux: c.Aux}
			n.limit(&r, c.Subnet.Addr().Is6())
			_, err := m.space.Take(n.ID, r, c.Subnet.Addr().Is6(), nil)
			if err != nil {
				return fmt.Errorf("network %s: subnet %s: %w", n.Spec.Name, c.Subnet, err)
			}
		}
		m.networks[id] = n
	}
	for _, n := range m.networks {
		d := m.locals[n.Spec.Driver]
		if d == nil || n.Spec.ConfigOnly {
			continue
		}
		if err := d.restore(n); err != nil && n.Spec.Driver == DriverBridge {
			return fmt.Errorf("network %s: %w", n.Spec.Name, err)
		} else if err != nil { // an interface of the host may come later, and only this network needs it
			m.log.Error("a network cannot be used: the interface that it is on is missing", "network", n.Spec.Name, "interface", n.Link, "error", err)
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
	want, err := m.bridgeSpec()
	if err == nil && !m.cfg.Bridge.Disabled && n.MTU == m.cfg.Bridge.MTU && n.Spec.IPv6 == want.IPv6 && maps.Equal(n.Spec.Options, want.Options) &&
		slices.EqualFunc(n.Spec.IPAM, want.IPAM, func(a, b cloud.IPAMConfig) bool { return reflect.DeepEqual(a, b) }) {
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

// bridgeSpec is the network "bridge" as the daemon is configured.
func (m *Manager) bridgeSpec() (Spec, error) {
	b := m.cfg.Bridge
	link, bind := defaultBridge, "0.0.0.0"
	if b.Link != "" {
		link = b.Link
	}
	if b.Bind.IsValid() {
		bind = b.Bind.String()
	}
	spec := Spec{Name: NameBridge, Driver: DriverBridge, IPAMDriver: "default", IPv4: true, IPv6: b.IPv6, Options: map[string]string{
		optDefault: "true", optICC: fmt.Sprint(!b.NoICC), optMasquerade: fmt.Sprint(!b.NoMasquerade), optHostIP: bind,
		optBridgeName: link, optMTU: fmt.Sprint(b.MTU)}}
	four, six := cloud.IPAMConfig{Range: b.FixedCIDR}, cloud.IPAMConfig{Range: b.FixedCIDR6}
	if b.BIP.IsValid() {
		four.Subnet, four.Gateway = b.BIP.Masked(), b.BIP.Addr()
	}
	if b.BIP6.IsValid() {
		six.Subnet, six.Gateway = b.BIP6.Masked(), b.BIP6.Addr()
	}
	if b.Link != "" {
		if err := m.addressesOf(b.Link, &four, &six); err != nil {
			return spec, err
		}
	}
	for _, c := range []*cloud.IPAMConfig{&four, &six} {
		if !c.Subnet.IsValid() {
			c.Subnet, c.Range = c.Range, netip.Prefix{} // the part is all there is
		}
	}
	if b.Gateway4.IsValid() {
		four.Aux = map[string]netip.Addr{auxGateway4: b.Gateway4}
	}
	if b.Gateway6.IsValid() {
		six.Aux = map[string]netip.Addr{auxGateway6: b.Gateway6}
	}
	switch {
	case b.Gateway4.IsValid() && !four.Subnet.Contains(b.Gateway4):
		return spec, fault.New(fault.InvalidArgument, "--default-gateway %s is not in the bridge's subnet: give it with --bip", b.Gateway4)
	case b.Gateway6.IsValid() && !six.Subnet.Contains(b.Gateway6):
		return spec, fault.New(fault.InvalidArgument, "--default-gateway-v6 %s is not in the bridge's subnet: give it with --bip6 or --fixed-cidr-v6", b.Gateway6)
	}
	if four.Subnet.IsValid() {
		spec.IPAM = append(spec.IPAM, four)
	}
	if six.Subnet.IsValid() && b.IPv6 {
		spec.IPAM = append(spec.IPAM, six)
	}
	return spec, nil
}

// addressesOf takes the subnets of the network "bridge" from the addresses of a bridge that somebody else has made.
func (m *Manager) addressesOf(name string, four, six *cloud.IPAMConfig) error {
	l, err := link.Get(m.nl, name)
	if err != nil {
		return fault.New(fault.InvalidArgument, "--bridge %s: make the bridge before the daemon starts: %w", name, err)
	}
	have, err := addresses(m.nl, l)
	if err != nil {
		return err
	}
	for _, p := range slices.SortedFunc(maps.Keys(have), netip.Prefix.Compare) {
		into := four
		if p.Addr().Is6() {
			into = six
		}
		if !into.Subnet.IsValid() && !p.Addr().IsLinkLocalUnicast() {
			into.Subnet, into.Gateway = p.Masked(), p.Addr()
		}
	}
	return nil
}

// predefined makes the networks that every host has.
func (m *Manager) predefined() error {
	specs := []Spec{{Name: NameHost, Driver: DriverHost, IPAMDriver: "default", IPv4: true}, {Name: NameNone, Driver: DriverNull, IPAMDriver: "default", IPv4: true}}
	if !m.cfg.Bridge.Disabled {
		spec, err := m.bridgeSpec()
		if err != nil {
			return err
		}
		specs = append(specs, spec)
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

// ensureGatewayBridge makes the network by which sandboxes on overlays reach the world. It has IPv6 where the network
// "bridge" has. One that a user has made stays as it is; one of ours that differs is made anew when nobody is on it.
func (m *Manager) ensureGatewayBridge() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	spec := Spec{Name: gatewayBridge, Driver: DriverBridge, IPAMDriver: "default", IPv4: true, IPv6: m.cfg.Bridge.IPv6, Options: map[string]string{
		optBridgeName: gatewayBridge, optICC: "false", optMasquerade: "true"}}
	if n, err := m.find(gatewayBridge); err == nil {
		if n.Spec.IPv6 == spec.IPv6 || !maps.Equal(n.Spec.Options, spec.Options) || len(n.Spec.IPAM) > 0 || len(m.members(n.ID)) > 0 {
			return nil
		}
		if err := m.removeLocked(n); err != nil {
			return err
		}
	}
	_, err := m.createLocked(spec, newID())
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
	for _, j := range append(slices.Clone(sb.Joined), sb.Egress) {
		if j != nil && m.networks[j.NetworkID] != nil {
			j.follow(m.networks[j.NetworkID], m.cfg.DirectRouting)
		}
	}
	for _, e := range sb.all() {
		n := m.networks[e.NetworkID]
		if n == nil || n.Scope != ScopeLocal || m.locals[n.Spec.Driver] == nil {
			continue
		}
		for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
			if !p.IsValid() {
				continue
			}
			if s := m.space.Subnet(n.ID, p.Masked()); s == nil {
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
		if err := m.driverOf(n).attach(ctx, n, e, ns); err != nil {
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
