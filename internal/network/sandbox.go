package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// The driver options of an endpoint, in Docker's names.
const (
	optIfName  = "com.docker.network.endpoint.ifname"
	optSysctls = "com.docker.network.endpoint.sysctls"
)

// sandbox is what is kept of one. Its exported fields are what is on disk.
type sandbox struct {
	op   sync.Mutex // held while the kernel is worked on; taken before Manager.mu
	gone bool       // with op: it was detached, or never came to be

	// With Manager.mu for writing; with that or op for reading.
	Spec    SandboxSpec
	NetNS   string
	Joined  []*joined // in the order of joining
	Egress  *joined   // on the gateway bridge
	Bound   []BoundPort
	DNSPort uint16 // where its name server listens; 0: it has none
}

// joined is an endpoint and what was asked for it.
type joined struct {
	Endpoint
	Spec EndpointSpec
}

// all lists the endpoints, the gateway bridge's at the end.
func (s *sandbox) all() []*Endpoint {
	out := make([]*Endpoint, 0, len(s.Joined)+1)
	for _, j := range s.Joined {
		out = append(out, &j.Endpoint)
	}
	if s.Egress != nil {
		out = append(out, &s.Egress.Endpoint)
	}
	return out
}

func (s *sandbox) on(networkID string) *joined {
	for _, j := range s.Joined {
		if j.NetworkID == networkID {
			return j
		}
	}
	return nil
}

// Attach makes a sandbox and joins it to its networks. One that is there already is returned as it is. If it fails,
// nothing stays.
func (m *Manager) Attach(ctx context.Context, spec SandboxSpec) (*Sandbox, error) {
	if spec.ID == "" {
		return nil, fault.New(fault.InvalidArgument, "a sandbox needs an ID")
	}
	for {
		m.mu.Lock()
		sb, found := m.sandboxes[spec.ID]
		if !found {
			sb = &sandbox{Spec: spec}
			sb.op.Lock()
			m.sandboxes[spec.ID] = sb
		}
		m.mu.Unlock()
		if found {
			sb.op.Lock() // whoever is making it has finished
			gone := sb.gone
			sb.op.Unlock()
			if gone {
				continue
			}
			return m.result(sb), nil
		}
		err := m.attach(ctx, sb)
		if err != nil {
			sb.gone = true
			m.mu.Lock()
			delete(m.sandboxes, spec.ID)
			m.mu.Unlock()
		}
		sb.op.Unlock()
		if err != nil {
			return nil, err
		}
		return m.result(sb), nil
	}
}

func (m *Manager) attach(ctx context.Context, sb *sandbox) (err error) {
	u := undo.New()
	defer func() {
		if uerr := u.Run(); uerr != nil {
			m.log.Error("taking back a failed attach", "sandbox", sb.Spec.ID, "error", uerr)
		}
	}()
	specs := sb.Spec.Endpoints
	for i, es := range specs {
		if (es.Network == NameHost || es.Network == NameNone) && len(specs) > 1 {
			return fault.New(fault.InvalidArgument, "container cannot be connected to network %s and to others", es.Network)
		}
		for _, other := range specs[:i] {
			if other.Network == es.Network {
				return fault.New(fault.InvalidArgument, "network %s is given twice", es.Network)
			}
		}
	}
	if len(specs) == 1 && specs[0].Network == NameHost {
		if err := m.record(sb, NameHost); err != nil {
			return err
		}
		return m.keep(sb)
	}
	ns, err := m.spares.take()
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	u.Add(func() error { return netns.Remove(ns.Path()) })
	m.mu.Lock()
	sb.NetNS = ns.Path()
	m.mu.Unlock()
	if err := failpoint.Hit("network.attach.namespace"); err != nil {
		return err
	}
	u.Add(func() error { return m.leaveAll(sb) })
	switch {
	case len(specs) == 1 && specs[0].Network == NameNone:
		if err := m.record(sb, NameNone); err != nil {
			return err
		}
	case !sb.Spec.NoNetwork:
		for _, es := range specs {
			if _, err := m.join(ctx, sb, ns, es); err != nil {
				return err
			}
			if err := failpoint.Hit("network.attach.joined"); err != nil {
				return err
			}
		}
	}
	u.Add(func() error { return m.releasePorts(sb) })
	if err := m.reservePorts(sb); err != nil {
		return err
	}
	if err := failpoint.Hit("network.attach.reserved"); err != nil {
		return err
	}
	if err := m.settle(ctx, sb, ns); err != nil {
		return err
	}
	if err := failpoint.Hit("network.attach.settled"); err != nil {
		return err
	}
	if err := ns.Sysctl(sb.Spec.Sysctls); err != nil {
		return fault.As(fault.InvalidArgument, err)
	}
	u.Add(func() error { return m.boxes.remove(sb.Spec.ID) })
	if err := m.keep(sb); err != nil {
		return err
	}
	if err := failpoint.Hit("network.attach.stored"); err != nil {
		return err
	}
	u.Add(func() error {
		m.mu.Lock()
		port := sb.DNSPort
		sb.DNSPort = 0
		m.mu.Unlock()
		if port == 0 {
			return nil
		}
		return m.dns.publish(context.WithoutCancel(ctx))
	})
	if err := m.announce(ctx, sb); err != nil {
		return err
	}
	if err := failpoint.Hit("network.attach.named"); err != nil {
		return err
	}
	u.Done()
	return nil
}

// record notes that the sandbox is on one of the networks that need nothing in the kernel.
func (m *Manager) record(sb *sandbox, network string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find(network)
	if err != nil {
		return err
	}
	sb.Joined = append(sb.Joined, &joined{Endpoint: Endpoint{ID: newID(), NetworkID: n.ID, NetworkName: n.Spec.Name,
		SandboxID: sb.Spec.ID, Owner: sb.Spec.Owner}, Spec: sb.Spec.Endpoints[0]})
	return nil
}

// join gives the sandbox an interface on a network. sb.op is held.
func (m *Manager) join(ctx context.Context, sb *sandbox, ns *netns.NS, es EndpointSpec) (*joined, error) {
	u := undo.New()
	defer func() { _ = u.Run() }()
	j, n, err := m.enlist(sb, es)
	if fault.Is(err, fault.AlreadyExists) || fault.Is(err, fault.Exhausted) {
		m.tear.wait(ctx) // the address may be that of a sandbox that is on its way out
		j, n, err = m.enlist(sb, es)
	}
	if err != nil {
		return nil, err
	}
	u.Add(func() error { m.delist(sb, j); return nil })
	if err := failpoint.Hit("network.join.address"); err != nil {
		return nil, err
	}
	if err := allowIPv6(ns, j.IPv6.IsValid()); err != nil {
		return nil, err
	}
	d := m.driverOf(n)
	u.Add(func() error { return d.detach(context.WithoutCancel(ctx), n, &j.Endpoint) })
	if err := d.attach(ctx, n, &j.Endpoint, ns); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("network.join.attached"); err != nil {
		return nil, err
	}
	if err := endpointSysctls(ns, j); err != nil {
		return nil, err
	}
	if n.Scope == ScopeSwarm {
		u.Add(func() error { m.cluster.detached(context.WithoutCancel(ctx), m.ref(sb)); return nil })
		if err := m.cluster.attached(ctx, m.ref(sb)); err != nil {
			return nil, err
		}
	}
	u.Done()
	return j, nil
}

// allowIPv6 says whether the next interface of the namespace has IPv6.
func allowIPv6(ns *netns.NS, yes bool) error {
	if !yes {
		return nil // the state that prepare left
	}
	return ns.Sysctl(map[string]string{"net.ipv6.conf.default.disable_ipv6": "0"})
}

// endpointSysctls writes the settings that an endpoint's options ask for; IFNAME stands for its interface. With IPv6
// taken in for this interface, the next one is without again.
func endpointSysctls(ns *netns.NS, j *joined) error {
	settings := map[string]string{}
	if j.IPv6.IsValid() {
		settings["net.ipv6.conf.default.disable_ipv6"] = "1"
	}
	for kv := range strings.SplitSeq(j.Spec.DriverOpts[optSysctls], ",") {
		if kv == "" {
			continue
		}
		k, v, ok := strings.Cut(kv, "=")
		if !ok || !strings.Contains(k, ".IFNAME.") {
			return fault.New(fault.InvalidArgument, "invalid endpoint sysctl %q: want net.FAMILY.conf.IFNAME.NAME=VALUE", kv)
		}
		settings[strings.ReplaceAll(k, "IFNAME", j.Interface)] = v
	}
	if len(settings) == 0 {
		return nil
	}
	return ns.Sysctl(settings)
}

// enlist takes addresses for a new endpoint and enters it in the books.
func (m *Manager) enlist(sb *sandbox, es EndpointSpec) (*joined, *Network, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := es.Network
	if name == "" || name == "default" {
		name = NameBridge
	}
	n, err := m.find(name)
	if err != nil {
		return nil, nil, err
	}
	if n.Spec.Driver == DriverHost || n.Spec.Driver == DriverNull {
		return nil, nil, fault.New(fault.InvalidArgument, "container cannot be connected to network %s while it is on others", n.Spec.Name)
	}
	for _, j := range sb.Joined {
		if o := m.networks[j.NetworkID]; o != nil && o.Spec.Driver == DriverNull {
			return nil, nil, fault.New(fault.InvalidArgument, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
		}
	}
	if sb.on(n.ID) != nil {
		return nil, nil, fault.New(fault.Forbidden, "endpoint with name %s already exists in network %s", sb.Spec.Owner, n.Spec.Name)
	}
	if n.Spec.Name == NameBridge && n.Scope == ScopeLocal {
		switch {
		case len(es.Aliases) > 0:
			return nil, nil, fault.New(fault.InvalidArgument, "network-scoped aliases are only supported for user-defined networks")
		case es.IPv4.IsValid() || es.IPv6.IsValid():
			return nil, nil, fault.New(fault.InvalidArgument, "user specified IP address is supported on user defined networks only")
		}
	}
	j := &joined{Spec: es, Endpoint: Endpoint{ID: newID(), NetworkID: n.ID, NetworkName: n.Spec.Name, SandboxID: sb.Spec.ID,
		Owner: sb.Spec.Owner, Aliases: slices.Clone(es.Aliases), MAC: es.MAC}}
	if j.Interface, err = sb.nextInterface(es.DriverOpts[optIfName]); err != nil {
		return nil, nil, err
	}
	if n.Scope == ScopeSwarm {
		err = j.given(n, es)
	} else {
		err = m.allocate(n, j, es)
	}
	if err != nil {
		return nil, nil, err
	}
	if j.MAC == "" {
		a := j.IPv4.Addr()
		if !a.IsValid() {
			a = j.IPv6.Addr()
		}
		j.MAC = cloud.MAC(a)
	}
	if n.userDefined() {
		j.DNSNames = dnsNames(sb.Spec, es)
	}
	if n.Spec.Name == gatewayBridge && n.Scope == ScopeLocal && name == gatewayBridge && es.DriverOpts == nil && es.Task == egressTask {
		sb.Egress = j
	} else {
		sb.Joined = append(sb.Joined, j)
	}
	copied := *n
	return j, &copied, nil
}

// egressTask marks the endpoint that the manager itself makes on the gateway bridge.
const egressTask = "egress"

// given takes the addresses that the cluster's allocator gave.
func (j *joined) given(n *Network, es EndpointSpec) error {
	for _, c := range n.Subnets {
		switch {
		case es.IPv4.IsValid() && c.Subnet.Contains(es.IPv4):
			j.IPv4 = netip.PrefixFrom(es.IPv4, c.Subnet.Bits())
		case es.IPv6.IsValid() && c.Subnet.Contains(es.IPv6):
			j.IPv6 = netip.PrefixFrom(es.IPv6, c.Subnet.Bits())
		}
	}
	if !j.IPv4.IsValid() && !j.IPv6.IsValid() {
		return fault.New(fault.FailedPrecondition, "network %s: the cluster gave no address of its subnets to %s", n.Spec.Name, j.Owner)
	}
	return nil
}

// nextInterface is the wanted interface name, or the first free one of eth0, eth1, …
func (s *sandbox) nextInterface(want string) (string, error) {
	taken := map[string]bool{"lo": true}
	for _, e := range s.all() {
		taken[e.Interface] = true
	}
	if want != "" {
		if taken[want] || len(want) > 15 || strings.ContainsAny(want, "/ :") {
			return "", fault.New(fault.InvalidArgument, "invalid interface name %q: it is taken, too long or has characters that cannot be in one", want)
		}
		return want, nil
	}
	for i := 0; ; i++ {
		if name := fmt.Sprintf("eth%d", i); !taken[name] {
			return name, nil
		}
	}
}

// delist takes an endpoint out of the books and frees its addresses.
func (m *Manager) delist(sb *sandbox, j *joined) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sb.Joined = slices.DeleteFunc(sb.Joined, func(o *joined) bool { return o == j })
	if sb.Egress == j {
		sb.Egress = nil
	}
	m.free(&j.Endpoint)
}

// leaveAll takes all endpoints of a sandbox away, the newest first.
func (m *Manager) leaveAll(sb *sandbox) error {
	var errs []error
	if sb.Egress != nil {
		errs = append(errs, m.leave(sb, sb.Egress))
	}
	for _, j := range slices.Backward(slices.Clone(sb.Joined)) {
		errs = append(errs, m.leave(sb, j))
	}
	return errors.Join(errs...)
}

// leave takes one endpoint away, at once.
func (m *Manager) leave(sb *sandbox, j *joined) error {
	n := m.networkOf(&j.Endpoint)
	err := m.driverOf(n).detach(context.Background(), n, &j.Endpoint)
	m.delist(sb, j)
	if n.Scope == ScopeSwarm {
		m.cluster.detached(context.Background(), m.ref(sb))
	}
	return err
}

// networkOf is a copy of the endpoint's network; where that is gone (the cluster has taken it away) one with its name
// and ID only.
func (m *Manager) networkOf(e *Endpoint) *Network {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n, ok := m.networks[e.NetworkID]; ok {
		copied := *n
		return &copied
	}
	return &Network{ID: e.NetworkID, Scope: ScopeSwarm, Spec: Spec{Name: e.NetworkName, Driver: DriverOverlay}}
}

func (m *Manager) driverOf(n *Network) driver {
	switch {
	case n.Scope == ScopeSwarm:
		return m.cluster.driver()
	case n.Spec.Driver == DriverBridge:
		return m.bridges
	}
	return nothing{}
}

// nothing is the driver of "host" and "none".
type nothing struct{}

func (nothing) attach(context.Context, *Network, *Endpoint, *netns.NS) error { return nil }
func (nothing) detach(context.Context, *Network, *Endpoint) error            { return nil }

// settle makes what depends on all endpoints together what it should be: the way out by the gateway bridge, default
// routes, the endpoint that carries the published ports, and the way to the name server. sb.op is held.
func (m *Manager) settle(ctx context.Context, sb *sandbox, ns *netns.NS) error {
	needs, has := false, false
	for _, j := range sb.Joined {
		n := m.networkOf(&j.Endpoint)
		has = has || j.Gateway4.IsValid() || j.Gateway6.IsValid()
		needs = needs || n.Scope == ScopeSwarm && !n.Spec.Internal
	}
	switch {
	case needs && !has && sb.Egress == nil:
		if err := m.ensureGatewayBridge(); err != nil {
			return err
		}
		if _, err := m.join(ctx, sb, ns, EndpointSpec{Network: gatewayBridge, Task: egressTask}); err != nil {
			return err
		}
	case sb.Egress != nil && (has || !needs):
		if err := m.unpublish(sb); err != nil {
			return err
		}
		if err := m.leave(sb, sb.Egress); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("network.settle.egress"); err != nil {
		return err
	}
	if err := m.routes(sb, ns); err != nil {
		return err
	}
	if err := failpoint.Hit("network.settle.routes"); err != nil {
		return err
	}
	if err := m.publishPorts(sb); err != nil {
		return err
	}
	if err := failpoint.Hit("network.settle.published"); err != nil {
		return err
	}
	return m.redirect(sb, ns)
}

// gateways are the endpoints that the default routes of IPv4 and IPv6 go by: the one of the highest priority, then the
// first by network name, as Docker chooses.
func (s *sandbox) gateways() (v4, v6 *joined) {
	all := slices.Clone(s.Joined)
	if s.Egress != nil {
		all = append(all, s.Egress)
	}
	better := func(a, b *joined) bool {
		if b == nil || a.Spec.GwPriority != b.Spec.GwPriority {
			return b == nil || a.Spec.GwPriority > b.Spec.GwPriority
		}
		return a.NetworkName < b.NetworkName
	}
	for _, j := range all {
		if j.Gateway4.IsValid() && better(j, v4) {
			v4 = j
		}
		if j.Gateway6.IsValid() && better(j, v6) {
			v6 = j
		}
	}
	return v4, v6
}

func (m *Manager) routes(sb *sandbox, ns *netns.NS) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	v4, v6 := sb.gateways()
	for _, r := range []struct {
		j  *joined
		gw func(*joined) netip.Addr
		v6 bool
	}{{v4, func(j *joined) netip.Addr { return j.Gateway4 }, false}, {v6, func(j *joined) netip.Addr { return j.Gateway6 }, true}} {
		if r.j == nil {
			continue // the kernel dropped the route with the interface
		}
		index, err := link.Index(h, r.j.Interface)
		if err != nil {
			return err
		}
		if err := link.SetRoute(h, link.Route{Via: r.gw(r.j), Index: index}); err != nil {
			return err
		}
	}
	return nil
}

// keep writes the sandbox to disk.
func (m *Manager) keep(sb *sandbox) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boxes.put(sb.Spec.ID, sb, false)
}

// Detach takes a sandbox away: its ports, names and addresses are free on return, its namespace and links go in the
// background. One that is not there is no error.
func (m *Manager) Detach(ctx context.Context, sandboxID string) error {
	m.mu.Lock()
	sb, ok := m.sandboxes[sandboxID]
	m.mu.Unlock()
	if !ok {
		return nil
	}
	sb.op.Lock()
	defer sb.op.Unlock()
	if sb.gone {
		return nil
	}
	sb.gone = true
	err := m.releasePorts(sb)
	m.mu.Lock()
	named := sb.DNSPort != 0
	delete(m.sandboxes, sandboxID)
	m.mu.Unlock()
	err = errors.Join(err, m.boxes.remove(sandboxID))
	if named {
		// The name server holds sockets in the namespace, which lives as long as they do.
		err = errors.Join(err, m.dns.publish(ctx))
	}
	m.tear.add(sb)
	return err
}

// Connect joins a sandbox to one more network while it runs.
func (m *Manager) Connect(ctx context.Context, sandboxID string, es EndpointSpec) (Endpoint, error) {
	var ep Endpoint
	err := m.change(ctx, sandboxID, func(sb *sandbox, ns *netns.NS, u *undo.Stack) error {
		j, err := m.join(ctx, sb, ns, es)
		if err != nil {
			return err
		}
		u.Add(func() error { return m.leave(sb, j) })
		ep = j.Endpoint
		return nil
	})
	return ep, err
}

// Disconnect takes a sandbox off a network while it runs.
func (m *Manager) Disconnect(ctx context.Context, sandboxID string, network string) error {
	return m.change(ctx, sandboxID, func(sb *sandbox, _ *netns.NS, _ *undo.Stack) error {
		m.mu.Lock()
		n, err := m.find(network)
		id := network // one that the cluster has taken away is known by the endpoint only
		if err == nil {
			id = n.ID
		}
		var j *joined
		for _, o := range sb.Joined {
			if o.NetworkID == id || err != nil && o.NetworkName == network {
				j = o
			}
		}
		m.mu.Unlock()
		if j == nil {
			if err != nil {
				return err
			}
			return fault.New(fault.Forbidden, "container %s is not connected to network %s", sandboxID, n.Spec.Name)
		}
		if v4, v6 := sb.gateways(); v4 == j || v6 == j {
			if err := m.unpublish(sb); err != nil {
				return err
			}
		}
		return m.leave(sb, j)
	})
}

// change does something to a sandbox that is there, and settles it.
func (m *Manager) change(ctx context.Context, sandboxID string, f func(*sandbox, *netns.NS, *undo.Stack) error) error {
	m.mu.Lock()
	sb, ok := m.sandboxes[sandboxID]
	m.mu.Unlock()
	if !ok {
		return fault.New(fault.NotFound, "no sandbox %s: the container is not running", sandboxID)
	}
	sb.op.Lock()
	defer sb.op.Unlock()
	if sb.gone {
		return fault.New(fault.NotFound, "no sandbox %s: the container is not running", sandboxID)
	}
	if sb.NetNS == "" {
		return fault.New(fault.InvalidArgument, "container sharing network namespace with another container or host cannot be connected to any other network")
	}
	ns, err := netns.Open(sb.NetNS)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	u := undo.New()
	defer func() {
		// Taken back, the sandbox must be settled as it was.
		if err := u.Run(); err != nil {
			m.log.Error("taking back a failed change of a sandbox", "sandbox", sandboxID, "error", err)
		}
	}()
	u.Add(func() error { return errors.Join(m.settle(context.WithoutCancel(ctx), sb, ns), m.keep(sb)) })
	if err := f(sb, ns, u); err != nil {
		return err
	}
	if err := failpoint.Hit("network.change.done"); err != nil {
		return err
	}
	if err := m.settle(ctx, sb, ns); err != nil {
		return err
	}
	if err := m.keep(sb); err != nil {
		return err
	}
	if err := failpoint.Hit("network.change.kept"); err != nil {
		return err
	}
	if err := m.announce(ctx, sb); err != nil {
		return err
	}
	u.Done()
	return nil
}

// Rename gives a sandbox's owner, the container, another name: its DNS name follows.
func (m *Manager) Rename(ctx context.Context, sandboxID, owner string) error {
	m.mu.Lock()
	sb, ok := m.sandboxes[sandboxID]
	m.mu.Unlock()
	if !ok {
		return nil // its next sandbox has the new name from the start
	}
	sb.op.Lock()
	defer sb.op.Unlock()
	m.mu.Lock()
	sb.Spec.Owner = owner
	for _, e := range sb.all() {
		e.Owner = owner
	}
	for _, j := range sb.Joined {
		if len(j.DNSNames) > 0 {
			j.DNSNames = dnsNames(sb.Spec, j.Spec)
		}
	}
	m.mu.Unlock()
	if sb.gone {
		return nil
	}
	if err := m.keep(sb); err != nil {
		return err
	}
	return m.announce(ctx, sb)
}

// Sandbox returns a sandbox as it is.
func (m *Manager) Sandbox(id string) (*Sandbox, bool) {
	m.mu.Lock()
	sb, ok := m.sandboxes[id]
	m.mu.Unlock()
	if !ok {
		return nil, false
	}
	sb.op.Lock()
	gone := sb.gone
	sb.op.Unlock()
	if gone {
		return nil, false
	}
	return m.result(sb), true
}

// result is a sandbox as told to the outside: a copy.
func (m *Manager) result(sb *sandbox) *Sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &Sandbox{ID: sb.Spec.ID, NetNS: sb.NetNS, Ports: slices.Clone(sb.Bound)}
	for _, j := range sb.Joined {
		out.Endpoints = append(out.Endpoints, j.copy())
	}
	if sb.NetNS != "" {
		out.ResolvConf, out.Hosts = m.resolvConf(sb), hostsLines(sb)
	}
	return out
}

func (j *joined) copy() Endpoint {
	e := j.Endpoint
	e.Aliases, e.DNSNames = slices.Clone(e.Aliases), slices.Clone(e.DNSNames)
	return e
}

// ref is the sandbox as told to the cluster's side.
func (m *Manager) ref(sb *sandbox) sandboxRef {
	m.mu.Lock()
	defer m.mu.Unlock()
	return sb.ref()
}

func (s *sandbox) ref() sandboxRef {
	r := sandboxRef{ID: s.Spec.ID, NetNS: s.NetNS}
	for _, j := range s.Joined {
		r.Endpoints = append(r.Endpoints, j.copy())
	}
	return r
}

// sandboxesOn lists the sandboxes that are on a network; an empty ID lists all that have a namespace.
func (m *Manager) sandboxesOn(networkID string) []sandboxRef {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []sandboxRef
	for _, id := range slices.Sorted(maps.Keys(m.sandboxes)) {
		sb := m.sandboxes[id]
		if sb.NetNS != "" && (networkID == "" || sb.on(networkID) != nil) {
			out = append(out, sb.ref())
		}
	}
	return out
}

// Keep removes every sandbox that is not named: after a restart, those whose containers are gone.
func (m *Manager) Keep(ids []string) {
	m.mu.Lock()
	all := slices.Collect(maps.Keys(m.sandboxes))
	m.mu.Unlock()
	for _, id := range all {
		if slices.Contains(ids, id) {
			continue
		}
		m.log.Info("removing a sandbox that nothing uses", "sandbox", id)
		if err := m.Detach(context.Background(), id); err != nil {
			m.log.Error("removing a sandbox that nothing uses", "sandbox", id, "error", err)
		}
	}
}
