package container

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

var update = flag.Bool("update", false, "write the golden files anew")

// v2Host is a host as most users have it; every golden file is made for it.
func v2Host() *host {
	return &host{
		caps:    append(slices.Clone(defaultCaps), "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"),
		cgroups: hierarchy{v2: "/sys/fs/cgroup"},
		masked:  []string{"/proc/kcore", "/sys/firmware"},
		cpus:    4, memoryNodes: "0",
	}
}

func v1Host() *host {
	h := v2Host()
	h.cgroups = hierarchy{v2: "/sys/fs/cgroup/unified", v1: map[string]string{"memory": "/sys/fs/cgroup/memory"}}
	h.caps = slices.DeleteFunc(h.caps, func(c string) bool { return c == "CAP_SYS_RESOURCE" })
	h.oomScore = 100
	return h
}

func TestSpec(t *testing.T) {
	base := func(change func(c *Container, l *launch)) (*Container, *launch) {
		c := &Container{ID: strings.Repeat("1", 64), Path: "/bin/prog", Args: []string{"-v"}, HostsPath: "/c/hosts", HostnamePath: "/c/hostname", ResolvConfPath: "/c/resolv.conf"}
		c.Config = Config{Hostname: "box", Env: []string{"A=b"}, Host: HostConfig{ShmSize: defaultShm, SecurityOpt: []string{"seccomp=unconfined"}}}
		l := &launch{rootfs: "/r/rootfs", netns: "/r/netns/1", user: specs.User{UID: 0, GID: 0, AdditionalGids: []uint32{0}}}
		if change != nil {
			change(c, l)
		}
		l.files = fileMounts(c)
		return c, l
	}
	for name, tc := range map[string]struct {
		host   *host
		change func(c *Container, l *launch)
	}{
		"plain":    {v2Host(), nil},
		"plain-v1": {v1Host(), nil},
		"limits": {v2Host(), func(c *Container, _ *launch) {
			swappiness := int64(10)
			c.Config.Host.Resources = Resources{NanoCPUs: 1_500_000_000, CPUShares: 512, CpusetCpus: "0-1", Memory: 256 << 20, MemoryReservation: 128 << 20,
				MemorySwappiness: &swappiness, PidsLimit: 100, BlkioWeight: 300, BlkioReadBps: []ThrottleDevice{{Path: "/dev/null", Rate: 1 << 20}}}
			c.Config.Host.Ulimits = []Ulimit{{Name: "nofile", Soft: 1024, Hard: -1}}
			c.Config.Host.OOMScoreAdj = -300
		}},
		"privileged": {v1Host(), func(c *Container, l *launch) {
			c.Config.Host.Privileged, c.Config.Host.SecurityOpt = true, nil
			c.Config.Host.OOMScoreAdj = -300 // lower than this process may go
		}},
		"modes": {v2Host(), func(c *Container, l *launch) {
			c.Config.Host.PidMode, c.Config.Host.IpcMode, c.Config.Host.UTSMode, c.Config.Host.CgroupnsMode = "host", "host", "host", "host"
			l.netns, l.shm = "", "/dev/shm"
		}},
		"joined": {v2Host(), func(c *Container, l *launch) {
			c.Config.Host.NetworkMode, c.Config.Host.PidMode, c.Config.Host.IpcMode = "container:x", "container:x", "container:x"
			l.netns, l.pidns, l.ipcns, l.shm = "/proc/7/ns/net", "/proc/7/ns/pid", "/proc/7/ns/ipc", "/r/x/shm"
		}},
		"hardened": {v2Host(), func(c *Container, l *launch) {
			c.Config.Host.CapDrop, c.Config.Host.CapAdd = []string{"ALL"}, []string{"net_bind_service", "CAP_SYS_TIME"}
			c.Config.Host.SecurityOpt = []string{"no-new-privileges", "seccomp=unconfined"}
			c.Config.Host.ReadonlyRootfs, c.Config.Host.IpcMode = true, "none"
			c.Config.Host.MaskedPaths, c.Config.Host.ReadonlyPaths = []string{}, []string{"/proc/sys"}
			c.Config.Host.Sysctls = map[string]string{"net.core.somaxconn": "100", "net.ipv4.ip_unprivileged_port_start": "80"}
			c.Config.User, c.Config.WorkingDir, c.Config.Tty, c.Config.Domainname = "1000", "/work", true, "example.org"
			l.user = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000, 50}}
		}},
		"mounts": {v2Host(), func(c *Container, l *launch) {
			for _, p := range []plannedMount{
				{MountPoint: MountPoint{Type: MountBind, Destination: "/etc/hosts", RW: true, Propagation: "rprivate"}},
				{MountPoint: MountPoint{Type: MountVolume, Destination: "/data"}},
				{MountPoint: MountPoint{Type: MountTmpfs, Destination: "/run", RW: true}, TmpfsOptions: "size=1m,exec"},
				{MountPoint: MountPoint{Type: MountBind, Destination: "/dev", RW: true}, NonRecursive: true},
			} {
				m, _, err := specMount(p, "/src"+p.Destination)
				if err != nil {
					t.Fatal(err)
				}
				l.mounts = append(l.mounts, m)
			}
			l.initPath = "/usr/bin/init"
		}},
		"devices": {v2Host(), func(c *Container, _ *launch) {
			c.Config.Host.Devices = []Device{{Host: "/dev/null", Container: "/dev/nothing", Permissions: "r"}}
			c.Config.Host.DeviceRules = []string{"c 42:* rm", "a *:* rwm"}
			c.Config.Host.CgroupParent = "/mine"
			c.Config.Host.Annotations = map[string]string{"a": "b"}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c, l := base(tc.change)
			s, err := tc.host.buildSpec(c, l, "/sampan")
			if err != nil {
				t.Fatal(err)
			}
			if c.Config.Host.Privileged {
				s.Linux.Devices = nil // the machine's own
			}
			for i := range s.Linux.Devices {
				s.Linux.Devices[i].FileMode, s.Linux.Devices[i].UID, s.Linux.Devices[i].GID = nil, nil, nil
			}
			golden(t, name, s)
		})
	}
}

func golden(t *testing.T, name string, v any) {
	t.Helper()
	got, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", "spec", name+".json")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no golden file %s: run this test with -update and read what it wrote", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	if string(got) == string(want) {
		return
	}
	g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("%s, line %d:\n got %s\nwant %s", path, i+1, g[i], w[i])
		}
	}
	t.Fatalf("%s has %d lines, the spec %d", path, len(w), len(g))
}

// TestFoldersDoNotHideTheFilesInThem: /etc/hosts, hostname and resolv.conf are the container's own also where the user
// mounts a volume on /etc, unless the user mounts them too.
func TestFoldersDoNotHideTheFilesInThem(t *testing.T) {
	s := &specs.Spec{Root: &specs.Root{}}
	files := []specs.Mount{{Destination: "/etc/resolv.conf"}, {Destination: "/etc/hostname"}, {Destination: "/etc/hosts", Source: "ours"}}
	l := &launch{files: files, mounts: []specs.Mount{{Destination: "/etc"}, {Destination: "/etc/hosts", Source: "theirs"}}}
	if err := v2Host().addMounts(s, &HostConfig{}, l, security{}); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, m := range s.Mounts {
		if strings.HasPrefix(m.Destination, "/etc") {
			order = append(order, m.Source+m.Destination)
		}
	}
	if want := []string{"/etc", "theirs/etc/hosts", "/etc/resolv.conf", "/etc/hostname"}; !slices.Equal(order, want) {
		t.Errorf("mounted in the order %v, want %v", order, want)
	}
}

// TestCgroupParentStaysBelowTheRoot: a parent that climbs is cut at the root of the hierarchy.
func TestCgroupParentStaysBelowTheRoot(t *testing.T) {
	for _, parent := range []string{"../../mine", "/../../mine", "/a/../mine"} {
		c := &Container{ID: "abc", Path: "x", Config: Config{Host: HostConfig{CgroupParent: parent}}}
		s, err := v2Host().buildSpec(c, &launch{rootfs: "/r"}, "/sampan")
		if err != nil || s.Linux.CgroupsPath != "/mine/abc" {
			t.Errorf("%s: %v %v", parent, s.Linux.CgroupsPath, err)
		}
	}
}

func TestSeccomp(t *testing.T) {
	if !seccompSupported() {
		t.Skip("this kernel has no seccomp")
	}
	c := &Container{ID: "x", Path: "/p"}
	s, err := v2Host().buildSpec(c, &launch{rootfs: "/r"}, "/sampan")
	if err != nil || s.Linux.Seccomp == nil || len(s.Linux.Seccomp.Syscalls) < 10 {
		t.Errorf("the default profile: %v %v", s.Linux.Seccomp, err)
	}
	c.Config.Host.SecurityOpt = []string{`seccomp={"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`}
	if s, err = v2Host().buildSpec(c, &launch{rootfs: "/r"}, "/sampan"); err != nil || len(s.Linux.Seccomp.Syscalls) != 1 {
		t.Errorf("own profile: %v %v", s.Linux.Seccomp, err)
	}
	c.Config.Host.SecurityOpt = []string{"seccomp={"}
	if _, err = v2Host().buildSpec(c, &launch{rootfs: "/r"}, "/sampan"); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("malformed profile: %v", err)
	}
}

func TestMergeImage(t *testing.T) {
	img := image.Image{Config: ocispec.ImageConfig{User: "u", WorkingDir: "/w", Env: []string{"A=1", "B=2"}, Entrypoint: []string{"e"}, Cmd: []string{"c"},
		Labels: map[string]string{"l": "i", "m": "i"}, ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}, Volumes: map[string]struct{}{"/v": {}}, StopSignal: "QUIT"},
		Healthcheck: &image.Healthcheck{Test: []string{"CMD", "x"}, Retries: 5}}
	for name, tc := range map[string]struct {
		in   Config
		want string
	}{
		"nothing":         {Config{}, "[e c]"},
		"command":         {Config{Cmd: []string{"d"}}, "[e d]"},
		"entrypoint":      {Config{Entrypoint: []string{"f"}}, "[f]"},
		"both":            {Config{Entrypoint: []string{"f"}, Cmd: []string{"d"}}, "[f d]"},
		"no entrypoint":   {Config{Entrypoint: []string{""}, Cmd: []string{"d"}}, "[d]"},
		"empty and empty": {Config{Entrypoint: []string{""}}, "no command specified"},
	} {
		got := ""
		if err := mergeImage(&tc.in, &img); err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprint(slices.Concat(tc.in.Entrypoint, tc.in.Cmd))
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	c := Config{Env: []string{"B=3", "C=4", "A"}, Labels: map[string]string{"l": "own"}, Health: &Health{Retries: 1}, Volumes: []string{"/own"}, ExposedPorts: []Port{{80, "tcp"}}}
	if err := mergeImage(&c, &img); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%v %v %v %v %v %v %v %v %v", c.Env, c.Labels, c.User, c.WorkingDir, c.StopSignal, c.Volumes, c.ExposedPorts, c.Health.Test, c.Health.Retries) !=
		"[B=3 C=4 A] map[l:own m:i] u /w QUIT [/own /v] [{53 udp} {80 tcp}] [CMD x] 1" {
		t.Errorf("%+v %+v", c, c.Health)
	}
	if len(img.Config.Labels) != 2 || img.Config.Labels["l"] != "i" {
		t.Error("the image was changed")
	}
}

// TestWhoIsNotLabelled: inspect says of containers that share the host's processes that no label confines them, as clients
// that make them anew expect.
func TestWhoIsNotLabelled(t *testing.T) {
	for want, h := range map[string]HostConfig{
		"[]":                                 {IpcMode: "private"},
		"[label=disable]":                    {IpcMode: "host"},
		"[apparmor=a label=disable]":         {PidMode: "host", SecurityOpt: []string{"apparmor=a"}},
		"[no-new-privileges label=level:s0]": {Privileged: true, SecurityOpt: []string{"no-new-privileges", "label=level:s0"}},
	} {
		if unlabelled(&h); fmt.Sprint(h.SecurityOpt) != want {
			t.Errorf("%v, want %s", h.SecurityOpt, want)
		}
	}
}

func TestValidate(t *testing.T) {
	m := &Manager{ManagerConfig: ManagerConfig{DefaultLog: LogConfig{Driver: "json-file"}}, host: *v2Host()}
	m.host.cgroups.v2 = tree(t, map[string]string{"cgroup.controllers": "cpuset cpu io memory pids\n"})
	for want, cfg := range map[string]Config{
		"needs to be an absolute path":                               {WorkingDir: "rel"},
		"invalid signal: SIGNOPE":                                    {StopSignal: "SIGNOPE"},
		"invalid environment variable":                               {Env: []string{"=x"}},
		"unknown policy 'sometimes'":                                 {Host: HostConfig{Restart: RestartPolicy{Name: "sometimes"}}},
		"can only be used with 'on-failure'":                         {Host: HostConfig{Restart: RestartPolicy{Name: "always", MaxRetries: 1}}},
		"can't create 'AutoRemove' container":                        {Host: HostConfig{AutoRemove: true, Restart: RestartPolicy{Name: "always"}}},
		"bad format for add-host":                                    {Host: HostConfig{ExtraHosts: []string{"nocolon"}}},
		"invalid IP address in add-host":                             {Host: HostConfig{ExtraHosts: []string{"a:b"}}},
		"invalid DNS server":                                         {Host: HostConfig{DNS: []string{"x"}}},
		"unknown capability: \"CAP_NOPE\"":                           {Host: HostConfig{CapAdd: []string{"nope"}}},
		"invalid IPC mode: x":                                        {Host: HostConfig{IpcMode: "x"}},
		"invalid PID mode: container:":                               {Host: HostConfig{PidMode: "container:"}},
		"hostname and the network mode":                              {Hostname: "h", Host: HostConfig{NetworkMode: "container:x"}},
		"hostname and the UTS mode":                                  {Hostname: "h", Host: HostConfig{UTSMode: "host"}},
		"port publishing and the container type":                     {Host: HostConfig{NetworkMode: "container:x", Ports: []PortBinding{{}}}},
		"invalid --security-opt 2":                                   {Host: HostConfig{SecurityOpt: []string{"a=b"}}},
		"range for oom score adj":                                    {Host: HostConfig{OOMScoreAdj: 2000}},
		"no log driver named 'syslogg'":                              {Host: HostConfig{Log: LogConfig{Driver: "syslogg"}}},
		"unknown log opt 'x'":                                        {Host: HostConfig{Log: LogConfig{Driver: "json-file", Options: map[string]string{"x": "y"}}}},
		"invalid log opt max-size=q":                                 {Host: HostConfig{Log: LogConfig{Driver: "json-file", Options: map[string]string{"max-size": "q"}}}},
		"invalid ulimit type: x":                                     {Host: HostConfig{Ulimits: []Ulimit{{Name: "x"}}}},
		"soft limit must be less":                                    {Host: HostConfig{Ulimits: []Ulimit{{Name: "nofile", Soft: 2, Hard: 1}}}},
		"Minimum memory limit allowed is 6MB":                        {Host: HostConfig{Resources: Resources{Memory: 1000}}},
		"memoryswap limit should be larger":                          {Host: HostConfig{Resources: Resources{Memory: 8 << 20, MemorySwap: 7 << 20}}},
		"Nano CPUs and CPU Quota":                                    {Host: HostConfig{Resources: Resources{NanoCPUs: 1, CPUQuota: 5000}}},
		"CPU cfs period can not be less":                             {Host: HostConfig{Resources: Resources{CPUPeriod: 5}}},
		"Range of blkio weight":                                      {Host: HostConfig{Resources: Resources{BlkioWeight: 5}}},
		"Interval in Healthcheck cannot be less":                     {Health: &Health{Interval: 1}},
		"Unknown healthcheck type":                                   {Health: &Health{Test: []string{"curl"}}},
		"invalid device cgroup rule":                                 {Host: HostConfig{DeviceRules: []string{"x 1:1 r"}}},
		"--storage-opt is not supported":                             {Host: HostConfig{StorageOpt: map[string]string{"size": "1G"}}},
		"invalid cgroup parent":                                      {Host: HostConfig{CgroupParent: "/a/../.."}},
		"Invalid value 1-2,, for cpuset cpus":                        {Host: HostConfig{Resources: Resources{CpusetCpus: "1-2,,"}}},
		"Invalid value x for cpuset mems":                            {Host: HostConfig{Resources: Resources{CpusetMems: "x"}}},
		"memory nodes are not available - requested 9, available: 0": {Host: HostConfig{Resources: Resources{CpusetMems: "9"}}},
		"supported on user-defined networks only":                    {Host: HostConfig{NetworkMode: "none"}, Network: NetworkConfig{Endpoints: map[string]EndpointConfig{"none": {IPv4: netip.MustParseAddr("10.1.1.1")}}}},
		"unknown or invalid runtime name: kata":                      {Host: HostConfig{Runtime: "kata"}},
	} {
		_, err := m.validate(&cfg, false)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
			continue
		}
		if k := fault.KindOf(err); k != fault.InvalidArgument && k != fault.FailedPrecondition {
			t.Errorf("%v is %v", err, k)
		}
	}
	cfg := Config{}
	if w, err := m.validate(&cfg, false); err != nil || len(w) > 0 || cfg.Host.ShmSize != defaultShm || cfg.Host.Log.Driver != "json-file" {
		t.Errorf("an empty configuration: %v %v %+v", w, err, cfg)
	}
}

func TestLimitsWithoutControllers(t *testing.T) {
	r := Resources{Memory: 64 << 20, PidsLimit: 5, CPUShares: 5, CpusetCpus: "0", CPURealtimeRuntime: 5, BlkioWeightDevice: []WeightDevice{{"/dev/null", 50}},
		BlkioReadBps: []ThrottleDevice{{"/dev/null", 1}}}
	w, err := validateResources(&r, &host{cgroups: hierarchy{v1: map[string]string{"devices": "/x"}}, cpus: 2}, false)
	if err != nil || len(w) != 7 || !reflect.DeepEqual(r, Resources{}) {
		t.Errorf("%v %v %+v", w, err, r)
	}
}

// TestLimitsOfVersion2: what version 2 of control groups does not have is dropped with a warning, and what this kernel
// lacks of it too.
func TestLimitsOfVersion2(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("cgroup.controllers", "cpuset cpu io memory pids")
	swappiness, off := int64(10), true
	asked := Resources{Memory: 64 << 20, MemorySwap: 96 << 20, MemorySwappiness: &swappiness, CPURealtimeRuntime: 5, BlkioWeight: 300}
	r := asked
	w, err := validateResources(&r, &host{cgroups: hierarchy{v2: root}, cpus: 2}, false)
	if err != nil || len(w) != 2 || r.MemorySwap != 96<<20 || r.BlkioWeight != 300 || r.MemorySwappiness != nil || r.CPURealtimeRuntime != 0 {
		t.Errorf("before any group is there: %v %v %+v", w, err, r)
	}
	write("system.slice/memory.max", "max")
	write("system.slice/io.max", "")
	r = asked
	if w, err := validateResources(&r, &host{cgroups: hierarchy{v2: root}, cpus: 2}, false); err != nil || len(w) != 4 || r.MemorySwap != -1 || r.BlkioWeight != 0 {
		t.Errorf("without swap accounting and I/O weights: %v %v %+v", w, err, r)
	}
	write("system.slice/memory.swap.max", "max")
	write("system.slice/io.weight", "default 100")
	r = asked
	if w, err := validateResources(&r, &host{cgroups: hierarchy{v2: root}, cpus: 2}, false); err != nil || len(w) != 2 || r.MemorySwap != 96<<20 || r.BlkioWeight != 300 {
		t.Errorf("with both: %v %v %+v", w, err, r)
	}
	m := &Manager{host: host{cgroups: hierarchy{v2: root}, cpus: 2}}
	cfg := Config{Host: HostConfig{OOMKillDisable: &off}}
	if w, err := m.validate(&cfg, false); err != nil || len(w) != 1 || cfg.Host.OOMKillDisable != nil {
		t.Errorf("no OOM killer: %v %v", w, err)
	}
}

func TestMergeLog(t *testing.T) {
	def := LogConfig{Driver: "json-file", Options: map[string]string{"max-size": "1m", "max-file": "3"}}
	for _, tc := range []struct{ own, want LogConfig }{
		{LogConfig{}, def},
		{LogConfig{Driver: "none"}, LogConfig{Driver: "none"}},
		{LogConfig{Options: map[string]string{"max-size": "10k"}}, LogConfig{Driver: "json-file", Options: map[string]string{"max-size": "10k", "max-file": "3"}}},
		{LogConfig{Driver: "local", Options: map[string]string{"max-size": "10k"}}, LogConfig{Driver: "local", Options: map[string]string{"max-size": "10k"}}},
	} {
		if got := mergeLog(def, tc.own); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%v: %v, want %v", tc.own, got, tc.want)
		}
	}
}

// A log that is rotated is bounded, and its newest lines are there.
func TestRotatedLog(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{Host: HostConfig{Log: LogConfig{Options: map[string]string{"max-size": "10k", "max-file": "3"}}}}, "lines", "3000")
	b.wait(id, "not-running")
	out := b.output(id)
	if n := strings.Count(out, "\n"); n < 100 || n > 600 || !strings.HasSuffix(out, "line 2999\n") {
		t.Errorf("%d lines, the last %q", n, out[max(0, len(out)-20):])
	}
}

func TestDiffHidesMountPoints(t *testing.T) {
	added := func(p string) image.Change { return image.Change{Path: p, Kind: image.Added} }
	changed := func(p string) image.Change { return image.Change{Path: p, Kind: image.Modified} }
	for _, tc := range []struct{ in, want []image.Change }{
		{[]image.Change{added("/dev"), changed("/etc"), added("/etc/hosts"), added("/proc")}, nil},
		{[]image.Change{changed("/etc"), added("/etc/hosts"), added("/etc/own")}, []image.Change{changed("/etc"), added("/etc/own")}},
		{[]image.Change{changed("/etc"), changed("/etc/hosts")}, []image.Change{changed("/etc"), changed("/etc/hosts")}},
		{[]image.Change{changed("/data"), added("/data/x")}, []image.Change{changed("/data"), added("/data/x")}},
	} {
		if got := withoutMountPoints(tc.in); !slices.Equal(got, tc.want) {
			t.Errorf("%v: %v, want %v", tc.in, got, tc.want)
		}
	}
}
