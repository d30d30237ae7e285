package container

import (
	"bytes"
	"context"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Connect joins a container to a network: at once if it runs, else at its next start.
func (m *Manager) Connect(ctx context.Context, id, networkID string, e EndpointConfig) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	netID, name, err := m.Networks.ResolveNetwork(networkID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.rec.Config.Host
	switch {
	case c.rec.State.Status == StatusRemoving || c.rec.State.Dead:
		return fault.New(fault.Conflict, "Container %s is marked for removal and cannot be connected or disconnected to the network", c.id)
	case strings.HasPrefix(h.NetworkMode, "container:"):
		return fault.New(fault.Conflict, "container sharing network namespace with another container or host cannot be connected to any other network")
	case len(e.Aliases) > 0 && slices.Contains([]string{"bridge", "host", "none"}, name):
		return fault.New(fault.InvalidArgument, "network-scoped aliases are only supported for user-defined networks")
	case h.NetworkMode == "host" || name == "host":
		return fault.New(fault.InvalidArgument, "cannot connect container to host network - container must be created in host network mode")
	case name == "none" || c.onNone():
		return fault.New(fault.Forbidden, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	if m.endpointKey(c, netID, name) != "" {
		return fault.New(fault.Forbidden, "endpoint with name %s already exists in network %s", c.rec.Config.Name, name)
	}
	if c.rec.State.Running && !c.rec.State.Restarting {
		before := m.Networks.ResolvConf(c.id)
		ep, err := m.Networks.Connect(ctx, c.id, netID, e)
		if err != nil {
			return err
		}
		// A network that the host did not have was known by what the user called it.
		ep.NetworkName = firstNonEmpty(ep.NetworkName, name)
		name = ep.NetworkName
		eps := maps.Clone(c.rec.Networks.Endpoints)
		if eps == nil {
			eps = map[string]Endpoint{}
		}
		ep.Config = e
		eps[ep.NetworkName] = ep
		c.rec.Networks.Endpoints = eps
		c.rec.Networks.Ports = m.Networks.Ports(c.id)
		m.networkEvents(&Container{ID: c.id, Networks: Attachment{Endpoints: map[string]Endpoint{name: ep}}}, "connect")
		if err := m.editHosts(c, "", ownHosts(&c.rec.Config, ep)); err != nil {
			m.log.Warn("hosts file of a connected container", "container", c.id, "error", err)
		}
		if err := m.editResolvConf(c, before); err != nil {
			m.log.Warn("resolv.conf of a connected container", "container", c.id, "error", err)
		}
	}
	wanted := maps.Clone(c.rec.Config.Network.Endpoints)
	if wanted == nil {
		wanted = map[string]EndpointConfig{}
	}
	if len(wanted) == 0 && h.NetworkMode != "none" {
		// The first network is named by the mode; once there is a list it has to be in it.
		wanted[firstNonEmpty(h.NetworkMode, "default")] = EndpointConfig{MAC: c.rec.Config.Network.MAC}
	}
	if h.NetworkMode == "none" {
		h.NetworkMode, c.rec.Config.Network.Left = name, ""
	}
	wanted[name] = e
	c.rec.Config.Network.Endpoints = wanted
	return c.save()
}

// Disconnect takes a container off a network.
func (m *Manager) Disconnect(ctx context.Context, id, networkID string, force bool) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	netID, name, err := m.Networks.ResolveNetwork(networkID)
	if err != nil {
		if !force {
			return err
		}
		netID, name = networkID, networkID
	}
	ctx = context.WithoutCancel(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.rec.Config.Host
	switch {
	case c.rec.State.Status == StatusRemoving || c.rec.State.Dead:
		return fault.New(fault.Conflict, "Container %s is marked for removal and cannot be connected or disconnected to the network", c.id)
	case h.NetworkMode == "host" || name == "host":
		return fault.New(fault.InvalidArgument, "cannot disconnect container from host network - container was created in host network mode")
	}
	key := m.endpointKey(c, netID, name)
	if key == "" {
		if force {
			return nil
		}
		return fault.New(fault.Forbidden, "container %s is not connected to the network %s", c.id, name)
	}
	if c.rec.State.Running && !c.rec.State.Restarting {
		before := m.Networks.ResolvConf(c.id)
		if err := m.Networks.Disconnect(ctx, c.id, netID); err != nil && !force {
			return err
		}
		gone := c.rec.Networks.Endpoints[key]
		m.networkEvents(&Container{ID: c.id, Networks: Attachment{Endpoints: map[string]Endpoint{name: gone}}}, "disconnect")
		if gone.IPv4.IsValid() {
			if err := m.editHosts(c, gone.IPv4.Addr().String(), ""); err != nil {
				m.log.Warn("hosts file of a disconnected container", "container", c.id, "error", err)
			}
		}
		if err := m.editResolvConf(c, before); err != nil {
			m.log.Warn("resolv.conf of a disconnected container", "container", c.id, "error", err)
		}
	}
	eps := maps.Clone(c.rec.Networks.Endpoints)
	delete(eps, key)
	c.rec.Networks.Endpoints = eps
	if c.rec.State.Running && !c.rec.State.Restarting {
		c.rec.Networks.Ports = m.Networks.Ports(c.id)
	}
	wanted := maps.Clone(c.rec.Config.Network.Endpoints)
	for ref := range wanted {
		if m.sameNetwork(ref, netID, name) {
			delete(wanted, ref)
		}
	}
	c.rec.Config.Network.Endpoints = wanted
	if m.sameNetwork(firstNonEmpty(h.NetworkMode, "default"), netID, name) {
		left := firstNonEmpty(h.NetworkMode, "default")
		h.NetworkMode, c.rec.Config.Network.Left = "none", left
		for ref := range wanted {
			h.NetworkMode, c.rec.Config.Network.Left = ref, ""
			break
		}
	}
	return c.save()
}

// onNone reports whether the container runs with none for a network. One that was taken off all its networks does not.
// The caller holds mu.
func (c *ctr) onNone() bool {
	_, on := c.rec.Networks.Endpoints["none"]
	return on && c.rec.Config.Network.Left == ""
}

// endpointKey finds a container's endpoint on a network, connected or wanted; "" if there is none.
func (m *Manager) endpointKey(c *ctr, netID, name string) string {
	for key, e := range c.rec.Networks.Endpoints {
		if e.NetworkID == netID || key == name {
			return key
		}
	}
	for ref := range c.rec.Config.Network.Endpoints {
		if m.sameNetwork(ref, netID, name) {
			return ref
		}
	}
	if len(c.rec.Config.Network.Endpoints) == 0 && m.sameNetwork(firstNonEmpty(c.rec.Config.Host.NetworkMode, "default"), netID, name) {
		return c.rec.Config.Host.NetworkMode
	}
	return ""
}

func (m *Manager) sameNetwork(ref, netID, name string) bool {
	if ref == "default" {
		ref = "bridge"
	}
	if ref == netID || ref == name {
		return true
	}
	id, _, err := m.Networks.ResolveNetwork(ref)
	return err == nil && id == netID
}

func ownHosts(cfg *Config, e Endpoint) string {
	hostname := cfg.Hostname
	if cfg.Domainname != "" {
		hostname += "." + cfg.Domainname + " " + hostname
	}
	var b strings.Builder
	if e.IPv4.IsValid() {
		b.WriteString(e.IPv4.Addr().String() + "\t" + hostname + "\n")
	}
	if e.IPv6.IsValid() {
		b.WriteString(e.IPv6.Addr().String() + "\t" + hostname + "\n")
	}
	return b.String()
}

// editResolvConf gives the container the resolv.conf of the networks it is on now, if it still has what it had before:
// what was written into it from inside the container stays.
func (m *Manager) editResolvConf(c *ctr, before []byte) error {
	now := m.Networks.ResolvConf(c.id)
	if now == nil || bytes.Equal(now, before) {
		return nil
	}
	old, err := os.ReadFile(c.rec.ResolvConfPath)
	if err != nil || !bytes.Equal(old, before) {
		return err
	}
	return overwrite(c.rec.ResolvConfPath, now)
}

// editHosts removes the lines of an address from the container's hosts file and adds others, in place.
func (m *Manager) editHosts(c *ctr, remove, add string) error {
	old, err := os.ReadFile(c.rec.HostsPath)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for line := range strings.Lines(string(old)) {
		if f := strings.Fields(line); remove != "" && len(f) > 0 && f[0] == remove {
			continue
		}
		b.WriteString(line)
	}
	b.WriteString(add)
	return overwrite(c.rec.HostsPath, b.Bytes())
}
