package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
)

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
			if got, _, err := s.host.Ask(network, "[::1]:8080"); got != "web" {
				t.Errorf("from the host by [::1]: %s, %v", got, err)
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

// TestPortsFollowTheWayOut: ports are published once a container on an internal network has a way out, on the addresses
// that its network asks for, and given back when it loses it.
func TestPortsFollowTheWayOut(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	s.create(Spec{Name: "in", Internal: true})
	s.create(Spec{Name: "out"})
	s.create(Spec{Name: "local", Options: map[string]string{optHostIP: "127.0.0.1"}})
	spec := on("web", "in")
	spec.Ports = []PortBinding{{Protocol: "tcp", Port: 80}}
	web := s.attach(spec)
	web.Serve(80)
	if len(web.Ports) > 0 {
		t.Errorf("on an internal network: %v", web.Ports)
	}
	ports := func() []BoundPort {
		sb, _ := s.m.Sandbox(spec.ID)
		return sb.Ports
	}
	connect := func(network string) {
		t.Helper()
		if _, err := s.m.Connect(t.Context(), spec.ID, EndpointSpec{Network: network}); err != nil {
			t.Fatal(err)
		}
	}
	disconnect := func(network string) {
		t.Helper()
		if err := s.m.Disconnect(t.Context(), spec.ID, network); err != nil {
			t.Fatal(err)
		}
	}
	connect("out")
	first := ports()
	if len(first) != 2 {
		t.Fatalf("connected: %v", first)
	}
	at := hostport(s.host.Addr, first[0].HostPort)
	if _, ok := reaches(outside, at); !ok {
		t.Error("connected, it is not reached")
	}
	s.restart()
	connect("local") // by name it comes before "out"
	if now := ports(); len(now) != 1 || now[0].HostIP != addrOf("127.0.0.1") || now[0].HostPort != first[0].HostPort {
		t.Errorf("connected to a network that publishes on loopback: %v, was %v", now, first)
	}
	if _, ok := reaches(outside, at); ok {
		t.Error("published on loopback, it is reached from outside")
	}
	disconnect("local")
	if _, ok := reaches(outside, at); !ok {
		t.Errorf("disconnected from it, it is not reached: %v", ports())
	}
	disconnect("out")
	if now := ports(); len(now) > 0 {
		t.Errorf("without a way out: %v", now)
	}
	other := on("other", "out")
	other.Ports = []PortBinding{{Protocol: "tcp", Port: 80, HostPort: first[0].HostPort}}
	s.attach(other)
}

// TestLinksOnUserNetworks: a link is a name of this container's own for whoever has the other name now.
func TestLinksOnUserNetworks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.create(Spec{Name: "app"})
	spec := on("web", "app")
	spec.Endpoints[0].Links = []string{"DB:Store", "cache"}
	s.attach(spec)
	s.attach(on("other", "app"))
	own := func(name string) []netip.Addr { return s.names.table.Sandboxes[spec.ID].Own[name] }
	if got := own("store"); len(got) > 0 {
		t.Errorf("before there is a db: %v", got)
	}
	db := s.attach(on("db", "app"))
	for _, name := range []string{"store", "store.app"} {
		if got := own(name); !slices.Equal(got, []netip.Addr{db.addr(0)}) {
			t.Errorf("%s is %v", name, got)
		}
	}
	if got := s.names.table.Sandboxes[fullID("other")].Own; len(got) > 0 {
		t.Errorf("another container has the link too: %v", got)
	}
	if _, ok := s.names.table.Networks[n.ID].Records["store"]; ok {
		t.Error("the link is a name of the network")
	}
	if err := s.m.Detach(t.Context(), fullID("db")); err != nil {
		t.Fatal(err)
	}
	if got := own("store"); len(got) > 0 {
		t.Errorf("after db is gone: %v", got)
	}
}
