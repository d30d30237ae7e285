package control_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/agent"
	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// host is one host: a fake engine, fake networks and the real agent.
type host struct {
	s    *sim
	name string
	addr netip.Addr
	bus  events.Bus

	mu         sync.Mutex
	cut        bool
	uncut      chan struct{} // closed while not cut
	kernel     *cloud.NodeView
	applyDelay time.Duration
	containers map[string]*fakeContainer
	images     map[string]bool
	made       int
	unreadable bool // its containers' logs are
	logsAsked  int  // times that one was to be read
	agent      *agent.Agent
	cancel     context.CancelFunc
	ended      chan struct{}
	conns      map[int]context.CancelFunc
	nextConn   int
}

type fakeContainer struct {
	id        string
	cfg       container.Config
	state     container.State
	exit      chan struct{} // closed at the end of this run
	runs      int
	lines     []container.LogLine
	moreLines chan struct{}
}

func newHost(s *sim, name string, i int) *host {
	h := &host{s: s, name: name, addr: netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)}), containers: map[string]*fakeContainer{},
		images: map[string]bool{"web:1": true, "web:2": true, "crash:1": true, "slow:1": true, "sick:1": true, "once:1": true}, uncut: make(chan struct{}),
		conns: map[int]context.CancelFunc{}}
	close(h.uncut)
	return h
}

// boot starts the host's daemon.
func (h *host) boot() {
	a, err := agent.New(agent.Config{
		NodeID: h.name, Managers: reach{h}, Engine: engine{h}, Images: images{h}, Events: &h.bus, Networks: networks{h},
		StatePath: filepath.Join(h.s.dir, h.name, "view.json"), SecretsDir: filepath.Join(h.s.dir, h.name, "secrets"),
		Description: func() cloud.NodeDescription {
			return cloud.NodeDescription{Hostname: h.name, OS: "linux", Architecture: "x86_64", UnderlayMTU: 1500,
				Resources: cloud.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}}
		},
		DataAddrs: func() []netip.Addr { return []netip.Addr{h.addr} },
		Logger:    h.s.log.With("agent", h.name),
	})
	must(h.s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	h.mu.Lock()
	h.agent, h.cancel, h.ended = a, cancel, make(chan struct{})
	ended := h.ended
	h.mu.Unlock()
	go func() {
		defer close(ended)
		_ = a.Run(ctx)
	}()
}

// crash ends the host's daemon; its containers run on.
func (h *host) crash() {
	h.mu.Lock()
	cancel, ended := h.cancel, h.ended
	h.mu.Unlock()
	cancel()
	<-ended
}

// setCut sets the host's link down or up.
func (h *host) setCut(cut bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cut == cut {
		return
	}
	h.cut = cut
	if cut {
		h.uncut = make(chan struct{})
	} else {
		close(h.uncut)
		for _, cancel := range h.conns { // what was sent meanwhile is answered with a reset
			cancel()
		}
	}
}

func (h *host) isCut() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cut
}

// passable waits until the link is up.
func (h *host) passable(ctx context.Context) error {
	h.mu.Lock()
	up := h.uncut
	h.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *host) applied() *cloud.NodeView {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.kernel
}

// backends returns the IDs of the tasks to which the host sends requests for a service on a network.
func (h *host) backends(service string) []string {
	v := h.applied()
	if v == nil {
		return nil
	}
	ids := map[string]bool{}
	for _, m := range v.Members {
		if m.ServiceName == service && m.Ready {
			id, _, _ := strings.Cut(m.ID, "/")
			ids[id] = true
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

func (h *host) containerOf(task string) *fakeContainer {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.containers {
		if c.cfg.Labels["com.docker.swarm.task.id"] == task {
			return c
		}
	}
	return nil
}

func (h *host) runningTasks() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, c := range h.containers {
		if c.state.Running {
			out = append(out, c.cfg.Labels["com.docker.swarm.task.id"])
		}
	}
	slices.Sort(out)
	return out
}

// kill ends a task's process.
func (h *host) kill(task string, code int) {
	if c := h.containerOf(task); c != nil {
		h.end(c, code)
	}
}

func (h *host) end(c *fakeContainer, code int) {
	h.mu.Lock()
	if !c.state.Running {
		h.mu.Unlock()
		return
	}
	c.state.Running, c.state.Status, c.state.ExitCode, c.state.FinishedAt = false, container.StatusExited, code, time.Now()
	close(c.exit)
	h.mu.Unlock()
	h.bus.Publish(events.Event{Type: "container", Action: "die", ID: c.id})
}

// engine is the host's fake engine: images say how their containers behave.
type engine struct{ h *host }

func (e engine) Create(_ context.Context, cfg container.Config, _ string) (string, []string, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	for _, c := range e.h.containers {
		if c.cfg.Name == cfg.Name {
			return "", nil, fault.New(fault.Conflict, "the name %s is in use", cfg.Name)
		}
	}
	e.h.made++
	c := &fakeContainer{id: fmt.Sprintf("%s-c%d", e.h.name, e.h.made), cfg: cfg, moreLines: make(chan struct{})}
	c.state.Status = container.StatusCreated
	e.h.containers[c.id] = c
	return c.id, nil, nil
}

func (e engine) Start(_ context.Context, id string) error {
	e.h.mu.Lock()
	c := e.h.containers[id]
	if c == nil {
		e.h.mu.Unlock()
		return fault.New(fault.NotFound, "No such container: %s", id)
	}
	c.runs++
	c.exit = make(chan struct{})
	c.state = container.State{Running: true, Status: container.StatusRunning, PID: 1000 + e.h.made, StartedAt: time.Now()}
	c.print(fmt.Sprintf("started %s run %d", c.cfg.Image, c.runs))
	img := c.cfg.Image
	if img == "sick:1" || img == "slow:1" {
		c.state.Health = &container.HealthState{Status: "starting"}
	}
	e.h.mu.Unlock()
	switch img {
	case "crash:1":
		time.AfterFunc(300*time.Millisecond, func() { e.h.end(c, 1) })
	case "once:1":
		time.AfterFunc(300*time.Millisecond, func() { e.h.end(c, 0) })
	case "slow:1", "sick:1":
		time.AfterFunc(time.Second, func() {
			e.h.mu.Lock()
			c.state.Health = &container.HealthState{Status: map[string]string{"slow:1": "healthy", "sick:1": "unhealthy"}[img]}
			e.h.mu.Unlock()
			e.h.bus.Publish(events.Event{Type: "container", Action: "health_status", ID: c.id})
		})
	}
	return nil
}

func (e engine) Stop(ctx context.Context, id, _ string, _ *int) error {
	e.h.mu.Lock()
	c := e.h.containers[id]
	e.h.mu.Unlock()
	if c == nil {
		return fault.New(fault.NotFound, "No such container: %s", id)
	}
	e.h.s.mu.Lock()
	hook := e.h.s.onStop
	e.h.s.mu.Unlock()
	if hook != nil {
		hook(e.h, c)
	}
	select { // the process takes a moment to go
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	e.h.end(c, 143)
	return nil
}

func (e engine) Remove(_ context.Context, id string, _, _, _ bool) error {
	e.h.mu.Lock()
	c := e.h.containers[id]
	delete(e.h.containers, id)
	e.h.mu.Unlock()
	if c != nil {
		e.h.end(c, 137)
	}
	return nil
}

func (e engine) snapshot(c *fakeContainer) container.Container {
	out := container.Container{ID: c.id, Config: c.cfg, State: c.state}
	if c.state.Health != nil {
		health := *c.state.Health
		out.State.Health = &health
	}
	return out
}

func (e engine) Get(id string) (container.Container, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	c := e.h.containers[id]
	if c == nil {
		return container.Container{}, fault.New(fault.NotFound, "No such container: %s", id)
	}
	return e.snapshot(c), nil
}

func (e engine) List() (out []container.Container) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(e.h.containers)) {
		out = append(out, e.snapshot(e.h.containers[id]))
	}
	return out
}

func (e engine) Wait(ctx context.Context, id, _ string, _ func()) (int, string, error) {
	e.h.mu.Lock()
	c := e.h.containers[id]
	if c == nil || !c.state.Running {
		e.h.mu.Unlock()
		return 0, "", nil
	}
	exit := c.exit
	e.h.mu.Unlock()
	select {
	case <-exit:
		return 0, "", nil
	case <-ctx.Done():
		return 0, "", ctx.Err()
	}
}

func (e engine) Logs(_ context.Context, id string, o container.LogOptions) (container.LogReader, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	c := e.h.containers[id]
	if c == nil {
		return nil, fault.New(fault.NotFound, "No such container: %s", id)
	}
	if e.h.logsAsked++; e.h.unreadable {
		return nil, fault.New(fault.NotImplemented, "configured logging driver does not support reading")
	}
	r := &logReader{h: e.h, c: c, follow: o.Follow, since: o.Since}
	if o.Tail >= 0 {
		r.at = max(0, len(c.lines)-o.Tail)
	}
	return r, nil
}

type logReader struct {
	h      *host
	c      *fakeContainer
	at     int
	follow bool
	since  time.Time
}

func (r *logReader) Close() error { return nil }

func (r *logReader) Next(ctx context.Context) (container.LogLine, error) {
	for {
		r.h.mu.Lock()
		if r.at < len(r.c.lines) {
			line := r.c.lines[r.at]
			r.at++
			r.h.mu.Unlock()
			if line.Time.Before(r.since) {
				continue
			}
			return line, nil
		}
		more, running := r.c.moreLines, r.c.state.Running
		r.h.mu.Unlock()
		if !r.follow || !running {
			return container.LogLine{}, io.EOF
		}
		select {
		case <-more:
		case <-ctx.Done():
			return container.LogLine{}, ctx.Err()
		}
	}
}

// print adds a line to a task's log.
func (h *host) print(task, line string) {
	c := h.containerOf(task)
	h.mu.Lock()
	defer h.mu.Unlock()
	c.print(line)
}

// print adds a line to the container's log. Called with the host's mu held.
func (c *fakeContainer) print(line string) {
	c.lines = append(c.lines, container.LogLine{Stream: container.Stdout, Time: time.Now(), Line: []byte(line + "\n")})
	close(c.moreLines)
	c.moreLines = make(chan struct{})
}

type images struct{ h *host }

func (i images) Get(_ context.Context, ref string) (image.Image, error) {
	i.h.mu.Lock()
	defer i.h.mu.Unlock()
	if !i.h.images[ref] {
		return image.Image{}, fault.New(fault.NotFound, "No such image: %s", ref)
	}
	return image.Image{ID: ref}, nil
}

func (i images) Pull(_ context.Context, ref, _ string, _ image.Auth, _ func(image.Progress)) (image.Image, error) {
	return image.Image{}, fault.New(fault.Unavailable, "no registry can be reached for %s", ref)
}

type networks struct{ h *host }

func (n networks) Apply(ctx context.Context, v *cloud.NodeView, self string) error {
	n.h.mu.Lock()
	d := n.h.applyDelay
	n.h.mu.Unlock()
	if d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	n.h.kernel = v
	return nil
}
