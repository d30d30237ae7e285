package network

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// tasksPrefix is before a service's name for its tasks' own addresses, whatever the service's mode.
const tasksPrefix = "tasks."

// names are the names of a network: of services (their virtual IP, or their ready members), of services' tasks, of tasks
// and standalone containers. Who is not ready is in none of them. A name without addresses is known all the same, so
// that it is not asked of anybody else. Each name is there with the network's name after it too.
func names(n *cloud.Network, services []*cloud.VirtualService, crews map[string]*crew, members []*cloud.Member) keeper.Names {
	out := keeper.Names{Records: map[string][]netip.Addr{}, Reverse: map[netip.Addr]string{}}
	suffix := "." + strings.ToLower(n.Spec.Name)
	add := func(name string, addrs ...netip.Addr) {
		if name = strings.ToLower(strings.TrimSuffix(name, ".")); name == "" {
			return
		}
		have, known := out.Records[name]
		if !known {
			have = []netip.Addr{}
		}
		for _, a := range addrs {
			if a = a.Unmap(); !slices.Contains(have, a) {
				have = append(have, a)
			}
		}
		out.Records[name], out.Records[name+suffix] = have, have
	}
	reverse := func(a netip.Addr, name string) { out.Reverse[a.Unmap()] = strings.ToLower(name) + suffix }

	for _, s := range services {
		var ready []netip.Addr
		if c := crews[s.ServiceID]; c != nil {
			ready = c.ready
		}
		addrs := ready
		if s.Mode != cloud.EndpointDNSRR && len(s.VIPs) > 0 {
			addrs = s.VIPs
			for _, v := range s.VIPs {
				reverse(v, s.Name)
			}
		}
		for _, name := range append([]string{s.Name}, s.Aliases...) {
			add(name, addrs...)
			add(tasksPrefix+name, ready...)
		}
	}
	for _, m := range members {
		if !m.Ready {
			continue
		}
		add(m.Name, m.Addrs...)
		if m.ServiceID == "" { // a task's aliases are its service's, which answer with the virtual IP
			for _, alias := range m.Aliases {
				add(alias, m.Addrs...)
			}
		}
		for _, a := range m.Addrs {
			reverse(a, m.Name)
		}
	}
	return out
}
