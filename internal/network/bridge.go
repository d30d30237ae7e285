package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// The options of bridge networks, in Docker's names.
const (
	optBridgeName = "com.docker.network.bridge.name"
	optICC        = "com.docker.network.bridge.enable_icc"
	optMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
	optHostIP     = "com.docker.network.bridge.host_binding_ipv4"
	optMTU        = "com.docker.network.driver.mtu"
	optDefault    = "com.docker.network.bridge.default_bridge"
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
}

// configure sets the network's link and MTU from its options.
func (d *bridgeDriver) configure(n *Network) error {
	n.Link = n.Spec.Options[optBridgeName]
	if n.Link == "" {
		n.Link = "br-" + n.ID[:12]
	}
	if len(n.Link) > 15 {
		return fault.New(fault.InvalidArgument, "invalid bridge name %q: an interface name has at most 15 characters", n.Link)
	}
	if s := n.Spec.Options[optMTU]; s != "" {
		mtu, err := strconv.Atoi(s)
		if err != nil || mtu < 68 || mtu > 65535 {
			return fault.New(fault.InvalidArgument, "failed to parse %s: %q is no MTU from 68 to 65535", optMTU, s)
		}
		if mtu < 1280 && n.Spec.IPv6 {
			return fault.New(fault.InvalidArgument, "MTU %d is too small for IPv6: it needs 1280", mtu)
		}
		n.MTU = mtu
	}
	for _, o := range []string{optICC, optMasquerade} {
		if s, ok := n.Spec.Options[o]; ok {
			if _, err := strconv.ParseBool(s); err != nil {
				return fault.New(fault.InvalidArgument, "failed to parse %s value: %q is neither true nor false", o, s)
			}
		}
	}
	if s := n.Spec.Options[optHostIP]; s != "" {
		if _, err := netip.ParseAddr(s); err != nil {
			return fault.New(fault.InvalidArgument, "failed to parse %s value: %q is no address", optHostIP, s)
		}
	}
	return nil
}

// option is a boolean option that configure has checked.
func (n *Network) option(name string) bool {
	v, err := strconv.ParseBool(n.Spec.Options[name])
	return err != nil || v // both that exist are on unless turned off
}

func (n *Network) segment() segment {
	return segment{link: n.Link, subnets: n.prefixes(), internal: n.Spec.Internal, icc: n.option(optICC), masquerade: n.option(optMasquerade)}
}

// create makes the bridge and its rules; a bridge that is there already is taken over if it is one.
func (d *bridgeDriver) create(n *Network) error {
	u := undo.New()
	defer func() { _ = u.Run() }()
	made, err := d.ensure(n)
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

// ensure makes the interface what it should be, touching only what is not, and reports whether it made it.
func (d *bridgeDriver) ensure(n *Network) (made bool, err error) {
	l, err := link.Get(d.nl, n.Link)
	if fault.Is(err, fault.NotFound) {
		mac := ""
		if len(n.Subnets) > 0 {
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
	index := l.Attrs().Index
	settings := map[string]string{}
	for _, c := range n.Subnets {
		if c.Subnet.Addr().Is6() {
			settings["net.ipv6.conf."+slashed(n.Link)+".disable_ipv6"] = "0"
			settings["net.ipv6.conf."+slashed(n.Link)+".accept_ra"] = "0"
			if !n.Spec.Internal {
				settings["net.ipv6.conf.all.forwarding"] = "1"
			}
		} else if !n.Spec.Internal {
			settings["net.ipv4.ip_forward"] = "1"
			settings["net.ipv4.conf."+slashed(n.Link)+".route_localnet"] = "1"
		}
	}
	if err := d.sysctl(settings); err != nil {
		return made, err
	}
	have, err := addresses(d.nl, l)
	if err != nil {
		return made, err
	}
	for _, c := range n.Subnets {
		p := netip.PrefixFrom(c.Gateway, c.Subnet.Bits())
		if !have[p] {
			if err := link.AddAddr(d.nl, index, p); err != nil {
				return made, err
			}
		}
	}
	return made, link.Up(d.nl, n.Link)
}

// sysctl writes what differs, so that a host where they are set already need not let us write.
func (d *bridgeDriver) sysctl(settings map[string]string) error {
	if len(settings) == 0 {
		return nil
	}
	return d.host.Do(func() error {
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
func (d *bridgeDriver) remove(n *Network) error {
	if n.Spec.Driver != DriverBridge {
		return nil
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
	inner, err := link.Get(h, ep.Interface)
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if p.IsValid() {
			if err := link.AddAddr(h, inner.Attrs().Index, p); err != nil {
				return err
			}
		}
	}
	if err := failpoint.Hit("network.bridge.attach.address"); err != nil {
		return err
	}
	if err := h.LinkSetUp(inner); err != nil {
		return fmt.Errorf("set up %s: %w", ep.Interface, err)
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
	icc, filtered := n.option(optICC), true
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

func (d *bridgeDriver) detach(_ context.Context, _ *Network, ep *Endpoint) error {
	return link.Del(d.nl, hostLink(ep.ID))
}
