package docker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

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
	execGate chan struct{} // the process of an exec is made when it is closed
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

func (f *fakeContainers) Inspect(_ context.Context, id string) (container.Container, error) {
	return f.Get(id)
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

func (f *fakeContainers) Devices() (dirs, names, warnings []string) {
	return []string{"/etc/cdi"}, []string{"vendor.com/class=one"}, nil
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
	eid := "exec" + strconv.Itoa(len(f.execs)+1)
	f.execs[eid] = &container.Exec{ID: eid, ContainerID: c.ID, Config: cfg}
	return eid, nil
}
func (f *fakeContainers) ExecStart(_ context.Context, id string, o container.ExecStartOptions) (container.Stream, error) {
	f.note("exec start detach=%v size=%v", o.Detach, o.Size)
	if kind := fault.KindOf(f.execErr); f.execErr != nil && (kind == fault.NotFound || kind == fault.Conflict) {
		return nil, f.execErr
	}
	if o.Ready != nil {
		if err := o.Ready(); err != nil {
			return nil, err
		}
	}
	if f.execGate != nil {
		<-f.execGate
	}
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
