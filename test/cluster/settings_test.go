package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apiswarm "github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// containerOf waits for the running task of a service with one task on h and returns its container.
func containerOf(t *testing.T, h *testhost.Host, name string) string {
	t.Helper()
	running(t, h, name, 1)
	id := Docker(t, h, "ps", "-q", "--filter", "label=com.docker.swarm.service.name="+name)
	if id == "" || strings.Contains(id, "\n") {
		t.Fatalf("containers of %s on %s: %q", name, h.Name, id)
	}
	return id
}

// in runs the probe in a container and returns what it printed.
func in(t *testing.T, h *testhost.Host, container string, args ...string) string {
	t.Helper()
	return Docker(t, h, append([]string{"exec", container, "/probe"}, args...)...)
}

// rejected waits until a task of the service has been rejected with these words.
func rejected(t *testing.T, h *testhost.Host, name, want string) {
	t.Helper()
	Eventually(t, 60*time.Second, fmt.Sprintf("a task of %s rejected with %q", name, want), func(ctx context.Context) error {
		out, err := h.Docker(ctx, "service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", name)
		if err == nil && (!strings.Contains(out, "Rejected") || !strings.Contains(out, want)) {
			err = errors.New(out)
		}
		return err
	})
}

// TestMountsOfServices: every kind of mount that a container can have, a service can have too, and names that are
// templates are filled on the host.
func TestMountsOfServices(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 1, 1)
	h := l.Hosts[0]
	folder := filepath.Join(h.Dir, "folder")
	if err := os.MkdirAll(filepath.Join(folder, h.Name), 0o755); err != nil {
		t.Fatal(err)
	}
	Docker(t, h, "volume", "create", "parts")
	Docker(t, h, "run", "--rm", "-v", "parts:/data", image, "write", "/data/hello", "part")
	service(t, h, "web", 1, "--update-monitor", "500ms", "--mount", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0750",
		"--mount", "type=bind,src="+folder+",dst=/once,bind-propagation=private,bind-recursive=disabled",
		"--mount", "type=image,src="+image+",dst=/i,image-subpath=data",
		"--mount", "type=volume,src=of-{{.Service.Name}}-{{.Task.Slot}},dst=/data/{{.Node.ID}},volume-label=slot={{.Task.Slot}}")
	c := containerOf(t, h, "web")
	// The docker command cannot say options of a tmpfs; other clients can.
	api, err := h.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	s, err := api.ServiceInspect(t.Context(), "web", client.ServiceInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Service.Spec.TaskTemplate.ContainerSpec.Mounts[0].TmpfsOptions.Options = [][]string{{"exec"}, {"uid", "1000"}}
	if _, err := api.ServiceUpdate(t.Context(), s.Service.ID, client.ServiceUpdateOptions{Version: s.Service.Version, Spec: s.Service.Spec}); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 60*time.Second, "another container", func(ctx context.Context) error {
		now, err := h.Docker(ctx, "ps", "-q")
		if err == nil && (now == c || len(strings.Fields(now)) != 1) {
			err = errors.New(now)
		}
		return err
	})
	c = containerOf(t, h, "web")
	mounts := in(t, h, c, "cat", "/proc/self/mountinfo")
	for _, line := range strings.Split(mounts, "\n") {
		if strings.Contains(line, " /t ") && (strings.Contains(line, "noexec") || !strings.Contains(line, "size=1024k") || !strings.Contains(line, "uid=1000") || !strings.Contains(line, "mode=750")) {
			t.Errorf("the tmpfs: %s", line)
		}
	}
	if strings.Count(mounts, " /t ") != 1 || strings.Count(mounts, " /once ") != 1 {
		t.Errorf("mounts:\n%s", mounts)
	}
	if got := Docker(t, h, "inspect", "-f", `{{range .HostConfig.Mounts}}{{with .BindOptions}}{{.Propagation}} {{.NonRecursive}}{{end}}{{end}}`, c); got != "private true" {
		t.Errorf("the bind is %q", got)
	}
	if got := in(t, h, c, "cat", "/i/hello"); got != "from the image" {
		t.Errorf("of the image: %q", got)
	}
	if got := Docker(t, h, "volume", "inspect", "-f", "{{.Labels.slot}}", "of-web-1"); got != "1" {
		t.Errorf("the volume's label is %q", got)
	}
	node := Docker(t, h, "node", "inspect", "-f", "{{.ID}}", "self")
	in(t, h, c, "write", "/data/"+node+"/x", "y")
	if shown := Docker(t, h, "service", "inspect", "--pretty", "web"); !strings.Contains(shown, "of-{{.Service.Name}}-{{.Task.Slot}}") {
		t.Errorf("the service shows its mounts filled, or not at all:\n%s", shown)
	}
	// An update that says nothing of the mounts leaves them as they are.
	Docker(t, h, "service", "update", "--env-add", "A=b", "--mount-add", "type=volume,src=parts,dst=/part,volume-nocopy", "web")
	if options := Docker(t, h, "service", "inspect", "-f", "{{json .Spec.TaskTemplate.ContainerSpec.Mounts}}", "web"); !strings.Contains(options, `"Options":[["exec"],["uid","1000"]]`) || !strings.Contains(options, `"NonRecursive":true`) {
		t.Errorf("after an update the mounts are %s", options)
	}
	if got := in(t, h, containerOf(t, h, "web"), "cat", "/part/hello"); got != "part" {
		t.Errorf("of the volume: %q", got)
	}
	Docker(t, h, "service", "create", "-d", "--name", "relative", "--mount", "type=bind,src={{.Node.Hostname}},dst=/x", image)
	rejected(t, h, "relative", "mount path must be absolute")
	Docker(t, h, "service", "create", "-d", "--name", "imageless", "--mount", "type=image,src=nothing:1,dst=/x", image)
	rejected(t, h, "imageless", "nothing:1")
}

// TestSecurityOfServices: what a service says of privileges, memory and the kernel's killer is in force in its containers.
func TestSecurityOfServices(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 1, 1)
	h := l.Hosts[0]
	api, err := h.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	create := func(name string, change func(*apiswarm.TaskSpec)) error {
		spec := apiswarm.ServiceSpec{Annotations: apiswarm.Annotations{Name: name},
			TaskTemplate: apiswarm.TaskSpec{ContainerSpec: &apiswarm.ContainerSpec{Image: image}, Resources: &apiswarm.ResourceRequirements{}}}
		change(&spec.TaskTemplate)
		_, err := api.ServiceCreate(t.Context(), client.ServiceCreateOptions{Spec: spec})
		return err
	}
	profile := []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`)
	swap, swappiness := int64(16<<20), int64(7)
	for name, change := range map[string]func(*apiswarm.TaskSpec){
		"plain": func(*apiswarm.TaskSpec) {},
		"bare": func(s *apiswarm.TaskSpec) {
			s.ContainerSpec.Privileges = &apiswarm.Privileges{NoNewPrivileges: true, Seccomp: &apiswarm.SeccompOpts{Mode: apiswarm.SeccompModeUnconfined},
				AppArmor: &apiswarm.AppArmorOpts{Mode: apiswarm.AppArmorModeDisabled}, SELinuxContext: &apiswarm.SELinuxContext{Disable: true}}
			s.ContainerSpec.OomScoreAdj = 300
			s.Resources.Limits = &apiswarm.Limit{MemoryBytes: 32 << 20}
			s.Resources.SwapBytes, s.Resources.MemorySwappiness = &swap, &swappiness
		},
		"custom": func(s *apiswarm.TaskSpec) {
			s.ContainerSpec.Privileges = &apiswarm.Privileges{Seccomp: &apiswarm.SeccompOpts{Mode: apiswarm.SeccompModeCustom, Profile: profile}}
		},
	} {
		if err := create(name, change); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for name, want := range map[string][]string{"plain": {"NoNewPrivs:\t0", "Seccomp:\t2"}, "bare": {"NoNewPrivs:\t1", "Seccomp:\t0"}, "custom": {"NoNewPrivs:\t0", "Seccomp:\t2"}} {
		status := in(t, h, containerOf(t, h, name), "cat", "/proc/self/status")
		for _, w := range want {
			if !strings.Contains(status, w) {
				t.Errorf("%s lacks %q:\n%s", name, w, status)
			}
		}
	}
	bare := containerOf(t, h, "bare")
	if got := in(t, h, bare, "cat", "/proc/1/oom_score_adj"); got != "300" {
		t.Errorf("the OOM score of the service's process is %s", got)
	}
	if got := Docker(t, h, "inspect", "-f", "{{.HostConfig.MemorySwap}} {{.HostConfig.MemorySwappiness}} {{.HostConfig.SecurityOpt}}", bare); got != "50331648 7 [label=disable seccomp=unconfined apparmor=unconfined no-new-privileges=true]" {
		t.Errorf("swap, swappiness and security options are %q", got)
	}
	if shown := Docker(t, h, "service", "update", "-d", "--oom-score-adj", "0", "bare") + Docker(t, h, "service", "inspect", "-f", "{{json .Spec.TaskTemplate}}", "bare"); !strings.Contains(shown, `"NoNewPrivileges":true`) {
		t.Errorf("after an update: %s", shown)
	}
	for want, change := range map[string]func(*apiswarm.TaskSpec){
		"memory swap provided, but no memory-limit was set": func(s *apiswarm.TaskSpec) { s.Resources.SwapBytes = &swap },
		"range for oom score adj is [-1000, 1000]":          func(s *apiswarm.TaskSpec) { s.ContainerSpec.OomScoreAdj = 1001 },
		"credential specs are for Windows only": func(s *apiswarm.TaskSpec) {
			s.ContainerSpec.Privileges = &apiswarm.Privileges{CredentialSpec: &apiswarm.CredentialSpec{File: "x"}}
		},
		"invalid seccomp profile": func(s *apiswarm.TaskSpec) {
			s.ContainerSpec.Privileges = &apiswarm.Privileges{Seccomp: &apiswarm.SeccompOpts{Mode: apiswarm.SeccompModeCustom}}
		},
	} {
		if err := create("bad", change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestTemplates: environment, hostname, configs and secrets of a task may name where it is and which it is; configs and
// secrets also what the others have in them.
func TestTemplates(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 1, 1)
	h := l.Hosts[0]
	blob := func(text string, args ...string) {
		t.Helper()
		if _, err := h.DockerInput(t.Context(), []byte(text), args...); err != nil {
			t.Fatal(err)
		}
	}
	blob("hunter2", "secret", "create", "password", "-")
	blob("slot={{.Task.Slot}} of {{.Service.Name}}", "secret", "create", "--template-driver", "golang", "slot", "-")
	blob(`user={{env "APP_USER"}} password={{secret "db"}} {{join "," .Node.Hostname .Service.Labels.team}} {{config "/etc/raw"}}`, "config", "create", "--template-driver", "golang", "conf", "-")
	blob("{{.Task.Slot}}", "config", "create", "raw", "-")
	blob(`{{secret "nothing"}}`, "config", "create", "--template-driver", "golang", "broken", "-")
	service(t, h, "app", 1, "--label", "team=blue", "--env", "APP_USER=on-{{.Node.Hostname}}", "--env", "NAME={{.Task.Name}}", "--hostname", "{{.Service.Name}}-{{.Task.Slot}}-{{.Node.Platform.OS}}",
		"--secret", "source=password,target=db", "--secret", "slot", "--config", "source=conf,target=/etc/app.conf,mode=0400", "--config", "source=raw,target=/etc/raw")
	c := containerOf(t, h, "app")
	for file, want := range map[string]string{
		"/etc/app.conf":     "user=on-" + h.Name + " password=hunter2 " + h.Name + ",blue {{.Task.Slot}}",
		"/etc/raw":          "{{.Task.Slot}}",
		"/run/secrets/slot": "slot=1 of app",
	} {
		if got := in(t, h, c, "cat", file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	env := strings.Split(in(t, h, c, "env"), "\n")
	if name := Docker(t, h, "inspect", "-f", "{{.Name}} {{.Config.Hostname}}", c); name != "/"+valueOf(env, "NAME")+" app-1-linux" {
		t.Errorf("name and hostname are %q, in the environment is %q", name, valueOf(env, "NAME"))
	}
	if got := Docker(t, h, "config", "inspect", "-f", "{{.Spec.Templating.Name}}", "conf"); got != "golang" {
		t.Errorf("the config's template driver is shown as %q", got)
	}
	Docker(t, h, "service", "create", "-d", "--name", "bad", "--config", "broken", image)
	rejected(t, h, "bad", "secret target nothing not found")
	Refused(t, h, []string{"expanding env failed", "can't evaluate field Nope"}, "service", "create", "-d", "--name", "worse", "--env", "A={{.Nope}}", image)
}

func valueOf(env []string, name string) string {
	i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	if i < 0 {
		return ""
	}
	return env[i][len(name)+1:]
}

// TestGenericResources: tasks are given resources of the users' own kinds, each its own, and wait when there are none.
func TestGenericResources(t *testing.T) {
	t.Parallel()
	l := New(t, 2)
	if err := l.Hosts[1].Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Hosts[1].Start(t.Context(), "--node-generic-resource", "GPU=red", "--node-generic-resource", "GPU=blue", "--node-generic-resource", "disk=3"); err != nil {
		t.Fatal(err)
	}
	if err := l.Swarm(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	h, rich := l.Hosts[0], l.Hosts[1]
	if got := Docker(t, h, "node", "inspect", "-f", "{{json .Description.Resources.GenericResources}}", rich.Name); !strings.Contains(got, `{"NamedResourceSpec":{"Kind":"GPU","Value":"red"}}`) || !strings.Contains(got, `{"DiscreteResourceSpec":{"Kind":"disk","Value":3}}`) {
		t.Errorf("the node has %s", got)
	}
	Docker(t, h, "service", "create", "-d", "--name", "learn", "--replicas", "3", "--update-monitor", "500ms", "--generic-resource", "GPU=1", "--generic-resource", "disk=1", image)
	running(t, h, "learn", 2)
	given := map[string]bool{}
	for id := range strings.FieldsSeq(Docker(t, rich, "ps", "-q")) {
		env := strings.Split(in(t, rich, id, "env"), "\n")
		given[valueOf(env, "DOCKER_RESOURCE_GPU")+" "+valueOf(env, "DOCKER_RESOURCE_DISK")] = true
	}
	if len(given) != 2 || !given["red 1"] || !given["blue 1"] {
		t.Errorf("the tasks were given %v", given)
	}
	Eventually(t, 60*time.Second, "why the third task waits", func(ctx context.Context) error {
		out, err := h.Docker(ctx, "service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "learn")
		if err == nil && !strings.Contains(out, "insufficient resources on 2 nodes") {
			err = errors.New(out)
		}
		return err
	})
	// One that goes gives back what it had, and to an update what its predecessor had is enough.
	Docker(t, h, "service", "update", "--replicas", "2", "--env-add", "A=b", "learn")
	running(t, h, "learn", 2, h)
	Refused(t, h, []string{"GPU"}, "service", "create", "-d", "--generic-resource", "GPU=red", image)
}
