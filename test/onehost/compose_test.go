package onehost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

const composeFile = `name: shop
services:
  db:
    image: test/probe:1
    healthcheck: {test: ["CMD", "/probe", "true"], interval: 1s, start_period: 5s, start_interval: 200ms}
    volumes: [data:/data]
    networks: [back]
  seed:
    image: test/probe:1
    command: [write, /data/seed, planted]
    volumes: [data:/data]
    depends_on: {db: {condition: service_healthy}}
  app:
    build: {context: app, args: {GREETING: hello}}
    depends_on: {db: {condition: service_healthy}, seed: {condition: service_completed_successfully}}
    networks: [back, front]
    volumes: [data:/data]
    deploy: {resources: {limits: {memory: 64M}}}
  web:
    image: test/probe:1
    ports: ["8080:8080"]
    networks: [front]
    secrets: [token]
    configs: [{source: conf, target: /conf}]
    profiles: [web]
networks: {front: {}, back: {internal: true}}
volumes: {data: {}}
secrets: {token: {file: ./token}}
configs: {conf: {content: from compose}}
`

// TestCompose: services that wait for each other, by the Compose that the command carries.
func TestCompose(t *testing.T) {
	l, h := one(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"compose.yaml": composeFile, "token": "secret", "compose.override.yaml": "services: {app: {labels: {over: ridden}}}\n",
		"app/Dockerfile": "FROM test/probe:1\nARG GREETING\nENV GREETING=$GREETING\nRUN [\"/probe\", \"true\"]\n"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	compose := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), l.Binaries.Path("sampan"), append([]string{"compose", "--progress", "plain"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "SAMPAN_HOST="+h.DockerHost(), "DOCKER_CONFIG="+h.Dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("compose %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	compose("up", "-d", "--wait", "--scale", "app=2")
	equal(t, "what the seed left", compose("exec", "-T", "app", "/probe", "cat", "/data/seed"), "planted")
	contains(t, "what was built", compose("run", "--rm", "--no-deps", "-T", "app", "env"), "GREETING=hello")
	contains(t, "the database by name", compose("exec", "-T", "--index", "2", "app", "/probe", "get", "http://db:8080"), " ")
	equal(t, "the override and the limit", Docker(t, h, "inspect", "-f", "{{.Config.Labels.over}} {{.HostConfig.Memory}}", "shop-app-1"), "ridden 67108864")
	if ids := strings.Fields(compose("ps", "-q", "app")); len(ids) != 2 {
		t.Errorf("two of app were asked for, there are %q", ids)
	}
	if out := compose("ps", "--services"); strings.Contains(out, "web") {
		t.Errorf("a service of a profile runs unasked: %s", out)
	}

	compose("--profile", "web", "up", "-d", "--wait", "web")
	fetch(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr))
	equal(t, "secret and config", compose("--profile", "web", "exec", "-T", "web", "/probe", "cat", "/run/secrets/token", "/conf"), "secretfrom compose")

	// A change of one service makes that one anew, and no other.
	before := Docker(t, h, "inspect", "-f", "{{.Id}}", "shop-db-1", "shop-app-1")
	if err := os.WriteFile(filepath.Join(dir, "compose.override.yaml"), []byte("services: {app: {labels: {over: again}}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	compose("up", "-d", "--wait")
	db, app, _ := strings.Cut(before, "\n")
	equal(t, "the database stays", Docker(t, h, "inspect", "-f", "{{.Id}}", "shop-db-1"), db)
	if Docker(t, h, "inspect", "-f", "{{.Id}}", "shop-app-1") == app {
		t.Error("app was not made anew")
	}

	compose("--profile", "web", "down", "-v", "--rmi", "local")
	equal(t, "containers left", Docker(t, h, "ps", "-aq"), "")
	equal(t, "volumes left", Docker(t, h, "volume", "ls", "-q"), "")
	equal(t, "networks left", Docker(t, h, "network", "ls", "-q", "-f", "type=custom"), "")
}

// TestComposeUpGoesOnAfterARestart: who is attached sees a restarted container's output again. Compose asks, when the
// container has died, whether it runs.
func TestComposeUpGoesOnAfterARestart(t *testing.T) {
	l, h := one(t)
	dir := t.TempDir()
	write(t, dir, "compose.yaml", "name: again\nservices: {app: {image: "+image+", command: [serve], stop_grace_period: 0s}}\n")
	shown, err := os.Create(filepath.Join(dir, "shown"))
	if err != nil {
		t.Fatal(err)
	}
	defer shown.Close()
	cmd := exec.CommandContext(t.Context(), l.Binaries.Path("sampan"), "compose", "--progress", "plain", "up")
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, shown, shown
	cmd.Env = append(os.Environ(), "SAMPAN_HOST="+h.DockerHost(), "DOCKER_CONFIG="+h.Dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for times := 1; times <= 3; times++ {
		if times > 1 {
			Docker(t, h, "restart", "-t", "0", "again-app-1")
		}
		Eventually(t, 60*time.Second, fmt.Sprintf("the first line of run %d", times), func(context.Context) error {
			text, err := os.ReadFile(shown.Name())
			if n := strings.Count(string(text), "app-1  | "); err != nil || n < times {
				return fmt.Errorf("%d lines, %v:\n%s", n, err, text)
			}
			return nil
		})
	}
	Docker(t, h, "stop", "-t", "0", "again-app-1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("compose up ended with %v", err)
	}
}

// TestComposeWatch: a file that is saved is in every container of the service a moment later, and one that is to be built
// in makes the service anew.
func TestComposeWatch(t *testing.T) {
	l, h := one(t)
	dir := t.TempDir()
	write(t, dir, "compose.yaml", "name: live\nservices: {app: {build: {context: .}, init: true, stop_grace_period: 0s, scale: 2, "+
		"develop: {watch: [{action: sync, path: pages, target: /pages}, {action: rebuild, path: built}]}}}\n")
	write(t, dir, "Dockerfile", "FROM "+image+"\nCOPY pages /pages\nCOPY built /built\n")
	for _, sub := range []string{"pages", "built"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, sub), "one", "before")
	}
	shown, err := os.Create(filepath.Join(dir, "shown"))
	if err != nil {
		t.Fatal(err)
	}
	defer shown.Close()
	compose := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), l.Binaries.Path("sampan"), append([]string{"compose", "--progress", "plain"}, args...)...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, shown, shown
		cmd.Env = append(os.Environ(), "SAMPAN_HOST="+h.DockerHost(), "DOCKER_CONFIG="+h.Dir)
		return cmd
	}
	said := func() string {
		text, err := os.ReadFile(shown.Name())
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	if err := compose("up", "-d", "--build").Run(); err != nil {
		t.Fatalf("%v\n%s", err, said())
	}
	watch := compose("watch", "--no-up")
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watch.Process.Kill(); _ = watch.Wait() }()
	Eventually(t, 20*time.Second, "the watch", func(context.Context) error {
		if !strings.Contains(said(), "Watch enabled") {
			return errors.New(said())
		}
		return nil
	})
	has := func(path, want string) {
		t.Helper()
		for _, name := range []string{"live-app-1", "live-app-2"} {
			Eventually(t, 30*time.Second, path+" of "+name, func(ctx context.Context) error {
				out, err := h.Docker(ctx, "exec", name, "/probe", "cat", path)
				if err == nil && out != want {
					err = fmt.Errorf("it has %q\n%s", out, said())
				}
				return err
			})
		}
	}
	first := Docker(t, h, "inspect", "-f", "{{.Id}}", "live-app-1")
	write(t, filepath.Join(dir, "pages"), "one", "after")
	has("/pages/one", "after")
	equal(t, "the same container", Docker(t, h, "inspect", "-f", "{{.Id}}", "live-app-1"), first)
	write(t, filepath.Join(dir, "built"), "one", "anew")
	has("/built/one", "anew")
}
