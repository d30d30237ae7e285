package nettest

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// Sysctls writes net.* settings.
func (s *Space) Sysctls(settings map[string]string) {
	s.t.Helper()
	if err := s.Sysctl(settings); err != nil {
		s.t.Fatalf("%s: %v", s.Name, err)
	}
}

// Route sends a prefix through an address.
func (s *Space) Route(dst netip.Prefix, via netip.Addr) {
	s.t.Helper()
	s.with(func(h *netlink.Handle) error { return link.SetRoute(h, link.Route{Dst: dst, Via: via}) })
}

// Forged sends a loopback address out to another host, as an attacker on the same wire would.
func (s *Space) Forged(dst netip.Prefix, via netip.Addr) {
	s.t.Helper()
	s.with(func(h *netlink.Handle) error {
		lo, err := link.Index(h, "lo")
		if err != nil {
			return err
		}
		local := &netlink.Route{LinkIndex: lo, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST}
		for _, p := range []netip.Prefix{dst, netip.MustParsePrefix("127.0.0.0/8")} {
			local.Dst = link.IPNet(p)
			if err := h.RouteDel(local); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		return link.SetRoute(h, link.Route{Dst: dst, Via: via})
	})
}

// AddAddr gives an interface one more address.
func (s *Space) AddAddr(name string, p netip.Prefix) {
	s.t.Helper()
	s.with(func(h *netlink.Handle) error {
		i, err := link.Index(h, name)
		return errors.Join(err, link.AddAddr(h, i, p))
	})
}

// Gateway is where the default route of IPv4 goes; invalid without one.
func (s *Space) Gateway() netip.Addr {
	s.t.Helper()
	var gw netip.Addr
	s.with(func(h *netlink.Handle) error {
		routes, err := h.RouteList(nil, netlink.FAMILY_V4)
		for _, r := range routes {
			if ones, _ := r.Dst.Mask.Size(); ones == 0 {
				gw, _ = netip.AddrFromSlice(r.Gw)
			}
		}
		return err
	})
	return gw.Unmap()
}

// With runs f on the space's links, addresses and routes.
func (s *Space) With(f func(h *netlink.Handle) error) {
	s.t.Helper()
	s.with(f)
}

// MarkIncoming gives all that comes in by an interface a mark, as another program's firewall might.
func (s *Space) MarkIncoming(name string, mark uint32) {
	s.t.Helper()
	err := nft.Open(s.FD()).Do(func(tx *nft.Tx) error {
		tx.Add(nft.Table{Family: nft.IP4, Name: "marks"}, nft.Content{Chains: []nft.Chain{{Name: "prerouting", Type: nft.TypeFilter,
			Hook: nft.Prerouting, Priority: nft.PriorityMangle, Rules: []nft.Rule{nft.Join(nft.Is(nft.IIfName, name), nft.SetMark(0xffffffff, mark))}}}})
		return nil
	})
	if err != nil {
		s.t.Fatalf("%s: %v", s.Name, err)
	}
}
