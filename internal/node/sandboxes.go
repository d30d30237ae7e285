package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
	"github.com/sampan-cloud/sampan/internal/node/config"
)

// labelTask marks the container of a cluster's task.
const labelTask = "com.docker.swarm.task.id"

// sandboxes gives the engine its networks (container.Networks): it puts a container's wishes into network's words and
// network's answers into the engine's.
type sandboxes struct {
	networks *network.Manager
	defaults config.Network // for what containers leave open
	// attach asks the cluster for an address of a standalone container on one of its networks; detach gives it back.
	attach func(ctx context.Context, c container.Container, net string, e network.EndpointSpec) (network.EndpointSpec, error)
	detach func(ctx context.Context, containerID, networkID string)
	// find says whether a network that this host does not have may be the cluster's, and what is known of it.
	find func(nameOrID string) (id, name string, ok bool)
	// get finds another container, for links.
	get func(id string) (container.Container, error)
}

// Attach makes the container's sandbox, of the network namespace that is pinned at ns if one is given.
func (s *sandboxes) Attach(ctx context.Context, c container.Container, ns string) (container.Attachment, error) {
	mode := modeOf(c.Config)
	spec := network.SandboxSpec{
		ID: c.ID, Namespace: ns, Owner: c.Config.Name, Hostname: c.Config.Hostname, Domain: c.Config.Domainname,
		Search: either(c.Config.Host.DNSSearch, s.defaults.DNSSearch), Options: either(c.Config.Host.DNSOptions, s.defaults.DNSOptions), Sysctls: netSysctls(c.Config.Host.Sysctls), Links: map[string][]netip.Addr{},
	}
	switch {
	case mode == network.NameHost:
		n, err := s.networks.Get(network.NameHost)
		if err != nil {
			return container.Attachment{}, err
		}
		return container.Attachment{Endpoints: map[string]container.Endpoint{n.Spec.Name: bareEndpoint(&n, c.ID)}}, nil
	case mode == network.NameNone && c.Config.Network.Left == "" || c.Config.NetworkDisabled:
		spec.NoNetwork = true
	default:
		for _, d := range either(c.Config.Host.DNS, s.defaults.DNS) {
			addr, err := netip.ParseAddr(d)
			if err != nil {
				return container.Attachment{}, fault.New(fault.InvalidArgument, "%s is not an ip address", d)
			}
			spec.DNS = append(spec.DNS, addr)
		}
		for name, e := range ordered(c.Config, s.endpointKey(c.Config, mode)) {
			if c.Config.Network.Left != "" {
				break // connected later perhaps, and its ports are published then
			}
			if name == network.NameBridge && s.defaults.Bridge == config.NoBridge {
				continue // as with dockerd: a loopback interface only, until it is connected to another network
			}
			endpoint, err := s.endpoint(ctx, c, name, e)
			if err != nil {
				return container.Attachment{}, err
			}
			spec.Endpoints = append(spec.Endpoints, endpoint)
		}
		spec.Ports = bindings(c.Config)
		if err := s.link(c, &spec); err != nil {
			return container.Attachment{}, err
		}
	}
	made, err := s.networks.Attach(ctx, spec)
	if err != nil {
		return container.Attachment{}, err
	}
	a := container.Attachment{SandboxID: made.ID, NetNS: made.NetNS, ResolvConf: made.ResolvConf, Hosts: made.Hosts, Endpoints: map[string]container.Endpoint{}}
	if spec.NoNetwork {
		if n, err := s.networks.Get(network.NameNone); err == nil {
			a.Endpoints[n.Spec.Name] = bareEndpoint(&n, c.ID)
		}
	}
	for _, e := range made.Endpoints {
		a.Endpoints[e.NetworkName] = s.endpointOf(e, wish(c.Config, e))
	}
	for _, p := range made.Ports {
		a.Ports = append(a.Ports, boundPort(p))
	}
	if s.defaults.LinkEnv && !spec.NoNetwork {
		a.Env = s.linkEnv(c)
	}
	return a, nil
}

func boundPort(p network.BoundPort) container.BoundPort {
	return container.BoundPort{Port: container.Port{Port: p.Port, Protocol: p.Protocol}, HostIP: p.HostIP, HostPort: p.HostPort}
}

// Ports are the container's published ports as they are now.
func (s *sandboxes) Ports(id string) []container.BoundPort {
	sb, ok := s.networks.Sandbox(id)
	if !ok {
		return nil
	}
	out := make([]container.BoundPort, 0, len(sb.Ports))
	for _, p := range sb.Ports {
		out = append(out, boundPort(p))
	}
	return out
}

// Detach gives up the container's sandbox.
func (s *sandboxes) Detach(ctx context.Context, id string) error {
	leased := s.leased(id)
	err := s.networks.Detach(ctx, id)
	if leased && s.detach != nil {
		s.detach(ctx, id, "")
	}
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// leased reports whether the container may have addresses that the cluster gave to it: a standalone one on a network of
// the cluster. A task's belong to the task.
func (s *sandboxes) leased(id string) bool {
	if c, err := s.get(id); err == nil && c.Config.Labels[labelTask] != "" {
		return false
	}
	sb, ok := s.networks.Sandbox(id)
	return !ok || slices.ContainsFunc(sb.Endpoints, func(e network.Endpoint) bool {
		n, err := s.networks.Get(e.NetworkID)
		return err != nil || n.Scope == network.ScopeSwarm
	})
}

// Connect joins a running container to a further network.
func (s *sandboxes) Connect(ctx context.Context, id, name string, e container.EndpointConfig) (container.Endpoint, error) {
	c, err := s.get(id)
	if err != nil {
		return container.Endpoint{}, err
	}
	spec, err := s.endpoint(ctx, c, name, e)
	if err != nil {
		return container.Endpoint{}, err
	}
	made, err := s.networks.Connect(ctx, id, spec)
	if err != nil {
		return container.Endpoint{}, err
	}
	return s.endpointOf(made, e), nil
}

// Disconnect takes a running container off a network.
func (s *sandboxes) Disconnect(ctx context.Context, id, name string) error {
	n, err := s.networks.Get(name)
	if err != nil {
		return err
	}
	if err := s.networks.Disconnect(ctx, id, n.ID); err != nil {
		return err
	}
	if n.Scope == network.ScopeSwarm && s.detach != nil {
		s.detach(ctx, id, n.ID)
	}
	return nil
}

// ResolvConf is what the container's resolv.conf should be now.
func (s *sandboxes) ResolvConf(id string) []byte {
	if sb, ok := s.networks.Sandbox(id); ok {
		return sb.ResolvConf
	}
	return nil
}

// Rename gives a running container its new name in the networks' names.
func (s *sandboxes) Rename(ctx context.Context, id, name string) error {
	return s.networks.Rename(ctx, id, name)
}

// ResolveNetwork finds a network by name or ID. One of the cluster's that nothing on this host is on is not here yet: it
// comes when a container is connected to it.
func (s *sandboxes) ResolveNetwork(nameOrID string) (id, name string, err error) {
	n, err := s.networks.Get(nameOrID)
	if fault.Is(err, fault.NotFound) && s.find != nil {
		if id, name, ok := s.find(nameOrID); ok {
			return id, name, nil
		}
	}
	if err != nil {
		return "", "", err
	}
	return n.ID, n.Spec.Name, nil
}

// endpoint puts one wish into network's words; on a cluster network, a container that is no task first gets its address
// from the managers.
func (s *sandboxes) endpoint(ctx context.Context, c container.Container, name string, e container.EndpointConfig) (network.EndpointSpec, error) {
	spec := network.EndpointSpec{Network: name, Aliases: e.Aliases, IPv4: e.IPv4, IPv6: e.IPv6, MAC: e.MAC, LinkLocal: e.LinkLocalIPs,
		Links: e.Links, GwPriority: e.GwPriority, DriverOpts: e.DriverOpts, Task: c.Config.Labels[labelTask]}
	if spec.Task != "" {
		return spec, nil
	}
	n, err := s.networks.Get(name)
	if err == nil && n.Scope == network.ScopeLocal {
		return spec, nil
	}
	if s.attach == nil {
		return spec, err
	}
	return s.attach(ctx, c, name, spec)
}

func modeOf(c container.Config) string {
	switch c.Host.NetworkMode {
	case "", "default":
		return network.NameBridge
	}
	return c.Host.NetworkMode
}

// endpointKey is what the endpoint of the mode's network is called in the configuration, which may name one by its ID and
// the other by its name.
func (s *sandboxes) endpointKey(c container.Config, mode string) string {
	if _, ok := c.Network.Endpoints[mode]; ok || len(c.Network.Endpoints) == 0 {
		return mode
	}
	if n, err := s.networks.Get(mode); err == nil {
		for _, key := range []string{n.ID, n.Spec.Name} {
			if _, ok := c.Network.Endpoints[key]; ok {
				return key
			}
		}
	}
	return mode
}

// ordered yields the endpoints that the configuration asks for, that of the network mode first, the others by name.
func ordered(c container.Config, mode string) func(yield func(string, container.EndpointConfig) bool) {
	return func(yield func(string, container.EndpointConfig) bool) {
		first := c.Network.Endpoints[mode]
		if c.Host.NetworkMode == "default" || c.Host.NetworkMode == "" {
			if e, ok := c.Network.Endpoints["default"]; ok {
				first = e
			}
		}
		if first.MAC == "" {
			first.MAC = c.Network.MAC
		}
		_, explicit := c.Network.Endpoints[mode]
		// docker network disconnect may have taken the network of the mode away again.
		if (explicit || len(c.Network.Endpoints) == 0 || mode == network.NameBridge && c.Host.NetworkMode != network.NameBridge) && !yield(mode, first) {
			return
		}
		names := make([]string, 0, len(c.Network.Endpoints))
		for name := range c.Network.Endpoints {
			if name != mode && name != "default" {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			if !yield(name, c.Network.Endpoints[name]) {
				return
			}
		}
	}
}

// wish returns what the configuration asked of the endpoint e.
func wish(c container.Config, e network.Endpoint) container.EndpointConfig {
	for _, key := range []string{e.NetworkName, e.NetworkID, "default"} {
		if w, ok := c.Network.Endpoints[key]; ok {
			return w
		}
	}
	return container.EndpointConfig{}
}

func (s *sandboxes) endpointOf(e network.Endpoint, wish container.EndpointConfig) container.Endpoint {
	out := container.Endpoint{
		Config: wish, NetworkID: e.NetworkID, NetworkName: e.NetworkName, EndpointID: e.ID, IPv4: e.IPv4, Gateway4: e.Gateway4,
		IPv6: e.IPv6, Gateway6: e.Gateway6, MAC: e.MAC, DNSNames: e.DNSNames,
	}
	if n, err := s.networks.Get(e.NetworkID); err == nil {
		out.Driver = driverOf(&n)
	}
	return out
}

// bareEndpoint is a container's endpoint on host or none, where nothing is made for it. It has an ID, as clients take one
// without for one that is not connected.
func bareEndpoint(n *network.Network, containerID string) container.Endpoint {
	id := sha256.Sum256([]byte(n.ID + containerID))
	return container.Endpoint{NetworkID: n.ID, NetworkName: n.Spec.Name, Driver: driverOf(n), EndpointID: hex.EncodeToString(id[:])}
}

func driverOf(n *network.Network) string { return cmp.Or(n.Spec.Driver, network.DriverBridge) }

// bindings are the ports to publish: those asked for, and with -P every exposed one.
func bindings(c container.Config) []network.PortBinding {
	var out []network.PortBinding
	bound := map[container.Port]bool{}
	for _, p := range c.Host.Ports {
		out = append(out, network.PortBinding{Protocol: p.Port.Protocol, Port: p.Port.Port, HostIP: p.HostIP, HostPort: p.HostPort, HostPortEnd: p.HostPortEnd})
		bound[p.Port] = true
	}
	if c.Host.PublishAllPorts {
		for _, p := range c.ExposedPorts {
			if !bound[p] {
				out = append(out, network.PortBinding{Protocol: p.Protocol, Port: p.Port})
			}
		}
	}
	return out
}

// netSysctls are the kernel settings that belong to the network namespace.
func netSysctls(all map[string]string) map[string]string {
	out := map[string]string{}
	for key, value := range all {
		if strings.HasPrefix(key, "net.") {
			out[key] = value
		}
	}
	return out
}

// either is a if there is anything in it, else b.
func either(a, b []string) []string {
	if len(a) > 0 {
		return a
	}
	return b
}
