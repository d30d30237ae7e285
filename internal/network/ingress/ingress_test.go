package ingress_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/network/ingress"
	"github.com/sampan-cloud/sampan/internal/network/nettest"
	"github.com/sampan-cloud/sampan/internal/network/overlay"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// town is three hosts with a leg each on the ingress network, two of them with a member, and a client outside.
type town struct {
	t       *testing.T
	lab     *nettest.Lab
	hosts   []*nettest.Space
	sides   []*ingress.Host
	drivers []*overlay.Driver
	boxes   []*nettest.Space // box i is on host i, at 10.0.0.11+i
	client  *nettest.Space
	legs    map[netip.Addr]uint32
}

// forward makes a host pass packets on.
func forward(h *nettest.Space) func(v6 bool) error {
	return func(v6 bool) error {
		key := "net.ipv4.ip_forward"
		if v6 {
			key = "net.ipv6.conf.all.forwarding"
		}
		return h.Sysctl(map[string]string{key: "1"})
	}
}

var private = netip.MustParsePrefix("172.18.0.0/16")

func leg(i int) netip.Addr    { return netip.AddrFrom4([4]byte{10, 0, 0, byte(2 + i)}) }
func member(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(11 + i)}) }

func newTown(t *testing.T, gateway bool) *town {
	w := &town{t: t, lab: nettest.New(t), legs: map[netip.Addr]uint32{}}
	for i := range 3 {
		w.hosts = append(w.hosts, w.lab.Host(fmt.Sprintf("host%d", i+1)))
		w.legs[leg(i)] = uint32(i+1) << cloud.IngressMarkShift
	}
	w.client = w.lab.Host("client")
	for i, h := range w.hosts {
		d := overlay.New(overlay.Config{Dir: filepath.Join(h.Dir, "netns"), Host: h.NS})
		w.drivers = append(w.drivers, d)
		remotes := map[netip.Addr]overlay.Remote{}
		for j, other := range w.hosts {
			if j != i {
				remotes[leg(j)] = overlay.At(leg(j), other.Addr)
				remotes[member(j)] = overlay.At(member(j), other.Addr)
			}
		}
		must(t, d.Apply(t.Context(), overlay.Network{ID: "ingress", VNI: 4096, Local: h.Addr, Remotes: remotes}))
		t.Cleanup(func() {
			if err := d.Remove(t.Context(), "ingress"); err != nil {
				t.Error(err)
			}
		})
		_, err := d.Join(t.Context(), "ingress", overlay.Port{Key: "host", Interface: ingress.LegName, Addrs: []netip.Prefix{netip.PrefixFrom(leg(i), 24)}})
		must(t, err)
		w.sides = append(w.sides, ingress.NewHost(h.NS, nil, forward(h)))
		if i == 2 {
			continue // a host without a member
		}
		b := w.lab.Space(fmt.Sprintf("box%d", i+1))
		w.boxes = append(w.boxes, b)
		_, err = d.Join(t.Context(), "ingress", overlay.Port{Key: b.Name, NetNS: b.Path(), Interface: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(member(i), 24)}})
		must(t, err)
		if gateway {
			// Every host has the same bridge for its sandboxes' way out.
			b.Wire("eth1", netip.MustParsePrefix("172.18.0.2/16"), h, "gw", netip.MustParsePrefix("172.18.0.1/16"))
			b.DefaultRoute(netip.MustParseAddr("172.18.0.1"))
		}
		must(t, ingress.OpenSandbox(b.Path()).Set(ingress.SandboxConfig{Interface: "eth0", Addr: netip.PrefixFrom(member(i), 24), Legs: w.legs}))
		b.Serve(80)
	}
	return w
}

// publish publishes port 8080, TCP and UDP, of the members on all hosts.
func (w *town) publish(members ...netip.Addr) {
	w.t.Helper()
	for i := range w.hosts {
		must(w.t, w.sides[i].Set(w.t.Context(), w.config(i, members...)))
	}
}

func (w *town) config(i int, members ...netip.Addr) ingress.HostConfig {
	cfg := ingress.HostConfig{Leg: netip.PrefixFrom(leg(i), 24), Private: []netip.Prefix{private}}
	for _, p := range []cloud.Protocol{cloud.TCP, cloud.UDP} {
		cfg.Ports = append(cfg.Ports, &ingress.Port{Endpoint: ingress.Endpoint{Protocol: p, Port: 8080}, Target: 80, Members: members})
	}
	return cfg
}

func (w *town) at(i int) string { return w.hosts[i].Addr.String() + ":8080" }

func TestClientsAddressSurvives(t *testing.T) {
	for _, gateway := range []bool{true, false} {
		t.Run(fmt.Sprintf("gateway=%v", gateway), func(t *testing.T) {
			w := newTown(t, gateway)
			w.publish(member(0), member(1))
			for i := range w.hosts {
				for _, network := range []string{"tcp", "udp"} {
					seen := map[string]bool{}
					for range 4 {
						server, from := w.client.MustAsk(network, w.at(i))
						seen[server] = true
						if from != w.client.Addr.String() {
							t.Errorf("%s through host%d: %s saw the client as %s, want %s", network, i+1, server, from, w.client.Addr)
						}
					}
					if len(seen) != 2 {
						t.Errorf("%s through host%d: four connections reach %v", network, i+1, seen)
					}
				}
			}
			// Much data, through a host without a member.
			c, err := w.client.Dial("tcp", w.at(2))
			must(t, err)
			must(t, c.Echo(bytes.Repeat([]byte("x"), 4<<20)))
		})
	}
}

func TestFromTheHostItself(t *testing.T) {
	w := newTown(t, true)
	w.publish(member(0), member(1))
	for i, h := range w.hosts {
		for _, network := range []string{"tcp", "udp"} {
			for _, at := range []string{"127.0.0.1:8080", w.at(i), w.at((i + 1) % 3)} {
				if got := h.Spread(network, at, 4); len(got) != 2 {
					t.Errorf("%s to %s from host%d reaches %v", network, at, i+1, got)
				}
			}
		}
	}
	// A sandbox calls its own host's port, which leads to the other host, where there is the same bridge, or to itself.
	for _, network := range []string{"tcp", "udp"} {
		if got := w.boxes[0].Spread(network, "172.18.0.1:8080", 4); len(got) != 2 {
			t.Errorf("%s from a sandbox to its host reaches %v", network, got)
		}
	}
}

func TestMembersComeAndGo(t *testing.T) {
	w := newTown(t, true)
	w.publish(member(0), member(1))
	udp, err := w.client.Dial("udp", w.at(2))
	must(t, err)
	old := map[string]netip.Addr{"box1": member(0), "box2": member(1)}[udp.Server]
	other := member(0)
	if old == other {
		other = member(1)
	}
	var tcp *nettest.Conn
	for tcp == nil || tcp.Server == udp.Server {
		tcp, err = w.client.Dial("tcp", w.at(2))
		must(t, err)
	}
	gone := udp.Server
	w.publish(other)
	must(t, udp.Again())
	if udp.Server == gone {
		t.Errorf("datagrams go on to %s, which is no member any more", gone)
	}
	if got := w.client.Spread("tcp", w.at(2), 10); got[gone] != 0 {
		t.Errorf("connections reach %v after %s has gone", got, gone)
	}
	must(t, tcp.Echo([]byte("not mine")))

	// A new daemon on host 3: the port answers all the time, and nothing changes.
	must(t, w.sides[2].Close())
	if got, _ := w.client.MustAsk("tcp", w.at(2)); got == gone {
		t.Errorf("without a daemon %s answers", got)
	}
	w.sides[2] = ingress.NewHost(w.hosts[2].NS, nil, forward(w.hosts[2]))
	w.publish(other)
	must(t, tcp.Echo([]byte("after the restart")))

	w.publish()
	for _, from := range []*nettest.Space{w.client, w.hosts[2]} {
		if _, _, err := from.Ask("tcp", w.at(2)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("from %s, without ready members: %v, want a refusal", from.Name, err)
		}
		if _, _, err := from.Ask("udp", w.at(2)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("from %s, a datagram without ready members: %v, want a refusal", from.Name, err)
		}
	}
	must(t, w.sides[2].Remove())
	if _, _, err := w.client.Ask("tcp", w.at(2)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after it was all removed: %v", err)
	}
}

func TestWhatIsNotPublishedIsNotReached(t *testing.T) {
	w := newTown(t, true)
	w.publish(member(0), member(1))
	// Somebody on the hosts' network sends to the ingress network through a host.
	w.client.DefaultRoute(w.hosts[0].Addr)
	if err := w.client.Ping(member(0)); err == nil {
		t.Error("a member answers a ping from outside")
	}
	if _, _, err := w.client.Ask("tcp", member(0).String()+":80"); err == nil {
		t.Error("a member's port is reached from outside by its own address")
	}
	// A member does not get to what listens on the host's leg.
	w.hosts[0].Serve(9000)
	if _, _, err := w.boxes[0].Ask("tcp", leg(0).String()+":9000"); err == nil {
		t.Error("a member reaches a port of its host through the leg")
	}
}

func TestPortOfAnotherProgram(t *testing.T) {
	w := newTown(t, true)
	w.hosts[0].Serve(8080)
	w.publish(member(1))
	if got, _ := w.client.MustAsk("tcp", w.at(0)); got != "host1" {
		t.Errorf("the program that was there first has lost its port to %s", got)
	}
	conflicts := w.sides[0].Conflicts()
	if len(conflicts) != 2 {
		t.Errorf("conflicts: %v", conflicts)
	}
	if got, _ := w.client.MustAsk("tcp", w.at(1)); got != "box2" {
		t.Errorf("on a host where the port is free %s answers", got)
	}
	// There no other program can take it now.
	err := w.hosts[1].Do(func() error {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = syscall.Close(fd) }()
		_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
		return syscall.Bind(fd, &syscall.SockaddrInet4{Port: 8080})
	})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("taking a published port: %v", err)
	}
}

// TestNothingStays: after Remove the host's namespace is as it was.
func TestNothingStays(t *testing.T) {
	w := newTown(t, true)
	w.publish(member(0))
	must(t, w.sides[0].Remove())
	must(t, w.drivers[0].Leave(t.Context(), "ingress", "host"))
	if links := w.hosts[0].Links(); slices.Contains(links, ingress.LegName) {
		t.Errorf("links: %v", links)
	}
	pinned, err := filepath.Glob(filepath.Join(w.hosts[0].Dir, "netns", "*"))
	if err != nil || len(pinned) != 1 {
		t.Errorf("pinned: %v, %v", pinned, err)
	}
}
