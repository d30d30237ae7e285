package container

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// tree writes files below a folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0
`

func procFiles(cgroup string) map[string]string {
	return map[string]string{
		"proc/stat":       "cpu  10 20 30 40 50 60 70 80 0 0\ncpu0 1 2 3\n",
		"proc/meminfo":    "MemTotal:       1000 kB\nMemFree: 1 kB\n",
		"proc/7/cgroup":   cgroup,
		"proc/7/net/dev":  netDev,
		"proc/8/cgroup":   "garbage\n::\n",
		"proc/8/net/dev":  "",
		"proc/9/cgroup":   "",
		"sys/placeholder": "",
	}
}

func TestStatsV2(t *testing.T) {
	files := procFiles("0::/sampan/abc\n")
	for name, content := range map[string]string{
		"cpu.stat":       "usage_usec 1000\nuser_usec 600\nsystem_usec 400\nnr_periods 5\nnr_throttled 2\nthrottled_usec 7\n",
		"memory.current": "4096\n", "memory.max": "max\n", "memory.peak": "8192\n", "memory.stat": "anon 1\nfile 2\n", "memory.events": "oom 3\n",
		"pids.current": "4\n", "pids.max": "10\n", "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n\n",
	} {
		files["sys/sampan/abc/"+name] = content
	}
	dir := tree(t, files)
	h := &host{cgroups: hierarchy{v2: filepath.Join(dir, "sys")}, procRoot: filepath.Join(dir, "proc"), cpus: 2}
	var s Stats
	if err := h.readStats(7, &s); err != nil {
		t.Fatal(err)
	}
	want := Stats{NumCPU: 2,
		CPU:    CPUStats{Total: 1e6, User: 6e5, Kernel: 4e5, System: 360 * 1e7, Periods: 5, ThrottledPeriods: 2, ThrottledTime: 7000},
		Memory: MemoryStats{Usage: 4096, MaxUsage: 8192, Limit: 1000 * 1024, Failcnt: 3, Stats: map[string]uint64{"anon": 1, "file": 2}},
		Pids:   4, PidsMax: 10,
		Networks:          map[string]NetworkStats{"eth0": {1000, 10, 1, 2, 2000, 20, 3, 4}},
		BlkioServiceBytes: []BlkioEntry{{8, 0, "read", 1}, {8, 0, "write", 2}},
		BlkioServiced:     []BlkioEntry{{8, 0, "read", 3}, {8, 0, "write", 4}},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
	for _, pid := range []int{8, 9, 10} {
		if err := h.readStats(pid, &Stats{}); err == nil {
			t.Errorf("process %d has no such cgroup, and no error", pid)
		}
	}
}

func TestStatsV1(t *testing.T) {
	files := procFiles("5:cpu,cpuacct:/sampan/abc\n4:memory:/sampan/abc\n3:pids:/sampan/abc\n2:blkio:/sampan/abc\n0::/\n")
	for name, content := range map[string]string{
		"cpuacct/sampan/abc/cpuacct.usage": "12345\n", "cpuacct/sampan/abc/cpuacct.usage_percpu": "1 2 0 0\n", "cpuacct/sampan/abc/cpuacct.stat": "user 3\nsystem 4\n",
		"cpu/sampan/abc/cpu.stat":                 "nr_periods 5\nnr_throttled 2\nthrottled_time 7\n",
		"memory/sampan/abc/memory.usage_in_bytes": "100\n", "memory/sampan/abc/memory.max_usage_in_bytes": "200\n", "memory/sampan/abc/memory.limit_in_bytes": "300\n",
		"memory/sampan/abc/memory.failcnt": "1\n", "memory/sampan/abc/memory.stat": "cache 9\n",
		"pids/sampan/abc/pids.current": "4\n", "pids/sampan/abc/pids.max": "max\n",
		"blkio/sampan/abc/blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\nTotal 30\n",
	} {
		files["sys/"+name] = content
	}
	dir := tree(t, files)
	sys := filepath.Join(dir, "sys")
	h := &host{procRoot: filepath.Join(dir, "proc"), cpus: 2, cgroups: hierarchy{v2: sys + "/unified",
		v1: map[string]string{"cpu": sys + "/cpu", "cpuacct": sys + "/cpuacct", "memory": sys + "/memory", "pids": sys + "/pids", "blkio": sys + "/blkio"}}}
	var s Stats
	if err := h.readStats(7, &s); err != nil {
		t.Fatal(err)
	}
	want := Stats{NumCPU: 2,
		CPU:    CPUStats{Total: 12345, User: 3e7, Kernel: 4e7, PerCPU: []uint64{1, 2}, System: 360 * 1e7, Periods: 5, ThrottledPeriods: 2, ThrottledTime: 7},
		Memory: MemoryStats{Usage: 100, MaxUsage: 200, Limit: 300, Failcnt: 1, Stats: map[string]uint64{"cache": 9}},
		Pids:   4, Networks: map[string]NetworkStats{"eth0": {1000, 10, 1, 2, 2000, 20, 3, 4}},
		BlkioServiceBytes: []BlkioEntry{{8, 0, "Read", 10}, {8, 0, "Write", 20}},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
}

func TestHierarchy(t *testing.T) {
	hybrid := `30 20 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
31 20 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 20 0:28 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,name=systemd
33 20 0:29 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
`
	dir := tree(t, map[string]string{"hybrid": hybrid, "v2": "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"})
	h := findHierarchy(filepath.Join(dir, "hybrid"))
	if h.unified() || !h.has("memory") || !h.has("cpuacct") || h.has("pids") || h.v1["cpu"] != "/sys/fs/cgroup/cpu,cpuacct" {
		t.Errorf("%+v", h)
	}
	if h := findHierarchy(filepath.Join(dir, "v2")); !h.unified() || h.v2 != "/sys/fs/cgroup" {
		t.Errorf("%+v", h)
	}
}

func TestParsePS(t *testing.T) {
	out := "UID          PID    PPID  C STIME TTY          TIME CMD\nroot           1       0  0 Jan01 ?        00:00:01 /sbin/init splash\nroot          77       1  0 Jan01 ?        00:00:00 sleep 1  2\n"
	titles, procs, err := parsePS([]byte(out), []int{77})
	if err != nil || len(titles) != 8 || len(procs) != 1 || procs[0][7] != "sleep 1 2" {
		t.Errorf("%q %q %v", titles, procs, err)
	}
	if _, _, err := parsePS([]byte("A B\n1 2\n"), nil); err == nil || !strings.Contains(err.Error(), "PID field") {
		t.Error(err)
	}
	if err := checkPSArgs("-o user=PID,pid"); err == nil {
		t.Error("a column that calls itself PID is let through")
	}
}
