package doctor

import (
	"errors"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/fstest"
)

// modern is a host on which everything is as it should be.
func modern() map[string]string {
	files := map[string]string{
		"proc/sys/kernel/osrelease":             "6.1.0-18-amd64\n",
		"sys/fs/cgroup/cgroup.controllers":      "cpuset cpu io memory hugetlb pids rdma misc\n",
		"proc/filesystems":                      "nodev\tsysfs\n\text4\nnodev\toverlay\n",
		"proc/sys/user/max_user_namespaces":     "15000\n",
		"proc/sys/kernel/seccomp/actions_avail": "kill_process kill_thread\n",
		"sys/kernel/btf/vmlinux":                "BTF",
		"proc/sys/net/ipv4/ip_forward":          "1\n",
		"proc/net/tcp":                          "  sl  local_address rem_address   st\n   0: 0100007F:0277 00000000:0000 0A 00000000:00000000\n",
		"var/lib":                               "",
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts", "cgroup", "user"} {
		files["proc/self/ns/"+ns] = ns
	}
	return files
}

func host(files map[string]string) *Host {
	tree := fstest.MapFS{}
	for name, content := range files {
		mode := fs.FileMode(0o644)
		if content == "" {
			mode = fs.ModeDir | 0o755
		}
		tree[name] = &fstest.MapFile{Data: []byte(content), Mode: mode}
	}
	return &Host{
		Files: tree, Root: true, DataRoot: "/var/lib/sampan",
		Free:     func(string) (uint64, uint64, error) { return 80 * gib, 100 * gib, nil },
		Try:      func([]string) (map[string]error, error) { return nil, nil },
		Dropping: func() ([]Chain, error) { return nil, nil },
	}
}

func find(t *testing.T, findings []Finding, name string) Finding {
	t.Helper()
	for _, f := range findings {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding of the name %q", name)
	return Finding{}
}

func TestAModernHostHasEverything(t *testing.T) {
	for _, f := range host(modern()).Examine() {
		if f.Status != OK {
			t.Errorf("%s: %s (%s)", f.Name, f.Status, f.Found)
		}
	}
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	const v1 = "30 25 0:27 / /sys/fs/cgroup/memory rw,nosuid shared:1 - cgroup cgroup rw,memory\n" +
		"31 25 0:28 / /sys/fs/cgroup/cpu rw,nosuid shared:2 - cgroup cgroup rw,cpu,cpuacct\n" +
		"32 25 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
		"33 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	for _, c := range []struct {
		name   string
		change func(map[string]string, *Host)
		probe  string
		status Status
		fatal  bool
		says   string // in any of the finding's texts
	}{
		{"an old kernel", func(f map[string]string, _ *Host) { f["proc/sys/kernel/osrelease"] = "4.19.0" }, "kernel", Missing, true, "5.15"},
		{"an unreadable kernel version", func(f map[string]string, _ *Host) { delete(f, "proc/sys/kernel/osrelease") }, "kernel", Note, false, "5.15"},
		{"cgroup version 1", func(f map[string]string, _ *Host) {
			delete(f, "sys/fs/cgroup/cgroup.controllers")
			f["proc/self/mountinfo"] = v1
		}, "cgroup", Note, false, "version 1"},
		{"cgroup version 1 without pids", func(f map[string]string, _ *Host) {
			delete(f, "sys/fs/cgroup/cgroup.controllers")
			f["proc/self/mountinfo"] = v1
		}, "cgroup controllers", Missing, false, "no limits of processes"},
		{"no cgroups", func(f map[string]string, _ *Host) { delete(f, "sys/fs/cgroup/cgroup.controllers") }, "cgroup", Missing, true, "mount cgroup2"},
		{"no overlayfs", func(f map[string]string, _ *Host) { f["proc/filesystems"] = "\text4\n" }, "overlayfs", Missing, true, "CONFIG_OVERLAY_FS"},
		{"overlayfs as a module", func(f map[string]string, _ *Host) {
			f["proc/filesystems"] = "\text4\n"
			f["lib/modules/6.1.0-18-amd64/modules.dep"] = "kernel/fs/overlayfs/overlay.ko.xz:\n"
		}, "overlayfs", OK, false, "module"},
		{"a namespace missing", func(f map[string]string, _ *Host) { delete(f, "proc/self/ns/cgroup") }, "namespaces", Missing, true, "cgroup"},
		{"user namespaces off", func(f map[string]string, _ *Host) { f["proc/sys/user/max_user_namespaces"] = "0" }, "user namespaces", Note, false, "sysctl"},
		{"no shifted owners", func(f map[string]string, _ *Host) { f["proc/sys/kernel/osrelease"] = "5.15.0-203-generic" }, "user namespaces", Note, false, "5.19"},
		{"no vxlan", func(_ map[string]string, h *Host) {
			h.Try = func([]string) (map[string]error, error) {
				return map[string]error{"vxlan": errors.New("operation not supported")}, nil
			}
		}, "vxlan", Missing, true, "operation not supported"},
		{"no BTF", func(f map[string]string, _ *Host) {
			delete(f, "sys/kernel/btf/vmlinux")
			f["proc/sys/kernel/unprivileged_bpf_disabled"] = "2"
		}, "eBPF", Note, false, "nftables balances"},
		{"forwarding off", func(f map[string]string, _ *Host) { f["proc/sys/net/ipv4/ip_forward"] = "0" }, "IP forwarding", Note, false, "sampand switches it on"},
		{"docker's policy", func(_ map[string]string, h *Host) {
			h.Dropping = func() ([]Chain, error) { return []Chain{{"ip", "filter", "FORWARD"}}, nil }
		}, "other firewalls", Note, false, "iptables -P FORWARD ACCEPT"},
		{"another firewall", func(_ map[string]string, h *Host) {
			h.Dropping = func() ([]Chain, error) { return []Chain{{"inet", "firewalld", "filter_FORWARD"}}, nil }
		}, "other firewalls", Note, false, "inet firewalld filter_FORWARD"},
		{"2377 taken", func(f map[string]string, _ *Host) {
			f["proc/net/tcp6"] = "h\n 0: 00000000000000000000000000000000:0949 0:0 0A 0\n"
		}, "port 2377/tcp", Note, false, "in use"},
		{"2377 only connected from", func(f map[string]string, _ *Host) { f["proc/net/tcp"] = "h\n 0: 0100007F:0949 0100007F:1F90 01 0\n" }, "port 2377/tcp", OK, false, "free"},
		{"4789 taken", func(f map[string]string, _ *Host) { f["proc/net/udp"] = "h\n 0: 00000000:12B5 00000000:0000 07 0\n" }, "port 4789/udp", Note, false, "--data-path-port"},
		{"a full disk", func(_ map[string]string, h *Host) {
			h.Free = func(string) (uint64, uint64, error) { return gib / 2, 10 * gib, nil }
		}, "disk", Missing, true, "--data-root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := maps.Clone(modern())
			scratch := host(nil)
			c.change(files, scratch)
			h := host(files)
			h.Free, h.Try, h.Dropping = scratch.Free, scratch.Try, scratch.Dropping
			f := find(t, h.Examine(), c.probe)
			if f.Status != c.status || f.Fatal() != c.fatal {
				t.Errorf("%s: status %s, fatal %v; want %s, %v", f.Name, f.Status, f.Fatal(), c.status, c.fatal)
			}
			if all := f.Found + "|" + f.Instead + "|" + f.Advice; !strings.Contains(all, c.says) {
				t.Errorf("%q does not say %q", all, c.says)
			}
			if f.Status == Missing && f.Advice == "" {
				t.Error("it is missing, and nothing says what to do")
			}
		})
	}
}

func TestNotRootIsLookedUpNotTried(t *testing.T) {
	files := modern()
	files["lib/modules/6.1.0-18-amd64/modules.dep"] = "kernel/drivers/net/vxlan/vxlan.ko:\nkernel/net/netfilter/nf_tables.ko.zst: kernel/lib/libcrc32c.ko\n"
	h := host(files)
	h.Root = false
	h.Try = func([]string) (map[string]error, error) { t.Error("tried without root"); return nil, nil }
	h.Dropping = func() ([]Chain, error) { t.Error("looked at the firewall without root"); return nil, nil }
	findings := h.Examine()
	if f := find(t, findings, "vxlan"); f.Status != OK {
		t.Errorf("vxlan, there as a module: %+v", f)
	}
	if f := find(t, findings, "veth"); f.Status != Note || f.Fatal() {
		t.Errorf("veth, not to be seen: %+v", f)
	}
	if f := find(t, findings, "root"); !strings.Contains(f.Advice, "sudo") {
		t.Errorf("root: %+v", f)
	}
}

// TestThisHost runs the real probes: whatever they find, each says something.
func TestThisHost(t *testing.T) {
	for _, f := range This(t.TempDir()).Examine() {
		if f.Found == "" || f.Status == "" {
			t.Errorf("%+v says nothing", f)
		}
	}
}
