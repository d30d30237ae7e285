package docker

import (
	"cmp"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	apibuild "github.com/moby/moby/api/types/build"
	apicontainer "github.com/moby/moby/api/types/container"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	apivolume "github.com/moby/moby/api/types/volume"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// systemAPI serves what is about the daemon and its host as a whole.
type systemAPI struct{ Config }

func (a *systemAPI) routes() []route {
	return []route{
		{method: "GET", pattern: "/_ping", serve: a.ping}, // and HEAD
		{method: "GET", pattern: "/info", serve: a.info},
		{method: "GET", pattern: "/version", serve: a.version},
		{method: "GET", pattern: "/system/df", serve: a.diskUsage},
		{method: "POST", pattern: "/auth", serve: a.auth},
		{method: "OPTIONS", pattern: "/{any...}", serve: func(w *response, _ *request) error { return ok(w, nil) }},
	}
}

func (a *systemAPI) ping(w *response, r *request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", string(apibuild.BuilderBuildKit))
	local := a.Swarm.Local()
	state := cmp.Or(local.State, "inactive")
	if state == "active" {
		state += "/worker"
		if local.ControlAvailable {
			state = "active/manager"
		}
	}
	h.Set("Swarm", state)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return ok(w, nil)
	}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write([]byte("OK"))
	return nil
}

// legacyInfo adds what older versions had.
type legacyInfo struct {
	system.Info
	ContainerdCommit, RuncCommit, InitCommit legacyCommit
	RegistryConfig                           legacyRegistryConfig
	BridgeNfIptables                         *bool `json:",omitempty"`
	BridgeNfIP6tables                        *bool `json:"BridgeNfIp6tables,omitempty"`
}

// legacyRegistryConfig has what versions before 1.47 said, never anything, of layers that are not to be distributed.
type legacyRegistryConfig struct {
	*registry.ServiceConfig
	*undistributed
}

type undistributed struct {
	CIDRs     []string `json:"AllowNondistributableArtifactsCIDRs"`
	Hostnames []string `json:"AllowNondistributableArtifactsHostnames"`
}

// legacyCommit is a program's version with the one that was expected, which versions before 1.49 had.
type legacyCommit struct {
	system.Commit
	Expected string `json:",omitempty"`
}

func (a *systemAPI) info(w *response, r *request) error {
	h := a.Host.Info()
	dirs, devices, warnings := a.Containers.Devices()
	h.Warnings = slices.Concat(h.Warnings, warnings)
	info := system.Info{
		ID: h.ID, Driver: h.Driver, DriverStatus: h.DriverStatus,
		Plugins:     system.PluginsInfo{Volume: volumeDrivers, Network: networkDrivers, Log: container.LogDrivers},
		MemoryLimit: h.Capabilities.MemoryLimit, SwapLimit: h.Capabilities.SwapLimit, CPUCfsPeriod: h.Capabilities.CPUCfsPeriod,
		CPUCfsQuota: h.Capabilities.CPUCfsQuota, CPUShares: h.Capabilities.CPUShares, CPUSet: h.Capabilities.CPUSet,
		PidsLimit: h.Capabilities.PidsLimit, IPv4Forwarding: h.Capabilities.IPv4Forwarding, OomKillDisable: h.Capabilities.OomKillDisable,
		Debug: h.Debug, NFd: h.NFd, NGoroutines: h.NGoroutines, SystemTime: now().Format(time.RFC3339Nano), LoggingDriver: cmp.Or(h.LoggingDriver, "json-file"),
		CgroupDriver: h.CgroupDriver, CgroupVersion: h.CgroupVersion, KernelVersion: h.KernelVersion, OperatingSystem: h.OperatingSystem,
		OSVersion: h.OSVersion, OSType: "linux", Architecture: h.Architecture, IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig: registryConfig(&h), NCPU: h.NCPU, MemTotal: h.MemTotal, DockerRootDir: h.DataRoot, Name: h.Name, Labels: list(h.Labels),
		ServerVersion: h.Version, Runtimes: map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: "runc"}}}, DefaultRuntime: "runc",
		HTTPProxy: h.HTTPProxy, HTTPSProxy: h.HTTPSProxy, NoProxy: h.NoProxy,
		LiveRestoreEnabled: true, InitBinary: h.InitBinary, SecurityOptions: list(h.SecurityOptions), CDISpecDirs: list(dirs),
		Swarm: swarmInfo(a.Swarm.Local()), Warnings: list(h.Warnings), GenericResources: wireGeneric(h.GenericResources), FirewallBackend: &system.FirewallInfo{Driver: "nftables"},
	}
	for _, c := range a.Containers.List() {
		info.Containers++
		switch {
		case c.State.Paused:
			info.ContainersPaused++
		case c.State.Running:
			info.ContainersRunning++
		default:
			info.ContainersStopped++
		}
	}
	if images, err := a.Images.List(r.Context()); err == nil {
		info.Images = len(images)
	}
	for _, p := range h.DefaultAddressPools {
		info.DefaultAddressPools = append(info.DefaultAddressPools, system.NetworkAddressPool{Base: p.Base, Size: p.Size})
	}
	info.InitCommit.ID = "N/A" // Docker's word for a program whose version is not known
	info.ContainerdCommit.ID = moduleVersion("github.com/containerd/containerd/v2")
	for _, c := range h.Components {
		switch c.Name {
		case "runc":
			info.RuncCommit.ID = c.Version
		case "sampan-keeper": // has runc's library in it
			info.RuncCommit.ID = cmp.Or(info.RuncCommit.ID, "in sampan-keeper "+c.Version)
		case "sampan-init":
			info.InitCommit.ID = c.Version
		}
	}
	if r.version >= 1050 {
		for _, name := range devices {
			info.DiscoveredDevices = append(info.DiscoveredDevices, system.DeviceInfo{Source: "cdi", ID: name})
		}
	}
	out := legacyInfo{Info: info, RegistryConfig: legacyRegistryConfig{ServiceConfig: info.RegistryConfig}, ContainerdCommit: legacyCommit{Commit: info.ContainerdCommit},
		RuncCommit: legacyCommit{Commit: info.RuncCommit}, InitCommit: legacyCommit{Commit: info.InitCommit}}
	if r.version < 1047 {
		out.RegistryConfig.undistributed = &undistributed{CIDRs: []string{}, Hostnames: []string{}}
	}
	if r.version < 1049 {
		out.FirewallBackend = nil
		for _, c := range []*legacyCommit{&out.ContainerdCommit, &out.RuncCommit, &out.InitCommit} {
			c.Expected = c.ID
		}
	}
	if r.version < 1050 {
		out.BridgeNfIptables, out.BridgeNfIP6tables = &h.Capabilities.BridgeNfIptables, &h.Capabilities.BridgeNfIptables
	}
	return writeJSON(w, http.StatusOK, out)
}

// The drivers that every node has.
var (
	networkDrivers = []string{"bridge", "host", "ipvlan", "macvlan", "null", "overlay"}
	volumeDrivers  = []string{"local"}
)

// moduleVersion returns the version of a module that this program was built with.
func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return ""
}

func registryConfig(h *HostInfo) *registry.ServiceConfig {
	mirrors := make([]string, len(h.Mirrors))
	for i, m := range h.Mirrors {
		mirrors[i] = strings.TrimSuffix(m, "/") + "/"
	}
	c := &registry.ServiceConfig{
		IndexConfigs: map[string]*registry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: mirrors, Secure: true, Official: true}},
		Mirrors:      mirrors,
		// Registries of this host need not be secure, whatever is configured.
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")},
	}
	for _, name := range h.InsecureRegistries {
		if cidr, err := netip.ParsePrefix(name); err == nil {
			c.InsecureRegistryCIDRs = append(c.InsecureRegistryCIDRs, cidr)
			continue
		}
		c.IndexConfigs[name] = &registry.IndexInfo{Name: name, Mirrors: []string{}}
	}
	return c
}

func (a *systemAPI) version(w *response, _ *request) error {
	h := a.Host.Info()
	out := system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Sampan"}, Version: h.Version, APIVersion: maxVersion.String(), MinAPIVersion: minVersion.String(),
		Os: runtime.GOOS, Arch: runtime.GOARCH, GitCommit: h.GitCommit, GoVersion: runtime.Version(), KernelVersion: h.KernelVersion, BuildTime: h.BuildTime,
	}
	out.Components = append(out.Components, system.ComponentVersion{Name: "Engine", Version: h.Version, Details: map[string]string{
		"ApiVersion": out.APIVersion, "MinAPIVersion": out.MinAPIVersion, "Os": out.Os, "Arch": out.Arch, "GitCommit": out.GitCommit,
		"GoVersion": out.GoVersion, "KernelVersion": out.KernelVersion, "BuildTime": out.BuildTime, "Experimental": "false",
	}})
	for _, c := range h.Components {
		out.Components = append(out.Components, system.ComponentVersion{Name: c.Name, Version: c.Version})
	}
	return writeJSON(w, http.StatusOK, out)
}

func (a *systemAPI) auth(w *response, r *request) error {
	var body registry.AuthConfig
	if err := r.decode(&body); err != nil {
		return err
	}
	if a.Registry == nil {
		return fault.New(fault.NotImplemented, "checking credentials is not possible: the daemon has no client of registries")
	}
	auth := image.Auth{Username: body.Username, Password: body.Password, IdentityToken: body.IdentityToken, RegistryToken: body.RegistryToken, ServerAddress: body.ServerAddress}
	token, err := a.Registry.Login(r.Context(), auth)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, registry.AuthResponse{IdentityToken: token, Status: "Login Succeeded"})
}

// diskUsageBody has the fields of both forms: that of before 1.52, and the newer with totals.
type diskUsageBody struct {
	LayersSize *int64                  `json:",omitempty"`
	Images     any                     `json:",omitempty"`
	Containers *[]apicontainer.Summary `json:",omitempty"`
	Volumes    *[]apivolume.Volume     `json:",omitempty"`
	BuildCache *[]apibuild.CacheRecord `json:",omitempty"`
	*system.DiskUsage
}

func (a *systemAPI) diskUsage(w *response, r *request) error {
	want := map[string]bool{}
	for _, t := range r.query["type"] {
		switch system.DiskUsageObject(t) {
		case system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject:
			want[t] = true
		default:
			return fault.New(fault.InvalidArgument, "unknown object type: %s", t)
		}
	}
	wanted := func(t system.DiskUsageObject) bool { return len(want) == 0 || r.version < 1042 || want[string(t)] }
	verbose := r.version >= 1052 && r.flag("verbose")
	legacy := !verbose
	var body diskUsageBody
	usage := &system.DiskUsage{}
	containers := a.Containers.List()
	if wanted(system.ImageObject) {
		images, err := a.imageUsage(r, containers)
		if err != nil {
			return err
		}
		if usage.ImageUsage = images; legacy {
			body.Images, body.LayersSize = older(*items(&images.Items, verbose), r.version), &images.TotalSize
		}
	}
	if wanted(system.ContainerObject) {
		u := a.containerUsage(r, containers)
		if usage.ContainerUsage = u; legacy {
			body.Containers = items(&u.Items, verbose)
		}
	}
	if wanted(system.VolumeObject) {
		u := a.volumeUsage()
		if usage.VolumeUsage = u; legacy {
			body.Volumes = items(&u.Items, verbose)
		}
	}
	if wanted(system.BuildCacheObject) {
		u, err := cacheUsage(r.Context(), a.Builder)
		if err != nil {
			return err
		}
		if usage.BuildCacheUsage = u; legacy {
			body.BuildCache = items(&u.Items, verbose)
		}
	}
	if r.version >= 1052 {
		body.DiskUsage = usage
	}
	return writeJSON(w, http.StatusOK, body)
}

// items returns the items of a usage for the older form, and takes them out of the newer unless they were asked for.
func items[T any](in *[]T, keep bool) *[]T {
	out := list(*in)
	if !keep {
		*in = nil
	}
	return &out
}

func (a *systemAPI) imageUsage(r *request, containers []container.Container) (*apiimage.DiskUsage, error) {
	images, err := a.Images.List(r.Context())
	if err != nil {
		return nil, err
	}
	users := map[string]int64{}
	for _, c := range containers {
		users[c.ImageID]++
	}
	u := &apiimage.DiskUsage{Items: []apiimage.Summary{}}
	sizes := sizesOf(images)
	for _, img := range images {
		s := imageSummary(&img, r)
		s.Containers, s.SharedSize = users[img.ID], sizes.shared(&img)
		u.TotalCount++
		if s.Containers > 0 {
			u.ActiveCount++
		}
		u.Items = append(u.Items, s)
	}
	u.TotalSize = sizes.total()
	u.Reclaimable = u.TotalSize - sizes.needed(images, func(img *image.Image) bool { return users[img.ID] > 0 })
	return u, nil
}

func (a *systemAPI) containerUsage(r *request, containers []container.Container) *apicontainer.DiskUsage {
	u := &apicontainer.DiskUsage{Items: []apicontainer.Summary{}}
	list, links, images := containerAPI{backend: a.Containers, images: a.Images}, linkNames(containers), map[string]image.Image{}
	for i := range containers {
		c := &containers[i]
		s := list.summary(r, c, links, images)
		rw, rootfs, err := a.Containers.Size(r.Context(), c.ID)
		if err != nil {
			continue // removed meanwhile
		}
		s.SizeRw, s.SizeRootFs = rw, rootfs
		u.TotalCount++
		u.TotalSize += rw
		if c.State.Running {
			u.ActiveCount++
		} else {
			u.Reclaimable += rw
		}
		u.Items = append(u.Items, s)
	}
	return u
}

func (a *systemAPI) volumeUsage() *apivolume.DiskUsage {
	u := &apivolume.DiskUsage{Items: []apivolume.Volume{}}
	for _, v := range a.Volumes.List() {
		size, err := a.Volumes.Size(v.Name)
		if fault.Is(err, fault.NotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			size = -1
		}
		users := int64(len(a.Volumes.Users(v.Name)))
		w := wireVolume(v)
		w.UsageData = &apivolume.UsageData{RefCount: users, Size: size}
		u.TotalCount++
		u.TotalSize += max(size, 0)
		if users > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += max(size, 0)
		}
		u.Items = append(u.Items, w)
	}
	return u
}
