package onehost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

func TestRun(t *testing.T) {
	l, h := one(t)
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "output", Docker(t, h, "run", "--rm", image, "echo", "hello", "world"), "hello world")
	equal(t, "flags", Docker(t, h, "run", "--rm", "-u", "1000:1000", "-h", "box", "-w", "/data", image, "id"), "1000 1000 box /data")
	contains(t, "environment", Docker(t, h, "run", "--rm", "-e", "A=1", "-h", "box", image, "env"), "A=1", "HOSTNAME=box", "PATH=/usr/local/sbin")
	out, err := h.DockerInput(t.Context(), []byte("through a pipe"), "run", "--rm", "-i", image, "cat")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "standard input", out, "through a pipe")
	for code := range 4 {
		_, err := h.Docker(t.Context(), "run", "--rm", image, "exit", fmt.Sprint(code))
		if got := exitCode(err); got != code {
			t.Errorf("exit %d: the docker command ended with %d (%v)", code, got, err)
		}
	}
	_, err = h.Docker(t.Context(), "run", "--rm", "--entrypoint", "/nothing", image)
	if exitCode(err) != 127 {
		t.Errorf("a missing program ended with %d, want 127: %v", exitCode(err), err)
	}
	equal(t, "containers left", Docker(t, h, "ps", "-aq"), "")
	NothingLeft(t, l, before)
}

func TestLifeCycle(t *testing.T) {
	l, h := one(t)
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	id := Docker(t, h, "create", "--name", "web", "--stop-timeout", "5", image, "tick")
	equal(t, "created", Docker(t, h, "inspect", "-f", "{{.State.Status}} {{.Name}}", id[:12]), "created /web")
	Docker(t, h, "start", "web")
	equal(t, "running", Docker(t, h, "inspect", "-f", "{{.State.Status}} {{.State.Running}}", "web"), "running true")
	contains(t, "ps", Docker(t, h, "ps"), "web", image, "Up ")
	equal(t, "exec", Docker(t, h, "exec", "-e", "X=y", "-w", "/data", "web", "/probe", "cat", "hello"), "from the image")
	_, err = h.Docker(t.Context(), "exec", "web", "/probe", "exit", "9")
	if exitCode(err) != 9 {
		t.Errorf("exec ended with %d, want 9", exitCode(err))
	}
	contains(t, "top", Docker(t, h, "top", "web"), "PID", "/probe tick")
	contains(t, "stats", Docker(t, h, "stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "web"), "web ")
	Docker(t, h, "pause", "web")
	equal(t, "paused", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "web"), "paused")
	Docker(t, h, "unpause", "web")
	Docker(t, h, "rename", "web", "shop")
	Docker(t, h, "stop", "shop")
	equal(t, "stopped", Docker(t, h, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "shop"), "exited 7")
	logs := Docker(t, h, "logs", "shop")
	lines := strings.Split(strings.TrimSpace(logs), "\n")
	if want := fmt.Sprintf("last %d", len(lines)-2); lines[len(lines)-1] != want {
		t.Errorf("the log ends with %q, want %q", lines[len(lines)-1], want)
	}
	equal(t, "tail", Docker(t, h, "logs", "--tail", "1", "shop"), lines[len(lines)-1])
	Docker(t, h, "restart", "shop")
	Docker(t, h, "kill", "-s", "KILL", "shop")
	equal(t, "wait", Docker(t, h, "wait", "shop"), "137")
	Refused(t, h, []string{"is already in use by container"}, "create", "--name", "shop", image)
	Docker(t, h, "rm", "shop")
	Refused(t, h, []string{"No such container: shop"}, "start", "shop")
	NothingLeft(t, l, before)
}

func TestAttachAndTTY(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "create", "-i", "--name", "box", image, "cat")
	out, err := h.DockerInput(t.Context(), []byte("to the container\n"), "start", "-a", "-i", "box")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "attach", out, "to the container")
	equal(t, "cat ended with its input", Docker(t, h, "wait", "box"), "0")
	contains(t, "a terminal", Docker(t, h, "run", "--rm", "-t", image, "echo", "x"), "x")
}

func TestCopy(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "box", image, "sleep")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("from outside\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	Docker(t, h, "cp", filepath.Join(dir, "in"), "box:/data/in")
	equal(t, "copied in", Docker(t, h, "exec", "box", "/probe", "cat", "/data/in"), "from outside")
	Docker(t, h, "cp", "box:/data", filepath.Join(dir, "out"))
	text, err := os.ReadFile(filepath.Join(dir, "out", "hello"))
	if err != nil || string(text) != "from the image\n" {
		t.Errorf("copied out: %q, %v", text, err)
	}
	Refused(t, h, []string{"Could not find the file /nothing"}, "cp", "box:/nothing", dir)
}

func TestLimits(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "box", "--cpus", "0.5", "-m", "64m", image, "sleep")
	equal(t, "inspect", Docker(t, h, "inspect", "-f", "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}}", "box"), "500000000 67108864")
	contains(t, "memory limit", Docker(t, h, "stats", "--no-stream", "--format", "{{.MemUsage}}", "box"), "/ 64MiB")
	Refused(t, h, []string{"Minimum memory limit"}, "run", "--rm", "-m", "1m", image, "true")
}

func TestVolumes(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "volume", "create", "vol")
	Docker(t, h, "run", "--rm", "-v", "vol:/data", image, "write", "/data/mine", "kept")
	equal(t, "content of the image and what was written", Docker(t, h, "run", "--rm", "-v", "vol:/data", image, "cat", "/data/hello", "/data/mine"), "from the image\nkept")
	dir := t.TempDir()
	Docker(t, h, "run", "--rm", "-v", dir+":/host", image, "write", "/host/x", "bound")
	if text, err := os.ReadFile(filepath.Join(dir, "x")); err != nil || string(text) != "bound\n" {
		t.Errorf("bind mount: %q, %v", text, err)
	}
	_, err := h.Docker(t.Context(), "run", "--rm", "-v", dir+":/host:ro", image, "write", "/host/y", "no")
	if err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("a read-only mount took a write: %v", err)
	}
	Docker(t, h, "run", "-d", "--name", "box", "-v", "vol:/data", image, "sleep")
	Refused(t, h, []string{"volume is in use"}, "volume", "rm", "vol")
	Docker(t, h, "rm", "-f", "box")
	Docker(t, h, "volume", "rm", "vol")
	Refused(t, h, []string{"no such volume"}, "volume", "inspect", "vol")
}

func TestRestartPolicyAndHealth(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "again", "--restart", "on-failure:3", image, "exit", "4")
	Eventually(t, 60*time.Second, "three restarts, then the end", func(ctx context.Context) error {
		out, err := h.Docker(ctx, "inspect", "-f", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", "again")
		if err == nil && out != "3 exited 4" {
			err = errors.New(out)
		}
		return err
	})
	Docker(t, h, "run", "-d", "--name", "well", "--health-cmd", "/probe get http://127.0.0.1:8080", "--health-interval", "200ms", image)
	Docker(t, h, "run", "-d", "--name", "ill", "--health-cmd", "/probe false", "--health-interval", "100ms", "--health-retries", "2", image)
	for name, want := range map[string]string{"well": "healthy", "ill": "unhealthy"} {
		Eventually(t, 60*time.Second, name+" is "+want, func(ctx context.Context) error {
			out, err := h.Docker(ctx, "inspect", "-f", "{{.State.Health.Status}}", name)
			if err == nil && out != want {
				err = errors.New(out)
			}
			return err
		})
	}
}

func TestImages(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "tag", image, "other/name:2")
	contains(t, "images", Docker(t, h, "images", "--format", "{{.Repository}}:{{.Tag}}"), image, "other/name:2")
	equal(t, "the same image", Docker(t, h, "inspect", "-f", "{{.Id}}", image), Docker(t, h, "inspect", "-f", "{{.Id}}", "other/name:2"))
	contains(t, "untag", Docker(t, h, "rmi", "other/name:2"), "Untagged: other/name:2")
	Docker(t, h, "run", "-d", "--name", "box", image, "sleep")
	Refused(t, h, []string{"conflict"}, "rmi", image)
	Refused(t, h, []string{"No such image: nothing:latest"}, "image", "inspect", "nothing")
}

func exitCode(err error) int {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}
