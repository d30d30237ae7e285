package container

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

// launch is what a start has prepared, on which the container's OCI spec depends besides its configuration.
type launch struct {
	rootfs   string
	netns    string // path of the network namespace; empty: the host's
	ipcns    string // of another container
	pidns    string // of another container
	shm      string // host folder for /dev/shm; empty: a tmpfs of its own
	user     specs.User
	mounts   []specs.Mount // the user's, parents first
	files    []specs.Mount // hosts, hostname, resolv.conf
	initPath string
	seccomp  string       // the system call filter if the container names none: see Defaults
	targets  []joinTarget // whose namespaces are joined
	shared   string       // propagation the root needs: "", shared or rslave

	ids    userns.Mapping // what its users are on the host
	userns string         // path of its user namespace; empty: the host's
	joined string         // name of the container whose user namespace it is, if it is another's
	seed   string         // path of the network namespace that the user namespace owns, until the network has taken it
	shift  *os.File       // a user namespace that shifts the owners of files by ids; nil: they are not shifted
}

// close ends what is needed only while the container is started.
func (l *launch) close() {
	if l.shift != nil {
		_ = l.shift.Close()
	}
}

const initTarget = "/sbin/docker-init"

// buildSpec describes the container to the keeper.
func (h *host) buildSpec(c *Container, l *launch, cgroupParent string) (*specs.Spec, error) {
	cfg, hc := &c.Config, &c.Config.Host
	sec, err := parseSecurity(hc.SecurityOpt)
	if err != nil {
		return nil, err
	}
	proc, err := h.process(c, l.user, sec)
	if err != nil {
		return nil, err
	}
	if l.initPath != "" {
		proc.Args = slices.Concat([]string{initTarget, "--"}, proc.Args)
	}
	s := &specs.Spec{
		Version:     specs.Version,
		Process:     proc,
		Root:        &specs.Root{Path: l.rootfs, Readonly: hc.ReadonlyRootfs},
		Hostname:    cfg.Hostname,
		Domainname:  cfg.Domainname,
		Annotations: hc.Annotations,
		Linux: &specs.Linux{
			CgroupsPath:       path.Join("/", firstNonEmpty(hc.CgroupParent, cgroupParent), c.ID),
			MaskedPaths:       h.masked,
			ReadonlyPaths:     defaultReadonly,
			Sysctl:            map[string]string{},
			RootfsPropagation: l.shared,
		},
	}
	if hc.MaskedPaths != nil {
		s.Linux.MaskedPaths = hc.MaskedPaths
	}
	if hc.ReadonlyPaths != nil {
		s.Linux.ReadonlyPaths = hc.ReadonlyPaths
	}
	if hc.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	}
	h.namespaces(s, hc, l)
	// A namespace that a user namespace owns has both from its making: the second cannot be written from inside.
	if l.netns != "" && l.userns == "" && !strings.HasPrefix(hc.NetworkMode, "container:") {
		for name, value := range map[string]string{"net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.ip_unprivileged_port_start": "0"} {
			if sysctlExists(name) {
				s.Linux.Sysctl[name] = value
			}
		}
	}
	maps.Copy(s.Linux.Sysctl, hc.Sysctls)
	if s.Linux.Resources, err = resources(&hc.Resources, hc.OOMKillDisable); err != nil {
		return nil, err
	}
	if err := addDevices(s, hc); err != nil {
		return nil, err
	}
	if err := h.addMounts(s, hc, l, sec); err != nil {
		return nil, err
	}
	if l.userns != "" {
		bindDevices(s, hc.Devices)
	}
	if err := withSeccomp(s, sec, l.seccomp, hc.Privileged); err != nil {
		return nil, err
	}
	return s, nil
}

// process describes the container's first process; an exec is derived from it.
func (h *host) process(c *Container, user specs.User, sec security) (*specs.Process, error) {
	cfg, hc := &c.Config, &c.Config.Host
	caps, err := capabilities(hc, h.caps)
	if err != nil {
		return nil, err
	}
	p := &specs.Process{
		Terminal:        cfg.Tty,
		User:            user,
		Args:            append([]string{c.Path}, c.Args...),
		Env:             processEnv(cfg, cfg.Tty, c.Networks.Env),
		Cwd:             firstNonEmpty(cfg.WorkingDir, "/"),
		Capabilities:    capSet(caps),
		Rlimits:         h.rlimits(hc.Ulimits),
		NoNewPrivileges: sec.noNewPrivileges,
	}
	p.User.Umask = hc.Umask
	if s := hc.ConsoleSize; cfg.Tty && s[0] > 0 && s[1] > 0 {
		p.ConsoleSize = &specs.Box{Height: uint(s[0]), Width: uint(s[1])}
	}
	score := h.oomScoreAdj(hc.OOMScoreAdj)
	p.OOMScoreAdj = &score
	if h.apparmor && sec.apparmor != "" {
		p.ApparmorProfile = sec.apparmor
	}
	return p, nil
}

func capSet(caps []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

func (h *host) namespaces(s *specs.Spec, hc *HostConfig, l *launch) {
	add := func(t specs.LinuxNamespaceType, path string) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	add(specs.MountNamespace, "")
	if l.userns != "" {
		add(specs.UserNamespace, l.userns)
		s.Linux.UIDMappings, s.Linux.GIDMappings = specMapping(l.ids.UIDs), specMapping(l.ids.GIDs)
	}
	if l.netns != "" {
		add(specs.NetworkNamespace, l.netns)
	}
	if hc.UTSMode == "host" {
		s.Hostname, s.Domainname = "", ""
	} else {
		add(specs.UTSNamespace, "")
	}
	if hc.PidMode != "host" {
		add(specs.PIDNamespace, l.pidns)
	}
	if hc.IpcMode != "host" {
		add(specs.IPCNamespace, l.ipcns)
	}
	if h.cgroupns(hc.CgroupnsMode) == "private" {
		add(specs.CgroupNamespace, "")
	}
}

// cgroupns is whose cgroup namespace a container is in: private or host. If nobody says, it is as with Docker.
func (h *host) cgroupns(asked string) string {
	switch {
	case asked != "":
		return asked
	case h.cgroups.unified():
		return "private"
	}
	return "host"
}

func (h *host) addMounts(s *specs.Spec, hc *HostConfig, l *launch, sec security) error {
	own := map[string]bool{}
	for _, m := range l.mounts {
		own[m.Destination] = true
	}
	base := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(hc.ShmSize, 10)}},
	}
	writableCgroups := hc.Privileged
	if sec.writableCgroups != nil {
		writableCgroups = *sec.writableCgroups
	}
	for _, m := range base {
		switch {
		case own[m.Destination], own["/dev"] && strings.HasPrefix(m.Destination, "/dev/"):
			continue
		case m.Destination == "/dev/shm" && hc.IpcMode == "none":
			continue
		case m.Destination == "/dev/mqueue" && hc.IpcMode == "host" && l.userns != "":
			// The host's is not the container's to mount, only to see where the host has it mounted.
			if !exists(m.Destination) {
				continue
			}
			m.Type, m.Source, m.Options = "bind", m.Destination, []string{"rbind", "rprivate"}
		case m.Destination == "/dev/shm" && l.shm != "":
			m.Type, m.Source, m.Options = "bind", l.shm, []string{"rbind", "rprivate"}
		case m.Destination == "/sys" && hc.Privileged, m.Type == "cgroup" && writableCgroups:
			m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "ro" })
		}
		if s.Root.Readonly && m.Destination == "/sys/fs/cgroup" && !slices.Contains(m.Options, "ro") {
			m.Options = append(m.Options, "ro")
		}
		s.Mounts = append(s.Mounts, m)
	}
	// A mount of the user's on a folder above one of these files, such as /etc, must not hide it.
	further := slices.Clone(l.mounts)
	for _, m := range l.files {
		if !own[m.Destination] {
			further = append(further, m)
		}
	}
	slices.SortStableFunc(further, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	s.Mounts = append(s.Mounts, further...)
	if l.initPath != "" {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: initTarget, Type: "bind", Source: l.initPath, Options: []string{"bind", "ro"}})
	}
	return nil
}

// specMount is one of the user's mounts as the runtime wants it. shared is what it asks of the root's propagation.
func specMount(p plannedMount, source string) (m specs.Mount, shared string, err error) {
	if p.Type == MountTmpfs {
		opts := []string{"noexec", "nosuid", "nodev", "rprivate"}
		if p.TmpfsOptions != "" {
			opts = append(opts, strings.Split(p.TmpfsOptions, ",")...)
		}
		merged, err := mount.MergeTmpfsOptions(opts)
		if err != nil {
			return m, "", fault.New(fault.InvalidArgument, "tmpfs %s: %w", p.Destination, err)
		}
		return specs.Mount{Destination: p.Destination, Type: "tmpfs", Source: "tmpfs", Options: merged}, "", nil
	}
	opts := []string{"rbind"}
	if p.NonRecursive {
		opts[0] = "bind"
	}
	switch {
	case p.RW:
	case p.WritableInside:
		opts = append(opts, "ro")
	default:
		opts = append(opts, "rro")
	}
	if p.AnyPropagation && wantPropagation(source, "shared:", "master:") != nil {
		p.Propagation = "rprivate"
	}
	switch p.Propagation {
	case "shared", "rshared":
		if err := wantPropagation(source, "shared:"); err != nil {
			return m, "", err
		}
		shared = "shared"
	case "slave", "rslave":
		if err := wantPropagation(source, "shared:", "master:"); err != nil {
			return m, "", err
		}
		shared = "rslave"
	}
	opts = append(opts, firstNonEmpty(p.Propagation, "rprivate"))
	return specs.Mount{Destination: p.Destination, Type: "bind", Source: source, Options: opts}, shared, nil
}

// wantPropagation checks that the mount which source lies on can do what is asked.
func wantPropagation(source string, kinds ...string) error {
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return err
	}
	infos, err := mountinfo.GetMounts(mountinfo.ParentsFilter(real))
	if err != nil {
		return err
	}
	var on *mountinfo.Info
	for _, mi := range infos {
		if on == nil || len(mi.Mountpoint) >= len(on.Mountpoint) {
			on = mi
		}
	}
	if on == nil {
		return fmt.Errorf("no mount point found for %s", source)
	}
	for opt := range strings.FieldsSeq(on.Optional) {
		for _, k := range kinds {
			if strings.HasPrefix(opt, k) {
				return nil
			}
		}
	}
	return fault.New(fault.FailedPrecondition, "path %s is mounted on %s but it is not a %s mount", source, on.Mountpoint,
		strings.ReplaceAll(strings.TrimSuffix(strings.Join(kinds, " or "), ":"), ":", ""))
}

func firstNonEmpty(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
