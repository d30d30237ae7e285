// Package overlay makes networks that span hosts: for each a bridge and a VXLAN device in a network namespace of their
// own, so that two networks may use the same addresses. Nothing is learnt and nothing is flooded between hosts: for each
// address that another host has there is one forwarding entry (hardware address to underlay address) and one neighbour
// entry, from which the VXLAN device answers ARP in that host's stead. Both are told by Apply and changed one by one.
//
// The VXLAN device is made from the host's namespace, where its UDP socket stays, straight into the network's own. All
// state is in the kernel: a Driver that starts over finds it, and changes only what differs from what is wanted.
//
// The package knows networks, addresses and ports of the bridge; it does not know who is behind them.
package overlay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// DefaultPort is the UDP port of VXLAN.
const DefaultPort = 4789

// Overhead is what the encapsulation adds to each packet over IPv4: Ethernet 14, IPv4 20, UDP 8, VXLAN 8. IPv6 adds 20.
const Overhead = 50

// The names of the links inside each network's namespace.
const (
	bridgeName = "br0"
	vxlanName  = "vxlan0"
	prefix     = "ov-" // of pinned namespaces
)

// Network is an overlay as it should be on this host.
type Network struct {
	ID      string
	VNI     uint32
	MTU     int                   // 0: the underlay's less Overhead
	Local   netip.Addr            // this host's underlay address
	Remotes map[netip.Addr]Remote // the addresses that other hosts have on the network
}

// Remote is where an address is.
type Remote struct {
	Node netip.Addr // underlay address of the host
	// MAC is the interface's; one interface may have several addresses.
	MAC string
}

// At returns the place of an interface that has only the given address.
func At(addr, node netip.Addr) Remote { return Remote{Node: node, MAC: cloud.MAC(addr)} }

// Port is an interface of somebody's namespace on the network's bridge.
type Port struct {
	Key       string // names the port for Leave; a network has at most one port of each key
	NetNS     string // path of the namespace that gets the interface; empty: the host's own
	Interface string
	Addrs     []netip.Prefix
}

// Config is what a Driver needs.
type Config struct {
	Dir    string    // where namespaces are pinned, EXEC-ROOT/netns
	Port   int       // UDP; 0: DefaultPort. All hosts of a cluster have the same
	Host   *netns.NS // the host's namespace, open for as long as the driver; nil: the one that the caller is in
	Logger *slog.Logger
}

// Driver makes overlays. It is safe for concurrent use.
type Driver struct {
	cfg      Config
	mu       sync.Mutex
	nets     map[string]*segment
	prepared bool // the host's namespace is
}

// New returns a driver over what is pinned in cfg.Dir. It touches nothing.
func New(cfg Config) *Driver {
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Driver{cfg: cfg, nets: map[string]*segment{}}
}

// SetPort changes the UDP port; 0 stands for DefaultPort. Networks that exist follow with their next Apply.
func (d *Driver) SetPort(port int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if port == 0 {
		port = DefaultPort
	}
	if port != d.cfg.Port {
		d.cfg.Port, d.prepared = port, false
	}
}

func (d *Driver) port() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfg.Port
}

// segment is a network that exists: its namespace, and what is known to be in the VXLAN device.
type segment struct {
	mu      sync.Mutex
	id      string
	ns      *netns.NS
	h       *netlink.Handle
	bridge  int
	vxlan   int
	mtu     int
	entries *entries // as programmed; nil: to be read
	gone    bool
}

// entries are what a VXLAN device knows.
type entries struct {
	fdb   map[string]netip.Addr // hardware address to underlay address
	neigh map[netip.Addr]string // address to hardware address
}

func (d *Driver) path(id string) string { return filepath.Join(d.cfg.Dir, prefix+id) }

// IDs lists the networks that exist on this host, whoever made them.
func (d *Driver) IDs() ([]string, error) {
	entries, err := os.ReadDir(d.cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list overlay networks: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), prefix); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Apply makes the network exist as n says: made if it is missing, adopted if it is there, and its forwarding entries
// those of n.Remotes. The cost is that of the difference.
func (d *Driver) Apply(ctx context.Context, n Network) error {
	if err := n.check(); err != nil {
		return err
	}
	if err := d.prepareHost(); err != nil {
		return fmt.Errorf("overlay network %s: %w", n.ID, err)
	}
	s, err := d.segment(n.ID, true)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return fault.New(fault.Unavailable, "overlay network %s is being removed", n.ID)
	}
	if err := d.ensure(n, s); err != nil {
		return fmt.Errorf("overlay network %s: %w", n.ID, err)
	}
	if err := s.program(ctx, n.Remotes); err != nil {
		return fmt.Errorf("overlay network %s: %w", n.ID, err)
	}
	return nil
}

func (n Network) check() error {
	switch {
	case n.ID == "" || strings.ContainsAny(n.ID, "/."):
		return fault.New(fault.InvalidArgument, "overlay network: invalid ID %q", n.ID)
	case n.VNI == 0 || n.VNI >= 1<<24:
		return fault.New(fault.InvalidArgument, "overlay network %s: VXLAN number %d is not within 1 to 16777215", n.ID, n.VNI)
	case !n.Local.IsValid():
		return fault.New(fault.InvalidArgument, "overlay network %s: this host has no address to send from", n.ID)
	}
	return nil
}

// segment returns the network's entry, made if asked to. The entry says nothing of the kernel.
func (d *Driver) segment(id string, make bool) (*segment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.nets[id]
	if s == nil && !make {
		if _, err := os.Stat(d.path(id)); err != nil {
			return nil, fault.New(fault.NotFound, "overlay network %s is not on this host", id)
		}
	}
	if s == nil {
		s = &segment{id: id}
		d.nets[id] = s
	}
	return s, nil
}

// ensure opens or makes the namespace, the bridge and the VXLAN device. s is locked.
func (d *Driver) ensure(n Network, s *segment) error {
	u := undo.New()
	defer func() { _ = u.Run() }()
	if err := d.open(s); fault.Is(err, fault.NotFound) {
		if err := d.createNamespace(s, u); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	host, err := d.hostHandle()
	if err != nil {
		return err
	}
	defer host.Close()
	mtu := n.MTU
	if mtu == 0 {
		if mtu, err = underlayMTU(host, n.Local); err != nil {
			return err
		}
	}
	if err := d.ensureBridge(s, mtu); err != nil {
		return err
	}
	if err := failpoint.Hit("network/overlay.ensure.bridge"); err != nil {
		return err
	}
	if err := d.ensureVXLAN(host, n, s, mtu); err != nil {
		return err
	}
	if s.mtu != mtu {
		if err := s.setMTU(mtu); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("network/overlay.ensure.vxlan"); err != nil {
		return err
	}
	u.Done()
	return nil
}

func (d *Driver) createNamespace(s *segment, u *undo.Stack) error {
	path := d.path(s.id)
	ns, err := netns.Create(path)
	if errors.Is(err, fs.ErrExist) {
		// A plain file, left by a maker that was killed between its two steps.
		if err := netns.Remove(path); err != nil {
			return err
		}
		ns, err = netns.Create(path)
	}
	if err != nil {
		return err
	}
	u.Add(func() error {
		if s.h != nil {
			_ = link.Del(s.h, vxlanName) // see Remove
		}
		if s.ns == nil {
			_ = ns.Close()
		}
		s.close()
		return netns.Remove(path)
	})
	if err := failpoint.Hit("network/overlay.ensure.namespace"); err != nil {
		return err
	}
	if err := quiet(ns); err != nil {
		return err
	}
	s.ns = ns
	s.h, err = ns.Netlink()
	return err
}

// quiet turns off what a switch does not need: IPv6 addresses of its own, and packet filters on bridged packets.
func quiet(ns *netns.NS) error {
	err := ns.Sysctl(map[string]string{"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = ns.Sysctl(map[string]string{"net.bridge.bridge-nf-call-iptables": "0", "net.bridge.bridge-nf-call-ip6tables": "0", "net.bridge.bridge-nf-call-arptables": "0"})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // no br_netfilter module: nothing to turn off
		return err
	}
	return nil
}

// open finds a namespace that is there already; fault.NotFound if there is none.
func (d *Driver) open(s *segment) error {
	if s.ns != nil {
		return nil
	}
	ns, err := netns.Open(d.path(s.id))
	if err != nil {
		return err
	}
	h, err := ns.Netlink()
	if err != nil {
		return errors.Join(err, ns.Close())
	}
	s.ns, s.h = ns, h
	return nil
}

func (d *Driver) ensureBridge(s *segment, mtu int) error {
	if s.bridge != 0 {
		return nil
	}
	index, err := link.Index(s.h, bridgeName)
	if fault.Is(err, fault.NotFound) {
		index, err = link.AddBridge(s.h, link.Bridge{Name: bridgeName, MTU: mtu})
	}
	if err != nil {
		return err
	}
	// Groups are not learnt either: the few packets of neighbour discovery go to every port.
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName, Index: index}}
	if err := s.h.BridgeSetMcastSnoop(br, false); err != nil {
		return fmt.Errorf("set up %s: %w", bridgeName, err)
	}
	if err := link.Up(s.h, bridgeName); err != nil {
		return err
	}
	if err := link.Up(s.h, "lo"); err != nil {
		return err
	}
	s.bridge = index
	return nil
}

func (d *Driver) ensureVXLAN(host *netlink.Handle, n Network, s *segment, mtu int) error {
	l, err := link.Get(s.h, vxlanName)
	switch {
	case fault.Is(err, fault.NotFound):
	case err != nil:
		return err
	default:
		if v, ok := l.(*netlink.Vxlan); ok && d.same(v, n) && v.MasterIndex == s.bridge && v.Flags&1 != 0 {
			s.mtu = min(s.lowest(mtu), v.MTU)
			return s.adopt(v.Index)
		}
		d.cfg.Logger.Info("overlay network changed: its tunnel end is made anew", "network", n.ID, "vni", n.VNI, "local", n.Local)
		if err := link.Del(s.h, vxlanName); err != nil {
			return err
		}
	}
	s.vxlan, s.entries = 0, nil
	err = link.AddVXLAN(host, link.VXLAN{Name: vxlanName, VNI: n.VNI, Port: d.port(), Local: n.Local, MTU: mtu, NS: s.ns.FD(), Proxy: true})
	if fault.Is(err, fault.AlreadyExists) {
		return fault.New(fault.Conflict, "VXLAN number %d on UDP port %d is in use by another program or network of this host: %w", n.VNI, d.port(), err)
	} else if err != nil {
		return err
	}
	if l, err = link.Get(s.h, vxlanName); err != nil {
		return err
	}
	if err := errors.Join(link.Join(s.h, vxlanName, s.bridge), s.h.LinkSetLearning(l, false), link.Up(s.h, vxlanName)); err != nil {
		return err
	}
	s.mtu = s.lowest(mtu)
	return s.adopt(l.Attrs().Index)
}

func (d *Driver) same(v *netlink.Vxlan, n Network) bool {
	local, _ := netip.AddrFromSlice(v.SrcAddr)
	return v.VxlanId == int(n.VNI) && v.Port == d.port() && local.Unmap() == n.Local.Unmap() && !v.Learning && v.Proxy
}

// lowest is the MTU of the bridge, or mtu if that cannot be read.
func (s *segment) lowest(mtu int) int {
	if l, err := link.Get(s.h, bridgeName); err == nil {
		return l.Attrs().MTU
	}
	return mtu
}

// setMTU changes every link of the network; the far ends of its ports too, where they can be reached, are their owners'.
func (s *segment) setMTU(mtu int) error {
	links, err := s.h.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if a := l.Attrs(); a.Name == "lo" || a.MTU == mtu || a.Index == s.bridge {
			continue
		}
		if err := s.h.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU %d of %s: %w", mtu, l.Attrs().Name, err)
		}
	}
	if err := link.SetMTU(s.h, bridgeName, mtu); err != nil {
		return err
	}
	s.mtu = mtu
	return nil
}

// adopt reads what the device forwards, unless that is known.
func (s *segment) adopt(index int) error {
	if s.vxlan == index && s.entries != nil {
		return nil
	}
	e, err := readEntries(s.h, index)
	if err != nil {
		return err
	}
	s.vxlan, s.entries = index, e
	return nil
}

// program makes the forwarding and neighbour entries those of want. An address gets its neighbour entry last and loses
// it first, so that nothing is sent to a hardware address that is not forwarded.
func (s *segment) program(ctx context.Context, remotes map[netip.Addr]Remote) error {
	want := entries{map[string]netip.Addr{}, map[netip.Addr]string{}}
	for addr, r := range remotes {
		want.fdb[r.MAC], want.neigh[addr] = r.Node, r.MAC
	}
	var errs []error
	note := func(err error, done func()) {
		if err == nil {
			done()
		} else {
			errs = append(errs, err)
		}
	}
	have := s.entries
	for addr := range have.neigh {
		if _, ok := want.neigh[addr]; !ok {
			note(link.DelNeigh(s.h, s.vxlan, addr), func() { delete(have.neigh, addr) })
		}
	}
	for mac, node := range have.fdb {
		if _, ok := want.fdb[mac]; !ok {
			note(link.DelFDB(s.h, s.vxlan, mac, node), func() { delete(have.fdb, mac) })
		}
	}
	for mac, node := range want.fdb {
		if have.fdb[mac] == node {
			continue
		}
		if err := errors.Join(ctx.Err(), failpoint.Hit("network/overlay.program.forwarding")); err != nil {
			return err
		}
		note(link.SetFDB(s.h, s.vxlan, mac, node), func() { have.fdb[mac] = node })
	}
	six := false
	for addr, mac := range want.neigh {
		if have.neigh[addr] == mac {
			continue
		}
		if addr.Is6() && !six {
			if err := s.speakIPv6(); err != nil {
				return err
			}
			six = true
		}
		if err := errors.Join(ctx.Err(), failpoint.Hit("network/overlay.program.neighbour")); err != nil {
			return err
		}
		note(link.SetNeigh(s.h, s.vxlan, addr, mac), func() { have.neigh[addr] = mac })
	}
	return errors.Join(errs...)
}

// speakIPv6 lets the VXLAN device have neighbours of IPv6, and no address for itself.
func (s *segment) speakIPv6() error {
	return s.ns.Do(func() error {
		return errors.Join(netns.WriteSysctl("net.ipv6.conf."+vxlanName+".addr_gen_mode", "1"),
			netns.WriteSysctl("net.ipv6.conf."+vxlanName+".disable_ipv6", "0"))
	})
}

func readEntries(h *netlink.Handle, index int) (*entries, error) {
	e := &entries{map[string]netip.Addr{}, map[netip.Addr]string{}}
	all, err := h.NeighList(index, familyBridge)
	if err != nil {
		return nil, fmt.Errorf("read forwarding entries: %w", err)
	}
	for _, n := range all {
		if node, ok := netip.AddrFromSlice(n.IP); ok && n.Flags&netlink.NTF_SELF != 0 {
			e.fdb[n.HardwareAddr.String()] = node.Unmap()
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if all, err = h.NeighList(index, family); err != nil {
			return nil, fmt.Errorf("read neighbour entries: %w", err)
		}
		for _, n := range all {
			if addr, ok := netip.AddrFromSlice(n.IP); ok && n.State&netlink.NUD_PERMANENT != 0 && n.HardwareAddr != nil {
				e.neigh[addr.Unmap()] = n.HardwareAddr.String()
			}
		}
	}
	return e, nil
}

// Remove takes the network away with everything that is on its bridge; none there is no error.
func (d *Driver) Remove(_ context.Context, id string) error {
	s, err := d.segment(id, false)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := d.open(s); err == nil {
		// By hand, as the kernel takes a namespace apart in its own time, and the VXLAN number may be wanted at once.
		if err := link.Del(s.h, vxlanName); err != nil {
			return fmt.Errorf("overlay network %s: %w", id, err)
		}
		ports, err := s.ports()
		if err != nil {
			return fmt.Errorf("overlay network %s: %w", id, err)
		}
		for _, p := range ports {
			if err := link.Del(s.h, p); err != nil {
				return fmt.Errorf("overlay network %s: %w", id, err)
			}
		}
	} else if !fault.Is(err, fault.NotFound) {
		return err
	}
	if err := failpoint.Hit("network/overlay.remove.vxlan"); err != nil {
		return err
	}
	s.close()
	s.gone = true
	if err := netns.Remove(d.path(id)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.nets, id)
	if ids, err := d.IDs(); err != nil || len(ids) > 0 {
		return err
	}
	return d.leaveHost()
}

// Clear removes every network, and what the host's namespace has for them.
func (d *Driver) Clear(ctx context.Context) error {
	ids, err := d.IDs()
	errs := []error{err}
	for _, id := range ids {
		errs = append(errs, d.Remove(ctx, id))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(append(errs, d.leaveHost())...)
}

func (s *segment) close() {
	if s.h != nil {
		s.h.Close()
	}
	if s.ns != nil {
		_ = s.ns.Close()
	}
	s.h, s.ns, s.bridge, s.vxlan, s.entries = nil, nil, 0, 0, nil
}

// Ports lists the ports of the network's bridge, as PortName gives them.
func (d *Driver) Ports(id string) ([]string, error) {
	s, err := d.segment(id, false)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := d.open(s); fault.Is(err, fault.NotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return s.ports()
}

func (s *segment) ports() ([]string, error) {
	links, err := s.h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		if l.Type() == "veth" {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// MTU is the network's, 0 if it is not on this host.
func (d *Driver) MTU(id string) int {
	d.mu.Lock()
	s := d.nets[id]
	d.mu.Unlock()
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mtu
}

// Remotes are the addresses that are forwarded to other hosts, as the kernel has them.
func (d *Driver) Remotes(id string) (map[netip.Addr]Remote, error) {
	s, err := d.segment(id, false)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := d.open(s); err != nil {
		return nil, err
	}
	index, err := link.Index(s.h, vxlanName)
	if err != nil {
		return nil, err
	}
	e, err := readEntries(s.h, index)
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]Remote{}
	for addr, mac := range e.neigh {
		out[addr] = Remote{Node: e.fdb[mac], MAC: mac}
	}
	return out, nil
}

// Close forgets what is open. The networks stay.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.nets {
		s.mu.Lock()
		s.close()
		s.mu.Unlock()
	}
	clear(d.nets)
	return nil
}

// PortName is the name of a key's port on the bridge.
func PortName(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "p" + hex.EncodeToString(sum[:7])
}
