package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// defaultBridge is the interface of the network "bridge"; gatewayBridge is the network, and the interface, by which
// sandboxes that are on overlays only reach the world and are reached by ports published in host mode.
const (
	defaultBridge = "sampan0"
	gatewayBridge = "sampan_gwbridge"
)

// bridgeDriver makes bridge networks: a bridge on the host, a veth pair for each endpoint.
type bridgeDriver struct {
	host *netns.NS
	nl   *netlink.Handle
	fw   *firewall
	// router makes the host pass packets on.
	router *router
	tell   announcer
}

func (d *bridgeDriver) configure(n *Network, others []*Network) error {
	o, err := readBridge(n.Spec.Options)
	if err != nil {
		return err
	}
	if n.Link = o.name; n.Link == "" {
		n.Link = "br-" + n.ID[:12]
	}
	if o.mtu != 0 {
		n.MTU = o.mtu
	}
	switch {
	case !n.Spec.IPv4 && !n.Spec.IPv6:
		return fault.New(fault.InvalidArgument, "IPv4 or IPv6 must be enabled")
	case n.MTU < 1280 && n.Spec.IPv6:
		return fault.New(fault.InvalidArgument, "MTU %d is too small for IPv6: it needs 1280", n.MTU)
	case (o.mode4 == modeIsolated || o.mode6 == modeIsolated) && !n.Spec.Internal:
		return fault.New(fault.InvalidArgument, "gateway mode 'isolated' can only be used for an internal network")
	}
	for _, other := range others {
		if other.Link == n.Link && other.Scope == ScopeLocal {
			return fault.New(fault.Forbidden, "cannot create network %s (%s): conflicts with network %s (%s): networks have same bridge name",
				n.ID, n.Link, other.ID, other.Link)
		}
	}
	return nil
}

func (n *Network) segment() segment {
	o := n.bridge()
	s := segment{link: n.Link, internal: n.Spec.Internal, icc: o.icc, masquerade: o.masquerade, trusted: o.trusted,
		four: side{mode: o.mode4, source: o.source4}, six: side{mode: o.mode6, source: o.source6}}
	for _, p := range n.prefixes() {
		if p.Addr().Is6() {
			s.six.subnets = append(s.six.subnets, p)
		} else {
			s.four.subnets = append(s.four.subnets, p)
		}
	}
	return s
}

// create makes the bridge and its rules; a bridge that is there already is taken over if it is one.
func (d *bridgeDriver) create(n *Network) error {
	u := undo.New()
	defer func() { _ = u.Run() }()
	made, err := d.ensure(n)
	n.Foreign = !made && n.Link != defaultBridge
	if err == nil && !made && n.Link == defaultBridge {
		err = d.forgetAddresses(n)
	}
	if made {
		u.Add(func() error { return link.Del(d.nl, n.Link) })
	}
	if err != nil {
		return err
	}
	if err := failpoint.Hit("network.create.bridge"); err != nil {
		return err
	}
	if err := d.fw.set(n.ID, n.segment()); err != nil {
		return err
	}
	u.Add(func() error { return d.fw.unset(n.ID) })
	if err := failpoint.Hit("network.create.firewall"); err != nil {
		return err
	}
	u.Done()
	return nil
}

func (d *bridgeDriver) restore(n *Network) error {
	_, err := d.ensure(n)
	return err
}

// ensure makes the interface what it should be, touching only what is not, and reports whether it made it.
func (d *bridgeDriver) ensure(n *Network) (made bool, err error) {
	l, err := link.Get(d.nl, n.Link)
	if fault.Is(err, fault.NotFound) {
		mac := ""
		if len(n.Subnets) > 0 && n.Subnets[0].Gateway.IsValid() {
			mac = cloud.MAC(n.Subnets[0].Gateway)
		}
		if _, err := link.AddBridge(d.nl, link.Bridge{Name: n.Link, MTU: n.MTU, MAC: mac}); err != nil {
			return false, err
		}
		made = true
		l, err = link.Get(d.nl, n.Link)
	}
	if err != nil {
		return made, err
	}
	if l.Type() != "bridge" {
		return made, fault.New(fault.Conflict, "network %s: the interface %s exists and is no bridge", n.Spec.Name, n.Link)
	}
	if err := d.settings(n); err != nil {
		return made, err
	}
	have, err := addresses(d.nl, l)
	if err != nil {
		return made, err
	}
	for _, c := range n.Subnets {
		a := n.hostAddress(c)
		if p := netip.PrefixFrom(a, c.Subnet.Bits()); a.IsValid() && !have[p] {
			if err := link.AddAddr(d.nl, l.Attrs().Index, p); err != nil {
				return made, err
			}
		}
	}
	return made, link.Up(d.nl, n.Link)
}

// forgetAddresses takes those away from the default bridge that another daemon's configuration gave it. What the kernel
// has made by itself is as the kernel makes it anew.
func (d *bridgeDriver) forgetAddresses(n *Network) error {
	l, err := link.Get(d.nl, n.Link)
	if err != nil {
		return err
	}
	have, err := addresses(d.nl, l)
	if err != nil {
		return err
	}
	for _, c := range n.Subnets {
		delete(have, netip.PrefixFrom(n.hostAddress(c), c.Subnet.Bits()))
	}
	for p := range have {
		if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() && p.Bits() == 64 {
			continue
		}
		if err := link.DelAddr(d.nl, l.Attrs().Index, p); err != nil {
			return err
		}
	}
	return nil
}

// settings are the kernel's for a bridge.
func (d *bridgeDriver) settings(n *Network) error {
	settings := map[string]string{}
	for _, c := range n.Subnets {
		v6, own := c.Subnet.Addr().Is6(), n.hostAddress(c).IsValid()
		switch {
		case v6:
			settings["net.ipv6.conf."+slashed(n.Link)+".accept_ra"] = "0"
			settings["net.ipv6.conf."+slashed(n.Link)+".disable_ipv6"] = "1"
			if own {
				settings["net.ipv6.conf."+slashed(n.Link)+".disable_ipv6"] = "0"
			}
		case own && !n.Spec.Internal:
			settings["net.ipv4.conf."+slashed(n.Link)+".route_localnet"] = "1"
		}
		if !n.Spec.Internal {
			if err := d.router.forward(v6); err != nil {
				return err
			}
		}
	}
	return writeSysctls(d.host, settings)
}

// writeSysctls writes what differs, so that a host where they are set already need not let us write.
func writeSysctls(host *netns.NS, settings map[string]string) error {
	if len(settings) == 0 {
		return nil
	}
	return host.Do(func() error {
		for k, v := range settings {
			if now, err := netns.ReadSysctl(k); err == nil && now == v {
				continue
			} else if errors.Is(err, os.ErrNotExist) {
				return fault.New(fault.FailedPrecondition, "the kernel has no setting %s: is IPv6 turned off?", k)
			}
			if err := netns.WriteSysctl(k, v); err != nil {
				return err
			}
		}
		return nil
	})
}

// slashed is an interface name as a part of a sysctl's name.
func slashed(name string) string {
	b := []byte(name)
	for i := range b {
		if b[i] == '.' {
			b[i] = '/'
		}
	}
	return string(b)
}

func addresses(h *netlink.Handle, l netlink.Link) (map[netip.Prefix]bool, error) {
	list, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	out := map[netip.Prefix]bool{}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if ok {
			out[netip.PrefixFrom(ip.Unmap(), bits)] = true
		}
	}
	return out, nil
}

// remove takes the network's rules and bridge away.
func (d *bridgeDriver) remove(n *Network, _ []*Network) error {
	if n.Foreign {
		return d.fw.unset(n.ID)
	}
	return errors.Join(d.fw.unset(n.ID), link.Del(d.nl, n.Link))
}

// hostLink is the name of the host's end of an endpoint's veth pair.
func hostLink(endpointID string) string { return "veth" + endpointID[:8] }

func (d *bridgeDriver) attach(_ context.Context, n *Network, ep *Endpoint, ns *netns.NS) error {
	bridge, err := link.Index(d.nl, n.Link)
	if fault.Is(err, fault.NotFound) {
		// Somebody deleted it: make it again rather than fail until the daemon starts anew.
		if _, err = d.ensure(n); err == nil {
			bridge, err = link.Index(d.nl, n.Link)
		}
	}
	if err != nil {
		return fmt.Errorf("network %s: %w", n.Spec.Name, err)
	}
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := link.Get(h, ep.Interface); err == nil {
		outer, err := link.Get(d.nl, hostLink(ep.ID)) // attached already
		if err != nil {
			return err
		}
		if outer.Attrs().MasterIndex != bridge {
			if err := link.Join(d.nl, outer.Attrs().Name, bridge); err != nil {
				return err
			}
		}
		return d.setPort(n, outer)
	}
	u := undo.New()
	defer func() { _ = u.Run() }()
	name := hostLink(ep.ID)
	if err := link.AddVeth(d.nl, link.Veth{Name: name, Peer: ep.Interface, PeerNS: ns.FD(), MTU: n.MTU, PeerMAC: ep.MAC, Master: bridge}); err != nil {
		return err
	}
	u.Add(func() error { return link.Del(d.nl, name) })
	if err := failpoint.Hit("network.bridge.attach.veth"); err != nil {
		return err
	}
	outer, err := link.Get(d.nl, name)
	if err != nil {
		return err
	}
	if err := d.setPort(n, outer); err != nil {
		return err
	}
	if err := d.nl.LinkSetUp(outer); err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	if err := address(h, ep); err != nil {
		return err
	}
	if err := failpoint.Hit("network.bridge.attach.address"); err != nil {
		return err
	}
	if err := link.Up(h, ep.Interface); err != nil {
		return err
	}
	if err := d.tell.joined(n.Link, ep); err != nil {
		return err
	}
	u.Done()
	return nil
}

// setPort says how the bridge treats an endpoint's port.
//
// With br_netfilter (loaded by Docker and Kubernetes, and then on for every bridge) packets between two ports pass the
// host's firewall, which then keeps containers apart where they are to be; and a container that asks for a port that it
// has published itself is translated on the bridge already, and must get its packet back by the port that it came from.
// Without it nothing between two ports is seen by the firewall, and the bridge has to keep them apart.
func (d *bridgeDriver) setPort(n *Network, port netlink.Link) error {
	icc, filtered := n.bridge().icc, true
	err := d.host.Do(func() error {
		for _, k := range []string{"net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"} {
			v, err := netns.ReadSysctl(k)
			filtered = filtered && err == nil && v == "1"
		}
		return nil
	})
	if err == nil {
		err = d.nl.LinkSetIsolated(port, !icc && !filtered)
	}
	if err == nil {
		err = d.nl.LinkSetHairpin(port, icc || filtered)
	}
	if err != nil {
		return fmt.Errorf("set bridge port %s: %w", port.Attrs().Name, err)
	}
	return nil
}

func (d *bridgeDriver) detach(_ context.Context, _ *Network, ep *Endpoint, _ string) error {
	return link.Del(d.nl, hostLink(ep.ID))
}
