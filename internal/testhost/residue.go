package testhost

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cgroupRoots are the hierarchies in which a group of a host can be.
func cgroupRoots() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*")
	return roots
}

// CgroupProcesses returns the processes in the groups under parent, in any hierarchy, each once.
func CgroupProcesses(parent string) []int {
	seen := map[int]bool{}
	for _, root := range cgroupRoots() {
		_ = filepath.WalkDir(filepath.Join(root, parent), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil
			}
			f, err := os.Open(path)
			if err != nil {
				return nil // the group has gone meanwhile
			}
			defer f.Close()
			for s := bufio.NewScanner(f); s.Scan(); {
				if pid, err := strconv.Atoi(s.Text()); err == nil && pid > 0 {
					seen[pid] = true
				}
			}
			return nil
		})
	}
	pids := make([]int, 0, len(seen))
	for pid := range seen {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// processesIn lists the processes in the network namespace pinned at path.
func processesIn(path string) []int {
	var ns unix.Stat_t
	if unix.Stat(path, &ns) != nil {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var its unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name(), "ns/net"), &its) == nil && its.Ino == ns.Ino && its.Dev == ns.Dev && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// ProcessesWith lists the processes that have text on their command line.
func ProcessesWith(text string) []int {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var pids []int
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && perr == nil && pid != os.Getpid() && strings.Contains(string(line), text) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// PSS is the memory of the processes in bytes, shared pages counted in proportion (smaps_rollup).
func PSS(pids []int) int64 {
	var sum int64
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(text)) {
			var kib int64
			if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 {
				sum += kib << 10
			}
		}
	}
	return sum
}

// thaw lets the frozen processes in the groups under parent go on, so that they can be ended.
func thaw(parent string) {
	for _, root := range cgroupRoots() {
		_ = filepath.WalkDir(filepath.Join(root, parent), func(path string, d fs.DirEntry, err error) error {
			if err == nil {
				switch d.Name() {
				case "freezer.state":
					_ = os.WriteFile(path, []byte("THAWED"), 0)
				case "cgroup.freeze":
					_ = os.WriteFile(path, []byte("0"), 0)
				}
			}
			return nil
		})
	}
}

// removeCgroups removes the groups under parent, deepest first. Groups with processes stay.
func removeCgroups(parent string) {
	for _, root := range cgroupRoots() {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(root, parent), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			_ = unix.Rmdir(dir)
		}
	}
}

// leftGroups removes the groups whose paths begin so, and tells of them.
func leftGroups(prefix string) error {
	var errs []error
	for _, root := range cgroupRoots() {
		left, _ := filepath.Glob(root + prefix + "*")
		for _, dir := range left {
			errs = append(errs, fmt.Errorf("left behind: control group %s", dir))
			removeCgroups(strings.TrimPrefix(dir, root))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow lists the mount points under dir, the newest last.
func mountsBelow(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			points = append(points, strings.ReplaceAll(f[4], `\040`, " "))
		}
	}
	return points, nil
}

func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}

// Residue is what containers and networks leave on a machine if they are not taken down: a snapshot of it before and
// after must be equal.
type Residue map[string]bool

// kept are the folders in which a host has something of every container, below its own: processes, sandboxes with the
// addresses that they hold, mount points, records, root file systems.
var kept = []string{"exec/keeper/io", "exec/keeper/containers", "exec/network/sandboxes", "exec/containers", "data/containers", "data/image/rootfs"}

// TakeResidue looks at everything that belongs to the lab's hosts: mounts, network namespaces and their links, groups,
// and what they have on disk of containers and their networks.
func (l *Lab) TakeResidue() (Residue, error) {
	r := Residue{}
	points, err := mountsBelow(l.Dir)
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		r["mount "+p] = true
	}
	for _, h := range l.Hosts {
		for _, root := range cgroupRoots() {
			own := filepath.Join(root, h.CgroupParent()) // made once and kept
			_ = filepath.WalkDir(own, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() && path != own {
					r["cgroup "+path] = true
				}
				return nil
			})
		}
		for _, folder := range kept {
			entries, _ := os.ReadDir(filepath.Join(h.Dir, folder))
			for _, e := range entries {
				r[fmt.Sprintf("file %s/%s/%s", h.Name, folder, e.Name())] = true
			}
		}
		err := h.Do(func() error {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, link := range links {
				r[fmt.Sprintf("link %s/%s", h.Name, link.Attrs().Name)] = true
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return r, nil
}

// spares are the sandboxes that a host keeps ready: namespaces that belong to no container and are no leak.
const spares = 4

// Left lists what is in now and was not in r. What a host makes once and keeps (its overlays' way out, sandboxes kept
// ready) is not counted.
func (r Residue) Left(now Residue) []string {
	var left []string
	sandboxes := map[string]int{}
	for item := range now {
		if folder, _, ok := strings.Cut(item, "/netns/sb-"); ok {
			if sandboxes[folder]++; sandboxes[folder] <= spares {
				continue
			}
		}
		if strings.HasSuffix(item, "/sampan_gwbridge") { // every host's way out of its overlays, made once
			continue
		}
		if !r[item] {
			left = append(left, item)
		}
	}
	slices.Sort(left)
	return left
}
