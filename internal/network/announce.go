package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// announcer tells the neighbours on a bridge that an address has another hardware address than they may remember: they
// would send to the old one for many seconds. Hardware addresses are made from IP addresses, so that is so only where a
// user has chosen one.
type announcer struct {
	host *netns.NS
	nl   *netlink.Handle

	mu     sync.Mutex
	chosen map[announced]bool // that had a chosen hardware address last
}

type announced struct {
	link string
	addr netip.Addr
}

// joined is told of an endpoint that has come up on a bridge.
func (a *announcer) joined(bridge string, ep *Endpoint) error {
	chosen := ep.MAC != hardwareAddress(ep)
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if !p.IsValid() {
			continue
		}
		key := announced{bridge, p.Addr()}
		a.mu.Lock()
		was := a.chosen[key]
		if delete(a.chosen, key); chosen {
			if a.chosen == nil {
				a.chosen = map[announced]bool{}
			}
			a.chosen[key] = true
		}
		a.mu.Unlock()
		if was || chosen {
			if err := a.tell(bridge, p.Addr(), ep.MAC); err != nil {
				return fmt.Errorf("tell the neighbours of %s: %w", p.Addr(), err)
			}
		}
	}
	return nil
}

// tell sends out what the owner of the address would, on all ports of the bridge: the owner's own port may not be open
// yet. The host, which does not hear it, forgets what it knew.
func (a *announcer) tell(bridge string, addr netip.Addr, mac string) error {
	index, err := link.Index(a.nl, bridge)
	if err != nil {
		return err
	}
	hw, err := link.ParseMAC(mac)
	if err != nil || len(hw) != 6 {
		return err
	}
	if err := link.DelNeigh(a.nl, index, addr); err != nil {
		return err
	}
	frame, protocol := arpAnnouncement(addr, hw), uint16(unix.ETH_P_ARP)
	if addr.Is6() {
		frame, protocol = neighborAdvertisement(addr, hw), unix.ETH_P_IPV6
	}
	return a.host.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Protocol: protocol<<8 | protocol>>8})
	})
}

func ethernet(to, from net.HardwareAddr, protocol uint16) []byte {
	b := append(append(make([]byte, 0, 86), to...), from...)
	return binary.BigEndian.AppendUint16(b, protocol)
}

// arpAnnouncement is a question of the address' owner for itself (RFC 5227).
func arpAnnouncement(addr netip.Addr, mac net.HardwareAddr) []byte {
	b := ethernet(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, unix.ETH_P_ARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, a request
	b = append(append(b, mac...), addr.AsSlice()...)
	b = append(append(b, make([]byte, 6)...), addr.AsSlice()...)
	return append(b, make([]byte, 18)...) // the least that Ethernet carries
}

// neighborAdvertisement is an unsolicited one that overrides what is known (RFC 4861, 7.2.6).
func neighborAdvertisement(addr netip.Addr, mac net.HardwareAddr) []byte {
	all := netip.MustParseAddr("ff02::1")
	icmp := []byte{136, 0, 0, 0, 0x20, 0, 0, 0} // override
	icmp = append(append(icmp, addr.AsSlice()...), 2, 1)
	icmp = append(icmp, mac...)
	sum := uint32(len(icmp)) + unix.IPPROTO_ICMPV6
	for _, part := range [][]byte{addr.AsSlice(), all.AsSlice(), icmp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum))

	b := ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac, unix.ETH_P_IPV6)
	b = append(b, 0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255)
	b = append(append(b, addr.AsSlice()...), all.AsSlice()...)
	return append(b, icmp...)
}
