package container

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// mergeImage fills what cfg leaves open from the image's configuration.
func mergeImage(cfg *Config, img *image.Image) error {
	ic := img.Config
	cfg.User = cmp.Or(cfg.User, ic.User)
	cfg.WorkingDir = cmp.Or(cfg.WorkingDir, ic.WorkingDir)
	cfg.StopSignal = cmp.Or(cfg.StopSignal, ic.StopSignal)
	cfg.Env = addEnv(cfg.Env, ic.Env)
	if len(cfg.Shell) == 0 {
		cfg.Shell = slices.Clone(img.Shell)
	}
	if len(ic.Labels) > 0 {
		labels := maps.Clone(ic.Labels)
		maps.Copy(labels, cfg.Labels)
		cfg.Labels = labels
	}
	for key := range ic.ExposedPorts {
		p, err := parsePort(key)
		if err != nil {
			return fault.New(fault.InvalidArgument, "image %s exposes an invalid port %q: %w", cfg.Image, key, err)
		}
		if !slices.Contains(cfg.ExposedPorts, p) {
			cfg.ExposedPorts = append(slices.Clip(cfg.ExposedPorts), p)
		}
	}
	slices.SortFunc(cfg.ExposedPorts, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Protocol, b.Protocol))
	})
	for v := range ic.Volumes {
		if !slices.Contains(cfg.Volumes, v) {
			cfg.Volumes = append(slices.Clip(cfg.Volumes), v)
		}
	}
	slices.Sort(cfg.Volumes)

	if len(cfg.Entrypoint) == 0 {
		if len(cfg.Cmd) == 0 && cfg.Entrypoint == nil {
			cfg.Cmd = slices.Clone(ic.Cmd)
		}
		if cfg.Entrypoint == nil {
			cfg.Entrypoint = slices.Clone(ic.Entrypoint)
		}
	}
	if len(cfg.Entrypoint) == 1 && cfg.Entrypoint[0] == "" {
		cfg.Entrypoint = nil
	}
	if len(cfg.Entrypoint)+len(cfg.Cmd) == 0 {
		return fault.New(fault.InvalidArgument, "no command specified")
	}

	if h := img.Healthcheck; h != nil {
		own := Health{}
		if cfg.Health != nil {
			own = *cfg.Health
		}
		if len(own.Test) == 0 {
			own.Test = slices.Clone(h.Test)
		}
		own.Interval = cmp.Or(own.Interval, h.Interval)
		own.Timeout = cmp.Or(own.Timeout, h.Timeout)
		own.StartPeriod = cmp.Or(own.StartPeriod, h.StartPeriod)
		own.StartInterval = cmp.Or(own.StartInterval, h.StartInterval)
		own.Retries = cmp.Or(own.Retries, h.Retries)
		cfg.Health = &own
	}
	return nil
}

// addEnv is env followed by what more has of other names, as clients see it.
func addEnv(env, more []string) []string {
	named := map[string]bool{}
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		named[name] = true
	}
	return append(slices.Clone(env), slices.DeleteFunc(slices.Clone(more), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return named[name]
	})...)
}

// mergeEnv lays env over base: an entry replaces the one of the same name in its place. A bare NAME stays as it is and
// says that the process is not to have it.
func mergeEnv(base, env []string) []string {
	out := slices.Clone(base)
	at := map[string]int{}
	for i, e := range out {
		name, _, _ := strings.Cut(e, "=")
		at[name] = i
	}
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if i, known := at[name]; known {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}

// setEnv is env without the names that are not to be set.
func setEnv(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(e string) bool { return !strings.Contains(e, "=") })
}

// parsePort reads PORT or PORT/PROTOCOL.
func parsePort(s string) (Port, error) {
	num, proto, ok := strings.Cut(s, "/")
	if !ok || proto == "" {
		proto = "tcp"
	}
	n, err := strconv.ParseUint(num, 10, 16)
	if err != nil || n == 0 {
		return Port{}, fault.New(fault.InvalidArgument, "invalid port %q: want 1 to 65535", num)
	}
	proto = strings.ToLower(proto)
	if !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
		return Port{}, fault.New(fault.InvalidArgument, "invalid protocol %q: want tcp, udp or sctp", proto)
	}
	return Port{Port: uint16(n), Protocol: proto}, nil
}

// defaultPath is the PATH of containers whose image sets none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// processEnv is the environment of a container's processes.
func processEnv(cfg *Config, tty bool, links []string) []string {
	env := []string{defaultPath, "HOSTNAME=" + cfg.Hostname}
	if tty {
		env = append(env, "TERM=xterm")
	}
	return setEnv(mergeEnv(append(env, links...), cfg.Env))
}
