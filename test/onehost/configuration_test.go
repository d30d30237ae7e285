package onehost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// configured makes a host whose daemon reads a configuration file, and returns what writes that file.
func configured(t *testing.T, text string) (h *testhost.Host, write func(string)) {
	t.Helper()
	RequireRoot(t)
	path := filepath.Join(t.TempDir(), "daemon.json")
	write = func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	l, err := testhost.NewLab(t.Context(), 1, testhost.Options{Binaries: os.Getenv("SAMPAN_BIN"), Args: []string{"--config-file", path}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", l.Hosts[0].LogTail(60))
		}
		if err := l.Close(context.Background()); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	if err := l.StartAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	Load(t, l.Hosts...)
	return l.Hosts[0], write
}

// logs waits until the daemon has logged a line with all of want.
func logs(t *testing.T, h *testhost.Host, want ...string) {
	t.Helper()
	Eventually(t, 30*time.Second, fmt.Sprintf("a line of the log with %q", want), func(context.Context) error {
		text, err := os.ReadFile(h.LogPath())
		if err != nil {
			return err
		}
	lines:
		for line := range strings.Lines(string(text)) {
			for _, w := range want {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return nil
		}
		return errors.New("none yet")
	})
}

// TestConfigurationFile: what administrators set in dockerd's file has its effect, and a signal has the daemon read it
// again while everything runs.
func TestConfigurationFile(t *testing.T) {
	t.Parallel()
	profile := filepath.Join(t.TempDir(), "profile.json")
	text := `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chown", "lchown", "fchown", "fchownat"], "action": "SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(profile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h, write := configured(t, `{"labels": ["rack=1"], "log-format": "json", "log-driver": "local", "live-restore": true, "shutdown-timeout": 15, "storage-driver": "overlay2", "exec-opts": ["native.cgroupdriver=cgroupfs"],
		"default-ulimits": {"nofile": {"Name": "nofile", "Hard": 300, "Soft": 200}}, "default-shm-size": "1M", "default-ipc-mode": "shareable", "init": true,
		"no-new-privileges": true, "seccomp-profile": "`+profile+`"}`)
	logs(t, h, `"level":"WARN"`, "shutdown-timeout has no effect")
	pid := h.DaemonPID()

	Docker(t, h, "run", "-d", "--name", "first", image, "sleep")
	limits := func(name string) string {
		t.Helper()
		for line := range strings.Lines(Docker(t, h, "exec", name, "/probe", "cat", "/proc/self/limits")) {
			if strings.HasPrefix(line, "Max open files") {
				return strings.Fields(line)[4] // the hard one: Go's programs raise the other
			}
		}
		return ""
	}
	equal(t, "limit of open files", limits("first"), "300")
	contains(t, "first process", Docker(t, h, "exec", "first", "/probe", "cat", "/proc/1/cmdline"), "docker-init")
	contains(t, "status", Docker(t, h, "exec", "first", "/probe", "cat", "/proc/self/status"), "NoNewPrivs:\t1")
	contains(t, "mounts", Docker(t, h, "exec", "first", "/probe", "cat", "/proc/self/mounts"), "size=1024k")
	equal(t, "what inspect says", Docker(t, h, "inspect", "-f", "{{.HostConfig.ShmSize}} {{.HostConfig.IpcMode}} {{(index .HostConfig.Ulimits 0).Hard}}", "first"), "1048576 shareable 300")
	if out, err := h.Docker(t.Context(), "exec", "first", "/probe", "chown", "/data/hello", "1", "1"); err == nil {
		t.Errorf("the seccomp profile of the file is not used: %s", out)
	}
	Docker(t, h, "run", "--rm", "--security-opt", "seccomp=builtin", image, "chown", "/data/hello", "1", "1")
	contains(t, "info", Docker(t, h, "info", "-f", "{{.Labels}} {{.Debug}} {{.LoggingDriver}} {{.SecurityOptions}}"), "[rack=1] false local", "profile="+profile, "no-new-privileges")

	began := time.Now().Unix()
	reload := func(text string) {
		t.Helper()
		write(text)
		if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	reload(`{"labels": ["rack=2"], "debug": true, "log-format": "json", "log-driver": "local", "mtu": 1400, "max-concurrent-downloads": 7, "features": {"buildkit": true},
		"insecure-registries": ["10.0.0.0/8"], "registry-mirrors": ["http://127.0.0.1:1"],
		"default-ulimits": {"nofile": {"Name": "nofile", "Hard": 500, "Soft": 400}}, "default-stop-timeout": 1}`)
	logs(t, h, "need a restart", `"keys":"mtu"`)
	logs(t, h, `"msg":"configuration reloaded"`)
	contains(t, "event", Docker(t, h, "events", "--since", fmt.Sprint(began), "--until", fmt.Sprint(time.Now().Unix()+1), "--filter", "type=daemon", "--format", "{{.Action}} {{json .Actor.Attributes}}"),
		"reload ", `"name":"`+h.Name+`"`, `"debug":"true"`, `"labels":"[\"rack=2\"]"`, `"max-concurrent-downloads":"7"`, `"max-concurrent-uploads":"5"`, `"max-download-attempts":"5"`,
		`"default-shm-size":"67108864"`, `"default-ipc-mode":"private"`, `"default-runtime":"runc"`, `"default-stop-timeout":"1"`, `"live-restore":"true"`, `"features":"map[buildkit:true]"`,
		`"insecure-registries":"[\"10.0.0.0/8\"]"`, `"registry-mirrors":"[\"http://127.0.0.1:1\"]"`)
	info := "{{.Labels}} {{.Debug}} {{.RegistryConfig.Mirrors}}"
	const after = "[rack=2] true [http://127.0.0.1:1/]"
	equal(t, "info after the reload", Docker(t, h, "info", "-f", info), after)
	contains(t, "security options after the reload", Docker(t, h, "info", "-f", "{{.SecurityOptions}}"), "profile=builtin")
	logs(t, h, `"level":"DEBUG"`)
	Docker(t, h, "run", "-d", "--name", "second", image, "sleep")
	equal(t, "limit of open files after the reload", limits("second"), "500")
	Docker(t, h, "exec", "second", "/probe", "chown", "/data/hello", "1", "1")

	// What cannot be used is refused as a whole.
	reload(`{"labels": ["rack=3"], "grph": "/x", "default-ipc-mode": "host"}`)
	logs(t, h, "the configuration is not reloaded, nothing has changed", "grph")
	reload(`{"labels": ["rack=3"], "default-ipc-mode": "host"}`)
	logs(t, h, "the configuration is not reloaded, nothing has changed", "not supported as default value")
	equal(t, "info after what was refused", Docker(t, h, "info", "-f", info), after)
	if now := h.DaemonPID(); now != pid {
		t.Errorf("the daemon is process %d, it was %d", now, pid)
	}
	equal(t, "the first container", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "first"), "running")
	validated(t, h)
}

// validated: a configuration is checked without starting anything, and one message names all that has to go.
func validated(t *testing.T, h *testhost.Host) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "daemon.json")
	for _, c := range []struct {
		text string
		want []string
		ok   bool
	}{
		{`{"debug": true, "live-restore": true, "log-driver": "json-file", "log-opts": {"max-size": "10m"}}`, []string{"configuration OK"}, true},
		{`{"shutdown-timeout": 30}`, []string{"warning: shutdown-timeout has no effect", "configuration OK"}, true},
		{`{"group": "no-such-group"}`, []string{"no-such-group"}, false},
		{`{"storage-driver": "btrfs", "data": "/x", "selinux-enabled": true}`, []string{path, `"storage-driver": "btrfs" cannot be had`, `"data": there is no such key`, `"selinux-enabled": true cannot be had`}, false},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), fmt.Sprintf("/proc/%d/exe", h.DaemonPID()), "--validate", "--config-file", path).CombinedOutput()
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.text, err)
		}
		contains(t, c.text, string(out), c.want...)
	}
}

// TestStacksOnSignal: the three programs say what they are doing, and go on.
func TestStacksOnSignal(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "first", image, "sleep")
	mustSolve(t, h, buildSpec{dockerfile: "FROM " + image + "\nRUN echo x\n", tags: "docker.io/library/x:1"})
	for program, pid := range map[string]int{"sampand": h.DaemonPID(), "keeper": h.KeeperPID(), "builder": builderPID(h)} {
		if pid == 0 {
			t.Fatalf("%s does not run", program)
		}
		if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		Eventually(t, 30*time.Second, "stacks of "+program, func(context.Context) error {
			files, err := filepath.Glob(filepath.Join(h.ExecRoot(), "goroutine-stacks-*-"+program+".log"))
			if err != nil || len(files) != 1 {
				return fmt.Errorf("files %v, %v", files, err)
			}
			text, err := os.ReadFile(files[0])
			if err != nil || !strings.Contains(string(text), "goroutine ") || !strings.Contains(string(text), "main.main") {
				return fmt.Errorf("%d bytes, %v", len(text), err)
			}
			return nil
		})
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("%s has ended: %v", program, err)
		}
	}
	logs(t, h, "goroutine stacks written to "+h.ExecRoot())
	// The keeper catches the signal; a container's processes must not find it ignored, nor any that who started it all does
	// not ignore.
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if more := ignored(t, Docker(t, h, "exec", "first", "/probe", "cat", "/proc/1/status")) &^ ignored(t, string(own)); more != 0 {
		t.Errorf("signals are ignored in a container: %#x", more)
	}
	equal(t, "the container", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "first"), "running")
}

// ignored are the signals that a process ignores, by its /proc/PID/status.
func ignored(t *testing.T, status string) (mask uint64) {
	t.Helper()
	_, after, ok := strings.Cut(status, "SigIgn:")
	if _, err := fmt.Sscanf(after, "%x", &mask); !ok || err != nil {
		t.Fatalf("no ignored signals in %q: %v", status, err)
	}
	return mask
}
