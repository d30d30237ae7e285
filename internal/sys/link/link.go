// Package link makes network interfaces by netlink: veth pairs, bridges and VXLAN devices, their addresses, routes and
// forwarding entries. Each function takes the handle of the namespace to work in and names the interface in its errors.
package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Veth is a pair of interfaces that are each other's wire.
type Veth struct {
	Name     string
	Peer     string
	PeerNS   int // descriptor of the namespace the peer is made in; 0: the same one
	MTU      int // 0: the kernel's default
	MAC      string
	PeerMAC  string
	Master   int // index of the bridge that Name joins; 0: none
	TxQueues int // 0: one: the default of the kernel is one queue for each CPU, which costs memory for each container
}

// AddVeth makes a pair. Both ends are down.
func AddVeth(h *netlink.Handle, v Veth) error {
	mac, err := ParseMAC(v.MAC)
	if err != nil {
		return err
	}
	peerMAC, err := ParseMAC(v.PeerMAC)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.MasterIndex = v.Name, v.MTU, mac, v.Master
	attrs.NumTxQueues = max(v.TxQueues, 1)
	attrs.NumRxQueues = attrs.NumTxQueues
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: v.Peer, PeerHardwareAddr: peerMAC,
		PeerNumTxQueues: uint32(attrs.NumTxQueues), PeerNumRxQueues: uint32(attrs.NumTxQueues)}
	if v.MTU > 0 {
		veth.PeerMTU = uint32(v.MTU)
	}
	if v.PeerNS != 0 {
		veth.PeerNamespace = netlink.NsFd(v.PeerNS)
	}
	return wrap(h.LinkAdd(veth), "create veth pair", v.Name+"/"+v.Peer)
}

// Bridge is a learning switch in the kernel.
type Bridge struct {
	Name          string
	MTU           int
	MAC           string // empty: a random one that does not change as ports come and go
	VLANFiltering bool
}

// AddBridge makes a bridge, down, and returns its index.
func AddBridge(h *netlink.Handle, b Bridge) (index int, err error) {
	mac, err := ParseMAC(b.MAC)
	if err != nil {
		return 0, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = b.Name, b.MTU, mac
	br := &netlink.Bridge{LinkAttrs: attrs}
	if b.VLANFiltering {
		br.VlanFiltering = &b.VLANFiltering
	}
	if err := wrap(h.LinkAdd(br), "create bridge", b.Name); err != nil {
		return 0, err
	}
	return Index(h, b.Name)
}

// VXLAN is a tunnel end. It is created from the namespace of the handle, whose routes and sockets carry the encapsulated
// packets, and may live in another one.
type VXLAN struct {
	Name     string
	VNI      uint32
	Port     int        // UDP; 0: 4789
	Local    netip.Addr // underlay source address; invalid: the routing table's choice
	MTU      int
	MAC      string
	NS       int // descriptor of the namespace it lives in; 0: the handle's
	Learning bool
	Proxy    bool // answers ARP from its neighbour table
	L2Miss   bool
	L3Miss   bool
}

// AddVXLAN makes a tunnel end, down.
func AddVXLAN(h *netlink.Handle, v VXLAN) error {
	mac, err := ParseMAC(v.MAC)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = v.Name, v.MTU, mac
	if v.NS != 0 {
		attrs.Namespace = netlink.NsFd(v.NS)
	}
	vx := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(v.VNI), Port: v.Port, Learning: v.Learning, Proxy: v.Proxy,
		L2miss: v.L2Miss, L3miss: v.L3Miss}
	if v.Port == 0 {
		vx.Port = 4789
	}
	if v.Local.IsValid() {
		vx.SrcAddr = v.Local.AsSlice()
	}
	return wrap(h.LinkAdd(vx), "create vxlan", v.Name)
}

// Add makes an interface of any kind, down.
func Add(h *netlink.Handle, l netlink.Link) error {
	return wrap(h.LinkAdd(l), "create "+l.Type(), l.Attrs().Name)
}

// Get returns the named interface; fault.NotFound if there is none.
func Get(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil, fault.New(fault.NotFound, "interface %s: not found", name)
	}
	return l, wrap(err, "look up", name)
}

// Index returns the index of the named interface; fault.NotFound if there is none.
func Index(h *netlink.Handle, name string) (int, error) {
	l, err := Get(h, name)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

// Del deletes the named interface, and with it a veth's peer; none there is no error.
func Del(h *netlink.Handle, name string) error {
	l, err := Get(h, name)
	if fault.Is(err, fault.NotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return wrap(err, "delete", name)
	}
	return nil
}

// doomed is the group of links that are about to be deleted; no link is in it for longer than that.
const doomed = 0x73616d70

// DelAll deletes the named interfaces of the calling thread's namespace, all in one step: the kernel waits as long for
// many as for one, and keeps everybody else from changing interfaces meanwhile. Those that are not there are passed over.
func DelAll(names []string) error {
	some := false
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
			continue
		}
		if err == nil {
			err = netlink.LinkSetGroup(l, doomed)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return wrap(err, "mark for deletion", name)
		}
		some = some || err == nil
	}
	if !some {
		return nil
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomed)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting %d interfaces: %w", len(names), err)
	}
	return nil
}

// Up sets the named interface up.
func Up(h *netlink.Handle, name string) error {
	l, err := Get(h, name)
	if err != nil {
		return err
	}
	return wrap(h.LinkSetUp(l), "set up", name)
}

// Join makes the named interface a port of a bridge.
func Join(h *netlink.Handle, name string, bridge int) error {
	l, err := Get(h, name)
	if err != nil {
		return err
	}
	return wrap(h.LinkSetMasterByIndex(l, bridge), "join to a bridge", name)
}

// SetMTU sets the named interface's MTU.
func SetMTU(h *netlink.Handle, name string, mtu int) error {
	l, err := Get(h, name)
	if err != nil {
		return err
	}
	return wrap(h.LinkSetMTU(l, mtu), "set MTU of", name)
}

// AddAddr gives the interface of that index an address; one that it has already is no error. IPv6 duplicate detection is
// off, as the addresses are allocated and a second of waiting would be felt at every start.
func AddAddr(h *netlink.Handle, index int, p netip.Prefix) error {
	l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	a := &netlink.Addr{IPNet: IPNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return wrap(h.AddrReplace(l, a), "add address "+p.String()+" to", indexName(index))
}

// DelAddr takes an address away; one that is not there is no error.
func DelAddr(h *netlink.Handle, index int, p netip.Prefix) error {
	l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	err := h.AddrDel(l, &netlink.Addr{IPNet: IPNet(p)})
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return wrap(err, "remove address "+p.String()+" from", indexName(index))
}

// Route is an entry of a routing table.
type Route struct {
	Dst   netip.Prefix // invalid: default
	Via   netip.Addr   // invalid: on link
	Index int          // of the interface; 0: by Via
	Table int          // 0: main
	Src   netip.Addr
	V6    bool // for a default route without Via
}

func (r Route) netlink() *netlink.Route {
	nr := &netlink.Route{LinkIndex: r.Index, Table: r.Table}
	switch {
	case r.Dst.IsValid():
		nr.Dst = IPNet(r.Dst)
	case r.V6 || r.Via.Is6():
		nr.Dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	default:
		nr.Dst = &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	}
	if r.Via.IsValid() {
		nr.Gw = r.Via.AsSlice()
	} else {
		nr.Scope = unix.RT_SCOPE_LINK
	}
	if r.Src.IsValid() {
		nr.Src = r.Src.AsSlice()
	}
	return nr
}

// String is the route about as ip-route(8) writes it.
func (r Route) String() string {
	s := "default"
	if r.Dst.IsValid() {
		s = r.Dst.String()
	}
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	return s
}

// SetRoute adds a route or replaces the one to the same destination in the same table.
func SetRoute(h *netlink.Handle, r Route) error {
	return wrap(h.RouteReplace(r.netlink()), "set route "+r.String()+" on", indexName(r.Index))
}

// DelRoute removes a route; one that is not there is no error.
func DelRoute(h *netlink.Handle, r Route) error {
	err := h.RouteDel(r.netlink())
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return wrap(err, "remove route "+r.String()+" from", indexName(r.Index))
}

// SetFDB says behind which tunnel end (underlay address) a hardware address is; index is the VXLAN device's.
func SetFDB(h *netlink.Handle, index int, mac string, underlay netip.Addr) error {
	n, err := fdb(index, mac, underlay)
	if err != nil {
		return err
	}
	return wrap(h.NeighSet(n), "set forwarding entry "+mac+" of", indexName(index))
}

// DelFDB removes a forwarding entry; one that is not there is no error.
func DelFDB(h *netlink.Handle, index int, mac string, underlay netip.Addr) error {
	n, err := fdb(index, mac, underlay)
	if err != nil {
		return err
	}
	if err := h.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
		return wrap(err, "remove forwarding entry "+mac+" of", indexName(index))
	}
	return nil
}

func fdb(index int, mac string, underlay netip.Addr) (*netlink.Neigh, error) {
	hw, err := ParseMAC(mac)
	if err != nil {
		return nil, err
	}
	return &netlink.Neigh{LinkIndex: index, Family: syscall.AF_BRIDGE, Flags: netlink.NTF_SELF,
		State: netlink.NUD_PERMANENT, HardwareAddr: hw, IP: underlay.AsSlice()}, nil
}

// SetNeigh makes a permanent neighbour entry on the interface of that index.
func SetNeigh(h *netlink.Handle, index int, addr netip.Addr, mac string) error {
	n, err := neigh(index, addr, mac)
	if err != nil {
		return err
	}
	return wrap(h.NeighSet(n), "set neighbour "+addr.String()+" on", indexName(index))
}

// DelNeigh removes a neighbour entry; one that is not there is no error.
func DelNeigh(h *netlink.Handle, index int, addr netip.Addr) error {
	n, _ := neigh(index, addr, "")
	if err := h.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
		return wrap(err, "remove neighbour "+addr.String()+" from", indexName(index))
	}
	return nil
}

func neigh(index int, addr netip.Addr, mac string) (*netlink.Neigh, error) {
	hw, err := ParseMAC(mac)
	if err != nil {
		return nil, err
	}
	family := syscall.AF_INET
	if addr.Is6() {
		family = syscall.AF_INET6
	}
	return &netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, HardwareAddr: hw, IP: addr.AsSlice()}, nil
}

// IPNet is p in the form that package net uses.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// ParseMAC reads a hardware address of Ethernet; an empty text is none.
func ParseMAC(s string) (net.HardwareAddr, error) {
	if s == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return nil, fault.New(fault.InvalidArgument, "invalid MAC address: %s", s)
	}
	return mac, nil
}

func indexName(index int) string { return fmt.Sprintf("interface #%d", index) }

// wrap names the interface and gives the kinds that a caller may want to tell apart.
func wrap(err error, what, name string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fault.New(fault.AlreadyExists, "%s %s: %w", what, name, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fault.New(fault.FailedPrecondition, "%s %s: the kernel has no such device type: %w", what, name, err)
	}
	return fmt.Errorf("%s %s: %w", what, name, err)
}
