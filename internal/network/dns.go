package network

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// dnsAddr is the name server's address in each sandbox.
var dnsAddr = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// dnsTable is the table in a sandbox that leads its name server's port 53 to the port that the server listens on, so
// that a container may serve port 53 itself.
var dnsTable = nft.Table{Family: nft.IP4, Name: "sampan-dns"}

// redirect gives a sandbox that finds others by name, or that cannot reach the host's name servers itself, the way to
// the name server. sb.op is held.
func (m *Manager) redirect(sb *sandbox, ns *netns.NS) error {
	if sb.DNSPort != 0 || !m.needsNames(sb) {
		return nil
	}
	// Any port is free in a namespace that nothing has run in yet. One below those that the kernel gives to outgoing
	// connections is also not taken by a program of a container that is being connected later.
	port := uint16(20000 + rand.IntN(12000))
	rule := func(p nft.Proto) nft.Rule {
		return nft.Join(nft.Is(nft.DstIP4, dnsAddr), nft.Is(nft.L4Proto, p), nft.Is(nft.DstPort, nft.Port(53)), nft.DNAT(dnsAddr, port))
	}
	// Added, not replaced: a transaction that deletes waits for the kernel some 10 ms, and there is nothing to delete.
	err := nft.Open(ns.FD()).Do(func(tx *nft.Tx) error {
		tx.Add(dnsTable, nft.Content{Chains: []nft.Chain{{Name: "output", Type: nft.TypeNAT, Hook: nft.Output,
			Priority: nft.PriorityDNAT - 5, Rules: []nft.Rule{rule(nft.UDP), rule(nft.TCP)}}}})
		return nil
	})
	if err != nil {
		return fmt.Errorf("way to the name server in sandbox %s: %w", sb.Spec.ID, err)
	}
	m.mu.Lock()
	sb.DNSPort = port
	m.mu.Unlock()
	return nil
}

func (m *Manager) needsNames(sb *sandbox) bool {
	for _, j := range sb.Joined {
		if n := m.networkOf(&j.Endpoint); n.userDefined() {
			return true
		}
	}
	if len(sb.Joined) == 0 || len(sb.Spec.DNS) > 0 {
		return false
	}
	// On the default bridge a container asks the host's servers itself, unless they are on the host's loopback.
	return len(m.upstreams(sb, true)) == 0 && len(m.upstreams(sb, false)) > 0
}

// hostResolver is what a resolv.conf says.
type hostResolver struct {
	servers []netip.Addr
	search  []string
	options []string
}

// parseResolvConf reads a resolv.conf as the C library does: lines that it does not know are skipped.
func parseResolvConf(b []byte) hostResolver {
	var r hostResolver
	for line := range strings.Lines(string(b)) {
		if i := strings.IndexAny(line, "#;"); i >= 0 && strings.TrimSpace(line[:i]) == "" {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				r.servers = append(r.servers, a.Unmap())
			}
		case "search", "domain":
			r.search = f[1:]
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

func (m *Manager) hostResolver() hostResolver {
	b, err := os.ReadFile(m.cfg.ResolvConf)
	if err != nil && !os.IsNotExist(err) {
		m.log.Warn("cannot read the host's name servers", "error", err)
	}
	return parseResolvConf(b)
}

// upstreams are the servers that a sandbox's questions go to; direct leaves out those that only the host reaches.
func (m *Manager) upstreams(sb *sandbox, direct bool) []netip.Addr {
	if len(sb.Spec.DNS) > 0 {
		return sb.Spec.DNS
	}
	servers := m.hostResolver().servers
	if direct {
		servers = slices.DeleteFunc(servers, func(a netip.Addr) bool { return a.IsLoopback() || a.Zone() != "" })
	}
	return servers
}

// resolvConf is the content of the sandbox's /etc/resolv.conf. m.mu is held.
func (m *Manager) resolvConf(sb *sandbox) []byte {
	host := m.hostResolver()
	search, options := host.search, host.options
	if len(sb.Spec.Search) > 0 {
		search = slices.DeleteFunc(slices.Clone(sb.Spec.Search), func(s string) bool { return s == "." }) // "." is: none
	}
	if len(sb.Spec.Options) > 0 {
		options = sb.Spec.Options
	}
	servers := []netip.Addr{dnsAddr}
	if sb.DNSPort == 0 {
		servers = m.upstreams(sb, true)
		if len(servers) == 0 && len(sb.Joined) > 0 {
			servers = []netip.Addr{netip.AddrFrom4([4]byte{8, 8, 8, 8}), netip.AddrFrom4([4]byte{8, 8, 4, 4})} // Docker's default
		}
	} else if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		options = append(slices.Clone(options), "ndots:0")
	}
	var b bytes.Buffer
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.Bytes()
}

// hostsLines are the lines of /etc/hosts that name the sandbox itself, and its links on the default bridge.
func hostsLines(sb *sandbox) []string {
	var out []string
	if sb.Spec.Hostname != "" {
		for _, j := range sb.Joined {
			for _, p := range []netip.Prefix{j.IPv4, j.IPv6} {
				if !p.IsValid() {
					continue
				}
				names := sb.Spec.Hostname
				if sb.Spec.Domain != "" {
					names += "." + sb.Spec.Domain
				}
				switch short, _, ok := strings.Cut(names, "."); {
				case sb.Spec.Domain != "":
					names += " " + sb.Spec.Hostname
				case ok:
					names += " " + short
				}
				out = append(out, p.Addr().String()+"\t"+names)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sb.Spec.Links)) {
		for _, a := range sb.Spec.Links[name] {
			out = append(out, a.String()+"\t"+name)
		}
	}
	return out
}

// dnsNames are the names that an endpoint has on a user-defined network: of the container, its aliases, its short ID and
// its hostname, as Docker gives them.
func dnsNames(s SandboxSpec, es EndpointSpec) []string {
	all := append([]string{s.Owner}, es.Aliases...)
	if len(s.ID) == 64 {
		all = append(all, s.ID[:12])
	}
	all = append(all, s.Hostname)
	var out []string
	for _, n := range all {
		if n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// table is what the name server is to answer. m.mu is held.
func (m *Manager) table() keeper.NameTable {
	t := keeper.NameTable{Networks: map[string]keeper.Names{}, Sandboxes: map[string]keeper.Resolver{}}
	maps.Copy(t.Networks, m.names)
	for id := range m.sandboxes {
		sb := m.sandboxes[id]
		for _, j := range sb.Joined {
			n := m.networks[j.NetworkID]
			if n != nil && n.Scope == ScopeLocal && n.userDefined() {
				addNames(t.Networks, n, &j.Endpoint)
			}
		}
	}
	for id, sb := range m.sandboxes { // after the names, which links are other names for
		if sb.DNSPort != 0 {
			t.Sandboxes[id] = m.resolver(sb, t.Networks)
		}
	}
	for _, n := range t.Networks {
		for name := range n.Records {
			slices.SortFunc(n.Records[name], netip.Addr.Compare)
		}
	}
	return t
}

func addNames(all map[string]keeper.Names, n *Network, e *Endpoint) {
	names, ok := all[n.ID]
	if !ok {
		names = keeper.Names{Records: map[string][]netip.Addr{}, Reverse: map[netip.Addr]string{}}
		all[n.ID] = names
	}
	suffix := "." + strings.ToLower(n.Spec.Name)
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if !p.IsValid() {
			continue
		}
		for i, name := range e.DNSNames {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			if i == 0 {
				names.Reverse[p.Addr()] = name + suffix
			}
			for _, key := range []string{name, name + suffix} {
				if !slices.Contains(names.Records[key], p.Addr()) {
					names.Records[key] = append(names.Records[key], p.Addr())
				}
			}
		}
	}
}

func (m *Manager) resolver(sb *sandbox, names map[string]keeper.Names) keeper.Resolver {
	r := keeper.Resolver{NetNS: sb.NetNS, Listen: netip.AddrPortFrom(dnsAddr, sb.DNSPort), Search: sb.Spec.Search}
	outside := false // it is on a network that leads out
	for _, j := range sb.Joined {
		r.Networks = append(r.Networks, j.NetworkID)
		n := m.networks[j.NetworkID]
		outside = outside || n == nil || !n.closed()
		for _, l := range j.Spec.Links {
			target, alias, ok := strings.Cut(strings.ToLower(l), ":")
			if !ok {
				alias = target
			}
			// Whoever has the name now: the target may not be there yet, or be another than it was.
			if addrs := names[j.NetworkID].Records[target]; len(addrs) > 0 {
				if r.Own == nil {
					r.Own = map[string][]netip.Addr{}
				}
				r.Own[alias] = append(r.Own[alias], addrs...)
				r.Own[alias+"."+strings.ToLower(j.NetworkName)] = r.Own[alias]
			}
		}
	}
	if !outside {
		r.Authoritative = true
		return r
	}
	r.UpstreamsFromHost = len(sb.Spec.DNS) == 0
	for _, a := range m.upstreams(sb, false) {
		r.Upstreams = append(r.Upstreams, netip.AddrPortFrom(a, 53))
	}
	for _, o := range sb.Spec.Options {
		if s, ok := strings.CutPrefix(o, "ndots:"); ok {
			r.NDots, _ = strconv.Atoi(s)
		}
	}
	return r
}

// announce publishes the names after a change of a sandbox.
func (m *Manager) announce(ctx context.Context, sb *sandbox) error {
	m.mu.Lock()
	named := sb.DNSPort != 0
	m.mu.Unlock()
	if !named {
		return nil
	}
	return m.dns.publish(ctx)
}

// setCluster replaces the networks of scope swarm on this host and the names on each, keeps both for a restart, and
// publishes the names if they changed.
func (m *Manager) setCluster(ctx context.Context, networks map[string]*Network, names map[string]keeper.Names) error {
	m.mu.Lock()
	for id, n := range m.networks {
		if n.Scope == ScopeSwarm && networks[id] == nil {
			delete(m.networks, id)
		}
	}
	for id, n := range networks {
		n.Scope = ScopeSwarm
		m.networks[id] = n
	}
	m.names = names
	err := m.rest.put(clusterFile, clusterState{Networks: networks, Names: names}, false)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return m.dns.publish(ctx)
}

// clusterState is what Apply brought last, for a restart: until the next Apply, names go on as they are.
type clusterState struct {
	Networks map[string]*Network
	Names    map[string]keeper.Names
}

const clusterFile = "state"

// publisher tells the name server what to answer. Calls that come while it is being told share the next telling, so that
// a hundred containers that start at once do not tell it a hundred times.
type publisher struct {
	m   *Manager
	log *slog.Logger

	mu      sync.Mutex
	waiting []chan error
	busy    bool
	last    []byte // what was told last, without its revision
	wg      sync.WaitGroup
}

// tellTimeout bounds one telling. The server is on this host; it answers in milliseconds or is stuck.
const tellTimeout = 10 * time.Second

func newPublisher(m *Manager) *publisher { return &publisher{m: m, log: m.log} }

// publish returns when the name server answers what the books say now, or something newer.
func (p *publisher) publish(ctx context.Context) error {
	if p.m.cfg.Names == nil {
		return nil
	}
	done := make(chan error, 1)
	p.mu.Lock()
	p.waiting = append(p.waiting, done)
	if !p.busy {
		p.busy = true
		p.wg.Go(p.run)
	}
	p.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("tell the name server: %w", ctx.Err())
	}
}

func (p *publisher) run() {
	for {
		p.mu.Lock()
		waiting := p.waiting
		p.waiting = nil
		if len(waiting) == 0 {
			p.busy = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		err := p.tell()
		for _, w := range waiting {
			w <- err
		}
	}
}

func (p *publisher) tell() error {
	p.m.mu.Lock()
	t := p.m.table()
	content, err := json.Marshal(t)
	p.m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("tell the name server: %w", err)
	}
	if bytes.Equal(content, p.last) {
		return nil
	}
	t.Revision = uint64(time.Now().UnixNano()) // grows over restarts too
	ctx, cancel := context.WithTimeout(context.Background(), tellTimeout)
	defer cancel()
	if err := p.m.cfg.Names.SetNames(ctx, t); err != nil {
		p.last = nil
		return fmt.Errorf("tell the name server: %w", err)
	}
	p.last = content
	return nil
}

func (p *publisher) close() { p.wg.Wait() }
