// Package ship sends what containers print to log collectors: syslog and journald. It reads the file that the keeper
// writes anyway and remembers how far it has come, so that a collector that is away, or a daemon that is, costs nothing:
// what was printed meanwhile is sent afterwards, as long as the file's bounds hold it. After a crash of the daemon the
// last half second may be sent twice.
package ship

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/engine/logs"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// Container is what a collector is told of the container beside what it printed.
type Container struct {
	ID, Name, Image string
	Tag             string            // what it is called in the collector
	Attrs           map[string]string // labels and variables chosen by the log's options
}

// Sink is a connection to a collector. It is for one goroutine.
type Sink interface {
	Send(logs.Entry) error
	Close() error
}

// Collector says where to send.
type Collector struct {
	Driver  string // "syslog" or "journald"
	Options map[string]string
	// JournalSocket is where journald listens.
	JournalSocket string
}

// Known tells whether there is a collector of that name.
func Known(driver string) bool { return driver == "syslog" || driver == "journald" }

// Validate looks at the options as far as that can be done without connecting. Those that all drivers have are not
// its business.
func (c Collector) Validate() error {
	var err error
	switch c.Driver {
	case "syslog":
		_, err = parseSyslog(c.Options)
	case "journald":
		for k := range c.Options {
			return fault.New(fault.InvalidArgument, "unknown log opt '%s' for journald log driver", k)
		}
	}
	return fault.As(fault.InvalidArgument, err)
}

// Dial connects to the collector.
func (c Collector) Dial(about Container) (Sink, error) {
	switch c.Driver {
	case "syslog":
		return dialSyslog(c.Options, about)
	case "journald":
		return dialJournal(c.JournalSocket, about)
	}
	return nil, fault.New(fault.InvalidArgument, "logger: no log driver named '%s' is registered", c.Driver)
}

// Shipment is the log of one container on its way to a collector.
type Shipment struct {
	Collector Collector
	About     Container
	Path      string // of the log
	Position  string // of the file that holds how far it was sent
	Logger    *slog.Logger
}

// position says up to which entry a log was sent: all that are older than Time, and the first Count of that very time.
type position struct {
	Time  time.Time `json:"time"`
	Count int       `json:"count"`
}

const (
	saveAfter = 500 * time.Millisecond
	retryMin  = 100 * time.Millisecond
	retryMax  = 5 * time.Second
)

// Run sends until the run of the container has ended and all of its log is sent, or until ctx ends. It takes over sink,
// nil if there is no connection yet.
func (s *Shipment) Run(ctx context.Context, w *logs.Watcher, ended <-chan struct{}, sink Sink) error {
	defer func() {
		if sink != nil {
			_ = sink.Close()
		}
	}()
	at, err := s.load()
	if err != nil {
		return err
	}
	r, err := logs.Open(s.Path, logs.Options{Stdout: true, Stderr: true, Tail: -1, Since: at.Time, Follow: true, Ended: ended}, w)
	if err != nil {
		return fmt.Errorf("log of container %s: %w", s.About.ID, err)
	}
	defer r.Close()
	saver := &saver{path: s.Position, log: s.Logger}
	defer saver.flush()
	for passed := 0; ; {
		e, err := r.Next(ctx)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("log of container %s: %w", s.About.ID, err)
		}
		if passed < at.Count && e.Time.Equal(at.Time) {
			passed++
			continue
		}
		if sink, err = s.send(ctx, sink, e); err != nil {
			return nil // ctx has ended
		}
		if e.Time.Equal(at.Time) {
			at.Count++
			passed++
		} else {
			at, passed = position{Time: e.Time, Count: 1}, 1
		}
		saver.set(at)
	}
}

// send sends one entry, connecting again as often as that takes. An error means that ctx has ended.
func (s *Shipment) send(ctx context.Context, sink Sink, e logs.Entry) (Sink, error) {
	pause := retryMin
	for failed := false; ; failed = true {
		var err error
		if sink == nil {
			sink, err = s.Collector.Dial(s.About)
		}
		if err == nil {
			if err = sink.Send(e); err == nil {
				if failed {
					s.Logger.Info("the log collector takes entries again", "container", s.About.ID, "driver", s.Collector.Driver)
				}
				return sink, nil
			}
			_ = sink.Close()
			sink = nil
		}
		if !failed {
			s.Logger.Warn("cannot send to the log collector, trying again", "container", s.About.ID, "driver", s.Collector.Driver, "error", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		pause = min(2*pause, retryMax)
	}
}

func (s *Shipment) load() (position, error) {
	var p position
	text, err := os.ReadFile(s.Position)
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(text, &p); err != nil {
		// Torn by a crash of the host: sending all again is better than nothing.
		s.Logger.Warn("how far a log was sent is not readable, all of it is sent again", "container", s.About.ID, "error", err)
		return position{}, nil
	}
	return p, nil
}

// saver writes a position down some time after it changed, and not for each change.
type saver struct {
	path string
	log  *slog.Logger

	mu    sync.Mutex
	at    position
	timer *time.Timer // nil: what is on disk is current
}

func (s *saver) set(at position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = at
	if s.timer == nil {
		s.timer = time.AfterFunc(saveAfter, s.flush)
	}
}

func (s *saver) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == nil {
		return
	}
	s.timer.Stop()
	s.timer = nil
	text, err := json.Marshal(s.at)
	if err == nil {
		if err = os.WriteFile(s.path+".new", text, 0o600); err == nil {
			err = os.Rename(s.path+".new", s.path)
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) { // the container may have been removed
		s.log.Warn("cannot write down how far a log was sent", "error", err)
	}
}
