package overlay_test

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/network/nettest"
	"github.com/sampan-cloud/sampan/internal/network/overlay"
)

// site is a host with its driver.
type site struct {
	*nettest.Space
	d *overlay.Driver
}

func newSite(t *testing.T, lab *nettest.Lab, name string) *site {
	s := &site{Space: lab.Host(name)}
	s.start()
	t.Cleanup(func() {
		ids, err := s.d.IDs()
		if err != nil {
			t.Error(err)
		}
		for _, id := range ids {
			if err := s.d.Remove(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

// start makes a driver, as a daemon that starts does.
func (s *site) start() {
	s.d = overlay.New(overlay.Config{Dir: filepath.Join(s.Dir, "netns"), Host: s.NS})
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// box makes a sandbox on a site's network.
func box(t *testing.T, lab *nettest.Lab, s *site, id, name, a string) *nettest.Space {
	t.Helper()
	b := lab.Space(name)
	mtu, err := s.d.Join(t.Context(), id, overlay.Port{Key: name, NetNS: b.Path(), Interface: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(addr(a), 24)}})
	must(t, err)
	if mtu != 1450 {
		t.Errorf("MTU of the network over an underlay of 1500 is %d, want 1450", mtu)
	}
	b.Serve(80)
	return b
}

func TestTwoOverlaysWithTheSameAddresses(t *testing.T) {
	lab := nettest.New(t)
	one, two := newSite(t, lab, "one"), newSite(t, lab, "two")
	ctx := t.Context()
	// Both networks have 10.10.0.2 on host one and 10.10.0.3 on host two.
	for id, vni := range map[string]uint32{"red": 4097, "blue": 4098} {
		must(t, one.d.Apply(ctx, overlay.Network{ID: id, VNI: vni, Local: one.Addr, Remotes: map[netip.Addr]overlay.Remote{addr("10.10.0.3"): overlay.At(addr("10.10.0.3"), two.Addr)}}))
		must(t, two.d.Apply(ctx, overlay.Network{ID: id, VNI: vni, Local: two.Addr, Remotes: map[netip.Addr]overlay.Remote{addr("10.10.0.2"): overlay.At(addr("10.10.0.2"), one.Addr)}}))
	}
	boxes := map[string]*nettest.Space{}
	for _, id := range []string{"red", "blue"} {
		boxes[id+"1"] = box(t, lab, one, id, id+"1", "10.10.0.2")
		boxes[id+"2"] = box(t, lab, two, id, id+"2", "10.10.0.3")
	}
	for _, id := range []string{"red", "blue"} {
		for _, network := range []string{"tcp", "udp"} {
			if got, from := boxes[id+"1"].MustAsk(network, "10.10.0.3:80"); got != id+"2" || from != "10.10.0.2" {
				t.Errorf("%s: asked 10.10.0.3 on %s, got an answer of %s, who saw %s", network, id, got, from)
			}
			if got, from := boxes[id+"2"].MustAsk(network, "10.10.0.2:80"); got != id+"1" || from != "10.10.0.3" {
				t.Errorf("%s: asked 10.10.0.2 on %s, got an answer of %s, who saw %s", network, id, got, from)
			}
		}
	}
	// Big packets and many of them: nothing is lost to a wrong MTU.
	c, err := boxes["red1"].Dial("tcp", "10.10.0.3:80")
	must(t, err)
	must(t, c.Echo(bytes.Repeat([]byte("overlay "), 4<<20/8)))

	// A new daemon finds what is there, changes nothing and breaks nothing.
	one.start()
	must(t, one.d.Apply(ctx, overlay.Network{ID: "red", VNI: 4097, Local: one.Addr, Remotes: map[netip.Addr]overlay.Remote{addr("10.10.0.3"): overlay.At(addr("10.10.0.3"), two.Addr)}}))
	must(t, c.Echo([]byte("still there")))
	remotes, err := one.d.Remotes("red")
	must(t, err)
	if len(remotes) != 1 || remotes[addr("10.10.0.3")].Node != two.Addr {
		t.Errorf("after a restart the network forwards %v", remotes)
	}

	// The member moves to this host: the old entry goes, the new port answers.
	must(t, one.d.Apply(ctx, overlay.Network{ID: "red", VNI: 4097, Local: one.Addr}))
	must(t, two.d.Leave(ctx, "red", "red2"))
	box(t, lab, one, "red", "red3", "10.10.0.3")
	if got, _ := boxes["red1"].MustAsk("tcp", "10.10.0.3:80"); got != "red3" {
		t.Errorf("after the move %s answers", got)
	}
	// Leaving takes the interface away.
	must(t, one.d.Leave(ctx, "red", "red1"))
	if links := boxes["red1"].Links(); len(links) != 1 {
		t.Errorf("after leaving, the sandbox has %v", links)
	}
	// And removing takes all of it.
	must(t, one.d.Remove(ctx, "red"))
	if _, err := os.Stat(filepath.Join(one.Dir, "netns", "ov-red")); !os.IsNotExist(err) {
		t.Errorf("the namespace of a removed network: %v", err)
	}
	// The number is free at once.
	must(t, one.d.Apply(ctx, overlay.Network{ID: "green", VNI: 4097, Local: one.Addr}))
}

func TestBrokenOffAnywhereAppliesAgain(t *testing.T) {
	lab := nettest.New(t)
	one := newSite(t, lab, "one")
	n := overlay.Network{ID: "net", VNI: 5000, Local: one.Addr, Remotes: map[netip.Addr]overlay.Remote{addr("10.10.0.3"): overlay.At(addr("10.10.0.3"), addr("10.99.0.7"))}}
	join := func(b *nettest.Space) error {
		_, err := one.d.Join(t.Context(), "net", overlay.Port{Key: "k", NetNS: b.Path(), Interface: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.10.0.2/24")}})
		return err
	}
	names := failpoint.Record()
	must(t, one.d.Apply(t.Context(), n))
	must(t, join(lab.Space("first")))
	must(t, one.d.Remove(t.Context(), "net"))
	points := names()
	if len(points) < 5 {
		t.Fatalf("failpoints passed: %v", points)
	}
	for _, p := range points {
		t.Run(p, func(t *testing.T) {
			b := lab.Space(filepath.Base(p))
			disable := failpoint.Enable(p, failpoint.Fail)
			err := one.d.Apply(t.Context(), n)
			if err == nil {
				err = join(b)
			}
			if err == nil {
				err = one.d.Remove(t.Context(), "net")
			}
			disable()
			must(t, one.d.Close())
			if err == nil {
				t.Fatal("nothing failed")
			}
			one.start() // as after a crash there
			must(t, one.d.Apply(t.Context(), n))
			must(t, join(b))
			must(t, one.d.Remove(t.Context(), "net"))
			if ids, _ := one.d.IDs(); len(ids) != 0 {
				t.Errorf("left: %v", ids)
			}
		})
	}
}

// TestTwoFamilies: an interface with an IPv4 and an IPv6 address is reached by both.
func TestTwoFamilies(t *testing.T) {
	lab := nettest.New(t)
	sites := []*site{newSite(t, lab, "one"), newSite(t, lab, "two")}
	four, six := []string{"10.10.0.2", "10.10.0.3"}, []string{"fd00:10::2", "fd00:10::3"}
	var boxes []*nettest.Space
	for i, s := range sites {
		far := overlay.At(addr(four[1-i]), sites[1-i].Addr)
		must(t, s.d.Apply(t.Context(), overlay.Network{ID: "net", VNI: 4097, Local: s.Addr,
			Remotes: map[netip.Addr]overlay.Remote{addr(four[1-i]): far, addr(six[1-i]): far}}))
		b := lab.Space("box" + s.Name)
		_, err := s.d.Join(t.Context(), "net", overlay.Port{Key: b.Name, NetNS: b.Path(), Interface: "eth0",
			Addrs: []netip.Prefix{netip.PrefixFrom(addr(four[i]), 24), netip.PrefixFrom(addr(six[i]), 64)}})
		must(t, err)
		b.Serve(80)
		b.Serve6(80)
		boxes = append(boxes, b)
	}
	for _, at := range []string{"10.10.0.3:80", "[fd00:10::3]:80"} {
		if got, _ := boxes[0].MustAsk("tcp", at); got != "boxtwo" {
			t.Errorf("%s is %s", at, got)
		}
	}
	// One address goes, the other is still forwarded.
	must(t, sites[0].d.Apply(t.Context(), overlay.Network{ID: "net", VNI: 4097, Local: sites[0].Addr,
		Remotes: map[netip.Addr]overlay.Remote{addr(six[1]): overlay.At(addr(four[1]), sites[1].Addr)}}))
	if got, _ := boxes[0].MustAsk("tcp", "[fd00:10::3]:80"); got != "boxtwo" {
		t.Errorf("by IPv6 alone %s answers", got)
	}
}
