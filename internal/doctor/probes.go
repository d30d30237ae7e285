package doctor

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// read returns a file's content without the space around it, "" if it cannot be read.
func (h *Host) read(name string) string {
	b, err := fs.ReadFile(h.Files, strings.TrimPrefix(name, "/"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (h *Host) exists(name string) bool {
	_, err := fs.Stat(h.Files, strings.TrimPrefix(name, "/"))
	return err == nil
}

func (h *Host) privileges() []Finding {
	f := Finding{Name: "root", Status: OK, Found: "running as root"}
	if !h.Root {
		f = Finding{Name: "root", Status: Note, Found: "not root: some features are looked up, not tried", Advice: "run it with sudo; sampand needs root"}
	}
	return []Finding{f}
}

// lowestKernel is the oldest kernel that Sampan is made for.
const lowestKernel = "5.15"

func (h *Host) kernel() []Finding {
	release := h.read("/proc/sys/kernel/osrelease")
	f := Finding{Name: "kernel", Status: OK, Needed: true, Found: cmp.Or(release, "unknown")}
	if newer, known := h.kernelFrom(5, 15); !known {
		f.Status, f.Advice = Note, "the version could not be read; "+lowestKernel+" or newer is needed"
	} else if !newer {
		f.Status, f.Advice = Missing, "upgrade to Linux "+lowestKernel+" or newer"
	}
	return []Finding{f}
}

// kernelFrom reports whether the kernel is of a version or a newer one, if its version can be read.
func (h *Host) kernelFrom(major, minor int) (is, known bool) {
	var a, b int
	n, _ := fmt.Sscanf(h.read("/proc/sys/kernel/osrelease"), "%d.%d", &a, &b)
	return a > major || a == major && b >= minor, n == 2
}

// controllers that containers need, and what each is for.
var controllers = []struct {
	name, use string
	needed    bool
}{
	{"memory", "memory limits", true}, {"cpu", "CPU limits", true}, {"pids", "limits of processes", true},
	{"cpuset", "pinning to CPUs", false}, {"io", "limits of block I/O", false},
}

func (h *Host) cgroups() []Finding {
	unified := h.read("/sys/fs/cgroup/cgroup.controllers")
	version := Finding{Name: "cgroup", Status: OK, Needed: true, Found: "version 2"}
	available := strings.Fields(unified)
	if unified == "" {
		available = h.v1Controllers()
		version.Found = "version 1, controllers mounted one by one"
		version.Status, version.Advice = Note, "version 1 works; version 2 is what kernels and systemd go on with (boot with systemd.unified_cgroup_hierarchy=1)"
		if len(available) == 0 {
			version.Found, version.Status, version.Advice = "none mounted", Missing, "mount cgroup2 on /sys/fs/cgroup"
		}
	}
	var missing, lacking []string
	needed := false
	for _, c := range controllers {
		if !slices.Contains(available, c.name) && !(c.name == "io" && slices.Contains(available, "blkio")) {
			missing, lacking, needed = append(missing, c.name), append(lacking, c.use), needed || c.needed
		}
	}
	limits := Finding{Name: "cgroup controllers", Status: OK, Found: strings.Join(available, " ")}
	if len(missing) > 0 {
		limits.Status, limits.Instead = Missing, "no "+strings.Join(lacking, ", no ")
		limits.Found = "without " + strings.Join(missing, " ")
		limits.Advice = "enable " + strings.Join(missing, ", ") + " in the kernel or on its command line (cgroup_enable=memory)"
		if !needed {
			limits.Status = Note
		}
	}
	return []Finding{version, limits}
}

// v1Controllers returns the controllers that are mounted with cgroup version 1.
func (h *Host) v1Controllers() []string {
	var out []string
	for line := range strings.Lines(h.read("/proc/self/mountinfo")) {
		_, after, ok := strings.Cut(line, " - cgroup ")
		if !ok {
			continue
		}
		fields := strings.Fields(after)
		if len(fields) < 2 {
			continue
		}
		for _, o := range strings.Split(fields[1], ",") {
			if o != "rw" && o != "ro" && !strings.Contains(o, "=") && !slices.Contains(out, o) && o != "xattr" && o != "noprefix" {
				out = append(out, o)
			}
		}
	}
	slices.Sort(out)
	return out
}

func (h *Host) filesystems() []Finding {
	f := Finding{Name: "overlayfs", Status: OK, Needed: true, Found: "there"}
	for line := range strings.Lines(h.read("/proc/filesystems")) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == "overlay" {
			return []Finding{f}
		}
	}
	if h.module("overlay") {
		f.Found = "as a module, loaded when needed"
		return []Finding{f}
	}
	return []Finding{{Name: "overlayfs", Status: Missing, Needed: true, Found: "not in this kernel", Advice: "use a kernel with CONFIG_OVERLAY_FS"}}
}

// module reports whether the kernel has a module, loaded, built in or to be loaded.
func (h *Host) module(name string) bool {
	name = strings.ReplaceAll(name, "-", "_")
	if h.exists("/sys/module/" + name) {
		return true
	}
	dir := "/lib/modules/" + h.read("/proc/sys/kernel/osrelease")
	for _, index := range []string{"modules.dep", "modules.builtin"} {
		b, err := fs.ReadFile(h.Files, strings.TrimPrefix(dir+"/"+index, "/"))
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(bytes.NewReader(b))
		for lines.Scan() {
			file, _, _ := strings.Cut(lines.Text(), ":")
			base, _, _ := strings.Cut(path.Base(file), ".")
			if strings.ReplaceAll(base, "-", "_") == name {
				return true
			}
		}
	}
	return false
}

func (h *Host) namespaces() []Finding {
	f := Finding{Name: "namespaces", Status: OK, Needed: true}
	var have, missing []string
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts", "cgroup"} {
		if h.exists("/proc/self/ns/" + ns) {
			have = append(have, ns)
		} else {
			missing = append(missing, ns)
		}
	}
	f.Found = strings.Join(have, " ")
	if len(missing) > 0 {
		f.Status, f.Found, f.Advice = Missing, "without "+strings.Join(missing, " "), "use a kernel with all namespaces"
	}
	user := Finding{Name: "user namespaces", Status: OK, Found: "there"}
	if n, err := strconv.Atoi(h.read("/proc/sys/user/max_user_namespaces")); !h.exists("/proc/self/ns/user") || err == nil && n == 0 {
		user = Finding{Name: "user namespaces", Status: Note, Found: "switched off", Instead: "containers share the host's user IDs",
			Advice: "sysctl -w user.max_user_namespaces=15000, to have them"}
	} else if newer, known := h.kernelFrom(5, 19); known && !newer {
		user = Finding{Name: "user namespaces", Status: Note, Found: "there, not for containers' files: overlayfs takes no ID-mapped mounts",
			Instead: "containers share the host's user IDs (no --userns-remap, no --userns=auto)", Advice: "upgrade to Linux 5.19 or newer, to have them"}
	}
	return []Finding{f, user}
}

func (h *Host) seccomp() []Finding {
	if h.exists("/proc/sys/kernel/seccomp/actions_avail") || strings.Contains(h.read("/proc/self/status"), "Seccomp:") {
		return []Finding{{Name: "seccomp", Status: OK, Found: "there"}}
	}
	return []Finding{{Name: "seccomp", Status: Note, Found: "not in this kernel", Instead: "containers may make any system call their capabilities allow",
		Advice: "use a kernel with CONFIG_SECCOMP_FILTER"}}
}

// networkFeatures are what networks are made of.
var networkFeatures = []struct {
	name, module, use, advice string
	needed                    bool
}{
	{"veth", "veth", "containers' interfaces", "use a kernel with CONFIG_VETH", true},
	{"bridge", "bridge", "bridge networks", "use a kernel with CONFIG_BRIDGE", true},
	{"vxlan", "vxlan", "networks across hosts", "use a kernel with CONFIG_VXLAN; networks of one host work without it", true},
	{"nftables", "nf_tables", "NAT, published ports, virtual IPs", "use a kernel with CONFIG_NF_TABLES and its NAT and inet families", true},
	{"macvlan", "macvlan", "macvlan networks", "load the module macvlan, if containers are to be on the physical network", false},
	{"ipvlan", "ipvlan", "ipvlan networks (macvlan or bridge ones do)", "load the module ipvlan, if networks of that driver are wanted", false},
	{"vlan", "8021q", "macvlan networks on VLANs that are made for them (those that are there do)", "load the module 8021q, if parents such as eth0.10 are wanted", false},
	{"nft socket", "nft_socket", "untracked TCP on networks across hosts: it is tracked, which costs some of their speed", "load the module nft_socket (CONFIG_NFT_SOCKET)", false},
}

func (h *Host) network() []Finding {
	var names []string
	for _, f := range networkFeatures {
		names = append(names, f.name)
	}
	var tried map[string]error
	err := errors.New("needs root")
	if h.Root {
		tried, err = h.Try(names)
	}
	var out []Finding
	for _, f := range networkFeatures {
		finding := Finding{Name: f.name, Needed: f.needed, Status: OK, Found: "works"}
		switch failure := tried[f.name]; {
		case err != nil && h.module(f.module):
			finding.Found = "in the kernel, not tried"
		case err != nil:
			finding.Status, finding.Needed, finding.Found, finding.Advice = Note, false, "not to be seen, not tried", "run it with sudo to try"
		case failure != nil:
			finding.Status, finding.Found, finding.Advice = Missing, "fails: "+failure.Error(), f.advice
			if !f.needed {
				finding.Status = Note
			}
			finding.Instead = "no " + f.use
		}
		out = append(out, finding)
	}
	return out
}

func (h *Host) bpf() []Finding {
	f := Finding{Name: "eBPF", Status: OK, Found: "with type information (BTF)"}
	switch {
	case !h.exists("/proc/sys/kernel/unprivileged_bpf_disabled") && !h.exists("/sys/kernel/btf/vmlinux"):
		f.Status, f.Found, f.Instead = Note, "not in this kernel", "nftables balances every connection"
	case !h.exists("/sys/kernel/btf/vmlinux"):
		f.Status, f.Found, f.Instead = Note, "without type information (BTF)", "nftables balances every connection"
	}
	return []Finding{f}
}

func (h *Host) forwarding() []Finding {
	forward := Finding{Name: "IP forwarding", Status: OK, Found: "on"}
	if h.read("/proc/sys/net/ipv4/ip_forward") != "1" {
		forward.Found, forward.Status = "off", Note
		forward.Advice = "nothing: sampand switches it on when the first network needs it"
	}
	firewall := Finding{Name: "other firewalls", Status: OK, Found: "none drops forwarded packets"}
	if !h.Root {
		firewall.Status, firewall.Found, firewall.Advice = Note, "not looked at", "run it with sudo to look"
		return []Finding{forward, firewall}
	}
	chains, err := h.Dropping()
	switch {
	case err != nil:
		firewall.Status, firewall.Found = Note, "could not be read: "+err.Error()
	case len(chains) > 0:
		var names []string
		for _, c := range chains {
			names = append(names, c.Family+" "+c.Table+" "+c.Name)
		}
		firewall.Status = Note
		firewall.Found = "dropped by policy in " + strings.Join(names, ", ")
		firewall.Advice = fmt.Sprintf("what containers send to other hosts may be lost: let it pass, e.g. nft insert rule %s meta mark and 0xf000 == 0xf000 accept, or set the policy to accept", names[0])
		if c := chains[0]; c.Table == "filter" && c.Name == "FORWARD" {
			firewall.Advice = "what containers send to other hosts may be lost (Docker and ufw set this policy): iptables -P FORWARD ACCEPT, or a rule that accepts the containers' bridges"
		}
	}
	return []Finding{forward, firewall}
}

// clusterPorts are the ports that hosts of a cluster reach each other on.
var clusterPorts = []struct {
	proto string
	port  uint16
	use   string
}{{"tcp", 2377, "managers"}, {"udp", 4789, "networks across hosts"}}

func (h *Host) ports() []Finding {
	var out []Finding
	for _, p := range clusterPorts {
		f := Finding{Name: fmt.Sprintf("port %d/%s", p.port, p.proto), Status: OK, Found: "free"}
		if h.portTaken(p.proto, p.port) {
			f.Status, f.Found = Note, "in use"
			f.Advice = fmt.Sprintf("fine if sampand has it; else free it, or choose another for %s at swarm init (--listen-addr, --data-path-port)", p.use)
		}
		out = append(out, f)
	}
	return out
}

// portTaken reports whether some socket of this network namespace is bound to the port: listening, for TCP.
func (h *Host) portTaken(proto string, port uint16) bool {
	const listening = "0A"
	for _, file := range []string{"/proc/net/" + proto, "/proc/net/" + proto + "6"} {
		for line := range strings.Lines(h.read(file)) {
			fields := strings.Fields(line)
			if len(fields) < 4 {
				continue
			}
			_, hex, ok := strings.Cut(fields[1], ":")
			n, err := strconv.ParseUint(hex, 16, 16)
			if ok && err == nil && uint16(n) == port && (proto != "tcp" || fields[3] == listening) {
				return true
			}
		}
	}
	return false
}

const gib = 1 << 30

func (h *Host) disk() []Finding {
	dir := h.DataRoot
	for dir != "/" && dir != "." && dir != "" && !h.exists(dir) {
		dir = path.Dir(dir)
	}
	f := Finding{Name: "disk", Status: OK, Needed: true}
	free, total, err := h.Free(dir)
	switch f.Found = fmt.Sprintf("%.1f of %.1f GiB free for %s", float64(free)/gib, float64(total)/gib, h.DataRoot); {
	case err != nil:
		f.Status, f.Found = Note, "could not be measured: "+err.Error()
	case free < gib:
		f.Status, f.Advice = Missing, "free at least 1 GiB, or choose another place with --data-root"
	case free < 5*gib:
		f.Status, f.Advice = Note, "images need room: free some, or choose another place with --data-root"
	}
	return []Finding{f}
}
