package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

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
	u.Add(func() error { return d.detach(context.WithoutCancel(ctx), n, &j.Endpoint, ns.Path()) })
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
		parts := strings.Split(k, ".") // the docker command makes lower case of it
		if !ok || len(parts) != 5 || parts[0] != "net" || !strings.EqualFold(parts[3], "IFNAME") || !slices.Contains([]string{"ipv4", "ipv6", "mpls"}, parts[1]) {
			return fault.New(fault.InvalidArgument, "unrecognised network interface sysctl '%s'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', 'X' must be 'ipv4', 'ipv6' or 'mpls'", kv)
		}
		parts[3] = slashed(j.Interface)
		settings[strings.Join(parts, ".")] = v
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
	if n.Spec.ConfigOnly {
		return nil, nil, fault.New(fault.Forbidden, "cannot create endpoint on configuration-only network")
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
			return nil, nil, fault.New(fault.InvalidArgument, "user-specified IP address is supported on user-defined networks only")
		}
	}
	j := &joined{Spec: es, Endpoint: Endpoint{ID: newID(), NetworkID: n.ID, NetworkName: n.Spec.Name, SandboxID: sb.Spec.ID,
		Owner: sb.Spec.Owner, Aliases: slices.Clone(es.Aliases), MAC: es.MAC}}
	if j.Interface, err = sb.nextInterface(es.DriverOpts[optIfName], n.bridge().ifacePrefix); err != nil {
		return nil, nil, err
	}
	if n.Scope == ScopeSwarm {
		err = j.given(n, es)
	} else {
		err = m.allocate(n, j, es, sb.without6(es))
	}
	if err != nil {
		return nil, nil, err
	}
	j.follow(n, m.cfg.DirectRouting)
	if n.Spec.Driver == DriverIPvlan {
		j.MAC = "" // its parent's
	} else if j.MAC == "" {
		j.MAC = hardwareAddress(&j.Endpoint)
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

// without6 reports whether the kernel settings that were asked for turn IPv6 off, for the sandbox or for an endpoint: it
// then has no IPv6 address, and no name leads to one.
func (s *sandbox) without6(es EndpointSpec) bool {
	for _, which := range []string{"all", "default"} {
		if s.Spec.Sysctls["net.ipv6.conf."+which+".disable_ipv6"] == "1" {
			return true
		}
	}
	return slices.ContainsFunc(strings.Split(es.DriverOpts[optSysctls], ","), func(kv string) bool {
		return strings.EqualFold(kv, "net.ipv6.conf.IFNAME.disable_ipv6=1")
	})
}

// hardwareAddress is that of an endpoint which asks for none: made from its address, so that neighbours who remember one
// are right about the other.
func hardwareAddress(e *Endpoint) string {
	switch {
	case e.IPv4.IsValid():
		return cloud.MAC(e.IPv4.Addr())
	case e.IPv6.IsValid():
		return cloud.MAC(e.IPv6.Addr())
	}
	return "02:42:" + e.ID[0:2] + ":" + e.ID[2:4] + ":" + e.ID[4:6] + ":" + e.ID[6:8]
}

// egressTask marks the endpoint that the manager itself makes on the gateway bridge.
const egressTask = "egress"

// given takes the addresses that the cluster's allocator gave.
func (j *joined) given(n *Network, es EndpointSpec) error {
	for _, c := range n.Subnets {
		switch {
		case es.IPv4.IsValid() && c.Subnet.Contains(es.IPv4):
			j.IPv4 = netip.PrefixFrom(es.IPv4, c.Subnet.Bits())
		case es.IPv6.IsValid() && c.Subnet.Contains(es.IPv6) && (haveIPv6() || !es.IPv4.IsValid()):
			j.IPv6 = netip.PrefixFrom(es.IPv6, c.Subnet.Bits())
		}
	}
	if !j.IPv4.IsValid() && !j.IPv6.IsValid() {
		return fault.New(fault.FailedPrecondition, "network %s: the cluster gave no address of its subnets to %s", n.Spec.Name, j.Owner)
	}
	return nil
}

// nextInterface is the wanted interface name, or the first free one of PREFIX0, PREFIX1, …; the prefix is eth without
// another.
func (s *sandbox) nextInterface(want, prefix string) (string, error) {
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
		if name := fmt.Sprintf("%s%d", cmp.Or(prefix, "eth"), i); !taken[name] {
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
	err := m.driverOf(n).detach(context.Background(), n, &j.Endpoint, sb.NetNS)
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
	case m.locals[n.Spec.Driver] != nil:
		return m.locals[n.Spec.Driver]
	}
	return nothing{}
}

// nothing is the driver of "host" and "none".
type nothing struct{}

func (nothing) attach(context.Context, *Network, *Endpoint, *netns.NS) error { return nil }
func (nothing) detach(context.Context, *Network, *Endpoint, string) error    { return nil }
