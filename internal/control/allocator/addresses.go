package allocator

import (
	"encoding/binary"
	"net/netip"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// Bounds of what is given out.
const (
	firstVNI         = 4096 // below are those that people give by hand
	lastVNI          = 1<<24 - 1
	firstDynamicPort = 30000
	lastDynamicPort  = 32767
	maxIngressMark   = int(cloud.IngressMarkMask >> cloud.IngressMarkShift)
)

// cursors remember where the last search ended.
type cursors struct {
	addrs   map[netip.Prefix]netip.Addr
	subnets map[netip.Prefix]netip.Prefix
	ports   map[cloud.Protocol]uint16
}

func newCursors() *cursors {
	return &cursors{addrs: map[netip.Prefix]netip.Addr{}, subnets: map[netip.Prefix]netip.Prefix{}, ports: map[cloud.Protocol]uint16{}}
}

// space is the addresses of one subnet.
type space struct {
	subnet  cloud.IPAMConfig
	used    map[netip.Addr]bool
	top     netip.Addr // the highest that something was given
	cursors *cursors
}

func newSpace(subnet cloud.IPAMConfig, c *cursors) *space {
	s := &space{subnet: subnet, used: map[netip.Addr]bool{}, cursors: c}
	s.reserve(subnet.Gateway)
	for _, a := range subnet.Aux {
		s.reserve(a)
	}
	base := subnet.Subnet.Masked()
	if base.IsSingleIP() {
		return s
	}
	s.reserve(base.Addr())
	if base.Addr().Is4() {
		s.reserve(lastAddr(base))
	}
	return s
}

// reserve takes an address that nothing is ever given.
func (s *space) reserve(a netip.Addr) {
	if a.IsValid() && s.subnet.Subnet.Contains(a) {
		s.used[a] = true
	}
}

// take notes an address that something has.
func (s *space) take(a netip.Addr) {
	if !a.IsValid() || !s.subnet.Subnet.Contains(a) {
		return
	}
	s.used[a] = true
	if !s.top.IsValid() || s.top.Less(a) {
		s.top = a
	}
}

// next gives a free address; ok is false when there is none.
func (s *space) next() (netip.Prefix, bool) {
	within := s.subnet.Subnet.Masked()
	if s.subnet.Range.IsValid() {
		within = s.subnet.Range.Masked()
	}
	start := s.cursors.addrs[s.subnet.Subnet]
	if !start.IsValid() || !within.Contains(start) {
		if start = within.Addr(); s.top.IsValid() && within.Contains(s.top) {
			start = s.top // where a leader without memory goes on
		}
	}
	a, wrapped := start, false
	for {
		a = a.Next()
		if !a.IsValid() || !within.Contains(a) {
			if wrapped {
				return netip.Prefix{}, false
			}
			a, wrapped = within.Addr(), true
		}
		if !s.used[a] {
			s.used[a] = true
			s.cursors.addrs[s.subnet.Subnet] = a
			return netip.PrefixFrom(a, s.subnet.Subnet.Bits()), true
		}
		if wrapped && a == start {
			return netip.Prefix{}, false
		}
	}
}

// lastAddr returns the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// nextSubnet cuts a subnet of size bits from the pools that overlaps none of taken.
func nextSubnet(pools []netip.Prefix, size int, taken []netip.Prefix, c *cursors) (netip.Prefix, bool) {
	for _, pool := range pools {
		pool = pool.Masked()
		if size < pool.Bits() || !pool.Addr().Is4() || size > 30 {
			continue
		}
		count := uint64(1) << (size - pool.Bits())
		first := uint64(0)
		if last, ok := c.subnets[pool]; ok && last.Bits() == size {
			first = indexOf(pool, last) + 1
		}
		for i := range min(count, 1<<20) {
			candidate := subnetAt(pool, size, (first+i)%count)
			if !overlapsAny(candidate, taken) {
				c.subnets[pool] = candidate
				return candidate, true
			}
		}
	}
	return netip.Prefix{}, false
}

func subnetAt(pool netip.Prefix, size int, i uint64) netip.Prefix {
	b := pool.Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) + uint32(i<<(32-size))
	binary.BigEndian.PutUint32(b[:], n)
	return netip.PrefixFrom(netip.AddrFrom4(b), size)
}

func indexOf(pool, subnet netip.Prefix) uint64 {
	a, b := pool.Addr().As4(), subnet.Addr().As4()
	return uint64(binary.BigEndian.Uint32(b[:])-binary.BigEndian.Uint32(a[:])) >> (32 - subnet.Bits())
}

func overlapsAny(p netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.IsValid() && p.Overlaps(t) {
			return true
		}
	}
	return false
}

// nextULA gives an IPv6 subnet that follows from the network's number, so that no two networks of the cluster meet.
func nextULA(vni uint32) netip.Prefix {
	b := [16]byte{0xfd, 0x5a, 0x6d, 0x70, 0x61, 0x6e}
	b[6], b[7] = byte(vni>>8), byte(vni)
	b[5] ^= byte(vni >> 16)
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}
