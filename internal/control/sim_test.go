package control_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/agent"
	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/memstate"
)

// A sim is a whole cluster in one process: the real control plane and real agents over memstate, with a fake engine and
// fake networks for each host, and streams of channels between them that can be cut. It runs in a synctest bubble, so
// its time is not the machine's.
type sim struct {
	t        *testing.T
	store    *memstate.Store
	managers []*manager
	hosts    map[string]*host
	api      *control.API
	log      *slog.Logger
	dir      string

	mu       sync.Mutex
	leading  int // index of the manager that leads, -1: none
	notify   []chan bool
	onStop   func(h *host, c *fakeContainer) // called as the engine is asked to stop a container
	violated []string
}

type manager struct {
	s      *sim
	index  int
	node   string
	leader *control.Leader
	leads  chan bool
}

func (m *manager) Leadership(ctx context.Context) <-chan bool {
	out := make(chan bool)
	go func() {
		defer close(out)
		for {
			select {
			case v, ok := <-m.leads:
				if !ok {
					return
				}
				select {
				case out <- v:
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

func (m *manager) LeaderNode() string {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.s.leading < 0 {
		return ""
	}
	return m.s.managers[m.s.leading].node
}

func (m *manager) Reachable(string) bool { return true }

// run calls test inside a bubble with a cluster of hosts; managers of them (the first ones) are managers.
func run(t *testing.T, hosts, managers int, test func(t *testing.T, s *sim)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var logs bytes.Buffer
		var logMu sync.Mutex
		s := &sim{t: t, store: memstate.New(), hosts: map[string]*host{}, leading: -1, dir: t.TempDir(),
			log: slog.New(slog.NewTextHandler(lockedWriter{&logMu, &logs}, &slog.HandlerOptions{Level: slog.LevelDebug}))}
		var wg sync.WaitGroup
		names := make([]string, hosts)
		for i := range names {
			names[i] = fmt.Sprintf("node%d", i+1)
		}
		first := nodeObject(names[0], 0, managers > 0)
		cluster := &cloud.Cluster{Meta: cloud.Meta{ID: "cluster"}}
		must(t, control.Bootstrap(ctx, s.store, cluster, first))
		for i, name := range names[1:] {
			must(t, s.store.Update(ctx, func(tx state.WriteTx) error { return tx.Put(nodeObject(name, i+1, i+1 < managers)) }))
		}
		for i := range managers {
			m := &manager{s: s, index: i, node: names[i], leads: make(chan bool, 16)}
			m.leader = control.NewLeader(control.LeaderConfig{NodeID: names[i], Store: s.store, Election: m, Logger: s.log.With("manager", names[i])})
			s.managers = append(s.managers, m)
			wg.Go(func() { _ = m.leader.Run(ctx) })
		}
		s.api = control.NewAPI(control.APIConfig{Store: s.store, Election: s.managers[0], Local: s.managers[0].leader.Dispatcher(),
			Leader: s.cfgLeader()})
		for i, name := range names {
			s.hosts[name] = newHost(s, name, i)
		}
		s.elect(0)
		for _, h := range s.hosts {
			h.boot()
		}
		defer func() {
			for _, h := range s.hosts {
				h.crash()
				if err := agent.RemoveSecrets(filepath.Join(s.dir, h.name, "secrets")); err != nil {
					t.Error(err)
				}
			}
			cancel()
			wg.Wait()
			s.store.Close()
			if t.Failed() {
				logMu.Lock()
				t.Log(tailOf(logs.String(), 12000))
				logMu.Unlock()
			}
		}()
		s.eventually("all nodes are ready", func() bool {
			return !slices.ContainsFunc(s.nodes(), func(n *cloud.Node) bool { return n.Status.State != cloud.NodeReady })
		})
		test(t, s)
		for _, v := range s.violated {
			t.Error(v)
		}
	})
}

// cfgLeader is how a manager that does not lead reaches the one that does.
func (s *sim) cfgLeader() func(context.Context) (rpc.DispatcherClient, error) {
	return func(context.Context) (rpc.DispatcherClient, error) { return &client{s: s, node: "node1"}, nil }
}

func tailOf(s string, n int) string {
	if len(s) > n {
		return s[len(s)-n:]
	}
	return s
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func nodeObject(name string, i int, manager bool) *cloud.Node {
	n := &cloud.Node{
		Meta:        cloud.Meta{ID: name, Project: cloud.DefaultProject},
		Spec:        cloud.NodeSpec{Role: cloud.RoleWorker, Availability: cloud.AvailabilityActive},
		Description: cloud.NodeDescription{Hostname: name, OS: "linux", Architecture: "x86_64"},
		Status:      cloud.NodeStatus{State: cloud.NodeUnknown},
	}
	if manager {
		n.Spec.Role = cloud.RoleManager
		n.Manager = &cloud.ManagerStatus{Addr: fmt.Sprintf("10.99.0.%d:2377", i+1)}
	}
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// elect makes another manager lead; -1: none.
func (s *sim) elect(i int) {
	s.mu.Lock()
	old := s.leading
	s.leading = i
	s.mu.Unlock()
	if old >= 0 {
		s.managers[old].leads <- false
	}
	if i >= 0 {
		s.managers[i].leads <- true
	}
}

// eventually waits in the bubble's time until cond holds.
func (s *sim) eventually(what string, cond func() bool) {
	s.t.Helper()
	s.within(3*time.Minute, what, cond)
}

func (s *sim) within(d time.Duration, what string, cond func() bool) time.Duration {
	s.t.Helper()
	start := time.Now()
	for !cond() {
		if time.Since(start) > d {
			s.t.Fatalf("after %s still not so: %s\n%s", d, what, s.describe())
		}
		step := time.NewTimer(5 * time.Millisecond)
		<-step.C
		synctest.Wait()
	}
	return time.Since(start)
}

// pass lets time go by.
func (s *sim) pass(d time.Duration) {
	<-time.NewTimer(d).C
	synctest.Wait()
}

func (s *sim) describe() string {
	var b strings.Builder
	for _, n := range s.nodes() {
		fmt.Fprintf(&b, "node %s %s %s\n", n.ID, n.Status.State, n.Spec.Availability)
	}
	for _, svc := range list[*cloud.Service](s) {
		fmt.Fprintf(&b, "service %s v%d update %+v\n", svc.Spec.Name, svc.SpecVersion, svc.Update)
	}
	for _, t := range s.tasks("") {
		fmt.Fprintf(&b, "task %s %s.%d v%d on %q: %s, desired %s, err %q\n", t.ID[:6], t.ServiceName, t.Slot, t.SpecVersion, t.NodeID, t.Status.State, t.Desired, t.Status.Err)
	}
	return b.String()
}

func list[T cloud.Object](s *sim) (out []T) {
	s.store.View(func(tx state.Tx) { out = state.List[T](tx, state.By{}) })
	return out
}

func (s *sim) nodes() []*cloud.Node { return list[*cloud.Node](s) }

// tasks returns the tasks of a service by name, "" for all, oldest first.
func (s *sim) tasks(service string) []*cloud.Task {
	all := slices.DeleteFunc(list[*cloud.Task](s), func(t *cloud.Task) bool { return service != "" && t.ServiceName != service })
	slices.SortStableFunc(all, func(a, b *cloud.Task) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Slot, b.Slot))
	})
	return all
}

// serving returns the tasks that run and are meant to.
func (s *sim) serving(service string) []*cloud.Task {
	return slices.DeleteFunc(s.tasks(service), func(t *cloud.Task) bool { return !t.Serving() })
}

func (s *sim) service(name string) *cloud.Service {
	s.t.Helper()
	svc, err := s.api.GetService(s.t.Context(), name)
	must(s.t, err)
	return svc
}

func (s *sim) network(name string) string {
	s.t.Helper()
	id, err := s.api.CreateNetwork(s.t.Context(), cloud.NetworkSpec{Name: name, Driver: "overlay", Attachable: true})
	must(s.t, err)
	return id
}

func webSpec(name, img string, replicas uint64, networks ...string) cloud.ServiceSpec {
	delay := 500 * time.Millisecond
	spec := cloud.ServiceSpec{Name: name, Mode: cloud.ServiceMode{Replicas: replicas}}
	spec.Task.Container.Image = img
	spec.Task.Restart.Delay = &delay
	spec.Update = cloud.UpdateConfig{Parallelism: 1, Monitor: 2 * time.Second}
	spec.Rollback = spec.Update
	for _, n := range networks {
		spec.Task.Networks = append(spec.Task.Networks, cloud.NetworkConnection{Target: n})
	}
	return spec
}

func (s *sim) create(spec cloud.ServiceSpec) {
	s.t.Helper()
	_, err := s.api.CreateService(s.t.Context(), spec, "")
	must(s.t, err)
}

func (s *sim) update(name string, edit func(*cloud.ServiceSpec)) {
	s.t.Helper()
	s.again(func() error {
		svc := state.Clone(s.service(name))
		edit(&svc.Spec)
		return s.api.UpdateService(s.t.Context(), svc.ID, svc.Version, svc.Spec, false)
	})
}

// again repeats what a client repeats: a read and a write between which somebody else wrote.
func (s *sim) again(f func() error) {
	s.t.Helper()
	err := f()
	for fault.Is(err, fault.OutOfDate) {
		err = f()
	}
	must(s.t, err)
}

func (s *sim) setAvailability(node string, a cloud.Availability) {
	s.t.Helper()
	s.again(func() error {
		n, err := s.api.GetNode(s.t.Context(), node)
		must(s.t, err)
		spec := n.Spec
		spec.Availability = a
		return s.api.UpdateNode(s.t.Context(), n.ID, n.Version, spec)
	})
}

func (s *sim) settled(service string, n int) func() bool {
	return func() bool { return len(s.serving(service)) == n }
}

// serve waits until n tasks of a service on a network serve, and every host knows.
func (s *sim) serve(service string, n int) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("%d tasks of %s serve and every host knows", n, service), func() bool {
		for _, h := range s.hosts {
			if len(h.backends(service)) != n {
				return false
			}
		}
		return len(s.serving(service)) == n
	})
}

// violate notes a broken promise; the test fails with it at its end.
func (s *sim) violate(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violated = append(s.violated, fmt.Sprintf(format, args...))
}

// watchStops makes the sim note every stop of a container that some host which answers still sends requests to.
func (s *sim) watchStops() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onStop = func(stopped *host, c *fakeContainer) {
		task := c.cfg.Labels["com.docker.swarm.task.id"]
		for name, h := range s.hosts {
			if h.isCut() {
				continue
			}
			if v := h.applied(); v != nil {
				for _, m := range v.Members {
					if m.Ready && strings.HasPrefix(m.ID, task+"/") {
						s.violate("%s: the stop of %s came while host %s still sent it requests", stopped.name, c.cfg.Name, name)
					}
				}
			}
		}
	}
}

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
	lines     []string
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
	c.lines = append(c.lines, fmt.Sprintf("started %s run %d\n", c.cfg.Image, c.runs))
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
	return &logReader{h: e.h, c: c, follow: o.Follow}, nil
}

type logReader struct {
	h      *host
	c      *fakeContainer
	at     int
	follow bool
}

func (r *logReader) Close() error { return nil }

func (r *logReader) Next(ctx context.Context) (container.LogLine, error) {
	for {
		r.h.mu.Lock()
		if r.at < len(r.c.lines) {
			line := r.c.lines[r.at]
			r.at++
			r.h.mu.Unlock()
			return container.LogLine{Stream: container.Stdout, Time: time.Now(), Line: []byte(line)}, nil
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
	c.lines = append(c.lines, line+"\n")
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

// reach connects an agent with the leading manager.
type reach struct{ h *host }

func (r reach) Update([]string) {}

func (r reach) Connect(ctx context.Context) (agent.Link, error) {
	if err := r.h.passable(ctx); err != nil {
		return agent.Link{}, err
	}
	c := &client{s: r.h.s, node: r.h.name, h: r.h}
	return agent.Link{Dispatcher: c, Heartbeats: c, Report: rpc.FromStatus}, nil
}

// client calls the leader's dispatcher in this process.
type client struct {
	s    *sim
	node string
	h    *host // whose link it goes over; nil: none
}

func (c *client) leader() (*manager, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.leading < 0 {
		return nil, rpc.NotLeader("")
	}
	m := c.s.managers[c.s.leading]
	if h := c.s.hosts[m.node]; h != nil && h.isCut() && c.node != m.node {
		return nil, fault.New(fault.Unavailable, "no route to host")
	}
	return m, nil
}

func (c *client) pass(ctx context.Context) (context.Context, *manager, error) {
	if c.h != nil {
		if err := c.h.passable(ctx); err != nil {
			return nil, nil, err
		}
	}
	m, err := c.leader()
	if err != nil {
		return nil, nil, err
	}
	return rpc.WithCaller(ctx, rpc.Caller{NodeID: c.node, Role: rpc.RoleWorker}), m, nil
}

func call[Req, Resp any](ctx context.Context, c *client, req Req, f func(*manager) func(context.Context, Req) (Resp, error)) (Resp, error) {
	var none Resp
	ctx, m, err := c.pass(ctx)
	if err != nil {
		return none, err
	}
	resp, err := f(m)(ctx, req)
	if c.h != nil { // the answer goes over the link too
		if perr := c.h.passable(ctx); perr != nil {
			return none, perr
		}
	}
	if err != nil {
		return none, rpc.ToStatus(err)
	}
	return resp, nil
}

func (c *client) Heartbeat(ctx context.Context, r *rpc.HeartbeatRequest, _ ...grpc.CallOption) (*rpc.HeartbeatResponse, error) {
	return call(ctx, c, r, func(m *manager) func(context.Context, *rpc.HeartbeatRequest) (*rpc.HeartbeatResponse, error) {
		return m.leader.Dispatcher().Heartbeat
	})
}

func (c *client) UpdateTaskStatus(ctx context.Context, r *rpc.UpdateTaskStatusRequest, _ ...grpc.CallOption) (*rpc.UpdateTaskStatusResponse, error) {
	return call(ctx, c, r, func(m *manager) func(context.Context, *rpc.UpdateTaskStatusRequest) (*rpc.UpdateTaskStatusResponse, error) {
		return m.leader.Dispatcher().UpdateTaskStatus
	})
}

func (c *client) Attach(ctx context.Context, r *rpc.AttachRequest, _ ...grpc.CallOption) (*rpc.AttachResponse, error) {
	return call(ctx, c, r, func(m *manager) func(context.Context, *rpc.AttachRequest) (*rpc.AttachResponse, error) {
		return m.leader.Dispatcher().Attach
	})
}

func (c *client) Detach(ctx context.Context, r *rpc.DetachRequest, _ ...grpc.CallOption) (*rpc.DetachResponse, error) {
	return call(ctx, c, r, func(m *manager) func(context.Context, *rpc.DetachRequest) (*rpc.DetachResponse, error) {
		return m.leader.Dispatcher().Detach
	})
}

// pipe is a stream of two directions in this process. What is sent while the link is cut waits.
type pipe[Up, Down any] struct {
	grpc.ClientStream
	ctx    context.Context
	h      *host
	up     chan *Up
	down   chan *Down
	closed chan struct{} // the caller sends no more
	once   sync.Once
	done   chan struct{} // the handler returned
	err    error
	answer chan *rpc.PublishLogsResponse
}

func open[Up, Down any](ctx context.Context, c *client, handler func(*manager, *pipe[Up, Down]) error) (*pipe[Up, Down], error) {
	ctx, m, err := c.pass(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &pipe[Up, Down]{ctx: ctx, h: c.h, up: make(chan *Up), down: make(chan *Down), closed: make(chan struct{}), done: make(chan struct{}),
		answer: make(chan *rpc.PublishLogsResponse, 1)}
	forget := func() {}
	if c.h != nil {
		c.h.mu.Lock()
		c.h.nextConn++
		n := c.h.nextConn
		c.h.conns[n] = cancel
		c.h.mu.Unlock()
		forget = func() {
			c.h.mu.Lock()
			defer c.h.mu.Unlock()
			delete(c.h.conns, n)
		}
	}
	go func() {
		defer cancel()
		defer forget()
		p.err = rpc.ToStatus(handler(m, p))
		if p.err == nil {
			p.err = io.EOF
		}
		close(p.done)
	}()
	return p, nil
}

func (p *pipe[Up, Down]) Context() context.Context { return p.ctx }

func (p *pipe[Up, Down]) link() error {
	if p.h == nil {
		return nil
	}
	return p.h.passable(p.ctx)
}

// The caller's side.

func (p *pipe[Up, Down]) Send(m *Up) error {
	if err := p.link(); err != nil {
		return err
	}
	select {
	case p.up <- m:
		return nil
	case <-p.done:
		return io.EOF
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pipe[Up, Down]) Recv() (*Down, error) {
	for {
		select {
		case m := <-p.down:
			return m, nil
		case <-p.done:
			if err := p.link(); err != nil {
				return nil, err
			}
			return nil, p.err
		case <-p.ctx.Done():
			select {
			case <-p.done:
				return nil, p.err
			default:
			}
			return nil, p.ctx.Err()
		}
	}
}

func (p *pipe[Up, Down]) CloseSend() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipe[Up, Down]) CloseAndRecv() (*rpc.PublishLogsResponse, error) {
	_ = p.CloseSend()
	select {
	case a := <-p.answer:
		return a, nil
	case <-p.done:
		return &rpc.PublishLogsResponse{}, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

// serverSide is the handler's end of a pipe.
type serverSide[Up, Down any] struct {
	grpc.ServerStream
	p *pipe[Up, Down]
}

func (s serverSide[Up, Down]) Context() context.Context { return s.p.ctx }

func (s serverSide[Up, Down]) Send(m *Down) error {
	if err := s.p.link(); err != nil {
		return err
	}
	select {
	case s.p.down <- m:
		return nil
	case <-s.p.ctx.Done():
		return s.p.ctx.Err()
	}
}

func (s serverSide[Up, Down]) Recv() (*Up, error) {
	select {
	case m := <-s.p.up:
		return m, nil
	case <-s.p.closed:
		return nil, io.EOF
	case <-s.p.ctx.Done():
		return nil, s.p.ctx.Err()
	}
}

func (s serverSide[Up, Down]) SendAndClose(r *rpc.PublishLogsResponse) error {
	s.p.answer <- r
	return nil
}

func (c *client) Session(ctx context.Context, _ ...grpc.CallOption) (rpc.Dispatcher_SessionClient, error) {
	return open(ctx, c, func(m *manager, p *pipe[rpc.AgentMessage, rpc.ManagerMessage]) error {
		return m.leader.Dispatcher().Session(serverSide[rpc.AgentMessage, rpc.ManagerMessage]{p: p})
	})
}

func (c *client) PublishLogs(ctx context.Context, _ ...grpc.CallOption) (rpc.Dispatcher_PublishLogsClient, error) {
	return open(ctx, c, func(m *manager, p *pipe[rpc.LogFrame, rpc.PublishLogsResponse]) error {
		return m.leader.Dispatcher().PublishLogs(serverSide[rpc.LogFrame, rpc.PublishLogsResponse]{p: p})
	})
}

func (c *client) SubscribeLogs(ctx context.Context, r *rpc.LogRequest, _ ...grpc.CallOption) (rpc.Dispatcher_SubscribeLogsClient, error) {
	return open(ctx, c, func(m *manager, p *pipe[rpc.LogRequest, rpc.LogFrame]) error {
		return m.leader.Dispatcher().SubscribeLogs(r, serverSide[rpc.LogRequest, rpc.LogFrame]{p: p})
	})
}
