package server

import (
	"cmp"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// checkID refuses what cannot be a folder's name.
func checkID(what, id string) error {
	ok := len(id) > 0 && len(id) <= 128 && id[0] != '.' && id[0] != '-'
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return fault.New(fault.InvalidArgument, "invalid %s ID %q: letters, digits, hyphens, dots and underscores only", what, id)
	}
	return nil
}

// convertSpec makes libcontainer's configuration of a container's spec.
func convertSpec(spec keeper.Spec) (*configs.Config, *libcontainer.Process, error) {
	var bundle specs.Spec
	if err := json.Unmarshal(spec.Bundle, &bundle); err != nil {
		return nil, nil, fault.New(fault.InvalidArgument, "container %s: malformed OCI spec: %w", spec.ID, err)
	}
	if bundle.Root == nil || !filepath.IsAbs(bundle.Root.Path) {
		return nil, nil, fault.New(fault.InvalidArgument, "container %s: the OCI spec needs an absolute root path", spec.ID)
	}
	if bundle.Linux == nil || bundle.Linux.CgroupsPath == "" {
		return nil, nil, fault.New(fault.InvalidArgument, "container %s: the OCI spec needs linux.cgroupsPath", spec.ID)
	}
	process, err := convertProcess(bundle.Process)
	if err != nil {
		return nil, nil, err
	}
	join := takeUserNS(&bundle)
	// Without one the container would inherit the keeper's own score, which is far from being killed.
	bundle.Process.OOMScoreAdj = cmp.Or(spec.OOMScoreAdj, bundle.Process.OOMScoreAdj, new(int))
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       spec.ID,
		UseSystemdCgroup: spec.SystemdCgroup,
		NoNewKeyring:     spec.NoNewKeyring,
		Spec:             &bundle,
	})
	if err != nil {
		return nil, nil, fault.New(fault.InvalidArgument, "container %s: %w", spec.ID, err)
	}
	if join != "" {
		config.Namespaces.Add(configs.NEWUSER, join)
	}
	return config, process, nil
}

// takeUserNS takes the path of the user namespace to join out of a spec that has its mapping too. libcontainer would
// start a process in it to learn the mapping that it is told.
func takeUserNS(bundle *specs.Spec) (path string) {
	for i, ns := range bundle.Linux.Namespaces {
		if ns.Type == specs.UserNamespace && len(bundle.Linux.UIDMappings) > 0 {
			path, bundle.Linux.Namespaces[i].Path = ns.Path, ""
		}
	}
	return path
}

// convertProcess makes libcontainer's process of an OCI one.
func convertProcess(p *specs.Process) (*libcontainer.Process, error) {
	switch {
	case p == nil || len(p.Args) == 0:
		return nil, fault.New(fault.InvalidArgument, "no command specified")
	case !filepath.IsAbs(p.Cwd):
		return nil, fault.New(fault.InvalidArgument, "the working directory %q is invalid, it needs to be an absolute path", p.Cwd)
	}
	out := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		AppArmorProfile: p.ApparmorProfile,
		NoNewPrivileges: &p.NoNewPrivileges,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
	}
	for _, g := range p.User.AdditionalGids {
		out.AdditionalGroups = append(out.AdditionalGroups, int(g))
	}
	if s := p.ConsoleSize; s != nil {
		out.ConsoleHeight, out.ConsoleWidth = uint16(s.Height), uint16(s.Width)
	}
	if c := p.Capabilities; c != nil {
		out.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		kind, ok := rlimits[r.Type]
		if !ok {
			return nil, fault.New(fault.InvalidArgument, "unknown resource limit %q", r.Type)
		}
		out.Rlimits = append(out.Rlimits, configs.Rlimit{Type: kind, Hard: r.Hard, Soft: r.Soft})
	}
	var err error
	out.CPUAffinity, err = configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	return out, err
}

var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// startError gives libcontainer's error a kind: a program that is not there or may not be run is the caller's to mend.
func startError(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, sign := range []string{"executable file not found", "no such file or directory", "permission denied", "is a directory", "not a directory", "exec format error"} {
		if strings.Contains(text, sign) {
			return fault.As(fault.InvalidArgument, errors.New(text))
		}
	}
	// The kernel refuses a limit that was asked for.
	if strings.Contains(text, "cgroup configuration") && (strings.HasSuffix(text, "invalid argument") || strings.HasSuffix(text, "numerical result out of range")) {
		return fault.As(fault.InvalidArgument, errors.New(text))
	}
	return err
}
