package node

import (
	"bufio"
	"cmp"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/node/config"
	"github.com/sampan-cloud/sampan/internal/server/docker"
	"github.com/sampan-cloud/sampan/internal/sys/cgroup"
)

// hostInfo is what is said of the host and the daemon; what cannot change while the daemon runs is read once.
type hostInfo struct {
	mu   sync.Mutex // guards what follows
	cfg  config.Config
	base docker.HostInfo
}

// reload takes over what can change of the configuration.
func (h *hostInfo) reload(cfg config.Config) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cfg.Labels = cfg.Labels
	h.base.Labels, h.base.Debug, h.base.InsecureRegistries, h.base.Mirrors = cfg.Labels, cfg.Debug, cfg.Insecure, cfg.Mirrors
	h.base.SecurityOptions = securityOptions(cfg)
}

func newHostInfo(cfg config.Config, id string) *hostInfo {
	var u unix.Utsname
	_ = unix.Uname(&u)
	var s unix.Sysinfo_t
	_ = unix.Sysinfo(&s)
	hostname, _ := os.Hostname()
	system, version := osRelease()
	h := &hostInfo{cfg: cfg, base: docker.HostInfo{
		ID: id, Name: hostname, DataRoot: cfg.DataRoot, Driver: "overlayfs",
		// Clients tell by the type that images are known by their manifests, and that several platforms are kept.
		DriverStatus:  [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}, {"Backing Filesystem", filesystem(cfg.DataRoot)}, {"Supports d_type", "true"}},
		KernelVersion: unix.ByteSliceToString(u.Release[:]), OperatingSystem: system, OSVersion: version,
		Architecture: unix.ByteSliceToString(u.Machine[:]), NCPU: runtime.NumCPU(), MemTotal: int64(s.Totalram) * int64(s.Unit),
		CgroupDriver: "cgroupfs", CgroupVersion: cgroupVersion(), SecurityOptions: securityOptions(cfg), Labels: cfg.Labels, Debug: cfg.Debug,
		InsecureRegistries: cfg.Insecure, Mirrors: cfg.Mirrors, Version: cfg.Version, GitCommit: cfg.Commit, BuildTime: cfg.Built,
		InitBinary: cmp.Or(cfg.Init, "sampan-init"), LoggingDriver: cfg.LogDriver, Components: []docker.Component{{Name: "sampan-keeper", Version: cfg.Version}},
	}}
	if cfg.Init == "" { // of another program the version is not known
		h.base.Components = append(h.base.Components, docker.Component{Name: "sampan-init", Version: cfg.Version})
	}
	h.base.HTTPProxy, h.base.HTTPSProxy, h.base.NoProxy = proxiesOf(cfg.ProxyEnviron)
	h.base.GenericResources, _ = cloud.ParseGenericResources(cfg.Generic) // checked by Validate
	for _, p := range cfg.Pools {
		h.base.DefaultAddressPools = append(h.base.DefaultAddressPools, docker.AddressPool(p))
	}
	return h
}

// Info says what info and version show.
func (h *hostInfo) Info() docker.HostInfo {
	h.mu.Lock()
	i := h.base
	h.mu.Unlock()
	i.NGoroutines = runtime.NumGoroutine()
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		i.NFd = len(fds)
	}
	i.Capabilities = capabilities(i.CgroupVersion)
	return i
}

// description is what the agent tells the managers of this host.
func (h *hostInfo) description(underlayMTU int) cloud.NodeDescription {
	h.mu.Lock()
	defer h.mu.Unlock()
	labels := map[string]string{}
	for _, l := range h.cfg.Labels {
		k, v, _ := strings.Cut(l, "=")
		labels[k] = v
	}
	return cloud.NodeDescription{Hostname: h.base.Name, OS: "linux", Architecture: h.base.Architecture, EngineVersion: h.cfg.Version,
		Labels: labels, UnderlayMTU: underlayMTU, Resources: cloud.Resources{NanoCPUs: int64(h.base.NCPU) * 1e9, MemoryBytes: h.base.MemTotal, Generic: h.base.GenericResources}}
}

// proxiesOf finds the proxies in an environment. What they are logged in with is nobody's business.
func proxiesOf(environ []string) (http, https, no string) {
	of := func(name string) string {
		for _, name := range []string{name, strings.ToLower(name)} {
			for _, e := range environ {
				if v, ok := strings.CutPrefix(e, name+"="); ok && v != "" {
					if u, err := url.Parse(v); err == nil && u.User != nil {
						u.User = url.UserPassword("xxxxx", "xxxxx")
						return u.String()
					}
					return v
				}
			}
		}
		return ""
	}
	return of("HTTP_PROXY"), of("HTTPS_PROXY"), of("NO_PROXY")
}

func osRelease() (name, version string) {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "Linux", ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), "=")
		switch value = strings.Trim(value, `"`); key {
		case "PRETTY_NAME":
			name = value
		case "VERSION_ID":
			version = value
		}
	}
	return name, version
}

func cgroupVersion() string {
	if cgroup.Unified() {
		return "2"
	}
	return "1"
}

func securityOptions(cfg config.Config) []string {
	options := []string{"name=seccomp,profile=" + cmp.Or(cfg.SeccompProfile, "builtin")}
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err == nil {
		options = append(options, "name=apparmor")
	}
	if cgroup.Unified() && cfg.Defaults.CgroupnsMode != "host" || cfg.Defaults.CgroupnsMode == "private" {
		options = append(options, "name=cgroupns")
	}
	if cfg.UsernsRemap != "" && cfg.UsernsRemap != "root" || cfg.Userns == "auto" {
		options = append(options, "name=userns")
	}
	if cfg.Defaults.NoNewPrivileges {
		options = append(options, "name=no-new-privileges")
	}
	return options
}

func capabilities(version string) docker.Capabilities {
	var c docker.Capabilities
	if version == "2" {
		text, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		has := func(controller string) bool { return slices.Contains(strings.Fields(string(text)), controller) }
		c = docker.Capabilities{MemoryLimit: has("memory"), SwapLimit: has("memory"), CPUCfsPeriod: has("cpu"), CPUCfsQuota: has("cpu"),
			CPUShares: has("cpu"), CPUSet: has("cpuset"), PidsLimit: has("pids")}
	} else {
		has := func(file string) bool {
			matches, _ := filepath.Glob("/sys/fs/cgroup/" + file)
			return len(matches) > 0
		}
		c = docker.Capabilities{MemoryLimit: has("memory/memory.limit_in_bytes"), SwapLimit: has("memory/memory.memsw.limit_in_bytes"),
			CPUCfsPeriod: has("cpu/cpu.cfs_period_us"), CPUCfsQuota: has("cpu/cpu.cfs_quota_us"), CPUShares: has("cpu/cpu.shares"),
			CPUSet: has("cpuset/cpuset.cpus"), PidsLimit: has("pids"), OomKillDisable: has("memory/memory.oom_control")}
	}
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err == nil {
		c.IPv4Forwarding = strings.TrimSpace(string(text)) == "1"
	}
	return c
}

func filesystem(path string) string {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return "unknown"
	}
	switch uint32(s.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return "extfs"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	}
	return "unknown"
}

// linkSubnets are the subnets of the host's interfaces, but for loopback and link-local ones.
func linkSubnets() []netip.Prefix {
	var all []netip.Prefix
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() && !p.IsSingleIP() {
			all = append(all, p.Masked())
		}
	}
	return all
}

// mtuOf is the MTU of the interface that has one of the addresses, 0 if there is none.
func mtuOf(addrs []netip.Addr) int {
	links, err := net.Interfaces()
	if err != nil {
		return 0
	}
	for _, link := range links {
		its, err := link.Addrs()
		if err != nil {
			continue
		}
		for _, a := range its {
			if p, err := netip.ParsePrefix(a.String()); err == nil && slices.Contains(addrs, p.Addr()) {
				return link.MTU
			}
		}
	}
	return 0
}
