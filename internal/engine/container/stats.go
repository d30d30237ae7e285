package container

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// userHZ is the unit of CPU times in /proc/stat and cpuacct.stat on every architecture Linux runs on today.
const userHZ = 100

// Stats returns a container's counters. One that does not run has none, which is no error.
func (m *Manager) Stats(ctx context.Context, id string) (Stats, error) {
	c, err := m.find(id)
	if err != nil {
		return Stats{}, err
	}
	s := c.snapshot()
	out := Stats{ID: c.id, Name: s.Config.Name}
	if !s.State.Running || s.State.Restarting {
		return out, nil
	}
	out.Read = time.Now().UTC()
	if err := m.host.readStats(s.State.PID, &out); err != nil {
		if now := c.snapshot().State; !now.Running || now.PID != s.State.PID || processGone(err) {
			return Stats{ID: c.id, Name: s.Config.Name}, nil // it ended just now
		}
		return Stats{}, fmt.Errorf("counters of container %s: %w", short(c.id), err)
	}
	if s.Config.Host.NetworkMode == "host" {
		out.Networks = nil
	}
	return out, nil
}

// processGone tells from what the kernel says of a process or its groups that it has ended, though its exit may not be
// handled yet.
func processGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV)
}

// cgroupDir returns the folder of a process' cgroup: the unified one, or that of the first of the v1 controllers that
// the host has.
func (h *host) cgroupDir(pid int, controllers ...string) (string, error) {
	b, err := os.ReadFile(filepath.Join(h.procRoot, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "", err
	}
	paths := map[string]string{}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		for name := range strings.SplitSeq(f[1], ",") {
			paths[name] = f[2]
		}
	}
	if h.cgroups.unified() {
		p, ok := paths[""]
		if !ok {
			return "", fault.New(fault.NotFound, "process %d is in no cgroup", pid)
		}
		return filepath.Join(h.cgroups.v2, p), nil
	}
	for _, name := range controllers {
		p, ok := paths[name]
		mp := h.cgroups.v1[name]
		if ok && mp != "" {
			return filepath.Join(mp, p), nil
		}
	}
	return "", fault.New(fault.NotFound, "process %d is in no cgroup of %s", pid, strings.Join(controllers, ", "))
}

func (h *host) readStats(pid int, s *Stats) error {
	s.NumCPU = h.cpus
	sys, err := h.systemCPU()
	if err != nil {
		return err
	}
	s.CPU.System = sys
	if h.cgroups.unified() {
		dir, err := h.cgroupDir(pid)
		if err != nil {
			return err
		}
		if err := readV2(dir, s); err != nil {
			return err
		}
	} else if err := h.readV1(pid, s); err != nil {
		return err
	}
	total := h.memTotal()
	if s.Memory.Limit == 0 || s.Memory.Limit > total {
		s.Memory.Limit = total
	}
	s.Networks, err = h.networkStats(pid)
	return err
}

func readV2(dir string, s *Stats) error {
	cpu, err := readPairs(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return err
	}
	s.CPU.Total, s.CPU.User, s.CPU.Kernel = cpu["usage_usec"]*1000, cpu["user_usec"]*1000, cpu["system_usec"]*1000
	s.CPU.Periods, s.CPU.ThrottledPeriods, s.CPU.ThrottledTime = cpu["nr_periods"], cpu["nr_throttled"], cpu["throttled_usec"]*1000

	s.Memory.Usage, _ = readNumber(filepath.Join(dir, "memory.current"))
	s.Memory.MaxUsage, _ = readNumber(filepath.Join(dir, "memory.peak"))
	s.Memory.Limit, _ = readNumber(filepath.Join(dir, "memory.max"))
	s.Memory.Stats, _ = readPairs(filepath.Join(dir, "memory.stat"))
	if ev, err := readPairs(filepath.Join(dir, "memory.events")); err == nil {
		s.Memory.Failcnt = ev["oom"]
	}
	s.Pids, _ = readNumber(filepath.Join(dir, "pids.current"))
	s.PidsMax = limitNumber(readNumber(filepath.Join(dir, "pids.max")))

	b, err := os.ReadFile(filepath.Join(dir, "io.stat"))
	if err != nil {
		return nil // the io controller is not on
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		major, minor, ok := cutDevice(f[0])
		if !ok {
			continue
		}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				continue
			}
			switch k {
			case "rbytes":
				s.BlkioServiceBytes = append(s.BlkioServiceBytes, BlkioEntry{major, minor, "read", n})
			case "wbytes":
				s.BlkioServiceBytes = append(s.BlkioServiceBytes, BlkioEntry{major, minor, "write", n})
			case "rios":
				s.BlkioServiced = append(s.BlkioServiced, BlkioEntry{major, minor, "read", n})
			case "wios":
				s.BlkioServiced = append(s.BlkioServiced, BlkioEntry{major, minor, "write", n})
			}
		}
	}
	return nil
}

// readV1 reads what controllers there are; a host may lack any of them.
func (h *host) readV1(pid int, s *Stats) error {
	if dir, err := h.cgroupDir(pid, "cpuacct"); err == nil {
		if s.CPU.Total, err = readNumber(filepath.Join(dir, "cpuacct.usage")); err != nil {
			return err
		}
		if b, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage_percpu")); err == nil {
			for f := range strings.FieldsSeq(string(b)) {
				if n, err := strconv.ParseUint(f, 10, 64); err == nil {
					s.CPU.PerCPU = append(s.CPU.PerCPU, n)
				}
			}
			s.CPU.PerCPU = s.CPU.PerCPU[:min(len(s.CPU.PerCPU), h.cpus)]
		}
		st, _ := readPairs(filepath.Join(dir, "cpuacct.stat"))
		s.CPU.User, s.CPU.Kernel = st["user"]*(1e9/userHZ), st["system"]*(1e9/userHZ)
	}
	if dir, err := h.cgroupDir(pid, "cpu"); err == nil {
		st, _ := readPairs(filepath.Join(dir, "cpu.stat"))
		s.CPU.Periods, s.CPU.ThrottledPeriods, s.CPU.ThrottledTime = st["nr_periods"], st["nr_throttled"], st["throttled_time"]
	}
	if dir, err := h.cgroupDir(pid, "memory"); err == nil {
		s.Memory.Usage, _ = readNumber(filepath.Join(dir, "memory.usage_in_bytes"))
		s.Memory.MaxUsage, _ = readNumber(filepath.Join(dir, "memory.max_usage_in_bytes"))
		s.Memory.Limit, _ = readNumber(filepath.Join(dir, "memory.limit_in_bytes"))
		s.Memory.Failcnt, _ = readNumber(filepath.Join(dir, "memory.failcnt"))
		s.Memory.Stats, _ = readPairs(filepath.Join(dir, "memory.stat"))
	}
	if dir, err := h.cgroupDir(pid, "pids"); err == nil {
		s.Pids, _ = readNumber(filepath.Join(dir, "pids.current"))
		s.PidsMax = limitNumber(readNumber(filepath.Join(dir, "pids.max")))
	}
	if dir, err := h.cgroupDir(pid, "blkio"); err == nil {
		s.BlkioServiceBytes = readBlkio(filepath.Join(dir, "blkio.throttle.io_service_bytes_recursive"))
		s.BlkioServiced = readBlkio(filepath.Join(dir, "blkio.throttle.io_serviced_recursive"))
	}
	return nil
}

func readBlkio(path string) []BlkioEntry {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var out []BlkioEntry
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		major, minor, ok := cutDevice(f[0])
		n, err := strconv.ParseUint(f[2], 10, 64)
		if ok && err == nil {
			out = append(out, BlkioEntry{major, minor, f[1], n})
		}
	}
	return out
}

func cutDevice(s string) (major, minor uint64, ok bool) {
	a, b, found := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 64)
	minor, err2 := strconv.ParseUint(b, 10, 64)
	return major, minor, found && err1 == nil && err2 == nil
}

// readNumber reads a file with one number; "max" is the largest.
func readNumber(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(b))
	if text == "max" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(text, 10, 64)
}

func limitNumber(n uint64, err error) uint64 {
	if err != nil || n == math.MaxUint64 {
		return 0
	}
	return n
}

// readPairs reads lines of a name and a number.
func readPairs(path string) (map[string]uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	for line := range strings.Lines(string(b)) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(v, 10, 64); ok && err == nil {
			out[k] = n
		}
	}
	return out, nil
}

// systemCPU is the time all of the host's cores have spent, in nanoseconds.
func (h *host) systemCPU() (uint64, error) {
	f, err := os.Open(filepath.Join(h.procRoot, "stat"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("%s does not begin with the times of all cores", f.Name())
	}
	var sum uint64
	for _, v := range fields[1:min(len(fields), 9)] {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f.Name(), err)
		}
		sum += n
	}
	return sum * (1e9 / userHZ), nil
}

func (h *host) memTotal() uint64 {
	b, err := os.ReadFile(filepath.Join(h.procRoot, "meminfo"))
	if err != nil {
		return 0
	}
	line, _, _ := bytes.Cut(b, []byte{'\n'})
	f := strings.Fields(string(line))
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.ParseUint(f[1], 10, 64)
	return n * 1024
}

// networkStats reads the counters of the interfaces a process sees.
func (h *host) networkStats(pid int) (map[string]NetworkStats, error) {
	b, err := os.ReadFile(filepath.Join(h.procRoot, strconv.Itoa(pid), "net/dev"))
	if err != nil {
		return nil, err
	}
	out := map[string]NetworkStats{}
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(rest)
		if !ok || name == "lo" || len(f) < 16 {
			continue
		}
		n := make([]uint64, 16)
		for i := range n {
			n[i], _ = strconv.ParseUint(f[i], 10, 64)
		}
		out[name] = NetworkStats{RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11]}
	}
	return out, nil
}
