package docker

import (
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
)

// createBody is the body of a create request, with the fields that older versions had.
type createBody struct {
	apicontainer.CreateRequest
	MacAddress   string   `json:"MacAddress"` // of the first network, before 1.52
	Capabilities []string `json:"-"`          // of HostConfig: all that the container has, in 1.40
}

// UnmarshalJSON decodes both parts from the same object.
func (b *createBody) UnmarshalJSON(raw []byte) error {
	raw = listed(raw)
	if err := json.Unmarshal(raw, &b.CreateRequest); err != nil {
		return err
	}
	legacy := struct {
		MacAddress *string
		HostConfig struct{ Capabilities *[]string }
	}{MacAddress: &b.MacAddress}
	legacy.HostConfig.Capabilities = &b.Capabilities
	return json.Unmarshal(raw, &legacy)
}

// listed is a container's configuration with lists for its command and entrypoint, which clients may give as one string.
func listed(raw []byte) []byte {
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil {
		return raw // who decodes it says what is wrong
	}
	changed := false
	for name, value := range fields {
		if (strings.EqualFold(name, "Cmd") || strings.EqualFold(name, "Entrypoint")) && len(value) > 0 && value[0] == '"' {
			fields[name], changed = slices.Concat([]byte("["), value, []byte("]")), true
		}
	}
	if out, err := json.Marshal(fields); changed && err == nil {
		return out
	}
	return raw
}

// containerConfig turns a create request into the engine's terms and refuses what cannot be.
func containerConfig(body createBody, name string, version apiVersion) (container.Config, []string, error) {
	if body.Config == nil {
		return container.Config{}, nil, fault.New(fault.InvalidArgument, "config cannot be empty in order to create a container")
	}
	if len(body.Capabilities) > 0 && version == 1040 {
		return container.Config{}, nil, fault.New(fault.InvalidArgument, "the HostConfig.Capabilities field is not supported by this daemon; use CapAdd and CapDrop to set capabilities")
	}
	in, host, nets := body.Config, body.HostConfig, body.NetworkingConfig
	if host == nil {
		host = &apicontainer.HostConfig{}
	}
	if nets == nil {
		nets = &apinetwork.NetworkingConfig{}
	}
	if host.NetworkMode == "" || host.NetworkMode.IsDefault() {
		host.NetworkMode = network.NameBridge
	}
	if err := olderHostConfig(host, nets, version); err != nil {
		return container.Config{}, nil, err
	}
	if err := checkHostConfig(in, host); err != nil {
		return container.Config{}, nil, err
	}
	cfg := container.Config{
		Name: strings.TrimPrefix(name, "/"), Image: in.Image, Hostname: in.Hostname, Domainname: in.Domainname, User: in.User,
		AttachStdin: in.AttachStdin, AttachStdout: in.AttachStdout, AttachStderr: in.AttachStderr,
		Tty: in.Tty, OpenStdin: in.OpenStdin, StdinOnce: in.StdinOnce, Env: in.Env, Cmd: in.Cmd, Entrypoint: in.Entrypoint,
		WorkingDir: in.WorkingDir, Labels: in.Labels, StopSignal: in.StopSignal, StopTimeout: in.StopTimeout,
		Shell: in.Shell, NetworkDisabled: in.NetworkDisabled,
	}
	for target := range in.Volumes {
		if !path.IsAbs(target) {
			return cfg, nil, fault.New(fault.InvalidArgument, "invalid volume specification: '%s': the path in the container must be absolute", target)
		}
		cfg.Volumes = append(cfg.Volumes, path.Clean(target))
	}
	slices.Sort(cfg.Volumes)
	for _, e := range in.Env {
		if e == "" || strings.HasPrefix(e, "=") {
			return cfg, nil, fault.New(fault.InvalidArgument, "invalid environment variable: %s", e)
		}
	}
	var err error
	if cfg.Health, err = healthOf(in.Healthcheck, version); err != nil {
		return cfg, nil, err
	}
	for p := range in.ExposedPorts {
		if err := checkPort(p); err != nil {
			return cfg, nil, err
		}
		cfg.ExposedPorts = append(cfg.ExposedPorts, container.Port{Port: p.Num(), Protocol: string(p.Proto())})
	}
	if cfg.Host, err = hostConfig(host); err != nil {
		return cfg, nil, err
	}
	if version < 1044 { // read-only binds were not recursive
		for i := range cfg.Host.Mounts {
			m := &cfg.Host.Mounts[i]
			m.ReadOnlyNonRecursive = m.Type == container.MountBind && m.ReadOnly
		}
	}
	cfg.Host.Resources.PidsLimit = max(cfg.Host.Resources.PidsLimit, 0) // a new container has no limit to take away
	for _, b := range cfg.Host.Ports {
		if !slices.Contains(cfg.ExposedPorts, b.Port) {
			cfg.ExposedPorts = append(cfg.ExposedPorts, b.Port)
		}
	}
	slices.SortFunc(cfg.ExposedPorts, comparePorts)

	var warnings []string
	if host.NetworkMode.IsHost() && (len(host.PortBindings) > 0 || host.PublishAllPorts) {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	if version >= 1052 {
		var free []string
		for p, bindings := range host.PortBindings {
			if len(bindings) == 0 {
				free = append(free, p.String())
			}
		}
		if slices.Sort(free); len(free) > 0 {
			warnings = append(warnings, fmt.Sprintf("Following container port(s) have an empty list of port-bindings: %s. Such bindings will be discarded in a future version.", strings.Join(free, ", ")))
		}
	}
	cfg.Network.MAC = body.MacAddress
	if body.MacAddress != "" && version < 1052 {
		if _, err := net.ParseMAC(body.MacAddress); err != nil {
			return cfg, nil, fault.New(fault.InvalidArgument, "invalid MAC address %q", body.MacAddress)
		}
		mode := host.NetworkMode
		if version < 1044 && !mode.IsBridge() && !mode.IsUserDefined() {
			return cfg, nil, fault.New(fault.InvalidArgument, "conflicting options: mac-address and the network mode")
		}
		if e := nets.EndpointsConfig[string(mode)]; e != nil && len(e.MacAddress) > 0 && !strings.EqualFold(e.MacAddress.String(), body.MacAddress) {
			return cfg, nil, fault.New(fault.InvalidArgument,
				"the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
		}
		if version >= 1044 {
			warnings = append(warnings, "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead.")
		}
	} else {
		cfg.Network.MAC = ""
	}
	if version < 1044 && len(nets.EndpointsConfig) > 1 {
		return cfg, nil, fault.New(fault.InvalidArgument, "Container cannot be created with multiple network endpoints")
	}
	for name, e := range nets.EndpointsConfig {
		if name == apinetwork.NetworkDefault {
			name = network.NameBridge
		}
		endpoint, err := endpointConfig(e)
		if err != nil {
			return cfg, nil, fault.New(fault.KindOf(err), "invalid config for network %s: %w", name, err)
		}
		if cfg.Network.Endpoints == nil {
			cfg.Network.Endpoints = map[string]container.EndpointConfig{}
		}
		cfg.Network.Endpoints[name] = endpoint
	}
	return cfg, warnings, nil
}

// checkHostConfig refuses combinations that no host could make sense of.
func checkHostConfig(in *apicontainer.Config, host *apicontainer.HostConfig) error {
	bad := func(format string, args ...any) error { return fault.New(fault.InvalidArgument, format, args...) }
	shared := host.NetworkMode.IsContainer()
	switch {
	case host.NetworkMode == "container", shared && host.NetworkMode.ConnectedContainer() == "":
		return bad("invalid network mode: invalid container format container:<name|id>")
	case shared && in.Hostname != "":
		return bad("conflicting options: hostname and the network mode")
	case host.UTSMode.IsHost() && in.Hostname != "":
		return bad("conflicting options: hostname and the UTS mode")
	case shared && len(host.Links) > 0:
		return bad("conflicting options: container type network can't be used with links. This would result in undefined behavior")
	case host.NetworkMode.IsHost() && len(host.Links) > 0:
		return bad("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	case shared && len(host.DNS) > 0:
		return bad("conflicting options: dns and the network mode")
	case shared && len(host.ExtraHosts) > 0:
		return bad("conflicting options: custom host-to-IP mapping and the network mode")
	case shared && (len(host.PortBindings) > 0 || host.PublishAllPorts):
		return bad("conflicting options: port publishing and the container type network mode")
	case shared && len(in.ExposedPorts) > 0:
		return bad("conflicting options: port exposing and the container type network mode")
	case !host.IpcMode.Valid():
		return bad("invalid IPC mode: %v", host.IpcMode)
	case !host.PidMode.Valid():
		return bad("invalid PID mode: %v", host.PidMode)
	case !host.UTSMode.Valid():
		return bad("invalid UTS mode: %v", host.UTSMode)
	case !host.UsernsMode.Valid():
		return bad("invalid user namespace mode: %v", host.UsernsMode)
	case !host.CgroupnsMode.Valid():
		return bad("invalid cgroup namespace mode: %v", host.CgroupnsMode)
	case !host.Isolation.IsDefault():
		return bad("invalid isolation: %v is not supported on linux", host.Isolation)
	case host.Umask != nil && *host.Umask > 0o777:
		return bad("invalid umask %#o: it must be between 0 and 0777", *host.Umask)
	case host.ShmSize < 0:
		return bad("SHM size can not be less than 0")
	case host.AutoRemove && !host.RestartPolicy.IsNone():
		return bad("can't create 'AutoRemove' container with restart policy")
	case host.CPURealtimeRuntime != 0 && host.CPURealtimePeriod != 0 && host.CPURealtimeRuntime > host.CPURealtimePeriod:
		return bad("cpu real-time runtime cannot be higher than cpu real-time period")
	}
	if err := apicontainer.ValidateRestartPolicy(host.RestartPolicy); err != nil {
		return fault.As(fault.InvalidArgument, err)
	}
	return nil
}

func hostConfig(in *apicontainer.HostConfig) (container.HostConfig, error) {
	h := container.HostConfig{
		Binds: in.Binds, Tmpfs: in.Tmpfs, VolumesFrom: in.VolumesFrom, NetworkMode: string(in.NetworkMode),
		PublishAllPorts: in.PublishAllPorts, AutoRemove: in.AutoRemove, VolumeDriver: in.VolumeDriver,
		Restart: container.RestartPolicy{Name: string(in.RestartPolicy.Name), MaxRetries: in.RestartPolicy.MaximumRetryCount},
		CapAdd:  in.CapAdd, CapDrop: in.CapDrop, Privileged: in.Privileged, ReadonlyRootfs: in.ReadonlyRootfs,
		SecurityOpt: in.SecurityOpt, MaskedPaths: in.MaskedPaths, ReadonlyPaths: in.ReadonlyPaths, GroupAdd: in.GroupAdd,
		DeviceRules: in.DeviceCgroupRules, Sysctls: in.Sysctls, ShmSize: in.ShmSize, Init: in.Init,
		OOMScoreAdj: in.OomScoreAdj, OOMKillDisable: in.OomKillDisable, CgroupParent: in.CgroupParent,
		CgroupnsMode: string(in.CgroupnsMode), IpcMode: string(in.IpcMode), PidMode: string(in.PidMode),
		UTSMode: string(in.UTSMode), UsernsMode: string(in.UsernsMode), Runtime: in.Runtime, StorageOpt: in.StorageOpt,
		Annotations: in.Annotations, Log: container.LogConfig{Driver: in.LogConfig.Type, Options: in.LogConfig.Config},
		ContainerIDFile: in.ContainerIDFile, DNSSearch: in.DNSSearch, DNSOptions: in.DNSOptions, ExtraHosts: in.ExtraHosts,
		Links: in.Links, Resources: resourcesOf(&in.Resources), Umask: in.Umask,
		ConsoleSize: [2]uint16{uint16(min(in.ConsoleSize[0], math.MaxUint16)), uint16(min(in.ConsoleSize[1], math.MaxUint16))},
	}
	for _, d := range in.DNS {
		h.DNS = append(h.DNS, d.String())
	}
	for _, d := range in.DeviceRequests {
		h.DeviceRequests = append(h.DeviceRequests, container.DeviceRequest(d))
	}
	for _, d := range in.Devices {
		h.Devices = append(h.Devices, container.Device{Host: d.PathOnHost, Container: d.PathInContainer, Permissions: d.CgroupPermissions})
	}
	for _, u := range in.Ulimits {
		if u != nil {
			h.Ulimits = append(h.Ulimits, container.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
		}
	}
	var err error
	if h.Ports, err = portBindings(in.PortBindings); err != nil {
		return h, err
	}
	for _, spec := range in.Binds {
		m, err := parseBind(spec, in.VolumeDriver)
		if err != nil {
			return h, err
		}
		h.Mounts = append(h.Mounts, m)
	}
	for _, m := range in.Mounts {
		converted, err := mountOf(m)
		if err != nil {
			return h, err
		}
		h.Mounts = append(h.Mounts, converted)
	}
	seen := map[string]bool{}
	for _, m := range h.Mounts {
		if seen[m.Target] {
			return h, fault.New(fault.InvalidArgument, "Duplicate mount point: %s", m.Target)
		}
		seen[m.Target] = true
	}
	return h, nil
}

// portBindings flattens the map of a port to its bindings. A port without any is published on a free port.
func portBindings(in apinetwork.PortMap) ([]container.PortBinding, error) {
	var out []container.PortBinding
	for p, bindings := range in {
		if err := checkPort(p); err != nil {
			return nil, err
		}
		if len(bindings) == 0 {
			bindings = []apinetwork.PortBinding{{}}
		}
		for _, b := range bindings {
			binding := container.PortBinding{Port: container.Port{Port: p.Num(), Protocol: string(p.Proto())}, HostIP: b.HostIP}
			if b.HostPort != "" {
				low, high, ranged := strings.Cut(b.HostPort, "-")
				first, err := strconv.ParseUint(low, 10, 16)
				last := first
				if err == nil && ranged {
					last, err = strconv.ParseUint(high, 10, 16)
				}
				if err != nil || last < first {
					return nil, fault.New(fault.InvalidArgument, "invalid port specification: %q", b.HostPort)
				}
				binding.HostPort = uint16(first)
				if last > first {
					binding.HostPortEnd = uint16(last)
				}
			}
			out = append(out, binding)
		}
	}
	slices.SortStableFunc(out, func(a, b container.PortBinding) int { return comparePorts(a.Port, b.Port) })
	return out, nil
}

func comparePorts(a, b container.Port) int {
	if a.Port != b.Port {
		return int(a.Port) - int(b.Port)
	}
	return strings.Compare(a.Protocol, b.Protocol)
}

func checkPort(p apinetwork.Port) error {
	switch {
	case p.Num() == 0:
		return fault.New(fault.InvalidArgument, "invalid port specification: %q", p.String())
	case p.Proto() != apinetwork.TCP && p.Proto() != apinetwork.UDP && p.Proto() != apinetwork.SCTP:
		return fault.New(fault.InvalidArgument, "invalid port specification: %q: unknown protocol %q", p.String(), p.Proto())
	}
	return nil
}

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// parseBind reads SRC:DST[:OPTIONS], or DST alone for an anonymous volume.
func parseBind(spec, driver string) (container.Mount, error) {
	bad := func(why string) (container.Mount, error) {
		return container.Mount{}, fault.New(fault.InvalidArgument, "invalid volume specification: '%s': %s", spec, why)
	}
	parts := strings.Split(spec, ":")
	m := container.Mount{Type: container.MountVolume, Driver: driver}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2, 3:
		m.Source, m.Target = parts[0], parts[1]
		if m.Source == "" || m.Target == "" {
			return bad("source and destination must not be empty")
		}
	default:
		return bad("it must be SOURCE:DESTINATION[:OPTIONS]")
	}
	if !path.IsAbs(m.Target) {
		return bad("invalid mount config for type \"volume\": invalid mount path: '" + m.Target + "' mount path must be absolute")
	}
	if m.Target = path.Clean(m.Target); m.Target == "/" {
		return bad("destination can't be '/'")
	}
	if path.IsAbs(m.Source) {
		m.Type, m.Driver, m.CreateMountpoint = container.MountBind, "", true
		m.Source = path.Clean(m.Source)
	} else if m.Source != "" && !volumeName.MatchString(m.Source) {
		return bad(fmt.Sprintf("%q includes invalid characters for a local volume name, only %q are allowed. If you intended to pass a host directory, use absolute path",
			m.Source, "[a-zA-Z0-9][a-zA-Z0-9_.-]"))
	}
	if len(parts) < 3 {
		return m, nil
	}
	m.Mode = parts[2]
	options := strings.Split(m.Mode, ",")
	if slices.Contains(options, "ro") && slices.Contains(options, "rw") {
		return bad("invalid mode: " + m.Mode)
	}
	for _, o := range options {
		switch {
		case o == "ro":
			m.ReadOnly = true
		case o == "rw", o == "z", o == "Z", o == "consistent", o == "cached", o == "delegated":
		case o == "nocopy" && m.Type == container.MountVolume:
			m.NoCopy = true
		case slices.Contains(mount.Propagations, mount.Propagation(o)) && m.Type == container.MountBind:
			m.Propagation = o
		case slices.Contains(mount.Propagations, mount.Propagation(o)):
			return bad(fmt.Sprintf("invalid mount config for type %q: propagation %s is for bind mounts", m.Type, o))
		default:
			return bad("invalid mode: " + m.Mode)
		}
	}
	return m, nil
}

// mountOf turns a mount of the newer form into the engine's terms.
func mountOf(in mount.Mount) (container.Mount, error) {
	bad := func(format string, args ...any) (container.Mount, error) {
		return container.Mount{}, fault.New(fault.InvalidArgument, "invalid mount config for type %q: %s", in.Type, fmt.Sprintf(format, args...))
	}
	m := container.Mount{Type: container.MountType(in.Type), Source: in.Source, Target: in.Target, ReadOnly: in.ReadOnly, FromSpec: true}
	switch {
	case in.Target == "":
		return bad("field Target must not be empty")
	case !path.IsAbs(in.Target):
		return bad("invalid mount path: '%s' mount path must be absolute", in.Target)
	case path.Clean(in.Target) == "/":
		return bad("invalid specification: destination can't be '/'")
	case in.BindOptions != nil && in.Type != mount.TypeBind:
		return container.Mount{}, fault.New(fault.InvalidArgument, "BindOptions must not be specified on mount type %q", in.Type)
	case in.VolumeOptions != nil && in.Type != mount.TypeVolume:
		return container.Mount{}, fault.New(fault.InvalidArgument, "VolumeOptions must not be specified on mount type %q", in.Type)
	case in.TmpfsOptions != nil && in.Type != mount.TypeTmpfs:
		return container.Mount{}, fault.New(fault.InvalidArgument, "TmpfsOptions must not be specified on mount type %q", in.Type)
	}
	m.Target = path.Clean(in.Target)
	switch in.Type {
	case mount.TypeBind:
		if in.Source == "" {
			return bad("field Source must not be empty")
		}
		if !path.IsAbs(in.Source) {
			return bad("invalid mount path: '%s' mount path must be absolute", in.Source)
		}
		if o := in.BindOptions; o != nil {
			if o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation) {
				return bad("invalid propagation mode: %s", o.Propagation)
			}
			m.Propagation, m.NonRecursive, m.CreateMountpoint = string(o.Propagation), o.NonRecursive, o.CreateMountpoint
			m.ReadOnlyNonRecursive, m.ReadOnlyForceRecursive = o.ReadOnlyNonRecursive, o.ReadOnlyForceRecursive
		}
	case mount.TypeVolume:
		if in.Source != "" && !volumeName.MatchString(in.Source) {
			return bad("%q includes invalid characters for a local volume name, only %q are allowed", in.Source, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
		}
		if o := in.VolumeOptions; o != nil {
			m.NoCopy, m.Labels, m.Subpath = o.NoCopy, o.Labels, o.Subpath
			if o.DriverConfig != nil {
				m.Driver, m.DriverOpts = o.DriverConfig.Name, o.DriverConfig.Options
			}
		}
	case mount.TypeTmpfs:
		if in.Source != "" {
			return bad("field Source must not be specified")
		}
		if o := in.TmpfsOptions; o != nil {
			if o.SizeBytes < 0 {
				return bad("the size cannot be negative")
			}
			m.TmpfsSize, m.TmpfsMode, m.TmpfsOptions = o.SizeBytes, uint32(o.Mode), o.Options
		}
	case mount.TypeImage:
		if in.Source == "" {
			return bad("field Source must not be empty")
		}
		if in.ImageOptions != nil {
			m.Subpath = in.ImageOptions.Subpath
		}
	default:
		return container.Mount{}, fault.New(fault.InvalidArgument, "mount type unknown: %q", in.Type)
	}
	return m, nil
}

func healthOf(in *apicontainer.HealthConfig, version apiVersion) (*container.Health, error) {
	if in == nil {
		return nil, nil
	}
	for _, d := range []struct {
		name  string
		value int64
	}{{"Interval", int64(in.Interval)}, {"Timeout", int64(in.Timeout)}, {"StartPeriod", int64(in.StartPeriod)}, {"StartInterval", int64(in.StartInterval)}} {
		if d.value != 0 && d.value < int64(apicontainer.MinimumDuration) {
			return nil, fault.New(fault.InvalidArgument, "%s in Healthcheck cannot be less than %s", d.name, apicontainer.MinimumDuration)
		}
	}
	if in.Retries < 0 {
		return nil, fault.New(fault.InvalidArgument, "Retries in Healthcheck cannot be negative")
	}
	if len(in.Test) > 0 && !slices.Contains([]string{"", "NONE", "CMD", "CMD-SHELL"}, in.Test[0]) {
		return nil, fault.New(fault.InvalidArgument, "unknown type of Healthcheck %q: it must be NONE, CMD or CMD-SHELL", in.Test[0])
	}
	h := &container.Health{Test: in.Test, Interval: in.Interval, Timeout: in.Timeout, StartPeriod: in.StartPeriod, StartInterval: in.StartInterval, Retries: in.Retries}
	if version < 1044 {
		h.StartInterval = 0
	}
	return h, nil
}

func resourcesOf(in *apicontainer.Resources) container.Resources {
	out := container.Resources{
		NanoCPUs: in.NanoCPUs, CPUShares: in.CPUShares, CPUPeriod: in.CPUPeriod, CPUQuota: in.CPUQuota,
		CPURealtimePeriod: in.CPURealtimePeriod, CPURealtimeRuntime: in.CPURealtimeRuntime,
		CpusetCpus: in.CpusetCpus, CpusetMems: in.CpusetMems, Memory: in.Memory, MemorySwap: in.MemorySwap,
		MemoryReservation: in.MemoryReservation, MemorySwappiness: in.MemorySwappiness, BlkioWeight: in.BlkioWeight,
		BlkioReadBps: throttles(in.BlkioDeviceReadBps), BlkioWriteBps: throttles(in.BlkioDeviceWriteBps),
		BlkioReadIOps: throttles(in.BlkioDeviceReadIOps), BlkioWriteIOps: throttles(in.BlkioDeviceWriteIOps),
	}
	if in.PidsLimit != nil {
		// 0 and everything below it ask for no limit; the engine reads 0 as "not said".
		if out.PidsLimit = *in.PidsLimit; out.PidsLimit <= 0 {
			out.PidsLimit = -1
		}
	}
	if s := in.MemorySwappiness; s != nil && *s == -1 {
		out.MemorySwappiness = nil
	}
	for _, d := range in.BlkioWeightDevice {
		if d != nil {
			out.BlkioWeightDevice = append(out.BlkioWeightDevice, container.WeightDevice{Path: d.Path, Weight: d.Weight})
		}
	}
	return out
}

func throttles(in []*blkiodev.ThrottleDevice) (out []container.ThrottleDevice) {
	for _, d := range in {
		if d != nil {
			out = append(out, container.ThrottleDevice{Path: d.Path, Rate: d.Rate})
		}
	}
	return out
}

// endpointConfig turns what a user asks of an endpoint into the engine's terms.
func endpointConfig(in *apinetwork.EndpointSettings) (container.EndpointConfig, error) {
	if in == nil {
		return container.EndpointConfig{}, nil
	}
	out := container.EndpointConfig{Aliases: in.Aliases, Links: in.Links, DriverOpts: in.DriverOpts, GwPriority: in.GwPriority}
	if len(in.MacAddress) > 0 {
		out.MAC = in.MacAddress.String()
	}
	if c := in.IPAMConfig; c != nil {
		if c.IPv4Address.IsValid() && !c.IPv4Address.Unmap().Is4() {
			return out, fault.New(fault.InvalidArgument, "invalid IPv4 address: %s", c.IPv4Address)
		}
		if c.IPv6Address.IsValid() && !c.IPv6Address.Is6() || c.IPv6Address.Is4In6() {
			return out, fault.New(fault.InvalidArgument, "invalid IPv6 address: %s", c.IPv6Address)
		}
		out.IPv4, out.IPv6, out.LinkLocalIPs = c.IPv4Address.Unmap(), c.IPv6Address, c.LinkLocalIPs
		if !c.IPv4Address.IsValid() {
			out.IPv4 = netip.Addr{}
		}
	}
	return out, nil
}

// ulimitsOf turns the engine's limits into those of the wire.
func ulimitsOf(in []container.Ulimit) []*units.Ulimit {
	out := make([]*units.Ulimit, len(in))
	for i, u := range in {
		out[i] = &units.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard}
	}
	return out
}
