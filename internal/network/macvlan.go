package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// parentDriver makes networks whose endpoints are interfaces on top of one of the host's, their parent: macvlan, where
// each has a hardware address of its own, and ipvlan, where all have the parent's. Nothing of the host is between an
// endpoint and the physical network, so no port is published and no rule applies. The parent may be a VLAN's
// (NAME.ID), which is made if it is missing; without a parent there is one of the network's own that leads nowhere.
type parentDriver struct {
	host *netns.NS
	nl   *netlink.Handle
}

var macvlanModes = map[string]netlink.MacvlanMode{"": netlink.MACVLAN_MODE_BRIDGE, "bridge": netlink.MACVLAN_MODE_BRIDGE,
	"private": netlink.MACVLAN_MODE_PRIVATE, "vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU}

var ipvlanModes = map[string]netlink.IPVlanMode{"": netlink.IPVLAN_MODE_L2, "l2": netlink.IPVLAN_MODE_L2,
	"l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S}

var ipvlanFlags = map[string]netlink.IPVlanFlag{"": netlink.IPVLAN_FLAG_BRIDGE, "bridge": netlink.IPVLAN_FLAG_BRIDGE,
	"private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA}

// onLink reports whether an endpoint's interface sends everything to its parent, without looking for a gateway.
func (n *Network) onLink() bool {
	mode := n.Spec.Options[optIPvlanMode]
	return n.Spec.Driver == DriverIPvlan && !n.closed() && (mode == "l3" || mode == "l3s")
}

func (d *parentDriver) configure(n *Network, others []*Network) error {
	o := n.Spec.Options
	_, macvlan := macvlanModes[o[optMacvlanMode]]
	_, ipvlan := ipvlanModes[o[optIPvlanMode]]
	_, flag := ipvlanFlags[o[optIPvlanFlag]]
	switch {
	case n.Spec.Driver == DriverMacvlan && !macvlan:
		return fault.New(fault.InvalidArgument, "requested macvlan mode '%s' is not valid, 'bridge' mode is the macvlan driver default", o[optMacvlanMode])
	case n.Spec.Driver == DriverIPvlan && !ipvlan:
		return fault.New(fault.InvalidArgument, "requested ipvlan mode '%s' is not valid, 'l2' mode is the ipvlan driver default", o[optIPvlanMode])
	case n.Spec.Driver == DriverIPvlan && !flag:
		return fault.New(fault.InvalidArgument, "requested ipvlan flag '%s' is not valid, 'bridge' is the ipvlan driver default", o[optIPvlanFlag])
	case o[optParent] == "lo":
		return fault.New(fault.InvalidArgument, "loopback interface is not a valid %s parent link", n.Spec.Driver)
	}
	if n.Link = o[optParent]; n.Link == "" {
		n.Link = dummyName(n.ID)
	}
	n.MTU = 0 // the parent's
	for _, other := range others {
		switch {
		case other.Link != n.Link || other.Scope != ScopeLocal:
		case other.Spec.Driver != DriverMacvlan || n.Spec.Driver != DriverMacvlan:
			return fault.New(fault.Forbidden, "network %s is already using parent interface %s", other.ID, n.Link)
		case o[optMacvlanMode] == "passthru":
			return fault.New(fault.Forbidden, "cannot use mode passthru, macvlan network %s is already using parent interface %s", other.ID, n.Link)
		case other.Spec.Options[optMacvlanMode] == "passthru":
			return fault.New(fault.Forbidden, "macvlan network %s is already using parent interface %s in mode passthru", other.ID, n.Link)
		default:
			n.Made = n.Made || other.Made // whoever goes last takes it away
		}
	}
	return nil
}

// dummyName is the parent of a network that was given none.
func dummyName(id string) string { return "dm-" + id[:12] }

// create makes the parent, if it is one that we make, and tries whether the kernel makes interfaces on it.
func (d *parentDriver) create(n *Network) error {
	u := undo.New()
	defer func() { _ = u.Run() }()
	made, err := d.parent(n)
	if made {
		n.Made = true
		u.Add(func() error { return link.Del(d.nl, n.Link) })
	}
	if err != nil {
		return err
	}
	if err := failpoint.Hit("network.create.parent"); err != nil {
		return err
	}
	trial := netlink.NewLinkAttrs()
	trial.Name = "try-" + n.ID[:10]
	if err := d.add(n, trial); err != nil {
		if fault.Is(err, fault.FailedPrecondition) {
			return fault.New(fault.FailedPrecondition, "network %s: this kernel has no %s interfaces: load the module %s, or use the driver bridge; sampan doctor shows what the kernel has: %w",
				n.Spec.Name, n.Spec.Driver, n.Spec.Driver, err)
		}
		return fmt.Errorf("network %s: %w", n.Spec.Name, err)
	}
	if err := link.Del(d.nl, trial.Name); err != nil {
		return err
	}
	u.Done()
	return nil
}

func (d *parentDriver) restore(n *Network) error {
	_, err := d.parent(n)
	return err
}

// parent makes the parent if it is missing and can be made, and reports whether it did.
func (d *parentDriver) parent(n *Network) (made bool, err error) {
	if _, err := link.Get(d.nl, n.Link); !fault.Is(err, fault.NotFound) {
		return false, err
	}
	if n.Spec.Options[optParent] == "" {
		return d.alone(n)
	}
	parent, id, err := vlanOf(n.Link)
	if err != nil {
		return false, err
	}
	index, err := link.Index(d.nl, parent)
	if err != nil {
		return false, fault.New(fault.InvalidArgument, "-o parent interface was not found on the host: %s", parent)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = n.Link, index
	err = link.Add(d.nl, &netlink.Vlan{LinkAttrs: attrs, VlanId: id, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
	if fault.Is(err, fault.FailedPrecondition) {
		return false, fault.New(fault.FailedPrecondition, "network %s: this kernel has no VLAN interfaces: load the module 8021q, or give a parent that is there: %w", n.Spec.Name, err)
	} else if err != nil {
		return false, err
	}
	return true, link.Up(d.nl, n.Link)
}

// alone makes the parent of a network that was given none: an interface that leads nowhere.
func (d *parentDriver) alone(n *Network) (made bool, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.Link
	err = link.Add(d.nl, &netlink.Dummy{LinkAttrs: attrs})
	if fault.Is(err, fault.FailedPrecondition) {
		// A kernel without dummy interfaces. Both ends of a pair must be up for either to work.
		other := "dp-" + n.ID[:12]
		if err := link.AddVeth(d.nl, link.Veth{Name: n.Link, Peer: other}); err != nil {
			return false, err
		}
		return true, errors.Join(link.Up(d.nl, other), link.Up(d.nl, n.Link))
	} else if err != nil {
		return false, err
	}
	return true, link.Up(d.nl, n.Link)
}

// vlanOf splits NAME.ID.
func vlanOf(name string) (parent string, id int, err error) {
	parent, digits, ok := strings.Cut(name, ".")
	if !ok {
		return "", 0, fault.New(fault.InvalidArgument, "invalid subinterface vlan name %s, example formatting is eth0.10", name)
	}
	id, err = strconv.Atoi(digits)
	switch {
	case err != nil:
		return "", 0, fault.New(fault.InvalidArgument, "unable to parse a valid vlan id from: %s (ex. eth0.10 for vlan 10)", digits)
	case id < 1 || id > 4094:
		return "", 0, fault.New(fault.InvalidArgument, "vlan id must be between 1-4094, received: %d", id)
	case len(name) > 15:
		return "", 0, fault.New(fault.InvalidArgument, "invalid subinterface vlan name %s: an interface name has at most 15 characters", name)
	}
	return parent, id, nil
}

// add makes an interface of the network on its parent.
func (d *parentDriver) add(n *Network, attrs netlink.LinkAttrs) error {
	index, err := link.Index(d.nl, n.Link)
	if err != nil {
		return fault.New(fault.FailedPrecondition, "the requested parent interface %s was not found on the host: %w", n.Link, err)
	}
	attrs.ParentIndex = index
	o := n.Spec.Options
	if n.Spec.Driver == DriverIPvlan {
		return link.Add(d.nl, &netlink.IPVlan{LinkAttrs: attrs, Mode: ipvlanModes[o[optIPvlanMode]], Flag: ipvlanFlags[o[optIPvlanFlag]]})
	}
	return link.Add(d.nl, &netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanModes[o[optMacvlanMode]]})
}

func (d *parentDriver) remove(n *Network, others []*Network) error {
	used := slices.ContainsFunc(others, func(o *Network) bool { return o.ID != n.ID && o.Scope == ScopeLocal && o.Link == n.Link })
	if !n.Made || used {
		return nil
	}
	return link.Del(d.nl, n.Link)
}

func (d *parentDriver) attach(_ context.Context, n *Network, ep *Endpoint, ns *netns.NS) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := link.Get(h, ep.Interface); err == nil {
		return nil
	}
	if _, err := d.parent(n); err != nil { // somebody may have deleted it
		return fmt.Errorf("network %s: %w", n.Spec.Name, err)
	}
	u := undo.New()
	defer func() { _ = u.Run() }()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Namespace = ep.Interface, netlink.NsFd(ns.FD())
	if ep.MAC != "" {
		if attrs.HardwareAddr, err = link.ParseMAC(ep.MAC); err != nil {
			return err
		}
	}
	if err := d.add(n, attrs); err != nil {
		return fmt.Errorf("network %s: %w", n.Spec.Name, err)
	}
	u.Add(func() error { return link.Del(h, ep.Interface) })
	if err := failpoint.Hit("network.parent.attach.link"); err != nil {
		return err
	}
	if err := address(h, ep); err != nil {
		return err
	}
	// A switch may remember another port for the address: tell it.
	if err := ns.Sysctl(map[string]string{"net.ipv4.conf." + slashed(ep.Interface) + ".arp_notify": "1"}); err != nil {
		return err
	}
	if err := link.Up(h, ep.Interface); err != nil && !errors.Is(err, unix.ENETDOWN) { // it comes up with its parent
		return fmt.Errorf("network %s: %w", n.Spec.Name, err)
	}
	u.Done()
	return nil
}

func (d *parentDriver) detach(_ context.Context, _ *Network, ep *Endpoint, sandbox string) error {
	ns, err := netns.Open(sandbox)
	if err != nil {
		return nil //nolint:nilerr // gone, and the interface with it
	}
	defer func() { _ = ns.Close() }()
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	return link.Del(h, ep.Interface)
}

// address gives an endpoint's interface its addresses.
func address(h *netlink.Handle, ep *Endpoint) error {
	index, err := link.Index(h, ep.Interface)
	if err != nil {
		return err
	}
	for _, p := range append([]netip.Prefix{ep.IPv4, ep.IPv6}, ep.LinkLocal...) {
		if p.IsValid() {
			if err := link.AddAddr(h, index, p); err != nil {
				return err
			}
		}
	}
	return nil
}
