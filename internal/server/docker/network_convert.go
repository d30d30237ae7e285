package docker

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
)

// ipamConfigs checks and converts the subnets of a create request.
func ipamConfigs(in *apinetwork.IPAM) ([]cloud.IPAMConfig, error) {
	if in == nil {
		return nil, nil
	}
	var out []cloud.IPAMConfig
	for _, c := range in.Config {
		cfg := cloud.IPAMConfig{Subnet: c.Subnet, Range: c.IPRange, Gateway: c.Gateway, Aux: c.AuxAddress}
		switch {
		case cfg.Subnet.IsValid() && cfg.Subnet != cfg.Subnet.Masked():
			return nil, fault.New(fault.InvalidArgument, "invalid subnet %s: it should be %s", cfg.Subnet, cfg.Subnet.Masked())
		case !cfg.Subnet.IsValid() && (cfg.Range.IsValid() || cfg.Gateway.IsValid() || len(cfg.Aux) > 0):
			return nil, fault.New(fault.InvalidArgument, "a gateway, a range or auxiliary addresses need a subnet: give one with --subnet")
		case cfg.Range.IsValid() && (cfg.Range.Bits() < cfg.Subnet.Bits() || !cfg.Subnet.Contains(cfg.Range.Addr())):
			return nil, fault.New(fault.InvalidArgument, "invalid ip-range %s: parent subnet %s doesn't contain it", cfg.Range, cfg.Subnet)
		case cfg.Gateway.IsValid() && !cfg.Subnet.Contains(cfg.Gateway):
			return nil, fault.New(fault.InvalidArgument, "invalid gateway %s: parent subnet %s doesn't contain this address", cfg.Gateway, cfg.Subnet)
		}
		for name, a := range cfg.Aux {
			if !cfg.Subnet.Contains(a) {
				return nil, fault.New(fault.InvalidArgument, "invalid auxiliary address %s (%s): parent subnet %s doesn't contain this address", a, name, cfg.Subnet)
			}
		}
		for _, other := range out {
			if cfg.Subnet.IsValid() && other.Subnet.Overlaps(cfg.Subnet) {
				return nil, fault.New(fault.InvalidArgument, "the subnets %s and %s overlap", other.Subnet, cfg.Subnet)
			}
		}
		out = append(out, cfg)
	}
	return out, nil
}

func localNetworkSpec(in *apinetwork.CreateRequest) (network.Spec, error) {
	ipam, err := ipamConfigs(in.IPAM)
	if err != nil {
		return network.Spec{}, err
	}
	spec := network.Spec{
		Name: in.Name, Driver: cmp.Or(in.Driver, network.DriverBridge), IPAM: ipam, Internal: in.Internal, Attachable: in.Attachable,
		IPv4: in.EnableIPv4 == nil || *in.EnableIPv4, IPv6: in.EnableIPv6 != nil && *in.EnableIPv6, Options: in.Options, Labels: in.Labels,
	}
	spec.NoAddresses = !spec.IPv4 && !spec.IPv6
	spec.ConfigOnly = in.ConfigOnly
	if in.ConfigFrom != nil {
		spec.ConfigFrom = in.ConfigFrom.Network
	}
	if in.IPAM != nil {
		spec.IPAMDriver, spec.IPAMOptions = in.IPAM.Driver, in.IPAM.Options
	}
	return spec, nil
}

func clusterNetworkSpec(in *apinetwork.CreateRequest) (cloud.NetworkSpec, error) {
	ipam, err := ipamConfigs(in.IPAM)
	if err != nil {
		return cloud.NetworkSpec{}, err
	}
	spec := cloud.NetworkSpec{
		Name: in.Name, Labels: in.Labels, Driver: cloud.DriverOverlay, Options: in.Options, Internal: in.Internal, Attachable: in.Attachable,
		Ingress: in.Ingress, IPv6: in.EnableIPv6 != nil && *in.EnableIPv6, IPAM: ipam,
	}
	if in.IPAM != nil {
		spec.IPAMOptions = in.IPAM.Options
	}
	return spec, nil
}

func wireNetwork(n anyNetwork) apinetwork.Network {
	if c := n.cluster; c != nil {
		subnets := c.Status.Subnets
		if len(subnets) == 0 {
			subnets = c.Spec.IPAM
		}
		options := maps.Clone(c.Spec.Options)
		if c.Status.VNI != 0 {
			options = mapping(options)
			options["com.docker.network.driver.overlay.vxlanid_list"] = strconv.FormatUint(uint64(c.Status.VNI), 10)
		}
		return apinetwork.Network{
			Name: c.Spec.Name, ID: c.ID, Created: c.CreatedAt, Scope: string(network.ScopeSwarm), Driver: cmp.Or(c.Spec.Driver, cloud.DriverOverlay),
			EnableIPv4: true, EnableIPv6: c.Spec.IPv6, IPAM: wireIPAM("default", c.Spec.IPAMOptions, subnets), Internal: c.Spec.Internal,
			Attachable: c.Spec.Attachable, Ingress: c.Spec.Ingress, Options: mapping(options), Labels: mapping(c.Spec.Labels),
		}
	}
	l := n.local
	subnets := l.Subnets
	if len(subnets) == 0 {
		subnets = l.Spec.IPAM
	}
	return apinetwork.Network{
		Name: l.Spec.Name, ID: l.ID, Created: l.Created, Scope: string(cmp.Or(l.Scope, network.ScopeLocal)), Driver: cmp.Or(l.Spec.Driver, network.DriverBridge),
		EnableIPv4: l.Spec.IPv4, EnableIPv6: l.Spec.IPv6, IPAM: wireIPAM(cmp.Or(l.Spec.IPAMDriver, "default"), l.Spec.IPAMOptions, subnets),
		ConfigFrom: apinetwork.ConfigReference{Network: l.Spec.ConfigFrom}, ConfigOnly: l.Spec.ConfigOnly, Internal: l.Spec.Internal, Attachable: l.Spec.Attachable, Ingress: l.Spec.Ingress, Options: mapping(l.Spec.Options), Labels: mapping(l.Spec.Labels),
	}
}

func wireIPAM(driver string, options map[string]string, in []cloud.IPAMConfig) apinetwork.IPAM {
	out := apinetwork.IPAM{Driver: driver, Options: options, Config: []apinetwork.IPAMConfig{}}
	for _, c := range in {
		out.Config = append(out.Config, apinetwork.IPAMConfig{Subnet: c.Subnet, IPRange: c.Range, Gateway: c.Gateway, AuxAddress: c.Aux})
	}
	slices.SortStableFunc(out.Config, func(a, b apinetwork.IPAMConfig) int { return a.Subnet.Addr().BitLen() - b.Subnet.Addr().BitLen() })
	return out
}

// peersOf lists the nodes on a cluster network, by name where a manager knows it. This node is among them.
func peersOf(ctx context.Context, cluster Cluster, n *network.Network, swarm Swarm) []apinetwork.PeerInfo {
	if n.Scope != network.ScopeSwarm {
		return nil
	}
	names := map[netip.Addr]string{}
	if cluster != nil {
		if nodes, err := cluster.ListNodes(ctx); err == nil {
			for _, node := range nodes {
				for _, a := range node.Status.Addrs {
					names[a] = cmp.Or(node.Spec.Name, node.Description.Hostname)
				}
			}
		}
	}
	addrs := slices.Clone(n.Peers)
	if self, err := netip.ParseAddr(swarm.Local().NodeAddr); err == nil && !slices.Contains(addrs, self) {
		addrs = append(addrs, self)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	out := []apinetwork.PeerInfo{}
	for _, a := range addrs {
		out = append(out, apinetwork.PeerInfo{Name: cmp.Or(names[a], a.String()), IP: a})
	}
	return out
}

// servicesOn shows which services are on a cluster network, with their addresses and tasks.
func servicesOn(ctx context.Context, cluster Cluster, networkID string) (map[string]apinetwork.ServiceInfo, error) {
	services, err := cluster.ListServices(ctx)
	if err != nil {
		return nil, err
	}
	tasks, err := cluster.ListTasks(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]apinetwork.ServiceInfo{}
	for _, s := range services {
		info, member := apinetwork.ServiceInfo{Ports: []string{}, Tasks: []apinetwork.Task{}}, false
		for _, v := range s.Endpoint.VIPs {
			if v.NetworkID == networkID && len(v.Addrs) > 0 {
				info.VIP, member = v.Addrs[0].Addr(), true
			}
		}
		for _, t := range tasks {
			if t.ServiceID != s.ID || t.Status.State.Ended() {
				continue
			}
			for _, n := range t.Networks {
				if n.NetworkID == networkID && len(n.Addrs) > 0 {
					member = true
					info.Tasks = append(info.Tasks, apinetwork.Task{Name: t.Name(), EndpointID: t.ID, EndpointIP: n.Addrs[0].Addr(), Info: map[string]string{"Node": t.NodeID}})
				}
			}
		}
		for _, p := range s.Endpoint.Ports {
			info.Ports = append(info.Ports, "Target: "+strconv.Itoa(int(p.Target))+", Publish: "+strconv.Itoa(int(p.Published)))
		}
		if member {
			out[s.Spec.Name] = info
		}
	}
	return out, nil
}
