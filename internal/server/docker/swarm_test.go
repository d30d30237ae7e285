package docker

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/pkg/stdcopy"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/registry"
	apiswarm "github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
)

func TestSwarmFromInitToLeave(t *testing.T) {
	l := newLab(t)
	c, ctx := l.client(t), t.Context()
	for name, call := range map[string]func() error{
		"service ls": func() error { _, err := c.ServiceList(ctx, client.ServiceListOptions{}); return err },
		"node ls":    func() error { _, err := c.NodeList(ctx, client.NodeListOptions{}); return err },
		"inspect":    func() error { _, err := c.SwarmInspect(ctx, client.SwarmInspectOptions{}); return err },
		"secret":     func() error { _, err := c.SecretList(ctx, client.SecretListOptions{}); return err },
	} {
		if err := call(); !cerrdefs.IsUnavailable(err) || !strings.Contains(err.Error(), `This node is not a swarm manager. Use "docker swarm init"`) {
			t.Errorf("%s outside of a cluster: %v", name, err)
		}
	}
	init, err := c.SwarmInit(ctx, client.SwarmInitOptions{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: "10.0.0.1", DataPathPort: 4790, DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}, SubnetSize: 24})
	if err != nil || init.NodeID != "node1" {
		t.Fatalf("%+v %v", init, err)
	}
	if got := l.swarm.init; got.AdvertiseAddr != "10.0.0.1" || got.DataPathPort != 4790 || got.SubnetSize != 24 || len(got.Pools) != 1 || got.Spec.TaskHistoryLimit != 5 || got.Availability != cloud.AvailabilityActive {
		t.Errorf("%+v", got)
	}
	if _, err := c.SwarmInit(ctx, client.SwarmInitOptions{ListenAddr: "0.0.0.0:2377"}); err == nil || !strings.Contains(err.Error(), "already part of a swarm") {
		t.Errorf("init twice: %v", err)
	}
	s, err := c.SwarmInspect(ctx, client.SwarmInspectOptions{})
	if err != nil || s.Swarm.JoinTokens.Worker != "SWMTKN-1-w" || s.Swarm.ID != "cluster1" {
		t.Fatalf("%+v %v", s, err)
	}
	spec := s.Swarm.Spec
	limit := int64(9)
	spec.Orchestration.TaskHistoryRetentionLimit = &limit
	if _, err := c.SwarmUpdate(ctx, client.SwarmUpdateOptions{Version: s.Swarm.Version, Spec: spec, RotateWorkerToken: true}); err != nil {
		t.Error(err)
	}
	if got := l.swarm.cluster.cluster; got.Spec.TaskHistoryLimit != 9 || got.Spec.Name != "default" || got.Tokens.Worker != "SWMTKN-1-w2" || got.Tokens.Manager != "SWMTKN-1-m" {
		t.Errorf("%+v", got)
	}
	if _, err := c.SwarmUpdate(ctx, client.SwarmUpdateOptions{Version: s.Swarm.Version, Spec: spec}); err == nil || !strings.Contains(err.Error(), "update out of sequence") {
		t.Errorf("an update based on what is old: %v", err)
	}
	info, err := c.Info(ctx, client.InfoOptions{})
	if err != nil || info.Info.Swarm.NodeID != "node1" || !info.Info.Swarm.ControlAvailable || info.Info.Swarm.Cluster.ID != "cluster1" || info.Info.Swarm.RemoteManagers[0].Addr != "10.0.0.1:2377" {
		t.Errorf("%+v %v", info.Info.Swarm, err)
	}
	if _, err := c.SwarmLeave(ctx, client.SwarmLeaveOptions{}); err == nil {
		t.Error("a manager left without --force")
	}
	if _, err := c.SwarmLeave(ctx, client.SwarmLeaveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if _, err := c.SwarmJoin(ctx, client.SwarmJoinOptions{RemoteAddrs: []string{"10.0.0.2:2377"}, JoinToken: "SWMTKN-1-x", Availability: "drain"}); err != nil || l.swarm.join.Token != "SWMTKN-1-x" || l.swarm.join.Availability != cloud.AvailabilityDrain {
		t.Errorf("%+v %v", l.swarm.join, err)
	}
}

func TestNodes(t *testing.T) {
	l := newLab(t)
	l.swarm.cluster = newFakeCluster(clusterSpecForTest)
	l.swarm.cluster.nodes["node2"] = &cloud.Node{Meta: cloud.Meta{ID: "node2", Version: 4}, Spec: cloud.NodeSpec{Role: cloud.RoleWorker, Availability: cloud.AvailabilityActive, Labels: map[string]string{"rack": "1"}},
		Description: cloud.NodeDescription{Hostname: "host-2", Labels: map[string]string{"disk": "ssd"}}, Status: cloud.NodeStatus{State: cloud.NodeDown}}
	c, ctx := l.client(t), t.Context()
	for _, tc := range []struct {
		filters client.Filters
		want    int
	}{
		{nil, 2}, {client.Filters{}.Add("role", "manager"), 1}, {client.Filters{}.Add("name", "host-2"), 1}, {client.Filters{}.Add("id", "node"), 2},
		{client.Filters{}.Add("node.label", "rack=1"), 1}, {client.Filters{}.Add("label", "disk=ssd"), 1}, {client.Filters{}.Add("membership", "pending"), 0},
	} {
		if res, err := c.NodeList(ctx, client.NodeListOptions{Filters: tc.filters}); err != nil || len(res.Items) != tc.want {
			t.Errorf("%v: %d %v", tc.filters, len(res.Items), err)
		}
	}
	self, err := c.NodeInspect(ctx, "self", client.NodeInspectOptions{})
	if err != nil || self.Node.ID != "node1" || !self.Node.ManagerStatus.Leader || self.Node.ManagerStatus.Reachability != "reachable" || self.Node.Status.Addr != "10.0.0.1" {
		t.Errorf("%+v %v", self.Node, err)
	}
	plugins := self.Node.Description.Engine.Plugins
	for _, want := range []apiswarm.PluginDescription{{Type: "Log", Name: "json-file"}, {Type: "Log", Name: "syslog"}, {Type: "Network", Name: "overlay"}, {Type: "Volume", Name: "local"}} {
		if !slices.Contains(plugins, want) {
			t.Errorf("%v is not among a node's drivers: %v", want, plugins)
		}
	}
	n, err := c.NodeInspect(ctx, "node2", client.NodeInspectOptions{})
	if err != nil || n.Node.ManagerStatus != nil || n.Node.Status.State != "down" {
		t.Errorf("%+v %v", n.Node, err)
	}
	n.Node.Spec.Availability = "drain"
	if _, err := c.NodeUpdate(ctx, "node2", client.NodeUpdateOptions{Version: n.Node.Version, Spec: n.Node.Spec}); err != nil || l.swarm.cluster.nodes["node2"].Spec.Availability != cloud.AvailabilityDrain || l.swarm.cluster.nodes["node2"].Spec.Labels["rack"] != "1" {
		t.Errorf("%+v %v", l.swarm.cluster.nodes["node2"].Spec, err)
	}
	if _, err := c.NodeRemove(ctx, "node2", client.NodeRemoveOptions{}); !cerrdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
	if _, err := c.NodeRemove(ctx, "node2", client.NodeRemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
}

func ptr[T any](v T) *T { return &v }

// full is a service with everything that the domain has a place for.
func full() apiswarm.ServiceSpec {
	return apiswarm.ServiceSpec{
		Annotations: apiswarm.Annotations{Name: "web", Labels: map[string]string{"k": "v"}},
		Mode:        apiswarm.ServiceMode{Replicated: &apiswarm.ReplicatedService{Replicas: ptr(uint64(3))}},
		TaskTemplate: apiswarm.TaskSpec{
			ContainerSpec: &apiswarm.ContainerSpec{
				Image: "nginx:1", Labels: map[string]string{"c": "d"}, Command: []string{"nginx"}, Args: []string{"-g", "x"}, Hostname: "h-{{.Task.Slot}}", Env: []string{"A=1"},
				Dir: "/srv", User: "www", Groups: []string{"adm"}, StopSignal: "SIGQUIT", StopGracePeriod: ptr(3 * time.Second), TTY: true, OpenStdin: true, ReadOnly: true, Init: ptr(true),
				Mounts: []mount.Mount{
					{Type: mount.TypeVolume, Source: "data", Target: "/data", VolumeOptions: &mount.VolumeOptions{NoCopy: true, Labels: map[string]string{"x": "y"}, DriverConfig: &mount.Driver{Name: "local", Options: map[string]string{"o": "1"}}}},
					{Type: mount.TypeBind, Source: "/srv", Target: "/srv", ReadOnly: true, BindOptions: &mount.BindOptions{Propagation: mount.PropagationRSlave, NonRecursive: true, CreateMountpoint: true, ReadOnlyNonRecursive: true}},
					{Type: mount.TypeTmpfs, Target: "/tmp", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o700, Options: [][]string{{"exec"}, {"uid", "5"}}}},
					{Type: mount.TypeImage, Source: "tools:1", Target: "/tools", ImageOptions: &mount.ImageOptions{Subpath: "bin"}},
					{Type: mount.TypeVolume, Source: "data-{{.Task.Slot}}", Target: "/{{.Service.Name}}", VolumeOptions: &mount.VolumeOptions{Subpath: "sub"}},
					{Type: mount.TypeBind, Source: "{{.Node.Hostname}}/x", Target: "/x"},
				},
				Healthcheck: &apicontainer.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Second, Timeout: time.Second, Retries: 2, StartPeriod: time.Second, StartInterval: time.Second},
				Hosts:       []string{"10.0.0.9 db"}, DNSConfig: &apiswarm.DNSConfig{Nameservers: []netip.Addr{netip.MustParseAddr("1.1.1.1")}, Search: []string{"a.b"}, Options: []string{"ndots:1"}},
				Secrets:   []*apiswarm.SecretReference{{SecretID: "s1", SecretName: "key", File: &apiswarm.SecretReferenceFileTarget{Name: "key.pem", UID: "5", GID: "6", Mode: 0o400}}},
				Configs:   []*apiswarm.ConfigReference{{ConfigID: "c1", ConfigName: "conf", File: &apiswarm.ConfigReferenceFileTarget{Name: "/etc/conf", UID: "0", GID: "0", Mode: 0o444}}},
				Isolation: apicontainer.IsolationDefault, Sysctls: map[string]string{"net.core.somaxconn": "1024"}, CapabilityAdd: []string{"CAP_NET_ADMIN"}, CapabilityDrop: []string{"CAP_CHOWN"},
				Ulimits: []*apicontainer.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}}, OomScoreAdj: -500,
				Privileges: &apiswarm.Privileges{NoNewPrivileges: true, SELinuxContext: &apiswarm.SELinuxContext{Disable: true, User: "u", Role: "r", Type: "t", Level: "l"},
					Seccomp: &apiswarm.SeccompOpts{Mode: apiswarm.SeccompModeCustom, Profile: []byte("{}")}, AppArmor: &apiswarm.AppArmorOpts{Mode: apiswarm.AppArmorModeDisabled}},
			},
			Resources: &apiswarm.ResourceRequirements{Limits: &apiswarm.Limit{NanoCPUs: 5e8, MemoryBytes: 64 << 20, Pids: 50}, Reservations: &apiswarm.Resources{NanoCPUs: 1e8, MemoryBytes: 32 << 20,
				GenericResources: []apiswarm.GenericResource{{DiscreteResourceSpec: &apiswarm.DiscreteGenericResource{Kind: "gpu", Value: 2}}}}, SwapBytes: ptr(int64(1 << 20)), MemorySwappiness: ptr(int64(10))},
			RestartPolicy: &apiswarm.RestartPolicy{Condition: "on-failure", Delay: ptr(time.Second), MaxAttempts: ptr(uint64(4)), Window: ptr(time.Minute)},
			Placement: &apiswarm.Placement{Constraints: []string{"node.role==worker"}, MaxReplicas: 2, Preferences: []apiswarm.PlacementPreference{{Spread: &apiswarm.SpreadOver{SpreadDescriptor: "node.labels.rack"}}},
				Platforms: []apiswarm.Platform{{OS: "linux", Architecture: "x86_64"}}},
			Networks:    []apiswarm.NetworkAttachmentConfig{{Target: "net1", Aliases: []string{"www"}}},
			LogDriver:   &apiswarm.Driver{Name: "json-file", Options: map[string]string{"max-size": "1m"}},
			ForceUpdate: 7, Runtime: apiswarm.RuntimeContainer,
		},
		UpdateConfig:   &apiswarm.UpdateConfig{Parallelism: 2, Delay: time.Second, FailureAction: "rollback", Monitor: time.Minute, MaxFailureRatio: 0.5, Order: "start-first"},
		RollbackConfig: &apiswarm.UpdateConfig{Parallelism: 1, FailureAction: "continue", Monitor: time.Second, Order: "stop-first"},
		EndpointSpec: &apiswarm.EndpointSpec{Mode: "vip", Ports: []apiswarm.PortConfig{
			{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: "ingress"}, {Name: "dns", Protocol: "udp", TargetPort: 53, PublishedPort: 8053, PublishMode: "host"},
		}},
	}
}

// TestAServiceComesBackAsItWasGiven: clients update by sending back what they inspected, changed in one place. What
// would not come back would be lost by the next update.
func TestAServiceComesBackAsItWasGiven(t *testing.T) {
	l := newLab(t)
	l.swarm.cluster = newFakeCluster(clusterSpecForTest)
	c, ctx := l.client(t), t.Context()
	auth, _ := authconfig.Encode(registry.AuthConfig{Username: "u", Password: "p"})
	created, err := c.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: full(), EncodedRegistryAuth: auth})
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.ServiceInspect(ctx, "web", client.ServiceInspectOptions{InsertDefaults: true})
	if err != nil {
		t.Fatal(err)
	}
	want, got := full(), s.Service.Spec
	for what, pair := range map[string][2]any{
		"spec": {want, got}, "container": {want.TaskTemplate.ContainerSpec, got.TaskTemplate.ContainerSpec}, "update": {want.UpdateConfig, got.UpdateConfig}, "endpoint": {want.EndpointSpec, got.EndpointSpec},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			a, _ := json.Marshal(pair[0])
			b, _ := json.Marshal(pair[1])
			t.Errorf("%s:\ngiven %s\n  got %s", what, a, b)
		}
	}
	stored := l.swarm.cluster.services[created.ID]
	if stored.Spec.Task.Container.PullAuth != auth || strings.Contains(string(s.Raw), auth) {
		t.Error("credentials must be kept, and not shown")
	}
	got.TaskTemplate.ContainerSpec.Image = "nginx:2"
	if _, err := c.ServiceUpdate(ctx, created.ID, client.ServiceUpdateOptions{Version: s.Service.Version, Spec: got, RegistryAuthFrom: apiswarm.RegistryAuthFromSpec, Rollback: "none"}); err != nil { // as docker 29 says with every update
		t.Fatal(err)
	}
	if stored.Spec.Task.Container.Image != "nginx:2" || stored.Spec.Task.Container.PullAuth != auth || l.swarm.cluster.rolled {
		t.Errorf("%+v", stored.Spec.Task.Container)
	}
	if _, err := c.ServiceUpdate(ctx, created.ID, client.ServiceUpdateOptions{Version: s.Service.Version, Spec: got}); err == nil || !strings.Contains(err.Error(), "update out of sequence") {
		t.Errorf("an update based on what is old: %v", err)
	}
	if s, err = c.ServiceInspect(ctx, created.ID[:10], client.ServiceInspectOptions{}); err != nil || s.Service.PreviousSpec.TaskTemplate.ContainerSpec.Image != "nginx:1" {
		t.Errorf("%+v %v", s.Service.PreviousSpec, err)
	}
	if _, err := c.ServiceUpdate(ctx, created.ID, client.ServiceUpdateOptions{Version: s.Service.Version, Spec: got, Rollback: "previous"}); err != nil || !l.swarm.cluster.rolled || stored.Spec.Task.Container.Image != "nginx:1" {
		t.Errorf("rolled back: %v %v", l.swarm.cluster.rolled, err)
	}
	if _, err := c.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: full()}); !cerrdefs.IsConflict(err) {
		t.Errorf("the same name again: %v", err)
	}
	if _, err := c.ServiceRemove(ctx, "web", client.ServiceRemoveOptions{}); err != nil || len(l.swarm.cluster.services) != 0 {
		t.Error(err)
	}
}

// TestServicesOfOldClients: settings that a version does not have are left out.
func TestServicesOfOldClients(t *testing.T) {
	for version, want := range map[apiVersion]string{1052: "[] swap oom nnp", 1051: "[] oom nnp", 1045: "nnp", 1043: ""} {
		b := serviceBody{ServiceSpec: full()}
		b.adjust(version)
		c := b.TaskTemplate.ContainerSpec
		var got []string
		if c.Mounts[2].TmpfsOptions.Options != nil {
			got = append(got, "[]")
		}
		if b.TaskTemplate.Resources.SwapBytes != nil && b.TaskTemplate.Resources.MemorySwappiness != nil {
			got = append(got, "swap")
		}
		if c.OomScoreAdj != 0 {
			got = append(got, "oom")
		}
		if c.Privileges.NoNewPrivileges && c.Privileges.Seccomp != nil {
			got = append(got, "nnp")
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%d: %v, want %s", version, got, want)
		}
	}
}

// TestServiceWithoutAName gets one, as a container does, and another where that one is taken.
func TestServiceWithoutAName(t *testing.T) {
	l := newLab(t)
	l.swarm.cluster = newFakeCluster(clusterSpecForTest)
	c, names := l.client(t), map[string]bool{}
	for range 3 {
		made, err := c.ServiceCreate(t.Context(), client.ServiceCreateOptions{Spec: apiswarm.ServiceSpec{TaskTemplate: apiswarm.TaskSpec{ContainerSpec: &apiswarm.ContainerSpec{Image: "x"}}}})
		if err != nil {
			t.Fatal(err)
		}
		names[l.swarm.cluster.services[made.ID].Spec.Name] = true
	}
	if len(names) != 3 || names[""] {
		t.Errorf("names %v", names)
	}
}

func TestDefaultsOfAService(t *testing.T) {
	spec, err := serviceSpec(&apiswarm.ServiceSpec{TaskTemplate: apiswarm.TaskSpec{ContainerSpec: &apiswarm.ContainerSpec{Image: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if spec.Mode.Replicas != 1 || spec.Update.Parallelism != 1 || spec.Update.Monitor != 5*time.Second || spec.Update.FailureAction != cloud.FailurePause ||
		spec.Update.Order != cloud.StopFirst || spec.Endpoint.Mode != cloud.EndpointVIP || spec.Task.Restart.Condition != cloud.RestartAny {
		t.Errorf("%+v", spec)
	}
}

func TestServiceStatusAndTasks(t *testing.T) {
	l := newLab(t)
	f := newFakeCluster(clusterSpecForTest)
	l.swarm.cluster = f
	f.networks["net1"] = &cloud.Network{Meta: cloud.Meta{ID: "net1"}, Spec: cloud.NetworkSpec{Name: "shop"}}
	f.services["svc1"] = &cloud.Service{Meta: cloud.Meta{ID: "svc1"}, SpecVersion: 2, Spec: cloud.ServiceSpec{Name: "web", Mode: cloud.ServiceMode{Replicas: 3}},
		Endpoint: cloud.Endpoint{VIPs: []cloud.VirtualIP{{NetworkID: "net1", Addrs: []netip.Prefix{netip.MustParsePrefix("10.10.0.2/24")}}}}}
	f.services["svc2"] = &cloud.Service{Meta: cloud.Meta{ID: "svc2"}, Spec: cloud.ServiceSpec{Name: "agent", Mode: cloud.ServiceMode{Global: true}}}
	task := func(id, service, node string, state, desired cloud.TaskState, version uint64) {
		f.tasks[id] = &cloud.Task{Meta: cloud.Meta{ID: id}, ServiceID: service, ServiceName: f.services[service].Spec.Name, Slot: 1, NodeID: node, SpecVersion: version, Desired: desired,
			Status:   cloud.TaskStatus{State: state, ContainerID: "c-" + id, HostPorts: []cloud.PortConfig{{Protocol: cloud.TCP, Target: 80, Published: 30000, Mode: cloud.PublishHost}}},
			Networks: []cloud.TaskNetwork{{NetworkID: "net1", Addrs: []netip.Prefix{netip.MustParsePrefix("10.10.0.7/24")}}}}
	}
	task("t1", "svc1", "node1", cloud.TaskRunning, cloud.TaskRunning, 2)
	task("t2", "svc1", "node1", cloud.TaskRunning, cloud.TaskRunning, 1)
	task("t3", "svc1", "node2", cloud.TaskPreparing, cloud.TaskRunning, 2)
	task("t4", "svc1", "node1", cloud.TaskFailed, cloud.TaskShutdown, 1)
	f.tasks["t2"].Spec.Container.Image = "web:old"
	// t4 was made before the service was scaled, which does not touch it.
	task("t5", "svc2", "node1", cloud.TaskRunning, cloud.TaskRunning, 0)
	c, ctx := l.client(t), t.Context()

	res, err := c.ServiceList(ctx, client.ServiceListOptions{Status: true})
	if err != nil || len(res.Items) != 2 {
		t.Fatal(err)
	}
	for _, s := range res.Items {
		want := map[string]apiswarm.ServiceStatus{"web": {RunningTasks: 2, DesiredTasks: 3}, "agent": {RunningTasks: 1, DesiredTasks: 1}}[s.Spec.Name]
		if *s.ServiceStatus != want {
			t.Errorf("%s: %+v, want %+v", s.Spec.Name, *s.ServiceStatus, want)
		}
		if s.Spec.Name == "web" && s.Endpoint.VirtualIPs[0].Addr.String() != "10.10.0.2/24" {
			t.Errorf("%+v", s.Endpoint)
		}
	}
	if res, err = c.ServiceList(ctx, client.ServiceListOptions{Filters: client.Filters{}.Add("mode", "global")}); err != nil || len(res.Items) != 1 || res.Items[0].ServiceStatus != nil {
		t.Errorf("%+v %v", res.Items, err)
	}
	for _, tc := range []struct {
		filters client.Filters
		want    string
	}{
		{nil, "t1 t2 t3 t4 t5"},
		{client.Filters{}.Add("service", "web"), "t1 t2 t3 t4"},
		{client.Filters{}.Add("service", "nosuch"), ""},
		{client.Filters{}.Add("node", "self"), "t1 t2 t4 t5"},
		{client.Filters{}.Add("desired-state", "running"), "t1 t2 t3 t5"},
		{client.Filters{}.Add("desired-state", "shutdown"), "t4"},
		{client.Filters{}.Add("service", "web").Add("_up-to-date", "true"), "t1 t3 t4"},
		{client.Filters{}.Add("id", "t1"), "t1"},
		{client.Filters{}.Add("name", "agent"), "t5"},
	} {
		res, err := c.TaskList(ctx, client.TaskListOptions{Filters: tc.filters})
		var ids []string
		for _, t := range res.Items {
			ids = append(ids, t.ID)
		}
		slices.Sort(ids)
		if got := strings.Join(ids, " "); err != nil || got != tc.want {
			t.Errorf("%v: %q %v, want %q", tc.filters, got, err, tc.want)
		}
	}
	one, err := c.TaskInspect(ctx, "t1", client.TaskInspectOptions{})
	if err != nil || one.Task.Status.ContainerStatus.ContainerID != "c-t1" || one.Task.NetworksAttachments[0].Network.Spec.Name != "shop" || one.Task.Status.PortStatus.Ports[0].PublishedPort != 30000 || one.Task.DesiredState != "running" {
		t.Errorf("%+v %v", one.Task, err)
	}
	in, err := c.NetworkInspect(ctx, "shop", client.NetworkInspectOptions{Verbose: true})
	if err != nil || in.Network.Services["web"].VIP.String() != "10.10.0.2" || len(in.Network.Services["web"].Tasks) != 3 {
		t.Errorf("%+v %v", in.Network.Services, err)
	}
}

func TestServiceLogs(t *testing.T) {
	l := newLab(t)
	f := newFakeCluster(clusterSpecForTest)
	l.swarm.cluster = f
	f.services["svc1"] = &cloud.Service{Meta: cloud.Meta{ID: "svc1"}, Spec: cloud.ServiceSpec{Name: "web"}}
	f.tasks["t1"] = &cloud.Task{Meta: cloud.Meta{ID: "t1"}, ServiceID: "svc1", NodeID: "node1"}
	f.tasks["pending"] = &cloud.Task{Meta: cloud.Meta{ID: "pending"}, ServiceID: "svc1"}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f.logs = []control.TaskLog{{TaskID: "t1", NodeID: "node1", Time: at, Line: []byte("out\n")}, {TaskID: "t1", NodeID: "node1", Stderr: true, Time: at, Line: []byte("err\n")}}
	c := l.client(t)
	res, err := c.ServiceLogs(t.Context(), "web", client.ServiceLogsOptions{ShowStdout: true, ShowStderr: true, Details: true, Timestamps: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, res); err != nil {
		t.Fatal(err)
	}
	const attrs = "2026-01-02T03:04:05.000000000Z com.docker.swarm.node.id=node1,com.docker.swarm.service.id=svc1,com.docker.swarm.task.id=t1 "
	if stdout.String() != attrs+"out\n" || stderr.String() != attrs+"err\n" {
		t.Errorf("%q %q", stdout.String(), stderr.String())
	}
	if !slices.Equal(f.logsOf, []string{"t1"}) {
		t.Errorf("asked for the logs of %v", f.logsOf)
	}
	tl, err := c.TaskLogs(t.Context(), "t1", client.TaskLogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tl.Close()
	stdout.Reset()
	if _, err := stdcopy.StdCopy(&stdout, &stderr, tl); err != nil || stdout.String() != "out\n" {
		t.Errorf("%q %v", stdout.String(), err)
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	l := newLab(t)
	l.swarm.cluster = newFakeCluster(clusterSpecForTest)
	c, ctx := l.client(t), t.Context()
	s, err := c.SecretCreate(ctx, client.SecretCreateOptions{Spec: apiswarm.SecretSpec{Annotations: apiswarm.Annotations{Name: "key", Labels: map[string]string{"k": "v"}}, Data: []byte("hunter2")}})
	if err != nil || string(l.swarm.cluster.secrets[s.ID].Spec.Data) != "hunter2" {
		t.Fatal(err)
	}
	for _, path := range []string{"/secrets", "/secrets/key"} {
		if _, _, body := l.do(t, "GET", path, "", ""); !strings.Contains(body, s.ID) || strings.Contains(body, "Data") {
			t.Errorf("%s: %s", path, body)
		}
	}
	in, err := c.SecretInspect(ctx, "key", client.SecretInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.SecretUpdate(ctx, "key", client.SecretUpdateOptions{Version: in.Secret.Version, Spec: apiswarm.SecretSpec{Annotations: apiswarm.Annotations{Name: "key", Labels: map[string]string{"a": "b"}}}}); err != nil || l.swarm.cluster.secrets[s.ID].Spec.Labels["a"] != "b" {
		t.Error(err)
	}
	if res, err := c.SecretList(ctx, client.SecretListOptions{Filters: client.Filters{}.Add("name", "nosuch")}); err != nil || len(res.Items) != 0 {
		t.Errorf("%+v %v", res.Items, err)
	}
	if _, err := c.SecretRemove(ctx, "key", client.SecretRemoveOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := c.SecretInspect(ctx, "key", client.SecretInspectOptions{}); !cerrdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if _, err := c.ConfigCreate(ctx, client.ConfigCreateOptions{Spec: apiswarm.ConfigSpec{Annotations: apiswarm.Annotations{Name: "conf"}, Data: []byte("shown"), Templating: &apiswarm.Driver{Name: "golang"}}}); err != nil {
		t.Fatal(err)
	}
	cfg, err := c.ConfigInspect(ctx, "conf", client.ConfigInspectOptions{})
	if err != nil || string(cfg.Config.Spec.Data) != "shown" || cfg.Config.Spec.Templating == nil || cfg.Config.Spec.Templating.Name != "golang" {
		t.Errorf("%+v %v", cfg.Config, err)
	}
	if _, err := c.ConfigRemove(ctx, "conf", client.ConfigRemoveOptions{}); err != nil {
		t.Error(err)
	}
}
