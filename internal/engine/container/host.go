package container

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// host is what this machine and this process can give to a container. Everything in it is found once.
type host struct {
	caps     []string // names as in "CAP_CHOWN": what the daemon may hand on
	cgroups  hierarchy
	apparmor bool
	masked   []string
	oomScore int // of this process: without CAP_SYS_RESOURCE nothing can go below it
	cpus     int
	// memoryNodes are those that are online, as a kernel list.
	memoryNodes string
	procRoot    string // "/proc", another in tests
}

func probeHost() host {
	h := host{
		caps:     ownCapabilities(),
		cgroups:  findHierarchy("/proc/self/mountinfo"),
		cpus:     runtime.NumCPU(),
		masked:   defaultMasked(),
		procRoot: "/proc",
	}
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil {
		h.apparmor = strings.TrimSpace(string(b)) == "Y"
	}
	if b, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		h.oomScore, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	h.memoryNodes = "0"
	if b, err := os.ReadFile("/sys/devices/system/node/online"); err == nil {
		h.memoryNodes = strings.TrimSpace(string(b))
	}
	return h
}

func (h *host) can(name string) bool { return slices.Contains(h.caps, name) }

// ownCapabilities are those in this process' bounding and permitted sets: what it may give to a child.
func ownCapabilities() []string {
	c, err := capability.NewPid2(0)
	if err != nil {
		return nil
	}
	if err := c.Load(); err != nil {
		return nil
	}
	var names []string
	known, err := capability.ListSupported()
	if err != nil {
		known = capability.ListKnown()
	}
	for _, k := range known {
		if c.Get(capability.BOUNDING, k) && c.Get(capability.PERMITTED, k) {
			names = append(names, "CAP_"+strings.ToUpper(k.String()))
		}
	}
	slices.Sort(names)
	return names
}

// defaultMasked are the paths that show or change the host and are hidden from containers.
var defaultMasked = sync.OnceValue(func() []string {
	paths := []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"}
	thermal, _ := filepath.Glob("/sys/devices/system/cpu/cpu*/thermal_throttle")
	return append(paths, thermal...)
})

var defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// hidePaths fills in which paths of the host are hidden or read-only where a container does not say, so that inspect
// shows them. A privileged container sees them all.
func (h *host) hidePaths(hc *HostConfig) {
	if hc.Privileged {
		return
	}
	if hc.MaskedPaths == nil {
		hc.MaskedPaths = slices.Clone(h.masked)
	}
	if hc.ReadonlyPaths == nil {
		hc.ReadonlyPaths = slices.Clone(defaultReadonly)
	}
}

// hierarchy is where cgroups are mounted. With cgroup v2 as the host's main hierarchy v1 is empty.
type hierarchy struct {
	v2 string            // mount point of the unified hierarchy
	v1 map[string]string // controller to mount point
}

// unified reports whether containers' resources are governed by cgroup v2.
func (h hierarchy) unified() bool { return h.v2 != "" && len(h.v1) == 0 }

func findHierarchy(mountinfoPath string) hierarchy {
	h := hierarchy{v1: map[string]string{}}
	f, err := os.Open(mountinfoPath)
	if err != nil {
		return h
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return h
	}
	for _, mi := range infos {
		if mi.FSType == "cgroup2" {
			if h.v2 == "" || len(mi.Mountpoint) < len(h.v2) {
				h.v2 = mi.Mountpoint
			}
			continue
		}
		for opt := range strings.SplitSeq(mi.VFSOptions, ",") {
			if _, known := h.v1[opt]; !known && slices.Contains(v1Controllers, opt) {
				h.v1[opt] = mi.Mountpoint
			}
		}
	}
	return h
}

var v1Controllers = []string{"memory", "cpu", "cpuacct", "cpuset", "blkio", "pids", "devices", "freezer", "hugetlb", "net_cls", "net_prio", "perf_event"}

// has reports whether a controller is there for containers.
func (h hierarchy) has(controller string) bool {
	if h.unified() {
		switch controller {
		case "devices", "freezer":
			return true
		case "cpuacct":
			controller = "cpu"
		case "blkio":
			controller = "io"
		}
		b, err := os.ReadFile(filepath.Join(h.v2, "cgroup.controllers"))
		return err == nil && slices.Contains(strings.Fields(string(b)), controller)
	}
	_, ok := h.v1[controller]
	return ok
}

// limitsSwap reports whether a container's use of swap can be limited.
func (h hierarchy) limitsSwap() bool {
	if h.unified() {
		return h.groupsHave("memory.max", "memory.swap.max")
	}
	return h.v1Has("memory", "memory.memsw.limit_in_bytes")
}

// weighsIO reports whether containers can have shares of block I/O.
func (h hierarchy) weighsIO() bool {
	if h.unified() {
		return h.has("blkio") && (h.groupsHave("io.max", "io.weight") || h.groupsHave("io.max", "io.bfq.weight"))
	}
	return h.v1Has("blkio", "blkio.weight") || h.v1Has("blkio", "blkio.bfq.weight")
}

// keepsFromOOM reports whether a container can be kept from being killed for memory.
func (h hierarchy) keepsFromOOM() bool {
	return !h.unified() && h.v1Has("memory", "memory.oom_control")
}

// schedulesRealtime reports whether a container can have a share of real-time scheduling.
func (h hierarchy) schedulesRealtime() bool {
	return !h.unified() && h.v1Has("cpu", "cpu.rt_period_us")
}

// v1Has reports whether a controller of version 1 knows a file.
func (h hierarchy) v1Has(controller, file string) bool {
	mp, ok := h.v1[controller]
	return ok && unix.Access(filepath.Join(mp, file), unix.F_OK) == nil
}

// groupsHave reports whether a group of version 2 that has the file sign, which tells that its controller is on, has
// another one too. The root group has neither, so any other is asked; where there is none yet, the kernel gets the
// benefit of the doubt.
func (h hierarchy) groupsHave(sign, file string) bool {
	signs, err := filepath.Glob(filepath.Join(h.v2, "*", sign))
	if err != nil || len(signs) == 0 {
		return true
	}
	return unix.Access(filepath.Join(filepath.Dir(signs[0]), file), unix.F_OK) == nil
}
