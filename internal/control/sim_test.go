package control_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sampan-cloud/sampan/internal/agent"
	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
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
	leading  int                             // index of the manager that leads, -1: none
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
