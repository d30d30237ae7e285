package control_test

import (
	"context"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/memstate"
)

func TestBadServices(t *testing.T) {
	minus := -time.Second
	cases := map[string]struct {
		edit func(*cloud.ServiceSpec)
		want string
	}{
		"no name":           {func(s *cloud.ServiceSpec) { s.Name = "" }, "meta: name must be provided"},
		"bad name":          {func(s *cloud.ServiceSpec) { s.Name = "-web" }, "name must be valid as a DNS name component"},
		"dotted name":       {func(s *cloud.ServiceSpec) { s.Name = "a.b" }, "name must be valid as a DNS name component"},
		"long name":         {func(s *cloud.ServiceSpec) { s.Name = strings.Repeat("a", 64) }, "name must be 63 characters or fewer"},
		"negative replicas": {func(s *cloud.ServiceSpec) { s.Mode.Replicas = math.MaxUint64 }, "Number of replicas must be non-negative"},
		"global replicas":   {func(s *cloud.ServiceSpec) { s.Mode.Global = true }, "replicas can only be used with replicated or replicated-job mode"},
		"no image":          {func(s *cloud.ServiceSpec) { s.Task.Container.Image = "" }, "ContainerSpec: image reference must be provided"},
		"bad image":         {func(s *cloud.ServiceSpec) { s.Task.Container.Image = "::" }, `ContainerSpec: "::" is not a valid repository/tag`},
		"tiny cpu":          {func(s *cloud.ServiceSpec) { s.Task.Limits.NanoCPUs = 1 }, "invalid cpu value 1e-09: Must be at least 0.001"},
		"negative cpu":      {func(s *cloud.ServiceSpec) { s.Task.Reservations.NanoCPUs = -1e9 }, "invalid cpu value -1: Must be at least 0.001"},
		"tiny memory":       {func(s *cloud.ServiceSpec) { s.Task.Limits.MemoryBytes = 100 }, "invalid memory value 100: Must be at least 4MiB"},
		"negative delay":    {func(s *cloud.ServiceSpec) { s.Task.Restart.Delay = &minus }, "TaskSpec: restart-delay cannot be negative"},
		"negative window":   {func(s *cloud.ServiceSpec) { s.Task.Restart.Window = minus }, "TaskSpec: restart-window cannot be negative"},
		"bad condition":     {func(s *cloud.ServiceSpec) { s.Task.Restart.Condition = "often" }, `invalid RestartCondition: "often"`},
		"update delay":      {func(s *cloud.ServiceSpec) { s.Update.Delay = minus }, "TaskSpec: update-delay cannot be negative"},
		"update ratio":      {func(s *cloud.ServiceSpec) { s.Update.MaxFailureRatio = 1.5 }, "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"},
		"update ratio NaN":  {func(s *cloud.ServiceSpec) { s.Update.MaxFailureRatio = math.NaN() }, "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"},
		"rollback monitor":  {func(s *cloud.ServiceSpec) { s.Rollback.Monitor = minus }, "TaskSpec: rollback-monitor cannot be negative"},
		"constraint":        {func(s *cloud.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.role"} }, "constraint expected one operator from ==, !=: got 'node.role'"},
		"preference":        {func(s *cloud.ServiceSpec) { s.Task.Placement.SpreadOver = []string{"node.rack"} }, `invalid placement preference "node.rack": want spread over node.labels.NAME`},
		"unknown network":   {func(s *cloud.ServiceSpec) { s.Task.Networks = []cloud.NetworkConnection{{Target: "nope"}} }, "network nope not found"},
		"ingress network":   {func(s *cloud.ServiceSpec) { s.Task.Networks = []cloud.NetworkConnection{{Target: "ingress"}} }, `Service cannot be explicitly attached to the ingress network "ingress"`},
		"unknown secret": {func(s *cloud.ServiceSpec) {
			s.Task.Container.Secrets = []cloud.FileReference{{Name: "key", Path: "key"}}
		}, "secret not found: key"},
		"secret without path": {func(s *cloud.ServiceSpec) { s.Task.Container.Secrets = []cloud.FileReference{{Name: "key"}} }, "malformed secret reference, no target provided"},
		"secret that escapes": {func(s *cloud.ServiceSpec) {
			s.Task.Container.Secrets = []cloud.FileReference{{Name: "key", Path: "../x"}}
		}, "malformed file secret reference, invalid target file name provided"},
		"port 0": {func(s *cloud.ServiceSpec) { s.Endpoint.Ports = []cloud.PortConfig{{Published: 80}} }, "invalid target port 0: a published port names the port of the tasks"},
		"port twice": {func(s *cloud.ServiceSpec) {
			s.Endpoint.Ports = []cloud.PortConfig{{Target: 80, Published: 80}, {Target: 81, Published: 80, Protocol: "tcp"}}
		}, "EndpointSpec: duplicate published ports provided"},
		"port protocol": {func(s *cloud.ServiceSpec) { s.Endpoint.Ports = []cloud.PortConfig{{Target: 80, Protocol: "icmp"}} }, `invalid protocol "icmp" of a published port: want tcp, udp or sctp`},
		"dnsrr ingress": {func(s *cloud.ServiceSpec) {
			s.Endpoint = cloud.EndpointSpec{Mode: cloud.EndpointDNSRR, Ports: []cloud.PortConfig{{Target: 80}}}
		}, "EndpointSpec: port published with ingress mode can't be used with dnsrr mode"},
		"mount without target": {func(s *cloud.ServiceSpec) { s.Task.Container.Mounts = []cloud.Mount{{Type: "volume"}} }, "invalid mount target, must not be empty"},
		"relative bind": {func(s *cloud.ServiceSpec) {
			s.Task.Container.Mounts = []cloud.Mount{{Type: "bind", Source: "x", Target: "/x"}}
		}, "invalid bind mount source, must be an absolute path: x"},
		"mount twice": {func(s *cloud.ServiceSpec) {
			s.Task.Container.Mounts = []cloud.Mount{{Type: "volume", Target: "/x"}, {Type: "tmpfs", Target: "/x/"}}
		}, "ContainerSpec: duplicate mount point: /x/"},
		"mount type":      {func(s *cloud.ServiceSpec) { s.Task.Container.Mounts = []cloud.Mount{{Type: "nfs", Target: "/x"}} }, `invalid mount type: "nfs"`},
		"health interval": {func(s *cloud.ServiceSpec) { s.Task.Container.Health = &cloud.HealthConfig{Interval: 1} }, "ContainerSpec: Interval in HealthConfig cannot be less than 1ms"},
		"template":        {func(s *cloud.ServiceSpec) { s.Task.Container.Hostname = "{{.Nope}}" }, "expanding hostname failed: template: expansion:1:2"},
	}
	run(t, 1, 1, func(t *testing.T, s *sim) {
		for name, c := range cases {
			spec := webSpec("web", "web:1", 1)
			c.edit(&spec)
			_, err := s.api.CreateService(t.Context(), spec, "")
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("%s: %v, want %s", name, err, c.want)
			}
			if k := fault.KindOf(err); k != fault.InvalidArgument && !(k == fault.NotFound && name == "unknown network") {
				t.Errorf("%s: kind %s", name, k)
			}
			if len(list[*cloud.Service](s)) != 0 {
				t.Fatalf("%s: something was made", name)
			}
		}
	})
}

func wantError(t *testing.T, err error, kind fault.Kind, start string) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind || !strings.HasPrefix(err.Error(), start) {
		t.Errorf("%v (%s), want %s (%s)", err, fault.KindOf(err), start, kind)
	}
}

func TestServiceConflicts(t *testing.T) {
	run(t, 1, 1, func(t *testing.T, s *sim) {
		ctx := t.Context()
		s.network("net")
		spec := webSpec("web", "web:1", 1, "net")
		spec.Endpoint.Ports = []cloud.PortConfig{{Target: 80, Published: 8080}}
		id, err := s.api.CreateService(ctx, spec, "key1")
		must(t, err)
		again, err := s.api.CreateService(ctx, spec, "key1")
		if err != nil || again != id {
			t.Errorf("the same request again: %s, %v; want %s", again, err, id)
		}
		_, err = s.api.CreateService(ctx, spec, "")
		wantError(t, err, fault.AlreadyExists, "name conflicts with an existing object: service web already exists")
		spec.Name = "other"
		_, err = s.api.CreateService(ctx, spec, "")
		wantError(t, err, fault.InvalidArgument, "port '8080' is already in use by service 'web' ("+id+") as an ingress port")
		spec.Endpoint.Ports[0].Mode = cloud.PublishHost
		_, err = s.api.CreateService(ctx, spec, "")
		wantError(t, err, fault.InvalidArgument, "port '8080' is already in use by service 'web'")
		spec.Endpoint.Ports[0] = cloud.PortConfig{Target: 80, Published: 8080, Protocol: cloud.UDP}
		_, err = s.api.CreateService(ctx, spec, "")
		must(t, err)

		wantError(t, s.api.RemoveNetwork(ctx, "net"), fault.FailedPrecondition, "network net is in use by service ")
		wantError(t, s.api.RemoveNetwork(ctx, "ingress"), fault.FailedPrecondition, "ingress network cannot be removed because service ")
		s.eventually("it runs", s.settled("web", 1))
		svc := s.service("web")
		wantError(t, s.api.UpdateService(ctx, id, svc.SpecSince-1, svc.Spec, false), fault.OutOfDate, "update out of sequence")
		wantError(t, s.api.UpdateService(ctx, id, svc.Version, cloud.ServiceSpec{}, true), fault.FailedPrecondition, "service "+id+" does not have a previous spec")
		renamed := svc.Spec
		renamed.Name = "web2"
		wantError(t, s.api.UpdateService(ctx, id, svc.Version, renamed, false), fault.NotImplemented, "renaming services is not supported")
		_, err = s.api.GetService(ctx, "nope")
		wantError(t, err, fault.NotFound, "service nope not found")
		wantError(t, s.api.RemoveService(ctx, "nope"), fault.NotFound, "service nope not found")
		if got, err := s.api.GetService(ctx, id[:8]); err != nil || got.ID != id {
			t.Errorf("by the beginning of its ID: %v, %v", got, err)
		}
		must(t, s.api.RemoveService(ctx, "web"))
		must(t, s.api.RemoveService(ctx, "other"))
		s.eventually("all tasks are gone", func() bool { return len(s.tasks("")) == 0 && len(s.hosts["node1"].runningTasks()) == 0 })
		must(t, s.api.RemoveNetwork(ctx, "net"))
	})
}

func TestManualRollbackAndPortsWithoutReplacingTasks(t *testing.T) {
	run(t, 2, 1, func(t *testing.T, s *sim) {
		spec := webSpec("web", "web:1", 2)
		spec.Endpoint.Ports = []cloud.PortConfig{{Target: 80, Published: 8080}}
		s.create(spec)
		s.serve("web", 2)
		before := s.tasks("web")
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Endpoint.Ports[0].Published = 9090 })
		s.eventually("every host has the new port", func() bool {
			for _, h := range s.hosts {
				for _, v := range h.applied().Services {
					if len(v.Ports) != 1 || v.Ports[0].Published != 9090 {
						return false
					}
				}
			}
			return true
		})
		if after := s.tasks("web"); len(after) != len(before) {
			t.Error("tasks were replaced for another published port")
		}
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Task.Container.Image = "web:2" })
		s.eventually("updated", func() bool { u := s.service("web").Update; return u != nil && u.State == cloud.UpdateCompleted })
		svc := s.service("web")
		must(t, s.api.UpdateService(t.Context(), svc.ID, svc.Version, cloud.ServiceSpec{}, true))
		s.eventually("rolled back", func() bool { u := s.service("web").Update; return u != nil && u.State == cloud.UpdateRollbackCompleted })
		for _, task := range s.serving("web") {
			if task.Spec.Container.Image != "web:1" {
				t.Errorf("image %s", task.Spec.Container.Image)
			}
		}
	})
}

// TestRollbackOfAJobRunsTheOldOneAgain: a job's update is another run of it, and so is going back.
func TestRollbackOfAJobRunsTheOldOneAgain(t *testing.T) {
	run(t, 2, 1, func(t *testing.T, s *sim) {
		spec := webSpec("job", "web:1", 2)
		spec.Mode.Job, spec.Mode.MaxConcurrent = true, 2
		spec.Task.Restart.Condition = cloud.RestartOnFailure
		s.create(spec)
		// current are the tasks of the newest run that are meant to go on, by image.
		current := func() map[string]int {
			out, svc := map[string]int{}, s.service("job")
			for _, task := range s.tasks("job") {
				if *task.Iteration == svc.Job.Iteration && task.Desired <= cloud.TaskComplete && task.Status.State == cloud.TaskRunning {
					out[task.Spec.Container.Image]++
				}
			}
			return out
		}
		s.eventually("the job runs", func() bool { return current()["web:1"] == 2 })
		s.update("job", func(sp *cloud.ServiceSpec) { sp.Task.Container.Image = "web:2" })
		s.eventually("the other one runs", func() bool { return current()["web:2"] == 2 })
		svc := s.service("job")
		must(t, s.api.UpdateService(t.Context(), svc.ID, svc.Version, cloud.ServiceSpec{}, true))
		s.eventually("the old one runs again, and nothing else", func() bool {
			return current()["web:1"] == 2 && len(s.serving("job")) == 2
		})
		if svc = s.service("job"); svc.Job.Iteration != 2 || svc.Update != nil || svc.PreviousSpec.Task.Container.Image != "web:2" {
			t.Errorf("run %d, update %+v, before it %s", svc.Job.Iteration, svc.Update, svc.PreviousSpec.Task.Container.Image)
		}
	})
}

// TestRollbackToWhatIsGone: a service is not rolled back to a secret that was removed since, and goes on as it is.
func TestRollbackToWhatIsGone(t *testing.T) {
	run(t, 1, 1, func(t *testing.T, s *sim) {
		first, err := s.api.CreateSecret(t.Context(), cloud.SecretSpec{Name: "key-1", Data: []byte("1")})
		must(t, err)
		spec := webSpec("web", "web:1", 2)
		spec.Task.Container.Secrets = []cloud.FileReference{{Name: "key-1", Path: "key"}}
		s.create(spec)
		s.eventually("two tasks run", func() bool { return len(s.hosts["node1"].runningTasks()) == 2 })
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Task.Container.Secrets = nil })
		s.eventually("updated", func() bool { u := s.service("web").Update; return u != nil && u.State == cloud.UpdateCompleted })
		must(t, s.api.RemoveSecret(t.Context(), first))
		svc := s.service("web")
		err = s.api.UpdateService(t.Context(), svc.ID, svc.Version, cloud.ServiceSpec{}, true)
		if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "secret not found: key-1") {
			t.Errorf("rolled back: %v", err)
		}
		if now := s.service("web"); now.SpecVersion != svc.SpecVersion || len(s.hosts["node1"].runningTasks()) != 2 {
			t.Errorf("the service changed: %+v", now)
		}
	})
}

func TestNetworks(t *testing.T) {
	run(t, 2, 1, func(t *testing.T, s *sim) {
		ctx := t.Context()
		p := netip.MustParsePrefix
		ingress, err := s.api.GetNetwork(ctx, "ingress")
		must(t, err)
		s.eventually("the ingress network has the first subnet, and one of IPv6", func() bool {
			ingress, err = s.api.GetNetwork(ctx, "ingress")
			return err == nil && len(ingress.Status.Subnets) == 2
		})
		if ingress.Status.Subnets[0].Subnet != p("10.0.0.0/24") || !ingress.Status.Subnets[1].Subnet.Addr().Is6() || ingress.Status.VNI != 4096 || ingress.Status.MTU != 1450 {
			t.Errorf("ingress: %+v", ingress.Status)
		}
		marks := map[uint32]bool{}
		for _, n := range s.nodes() {
			marks[n.Ingress.Mark] = true
			if len(n.Ingress.Addrs) != 2 || n.Ingress.Mark&^cloud.IngressMarkMask != 0 {
				t.Errorf("ingress leg of %s: %+v", n.ID, n.Ingress)
			}
		}
		if len(marks) != 2 || marks[0] {
			t.Errorf("marks %v", marks)
		}
		s.network("auto")
		auto, err := s.api.GetNetwork(ctx, "auto")
		must(t, err)
		if auto.Status.Subnets[0].Subnet != p("10.0.1.0/24") || auto.Status.Subnets[0].Gateway != netip.MustParseAddr("10.0.1.1") || auto.Status.VNI != 4097 {
			t.Errorf("auto: %+v", auto.Status)
		}
		spec := func(subnet, gateway string) cloud.NetworkSpec {
			c := cloud.IPAMConfig{Subnet: p(subnet)}
			if gateway != "" {
				c.Gateway = netip.MustParseAddr(gateway)
			}
			return cloud.NetworkSpec{Name: "own", Driver: "overlay", IPAM: []cloud.IPAMConfig{c}}
		}
		create := func(n cloud.NetworkSpec) error { _, err := s.api.CreateNetwork(ctx, n); return err }
		wantError(t, create(spec("10.0.1.128/25", "")), fault.Forbidden, "invalid pool request: Pool overlaps with other one on this address space")
		wantError(t, create(spec("10.10.0.1/24", "")), fault.InvalidArgument, "ipam configuration: invalid subnet 10.10.0.1/24")
		wantError(t, create(spec("10.10.0.0/24", "10.11.0.1")), fault.InvalidArgument, "ipam configuration: subnet 10.10.0.0/24 does not contain gateway 10.11.0.1")
		wantError(t, create(cloud.NetworkSpec{Name: "own", Driver: "weave"}), fault.NotFound, `plugin "weave" not found`)
		wantError(t, create(cloud.NetworkSpec{Name: "auto", Driver: "overlay"}), fault.AlreadyExists, "network with name auto already exists")
		wantError(t, create(cloud.NetworkSpec{Name: "own", Driver: "overlay", Options: map[string]string{"encrypted": ""}}), fault.NotImplemented, "encrypted overlay networks")
		must(t, create(spec("10.10.0.0/24", "10.10.0.254")))
		own, err := s.api.GetNetwork(ctx, "own")
		must(t, err)
		if g := own.Status.Subnets[0].Gateway; g != netip.MustParseAddr("10.10.0.254") {
			t.Errorf("gateway %s", g)
		}
	})
}

func TestAddressesGoRound(t *testing.T) {
	run(t, 1, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 1, "net"))
		s.serve("web", 1)
		seen := map[netip.Addr]bool{}
		for range 10 {
			task := s.serving("web")[0]
			a := task.Networks[0].Addrs[0].Addr()
			if seen[a] {
				t.Fatalf("address %s was given again at once", a)
			}
			seen[a] = true
			s.hosts["node1"].kill(task.ID, 1)
			s.eventually("it is replaced", func() bool { now := s.serving("web"); return len(now) == 1 && now[0].ID != task.ID })
		}
	})
}

func TestDynamicPortsAndPendingReason(t *testing.T) {
	run(t, 1, 1, func(t *testing.T, s *sim) {
		for _, name := range []string{"a", "b"} {
			spec := webSpec(name, "web:1", 1)
			spec.Endpoint.Ports = []cloud.PortConfig{{Target: 80}}
			s.create(spec)
			s.eventually("it runs", s.settled(name, 1))
		}
		a, b := s.service("a").Endpoint.Ports[0].Published, s.service("b").Endpoint.Ports[0].Published
		if a == b || a < 30000 || b < 30000 || a > 32767 || b > 32767 {
			t.Errorf("ports %d and %d", a, b)
		}
		big := webSpec("big", "web:1", 1)
		big.Task.Reservations.MemoryBytes = 1 << 40
		s.create(big)
		s.eventually("the reason is shown", func() bool {
			tasks := s.tasks("big")
			return len(tasks) == 1 && tasks[0].Status.State == cloud.TaskPending && tasks[0].Status.Err == "no suitable node (insufficient resources on 1 node)"
		})
		s.update("big", func(sp *cloud.ServiceSpec) { sp.Task.Reservations.MemoryBytes = 1 << 30 })
		s.eventually("it runs once it fits", s.settled("big", 1))
	})
}

func TestNodes(t *testing.T) {
	run(t, 3, 2, func(t *testing.T, s *sim) {
		ctx := t.Context()
		get := func(id string) *cloud.Node {
			n, err := s.api.GetNode(ctx, id)
			must(t, err)
			return n
		}
		demote := func(id string) error {
			n := get(id)
			spec := n.Spec
			spec.Role = cloud.RoleWorker
			return s.api.UpdateNode(ctx, id, n.Version, spec)
		}
		wantError(t, s.api.RemoveNode(ctx, "node1", true), fault.FailedPrecondition, "node node1 is a cluster manager and is a member of the raft cluster. It must be demoted")
		wantError(t, s.api.RemoveNode(ctx, "node3", false), fault.FailedPrecondition, "node node3 is not down and can't be removed")
		bad := get("node3")
		spec := bad.Spec
		spec.Availability = "off"
		wantError(t, s.api.UpdateNode(ctx, "node3", bad.Version, spec), fault.InvalidArgument, `invalid availability specified: "off"`)
		must(t, demote("node2"))
		wantError(t, demote("node1"), fault.FailedPrecondition, "attempting to demote the last manager of the swarm")
		s.hosts["node3"].setCut(true)
		s.eventually("node3 is down", func() bool { return get("node3").Status.State == cloud.NodeDown })
		must(t, s.api.RemoveNode(ctx, "node3", false))
		_, err := s.api.GetNode(ctx, "node3")
		wantError(t, err, fault.NotFound, "node node3 not found")
	})
}

func TestSecretsReachTheTasksThatUseThemOnly(t *testing.T) {
	run(t, 2, 1, func(t *testing.T, s *sim) {
		ctx := t.Context()
		_, err := s.api.CreateSecret(ctx, cloud.SecretSpec{Name: "key"})
		wantError(t, err, fault.InvalidArgument, "secret data must be larger than 0 and less than 512000 bytes")
		id, err := s.api.CreateSecret(ctx, cloud.SecretSpec{Name: "key", Data: []byte("s3cret")})
		must(t, err)
		_, err = s.api.CreateSecret(ctx, cloud.SecretSpec{Name: "key", Data: []byte("x")})
		wantError(t, err, fault.AlreadyExists, "secret key already exists")
		spec := webSpec("web", "web:1", 1)
		spec.Task.Placement.Constraints = []string{"node.id==node2"}
		spec.Task.Container.Secrets = []cloud.FileReference{{Name: "key", Path: "key", Mode: 0o400}}
		s.create(spec)
		s.eventually("it runs", s.settled("web", 1))
		if s.hosts["node1"].applied().Secrets[id] != nil {
			t.Error("a host without such a task has the secret")
		}
		c := s.hosts["node2"].containerOf(s.serving("web")[0].ID)
		if m := c.cfg.Host.Mounts; len(m) != 1 || m[0].Target != "/run/secrets/key" || !m[0].ReadOnly {
			t.Errorf("mounts %+v", m)
		}
		wantError(t, s.api.RemoveSecret(ctx, "key"), fault.InvalidArgument, "secret 'key' is in use by the following service: web")
		if got, err := s.api.GetSecret(ctx, "key"); err != nil || got.Spec.Data != nil {
			t.Errorf("%+v, %v: shows its content", got, err)
		}
	})
}

func TestLogsComeFromWhereverTasksRun(t *testing.T) {
	run(t, 3, 2, func(t *testing.T, s *sim) {
		s.create(webSpec("web", "web:1", 3))
		s.eventually("three run", s.settled("web", 3))
		var ids []string
		for _, task := range s.serving("web") {
			ids = append(ids, task.ID)
			s.hosts[task.NodeID].print(task.ID, "hello from "+task.NodeID)
		}
		read := func(api *control.API) map[string]string {
			got := map[string]string{}
			must(t, api.Logs(t.Context(), ids, control.LogOptions{Stdout: true, Tail: -1}, func(l control.TaskLog) error {
				got[l.NodeID] += string(l.Line)
				return nil
			}))
			return got
		}
		for _, api := range []*control.API{s.api, control.NewAPI(control.APIConfig{Store: s.store, Election: s.managers[1],
			Local: s.managers[1].leader.Dispatcher(), Leader: s.cfgLeader()})} {
			got := read(api)
			for _, n := range []string{"node1", "node2", "node3"} {
				if got[n] != "started web:1 run 1\nhello from "+n+"\n" {
					t.Errorf("from %s: %q", n, got[n])
				}
			}
		}
		// Followed, with a task that comes later.
		ctx, cancel := context.WithCancel(t.Context())
		lines := make(chan string, 100)
		done := make(chan error, 1)
		go func() {
			done <- s.api.Logs(ctx, ids, control.LogOptions{Stdout: true, Follow: true, Tail: -1, Services: []string{s.service("web").ID}},
				func(l control.TaskLog) error { lines <- l.TaskID + " " + string(l.Line); return nil })
		}()
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Mode.Replicas = 4 })
		s.eventually("four run", s.settled("web", 4))
		for _, task := range s.serving("web") {
			s.hosts[task.NodeID].print(task.ID, "late")
		}
		s.pass(time.Second)
		cancel()
		<-done //nolint:errcheck // it ended as it was told to
		late := 0
		for len(lines) > 0 {
			if strings.HasSuffix(<-lines, " late\n") {
				late++
			}
		}
		if late != 4 {
			t.Errorf("%d late lines, want 4", late)
		}
		s.hosts["node3"].setCut(true)
		s.eventually("node3 is down", func() bool {
			n, err := s.api.GetNode(t.Context(), "node3")
			return err == nil && n.Status.State == cloud.NodeDown
		})
		err := s.api.Logs(t.Context(), ids, control.LogOptions{Stdout: true, Tail: -1}, func(control.TaskLog) error { return nil })
		wantError(t, err, fault.Unavailable, "warning: incomplete log stream. some logs could not be retrieved for the following reasons: node node3 is not available")
	})
}

// TestFollowedLogsOutliveSessions: who follows a service's logs is given all that a task prints, once, though its node is cut
// off for a moment, and then restarts it while no manager can be reached.
func TestFollowedLogsOutliveSessions(t *testing.T) {
	for _, tail := range []int{-1, 0} {
		run(t, 3, 2, func(t *testing.T, s *sim) {
			s.create(webSpec("web", "web:1", 3))
			s.eventually("three run", s.settled("web", 3))
			ctx, cancel := context.WithCancel(t.Context())
			var mu sync.Mutex
			got := map[string]int{}
			done := make(chan struct{})
			h := s.hosts["node3"]
			go func() {
				defer close(done)
				_ = s.api.Logs(ctx, nil, control.LogOptions{Stdout: true, Follow: true, Tail: tail, Services: []string{s.service("web").ID}}, func(l control.TaskLog) error {
					mu.Lock()
					defer mu.Unlock()
					if l.NodeID == h.name {
						got[strings.TrimSpace(string(l.Line))]++
					}
					return nil
				})
			}()
			task := h.runningTasks()[0]
			print := func(line string) {
				h.print(task, line)
				h.print(task, line) // in the same instant
				s.pass(100 * time.Millisecond)
			}
			s.pass(time.Second)
			print("at first")
			h.setCut(true)
			print("cut off")
			s.pass(2500 * time.Millisecond)
			h.setCut(false)
			s.pass(5 * time.Second)
			print("back")
			s.elect(-1)
			print("without a leader")
			s.pass(4 * time.Second)
			h.kill(task, 1)
			s.within(20*time.Second, "its node restarts it", func() bool { return slices.Contains(h.runningTasks(), task) })
			print("restarted")
			s.elect(1)
			s.pass(10 * time.Second)
			print("late")
			s.pass(5 * time.Second)
			cancel()
			<-done
			want := map[string]int{"at first": 2, "cut off": 2, "back": 2, "without a leader": 2, "started web:1 run 2": 1, "restarted": 2, "late": 2}
			if tail != 0 {
				want["started web:1 run 1"] = 1
			}
			if !maps.Equal(got, want) {
				t.Errorf("tail %d: %v, want %v\n%s", tail, got, want, s.describe())
			}
		})
	}
}

// TestUnreadableLogsAreNotAskedForWithoutEnd: a node that says why it cannot read a log is not asked every second.
func TestUnreadableLogsAreNotAskedForWithoutEnd(t *testing.T) {
	run(t, 1, 1, func(t *testing.T, s *sim) {
		h := s.hosts["node1"]
		h.mu.Lock()
		h.unreadable = true
		h.mu.Unlock()
		s.create(webSpec("web", "web:1", 1))
		s.eventually("it runs", s.settled("web", 1))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.api.Logs(ctx, nil, control.LogOptions{Stdout: true, Follow: true, Tail: -1, Services: []string{s.service("web").ID}}, func(control.TaskLog) error { return nil })
		}()
		s.pass(20 * time.Second)
		cancel()
		<-done
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.logsAsked < 1 || h.logsAsked > 2 {
			t.Errorf("the log was to be read %d times in 20 s, want once and once more", h.logsAsked)
		}
	})
}

func TestEvents(t *testing.T) {
	run(t, 1, 1, func(t *testing.T, s *sim) {
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		done := make(chan struct{})
		events := s.api.WatchEvents(ctx)
		go func() {
			defer close(done)
			for e := range events {
				got = append(got, e.Type+" "+e.Action+" "+e.Attrs["name"]+" "+e.Attrs["replicas.new"]+e.Attrs["availability.new"])
			}
		}()
		s.network("net")
		s.create(webSpec("web", "web:1", 1, "net"))
		s.eventually("it runs", s.settled("web", 1))
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Mode.Replicas = 2 })
		s.pass(time.Second)
		s.setAvailability("node1", cloud.AvailabilityDrain)
		s.pass(time.Second)
		must(t, s.api.RemoveService(t.Context(), "web"))
		s.pass(time.Second)
		cancel()
		<-done
		want := []string{"network create net ", "service create web ", "service update web 2", "node update node1 drain", "service remove web "}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestChangesBesideTheLoops: what control loops write to an object between a user's reading it and changing it does not
// put the change out of sequence; another user's change does.
func TestChangesBesideTheLoops(t *testing.T) {
	store := memstate.New()
	defer store.Close()
	api := control.NewAPI(control.APIConfig{Store: store})
	put := func(o cloud.Object) {
		t.Helper()
		if err := store.Update(t.Context(), func(tx state.WriteTx) error { return tx.Put(o) }); err != nil {
			t.Fatal(err)
		}
	}
	put(&cloud.Node{Meta: cloud.Meta{ID: "n"}, Spec: cloud.NodeSpec{Role: cloud.RoleWorker, Availability: cloud.AvailabilityActive}})
	read, err := api.GetNode(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	back := state.Clone(read)
	back.Status.State = cloud.NodeReady // the daemon of the node came back meanwhile
	put(back)
	spec := read.Spec
	spec.Labels = map[string]string{"a": "b"}
	if err := api.UpdateNode(t.Context(), "n", read.Version, spec); err != nil {
		t.Fatalf("after a change of the status: %v", err)
	}
	if err := api.UpdateNode(t.Context(), "n", read.Version, spec); !fault.Is(err, fault.OutOfDate) {
		t.Errorf("after a change of the specification: %v", err)
	}
}

// TestReadsWaitForTheState: right after its start a manager answers when it has caught up.
func TestReadsWaitForTheState(t *testing.T) {
	store := memstate.New()
	defer store.Close()
	caughtUp := make(chan struct{})
	api := control.NewAPI(control.APIConfig{Store: store, CaughtUp: caughtUp})
	answered := make(chan []*cloud.Node, 1)
	go func() {
		nodes, _ := api.ListNodes(context.Background())
		answered <- nodes
	}()
	if err := store.Update(t.Context(), func(tx state.WriteTx) error { return tx.Put(&cloud.Node{Meta: cloud.Meta{ID: "n"}}) }); err != nil {
		t.Fatal(err)
	}
	select {
	case nodes := <-answered:
		t.Fatalf("answered %d nodes before the state was there", len(nodes))
	default:
	}
	close(caughtUp)
	if nodes := <-answered; len(nodes) != 1 {
		t.Errorf("answered %d nodes, want 1", len(nodes))
	}
}
