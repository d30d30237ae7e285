package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/keeper/enter"
)

// byEntering begins a process in a container that runs the short way, and by otherwise where it cannot or where that fails.
func (s *Server) byEntering(ctx context.Context, c *container, process *libcontainer.Process, config *configs.Config, otherwise beginner) beginner {
	return func(ends processEnds, socket *consoleSocket) (int, error) {
		if socket == nil && plain(process, config) {
			pid, err := s.enter(ctx, c, process, config, ends)
			if err == nil {
				return pid, nil
			}
			if errors.Is(err, enter.ErrStray) {
				go s.reapStrays()
			}
			if errors.Is(err, enter.ErrHeldUp) {
				return 0, heldUp(ctx, c.proc, err)
			}
			s.log.Debug("a process is started by libcontainer's init", "container", c.rec.ID, "err", err)
		}
		return otherwise(ends, socket)
	}
}

// plain tells whether a process asks for nothing that only libcontainer's init does.
func plain(process *libcontainer.Process, config *configs.Config) bool {
	return process.Capabilities != nil && config.OomScoreAdj != nil &&
		process.AppArmorProfile == "" && config.AppArmorProfile == "" && process.Label == "" && config.ProcessLabel == "" &&
		process.Scheduler == nil && config.Scheduler == nil && process.IOPriority == nil && config.IOPriority == nil &&
		process.CPUAffinity == nil && config.ExecCPUAffinity == nil && config.MemoryPolicy == nil && config.Personality == nil &&
		config.IntelRdt == nil && !config.RootlessEUID && !config.RootlessCgroups && len(process.ExtraFiles) == 0
}

var errNoGroups = errors.New("the container's control groups are not known")

// enter starts a process by package enter.
func (s *Server) enter(ctx context.Context, c *container, process *libcontainer.Process, config *configs.Config, ends processEnds) (int, error) {
	if err := failpoint.Hit("keeper.exec.enter"); err != nil {
		return 0, err
	}
	filter, err := s.filterOf(c, config)
	if err != nil {
		return 0, err
	}
	// A copy: the container may end meanwhile, and the number be that of another one's process.
	init, err := duplicate(c.pidfd)
	if err != nil {
		return 0, err
	}
	defer init.Close()
	p := &enter.Process{
		Init: init,
		Args: process.Args, Cwd: process.Cwd,
		UID: uint32(process.UID), GID: uint32(process.GID),
		Umask: config.Umask, OOMScoreAdj: *config.OomScoreAdj, NoNewPrivs: config.NoNewPrivileges,
		Filter: filter,
		Stdin:  ends.stdin, Stdout: ends.stdout, Stderr: ends.stderr,
	}
	if p.Capabilities, err = capabilitiesOf(process.Capabilities); err != nil {
		return 0, err
	}
	if p.Env, err = lastOfEach(process.Env); err != nil {
		return 0, err
	}
	for _, ns := range config.Namespaces {
		p.Namespaces |= ns.Syscall()
	}
	for _, g := range process.AdditionalGroups {
		p.OtherGroups = append(p.OtherGroups, uint32(g))
	}
	if process.NoNewPrivileges != nil {
		p.NoNewPrivs = *process.NoNewPrivileges
	}
	if !config.NoNewKeyring {
		p.Keyring = "_ses." + c.rec.ID // the name that libcontainer gives it
	}
	groups := c.rec.Cgroups
	if len(groups) == 0 {
		return 0, errNoGroups
	}
	if cgroups.IsCgroup2UnifiedMode() {
		if p.Groups, err = openGroup(groups[""]); err != nil {
			return 0, err
		}
		defer p.Groups.Close()
		groups = nil
	}
	limits := config.Rlimits
	if len(process.Rlimits) > 0 {
		limits = process.Rlimits
	}
	p.Place = func(pid int) error { return place(pid, groups, limits) }
	return enter.Start(ctx, p)
}

// filterOf is the seccomp filter that the container's processes have. While it is not known it is learned.
func (s *Server) filterOf(c *container, config *configs.Config) (enter.Filter, error) {
	if config.Seccomp == nil {
		return enter.Filter{}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.filter.Program) == 0 {
		flags, program, ok := s.cfg.Filters.Installed(config.Seccomp)
		if !ok {
			go s.learnFilter(config.Seccomp)
			return enter.Filter{}, fmt.Errorf("the seccomp profile has not been compiled yet")
		}
		c.filter = enter.Filter{Flags: flags, Program: program}
	}
	return c.filter, nil
}

// lastOfEach leaves of each variable that is set more than once the last, and HOME only if it says something: what
// libcontainer makes of an environment.
func lastOfEach(env []string) ([]string, error) {
	out := make([]string, 0, len(env))
	seen := map[string]bool{}
	for _, e := range slices.Backward(env) {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q sets no variable", e)
		}
		if !seen[name] && e != "HOME=" {
			out = append(out, e)
		}
		seen[name] = true
	}
	slices.Reverse(out)
	return out, nil
}

// place puts a process into control groups of version 1, lets it run on every processor that these allow, and limits it.
func place(pid int, groups map[string]string, limits []configs.Rlimit) error {
	for _, path := range groups {
		if err := cgroups.WriteCgroupProc(path, pid); err != nil {
			return err
		}
	}
	if err := runAnywhere(pid); err != nil {
		return err
	}
	for _, l := range limits {
		if err := unix.Prlimit(pid, l.Type, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil); err != nil {
			return fmt.Errorf("limit %d: %w", l.Type, err)
		}
	}
	return nil
}

// everyProcessor is a mask of more processors than a kernel can be built for; it takes no notice of those that it has not.
var everyProcessor = bytes.Repeat([]byte{0xff}, 64<<10/8)

func runAnywhere(pid int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, uintptr(pid), uintptr(len(everyProcessor)), uintptr(unsafe.Pointer(&everyProcessor[0]))); errno != 0 {
		return os.NewSyscallError("sched_setaffinity", errno)
	}
	return nil
}

// openGroup opens a control group's folder to make a process in.
func openGroup(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// capabilityBits has the number of each capability that the kernel knows.
var capabilityBits = sync.OnceValues(func() (map[string]uint, error) {
	known, err := capability.ListSupported()
	if err != nil {
		return nil, err
	}
	bits := map[string]uint{}
	for _, c := range known {
		bits["CAP_"+strings.ToUpper(c.String())] = uint(c)
	}
	return bits, nil
})

// capabilitiesOf leaves out what the kernel does not know, as libcontainer does.
func capabilitiesOf(c *configs.Capabilities) (enter.Capabilities, error) {
	bits, err := capabilityBits()
	if err != nil {
		return enter.Capabilities{}, err
	}
	set := func(names []string) (s uint64) {
		for _, name := range names {
			if bit, ok := bits[name]; ok {
				s |= 1 << bit
			}
		}
		return s
	}
	return enter.Capabilities{
		Bounding: set(c.Bounding), Effective: set(c.Effective), Permitted: set(c.Permitted),
		Inheritable: set(c.Inheritable), Ambient: set(c.Ambient),
	}, nil
}
