package docker

import (
	"cmp"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/blkiodev"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/network"
)

// inspectBody is an inspect answer with what versions before 1.52 had besides.
type inspectBody struct {
	apicontainer.InspectResponse
	NetworkSettings any
	Config          legacyConfig
}

// legacyConfig has the hardware address that was asked for on the network of the mode, as versions before 1.52 had it.
type legacyConfig struct {
	*apicontainer.Config
	MacAddress string `json:",omitempty"`
}

// chosenMAC is the hardware address that a container's configuration asks for on the network of its mode.
func chosenMAC(c *container.Container) string {
	mode := c.Config.Host.NetworkMode
	for _, key := range []string{mode, "default", network.NameBridge} {
		if e, ok := c.Config.Network.Endpoints[key]; ok && e.MAC != "" && (key == mode || mode == "" || mode == "default" || mode == network.NameBridge) {
			return e.MAC
		}
	}
	return c.Config.Network.MAC
}

// legacyNetworkSettings repeats the endpoint on the network "bridge" at the top, as versions before 1.52 did.
type legacyNetworkSettings struct {
	*apicontainer.NetworkSettings
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []string
	SecondaryIPv6Addresses []string
	EndpointID             string
	Gateway                netip.Addr
	GlobalIPv6Address      netip.Addr
	GlobalIPv6PrefixLen    int
	IPAddress              netip.Addr
	IPPrefixLen            int
	IPv6Gateway            netip.Addr
	MacAddress             apinetwork.HardwareAddr
}

func (a *containerAPI) inspect(w *response, r *request) error {
	c, err := a.backend.Inspect(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	out := inspectBody{InspectResponse: inspectResponse(&c)}
	if r.flag("size") {
		rw, rootfs, err := a.backend.Size(r.Context(), c.ID)
		if err != nil {
			return err
		}
		out.SizeRw, out.SizeRootFs = &rw, &rootfs
	}
	out.HostConfig.Links = a.linksOf(&c)
	if r.version >= 1048 {
		out.ImageManifestDescriptor = a.manifestOf(r, &c)
	}
	settings := networkSettings(&c)
	out.NetworkSettings, out.Config = settings, legacyConfig{Config: out.InspectResponse.Config}
	if r.version < 1052 {
		out.Config.MacAddress = chosenMAC(&c)
		out.GraphDriver, out.Storage = &storage.DriverData{Name: c.Driver, Data: map[string]string{}}, nil
		legacy := legacyNetworkSettings{NetworkSettings: settings}
		if e := settings.Networks[network.NameBridge]; e != nil {
			legacy.EndpointID, legacy.Gateway, legacy.IPAddress, legacy.IPPrefixLen = e.EndpointID, e.Gateway, e.IPAddress, e.IPPrefixLen
			legacy.IPv6Gateway, legacy.GlobalIPv6Address, legacy.GlobalIPv6PrefixLen = e.IPv6Gateway, e.GlobalIPv6Address, e.GlobalIPv6PrefixLen
			legacy.MacAddress = e.MacAddress
		}
		out.NetworkSettings = legacy
	}
	if r.version < 1044 { // read-only binds were not recursive, and nobody said so
		for i := range out.HostConfig.Mounts {
			if m := &out.HostConfig.Mounts[i]; m.BindOptions != nil {
				if m.BindOptions.ReadOnlyNonRecursive = false; *m.BindOptions == (mount.BindOptions{}) {
					m.BindOptions = nil
				}
			}
		}
	}
	if r.version < 1045 {
		for name, e := range settings.Networks {
			if apicontainer.NetworkMode(name).IsUserDefined() {
				for _, own := range []string{shortID(c.ID), c.Config.Hostname} {
					if own != "" && !slices.Contains(e.Aliases, own) {
						e.Aliases = append(slices.Clip(e.Aliases), own)
					}
				}
			}
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// manifestOf is what a container runs of its image; nil once the image is gone.
func (a *containerAPI) manifestOf(r *request, c *container.Container) *ocispec.Descriptor {
	img, err := a.images.Get(r.Context(), c.ImageDigest)
	if err != nil {
		return nil
	}
	d, p := img.Manifest, platformOf(&img)
	for _, m := range img.Manifests { // it may not be the one by which the image is shown
		if m.Descriptor.Digest.String() == c.ImageDigest {
			d, p = m.Descriptor, m.Platform
		}
	}
	d.Platform = &p
	return &d
}

// linksOf shows a container's links as "/TARGET:/NAME/ALIAS", without those whose target is gone.
func (a *containerAPI) linksOf(c *container.Container) (out []string) {
	for _, l := range c.Config.Host.LinkList() {
		if target, err := a.backend.Get(l.Target); err == nil {
			out = append(out, "/"+target.Config.Name+":/"+c.Config.Name+"/"+l.Alias)
		}
	}
	return out
}

func inspectResponse(c *container.Container) apicontainer.InspectResponse {
	return apicontainer.InspectResponse{
		ID: c.ID, Created: wireTime(c.Created), Path: c.Path, Args: list(c.Args), State: wireState(&c.State),
		Image: c.ImageID, ResolvConfPath: c.ResolvConfPath, HostnamePath: c.HostnamePath, HostsPath: c.HostsPath,
		LogPath: logPath(c), Name: "/" + strings.TrimPrefix(c.Config.Name, "/"), RestartCount: c.RestartCount,
		Driver: c.Driver, Platform: "linux", ExecIDs: c.ExecIDs, HostConfig: wireHostConfig(c),
		Storage: &storage.Storage{RootFS: &storage.RootFSStorage{Snapshot: &storage.RootFSStorageSnapshot{Name: c.Driver}}},
		Mounts:  wireMounts(c.Mounts), Config: wireConfig(&c.Config),
	}
}

// wireTime spells a time as Docker does: the zero time is of the year 1.
func wireTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func wireState(s *container.State) *apicontainer.State {
	out := &apicontainer.State{
		Status: apicontainer.ContainerState(s.Status), Running: s.Running, Paused: s.Paused, Restarting: s.Restarting,
		OOMKilled: s.OOMKilled, Dead: s.Dead, Pid: s.PID, ExitCode: exitCode(s), Error: s.Error,
		StartedAt: wireTime(s.StartedAt), FinishedAt: wireTime(s.FinishedAt),
	}
	if h := s.Health; h != nil {
		out.Health = &apicontainer.Health{Status: apicontainer.HealthStatus(h.Status), FailingStreak: h.FailingStreak, Log: []*apicontainer.HealthcheckResult{}}
		for _, r := range h.Log {
			out.Health.Log = append(out.Health.Log, &apicontainer.HealthcheckResult{Start: r.Start, End: r.End, ExitCode: r.ExitCode, Output: r.Output})
		}
	}
	return out
}

// exitCode is what clients are told: 255 for an exit that nobody saw.
func exitCode(s *container.State) int {
	if s.ExitUnknown {
		return 255
	}
	return s.ExitCode
}

func wireConfig(c *container.Config) *apicontainer.Config {
	out := &apicontainer.Config{
		Hostname: c.Hostname, Domainname: c.Domainname, User: c.User, AttachStdin: c.AttachStdin, AttachStdout: c.AttachStdout,
		AttachStderr: c.AttachStderr, Tty: c.Tty, OpenStdin: c.OpenStdin, StdinOnce: c.StdinOnce, Env: list(c.Env), Cmd: c.Cmd,
		Image: c.Image, WorkingDir: c.WorkingDir, Entrypoint: c.Entrypoint, NetworkDisabled: c.NetworkDisabled,
		Labels: mapping(c.Labels), StopSignal: c.StopSignal, StopTimeout: c.StopTimeout, Shell: c.Shell,
		Healthcheck: wireHealth(c.Health),
	}
	for _, p := range c.ExposedPorts {
		if port, ok := wirePort(p); ok {
			if out.ExposedPorts == nil {
				out.ExposedPorts = apinetwork.PortSet{}
			}
			out.ExposedPorts[port] = struct{}{}
		}
	}
	for _, v := range c.Volumes {
		if out.Volumes == nil {
			out.Volumes = map[string]struct{}{}
		}
		out.Volumes[v] = struct{}{}
	}
	return out
}

func wireHealth(h *container.Health) *apicontainer.HealthConfig {
	if h == nil {
		return nil
	}
	return &apicontainer.HealthConfig{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod,
		StartInterval: h.StartInterval, Retries: h.Retries}
}

func wirePort(p container.Port) (apinetwork.Port, bool) {
	return apinetwork.PortFrom(p.Port, apinetwork.IPProtocol(cmp.Or(p.Protocol, "tcp")))
}

func wireHostConfig(c *container.Container) *apicontainer.HostConfig {
	h := &c.Config.Host
	out := &apicontainer.HostConfig{
		Binds: h.Binds, ContainerIDFile: h.ContainerIDFile, LogConfig: apicontainer.LogConfig{Type: cmp.Or(h.Log.Driver, "json-file"), Config: mapping(h.Log.Options)},
		NetworkMode: apicontainer.NetworkMode(cmp.Or(c.Config.Network.Left, h.NetworkMode)), PortBindings: apinetwork.PortMap{},
		RestartPolicy: apicontainer.RestartPolicy{Name: apicontainer.RestartPolicyMode(cmp.Or(h.Restart.Name, "no")), MaximumRetryCount: h.Restart.MaxRetries},
		AutoRemove:    h.AutoRemove, VolumeDriver: h.VolumeDriver, VolumesFrom: h.VolumesFrom, Annotations: h.Annotations,
		CapAdd: h.CapAdd, CapDrop: h.CapDrop, CgroupnsMode: apicontainer.CgroupnsMode(h.CgroupnsMode),
		DNS: []netip.Addr{}, DNSOptions: list(h.DNSOptions), DNSSearch: list(h.DNSSearch), ExtraHosts: h.ExtraHosts,
		GroupAdd: h.GroupAdd, IpcMode: apicontainer.IpcMode(cmp.Or(h.IpcMode, "private")), Links: h.Links, OomScoreAdj: h.OOMScoreAdj,
		PidMode: apicontainer.PidMode(h.PidMode), Privileged: h.Privileged, PublishAllPorts: h.PublishAllPorts,
		ReadonlyRootfs: h.ReadonlyRootfs, SecurityOpt: h.SecurityOpt, StorageOpt: h.StorageOpt, Tmpfs: h.Tmpfs,
		UTSMode: apicontainer.UTSMode(h.UTSMode), UsernsMode: apicontainer.UsernsMode(h.UsernsMode),
		ShmSize: cmp.Or(h.ShmSize, 64<<20), Sysctls: h.Sysctls, Runtime: cmp.Or(h.Runtime, "runc"), Resources: wireResources(h),
		MaskedPaths: h.MaskedPaths, ReadonlyPaths: h.ReadonlyPaths, Init: h.Init, Umask: h.Umask,
		ConsoleSize: [2]uint{uint(h.ConsoleSize[0]), uint(h.ConsoleSize[1])},
	}
	for _, d := range h.DNS {
		if a, err := netip.ParseAddr(d); err == nil {
			out.DNS = append(out.DNS, a)
		}
	}
	for _, b := range h.Ports {
		p, ok := wirePort(b.Port)
		if !ok {
			continue
		}
		binding := apinetwork.PortBinding{HostIP: b.HostIP}
		if b.HostPort != 0 {
			binding.HostPort = strconv.Itoa(int(b.HostPort))
			if b.HostPortEnd > b.HostPort {
				binding.HostPort += "-" + strconv.Itoa(int(b.HostPortEnd))
			}
		}
		out.PortBindings[p] = append(out.PortBindings[p], binding)
	}
	for _, m := range h.Mounts {
		if m.FromSpec {
			out.Mounts = append(out.Mounts, wireMount(m))
		}
	}
	return out
}

func wireResources(h *container.HostConfig) apicontainer.Resources {
	in := &h.Resources
	out := apicontainer.Resources{
		CPUShares: in.CPUShares, Memory: in.Memory, NanoCPUs: in.NanoCPUs, CgroupParent: h.CgroupParent, BlkioWeight: in.BlkioWeight,
		CPUPeriod: in.CPUPeriod, CPUQuota: in.CPUQuota, CPURealtimePeriod: in.CPURealtimePeriod, CPURealtimeRuntime: in.CPURealtimeRuntime,
		CpusetCpus: in.CpusetCpus, CpusetMems: in.CpusetMems, DeviceCgroupRules: h.DeviceRules, MemoryReservation: in.MemoryReservation,
		MemorySwap: in.MemorySwap, MemorySwappiness: in.MemorySwappiness, OomKillDisable: h.OOMKillDisable,
		BlkioDeviceReadBps: wireThrottles(in.BlkioReadBps), BlkioDeviceWriteBps: wireThrottles(in.BlkioWriteBps),
		BlkioDeviceReadIOps: wireThrottles(in.BlkioReadIOps), BlkioDeviceWriteIOps: wireThrottles(in.BlkioWriteIOps),
		BlkioWeightDevice: []*blkiodev.WeightDevice{}, Devices: []apicontainer.DeviceMapping{}, Ulimits: ulimitsOf(h.Ulimits),
	}
	if in.PidsLimit != 0 { // -1, an update's word for no limit, is shown as 0
		limit := max(in.PidsLimit, 0)
		out.PidsLimit = &limit
	}
	for _, d := range in.BlkioWeightDevice {
		out.BlkioWeightDevice = append(out.BlkioWeightDevice, &blkiodev.WeightDevice{Path: d.Path, Weight: d.Weight})
	}
	for _, d := range h.DeviceRequests {
		out.DeviceRequests = append(out.DeviceRequests, apicontainer.DeviceRequest(d))
	}
	for _, d := range h.Devices {
		out.Devices = append(out.Devices, apicontainer.DeviceMapping{PathOnHost: d.Host, PathInContainer: d.Container, CgroupPermissions: d.Permissions})
	}
	return out
}

func wireThrottles(in []container.ThrottleDevice) []*blkiodev.ThrottleDevice {
	out := make([]*blkiodev.ThrottleDevice, len(in))
	for i, d := range in {
		out[i] = &blkiodev.ThrottleDevice{Path: d.Path, Rate: d.Rate}
	}
	return out
}

func wireMount(m container.Mount) mount.Mount {
	out := mount.Mount{Type: mount.Type(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
	switch m.Type {
	case container.MountBind:
		o := mount.BindOptions{Propagation: mount.Propagation(m.Propagation), NonRecursive: m.NonRecursive, CreateMountpoint: m.CreateMountpoint,
			ReadOnlyNonRecursive: m.ReadOnlyNonRecursive, ReadOnlyForceRecursive: m.ReadOnlyForceRecursive}
		if o != (mount.BindOptions{}) {
			out.BindOptions = &o
		}
	case container.MountVolume:
		if m.NoCopy || m.Labels != nil || m.Subpath != "" || m.Driver != "" {
			out.VolumeOptions = &mount.VolumeOptions{NoCopy: m.NoCopy, Labels: m.Labels, Subpath: m.Subpath}
			if m.Driver != "" {
				out.VolumeOptions.DriverConfig = &mount.Driver{Name: m.Driver, Options: m.DriverOpts}
			}
		}
	case container.MountTmpfs:
		if m.TmpfsSize != 0 || m.TmpfsMode != 0 || m.TmpfsOptions != nil {
			out.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: m.TmpfsSize, Mode: os.FileMode(m.TmpfsMode), Options: m.TmpfsOptions}
		}
	case container.MountImage:
		if m.Subpath != "" {
			out.ImageOptions = &mount.ImageOptions{Subpath: m.Subpath}
		}
	}
	return out
}

func wireMounts(in []container.MountPoint) []apicontainer.MountPoint {
	out := make([]apicontainer.MountPoint, len(in))
	for i, m := range in {
		out[i] = apicontainer.MountPoint{Type: mount.Type(m.Type), Name: m.Name, Source: m.Source, Destination: m.Destination,
			Driver: m.Driver, Mode: m.Mode, RW: m.RW, Propagation: mount.Propagation(m.Propagation)}
	}
	return out
}

func networkSettings(c *container.Container) *apicontainer.NetworkSettings {
	out := &apicontainer.NetworkSettings{
		SandboxID: c.Networks.SandboxID, SandboxKey: c.Networks.NetNS, Ports: apinetwork.PortMap{}, Networks: endpoints(c),
	}
	if !c.State.Running {
		return out
	}
	for _, p := range c.Config.ExposedPorts {
		if port, ok := wirePort(p); ok {
			out.Ports[port] = nil
		}
	}
	for _, b := range c.Networks.Ports {
		if port, ok := wirePort(b.Port); ok {
			binding := apinetwork.PortBinding{HostIP: b.HostIP}
			if b.HostPort != 0 { // otherwise it is open at the container's own address only
				binding.HostPort = strconv.Itoa(int(b.HostPort))
			}
			out.Ports[port] = append(out.Ports[port], binding)
		}
	}
	return out
}

// endpoints shows the container's endpoints: those it has, and while it does not run those it will have.
func endpoints(c *container.Container) map[string]*apinetwork.EndpointSettings {
	out := map[string]*apinetwork.EndpointSettings{}
	for name, e := range c.Networks.Endpoints {
		out[name] = wireEndpoint(&e)
	}
	if len(out) > 0 || c.Config.Network.Left != "" {
		return out
	}
	for name, cfg := range c.Config.Network.Endpoints {
		out[name] = wireEndpoint(&container.Endpoint{Config: cfg, NetworkName: name})
	}
	if mode := apicontainer.NetworkMode(c.Config.Host.NetworkMode); len(out) == 0 && !mode.IsContainer() && mode != "" {
		out[string(mode)] = wireEndpoint(&container.Endpoint{})
	}
	return out
}

func wireEndpoint(e *container.Endpoint) *apinetwork.EndpointSettings {
	out := &apinetwork.EndpointSettings{
		Links: e.Config.Links, Aliases: e.Config.Aliases, DriverOpts: e.Config.DriverOpts, GwPriority: e.Config.GwPriority,
		NetworkID: e.NetworkID, EndpointID: e.EndpointID, Gateway: e.Gateway4, MacAddress: hardwareAddr(e.MAC),
		IPv6Gateway: e.Gateway6, DNSNames: e.DNSNames,
	}
	if e.IPv4.IsValid() {
		out.IPAddress, out.IPPrefixLen = e.IPv4.Addr(), e.IPv4.Bits()
	}
	if e.IPv6.IsValid() {
		out.GlobalIPv6Address, out.GlobalIPv6PrefixLen = e.IPv6.Addr(), e.IPv6.Bits()
	}
	if c := e.Config; c.IPv4.IsValid() || c.IPv6.IsValid() || len(c.LinkLocalIPs) > 0 {
		out.IPAMConfig = &apinetwork.EndpointIPAMConfig{IPv4Address: c.IPv4, IPv6Address: c.IPv6, LinkLocalIPs: c.LinkLocalIPs}
	}
	return out
}

func hardwareAddr(s string) apinetwork.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil
	}
	return apinetwork.HardwareAddr(mac)
}

// shortID cuts an ID to the twelve characters that users see.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// logPath is the file of a json-file log; the files of other drivers are nobody's business.
func logPath(c *container.Container) string {
	if cmp.Or(c.Config.Host.Log.Driver, "json-file") != "json-file" {
		return ""
	}
	return c.LogPath
}
