package link_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

func open(t *testing.T) (*netns.NS, *netlink.Handle) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := netns.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Close()
		_ = ns.Close()
		if err := netns.Remove(path); err != nil {
			t.Error(err)
		}
	})
	return ns, h
}

func TestVethIntoAnotherNamespace(t *testing.T) {
	_, h := open(t)
	other, oh := open(t)
	bridge, err := link.AddBridge(h, link.Bridge{Name: "br", MTU: 1400, MAC: "02:42:0a:00:00:01"})
	if err != nil {
		t.Fatal(err)
	}
	if err := link.AddVeth(h, link.Veth{Name: "near", Peer: "far", PeerNS: other.FD(), MTU: 1400, PeerMAC: "02:42:0a:00:00:02", Master: bridge}); err != nil {
		t.Fatal(err)
	}
	near, err := link.Get(h, "near")
	if err != nil || near.Attrs().MasterIndex != bridge || near.Attrs().MTU != 1400 {
		t.Errorf("near end: %+v, %v", near.Attrs(), err)
	}
	far, err := link.Get(oh, "far")
	if err != nil || far.Attrs().HardwareAddr.String() != "02:42:0a:00:00:02" || far.Attrs().MTU != 1400 || far.Attrs().NumTxQueues != 1 {
		t.Errorf("far end: %+v, %v", far, err)
	}
	if _, err := link.Get(h, "far"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the far end is on this side: %v", err)
	}
	if err := link.Del(h, "near"); err != nil {
		t.Fatal(err)
	}
	if _, err := link.Get(oh, "far"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the far end outlives the near one: %v", err)
	}
	if err := link.Del(h, "near"); err != nil {
		t.Errorf("delete what is not there: %v", err)
	}
}

func TestErrorsNameTheLink(t *testing.T) {
	_, h := open(t)
	if _, err := link.AddBridge(h, link.Bridge{Name: "br"}); err != nil {
		t.Fatal(err)
	}
	_, err := link.AddBridge(h, link.Bridge{Name: "br"})
	if !fault.Is(err, fault.AlreadyExists) || !strings.Contains(err.Error(), "br") {
		t.Errorf("a name that is taken: %v", err)
	}
	for _, err := range []error{link.Up(h, "nosuch"), link.Join(h, "nosuch", 1), link.SetMTU(h, "nosuch", 1500)} {
		if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "nosuch") {
			t.Errorf("a link that is not there: %v", err)
		}
	}
	if err := link.AddVeth(h, link.Veth{Name: "a", Peer: "b", MAC: "zz"}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("a bad MAC address: %v", err)
	}
}

func TestAddressesAndRoutesAreIdempotent(t *testing.T) {
	_, h := open(t)
	index, err := link.AddBridge(h, link.Bridge{Name: "br"})
	if err != nil {
		t.Fatal(err)
	}
	if err := link.Up(h, "br"); err != nil {
		t.Fatal(err)
	}
	four, six := netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")
	for range 2 {
		for _, p := range []netip.Prefix{four, six} {
			if err := link.AddAddr(h, index, p); err != nil {
				t.Error(err)
			}
		}
		for _, r := range []link.Route{{Via: netip.MustParseAddr("10.0.0.9"), Index: index}, {Via: netip.MustParseAddr("fd00::9"), Index: index},
			{Dst: netip.MustParsePrefix("10.7.0.0/16"), Index: index}, {Dst: netip.MustParsePrefix("10.8.0.0/16"), Via: netip.MustParseAddr("10.0.0.9"), Table: 100}} {
			if err := link.SetRoute(h, r); err != nil {
				t.Error(err)
			}
		}
	}
	routes, err := h.RouteList(nil, netlink.FAMILY_V4)
	if err != nil || len(routes) != 3 {
		t.Errorf("routes: %v, %v", routes, err)
	}
	for range 2 {
		if err := link.DelRoute(h, link.Route{Dst: netip.MustParsePrefix("10.7.0.0/16"), Index: index}); err != nil {
			t.Error(err)
		}
		if err := link.DelAddr(h, index, six); err != nil {
			t.Error(err)
		}
	}
}

func TestVXLANForwardingEntries(t *testing.T) {
	host, h := open(t)
	_ = host
	inner, ih := open(t)
	if err := link.AddVXLAN(h, link.VXLAN{Name: "vx", VNI: 4097, NS: inner.FD(), MTU: 1450, Local: netip.MustParseAddr("10.0.0.1")}); err != nil {
		t.Fatal(err)
	}
	index, err := link.Index(ih, "vx")
	if err != nil {
		t.Fatal(err)
	}
	peer, addr := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.10.0.5")
	for range 2 {
		if err := link.SetFDB(ih, index, "02:42:0a:0a:00:05", peer); err != nil {
			t.Error(err)
		}
		if err := link.SetNeigh(ih, index, addr, "02:42:0a:0a:00:05"); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := link.DelFDB(ih, index, "02:42:0a:0a:00:05", peer); err != nil {
			t.Error(err)
		}
		if err := link.DelNeigh(ih, index, addr); err != nil {
			t.Error(err)
		}
	}
}

func TestManyLinksAreDeletedAtOnceAndNoOther(t *testing.T) {
	ns, h := open(t)
	var names []string
	for i := range 5 {
		name := fmt.Sprintf("a%d", i)
		if err := link.AddVeth(h, link.Veth{Name: name, Peer: fmt.Sprintf("b%d", i)}); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	for _, some := range [][]string{{"not-there"}, nil, append(names[:4:4], "not-there")} {
		if err := ns.Do(func() error { return link.DelAll(some) }); err != nil {
			t.Fatal(err)
		}
	}
	all, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, l := range all {
		left = append(left, l.Attrs().Name)
	}
	slices.Sort(left)
	if !slices.Equal(left, []string{"a4", "b4", "lo"}) {
		t.Errorf("left are %v, want the pair that was not named and loopback", left)
	}
}
