package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/network/ipam"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// Manager owns the networks of a host. It is safe for concurrent use.
//
// A change of one sandbox is made under that sandbox's lock (sandbox.op), so that the kernel works for many of them at
// a time; what is known of all of them (books) is under mu, which is never held over work in a sandbox. Its parts are
// types of their own; it is long because it is where they meet.
type Manager struct {
	cfg  Config
	log  *slog.Logger
	host *netns.NS
	nl   *netlink.Handle // to the host's namespace
	fw   *firewall
	dns  *publisher

	cluster *clusterSide
	locals  map[string]localDriver
	router  *router
	spares  *spares
	tear    *teardowns

	nets, boxes, rest store // networks; sandboxes; what Apply brought

	mu sync.Mutex // guards books
	books
}

// books are what the manager knows.
type books struct {
	networks  map[string]*Network // Members is filled when a copy is handed out
	space     *ipam.Space
	sandboxes map[string]*sandbox
	leaving   map[*sandbox]chan struct{} // detached, with endpoints still; closed when these are gone
	ports     *portBook
	names     map[string]keeper.Names // of networks of scope swarm
}

// New returns a manager over the given roots. It finds the networks and sandboxes of an earlier daemon and takes them
// over: bridges that are missing are made, what belongs to no sandbox is removed, and kernel state that is right is not
// touched.
func New(cfg Config) (_ *Manager, err error) {
	if cfg.DataRoot == "" || cfg.ExecRoot == "" {
		return nil, fault.New(fault.InvalidArgument, "network: a data root and an exec root are needed")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Bridge.MTU == 0 {
		cfg.Bridge.MTU = 1500
	}
	m := &Manager{cfg: cfg, log: cfg.Logger}
	m.leaving = map[*sandbox]chan struct{}{}
	m.networks, m.sandboxes, m.ports = map[string]*Network{}, map[string]*sandbox{}, newPortBook()
	for dir, s := range map[string]*store{filepath.Join(cfg.DataRoot, "network"): &m.nets,
		filepath.Join(cfg.ExecRoot, "network", "sandboxes"): &m.boxes, filepath.Join(cfg.ExecRoot, "network", "cluster"): &m.rest} {
		if *s, err = newStore(dir); err != nil {
			return nil, err
		}
	}
	pools, err := addressPools(cfg)
	if err != nil {
		return nil, err
	}
	if m.space, err = ipam.New(pools); err != nil {
		return nil, err
	}
	if cfg.HostNetNS == "" {
		m.host, err = netns.Current()
	} else {
		m.host, err = netns.Open(cfg.HostNetNS)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if m.nl, err = m.host.Netlink(); err != nil {
		return nil, err
	}
	m.router = &router{host: m.host, log: m.log, off: cfg.NoForwarding, open: cfg.OpenForwarding, marks: filepath.Join(cfg.ExecRoot, "network")}
	m.fw = newFirewall(nft.Open(m.host.FD()), m.router)
	m.fw.direct = cfg.DirectRouting
	if m.fw.accept, err = parseMark(cfg.AcceptMark); err != nil {
		return nil, err
	}
	parents := &parentDriver{host: m.host, nl: m.nl}
	m.locals = map[string]localDriver{DriverBridge: &bridgeDriver{host: m.host, nl: m.nl, fw: m.fw, router: m.router, tell: announcer{host: m.host, nl: m.nl}},
		DriverMacvlan: parents, DriverIPvlan: parents}
	m.dns = newPublisher(m)
	m.tear = newTeardowns(m)
	m.spares = newSpares(filepath.Join(cfg.ExecRoot, "netns"), m.log)
	if m.cluster, err = newClusterSide(m); err != nil {
		return nil, err
	}
	if err = m.restore(context.Background()); err != nil {
		return nil, err
	}
	m.spares.start()
	return m, nil
}

// Close ends the manager's own work and leaves everything in the kernel in place. Teardowns that were promised are
// finished first.
func (m *Manager) Close() error {
	var errs []error
	if m.tear != nil {
		m.tear.close()
	}
	if m.spares != nil {
		errs = append(errs, m.spares.close())
	}
	if m.dns != nil {
		m.dns.close()
	}
	if m.cluster != nil {
		errs = append(errs, m.cluster.close())
	}
	m.mu.Lock()
	m.ports.close()
	m.mu.Unlock()
	if m.nl != nil {
		m.nl.Close()
	}
	if m.host != nil {
		errs = append(errs, m.host.Close())
	}
	return errors.Join(errs...)
}

// Create makes a network of scope local.
func (m *Manager) Create(ctx context.Context, spec Spec) (Network, error) {
	m.tear.wait(ctx) // so that the subnet of a network whose last container has just gone is free
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := checkSpec(&spec); err != nil {
		return Network{}, err
	}
	if slices.Contains([]string{NameBridge, NameHost, NameNone, "default"}, spec.Name) {
		return Network{}, fault.New(fault.Forbidden, "operation is not permitted on predefined %s network ", spec.Name)
	}
	n, err := m.createLocked(spec, newID())
	if err != nil {
		return Network{}, err
	}
	m.log.Info("network created", "network", n.Spec.Name, "id", n.ID, "subnets", n.prefixes())
	return m.snapshot(n), nil
}

// DefaultOptions are the options that new networks of a driver have unless they are given others. Whoever takes a user's
// request lays them under its options, as only he knows what the user left open.
func (m *Manager) DefaultOptions(driver string) map[string]string {
	return maps.Clone(m.cfg.DefaultOptions[driver])
}

// Usage is how much of a subnet is taken: addresses in use, and addresses that can still be given without being asked
// for by name. A number too great is the greatest there is.
type Usage struct{ InUse, Available uint64 }

// Usage tells of the subnets of a network of this host.
func (m *Manager) Usage(ctx context.Context, nameOrID string) map[netip.Prefix]Usage {
	m.tear.wait(ctx) // the addresses of containers that have just gone
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[netip.Prefix]Usage{}
	n, err := m.find(nameOrID)
	if err != nil {
		return out
	}
	for _, c := range n.Subnets {
		if s := m.space.Subnet(n.ID, c.Subnet); s != nil {
			var u Usage
			u.InUse, u.Available = s.Status()
			out[c.Subnet] = u
		}
	}
	return out
}

// createLocked makes a network of this host; m.mu is held.
func (m *Manager) createLocked(spec Spec, id string) (*Network, error) {
	for _, n := range m.networks {
		if n.Spec.Name == spec.Name {
			return nil, fault.New(fault.AlreadyExists, "network with name %s already exists", spec.Name)
		}
	}
	if err := m.configured(&spec); err != nil {
		return nil, err
	}
	n := &Network{ID: id, Created: time.Now(), Scope: ScopeLocal, Spec: spec, MTU: m.cfg.Bridge.MTU}
	d := m.locals[spec.Driver]
	if d == nil || spec.ConfigOnly {
		n.MTU = 0
		m.networks[n.ID] = n
		return n, m.nets.put(n.ID, n, true)
	}
	others := slices.Collect(maps.Values(m.networks))
	if err := d.configure(n, others); err != nil {
		return nil, err
	}
	if err := m.takeSubnets(n); err != nil {
		return nil, err
	}
	err := d.create(n)
	if err == nil {
		if err = m.nets.put(n.ID, n, true); err != nil {
			err = errors.Join(err, d.remove(n, others))
		}
	}
	if err != nil {
		m.giveSubnets(n)
		return nil, err
	}
	m.networks[n.ID] = n
	return n, nil
}

// takeSubnets completes the network's subnets from what its spec asks for.
func (m *Manager) takeSubnets(n *Network) (err error) {
	defer func() {
		if err != nil {
			m.giveSubnets(n)
			n.Subnets = nil
		}
	}()
	var have4, have6 bool
	for _, c := range n.Spec.IPAM {
		v6 := c.Subnet.IsValid() && c.Subnet.Addr().Is6()
		if v6 && !n.Spec.IPv6 || !v6 && !n.Spec.IPv4 {
			continue // as Docker does: an IPv6 subnet without IPv6 is no error
		}
		if n.Spec.Driver == DriverBridge && (v6 && have6 || !v6 && have4) {
			return fault.New(fault.Forbidden, "bridge driver doesn't support multiple subnets: give one of IPv4 and one of IPv6 at most")
		}
		if err := m.takeSubnet(n, ipam.Request{Subnet: c.Subnet, Range: c.Range, Gateway: c.Gateway, Aux: c.Aux}, v6); err != nil {
			return err
		}
		have4, have6 = have4 || !v6, have6 || v6
	}
	if n.Spec.IPv4 && !have4 {
		if err := m.takeSubnet(n, ipam.Request{}, false); err != nil {
			return err
		}
	}
	if n.Spec.IPv6 && !have6 {
		return m.takeSubnet(n, ipam.Request{}, true)
	}
	return nil
}

// Remove removes a network that nobody is on.
func (m *Manager) Remove(ctx context.Context, nameOrID string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find(nameOrID)
	for err == nil {
		gone := m.leavingFrom(n.ID) // links of containers that have just gone: they need their network to be taken away
		if gone == nil {
			break
		}
		m.mu.Unlock()
		m.tear.wait(ctx)
		select {
		case <-gone:
		case <-ctx.Done():
		}
		m.mu.Lock()
		if err = ctx.Err(); err == nil {
			n, err = m.find(nameOrID)
		}
	}
	if err != nil {
		return err
	}
	if slices.Contains([]string{NameBridge, NameHost, NameNone}, n.Spec.Name) {
		return fault.New(fault.Forbidden, "%s is a pre-defined network and cannot be removed", n.Spec.Name)
	}
	if n.Scope != ScopeLocal {
		return fault.New(fault.Forbidden, "network %s belongs to the cluster: it is removed there", n.Spec.Name)
	}
	return m.removeLocked(n)
}

// leavingFrom is closed when one of the detached sandboxes that still are on a network is not any more; nil: none is.
// m.mu is held.
func (m *Manager) leavingFrom(networkID string) chan struct{} {
	for sb, gone := range m.leaving {
		if slices.ContainsFunc(sb.all(), func(e *Endpoint) bool { return e.NetworkID == networkID }) {
			return gone
		}
	}
	return nil
}

func (m *Manager) removeLocked(n *Network) error {
	if members := m.members(n.ID); len(members) > 0 {
		names := make([]string, 0, len(members))
		for _, e := range members {
			names = append(names, fmt.Sprintf("name:%q id:%q", e.Owner, e.ID[:min(12, len(e.ID))]))
		}
		slices.Sort(names)
		return fault.New(fault.Forbidden, "error while removing network: network %s has active endpoints (%s)", n.Spec.Name, strings.Join(names, ", "))
	}
	for _, o := range m.networks {
		if n.Spec.ConfigOnly && o.Spec.ConfigFrom == n.Spec.Name {
			return fault.New(fault.Forbidden, "configuration network %q is in use", n.Spec.Name)
		}
	}
	if d := m.locals[n.Spec.Driver]; d != nil && !n.Spec.ConfigOnly {
		if err := d.remove(n, slices.Collect(maps.Values(m.networks))); err != nil {
			return err
		}
	}
	m.giveSubnets(n)
	delete(m.networks, n.ID)
	m.log.Info("network removed", "network", n.Spec.Name, "id", n.ID)
	return m.nets.remove(n.ID)
}

// Prune removes the networks of scope local that nobody is on and that filter (nil: all) says yes to, and returns their
// names.
func (m *Manager) Prune(ctx context.Context, filter func(Network) bool) ([]string, error) {
	m.tear.wait(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	var removed []string
	var errs []error
	for _, n := range m.sorted() {
		if n.Scope != ScopeLocal || slices.Contains([]string{NameBridge, NameHost, NameNone, gatewayBridge}, n.Spec.Name) ||
			len(m.members(n.ID)) > 0 || m.leavingFrom(n.ID) != nil || filter != nil && !filter(m.snapshot(n)) {
			continue
		}
		if err := m.removeLocked(n); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, n.Spec.Name)
	}
	return removed, errors.Join(errs...)
}

// Get returns a network by full ID, full name or unique prefix of its ID, in that order.
func (m *Manager) Get(nameOrID string) (Network, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find(nameOrID)
	if err != nil {
		return Network{}, err
	}
	return m.snapshot(n), nil
}

// List returns all networks of this host, by name.
func (m *Manager) List() []Network {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Network, 0, len(m.networks))
	for _, n := range m.sorted() {
		out = append(out, m.snapshot(n))
	}
	return out
}

func (m *Manager) sorted() []*Network {
	return slices.SortedFunc(maps.Values(m.networks), func(a, b *Network) int {
		return strings.Compare(a.Spec.Name+"\x00"+a.ID, b.Spec.Name+"\x00"+b.ID)
	})
}

func (m *Manager) find(nameOrID string) (*Network, error) {
	if n, ok := m.networks[nameOrID]; ok {
		return n, nil
	}
	var byName, byPrefix []*Network
	for _, n := range m.networks {
		if n.Spec.Name == nameOrID {
			byName = append(byName, n)
		}
		if nameOrID != "" && strings.HasPrefix(n.ID, nameOrID) {
			byPrefix = append(byPrefix, n)
		}
	}
	switch {
	case len(byName) == 1:
		return byName[0], nil
	case len(byName) > 1:
		return nil, fault.New(fault.InvalidArgument, "network %s is ambiguous (%d matches found on name)", nameOrID, len(byName))
	case len(byPrefix) == 1:
		return byPrefix[0], nil
	case len(byPrefix) > 1:
		return nil, fault.New(fault.InvalidArgument, "network %s is ambiguous (%d matches found based on ID prefix)", nameOrID, len(byPrefix))
	}
	return nil, fault.New(fault.NotFound, "network %s not found", nameOrID)
}

// members are the endpoints on a network, by sandbox ID.
func (m *Manager) members(networkID string) map[string]Endpoint {
	out := map[string]Endpoint{}
	for id, s := range m.sandboxes {
		for _, e := range s.all() {
			if e.NetworkID == networkID {
				out[id] = *e
			}
		}
	}
	return out
}

// snapshot is a copy that the caller may keep.
func (m *Manager) snapshot(n *Network) Network {
	out := *n
	out.Members = m.members(n.ID)
	out.Subnets = slices.Clone(n.Subnets)
	out.Peers = slices.Clone(n.Peers)
	out.Spec.IPAM = slices.Clone(n.Spec.IPAM)
	out.Spec.Options, out.Spec.Labels, out.Spec.IPAMOptions = maps.Clone(n.Spec.Options), maps.Clone(n.Spec.Labels), maps.Clone(n.Spec.IPAMOptions)
	return out
}

func (n *Network) prefixes() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(n.Subnets))
	for _, c := range n.Subnets {
		out = append(out, c.Subnet)
	}
	return out
}

// newID returns 64 random hex digits that are not all decimal in the first twelve, as some tools take those for numbers.
func newID() string {
	for {
		b := make([]byte, 32)
		_, _ = rand.Read(b)
		id := hex.EncodeToString(b)
		if strings.ContainsAny(id[:12], "abcdef") {
			return id
		}
	}
}
