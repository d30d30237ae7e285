package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network/nettest"
	"github.com/sampan-cloud/sampan/internal/sys/link"
)

func prefixOf(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addrOf(s string) netip.Addr     { return netip.MustParseAddr(s) }

// dual gives a network a subnet of each version.
func dual(s Spec) Spec {
	s.IPv4, s.IPv6 = true, true
	s.IPAM = []cloud.IPAMConfig{{Subnet: prefixOf("10.5.0.0/24")}, {Subnet: prefixOf("fd05::/64")}}
	return s
}

// reaches says whether a server answers at an address, and as whom it sees the asker.
func reaches(from *nettest.Space, at string) (client string, ok bool) {
	_, client, err := from.Ask("tcp", at)
	return client, err == nil
}

// TestGatewayModes: an attacker, or a friend, on the host's wire sends packets for containers' own addresses to the host.
func TestGatewayModes(t *testing.T) {
	for _, c := range []struct {
		mode                           gatewayMode
		published, direct, unpublished bool // from outside: by the host's address; to the container's, a published port; another one
		ping                           bool
		hidden                         bool // what leaves has the host's address
	}{
		{mode: modeNAT, published: true, hidden: true},
		{mode: modeUnprotected, published: true, direct: true, unpublished: true, ping: true, hidden: true},
		{mode: modeRouted, direct: true, ping: true},
	} {
		t.Run(string(c.mode), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			outside := s.lab.Host("outside")
			s.host.AddAddr("eth0", prefixOf("fd99::1/64"))
			outside.AddAddr("eth0", prefixOf("fd99::2/64"))
			s.create(dual(Spec{Name: "app", Options: map[string]string{optMode4: string(c.mode), optMode6: string(c.mode)}}))
			outside.Route(prefixOf("10.5.0.0/24"), s.host.Addr)
			outside.Route(prefixOf("fd05::/64"), addrOf("fd99::1"))
			spec := on("web", "app")
			spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}}
			web := s.attach(spec)
			for _, port := range []uint16{80, 81} {
				web.Serve(port)
				web.Serve6(port)
				outside.Serve(port)
				outside.Serve6(port)
			}
			other := s.attach(on("other", "bridge"))
			check := func(what string, from *nettest.Space, at string, want bool) {
				t.Helper()
				if _, got := reaches(from, at); got != want {
					t.Errorf("%s, from %s to %s: reached is %v, want %v", what, from.Name, at, got, want)
				}
			}
			for _, a := range []struct{ host, container netip.Addr }{{s.host.Addr, web.addr(0)}, {addrOf("fd99::1"), web.addr6(0)}} {
				check("published", outside, hostport(a.host, 8080), c.published)
				check("direct to a published port", outside, hostport(a.container, 80), c.direct)
				check("direct to another port", outside, hostport(a.container, 81), c.unpublished)
				check("from the host", s.host, hostport(a.container, 81), true)
			}
			check("from another network, published", other.Space, hostport(web.addr(0), 80), c.direct)
			check("from another network, not published", other.Space, hostport(web.addr(0), 81), c.unpublished)
			if err := outside.Ping(web.addr(0)); (err == nil) != c.ping {
				t.Errorf("ping from outside: %v", err)
			}
			for at, want := range map[string][2]netip.Addr{
				hostport(outside.Addr, 80): {s.host.Addr, web.addr(0)}, hostport(addrOf("fd99::2"), 80): {addrOf("fd99::1"), web.addr6(0)}} {
				who := want[1]
				if c.hidden {
					who = want[0]
				}
				if client, _ := reaches(web.Space, at); client != who.String() {
					t.Errorf("to %s as %s, want %s", at, client, who)
				}
			}
			if c.mode == modeRouted && !slices.Equal(web.Ports, []BoundPort{{"tcp", 80, netip.IPv4Unspecified(), 0}, {"tcp", 80, netip.IPv6Unspecified(), 0}}) {
				t.Errorf("ports: %v", web.Ports)
			}
			s.restart()
			check("after a restart, direct", outside, hostport(web.addr(0), 80), c.direct)
			check("after a restart, published", outside, hostport(s.host.Addr, 8080), c.published)
			if err := s.m.Detach(t.Context(), spec.ID); err != nil {
				t.Fatal(err)
			}
			if elements, err := s.m.fw.conn.Elements(hostTable, setOpen4); err != nil || len(elements) > 0 {
				t.Errorf("open after the container went: %v, %v", elements, err)
			}
		})
	}
}

func TestIsolatedMode(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	mode := map[string]string{optMode4: "isolated", optMode6: "isolated"}
	if _, err := s.m.Create(t.Context(), Spec{Name: "x", Options: mode}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("isolated and not internal: %v", err)
	}
	n := s.create(dual(Spec{Name: "app", Internal: true, Options: mode}))
	if n.Subnets[0].Gateway.IsValid() || n.Subnets[1].Gateway.IsValid() {
		t.Errorf("gateways: %v", n.Subnets)
	}
	a, b := s.attach(on("a", "app")), s.attach(on("b", "app"))
	b.Serve(80)
	b.Serve6(80)
	for _, addr := range []netip.Addr{b.addr(0), b.addr6(0)} {
		if _, ok := reaches(a.Space, hostport(addr, 80)); !ok {
			t.Errorf("a neighbour cannot be reached by %s", addr)
		}
		if _, ok := reaches(s.host, hostport(addr, 80)); ok {
			t.Errorf("the host reaches %s", addr)
		}
	}
	if a.addr(0) != addrOf("10.5.0.1") {
		t.Errorf("the first address is %s: there is no gateway to have it", a.addr(0))
	}
}

func TestTrustedInterfaceAndDirectRouting(t *testing.T) {
	for name, direct := range map[string]bool{"trusted interface": false, "direct routing": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, func(c *Config) { c.DirectRouting = direct })
			outside := s.lab.Host("outside")
			spec := Spec{Name: "app", IPAM: []cloud.IPAMConfig{{Subnet: prefixOf("10.5.0.0/24")}}}
			if !direct {
				spec.Options = map[string]string{optTrusted: "nosuch0:eth0"}
			}
			s.create(spec)
			outside.Route(prefixOf("10.5.0.0/24"), s.host.Addr)
			box := on("web", "app")
			box.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}, {Protocol: "tcp", Port: 80, HostPort: 8081}}
			web := s.attach(box)
			web.Serve(80)
			web.Serve(81)
			stranger := s.attach(on("stranger", "bridge"))
			for _, a := range []struct {
				from *nettest.Space
				port uint16
				want bool
			}{{outside, 80, true}, {outside, 81, false}, {stranger.Space, 80, direct}, {stranger.Space, 81, false}} {
				if _, got := reaches(a.from, hostport(web.addr(0), a.port)); got != a.want {
					t.Errorf("from %s to port %d: %v", a.from.Name, a.port, got)
				}
			}
		})
	}
}

func TestAcceptedMark(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *Config) { c.AcceptMark = "0x1/0x3" })
	outside := s.lab.Host("outside")
	web := s.attach(on("web", "bridge"))
	web.Serve(80)
	outside.Route(prefixOf("172.17.0.0/16"), s.host.Addr)
	if _, ok := reaches(outside, hostport(web.addr(0), 80)); ok {
		t.Error("reached without the mark")
	}
	s.host.MarkIncoming("eth0", 0x5)
	if _, ok := reaches(outside, hostport(web.addr(0), 80)); !ok {
		t.Error("not reached with the mark")
	}
}

func TestHostAddressOfWhatLeaves(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	outside.Serve(80)
	s.host.AddAddr("eth0", prefixOf("10.99.0.77/24"))
	s.create(Spec{Name: "snat", Options: map[string]string{optSource4: "10.99.0.77"}})
	s.create(Spec{Name: "plain", IPAM: []cloud.IPAMConfig{{Subnet: prefixOf("10.6.0.0/24")}}, Options: map[string]string{optMasquerade: "false"}})
	outside.Route(prefixOf("10.6.0.0/24"), s.host.Addr)
	for network, want := range map[string]string{"snat": "10.99.0.77", "plain": "10.6.0.2", "bridge": s.host.Addr.String()} {
		if client, _ := reaches(s.attach(on(network, network)).Space, hostport(outside.Addr, 80)); client != want {
			t.Errorf("from %s as %q, want %s", network, client, want)
		}
	}
}

func TestGatewayThatIsNotTheBridge(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.create(Spec{Name: "app", Options: map[string]string{optInhibit4: "true", optIfacePrefix: "net", optBridgeName: "app0"},
		IPAM: []cloud.IPAMConfig{{Subnet: prefixOf("10.5.0.0/24")}}})
	a := s.attach(on("a", "app"))
	if a.Endpoints[0].Interface != "net0" || a.Gateway() != n.Subnets[0].Gateway || n.Link != "app0" {
		t.Errorf("%+v, gateway %s, bridge %s", a.Endpoints[0], a.Gateway(), n.Link)
	}
	if err := s.host.Ping(a.addr(0)); err == nil {
		t.Error("the host has an address on the bridge")
	}
	s.create(Spec{Name: "aux", IPAM: []cloud.IPAMConfig{{Subnet: prefixOf("10.6.0.0/24"), Aux: map[string]netip.Addr{auxGateway4: addrOf("10.6.0.9")}}}})
	b := s.attach(on("b", "aux"))
	if b.Gateway() != addrOf("10.6.0.9") {
		t.Errorf("gateway %s", b.Gateway())
	}
	if err := s.host.Ping(b.addr(0)); err != nil {
		t.Error(err)
	}
}

// TestBridgeOfAnother: a bridge that was there before a network stays when that goes.
func TestBridgeOfAnother(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.host.With(func(h *netlink.Handle) error {
		_, err := link.AddBridge(h, link.Bridge{Name: "theirs", MAC: "02:00:00:00:00:07"})
		return err
	})
	s.create(Spec{Name: "app", Options: map[string]string{optBridgeName: "theirs"}})
	a := s.attach(on("a", "app"))
	if err := s.host.Ping(a.addr(0)); err != nil {
		t.Error(err)
	}
	if err := s.m.Detach(t.Context(), fullID("a")); err != nil {
		t.Fatal(err)
	}
	if err := s.m.Remove(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.host.Links(), "theirs") {
		t.Error("it is gone")
	}
}

func TestIPv6Only(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	s.host.AddAddr("eth0", prefixOf("fd99::1/64"))
	outside.AddAddr("eth0", prefixOf("fd99::2/64"))
	outside.Serve6(80)
	n := s.create(Spec{Name: "six", IPv6: true})
	other := s.create(Spec{Name: "other", IPv6: true})
	if len(n.Subnets) != 1 || n.Subnets[0].Subnet.Bits() != 64 || !prefixOf("fd00::/8").Contains(n.Subnets[0].Gateway) {
		t.Errorf("subnets: %v", n.Subnets)
	}
	if p := netip.PrefixFrom(n.Subnets[0].Gateway, 48).Masked(); p != netip.PrefixFrom(other.Subnets[0].Gateway, 48).Masked() {
		t.Errorf("%v and %v are not of one site", n.Subnets, other.Subnets)
	}
	spec := on("a", "six")
	spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}}
	a, b := s.attach(spec), s.attach(on("b", "six"))
	a.Serve6(80)
	if a.Endpoints[0].IPv4.IsValid() || a.Gateway().IsValid() {
		t.Errorf("%+v", a.Endpoints[0])
	}
	if want := []BoundPort{{"tcp", 80, netip.IPv6Unspecified(), 8080}}; !slices.Equal(a.Ports, want) {
		t.Errorf("ports: %v", a.Ports)
	}
	for from, at := range map[*nettest.Space]string{b.Space: hostport(a.addr6(0), 80), outside: "[fd99::1]:8080", s.host: "[::1]:8080"} {
		if _, ok := reaches(from, at); !ok {
			t.Errorf("from %s by %s: not reached", from.Name, at)
		}
	}
	if client, _ := reaches(b.Space, "[fd99::2]:80"); client != "fd99::1" {
		t.Errorf("it leaves as %q", client)
	}
	s.restart()
	if again := s.create(Spec{Name: "third", IPv6: true}); netip.PrefixFrom(again.Subnets[0].Gateway, 48).Masked() != netip.PrefixFrom(n.Subnets[0].Gateway, 48).Masked() {
		t.Errorf("after a restart: %v", again.Subnets)
	}
}

func TestDefaultBridgeAsConfigured(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *Config) {
		c.Bridge = BridgeConfig{BIP: prefixOf("10.7.0.9/24"), FixedCIDR: prefixOf("10.7.0.64/26"), Gateway4: addrOf("10.7.0.200"), IPv6: true,
			FixedCIDR6: prefixOf("fd07::/80"), NoMasquerade: true, Bind: addrOf("10.99.0.1"), NoICC: true}
	})
	n, err := s.m.Get("bridge")
	if err != nil || len(n.Subnets) != 2 || n.Subnets[0].Gateway != addrOf("10.7.0.9") || n.Subnets[1].Subnet != prefixOf("fd07::/80") {
		t.Fatalf("%+v, %v", n.Subnets, err)
	}
	spec := on("a", "bridge")
	spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}}
	a := s.attach(spec)
	if a.addr(0) != addrOf("10.7.0.64") || a.addr6(0) != addrOf("fd07::2") || a.Gateway() != addrOf("10.7.0.200") {
		t.Errorf("%+v", a.Endpoints[0])
	}
	if want := []BoundPort{{"tcp", 80, addrOf("10.99.0.1"), 8080}}; !slices.Equal(a.Ports, want) {
		t.Errorf("ports: %v", a.Ports)
	}
	s.restart()
	if again, err := s.m.Get("bridge"); err != nil || again.ID != n.ID {
		t.Errorf("the same configuration made it anew: %v", err)
	}
	s.m.Keep(nil)
	s.cfg.Bridge = BridgeConfig{}
	s.restart()
	if again, err := s.m.Get("bridge"); err != nil || again.ID == n.ID || again.Spec.IPv6 {
		t.Errorf("another configuration did not: %+v, %v", again, err)
	}
}

func TestConfigurationNetworks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "cfg", ConfigOnly: true, Labels: map[string]string{"a": "b"}, IPAM: []cloud.IPAMConfig{{Subnet: prefixOf("10.5.0.0/24")}}})
	n := s.create(Spec{Name: "app", ConfigFrom: "cfg"})
	if n.Subnets[0].Subnet != prefixOf("10.5.0.0/24") || n.Spec.Labels["a"] != "b" || n.Spec.Driver != DriverBridge {
		t.Errorf("%+v", n)
	}
	for name, c := range map[string]struct {
		do   func() error
		kind fault.Kind
	}{
		"a container on it": {func() error { _, err := s.m.Attach(t.Context(), on("x", "cfg")); return err }, fault.Forbidden},
		"remove":            {func() error { return s.m.Remove(t.Context(), "cfg") }, fault.Forbidden},
		"not there":         {func() error { _, err := s.m.Create(t.Context(), Spec{Name: "x", ConfigFrom: "nosuch"}); return err }, fault.NotFound},
		"no configuration":  {func() error { _, err := s.m.Create(t.Context(), Spec{Name: "x", ConfigFrom: "app"}); return err }, fault.NotFound},
		"options too": {func() error {
			_, err := s.m.Create(t.Context(), Spec{Name: "x", ConfigFrom: "cfg", Options: map[string]string{"a": "b"}})
			return err
		}, fault.Forbidden},
		"internal": {func() error {
			_, err := s.m.Create(t.Context(), Spec{Name: "x", ConfigOnly: true, Internal: true})
			return err
		}, fault.Forbidden},
	} {
		if err := c.do(); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.restart()
	for _, name := range []string{"app", "cfg"} {
		if err := s.m.Remove(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
}

// TestTheHostIsNoRouterForOthers: forwarding that is switched on for containers is not there for other networks.
func TestTheHostIsNoRouterForOthers(t *testing.T) {
	for name, c := range map[string]struct {
		was  string
		open bool
		want bool
	}{"switched on here": {"0", false, false}, "on before": {"1", false, true}, "open": {"0", true, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, func(cfg *Config) { cfg.Bridge.Disabled, cfg.OpenForwarding = true, c.open })
			outside, inside := s.lab.Host("outside"), s.lab.Space("inside")
			s.host.Sysctls(map[string]string{"net.ipv4.ip_forward": c.was})
			s.host.Wire("lan", prefixOf("10.50.0.1/24"), inside, "eth0", prefixOf("10.50.0.2/24"))
			inside.DefaultRoute(addrOf("10.50.0.1"))
			inside.Serve(80)
			outside.Route(prefixOf("10.50.0.0/24"), s.host.Addr)
			outside.Serve(80)
			s.create(Spec{Name: "app"})
			s.restart()
			if _, got := reaches(outside, "10.50.0.2:80"); got != c.want {
				t.Errorf("the host routes between its other networks: %v", got)
			}
			a := s.attach(on("a", "app"))
			for _, at := range []string{"10.50.0.2:80", hostport(outside.Addr, 80)} {
				if _, ok := reaches(a.Space, at); !ok {
					t.Errorf("a container does not reach %s", at)
				}
			}
		})
	}
}

func TestLinkLocalAddresses(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "app"})
	spec := func(name, addr string) SandboxSpec {
		spec := on(name, "app")
		spec.Endpoints[0].LinkLocal = []netip.Addr{addrOf(addr)}
		return spec
	}
	a, b := s.attach(spec("a", "169.254.7.1")), s.attach(spec("b", "169.254.7.2"))
	b.Serve(80)
	if client, ok := reaches(a.Space, "169.254.7.2:80"); !ok || client != "169.254.7.1" {
		t.Errorf("%s, %v", client, ok)
	}
	if _, err := s.m.Attach(t.Context(), spec("c", "10.0.0.1")); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("no link-local address: %v", err)
	}
}

// TestDefaultBridgeOfAnotherDaemon: a daemon with another data root takes the bridge over with its address, and leaves none
// of those that it had.
func TestDefaultBridgeOfAnotherDaemon(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *Config) { c.Bridge.IPv6 = true })
	first, err := s.m.Get("bridge")
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.DataRoot = t.TempDir()
	s.restart()
	second, err := s.m.Get("bridge")
	if err != nil || second.ID == first.ID || second.Subnets[0].Subnet != first.Subnets[0].Subnet {
		t.Errorf("%v, %v: the address changes with every daemon", second.Subnets, err)
	}
	var got []string
	s.host.With(func(h *netlink.Handle) error {
		l, err := link.Get(h, second.Link)
		if err != nil {
			return err
		}
		have, err := addresses(h, l)
		for p := range have {
			if !p.Addr().IsLinkLocalUnicast() {
				got = append(got, p.String())
			}
		}
		return err
	})
	want := []string{netip.PrefixFrom(second.Subnets[0].Gateway, 16).String(), netip.PrefixFrom(second.Subnets[1].Gateway, 64).String()}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("the bridge has %v, want %v", got, want)
	}
}

// TestIPv6TurnedOff: who turns IPv6 off in a container or on an interface has no IPv6 address there, and no name leads to
// one.
func TestIPv6TurnedOff(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.create(dual(Spec{Name: "app"}))
	whole, one := on("whole", "app"), on("one", "app")
	whole.Sysctls = map[string]string{"net.ipv6.conf.all.disable_ipv6": "1"}
	one.Endpoints[0].DriverOpts = map[string]string{optSysctls: "net.ipv6.conf.ifname.disable_ipv6=1"}
	for _, spec := range []SandboxSpec{whole, one} {
		b := s.attach(spec)
		if e := b.Endpoints[0]; e.IPv6.IsValid() || e.Gateway6.IsValid() || !e.IPv4.IsValid() {
			t.Errorf("%s: %+v", spec.Owner, e)
		}
		if addrs := s.names.table.Networks[n.ID].Records[spec.Owner]; !slices.Equal(addrs, []netip.Addr{b.addr(0)}) {
			t.Errorf("the name %s: %v", spec.Owner, addrs)
		}
	}
}

func TestBadOptions(t *testing.T) {
	for name, value := range map[string]string{optMode4: "open", optMode6: "", optInhibit4: "perhaps", optHostIP: "here", optSource4: "fd00::1",
		optSource6: "10.0.0.1", optIfacePrefix: "a/b", optMTU: "70000", optTellCount: "4", optTellEvery: "99"} {
		if _, err := readBridge(map[string]string{name: value}); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
	for _, mark := range []string{"x", "1/y", "0x1ffffffff", "-1"} {
		if _, err := parseMark(mark); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("mark %s: %v", mark, err)
		}
	}
}
