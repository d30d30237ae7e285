package container

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Link is one of a container's links (--link): another container that it knows by an alias.
type Link struct {
	Target string // ID; of containers made by older versions, the name as it was given
	Alias  string
}

// LinkList are the links of a configuration.
func (h *HostConfig) LinkList() []Link {
	links := make([]Link, len(h.Links))
	for i, l := range h.Links {
		target, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = path.Base(target)
		}
		links[i] = Link{target, strings.TrimPrefix(alias, "/")}
	}
	return links
}

// resolveLinks names the targets of a new container's links by ID, so that they outlive a rename.
func (m *Manager) resolveLinks(h *HostConfig) error {
	if !slices.Contains([]string{"", "default", "bridge", "host", "none"}, h.NetworkMode) {
		return nil // a user's network finds them by name, whether they are there yet or not
	}
	h.Links = slices.Clone(h.Links)
	for i, l := range h.LinkList() {
		other, err := m.find(l.Target)
		if err != nil {
			// Not 404: that tells clients of a missing image, and they pull it.
			return fault.New(fault.InvalidArgument, "could not get container for %s: %w", l.Target, err)
		}
		if l.Alias == "" {
			return fault.New(fault.InvalidArgument, "invalid link %q: want CONTAINER or CONTAINER:ALIAS", h.Links[i])
		}
		if other.snapshot().Config.Host.NetworkMode == "host" {
			return fault.New(fault.InvalidArgument, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
		}
		h.Links[i] = other.id + ":" + l.Alias
	}
	return nil
}

// linked finds the container that "LINKING/ALIAS" stands for, and the one that links to it.
func (m *Manager) linked(ref string) (target, from *ctr, err error) {
	name, alias, ok := strings.Cut(strings.TrimPrefix(ref, "/"), "/")
	if !ok {
		return nil, nil, fault.New(fault.NotFound, "No such container: %s", ref)
	}
	if from, err = m.find(name); err != nil {
		return nil, nil, err
	}
	for _, l := range linksOf(from) {
		if l.Alias == alias {
			if target, err = m.find(l.Target); err == nil {
				return target, from, nil
			}
		}
	}
	return nil, nil, fault.New(fault.NotFound, "No such container: %s", ref)
}

func linksOf(c *ctr) []Link {
	s := c.snapshot()
	return s.Config.Host.LinkList()
}

// unlink takes the link "LINKING/ALIAS" away; both containers stay.
func (m *Manager) unlink(ref string) error {
	if !strings.Contains(strings.TrimPrefix(ref, "/"), "/") {
		return fault.New(fault.InvalidArgument, "Conflict, cannot remove the default link name of the container")
	}
	_, from, err := m.linked(ref)
	if err != nil {
		return err
	}
	alias := path.Base(ref)
	from.mu.Lock()
	defer from.mu.Unlock()
	links := &from.rec.Config.Host
	keep := links.Links[:0:0]
	for i, l := range links.LinkList() {
		if l.Alias != alias {
			keep = append(keep, links.Links[i])
		}
	}
	links.Links = keep
	return from.save()
}

// relink gives the containers that run and link to one that has started its address, which may be another than before:
// the names in their hosts files are moved to it.
func (m *Manager) relink(c *Container) {
	mode := c.Config.Host.NetworkMode
	if mode != "bridge" && mode != "default" && mode != "" {
		return // on other networks a name server follows
	}
	id, names := c.ID, []string{c.Config.Name, c.Config.Hostname}
	var addrs []netip.Addr
	for _, e := range c.Networks.Endpoints {
		for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
			if p.IsValid() {
				addrs = append(addrs, p.Addr())
			}
		}
	}
	for _, other := range m.List() {
		for _, l := range other.Config.Host.LinkList() {
			if l.Target != id || !other.State.Running {
				continue
			}
			// Not under this container's lock: the other may be starting, and looking at this one.
			m.background(func(context.Context) {
				if err := m.renewHosts(other.ID, append(slices.Clone(names), l.Alias), addrs); err != nil {
					m.log.Warn("hosts file of a container with a link", "container", other.ID, "to", id, "error", err)
				}
			})
		}
	}
}

// renewHosts makes a running container's hosts file have the names for the addresses, and for no others.
func (m *Manager) renewHosts(id string, names []string, addrs []netip.Addr) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.rec.State.Running {
		return nil
	}
	old, err := os.ReadFile(c.rec.HostsPath)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for line := range strings.Lines(string(old)) {
		if f := strings.Fields(line); len(f) == 2 && slices.Contains(names, f[1]) {
			continue
		}
		b.WriteString(line)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		for _, a := range addrs {
			if name != "" {
				b.WriteString(a.String() + "\t" + name + "\n")
			}
		}
	}
	return overwrite(c.rec.HostsPath, b.Bytes())
}
