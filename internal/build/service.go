// Package build is the daemon's side of building images. The work is done by sampan-builder, a program of its own with
// BuildKit in it: it is started when somebody first builds, is given the inside of the image store and the running of
// steps (internal/build/host) on a connection that only the two have, and ends when it has had nothing to do for a
// while. Requests of clients are handed on to it as they are. The program is internal/build/builder.
package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/build/host"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// Config says which builder to start and what it works with.
type Config struct {
	// Binary is the sampan-builder program. Empty: beside the running program, then in the PATH.
	Binary string
	// Root is the folder of what the builder keeps: DATA-ROOT/build. The layers themselves are in the image store.
	Root string
	// ExecRoot is a folder for what need not survive a reboot: EXEC-ROOT/build.
	ExecRoot string
	// Idle is how long a builder without work is kept.
	Idle time.Duration
	// Options are handed to the builder.
	Options Options
	Host    host.Config
	Logger  *slog.Logger
}

// Options are what the builder is told of the daemon's configuration.
type Options struct {
	Mirrors  []string // of docker.io
	Insecure []string // registries
	CertDirs []string // folders with a folder of certificates for each registry that has its own
	// Environ has the proxies, as NAME=VALUE.
	Environ []string
	// HostGateway gives the address that host-gateway stands for in extra hosts; empty: there is none.
	HostGateway func() string
	Debug       bool
	Settings    Settings
	// Version is the daemon's own.
	Version string
}

// Service starts, watches and ends the builder of this host. Its methods may be called from any goroutine.
type Service struct {
	cfg Config
	log *slog.Logger

	mu     sync.Mutex
	live   *program // nil: none runs
	closed bool
}

// New prepares the service and takes away what a builder of an earlier daemon has left. It starts nothing.
func New(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Idle == 0 {
		cfg.Idle = 5 * time.Minute
	}
	cfg.Host.Logger = cfg.Logger
	s := &Service{cfg: cfg, log: cfg.Logger.With("component", "build")}
	s.sweep()
	return s
}

// Close ends the builder: what it was building fails.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	p := s.live
	s.mu.Unlock()
	if p != nil {
		p.mu.Lock()
		p.ending = true
		p.mu.Unlock()
		p.end()
		<-p.done
	}
	return nil
}

// Configure changes what builders are told. One that runs does what it has to do and makes room for another.
func (s *Service) Configure(change func(*Options)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.cfg.Options)
	if s.live != nil {
		s.live.outdate()
	}
}

// sweep takes away what a builder which was killed has left below its folder for such things. None runs. Files are
// deleted only once nothing is mounted there any more: what a mount shows is somebody's layer.
func (s *Service) sweep() {
	if _, err := os.Stat(s.cfg.ExecRoot); err != nil {
		return
	}
	for range 100 { // what is mounted may itself hide other mounts
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.cfg.ExecRoot))
		if err != nil {
			s.log.Error("what a builder has left is not taken away: mounts cannot be read", "error", err)
			return
		}
		if len(mounts) == 0 {
			if err := os.RemoveAll(s.cfg.ExecRoot); err != nil {
				s.log.Warn("files that a builder left", "error", err)
			}
			return
		}
		for _, m := range slices.Backward(mounts) {
			if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				s.log.Warn("a mount that a builder left", "mount", m.Mountpoint, "error", err)
			}
		}
	}
	s.log.Error("what a builder has left is not taken away: its mounts stay", "folder", s.cfg.ExecRoot)
}

// take returns the builder, starting one if there is none, and counts the caller as a user of it until done is called.
func (s *Service) take(ctx context.Context) (p *program, done func(), err error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, nil, fault.New(fault.Unavailable, "the daemon is ending: builds are not taken any more")
		}
		p := s.live
		if p == nil {
			if p, err = s.start(); err != nil {
				s.mu.Unlock()
				return nil, nil, err
			}
			s.live = p
		}
		if p.use() {
			s.mu.Unlock()
			return p, p.leave, nil
		}
		s.mu.Unlock()
		select { // it is ending for want of work: the next one can start when it has gone
		case <-p.done:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// Forward hands a client's request to the builder, and the answer back, connections that change their protocol included.
func (s *Service) Forward(w http.ResponseWriter, r *http.Request) error {
	p, done, err := s.take(r.Context())
	if err != nil {
		return refuse(w, r, err)
	}
	defer done()
	return p.forward(w, r)
}

// Record is a piece of what the builder keeps to build faster.
type Record struct {
	ID          string
	Parents     []string
	Type        string
	Description string
	InUse       bool
	Shared      bool
	Size        int64 // bytes
	CreatedAt   time.Time
	LastUsedAt  *time.Time
	UsageCount  int
}

// Usage lists what the builder keeps. A builder that has never built is not started for it.
func (s *Service) Usage(ctx context.Context) ([]Record, error) {
	if _, err := os.Stat(filepath.Join(s.cfg.Root, "cache.db")); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var out []Record
	return out, s.ask(ctx, "/usage", nil, &out)
}

// PruneRequest says what of the builder's cache may go.
type PruneRequest struct {
	All           bool
	KeepDuration  time.Duration // what was used since is kept
	ReservedSpace int64         // bytes
	MaxUsedSpace  int64         // bytes
	MinFreeSpace  int64         // bytes
	Filter        []string      // BuildKit's: id~=…, type==…
}

// PruneReport is what went.
type PruneReport struct {
	IDs   []string
	Freed int64 // bytes
}

// Prune removes what the builder keeps and r allows to go.
func (s *Service) Prune(ctx context.Context, r PruneRequest) (PruneReport, error) {
	var out PruneReport
	if _, err := os.Stat(filepath.Join(s.cfg.Root, "cache.db")); errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	return out, s.ask(ctx, "/prune", r, &out)
}

// ask makes a request of the daemon's own to the builder.
func (s *Service) ask(ctx context.Context, path string, in, out any) error {
	p, done, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	body, wr := io.Pipe()
	go func() { _ = wr.CloseWithError(json.NewEncoder(wr).Encode(in)) }()
	defer body.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://builder"+path, body)
	if err != nil {
		return err
	}
	res, err := p.transport.RoundTrip(req)
	if err != nil {
		return p.broken(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		return fmt.Errorf("builder: %s", text)
	}
	return json.NewDecoder(res.Body).Decode(out)
}

// listen makes the socket that the builder answers at. Only root reaches it, by its folder.
func listen(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	return l.File()
}
