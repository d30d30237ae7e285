package container

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// ManagerConfig is what a Manager works with.
type ManagerConfig struct {
	Root         string // DATA-ROOT/containers: a folder for each container
	ExecRoot     string // mount points and what a reboot may take
	CgroupParent string // default "/sampan"; a container's own CgroupParent replaces it
	DefaultLog   LogConfig
	Defaults     Defaults // at first; SetDefaults replaces them
	// InitPath is the small init that --init puts before the user's process; empty: --init has no effect, with a warning.
	InitPath string
	// HostGateway is what "host-gateway" in ExtraHosts stands for; empty: the gateway of the container's first network.
	HostGateway []netip.Addr
	// JournalSocket is where journald listens, for the log driver of that name; empty: systemd's own.
	JournalSocket string
	// CDISpecDirs hold the descriptions of devices that containers may ask for; empty: /etc/cdi and /var/run/cdi.
	CDISpecDirs []string
	Logger      *slog.Logger
	Keeper      Keeper
	Images      Images
	Volumes     Volumes
	Networks    Networks
	Events      Events
	UserNS      UserNS
}

// Manager owns the containers of one host. Its methods may be called from any goroutine. A container has one lock,
// held over every change of its state; readers never wait for it, they see the newest published copy.
type Manager struct {
	ManagerConfig
	log *slog.Logger

	mu     sync.RWMutex // guards the maps
	byID   map[string]*ctr
	byName map[string]string // name to ID; also while a container is being created
	execs  map[string]*execution

	watch  logWatch
	checks checks

	defaults atomic.Pointer[Defaults]

	ids     *idPool
	devices deviceSpecs

	host  host          // what the kernel and this process may give to containers
	youth time.Duration // so long signals may wait for programs that have just started

	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // background work of this daemon: restarts, health checks, exits
}

// New opens the folder of containers. Nothing runs until Restore, which must be called once before anything is started.
// A container whose folder cannot be read is reported and left alone.
func New(cfg ManagerConfig) (*Manager, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "/sampan"
	}
	if cfg.JournalSocket == "" {
		cfg.JournalSocket = "/run/systemd/journal/socket"
	}
	if cfg.DefaultLog.Driver == "" {
		cfg.DefaultLog.Driver = "json-file"
	}
	if _, err := logSpec(cfg.DefaultLog, ""); err != nil {
		return nil, fmt.Errorf("log driver of containers that choose none: %w", err)
	}
	for _, d := range []string{cfg.Root, cfg.execDir()} {
		if err := os.MkdirAll(d, 0o710); err != nil {
			return nil, fmt.Errorf("container folder: %w", err)
		}
	}
	// The root of a user namespace must get through to its own container's folder, which nobody else may enter.
	if err := os.Chmod(cfg.execDir(), 0o711); err != nil {
		return nil, fmt.Errorf("container folder: %w", err)
	}
	m := &Manager{
		ManagerConfig: cfg,
		log:           cfg.Logger,
		byID:          map[string]*ctr{},
		byName:        map[string]string{},
		execs:         map[string]*execution{},
		host:          probeHost(),
		youth:         youth,
		ids:           newIDPool(cfg.UserNS.Pool),
	}
	if m.devices.dirs = cfg.CDISpecDirs; len(m.devices.dirs) == 0 {
		m.devices.dirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	if err := m.SetDefaults(cfg.Defaults); err != nil {
		return nil, err
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if err := m.load(); err != nil {
		return nil, err
	}
	return m, nil
}

// Close ends the manager's own work and leaves every container running.
func (m *Manager) Close() error {
	m.cancel()
	m.wg.Wait()
	return m.watch.close()
}

func (c ManagerConfig) execDir() string { return filepath.Join(c.ExecRoot, "containers") }

// Get finds a container by full ID, name, or unique ID prefix, in that order.
func (m *Manager) Get(id string) (Container, error) {
	c, err := m.find(id)
	if err != nil {
		return Container{}, err
	}
	s := c.snapshot()
	s.ExecIDs = m.runningExecs(c.id)
	return s, nil
}

// Inspect is Get that does not show a container between the two halves of a Restart: it waits for the second. Compose asks
// when a container has died whether that is its end, and goes on to show the output of one that is running again.
func (m *Manager) Inspect(ctx context.Context, id string) (Container, error) {
	c, err := m.find(id)
	if err != nil {
		return Container{}, err
	}
	if over := c.manualRestart.Load(); over != nil && !c.snapshot().State.Running {
		select {
		case <-*over:
		case <-ctx.Done():
			return Container{}, ctx.Err()
		}
	}
	s, err := m.Get(c.id)
	s.Config.Host.Ulimits = m.defaults.Load().ulimits(s.Config.Host.Ulimits)
	return s, err
}

// List returns every container, the newest first.
func (m *Manager) List() []Container {
	m.mu.RLock()
	all := make([]Container, 0, len(m.byID))
	for _, c := range m.byID {
		all = append(all, c.snapshot())
	}
	m.mu.RUnlock()
	slices.SortFunc(all, func(a, b Container) int {
		if n := b.Created.Compare(a.Created); n != 0 {
			return n
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all
}

func (m *Manager) find(ref string) (*ctr, error) {
	if ref == "" {
		return nil, fault.New(fault.InvalidArgument, "No container name or ID supplied")
	}
	if strings.Contains(strings.TrimPrefix(ref, "/"), "/") {
		target, _, err := m.linked(ref)
		return target, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if c, ok := m.byID[ref]; ok {
		return c, nil
	}
	if id, ok := m.byName[strings.TrimPrefix(ref, "/")]; ok {
		if c, ok := m.byID[id]; ok {
			return c, nil
		}
	}
	var found *ctr
	for id, c := range m.byID {
		if !strings.HasPrefix(id, ref) {
			continue
		}
		if found != nil {
			return nil, fault.New(fault.InvalidArgument, "Multiple IDs found with provided prefix: %s", ref)
		}
		found = c
	}
	if found == nil {
		return nil, fault.New(fault.NotFound, "No such container: %s", ref)
	}
	return found, nil
}

// all returns the containers themselves.
func (m *Manager) all() []*ctr {
	m.mu.RLock()
	defer m.mu.RUnlock()
	cs := make([]*ctr, 0, len(m.byID))
	for _, c := range m.byID {
		cs = append(cs, c)
	}
	return cs
}

// background runs f unless the manager is closed; Close waits for it.
func (m *Manager) background(f func(ctx context.Context)) {
	if m.ctx.Err() != nil {
		return
	}
	m.wg.Go(func() { f(m.ctx) })
}
