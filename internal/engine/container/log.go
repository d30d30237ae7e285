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
	"github.com/sampan-cloud/sampan/internal/engine/logs/ship"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// LogDrivers are the names that LogConfig.Driver may have.
var LogDrivers = []string{"journald", "json-file", "local", "none", "syslog"}

// fileOptions are about the file that the keeper writes; where that is what a collector is fed from, their names begin
// with cachePrefix. lineOptions choose what goes with each line; they, like modeOptions, which say what happens when the
// log cannot be written as fast as the container prints, are common to all drivers.
var (
	fileOptions = []string{"max-size", "max-file", "compress"}
	lineOptions = []string{"labels", "labels-regex", "env", "env-regex", "tag"}
	modeOptions = []string{"mode", "max-buffer-size"}
)

const cachePrefix = "cache-"

// collectorOptions are the options that are the collector's own.
func collectorOptions(o map[string]string) map[string]string {
	own := maps.Clone(o)
	maps.DeleteFunc(own, func(k, _ string) bool {
		return strings.HasPrefix(k, cachePrefix) || slices.Contains(lineOptions, k) || slices.Contains(modeOptions, k)
	})
	return own
}

// CheckLog says what is wrong with a log configuration.
func CheckLog(cfg LogConfig) error {
	_, err := logSpec(cfg, "")
	return err
}

// logSpec turns a log configuration into the keeper's.
func logSpec(cfg LogConfig, path string) (keeper.LogSpec, error) {
	s := keeper.LogSpec{Driver: "json-file", Path: path}
	prefix := ""
	known := slices.Concat(lineOptions, modeOptions)
	switch {
	case cfg.Driver == "none":
		return keeper.LogSpec{Driver: "none"}, nil
	case cfg.Driver == "" || cfg.Driver == "json-file":
	case cfg.Driver == "local":
		// Same promise, bounded by default; the format is ours to choose.
		s.MaxSize, s.MaxFiles, s.Compress = 20<<20, 5, true
	case ship.Known(cfg.Driver):
		s.MaxSize, s.MaxFiles, s.Compress = 20<<20, 5, true
		prefix = cachePrefix
		own := collectorOptions(cfg.Options)
		if err := (ship.Collector{Driver: cfg.Driver, Options: own}).Validate(); err != nil {
			return s, err
		}
		known = append(slices.AppendSeq(known, maps.Keys(own)), cachePrefix+"disabled")
	default:
		return s, fault.New(fault.InvalidArgument, "logger: no log driver named '%s' is registered", cfg.Driver)
	}
	for _, k := range fileOptions {
		known = append(known, prefix+k)
	}
	for k, v := range cfg.Options {
		if !slices.Contains(known, k) {
			return s, fault.New(fault.InvalidArgument, "unknown log opt '%s' for %s log driver", k, cfg.Driver)
		}
		var err error
		switch strings.TrimPrefix(k, prefix) {
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
		case "disabled":
			_, err = strconv.ParseBool(v)
		case "labels-regex", "env-regex":
			_, err = regexp.Compile(v)
		case "tag":
			_, err = parseTag(v)
		}
		if err != nil {
			return s, fault.New(fault.InvalidArgument, "invalid log opt %s=%s: %w", k, v, err)
		}
	}
	if s.MaxSize > 0 && s.MaxFiles == 0 {
		s.MaxFiles = 1
	}
	if _, ok := cfg.Options[prefix+"compress"]; ok && s.Compress && s.MaxFiles < 2 {
		return s, fault.New(fault.InvalidArgument, "compress cannot be true when max-file is less than 2 or max-size is not set")
	}
	return s, nil
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
	if disabled, _ := strconv.ParseBool(snap.Config.Host.Log.Options[cachePrefix+"disabled"]); snap.LogPath == "" || disabled {
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
