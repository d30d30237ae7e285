package container

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// defaultCaps are the capabilities of a container that asks for none, as Docker gives them.
var defaultCaps = []string{"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"}

var knownCaps = sync.OnceValue(func() []string {
	var names []string
	for _, k := range capability.ListKnown() {
		names = append(names, "CAP_"+strings.ToUpper(k.String()))
	}
	return names
})

// capabilities are those of a container: never one that the daemon does not have.
func capabilities(h *HostConfig, available []string) ([]string, error) {
	add, addAll, err := capNames("CapAdd", h.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames("CapDrop", h.CapDrop)
	if err != nil {
		return nil, err
	}
	var want []string
	switch {
	case h.Privileged:
		return available, nil
	case addAll:
		want = slices.DeleteFunc(slices.Clone(available), func(c string) bool { return slices.Contains(drop, c) })
	case dropAll:
		want = add
	default:
		want = slices.DeleteFunc(slices.Clone(defaultCaps), func(c string) bool { return slices.Contains(drop, c) })
		want = append(want, add...)
	}
	want = slices.DeleteFunc(want, func(c string) bool { return !slices.Contains(available, c) })
	slices.Sort(want)
	return slices.Compact(want), nil
}

func capNames(field string, in []string) (names []string, all bool, err error) {
	for _, c := range in {
		c = strings.ToUpper(c)
		if c == "ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !slices.Contains(knownCaps(), c) {
			return nil, false, fault.New(fault.InvalidArgument, "invalid %s: unknown capability: %q", field, c)
		}
		names = append(names, c)
	}
	return names, all, nil
}

// security is a parsed SecurityOpt.
type security struct {
	seccomp         string // "": the host's default; "builtin"; "unconfined"; or a profile
	apparmor        string
	noNewPrivileges bool
	writableCgroups *bool
	label           []string
}

func parseSecurity(opts []string) (security, error) {
	var s security
	for _, o := range opts {
		if o == "no-new-privileges" {
			s.noNewPrivileges = true
			continue
		}
		if o == "writable-cgroups" {
			on := true
			s.writableCgroups = &on
			continue
		}
		if o == "disable" {
			continue
		}
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			k, v, ok = strings.Cut(o, ":")
		}
		if !ok {
			return s, fault.New(fault.InvalidArgument, "invalid --security-opt 1: %q", o)
		}
		switch k {
		case "label":
			s.label = append(s.label, v)
		case "apparmor":
			s.apparmor = v
		case "seccomp":
			s.seccomp = v
		case "no-new-privileges":
			b, err := strconv.ParseBool(v)
			if err != nil {
				return s, fault.New(fault.InvalidArgument, "invalid --security-opt 2: %q", o)
			}
			s.noNewPrivileges = b
		case "writable-cgroups":
			on := v == "true"
			if !on && v != "false" {
				return s, fault.New(fault.InvalidArgument, "invalid --security-opt 2: %q", o)
			}
			s.writableCgroups = &on
		default:
			return s, fault.New(fault.InvalidArgument, "invalid --security-opt 2: %q", o)
		}
	}
	return s, nil
}

var seccompSupported = sync.OnceValue(func() bool {
	return unix.Prctl(unix.PR_GET_SECCOMP, 0, 0, 0, 0) != unix.EINVAL
})

// saysNoNewPrivileges reports whether a security option is about new privileges.
func saysNoNewPrivileges(o string) bool {
	return o == "no-new-privileges" || strings.HasPrefix(o, "no-new-privileges=") || strings.HasPrefix(o, "no-new-privileges:")
}

// withSeccomp puts the container's system call filter into a spec whose capabilities are set. def is the profile of
// containers that name none; "" is this program's own.
func withSeccomp(s *specs.Spec, sec security, def string, privileged bool) error {
	profile := sec.seccomp
	if profile == "" {
		if privileged || !seccompSupported() {
			return nil
		}
		profile = def
	}
	var err error
	switch {
	case profile == "unconfined":
	case profile != "" && profile != "builtin":
		if s.Linux.Seccomp, err = seccomp.LoadProfile(profile, s); err != nil {
			return fault.New(fault.InvalidArgument, "seccomp profile: %w", err)
		}
	case privileged || !seccompSupported():
	default:
		if s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s); err != nil {
			return fmt.Errorf("default seccomp profile: %w", err)
		}
	}
	return nil
}

var rlimits = map[string]int{"core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE,
	"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK}

// hardLimit is the hard limit of this process that a child's cannot exceed; not ok: there is none.
func (h *host) hardLimit(name string) (int64, bool) {
	var r unix.Rlimit
	if h.can("CAP_SYS_RESOURCE") || unix.Getrlimit(rlimits[name], &r) != nil || r.Max > 1<<62 {
		return 0, false
	}
	return int64(r.Max), true
}

func (h *host) rlimits(us []Ulimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, u := range us {
		if lim, ok := h.hardLimit(u.Name); ok {
			if u.Hard == -1 || u.Hard > lim {
				u.Hard = lim
			}
			if u.Soft == -1 || u.Soft > u.Hard {
				u.Soft = u.Hard
			}
		}
		// -1 becomes RLIM_INFINITY.
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return out
}

// oomScoreAdj is what the container gets of the score it wants: this process cannot lower a child's below its own
// without CAP_SYS_RESOURCE.
func (h *host) oomScoreAdj(want int) int {
	if h.can("CAP_SYS_RESOURCE") {
		return want
	}
	return max(want, h.oomScore)
}

func sysctlExists(name string) bool {
	_, err := os.Stat("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	return err == nil
}

// unlabelled says of a container that shares the host's processes or IPC, or may do everything, that no label confines it,
// unless its user said something about labels.
func unlabelled(h *HostConfig) {
	if (h.Privileged || h.IpcMode == "host" || h.PidMode == "host") &&
		!slices.ContainsFunc(h.SecurityOpt, func(o string) bool { return strings.HasPrefix(o, "label=") || strings.HasPrefix(o, "label:") }) {
		h.SecurityOpt = append(slices.Clip(h.SecurityOpt), "label=disable")
	}
}
