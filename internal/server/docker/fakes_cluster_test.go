package docker

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/fault"
)

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
func (f *fakeSwarm) Unlock(_ context.Context, key string) error {
	if key != "SWMKEY-1-right" {
		return fault.New(fault.Unauthorized, "swarm could not be unlocked: invalid key provided")
	}
	return nil
}
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
func (f *fakeCluster) UpdateCluster(_ context.Context, version uint64, change control.ClusterChange) error {
	if err := checkVersion(&f.cluster.Meta, version); err != nil {
		return err
	}
	f.cluster.Spec = change.Spec
	if change.RotateWorkerToken {
		f.cluster.Tokens.Worker += "2"
	}
	if change.RotateManagerToken {
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
