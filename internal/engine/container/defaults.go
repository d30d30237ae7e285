package container

import (
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Defaults are what containers get that do not say themselves. Shared memory, namespaces and no-new-privileges are fixed
// when a container is created, the rest when it is started or stopped, as with Docker.
type Defaults struct {
	Ulimits         []Ulimit
	ShmSize         int64  // bytes, 0: 64 MiB
	IpcMode         string // private or shareable; "": private
	CgroupnsMode    string // private or host; "": private with cgroup version 2, else host
	Init            bool
	NoNewPrivileges bool
	Seccomp         string // "": the profile of this program; "unconfined"; or a profile as JSON
	StopTimeout     *int   // seconds, nil: 10; below 0: wait for ever
}

// Validate says what is wrong with the defaults, by the names of dockerd's options.
func (d *Defaults) Validate() error {
	for _, u := range d.Ulimits {
		if err := checkUlimit(u); err != nil {
			return fault.As(fault.InvalidArgument, errorf("default-ulimits: %w", err))
		}
	}
	switch {
	case d.ShmSize < 0:
		return fault.New(fault.InvalidArgument, "default-shm-size: SHM size can not be less than 0")
	case !slices.Contains([]string{"", "private", "shareable"}, d.IpcMode):
		return fault.New(fault.InvalidArgument, `default-ipc-mode %q: IPC mode is not supported as default value; use "shareable" or "private"`, d.IpcMode)
	case !slices.Contains([]string{"", "private", "host"}, d.CgroupnsMode):
		return fault.New(fault.InvalidArgument, `default-cgroupns-mode %q: use "host" or "private"`, d.CgroupnsMode)
	}
	if d.Seccomp != "" && d.Seccomp != "unconfined" {
		plain := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}}
		if _, err := seccomp.LoadProfile(d.Seccomp, plain); err != nil {
			return fault.New(fault.InvalidArgument, "seccomp-profile: %w", err)
		}
	}
	return nil
}

// SetDefaults replaces the defaults, for what is created, started and stopped from now on.
func (m *Manager) SetDefaults(d Defaults) error {
	if err := d.Validate(); err != nil {
		return err
	}
	m.defaults.Store(&d)
	return nil
}

// fill gives a container that is created what it does not say itself.
func (d *Defaults) fill(h *HostConfig, cgroups hierarchy) {
	if h.ShmSize == 0 {
		h.ShmSize = d.ShmSize
	}
	if h.IpcMode == "" {
		h.IpcMode = d.IpcMode
	}
	if h.CgroupnsMode == "" && (!h.Privileged || cgroups.unified()) {
		h.CgroupnsMode = d.CgroupnsMode
	}
	if d.NoNewPrivileges && !slices.ContainsFunc(h.SecurityOpt, saysNoNewPrivileges) {
		h.SecurityOpt = append(slices.Clone(h.SecurityOpt), "no-new-privileges")
	}
}

// ulimits are a container's own and, of the others, the defaults.
func (d *Defaults) ulimits(own []Ulimit) []Ulimit {
	all := slices.Clone(own)
	for _, u := range d.Ulimits {
		if !slices.ContainsFunc(own, func(o Ulimit) bool { return o.Name == u.Name }) {
			all = append(all, u)
		}
	}
	return all
}

// effective is a container with the defaults that its processes are started with.
func (d *Defaults) effective(c *Container) *Container {
	out := *c
	out.Config.Host.Ulimits = d.ulimits(c.Config.Host.Ulimits)
	return &out
}
