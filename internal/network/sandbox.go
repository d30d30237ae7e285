package network

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

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
	BoundAs string // where Bound is for; see bindTo.kind
	DNSPort uint16 // where its name server listens; 0: it has none
}

// joined is an endpoint and what was asked for it.
type joined struct {
	Endpoint
	Spec EndpointSpec

	// What follows from its network: how that reaches the world, empty where nothing is published, and whether published
	// ports are open at the endpoint's own address.
	mode4, mode6 gatewayMode
	open4, open6 bool
}

// follow notes what follows from the endpoint's network.
func (j *joined) follow(n *Network, direct bool) {
	j.mode4, j.mode6 = n.mode(false), n.mode(true)
	direct = direct || len(n.bridge().trusted) > 0
	j.open4 = j.mode4 == modeRouted || j.mode4 == modeNAT && direct
	j.open6 = j.mode6 == modeRouted || j.mode6 == modeNAT && direct
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
		m.tear.waitFor(ctx, spec.ID)
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
	take := m.spares.take
	if given := sb.Spec.Namespace; given != "" {
		take = func() (*netns.NS, error) { return m.spares.adopt(given) }
	}
	ns, err := take()
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

// settle makes what depends on all endpoints together what it should be: the way out by the gateway bridge, default
// routes, the endpoint that carries the published ports, and the way to the name server. sb.op is held.
func (m *Manager) settle(ctx context.Context, sb *sandbox, ns *netns.NS) error {
	needs, has := false, false
	for _, j := range sb.Joined {
		n := m.networkOf(&j.Endpoint)
		has = has || j.Gateway4.IsValid() || j.Gateway6.IsValid() || j.OnLink4 || j.OnLink6
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
	if err := m.rebind(sb); err != nil {
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
		if (j.Gateway4.IsValid() || j.OnLink4) && better(j, v4) {
			v4 = j
		}
		if (j.Gateway6.IsValid() || j.OnLink6) && better(j, v6) {
			v6 = j
		}
	}
	return v4, v6
}

// carriers are the endpoints that published ports lead to.
func (s *sandbox) carriers() (v4, v6 *joined) {
	v4, v6 = s.gateways()
	if v4 != nil && v4.mode4 == "" {
		v4 = nil
	}
	if v6 != nil && v6.mode6 == "" {
		v6 = nil
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
		err = link.SetRoute(h, link.Route{Via: r.gw(r.j), Index: index, V6: r.v6})
		switch {
		case errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.EHOSTUNREACH):
			// The container has changed its interface, or the interface's parent is down: no reason to refuse what was
			// asked for.
			m.log.Warn("a sandbox has no way out", "sandbox", sb.Spec.ID, "network", r.j.NetworkName, "error", err)
		case err != nil:
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
	m.leaving[sb] = make(chan struct{})
	m.mu.Unlock()
	err = errors.Join(err, m.boxes.remove(sandboxID))
	if named {
		// The name server holds sockets in the namespace, which lives as long as they do.
		err = errors.Join(err, m.dns.publish(ctx))
	}
	m.tear.add(sb)
	return err
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
