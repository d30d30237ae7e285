package network

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
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
	out := keeper.Names{Records: map[string][]netip.Addr{}, Reverse: map[netip.Addr]string{}, Services: map[string][]keeper.Server{}}
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
			for _, p := range s.Serves {
				serve(out.Services, name, suffix, p, crews[s.ServiceID])
			}
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

// serve enters a port of a service, by its name if it has one and by its number: who asks gets the ready members, whatever
// the service's mode, and chooses himself.
func serve(all map[string][]keeper.Server, service, suffix string, p cloud.PortConfig, c *crew) {
	servers := []keeper.Server{}
	if c != nil {
		for _, name := range c.names {
			servers = append(servers, keeper.Server{Name: strings.ToLower(name), Port: p.Target})
		}
	}
	for _, port := range []string{p.Name, strconv.Itoa(int(p.Target))} {
		if port == "" {
			continue
		}
		key := strings.ToLower("_" + port + "._" + string(cmp.Or(p.Protocol, cloud.TCP)) + "." + strings.TrimSuffix(service, "."))
		for _, s := range servers {
			if !slices.Contains(all[key], s) {
				all[key] = append(all[key], s)
			}
		}
		if all[key] == nil {
			all[key] = servers
		}
		all[key+suffix] = all[key]
	}
}
