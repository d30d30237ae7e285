package container

import (
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// hostGateway is the word in ExtraHosts that stands for the host's address as the container sees it.
const hostGateway = "host-gateway"

const hostsHead = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
`

// cutHost splits an extra host: NAME:ADDRESS or NAME=ADDRESS, the address perhaps in brackets.
func cutHost(s string) (name, addr string, ok bool) {
	i := strings.IndexAny(s, ":=")
	if i < 0 {
		return "", "", false
	}
	return s[:i], strings.TrimSuffix(strings.TrimPrefix(s[i+1:], "["), "]"), true
}

// writeFiles writes the container's hosts, hostname and resolv.conf for its attachment. A container that joins
// another's network uses that one's files; the paths to mount are set in the record.
func (m *Manager) writeFiles(c *ctr, a *Attachment) error {
	hosts, err := m.hostsFile(&c.rec.Container, a)
	if err != nil {
		return err
	}
	resolv, err := resolvConf(&c.rec.Config.Host, a)
	if err != nil {
		return err
	}
	err = errors.Join(
		overwrite(c.rec.HostnamePath, []byte(c.rec.Config.Hostname+"\n")),
		overwrite(c.rec.HostsPath, hosts),
		overwrite(c.rec.ResolvConfPath, resolv),
	)
	if err != nil {
		return err
	}
	return errors.Join(own(c.rec.IDs, c.rec.HostnamePath), own(c.rec.IDs, c.rec.HostsPath), own(c.rec.IDs, c.rec.ResolvConfPath))
}

// overwrite changes a file in place: it may be bind mounted, and a new one would not be seen.
func overwrite(path string, data []byte) error {
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, data) {
		return nil
	}
	return os.WriteFile(path, data, 0o644)
}

func (m *Manager) hostsFile(c *Container, a *Attachment) ([]byte, error) {
	var b bytes.Buffer
	if c.Config.Host.NetworkMode == "host" {
		own, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		b.Write(own)
		if len(own) > 0 && own[len(own)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else if head := hostsHead; c.Config.Host.Sysctls["net.ipv6.conf.all.disable_ipv6"] == "1" {
		head, _, _ = strings.Cut(head, "::1")
		b.WriteString(head)
	} else {
		b.WriteString(head)
	}
	for _, e := range c.Config.Host.ExtraHosts {
		name, addr, _ := cutHost(e)
		if addr != hostGateway {
			b.WriteString(addr + "\t" + name + "\n")
			continue
		}
		gws := m.HostGateway
		if len(gws) == 0 {
			gws = gateways(a)
		}
		if len(gws) == 0 {
			return nil, fault.New(fault.InvalidArgument, "unable to derive the IP value for host-gateway: the container has no network with a gateway")
		}
		for _, gw := range gws {
			b.WriteString(gw.String() + "\t" + name + "\n")
		}
	}
	for _, line := range a.Hosts {
		b.WriteString(strings.TrimSpace(line) + "\n")
	}
	return b.Bytes(), nil
}

// gateways are the addresses of the host on the container's networks, the preferred network first.
func gateways(a *Attachment) []netip.Addr {
	var best *Endpoint
	for _, name := range sortedKeys(a.Endpoints) {
		e := a.Endpoints[name]
		if e.Gateway4.IsValid() && (best == nil || e.Config.GwPriority > best.Config.GwPriority) {
			best = &e
		}
	}
	if best == nil {
		return nil
	}
	gws := []netip.Addr{best.Gateway4}
	if best.Gateway6.IsValid() {
		gws = append(gws, best.Gateway6)
	}
	return gws
}

func resolvConf(h *HostConfig, a *Attachment) ([]byte, error) {
	if a.ResolvConf != nil {
		return a.ResolvConf, nil
	}
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(h.DNS)+len(h.DNSSearch)+len(h.DNSOptions) == 0 {
		return data, nil
	}
	var b bytes.Buffer
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "nameserver" && len(h.DNS) > 0 || (f[0] == "search" || f[0] == "domain") && len(h.DNSSearch) > 0 ||
			f[0] == "options" && len(h.DNSOptions) > 0 {
			continue
		}
		b.WriteString(strings.TrimRight(line, "\n") + "\n")
	}
	for _, s := range h.DNS {
		b.WriteString("nameserver " + s + "\n")
	}
	if len(h.DNSSearch) > 0 && !slices.Equal(h.DNSSearch, []string{"."}) {
		b.WriteString("search " + strings.Join(h.DNSSearch, " ") + "\n")
	}
	if len(h.DNSOptions) > 0 {
		b.WriteString("options " + strings.Join(h.DNSOptions, " ") + "\n")
	}
	return b.Bytes(), nil
}

// fileMounts are the mounts of the three files.
func fileMounts(c *Container) []specs.Mount {
	opts := []string{"rbind", "rprivate"}
	if c.Config.Host.ReadonlyRootfs {
		opts = []string{"rbind", "ro", "rprivate"}
	}
	return []specs.Mount{
		{Destination: "/etc/resolv.conf", Type: "bind", Source: c.ResolvConfPath, Options: opts},
		{Destination: "/etc/hostname", Type: "bind", Source: c.HostnamePath, Options: opts},
		{Destination: "/etc/hosts", Type: "bind", Source: c.HostsPath, Options: opts},
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
