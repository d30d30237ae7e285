package node

import (
	"context"
	"maps"

	"github.com/sampan-cloud/sampan/internal/build/host"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
)

// stepNetworks gives the steps of builds their network (host.Networks).
type stepNetworks struct{ networks *network.Manager }

// AttachStep makes a sandbox for a step: on the default bridge, without a network, or on the host's.
func (s *stepNetworks) AttachStep(ctx context.Context, id, mode, hostname string) (host.Sandbox, error) {
	spec := network.SandboxSpec{ID: id, Owner: "build-" + id[:min(12, len(id))], Hostname: hostname}
	switch mode {
	case "host":
		return host.Sandbox{}, nil
	case "none":
		spec.NoNetwork = true
	case "default":
		spec.Endpoints = []network.EndpointSpec{{Network: network.NameBridge}}
	default:
		return host.Sandbox{}, fault.New(fault.InvalidArgument, "network mode %q of a step: want default, host or none", mode)
	}
	made, err := s.networks.Attach(ctx, spec)
	if err != nil {
		return host.Sandbox{}, err
	}
	return host.Sandbox{NetNS: made.NetNS, ResolvConf: made.ResolvConf, Hosts: made.Hosts}, nil
}

// DetachStep gives the sandbox up.
func (s *stepNetworks) DetachStep(ctx context.Context, id string) error {
	return s.networks.Detach(ctx, id)
}

// hostGateway is the host's address on the default bridge: what host-gateway stands for in builds.
func (n *Node) hostGateway() string {
	bridge, err := n.networks.Get(network.NameBridge)
	if err != nil {
		return ""
	}
	for _, s := range bridge.Subnets {
		if s.Gateway.Is4() {
			return s.Gateway.String()
		}
	}
	return ""
}

// imageBuilt announces an image that a build made: that it is there, and its name.
func (n *Node) imageBuilt(img image.Image, name string) {
	attrs := maps.Clone(img.Labels)
	if attrs == nil {
		attrs = map[string]string{}
	}
	attrs["name"] = img.ID
	n.bus.Publish(events.Event{Type: "image", Action: "create", ID: img.ID, Attrs: maps.Clone(attrs)})
	if name != "" {
		attrs["name"] = name
		n.bus.Publish(events.Event{Type: "image", Action: "tag", ID: img.ID, Attrs: attrs})
	}
}
