package container

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
	"time"

	"github.com/sampan-cloud/sampan/internal/engine/logs/ship"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// shipTail is how long a removal waits for what was printed last to reach the collector.
const shipTail = 2 * time.Second

// shipping is the sending of one run's log to a collector.
type shipping struct {
	stop context.CancelFunc
	done chan struct{}
}

// end stops the sending. What is left is sent by the next run, or never.
func (s *shipping) end() {
	if s != nil {
		s.stop()
		<-s.done
	}
}

// finish gives the sending a little time to come to its end, and then stops it.
func (s *shipping) finish() {
	if s == nil {
		return
	}
	select {
	case <-s.done:
	case <-time.After(shipTail):
	}
	s.end()
}

// prepareLog says how the keeper is to log the run that is about to start, and connects to the collector, if there is
// one: a container whose log cannot be delivered does not start. The caller holds c.mu.
func (m *Manager) prepareLog(c *ctr, u *undo.Stack) (keeper.LogSpec, error) {
	spec, err := logSpec(c.rec.Config.Host.Log, c.rec.LogPath)
	if err != nil {
		return spec, err
	}
	about, err := describe(&c.rec.Container)
	if err != nil {
		return spec, err
	}
	if spec.Attrs = maps.Clone(about.Attrs); c.rec.Config.Host.Log.Options["tag"] != "" {
		if spec.Attrs == nil {
			spec.Attrs = map[string]string{}
		}
		spec.Attrs["tag"] = about.Tag
	}
	if !ship.Known(c.rec.Config.Host.Log.Driver) {
		return spec, nil
	}
	if c.sink, err = m.collector(&c.rec.Container).Dial(about); err != nil {
		return spec, fmt.Errorf("failed to create task for container: failed to initialize logging driver: %w", err)
	}
	u.Add(func() error {
		sink := c.sink
		if c.sink = nil; sink == nil {
			return nil
		}
		return sink.Close()
	})
	return spec, nil
}

func (m *Manager) collector(c *Container) ship.Collector {
	return ship.Collector{Driver: c.Config.Host.Log.Driver, Options: collectorOptions(c.Config.Host.Log.Options), JournalSocket: m.JournalSocket}
}

// ship begins to send the log of the run that has just begun, or was taken over. The caller holds c.mu.
func (m *Manager) ship(c *ctr) {
	if !ship.Known(c.rec.Config.Host.Log.Driver) {
		return
	}
	sink := c.sink
	c.sink = nil
	log := m.log.With("container", c.id)
	about, err := describe(&c.rec.Container)
	if err != nil {
		log.Error("the container's log goes to no collector", "error", err)
		return
	}
	c.shipping.end()
	ctx, stop := context.WithCancel(m.ctx)
	sh := &shipping{stop: stop, done: make(chan struct{})}
	c.shipping = sh
	shipment := ship.Shipment{Collector: m.collector(&c.rec.Container), About: about, Path: c.rec.LogPath,
		Position: filepath.Join(c.dir, "shipped.json"), Logger: m.log}
	ended := c.run.ended
	m.background(func(context.Context) {
		defer close(sh.done)
		defer stop()
		w, err := m.watch.get()
		if err == nil {
			err = shipment.Run(ctx, w, ended, sink)
		}
		if err != nil {
			log.Error("the container's log goes to no collector any more", "error", err)
		}
	})
}

// describe is what goes with each line of a container's log.
func describe(c *Container) (ship.Container, error) {
	tag, err := parseTag(cmp.Or(c.Config.Host.Log.Options["tag"], "{{.ID}}"))
	if err != nil {
		return ship.Container{}, err
	}
	var text strings.Builder
	if err := tag.Execute(&text, tagData{c}); err != nil {
		return ship.Container{}, fault.New(fault.InvalidArgument, "invalid log opt tag: %w", err)
	}
	return ship.Container{ID: c.ID, Name: c.Config.Name, Image: c.Config.Image, Tag: text.String(), Attrs: logAttrs(c)}, nil
}

func parseTag(text string) (*template.Template, error) {
	return template.New("tag").Funcs(template.FuncMap{"split": strings.Split, "join": strings.Join, "title": strings.ToTitle,
		"lower": strings.ToLower, "upper": strings.ToUpper}).Parse(text)
}

// tagData is what a log's tag may be made of, in Docker's names.
type tagData struct{ c *Container }

func (t tagData) ID() string                         { return short(t.c.ID) }
func (t tagData) FullID() string                     { return t.c.ID }
func (t tagData) Name() string                       { return t.c.Config.Name }
func (t tagData) ImageID() string                    { return short(strings.TrimPrefix(t.c.ImageID, "sha256:")) }
func (t tagData) ImageFullID() string                { return t.c.ImageID }
func (t tagData) ImageName() string                  { return t.c.Config.Image }
func (t tagData) DaemonName() string                 { return "docker" }
func (t tagData) Hostname() (string, error)          { return os.Hostname() }
func (t tagData) Command() string                    { return strings.Join(append([]string{t.c.Path}, t.c.Args...), " ") }
func (t tagData) ExtraAttributes() map[string]string { return logAttrs(t.c) }

// logAttrs are the labels and variables that the log's options choose.
func logAttrs(c *Container) map[string]string {
	o := c.Config.Host.Log.Options
	attrs := map[string]string{}
	pick := func(list, pattern string, all map[string]string) {
		for name := range strings.SplitSeq(list, ",") {
			if v, ok := all[name]; ok {
				attrs[name] = v
			}
		}
		if pattern == "" {
			return
		}
		if re, err := regexp.Compile(pattern); err == nil {
			for name, v := range all {
				if re.MatchString(name) {
					attrs[name] = v
				}
			}
		}
	}
	pick(o["labels"], o["labels-regex"], c.Config.Labels)
	env := map[string]string{}
	for _, e := range c.Config.Env {
		if k, v, ok := strings.Cut(e, "="); ok {
			env[k] = v
		}
	}
	pick(o["env"], o["env-regex"], env)
	if len(attrs) == 0 {
		return nil
	}
	return attrs
}
