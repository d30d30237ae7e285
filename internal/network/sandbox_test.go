package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/network/nettest"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

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

// TestAddressesChangeHands: a neighbour that knew a container's hardware address reaches the next one that has its IP
// address at once, though that has another.
func TestAddressesChangeHands(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(dual(Spec{Name: "app"}))
	a := s.attach(on("a", "app"))
	for i, mac := range []string{"02:11:22:33:44:55", "", "02:66:77:88:99:00"} {
		spec := on(fmt.Sprint("b", i), "app")
		spec.Endpoints[0].IPv4, spec.Endpoints[0].IPv6, spec.Endpoints[0].MAC = addrOf("10.5.0.99"), addrOf("fd05::99"), mac
		b := s.attach(spec)
		b.Serve(80)
		b.Serve6(80)
		for _, addr := range []netip.Addr{b.addr(0), b.addr6(0)} {
			for _, from := range []*nettest.Space{a.Space, s.host} {
				if got, _, err := from.Ask("tcp", hostport(addr, 80)); err != nil || got != spec.Owner {
					t.Errorf("%s by %s from %s: %s, %v", spec.Owner, addr, from.Name, got, err)
				}
			}
		}
		if err := s.m.Detach(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInterfaceThatWasTurnedOff: a container that has turned an interface off is connected and disconnected all the same.
func TestInterfaceThatWasTurnedOff(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "n1"})
	s.create(Spec{Name: "n2"})
	spec := on("a", "n1", "n2")
	spec.Endpoints[0].GwPriority = 1
	a := s.attach(spec)
	a.With(func(h *netlink.Handle) error {
		l, err := link.Get(h, "eth1")
		if err != nil {
			return err
		}
		return h.LinkSetDown(l)
	})
	if err := s.m.Disconnect(t.Context(), spec.ID, "n1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.m.Connect(t.Context(), spec.ID, EndpointSpec{Network: "n1", GwPriority: 1}); err != nil {
		t.Fatal(err)
	}
	if n, _ := s.m.Get("n1"); a.Gateway() != n.Subnets[0].Gateway {
		t.Errorf("the way out is by %s", a.Gateway())
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
			sub := s.m.space.Subnet(n.ID, n.Subnets[0].Subnet)
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
