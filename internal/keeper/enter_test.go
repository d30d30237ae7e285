package keeper_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	sc "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sampan-cloud/sampan/internal/keeper"
)

// output runs an exec to its end and returns what it printed.
func (h *host) output(container string, p *specs.Process) string {
	h.t.Helper()
	exec := keeper.Process{Container: container, ExecID: newID(), Process: mustJSON(p)}
	if _, err := h.c.Exec(h.ctx(), exec); err != nil {
		h.t.Fatalf("exec %v: %v", p.Args, err)
	}
	out, errs := readAll(h.t, h.attach(keeper.AttachOptions{ID: container, ExecID: exec.ExecID, Stdout: true, Stderr: true}))
	mustExit(h.t, h.exit(container, exec.ExecID), 0)
	return out + errs
}

// awaitShortWay waits until execs in a container do without libcontainer's init, whose threads take process IDs.
func (h *host) awaitShortWay(container string) {
	h.t.Helper()
	last := 0
	h.eventually("the short way of execs", func() bool {
		pid, err := strconv.Atoi(h.output(container, process("pid")))
		if err != nil {
			h.t.Fatal(err)
		}
		next := pid == last+1
		last = pid
		return next
	})
}

// TestExecIsAsLibcontainersInit: a process that is started in a container the short way has all that one has which
// libcontainer's init starts, and no more.
func TestExecIsAsLibcontainersInit(t *testing.T) {
	capabilities := func(names ...string) *specs.LinuxCapabilities {
		return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
	}
	docker := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_SETPCAP"}
	filter := func(s *specs.Spec) {
		profile, err := sc.GetDefaultProfile(&specs.Spec{Process: s.Process})
		if err != nil {
			t.Fatal(err)
		}
		s.Linux.Seccomp = profile
	}
	const sharing = "everything shared with the host"
	umask := uint32(0o27)
	score := 300
	// etc gives a container a folder /etc.
	etc := func(fill func(dir string) error) func(*specs.Spec) {
		dir := t.TempDir()
		if err := fill(dir); err != nil {
			t.Fatal(err)
		}
		return func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc", Type: "bind", Source: dir, Options: []string{"rbind", "ro"}})
		}
	}
	// passwd gives a container an /etc/passwd.
	passwd := func(text string) func(*specs.Spec) {
		return etc(func(dir string) error { return os.WriteFile(filepath.Join(dir, "passwd"), []byte(text), 0o644) })
	}
	sizeless := etc(func(dir string) error { return os.Symlink("/proc/sys/kernel/hostname", filepath.Join(dir, "passwd")) })
	roundabout := etc(func(dir string) error { // near/link is far/folder
		return errors.Join(os.MkdirAll(filepath.Join(dir, "far", "folder"), 0o755), os.Mkdir(filepath.Join(dir, "near"), 0o755),
			os.Symlink("../far/folder", filepath.Join(dir, "near", "link")),
			exec.Command("cp", filepath.Join(rootfs, "tool"), filepath.Join(dir, "far")).Run())
	})
	users := passwd("root:x:0:0:root:/root:/bin/sh\n\n  app:x:1000:1000::/home/app:/bin/sh \nodd\nlast:x:7:7:::\n")
	cases := []struct {
		name      string
		container func(*specs.Spec)
		process   func(*specs.Process)
	}{
		{name: "as little as can be"},
		{name: "Docker's defaults", container: func(s *specs.Spec) { s.Process.Capabilities = capabilities(docker...); filter(s) },
			process: func(p *specs.Process) { p.Capabilities = capabilities(docker...) }},
		{name: "a user", container: func(s *specs.Spec) { s.Process.Capabilities = capabilities(docker...); filter(s); users(s) },
			process: func(p *specs.Process) {
				p.Capabilities = &specs.LinuxCapabilities{Bounding: docker}
				p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{1001, 5, 77}}
				p.Cwd = "/proc"
			}},
		{name: "a user without an entry", container: users, process: func(p *specs.Process) { p.User = specs.User{UID: 4242, GID: 7} }},
		{name: "a user without a home", container: users, process: func(p *specs.Process) { p.User = specs.User{UID: 7} }},
		{name: "an odd entry", container: passwd("odd\nroot:x:0:0:root:/root:/bin/sh\n")},
		{name: "a file of users that tells no size", container: func(s *specs.Spec) { sizeless(s); s.Hostname = "root:x:0:0:root:/odd" }},
		{name: "a PATH with a detour", container: roundabout, process: func(p *specs.Process) {
			p.Args[0], p.Env = "tool", []string{"PATH=/etc/near/link/..:/"}
		}},
		{name: "a PATH with slashes", container: roundabout, process: func(p *specs.Process) {
			p.Args[0], p.Env = "tool", []string{"PATH=/none:/.dot:/...://etc/./far//:/"}
		}},
		{name: "a user with capabilities", process: func(p *specs.Process) {
			p.Capabilities = capabilities("CAP_NET_RAW", "CAP_SETPCAP", "CAP_UNKNOWN")
			p.Capabilities.Inheritable, p.Capabilities.Ambient = []string{"CAP_NET_RAW"}, []string{"CAP_NET_RAW"}
			p.User = specs.User{UID: 65534, GID: 65534}
		}},
		{name: "no new privileges", container: filter, process: func(p *specs.Process) { p.NoNewPrivileges = true }},
		{name: "no new privileges for a user", container: filter, process: func(p *specs.Process) {
			p.NoNewPrivileges = true
			p.User = specs.User{UID: 1000, GID: 1000}
		}},
		{name: "of the container", container: func(s *specs.Spec) {
			s.Process.User.Umask = &umask
			s.Process.OOMScoreAdj = &score
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 99}, {Type: "RLIMIT_CORE"}}
			s.Hostname = "inside"
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
			s.Linux.Resources.CPU = &specs.LinuxCPU{Cpus: "0"}
		}},
		{name: "limits of its own", container: func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 99}}
		},
			process: func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Soft: 500, Hard: 600}} }},
		{name: "an environment with repetitions", process: func(p *specs.Process) {
			p.Env = []string{"A=1", "PATH=/none", "B=", "A=2", "HOME=", "PATH=/none:/", "C==", "ä=ö"}
			p.Args = []string{"tool", "self", "", "with space", "ä"}
		}},
		{name: sharing, container: func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}} }},
		{name: "a user namespace", container: func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
			s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
			s.Process.Capabilities = capabilities(docker...)
			filter(s)
		}, process: func(p *specs.Process) {
			p.Capabilities = capabilities(docker...)
			p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{6}}
		}},
	}
	// told is what the processes of all cases tell of themselves on one host.
	told := func(t *testing.T, failpoints string) []string {
		h := newHostWith(t, failpoints)
		var all []string
		for _, c := range cases {
			s := h.spec()
			s.Bundle = bundle(s.ID, c.container, "sleep")
			h.runReady(s)
			if failpoints == "" && c.name != sharing { // there others take process IDs, too
				h.awaitShortWay(s.ID)
			}
			p := process("self")
			p.Env = append(p.Env, "SOMETHING=set")
			if c.process != nil {
				c.process(p)
			}
			all = append(all, strings.ReplaceAll(h.output(s.ID, p), s.ID, "ID"))
			if err := h.c.Delete(h.ctx(), s.ID); err != nil {
				t.Fatal(err)
			}
		}
		return all
	}
	var short, long []string
	t.Run("the short way", func(t *testing.T) { short = told(t, "") })
	t.Run("by init", func(t *testing.T) { long = told(t, "keeper.exec.enter=fail") })
	if t.Failed() {
		return
	}
	for i, c := range cases {
		if short[i] != long[i] {
			t.Errorf("%s: the short way:\n%s\nlibcontainer's init:\n%s", c.name, onlyIn(short[i], long[i]), onlyIn(long[i], short[i]))
		}
	}
}

// onlyIn are the lines of a that b has not.
func onlyIn(a, b string) string {
	var out strings.Builder
	for line := range strings.Lines(a) {
		if !strings.Contains(b, line) {
			out.WriteString(line)
		}
	}
	return out.String()
}
