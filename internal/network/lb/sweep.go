package lb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// Flow is a connection as the kernel tracks it.
type Flow struct {
	Protocol uint8
	To       netip.AddrPort // what it was sent to
	Member   netip.Addr     // who answers
	tcpState uint8
}

// Sweep makes a namespace forget connections to virtual IPs that go to somebody who is not a member any more: the next
// packet of a UDP flow, and the next try of a TCP connection that is not answered, goes to a member; an established TCP
// connection is reset at its next packet, where it would have hung. Connections to draining members go on. Members are
// those that may have lost something; nil: anybody.
func Sweep(ns *netns.NS, vips map[netip.Addr]*VIP, members []netip.Addr) error {
	if len(vips) == 0 {
		return nil
	}
	return Forget(ns, members, func(f Flow) bool {
		v := vips[f.To.Addr()]
		return v != nil && f.Stale(v.Members, v.Draining)
	})
}

// Stale reports whether the connection should be forgotten, now that these are the members.
func (f Flow) Stale(members, draining []netip.Addr) bool {
	switch {
	case slices.Contains(members, f.Member):
		return false
	case slices.Contains(draining, f.Member):
		return !f.established()
	}
	return true
}

// established reports whether a TCP connection's handshake is done.
func (f Flow) established() bool {
	const synSent, synSent2 = 1, 9 // enum tcp_conntrack
	return f.Protocol == unix.IPPROTO_TCP && f.tcpState > synSent && f.tcpState < synSent2
}

// few is up to how many members are asked for one by one: the kernel looks through all of a host's connections each time,
// but hands out only those that are asked for.
const few = 4

// Forget removes the connections to the given members (nil: to anybody) for which match is true from a namespace's table.
func Forget(ns *netns.NS, members []netip.Addr, match func(Flow) bool) error {
	var conn *netlink.Conn
	if err := ns.Do(func() (err error) {
		if count, err := netns.ReadSysctl("net.netfilter.nf_conntrack_count"); err == nil && count == "0" {
			return nil
		}
		// Not by the library's own way into a namespace, which moves any thread, the process' main one included.
		conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	}); err != nil {
		return fmt.Errorf("forget connections: %w", err)
	}
	if conn == nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	if members == nil || len(members) > few {
		members = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	var errs []error
	for _, m := range members {
		request, err := list(m)
		if err == nil {
			err = forget(conn, request, match)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("forget connections: %w", err))
		}
	}
	return errors.Join(errs...)
}

// What the kernel calls the parts of its messages about connections: linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet, ctDelete   = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1, unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	ctaOrig, ctaReply = 1, 2
	ctaProtoInfo      = 4
	ctaFilter         = 25
	ctaIP, ctaProto   = 1, 2 // in a direction
	ctaSrc4, ctaDst4  = 1, 2
	ctaSrc6, ctaDst6  = 3, 4
	ctaNum, ctaDport  = 1, 3
	filterReply       = 2 // in ctaFilter
	filterSrc         = 1 // its bit: the source address counts
)

// list is the request for the connections that member answers; an unspecified one stands for all of its family.
func list(member netip.Addr) (netlink.Message, error) {
	family, src := byte(unix.AF_INET), uint16(ctaSrc4)
	if member.Is6() {
		family, src = unix.AF_INET6, ctaSrc6
	}
	msg := netlink.Message{Header: netlink.Header{Type: ctGet, Flags: netlink.Request | netlink.Dump}, Data: []byte{family, 0, 0, 0}}
	if member.IsUnspecified() {
		return msg, nil
	}
	ae := netlink.NewAttributeEncoder()
	ae.Nested(ctaReply, func(dir *netlink.AttributeEncoder) error {
		dir.Nested(ctaIP, func(ip *netlink.AttributeEncoder) error { ip.Bytes(src, member.AsSlice()); return nil })
		return nil
	})
	ae.Nested(ctaFilter, func(f *netlink.AttributeEncoder) error {
		f.Uint32(filterReply, filterSrc)
		return nil
	})
	b, err := ae.Encode()
	msg.Data = append(msg.Data, b...)
	return msg, err
}

func forget(conn *netlink.Conn, request netlink.Message, match func(Flow) bool) error {
	replies, err := conn.Execute(request)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	for _, r := range replies {
		f, err := parse(r.Data)
		if err != nil {
			return err
		}
		if !match(f) {
			continue
		}
		// The entry itself says which one is meant: its addresses and its number.
		_, err = conn.Execute(netlink.Message{Header: netlink.Header{Type: ctDelete, Flags: netlink.Request | netlink.Acknowledge}, Data: r.Data})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove: %w", err)
		}
	}
	return nil
}

// parse reads an entry as the kernel sends it.
func parse(b []byte) (Flow, error) {
	var f Flow
	if len(b) < 4 {
		return f, errors.New("connection entry: too short")
	}
	ad, err := netlink.NewAttributeDecoder(b[4:])
	if err != nil {
		return f, fmt.Errorf("connection entry: %w", err)
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case ctaOrig:
			ad.Nested(func(dir *netlink.AttributeDecoder) error { return f.direction(dir, ctaDst4, ctaDst6, &f.To) })
		case ctaReply:
			var from netip.AddrPort
			ad.Nested(func(dir *netlink.AttributeDecoder) error { return f.direction(dir, ctaSrc4, ctaSrc6, &from) })
			f.Member = from.Addr()
		case ctaProtoInfo:
			ad.Nested(func(info *netlink.AttributeDecoder) error {
				for info.Next() {
					if info.Type() == 1 { // TCP
						info.Nested(func(tcp *netlink.AttributeDecoder) error {
							for tcp.Next() {
								if tcp.Type() == 1 { // its state
									f.tcpState = tcp.Uint8()
								}
							}
							return nil
						})
					}
				}
				return nil
			})
		}
	}
	if err := ad.Err(); err != nil {
		return f, fmt.Errorf("connection entry: %w", err)
	}
	return f, nil
}

// direction reads one of a direction's two addresses, and the port that it is sent to.
func (f *Flow) direction(dir *netlink.AttributeDecoder, four, six uint16, end *netip.AddrPort) error {
	var addr netip.Addr
	var port uint16
	for dir.Next() {
		switch dir.Type() {
		case ctaIP:
			dir.Nested(func(ip *netlink.AttributeDecoder) error {
				for ip.Next() {
					if t := ip.Type(); t == four || t == six {
						addr, _ = netip.AddrFromSlice(ip.Bytes())
					}
				}
				return nil
			})
		case ctaProto:
			dir.Nested(func(proto *netlink.AttributeDecoder) error {
				for proto.Next() {
					switch proto.Type() {
					case ctaNum:
						f.Protocol = proto.Uint8()
					case ctaDport:
						port = proto.Uint16()
					}
				}
				return nil
			})
		}
	}
	*end = netip.AddrPortFrom(addr.Unmap(), port)
	return nil
}

func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
