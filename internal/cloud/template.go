package cloud

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"text/template"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// TemplateContext is what the templates in a service's environment, hostname and mounts may name, and those in configs
// and secrets. It has no methods that a template should not call.
type TemplateContext struct {
	Service struct {
		ID, Name string
		Labels   map[string]string
	}
	Node struct {
		ID, Hostname string
		Platform     struct{ OS, Architecture string }
	}
	Task struct {
		ID, Name, Slot string
	}
}

// templateFuncs are the functions of every template: join SEPARATOR STRING…
var templateFuncs = template.FuncMap{
	"join": func(separator string, s ...string) string { return strings.Join(s, separator) },
}

// expand fills the template s, with more functions. Text without "{{" is returned as it is.
func expand(s string, c *TemplateContext, more template.FuncMap) (string, error) {
	if !strings.Contains(s, "{{") {
		return s, nil
	}
	t, err := template.New("expansion").Option("missingkey=error").Funcs(templateFuncs).Funcs(more).Parse(s)
	if err != nil {
		return "", fault.As(fault.InvalidArgument, err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, templateData(*c)); err != nil {
		return "", fault.As(fault.InvalidArgument, err)
	}
	return out.String(), nil
}

// templateData is a TemplateContext without its methods: a template could call them.
type templateData TemplateContext

// Expand fills a template such as "{{.Node.Hostname}}-{{.Task.Slot}}".
func (c *TemplateContext) Expand(s string) (string, error) { return expand(s, c, nil) }

// expandMap fills the templates in the values of a map.
func (c *TemplateContext) expandMap(in map[string]string) (map[string]string, error) {
	out := maps.Clone(in)
	for k, v := range in {
		filled, err := c.Expand(v)
		if err != nil {
			return nil, fmt.Errorf("expanding map entry %q=%q: %w", k, v, err)
		}
		out[k] = filled
	}
	return out, nil
}

// ExpandTemplates returns the specification with its templates filled: environment, hostname, the sources and targets of
// mounts, and the labels and driver options of their volumes.
func (s ContainerSpec) ExpandTemplates(c *TemplateContext) (ContainerSpec, error) {
	env := make([]string, len(s.Env))
	for i, e := range s.Env {
		name, value, ok := strings.Cut(e, "=")
		if ok {
			filled, err := c.Expand(value)
			if err != nil {
				return s, fmt.Errorf("expanding env failed: expanding env %q: %w", e, err)
			}
			e = name + "=" + filled
		}
		env[i] = e
	}
	mounts := make([]Mount, len(s.Mounts))
	for i, m := range s.Mounts {
		var err error
		if m.Source, err = c.Expand(m.Source); err != nil {
			return s, fmt.Errorf("expanding mounts failed: expanding mount source %q: %w", s.Mounts[i].Source, err)
		}
		if m.Target, err = c.Expand(m.Target); err != nil {
			return s, fmt.Errorf("expanding mounts failed: expanding mount target %q: %w", s.Mounts[i].Target, err)
		}
		if m.VolumeLabels, err = c.expandMap(m.VolumeLabels); err != nil {
			return s, fmt.Errorf("expanding mounts failed: expanding volume labels: %w", err)
		}
		if m.VolumeOpts, err = c.expandMap(m.VolumeOpts); err != nil {
			return s, fmt.Errorf("expanding mounts failed: expanding volume driver config: %w", err)
		}
		mounts[i] = m
	}
	hostname, err := c.Expand(s.Hostname)
	if err != nil {
		return s, fmt.Errorf("expanding hostname failed: %w", err)
	}
	s.Env, s.Mounts, s.Hostname = env, mounts, hostname
	return s, nil
}

// TemplateFiles are the secrets and configs of a task, by the path that the task's service gives them, and the task's
// environment, for templates in secrets and configs.
type TemplateFiles struct {
	Secrets, Configs map[string][]byte
	Env              []string
}

// ExpandPayload fills a template that is a secret's or config's content. Beside what all templates have, it may call
// secret PATH, config PATH and env NAME; a variable that is not set is empty.
func (c *TemplateContext) ExpandPayload(data []byte, files *TemplateFiles) ([]byte, error) {
	find := func(kind string, all map[string][]byte) func(string) (string, error) {
		return func(target string) (string, error) {
			found, ok := all[target]
			if !ok {
				return "", fmt.Errorf("%s target %s not found", kind, target)
			}
			return string(found), nil
		}
	}
	out, err := expand(string(data), c, template.FuncMap{
		"secret": find("secret", files.Secrets),
		"config": find("config", files.Configs),
		"env": func(name string) string {
			for _, e := range files.Env {
				if value, ok := strings.CutPrefix(e, name+"="); ok {
					return value
				}
			}
			return ""
		},
	})
	return []byte(out), err
}
