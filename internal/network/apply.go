package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/network/ingress"
	"github.com/sampan-cloud/sampan/internal/network/lb"
	"github.com/sampan-cloud/sampan/internal/network/overlay"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// legKey names the port of the host's own leg on the ingress network. No sandbox has such an ID.
const legKey = "host"

// clusterSide is the part of the manager that follows the cluster. It holds what the newest view asks for (plan) and the
// sandboxes that it concerns; everything else is in the kernel.
//
// applying is held for the whole of an Apply and never by what the manager calls; mu guards the fields, and is never
// held while the manager is called.
type clusterSide struct {
	m   *Manager
	log *slog.Logger
	ov  *overlay.Driver
	in  *ingress.Host

	applying sync.Mutex
	told     told           // guarded by applying
	local    netip.Addr     // from which packets to other hosts go where the view does not say; guarded by applying
	loose    sync.WaitGroup // collections of what the last sandbox left

	mu     sync.Mutex
	plan   *plan // nil until the first Apply
	boxes  map[string]*box
	closed bool
}

// box is a sandbox with a network of the cluster.
type box struct {
	mu      sync.Mutex
	ref     sandboxRef
	table   *lb.Table
	ingress *ingress.Sandbox
	gone    bool
	fresh   bool      // its networks or routes may have changed since the last Apply
	vips    []*vipSet // what table was made from
}

func newClusterSide(m *Manager) (*clusterSide, error) {
	return &clusterSide{m: m, log: m.log, boxes: map[string]*box{}, in: ingress.NewHost(m.host, m.log, m.router.forward),
		ov: overlay.New(overlay.Config{Dir: filepath.Join(m.cfg.ExecRoot, "netns"), Host: m.host, Logger: m.log})}, nil
}

// Apply makes overlays, forwarding, names, virtual IPs and published ports agree with the view of node self; nil view: a
// node in no cluster, everything of scope swarm is removed. On return nobody on this host is sent to a member that the
// view does not have ready. Apply is level-triggered: it goes on past what fails, returns all errors, and the next call
// does what is left. Kernel changes are those of the difference to the last view, or to what an earlier daemon left.
func (m *Manager) Apply(ctx context.Context, view *cloud.NodeView, self string) error {
	return m.cluster.apply(ctx, view, self)
}

// SetDataPath says from which address this host sends to the others, until a view says so itself, and to which UDP port.
func (m *Manager) SetDataPath(local netip.Addr, port int) {
	m.cluster.applying.Lock()
	defer m.cluster.applying.Unlock()
	m.cluster.local = local
	m.cluster.ov.SetPort(port)
}

func (c *clusterSide) apply(ctx context.Context, view *cloud.NodeView, self string) error {
	c.applying.Lock()
	defer c.applying.Unlock()
	c.mu.Lock()
	old := c.plan
	c.mu.Unlock()
	next := newPlan(view, self, old)
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}

	// Who is reachable comes before who is named, so that a name never leads to nowhere.
	for _, id := range slices.Sorted(maps.Keys(next.nets)) {
		n := next.nets[id]
		if !n.overlay.Local.IsValid() { // the first views may be older than what this host said of itself
			n.overlay.Local = c.local
		}
		if err := c.ov.Apply(ctx, n.overlay); err != nil {
			note(err)
			continue
		}
		n.mtu = c.ov.MTU(id)
	}
	note(failpoint.Hit("network/apply.overlays"))
	c.mu.Lock()
	c.plan = next
	c.mu.Unlock()
	note(c.tell(ctx, next))
	note(failpoint.Hit("network/apply.names"))
	note(c.programAll())
	note(failpoint.Hit("network/apply.sandboxes"))
	note(c.publish(ctx, next))
	note(failpoint.Hit("network/apply.ingress"))
	note(c.prune(ctx, next))
	return errors.Join(errs...)
}

// tell hands the manager the networks and names. A network that the view has no more stays known while somebody is on it.
func (c *clusterSide) tell(ctx context.Context, p *plan) error {
	networks := map[string]*Network{}
	names := map[string]keeper.Names{}
	for id, n := range p.nets {
		networks[id] = n.network()
		names[id] = n.names
	}
	for _, ref := range c.m.sandboxesOn("") {
		for _, e := range ref.Endpoints {
			if networks[e.NetworkID] != nil {
				continue
			}
			if n, err := c.m.Get(e.NetworkID); err == nil && n.Scope == ScopeSwarm && !p.empty {
				networks[e.NetworkID] = &n
			}
		}
	}
	if c.told.done && reflect.DeepEqual(c.told.networks, networks) && reflect.DeepEqual(c.told.names, names) {
		return nil
	}
	c.told = told{}
	mine := make(map[string]keeper.Names, len(names)) // the manager works on what it is given
	for id, n := range names {
		mine[id] = keeper.Names{Records: maps.Clone(n.Records), Reverse: n.Reverse, Services: n.Services}
		for name, addrs := range n.Records {
			mine[id].Records[name] = slices.Clone(addrs)
		}
	}
	if err := c.m.setCluster(ctx, maps.Clone(networks), mine); err != nil {
		return err
	}
	c.told = told{true, networks, names}
	return nil
}

// told is what the manager was told last.
type told struct {
	done     bool
	networks map[string]*Network
	names    map[string]keeper.Names
}

// programAll brings every sandbox to the plan.
func (c *clusterSide) programAll() error {
	c.mu.Lock()
	boxes := slices.Collect(maps.Values(c.boxes))
	c.mu.Unlock()
	// Each one waits for the kernel most of the time, so several wait together.
	var wg errgroup.Group
	wg.SetLimit(16)
	errs := make([]error, len(boxes))
	for i, b := range boxes {
		wg.Go(func() error {
			err := c.program(b)
			b.mu.Lock()
			defer b.mu.Unlock()
			// A sandbox has its default route only after it was told of; the Apply that makes it ready is after that.
			b.fresh = b.fresh && err != nil
			if err != nil && !fault.Is(err, fault.NotFound) { // its namespace may have just gone
				errs[i] = fmt.Errorf("sandbox %s: %w", b.ref.ID, err)
			}
			return nil
		})
	}
	_ = wg.Wait()
	return errors.Join(errs...)
}

// program brings one sandbox to the newest plan: whoever comes last has it.
func (c *clusterSide) program(b *box) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.mu.Lock()
	p := c.plan
	c.mu.Unlock()
	if p == nil || b.gone {
		return nil
	}
	var sets []*vipSet
	direct := []string{}
	for _, e := range b.ref.Endpoints {
		if n := p.nets[e.NetworkID]; n != nil {
			sets = append(sets, n.vips)
			if e.NetworkID != p.ingress { // whose connections' marks are needed
				direct = append(direct, e.Interface)
			}
		}
	}
	if err := b.table.Direct(direct); err != nil {
		return err
	}
	if b.vips == nil || !slices.Equal(b.vips, sets) {
		want := map[netip.Addr]*lb.VIP{}
		for _, s := range sets {
			maps.Copy(want, s.byAddr)
		}
		b.vips = nil
		if err := b.table.Set(want); err != nil {
			return err
		}
		b.vips = append([]*vipSet{}, sets...)
	}
	for _, e := range b.ref.Endpoints {
		if e.NetworkID != p.ingress || !e.IPv4.IsValid() {
			continue
		}
		return b.ingress.Set(ingress.SandboxConfig{Interface: e.Interface, Addr: e.IPv4, Addr6: e.IPv6, Legs: p.legs, Afresh: b.fresh})
	}
	return nil
}

// publish makes the host's leg and its published ports.
func (c *clusterSide) publish(ctx context.Context, p *plan) error {
	if p.ingress == "" || !p.leg.IsValid() {
		return c.unpublish(ctx, p)
	}
	cfg := ingress.HostConfig{Leg: p.leg, Leg6: p.leg6, Ports: p.ports}
	addrs := []netip.Prefix{p.leg}
	if off, err := c.m.withoutIPv6(); err != nil {
		return err
	} else if off {
		cfg.Leg6 = netip.Prefix{}
	} else if p.leg6.IsValid() {
		addrs = append(addrs, p.leg6)
	}
	if _, err := c.ov.Join(ctx, p.ingress, overlay.Port{Key: legKey, Interface: ingress.LegName, Addrs: addrs}); err != nil {
		return fmt.Errorf("published ports: %w", err)
	}
	for _, n := range c.m.List() {
		if n.Scope != ScopeLocal {
			continue
		}
		for _, s := range n.Subnets {
			cfg.Private = append(cfg.Private, s.Subnet.Masked())
		}
	}
	slices.SortFunc(cfg.Private, netip.Prefix.Compare)
	cfg.Private = slices.Compact(cfg.Private)
	return c.in.Set(ctx, cfg)
}

// withoutIPv6 reports whether this host is to have no IPv6.
func (m *Manager) withoutIPv6() (off bool, err error) {
	err = m.host.Do(func() error {
		v, err := netns.ReadSysctl("net.ipv6.conf.default.disable_ipv6")
		off = err != nil || v != "0"
		return nil
	})
	return off, err
}

func (c *clusterSide) unpublish(ctx context.Context, p *plan) error {
	errs := []error{c.in.Remove()}
	ids, err := c.ov.IDs()
	errs = append(errs, err)
	for _, id := range ids {
		errs = append(errs, c.ov.Leave(ctx, id, legKey))
	}
	return errors.Join(errs...)
}

// prune removes the overlays that the view has no more and that nobody here is on; all of them without a cluster.
func (c *clusterSide) prune(ctx context.Context, p *plan) error {
	if p.empty {
		return c.ov.Clear(ctx)
	}
	ids, err := c.ov.IDs()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if p.nets[id] != nil {
			continue
		}
		if id != p.ingress { // an ingress network of earlier: the leg keeps nothing up
			errs = append(errs, c.ov.Leave(ctx, id, legKey))
		}
		ports, err := c.ov.Ports(id)
		if err == nil && len(ports) > 0 {
			continue
		}
		errs = append(errs, err, c.ov.Remove(ctx, id))
	}
	return errors.Join(errs...)
}

// driver makes the endpoints of the networks of scope swarm.
func (c *clusterSide) driver() driver { return overlayDriver{c.ov} }

type overlayDriver struct{ ov *overlay.Driver }

func (d overlayDriver) attach(ctx context.Context, n *Network, ep *Endpoint, ns *netns.NS) error {
	if !ep.IPv4.IsValid() {
		return fault.New(fault.InvalidArgument, "network %s: an endpoint needs the address that the cluster gave it", n.Spec.Name)
	}
	port := overlay.Port{Key: ep.SandboxID, NetNS: ns.Path(), Interface: ep.Interface, Addrs: []netip.Prefix{ep.IPv4}}
	if ep.IPv6.IsValid() {
		port.Addrs = append(port.Addrs, ep.IPv6)
	}
	_, err := d.ov.Join(ctx, n.ID, port)
	return err
}

func (d overlayDriver) detach(ctx context.Context, n *Network, ep *Endpoint, _ string) error {
	return d.ov.Leave(ctx, n.ID, ep.SandboxID)
}

// attached is told that a sandbox has joined a network of the cluster, now or before a restart.
func (c *clusterSide) attached(_ context.Context, ref sandboxRef) error {
	c.mu.Lock()
	b := c.boxes[ref.ID]
	if b == nil {
		b = &box{table: lb.Open(ref.NetNS, ref.ID), ingress: ingress.OpenSandbox(ref.NetNS)}
		c.boxes[ref.ID] = b
	}
	c.mu.Unlock()
	b.mu.Lock()
	b.ref, b.fresh, b.vips = ref, true, nil
	b.mu.Unlock()
	return c.program(b)
}

// detached is told that a sandbox has left a network of the cluster; ref has the networks that it is still on.
func (c *clusterSide) detached(_ context.Context, ref sandboxRef) {
	c.mu.Lock()
	b, p := c.boxes[ref.ID], c.plan
	onCluster := p != nil && slices.ContainsFunc(ref.Endpoints, func(e Endpoint) bool { return p.nets[e.NetworkID] != nil })
	if !onCluster {
		delete(c.boxes, ref.ID)
	}
	if p != nil && !c.closed {
		c.loose.Go(c.collect)
	}
	c.mu.Unlock()
	if b == nil {
		return
	}
	b.mu.Lock()
	b.ref, b.gone, b.vips = ref, !onCluster, nil
	b.mu.Unlock()
	if onCluster {
		if err := c.program(b); err != nil && !fault.Is(err, fault.NotFound) {
			c.log.Warn("virtual IPs of a network that was left", "sandbox", ref.ID, "error", err)
		}
	}
}

// collect removes networks that only the sandbox that has just left kept up.
func (c *clusterSide) collect() {
	c.applying.Lock()
	defer c.applying.Unlock()
	c.mu.Lock()
	p, closed := c.plan, c.closed
	c.mu.Unlock()
	if closed {
		return // the next daemon's first Apply does it
	}
	ids, err := c.ov.IDs()
	if err != nil || !slices.ContainsFunc(ids, func(id string) bool { return p.nets[id] == nil }) {
		return
	}
	ctx := context.Background()
	if err := errors.Join(c.prune(ctx, p), c.tell(ctx, p)); err != nil {
		c.log.Warn("remove a network of the cluster that nobody here is on any more", "error", err)
	}
}

func (c *clusterSide) close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.loose.Wait()
	return errors.Join(c.in.Close(), c.ov.Close())
}
