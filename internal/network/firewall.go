package network

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// hostTable is the one table that this package has in the host's namespace. Everything that decides about packets of
// bridge networks is in it; what other programs have is not looked at.
var hostTable = nft.Table{Family: nft.INet, Name: "sampan"}

// The maps of published ports: those bound to one host address, and those bound to all.
var (
	mapOne4 = nft.Map{Name: "one4", Key: []nft.Field{nft.DstIP4, nft.L4Proto, nft.DstPort}, Value: []nft.Field{nft.DstIP4, nft.DstPort}}
	mapAll4 = nft.Map{Name: "all4", Key: []nft.Field{nft.L4Proto, nft.DstPort}, Value: []nft.Field{nft.DstIP4, nft.DstPort}}
	mapOne6 = nft.Map{Name: "one6", Key: []nft.Field{nft.DstIP6, nft.L4Proto, nft.DstPort}, Value: []nft.Field{nft.DstIP6, nft.DstPort}}
	mapAll6 = nft.Map{Name: "all6", Key: []nft.Field{nft.L4Proto, nft.DstPort}, Value: []nft.Field{nft.DstIP6, nft.DstPort}}
)

var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	loopback6 = netip.MustParsePrefix("::1/128")
)

// mapping is a published port as the kernel translates it.
type mapping struct {
	front
	to netip.AddrPort
}

// front is a port of the host.
type front struct {
	proto nft.Proto
	host  netip.AddrPort // unspecified address: all of its family
}

// segment is a bridge network as the firewall sees it.
type segment struct {
	link       string
	subnets    []netip.Prefix
	internal   bool
	icc        bool
	masquerade bool
}

// firewall programs hostTable. It is safe for concurrent use.
type firewall struct {
	conn     *nft.Conn
	mu       sync.Mutex
	segments map[string]segment // by network ID
	mappings map[front]netip.AddrPort
}

func newFirewall(conn *nft.Conn) *firewall {
	return &firewall{conn: conn, segments: map[string]segment{}, mappings: map[front]netip.AddrPort{}}
}

// set adds or changes a network's rules.
func (f *firewall) set(id string, s segment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, had := f.segments[id]
	f.segments[id] = s
	if err := f.replace(); err != nil {
		delete(f.segments, id)
		if had {
			f.segments[id] = old
		}
		return err
	}
	return nil
}

// unset removes a network's rules.
func (f *firewall) unset(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.segments[id]; !ok {
		return nil
	}
	delete(f.segments, id)
	return f.replace()
}

// load sets everything at once, in one transaction.
func (f *firewall) load(segments map[string]segment, mappings []mapping) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.segments, f.mappings = segments, map[front]netip.AddrPort{}
	for _, m := range mappings {
		f.mappings[m.front] = m.to
	}
	return f.replace()
}

// publish makes the mappings what the kernel translates by, whatever it translated those ports to before.
func (f *firewall) publish(ms []mapping) error { return f.change(ms, true) }

// unpublish removes mappings.
func (f *firewall) unpublish(ms []mapping) error { return f.change(ms, false) }

func (f *firewall) change(ms []mapping, add bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := maps.Clone(f.mappings)
	err := f.conn.Do(func(tx *nft.Tx) error {
		for _, m := range ms {
			to, there := f.mappings[m.front]
			if there && (!add || to != m.to) {
				table, element := mapping{m.front, to}.element()
				tx.Take(hostTable, table, []nft.Element{element})
				delete(f.mappings, m.front)
			}
			if add && to != m.to {
				table, element := m.element()
				tx.Put(hostTable, table, []nft.Element{element})
				f.mappings[m.front] = m.to
			}
		}
		return nil
	})
	if err != nil {
		if f.replace() == nil {
			return nil // somebody else had been at our table: it is right now, as a whole
		}
		f.mappings = old
		if !add {
			for _, m := range ms {
				delete(f.mappings, m.front)
			}
		}
	}
	return err
}

func (m mapping) element() (nft.Map, nft.Element) {
	value := []any{m.to.Addr(), nft.Port(m.to.Port())}
	switch all := m.host.Addr().IsUnspecified(); {
	case m.host.Addr().Is4() && all:
		return mapAll4, nft.Element{Key: []any{m.proto, nft.Port(m.host.Port())}, Value: value}
	case m.host.Addr().Is4():
		return mapOne4, nft.Element{Key: []any{m.host.Addr(), m.proto, nft.Port(m.host.Port())}, Value: value}
	case all:
		return mapAll6, nft.Element{Key: []any{m.proto, nft.Port(m.host.Port())}, Value: value}
	}
	return mapOne6, nft.Element{Key: []any{m.host.Addr(), m.proto, nft.Port(m.host.Port())}, Value: value}
}

// replace makes the table what the books say.
func (f *firewall) replace() error {
	return f.conn.Do(func(tx *nft.Tx) error {
		if len(f.segments) == 0 && len(f.mappings) == 0 {
			tx.Delete(hostTable)
			return nil
		}
		tx.Replace(hostTable, f.content())
		return nil
	})
}

func (f *firewall) content() nft.Content {
	links := nft.Map{Name: "links", Key: []nft.Field{nft.OIfName}}
	internal := nft.Map{Name: "internal", Key: []nft.Field{nft.OIfName}}
	same := nft.Map{Name: "same", Key: []nft.Field{nft.IIfName, nft.OIfName}}
	var post []nft.Rule
	for _, id := range slices.Sorted(maps.Keys(f.segments)) {
		s := f.segments[id]
		links.Elements = append(links.Elements, nft.Element{Key: []any{s.link}})
		if s.internal {
			internal.Elements = append(internal.Elements, nft.Element{Key: []any{s.link}})
		}
		if s.icc {
			same.Elements = append(same.Elements, nft.Element{Key: []any{s.link, s.link}})
		}
		for _, p := range s.subnets {
			is, src, dst := nft.IPv4(), nft.SrcIP4, nft.DstIP4
			if p.Addr().Is6() {
				is, src, dst = nft.IPv6(), nft.SrcIP6, nft.DstIP6
			}
			if s.masquerade && !s.internal {
				post = append(post, nft.Join(is, nft.In(src, p), nft.Not(nft.OIfName, s.link), nft.Masquerade()))
			}
			// A container that asks for a published port of its own network: the answer must come back through here, to
			// be translated.
			post = append(post, nft.Join(is, nft.In(src, p), nft.In(dst, p), nft.Is(nft.OIfName, s.link),
				nft.AnyBit(nft.CTStatus, nft.StatusDNAT), nft.Masquerade()))
		}
	}
	// The host asks for a published port by 127.0.0.1.
	post = append(post, nft.Join(nft.IPv4(), nft.In(nft.SrcIP4, loopback4), nft.InSet("links", nft.OIfName), nft.Masquerade()))

	one4, all4, one6, all6 := mapOne4, mapAll4, mapOne6, mapAll6
	for p, to := range f.mappings {
		table, element := mapping{p, to}.element()
		for _, t := range []*nft.Map{&one4, &all4, &one6, &all6} {
			if t.Name == table.Name {
				t.Elements = append(t.Elements, element)
			}
		}
	}
	translate := []nft.Rule{
		nft.Join(nft.IPv4(), nft.DNATMap(false, one4.Name, nft.DstIP4, nft.L4Proto, nft.DstPort)),
		nft.Join(nft.IPv6(), nft.DNATMap(true, one6.Name, nft.DstIP6, nft.L4Proto, nft.DstPort)),
		nft.Join(nft.Not(nft.DstType, nft.TypeLocal), nft.Return()),
		nft.Join(nft.IPv4(), nft.DNATMap(false, all4.Name, nft.L4Proto, nft.DstPort)),
		nft.Join(nft.IPv6(), nft.DNATMap(true, all6.Name, nft.L4Proto, nft.DstPort)),
	}
	return nft.Content{
		Maps: []nft.Map{links, internal, same, one4, all4, one6, all6},
		Chains: []nft.Chain{
			{Name: "translate", Rules: translate},
			{Name: "inward", Rules: []nft.Rule{
				nft.Join(nft.InSet("same", nft.IIfName, nft.OIfName), nft.Accept()),
				nft.Join(nft.InSet("internal", nft.IIfName), nft.Drop()),
				nft.Join(nft.InSet("internal", nft.OIfName), nft.Drop()),
				nft.Join(nft.AnyBit(nft.CTStatus, nft.StatusDNAT), nft.Accept()), // published
				nft.Drop(),
			}},
			// With route_localnet on the bridges, which access by 127.0.0.1 needs, the kernel no longer refuses what a
			// container sends to the host's loopback addresses.
			{Name: "raw", Type: nft.TypeFilter, Hook: nft.Prerouting, Priority: nft.PriorityRaw, Rules: []nft.Rule{
				nft.Join(nft.IPv4(), nft.In(nft.DstIP4, loopback4), nft.InSet("links", nft.IIfName), nft.Drop()),
			}},
			{Name: "prerouting", Type: nft.TypeNAT, Hook: nft.Prerouting, Priority: nft.PriorityDNAT, Rules: []nft.Rule{
				// From outside, loopback addresses are nobody's: what is published there is for the host itself.
				nft.Join(nft.IPv4(), nft.In(nft.DstIP4, loopback4), nft.Return()),
				nft.Join(nft.IPv6(), nft.In(nft.DstIP6, loopback6), nft.Return()),
				nft.Jump("translate"),
			}},
			{Name: "output", Type: nft.TypeNAT, Hook: nft.Output, Priority: nft.PriorityDNAT, Rules: []nft.Rule{
				// There is no route_localnet in IPv6: [::1] is served by a proxy.
				nft.Join(nft.IPv6(), nft.In(nft.DstIP6, loopback6), nft.Return()),
				nft.Jump("translate"),
			}},
			{Name: "forward", Type: nft.TypeFilter, Hook: nft.Forward, Priority: nft.PriorityFilter, Rules: []nft.Rule{
				nft.Join(nft.AnyBit(nft.CTState, nft.StateEstablished|nft.StateRelated), nft.Accept()),
				nft.Join(nft.InSet("links", nft.OIfName), nft.Goto("inward")),
				nft.Join(nft.InSet("internal", nft.IIfName), nft.Drop()),
			}},
			{Name: "postrouting", Type: nft.TypeNAT, Hook: nft.Postrouting, Priority: nft.PrioritySNAT, Rules: post},
		},
	}
}
