package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/sys/thread"
)

// The real things satisfy what this package asks for.
var (
	_ Keeper  = (*keeper.Client)(nil)
	_ Volumes = (*volume.Store)(nil)
	_ Images  = (*image.Store)(nil)
)

// patience bounds every wait of a test; it is only reached when something is broken.
const patience = 60 * time.Second

// built are the programs the tests run: the keeper and the one in the containers.
var built struct {
	once         sync.Once
	dir          string
	keeper, prog string
	err          error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes namespaces, mounts and cgroups")
	}
}

func build(t testing.TB) {
	t.Helper()
	built.once.Do(func() {
		built.dir, built.err = os.MkdirTemp("", "sampan-container-test-")
		if built.err != nil {
			return
		}
		built.keeper, built.prog = filepath.Join(built.dir, "sampan-keeper"), filepath.Join(built.dir, "prog")
		for _, args := range [][]string{
			{"build", "-tags", "seccomp", "-o", built.keeper, "github.com/sampan-cloud/sampan/cmd/sampan-keeper"},
			{"build", "-o", built.prog, "./testdata/prog"},
		} {
			cmd := exec.Command("go", args...)
			if args[1] == "-o" {
				cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				built.err = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
				return
			}
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
}

// bed is a host for containers: a real keeper, real volumes, images made of one folder, and namespaces with a loopback
// interface for networks.
type bed struct {
	t        testing.TB
	dir      string
	cgroup   string
	client   *keeper.Client
	images   *folderImages
	networks *nsNetworks
	bus      *events.Bus
	m        *Manager
	wrap     func(Keeper) Keeper // puts something between manager and keeper, from the next open on
}

func newBed(t testing.TB) *bed {
	t.Helper()
	requireRoot(t)
	build(t)
	dir, err := os.MkdirTemp("", "sct-")
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, dir: dir, bus: &events.Bus{}, cgroup: fmt.Sprintf("/sampan-test-container-%d-%s", os.Getpid(), filepath.Base(dir))}
	b.images = newFolderImages(t, filepath.Join(dir, "images"))
	b.networks = &nsNetworks{dir: filepath.Join(dir, "netns"), held: map[string]bool{}}
	b.client, err = keeper.Ensure(t.Context(), keeper.Config{Binary: built.keeper, ExecRoot: filepath.Join(dir, "run"), CgroupParent: b.cgroup, Logger: testLog(t), Debug: true})
	if err != nil {
		t.Fatal(err)
	}
	b.open()
	t.Cleanup(b.close)
	return b
}

// open starts a manager, as a daemon's start does.
func (b *bed) open() {
	b.t.Helper()
	vols, err := volume.Open(filepath.Join(b.dir, "volumes"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.m, err = New(ManagerConfig{Root: filepath.Join(b.dir, "containers"), ExecRoot: filepath.Join(b.dir, "run"), CgroupParent: b.cgroup,
		Logger: testLog(b.t), Keeper: b.keeper(), Images: b.images, Volumes: vols, Networks: b.networks, Events: b.bus})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.m.Restore(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) keeper() Keeper {
	if b.wrap == nil {
		return b.client
	}
	return b.wrap(b.client)
}

func (b *bed) close() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, c := range b.m.List() {
		if err := b.m.Remove(ctx, c.ID, true, true, false); err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
			b.t.Errorf("removing container %s: %v", c.Config.Name, err)
		}
	}
	if err := b.m.Close(); err != nil {
		b.t.Error(err)
	}
	if left, err := b.client.List(ctx); err != nil || len(left) > 0 {
		b.t.Errorf("left in the keeper: %v %v", left, err)
	}
	if err := b.client.Shutdown(ctx); err != nil {
		b.t.Errorf("ending the keeper: %v", err)
	}
	b.networks.mu.Lock()
	for id := range b.networks.held {
		b.t.Errorf("network of %s not given back", id)
	}
	b.networks.mu.Unlock()
	for _, mi := range b.mounts() {
		b.t.Errorf("mount left: %s", mi)
		_ = unix.Unmount(mi, unix.MNT_DETACH)
	}
	// The keeper and the runtime make the parent in every hierarchy there is, named ones too.
	parents, _ := filepath.Glob("/sys/fs/cgroup/*" + b.cgroup)
	for _, p := range append(parents, "/sys/fs/cgroup"+b.cgroup) {
		var dirs []string
		_ = filepath.WalkDir(p, func(dir string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, dir)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil {
				b.t.Errorf("group left: %v", err)
			}
		}
	}
	if logs, _ := filepath.Glob(b.dir + "/*/keeper.log"); b.t.Failed() && len(logs) > 0 {
		text, _ := os.ReadFile(logs[0])
		b.t.Logf("the keeper's log:\n%s", text)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		b.t.Error(err)
	}
}

// mounts are the mount points below the bed.
func (b *bed) mounts() []string {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(b.dir))
	if err != nil {
		b.t.Error(err)
	}
	var out []string
	for _, mi := range infos {
		out = append(out, mi.Mountpoint)
	}
	return out
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	defer func() { _ = recover() }() // a log line after the test's end
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// create makes a container that runs prog with args.
func (b *bed) create(cfg Config, args ...string) string {
	b.t.Helper()
	if cfg.Image == "" {
		cfg.Image = "prog"
	}
	if len(args) > 0 {
		cfg.Cmd = args
	}
	id, _, err := b.m.Create(b.t.Context(), cfg, "")
	if err != nil {
		b.t.Fatalf("create: %v", err)
	}
	return id
}

func (b *bed) start(id string) {
	b.t.Helper()
	if err := b.m.Start(b.t.Context(), id); err != nil {
		b.t.Fatalf("start: %v", err)
	}
}

// run creates and starts.
func (b *bed) run(cfg Config, args ...string) string {
	b.t.Helper()
	id := b.create(cfg, args...)
	b.start(id)
	return id
}

// ready waits until the container has printed a line that contains text.
func (b *bed) ready(id, text string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	r, err := b.m.Logs(ctx, id, LogOptions{Stdout: true, Stderr: true, Follow: true, Tail: -1})
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	for {
		l, err := r.Next(ctx)
		if err != nil {
			b.t.Fatalf("container did not print %q: %v", text, err)
		}
		if strings.Contains(string(l.Line), text) {
			return
		}
	}
}

// wait waits for a container's end and returns its code.
func (b *bed) wait(id, condition string) int {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	code, _, err := b.m.Wait(ctx, id, condition, nil)
	if err != nil {
		b.t.Fatalf("wait: %v", err)
	}
	return code
}

// output is everything in a container's log.
func (b *bed) output(id string) string {
	b.t.Helper()
	r, err := b.m.Logs(b.t.Context(), id, LogOptions{Stdout: true, Stderr: true, Tail: -1})
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	var out strings.Builder
	for {
		l, err := r.Next(b.t.Context())
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			b.t.Fatal(err)
		}
		out.Write(l.Line)
	}
}

// runOut runs prog to its end and returns what it printed.
func (b *bed) runOut(cfg Config, args ...string) string {
	b.t.Helper()
	id := b.run(cfg, args...)
	b.wait(id, "not-running")
	return b.output(id)
}

// eventually waits for an event after which ok holds; it is checked at once too.
func (b *bed) eventually(what string, ok func() bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	_, next := b.bus.Subscribe(ctx, time.Time{})
	for !ok() {
		select {
		case _, open := <-next:
			if !open {
				b.t.Fatalf("never: %s", what)
			}
		case <-ctx.Done():
			b.t.Fatalf("never: %s", what)
		}
	}
}

// actions are the events of a container so far.
func (b *bed) actions(id string) []string {
	ctx, cancel := context.WithCancel(b.t.Context())
	cancel()
	past, _ := b.bus.Subscribe(ctx, time.Unix(1, 0))
	var out []string
	for _, e := range past {
		if e.ID == id {
			out = append(out, e.Action)
		}
	}
	return out
}

func (b *bed) state(id string) State {
	b.t.Helper()
	c, err := b.m.Get(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return c.State
}

// folderImages gives every container an overlay on one folder.
type folderImages struct {
	dir string

	mu     sync.Mutex
	images map[string]image.Image
}

func newFolderImages(t testing.TB, dir string) *folderImages {
	t.Helper()
	f := &folderImages{dir: dir, images: map[string]image.Image{}}
	lower := filepath.Join(dir, "lower")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "data/deep", "data/links"} {
		if err := os.MkdirAll(filepath.Join(lower, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	prog, err := os.ReadFile(built.prog)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"etc/passwd":     "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
		"etc/group":      "root:x:0:\nalice:x:1000:\nstaff:x:50:alice\nextra:x:77:\n",
		"data/deep/file": "from the image",
	} {
		if err := os.WriteFile(filepath.Join(lower, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(lower, "bin/prog"), prog, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(lower, "data"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(lower, "data/links/abs")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../../../../etc", filepath.Join(lower, "data/links/up")); err != nil {
		t.Fatal(err)
	}
	f.images["prog"] = image.Image{ID: "sha256:" + strings.Repeat("a", 64), OS: "linux", Architecture: runtime.GOARCH,
		Config: ocispec.ImageConfig{Entrypoint: []string{"/bin/prog"}, Cmd: []string{"wait"}, Env: []string{"FROM=image", "PATH=/bin"}}}
	return f
}

func (f *folderImages) Get(_ context.Context, ref string) (image.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	img, ok := f.images[ref]
	if !ok {
		return image.Image{}, fault.New(fault.NotFound, "No such image: %s", ref)
	}
	return img, nil
}

func (f *folderImages) ForPlatform(ctx context.Context, ref, _ string) (image.Image, error) {
	return f.Get(ctx, ref)
}

func (f *folderImages) of(id string) string { return filepath.Join(f.dir, "of", id) }

func (f *folderImages) PrepareRootfs(_ context.Context, id, _ string) error {
	return errors.Join(os.MkdirAll(filepath.Join(f.of(id), "upper"), 0o755), os.MkdirAll(filepath.Join(f.of(id), "work"), 0o755))
}

func (f *folderImages) MountRootfs(_ context.Context, id, target string) (image.Rootfs, error) {
	r := image.Rootfs{Path: target, Upper: filepath.Join(f.of(id), "upper")}
	if on, err := mountinfo.Mounted(target); err == nil && on {
		return r, nil
	}
	return r, unix.Mount("overlay", target, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s",
		filepath.Join(f.dir, "lower"), r.Upper, filepath.Join(f.of(id), "work")))
}

func (f *folderImages) MountRootfsShifted(ctx context.Context, id, target string, _ *os.File) (image.Rootfs, error) {
	return f.MountRootfs(ctx, id, target)
}

func (f *folderImages) UnmountRootfs(_ context.Context, _, target string) error {
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return err
	}
	return nil
}

func (f *folderImages) RemoveRootfs(_ context.Context, id string) error {
	return os.RemoveAll(f.of(id))
}

func (f *folderImages) RootfsUsage(context.Context, string) (rw, total int64, err error) {
	return 10, 100, nil
}

func (f *folderImages) RootfsDiff(context.Context, string) ([]image.Change, error) { return nil, nil }

func (f *folderImages) ExportLayer(context.Context, string, io.Writer) error { return nil }

func (f *folderImages) Commit(_ context.Context, r image.CommitRequest) (image.Image, error) {
	img := r.Config
	img.ID = "sha256:" + strings.Repeat("b", 64)
	return img, nil
}

// nsNetworks gives every container a namespace with a loopback interface.
type nsNetworks struct {
	dir string

	mu   sync.Mutex
	held map[string]bool

	detaching func(id string)                 // if set, called first of all by Detach
	renaming  func(ctx context.Context) error // if set, called by Rename
}

func (n *nsNetworks) Attach(_ context.Context, c Container, _ string) (Attachment, error) {
	if c.Config.Host.NetworkMode == "host" {
		return Attachment{}, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return Attachment{}, err
	}
	path := filepath.Join(n.dir, c.ID)
	if !n.held[c.ID] {
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			return Attachment{}, err
		}
		err := thread.Throwaway(func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		})
		if err != nil {
			return Attachment{}, err
		}
		n.held[c.ID] = true
	}
	if c.Config.Network.Left != "" {
		return Attachment{SandboxID: c.ID, NetNS: path}, nil
	}
	if c.Config.Host.NetworkMode == "none" {
		return Attachment{SandboxID: c.ID, NetNS: path, Endpoints: map[string]Endpoint{"none": {NetworkID: "n", NetworkName: "none"}}}, nil
	}
	return Attachment{SandboxID: c.ID, NetNS: path, ResolvConf: []byte("nameserver 127.0.0.11\n"), Hosts: []string{"172.30.0.2\t" + c.Config.Hostname},
		Endpoints: map[string]Endpoint{"bridge": {NetworkID: "b", NetworkName: "bridge", IPv4: netip.MustParsePrefix("172.30.0.2/16"), Gateway4: netip.MustParseAddr("172.30.0.1")}}}, nil
}

func (n *nsNetworks) Detach(_ context.Context, id string) error {
	if n.detaching != nil {
		n.detaching(id)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.held[id] {
		return nil
	}
	delete(n.held, id)
	path := filepath.Join(n.dir, id)
	return errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path))
}

func (n *nsNetworks) Connect(_ context.Context, _, network string, e EndpointConfig) (Endpoint, error) {
	return Endpoint{Config: e, NetworkID: network, NetworkName: "other", IPv4: netip.MustParsePrefix("172.31.0.2/16")}, nil
}

func (n *nsNetworks) Rename(ctx context.Context, _, _ string) error {
	if n.renaming == nil {
		return nil
	}
	return n.renaming(ctx)
}

func (n *nsNetworks) ResolvConf(string) []byte { return nil }

func (n *nsNetworks) Ports(string) []BoundPort { return nil }

func (n *nsNetworks) Disconnect(context.Context, string, string) error { return nil }

func (n *nsNetworks) ResolveNetwork(ref string) (id, name string, err error) {
	all := map[string]string{"bridge": "b", "default": "b", "other": "o", "none": "n", "host": "h"}
	for name, id := range all {
		if ref == name || ref == id {
			if name == "default" {
				name = "bridge"
			}
			return id, name, nil
		}
	}
	return "", "", fault.New(fault.NotFound, "network %s not found", ref)
}

// readAll reads a stream to its end.
func readAll(t testing.TB, s Stream) (stdout, stderr string) {
	t.Helper()
	var out [3]strings.Builder
	for {
		n, b, err := s.Next()
		if errors.Is(err, io.EOF) {
			return out[Stdout].String(), out[Stderr].String()
		}
		if err != nil {
			t.Fatalf("stream: %v", err)
		}
		out[n].Write(b)
	}
}

func contains(t *testing.T, have []string, want ...string) {
	t.Helper()
	i := 0
	for _, h := range have {
		if i < len(want) && h == want[i] {
			i++
		}
	}
	if i < len(want) {
		t.Fatalf("events %q do not contain %q in this order", have, want)
	}
}

func ownerOf(fi os.FileInfo) uint32 { return fi.Sys().(*syscall.Stat_t).Uid }
