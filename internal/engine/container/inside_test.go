package container

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/fault"
)

func (b *bed) exec(id string, cfg ExecConfig) (string, string, int) {
	b.t.Helper()
	cfg.AttachStdout, cfg.AttachStderr = true, true
	e, err := b.m.ExecCreate(b.t.Context(), id, cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	s, err := b.m.ExecStart(b.t.Context(), e, ExecStartOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	defer s.Close()
	out, errOut := readAll(b.t, s)
	// The code is there as soon as the streams have ended: that is when the docker command asks.
	x, err := b.m.ExecGet(e)
	if err != nil || x.Running || x.ExitCode == nil {
		b.t.Fatalf("exec after its end: %+v %v", x, err)
	}
	return out, errOut, *x.ExitCode
}

func TestExec(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{User: "alice", Env: []string{"A=1", "FROM=me"}, WorkingDir: "/made/for/it", Host: HostConfig{GroupAdd: []string{"extra"}}}, "wait")
	out, _, code := b.exec(id, ExecConfig{Cmd: []string{"/bin/prog", "id"}})
	if want := fmt.Sprintf("1000 1000 [1000 50 77] /made/for/it %s\n", id[:12]); code != 0 || sortedGroups(out) != sortedGroups(want) {
		t.Errorf("as the container: %q %d, want %q", out, code, want)
	}
	out, _, _ = b.exec(id, ExecConfig{User: "0", WorkingDir: "/tmp", Cmd: []string{"/bin/prog", "id"}})
	if !strings.HasPrefix(out, "0 0 ") || !strings.Contains(out, " /tmp ") {
		t.Errorf("as root: %q", out)
	}
	out, _, _ = b.exec(id, ExecConfig{Env: []string{"B=2", "A=3"}, Cmd: []string{"/bin/prog", "env"}})
	for _, want := range []string{"A=3\n", "B=2\n", "FROM=me\n", "HOME=/home/alice\n", "HOSTNAME=" + id[:12] + "\n", "PATH=/bin\n"} {
		if !strings.Contains("\n"+out, "\n"+want) {
			t.Errorf("environment lacks %q: %q", want, out)
		}
	}
	if _, errOut, code := b.exec(id, ExecConfig{Cmd: []string{"/bin/prog", "err", "oh"}}); errOut != "oh\n" || code != 0 {
		t.Errorf("standard error %q", errOut)
	}
	if _, _, code := b.exec(id, ExecConfig{Cmd: []string{"/bin/prog", "exit", "3"}}); code != 3 {
		t.Errorf("code %d", code)
	}
	for who, says := range map[string]string{"nobody-here": "unable to find user nobody-here", "0:nobodies": "unable to find group nobodies"} {
		if _, err := b.m.ExecCreate(t.Context(), id, ExecConfig{User: who, Cmd: []string{"/bin/prog"}}); !fault.Is(err, fault.InvalidArgument) || !strings.HasPrefix(err.Error(), says) {
			t.Errorf("as %s: %v", who, err)
		}
	}
	e, err := b.m.ExecCreate(t.Context(), id, ExecConfig{AttachStdin: true, AttachStdout: true, Cmd: []string{"/bin/prog", "cat"}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.m.ExecStart(t.Context(), e, ExecStartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := b.m.Get(id); err != nil || !slices.Contains(c.ExecIDs, e) {
		t.Errorf("running execs %v", c.ExecIDs)
	}
	if _, err := s.Write([]byte("through")); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	under, err := b.m.ExecGet(e)
	if err != nil || under.PID <= 1 {
		t.Errorf("a running exec: %+v %v", under, err)
	}
	if out, _ := readAll(t, s); out != "through" {
		t.Errorf("cat gave %q", out)
	}
	b.eventually("the exec has ended", func() bool { x, _ := b.m.ExecGet(e); return !x.Running })
	if over, err := b.m.ExecGet(e); err != nil || over.PID != under.PID {
		t.Errorf("an exec that has ended: %+v %v, want the ID of the process that it was", over, err)
	}
	if _, err := b.m.ExecStart(t.Context(), e, ExecStartOptions{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("second start: %v", err)
	}
	e, err = b.m.ExecCreate(t.Context(), id, ExecConfig{Cmd: []string{"nosuch"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.m.ExecStart(t.Context(), e, ExecStartOptions{}); err == nil || !strings.Contains(err.Error(), "executable file not found") {
		t.Errorf("missing program: %v", err)
	}
	if x, _ := b.m.ExecGet(e); x.ExitCode == nil || *x.ExitCode != 127 {
		t.Errorf("missing program: %+v", x)
	}
	contains(t, b.actions(id), "exec_create: /bin/prog exit 3", "exec_start: /bin/prog exit 3", "exec_die", "exec_create: nosuch ", "exec_start: nosuch ")
	if err := b.m.Resize(t.Context(), id, 30, 100); err != nil || !slices.Contains(b.actions(id), "resize") {
		t.Errorf("resizing what has no terminal: %v, told %v", err, b.actions(id))
	}
	if err := b.m.Kill(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := b.m.ExecCreate(t.Context(), id, ExecConfig{Cmd: []string{"x"}}); !fault.Is(err, fault.Conflict) {
		t.Errorf("exec in a stopped container: %v", err)
	}
}

// sortedGroups makes a comparison of id lines blind to the order of groups, which the kernel sorts.
func sortedGroups(line string) string {
	from, to := strings.Index(line, "["), strings.Index(line, "]")
	if from < 0 || to < 0 {
		return line
	}
	groups := strings.Fields(line[from+1 : to])
	slices.Sort(groups)
	return line[:from] + fmt.Sprint(slices.Compact(groups)) + line[to+1:]
}

func TestTerminal(t *testing.T) {
	b := newBed(t)
	id := b.create(Config{Tty: true, OpenStdin: true, StdinOnce: true}, "cat")
	s, err := b.m.Attach(t.Context(), id, AttachOptions{Stdin: true, Stdout: true, Stderr: true, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	b.start(id)
	if err := b.m.Resize(t.Context(), id, 30, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("hello\n\x04")); err != nil {
		t.Fatal(err)
	}
	out, _ := readAll(t, s)
	if out != "hello\r\nhello\r\n" {
		t.Errorf("terminal showed %q", out)
	}
	if code := b.wait(id, "not-running"); code != 0 {
		t.Errorf("code %d", code)
	}
}

func TestStdinOnce(t *testing.T) {
	b := newBed(t)
	id := b.create(Config{OpenStdin: true, StdinOnce: true}, "cat")
	s, err := b.m.Attach(t.Context(), id, AttachOptions{Stdin: true, Stdout: true, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	b.start(id)
	if _, err := s.Write([]byte("a\nb")); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if out, _ := readAll(t, s); out != "a\nb" {
		t.Errorf("got %q", out)
	}
	// A later attach with logs shows what was printed.
	s, err = b.m.Attach(t.Context(), id, AttachOptions{Stdout: true, Logs: true})
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := readAll(t, s); out != "a\nb" {
		t.Errorf("replayed %q", out)
	}
}

func TestFilesOfTheContainer(t *testing.T) {
	b := newBed(t)
	out := b.runOut(Config{Hostname: "box", Host: HostConfig{ExtraHosts: []string{"db:10.1.2.3", "gw:host-gateway"}}}, "cat", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "10.1.2.3\tdb\n", "172.30.0.1\tgw\n", "172.30.0.2\tbox\n", "\nbox\n", "nameserver 127.0.0.11\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if out := b.runOut(Config{Host: HostConfig{ReadonlyRootfs: true}}, "write", "/tmp/x", "y"); !strings.Contains(out, "read-only") {
		t.Errorf("write to a read-only root: %q", out)
	}
	if out := b.runOut(Config{Host: HostConfig{ReadonlyRootfs: true, Tmpfs: map[string]string{"/tmp": "size=1m"}}}, "write", "/tmp/x", "y"); out != "" {
		t.Errorf("write to a tmpfs: %q", out)
	}
}

func TestVolumes(t *testing.T) {
	b := newBed(t)
	ctx := t.Context()
	a := b.run(Config{Name: "first", Volumes: []string{"/data"}}, "wait")
	c, err := b.m.Get(a)
	if err != nil || len(c.Mounts) != 1 || c.Mounts[0].Type != MountVolume || !c.Mounts[0].RW || c.Mounts[0].Destination != "/data" {
		t.Fatalf("mounts %+v %v", c.Mounts, err)
	}
	vol := c.Mounts[0].Name
	st, err := os.Stat(c.Mounts[0].Source)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(c.Mounts[0].Source, "deep/file")); string(got) != "from the image" {
		t.Errorf("not filled from the image: %q %v", got, err)
	}
	if uid := ownerOf(st); uid != 1000 {
		t.Errorf("the volume's folder belongs to %d", uid)
	}
	if out := b.runOut(Config{Host: HostConfig{VolumesFrom: []string{"first"}}}, "cat", "/data/deep/file"); out != "from the image" {
		t.Errorf("volumes from: %q", out)
	}
	if out := b.runOut(Config{Host: HostConfig{VolumesFrom: []string{"first:ro"}}}, "write", "/data/x", "y"); !strings.Contains(out, "read-only") {
		t.Errorf("volumes from, read-only: %q", out)
	}
	if out := b.runOut(Config{Host: HostConfig{Mounts: []Mount{{Type: MountVolume, Source: vol, Target: "/v", Subpath: "deep"}}}}, "cat", "/v/file"); out != "from the image" {
		t.Errorf("subpath: %q", out)
	}
	if err := b.m.Volumes.Remove(ctx, vol, false); !fault.Is(err, fault.Conflict) {
		t.Errorf("removing a used volume: %v", err)
	}
	for _, other := range b.m.List() {
		if err := b.m.Remove(ctx, other.ID, true, other.ID == a, false); err != nil {
			t.Fatal(err)
		}
	}
	// The other containers did not make it: it goes with a only if nobody else holds it, whatever the order.
	if _, err := b.m.Volumes.Get(vol); err == nil {
		if err := b.m.Volumes.Remove(ctx, vol, false); err != nil {
			t.Errorf("still in use: %v", err)
		}
	}

	if _, err := b.m.Volumes.CreateFor(ctx, volume.Volume{Name: "named"}, ""); err != nil {
		t.Fatal(err)
	}
	n := b.run(Config{Host: HostConfig{Mounts: []Mount{{Type: MountVolume, Source: "named", Target: "/data", NoCopy: true}}}}, "exit", "0")
	b.wait(n, "not-running")
	if err := b.m.Remove(ctx, n, false, true, false); err != nil {
		t.Fatal(err)
	}
	if v, err := b.m.Volumes.Get("named"); err != nil {
		t.Errorf("rm -v took a named volume: %v", err)
	} else if entries, _ := os.ReadDir(v.Mountpoint); len(entries) > 0 {
		t.Errorf("nocopy copied %v", entries)
	}

	_, _, err = b.m.Create(ctx, Config{Image: "prog", Host: HostConfig{Mounts: []Mount{{Type: MountBind, Source: b.dir + "/nosuch", Target: "/x"}}}}, "")
	if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "bind source path does not exist") {
		t.Errorf("missing bind source: %v", err)
	}
	b.runOut(Config{Host: HostConfig{Mounts: []Mount{{Type: MountBind, Source: b.dir + "/made", Target: "/x", CreateMountpoint: true}}}}, "write", "/x/y", "z")
	if got, _ := os.ReadFile(b.dir + "/made/y"); string(got) != "z" {
		t.Errorf("bind: %q", got)
	}
}

// TestVolumesGoWithTheLastWhoHasThem: an anonymous volume that a container has from another is removed with the last of
// the two, if that is asked for; one with a name stays.
func TestVolumesGoWithTheLastWhoHasThem(t *testing.T) {
	b := newBed(t)
	b.create(Config{Name: "parent", Volumes: []string{"/data"}, Host: HostConfig{Mounts: []Mount{{Type: MountVolume, Source: "kept", Target: "/k"}}}}, "exit", "0")
	child, err := b.m.Get(b.create(Config{Name: "child", Host: HostConfig{VolumesFrom: []string{"parent"}}}, "exit", "0"))
	if err != nil || len(child.Mounts) != 2 || slices.ContainsFunc(child.Mounts, func(p MountPoint) bool { return p.Mode != "" }) {
		t.Errorf("volumes of another: %+v %v, want them without a mode of their own", child.Mounts, err)
	}
	if _, _, err := b.m.Create(t.Context(), Config{Image: "prog", Host: HostConfig{VolumesFrom: []string{"parent:bar"}}}, ""); err == nil || !strings.Contains(err.Error(), "invalid mode: bar") {
		t.Errorf("a bad mode: %v", err)
	}
	for i, name := range []string{"parent", "child"} {
		if err := b.m.Remove(t.Context(), name, false, true, false); err != nil {
			t.Fatal(err)
		}
		vols := b.m.Volumes.(*volume.Store).List()
		if len(vols) != 2-i {
			t.Errorf("after %s: %d volumes", name, len(vols))
		}
	}
}

// TestVolumeEvents: who watches learns when a container begins and ends to use a volume.
func TestVolumeEvents(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{Host: HostConfig{Mounts: []Mount{{Type: MountVolume, Source: "data", Target: "/data", ReadOnly: true}}}}, "exit", "0")
	b.wait(id, "not-running")
	if got := b.actions("data"); !slices.Equal(got, []string{"mount", "unmount"}) {
		t.Errorf("events %v", got)
	}
	past, _ := b.bus.Subscribe(t.Context(), time.Time{})
	i := slices.IndexFunc(past, func(e events.Event) bool { return e.Action == "mount" })
	if a := past[i].Attrs; a["container"] != id || a["destination"] != "/data" || a["read/write"] != "false" || a["driver"] != "local" {
		t.Errorf("mount says %v", a)
	}
}

// TestTheWorkingDirectoryIsThereBeforeTheStart: files can be copied into it.
func TestTheWorkingDirectoryIsThereBeforeTheStart(t *testing.T) {
	b := newBed(t)
	id := b.create(Config{WorkingDir: "/home/foo/bar"}, "exit", "0")
	if st, err := b.m.StatPath(t.Context(), id, "/home/foo/bar"); err != nil || !st.Mode.IsDir() {
		t.Errorf("%+v %v", st, err)
	}
}

// TestOutputEndsWhenTheEndIsHandled: who has read all output finds the exit code and the networks given up, also where it
// attached before the start.
func TestOutputEndsWhenTheEndIsHandled(t *testing.T) {
	b := newBed(t)
	release := make(chan struct{})
	b.networks.detaching = func(string) { <-release }
	for _, when := range []string{"before the start", "while it runs"} {
		id := b.create(Config{OpenStdin: true, StdinOnce: true}, "cat")
		if when != "before the start" {
			b.start(id)
		}
		s, err := b.m.Attach(t.Context(), id, AttachOptions{Stdin: true, Stdout: true, Stderr: true, Stream: true})
		if err != nil {
			t.Fatal(err)
		}
		if when == "before the start" {
			b.start(id)
		}
		if _, err := s.Write([]byte("text")); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, text, err := s.Next(); string(text) != "text" || err != nil {
			t.Errorf("%s: %q %v", when, text, err)
		}
		ended := make(chan State, 1)
		go func() {
			_, _, _ = s.Next()
			c, _ := b.m.Get(id)
			ended <- c.State
		}()
		release <- struct{}{} // its networks are given up only now
		if st := <-ended; st.Status != StatusExited {
			t.Errorf("%s: the output ended while the container was %s", when, st.Status)
		}
		_ = s.Close()
	}
	close(release) // the removal of the containers gives networks up too
}

// TestBareNamesAreNotSet: -e NAME of a name that the client's environment lacks takes it away from the process.
func TestBareNamesAreNotSet(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{Env: []string{"HOSTNAME", "NEVER", "A=1"}}, "wait")
	b.ready(id, "ready")
	out, _, _ := b.exec(id, ExecConfig{Env: []string{"A"}, Cmd: []string{"/bin/prog", "env"}})
	for _, name := range []string{"HOSTNAME", "NEVER", "A"} {
		if strings.Contains("\n"+out, "\n"+name) {
			t.Errorf("%s is set: %q", name, out)
		}
	}
	if c, _ := b.m.Get(id); !slices.Contains(c.Config.Env, "HOSTNAME") {
		t.Errorf("inspect has lost what was asked for: %v", c.Config.Env)
	}
}

// TestExecsThatWereNeverStarted go with the run they were made for.
func TestExecsThatWereNeverStarted(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{Name: "box"}, "wait")
	b.ready(id, "ready")
	e, err := b.m.ExecCreate(t.Context(), id, ExecConfig{Cmd: []string{"/bin/prog", "exit", "0"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.m.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := b.m.ExecCreate(t.Context(), "box", ExecConfig{Cmd: []string{"x"}}); err == nil || !strings.Contains(err.Error(), "Container box is paused") {
		t.Errorf("in a paused one: %v", err)
	}
	if err := b.m.Unpause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := b.m.Kill(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	b.wait(id, "not-running")
	b.start(id)
	if _, err := b.m.ExecStart(t.Context(), e, ExecStartOptions{Detach: true}); !fault.Is(err, fault.NotFound) {
		t.Errorf("after the run: %v", err)
	}
}

func TestPrivilegedAndLimits(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{Host: HostConfig{Privileged: true, Ulimits: []Ulimit{{Name: "nofile", Soft: 100, Hard: 1 << 30}, {Name: "core", Soft: 1000, Hard: 2000}}, OOMScoreAdj: -500}}, "wait")
	if !b.state(id).Running {
		t.Error("a privileged container does not run")
	}
	out, _, _ := b.exec(id, ExecConfig{Cmd: []string{"/bin/prog", "cat", "/proc/self/limits"}})
	if !strings.Contains(out, "Max core file size        1000                 2000 ") {
		t.Errorf("limits: %s", out)
	}
	id = b.run(Config{Host: HostConfig{Resources: Resources{NanoCPUs: 500_000_000, PidsLimit: 50, Memory: 64 << 20}}}, "wait")
	st, err := b.m.Stats(t.Context(), id)
	if err != nil || st.CPU.System == 0 || st.NumCPU == 0 || st.Pids == 0 {
		t.Errorf("stats %+v %v", st, err)
	}
	if b.m.host.cgroups.has("memory") && st.Memory.Limit != 64<<20 {
		t.Errorf("memory limit %d", st.Memory.Limit)
	}
	if b.m.host.cgroups.has("pids") && st.PidsMax != 50 {
		t.Errorf("pids limit %d", st.PidsMax)
	}
	if _, err := b.m.Update(t.Context(), id, Resources{PidsLimit: 60}, &RestartPolicy{Name: "always"}); err != nil {
		t.Fatal(err)
	}
	if st, _ := b.m.Stats(t.Context(), id); b.m.host.cgroups.has("pids") && st.PidsMax != 60 {
		t.Errorf("pids limit after update %d", st.PidsMax)
	}
	if c, _ := b.m.Get(id); c.Config.Host.Restart.Name != "always" || c.Config.Host.Resources.NanoCPUs != 500_000_000 {
		t.Errorf("config after update %+v", c.Config.Host)
	}
	titles, procs, err := b.m.Top(t.Context(), id, "")
	if err != nil || len(procs) != 1 || !slices.Contains(titles, "PID") {
		t.Errorf("top %v %v %v", titles, procs, err)
	}
	titles, procs, err = b.m.Top(t.Context(), id, "aux")
	if err != nil || len(procs) != 1 {
		t.Errorf("top aux %v %v %v", titles, procs, err)
	}
}

func TestConnectChangesHosts(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{Hostname: "box"}, "wait")
	if err := b.m.Connect(t.Context(), id, "other", EndpointConfig{Aliases: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	c, _ := b.m.Get(id)
	if e, ok := c.Networks.Endpoints["other"]; !ok || len(e.Config.Aliases) != 1 {
		t.Errorf("endpoints %+v", c.Networks.Endpoints)
	}
	out, _, _ := b.exec(id, ExecConfig{Cmd: []string{"/bin/prog", "cat", "/etc/hosts"}})
	if !strings.Contains(out, "172.31.0.2\tbox") {
		t.Errorf("hosts %q", out)
	}
	if err := b.m.Connect(t.Context(), id, "other", EndpointConfig{}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("again: %v", err)
	}
	if err := b.m.Disconnect(t.Context(), id, "other", false); err != nil {
		t.Fatal(err)
	}
	if out, _, _ := b.exec(id, ExecConfig{Cmd: []string{"/bin/prog", "cat", "/etc/hosts"}}); strings.Contains(out, "172.31.0.2") {
		t.Errorf("hosts %q", out)
	}
	if err := b.m.Connect(t.Context(), id, "bridge", EndpointConfig{Aliases: []string{"x"}}); err == nil || !strings.Contains(err.Error(), "only supported for user-defined networks") {
		t.Errorf("an alias on the default bridge: %v", err)
	}
	// One that was taken off all networks is on none, over a restart too, and comes back by being connected.
	if err := b.m.Disconnect(t.Context(), id, "bridge", false); err != nil {
		t.Fatal(err)
	}
	if err := b.m.Restart(t.Context(), id, "KILL", nil); err != nil {
		t.Fatal(err)
	}
	if c, _ := b.m.Get(id); len(c.Networks.Endpoints) > 0 {
		t.Errorf("on networks: %+v", c.Networks.Endpoints)
	}
	if err := b.m.Connect(t.Context(), id, "other", EndpointConfig{}); err != nil {
		t.Error(err)
	}
	if err := b.m.Disconnect(t.Context(), id, "other", false); err != nil {
		t.Error(err)
	}
	alone := b.run(Config{Host: HostConfig{NetworkMode: "none"}}, "wait")
	if err := b.m.Connect(t.Context(), alone, "other", EndpointConfig{}); err == nil || !strings.Contains(err.Error(), "private (none) mode") {
		t.Errorf("one without networks: %v", err)
	}
	if err := b.m.Disconnect(t.Context(), id, "other", false); !fault.Is(err, fault.Forbidden) {
		t.Errorf("again: %v", err)
	}
}

func TestPrune(t *testing.T) {
	b := newBed(t)
	up := b.run(Config{}, "wait")
	down := b.run(Config{}, "exit", "0")
	b.wait(down, "not-running")
	kept := b.create(Config{Labels: map[string]string{"keep": ""}})
	ids, freed, err := b.m.Prune(t.Context(), func(c Container) bool { _, keep := c.Config.Labels["keep"]; return !keep })
	if err != nil || !slices.Equal(ids, []string{down}) || freed != 10 {
		t.Errorf("%v %d %v", ids, freed, err)
	}
	for _, id := range []string{up, kept} {
		if _, err := b.m.Get(id); err != nil {
			t.Error(err)
		}
	}
}
