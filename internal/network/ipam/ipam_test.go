package ipam_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network/ipam"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func space(t *testing.T, pools ...ipam.Pool) *ipam.Space {
	t.Helper()
	s, err := ipam.New(pools)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDefaultPools(t *testing.T) {
	s := space(t)
	var got []string
	for {
		n, err := s.Take("net", ipam.Request{}, false, []netip.Prefix{prefix("172.18.5.0/24"), prefix("172.20.0.0/14")})
		if errors.Is(err, ipam.ErrNoSubnet) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got = append(got, n.Prefix.String())
	}
	if len(got) != 15-1-4+16 || got[0] != "172.17.0.0/16" || got[1] != "172.19.0.0/16" || got[2] != "172.24.0.0/16" ||
		got[10] != "192.168.0.0/20" || got[25] != "192.168.240.0/20" {
		t.Errorf("%d subnets: %v", len(got), got)
	}
}

func TestPoolsBiggerThanWhatBlocksThem(t *testing.T) {
	s := space(t, ipam.Pool{Base: prefix("10.0.0.0/8"), Size: 24}, ipam.Pool{Base: prefix("fd00:1::/48"), Size: 64})
	n, err := s.Take("net", ipam.Request{}, false, []netip.Prefix{prefix("10.0.0.0/9"), prefix("10.128.0.7/32")})
	if err != nil || n.Prefix.String() != "10.128.1.0/24" {
		t.Errorf("%v, %v", n, err)
	}
	if n, err = s.Take("net", ipam.Request{}, true, nil); err != nil || n.Prefix.String() != "fd00:1::/64" || n.Gateway.String() != "fd00:1::1" {
		t.Errorf("%v, %v", n, err)
	}
}

func TestRandomIPv6(t *testing.T) {
	s := space(t)
	a, err := s.Take("net", ipam.Request{}, true, nil)
	if err != nil || a.Prefix.Bits() != 64 || !prefix("fd00::/8").Overlaps(a.Prefix) {
		t.Fatalf("%+v, %v", a, err)
	}
	if b, err := s.Take("net", ipam.Request{}, true, nil); err != nil || b.Prefix == a.Prefix {
		t.Errorf("%+v, %v", b, err)
	}
}

func TestBadPools(t *testing.T) {
	for _, p := range []ipam.Pool{{}, {Base: prefix("10.0.0.1/8"), Size: 24}, {Base: prefix("10.0.0.0/16"), Size: 8}, {Base: prefix("10.0.0.0/16"), Size: 31}} {
		if _, err := ipam.New([]ipam.Pool{p}); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%v: %v", p, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	s := space(t)
	n, err := s.Take("net", ipam.Request{Subnet: prefix("10.5.0.0/29"), Aux: map[string]netip.Addr{"printer": addr("10.5.0.3")}}, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	take := func(want, from string) {
		t.Helper()
		f := netip.Addr{}
		if from != "" {
			f = addr(from)
		}
		if got, err := n.Alloc(f); err != nil || got.String() != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
	if n.Gateway.String() != "10.5.0.1" {
		t.Errorf("gateway %s", n.Gateway)
	}
	take("10.5.0.5", "10.5.0.5")
	take("10.5.0.2", "")
	take("10.5.0.4", "")
	take("10.5.0.6", "")
	if _, err := n.Alloc(netip.Addr{}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("a full subnet: %v", err)
	}
	for _, a := range []string{"10.5.0.0", "10.5.0.1", "10.5.0.3", "10.5.0.4", "10.5.0.7"} {
		if _, err := n.Alloc(addr(a)); !fault.Is(err, fault.AlreadyExists) || !errors.Is(err, ipam.ErrTaken) {
			t.Errorf("%s: %v", a, err)
		}
	}
	if _, err := n.Alloc(addr("10.6.0.2")); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("outside: %v", err)
	}
	n.Free(addr("10.5.0.4"))
	n.Free(addr("10.5.0.2"))
	n.Free(addr("10.5.0.1")) // the gateway's stays
	take("10.5.0.2", "")
	take("10.5.0.4", "")
	if _, err := s.Take("net", ipam.Request{Subnet: prefix("10.5.0.0/24")}, false, nil); !fault.Is(err, fault.Forbidden) || !errors.Is(err, ipam.ErrOverlap) {
		t.Errorf("overlap: %v", err)
	}
	s.Give("net", n.Prefix)
	if _, err := s.Take("net", ipam.Request{Subnet: prefix("10.5.0.0/24")}, false, nil); err != nil {
		t.Errorf("a subnet that was given back: %v", err)
	}
}

func TestRange(t *testing.T) {
	s := space(t)
	n, err := s.Take("net", ipam.Request{Subnet: prefix("10.5.0.0/16"), Range: prefix("10.5.7.0/30"), Gateway: addr("10.5.255.254")}, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10.5.7.0", "10.5.7.1", "10.5.7.2", "10.5.7.3"} {
		if got, err := n.Alloc(netip.Addr{}); err != nil || got.String() != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
	if _, err := n.Alloc(netip.Addr{}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("a full range: %v", err)
	}
	if got, err := n.Alloc(addr("10.5.9.9")); err != nil {
		t.Errorf("outside the range: %s, %v", got, err)
	}
}

// Whatever is asked for in whatever order, no address is given twice and none that is free is refused.
func TestRandomOperationsKeepTheBooks(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		n, err := space(t).Take("net", ipam.Request{Subnet: prefix("10.5.0.0/27")}, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		held := map[netip.Addr]bool{}
		for range 400 {
			a := netip.AddrFrom4([4]byte{10, 5, 0, byte(2 + r.IntN(29))})
			switch r.IntN(3) {
			case 0:
				got, err := n.Alloc(netip.Addr{})
				if (err != nil) != (len(held) == 29) || held[got] {
					t.Fatalf("seed %d: got %s, %v with %d held", seed, got, err, len(held))
				}
				if err == nil {
					held[got] = true
				}
			case 1:
				if _, err := n.Alloc(a); (err != nil) != held[a] {
					t.Fatalf("seed %d: %s: %v, held %v", seed, a, err, held[a])
				}
				held[a] = true
			case 2:
				n.Free(a)
				delete(held, a)
			}
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("10.0.0.0/24", "10.0.0.128/25", "10.0.0.1")
	f.Add("fd00::/64", "", "fd00::1")
	f.Add("0.0.0.0/0", "255.255.255.255/32", "255.255.255.255")
	f.Fuzz(func(t *testing.T, subnet, rng, gw string) {
		var r ipam.Request
		var err error
		if r.Subnet, err = netip.ParsePrefix(subnet); err != nil {
			return
		}
		r.Range, _ = netip.ParsePrefix(rng)
		r.Gateway, _ = netip.ParseAddr(gw)
		s, err := ipam.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.Take("net", r, r.Subnet.Addr().Is6(), nil)
		if err != nil {
			return
		}
		if !n.Prefix.Contains(n.Gateway) {
			t.Errorf("gateway %s outside %s", n.Gateway, n.Prefix)
		}
		if a, err := n.Alloc(netip.Addr{}); err == nil && (!n.Range.Contains(a) || a == n.Gateway) {
			t.Errorf("address %s of %s, gateway %s", a, n.Range, n.Gateway)
		}
	})
}

func TestSharedSubnet(t *testing.T) {
	s := space(t)
	take := func(owner, sub, rng string) *ipam.Subnet {
		t.Helper()
		n, err := s.Take(owner, ipam.Request{Subnet: prefix(sub), Range: prefix(rng), NoGateway: true, Shared: true}, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	one, two := take("one", "192.168.0.0/24", "192.168.0.0/25"), take("two", "192.168.0.0/24", "192.168.0.0/24")
	status := func(n *ipam.Subnet, inUse, available uint64) {
		t.Helper()
		if u, a := n.Status(); u != inUse || a != available {
			t.Errorf("%d in use and %d available, want %d and %d", u, a, inUse, available)
		}
	}
	status(one, 2, 127)
	status(two, 2, 254)
	a, err := one.Alloc(netip.Addr{})
	if err != nil || a != addr("192.168.0.1") {
		t.Errorf("%s, %v", a, err)
	}
	if b, err := two.Alloc(netip.Addr{}); err != nil || b != addr("192.168.0.2") {
		t.Errorf("an address is given twice: %s, %v", b, err)
	}
	status(one, 4, 125)
	one.Free(a)
	if b, err := two.Alloc(netip.Addr{}); err != nil || b != a {
		t.Errorf("an address that the other network gave back: %s, %v", b, err)
	}
	for _, r := range []ipam.Request{{Subnet: prefix("192.168.0.0/24")}, {Subnet: prefix("192.168.0.0/23"), Shared: true}} {
		if _, err := s.Take("three", r, false, nil); !errors.Is(err, ipam.ErrOverlap) {
			t.Errorf("%v: %v", r, err)
		}
	}
	s.Give("one", one.Prefix)
	s.Give("two", two.Prefix)
	if _, err := s.Take("three", ipam.Request{Subnet: prefix("192.168.0.0/23")}, false, nil); err != nil {
		t.Error(err)
	}
}

func TestStatusOfBigAndSmallSubnets(t *testing.T) {
	s := space(t)
	for _, c := range []struct {
		r                ipam.Request
		inUse, available uint64
	}{
		{ipam.Request{Subnet: prefix("fd00::/56")}, 2, math.MaxUint64},
		{ipam.Request{Subnet: prefix("fd01::/64")}, 2, math.MaxUint64 - 1},
		{ipam.Request{Subnet: prefix("fd02::/64"), Range: prefix("fd02::/120"), Gateway: addr("fd02::1"),
			Aux: map[string]netip.Addr{"in": addr("fd02::2a"), "out": addr("fd02::8000")}}, 4, 253},
		{ipam.Request{Subnet: prefix("10.0.0.0/24"), Range: prefix("10.0.0.64/31"), Gateway: addr("10.0.0.1"),
			Aux: map[string]netip.Addr{"in": addr("10.0.0.65"), "out": addr("10.0.0.128")}}, 5, 1},
		{ipam.Request{Subnet: prefix("10.0.1.0/31"), NoGateway: true}, 0, 2},
	} {
		n, err := s.Take("net", c.r, false, nil)
		if err != nil {
			t.Errorf("%v: %v", c.r, err)
			continue
		}
		if u, a := n.Status(); u != c.inUse || a != c.available {
			t.Errorf("%v: %d in use and %d available, want %d and %d", c.r, u, a, c.inUse, c.available)
		}
	}
}

func TestSubnetOfASize(t *testing.T) {
	s := space(t, ipam.Pool{Base: prefix("10.0.0.0/16"), Size: 20}, ipam.Pool{Base: prefix("fd00:1::/48"), Size: 64})
	for _, c := range []struct{ ask, want string }{{"0.0.0.0/24", "10.0.0.0/24"}, {"0.0.0.0/24", "10.0.1.0/24"}, {"::/96", "fd00:1::/96"}, {"0.0.0.0/17", "10.0.128.0/17"}} {
		n, err := s.Take("net", ipam.Request{Subnet: prefix(c.ask)}, prefix(c.ask).Addr().Is6(), nil)
		if err != nil || n.Prefix != prefix(c.want) {
			t.Errorf("%s: %v, %v, want %s", c.ask, n, err, c.want)
		}
	}
	if _, err := s.Take("net", ipam.Request{Subnet: prefix("0.0.0.0/8")}, false, nil); !errors.Is(err, ipam.ErrNoSubnet) {
		t.Errorf("more than there is: %v", err)
	}
}
