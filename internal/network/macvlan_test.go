package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/link"
)

func macvlan(name, parent, mode string) Spec {
	return Spec{Name: name, Driver: DriverMacvlan, Options: map[string]string{optParent: parent, optMacvlanMode: mode},
		IPAM: []cloud.IPAMConfig{{Subnet: prefixOf("10.99.0.0/24"), Range: prefixOf("10.99.0.128/26"), Gateway: addrOf("10.99.0.2")}}}
}

// TestMacvlanModes: containers are hosts of the physical network; whether they reach each other is the mode's to say.
func TestMacvlanModes(t *testing.T) {
	for mode, neighbours := range map[string]bool{"bridge": true, "": true, "private": false, "vepa": false} {
		t.Run("mode "+mode, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			outside := s.lab.Host("outside") // 10.99.0.2
			outside.Serve(80)
			s.create(macvlan("phys", "eth0", mode))
			a, b := s.attach(on("a", "phys")), s.attach(on("b", "phys"))
			b.Serve(80)
			if a.addr(0) != addrOf("10.99.0.128") || a.Gateway() != outside.Addr {
				t.Errorf("%s by %s", a.addr(0), a.Gateway())
			}
			if client, _ := reaches(a.Space, hostport(outside.Addr, 80)); client != a.addr(0).String() {
				t.Errorf("outside sees %q", client)
			}
			if _, ok := reaches(outside, hostport(b.addr(0), 80)); !ok {
				t.Error("a container is not reached from outside")
			}
			if _, ok := reaches(a.Space, hostport(b.addr(0), 80)); ok != neighbours {
				t.Errorf("containers reach each other: %v", ok)
			}
			s.restart()
			if _, ok := reaches(outside, hostport(b.addr(0), 80)); !ok {
				t.Error("a container is not reached after a restart")
			}
			if err := s.m.Disconnect(t.Context(), fullID("b"), "phys"); err != nil {
				t.Fatal(err)
			}
			if links := b.Links(); slices.Contains(links, "eth0") {
				t.Errorf("links after disconnect: %v", links)
			}
			if _, err := s.m.Connect(t.Context(), fullID("b"), EndpointSpec{Network: "phys", MAC: "02:00:00:00:00:77"}); err != nil {
				t.Fatal(err)
			}
			if _, ok := reaches(outside, hostport(addrOf("10.99.0.129"), 80)); !ok {
				t.Error("a container is not reached after it was connected again")
			}
		})
	}
}

func TestMacvlanPassthru(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(macvlan("phys", "eth0", "passthru"))
	if _, err := s.m.Create(t.Context(), Spec{Name: "x", Driver: DriverMacvlan, Options: map[string]string{optParent: "eth0"}}); !fault.Is(err, fault.Forbidden) ||
		!strings.Contains(err.Error(), "in mode passthru") {
		t.Errorf("a second network: %v", err)
	}
	s.attach(on("a", "phys"))
	if _, err := s.m.Attach(t.Context(), on("b", "phys")); err == nil {
		t.Error("a second container")
	}
}

// TestMacvlanOnAVLAN: the VLAN's interface is made, shared by networks, and goes with the last one; its traffic is
// tagged.
func TestMacvlanOnAVLAN(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	vlans := true
	outside.With(func(h *netlink.Handle) error {
		eth0, err := link.Index(h, "eth0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = "eth0.30", eth0
		if err := link.Add(h, &netlink.Vlan{LinkAttrs: attrs, VlanId: 30, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}); err != nil {
			vlans = !fault.Is(err, fault.FailedPrecondition)
			return nil
		}
		index, err := link.Index(h, "eth0.30")
		if err != nil {
			return err
		}
		if err := link.AddAddr(h, index, prefixOf("10.30.0.1/24")); err != nil {
			return err
		}
		return link.Up(h, "eth0.30")
	})
	if !vlans {
		_, err := s.m.Create(t.Context(), macvlan("x", "eth0.30", ""))
		if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "8021q") {
			t.Errorf("the refusal: %v", err)
		}
		t.Skip("this kernel has no VLAN interfaces")
	}
	outside.Serve(80)
	for i, rng := range []string{"10.30.0.64/26", "10.30.0.128/26"} {
		s.create(Spec{Name: fmt.Sprintf("vlan%d", i), Driver: DriverMacvlan, Options: map[string]string{optParent: "eth0.30"},
			IPAM: []cloud.IPAMConfig{{Subnet: prefixOf("10.30.0.0/24"), Range: prefixOf(rng)}}})
	}
	a, b := s.attach(on("a", "vlan0")), s.attach(on("b", "vlan1"))
	b.Serve(80)
	for _, at := range []string{"10.30.0.1:80", hostport(b.addr(0), 80)} {
		if client, _ := reaches(a.Space, at); client != "10.30.0.64" {
			t.Errorf("to %s as %q", at, client)
		}
	}
	s.m.Keep(nil)
	for i, there := range []bool{true, false} {
		if err := s.m.Remove(t.Context(), fmt.Sprintf("vlan%d", i)); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(s.host.Links(), "eth0.30") != there {
			t.Errorf("after network %d went: %v", i, s.host.Links())
		}
	}
}

// TestMacvlanWithoutParent: the network is one of its own, without a way out.
func TestMacvlanWithoutParent(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.create(Spec{Name: "alone", Driver: DriverMacvlan, IPv4: true, IPv6: true,
		IPAM: []cloud.IPAMConfig{{Subnet: prefixOf("10.40.0.0/24"), Gateway: addrOf("10.40.0.1")}, {Subnet: prefixOf("10.41.0.0/24")}, {Subnet: prefixOf("fd40::/64")}}})
	spec := on("b", "alone")
	spec.Endpoints[0].IPv4 = addrOf("10.41.0.9") // of the second subnet
	a, b := s.attach(on("a", "alone")), s.attach(spec)
	c := s.attach(on("c", "alone"))
	if a.Gateway().IsValid() || b.addr(0) != addrOf("10.41.0.9") {
		t.Errorf("%s, %+v", a.Gateway(), b.Endpoints)
	}
	c.Serve(80)
	c.Serve6(80)
	for _, addr := range []netip.Addr{c.addr(0), c.addr6(0)} {
		if _, ok := reaches(a.Space, hostport(addr, 80)); !ok {
			t.Errorf("%s is not reached", addr)
		}
	}
	if addrs := s.names.table.Networks[n.ID].Records["c"]; !slices.Equal(addrs, []netip.Addr{c.addr(0), c.addr6(0)}) {
		t.Errorf("the name c: %v", addrs)
	}
	s.m.Keep(nil)
	if err := s.m.Remove(t.Context(), "alone"); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(s.host.Links(), func(l string) bool { return strings.HasPrefix(l, "dm-") || strings.HasPrefix(l, "dp-") }) {
		t.Errorf("left on the host: %v", s.host.Links())
	}
}

func TestMacvlanWithoutAddresses(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "bare", Driver: DriverMacvlan, NoAddresses: true, IPAM: []cloud.IPAMConfig{{Subnet: prefixOf("10.40.0.0/24")}}})
	if a := s.attach(on("a", "bare")); a.Endpoints[0].IPv4.IsValid() || a.Endpoints[0].IPv6.IsValid() || a.Endpoints[0].MAC == "" {
		t.Errorf("%+v", a.Endpoints)
	}
}

// TestIPvlan: where the kernel has it, containers are on the physical network with their parent's hardware address;
// where it has not, creating a network says so.
func TestIPvlan(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	outside.Serve(80)
	for _, mode := range []string{"l2", "l3"} {
		_, err := s.m.Create(t.Context(), Spec{Name: mode, Driver: DriverIPvlan, Options: map[string]string{optParent: "eth0", optIPvlanMode: mode},
			IPAM: []cloud.IPAMConfig{{Subnet: prefixOf("10.99.0.0/24"), Range: prefixOf("10.99.0.128/26")}}})
		if fault.Is(err, fault.FailedPrecondition) {
			if !strings.Contains(err.Error(), "this kernel has no ipvlan interfaces") || !strings.Contains(err.Error(), "sampan doctor") {
				t.Errorf("the refusal: %v", err)
			}
			if links := s.host.Links(); slices.ContainsFunc(links, func(l string) bool { return strings.HasPrefix(l, "try-") }) {
				t.Errorf("left on the host: %v", links)
			}
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		a := s.attach(on("a", mode))
		if client, _ := reaches(a.Space, hostport(outside.Addr, 80)); client != a.addr(0).String() {
			t.Errorf("mode %s: outside sees %q", mode, client)
		}
		s.m.Keep(nil)
		if err := s.m.Remove(t.Context(), mode); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.m.Create(t.Context(), Spec{Name: "x", Driver: DriverIPvlan, Options: map[string]string{optIPvlanMode: "l4"}}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("mode l4: %v", err)
	}
}

func TestBadParents(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, c := range []struct{ parent, mode, says string }{
		{"lo", "", "loopback interface is not a valid macvlan parent link"},
		{"eth0", "sideways", "requested macvlan mode 'sideways' is not valid"},
		{"nosuch", "", "invalid subinterface vlan name nosuch"},
		{"eth0.5000", "", "vlan id must be between 1-4094"},
		{"eth0.x", "", "unable to parse a valid vlan id"},
		{"nosuch.5", "", "parent interface was not found on the host: nosuch"},
	} {
		spec := macvlan("x", c.parent, c.mode)
		if _, err := s.m.Create(t.Context(), spec); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
