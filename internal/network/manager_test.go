package network

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/keeper"
	nameserver "github.com/sampan-cloud/sampan/internal/keeper/names"
	"github.com/sampan-cloud/sampan/internal/network/nettest"
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
		"mtu":                 {Spec{Name: "x", Options: map[string]string{optMTU: "many"}}, fault.InvalidArgument, "driver.mtu"},
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

// TestNetworkOfASandboxThatIsLeaving is removed after that one's links: they are taken away by their network's driver.
func TestNetworkOfASandboxThatIsLeaving(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "app"})
	c := s.attach(on("c1", "app")) // the test holds its namespace, as one does that joined it
	s.names.mu.Lock()              // the detaching waits for the name server
	detached, removed := make(chan error, 1), make(chan error, 1)
	go func() { detached <- s.m.Detach(t.Context(), c.ID) }()
	for n, err := s.m.Get("app"); len(n.Members) > 0 || err != nil; n, err = s.m.Get("app") {
		runtime.Gosched()
	}
	go func() { removed <- s.m.Remove(t.Context(), "app") }()
	select {
	case err := <-removed:
		removed <- err
	case <-time.After(200 * time.Millisecond): // it waits, as it should
	}
	s.names.mu.Unlock()
	if err := errors.Join(<-detached, <-removed); err != nil {
		t.Fatal(err)
	}
	s.m.tear.wait(t.Context())
	for _, l := range s.host.Links() {
		if strings.HasPrefix(l, "veth") {
			t.Errorf("link %s is left on the host", l)
		}
	}
}
