// Package ingress makes published ports answer on every node, and lets them see their clients' addresses.
//
// On the host (Host) a published port is translated to the address that a ready member, here or on another host, has on
// the ingress network, which the host's namespace is joined to by a leg of its own. The source stays as it is. In the
// member's sandbox (Sandbox) a connection that comes in by the ingress network is marked with the number of the node
// whose leg it came from, known by the hardware address, and what belongs to a marked connection is routed back through
// that leg, where the translation is taken back. Only what a member could not answer (from the host itself, or from
// addresses that exist on each host alike) gets the leg's address as its source.
//
// All of it is nftables in tables of the package's own, and policy routing; it outlives the process and is found again.
package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/network/lb"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// TableName is the table's name, on the host and in sandboxes.
const TableName = "sampan_ingress"

// LegName is the interface that joins the host's namespace to the ingress network.
const LegName = "sampan_ingress"

// Endpoint is a published port: what a client connects to, on whichever node.
type Endpoint struct {
	Protocol cloud.Protocol
	Port     uint16
}

// String is the endpoint as Docker writes it: 80/tcp.
func (e Endpoint) String() string { return strconv.Itoa(int(e.Port)) + "/" + string(e.Protocol) }

// Port is a published port as it should be. Ports are never changed: one that is different is another one.
type Port struct {
	Endpoint
	Target   uint16       // of the members
	Members  []netip.Addr // on the ingress network, of both versions of IP: who gets new connections; without any they are refused
	Draining []netip.Addr // who keeps the connections he has
}

// HostConfig is what the host's side should be.
type HostConfig struct {
	Leg     netip.Prefix   // the leg's address on the ingress network, and its subnet
	Leg6    netip.Prefix   // its IPv6 address; invalid: nothing is published to IPv6
	Private []netip.Prefix // subnets that other hosts may have too: clients from there appear as the leg
	Ports   []*Port        // one of each Endpoint
}

// Host is the host's side. It is safe for concurrent use.
type Host struct {
	ns      *netns.NS
	log     *slog.Logger
	forward func(v6 bool) error

	mu      sync.Mutex
	known   map[Endpoint]*frontend // nil: to be read
	private []netip.Prefix
	leg     netip.Prefix
	leg6    netip.Prefix
	claims  map[Endpoint]io.Closer
	refused map[Endpoint]error // ports that another program has
}

// frontend is a port as it is in the kernel.
type frontend struct {
	port  *Port               // nil after a restart
	slots [2][]netip.AddrPort // of IPv4 and IPv6
}

// NewHost returns the side of the namespace ns, which must stay open. It touches nothing. forward makes the namespace
// pass packets of a version of IP on.
func NewHost(ns *netns.NS, log *slog.Logger, forward func(v6 bool) error) *Host {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Host{ns: ns, log: log, forward: forward, claims: map[Endpoint]io.Closer{}, refused: map[Endpoint]error{}}
}

var (
	table    = nft.Table{Family: nft.INet, Name: TableName}
	key      = []nft.Field{nft.L4Proto, nft.DstPort}
	ports    = nft.Map{Name: "ports", Key: key}
	services = nft.Map{Name: "services", Key: key, Verdicts: true}
	// The number is declared as a mark for the sake of those who list it; see package lb.
	backends = nft.Map{Name: "backends", Key: append(slices.Clone(key), nft.CTMark), Value: []nft.Field{nft.DstIP4, nft.DstPort}}
)

// version is one of the two versions of IP, with the names of what holds it.
type version struct {
	v6                 bool
	is                 nft.Rule
	src                nft.Field
	icmp               nft.Proto
	services, backends nft.Map
	chain              string // the beginning of ports' chains
}

var versions = [2]version{
	{is: nft.IPv4(), src: nft.SrcIP4, icmp: nft.ICMP, services: services, backends: backends, chain: "port_"},
	{v6: true, is: nft.IPv6(), src: nft.SrcIP6, icmp: nft.ICMPv6, chain: "port6_",
		services: nft.Map{Name: "services6", Key: key, Verdicts: true},
		backends: nft.Map{Name: "backends6", Key: append(slices.Clone(key), nft.CTMark), Value: []nft.Field{nft.DstIP6, nft.DstPort}}},
}

// of are those of the addresses that are of the version.
func (v version) of(addrs []netip.Addr) (out []netip.Addr) {
	for _, a := range addrs {
		if a.Is6() == v.v6 {
			out = append(out, a)
		}
	}
	return out
}

func (v version) chainOf(e Endpoint) string {
	return fmt.Sprintf("%s%s_%d", v.chain, e.Protocol, e.Port)
}

func proto(p cloud.Protocol) nft.Proto {
	switch p {
	case cloud.UDP:
		return nft.UDP
	case cloud.SCTP:
		return nft.SCTP
	}
	return nft.TCP
}

func (e Endpoint) key() []any { return []any{proto(e.Protocol), nft.Port(e.Port)} }

func (e Endpoint) elements(slots []netip.AddrPort, first int, values bool) []nft.Element {
	out := make([]nft.Element, len(slots))
	for i, s := range slots {
		out[i].Key = append(e.key(), nft.Index(uint32(first+i)))
		if values {
			out[i].Value = []any{s.Addr(), nft.Port(s.Port())}
		}
	}
	return out
}

// pick is the chain of a port with n members. Why the rule is there twice is said in package lb.
func (v version) pick(e Endpoint, n int) nft.Chain {
	draw := nft.DNATMap(v.v6, v.backends.Name, append(slices.Clone(key), nft.RoundRobin(uint32(n)))...)
	return nft.Chain{Name: v.chainOf(e), Rules: []nft.Rule{draw, draw}}
}

// srcLocal matches packets that the host itself sends.
func srcLocal() nft.Rule {
	return nft.Rule{
		&expr.Fib{Register: unix.NFT_REG_1, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: nativeBytes(nft.TypeLocal)}}
}

// base is the table without ports.
func base(cfg HostConfig) nft.Content {
	in, out := nft.Is(nft.IIfName, LegName), nft.Is(nft.OIfName, LegName)
	fresh, running := nft.AnyBit(nft.CTState, nft.StateNew), nft.AnyBit(nft.CTState, nft.StateEstablished|nft.StateRelated)
	local := nft.Is(nft.DstType, nft.TypeLocal)
	dispatch := []nft.Rule{
		// There is no route_localnet in IPv6: what is sent to [::1] is refused, and clients go on to 127.0.0.1.
		nft.Join(nft.IPv6(), nft.In(nft.DstIP6, loopback6), nft.Return()),
		// A member could not answer an address that is not on its own link.
		nft.Join(nft.IPv6(), nft.In(nft.SrcIP6, linkLocal6), nft.Return())}
	var refuse []nft.Rule
	for _, v := range versions {
		dispatch = append(dispatch, nft.Join(v.is, local, nft.VerdictMap(v.services.Name, key...)))
		// A published port that was not translated has no ready member.
		refuse = append(refuse,
			nft.Join(v.is, fresh, nft.Is(nft.L4Proto, nft.TCP), nft.InSet(ports.Name, key...), nft.Rule{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
			nft.Join(v.is, fresh, nft.InSet(ports.Name, key...), nft.Reject()),
			nft.Join(v.is, in, nft.Is(nft.L4Proto, v.icmp), nft.Return()))
	}
	return nft.Content{Maps: []nft.Map{ports, services, backends, versions[1].services, versions[1].backends}, Chains: []nft.Chain{
		{Name: "prerouting", Type: nft.TypeNAT, Hook: nft.Prerouting, Priority: nft.PriorityDNAT, Rules: dispatch},
		{Name: "output", Type: nft.TypeNAT, Hook: nft.Output, Priority: nft.PriorityDNAT, Rules: dispatch},
		postrouting(cfg),
		// The leg may carry 127.0.0.1 (for the host's own clients), so nobody on the network may pretend to.
		{Name: "martian", Type: nft.TypeFilter, Hook: nft.Prerouting, Priority: nft.PriorityRaw, Rules: []nft.Rule{
			nft.Join(in, nft.IPv4(), nft.In(nft.DstIP4, loopback), nft.Drop()),
			nft.Join(in, nft.IPv4(), nft.In(nft.SrcIP4, loopback), nft.Drop()),
		}},
		// Through the leg goes what was published and its answers, nothing else: neither from outside to members'
		// other ports, nor from members to the host's networks.
		{Name: "forward", Type: nft.TypeFilter, Hook: nft.Forward, Priority: nft.PriorityFilter, Rules: []nft.Rule{
			nft.Join(out, nft.AnyBit(nft.CTStatus, nft.StatusDNAT), nft.Return()),
			nft.Join(out, running, nft.Return()),
			nft.Join(out, nft.Drop()),
			nft.Join(in, running, nft.Return()),
			nft.Join(in, nft.Drop()),
		}},
		{Name: "input", Type: nft.TypeFilter, Hook: nft.Input, Priority: nft.PriorityFilter, Rules: append(refuse, nft.Join(in, fresh, nft.Drop()))},
	}}
}

var (
	loopback   = netip.MustParsePrefix("127.0.0.0/8")
	loopback6  = netip.MustParsePrefix("::1/128")
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
)

// postrouting gives the leg's address to clients that a member could not answer: the host itself, members, and those
// whose addresses other hosts have too.
func postrouting(cfg HostConfig) nft.Chain {
	var rules []nft.Rule
	for i, v := range versions {
		out := nft.Join(v.is, nft.Is(nft.OIfName, LegName))
		rules = append(rules, nft.Join(out, srcLocal(), nft.Masquerade()))
		for _, p := range append([]netip.Prefix{[]netip.Prefix{cfg.Leg, cfg.Leg6}[i]}, cfg.Private...) {
			if p.IsValid() && p.Addr().Is6() == v.v6 {
				rules = append(rules, nft.Join(out, nft.In(v.src, p.Masked()), nft.Masquerade()))
			}
		}
	}
	return nft.Chain{Name: "postrouting", Type: nft.TypeNAT, Hook: nft.Postrouting, Priority: nft.PrioritySNAT, Rules: rules}
}

// Set makes the host's side as cfg says. The leg's interface must be there. Ports that another program of the host
// listens on are left to it, logged, and listed by Conflicts.
func (h *Host) Set(_ context.Context, cfg HostConfig) error {
	if !cfg.Leg.IsValid() || !cfg.Leg.Addr().Is4() {
		return fault.New(fault.InvalidArgument, "published ports: the host has no IPv4 address on the ingress network")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	conn := nft.Open(h.ns.FD())
	restarted := h.known == nil
	if restarted {
		known, err := read(conn)
		if err != nil {
			return fmt.Errorf("published ports: %w", err)
		}
		h.known = known
	}
	if h.leg != cfg.Leg || h.leg6 != cfg.Leg6 {
		if err := h.prepare(cfg.Leg6.IsValid()); err != nil {
			return fmt.Errorf("published ports: %w", err)
		}
	}
	want := map[Endpoint]*Port{}
	for _, p := range cfg.Ports {
		want[p.Endpoint] = p
	}
	h.claim(want)
	lost, gone, err := h.change(conn, cfg, want, restarted)
	if err != nil {
		h.known = nil
		return fmt.Errorf("published ports: %w", err)
	}
	if restarted {
		lost, gone = want, nil // who went while nobody looked cannot be told
	}
	if err := sweep(h.ns, []netip.Prefix{cfg.Leg, cfg.Leg6}, lost, gone); err != nil {
		h.known = nil
		return fmt.Errorf("published ports: %w", err)
	}
	return nil
}

// prepare sets what the leg needs: forwarding, and answers to 127.0.0.1.
func (h *Host) prepare(v6 bool) error {
	if err := h.forward(false); err != nil {
		return err
	}
	if v6 {
		if err := h.forward(true); err != nil {
			return err
		}
	}
	return h.ns.Do(func() error {
		for _, s := range [][2]string{
			{"net.ipv4.conf." + LegName + ".route_localnet", "1"},
			{"net.ipv4.conf." + LegName + ".arp_ignore", "1"},
			{"net.ipv4.conf." + LegName + ".arp_announce", "2"},
		} {
			if got, err := netns.ReadSysctl(s[0]); err == nil && got == s[1] {
				continue
			}
			if err := netns.WriteSysctl(s[0], s[1]); err != nil {
				return err
			}
		}
		return nil
	})
}

// claim takes the ports from other programs, and takes out of want what they have.
func (h *Host) claim(want map[Endpoint]*Port) {
	for e, c := range h.claims {
		if want[e] == nil {
			_ = c.Close()
			delete(h.claims, e)
		}
	}
	for e := range h.refused {
		if want[e] == nil {
			delete(h.refused, e)
		}
	}
	for e := range want {
		if h.claims[e] != nil {
			continue
		}
		var c io.Closer
		err := h.ns.Do(func() (err error) { c, err = listenAll(e); return err })
		if err == nil {
			h.claims[e] = c
			delete(h.refused, e)
			continue
		}
		if h.known[e] != nil {
			// It was ours while no daemon held it: whoever listens now has never had a packet from outside.
			h.log.Warn("another program listens on a published port; the port stays the service's", "port", e, "error", err)
			continue
		}
		if h.refused[e] == nil {
			h.log.Error("port cannot be published on this host: another program listens on it", "port", e, "error", err)
		}
		h.refused[e] = fault.New(fault.AlreadyExists, "port %s is in use by another program of this host: %w", e, err)
		delete(want, e)
	}
}

// Conflicts are the published ports that this host does not serve, with the reasons.
func (h *Host) Conflicts() map[Endpoint]error {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[Endpoint]error, len(h.refused))
	for e, err := range h.refused {
		out[e] = err
	}
	return out
}

func (h *Host) change(conn *nft.Conn, cfg HostConfig, want map[Endpoint]*Port, restarted bool) (lost map[Endpoint]*Port, gone []netip.Addr, err error) {
	next := make(map[Endpoint]*frontend, len(want))
	lost, gone = map[Endpoint]*Port{}, []netip.Addr{}
	loses := func(old *frontend, now *Port) {
		if who := old.without(now); len(who) > 0 {
			lost[now.Endpoint], gone = now, append(gone, who...)
		}
	}
	changed := false
	err = conn.Do(func(tx *nft.Tx) error {
		switch {
		case len(h.known) == 0 && (restarted || h.leg != cfg.Leg):
			tx.Replace(table, base(cfg))
			changed = true
		case restarted || h.leg != cfg.Leg || h.leg6 != cfg.Leg6 || !slices.Equal(h.private, cfg.Private):
			tx.SetChain(table, postrouting(cfg))
			changed = true
		}
		for e, old := range h.known {
			if want[e] == nil {
				drop(tx, e, old)
				loses(old, &Port{Endpoint: e})
				changed = true
			}
		}
		for e, p := range want {
			old := h.known[e]
			if old != nil && old.port == p {
				next[e] = old
				continue
			}
			f := &frontend{port: p}
			for i, v := range versions {
				var was []netip.AddrPort
				if old != nil {
					was = old.slots[i]
				}
				var members []netip.AddrPort
				for _, m := range v.of(p.Members) {
					members = append(members, netip.AddrPortFrom(m, p.Target))
				}
				f.slots[i] = lb.Fill(was, members, 0)
			}
			changed = replace(tx, e, old, f) || changed
			next[e] = f
			if old != nil {
				loses(old, p)
			}
		}
		if !changed {
			return errUnchanged
		}
		return failpoint.Hit("network/ingress.change.commit")
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return nil, nil, err
	}
	h.known, h.leg, h.leg6, h.private = next, cfg.Leg, cfg.Leg6, slices.Clone(cfg.Private)
	return lost, gone, nil
}

var errUnchanged = errors.New("nothing to change")

// without are those who get no new connections any more, and those who were draining and are gone.
func (f *frontend) without(now *Port) []netip.Addr {
	var members, draining []netip.Addr
	for _, s := range slices.Concat(f.slots[0], f.slots[1]) {
		members = append(members, s.Addr())
	}
	if f.port != nil {
		draining = f.port.Draining
	}
	return lb.Gone(members, draining, now.Members, now.Draining)
}

func drop(tx *nft.Tx, e Endpoint, old *frontend) {
	element := []nft.Element{{Key: e.key()}}
	tx.Take(table, ports, element)
	for i, v := range versions {
		if len(old.slots[i]) > 0 {
			tx.Take(table, v.services, element)
			tx.Take(table, v.backends, e.elements(old.slots[i], 0, false))
			tx.DeleteChain(table, v.chainOf(e))
		}
	}
}

// replace changes one port and reports whether there was anything to change.
func replace(tx *nft.Tx, e Endpoint, old, next *frontend) (changed bool) {
	var was [2][]netip.AddrPort
	if old == nil {
		tx.Put(table, ports, []nft.Element{{Key: e.key()}})
		changed = true
	} else {
		was = old.slots
	}
	for i, v := range versions {
		if !slices.Equal(was[i], next.slots[i]) {
			v.replace(tx, e, was[i], next.slots[i])
			changed = true
		}
	}
	return changed
}

// replace changes who serves a port in one version of IP.
func (v version) replace(tx *nft.Tx, e Endpoint, was, next []netip.AddrPort) {
	for i := range min(len(was), len(next)) {
		if was[i] != next[i] {
			tx.Take(table, v.backends, e.elements(was[i:i+1], i, false))
			tx.Put(table, v.backends, e.elements(next[i:i+1], i, true))
		}
	}
	n := len(next)
	if n > len(was) {
		tx.Put(table, v.backends, e.elements(next[len(was):], len(was), true))
	}
	switch {
	case n == len(was):
	case n == 0:
		tx.Take(table, v.services, []nft.Element{{Key: e.key()}})
		tx.DeleteChain(table, v.chainOf(e))
	default:
		tx.SetChain(table, v.pick(e, n))
		if len(was) == 0 {
			tx.Put(table, v.services, []nft.Element{{Key: e.key(), Do: nft.Goto(v.chainOf(e))}})
		}
	}
	if n < len(was) {
		tx.Take(table, v.backends, e.elements(was[n:], n, false))
	}
}

// read learns from the kernel what an earlier process made; nothing if it is not as this program writes it.
func read(conn *nft.Conn) (map[Endpoint]*frontend, error) {
	known := map[Endpoint]*frontend{}
	tables, err := conn.Tables(nft.INet)
	if err != nil || !slices.Contains(tables, TableName) {
		return known, err
	}
	published, err := conn.Elements(table, ports)
	if err != nil {
		return nil, fmt.Errorf("read published ports: %w", err)
	}
	for _, e := range published {
		if ep, ok := endpointOf(e.Key); ok {
			known[ep] = &frontend{}
		}
	}
	for i, v := range versions {
		members, err := conn.Elements(table, v.backends)
		if fault.Is(err, fault.NotFound) {
			return map[Endpoint]*frontend{}, nil // of a program that knew IPv4 only
		} else if err != nil {
			return nil, fmt.Errorf("read members: %w", err)
		}
		if !decode(known, members, i) {
			return map[Endpoint]*frontend{}, nil
		}
	}
	return known, nil
}

// endpointOf reads a key: protocol and port, each filled up to four bytes.
func endpointOf(b []byte) (Endpoint, bool) {
	if len(b) < 8 {
		return Endpoint{}, false
	}
	for _, p := range []cloud.Protocol{cloud.TCP, cloud.UDP, cloud.SCTP} {
		if b[0] == byte(proto(p)) {
			return Endpoint{p, uint16(b[4])<<8 | uint16(b[5])}, true
		}
	}
	return Endpoint{}, false
}

func decode(known map[Endpoint]*frontend, elements []nftables.SetElement, version int) bool {
	size := []int{4, 16}[version]
	slots := map[Endpoint]map[uint32]netip.AddrPort{}
	for _, e := range elements {
		ep, ok := endpointOf(e.Key)
		if !ok || known[ep] == nil || len(e.Key) < 12 || len(e.Val) < size+2 {
			return false
		}
		addr, _ := netip.AddrFromSlice(e.Val[:size])
		if slots[ep] == nil {
			slots[ep] = map[uint32]netip.AddrPort{}
		}
		slots[ep][nativeUint32(e.Key[8:12])] = netip.AddrPortFrom(addr, uint16(e.Val[size])<<8|uint16(e.Val[size+1]))
	}
	for ep, members := range slots {
		for i := range len(members) {
			m, ok := members[uint32(i)]
			if !ok {
				return false
			}
			known[ep].slots[version] = append(known[ep].slots[version], m)
		}
	}
	return true
}

// sweep forgets connections from published ports to members that are gone.
func sweep(ns *netns.NS, legs []netip.Prefix, lost map[Endpoint]*Port, gone []netip.Addr) error {
	if len(lost) == 0 {
		return nil
	}
	protocols := map[uint8]cloud.Protocol{unix.IPPROTO_TCP: cloud.TCP, unix.IPPROTO_UDP: cloud.UDP, unix.IPPROTO_SCTP: cloud.SCTP}
	return lb.Forget(ns, gone, func(f lb.Flow) bool {
		p := lost[Endpoint{protocols[f.Protocol], f.To.Port()}]
		if p == nil || f.Member == f.To.Addr() || !slices.ContainsFunc(legs, func(p netip.Prefix) bool { return p.IsValid() && p.Contains(f.Member) }) {
			return false // not translated by us
		}
		return f.Stale(p.Members, p.Draining)
	})
}

// Published are the ports of this host, with the members that get their new connections, as the kernel has them.
func (h *Host) Published() (map[Endpoint][]netip.AddrPort, error) {
	known, err := read(nft.Open(h.ns.FD()))
	if err != nil {
		return nil, fmt.Errorf("published ports: %w", err)
	}
	out := map[Endpoint][]netip.AddrPort{}
	for e, f := range known {
		out[e] = slices.SortedFunc(slices.Values(slices.Concat(f.slots[0], f.slots[1])), netip.AddrPort.Compare)
	}
	return out, nil
}

// Remove takes the host's side away. The leg's interface is its maker's.
func (h *Host) Remove() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	conn := nft.Open(h.ns.FD())
	tables, err := conn.Tables(nft.INet)
	if err != nil {
		return err
	}
	if slices.Contains(tables, TableName) {
		if err := conn.Do(func(tx *nft.Tx) error { tx.Delete(table); return nil }); err != nil {
			return fmt.Errorf("published ports: %w", err)
		}
	}
	h.release()
	h.known, h.leg, h.leg6 = nil, netip.Prefix{}, netip.Prefix{}
	return nil
}

func (h *Host) release() {
	for _, c := range h.claims {
		_ = c.Close()
	}
	clear(h.claims)
	clear(h.refused)
}

// Close gives the claimed ports back; what is in the kernel stays and goes on.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.release()
	return nil
}
