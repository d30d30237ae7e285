package container

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/signal"

	"github.com/sampan-cloud/sampan/internal/fault"
)

const (
	minMemory   = 6 << 20 // below it a container's own start is killed
	minDuration = time.Millisecond
	defaultShm  = 64 << 20
)

var deviceRule = regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

// validate checks a configuration, fills in what has a default, and drops with a warning what this kernel cannot do.
func (m *Manager) validate(cfg *Config, update bool) (warnings []string, err error) {
	bad := func(format string, args ...any) error { return fault.New(fault.InvalidArgument, format, args...) }
	h := &cfg.Host

	if cfg.WorkingDir != "" {
		if !path.IsAbs(cfg.WorkingDir) {
			return nil, bad("the working directory '%s' is invalid, it needs to be an absolute path", cfg.WorkingDir)
		}
		cfg.WorkingDir = path.Clean(cfg.WorkingDir)
	}
	if len(cfg.StopSignal) > 0 {
		if _, err := signal.ParseSignal(cfg.StopSignal); err != nil {
			return nil, bad("%w", err)
		}
	}
	for _, e := range cfg.Env {
		if e == "" || strings.HasPrefix(e, "=") {
			return nil, bad("invalid environment variable: %s", e)
		}
		if strings.ContainsRune(e, 0) {
			return nil, bad("invalid environment variable: a NUL byte in %q", e)
		}
	}
	if err := validateHealth(cfg.Health); err != nil {
		return nil, err
	}
	if err := validateRestart(h.Restart); err != nil {
		return nil, err
	}
	if h.AutoRemove && h.Restart.Name != "" && h.Restart.Name != "no" {
		return nil, bad("can't create 'AutoRemove' container with restart policy")
	}
	for _, e := range h.ExtraHosts {
		name, addr, ok := cutHost(e)
		if !ok || name == "" {
			return nil, bad("bad format for add-host: %q", e)
		}
		if _, err := netip.ParseAddr(addr); err != nil && addr != hostGateway {
			return nil, bad("invalid IP address in add-host: %q", addr)
		}
	}
	for _, d := range h.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			return nil, bad("invalid DNS server %q: want an IP address", d)
		}
	}
	for k := range h.Annotations {
		if k == "" {
			return nil, bad("invalid Annotations: the empty string is not permitted as an annotation key")
		}
	}
	for _, r := range h.DeviceRules {
		if !deviceRule.MatchString(r) {
			return nil, bad("invalid device cgroup rule format: '%s'", r)
		}
	}
	for _, d := range h.Devices {
		if d.Host == "" || strings.Trim(d.Permissions, "rwm") != "" {
			return nil, bad("invalid device %s:%s:%s", d.Host, d.Container, d.Permissions)
		}
	}
	if _, err := capabilities(h, m.host.caps); err != nil {
		return nil, err
	}
	if err := validateModes(cfg); err != nil {
		return nil, err
	}
	if err := m.UserNS.check(h); err != nil {
		return nil, err
	}
	if _, err := parseSecurity(h.SecurityOpt); err != nil {
		return nil, err
	}
	if h.OOMScoreAdj < -1000 || h.OOMScoreAdj > 1000 {
		return nil, bad("Invalid value %d, range for oom score adj is [-1000, 1000].", h.OOMScoreAdj)
	}
	if h.ShmSize < 0 {
		return nil, bad("SHM size can not be less than 0")
	}
	if h.ShmSize == 0 {
		h.ShmSize = defaultShm
	}
	if h.Init != nil && *h.Init && m.InitPath == "" {
		warnings = append(warnings, "No init program is configured on this host: the container's own process stays PID 1.")
	}
	if r := h.Runtime; r != "" && r != "runc" && r != "io.containerd.runc.v2" {
		return nil, bad("unknown or invalid runtime name: %s", r)
	}
	if p := h.CgroupParent; p != "" && path.Clean("/"+p) == "/" { // what leads above the root ends there
		return nil, bad("invalid cgroup parent %q: want a path below the root of the hierarchy", p)
	}
	if len(h.StorageOpt) > 0 {
		return nil, bad("--storage-opt is not supported: the size of containers' root file systems is not limited")
	}
	h.Log = mergeLog(m.DefaultLog, h.Log)
	if _, err := logSpec(h.Log, ""); err != nil {
		return nil, err
	}
	for _, u := range h.Ulimits {
		if err := checkUlimit(u); err != nil {
			return nil, err
		}
		if lim, ok := m.host.hardLimit(u.Name); ok && (u.Hard == -1 || u.Hard > lim) {
			warnings = append(warnings, fmt.Sprintf("This daemon may not raise the %s limit above %d. Lowered to that.", u.Name, lim))
		}
	}
	if off := h.OOMKillDisable; off != nil && !m.host.cgroups.keepsFromOOM() {
		if *off {
			warnings = append(warnings, "Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		}
		h.OOMKillDisable = nil
	} else if off != nil && *off && h.Resources.Memory == 0 {
		warnings = append(warnings, "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	w, err := validateResources(&h.Resources, &m.host, update)
	return append(warnings, w...), err
}

func checkUlimit(u Ulimit) error {
	if _, known := rlimits[u.Name]; !known {
		return fault.New(fault.InvalidArgument, "invalid ulimit type: %s", u.Name)
	}
	if u.Hard != -1 && (u.Soft == -1 || u.Soft > u.Hard) {
		return fault.New(fault.InvalidArgument, "ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
	}
	return nil
}

// mergeLog fills what a container's log configuration leaves open from the host's: the driver, and for that driver the
// options.
func mergeLog(def, own LogConfig) LogConfig {
	if own.Driver != "" && own.Driver != def.Driver {
		return own
	}
	out := LogConfig{Driver: def.Driver, Options: maps.Clone(def.Options)}
	if len(own.Options) > 0 && out.Options == nil {
		out.Options = map[string]string{}
	}
	maps.Copy(out.Options, own.Options)
	return out
}

func validateHealth(h *Health) error {
	if h == nil {
		return nil
	}
	if len(h.Test) > 0 && !slices.Contains([]string{"NONE", "CMD", "CMD-SHELL"}, h.Test[0]) {
		return fault.New(fault.InvalidArgument, "Unknown healthcheck type %q in Healthcheck: want NONE, CMD or CMD-SHELL", h.Test[0])
	}
	for _, d := range []struct {
		name string
		v    time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.v != 0 && d.v < minDuration {
			return fault.New(fault.InvalidArgument, "%s in Healthcheck cannot be less than %s", d.name, minDuration)
		}
	}
	if h.Retries < 0 {
		return fault.New(fault.InvalidArgument, "Retries in Healthcheck cannot be negative")
	}
	return nil
}

func validateRestart(p RestartPolicy) error {
	switch p.Name {
	case "", "no", "always", "unless-stopped":
		if p.MaxRetries != 0 {
			return fault.New(fault.InvalidArgument, "invalid restart policy: maximum retry count can only be used with 'on-failure'")
		}
	case "on-failure":
		if p.MaxRetries < 0 {
			return fault.New(fault.InvalidArgument, "invalid restart policy: maximum retry count cannot be negative")
		}
	default:
		return fault.New(fault.InvalidArgument, "invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", p.Name)
	}
	return nil
}

func validateModes(cfg *Config) error {
	h := &cfg.Host
	for _, mode := range []struct {
		what, value string
		allowed     []string
		container   bool
	}{
		{"IPC", h.IpcMode, []string{"", "none", "private", "shareable", "host"}, true},
		{"PID", h.PidMode, []string{"", "host"}, true},
		{"UTS", h.UTSMode, []string{"", "host"}, false},
		{"cgroup namespace", h.CgroupnsMode, []string{"", "private", "host"}, false},
		{"userns", h.UsernsMode, []string{"", "host"}, false},
	} {
		ref, isContainer := strings.CutPrefix(mode.value, "container:")
		if !slices.Contains(mode.allowed, mode.value) && (!mode.container || !isContainer || ref == "") {
			return fault.New(fault.InvalidArgument, "invalid %s mode: %s", mode.what, mode.value)
		}
	}
	if h.Privileged && h.UsernsMode != "" && h.UsernsMode != "host" {
		return fault.New(fault.InvalidArgument, "privileged mode is incompatible with user namespaces")
	}
	container := strings.HasPrefix(h.NetworkMode, "container:")
	switch {
	case h.UTSMode == "host" && cfg.Hostname != "":
		return fault.New(fault.InvalidArgument, "conflicting options: hostname and the UTS mode")
	case container && cfg.Hostname != "":
		return fault.New(fault.InvalidArgument, "conflicting options: hostname and the network mode")
	case container && len(h.Ports) > 0:
		return fault.New(fault.InvalidArgument, "conflicting options: port publishing and the container type network mode")
	case container && len(h.DNS) > 0:
		return fault.New(fault.InvalidArgument, "conflicting options: dns and the network mode")
	case container && len(h.ExtraHosts) > 0:
		return fault.New(fault.InvalidArgument, "conflicting options: custom host-to-IP mapping and the network mode")
	case container && cfg.Network.MAC != "":
		return fault.New(fault.InvalidArgument, "conflicting options: mac-address and the network mode")
	}
	for name, e := range cfg.Network.Endpoints {
		if slices.Contains([]string{"bridge", "default", "host", "none"}, name) && (e.IPv4.IsValid() || e.IPv6.IsValid()) {
			return fault.New(fault.InvalidArgument, "invalid endpoint settings: user-specified IP address is supported on user-defined networks only")
		}
	}
	if !container && h.NetworkMode != "host" {
		return nil
	}
	for name := range h.Sysctls {
		if strings.HasPrefix(name, "net.") {
			return fault.New(fault.InvalidArgument, "sysctl %q is not allowed: the container shares its network namespace", name)
		}
	}
	return nil
}

func validateResources(r *Resources, h *host, update bool) (warnings []string, err error) {
	bad := func(format string, args ...any) ([]string, error) {
		return warnings, fault.New(fault.InvalidArgument, format, args...)
	}
	drop := func(format string) { warnings = append(warnings, format) }
	cg, cpus := h.cgroups, h.cpus
	cpu := cg.has("cpu")

	if r.Memory != 0 && r.Memory < minMemory {
		return bad("Minimum memory limit allowed is 6MB")
	}
	if r.Memory > 0 && !cg.has("memory") {
		drop("Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.")
		r.Memory, r.MemorySwap = 0, 0
	}
	if r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory {
		return bad("Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if r.Memory == 0 && r.MemorySwap > 0 && !update {
		return bad("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	if r.Memory > 0 && r.MemorySwap != -1 && !cg.limitsSwap() {
		drop("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
		r.MemorySwap = -1
	}
	if r.Memory > 0 && r.MemorySwap == 0 && !update {
		r.MemorySwap = 2 * r.Memory
	}
	if s := r.MemorySwappiness; s != nil {
		if *s == -1 {
			r.MemorySwappiness = nil
		} else if *s < 0 || *s > 100 {
			return bad("Invalid value: %d, valid memory swappiness range is 0-100", *s)
		} else if cg.unified() {
			drop("Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
			r.MemorySwappiness = nil
		}
	}
	if r.MemoryReservation != 0 && r.MemoryReservation < minMemory {
		return bad("Minimum memory reservation allowed is 6MB")
	}
	if r.Memory > 0 && r.Memory < r.MemoryReservation {
		return bad("Minimum memory limit can not be less than memory reservation limit, see usage")
	}
	if r.PidsLimit > 0 && !cg.has("pids") {
		drop("Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.")
		r.PidsLimit = 0
	}
	switch {
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return bad("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return bad("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.NanoCPUs > 0 && !cpu:
		return bad("NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted")
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(cpus)*1e9:
		return bad("range of CPUs is from 0.01 to %[1]d.00, as there are only %[1]d CPUs available", cpus)
	case r.CPUShares < 0:
		return bad("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return bad("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return bad("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.BlkioWeight != 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return bad("Range of blkio weight is from 10 to 1000")
	}
	if (r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0) && !cg.schedulesRealtime() {
		drop("Your kernel does not support CPU real-time scheduler. CPU real-time period/runtime discarded.")
		r.CPURealtimePeriod, r.CPURealtimeRuntime = 0, 0
	}
	if r.CPUShares > 0 && !cpu {
		drop("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.")
		r.CPUShares = 0
	}
	if (r.CPUPeriod != 0 || r.CPUQuota != 0) && !cpu {
		drop("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
		r.CPUPeriod, r.CPUQuota = 0, 0
	}
	if (r.CpusetCpus != "" || r.CpusetMems != "") && !cg.has("cpuset") {
		drop("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.")
		r.CpusetCpus, r.CpusetMems = "", ""
	}
	for _, set := range []struct{ value, name, what, have string }{
		{r.CpusetCpus, "cpus", "CPUs", fmt.Sprintf("0-%d", h.cpus-1)}, {r.CpusetMems, "mems", "memory nodes", h.memoryNodes},
	} {
		ids, err := parseList(set.value)
		if err != nil {
			return bad("Invalid value %s for cpuset %s: %w", set.value, set.name, err)
		}
		have, err := parseList(set.have)
		if err == nil && slices.ContainsFunc(ids, func(id int) bool { return !slices.Contains(have, id) }) {
			return bad("Requested %s are not available - requested %s, available: %s", set.what, set.value, set.have)
		}
	}
	if r.BlkioWeight > 0 && !cg.weighsIO() {
		drop("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
		r.BlkioWeight = 0
	}
	if len(r.BlkioWeightDevice) > 0 && !cg.weighsIO() {
		drop("Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.")
		r.BlkioWeightDevice = nil
	}
	for _, rate := range []struct {
		list       *[]ThrottleDevice
		unit, what string
	}{{&r.BlkioReadBps, "BPS", "read"}, {&r.BlkioWriteBps, "BPS", "write"}, {&r.BlkioReadIOps, "IOPS", "read"}, {&r.BlkioWriteIOps, "IOPS", "write"}} {
		if len(*rate.list) > 0 && !cg.has("blkio") {
			drop(fmt.Sprintf("Your kernel does not support %[1]s Block I/O %[2]s limit or the cgroup is not mounted. Block I/O %[1]s %[2]s limit discarded.", rate.unit, rate.what))
			*rate.list = nil
		}
	}
	return warnings, nil
}

// parseList reads a kernel list such as "0-2,5".
func parseList(s string) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	var ids []int
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || a < 0 || b < a || b > 8191 {
			return nil, fmt.Errorf("%q is no list of numbers and ranges", s)
		}
		for i := a; i <= b; i++ {
			ids = append(ids, i)
		}
	}
	return ids, nil
}
