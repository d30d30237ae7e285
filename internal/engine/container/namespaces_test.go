package container

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// TestWhatIsSaidOfTheCgroupNamespace: a container says whose cgroup namespace it is in, also if nobody asked for one.
func TestWhatIsSaidOfTheCgroupNamespace(t *testing.T) {
	b := newBed(t)
	own, err := os.Readlink("/proc/self/ns/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, asked := range []string{"", "host", "private"} {
		id := b.run(Config{Host: HostConfig{CgroupnsMode: asked}}, "wait")
		is, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/cgroup", b.state(id).PID))
		if err != nil {
			t.Fatal(err)
		}
		want := "private"
		if is == own {
			want = "host"
		}
		if c, err := b.m.Get(id); err != nil || c.Config.Host.CgroupnsMode != want {
			t.Errorf("asked for %q it says %q, and is %s: %v", asked, c.Config.Host.CgroupnsMode, want, err)
		}
	}
}

func TestJoinNamespaces(t *testing.T) {
	b := newBed(t)
	donor := b.run(Config{Name: "donor", Hostname: "shared", Host: HostConfig{IpcMode: "shareable"}}, "wait")
	b.ready(donor, "ready")
	join := HostConfig{NetworkMode: "container:donor", IpcMode: "container:donor", PidMode: "container:donor"}
	id := b.run(Config{Host: join}, "wait")
	for _, ns := range []string{"net", "ipc", "pid"} {
		x, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", b.state(donor).PID, ns))
		y, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", b.state(id).PID, ns))
		if x == "" || x != y {
			t.Errorf("%s namespaces %s and %s", ns, x, y)
		}
	}
	if out := b.runOut(Config{Host: HostConfig{NetworkMode: "container:donor"}}, "cat", "/etc/hosts"); !strings.Contains(out, "172.30.0.2\tshared") {
		t.Errorf("hosts: %q", out)
	}
	late := b.create(Config{Host: HostConfig{NetworkMode: "container:donor"}})
	if err := b.m.Kill(t.Context(), donor, ""); err != nil {
		t.Fatal(err)
	}
	if err := b.m.Start(t.Context(), late); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "non running container") {
		t.Errorf("joining a stopped one: %v", err)
	}
	if _, _, err := b.m.Create(t.Context(), Config{Image: "prog", Host: HostConfig{PidMode: "container:nosuch"}}, ""); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "No such container: nosuch") {
		t.Errorf("joining nobody: %v", err)
	}
	// Whose network is joined may be made after who joins it.
	early := b.create(Config{Host: HostConfig{NetworkMode: "container:later"}}, "cat", "/etc/hosts")
	if err := b.m.Start(t.Context(), early); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "No such container: later") {
		t.Errorf("before the other is there: %v", err)
	}
	b.ready(b.run(Config{Name: "later", Hostname: "afterwards"}, "wait"), "ready")
	b.start(early)
	if b.wait(early, "not-running"); !strings.Contains(b.output(early), "afterwards") {
		t.Errorf("hosts: %q", b.output(early))
	}
	self := b.create(Config{Name: "me", Host: HostConfig{NetworkMode: "container:me"}}, "exit", "0")
	if err := b.m.Start(t.Context(), self); err == nil || !strings.Contains(err.Error(), "cannot join own network") {
		t.Errorf("its own: %v", err)
	}
}
