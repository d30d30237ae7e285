package lb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// Sweep makes a namespace forget connections to virtual IPs that go to somebody who is not a member any more: the next
// packet of a UDP flow, and the next try of a TCP connection that is not answered, goes to a member; an established TCP
// connection is reset at its next packet, where it would have hung. Connections to draining members go on.
func Sweep(ns *netns.NS, vips map[netip.Addr]*VIP) error {
	var v4, v6 bool
	for a := range vips {
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	match := func(f *netlink.ConntrackFlow) bool { return stale(f, vips) }
	var errs []error
	if v4 {
		errs = append(errs, Forget(ns, unix.AF_INET, match))
	}
	if v6 {
		errs = append(errs, Forget(ns, unix.AF_INET6, match))
	}
	return errors.Join(errs...)
}

// Forget removes the connections of a family for which match is true from a namespace's table of connections.
func Forget(ns *netns.NS, family netlink.InetFamily, match func(*netlink.ConntrackFlow) bool) error {
	return ns.Do(func() error {
		// The kernel looks through the connections of all namespaces to list those of one, so first ask for their number.
		if n, err := netns.ReadSysctl("net.netfilter.nf_conntrack_count"); err == nil && n == "0" {
			return nil
		}
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter(match))
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("forget connections: %w", err)
		}
		return nil
	})
}

type filter func(*netlink.ConntrackFlow) bool

// MatchConntrackFlow is what netlink asks of a filter.
func (f filter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool { return f(flow) }

func stale(flow *netlink.ConntrackFlow, vips map[netip.Addr]*VIP) bool {
	dst, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	if !ok {
		return false
	}
	v := vips[dst.Unmap()]
	if v == nil {
		return false
	}
	member, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return Stale(flow, member.Unmap(), v.Members, v.Draining)
}

// Stale reports whether a connection to member should be forgotten, now that there are these members.
func Stale(flow *netlink.ConntrackFlow, member netip.Addr, members, draining []netip.Addr) bool {
	switch {
	case slices.Contains(members, member):
		return false
	case slices.Contains(draining, member):
		return !established(flow)
	}
	return true
}

// established reports whether a TCP connection's handshake is done.
func established(flow *netlink.ConntrackFlow) bool {
	const synSent, synSent2 = 1, 9 // enum tcp_conntrack
	tcp, ok := flow.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && tcp.State > synSent && tcp.State < synSent2
}

func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

// set is a map's name for the library that reads elements.
func set(m nft.Map) *nftables.Set {
	return &nftables.Set{Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}, Name: m.Name,
		IsMap: len(m.Value) > 0 || m.Verdicts}
}
