package container

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/cgroup"
)

// Create makes a container from an image that is on this host: a record, a writable root file system and its volumes.
// Either all of it exists afterwards or nothing.
func (m *Manager) Create(ctx context.Context, cfg Config, platform string) (newID string, warnings []string, err error) {
	cgroup.ExpectAttach() // its start comes next, mostly
	img, err := m.Images.ForPlatform(ctx, cfg.Image, platform)
	if err != nil {
		return "", nil, err
	}
	if err := checkPlatform(cfg.Image, platform, img.OS, img.Architecture, img.Variant); err != nil {
		return "", nil, err
	}
	cfg = cloneConfig(cfg)
	if err := mergeImage(&cfg, &img); err != nil {
		return "", nil, err
	}
	m.defaults.Load().fill(&cfg.Host, m.host.cgroups)
	if warnings, err = m.validate(&cfg, false); err != nil {
		return "", warnings, err
	}
	if platform == "" {
		warnings = append(warnings, foreignPlatform(ocispec.Platform{OS: img.OS, Architecture: img.Architecture, Variant: img.Variant})...)
	}
	m.host.hidePaths(&cfg.Host)
	unlabelled(&cfg.Host)
	if err := m.checkJoins(&cfg); err != nil {
		return "", warnings, err
	}

	id := randomID() // not the result: undo steps need it after a failure, when that is empty
	if cfg.Name, err = m.reserve(cfg.Name, id); err != nil {
		return "", warnings, err
	}
	u := undo.New()
	defer func() {
		if uerr := u.Run(); uerr != nil {
			m.log.Error("undoing a failed create", "container", id, "error", uerr)
		}
	}()
	u.Add(func() error { m.release(cfg.Name, id); return nil })

	c := newCtr(id, filepath.Join(m.Root, id))
	if cfg.Hostname == "" {
		cfg.Hostname = short(id)
		if cfg.Host.NetworkMode == "host" || cfg.Host.UTSMode == "host" {
			if cfg.Hostname, err = os.Hostname(); err != nil {
				return "", warnings, err
			}
		}
	}
	cfg.Host.CgroupnsMode = m.host.cgroupns(cfg.Host.CgroupnsMode)
	args := slices.Concat(cfg.Entrypoint, cfg.Cmd)
	c.rec.Container = Container{
		ID: id, Created: time.Now().UTC(), Path: args[0], Args: args[1:], Config: cfg,
		ImageID: img.ID, ImageDigest: img.Manifest.Digest.String(), Driver: "overlayfs",
		State:        State{Status: StatusCreated},
		HostnamePath: filepath.Join(c.dir, "hostname"), HostsPath: filepath.Join(c.dir, "hosts"),
		ResolvConfPath: filepath.Join(c.dir, "resolv.conf"),
	}
	if cfg.Host.Log.Driver != "none" {
		c.rec.LogPath = filepath.Join(c.dir, id+"-json.log")
	}
	if c.rec.IDs, err = m.takeIDs(id, &cfg.Host); err != nil {
		return "", warnings, err
	}
	u.Add(func() error { m.ids.give(id, c.rec.IDs); return nil })
	if err := os.Mkdir(c.dir, 0o710); err != nil {
		return "", warnings, err
	}
	u.Add(func() error { return os.RemoveAll(c.dir) })
	if err := m.Images.PrepareRootfs(ctx, id, img.Manifest.Digest.String()); err != nil {
		return "", warnings, err
	}
	u.Add(func() error { return m.Images.RemoveRootfs(context.WithoutCancel(ctx), id) })
	if err := failpoint.Hit("engine/container.create.after-rootfs"); err != nil {
		return "", warnings, err
	}
	if err := m.planMounts(ctx, c, u); fault.Is(err, fault.NotFound) {
		return "", warnings, fault.As(fault.InvalidArgument, err) // not 404, as in checkJoins
	} else if err != nil {
		return "", warnings, err
	}
	if c.needsFill() {
		if err := m.fillFromImage(ctx, c); err != nil {
			return "", warnings, err
		}
	}
	if err := failpoint.Hit("engine/container.create.after-volumes"); err != nil {
		return "", warnings, err
	}
	if err := c.save(); err != nil {
		return "", warnings, err
	}
	m.mu.Lock()
	m.byID[id] = c
	m.mu.Unlock()
	u.Done()
	m.event(&c.rec.Container, "create")
	return id, warnings, nil
}

// fillFromImage mounts the root file system for as long as volumes are filled from it.
func (m *Manager) fillFromImage(ctx context.Context, c *ctr) error {
	target, err := m.rootfsTarget(c)
	if err != nil {
		return err
	}
	r, err := m.Images.MountRootfs(ctx, c.id, target)
	if err != nil {
		return err
	}
	defer func() {
		if err := m.Images.UnmountRootfs(context.WithoutCancel(ctx), c.id, target); err != nil {
			m.log.Warn("unmounting a root file system", "container", c.id, "error", err)
		}
		_ = os.RemoveAll(filepath.Dir(target)) // empty folders
	}()
	return m.fillVolumes(ctx, c, r.Path)
}

// rootfsTarget makes and returns the folder a container's root file system is mounted on.
func (m *Manager) rootfsTarget(c *ctr) (string, error) {
	t := filepath.Join(m.execDir(), c.id, "rootfs")
	return t, os.MkdirAll(t, 0o710)
}

func checkPlatform(ref, platform, os, arch, variant string) error {
	if platform == "" {
		return nil
	}
	want := strings.Split(platform, "/")
	have := []string{os, arch, variant}
	for i, w := range want[:min(len(want), 3)] {
		if w != "" && have[i] != "" && !strings.EqualFold(w, have[i]) {
			return fault.New(fault.NotFound, "image with reference %s was found but its platform (%s/%s) does not match the specified platform (%s)", ref, os, arch, platform)
		}
	}
	return nil
}

// foreignPlatform is the warning, if any, about an image for another platform that nobody asked for: its programs run only
// under an emulator.
func foreignPlatform(p ocispec.Platform) []string {
	own := platforms.DefaultSpec()
	n := platforms.Normalize(p)
	if platforms.Only(own).Match(p) || p.Variant == "" && n.OS == own.OS && n.Architecture == own.Architecture {
		return nil
	}
	return []string{fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested",
		platforms.FormatAll(p), platforms.FormatAll(own))}
}

// cloneConfig copies what Create will change, so that the caller keeps its own.
func cloneConfig(c Config) Config {
	c.Labels = maps.Clone(c.Labels)
	c.Env = slices.Clone(c.Env)
	c.Volumes = slices.Clone(c.Volumes)
	c.ExposedPorts = slices.Clone(c.ExposedPorts)
	c.Network.Endpoints = maps.Clone(c.Network.Endpoints)
	return c
}

// checkJoins makes sure that the containers whose namespaces are to be joined exist, and names them by ID. One whose
// network is to be joined may be made later, the start looks for it.
func (m *Manager) checkJoins(cfg *Config) error {
	for _, mode := range []*string{&cfg.Host.NetworkMode, &cfg.Host.IpcMode, &cfg.Host.PidMode} {
		ref, ok := strings.CutPrefix(*mode, "container:")
		if !ok {
			continue
		}
		other, err := m.find(ref)
		if fault.Is(err, fault.NotFound) && mode == &cfg.Host.NetworkMode {
			continue
		}
		if err != nil {
			// Not 404: that tells clients of a missing image, and they pull it.
			return fault.As(fault.InvalidArgument, err)
		}
		*mode = "container:" + other.id
	}
	return m.resolveLinks(&cfg.Host)
}
