package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/docker/go-connections/nat"
	"github.com/moby/sys/signal"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// applyChanges applies Dockerfile instructions, as given to import and commit, to a run configuration.
func applyChanges(c *runConfig, changes []string) error {
	for _, line := range logicalLines(changes) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := applyChange(c, line); err != nil {
			return fault.New(fault.InvalidArgument, "change %q: %w", line, err)
		}
	}
	return nil
}

// logicalLines are the instructions of changes, each of which may be several lines; a backslash at a line's end goes on with
// the next.
func logicalLines(changes []string) []string {
	text := strings.ReplaceAll(strings.Join(changes, "\n"), "\r\n", "\n")
	return strings.Split(strings.ReplaceAll(text, "\\\n", ""), "\n")
}

func applyChange(c *runConfig, line string) error {
	word, rest := line, ""
	if i := strings.IndexFunc(line, unicode.IsSpace); i >= 0 {
		word, rest = line[:i], strings.TrimSpace(line[i:])
	}
	instruction := strings.ToUpper(word)
	if rest == "" && !slices.Contains([]string{"CMD", "ENTRYPOINT", "SHELL"}, instruction) {
		return fmt.Errorf("%s requires an argument", instruction)
	}
	switch instruction {
	case "CMD":
		c.Cmd = execOrShell(rest, c.Shell)
	case "ENTRYPOINT":
		c.Entrypoint = execOrShell(rest, c.Shell)
	case "SHELL":
		list, ok := jsonList(rest)
		if !ok || len(list) == 0 {
			return errors.New(`SHELL requires the arguments to be in JSON form, such as SHELL ["/bin/sh", "-c"]`)
		}
		c.Shell = list
	case "ENV":
		pairs, err := keyValues(rest, c.Env)
		if err != nil {
			return fmt.Errorf("ENV: %w", err)
		}
		for _, p := range pairs {
			c.Env = setEnv(c.Env, p[0], p[1])
		}
	case "LABEL":
		pairs, err := keyValues(rest, c.Env)
		if err != nil {
			return fmt.Errorf("LABEL: %w", err)
		}
		c.Labels = maps.Clone(c.Labels)
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		for _, p := range pairs {
			c.Labels[p[0]] = p[1]
		}
	case "EXPOSE":
		ports, err := expandWord(rest, c.Env)
		if err != nil {
			return err
		}
		return expose(c, strings.Fields(ports))
	case "USER":
		if len(strings.Fields(rest)) != 1 {
			return errors.New("USER requires exactly one argument")
		}
		user, err := expandWord(rest, c.Env)
		if err != nil {
			return err
		}
		c.User = user
	case "WORKDIR":
		dir, err := expandWord(rest, c.Env)
		if err != nil {
			return err
		}
		if !path.IsAbs(dir) {
			dir = path.Join("/", c.WorkingDir, dir)
		}
		c.WorkingDir = path.Clean(dir)
	case "VOLUME":
		list, ok := jsonList(rest)
		if !ok {
			list = strings.Fields(rest)
		}
		c.Volumes = maps.Clone(c.Volumes)
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		for _, v := range list {
			volume, err := expandWord(strings.TrimSpace(v), c.Env)
			if err != nil {
				return err
			}
			if volume == "" {
				return errors.New("VOLUME specified can not be an empty string")
			}
			c.Volumes[volume] = struct{}{}
		}
	case "STOPSIGNAL":
		if _, err := signal.ParseSignal(rest); err != nil {
			return fmt.Errorf("STOPSIGNAL: %w", err)
		}
		c.StopSignal = rest
	case "ONBUILD":
		trigger := strings.ToUpper(strings.Fields(rest)[0])
		switch trigger {
		case "ONBUILD":
			return errors.New("chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
		case "MAINTAINER", "FROM":
			return fmt.Errorf("%s isn't allowed as an ONBUILD trigger", trigger)
		}
		c.OnBuild = append(slices.Clone(c.OnBuild), rest)
	case "HEALTHCHECK":
		return healthcheck(c, rest)
	default:
		return fmt.Errorf("%s is not a valid change command: use CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME or WORKDIR", strings.ToLower(word))
	}
	return nil
}

// execOrShell reads ["a", "b"] as it stands and anything else as a line for the shell.
func execOrShell(rest string, shell []string) []string {
	if list, ok := jsonList(rest); ok {
		return list
	}
	if rest == "" {
		return []string{}
	}
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), rest)
}

func jsonList(s string) ([]string, bool) {
	if !strings.HasPrefix(s, "[") {
		return nil, false
	}
	var list []string
	if json.Unmarshal([]byte(s), &list) != nil || list == nil {
		return nil, false
	}
	return list, true
}

func setEnv(env []string, key, value string) []string {
	env = slices.Clone(env)
	for i, e := range env {
		if k, _, _ := strings.Cut(e, "="); k == key {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

// keyValues reads "k=v k2='v 2' k3=v\ 3", or the old form "key the whole rest is the value".
func keyValues(s string, env []string) ([][2]string, error) {
	words, err := splitWords(s)
	if err != nil {
		return nil, err
	}
	if len(words) == 0 {
		return nil, errors.New("requires at least one argument")
	}
	if !strings.Contains(words[0], "=") {
		i := strings.IndexFunc(s, unicode.IsSpace)
		if i < 0 {
			return nil, fmt.Errorf("must have two arguments, or be written %s=VALUE", s)
		}
		k, kerr := expandWord(s[:i], env)
		v, verr := expandWord(strings.TrimSpace(s[i:]), env)
		return [][2]string{{k, v}}, errors.Join(kerr, verr)
	}
	var out [][2]string
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return nil, fmt.Errorf("can't find = in %q: must be of the form NAME=VALUE", w)
		}
		if k, err = expandWord(k, env); err != nil {
			return nil, err
		}
		if v, err = expandWord(v, env); err != nil {
			return nil, err
		}
		if k == "" {
			return nil, errors.New("names can not be blank")
		}
		out = append(out, [2]string{k, v})
	}
	return out, nil
}

// splitWords splits at white space outside quotes; quotes and backslashes stay in the words.
func splitWords(s string) ([]string, error) {
	var (
		words []string
		b     strings.Builder
		quote rune
		esc   bool
		in    bool
	)
	for _, r := range s {
		switch {
		case esc:
			esc = false
			b.WriteRune(r)
		case r == '\\' && quote != '\'':
			esc, in = true, true
			b.WriteRune(r)
		case quote != 0:
			if r == quote {
				quote = 0
			}
			b.WriteRune(r)
		case r == '\'' || r == '"':
			quote, in = r, true
			b.WriteRune(r)
		case unicode.IsSpace(r):
			if in {
				words = append(words, b.String())
				b.Reset()
				in = false
			}
		default:
			in = true
			b.WriteRune(r)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("unexpected end of statement while looking for matching %s", map[rune]string{'"': "double-quote", '\'': "single-quote"}[quote])
	}
	if in {
		words = append(words, b.String())
	}
	return words, nil
}

// expose adds ports such as 80, 53/udp and 8000-8010/tcp.
func expose(c *runConfig, ports []string) error {
	set, _, err := nat.ParsePortSpecs(ports)
	if err != nil {
		return err
	}
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	if c.ExposedPorts == nil {
		c.ExposedPorts = map[string]struct{}{}
	}
	for p := range set {
		c.ExposedPorts[string(p)] = struct{}{}
	}
	return nil
}

var healthOption = regexp.MustCompile(`^--([a-z-]+)=(\S+)\s*`)

func healthcheck(c *runConfig, rest string) error {
	var h Healthcheck
	options := false
	for {
		m := healthOption.FindStringSubmatch(rest)
		if m == nil {
			break
		}
		rest, options = rest[len(m[0]):], true
		if m[1] == "retries" {
			n, err := strconv.Atoi(m[2])
			if err != nil || n < 0 {
				return fmt.Errorf("--retries must be a whole number of at least 0, not %q", m[2])
			}
			h.Retries = n
			continue
		}
		field, ok := map[string]*time.Duration{
			"interval": &h.Interval, "timeout": &h.Timeout, "start-period": &h.StartPeriod, "start-interval": &h.StartInterval,
		}[m[1]]
		if !ok {
			return fmt.Errorf("unknown flag: --%s", m[1])
		}
		d, err := time.ParseDuration(m[2])
		if err != nil {
			return fmt.Errorf("--%s: %w", m[1], err)
		}
		if d != 0 && d < time.Millisecond {
			return fmt.Errorf("--%s of %q is less than the minimum of 1ms", m[1], m[2])
		}
		*field = d
	}
	kind, command, _ := strings.Cut(rest, " ")
	command = strings.TrimSpace(command)
	switch strings.ToUpper(kind) {
	case "NONE":
		if command != "" || options {
			return errors.New("HEALTHCHECK NONE takes no arguments")
		}
		h.Test = []string{"NONE"}
	case "CMD":
		if list, ok := jsonList(command); ok && len(list) > 0 {
			h.Test = append([]string{"CMD"}, list...)
		} else if command != "" {
			h.Test = []string{"CMD-SHELL", command}
		} else {
			return errors.New("missing command after HEALTHCHECK CMD")
		}
	default:
		return fmt.Errorf("unknown type %q in HEALTHCHECK (try CMD)", kind)
	}
	c.Healthcheck = &h
	return nil
}
