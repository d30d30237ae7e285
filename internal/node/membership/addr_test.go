package membership

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var (
	lo   = iface{name: "lo", up: true, loop: true, addrs: addrs("127.0.0.1", "::1")}
	eth0 = iface{name: "eth0", up: true, addrs: addrs("10.0.0.5", "fd00::5", "fe80::1")}
	eth1 = iface{name: "eth1", up: true, addrs: addrs("192.168.1.5")}
	down = iface{name: "eth2", addrs: addrs("172.30.0.1")}
	two  = iface{name: "eth3", up: true, addrs: addrs("10.1.0.5", "10.1.0.6")}
	dock = iface{name: "docker0", up: true, addrs: addrs("172.17.0.1")}
	bare = iface{name: "eth4", up: true, addrs: addrs("fe80::4")}
)

func TestAdvertiseAddress(t *testing.T) {
	own := []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}
	for _, c := range []struct {
		name       string
		interfaces []iface
		listen     string
		advertise  string
		want       string
		err        string
	}{
		{"the only address", []iface{lo, eth0, down, dock}, "", "", "10.0.0.5:2377", ""},
		{"an IP address", []iface{lo, eth0, eth1}, "", "192.168.1.5", "192.168.1.5:2377", ""},
		{"an IP address that is not the host's", []iface{lo, eth0}, "", "203.0.113.7:9999", "203.0.113.7:9999", ""},
		{"an interface", []iface{lo, eth0, eth1}, "", "eth1", "192.168.1.5:2377", ""},
		{"an interface with port", []iface{lo, eth0, eth1}, "", "eth1:4000", "192.168.1.5:4000", ""},
		{"IPv4 is preferred", []iface{lo, eth0, eth1}, "", "eth0", "10.0.0.5:2377", ""},
		{"IPv6", []iface{lo, eth0}, "[::]:2377", "fd00::5", "[fd00::5]:2377", ""},
		{"IPv6 with port", []iface{lo, eth0}, "", "[fd00::5]:4000", "[fd00::5]:4000", ""},
		{"the address listened on", []iface{lo, eth0, eth1}, "192.168.1.5:4000", "", "192.168.1.5:4000", ""},
		{"listen port", []iface{lo, eth0}, "0.0.0.0:4000", "", "10.0.0.5:4000", ""},
		{"ambiguous interfaces", []iface{lo, eth0, eth1}, "", "", "", "multiple addresses on different interfaces (10.0.0.5 on eth0 and 192.168.1.5 on eth1)"},
		{"ambiguous addresses", []iface{lo, two}, "", "", "", "multiple addresses on interface eth3 (10.1.0.5 and 10.1.0.6)"},
		{"ambiguous interface named", []iface{lo, two}, "", "eth3", "", "interface eth3 has more than one IPv4 address (10.1.0.5 and 10.1.0.6)"},
		{"no address", []iface{lo, down}, "", "", "", "could not find the system's IP address"},
		{"interface without address", []iface{lo, bare}, "", "eth4", "", "interface eth4 has no usable IPv4 or IPv6 address"},
		{"zero", []iface{lo, eth0}, "", "0.0.0.0", "", "advertise address must be a non-zero IP address or network interface"},
		{"a host name", []iface{lo, eth0}, "", "host.example", "", "advertise address must be"},
		{"a bad port", []iface{lo, eth0}, "", "10.0.0.5:99999", "", "could not parse advertise address"},
		{"a bad listen address", []iface{lo, eth0}, "nowhere:2377", "", "", "listen address must be an IP address or network interface"},
		{"a bad listen port", []iface{lo, eth0}, "0.0.0.0:x", "", "", "could not parse listen address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := resolver{interfaces: c.interfaces, own: own}
			got := netip.AddrPort{}
			listen, err := r.listen(c.listen)
			if err == nil {
				got, err = r.advertise(c.advertise, listen)
			}
			if c.err != "" {
				if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, %v; want an error with %q", got, err, c.err)
				}
				return
			}
			if err != nil || got.String() != c.want {
				t.Fatalf("got %v, %v; want %s", got, err, c.want)
			}
		})
	}
}

func TestDataPathAddress(t *testing.T) {
	r := resolver{interfaces: []iface{lo, eth0, eth1}}
	adv := netip.MustParseAddr("10.0.0.5")
	for in, want := range map[string]string{"": "10.0.0.5", "eth1": "192.168.1.5", "192.168.1.9": "192.168.1.9", "0.0.0.0": "", "eth1:1": ""} {
		got, err := r.dataPath(in, adv)
		if want == "" {
			if !fault.Is(err, fault.InvalidArgument) {
				t.Errorf("%q: %v, %v", in, got, err)
			}
		} else if err != nil || got.String() != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestRemoteAddress(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1:2377", "10.0.0.1:9": "10.0.0.1:9", "host": "host:2377", "fd00::1": "[fd00::1]:2377", "": "", "a:b": "", ":1": "",
	} {
		got, err := remote(in)
		if (err != nil) != (want == "") || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func FuzzAddresses(f *testing.F) {
	for _, s := range []string{"", "eth0", "eth0:1", "[::1]:5", "::", "10.0.0.1:65536", "[", "a:b:c", ":"} {
		f.Add(s)
	}
	r := resolver{interfaces: []iface{lo, eth0, two}}
	f.Fuzz(func(t *testing.T, s string) {
		listen, err := r.listen(s)
		if err == nil && !listen.IsValid() {
			t.Errorf("listen %q gives %v", s, listen)
		}
		if a, err := r.advertise(s, netip.MustParseAddrPort("0.0.0.0:2377")); err == nil && (!a.IsValid() || a.Addr().IsUnspecified()) {
			t.Errorf("advertise %q gives %v", s, a)
		}
		if a, err := remote(s); err == nil && !strings.Contains(a, ":") {
			t.Errorf("remote %q gives %q", s, a)
		}
	})
}
