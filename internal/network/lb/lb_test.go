package lb_test

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/network/lb"
	"github.com/sampan-cloud/sampan/internal/network/nettest"
	"github.com/sampan-cloud/sampan/internal/network/overlay"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func vip(members ...string) map[netip.Addr]*lb.VIP {
	v := &lb.VIP{Addr: addr("10.10.0.100")}
	for _, m := range members {
		v.Members = append(v.Members, addr(m))
	}
	return map[netip.Addr]*lb.VIP{v.Addr: v}
}

// street is four sandboxes on one network: 10.10.0.1, the caller, to 10.10.0.4.
func street(t *testing.T) []*nettest.Space {
	lab := nettest.New(t)
	host := lab.Host("host")
	d := overlay.New(overlay.Config{Dir: filepath.Join(host.Dir, "netns"), Host: host.NS})
	must(t, d.Apply(t.Context(), overlay.Network{ID: "net", VNI: 4097, Local: host.Addr}))
	t.Cleanup(func() {
		if err := d.Remove(t.Context(), "net"); err != nil {
			t.Error(err)
		}
	})
	var boxes []*nettest.Space
	for i := range 4 {
		b := lab.Space(fmt.Sprintf("box%d", i+1))
		a := netip.AddrFrom4([4]byte{10, 10, 0, byte(i + 1)})
		_, err := d.Join(t.Context(), "net", overlay.Port{Key: b.Name, NetNS: b.Path(), Interface: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(a, 24)}})
		must(t, err)
		b.Serve(80)
		boxes = append(boxes, b)
	}
	return boxes
}

func TestVirtualIP(t *testing.T) {
	boxes := street(t)
	caller := boxes[0]
	table := lb.Open(caller.Path(), caller.Name)
	const at = "10.10.0.100:80"

	must(t, table.Set(vip("10.10.0.2", "10.10.0.3", "10.10.0.4")))
	for _, network := range []string{"tcp", "udp"} {
		if got := caller.Spread(network, at, 30); !even(got, 3, 10) {
			t.Errorf("%s: 30 connections to three members in turn: %v", network, got)
		}
	}
	must(t, caller.Ping(addr("10.10.0.100")))

	// The members of a service can call it, and reach themselves by it.
	own := lb.Open(boxes[1].Path(), boxes[1].Name)
	must(t, own.Set(vip("10.10.0.2", "10.10.0.3")))
	if got := boxes[1].Spread("tcp", at, 20); !even(got, 2, 10) {
		t.Errorf("a member that calls its own service reaches %v", got)
	}
	if got := boxes[1].Spread("udp", at, 8); !even(got, 2, 4) {
		t.Errorf("a member that calls its own service by UDP reaches %v", got)
	}
	must(t, own.Set(vip("10.10.0.2")))
	must(t, boxes[1].Ping(addr("10.10.0.100")))

	// A member goes while connections are open.
	open := map[string]*nettest.Conn{}
	for len(open) < 3 {
		c, err := caller.Dial("tcp", at)
		must(t, err)
		open[c.Server] = c
	}
	udp := map[string]*nettest.Conn{}
	for len(udp) < 3 {
		c, err := caller.Dial("udp", at)
		must(t, err)
		udp[c.Server] = c
	}
	draining := vip("10.10.0.2", "10.10.0.4")
	draining[addr("10.10.0.100")].Draining = []netip.Addr{addr("10.10.0.3")}
	must(t, table.Set(draining))
	if got := caller.Spread("tcp", at, 20); got["box3"] != 0 || !even(got, 2, 10) {
		t.Errorf("after box3 is not ready any more: %v", got)
	}
	for name, c := range open {
		if err := c.Echo([]byte("still here")); err != nil {
			t.Errorf("the connection to %s broke when box3 became unready: %v", name, err)
		}
	}
	for name, c := range udp {
		must(t, c.Again())
		if name != "box3" && c.Server != name || c.Server == "box3" {
			t.Errorf("datagrams that went to %s go to %s", name, c.Server)
		}
	}
	must(t, table.Set(vip("10.10.0.2", "10.10.0.4")))
	if err := open["box3"].Echo([]byte("anybody?")); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("an open connection to a member that is gone: %v, want a reset", err)
	}
	for _, name := range []string{"box2", "box4"} {
		if err := open[name].Echo([]byte("still here")); err != nil {
			t.Errorf("the connection to %s broke when box3 went: %v", name, err)
		}
	}

	// A new daemon finds the table.
	before := ruleset(t, caller)
	again := lb.Open(caller.Path(), caller.Name)
	must(t, again.Set(vip("10.10.0.2", "10.10.0.4")))
	if after := ruleset(t, caller); after != before {
		t.Errorf("a restart changed the rules from\n%s\nto\n%s", before, after)
	}
	must(t, open["box2"].Echo([]byte("and after the restart")))

	// Nobody is left: refused at once.
	must(t, again.Set(vip()))
	if _, _, err := caller.Ask("tcp", at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connecting to a service without ready members: %v, want a refusal", err)
	}
	// (The kernel tells a sender whose packet was refused on the way out that it is not permitted.)
	if _, _, err := caller.Ask("udp", at); !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a datagram to a service without ready members: %v, want a refusal", err)
	}
	// And they come back, more than before.
	must(t, again.Set(vip("10.10.0.2", "10.10.0.3", "10.10.0.4", "10.10.0.1")))
	if got := caller.Spread("tcp", at, 40); !even(got, 4, 10) {
		t.Errorf("40 connections to four members, one the caller: %v", got)
	}
	vips, err := again.VIPs()
	must(t, err)
	if got := vips[addr("10.10.0.100")]; len(got) != 4 {
		t.Errorf("members as the kernel has them: %v", got)
	}
	// The service is removed: its address is nobody's.
	must(t, again.Set(nil))
	if _, _, err := caller.Ask("tcp", at); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connecting to the address of a removed service: %v", err)
	}
	must(t, again.Remove())
}

// even reports whether so many members got that many connections each, give or take those that a packet of a connection
// that was forgotten before has taken the turn of.
func even(got map[string]int, members, each int) bool {
	for _, n := range got {
		if n < each-2 || n > each+2 {
			return false
		}
	}
	return len(got) == members
}

// TestWhoWentMeanwhile: a member that goes while no daemon looks keeps no connections afterwards.
func TestWhoWentMeanwhile(t *testing.T) {
	boxes := street(t)
	must(t, lb.Open(boxes[0].Path(), "x").Set(vip("10.10.0.2")))
	udp, err := boxes[0].Dial("udp", "10.10.0.100:80")
	must(t, err)
	must(t, lb.Open(boxes[0].Path(), "x").Set(vip("10.10.0.3")))
	must(t, udp.Again())
	if udp.Server != "box3" {
		t.Errorf("datagrams go on to %s", udp.Server)
	}
}

func ruleset(t *testing.T, s *nettest.Space) string {
	t.Helper()
	vips, err := lb.Open(s.Path(), "").VIPs()
	must(t, err)
	return fmt.Sprint(vips)
}

func TestFill(t *testing.T) {
	for _, tt := range []struct {
		name            string
		was, want, fill []int
	}{
		{"first", nil, []int{1, 2, 3}, []int{1, 2, 3}},
		{"one more", []int{3, 1}, []int{1, 2, 3}, []int{3, 1, 2}},
		{"the last goes", []int{3, 1, 2}, []int{1, 3}, []int{3, 1}},
		{"the first goes", []int{3, 1, 2}, []int{1, 2}, []int{2, 1}},
		{"another one", []int{3, 1, 2}, []int{1, 2, 4}, []int{4, 1, 2}},
		{"all go", []int{3, 1}, nil, []int{}},
		{"twice the same", nil, []int{1, 1}, []int{1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := lb.Fill(tt.was, tt.want, 0)
			if !slices.Equal(got, tt.fill) {
				t.Errorf("got %v, want %v", got, tt.fill)
			}
		})
	}
	// The salt decides who is first, and everybody is in.
	first := map[int]bool{}
	for salt := range uint32(30) {
		got := lb.Fill(nil, []int{1, 2, 3}, salt)
		first[got[0]] = true
		slices.Sort(got)
		if !slices.Equal(got, []int{1, 2, 3}) {
			t.Errorf("salt %d: %v", salt, got)
		}
	}
	if len(first) != 3 {
		t.Errorf("first with different salts: %v", first)
	}
}

// TestIPv6: a virtual IP of IPv6 beside one of IPv4, each with its own members.
func TestIPv6(t *testing.T) {
	lab := nettest.New(t)
	a, b := lab.Space("a"), lab.Space("b")
	a.Wire("eth0", netip.MustParsePrefix("fd00:10::1/64"), b, "eth0", netip.MustParsePrefix("fd00:10::2/64"))
	b.Serve6(80)
	v4, v6 := addr("10.10.0.100"), addr("fd00:10::100")
	table := lb.Open(a.Path(), a.Name)
	must(t, table.Set(map[netip.Addr]*lb.VIP{v4: {Addr: v4}, v6: {Addr: v6, Members: []netip.Addr{addr("fd00:10::2")}}}))
	if got, _ := a.MustAsk("tcp", "[fd00:10::100]:80"); got != "b" {
		t.Errorf("the virtual IP of IPv6 is %s", got)
	}
	again := lb.Open(a.Path(), a.Name)
	must(t, again.Set(map[netip.Addr]*lb.VIP{v6: {Addr: v6}}))
	if _, _, err := a.Ask("tcp", "[fd00:10::100]:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("without members: %v, want a refusal", err)
	}
}

// TestDirectIsNotTracked: on an overlay, TCP to a member's own address leaves no trace in connection tracking; what goes
// to a virtual IP does, or its answers could not be translated back; and a second process finds it all.
func TestDirectIsNotTracked(t *testing.T) {
	boxes := street(t)
	caller := boxes[0]
	for _, b := range boxes {
		must(t, lb.Open(b.Path(), b.Name).Direct([]string{"eth0"}))
	}
	tracked := func(to string) (n int) {
		must(t, caller.NS.Do(func() error {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			for _, f := range flows {
				if f.Forward.DstIP.String() == to && f.Forward.Protocol == unix.IPPROTO_TCP {
					n++
				}
			}
			return err
		}))
		return n
	}
	if got := caller.Spread("tcp", "10.10.0.2:80", 5); got["box2"] != 5 {
		t.Errorf("five connections to box2 itself: %v", got)
	}
	if n := tracked("10.10.0.2"); n != 0 {
		t.Errorf("%d connections to a member itself are tracked", n)
	}
	table := lb.Open(caller.Path(), caller.Name)
	must(t, table.Set(vip("10.10.0.2", "10.10.0.3", "10.10.0.1")))
	must(t, table.Direct([]string{"eth0"}))
	if got := caller.Spread("tcp", "10.10.0.100:80", 30); !even(got, 3, 10) {
		t.Errorf("30 connections to a virtual IP: %v", got)
	}
	if n := tracked("10.10.0.100"); n < 30 {
		t.Errorf("%d of 30 connections to a virtual IP are tracked", n)
	}
	must(t, table.Direct(nil))
	caller.Spread("tcp", "10.10.0.3:80", 1)
	if n := tracked("10.10.0.3"); n != 1 {
		t.Errorf("%d connections are tracked once the interface is no overlay's", n)
	}
}

// TestDirectWithoutSockets: on a kernel that cannot tell connections by their sockets, all of them are tracked, and virtual
// IPs and members answer as on any other; also after a restart.
func TestDirectWithoutSockets(t *testing.T) {
	boxes := street(t)
	caller := boxes[0]
	disable := failpoint.Enable("network/lb.direct.socket", failpoint.Fail)
	for _, b := range boxes {
		must(t, lb.Open(b.Path(), b.Name).Direct([]string{"eth0"}))
	}
	table := lb.Open(caller.Path(), caller.Name)
	must(t, table.Direct([]string{"eth0"}))
	must(t, table.Set(vip("10.10.0.2", "10.10.0.3", "10.10.0.1")))
	disable()
	again := lb.Open(caller.Path(), caller.Name) // finds the table of before, which has no such rules
	for _, table := range []*lb.Table{table, again} {
		must(t, table.Direct([]string{"eth0", "eth1"}))
		must(t, table.Set(vip("10.10.0.2", "10.10.0.3", "10.10.0.1")))
		if got := caller.Spread("tcp", "10.10.0.100:80", 30); !even(got, 3, 10) {
			t.Errorf("30 connections to a virtual IP: %v", got)
		}
		if got := caller.Spread("tcp", "10.10.0.2:80", 5); got["box2"] != 5 {
			t.Errorf("five connections to box2 itself: %v", got)
		}
	}
	n := 0
	must(t, caller.NS.Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		for _, f := range flows {
			if f.Forward.DstIP.String() == "10.10.0.2" && f.Forward.Protocol == unix.IPPROTO_TCP {
				n++
			}
		}
		return err
	}))
	if n != 10 {
		t.Errorf("%d of ten connections to a member itself are tracked", n)
	}
}
