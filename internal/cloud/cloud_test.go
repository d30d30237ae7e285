package cloud

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

func testNode() *Node {
	n := &Node{Spec: NodeSpec{Role: RoleManager, Labels: map[string]string{"rack": "r1", "Zone": "eu"}}}
	n.ID = "abc"
	n.Description = NodeDescription{Hostname: "host1", OS: "linux", Architecture: "x86_64", Labels: map[string]string{"disk": "ssd"}}
	n.Status.Addrs = []netip.Addr{netip.MustParseAddr("10.99.0.1")}
	return n
}

func TestConstraints(t *testing.T) {
	n := testNode()
	for expr, want := range map[string]bool{
		"node.id==abc":                  true,
		"node.id!=abc":                  false,
		"node.hostname == HOST1":        true,
		"node.role==manager":            true,
		"node.role != manager":          false,
		"node.platform.os==linux":       true,
		"node.platform.arch==amd64":     true,
		"node.platform.arch==x86_64":    true,
		"node.platform.arch!=arm64":     true,
		"node.ip==10.99.0.1":            true,
		"node.ip==10.99.0.0/24":         true,
		"node.ip!=10.99.0.0/24":         false,
		"node.ip==10.98.0.1":            false,
		"node.labels.rack==r1":          true,
		"node.labels.rack!=r1":          false,
		"node.labels.missing!=r1":       true,
		"node.labels.Zone==eu":          true,
		"engine.labels.disk==ssd":       true,
		"engine.labels.disk==hdd":       false,
		"node.colour==red":              false,
		"node.colour!=red":              false,
		"node.labels.rack==with spaces": false,
	} {
		c, err := ParseConstraints([]string{expr})
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		if got := n.Satisfies(c); got != want {
			t.Errorf("%s: %t, want %t", expr, got, want)
		}
	}
}

func TestBadConstraints(t *testing.T) {
	for expr, want := range map[string]string{
		"node.id":              "constraint expected one operator from ==, !=: got 'node.id'",
		"node.id=abc":          "constraint expected one operator from ==, !=: got 'node.id=abc'",
		"==abc":                "key '' is invalid",
		"1node==abc":           "key '1node' is invalid",
		"node.id==":            "value '' is invalid",
		"node.id==a;b":         "value 'a;b' is invalid",
		"node.id==a==b":        "value 'a==b' is invalid",
		"node.labels.x=!=a":    "key 'node.labels.x=' is invalid",
		"node.labels.x y z==a": "key 'node.labels.x y z' is invalid",
	} {
		_, err := ParseConstraints([]string{expr})
		if err == nil || err.Error() != want || !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v, want %s", expr, err, want)
		}
	}
}

func FuzzParseConstraints(f *testing.F) {
	for _, s := range []string{"node.role==manager", "node.labels.a != b", "engine.labels.x==[a-z]*", "==", "!=", "a!==b", "node.ip==10.0.0.0/8", "node.ip==::1"} {
		f.Add(s)
	}
	n := testNode()
	f.Fuzz(func(t *testing.T, expr string) {
		cs, err := ParseConstraints([]string{expr})
		if err != nil {
			return
		}
		again, err := ParseConstraints([]string{cs[0].String()})
		if err != nil || again[0] != cs[0] {
			t.Errorf("%q is parsed as %q, which is parsed as %q (%v)", expr, cs, again, err)
		}
		n.Satisfies(cs) // does not panic
	})
}

func TestTemplates(t *testing.T) {
	c := new(TemplateContext)
	c.Service.Name, c.Node.Hostname, c.Task.Slot = "web", "host1", "3"
	c.Service.Labels = map[string]string{"team": "a"}
	spec := ContainerSpec{
		Env:      []string{"NAME={{.Service.Name}}-{{.Task.Slot}}", "PLAIN={", "EMPTY"},
		Hostname: "{{.Node.Hostname}}", Mounts: []Mount{{Source: "vol-{{.Task.Slot}}", Target: "/data/{{.Service.Labels.team}}"}},
	}
	got, err := spec.ExpandTemplates(c)
	if err != nil || got.Env[0] != "NAME=web-3" || got.Env[1] != "PLAIN={" || got.Env[2] != "EMPTY" || got.Hostname != "host1" ||
		got.Mounts[0].Source != "vol-3" || got.Mounts[0].Target != "/data/a" {
		t.Errorf("%+v, %v", got, err)
	}
	if spec.Env[0] != "NAME={{.Service.Name}}-{{.Task.Slot}}" {
		t.Error("the specification itself was changed")
	}
	spec = ContainerSpec{Env: []string{`ALL={{join "," .Service.Name .Node.Hostname .Task.Slot}}`}, Mounts: []Mount{{Source: "v", Target: "/v",
		VolumeLabels: map[string]string{"of": "{{.Task.Slot}}"}, VolumeOpts: map[string]string{"device": "host:/{{.Service.Name}}"}}}}
	if got, err = spec.ExpandTemplates(c); err != nil || got.Env[0] != "ALL=web,host1,3" || got.Mounts[0].VolumeLabels["of"] != "3" || got.Mounts[0].VolumeOpts["device"] != "host:/web" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := (ContainerSpec{Env: []string{"A={{.Nothing}}"}}).ExpandTemplates(c); err == nil || !strings.Contains(err.Error(), `expanding env "A={{.Nothing}}": template: expansion:1:`) {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"{{.Service", "{{.Nothing}}", "{{.Service.Labels.none}}", "{{template \"x\"}}", `{{.Expand "x"}}`, `{{env "A"}}`} {
		if _, err := c.Expand(bad); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestPayloads: secrets and configs that are templates see each other by the names of their files, as they were given, and
// the environment of the task.
func TestPayloads(t *testing.T) {
	c := new(TemplateContext)
	c.Task.Slot = "3"
	files := &TemplateFiles{Secrets: map[string][]byte{"key": []byte("hunter2")}, Configs: map[string][]byte{"/etc/base": []byte("{{.Task.Slot}}")}, Env: []string{"A=b=c"}}
	got, err := c.ExpandPayload([]byte(`{{.Task.Slot}} {{secret "key"}} {{config "/etc/base"}} {{env "A"}} [{{env "NONE"}}] {{join "-" "x" "y"}}`), files)
	if want := "3 hunter2 {{.Task.Slot}} b=c [] x-y"; err != nil || string(got) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	if _, err := c.ExpandPayload([]byte(`{{secret "none"}}`), files); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "secret target none not found") {
		t.Errorf("%v", err)
	}
}

func TestGenericResources(t *testing.T) {
	have, err := ParseGenericResources([]string{"gpu=red", "disk=5", "gpu = blue"})
	if err != nil || !slices.Equal(have, []GenericResource{{Kind: "disk", Amount: 5}, {Kind: "gpu", Value: "red"}, {Kind: "gpu", Value: "blue"}}) {
		t.Fatalf("%v, %v", have, err)
	}
	for _, bad := range []string{"gpu", "gpu=", "=1", "gpu=a=b", "gpu=-1"} {
		if _, err := ParseGenericResources([]string{bad}); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := ParseGenericResources([]string{"gpu=red", "gpu=1"}); err == nil {
		t.Error("a number and a name of one kind were taken")
	}
	taken, left, ok := TakeGeneric(have, []GenericResource{{Kind: "gpu", Amount: 1}, {Kind: "disk", Amount: 2}})
	if !ok || !slices.Equal(taken, []GenericResource{{Kind: "gpu", Value: "red"}, {Kind: "disk", Amount: 2}}) ||
		!slices.Equal(left, []GenericResource{{Kind: "disk", Amount: 3}, {Kind: "gpu", Value: "blue"}}) || len(have) != 3 || have[0].Amount != 5 {
		t.Errorf("taken %v, left %v of %v", taken, left, have)
	}
	if again := WithoutGeneric(have, taken); !slices.Equal(again, left) {
		t.Errorf("%v are left, want %v", again, left)
	}
	for _, ask := range [][]GenericResource{{{Kind: "gpu", Amount: 3}}, {{Kind: "disk", Amount: 6}}, {{Kind: "tpu", Amount: 1}}, {{Kind: "disk", Amount: 3}, {Kind: "disk", Amount: 3}}} {
		if taken, left, ok := TakeGeneric(have, ask); ok || taken != nil || !slices.Equal(left, have) {
			t.Errorf("%v: taken %v, left %v", ask, taken, left)
		}
	}
}

func TestTaskSpecEqual(t *testing.T) {
	second := time.Second
	a := TaskSpec{Container: ContainerSpec{Image: "x", Env: []string{"A=1"}, StopGracePeriod: &second, Health: &HealthConfig{Test: []string{}}}}
	b := a
	twin := time.Second
	b.Container.StopGracePeriod, b.Container.Health = &twin, &HealthConfig{}
	b.Container.Labels, b.Container.PullAuth = map[string]string{}, "secret"
	b.Placement.Constraints = []string{"node.role==worker"}
	if !a.Equal(&b) {
		t.Error("alike but for what makes no difference to a running task, and not equal")
	}
	b.Container.Privileges = &Privileges{}
	if !a.Equal(&b) {
		t.Error("privileges that say nothing make a difference")
	}
	b.Container.Privileges = &Privileges{NoNewPrivileges: true}
	if a.Equal(&b) {
		t.Error("privileges make no difference")
	}
	b.Container.Privileges = nil
	b.ForceUpdate = 1
	if a.Equal(&b) {
		t.Error("a forced update makes no difference")
	}
	b = a
	b.Container.Env = []string{"A=2"}
	if a.Equal(&b) {
		t.Error("another environment makes no difference")
	}
}

func TestPortsThatAServiceServes(t *testing.T) {
	s := ServiceSpec{Endpoint: EndpointSpec{Ports: []PortConfig{{Name: "web", Target: 80, Published: 8080}, {Protocol: UDP, Target: 53}}},
		Labels: map[string]string{"sampan.port.metrics": "9090", "sampan.port.dns": "5353/UDP", "sampan.port.": "1", "sampan.port.bad": "x", "sampan.port.worse": "70000",
			"sampan.port.worst": "80/icmp", "other": "80"}}
	want := []PortConfig{{Name: "web", Protocol: TCP, Target: 80}, {Protocol: UDP, Target: 53}, {Name: "dns", Protocol: UDP, Target: 5353}, {Name: "metrics", Protocol: TCP, Target: 9090}}
	if got := s.Serves(); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
