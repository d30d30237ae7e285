package agent

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// containerConfig puts a task into the engine's words. spec is the task's own, its templates filled.
func containerConfig(t *cloud.Task, spec cloud.ContainerSpec, view *cloud.NodeView, nodeID string, files []container.Mount) container.Config {
	cfg := container.Config{
		Name: t.Name(), Image: spec.Image, Hostname: spec.Hostname, User: spec.User, Tty: spec.TTY, OpenStdin: spec.OpenStdin,
		Env: slices.Concat(spec.Env, cloud.GenericEnv(t.Generic)), Cmd: spec.Args, Entrypoint: spec.Command, WorkingDir: spec.Dir, StopSignal: spec.StopSignal,
		Labels: map[string]string{},
		Host: container.HostConfig{
			ReadonlyRootfs: spec.ReadOnly, Init: spec.Init, GroupAdd: spec.Groups, CapAdd: spec.CapAdd, CapDrop: spec.CapDrop,
			Sysctls: spec.Sysctls, DNS: spec.DNS.Servers, DNSSearch: spec.DNS.Search, DNSOptions: spec.DNS.Options,
			ExtraHosts: extraHosts(spec.Hosts), OOMScoreAdj: int(spec.OOMScoreAdj), SecurityOpt: securityOptions(spec.Privileges),
			Restart: container.RestartPolicy{Name: "no"}, // the managers replace tasks
			Resources: container.Resources{
				NanoCPUs: t.Spec.Limits.NanoCPUs, Memory: t.Spec.Limits.MemoryBytes, PidsLimit: t.Spec.Limits.Pids,
				MemorySwap: memorySwap(&t.Spec),
			},
		},
	}
	if s := t.Spec.MemorySwappiness; s != nil && *s >= 0 {
		cfg.Host.Resources.MemorySwappiness = s
	}
	for k, v := range spec.Labels {
		cfg.Labels[k] = v
	}
	cfg.Labels[labelTask] = ""
	cfg.Labels[labelTaskID], cfg.Labels[labelTaskName] = t.ID, t.Name()
	cfg.Labels[labelServiceID], cfg.Labels[labelServiceName] = t.ServiceID, t.ServiceName
	cfg.Labels[labelNodeID] = nodeID
	if d := spec.StopGracePeriod; d != nil {
		seconds := int((*d + time.Second - 1) / time.Second)
		cfg.StopTimeout = &seconds
	}
	if h := spec.Health; h != nil {
		cfg.Health = &container.Health{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod,
			StartInterval: h.StartInterval, Retries: h.Retries}
	}
	for _, u := range spec.Ulimits {
		cfg.Host.Ulimits = append(cfg.Host.Ulimits, container.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	for _, m := range spec.Mounts {
		cfg.Host.Mounts = append(cfg.Host.Mounts, container.Mount{
			Type: container.MountType(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly, Propagation: m.Propagation,
			NoCopy: m.NoCopy, Subpath: m.Subpath, Driver: m.VolumeDriver, DriverOpts: m.VolumeOpts, Labels: m.VolumeLabels,
			NonRecursive: m.NonRecursive, ReadOnlyNonRecursive: m.ReadOnlyNonRecursive, ReadOnlyForceRecursive: m.ReadOnlyForceRecursive,
			CreateMountpoint: m.CreateMountpoint, TmpfsSize: m.TmpfsSize, TmpfsMode: m.TmpfsMode, TmpfsOptions: m.TmpfsOptions, FromSpec: true,
		})
	}
	cfg.Host.Mounts = append(cfg.Host.Mounts, files...)
	if l := t.Spec.Log; l != nil {
		cfg.Host.Log = container.LogConfig{Driver: l.Driver, Options: l.Options}
	}
	for _, p := range t.Ports {
		if p.Mode == cloud.PublishHost {
			cfg.Host.Ports = append(cfg.Host.Ports, container.PortBinding{
				Port: container.Port{Port: p.Target, Protocol: string(p.Protocol)}, HostPort: p.Published,
			})
		}
	}
	join(&cfg, t, view)
	return cfg
}

// memorySwap is the limit of memory and swap together, as the engine counts it: 0 for its default, -1 for no limit.
func memorySwap(t *cloud.TaskSpec) int64 {
	switch {
	case t.SwapBytes == nil || t.Limits.MemoryBytes == 0:
		return 0
	case *t.SwapBytes == -1:
		return -1
	}
	return t.Limits.MemoryBytes + *t.SwapBytes
}

// securityOptions are the privileges in the words of docker run --security-opt.
func securityOptions(p *cloud.Privileges) []string {
	if p == nil {
		return nil
	}
	var out []string
	if s := p.SELinux; s != nil {
		if s.Disable {
			out = append(out, "label=disable")
		}
		for _, l := range [][2]string{{"user", s.User}, {"role", s.Role}, {"level", s.Level}, {"type", s.Type}} {
			if l[1] != "" {
				out = append(out, "label="+l[0]+":"+l[1])
			}
		}
	}
	if s := p.Seccomp; s != nil {
		switch s.Mode {
		case cloud.SeccompUnconfined:
			out = append(out, "seccomp=unconfined")
		case cloud.SeccompCustom:
			out = append(out, "seccomp="+string(s.Profile))
		}
	}
	if p.AppArmor == cloud.AppArmorDisabled {
		out = append(out, "apparmor=unconfined")
	}
	if p.NoNewPrivileges {
		out = append(out, "no-new-privileges=true")
	}
	return out
}

// join names the task's networks with the addresses that the cluster's allocator gave. A task without any is on the
// host's default bridge, or on the host's network that its service names.
func join(cfg *container.Config, t *cloud.Task, view *cloud.NodeView) {
	if len(t.Networks) == 0 {
		cfg.Host.NetworkMode = "bridge"
		for _, c := range t.Spec.Networks {
			switch c.Target {
			case "host", "none", "bridge":
				cfg.Host.NetworkMode = c.Target
			}
		}
		return
	}
	cfg.Host.NetworkMode = t.Networks[0].NetworkID
	cfg.Network.Endpoints = map[string]container.EndpointConfig{}
	for _, n := range t.Networks {
		e := container.EndpointConfig{Aliases: n.Aliases}
		for _, c := range t.Spec.Networks {
			if c.Target == n.NetworkID {
				e.DriverOpts = c.DriverOpts
			}
		}
		for _, a := range n.Addrs {
			if a.Addr().Is4() {
				e.IPv4 = a.Addr()
			} else {
				e.IPv6 = a.Addr()
			}
		}
		cfg.Network.Endpoints[n.NetworkID] = e
	}
}

func templateContext(t *cloud.Task, nodeID string, host cloud.NodeDescription) *cloud.TemplateContext {
	c := new(cloud.TemplateContext)
	c.Service.ID, c.Service.Name, c.Service.Labels = t.ServiceID, t.ServiceName, t.Labels
	c.Node.ID, c.Node.Hostname = nodeID, host.Hostname
	c.Node.Platform.OS, c.Node.Platform.Architecture = host.OS, host.Architecture
	c.Task.ID, c.Task.Name, c.Task.Slot = t.ID, t.Name(), strconv.Itoa(t.Slot)
	if t.Slot == 0 {
		c.Task.Slot = nodeID
	}
	return c
}

// extraHosts turns lines "ADDR NAME…" into "NAME:ADDR".
func extraHosts(lines []string) []string {
	var out []string
	for _, l := range lines {
		fields := strings.Fields(l)
		for _, name := range fields[min(1, len(fields)):] {
			out = append(out, name+":"+fields[0])
		}
	}
	return out
}

// hostPorts returns the ports that the container really has on this host.
func hostPorts(c container.Container) []cloud.PortConfig {
	var out []cloud.PortConfig
	seen := map[cloud.PortConfig]bool{}
	for _, p := range c.Networks.Ports { // one each for IPv4 and IPv6
		q := cloud.PortConfig{Protocol: cloud.Protocol(p.Port.Protocol), Target: p.Port.Port, Published: p.HostPort, Mode: cloud.PublishHost}
		if !seen[q] {
			seen[q] = true
			out = append(out, q)
		}
	}
	return out
}

// registryAuth reads credentials as the client sent them: base64 of a JSON document.
func registryAuth(header string) (image.Auth, error) {
	if header == "" {
		return image.Auth{}, nil
	}
	doc, err := base64.URLEncoding.DecodeString(header)
	if err != nil {
		if doc, err = base64.StdEncoding.DecodeString(header); err != nil {
			return image.Auth{}, fault.New(fault.InvalidArgument, "the service's registry credentials cannot be read: %w", err)
		}
	}
	var a struct {
		Username, Password, ServerAddress, IdentityToken, RegistryToken, Auth string
	}
	if err := json.Unmarshal(doc, &a); err != nil {
		return image.Auth{}, fault.New(fault.InvalidArgument, "the service's registry credentials cannot be read: %w", err)
	}
	if a.Username == "" && a.Auth != "" {
		if plain, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
			a.Username, a.Password, _ = strings.Cut(string(plain), ":")
		}
	}
	return image.Auth{Username: a.Username, Password: a.Password, ServerAddress: a.ServerAddress, IdentityToken: a.IdentityToken,
		RegistryToken: a.RegistryToken}, nil
}
