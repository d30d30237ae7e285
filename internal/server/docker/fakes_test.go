package docker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
)

// lab is the API over backends in memory, on a unix socket.
type lab struct {
	socket     string
	containers *fakeContainers
	images     *fakeImages
	volumes    *fakeVolumes
	networks   *fakeNetworks
	events     *events.Bus
	swarm      *fakeSwarm
	log        *syncBuffer
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &lab{
		socket: filepath.Join(dir, "s"), events: &events.Bus{}, swarm: &fakeSwarm{}, log: &syncBuffer{},
		containers: &fakeContainers{all: map[string]*container.Container{}, streams: map[string]*fakeStream{}, execs: map[string]*container.Exec{}, exited: make(chan struct{})},
		images:     &fakeImages{all: map[string]image.Image{}}, volumes: &fakeVolumes{all: map[string]volume.Volume{}, users: map[string][]string{}},
		networks: &fakeNetworks{all: map[string]network.Network{}},
	}
	for i, name := range []string{"bridge", "host", "none"} {
		id := strings.Repeat(fmt.Sprint(i), 64)
		l.networks.all[id] = network.Network{ID: id, Scope: network.ScopeLocal, Spec: network.Spec{Name: name, Driver: name, IPv4: true}}
	}
	listener, err := net.Listen("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: New(Config{
		Containers: l.containers, Images: l.images, Volumes: l.volumes, Networks: l.networks, Events: l.events, Swarm: l.swarm,
		Host: fakeHost{}, Registry: fakeRegistry{}, Logger: slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})}
	go server.Serve(listener) //nolint:errcheck // closed at the end
	t.Cleanup(func() { server.Close() })
	return l
}

func (l *lab) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(client.WithHost("unix://" + l.socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// do sends a raw request and returns the answer's status, headers and body.
func (l *lab) do(t *testing.T, method, path, contentType, body string) (int, http.Header, string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.socket)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://d"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	out, _ := io.ReadAll(res.Body)
	return res.StatusCode, res.Header, string(out)
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type fakeHost struct{}

func (fakeHost) Info() HostInfo {
	return HostInfo{
		ID: "host-id", Name: "host-1", DataRoot: "/var/lib/sampan", Driver: "overlayfs", KernelVersion: "6.1.0", OperatingSystem: "Debian", Architecture: "x86_64",
		NCPU: 2, MemTotal: 4 << 30, CgroupDriver: "cgroupfs", CgroupVersion: "2", Version: "1.2.3", GitCommit: "abc", Labels: []string{"rack=1"},
		DefaultAddressPools: []AddressPool{{Base: netip.MustParsePrefix("172.17.0.0/12"), Size: 16}}, Components: []Component{{"runc", "1.5.2"}},
		Capabilities: Capabilities{MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true, IPv4Forwarding: true},
	}
}

type fakeRegistry struct{}

func (fakeRegistry) Login(_ context.Context, a image.Auth) (string, error) {
	if a.Password != "right" {
		return "", fault.New(fault.Unauthorized, "unauthorized: incorrect username or password")
	}
	return "token", nil
}

func (fakeRegistry) Resolve(_ context.Context, ref string, _ image.Auth) (ocispec.Descriptor, []ocispec.Platform, error) {
	if !strings.HasPrefix(ref, "docker.io/library/") {
		return ocispec.Descriptor{}, nil, fault.New(fault.NotFound, "manifest for %s not found", ref)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(ref), Size: 3}, []ocispec.Platform{{OS: "linux", Architecture: "amd64"}}, nil
}

// fakeContainers keeps containers in memory; "running" them is a change of state.
type fakeContainers struct {
	mu       sync.Mutex
	all      map[string]*container.Container
	streams  map[string]*fakeStream // by container or exec
	execs    map[string]*container.Exec
	logs     []container.LogLine
	created  container.Config // of the newest
	asked    []string         // calls with their arguments, as far as tests look at them
	exited   chan struct{}    // closed: Wait returns
	attached container.AttachOptions
	copied   []byte
	execErr  error
	panics   bool
}

var _ Containers = (*fakeContainers)(nil)

func (f *fakeContainers) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprintf(format, args...))
}

func (f *fakeContainers) notes() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.asked, "\n")
}

func (f *fakeContainers) add(c container.Container) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all[c.ID] = &c
}

func (f *fakeContainers) Create(_ context.Context, cfg container.Config, _ string) (string, []string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if cfg.Image == "missing" {
		return "", nil, fault.New(fault.NotFound, "No such image: missing:latest")
	}
	for _, c := range f.all {
		if c.Config.Name == cfg.Name {
			return "", nil, fault.New(fault.AlreadyExists, "Conflict. The container name %q is already in use by container %q.", "/"+cfg.Name, c.ID)
		}
	}
	id := digest.FromString(cfg.Name).Encoded()
	f.created = cfg
	f.all[id] = &container.Container{ID: id, Created: time.Now(), Config: cfg, Path: "/bin/true", State: container.State{Status: container.StatusCreated}, ImageID: "sha256:aa", Driver: "overlayfs"}
	return id, []string{"a warning"}, nil
}

func (f *fakeContainers) Get(id string) (container.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.panics {
		panic("the engine fell over a secret=hunter2")
	}
	for _, match := range []func(*container.Container) bool{
		func(c *container.Container) bool { return c.ID == id },
		func(c *container.Container) bool { return c.Config.Name == id },
		func(c *container.Container) bool { return strings.HasPrefix(c.ID, id) },
	} {
		for _, c := range f.all {
			if match(c) {
				return *c, nil
			}
		}
	}
	return container.Container{}, fault.New(fault.NotFound, "No such container: %s", id)
}

func (f *fakeContainers) List() []container.Container {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []container.Container
	for _, c := range f.all {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b container.Container) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func (f *fakeContainers) Start(_ context.Context, id string) error {
	c, err := f.Get(id)
	if err != nil {
		return err
	}
	if c.State.Running {
		return fault.New(fault.NotModified, "container %s is already running", id)
	}
	c.State = container.State{Status: container.StatusRunning, Running: true, PID: 42, StartedAt: time.Now()}
	f.add(c)
	return nil
}

func (f *fakeContainers) Stop(_ context.Context, id, signal string, timeout *int) error {
	t := "default"
	if timeout != nil {
		t = fmt.Sprint(*timeout)
	}
	f.note("stop %s signal=%s timeout=%s", id, signal, t)
	_, err := f.Get(id)
	return err
}
func (f *fakeContainers) Restart(_ context.Context, id, _ string, _ *int) error {
	_, err := f.Get(id)
	return err
}
func (f *fakeContainers) Kill(_ context.Context, id, signal string) error {
	f.note("kill %s %s", id, signal)
	c, err := f.Get(id)
	if err == nil && !c.State.Running {
		err = fault.New(fault.Conflict, "container %s is not running", c.ID)
	}
	return err
}
func (f *fakeContainers) Pause(_ context.Context, id string) error   { _, err := f.Get(id); return err }
func (f *fakeContainers) Unpause(_ context.Context, id string) error { _, err := f.Get(id); return err }
func (f *fakeContainers) Rename(_ context.Context, id, name string) error {
	f.note("rename %s %s", id, name)
	return nil
}
func (f *fakeContainers) Update(_ context.Context, id string, r container.Resources, p *container.RestartPolicy) ([]string, error) {
	f.note("update %s memory=%d pids=%d policy=%v", id, r.Memory, r.PidsLimit, p)
	return nil, nil
}
func (f *fakeContainers) Remove(_ context.Context, id string, force, volumes, link bool) error {
	c, err := f.Get(id)
	if err != nil {
		return err
	}
	if c.State.Running && !force {
		return fault.New(fault.Conflict, "cannot remove container %q: container is running: stop the container before removing or force remove", "/"+c.Config.Name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, c.ID)
	return nil
}
func (f *fakeContainers) Prune(_ context.Context, filter func(container.Container) bool) (ids []string, freed int64, err error) {
	for _, c := range f.List() {
		if !c.State.Running && filter(c) {
			ids = append(ids, c.ID)
			freed += 10
		}
	}
	return ids, freed, nil
}
func (f *fakeContainers) Size(context.Context, string) (int64, int64, error) { return 5, 500, nil }
func (f *fakeContainers) Wait(ctx context.Context, id, condition string, ready func()) (int, string, error) {
	if _, err := f.Get(id); err != nil {
		return 0, "", err
	}
	f.note("wait %s", condition)
	ready()
	select {
	case <-f.exited:
		return 7, "", nil
	case <-ctx.Done():
		return 0, "", ctx.Err()
	}
}

type fakeLog struct {
	lines  []container.LogLine
	follow bool
}

func (l *fakeLog) Next(ctx context.Context) (container.LogLine, error) {
	if len(l.lines) == 0 {
		if l.follow {
			<-ctx.Done()
			return container.LogLine{}, ctx.Err()
		}
		return container.LogLine{}, io.EOF
	}
	line := l.lines[0]
	l.lines = l.lines[1:]
	return line, nil
}
func (*fakeLog) Close() error { return nil }

func (f *fakeContainers) Logs(_ context.Context, _ string, o LogOptions) (LogReader, error) {
	f.note("logs tail=%d since=%d until=%d follow=%v", o.Tail, o.Since.Unix(), o.Until.Unix(), o.Follow)
	return &fakeLog{lines: slices.Clone(f.logs), follow: o.Follow}, nil
}

// fakeStream says everything that is written to it back, on stdout in capitals and on stderr as it is, and ends when
// its input does.
type fakeStream struct {
	out    chan piece
	once   sync.Once
	closed chan struct{}
}

type piece struct {
	s container.StdStream
	p []byte
}

func newFakeStream() *fakeStream {
	return &fakeStream{out: make(chan piece, 1000), closed: make(chan struct{})}
}

func (s *fakeStream) Next() (container.StdStream, []byte, error) {
	select {
	case p, open := <-s.out:
		if !open {
			return 0, nil, io.EOF
		}
		return p.s, p.p, nil
	case <-s.closed:
		return 0, nil, io.EOF
	}
}
func (s *fakeStream) Write(p []byte) (int, error) {
	s.out <- piece{container.Stdout, bytes.ToUpper(p)}
	s.out <- piece{container.Stderr, bytes.Clone(p)}
	return len(p), nil
}
func (s *fakeStream) CloseWrite() error {
	s.out <- piece{container.Stdout, []byte("bye")}
	close(s.out)
	return nil
}
func (s *fakeStream) Close() error { s.once.Do(func() { close(s.closed) }); return nil }

func (f *fakeContainers) stream(id string) *fakeStream {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.streams[id]
	if s == nil {
		s = newFakeStream()
		f.streams[id] = s
	}
	return s
}

func (f *fakeContainers) Attach(_ context.Context, id string, o container.AttachOptions) (container.Stream, error) {
	f.mu.Lock()
	f.attached = o
	f.mu.Unlock()
	return f.stream(id), nil
}
func (f *fakeContainers) Resize(_ context.Context, id string, rows, cols uint16) error {
	f.note("resize %dx%d", rows, cols)
	return nil
}
func (f *fakeContainers) Top(_ context.Context, id, args string) ([]string, [][]string, error) {
	return []string{"PID", "CMD"}, [][]string{{"1", "init " + args}}, nil
}
func (f *fakeContainers) Stats(_ context.Context, id string) (container.Stats, error) {
	if c, err := f.Get(id); err != nil {
		return container.Stats{}, err
	} else if !c.State.Running {
		return container.Stats{}, fault.New(fault.Conflict, "container %s is not running", id)
	}
	return container.Stats{Read: time.Now(), NumCPU: 2, CPU: container.CPUStats{Total: 100, System: 1000}, Memory: container.MemoryStats{Usage: 7, Limit: 70},
		Networks: map[string]container.NetworkStats{"eth0": {RxBytes: 9}}}, nil
}
func (f *fakeContainers) Diff(context.Context, string) ([]image.Change, error) {
	return []image.Change{{Path: "/etc", Kind: image.Modified}, {Path: "/new", Kind: image.Added}, {Path: "/old", Kind: image.Deleted}}, nil
}
func (f *fakeContainers) Export(_ context.Context, _ string, w io.Writer) error {
	_, err := w.Write([]byte("tar of everything"))
	return err
}
func (f *fakeContainers) StatPath(_ context.Context, _, path string) (container.PathStat, error) {
	if path != "/etc/hosts" {
		return container.PathStat{}, fault.New(fault.NotFound, "Could not find the file %s in container", path)
	}
	return container.PathStat{Name: "hosts", Size: 12, Mode: 0o644, Mtime: time.Unix(1, 0)}, nil
}
func (f *fakeContainers) CopyFrom(ctx context.Context, id, path string) (io.ReadCloser, container.PathStat, error) {
	s, err := f.StatPath(ctx, id, path)
	if err != nil {
		return nil, s, err
	}
	return io.NopCloser(strings.NewReader("a tar")), s, nil
}
func (f *fakeContainers) CopyTo(_ context.Context, _, _ string, tar io.Reader, _ container.CopyOptions) error {
	b, err := io.ReadAll(tar)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.copied = b
	return err
}
func (f *fakeContainers) Commit(_ context.Context, _ string, r image.CommitRequest, pause bool) (image.Image, error) {
	f.note("commit ref=%s author=%s pause=%v cmd=%v", r.Ref, r.Author, pause, r.Config.Config.Cmd)
	return image.Image{ID: "sha256:new"}, nil
}
func (f *fakeContainers) Connect(_ context.Context, id, networkID string, e container.EndpointConfig) error {
	f.note("connect %s %s aliases=%v ip=%v", id, networkID, e.Aliases, e.IPv4)
	return nil
}
func (f *fakeContainers) Disconnect(_ context.Context, id, networkID string, force bool) error {
	f.note("disconnect %s %s force=%v", id, networkID, force)
	return nil
}
func (f *fakeContainers) ExecCreate(_ context.Context, id string, cfg container.ExecConfig) (string, error) {
	c, err := f.Get(id)
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.execs["exec1"] = &container.Exec{ID: "exec1", ContainerID: c.ID, Config: cfg}
	return "exec1", nil
}
func (f *fakeContainers) ExecStart(_ context.Context, id string, detach, tty bool, size [2]uint16) (container.Stream, error) {
	f.note("exec start detach=%v tty=%v size=%v", detach, tty, size)
	if f.execErr != nil {
		return nil, f.execErr
	}
	return f.stream(id), nil
}
func (f *fakeContainers) ExecResize(_ context.Context, _ string, rows, cols uint16) error {
	f.note("exec resize %dx%d", rows, cols)
	return nil
}
func (f *fakeContainers) ExecGet(id string) (container.Exec, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.execs[id]
	if e == nil {
		return container.Exec{}, fault.New(fault.NotFound, "No such exec instance: %s", id)
	}
	return *e, nil
}

type fakeImages struct {
	mu     sync.Mutex
	all    map[string]image.Image // by name
	pulled string
	auth   image.Auth
	err    error // of pull, after some progress
}

var _ Images = (*fakeImages)(nil)

func (f *fakeImages) Get(_ context.Context, ref string) (image.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, img := range f.all {
		if name == ref || familiar(name) == familiar(ref) || strings.HasPrefix(img.ID, ref) {
			return img, nil
		}
	}
	return image.Image{}, fault.New(fault.NotFound, "No such image: %s", ref)
}
func (f *fakeImages) List(context.Context) (out []image.Image, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, img := range f.all {
		out = append(out, img)
	}
	return out, nil
}
func (f *fakeImages) Pull(_ context.Context, ref, _ string, auth image.Auth, progress func(image.Progress)) (image.Image, error) {
	f.pulled, f.auth = ref, auth
	if strings.Contains(ref, "nosuch") {
		return image.Image{}, fault.New(fault.NotFound, "pull access denied for nosuch")
	}
	progress(image.Progress{ID: "latest", Status: "Pulling from library/x"})
	progress(image.Progress{ID: "abc", Status: "Downloading", Current: 5, Total: 10})
	return image.Image{}, f.err
}
func (f *fakeImages) Push(_ context.Context, ref string, _ image.Auth, progress func(image.Progress)) error {
	progress(image.Progress{Status: "The push refers to repository [" + ref + "]", Aux: map[string]string{"Digest": "sha256:1"}})
	return nil
}
func (f *fakeImages) Load(_ context.Context, r io.Reader, progress func(image.Progress)) ([]image.Image, error) {
	b, _ := io.ReadAll(r)
	if string(b) != "a tar" {
		return nil, fault.New(fault.InvalidArgument, "unrecognized image format")
	}
	return []image.Image{{ID: "sha256:1", RepoTags: []string{"x:1"}}, {ID: "sha256:2"}}, nil
}
func (f *fakeImages) Save(_ context.Context, refs []string, w io.Writer) error {
	_, err := io.WriteString(w, "tar of "+strings.Join(refs, ","))
	return err
}
func (f *fakeImages) Import(_ context.Context, r io.Reader, ref string, o image.ImportOptions) (image.Image, error) {
	_, _ = io.Copy(io.Discard, r)
	return image.Image{ID: "sha256:imported"}, nil
}
func (f *fakeImages) Tag(ctx context.Context, source, target string) error {
	img, err := f.Get(ctx, source)
	if err == nil {
		f.mu.Lock()
		f.all[target] = img
		f.mu.Unlock()
	}
	return err
}
func (f *fakeImages) Remove(ctx context.Context, ref string, force, _ bool, inUse func(string) []string) ([]image.Removed, error) {
	img, err := f.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	if users := inUse(img.ID); len(users) > 0 && !force {
		return nil, fault.New(fault.Conflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image", ref, shortID(users[0]))
	}
	return []image.Removed{{Untagged: ref}, {Deleted: img.ID}}, nil
}
func (f *fakeImages) Prune(ctx context.Context, filter func(image.Image) bool, _ func(string) []string) (out []image.Removed, freed int64, err error) {
	images, _ := f.List(ctx)
	for _, img := range images {
		if filter(img) {
			out = append(out, image.Removed{Deleted: img.ID})
			freed += img.Size
		}
	}
	return out, freed, nil
}

type fakeVolumes struct {
	mu    sync.Mutex
	all   map[string]volume.Volume
	users map[string][]string
}

var _ Volumes = (*fakeVolumes)(nil)

func (f *fakeVolumes) Create(_ context.Context, v volume.Volume) (volume.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v.Name == "" {
		v.Name = "random"
	}
	v.Mountpoint, v.Created = "/var/lib/sampan/volumes/"+v.Name+"/_data", time.Now()
	f.all[v.Name] = v
	return v, nil
}
func (f *fakeVolumes) Get(name string) (volume.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.all[name]
	if !ok {
		return v, fault.New(fault.NotFound, "get %s: no such volume", name)
	}
	return v, nil
}
func (f *fakeVolumes) List() (out []volume.Volume) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.all {
		out = append(out, v)
	}
	return out
}
func (f *fakeVolumes) Remove(_ context.Context, name string, force bool) error {
	if _, err := f.Get(name); err != nil && !force {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.users[name]) > 0 {
		return fault.New(fault.Conflict, "remove %s: volume is in use - %v", name, f.users[name])
	}
	delete(f.all, name)
	return nil
}
func (f *fakeVolumes) Users(name string) []string { return f.users[name] }
func (f *fakeVolumes) Size(string) (int64, error) { return 100, nil }

type fakeNetworks struct {
	mu  sync.Mutex
	all map[string]network.Network
}

var _ Networks = (*fakeNetworks)(nil)

func (f *fakeNetworks) Create(_ context.Context, spec network.Spec) (network.Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if spec.Driver != "bridge" {
		return network.Network{}, fault.New(fault.NotFound, "could not find plugin %s in v1 plugin registry: plugin not found", spec.Driver)
	}
	n := network.Network{ID: digest.FromString(spec.Name).Encoded(), Created: time.Now(), Scope: network.ScopeLocal, Spec: spec, Subnets: spec.IPAM}
	f.all[n.ID] = n
	return n, nil
}
func (f *fakeNetworks) Get(ref string) (network.Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all[ref], nil
}
func (f *fakeNetworks) Remove(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.all[id].Members) > 0 {
		return fault.New(fault.Conflict, "error while removing network: network %s has active endpoints", f.all[id].Spec.Name)
	}
	delete(f.all, id)
	return nil
}
func (f *fakeNetworks) List() (out []network.Network) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.all {
		out = append(out, n)
	}
	return out
}

// fakeSwarm is a node that is in no cluster until Init.
type fakeSwarm struct {
	mu      sync.Mutex
	cluster *fakeCluster
	init    SwarmInit
	join    SwarmJoin
}

var _ Swarm = (*fakeSwarm)(nil)

func (f *fakeSwarm) Local() LocalSwarm {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cluster == nil {
		return LocalSwarm{State: "inactive"}
	}
	return LocalSwarm{State: "active", NodeID: "node1", NodeAddr: "10.0.0.1", ControlAvailable: true, NodesTotal: 1, ManagersTotal: 1, Cluster: f.cluster.cluster, Managers: []ManagerPeer{{"node1", "10.0.0.1:2377"}}}
}
func (f *fakeSwarm) Init(_ context.Context, r SwarmInit) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cluster != nil {
		return "", fault.New(fault.Unavailable, "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.")
	}
	f.init, f.cluster = r, newFakeCluster(r.Spec)
	return "node1", nil
}
func (f *fakeSwarm) Join(_ context.Context, r SwarmJoin) error { f.join = r; return nil }
func (f *fakeSwarm) Leave(_ context.Context, force bool) error {
	if !force {
		return fault.New(fault.Unavailable, "You are attempting to leave the swarm on a node that is participating as a manager.")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cluster = nil
	return nil
}
func (f *fakeSwarm) Cluster() (Cluster, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cluster == nil {
		return nil, fault.New(fault.Unavailable, "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.")
	}
	return f.cluster, nil
}

type fakeCluster struct {
	mu       sync.Mutex
	cluster  *cloud.Cluster
	nodes    map[string]*cloud.Node
	services map[string]*cloud.Service
	tasks    map[string]*cloud.Task
	networks map[string]*cloud.Network
	secrets  map[string]*cloud.Secret
	configs  map[string]*cloud.Config
	logs     []control.TaskLog
	logsOf   []string
	events   chan control.Event
	rolled   bool
}

var _ Cluster = (*fakeCluster)(nil)

func newFakeCluster(spec cloud.ClusterSpec) *fakeCluster {
	meta := cloud.Meta{ID: "node1", Version: 1}
	return &fakeCluster{
		cluster: &cloud.Cluster{Meta: cloud.Meta{ID: "cluster1", Version: 1}, Spec: spec, Tokens: cloud.JoinTokens{Worker: "SWMTKN-1-w", Manager: "SWMTKN-1-m"}},
		nodes: map[string]*cloud.Node{"node1": {Meta: meta, Spec: cloud.NodeSpec{Role: cloud.RoleManager, Availability: cloud.AvailabilityActive}, Description: cloud.NodeDescription{Hostname: "host-1"},
			Status: cloud.NodeStatus{State: cloud.NodeReady, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}, Manager: &cloud.ManagerStatus{Addr: "10.0.0.1:2377"}}},
		services: map[string]*cloud.Service{}, tasks: map[string]*cloud.Task{}, networks: map[string]*cloud.Network{},
		secrets: map[string]*cloud.Secret{}, configs: map[string]*cloud.Config{}, events: make(chan control.Event, 10),
	}
}

// lookup finds by ID, name, or the beginning of an ID.
func lookup[T cloud.Object](kind string, all map[string]T, ref string) (T, error) {
	for id, o := range all {
		if id == ref || o.ObjectName() == ref {
			return o, nil
		}
	}
	for id, o := range all {
		if strings.HasPrefix(id, ref) {
			return o, nil
		}
	}
	var none T
	return none, fault.New(fault.NotFound, "%s %s not found", kind, ref)
}

func values[T any](all map[string]T) (out []T) {
	for _, o := range all {
		out = append(out, o)
	}
	return out
}

func checkVersion(m *cloud.Meta, version uint64) error {
	if m.Version != version {
		return fault.New(fault.OutOfDate, "update out of sequence")
	}
	m.Version++
	return nil
}

func (f *fakeCluster) GetCluster(context.Context) (*cloud.Cluster, error) { return f.cluster, nil }
func (f *fakeCluster) UpdateCluster(_ context.Context, version uint64, spec cloud.ClusterSpec, worker, manager bool) error {
	if err := checkVersion(&f.cluster.Meta, version); err != nil {
		return err
	}
	f.cluster.Spec = spec
	if worker {
		f.cluster.Tokens.Worker += "2"
	}
	if manager {
		f.cluster.Tokens.Manager += "2"
	}
	return nil
}
func (f *fakeCluster) ListNodes(context.Context) ([]*cloud.Node, error) { return values(f.nodes), nil }
func (f *fakeCluster) GetNode(_ context.Context, ref string) (*cloud.Node, error) {
	return lookup("node", f.nodes, ref)
}
func (f *fakeCluster) UpdateNode(_ context.Context, id string, version uint64, spec cloud.NodeSpec) error {
	n := f.nodes[id]
	if err := checkVersion(&n.Meta, version); err != nil {
		return err
	}
	n.Spec = spec
	return nil
}
func (f *fakeCluster) RemoveNode(_ context.Context, ref string, force bool) error {
	if !force {
		return fault.New(fault.FailedPrecondition, "node %s is not down and can't be removed", ref)
	}
	delete(f.nodes, ref)
	return nil
}
func (f *fakeCluster) Leader() string                  { return "node1" }
func (f *fakeCluster) ManagerReachable(id string) bool { return id == "node1" }

func (f *fakeCluster) CreateService(_ context.Context, spec cloud.ServiceSpec, _ string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := lookup("service", f.services, spec.Name); err == nil {
		return "", fault.New(fault.AlreadyExists, "name conflicts with an existing object: service %s already exists", spec.Name)
	}
	id := cloud.NewID()
	f.services[id] = &cloud.Service{Meta: cloud.Meta{ID: id, Version: 1}, Spec: spec, SpecVersion: 1, Endpoint: cloud.Endpoint{Ports: spec.Endpoint.Ports}}
	return id, nil
}
func (f *fakeCluster) UpdateService(_ context.Context, id string, version uint64, spec cloud.ServiceSpec, rollback bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.services[id]
	if err := checkVersion(&s.Meta, version); err != nil {
		return err
	}
	if f.rolled = rollback; rollback {
		spec = *s.PreviousSpec
	}
	previous := s.Spec
	s.Spec, s.PreviousSpec = spec, &previous
	return nil
}
func (f *fakeCluster) RemoveService(ctx context.Context, ref string) error {
	s, err := f.GetService(ctx, ref)
	if err == nil {
		delete(f.services, s.ID)
	}
	return err
}
func (f *fakeCluster) GetService(_ context.Context, ref string) (*cloud.Service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return lookup("service", f.services, ref)
}
func (f *fakeCluster) ListServices(context.Context) ([]*cloud.Service, error) {
	return values(f.services), nil
}
func (f *fakeCluster) GetTask(_ context.Context, ref string) (*cloud.Task, error) {
	return lookup("task", f.tasks, ref)
}
func (f *fakeCluster) ListTasks(context.Context) ([]*cloud.Task, error) { return values(f.tasks), nil }
func (f *fakeCluster) CreateNetwork(_ context.Context, spec cloud.NetworkSpec) (string, error) {
	id := cloud.NewID()
	f.networks[id] = &cloud.Network{Meta: cloud.Meta{ID: id, Version: 1, CreatedAt: time.Now()}, Spec: spec, Status: cloud.NetworkStatus{VNI: 4097, Subnets: spec.IPAM}}
	return id, nil
}
func (f *fakeCluster) RemoveNetwork(_ context.Context, ref string) error {
	delete(f.networks, ref)
	return nil
}
func (f *fakeCluster) GetNetwork(_ context.Context, ref string) (*cloud.Network, error) {
	return lookup("network", f.networks, ref)
}
func (f *fakeCluster) ListNetworks(context.Context) ([]*cloud.Network, error) {
	return values(f.networks), nil
}
func (f *fakeCluster) CreateSecret(_ context.Context, spec cloud.SecretSpec) (string, error) {
	id := cloud.NewID()
	f.secrets[id] = &cloud.Secret{Meta: cloud.Meta{ID: id, Version: 1}, Spec: spec}
	return id, nil
}
func (f *fakeCluster) UpdateSecret(_ context.Context, id string, version uint64, spec cloud.SecretSpec) error {
	s := f.secrets[id]
	s.Spec.Labels = spec.Labels
	return checkVersion(&s.Meta, version)
}
func (f *fakeCluster) RemoveSecret(_ context.Context, ref string) error {
	s, err := lookup("secret", f.secrets, ref)
	if err == nil {
		delete(f.secrets, s.ID)
	}
	return err
}
func (f *fakeCluster) GetSecret(_ context.Context, ref string) (*cloud.Secret, error) {
	return lookup("secret", f.secrets, ref)
}
func (f *fakeCluster) ListSecrets(context.Context) ([]*cloud.Secret, error) {
	return values(f.secrets), nil
}
func (f *fakeCluster) CreateConfig(_ context.Context, spec cloud.SecretSpec) (string, error) {
	id := cloud.NewID()
	f.configs[id] = &cloud.Config{Meta: cloud.Meta{ID: id, Version: 1}, Spec: spec}
	return id, nil
}
func (f *fakeCluster) UpdateConfig(_ context.Context, id string, version uint64, spec cloud.SecretSpec) error {
	return checkVersion(&f.configs[id].Meta, version)
}
func (f *fakeCluster) RemoveConfig(_ context.Context, ref string) error {
	c, err := lookup("config", f.configs, ref)
	if err == nil {
		delete(f.configs, c.ID)
	}
	return err
}
func (f *fakeCluster) GetConfig(_ context.Context, ref string) (*cloud.Config, error) {
	return lookup("config", f.configs, ref)
}
func (f *fakeCluster) ListConfigs(context.Context) ([]*cloud.Config, error) {
	return values(f.configs), nil
}
func (f *fakeCluster) Logs(_ context.Context, ids []string, _ control.LogOptions, emit func(control.TaskLog) error) error {
	f.logsOf = ids
	for _, l := range f.logs {
		if err := emit(l); err != nil {
			return err
		}
	}
	return nil
}
func (f *fakeCluster) WatchEvents(ctx context.Context) <-chan control.Event {
	out := make(chan control.Event)
	go func() {
		defer close(out)
		for {
			select {
			case e := <-f.events:
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
