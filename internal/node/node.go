package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/build"
	"github.com/sampan-cloud/sampan/internal/build/host"
	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/network"
	"github.com/sampan-cloud/sampan/internal/node/config"
	"github.com/sampan-cloud/sampan/internal/node/membership"
)

// Node is a running host. It holds every part of the daemon, as the composition root does, and nothing else.
type Node struct {
	cfg  config.Config // that it was started with
	log  *slog.Logger
	host *hostInfo
	bus  *events.Bus

	keeper     *keeper.Client
	images     *image.Store
	volumes    *volume.Store
	networks   *network.Manager
	containers *container.Manager
	builds     *build.Service
	cluster    *Cluster
	listeners  []net.Listener
	agents     agentSlot

	metricsListener net.Listener // of --metrics-addr, nil without it

	reloading sync.Mutex    // guards live
	live      config.Config // what was reloaded last

	ready   bool           // it came to work
	closers []func() error // in order of start; run backwards
}

// New builds and starts everything but the API, which Run serves. When it fails, what it had started is ended again;
// containers of an earlier daemon go on either way.
func New(ctx context.Context, cfg config.Config, log *slog.Logger) (_ *Node, err error) {
	began := time.Now()
	n := &Node{cfg: cfg, live: cfg, log: log, bus: new(events.Bus), agents: agentSlot{log: log}}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	for _, note := range cfg.Notes {
		log.Warn("configuration: " + note)
	}
	if err := failpoint.EnableSpec(cfg.Failpoints); err != nil {
		return nil, err
	}
	release, err := lockPidFile(cfg.PidFile)
	if err != nil {
		return nil, err
	}
	n.onClose(func() error { release(); return nil })
	for _, dir := range [][2]string{{"--data-root", cfg.DataRoot}, {"--exec-root", cfg.ExecRoot}} {
		if err := os.MkdirAll(dir[1], 0o711); err != nil {
			return nil, fmt.Errorf("folder %s: %w: choose another with %s", dir[1], err, dir[0])
		}
		release, err := lockFolder(dir[0], dir[1])
		if err != nil {
			return nil, err
		}
		n.onClose(func() error { release(); return nil })
	}
	if cfg.Init != "" {
		if _, err := os.Stat(cfg.Init); err != nil {
			return nil, fmt.Errorf("--init-path: %w", err)
		}
	}
	id, err := hostID(cfg.DataRoot)
	if err != nil {
		return nil, err
	}
	claim, err := network.TakeClaim(cfg.DataRoot)
	if err != nil {
		return nil, err
	}
	n.onClose(claim.Close)
	n.host = newHostInfo(cfg, id)
	if err := n.openStores(ctx); err != nil {
		return nil, err
	}
	if err := n.startContainers(ctx); err != nil {
		return nil, err
	}
	if err := n.startMembership(ctx); err != nil {
		return nil, err
	}
	if n.listeners, err = listeners(cfg); err != nil {
		return nil, err
	}
	if err := n.listenMetrics(); err != nil {
		return nil, err
	}
	n.ready = true
	log.Info("sampand is ready", "version", cfg.Version, "host", n.host.base.Name, "listens", cfg.Hosts, "after", time.Since(began).Round(time.Millisecond))
	return n, nil
}

// openStores opens what does not need each other, all at once.
func (n *Node) openStores(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, 3)
	wg.Go(func() {
		n.keeper, errs[0] = keeper.Ensure(ctx, keeper.Config{Binary: n.cfg.Keeper, ExecRoot: n.cfg.ExecRoot, CgroupParent: n.cfg.CgroupParent,
			Debug: n.cfg.Debug, Failpoints: n.cfg.Failpoints, Logger: n.log})
	})
	wg.Go(func() {
		n.images, errs[1] = image.Open(image.Config{Root: filepath.Join(n.cfg.DataRoot, "image"), ExecRoot: filepath.Join(n.cfg.ExecRoot, "image"),
			Mirrors: n.cfg.Mirrors, Insecure: n.cfg.Insecure, CertDirs: n.cfg.CertDirs, Limits: n.cfg.Limits, Proxy: n.cfg.Proxy, Logger: n.log})
	})
	wg.Go(func() { n.volumes, errs[2] = volume.Open(filepath.Join(n.cfg.DataRoot, "volumes")) })
	wg.Wait()
	if n.keeper != nil {
		n.onClose(func() error {
			if n.ready {
				return n.keeper.Close()
			}
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			return n.keeper.Abandon(end)
		})
	}
	if n.images != nil {
		n.onClose(n.images.Close)
	}
	return errors.Join(errs...)
}

// startContainers brings up the networks and the engine and takes over the containers that run.
func (n *Node) startContainers(ctx context.Context) error {
	cfg := n.cfg.Networks()
	cfg.Names, cfg.Logger = n.keeper, n.log
	var err error
	if n.networks, err = network.New(cfg); err != nil {
		return err
	}
	n.onClose(n.networks.Close)
	n.volumes.Notify(func(action string, v volume.Volume) {
		n.bus.Publish(events.Event{Type: "volume", Action: action, ID: v.Name, Attrs: map[string]string{"driver": v.Driver}})
	})
	adapter := &sandboxes{networks: n.networks, defaults: n.cfg.Network, attach: n.agents.attach, detach: n.agents.detach, find: n.findNetwork}
	users, err := n.cfg.UserNS()
	if err != nil {
		return err
	}
	if users.On() {
		if err := n.images.CanShift(); err != nil {
			return fmt.Errorf("user namespaces for containers (--userns-remap, --userns): %w", err)
		}
	}
	n.containers, err = container.New(container.ManagerConfig{
		Root: filepath.Join(n.cfg.DataRoot, "containers"), ExecRoot: n.cfg.ExecRoot, CgroupParent: n.cfg.CgroupParent,
		DefaultLog: container.LogConfig{Driver: n.cfg.LogDriver, Options: n.cfg.LogOpts}, Defaults: n.cfg.Defaults, Logger: n.log,
		Keeper: n.keeper, Images: n.images, Volumes: n.volumes, Networks: adapter, Events: n.bus, InitPath: findInit(n.cfg.Init),
		HostGateway: n.cfg.Network.HostGateways(), CDISpecDirs: n.cfg.CDISpecDirs, UserNS: users,
	})
	if err != nil {
		return err
	}
	n.onClose(n.containers.Close)
	adapter.get = n.containers.Get
	if err := n.containers.Restore(ctx); err != nil {
		return err
	}
	sandboxes, rootfs := n.containers.Held()
	n.networks.Keep(sandboxes)
	n.builds = build.New(build.Config{Binary: n.cfg.Builder, Root: filepath.Join(n.cfg.DataRoot, "build"), ExecRoot: filepath.Join(n.cfg.ExecRoot, "build"),
		Idle: n.cfg.BuilderIdle, Logger: n.log,
		Options: build.Options{Mirrors: n.cfg.Mirrors, Insecure: n.cfg.Insecure, CertDirs: n.cfg.CertDirs, Environ: n.cfg.ProxyEnviron, HostGateway: n.hostGateway, Settings: n.cfg.BuildSettings, Debug: n.cfg.Debug, Version: n.cfg.Version},
		Host:    host.Config{Store: n.images.Share(n.imageBuilt), Keeper: n.keeper, Networks: &stepNetworks{n.networks}, CgroupParent: n.cfg.CgroupParent}})
	n.onClose(n.builds.Close)
	// What a crash left of images and root file systems is tidied away behind the start.
	tidy, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.images.Keep(tidy, rootfs); err != nil && tidy.Err() == nil {
			n.log.Warn("tidy up images and root file systems", "error", err)
		}
	}()
	n.onClose(func() error { stop(); <-done; return nil })
	return nil
}

// startMembership takes up the host's part in its cluster, if it has one. It waits for no other host.
func (n *Node) startMembership(ctx context.Context) error {
	var err error
	n.cluster, err = NewCluster(membership.Config{DataRoot: n.cfg.DataRoot, Hostname: n.host.base.Name, Logger: n.log, OwnSubnets: n.ownSubnets,
		Hooks: membership.Hooks{NodeStarted: n.startAgent, Left: n.left}}, n.startManager)
	if err != nil {
		return err
	}
	n.cluster.advertise = n.cfg.SwarmAdvertise
	if err := n.cluster.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	n.onClose(func() error { n.cluster.Stop(); return nil })
	return nil
}

func (n *Node) onClose(f func() error) { n.closers = append(n.closers, f) }

func (n *Node) close() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	return errors.Join(errs...)
}

// ownSubnets are the subnets of this host's own bridges.
func (n *Node) ownSubnets() []netip.Prefix {
	var all []netip.Prefix
	for _, net := range n.networks.List() {
		if net.Scope == network.ScopeLocal {
			for _, s := range net.Subnets {
				all = append(all, s.Subnet)
			}
		}
	}
	return all
}

// findInit returns the program of --init: the configured one, or that beside this program or in the PATH; "" if there is
// none.
func findInit(configured string) string {
	if configured != "" {
		return configured
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "sampan-init")
		if _, err := os.Stat(beside); err == nil {
			return beside
		}
	}
	path, err := exec.LookPath("sampan-init")
	if err != nil {
		return ""
	}
	return path
}

// hostID is the host's own random ID, made at the first start.
func hostID(dataRoot string) (string, error) {
	path := filepath.Join(dataRoot, "host-id")
	text, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(text)); err == nil && id != "" {
		return id, nil
	}
	id := cloud.NewID()
	return id, os.WriteFile(path, []byte(id+"\n"), 0o644)
}
