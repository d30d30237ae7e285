package container

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

const defaultCPUPeriod = 100_000 // microseconds

// resources turns limits into the runtime's. Shares and weights are v1's; the runtime converts them for v2.
func resources(r *Resources, oomKillDisable *bool) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if mem := (specs.LinuxMemory{DisableOOMKiller: oomKillDisable}); true {
		mem.Limit = positive(r.Memory)
		mem.Reservation = positive(r.MemoryReservation)
		mem.Swap = positive(r.MemorySwap)
		if r.Memory > 0 && r.MemorySwap == 0 {
			twice := 2 * r.Memory
			mem.Swap = &twice
		}
		if r.MemorySwappiness != nil {
			s := uint64(*r.MemorySwappiness)
			mem.Swappiness = &s
		}
		if mem != (specs.LinuxMemory{}) {
			out.Memory = &mem
		}
	}

	cpu := specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	cpu.Shares = positiveU(r.CPUShares)
	cpu.Period = positiveU(r.CPUPeriod)
	if r.CPUQuota != 0 {
		q := r.CPUQuota
		cpu.Quota = &q
	}
	if r.NanoCPUs > 0 {
		period := uint64(defaultCPUPeriod)
		quota := r.NanoCPUs * defaultCPUPeriod / 1e9
		cpu.Period, cpu.Quota = &period, &quota
	}
	cpu.RealtimePeriod = positiveU(r.CPURealtimePeriod)
	cpu.RealtimeRuntime = positive(r.CPURealtimeRuntime)
	if cpu != (specs.LinuxCPU{}) {
		out.CPU = &cpu
	}

	if r.PidsLimit != 0 {
		n := r.PidsLimit
		if n < 0 {
			n = -1
		}
		out.Pids = &specs.LinuxPids{Limit: &n}
	}

	bio := &specs.LinuxBlockIO{}
	used := r.BlkioWeight > 0
	if used {
		w := r.BlkioWeight
		bio.Weight = &w
	}
	for _, d := range r.BlkioWeightDevice {
		major, minor, err := deviceNumber(d.Path)
		if err != nil {
			return nil, err
		}
		w := d.Weight
		wd := specs.LinuxWeightDevice{Weight: &w}
		wd.Major, wd.Minor = major, minor
		bio.WeightDevice = append(bio.WeightDevice, wd)
		used = true
	}
	for _, t := range []struct {
		in  []ThrottleDevice
		out *[]specs.LinuxThrottleDevice
	}{{r.BlkioReadBps, &bio.ThrottleReadBpsDevice}, {r.BlkioWriteBps, &bio.ThrottleWriteBpsDevice},
		{r.BlkioReadIOps, &bio.ThrottleReadIOPSDevice}, {r.BlkioWriteIOps, &bio.ThrottleWriteIOPSDevice}} {
		for _, d := range t.in {
			major, minor, err := deviceNumber(d.Path)
			if err != nil {
				return nil, err
			}
			td := specs.LinuxThrottleDevice{Rate: d.Rate}
			td.Major, td.Minor = major, minor
			*t.out = append(*t.out, td)
			used = true
		}
	}
	if used {
		out.BlockIO = bio
	}
	return out, nil
}

func positive(v int64) *int64 {
	if v <= 0 {
		return nil
	}
	return &v
}

func positiveU(v int64) *uint64 {
	if v <= 0 {
		return nil
	}
	u := uint64(v)
	return &u
}

func deviceNumber(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, fault.New(fault.InvalidArgument, "device %s: %w", path, err)
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

var errNotDevice = errors.New("not a device node")

// deviceAt describes a device node of the host.
func deviceAt(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return specs.LinuxDevice{}, err
	}
	var kind string
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		kind = "b"
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFIFO:
		kind = "p"
	default:
		return specs.LinuxDevice{}, errNotDevice
	}
	mode := fs.FileMode(st.Mode &^ unix.S_IFMT)
	return specs.LinuxDevice{Type: kind, Path: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid}, nil
}

// devicesAt describes a device, or every device below a folder.
func devicesAt(host, inside string) ([]specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(host)
	if err == nil {
		var d specs.LinuxDevice
		if d, err = deviceAt(real); err == nil {
			d.Path = inside
			return []specs.LinuxDevice{d}, nil
		}
	}
	var all []specs.LinuxDevice
	if errors.Is(err, errNotDevice) {
		_ = filepath.WalkDir(real, func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || e.Type()&fs.ModeDevice == 0 {
				return nil
			}
			if d, err := deviceAt(p); err == nil {
				d.Path = inside + strings.TrimPrefix(p, real)
				all = append(all, d)
			}
			return nil
		})
	}
	if len(all) == 0 {
		return nil, fault.New(fault.InvalidArgument, "error gathering device information while adding custom device %q: %w", host, err)
	}
	return all, nil
}

// hostDevices are those that a privileged container sees.
func hostDevices(dir string) []specs.LinuxDevice {
	var all []specs.LinuxDevice
	_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if e.IsDir() {
			switch e.Name() {
			// What the container has of its own, and what other managers of devices keep there.
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				return fs.SkipDir
			}
			return nil
		}
		if e.Name() == "console" || e.Name() == "ptmx" || e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		if d, err := deviceAt(p); err == nil {
			all = append(all, d)
		}
		return nil
	})
	return all
}

// addDevices gives the container its device nodes and the right to use them.
func addDevices(s *specs.Spec, hc *HostConfig) error {
	rule := func(allow bool, kind string, major, minor int64, access string) {
		r := specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Access: access}
		if kind != "" {
			r.Major, r.Minor = &major, &minor
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, r)
	}
	if hc.Privileged {
		s.Linux.Devices = hostDevices("/dev")
	} else {
		rule(false, "", 0, 0, "rwm")
		for _, n := range [][2]int64{{1, 3}, {1, 5}, {1, 8}, {1, 9}, {5, 0}, {5, 1}} { // null zero random urandom tty console
			rule(true, "c", n[0], n[1], "rwm")
		}
		rule(false, "c", 10, 229, "rwm") // fuse
	}
	for _, want := range hc.Devices {
		inside := firstNonEmpty(want.Container, want.Host)
		if hc.Privileged && inside == want.Host {
			continue // has it already
		}
		ds, err := devicesAt(want.Host, inside)
		if err != nil {
			return err
		}
		s.Linux.Devices = append(s.Linux.Devices, ds...)
		if !hc.Privileged {
			for _, d := range ds {
				rule(true, d.Type, d.Major, d.Minor, firstNonEmpty(want.Permissions, "rwm"))
			}
		}
	}
	if hc.Privileged {
		rule(true, "", 0, 0, "rwm")
		return nil
	}
	for _, text := range hc.DeviceRules {
		p := deviceRule.FindStringSubmatch(text)
		if p == nil {
			return fault.New(fault.InvalidArgument, "invalid device cgroup rule format: '%s'", text)
		}
		rule(true, p[1], ruleNumber(p[2]), ruleNumber(p[3]), p[4])
	}
	return nil
}

func ruleNumber(s string) int64 {
	if s == "*" {
		return -1
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// exists reports whether a path is there, whatever it is.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
