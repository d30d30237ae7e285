package ingress

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

const (
	tableBase     = 20000 // routing tables: this and the number of the ingress node
	tableFallback = 20000 // for a sandbox without a default route
	ruleMarked    = 5000  // preference: after local, before everything else
	ruleFallback  = 40000 // after everything else
)

// SandboxConfig is what the side of a member should be.
type SandboxConfig struct {
	Interface string       // the sandbox's, on the ingress network
	Addr      netip.Prefix // its address
	Addr6     netip.Prefix // its IPv6 address; invalid: it has none
	// Legs are the addresses on the ingress network of all nodes, of both versions of IP, with their marks.
	Legs map[netip.Addr]uint32
	// Afresh: the sandbox has other networks than before, so its default route may be another.
	Afresh bool
}

func (c SandboxConfig) addrs() [2]netip.Prefix { return [2]netip.Prefix{c.Addr, c.Addr6} }

// Sandbox is the side of one member. It is safe for concurrent use.
type Sandbox struct {
	path string

	mu    sync.Mutex
	known *state
}

// state is what is in the sandbox.
type state struct {
	iface   string
	addrs   [2]netip.Prefix // of IPv4 and IPv6
	sources [2]netip.Addr   // where programs answer datagrams from; invalid: from addrs
	legs    map[netip.Addr]uint32
}

// OpenSandbox returns the side of the namespace pinned at path. It touches nothing.
func OpenSandbox(path string) *Sandbox { return &Sandbox{path: path} }

var legs = nft.Map{Name: "legs", Key: []nft.Field{{Type: nftables.TypeEtherAddr}}, Value: []nft.Field{nft.CTMark}}

// markByLeg sets the connection's mark by the hardware address that the packet came from; a packet from elsewhere ends
// the rule. The map's values have no other bits than those of cloud.IngressMarkMask, and the namespace is the sandbox's
// own, so no other program's bits are there to be kept.
func markByLeg() nft.Rule {
	return nft.Rule{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: legs.Name, IsDestRegSet: true, DestRegister: unix.NFT_REG_1},
		&expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1},
	}
}

func rules(s *state) []nft.Chain {
	in := nft.Is(nft.IIfName, s.iface)
	fresh := nft.AnyBit(nft.CTState, nft.StateNew)
	marked := nft.AnyBit(nft.CTMark, cloud.IngressMarkMask)
	chains := []nft.Chain{
		{Name: "mark", Type: nft.TypeFilter, Hook: nft.Prerouting, Priority: nft.PriorityMangle, Rules: []nft.Rule{
			nft.Join(in, fresh, markByLeg()),
			// The packet too, for the answers that the kernel routes by it: of TCP sockets, and its own.
			nft.Join(in, marked, nft.RestoreMark(cloud.IngressMarkMask)),
		}},
		{Name: "route", Type: nft.TypeRoute, Hook: nft.Output, Priority: nft.PriorityMangle, Rules: []nft.Rule{
			nft.Join(marked, nft.RestoreMark(cloud.IngressMarkMask)),
		}},
	}
	// A program with an unbound UDP socket answers from the address that the route to the client has, before any mark
	// is looked at. So it gets its datagrams at that address, and connection tracking puts the other one back.
	source := nft.Chain{Name: "source", Type: nft.TypeNAT, Hook: nft.Prerouting, Priority: nft.PriorityDNAT}
	for i, v := range versions {
		addr, dst := s.addrs[i], []nft.Field{nft.DstIP4, nft.DstIP6}[i]
		if addr.IsValid() && s.sources[i].IsValid() && s.sources[i] != addr.Addr() {
			source.Rules = append(source.Rules, nft.Join(in, v.is, nft.Is(nft.L4Proto, nft.UDP), nft.Is(dst, addr.Addr()),
				nft.NotIn(v.src, addr.Masked()), nft.DNAT(s.sources[i], 0)))
		}
	}
	return append(chains, source)
}

// Set makes the sandbox's side as cfg says. It is called after the sandbox has all its networks.
func (s *Sandbox) Set(cfg SandboxConfig) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.known; !cfg.Afresh && k != nil && k.iface == cfg.Interface && k.addrs == cfg.addrs() && maps.Equal(k.legs, cfg.Legs) {
		return nil
	}
	ns, err := netns.Open(s.path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := s.set(ns, h, cfg); err != nil {
		s.known = nil
		return fmt.Errorf("published ports in %s: %w", s.path, err)
	}
	return nil
}

func (s *Sandbox) set(ns *netns.NS, h *netlink.Handle, cfg SandboxConfig) error {
	dev, err := link.Index(h, cfg.Interface)
	if err != nil {
		return err
	}
	next := &state{iface: cfg.Interface, addrs: cfg.addrs(), legs: maps.Clone(cfg.Legs)}
	for i, v := range versions {
		if !next.addrs[i].IsValid() {
			continue
		}
		if next.sources[i], err = defaultSource(h, v.family()); err != nil {
			return err
		}
	}
	if s.known == nil {
		if err := prepare(ns, cfg.Interface, cfg.Addr6.IsValid()); err != nil {
			return err
		}
	}
	was := map[netip.Addr]uint32{}
	if s.known != nil {
		was = s.known.legs
	}
	// Routes before marks: a marked packet must have its way.
	for i, v := range versions {
		if err := route(h, dev, next, i, v.family()); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("network/ingress.sandbox.routes"); err != nil {
		return err
	}
	conn := nft.Open(ns.FD())
	tables, err := conn.Tables(table.Family)
	if err != nil {
		return err
	}
	err = conn.Do(func(tx *nft.Tx) error {
		if !slices.Contains(tables, table.Name) {
			// Adding is done at once, where replacing waits until no packet can be looking at what is taken away.
			m := legs
			m.Elements = macs(next.legs)
			tx.Add(table, nft.Content{Maps: []nft.Map{m}, Chains: rules(next)})
			return nil
		}
		if s.known == nil || s.known.iface != next.iface || s.known.addrs != next.addrs || s.known.sources != next.sources {
			// The whole, in one transaction: connections keep their marks, which are not in the table.
			m := legs
			m.Elements = macs(next.legs)
			tx.Replace(table, nft.Content{Maps: []nft.Map{m}, Chains: rules(next)})
			return nil
		}
		tx.Take(table, legs, macs(minus(was, next.legs)))
		tx.Put(table, legs, macs(minus(next.legs, was)))
		return nil
	})
	if err != nil {
		return err
	}
	s.known = next
	return nil
}

// minus is what is in a and not, or otherwise, in b.
func minus(a, b map[netip.Addr]uint32) map[netip.Addr]uint32 {
	out := map[netip.Addr]uint32{}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			out[k] = v
		}
	}
	return out
}

func macs(legs map[netip.Addr]uint32) []nft.Element {
	var out []nft.Element
	for _, addr := range slices.SortedFunc(maps.Keys(legs), netip.Addr.Compare) {
		if !addr.Is4() {
			continue // the interface's hardware address is made from its IPv4 address
		}
		if mac, err := net.ParseMAC(cloud.MAC(addr)); err == nil {
			out = append(out, nft.Element{Key: []any{[]byte(mac)}, Value: []any{nft.Mark(legs[addr])}})
		}
	}
	return out
}

// prepare lets packets from anywhere in by the ingress network, and TCP sockets take over their client's mark.
func prepare(ns *netns.NS, iface string, v6 bool) error {
	settings := map[string]string{
		"net.ipv4.conf.all.rp_filter":           "0",
		"net.ipv4.conf." + iface + ".rp_filter": "0",
		"net.ipv4.tcp_fwmark_accept":            "1", // of both versions of IP
		"net.ipv4.fwmark_reflect":               "1",
	}
	if v6 {
		settings["net.ipv6.fwmark_reflect"] = "1"
	}
	return ns.Sysctl(settings)
}

func (v version) family() int {
	if v.v6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// defaultSource is the address that a packet to outside is sent from, the zero Addr without a default route.
func defaultSource(h *netlink.Handle, family int) (netip.Addr, error) {
	routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if src, ok := netip.AddrFromSlice(r.Src); ok && len(r.Src) > 0 {
			return src.Unmap(), nil
		}
		l, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("interface of the default route: %w", err)
		}
		addrs, err := h.AddrList(l, family)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("addresses of the default route's interface: %w", err)
		}
		for _, a := range addrs {
			if src, ok := netip.AddrFromSlice(a.IP); ok && !src.IsLinkLocalUnicast() {
				return src.Unmap(), nil
			}
		}
	}
	return netip.Addr{}, nil
}

// route makes for each leg of one version of IP a routing table with it as the way out, and a rule that sends its mark
// there.
func route(h *netlink.Handle, dev int, next *state, version, family int) error {
	have, err := marks(h, family)
	if err != nil {
		return err
	}
	want := map[uint32]netip.Addr{}
	for addr, mark := range next.legs {
		if addr.Is6() == versions[version].v6 && next.addrs[version].IsValid() {
			want[mark&cloud.IngressMarkMask] = addr
		}
	}
	delete(want, 0)
	for mark := range have {
		if _, ok := want[mark]; !ok {
			if err := errors.Join(ignore(h.RuleDel(ruleOf(mark, family)), unix.ENOENT), flush(h, tableOf(mark), family)); err != nil {
				return fmt.Errorf("routing rule of mark %#x: %w", mark, err)
			}
		}
	}
	for mark, leg := range want {
		if err := link.SetRoute(h, link.Route{Via: leg, Index: dev, Table: tableOf(mark)}); err != nil {
			return err
		}
		if have[mark] {
			continue
		}
		if err := ignore(h.RuleAdd(ruleOf(mark, family)), unix.EEXIST); err != nil {
			return fmt.Errorf("routing rule of mark %#x: %w", mark, err)
		}
	}
	return fallback(h, dev, next, slices.Collect(maps.Values(want)), version, family)
}

// fallback gives a sandbox without a default route one by the ingress network, so that an answer is routed at all before
// its mark is looked at. What is not an answer gets no further than the leg.
func fallback(h *netlink.Handle, dev int, next *state, legs []netip.Addr, version, family int) error {
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table = family, ruleFallback, tableFallback
	if next.sources[version].IsValid() || len(legs) == 0 {
		return ignore(ignore(h.RuleDel(rule), unix.ENOENT), unix.EAFNOSUPPORT)
	}
	leg := slices.MinFunc(legs, netip.Addr.Compare)
	if err := link.SetRoute(h, link.Route{Via: leg, Index: dev, Table: tableFallback}); err != nil {
		return err
	}
	return ignore(h.RuleAdd(rule), unix.EEXIST)
}

func tableOf(mark uint32) int { return tableBase + int(mark>>cloud.IngressMarkShift) }

func ruleOf(mark uint32, family int) *netlink.Rule {
	r := netlink.NewRule()
	mask := cloud.IngressMarkMask
	r.Family, r.Priority, r.Table, r.Mark, r.Mask = family, ruleMarked, tableOf(mark), mark, &mask
	return r
}

// marks are those that have a rule.
func marks(h *netlink.Handle, family int) (map[uint32]bool, error) {
	all, err := h.RuleList(family)
	if err != nil {
		return nil, fmt.Errorf("list routing rules: %w", err)
	}
	have := map[uint32]bool{}
	for _, r := range all {
		if r.Priority == ruleMarked && r.Mask != nil && *r.Mask == cloud.IngressMarkMask {
			have[r.Mark] = true
		}
	}
	return have, nil
}

func flush(h *netlink.Handle, table, family int) error {
	routes, err := h.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	var errs []error
	for i := range routes {
		errs = append(errs, ignore(h.RouteDel(&routes[i]), unix.ESRCH))
	}
	return errors.Join(errs...)
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}
