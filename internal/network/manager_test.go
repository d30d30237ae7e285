package network

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/keeper"
	nameserver "github.com/sampan-cloud/sampan/internal/keeper/names"
	"github.com/sampan-cloud/sampan/internal/network/nettest"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// served is a keeper's name server without the keeper.
type served struct {
	*nameserver.Server
	mu    sync.Mutex
	table keeper.NameTable
	fail  error
}

func (s *served) SetNames(_ context.Context, t keeper.NameTable) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.table = t
	return s.Set(t)
}

// site is a host with a manager, in a lab.
type site struct {
	t     testing.TB
	lab   *nettest.Lab
	host  *nettest.Space
	names *served
	cfg   Config
	m     *Manager
}

func newSite(t testing.TB, edit ...func(*Config)) *site {
	t.Helper()
	lab := nettest.New(t)
	s := &site{t: t, lab: lab, host: lab.Host("host"), names: &served{Server: nameserver.New(nil)}}
	dir := t.TempDir()
	s.cfg = Config{DataRoot: filepath.Join(dir, "data"), ExecRoot: filepath.Join(dir, "exec"), Names: s.names,
		HostNetNS: s.host.Path(), ResolvConf: filepath.Join(dir, "resolv.conf"), Logger: testLog(t)}
	if err := os.WriteFile(s.cfg.ResolvConf, []byte("nameserver 10.99.0.53\nsearch example.org\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, e := range edit {
		e(&s.cfg)
	}
	s.start()
	t.Cleanup(func() {
		s.m.Keep(nil)
		if err := s.m.Close(); err != nil {
			t.Error(err)
		}
		_ = s.names.Close()
		s.noLeaks()
	})
	return s
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(writer{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type writer struct{ t testing.TB }

func (w writer) Write(b []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(b)))
	return len(b), nil
}

func (s *site) start() {
	s.t.Helper()
	m, err := New(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.m = m
}

// restart is a daemon that ends and comes back.
func (s *site) restart() {
	s.t.Helper()
	if err := s.m.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.start()
}

// noLeaks checks that nothing of a sandbox is left.
func (s *site) noLeaks() {
	s.t.Helper()
	for _, l := range s.host.Links() {
		if strings.HasPrefix(l, "veth") {
			s.t.Errorf("link %s is left on the host", l)
		}
	}
	pinned, _ := filepath.Glob(filepath.Join(s.cfg.ExecRoot, "netns", "*"))
	if len(pinned) > 0 {
		s.t.Errorf("namespaces are left: %v", pinned)
		for _, p := range pinned {
			_ = netns.Remove(p)
		}
	}
	if tables, err := nft.Open(s.host.FD()).Tables(nft.INet); err != nil || len(tables) > 1 {
		s.t.Errorf("nftables on the host: %v, %v", tables, err)
	}
}

func (s *site) create(spec Spec) Network {
	s.t.Helper()
	n, err := s.m.Create(s.t.Context(), spec)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// box is a sandbox as the tests see it.
type testBox struct {
	*nettest.Space
	*Sandbox
}

func (s *site) attach(spec SandboxSpec) *testBox {
	s.t.Helper()
	sb, err := s.m.Attach(s.t.Context(), spec)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.inside(spec.Owner, sb)
}

func (s *site) inside(name string, sb *Sandbox) *testBox {
	s.t.Helper()
	return &testBox{Space: s.lab.Open(name, sb.NetNS), Sandbox: sb}
}

func (b *testBox) addr(i int) netip.Addr  { return b.Endpoints[i].IPv4.Addr() }
func (b *testBox) addr6(i int) netip.Addr { return b.Endpoints[i].IPv6.Addr() }

// on is a sandbox's spec for some networks.
func on(name string, networks ...string) SandboxSpec {
	s := SandboxSpec{ID: fullID(name), Owner: name, Hostname: name + "-host"}
	for _, n := range networks {
		s.Endpoints = append(s.Endpoints, EndpointSpec{Network: n})
	}
	return s
}

func fullID(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) }

func hostport(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

func TestTwoSandboxesOnTheDefaultBridge(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a, b := s.attach(on("a", "bridge")), s.attach(on("b", "bridge"))
	if got := a.Endpoints[0].IPv4.String(); got != "172.17.0.2/16" {
		t.Errorf("the first address is %s", got)
	}
	if got, want := a.Endpoints[0].MAC, "02:42:ac:11:00:02"; got != want {
		t.Errorf("MAC %s, want %s", got, want)
	}
	if a.Endpoints[0].Gateway4.String() != "172.17.0.1" || a.Endpoints[0].Interface != "eth0" {
		t.Errorf("endpoint: %+v", a.Endpoints[0])
	}
	if err := a.Ping(b.addr(0)); err != nil {
		t.Error(err)
	}
	b.Serve(80)
	if got, client := a.MustAsk("tcp", hostport(b.addr(0), 80)); got != "b" || client != a.addr(0).String() {
		t.Errorf("answered by %s to %s", got, client)
	}
	if got, _ := s.host.MustAsk("tcp", hostport(b.addr(0), 80)); got != "b" {
		t.Errorf("answered by %s", got)
	}
	if got := string(a.ResolvConf); got != "nameserver 10.99.0.53\nsearch example.org\n" {
		t.Errorf("resolv.conf:\n%s", got)
	}
	if want := []string{a.addr(0).String() + "\ta-host"}; !slices.Equal(a.Hosts, want) {
		t.Errorf("hosts: %q", a.Hosts)
	}
	n, err := s.m.Get("bridge")
	if err != nil || n.Link != "sampan0" || len(n.Members) != 2 {
		t.Errorf("network bridge: %+v, %v", n, err)
	}
}

func TestMasqueradeAndWhatIsNotPublished(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	outside.Serve(80)
	a := s.attach(on("a", "bridge"))
	if _, client := a.MustAsk("tcp", hostport(outside.Addr, 80)); client != s.host.Addr.String() {
		t.Errorf("the outside sees %s, want the host's address", client)
	}
	a.Serve(80)
	outside.DefaultRoute(s.host.Addr) // an attacker on the same wire
	if got, _, err := outside.Ask("tcp", hostport(a.addr(0), 80)); err == nil {
		t.Errorf("an unpublished port is reached from outside: %s", got)
	}
	if err := outside.Ping(a.addr(0)); err == nil {
		t.Error("a sandbox answers pings from outside")
	}
	if _, _, err := outside.Ask("tcp", hostport(s.host.Addr, 80)); err == nil {
		t.Error("an unpublished port is reached at the host's address")
	}
}

func TestPublishedPort(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			outside := s.lab.Host("outside")
			s.create(Spec{Name: "app"})
			spec := on("web", "app")
			spec.Ports = []PortBinding{{Protocol: network, Port: 80, HostPort: 8080}}
			web := s.attach(spec)
			web.Serve(80)
			want := []BoundPort{{network, 80, netip.IPv4Unspecified(), 8080}, {network, 80, netip.IPv6Unspecified(), 8080}}
			if !slices.Equal(web.Ports, want) {
				t.Errorf("ports: %v", web.Ports)
			}
			if got, client := outside.MustAsk(network, hostport(s.host.Addr, 8080)); got != "web" || client != outside.Addr.String() {
				t.Errorf("from outside: %s sees %s", got, client)
			}
			for _, at := range []string{"127.0.0.1:8080", hostport(s.host.Addr, 8080), "172.17.0.1:8080", "172.18.0.1:8080"} {
				if got, _ := s.host.MustAsk(network, at); got != "web" {
					t.Errorf("from the host by %s: %s", at, got)
				}
			}
			neighbour, stranger := s.attach(on("neighbour", "app")), s.attach(on("stranger", "bridge"))
			for _, from := range []*testBox{web, neighbour, stranger} {
				if got, _ := from.MustAsk(network, hostport(s.host.Addr, 8080)); got != "web" {
					t.Errorf("from %s by the host's address: %s", from.Name, got)
				}
			}
			if got, _, err := stranger.Ask(network, hostport(web.addr(0), 80)); err == nil {
				t.Errorf("a container of another network reaches %s", got)
			}
			if err := s.m.Detach(t.Context(), spec.ID); err != nil {
				t.Fatal(err)
			}
			if got, _, err := outside.Ask(network, hostport(s.host.Addr, 8080)); err == nil {
				t.Errorf("after Detach %s answers", got)
			}
		})
	}
}

func TestPublishedOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	spec := on("web", "bridge")
	spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8080}}
	web := s.attach(spec)
	web.Serve(80)
	if got, _ := s.host.MustAsk("tcp", "127.0.0.1:8080"); got != "web" {
		t.Errorf("from the host: %s", got)
	}
	if got, _, err := outside.Ask("tcp", hostport(s.host.Addr, 8080)); err == nil {
		t.Errorf("from outside: %s", got)
	}
	// A neighbour on the wire who sends packets to 127.0.0.1 this way, and to the container itself.
	outside.Sysctls(map[string]string{"net.ipv4.conf.all.route_localnet": "1", "net.ipv4.conf.eth0.route_localnet": "1"})
	outside.Route(netip.MustParsePrefix("172.17.0.0/16"), s.host.Addr)
	outside.Forged(netip.MustParsePrefix("127.0.0.1/32"), s.host.Addr)
	for _, at := range []string{"127.0.0.1:8080", hostport(web.addr(0), 80)} {
		if got, _, err := outside.Ask("tcp", at); err == nil {
			t.Errorf("from outside by %s: %s", at, got)
		}
	}
}

func TestHostLoopbackIsClosedToContainers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.host.Serve(9000)
	a := s.attach(on("a", "bridge"))
	a.Sysctls(map[string]string{"net.ipv4.conf.all.route_localnet": "1", "net.ipv4.conf.eth0.route_localnet": "1"})
	a.Forged(netip.MustParsePrefix("127.0.0.1/32"), netip.MustParseAddr("172.17.0.1"))
	if got, _, err := a.Ask("tcp", "127.0.0.1:9000"); err == nil {
		t.Errorf("a container reaches the host's loopback: %s", got)
	}
}

func TestPortsAreTakenOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	bind := func(name string, pbs ...PortBinding) error {
		spec := on(name, "bridge")
		spec.Ports = pbs
		_, err := s.m.Attach(t.Context(), spec)
		return err
	}
	if err := bind("one", PortBinding{Protocol: "tcp", Port: 80, HostPort: 8080}); err != nil {
		t.Fatal(err)
	}
	for name, pb := range map[string]PortBinding{
		"the same":       {Protocol: "tcp", Port: 81, HostPort: 8080},
		"on one address": {Protocol: "tcp", Port: 81, HostPort: 8080, HostIP: netip.MustParseAddr("127.0.0.1")},
	} {
		err := bind("two", pb)
		addr := "0.0.0.0"
		if pb.HostIP.IsValid() {
			addr = pb.HostIP.String()
		}
		if !fault.Is(err, fault.AlreadyExists) || !strings.Contains(err.Error(), "Bind for "+addr+":8080 failed: port is already allocated") {
			t.Errorf("%s: %v", name, err)
		}
		if _, ok := s.m.Sandbox(fullID("two")); ok {
			t.Errorf("%s: the sandbox is there all the same", name)
		}
	}
	if err := bind("udp", PortBinding{Protocol: "udp", Port: 80, HostPort: 8080}); err != nil {
		t.Errorf("the same port of UDP: %v", err)
	}
	s.host.Serve(9000)
	err := bind("three", PortBinding{Protocol: "tcp", Port: 80, HostPort: 9000})
	if !fault.Is(err, fault.AlreadyExists) || !strings.Contains(err.Error(), "failed to bind host port 0.0.0.0:9000/tcp: address already in use") {
		t.Errorf("a port of another program: %v", err)
	}
	if err := bind("four", PortBinding{Protocol: "tcp", Port: 80, HostPort: 9000, HostPortEnd: 9002}); err != nil {
		t.Errorf("a range with a free port: %v", err)
	}
	if sb, _ := s.m.Sandbox(fullID("four")); sb.Ports[0].HostPort != 9001 {
		t.Errorf("of a range: %v", sb.Ports)
	}
	if err := bind("five", PortBinding{Protocol: "tcp", Port: 80}); err != nil {
		t.Errorf("any port: %v", err)
	}
	if sb, _ := s.m.Sandbox(fullID("five")); len(sb.Ports) != 2 || sb.Ports[0].HostPort == 0 || sb.Ports[0].HostPort != sb.Ports[1].HostPort {
		t.Errorf("any port: %v", sb.Ports)
	}
	if err := bind("six", PortBinding{Protocol: "tcp", Port: 80, HostPort: 8081, HostIP: netip.MustParseAddr("10.1.2.3")}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("an address that the host has not: %v", err)
	}
	if err := s.m.Detach(t.Context(), fullID("one")); err != nil {
		t.Fatal(err)
	}
	if err := bind("again", PortBinding{Protocol: "tcp", Port: 80, HostPort: 8080}); err != nil {
		t.Errorf("a port that was given back: %v", err)
	}
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	s.host.AddAddr("eth0", netip.MustParsePrefix("fd99::1/64"))
	outside.AddAddr("eth0", netip.MustParsePrefix("fd99::2/64"))
	s.create(Spec{Name: "six", IPv4: true, IPv6: true, IPAM: []cloud.IPAMConfig{{Subnet: netip.MustParsePrefix("fd10::/64")}}})
	spec := on("web", "six")
	spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}}
	web, b := s.attach(spec), s.attach(on("b", "six"))
	web.Serve6(80)
	web.Serve(80)
	if web.addr6(0).String() != "fd10::2" || web.Endpoints[0].Gateway6.String() != "fd10::1" {
		t.Errorf("endpoint: %+v", web.Endpoints[0])
	}
	if got, client := b.MustAsk("tcp", hostport(web.addr6(0), 80)); got != "web" || client != b.addr6(0).String() {
		t.Errorf("%s sees %s", got, client)
	}
	if got, client := outside.MustAsk("tcp", "[fd99::1]:8080"); got != "web" || client != "fd99::2" {
		t.Errorf("from outside: %s sees %s", got, client)
	}
	for _, at := range []string{"[::1]:8080", "127.0.0.1:8080", "[fd99::1]:8080"} {
		if got, _ := s.host.MustAsk("tcp", at); got != "web" {
			t.Errorf("from the host by %s: %s", at, got)
		}
	}
	if got, _ := b.MustAsk("tcp", "[fd99::1]:8080"); got != "web" {
		t.Errorf("from a neighbour by the host's address: %s", got)
	}
	outside.Serve6(80)
	if _, client := b.MustAsk("tcp", "[fd99::2]:80"); client != "fd99::1" {
		t.Errorf("the outside sees %s", client)
	}
	outside.Route(netip.MustParsePrefix("fd10::/64"), netip.MustParseAddr("fd99::1"))
	if got, _, err := outside.Ask("tcp", hostport(web.addr6(0), 80)); err == nil {
		t.Errorf("an unpublished address is reached from outside: %s", got)
	}
	auto := s.create(Spec{Name: "auto", IPv6: true})
	if len(auto.Subnets) != 1 || !auto.Subnets[0].Subnet.Addr().Is6() {
		t.Errorf("a network of IPv6 only: %+v", auto.Subnets)
	}
}

func TestSpecsAreRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := netip.MustParsePrefix
	ipam := func(c cloud.IPAMConfig) []cloud.IPAMConfig { return []cloud.IPAMConfig{c} }
	s.create(Spec{Name: "first", IPAM: ipam(cloud.IPAMConfig{Subnet: p("10.5.0.0/16")})})
	for name, c := range map[string]struct {
		spec Spec
		kind fault.Kind
		says string
	}{
		"overlap":             {Spec{Name: "x", IPAM: ipam(cloud.IPAMConfig{Subnet: p("10.5.4.0/24")})}, fault.Forbidden, "Pool overlaps with other one on this address space"},
		"gateway outside":     {Spec{Name: "x", IPAM: ipam(cloud.IPAMConfig{Subnet: p("10.6.0.0/24"), Gateway: netip.MustParseAddr("10.7.0.1")})}, fault.InvalidArgument, "invalid gateway 10.7.0.1: parent subnet 10.6.0.0/24 doesn't contain this address"},
		"host bits":           {Spec{Name: "x", IPAM: ipam(cloud.IPAMConfig{Subnet: p("10.6.0.5/24")})}, fault.InvalidArgument, "invalid subnet 10.6.0.5/24: it should be 10.6.0.0/24"},
		"range outside":       {Spec{Name: "x", IPAM: ipam(cloud.IPAMConfig{Subnet: p("10.6.0.0/24"), Range: p("10.8.0.0/25")})}, fault.InvalidArgument, "doesn't contain ip-range"},
		"name taken":          {Spec{Name: "first"}, fault.AlreadyExists, "network with name first already exists"},
		"predefined":          {Spec{Name: "bridge"}, fault.Forbidden, "operation is not permitted on predefined bridge network"},
		"unknown driver":      {Spec{Name: "x", Driver: "nosuch"}, fault.NotFound, "nosuch"},
		"no name":             {Spec{}, fault.InvalidArgument, "name"},
		"same bridge":         {Spec{Name: "x", Options: map[string]string{optBridgeName: "sampan0"}}, fault.Forbidden, "networks have same bridge name"},
		"bridge name":         {Spec{Name: "x", Options: map[string]string{optBridgeName: "a-name-that-is-too-long"}}, fault.InvalidArgument, "15"},
		"mtu":                 {Spec{Name: "x", Options: map[string]string{optMTU: "many"}}, fault.InvalidArgument, "MTU"},
		"icc":                 {Spec{Name: "x", Options: map[string]string{optICC: "perhaps"}}, fault.InvalidArgument, "enable_icc"},
		"second host network": {Spec{Name: "x", Driver: "host"}, fault.Forbidden, "only one instance"},
	} {
		if _, err := s.m.Create(t.Context(), c.spec); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v: %v", name, fault.KindOf(err), err)
		}
	}
	if err := s.m.Remove(t.Context(), "bridge"); !fault.Is(err, fault.Forbidden) {
		t.Errorf("remove bridge: %v", err)
	}
	if err := s.m.Remove(t.Context(), "nosuch"); !fault.Is(err, fault.NotFound) || err.Error() != "network nosuch not found" {
		t.Errorf("remove nosuch: %v", err)
	}
	s.attach(on("a", "first"))
	if err := s.m.Remove(t.Context(), "first"); !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), "has active endpoints") {
		t.Errorf("remove a network in use: %v", err)
	}
	for name, spec := range map[string]SandboxSpec{
		"no such network":  on("x", "nosuch"),
		"static on bridge": {ID: fullID("x"), Owner: "x", Endpoints: []EndpointSpec{{Network: "bridge", IPv4: netip.MustParseAddr("172.17.0.9")}}},
		"alias on bridge":  {ID: fullID("x"), Owner: "x", Endpoints: []EndpointSpec{{Network: "bridge", Aliases: []string{"db"}}}},
		"outside subnet":   {ID: fullID("x"), Owner: "x", Endpoints: []EndpointSpec{{Network: "first", IPv4: netip.MustParseAddr("10.9.0.9")}}},
		"the gateway":      {ID: fullID("x"), Owner: "x", Endpoints: []EndpointSpec{{Network: "first", IPv4: netip.MustParseAddr("10.5.0.1")}}},
		"host and another": on("x", "host", "first"),
		"twice":            on("x", "first", "first"),
	} {
		if _, err := s.m.Attach(t.Context(), spec); err == nil || fault.KindOf(err) == fault.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n, _ := s.m.Get("first"); len(n.Members) != 1 {
		t.Errorf("members after refusals: %v", n.Members)
	}
}

func TestSubnetsStayOffTheHostsRoutes(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *Config) {
		c.Pools = []Pool{{netip.MustParsePrefix("10.99.0.0/16"), 24}}
	})
	n, err := s.m.Get("bridge")
	if err != nil || n.Subnets[0].Subnet.String() != "10.99.1.0/24" {
		t.Errorf("%v, %v: 10.99.0.0/24 is the host's own", n.Subnets, err)
	}
}

func TestStaticAddressAndMACAreUsedAndFreed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "app", IPAM: []cloud.IPAMConfig{{Subnet: netip.MustParsePrefix("10.5.0.0/24"), Range: netip.MustParsePrefix("10.5.0.128/25"),
		Gateway: netip.MustParseAddr("10.5.0.254"), Aux: map[string]netip.Addr{"printer": netip.MustParseAddr("10.5.0.128")}}}})
	spec := on("a", "app")
	spec.Endpoints[0].IPv4, spec.Endpoints[0].MAC = netip.MustParseAddr("10.5.0.7"), "02:11:22:33:44:55"
	for range 3 {
		a := s.attach(spec)
		if a.addr(0).String() != "10.5.0.7" || a.Endpoints[0].MAC != "02:11:22:33:44:55" {
			t.Errorf("%+v", a.Endpoints[0])
		}
		if err := s.host.Ping(a.addr(0)); err != nil {
			t.Error(err)
		}
		if err := s.m.Detach(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
	}
	if b := s.attach(on("b", "app")); b.addr(0).String() != "10.5.0.129" {
		t.Errorf("from the range, past the auxiliary address: %s", b.addr(0))
	}
}

func TestICCAndInternal(t *testing.T) {
	t.Parallel()
	for _, filter := range []string{"0", "1"} {
		t.Run("br_netfilter "+filter, func(t *testing.T) {
			t.Parallel()
			testICCAndInternal(t, filter)
		})
	}
}

func testICCAndInternal(t *testing.T, filter string) {
	s := newSite(t)
	if err := s.host.Sysctl(map[string]string{"net.bridge.bridge-nf-call-iptables": filter, "net.bridge.bridge-nf-call-ip6tables": filter}); err != nil && filter == "1" {
		t.Skip("br_netfilter is not there")
	}
	outside := s.lab.Host("outside")
	outside.Serve(80)
	s.create(Spec{Name: "apart", Options: map[string]string{optICC: "false"}})
	s.create(Spec{Name: "inner", Internal: true})
	public := on("public", "apart")
	public.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8081}}
	a, b, p := s.attach(on("a", "apart")), s.attach(on("b", "apart")), s.attach(public)
	p.Serve(80)
	if err := a.Ping(b.addr(0)); err == nil {
		t.Error("containers reach each other with ICC off")
	}
	if got, _ := a.MustAsk("tcp", hostport(outside.Addr, 80)); got != "outside" {
		t.Errorf("with ICC off: %s", got)
	}
	if got, _ := a.MustAsk("tcp", hostport(s.host.Addr, 8081)); got != "public" {
		t.Errorf("a published port with ICC off: %s", got)
	}
	spec := on("i", "inner")
	spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}}
	i, j := s.attach(spec), s.attach(on("j", "inner"))
	if err := i.Ping(j.addr(0)); err != nil {
		t.Errorf("on an internal network: %v", err)
	}
	if _, _, err := i.Ask("tcp", hostport(outside.Addr, 80)); err == nil {
		t.Error("an internal network leads outside")
	}
	if len(i.Ports) != 0 || i.Endpoints[0].Gateway4.IsValid() {
		t.Errorf("ports %v, gateway %s on an internal network", i.Ports, i.Endpoints[0].Gateway4)
	}
	// Even with a route of its own making.
	i.Route(netip.MustParsePrefix("10.99.0.0/24"), netip.MustParseAddr("172.19.0.1"))
	if _, _, err := i.Ask("tcp", hostport(outside.Addr, 80)); err == nil {
		t.Error("an internal network leads outside by a route")
	}
}

func TestModesWithoutABridge(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	h, err := s.m.Attach(t.Context(), on("h", "host"))
	if err != nil || h.NetNS != "" || len(h.Endpoints) != 1 {
		t.Errorf("host: %+v, %v", h, err)
	}
	for _, spec := range []SandboxSpec{on("n", "none"), {ID: fullID("m"), NoNetwork: true}} {
		n := s.attach(spec)
		if got := n.Links(); !slices.Equal(got, []string{"lo"}) {
			t.Errorf("links of a sandbox without network: %v", got)
		}
	}
	if _, err := s.m.Connect(t.Context(), fullID("n"), EndpointSpec{Network: "bridge"}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("connect a sandbox on none: %v", err)
	}
	if _, err := s.m.Connect(t.Context(), fullID("h"), EndpointSpec{Network: "bridge"}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("connect a sandbox on host: %v", err)
	}
	n, _ := s.m.Get("host")
	if len(n.Members) != 1 || n.Spec.Driver != "host" {
		t.Errorf("%+v", n)
	}
}

func TestConnectAndDisconnectLive(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	outside.Serve(80)
	s.create(Spec{Name: "one"})
	s.create(Spec{Name: "two"})
	spec := on("web", "one")
	spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}}
	web, peer := s.attach(spec), s.attach(on("peer", "two"))
	web.Serve(80)
	ep, err := s.m.Connect(t.Context(), spec.ID, EndpointSpec{Network: "two", Aliases: []string{"Shop"}, GwPriority: 1})
	if err != nil {
		t.Fatal(err)
	}
	if ep.Interface != "eth1" {
		t.Errorf("%+v", ep)
	}
	for _, name := range []string{"web", "shop", "WEB.two", fullID("web")[:12], "web-host"} {
		if got := lookup(t, peer, "A", name); !slices.Equal(got, []string{ep.IPv4.Addr().String()}) {
			t.Errorf("%s is %v", name, got)
		}
	}
	if got, _ := peer.MustAsk("tcp", hostport(ep.IPv4.Addr(), 80)); got != "web" {
		t.Error(got)
	}
	if got := web.Gateway(); got != ep.Gateway4 {
		t.Errorf("the default route goes by %s, want %s of the higher priority", got, ep.Gateway4)
	}
	if got, _ := outside.MustAsk("tcp", hostport(s.host.Addr, 8080)); got != "web" {
		t.Error(got)
	}
	if _, err := s.m.Connect(t.Context(), spec.ID, EndpointSpec{Network: "two"}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("connect twice: %v", err)
	}
	s.restart()
	if err := s.m.Disconnect(t.Context(), spec.ID, "two"); err != nil {
		t.Fatal(err)
	}
	if got := web.Gateway(); got != web.Endpoints[0].Gateway4 {
		t.Errorf("the default route goes by %s", got)
	}
	if got, _ := outside.MustAsk("tcp", hostport(s.host.Addr, 8080)); got != "web" {
		t.Error(got)
	}
	if got := lookup(t, peer, "A", "web"); len(got) > 0 {
		t.Errorf("after disconnect web is %v", got)
	}
	if err := s.m.Disconnect(t.Context(), spec.ID, "two"); !fault.Is(err, fault.Forbidden) {
		t.Errorf("disconnect twice: %v", err)
	}
	if _, err := s.m.Connect(t.Context(), fullID("nobody"), EndpointSpec{Network: "two"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("connect nobody: %v", err)
	}
}

func TestRestartKeepsAddressesConnectionsAndPorts(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	s.create(Spec{Name: "app"})
	spec := on("web", "app")
	spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}}
	web, other := s.attach(spec), s.attach(on("other", "app"))
	web.Serve(80)
	c, err := outside.Dial("tcp", hostport(s.host.Addr, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := s.m.Close(); err != nil {
		t.Fatal(err)
	}
	if got, _ := outside.MustAsk("tcp", hostport(s.host.Addr, 8080)); got != "web" {
		t.Errorf("without a daemon: %s", got)
	}
	if got := lookup(t, other, "A", "web"); !slices.Equal(got, []string{web.addr(0).String()}) {
		t.Errorf("without a daemon web is %v", got)
	}
	s.start()
	if err := c.Echo([]byte("still there")); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	again, err := s.m.Attach(t.Context(), spec)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(web.Sandbox) {
		t.Errorf("after the restart: %+v, %v\nwant %+v", again, err, web.Sandbox)
	}
	if got, _ := outside.MustAsk("tcp", hostport(s.host.Addr, 8080)); got != "web" {
		t.Errorf("after the restart: %s", got)
	}
	if got := lookup(t, other, "A", "web"); !slices.Equal(got, []string{web.addr(0).String()}) {
		t.Errorf("after the restart web is %v", got)
	}
	third := s.attach(on("third", "app"))
	if third.addr(0) == web.addr(0) || third.addr(0) == other.addr(0) {
		t.Errorf("an address is given twice: %s", third.addr(0))
	}
	if _, err := s.m.Attach(t.Context(), SandboxSpec{ID: fullID("x"), Endpoints: []EndpointSpec{{Network: "app"}},
		Ports: []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}}}); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("a port that was published before the restart: %v", err)
	}
	s.m.Keep([]string{fullID("web"), fullID("third")})
	if _, ok := s.m.Sandbox(fullID("other")); ok {
		t.Error("Keep kept what it was not told to")
	}
	if _, ok := s.m.Sandbox(fullID("web")); !ok {
		t.Error("Keep removed what it was told to keep")
	}
}

func TestLeftoversOfAKilledDaemonGo(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if err := s.m.Close(); err != nil {
		t.Fatal(err)
	}
	ns, err := netns.Create(filepath.Join(s.cfg.ExecRoot, "netns", "sb-0123456789ab"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.host.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	bridge, err := link.Index(h, "sampan0")
	if err != nil {
		t.Fatal(err)
	}
	if err := link.AddVeth(h, link.Veth{Name: "veth01234567", Peer: "eth0", PeerNS: ns.FD(), Master: bridge}); err != nil {
		t.Fatal(err)
	}
	_ = ns.Close()
	s.start()
	s.noLeaksButSpares()
}

func TestBridgeThatSomebodyDeletedIsMadeAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.create(Spec{Name: "app"})
	spec := on("web", "app")
	spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}}
	web, client := s.attach(spec), s.attach(on("client", "app"))
	web.Serve(80)
	if err := s.m.Close(); err != nil {
		t.Fatal(err)
	}
	h, err := s.host.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := errors.Join(link.Del(h, n.Link), link.Del(h, hostLink(web.Endpoints[0].ID)),
		nft.Open(s.host.FD()).Do(func(tx *nft.Tx) error { tx.Delete(hostTable); return nil })); err != nil {
		t.Fatal(err)
	}
	s.start()
	if got, _ := client.MustAsk("tcp", hostport(web.addr(0), 80)); got != "web" {
		t.Error(got)
	}
	if got, _ := s.host.MustAsk("tcp", "127.0.0.1:8080"); got != "web" {
		t.Error(got)
	}
}

// noLeaksButSpares is noLeaks for a manager that runs.
func (s *site) noLeaksButSpares() {
	s.t.Helper()
	for _, l := range s.host.Links() {
		if strings.HasPrefix(l, "veth") {
			s.t.Errorf("link %s is left on the host", l)
		}
	}
	if _, err := os.Stat(filepath.Join(s.cfg.ExecRoot, "netns", "sb-0123456789ab")); err == nil {
		s.t.Error("a namespace of nobody is left")
	}
}

func TestEveryFailureIsTakenBack(t *testing.T) {
	s := newSite(t)
	s.create(Spec{Name: "app"})
	s.create(Spec{Name: "more"})
	spec := on("web", "app", "more")
	spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: 8080}, {Protocol: "udp", Port: 53}}
	spec.Sysctls = map[string]string{"net.core.somaxconn": "100"}
	list := failpoint.Record()
	s.attach(spec)
	points := list()
	if err := s.m.Detach(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	s.m.tear.wait(t.Context())
	if len(points) < 12 {
		t.Fatalf("failpoints on the way: %v", points)
	}
	before := s.state()
	for _, p := range points {
		if strings.HasPrefix(p, "sys/netns") {
			continue // of the namespaces that are made ahead
		}
		disable := failpoint.Enable(p, failpoint.Fail)
		_, err := s.m.Attach(t.Context(), spec)
		disable()
		if err == nil {
			t.Errorf("%s: no error", p)
		}
		s.m.tear.wait(t.Context())
		if after := s.state(); after != before {
			t.Errorf("%s leaves something behind:\n%s\nbefore:\n%s", p, after, before)
		}
	}
	web := s.attach(spec)
	web.Serve(80)
	if got, _ := s.host.MustAsk("tcp", "127.0.0.1:8080"); got != "web" {
		t.Error(got)
	}

	s.create(Spec{Name: "late"})
	list = failpoint.Record()
	if _, err := s.m.Connect(t.Context(), spec.ID, EndpointSpec{Network: "late", GwPriority: 3}); err != nil {
		t.Fatal(err)
	}
	points = list()
	if err := s.m.Disconnect(t.Context(), spec.ID, "late"); err != nil {
		t.Fatal(err)
	}
	before = s.state()
	for _, p := range points {
		if strings.HasPrefix(p, "sys/netns") || strings.HasPrefix(p, "network.settle") {
			continue // settling is also how a change is taken back
		}
		disable := failpoint.Enable(p, failpoint.Fail)
		_, err := s.m.Connect(t.Context(), spec.ID, EndpointSpec{Network: "late", GwPriority: 3})
		disable()
		if err == nil {
			t.Errorf("connect, %s: no error", p)
		}
		if after := s.state(); after != before {
			t.Errorf("connect, %s leaves something behind:\n%s\nbefore:\n%s", p, after, before)
		}
		if got, _ := s.host.MustAsk("tcp", "127.0.0.1:8080"); got != "web" {
			t.Errorf("connect, %s: %s", p, got)
		}
	}
	s.names.mu.Lock()
	s.names.fail = fault.New(fault.Unavailable, "the keeper is away")
	s.names.mu.Unlock()
	if _, err := s.m.Attach(t.Context(), on("nameless", "app")); !strings.Contains(fmt.Sprint(err), "the keeper is away") {
		t.Errorf("without a name server: %v", err)
	}
	s.names.mu.Lock()
	s.names.fail = nil
	s.names.mu.Unlock()
	if after := s.state(); after != before {
		t.Errorf("without a name server something is left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// state is all that an attach may leave: links, ports, addresses, rules, records, names; of pinned namespaces those that
// are not ready ahead of time.
func (s *site) state() string {
	s.t.Helper()
	var b strings.Builder
	fmt.Fprintln(&b, "links", s.host.Links())
	records, _ := filepath.Glob(filepath.Join(s.cfg.ExecRoot, "network", "sandboxes", "*"))
	fmt.Fprintln(&b, "records", len(records))
	s.m.mu.Lock()
	for _, n := range s.m.sorted() {
		fmt.Fprintln(&b, "network", n.Spec.Name, len(s.m.members(n.ID)))
	}
	s.m.ports.mu.Lock()
	fmt.Fprintln(&b, "ports", len(s.m.ports.taken), len(s.m.ports.held))
	s.m.ports.mu.Unlock()
	s.m.fw.mu.Lock()
	fmt.Fprintln(&b, "mappings", len(s.m.fw.mappings))
	s.m.fw.mu.Unlock()
	next := ""
	for _, name := range []string{"app", "more", "late"} {
		if n, err := s.m.find(name); err == nil {
			sub := s.m.space.Subnet(n.Subnets[0].Subnet)
			if a, err := sub.Alloc(netip.Addr{}); err == nil {
				next += " " + a.String()
				sub.Free(a)
			}
		}
	}
	fmt.Fprintln(&b, "next addresses", next)
	s.m.mu.Unlock()
	s.names.mu.Lock()
	fmt.Fprintln(&b, "resolvers", len(s.names.table.Sandboxes))
	s.names.mu.Unlock()
	return b.String()
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	s := newSite(t)
	list := failpoint.Record()
	s.create(Spec{Name: "app"})
	points := list()
	if err := s.m.Remove(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	before := s.state()
	for _, p := range points {
		if strings.HasPrefix(p, "sys/netns") {
			continue // of the namespaces that are made ahead
		}
		disable := failpoint.Enable(p, failpoint.Fail)
		_, err := s.m.Create(t.Context(), Spec{Name: "app"})
		disable()
		if err == nil {
			t.Errorf("%s: no error", p)
		}
		if after := s.state(); after != before {
			t.Errorf("%s leaves something behind:\n%s\nbefore:\n%s", p, after, before)
		}
	}
	if n := s.create(Spec{Name: "app"}); n.Subnets[0].Subnet.String() != "172.18.0.0/16" {
		t.Errorf("the subnet of a failed network is not free: %v", n.Subnets)
	}
}

// overlays gives the host a view of a cluster of one node with two overlays.
func (s *site) overlays() {
	s.t.Helper()
	view := cloud.NewNodeView()
	view.Peers["self"] = &cloud.Peer{NodeID: "self", Addrs: []netip.Addr{s.host.Addr}}
	for i, id := range []string{"wide0000000000000000000a", "closed00000000000000000a"} {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 10, byte(i), 0}), 24)
		view.Networks[id] = &cloud.Network{Meta: cloud.Meta{ID: id},
			Spec:   cloud.NetworkSpec{Name: strings.TrimRight(id, "0a"), Driver: cloud.DriverOverlay, Attachable: true, Internal: i == 1},
			Status: cloud.NetworkStatus{VNI: uint32(5000 + i), MTU: 1450, Subnets: []cloud.IPAMConfig{{Subnet: p, Gateway: p.Addr().Next()}}}}
	}
	if err := s.m.Apply(s.t.Context(), view, "self"); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		s.m.Keep(nil)
		if err := s.m.Apply(context.Background(), nil, ""); err != nil {
			s.t.Error(err)
		}
	})
}

func TestSandboxOnAnOverlayReachesTheWorld(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	outside.Serve(80)
	s.overlays()
	task := func(name, network, addr string, ports ...PortBinding) *testBox {
		spec := on(name, network)
		spec.Endpoints[0].IPv4, spec.Endpoints[0].Task, spec.Ports = netip.MustParseAddr(addr), "task-"+name, ports
		return s.attach(spec)
	}
	a := task("a", "wide", "10.10.0.5", PortBinding{Protocol: "tcp", Port: 80, HostPort: 8080})
	b := task("b", "wide", "10.10.0.6")
	c := task("c", "closed", "10.10.1.5")
	a.Serve(80)
	if len(a.Endpoints) != 1 || a.Endpoints[0].Interface != "eth0" || a.Endpoints[0].MAC != "02:42:0a:0a:00:05" {
		t.Errorf("endpoints: %+v", a.Endpoints)
	}
	if got, _ := b.MustAsk("tcp", "10.10.0.5:80"); got != "a" {
		t.Errorf("on the overlay: %s", got)
	}
	if _, client := a.MustAsk("tcp", hostport(outside.Addr, 80)); client != s.host.Addr.String() {
		t.Errorf("the outside sees %s", client)
	}
	for _, from := range []*nettest.Space{outside, s.host, b.Space} {
		if got, _ := from.MustAsk("tcp", hostport(s.host.Addr, 8080)); got != "a" {
			t.Errorf("a port published in host mode, from %s: %s", from.Name, got)
		}
	}
	if _, _, err := c.Ask("tcp", hostport(outside.Addr, 80)); err == nil {
		t.Error("an internal overlay leads outside")
	}
	if got := c.Links(); slices.Contains(got, "eth1") {
		t.Errorf("links on an internal overlay: %v", got)
	}
	gw, err := s.m.Get(gatewayBridge)
	if err != nil || len(gw.Members) != 2 {
		t.Fatalf("%+v, %v", gw, err)
	}
	if err := b.Ping(gw.Members[fullID("a")].IPv4.Addr()); err == nil {
		t.Error("sandboxes reach each other by the gateway bridge")
	}
	// A bridge network is a better way out: the gateway bridge is left, and taken again.
	s.create(Spec{Name: "app"})
	ep, err := s.m.Connect(t.Context(), fullID("a"), EndpointSpec{Network: "app"})
	if err != nil {
		t.Fatal(err)
	}
	if a.Gateway() != ep.Gateway4 {
		t.Errorf("default route by %s, want %s", a.Gateway(), ep.Gateway4)
	}
	if gw, _ := s.m.Get(gatewayBridge); len(gw.Members) != 1 {
		t.Errorf("on the gateway bridge: %v", gw.Members)
	}
	if got, _ := outside.MustAsk("tcp", hostport(s.host.Addr, 8080)); got != "a" {
		t.Error(got)
	}
	if err := s.m.Disconnect(t.Context(), fullID("a"), "app"); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if got, _ := outside.MustAsk("tcp", hostport(s.host.Addr, 8080)); got != "a" {
		t.Error(got)
	}
	if _, client := a.MustAsk("tcp", hostport(outside.Addr, 80)); client != s.host.Addr.String() {
		t.Errorf("the outside sees %s", client)
	}
	if _, err := s.m.Get("wide"); err != nil {
		t.Errorf("before the first Apply after a restart: %v", err)
	}
}

func TestRenamedContainerIsFoundByItsNewName(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "app"})
	a, b := s.attach(on("a", "app")), s.attach(on("b", "app"))
	if err := s.m.Rename(t.Context(), fullID("a"), "fresh"); err != nil {
		t.Fatal(err)
	}
	if got := lookup(t, b, "A", "fresh"); !slices.Equal(got, []string{a.addr(0).String()}) {
		t.Errorf("fresh is %v", got)
	}
	if msg := ask(t, b, "udp", "A", "a"); len(msg.Answers) > 0 {
		t.Errorf("the old name is still %v", msg.Answers)
	}
}

func TestNothingOfOthersIsTouched(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	theirs := nft.Table{Family: nft.IP4, Name: "theirs"}
	rules := nft.Chain{Name: "forward", Type: nft.TypeFilter, Hook: nft.Forward, Rules: []nft.Rule{nft.Join(nft.Count(), nft.Accept())}}
	if err := nft.Open(s.host.FD()).Do(func(tx *nft.Tx) error {
		tx.Add(theirs, nft.Content{Chains: []nft.Chain{rules}})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s.create(Spec{Name: "app"})
	s.restart()
	if err := s.m.Remove(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	if tables, err := nft.Open(s.host.FD()).Tables(nft.IP4); err != nil || !slices.Equal(tables, []string{"theirs"}) {
		t.Errorf("tables: %v, %v", tables, err)
	}
}

func TestRemovedNetworkIsGone(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.create(Spec{Name: "app"})
	s.attach(on("a", "app"))
	if err := s.m.Detach(t.Context(), fullID("a")); err != nil {
		t.Fatal(err)
	}
	if err := s.m.Remove(t.Context(), n.ID[:10]); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(s.host.Links(), n.Link) {
		t.Error("its bridge is left")
	}
	again := s.create(Spec{Name: "app"})
	if again.Subnets[0].Subnet != n.Subnets[0].Subnet {
		t.Errorf("its subnet is not free: %v", again.Subnets)
	}
	pruned, err := s.m.Prune(t.Context(), nil)
	if err != nil || !slices.Equal(pruned, []string{"app"}) {
		t.Errorf("prune: %v, %v", pruned, err)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "app"})
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			name := fmt.Sprintf("c%d", i)
			spec := on(name, "app")
			spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80}}
			for range 3 {
				if _, err := s.m.Attach(t.Context(), spec); err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					if _, err := s.m.Connect(t.Context(), spec.ID, EndpointSpec{Network: "bridge"}); err != nil {
						t.Error(err)
					}
				}
				if err := s.m.Detach(t.Context(), spec.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s.m.tear.wait(t.Context())
	if n, _ := s.m.Get("app"); len(n.Members) != 0 {
		t.Errorf("members: %v", n.Members)
	}
	if a := s.attach(on("last", "app")); a.addr(0).String() != "172.18.0.2" {
		t.Errorf("after all have gone the first free address is %s", a.addr(0))
	}
}

// lookup asks the name server of a sandbox, by UDP.
func lookup(t *testing.T, b *testBox, kind, name string) []string {
	t.Helper()
	msg := ask(t, b, "udp", kind, name)
	var out []string
	for _, a := range msg.Answers {
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(r.A).String())
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(r.AAAA).String())
		case *dnsmessage.PTRResource:
			out = append(out, r.PTR.String())
		}
	}
	slices.Sort(out)
	return out
}

// ask sends a question to 127.0.0.11:53.
func ask(t *testing.T, b *testBox, network, kind, name string) dnsmessage.Message {
	t.Helper()
	q := dnsmessage.Question{Name: dnsmessage.MustNewName(name + "."), Class: dnsmessage.ClassINET,
		Type: map[string]dnsmessage.Type{"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "PTR": dnsmessage.TypePTR, "MX": dnsmessage.TypeMX}[kind]}
	query := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{q}}
	raw, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	err = b.Do(func() (err error) {
		c, err = net.Dial(network, "127.0.0.11:53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 64<<10)
	var n int
	if network == "tcp" {
		_, err = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...))
		if err == nil {
			_, err = io.ReadFull(c, buf[:2])
		}
		if err == nil {
			n, err = io.ReadFull(c, buf[:binary.BigEndian.Uint16(buf)])
		}
	} else {
		_, err = c.Write(raw)
		if err == nil {
			n, err = c.Read(buf)
		}
	}
	var msg dnsmessage.Message
	if err == nil {
		err = msg.Unpack(buf[:n])
	}
	if err != nil {
		t.Fatalf("%s asks for %s %s: %v", b.Name, kind, name, err)
	}
	if msg.ID != 7 || !msg.Response {
		t.Errorf("answer: %+v", msg.Header)
	}
	return msg
}

func TestNamesOfUserDefinedNetworks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	upstream(t, outside)
	s.create(Spec{Name: "app", IPv4: true, IPv6: true})
	s.create(Spec{Name: "other"})
	s.create(Spec{Name: "inner", Internal: true})
	spec := on("db", "app")
	spec.Endpoints[0].Aliases = []string{"Store"}
	db := s.attach(spec)
	client := on("client", "app")
	client.DNS = []netip.Addr{netip.MustParseAddr("10.99.0.99"), outside.Addr} // the first is nobody
	client.Links = map[string][]netip.Addr{"Buddy": {netip.MustParseAddr("10.1.1.1")}}
	client.Search, client.Options = []string{"corp.example"}, []string{"timeout:3"}
	c := s.attach(client)
	if got, want := string(c.ResolvConf), "nameserver 127.0.0.11\nsearch corp.example\noptions timeout:3 ndots:0\n"; got != want {
		t.Errorf("resolv.conf:\n%s", got)
	}
	for _, name := range []string{"db", "DB", "store", "db.app", fullID("db")[:12], "db-host"} {
		if got := lookup(t, c, "A", name); !slices.Equal(got, []string{db.addr(0).String()}) {
			t.Errorf("A %s: %v", name, got)
		}
		if got := lookup(t, c, "AAAA", name); !slices.Equal(got, []string{db.addr6(0).String()}) {
			t.Errorf("AAAA %s: %v", name, got)
		}
	}
	if got := lookup(t, c, "A", "buddy"); !slices.Equal(got, []string{"10.1.1.1"}) {
		t.Errorf("a link: %v", got)
	}
	if msg := ask(t, c, "tcp", "A", "db"); len(msg.Answers) != 1 || msg.Answers[0].Header.TTL != 0 {
		t.Errorf("by TCP: %+v", msg)
	}
	b := db.addr(0).As4()
	if got := lookup(t, c, "PTR", fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0])); !slices.Equal(got, []string{"db.app."}) {
		t.Errorf("PTR: %v", got)
	}
	for _, network := range []string{"udp", "tcp"} {
		if got := ask(t, c, network, "A", "example.com"); len(got.Answers) != 1 || got.RCode != dnsmessage.RCodeSuccess {
			t.Errorf("forwarded by %s: %+v", network, got)
		}
	}
	if msg := ask(t, c, "udp", "A", "nosuch"); msg.RCode != dnsmessage.RCodeNameError {
		t.Errorf("a name that nobody knows: %s", msg.RCode)
	}
	o := s.attach(on("stranger", "other"))
	if got := lookup(t, o, "A", "db.App"); len(got) > 0 {
		t.Errorf("a container of another network finds db: %v", got)
	}
	i := s.attach(on("i", "inner"))
	if msg := ask(t, i, "udp", "A", "db"); msg.RCode != dnsmessage.RCodeNameError {
		t.Errorf("on an internal network: %s", msg.RCode)
	}
	if got := lookup(t, i, "A", "i"); !slices.Equal(got, []string{i.addr(0).String()}) {
		t.Errorf("itself: %v", got)
	}
	d := s.attach(on("d", "bridge"))
	if strings.Contains(string(d.ResolvConf), "127.0.0.11") {
		t.Errorf("on the default bridge: %s", d.ResolvConf)
	}
	if err := s.m.Detach(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, "udp", "A", "db"); len(got.Answers) != 0 {
		t.Errorf("after it has gone: %+v", got.Answers)
	}
}

// upstream is a name server out in the world that knows example.com.
func upstream(t *testing.T, at *nettest.Space) {
	t.Helper()
	world := nameserver.New(nil)
	t.Cleanup(func() { _ = world.Close() })
	err := world.Set(keeper.NameTable{
		Networks:  map[string]keeper.Names{"world": {Records: map[string][]netip.Addr{"example.com": {netip.MustParseAddr("93.184.215.14")}}}},
		Sandboxes: map[string]keeper.Resolver{"world": {NetNS: at.Path(), Listen: netip.AddrPortFrom(at.Addr, 53), Networks: []string{"world"}, Authoritative: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPort53IsTheContainersOwn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "app"})
	a, b := s.attach(on("a", "app")), s.attach(on("b", "app"))
	a.Serve(53)
	if got, _ := b.MustAsk("udp", hostport(a.addr(0), 53)); got != "a" {
		t.Error(got)
	}
	if got := lookup(t, a, "A", "b"); !slices.Equal(got, []string{b.addr(0).String()}) {
		t.Errorf("b is %v", got)
	}
}

func TestLoopbackNameServersOfTheHost(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *Config) {
		if err := os.WriteFile(c.ResolvConf, []byte("# a stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	a := s.attach(on("a", "bridge"))
	if got, want := string(a.ResolvConf), "nameserver 127.0.0.11\noptions edns0 trust-ad ndots:0\n"; got != want {
		t.Errorf("resolv.conf:\n%s", got)
	}
	r := s.names.table.Sandboxes[a.Sandbox.ID]
	if !r.UpstreamsFromHost || !slices.Equal(r.Upstreams, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53")}) {
		t.Errorf("resolver: %+v", r)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 1.2.3.4\nsearch a b\noptions ndots:2\n# x\n;y\n"))
	f.Add([]byte("nameserver fe80::1%eth0\r\nnameserver"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, a := range parseResolvConf(b).servers {
			if !a.IsValid() {
				t.Error("an invalid server")
			}
		}
	})
}

func BenchmarkAttach(b *testing.B) {
	for _, network := range []string{"bridge", "app"} {
		b.Run(network, func(b *testing.B) {
			s := newSite(b)
			s.create(Spec{Name: "app"})
			spec := on("web", network)
			for b.Loop() {
				if _, err := s.m.Attach(b.Context(), spec); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := s.m.Detach(b.Context(), spec.ID); err != nil {
					b.Fatal(err)
				}
				s.m.tear.wait(b.Context())
				for len(s.m.spares.ready) < cap(s.m.spares.ready) {
					runtime.Gosched()
				}
				b.StartTimer()
			}
		})
	}
}
