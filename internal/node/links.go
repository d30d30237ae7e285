package node

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
)

// link resolves --link: on the default bridge, lines for the hosts file of this container; on a user's network, names
// that only this container has there.
func (s *sandboxes) link(c container.Container, spec *network.SandboxSpec) error {
	if modeOf(c.Config) != network.NameBridge {
		if len(spec.Endpoints) > 0 && len(spec.Endpoints[0].Links) == 0 {
			for _, l := range c.Config.Host.LinkList() {
				name := l.Target
				if len(name) == 64 {
					name = name[:12] // a name on the network, and one that a rename leaves
				}
				spec.Endpoints[0].Links = append(spec.Endpoints[0].Links, name+":"+l.Alias)
			}
		}
		return nil
	}
	for l, other := range s.linked(c) {
		if !other.State.Running {
			return fault.New(fault.Conflict, "Cannot link to a non running container: /%s AS /%s/%s", other.Config.Name, c.Config.Name, l.Alias)
		}
		if !slices.ContainsFunc(slices.Collect(maps.Values(other.Networks.Endpoints)), func(e container.Endpoint) bool { return e.NetworkName == network.NameBridge }) {
			return fault.New(fault.InvalidArgument, "Cannot link to /%s, as it does not belong to the default network", other.Config.Name)
		}
		var addrs []netip.Addr
		for _, e := range other.Networks.Endpoints {
			if e.IPv4.IsValid() {
				addrs = append(addrs, e.IPv4.Addr())
			}
			if e.IPv6.IsValid() {
				addrs = append(addrs, e.IPv6.Addr())
			}
		}
		for _, n := range []string{l.Alias, other.Config.Name, other.Config.Hostname} {
			if n != "" {
				spec.Links[strings.ToLower(n)] = addrs
			}
		}
	}
	return nil
}

// linked are the containers that one links to. A link goes with its target. One that joins another's network is reached
// where that is.
func (s *sandboxes) linked(c container.Container) func(yield func(container.Link, container.Container) bool) {
	return func(yield func(container.Link, container.Container) bool) {
		for _, l := range c.Config.Host.LinkList() {
			other, err := s.get(l.Target)
			if err != nil {
				continue
			}
			for at, hops := other, 0; hops < maxJoins; hops++ {
				ref, joins := strings.CutPrefix(at.Config.Host.NetworkMode, "container:")
				if !joins {
					other.Networks = at.Networks
					break
				}
				if at, err = s.get(ref); err != nil {
					break
				}
			}
			if !yield(l, other) {
				return
			}
		}
	}
}

// maxJoins bounds how often a container joins the network of one that joins another's; a circle never ends.
const maxJoins = 16

// linkEnv is what older programs look for: variables of each link on the default bridge, made from its alias, with the
// addresses of the target's exposed ports and the target's own variables.
func (s *sandboxes) linkEnv(c container.Container) (out []string) {
	if modeOf(c.Config) != network.NameBridge {
		return nil
	}
	for l, other := range s.linked(c) {
		addr := netip.Addr{}
		for _, e := range other.Networks.Endpoints {
			if e.NetworkName == network.NameBridge && e.IPv4.IsValid() {
				addr = e.IPv4.Addr()
			}
		}
		if addr.IsValid() {
			out = append(out, linkVariables(c.Config.Name, l.Alias, addr, other.Config)...)
		}
	}
	return out
}

func linkVariables(owner, alias string, addr netip.Addr, target container.Config) (out []string) {
	prefix := strings.ReplaceAll(strings.ToUpper(alias), "-", "_")
	add := func(name, format string, args ...any) {
		out = append(out, prefix+name+"="+fmt.Sprintf(format, args...))
	}
	ports := slices.SortedFunc(slices.Values(target.ExposedPorts), func(a, b container.Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	first := max(slices.IndexFunc(ports, func(p container.Port) bool { return p.Protocol == "tcp" }), 0)
	for i, p := range ports {
		if i == first {
			add("_PORT", "%s://%s:%d", p.Protocol, addr, p.Port)
		}
		name := fmt.Sprintf("_PORT_%d_%s", p.Port, strings.ToUpper(p.Protocol))
		add(name, "%s://%s:%d", p.Protocol, addr, p.Port)
		add(name+"_ADDR", "%s", addr)
		add(name+"_PORT", "%d", p.Port)
		add(name+"_PROTO", "%s", p.Protocol)
	}
	add("_NAME", "/%s/%s", owner, alias)
	for _, kv := range target.Env {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "HOME" && name != "PATH" {
			add("_ENV_"+name, "%s", value)
		}
	}
	return out
}
