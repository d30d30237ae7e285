package allocator

import (
	"net/netip"
	"testing"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

var (
	prefix = netip.MustParsePrefix
	addr   = netip.MustParseAddr
)

func TestSubnetsAvoidWhatIsTaken(t *testing.T) {
	c := newCursors()
	pools := []netip.Prefix{prefix("10.0.0.0/22"), prefix("192.168.0.0/24")}
	taken := []netip.Prefix{prefix("10.0.1.77/32"), prefix("10.0.2.0/25")} // a host, and half of a network
	var got []netip.Prefix
	for {
		p, ok := nextSubnet(pools, 24, taken, c)
		if !ok {
			break
		}
		got = append(got, p)
		taken = append(taken, p)
	}
	want := []netip.Prefix{prefix("10.0.0.0/24"), prefix("10.0.3.0/24"), prefix("192.168.0.0/24")}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("%v, want %v", got, want)
	}
	// Released, it is not the first to be given again.
	if p, ok := nextSubnet(pools[:1], 24, []netip.Prefix{prefix("10.0.1.0/24")}, c); !ok || p != prefix("10.0.0.0/24") {
		t.Errorf("%v %t: goes round", p, ok)
	}
	if p, _ := nextSubnet(pools[:1], 24, []netip.Prefix{prefix("10.0.1.0/24")}, c); p != prefix("10.0.2.0/24") {
		t.Errorf("%v: goes round", p)
	}
}

func TestAddressesOfASubnet(t *testing.T) {
	c := newCursors()
	subnet := cloud.IPAMConfig{Subnet: prefix("10.1.0.0/29"), Gateway: addr("10.1.0.1"), Aux: map[string]netip.Addr{"printer": addr("10.1.0.4")}}
	s := newSpace(subnet, c)
	var got []string
	for {
		a, ok := s.next()
		if !ok {
			break
		}
		got = append(got, a.String())
	}
	want := []string{"10.1.0.2/29", "10.1.0.3/29", "10.1.0.5/29", "10.1.0.6/29"}
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v, want %v", got, want)
		}
	}
	// The next pass sees one free again, and gives it.
	s = newSpace(subnet, c)
	for _, a := range []string{"10.1.0.2", "10.1.0.5", "10.1.0.6"} {
		s.take(addr(a))
	}
	if a, ok := s.next(); !ok || a.Addr() != addr("10.1.0.3") {
		t.Errorf("%v %t", a, ok)
	}
	// A leader without memory goes on after the highest.
	s = newSpace(subnet, newCursors())
	s.take(addr("10.1.0.3"))
	if a, _ := s.next(); a.Addr() != addr("10.1.0.5") {
		t.Errorf("%v: want the one after the highest in use", a)
	}
}

func TestAddressesOfARangeAndOfIPv6(t *testing.T) {
	s := newSpace(cloud.IPAMConfig{Subnet: prefix("10.1.0.0/16"), Range: prefix("10.1.5.0/30"), Gateway: addr("10.1.0.1")}, newCursors())
	n := 0
	for {
		a, ok := s.next()
		if !ok {
			break
		}
		if n++; !prefix("10.1.5.0/30").Contains(a.Addr()) || a.Bits() != 16 {
			t.Errorf("%v is outside the range", a)
		}
	}
	if n != 4 {
		t.Errorf("%d addresses of a range of four", n)
	}
	six := newSpace(cloud.IPAMConfig{Subnet: nextULA(4100), Gateway: nextULA(4100).Addr().Next()}, newCursors())
	if a, ok := six.next(); !ok || !a.Addr().Is6() || !nextULA(4100).Contains(a.Addr()) || nextULA(4100) == nextULA(4101) {
		t.Errorf("%v %t", a, ok)
	}
}
