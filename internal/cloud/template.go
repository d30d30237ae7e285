package cloud

import (
	"bytes"
	"strings"
	"text/template"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// TemplateContext is what the templates in a service's environment, hostname and mounts may name.
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

// Expand fills a template such as "{{.Node.Hostname}}-{{.Task.Slot}}". Text without "{{" is returned as it is.
func (c *TemplateContext) Expand(s string) (string, error) {
	if !strings.Contains(s, "{{") {
		return s, nil
	}
	t, err := template.New("").Option("missingkey=error").Parse(s)
	if err != nil {
		return "", fault.New(fault.InvalidArgument, "expanding %q: %w", s, err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, c); err != nil {
		return "", fault.New(fault.InvalidArgument, "expanding %q: %w", s, err)
	}
	return out.String(), nil
}

// ExpandTemplates returns the specification with its templates filled: environment, hostname, and the sources and
// targets of mounts.
func (s ContainerSpec) ExpandTemplates(c *TemplateContext) (ContainerSpec, error) {
	var err error
	expand := func(in string) string {
		out, e := c.Expand(in)
		if err == nil {
			err = e
		}
		return out
	}
	env := make([]string, len(s.Env))
	for i, e := range s.Env {
		name, value, ok := strings.Cut(e, "=")
		if ok {
			e = name + "=" + expand(value)
		}
		env[i] = e
	}
	mounts := make([]Mount, len(s.Mounts))
	for i, m := range s.Mounts {
		m.Source, m.Target = expand(m.Source), expand(m.Target)
		mounts[i] = m
	}
	s.Env, s.Mounts, s.Hostname = env, mounts, expand(s.Hostname)
	return s, err
}
