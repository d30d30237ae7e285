package agent

import (
	"encoding/base64"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

func testTask() *cloud.Task {
	grace := 1500 * time.Millisecond
	t := &cloud.Task{ServiceID: "svcid", ServiceName: "web", Slot: 2, NodeID: "n1", Desired: cloud.TaskRunning, Labels: map[string]string{"team": "a"}}
	t.ID = "tid"
	t.Spec.Container = cloud.ContainerSpec{
		Image: "web:1", Command: []string{"/web"}, Args: []string{"-v"}, Hostname: "{{.Node.Hostname}}-{{.Task.Slot}}",
		Env: []string{"SERVICE={{.Service.Name}}", "TEAM={{.Service.Labels.team}}"}, StopGracePeriod: &grace,
		Hosts: []string{"10.0.0.9 db database"}, Labels: map[string]string{"own": "1"},
		Mounts: []cloud.Mount{{Type: cloud.MountVolume, Source: "data-{{.Task.Slot}}", Target: "/data"}},
	}
	t.Spec.Limits = cloud.Resources{NanoCPUs: 5e8, MemoryBytes: 64 << 20}
	t.Spec.Reservations = cloud.Resources{NanoCPUs: 1e8, MemoryBytes: 1 << 20} // less than an engine takes as a soft limit
	t.Spec.Networks = []cloud.NetworkConnection{{Target: "net1", DriverOpts: map[string]string{"o": "v"}}}
	t.Networks = []cloud.TaskNetwork{
		{NetworkID: "net1", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.1.5/24")}, Aliases: []string{"www"}},
		{NetworkID: "ing", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24")}},
	}
	t.Ports = []cloud.PortConfig{{Protocol: cloud.TCP, Target: 80, Published: 8080, Mode: cloud.PublishHost}, {Protocol: cloud.TCP, Target: 81, Published: 8081, Mode: cloud.PublishIngress}}
	return t
}

// configOf is the container's configuration of a task on host1.
func configOf(t *testing.T, task *cloud.Task) container.Config {
	t.Helper()
	spec, err := task.Spec.Container.ExpandTemplates(templateContext(task, "n1", cloud.NodeDescription{Hostname: "host1"}))
	if err != nil {
		t.Fatal(err)
	}
	return containerConfig(task, spec, cloud.NewNodeView(), "n1", nil)
}

func TestContainerOfATask(t *testing.T) {
	cfg := configOf(t, testTask())
	if cfg.Name != "web.2.tid" || cfg.Hostname != "host1-2" || !slices.Equal(cfg.Env, []string{"SERVICE=web", "TEAM=a"}) {
		t.Errorf("name %q, hostname %q, environment %v", cfg.Name, cfg.Hostname, cfg.Env)
	}
	if !slices.Equal(cfg.Entrypoint, []string{"/web"}) || !slices.Equal(cfg.Cmd, []string{"-v"}) || *cfg.StopTimeout != 2 {
		t.Errorf("entry point %v, command %v, stop timeout %d", cfg.Entrypoint, cfg.Cmd, *cfg.StopTimeout)
	}
	for k, v := range map[string]string{"own": "1", "com.docker.swarm.task": "", "com.docker.swarm.task.id": "tid", "com.docker.swarm.task.name": "web.2.tid",
		"com.docker.swarm.service.id": "svcid", "com.docker.swarm.service.name": "web", "com.docker.swarm.node.id": "n1"} {
		if got, ok := cfg.Labels[k]; !ok || got != v {
			t.Errorf("label %s is %q, want %q", k, got, v)
		}
	}
	if cfg.Host.NetworkMode != "net1" || cfg.Network.Endpoints["net1"].IPv4.String() != "10.0.1.5" || cfg.Network.Endpoints["ing"].IPv4.String() != "10.0.0.7" {
		t.Errorf("networks %s, %v", cfg.Host.NetworkMode, cfg.Network.Endpoints)
	}
	if cfg.Network.Endpoints["net1"].DriverOpts["o"] != "v" || cfg.Network.Endpoints["ing"].DriverOpts != nil {
		t.Errorf("options of the endpoints: %v", cfg.Network.Endpoints)
	}
	if p := cfg.Host.Ports; len(p) != 1 || p[0].HostPort != 8080 || p[0].Port.Port != 80 {
		t.Errorf("published ports %v: only those of host mode are the container's", p)
	}
	if !slices.Equal(cfg.Host.ExtraHosts, []string{"db:10.0.0.9", "database:10.0.0.9"}) || cfg.Host.Mounts[0].Source != "data-2" || cfg.Host.Restart.Name != "no" {
		t.Errorf("hosts %v, mounts %v, restart %v", cfg.Host.ExtraHosts, cfg.Host.Mounts, cfg.Host.Restart)
	}
	if cfg.Host.Resources.NanoCPUs != 5e8 || cfg.Host.Resources.Memory != 64<<20 || cfg.Host.Resources.MemoryReservation != 0 {
		t.Errorf("resources %+v: a reservation is for the scheduler alone", cfg.Host.Resources)
	}
}

func TestSecurityAndSwapOfATask(t *testing.T) {
	task := testTask()
	task.Generic = []cloud.GenericResource{{Kind: "gpu", Value: "red"}, {Kind: "gpu", Value: "blue"}, {Kind: "disk", Amount: 3}}
	c := &task.Spec.Container
	c.OOMScoreAdj = -5
	c.Privileges = &cloud.Privileges{SELinux: &cloud.SELinuxContext{Disable: true, User: "u", Role: "r", Type: "t", Level: "l"},
		Seccomp: &cloud.Seccomp{Mode: cloud.SeccompCustom, Profile: []byte("{}")}, AppArmor: cloud.AppArmorDisabled, NoNewPrivileges: true}
	none, some, all := int64(0), int64(1<<20), int64(-1)
	task.Spec.MemorySwappiness = &none
	for swap, want := range map[*int64]int64{nil: 0, &none: 64 << 20, &some: 65 << 20, &all: -1} {
		task.Spec.SwapBytes = swap
		cfg := configOf(t, task)
		if got := cfg.Host.Resources.MemorySwap; got != want {
			t.Errorf("limit of memory and swap %d, want %d", got, want)
		}
	}
	cfg := configOf(t, task)
	options := []string{"label=disable", "label=user:u", "label=role:r", "label=level:l", "label=type:t", "seccomp={}", "apparmor=unconfined", "no-new-privileges=true"}
	if !slices.Equal(cfg.Host.SecurityOpt, options) || cfg.Host.OOMScoreAdj != -5 || *cfg.Host.Resources.MemorySwappiness != 0 {
		t.Errorf("security options %v, OOM score %d, swappiness %v", cfg.Host.SecurityOpt, cfg.Host.OOMScoreAdj, cfg.Host.Resources.MemorySwappiness)
	}
	if env := cfg.Env[len(cfg.Env)-2:]; !slices.Equal(env, []string{"DOCKER_RESOURCE_DISK=3", "DOCKER_RESOURCE_GPU=red,blue"}) {
		t.Errorf("environment %v", cfg.Env)
	}
	task.Spec.MemorySwappiness = &all
	c.Privileges = &cloud.Privileges{Seccomp: &cloud.Seccomp{Mode: cloud.SeccompDefault}, AppArmor: cloud.AppArmorDefault}
	if cfg = configOf(t, task); cfg.Host.SecurityOpt != nil || cfg.Host.Resources.MemorySwappiness != nil {
		t.Errorf("the defaults are %v, swappiness %v", cfg.Host.SecurityOpt, cfg.Host.Resources.MemorySwappiness)
	}
}

func TestContainerOfATaskWithoutNetworks(t *testing.T) {
	for target, want := range map[string]string{"": "bridge", "host": "host", "none": "none"} {
		task := testTask()
		task.Networks = nil
		if target != "" {
			task.Spec.Networks = []cloud.NetworkConnection{{Target: target}}
		}
		if cfg := configOf(t, task); cfg.Host.NetworkMode != want {
			t.Errorf("network %q: mode %s", target, cfg.Host.NetworkMode)
		}
	}
}

func TestRegistryAuth(t *testing.T) {
	doc := `{"username":"u","password":"p","serveraddress":"r.example"}`
	for _, in := range []string{base64.URLEncoding.EncodeToString([]byte(doc)), base64.StdEncoding.EncodeToString([]byte(doc))} {
		if a, err := registryAuth(in); err != nil || a.Username != "u" || a.Password != "p" || a.ServerAddress != "r.example" {
			t.Errorf("%+v, %v", a, err)
		}
	}
	if _, err := registryAuth("no base64!"); err == nil {
		t.Error("nonsense was accepted")
	}
}

func newTestAgent(t *testing.T, path string) *Agent {
	t.Helper()
	a, err := New(Config{NodeID: "n1", StatePath: path, Description: func() cloud.NodeDescription { return cloud.NodeDescription{} }})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func change(kind, key string, o any) *rpc.Change {
	c := &rpc.Change{Kind: kind, Key: key}
	if o != nil {
		c.Document = encode(o)
	}
	return c
}

func TestViewSurvivesOnDiskWithoutSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "view.json")
	a := newTestAgent(t, path)
	if a.views.isKnown() {
		t.Fatal("a view without a file")
	}
	a.views.begin("term.1")
	secret := &cloud.Secret{Spec: cloud.SecretSpec{Data: []byte("s3cret")}}
	first := &rpc.ViewChange{Full: true, Revision: 5, Changes: []*rpc.Change{change("task", "tid", testTask()), change("secret", "s", secret), change("future", "x", secret)}}
	if err := a.views.change(first); err != nil {
		t.Fatal(err)
	}
	before := a.views.current()
	if err := a.views.change(&rpc.ViewChange{From: 5, Revision: 6, Changes: []*rpc.Change{change("task", "tid", nil), change("task", "t2", testTask())}}); err != nil {
		t.Fatal(err)
	}
	if before.Tasks["tid"] == nil || len(before.Tasks) != 1 {
		t.Error("a view that was handed out was changed")
	}
	if err := a.views.change(&rpc.ViewChange{From: 9, Revision: 10}); err == nil {
		t.Error("a gap in the revisions was not noticed")
	}
	view, session, _ := a.views.effective()
	a.views.save(view, session)
	doc, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(doc), base64.StdEncoding.EncodeToString([]byte("s3cret"))) {
		t.Errorf("secrets on disk, or no file: %v", err)
	}
	b := newTestAgent(t, path)
	got := b.views.current()
	if !b.views.isKnown() || got.Tasks["t2"] == nil || len(got.Tasks) != 1 || got.Members == nil {
		t.Errorf("read back: %+v", got)
	}
	if session, _ := b.views.held(); session != "" {
		t.Error("a view without its secrets must come anew")
	}
	if err := a.views.change(&rpc.ViewChange{From: 6, Revision: 7, Changes: []*rpc.Change{change("secret", "s", nil)}}); err != nil {
		t.Fatal(err)
	}
	view, session, _ = a.views.effective()
	a.views.save(view, session)
	if session, rev := newTestAgent(t, path).views.held(); session != "term.1" || rev != 7 {
		t.Errorf("held session %q, revision %d", session, rev)
	}
	if err := os.WriteFile(path, []byte("{half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if newTestAgent(t, path).views.isKnown() {
		t.Error("a damaged file counts as a view: it would remove every task")
	}
}

func TestDeadTaskLeavesItsOwnHostsTablesOnly(t *testing.T) {
	a := newTestAgent(t, filepath.Join(t.TempDir(), "view.json"))
	a.views.begin("term.1")
	m := &cloud.Member{ID: "tid/net1", NetworkID: "net1", Ready: true}
	other := &cloud.Member{ID: "o/net1", NetworkID: "net1", Ready: true}
	if err := a.views.change(&rpc.ViewChange{Full: true, Revision: 1, Changes: []*rpc.Change{change("task", "tid", testTask()), change("member", m.ID, m), change("member", other.ID, other)}}); err != nil {
		t.Fatal(err)
	}
	a.views.setDead("tid")
	view, _, _ := a.views.effective()
	if view.Members["tid/net1"].Ready || !view.Members["o/net1"].Ready || !a.views.current().Members["tid/net1"].Ready {
		t.Error("not exactly the dead task's member is out")
	}
	a.views.setAlive("tid", false)
	if view, _, _ := a.views.effective(); !view.Members["tid/net1"].Ready {
		t.Error("it is not back after its restart")
	}
	// The last word of managers that are gone was that it is dead; it was started again without them.
	m.Ready = false
	if err := a.views.change(&rpc.ViewChange{From: 1, Revision: 2, Changes: []*rpc.Change{change("member", m.ID, m)}}); err != nil {
		t.Fatal(err)
	}
	a.views.setAlive("tid", true)
	if view, _, _ := a.views.effective(); !view.Members["tid/net1"].Ready {
		t.Error("a task that was started again without managers does not serve")
	}
	a.views.begin("term.2")
	if view, _, _ := a.views.effective(); view.Members["tid/net1"].Ready {
		t.Error("the managers are back, and not believed")
	}
}

func TestSecretFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	f := &files{dir: dir, logger: newTestAgent(t, filepath.Join(t.TempDir(), "v")).cfg.Logger}
	t.Cleanup(func() {
		if err := RemoveSecrets(dir); err != nil {
			t.Error(err)
		}
	})
	task := testTask()
	task.Spec.Container.Secrets = []cloud.FileReference{{ID: "s", Name: "key", Path: "key", Mode: 0o400}}
	task.Spec.Container.Configs = []cloud.FileReference{{ID: "c", Name: "conf", Path: "/etc/app.conf"}}
	view := cloud.NewNodeView()
	if _, err := f.write(task, view, new(cloud.TemplateContext), nil); err == nil || err.Error() != "secret not found: key" {
		t.Errorf("without the secret: %v", err)
	}
	view.Secrets["s"] = &cloud.Secret{Spec: cloud.SecretSpec{Data: []byte("s3cret")}}
	view.Configs["c"] = &cloud.Config{Spec: cloud.SecretSpec{Data: []byte("conf")}}
	for range 2 { // a second attempt finds the first one's files
		mounts, err := f.write(task, view, new(cloud.TemplateContext), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []struct {
			target, data string
			mode         os.FileMode
		}{{"/run/secrets/key", "s3cret", 0o400}, {"/etc/app.conf", "conf", 0o444}} {
			m := mounts[i]
			data, err := os.ReadFile(m.Source)
			st, serr := os.Stat(m.Source)
			if err != nil || serr != nil || m.Target != want.target || string(data) != want.data || st.Mode().Perm() != want.mode || !m.ReadOnly || m.Type != container.MountBind {
				t.Errorf("mount %+v with %q, %v, %v", m, data, st, err)
			}
		}
	}
	f.remove(task.ID)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
