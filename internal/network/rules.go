package network

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/sampan-cloud/sampan/internal/network/ingress"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

var (
	loopback4  = netip.MustParsePrefix("127.0.0.0/8")
	loopback6  = netip.MustParsePrefix("::1/128")
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
)

// version is one of the two versions of IP, as rules see it.
type version struct {
	suffix   string
	is       nft.Rule
	src, dst nft.Field
	icmp     nft.Proto
	v6       bool
}

var versions = [2]version{
	{suffix: "4", is: nft.IPv4(), src: nft.SrcIP4, dst: nft.DstIP4, icmp: nft.ICMP},
	{suffix: "6", is: nft.IPv6(), src: nft.SrcIP6, dst: nft.DstIP6, icmp: nft.ICMPv6, v6: true},
}

func (s segment) side(v version) side {
	if v.v6 {
		return s.six
	}
	return s.four
}

// linkSet is a set of interface names: those that packets leave by.
func linkSet(name string) *nft.Map { return &nft.Map{Name: name, Key: []nft.Field{nft.OIfName}} }

func put(set *nft.Map, key ...any) { set.Elements = append(set.Elements, nft.Element{Key: key}) }

// content is the whole table.
func (f *firewall) content() nft.Content {
	links, internal := linkSet("links"), linkSet("internal")
	pairs := []nft.Field{nft.IIfName, nft.OIfName}
	same, trusted := &nft.Map{Name: "same", Key: pairs}, &nft.Map{Name: "trusted", Key: pairs}
	// Per version of IP: networks that need no translation, those that let packets in by all ports, and those that do by
	// published ones.
	var routed, unprotected, direct [2]*nft.Map
	for i, v := range versions {
		routed[i], unprotected[i], direct[i] = linkSet("routed"+v.suffix), linkSet("unprotected"+v.suffix), linkSet("direct"+v.suffix)
	}
	var post []nft.Rule
	for _, id := range slices.Sorted(maps.Keys(f.segments)) {
		s := f.segments[id]
		put(links, s.link)
		if s.internal {
			put(internal, s.link)
		}
		if s.icc {
			put(same, s.link, s.link)
		}
		for _, t := range s.trusted {
			put(trusted, t, s.link)
		}
		for i, v := range versions {
			mode := s.side(v).mode
			if mode == modeRouted {
				put(routed[i], s.link)
			}
			if mode == modeUnprotected {
				put(unprotected[i], s.link)
			}
			if mode == modeRouted || f.direct {
				put(direct[i], s.link)
			}
			post = append(post, s.leaving(v)...)
		}
	}
	// The host asks for a published port by 127.0.0.1.
	post = append(post, nft.Join(nft.IPv4(), nft.In(nft.SrcIP4, loopback4), nft.InSet("links", nft.OIfName), nft.Masquerade()))

	tables := map[string]*nft.Map{}
	for _, t := range []nft.Map{mapOne4, mapAll4, mapOne6, mapAll6, setOpen4, setOpen6} {
		tables[t.Name] = &t
	}
	for p, to := range f.mappings {
		t, element := mapping{p, to}.element()
		tables[t.Name].Elements = append(tables[t.Name].Elements, element)
	}
	for o := range f.open {
		t, element := o.element()
		tables[t.Name].Elements = append(tables[t.Name].Elements, element)
	}
	all := []nft.Map{*links, *internal, *same, *trusted}
	for i := range versions {
		all = append(all, *routed[i], *unprotected[i], *direct[i])
	}
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		all = append(all, *tables[name])
	}
	return nft.Content{Maps: all, Chains: f.chains(post)}
}

// leaving are the rules for what leaves a network's containers.
func (s segment) leaving(v version) (out []nft.Rule) {
	side := s.side(v)
	hide := nft.Masquerade()
	if side.source.IsValid() {
		hide = nft.SNAT(side.source, 0)
	}
	for _, p := range side.subnets {
		if s.masquerade && !s.internal && side.mode != modeRouted {
			out = append(out, nft.Join(v.is, nft.In(v.src, p), nft.Not(nft.OIfName, s.link), hide))
		}
		// A container that asks for a published port of its own network: the answer must come back through here, to be
		// translated.
		out = append(out, nft.Join(v.is, nft.In(v.src, p), nft.In(v.dst, p), nft.Is(nft.OIfName, s.link),
			nft.AnyBit(nft.CTStatus, nft.StatusDNAT), nft.Masquerade()))
	}
	return out
}

func (f *firewall) chains(post []nft.Rule) []nft.Chain {
	return []nft.Chain{
		{Name: "translate", Rules: []nft.Rule{
			nft.Join(nft.IPv4(), nft.DNATMap(false, mapOne4.Name, nft.DstIP4, nft.L4Proto, nft.DstPort)),
			nft.Join(nft.IPv6(), nft.DNATMap(true, mapOne6.Name, nft.DstIP6, nft.L4Proto, nft.DstPort)),
			nft.Join(nft.Not(nft.DstType, nft.TypeLocal), nft.Return()),
			nft.Join(nft.IPv4(), nft.DNATMap(false, mapAll4.Name, nft.L4Proto, nft.DstPort)),
			nft.Join(nft.IPv6(), nft.DNATMap(true, mapAll6.Name, nft.L4Proto, nft.DstPort)),
		}},
		{Name: "inward", Rules: f.inward()},
		// With route_localnet on the bridges, which access by 127.0.0.1 needs, the kernel no longer refuses what a
		// container sends to the host's loopback addresses.
		{Name: "raw", Type: nft.TypeFilter, Hook: nft.Prerouting, Priority: nft.PriorityRaw, Rules: []nft.Rule{
			nft.Join(nft.IPv4(), nft.In(nft.DstIP4, loopback4), nft.InSet("links", nft.IIfName), nft.Drop()),
		}},
		{Name: "prerouting", Type: nft.TypeNAT, Hook: nft.Prerouting, Priority: nft.PriorityDNAT, Rules: []nft.Rule{
			// From outside, loopback addresses are nobody's: what is published there is for the host itself.
			nft.Join(nft.IPv4(), nft.In(nft.DstIP4, loopback4), nft.Return()),
			nft.Join(nft.IPv6(), nft.In(nft.DstIP6, loopback6), nft.Return()),
			// A container could not answer a link-local address that is not on its own link: a proxy does.
			nft.Join(nft.IPv6(), nft.In(nft.SrcIP6, linkLocal6), nft.Return()),
			nft.Jump("translate"),
		}},
		{Name: "output", Type: nft.TypeNAT, Hook: nft.Output, Priority: nft.PriorityDNAT, Rules: []nft.Rule{
			// There is no route_localnet in IPv6: [::1] is served by a proxy.
			nft.Join(nft.IPv6(), nft.In(nft.DstIP6, loopback6), nft.Return()),
			nft.Jump("translate"),
		}},
		{Name: "forward", Type: nft.TypeFilter, Hook: nft.Forward, Priority: nft.PriorityFilter, Rules: f.forward()},
		{Name: "postrouting", Type: nft.TypeNAT, Hook: nft.Postrouting, Priority: nft.PrioritySNAT, Rules: post},
	}
}

// inward decides on what goes to a container and belongs to no known connection.
func (f *firewall) inward() []nft.Rule {
	rules := []nft.Rule{
		nft.Join(nft.InSet("same", nft.IIfName, nft.OIfName), nft.Accept()),
		nft.Join(nft.InSet("internal", nft.IIfName), nft.Drop()),
		nft.Join(nft.InSet("internal", nft.OIfName), nft.Drop()),
		nft.Join(nft.AnyBit(nft.CTStatus, nft.StatusDNAT), nft.Accept()), // published
	}
	if f.accept != nil {
		rules = append(rules, nft.Join(nft.Masked(nft.PktMark, f.accept.mask, f.accept.value), nft.Accept()))
	}
	for _, v := range versions {
		open := nft.InSet("open"+v.suffix, v.dst, nft.L4Proto, nft.DstPort)
		rules = append(rules,
			nft.Join(v.is, nft.InSet("unprotected"+v.suffix, nft.OIfName), nft.Accept()),
			nft.Join(v.is, nft.Is(nft.L4Proto, v.icmp), nft.InSet("routed"+v.suffix, nft.OIfName), nft.Accept()),
			nft.Join(v.is, nft.InSet("direct"+v.suffix, nft.OIfName), open, nft.Accept()),
			nft.Join(v.is, nft.InSet("trusted", nft.IIfName, nft.OIfName), open, nft.Accept()))
	}
	return append(rules, nft.Drop())
}

// forward decides on packets that pass through the host.
func (f *firewall) forward() []nft.Rule {
	rules := []nft.Rule{
		nft.Join(nft.AnyBit(nft.CTState, nft.StateEstablished|nft.StateRelated), nft.Accept()),
		nft.Join(nft.InSet("links", nft.OIfName), nft.Goto("inward")),
		nft.Join(nft.InSet("internal", nft.IIfName), nft.Drop()),
	}
	for _, v := range versions {
		if !f.router.only(v.v6) {
			continue
		}
		rules = append(rules,
			nft.Join(v.is, nft.InSet("links", nft.IIfName), nft.Accept()),
			// What is allowed there is the ingress table's to say.
			nft.Join(v.is, nft.Is(nft.IIfName, ingress.LegName), nft.Accept()),
			nft.Join(v.is, nft.Is(nft.OIfName, ingress.LegName), nft.Accept()),
			nft.Join(v.is, nft.Drop()))
	}
	return rules
}
