package container

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	units "github.com/docker/go-units"

	"github.com/sampan-cloud/sampan/internal/engine/logs"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

var logOptions = []string{"max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size"}

// logSpec turns a log configuration into the keeper's.
func logSpec(cfg LogConfig, path string) (keeper.LogSpec, error) {
	s := keeper.LogSpec{Driver: cfg.Driver, Path: path}
	switch cfg.Driver {
	case "none":
		return keeper.LogSpec{Driver: "none"}, nil
	case "", "json-file":
		s.Driver = "json-file"
	case "local":
		// Same promise, bounded by default; the format is ours to choose.
		s.Driver, s.MaxSize, s.MaxFiles, s.Compress = "json-file", 20<<20, 5, true
	default:
		return s, fault.New(fault.InvalidArgument, "logger: no log driver named '%s' is registered", cfg.Driver)
	}
	for k, v := range cfg.Options {
		if !slices.Contains(logOptions, k) {
			return s, fault.New(fault.InvalidArgument, "unknown log opt '%s' for %s log driver", k, cfg.Driver)
		}
		var err error
		switch k {
		case "max-size":
			if v == "-1" {
				s.MaxSize = 0
				continue
			}
			s.MaxSize, err = units.FromHumanSize(v)
			if err == nil && s.MaxSize <= 0 {
				err = fmt.Errorf("must be positive")
			}
		case "max-file":
			s.MaxFiles, err = strconv.Atoi(v)
			if err == nil && s.MaxFiles < 1 {
				err = fmt.Errorf("cannot be less than 1")
			}
		case "compress":
			s.Compress, err = strconv.ParseBool(v)
		case "labels-regex", "env-regex":
			_, err = regexp.Compile(v)
		}
		if err != nil {
			return s, fault.New(fault.InvalidArgument, "invalid log opt %s=%s: %w", k, v, err)
		}
	}
	if s.MaxSize > 0 && s.MaxFiles == 0 {
		s.MaxFiles = 1
	}
	if _, ok := cfg.Options["compress"]; ok && s.Compress && s.MaxFiles < 2 {
		return s, fault.New(fault.InvalidArgument, "compress cannot be true when max-file is less than 2 or max-size is not set")
	}
	return s, nil
}

// logAttrs are the details that go with each line, chosen by the log's options.
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
	if tag := o["tag"]; tag != "" {
		attrs["tag"] = strings.NewReplacer("{{.ID}}", short(c.ID), "{{.FullID}}", c.ID, "{{.Name}}", c.Config.Name,
			"{{.ImageName}}", c.Config.Image, "{{.ImageFullID}}", c.ImageID, "{{.ImageID}}", short(strings.TrimPrefix(c.ImageID, "sha256:"))).Replace(tag)
	}
	if len(attrs) == 0 {
		return nil
	}
	return attrs
}

// logWatch starts the watcher for followers when the first comes.
type logWatch struct {
	mu sync.Mutex
	w  *logs.Watcher
}

func (l *logWatch) get() (*logs.Watcher, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w == nil {
		w, err := logs.NewWatcher()
		if err != nil {
			return nil, err
		}
		l.w = w
	}
	return l.w, nil
}

func (l *logWatch) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w == nil {
		return nil
	}
	return l.w.Close()
}

// Logs reads a container's log. Following ends when the run that it began in has ended.
func (m *Manager) Logs(ctx context.Context, id string, o LogOptions) (LogReader, error) {
	c, err := m.find(id)
	if err != nil {
		return nil, err
	}
	if !o.Stdout && !o.Stderr {
		return nil, fault.New(fault.InvalidArgument, "You must choose at least one stream")
	}
	return m.openLog(c, o)
}

func (m *Manager) openLog(c *ctr, o LogOptions) (LogReader, error) {
	snap := c.snapshot()
	if snap.LogPath == "" {
		return nil, fault.New(fault.NotImplemented, "configured logging driver does not support reading")
	}
	lo := logs.Options{Stdout: o.Stdout, Stderr: o.Stderr, Tail: o.Tail, Since: o.Since, Until: o.Until}
	var w *logs.Watcher
	if ended := c.ended.Load(); o.Follow && ended != nil {
		var err error
		if w, err = m.watch.get(); err != nil {
			return nil, err
		}
		lo.Follow, lo.Ended = true, *ended
	}
	r, err := logs.Open(snap.LogPath, lo, w)
	if err != nil {
		return nil, errorf("log of container %s: %w", short(c.id), err)
	}
	return &logReader{r: r, details: o.Details}, nil
}

type logReader struct {
	r       *logs.Reader
	details bool
}

func (l *logReader) Next(ctx context.Context) (LogLine, error) {
	e, err := l.r.Next(ctx)
	if err != nil {
		return LogLine{}, err
	}
	line := LogLine{Stream: Stdout, Time: e.Time, Line: e.Line}
	if e.Stderr {
		line.Stream = Stderr
	}
	if l.details {
		line.Attrs = maps.Clone(e.Attrs)
	}
	return line, nil
}

func (l *logReader) Ready() bool { return l.r.Ready() }

func (l *logReader) Close() error { return l.r.Close() }
