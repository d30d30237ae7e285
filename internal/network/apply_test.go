package network_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/network"
	"github.com/sampan-cloud/sampan/internal/network/nettest"
)

// swarm is a cluster as its networks see it: hosts with a manager each, and the view that all of them are given.
type swarm struct {
	t      testing.TB
	lab    *nettest.Lab
	hosts  []*swarmHost
	client *nettest.Space
	view   *cloud.NodeView
}

type swarmHost struct {
	*nettest.Space
	t     testing.TB
	m     *network.Manager
	names *nameServer
	edit  func(*network.Config)
}

// nameServer stands for the keeper: it holds the newest names.
type nameServer struct {
	mu sync.Mutex
	t  keeper.NameTable
}

func (n *nameServer) SetNames(_ context.Context, t keeper.NameTable) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.t = t
	return nil
}

func (n *nameServer) lookup(networkID, name string) []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.SortedFunc(slices.Values(n.t.Networks[networkID].Records[name]), netip.Addr.Compare)
}

func (n *nameServer) reverse(networkID string, a netip.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.t.Networks[networkID].Reverse[a]
}

const (
	ingressID = "ingress00000000000000000a"
	redID     = "red000000000000000000000a"
	blueID    = "blue00000000000000000000a"
)

func newSwarm(t testing.TB, hosts int, edits ...func(*network.Config)) *swarm {
	s := &swarm{t: t, lab: nettest.New(t), view: cloud.NewNodeView()}
	for i := range hosts {
		h := &swarmHost{Space: s.lab.Host(fmt.Sprintf("host%d", i+1)), t: t, names: &nameServer{}, edit: func(c *network.Config) {
			for _, e := range edits {
				e(c)
			}
		}}
		s.hosts = append(s.hosts, h)
		s.view.Peers[h.Name] = &cloud.Peer{NodeID: h.Name, Addrs: []netip.Addr{h.Addr},
			Ingress: cloud.IngressLeg{Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(2 + i)})}, Mark: uint32(i+1) << cloud.IngressMarkShift}}
		h.start()
		t.Cleanup(func() {
			h.m.Keep(nil)
			if err := errors.Join(h.m.Apply(context.Background(), nil, ""), h.m.Close()); err != nil {
				t.Error(err)
			}
			left, err := filepath.Glob(filepath.Join(h.Dir, "exec", "netns", "*"))
			if err != nil || len(left) > 0 {
				t.Errorf("%s: namespaces that stay: %v, %v", h.Name, left, err)
			}
		})
	}
	s.client = s.lab.Host("client")
	s.network(ingressID, "ingress", "10.0.0.0/24", 4096)
	s.view.Networks[ingressID].Spec.Ingress = true
	return s
}

// start makes a manager, as a daemon that starts does.
func (h *swarmHost) start() {
	h.t.Helper()
	cfg := network.Config{DataRoot: filepath.Join(h.Dir, "data"), ExecRoot: filepath.Join(h.Dir, "exec"), HostNetNS: h.Path(), Names: h.names}
	h.edit(&cfg)
	m, err := network.New(cfg)
	must(h.t, err)
	h.m = m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func (s *swarm) network(id, name, subnet string, vni uint32) {
	p := netip.MustParsePrefix(subnet)
	s.view.Networks[id] = &cloud.Network{Meta: cloud.Meta{ID: id}, Spec: cloud.NetworkSpec{Name: name, Driver: cloud.DriverOverlay},
		Status: cloud.NetworkStatus{VNI: vni, MTU: 1450, Subnets: []cloud.IPAMConfig{{Subnet: p, Gateway: p.Addr().Next()}}}}
}

// service makes a service with a virtual IP on a network.
func (s *swarm) service(networkID, name, vip string, ports ...cloud.PortConfig) *cloud.VirtualService {
	v := &cloud.VirtualService{ServiceID: "id-" + name, NetworkID: networkID, Name: name, VIPs: []netip.Addr{ip(vip)}, Ports: ports}
	s.view.Services[v.Key()] = v
	return v
}

// member enters a task in the view.
func (s *swarm) member(networkID string, host int, service, task, addr string) *cloud.Member {
	m := &cloud.Member{ID: cloud.MemberID(task, networkID), NetworkID: networkID, NodeID: s.hosts[host].Name, ServiceID: "id-" + service,
		ServiceName: service, Name: task, Addrs: []netip.Addr{ip(addr)}, Ready: true}
	s.view.Members[m.ID] = m
	return m
}

// apply gives the view to all hosts.
func (s *swarm) apply() {
	s.t.Helper()
	for _, h := range s.hosts {
		must(s.t, h.m.Apply(s.t.Context(), s.view, h.Name))
	}
}

// task attaches a sandbox on a host that says its name on port 80.
func (s *swarm) task(host int, name string, endpoints ...network.EndpointSpec) *nettest.Space {
	s.t.Helper()
	sb, err := s.hosts[host].m.Attach(s.t.Context(), network.SandboxSpec{ID: name, Owner: name, Endpoints: endpoints})
	must(s.t, err)
	space := s.lab.Open(name, sb.NetNS)
	space.Serve(80)
	return space
}

func on(networkID, addr string) network.EndpointSpec {
	return network.EndpointSpec{Network: networkID, IPv4: ip(addr), Task: "task"}
}

func TestServicesOverThreeHosts(t *testing.T) {
	s := newSwarm(t, 3)
	s.network(redID, "red", "10.10.0.0/24", 4097)
	s.network(blueID, "blue", "10.10.0.0/24", 4098) // the same addresses
	s.apply()
	s.service(redID, "web", "10.10.0.2").Aliases = []string{"WWW"}
	s.service(blueID, "web2", "10.10.0.2")
	s.apply()
	web := map[string]*nettest.Space{}
	for i := range 3 {
		name, addr := fmt.Sprintf("web.%d", i+1), fmt.Sprintf("10.10.0.%d", 11+i)
		s.member(redID, i, "web", name, addr)
		web[name] = s.task(i, name, on(redID, addr))
	}
	s.member(blueID, 0, "web2", "other", "10.10.0.11")
	s.task(0, "other", on(blueID, "10.10.0.11"))
	s.member(redID, 0, "caller", "caller", "10.10.0.20")
	s.member(blueID, 0, "bluecaller", "bluecaller", "10.10.0.20")
	caller := s.task(0, "caller", on(redID, "10.10.0.20"))
	blue := s.task(2, "bluecaller", on(blueID, "10.10.0.20"))
	s.view.Members[cloud.MemberID("bluecaller", blueID)].NodeID = "host3"
	s.apply()

	for _, tcp := range []string{"tcp", "udp"} {
		if got := caller.Spread(tcp, "10.10.0.2:80", 9); len(got) != 3 {
			t.Errorf("%s: nine connections to the virtual IP: %v", tcp, got)
		}
		if got := blue.Spread(tcp, "10.10.0.2:80", 3); got["other"] != 3 {
			t.Errorf("%s: on the other network with the same addresses: %v", tcp, got)
		}
	}
	must(t, caller.Ping(ip("10.10.0.2")))
	c, err := caller.Dial("tcp", "10.10.0.13:80")
	must(t, err)
	must(t, c.Echo(bytes.Repeat([]byte("big "), 1<<20)))
	if got := web["web.1"].Spread("tcp", "10.10.0.2:80", 3); len(got) != 3 {
		t.Errorf("a member that calls its own service: %v", got)
	}

	for _, h := range s.hosts {
		for name, want := range map[string]string{"web": "[10.10.0.2]", "www": "[10.10.0.2]", "web.red": "[10.10.0.2]",
			"tasks.web": "[10.10.0.11 10.10.0.12 10.10.0.13]", "web.2": "[10.10.0.12]", "web2": "[]"} {
			if got := fmt.Sprint(h.names.lookup(redID, name)); got != want {
				t.Errorf("%s: %s is %s, want %s", h.Name, name, got, want)
			}
		}
		if got := h.names.reverse(redID, ip("10.10.0.12")); got != "web.2.red" {
			t.Errorf("%s: 10.10.0.12 is %q", h.Name, got)
		}
	}

	// A daemon is killed and comes back: what is open stays open, names stay, new connections work at all times.
	old := s.hosts[0].m
	must(t, old.Close())
	if got := caller.Spread("tcp", "10.10.0.2:80", 3); len(got) != 3 {
		t.Errorf("while no daemon runs: %v", got)
	}
	s.hosts[0].start()
	if got := s.hosts[0].names.lookup(redID, "tasks.web"); len(got) != 3 {
		t.Errorf("before the first view after a restart tasks.web is %v", got)
	}
	must(t, s.hosts[0].m.Apply(t.Context(), s.view, "host1"))
	must(t, c.Echo([]byte("still open")))
	if got := caller.Spread("tcp", "10.10.0.2:80", 3); len(got) != 3 {
		t.Errorf("after the restart: %v", got)
	}

	// One is not ready: reached by address, in nothing else.
	s.view.Members[cloud.MemberID("web.3", redID)].Ready = false
	s.apply()
	if got := caller.Spread("tcp", "10.10.0.2:80", 8); got["web.3"] != 0 || len(got) != 2 {
		t.Errorf("with web.3 not ready: %v", got)
	}
	if got := s.hosts[1].names.lookup(redID, "tasks.web"); len(got) != 2 {
		t.Errorf("with web.3 not ready tasks.web is %v", got)
	}
	if got := s.hosts[1].names.lookup(redID, "web.3"); len(got) != 0 {
		t.Errorf("web.3 is not ready and yet %v", got)
	}
	must(t, c.Echo([]byte("still open")))
	if got, _ := caller.MustAsk("tcp", "10.10.0.13:80"); got != "web.3" {
		t.Errorf("by its address %s answers", got)
	}
	// dnsrr: the name is the members.
	s.view.Services["id-web/"+redID].Mode = cloud.EndpointDNSRR
	s.apply()
	if got := fmt.Sprint(s.hosts[2].names.lookup(redID, "web")); got != "[10.10.0.11 10.10.0.12]" {
		t.Errorf("web by dnsrr is %s", got)
	}
	s.view.Services["id-web/"+redID].Mode = cloud.EndpointVIP
	// None is ready.
	for i := range 3 {
		s.view.Members[cloud.MemberID(fmt.Sprintf("web.%d", i+1), redID)].Ready = false
	}
	s.apply()
	if _, _, err := caller.Ask("tcp", "10.10.0.2:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("with nobody ready: %v, want a refusal", err)
	}

	// The network leaves the view while a sandbox is on it: it goes with that sandbox.
	delete(s.view.Networks, blueID)
	s.apply()
	pinned := filepath.Join(s.hosts[2].Dir, "exec", "netns", "ov-"+blueID)
	if _, err := os.Stat(pinned); err != nil {
		t.Errorf("a network that a sandbox is on: %v", err)
	}
	if pinned := filepath.Join(s.hosts[1].Dir, "exec", "netns", "ov-"+blueID); exists(pinned) {
		t.Error("a network that nobody is on stays")
	}
	must(t, s.hosts[2].m.Detach(t.Context(), "bluecaller"))
	must(t, s.hosts[2].m.Close()) // which waits for what goes on in the background
	if exists(pinned) {
		t.Error("a network stays after the last sandbox has left it")
	}
	s.hosts[2].start()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestPublishedOnEveryHost(t *testing.T) {
	s := newSwarm(t, 3)
	s.network(redID, "red", "10.10.0.0/24", 4097)
	s.service(ingressID, "web", "10.0.0.100", cloud.PortConfig{Protocol: cloud.TCP, Target: 80, Published: 8080, Mode: cloud.PublishIngress},
		cloud.PortConfig{Protocol: cloud.UDP, Target: 80, Published: 8080})
	s.apply()
	for i := range 2 { // the third host has no member
		name := fmt.Sprintf("web.%d", i+1)
		a, r := fmt.Sprintf("10.0.0.%d", 11+i), fmt.Sprintf("10.10.0.%d", 11+i)
		s.member(ingressID, i, "web", name, a).Ready = false
		s.task(i, name, on(ingressID, a), on(redID, r))
	}
	s.apply()
	at := func(i int) string { return s.hosts[i].Addr.String() + ":8080" }
	if _, _, err := s.client.Ask("tcp", at(0)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("before anybody is ready: %v, want a refusal", err)
	}
	for i := range 2 {
		s.view.Members[cloud.MemberID(fmt.Sprintf("web.%d", i+1), ingressID)].Ready = true
	}
	s.apply()
	for i, h := range s.hosts {
		for _, network := range []string{"tcp", "udp"} {
			seen := map[string]bool{}
			for range 4 {
				server, from := s.client.MustAsk(network, at(i))
				seen[server] = true
				if from != s.client.Addr.String() {
					t.Errorf("%s through %s: %s saw the client as %s", network, h.Name, server, from)
				}
			}
			if len(seen) != 2 {
				t.Errorf("%s through %s reaches %v", network, h.Name, seen)
			}
			if got := h.Spread(network, "127.0.0.1:8080", 4); len(got) != 2 {
				t.Errorf("%s from %s itself reaches %v", network, h.Name, got)
			}
		}
	}
	// Restart of the daemon of the host that the connection comes in by, and of the one where it ends.
	c, err := s.client.Dial("tcp", at(2))
	must(t, err)
	for i := range s.hosts {
		must(t, s.hosts[i].m.Close())
		must(t, c.Echo([]byte("no daemon")))
		s.hosts[i].start()
		before := s.ruleset(s.hosts[i].Space)
		must(t, s.hosts[i].m.Apply(t.Context(), s.view, s.hosts[i].Name))
		if after := s.ruleset(s.hosts[i].Space); after != before {
			t.Errorf("%s: the restart changed the rules from\n%s\nto\n%s", s.hosts[i].Name, before, after)
		}
		must(t, c.Echo([]byte("a daemon again")))
		if _, from := s.client.MustAsk("udp", at(i)); from != s.client.Addr.String() {
			t.Errorf("after the restart the client is seen as %s", from)
		}
	}
	// The service is removed: nothing listens.
	delete(s.view.Services, "id-web/"+ingressID)
	s.apply()
	if _, _, err := s.client.Ask("tcp", at(1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the service was removed: %v", err)
	}
	// The host leaves the cluster: nothing of it stays.
	s.hosts[0].m.Keep(nil)
	must(t, s.hosts[0].m.Apply(t.Context(), nil, ""))
	if links := s.hosts[0].Links(); slices.Contains(links, "sampan_ingress") {
		t.Errorf("links after leaving: %v", links)
	}
	if rules := s.ruleset(s.hosts[0].Space); strings.Contains(rules, "table inet sampan_ingress") {
		t.Errorf("rules after leaving: %s", rules)
	}
	for _, n := range s.hosts[0].m.List() {
		if n.Scope == network.ScopeSwarm {
			t.Errorf("network %s after leaving", n.Spec.Name)
		}
	}
}

// TestPublishedToIPv6: published ports are reached by IPv6 on every host, and members see the client's own address;
// whether or not they have another way out by IPv6.
func TestPublishedToIPv6(t *testing.T) {
	for _, out := range []bool{false, true} {
		t.Run(fmt.Sprintf("way out %v", out), func(t *testing.T) {
			s := newSwarm(t, 3, func(c *network.Config) { c.Bridge.IPv6 = out })
			s.view.Networks[ingressID].Status.Subnets = append(s.view.Networks[ingressID].Status.Subnets,
				cloud.IPAMConfig{Subnet: netip.MustParsePrefix("fd10::/64"), Gateway: ip("fd10::1")})
			s.client.AddAddr("eth0", netip.MustParsePrefix("fd99::99/64"))
			for i, h := range s.hosts {
				h.AddAddr("eth0", netip.MustParsePrefix(fmt.Sprintf("fd99::%d/64", i+1)))
				p := s.view.Peers[h.Name]
				p.Ingress.Addrs = append(p.Ingress.Addrs, ip(fmt.Sprintf("fd10::%d", i+2)))
			}
			s.network(redID, "red", "10.10.0.0/24", 4097)
			s.service(ingressID, "web", "10.0.0.100", cloud.PortConfig{Protocol: cloud.TCP, Target: 80, Published: 8080, Mode: cloud.PublishIngress},
				cloud.PortConfig{Protocol: cloud.UDP, Target: 80, Published: 8080})
			s.apply()
			for i := range 2 {
				name, six := fmt.Sprintf("web.%d", i+1), ip(fmt.Sprintf("fd10::1%d", i+1))
				m := s.member(ingressID, i, "web", name, fmt.Sprintf("10.0.0.%d", 11+i))
				m.Addrs = append(m.Addrs, six)
				endpoint := on(ingressID, fmt.Sprintf("10.0.0.%d", 11+i))
				endpoint.IPv6 = six
				s.task(i, name, endpoint, on(redID, fmt.Sprintf("10.10.0.%d", 11+i))).Serve6(80)
			}
			s.apply()
			check := func(what string) {
				t.Helper()
				for i, h := range s.hosts {
					for _, protocol := range []string{"tcp", "udp"} {
						for at, want := range map[string]string{fmt.Sprintf("[fd99::%d]:8080", i+1): "fd99::99", h.Addr.String() + ":8080": s.client.Addr.String()} {
							seen := map[string]bool{}
							for range 4 {
								server, from := s.client.MustAsk(protocol, at)
								seen[server] = true
								if from != want {
									t.Errorf("%s: %s by %s: %s saw the client as %s", what, protocol, at, server, from)
								}
							}
							if len(seen) != 2 {
								t.Errorf("%s: %s by %s reaches %v", what, protocol, at, seen)
							}
						}
					}
				}
			}
			check("at first")
			if got := s.hosts[2].Spread("tcp", "[fd99::3]:8080", 4); len(got) != 2 {
				t.Errorf("from a host itself: %v", got)
			}
			if _, _, err := s.hosts[2].Ask("tcp", "[::1]:8080"); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("[::1]: %v, want a refusal, after which clients try 127.0.0.1", err)
			}
			c, err := s.client.Dial("tcp", "[fd99::3]:8080")
			must(t, err)
			for _, h := range s.hosts {
				must(t, h.m.Close())
				must(t, c.Echo([]byte("no daemon")))
				h.start()
				before := s.ruleset(h.Space)
				must(t, h.m.Apply(t.Context(), s.view, h.Name))
				if after := s.ruleset(h.Space); after != before {
					t.Errorf("%s: the restart changed the rules from\n%s\nto\n%s", h.Name, before, after)
				}
			}
			must(t, c.Echo([]byte("daemons again")))
			check("after a restart")
			for i := range 2 {
				s.view.Members[cloud.MemberID(fmt.Sprintf("web.%d", i+1), ingressID)].Ready = false
			}
			s.apply()
			if _, _, err := s.client.Ask("tcp", "[fd99::1]:8080"); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("with nobody ready: %v, want a refusal", err)
			}
			must(t, c.Echo([]byte("still open")))
		})
	}
}

// TestNoRequestFails: members become unready, ready, go and come, one always being there, while requests stream through
// the virtual IP and through published ports. None fails.
func TestNoRequestFails(t *testing.T) {
	s := newSwarm(t, 2)
	s.network(redID, "red", "10.10.0.0/24", 4097)
	s.service(redID, "web", "10.10.0.2")
	s.service(ingressID, "web", "10.0.0.100", cloud.PortConfig{Protocol: cloud.TCP, Target: 80, Published: 8080})
	s.apply()
	member := func(i int) {
		name := fmt.Sprintf("web.%d", i)
		s.member(redID, i%2, "web", name, fmt.Sprintf("10.10.0.%d", 11+i))
		s.member(ingressID, i%2, "web", name, fmt.Sprintf("10.0.0.%d", 11+i))
	}
	for i := range 4 {
		s.task(i%2, fmt.Sprintf("web.%d", i), on(redID, fmt.Sprintf("10.10.0.%d", 11+i)), on(ingressID, fmt.Sprintf("10.0.0.%d", 11+i)))
		member(i)
	}
	s.member(redID, 0, "caller", "caller", "10.10.0.20")
	caller := s.task(0, "caller", on(redID, "10.10.0.20"))
	s.apply()

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var asked atomic.Int64
	for _, from := range []struct {
		space *nettest.Space
		at    string
	}{{caller, "10.10.0.2:80"}, {s.client, s.hosts[0].Addr.String() + ":8080"}, {s.client, s.hosts[1].Addr.String() + ":8080"}} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, _, err := from.space.Ask("tcp", from.at); err != nil {
					t.Errorf("a request from %s to %s failed: %v", from.space.Name, from.at, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		i := 1 + r.IntN(3) // web.0 is always there
		name := fmt.Sprintf("web.%d", i)
		for _, id := range []string{redID, ingressID} {
			if m := s.view.Members[cloud.MemberID(name, id)]; m == nil {
				member(i)
			} else if m.Ready {
				m.Ready = false
			} else {
				delete(s.view.Members, m.ID)
			}
		}
		s.apply()
	}
	close(stop)
	wg.Wait()
	if asked.Load() < 100 {
		t.Errorf("only %d requests were made", asked.Load())
	}
}

// ruleset is all the rules of a host's namespace, as the nft command lists them.
func (s *swarm) ruleset(h *nettest.Space) string {
	s.t.Helper()
	out, err := exec.Command("nsenter", "--net="+h.Path(), "nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		s.t.Fatalf("nft list ruleset (Debian package nftables): %v: %s", err, out)
	}
	lines := slices.Sorted(strings.Lines(string(out))) // maps are listed in no order
	return strings.Join(lines, "")
}

// TestDataPath: a host whose first view is older than what it said of itself makes its networks all the same, and
// another UDP port than VXLAN's own carries them.
func TestDataPath(t *testing.T) {
	s := newSwarm(t, 2)
	s.network(redID, "red", "10.10.0.0/24", 4097)
	self := s.view.Peers["host1"]
	delete(s.view.Peers, "host1")
	for _, h := range s.hosts {
		h.m.SetDataPath(h.Addr, 4790)
		must(t, h.m.Apply(t.Context(), s.view, h.Name))
	}
	s.view.Peers["host1"] = self
	s.member(redID, 0, "a", "a.1", "10.10.0.11")
	s.member(redID, 1, "b", "b.1", "10.10.0.12")
	s.apply()
	a := s.task(0, "a.1", on(redID, "10.10.0.11"))
	s.task(1, "b.1", on(redID, "10.10.0.12"))
	if got, _ := a.MustAsk("tcp", "10.10.0.12:80"); got != "b.1" {
		t.Errorf("over the other port %q answers", got)
	}
	for _, h := range s.hosts {
		if rules := s.ruleset(h.Space); !strings.Contains(rules, "sampan_vxlan_4790") || strings.Contains(rules, "sampan_vxlan_4789") {
			t.Errorf("%s speaks another port than 4790:\n%s", h.Name, rules)
		}
	}
}
