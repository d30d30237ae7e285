package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

const familyBridge = syscall.AF_BRIDGE

// Join gives a namespace an interface on the network and returns the network's MTU. It is idempotent by key. The
// interface is up and has its addresses on return; routes other than to the subnet are the caller's.
func (d *Driver) Join(_ context.Context, id string, p Port) (mtu int, err error) {
	if len(p.Addrs) == 0 || p.Interface == "" {
		return 0, fault.New(fault.InvalidArgument, "overlay network %s: an interface needs a name and an address", id)
	}
	s, err := d.segment(id, false)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return 0, fault.New(fault.FailedPrecondition, "overlay network %s is being removed", id)
	}
	if s.bridge == 0 { // nothing was applied since the process started: what an earlier one made will do
		if err := d.find(s); err != nil {
			return 0, fmt.Errorf("overlay network %s is not set up on this host: %w", id, err)
		}
	}
	h, err := d.handle(p.NetNS)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	if err := s.join(h, p); err != nil {
		return 0, fmt.Errorf("join %s to overlay network %s: %w", p.Interface, id, err)
	}
	return s.mtu, nil
}

// find adopts the namespace and the bridge only.
func (d *Driver) find(s *segment) error {
	if err := d.open(s); err != nil {
		return err
	}
	l, err := link.Get(s.h, bridgeName)
	if err != nil {
		return err
	}
	s.bridge, s.mtu = l.Attrs().Index, l.Attrs().MTU
	return nil
}

func (s *segment) join(h *netlink.Handle, p Port) error {
	u := undo.New()
	defer func() { _ = u.Run() }()
	port, mac := PortName(p.Key), cloud.MAC(p.Addrs[0].Addr())
	there, err := s.paired(h, p.Interface, port, mac)
	if err != nil {
		return err
	}
	if !there {
		// What is left of an earlier try. Its far end goes with it.
		if err := link.Del(s.h, port); err != nil {
			return err
		}
		if err := link.AddVeth(h, link.Veth{Name: p.Interface, Peer: port, PeerNS: s.ns.FD(), MTU: s.mtu, MAC: mac}); err != nil {
			return err
		}
		u.Add(func() error { return link.Del(s.h, port) })
	}
	if err := failpoint.Hit("network/overlay.join.veth"); err != nil {
		return err
	}
	if err := s.addPort(port, mac); err != nil {
		return err
	}
	index, err := link.Index(h, p.Interface)
	if err != nil {
		return err
	}
	for _, a := range p.Addrs {
		if err := link.AddAddr(h, index, a); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("network/overlay.join.address"); err != nil {
		return err
	}
	if err := link.Up(h, p.Interface); err != nil {
		return err
	}
	u.Done()
	return nil
}

// paired reports whether name and port are the two ends of one pair, with the hardware address that others will use.
func (s *segment) paired(h *netlink.Handle, name, port, mac string) (bool, error) {
	near, err := link.Get(h, name)
	if fault.Is(err, fault.NotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	far, err := link.Get(s.h, port)
	if fault.Is(err, fault.NotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	a, b := near.Attrs(), far.Attrs()
	return a.ParentIndex == b.Index && b.ParentIndex == a.Index && a.HardwareAddr.String() == mac, nil
}

// addPort puts the near end on the bridge. Its hardware address is written and not learnt, and packets to unknown
// addresses are not sent to it: they can only be on another host, or nowhere.
func (s *segment) addPort(port, mac string) error {
	l, err := link.Get(s.h, port)
	if err != nil {
		return err
	}
	if l.Attrs().MasterIndex != s.bridge {
		if err := link.Join(s.h, port, s.bridge); err != nil {
			return err
		}
	}
	if err := errors.Join(s.h.LinkSetLearning(l, false), s.h.LinkSetFlood(l, false)); err != nil {
		return fmt.Errorf("set bridge port %s: %w", port, err)
	}
	hw, err := parse(mac)
	if err != nil {
		return err
	}
	entry := &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: familyBridge, Flags: netlink.NTF_MASTER,
		State: netlink.NUD_NOARP, HardwareAddr: hw}
	if err := s.h.NeighSet(entry); err != nil {
		return fmt.Errorf("set forwarding entry %s of %s: %w", mac, port, err)
	}
	return link.Up(s.h, port)
}

// Leave takes a port away, with the interface at its far end; none there is no error.
func (d *Driver) Leave(_ context.Context, id, key string) error {
	s, err := d.segment(id, false)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := d.open(s); fault.Is(err, fault.NotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if err := link.Del(s.h, PortName(key)); err != nil {
		return fmt.Errorf("leave overlay network %s: %w", id, err)
	}
	return nil
}

func (d *Driver) handle(path string) (*netlink.Handle, error) {
	if path == "" {
		return d.hostHandle()
	}
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	return ns.Netlink()
}

func (d *Driver) hostHandle() (*netlink.Handle, error) {
	if d.cfg.Host != nil {
		return d.cfg.Host.Netlink()
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}

// underlayMTU is what fits into a packet of the interface that has the address.
func underlayMTU(h *netlink.Handle, local netip.Addr) (int, error) {
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, fmt.Errorf("list addresses: %w", err)
	}
	overhead := Overhead
	if local.Is6() && !local.Is4In6() {
		overhead += 20
	}
	for _, a := range addrs {
		if got, _ := netip.AddrFromSlice(a.IP); got.Unmap() != local.Unmap() {
			continue
		}
		l, err := h.LinkByIndex(a.LinkIndex)
		if err != nil {
			return 0, fmt.Errorf("interface of %s: %w", local, err)
		}
		return min(l.Attrs().MTU, 65535) - overhead, nil
	}
	return 0, fault.New(fault.FailedPrecondition, "no interface of this host has the address %s that it advertises", local)
}

func parse(mac string) (net.HardwareAddr, error) {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "invalid MAC address: %s", mac)
	}
	return hw, nil
}
