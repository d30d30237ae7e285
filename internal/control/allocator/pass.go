package allocator

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
)

// encapsulation is what VXLAN over IPv4 adds to each packet.
const encapsulation = 50

const (
	defaultMTU      = 1500
	optionMTU       = "com.docker.network.driver.mtu"
	defaultPoolSize = 24
)

// defaultPools are where subnets come from if the cluster names none.
func defaultPools() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }

// pass is one look at the whole state and what is to be written for it.
type pass struct {
	*Allocator
	now     time.Time
	changes []func(state.WriteTx) error

	cluster *cloud.Cluster
	nets    map[string]*cloud.Network // by ID, with what this pass gave them
	byName  map[string]*cloud.Network
	netList []*cloud.Network
	nodeSet []*cloud.Node
	svcs    []*cloud.Service
	taskSet []*cloud.Task
	attachs []*cloud.Attachment

	spaces    map[string][]*space // by network
	endpoints map[string]cloud.Endpoint
}

func (a *Allocator) newPass(tx state.Tx) *pass {
	p := &pass{
		Allocator: a, now: time.Now().UTC(),
		nets: map[string]*cloud.Network{}, byName: map[string]*cloud.Network{},
		spaces: map[string][]*space{}, endpoints: map[string]cloud.Endpoint{},
		netList: state.List[*cloud.Network](tx, state.By{}),
		nodeSet: state.List[*cloud.Node](tx, state.By{}),
		svcs:    state.List[*cloud.Service](tx, state.By{}),
		taskSet: state.List[*cloud.Task](tx, state.By{}),
		attachs: state.List[*cloud.Attachment](tx, state.By{}),
	}
	if clusters := state.List[*cloud.Cluster](tx, state.By{}); len(clusters) > 0 {
		p.cluster = clusters[0]
	}
	for i, n := range p.netList {
		n = state.Clone(n)
		p.netList[i] = n
		p.nets[n.ID], p.byName[n.Spec.Name] = n, n
	}
	// The ingress network is the cluster's own and gets the first of everything.
	slices.SortStableFunc(p.netList, func(a, b *cloud.Network) int {
		switch {
		case a.Spec.Ingress == b.Spec.Ingress:
			return a.CompareAge(&b.Meta)
		case a.Spec.Ingress:
			return -1
		}
		return 1
	})
	return p
}

// network returns the network that a task's connection names, nil for one that only hosts have.
func (p *pass) network(target string) *cloud.Network {
	if n := p.nets[target]; n != nil {
		return n
	}
	return p.byName[target]
}

func (p *pass) ingress() *cloud.Network {
	for _, n := range p.netList {
		if n.Spec.Ingress {
			return n
		}
	}
	return nil
}

// networks gives VNIs, subnets and MTUs.
func (p *pass) networks() {
	vnis := map[uint32]bool{}
	var taken []netip.Prefix
	for _, n := range p.netList {
		vnis[n.Status.VNI] = true
		for _, s := range slices.Concat(n.Status.Subnets, n.Spec.IPAM) {
			taken = append(taken, s.Subnet)
		}
	}
	for _, n := range p.nodeSet {
		taken = append(taken, n.Description.Subnets...)
		for _, a := range n.Status.Addrs {
			taken = append(taken, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	least := p.leastMTU()
	next := uint32(firstVNI)
	if p.cluster != nil {
		next = max(next, p.cluster.Status.NextVNI)
	}
	given := false
	for _, n := range p.netList {
		want := n.Status
		if want.VNI == 0 {
			for range lastVNI {
				v := next
				if next++; next > lastVNI {
					next = firstVNI
				}
				if !vnis[v] {
					want.VNI, vnis[v], given = v, true, true
					break
				}
			}
		}
		if len(want.Subnets) == 0 {
			want.Subnets, taken = p.subnets(n, want.VNI, taken)
		}
		want.MTU = p.mtu(n, least)
		if reflect.DeepEqual(want, n.Status) {
			p.open(n)
			continue
		}
		write(p, n, func(n *cloud.Network) { n.Status = want })
		n.Status = want
		p.open(n)
	}
	if given && p.cluster != nil {
		write(p, p.cluster, func(c *cloud.Cluster) { c.Status.NextVNI = next })
	}
	p.takeUsed()
}

// subnets completes the subnets that a network asked for; one without any gets one from the pools. It returns them and
// everything that is taken now.
func (p *pass) subnets(n *cloud.Network, vni uint32, taken []netip.Prefix) ([]cloud.IPAMConfig, []netip.Prefix) {
	asked := slices.Clone(n.Spec.IPAM)
	if len(asked) == 0 {
		asked = []cloud.IPAMConfig{{}}
	}
	has6 := slices.ContainsFunc(asked, func(c cloud.IPAMConfig) bool { return c.Subnet.IsValid() && c.Subnet.Addr().Is6() })
	if n.Spec.IPv6 && !has6 {
		asked = append(asked, cloud.IPAMConfig{Subnet: nextULA(vni)})
	}
	pools, size := defaultPools(), defaultPoolSize
	if p.cluster != nil {
		if len(p.cluster.Spec.AddressPools) > 0 {
			pools = p.cluster.Spec.AddressPools
		}
		if p.cluster.Spec.SubnetSize > 0 {
			size = p.cluster.Spec.SubnetSize
		}
	}
	var out []cloud.IPAMConfig
	for _, c := range asked {
		if !c.Subnet.IsValid() {
			cut, ok := nextSubnet(pools, size, taken, p.cursors)
			if !ok {
				p.logger.Warn("no subnet left in the cluster's address pools", "network", n.Spec.Name)
				return nil, taken
			}
			c.Subnet = cut
		}
		c.Subnet = c.Subnet.Masked()
		taken = append(taken, c.Subnet)
		if !c.Gateway.IsValid() {
			from := c.Subnet
			if c.Range.IsValid() {
				from = c.Range.Masked()
			}
			c.Gateway = from.Addr()
			if c.Gateway == c.Subnet.Addr() {
				c.Gateway = c.Gateway.Next()
			}
			for _, aux := range c.Aux { // the first address may be spoken for
				if aux == c.Gateway {
					c.Gateway = c.Gateway.Next()
				}
			}
		}
		out = append(out, c)
	}
	return out, taken
}

// leastMTU returns the smallest MTU that any node's underlay has.
func (p *pass) leastMTU() int {
	least := 0
	for _, n := range p.nodeSet {
		if m := n.Description.UnderlayMTU; m > 0 && (least == 0 || m < least) {
			least = m
		}
	}
	if least == 0 {
		return defaultMTU
	}
	return least
}

func (p *pass) mtu(n *cloud.Network, least int) int {
	if asked, err := strconv.Atoi(n.Spec.Options[optionMTU]); err == nil && asked > 0 {
		return asked
	}
	return least - encapsulation
}

// open makes a network's addresses available.
func (p *pass) open(n *cloud.Network) {
	var spaces []*space
	for _, c := range n.Status.Subnets {
		spaces = append(spaces, newSpace(c, p.cursors))
	}
	p.spaces[n.ID] = spaces
}

// takeUsed marks every address that something has.
func (p *pass) takeUsed() {
	take := func(network string, addr netip.Addr) {
		for _, s := range p.spaces[network] {
			s.take(addr)
		}
	}
	if ingress := p.ingress(); ingress != nil {
		for _, n := range p.nodeSet {
			for _, a := range n.Ingress.Addrs {
				take(ingress.ID, a)
			}
		}
	}
	for _, s := range p.svcs {
		for _, v := range s.Endpoint.VIPs {
			for _, a := range v.Addrs {
				take(v.NetworkID, a.Addr())
			}
		}
	}
	for _, t := range p.taskSet {
		if t.Status.State.Ended() {
			continue
		}
		for _, n := range t.Networks {
			for _, a := range n.Addrs {
				take(n.NetworkID, a.Addr())
			}
		}
	}
	for _, at := range p.attachs {
		for _, a := range at.Addrs {
			take(at.NetworkID, a.Addr())
		}
	}
}

// addresses gives one address of each subnet of a network, or none.
func (p *pass) addresses(n *cloud.Network) ([]netip.Prefix, error) {
	spaces := p.spaces[n.ID]
	if len(spaces) == 0 {
		return nil, fmt.Errorf("network %s has no subnet yet: the cluster's address pools are used up", n.Spec.Name)
	}
	var out []netip.Prefix
	for _, s := range spaces {
		a, ok := s.next()
		if !ok {
			for _, given := range out {
				p.release(n.ID, given.Addr())
			}
			return nil, fmt.Errorf("no available addresses on network %s (%s)", n.Spec.Name, s.subnet.Subnet)
		}
		out = append(out, a)
	}
	return out, nil
}

func (p *pass) release(network string, a netip.Addr) {
	for _, s := range p.spaces[network] {
		delete(s.used, a)
	}
}

// nodes gives each node its leg on the ingress network: the address from which it forwards what comes to published
// ports, and the mark that brings the replies back through it.
func (p *pass) nodes() {
	ingress := p.ingress()
	if ingress == nil {
		return
	}
	marks := map[uint32]bool{}
	for _, n := range p.nodeSet {
		marks[n.Ingress.Mark] = true
	}
	for _, n := range p.nodeSet {
		leg := n.Ingress
		usable := len(leg.Addrs) > 0
		for _, a := range leg.Addrs { // the ingress network may have been made anew with other subnets
			usable = usable && slices.ContainsFunc(ingress.Status.Subnets, func(c cloud.IPAMConfig) bool { return c.Subnet.Contains(a) })
		}
		if !usable {
			given, err := p.addresses(ingress)
			if err != nil {
				p.logger.Warn("a node gets no place on the ingress network: its published ports do not work", "node", n.ID, "error", err)
				continue
			}
			leg.Addrs = nil
			for _, a := range given {
				leg.Addrs = append(leg.Addrs, a.Addr())
			}
		}
		for i := 1; leg.Mark == 0 && i <= maxIngressMark; i++ {
			if m := uint32(i) << cloud.IngressMarkShift; !marks[m] {
				leg.Mark, marks[m] = m, true
			}
		}
		if leg.Mark != n.Ingress.Mark || !slices.Equal(leg.Addrs, n.Ingress.Addrs) {
			write(p, n, func(n *cloud.Node) { n.Ingress = leg })
		}
	}
}

// services gives virtual addresses and dynamic ports.
func (p *pass) services() {
	type taken struct {
		protocol cloud.Protocol
		port     uint16
	}
	ports := map[taken]bool{}
	for _, s := range p.svcs {
		for _, q := range slices.Concat(s.Spec.Endpoint.Ports, s.Endpoint.Ports) {
			if q.IngressMode() && q.Published != 0 {
				ports[taken{q.Protocol, q.Published}] = true
			}
		}
	}
	for _, s := range p.svcs {
		want := cloud.Endpoint{Mode: s.Spec.Endpoint.Mode}
		if want.Mode == "" {
			want.Mode = cloud.EndpointVIP
		}
		var failure error
		for _, q := range s.Spec.Endpoint.Ports {
			if q.Mode == "" {
				q.Mode = cloud.PublishIngress
			}
			if q.Protocol == "" {
				q.Protocol = cloud.TCP
			}
			if q.Published == 0 && q.IngressMode() {
				i := slices.IndexFunc(s.Endpoint.Ports, func(old cloud.PortConfig) bool {
					return old.IngressMode() && old.Protocol == q.Protocol && old.Target == q.Target && old.Name == q.Name &&
						old.Published >= firstDynamicPort && !slices.ContainsFunc(want.Ports, func(w cloud.PortConfig) bool {
						return w.Protocol == old.Protocol && w.Published == old.Published
					})
				})
				if i >= 0 {
					q.Published = s.Endpoint.Ports[i].Published
				} else {
					at := p.cursors.ports[q.Protocol]
					for range lastDynamicPort - firstDynamicPort + 1 {
						if at++; at < firstDynamicPort || at > lastDynamicPort {
							at = firstDynamicPort
						}
						if !ports[taken{q.Protocol, at}] {
							q.Published = at
							ports[taken{q.Protocol, at}] = true
							p.cursors.ports[q.Protocol] = at
							break
						}
					}
				}
				if q.Published == 0 {
					failure = fmt.Errorf("no dynamic port is left for port %d", q.Target)
				}
			}
			want.Ports = append(want.Ports, q)
		}
		if want.Mode == cloud.EndpointVIP {
			for _, n := range p.serviceNetworks(s) {
				i := slices.IndexFunc(s.Endpoint.VIPs, func(v cloud.VirtualIP) bool { return v.NetworkID == n.ID })
				if i >= 0 && p.fits(n, s.Endpoint.VIPs[i].Addrs) {
					want.VIPs = append(want.VIPs, s.Endpoint.VIPs[i])
					continue
				}
				given, err := p.addresses(n)
				if err != nil {
					failure = err
					continue
				}
				want.VIPs = append(want.VIPs, cloud.VirtualIP{NetworkID: n.ID, Addrs: given})
			}
		}
		p.endpoints[s.ID] = want
		if failure != nil {
			p.logger.Warn("service lacks addresses or ports", "service", s.Spec.Name, "error", failure)
		}
		if !reflect.DeepEqual(want, s.Endpoint) {
			write(p, s, func(s *cloud.Service) { s.Endpoint = want })
		}
	}
}

// fits reports whether addresses still belong to the network's subnets.
func (p *pass) fits(n *cloud.Network, addrs []netip.Prefix) bool {
	if len(addrs) != len(n.Status.Subnets) {
		return false
	}
	for _, a := range addrs {
		if !slices.ContainsFunc(n.Status.Subnets, func(c cloud.IPAMConfig) bool { return c.Subnet.Contains(a.Addr()) }) {
			return false
		}
	}
	return true
}

// serviceNetworks returns the cluster networks that the service's tasks are on, the ingress network last.
func (p *pass) serviceNetworks(s *cloud.Service) []*cloud.Network {
	var out []*cloud.Network
	for _, c := range s.Spec.Task.Networks {
		if n := p.network(c.Target); n != nil && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	if n := p.ingress(); n != nil && s.Spec.Endpoint.PublishesIngress() {
		out = append(out, n)
	}
	return out
}

// tasks gives new tasks their addresses, and with them the right to be placed.
func (p *pass) tasks() {
	svcs := map[string]*cloud.Service{}
	for _, s := range p.svcs {
		svcs[s.ID] = s
	}
	for _, t := range p.taskSet {
		svc := svcs[t.ServiceID]
		if t.Status.State != cloud.TaskNew || t.Desired > cloud.TaskRunning || svc == nil {
			continue
		}
		networks, err := p.taskNetworks(t, svc)
		if err != nil {
			if t.Status.Err != err.Error() {
				write(p, t, func(t *cloud.Task) { t.Status.Err = err.Error() })
			}
			continue
		}
		ports := p.endpoints[svc.ID].Ports
		write(p, t, func(t *cloud.Task) {
			t.Networks, t.Ports = networks, ports
			t.Status.State, t.Status.Timestamp = cloud.TaskPending, p.now
			t.Status.Message, t.Status.Err = "pending task scheduling", ""
		})
	}
}

func (p *pass) taskNetworks(t *cloud.Task, svc *cloud.Service) (out []cloud.TaskNetwork, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, n := range out {
			for _, a := range n.Addrs {
				p.release(n.NetworkID, a.Addr())
			}
		}
	}()
	join := func(n *cloud.Network, aliases []string) error {
		addrs, err := p.addresses(n)
		if err == nil {
			out = append(out, cloud.TaskNetwork{NetworkID: n.ID, Addrs: addrs, Aliases: aliases})
		}
		return err
	}
	for _, c := range t.Spec.Networks {
		n := p.network(c.Target)
		if n == nil {
			if cloud.PredefinedNetwork(c.Target) {
				continue
			}
			return out, fmt.Errorf("network %s not found", c.Target)
		}
		if err := join(n, c.Aliases); err != nil {
			return out, err
		}
	}
	if svc.Spec.Endpoint.PublishesIngress() {
		n := p.ingress()
		if n == nil {
			return out, fmt.Errorf("service needs ingress network, but no ingress network is present")
		}
		if err := join(n, nil); err != nil {
			return out, err
		}
	}
	return out, nil
}

// attachments gives standalone containers their addresses.
func (p *pass) attachments() {
	for _, at := range p.attachs {
		if len(at.Addrs) > 0 || at.Err != "" {
			continue
		}
		addrs, err := p.attach(at)
		write(p, at, func(at *cloud.Attachment) {
			if at.Addrs = addrs; err != nil {
				at.Err = err.Error()
			}
		})
	}
}

func (p *pass) attach(at *cloud.Attachment) ([]netip.Prefix, error) {
	n := p.nets[at.NetworkID]
	if n == nil {
		return nil, fmt.Errorf("network %s not found", at.NetworkID)
	}
	if len(at.Requested) == 0 {
		return p.addresses(n)
	}
	var out []netip.Prefix
	for _, s := range p.spaces[n.ID] {
		i := slices.IndexFunc(at.Requested, func(a netip.Addr) bool { return s.subnet.Subnet.Contains(a) })
		if i < 0 {
			a, ok := s.next()
			if !ok {
				return nil, fmt.Errorf("no available addresses on network %s (%s)", n.Spec.Name, s.subnet.Subnet)
			}
			out = append(out, a)
			continue
		}
		a := at.Requested[i]
		if s.used[a] {
			return nil, fmt.Errorf("Address already in use: %s on network %s", a, n.Spec.Name)
		}
		s.take(a)
		out = append(out, netip.PrefixFrom(a, s.subnet.Subnet.Bits()))
	}
	for _, a := range at.Requested {
		if !slices.ContainsFunc(out, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return nil, fmt.Errorf("invalid address %s: it does not belong to any of network %s's subnets", a, n.Spec.Name)
		}
	}
	return out, nil
}
