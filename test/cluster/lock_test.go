package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestAutolock: a manager that starts waits for its unlock key and is of no use to who has only its disk; what runs on
// its host goes on meanwhile.
func TestAutolock(t *testing.T) {
	t.Parallel()
	l := New(t, 3)
	h, second, worker := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	out := Docker(t, h, "swarm", "init", "--autolock", "--advertise-addr", h.Addr.String())
	key := Docker(t, h, "swarm", "unlock-key", "-q")
	if !strings.HasPrefix(key, "SWMKEY-1-") || !strings.Contains(out, key) {
		t.Errorf("the key is %q, init printed\n%s", key, out)
	}
	joinAll(t, h, second)
	Docker(t, worker, "swarm", "join", "--token", Docker(t, h, "swarm", "join-token", "-q", "worker"), h.Addr.String()+":2377")
	if _, err := h.DockerInput(t.Context(), []byte("correct horse battery staple"), "secret", "create", "phrase", "-"); err != nil {
		t.Fatal(err)
	}
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 3, "--network", "n", "--publish", "8080:8080", "--secret", "phrase")
	managers(t, h, h, second)
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr), 3) // the host knows of all: what it knows is what it goes on from

	state := func(host *testhost.Host, want string) {
		t.Helper()
		Eventually(t, 60*time.Second, host.Name+" is "+want, func(ctx context.Context) error {
			out, err := host.Docker(ctx, "info", "-f", "{{.Swarm.LocalNodeState}}")
			if err == nil && out != want {
				err = errors.New(out)
			}
			return err
		})
	}
	unlock := func(host *testhost.Host, key string) error {
		_, err := host.DockerInput(t.Context(), []byte(key+"\n"), "swarm", "unlock")
		return err
	}
	for _, host := range []*testhost.Host{h, second} {
		if err := host.KillDaemon(t.Context()); err != nil {
			t.Fatal(err)
		}
		noSecrets(t, filepath.Join(host.DataRoot(), "swarm"))
		if err := host.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		state(host, "locked")
	}
	Refused(t, h, []string{"Swarm is encrypted and needs to be unlocked"}, "node", "ls")
	Refused(t, h, []string{"Swarm is encrypted and needs to be unlocked"}, "swarm", "init")
	Refused(t, h, []string{"unlock it first"}, "swarm", "leave")
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr), 3)
	for _, wrong := range []string{"nonsense", key[:len(key)-4] + "AAAA"} {
		if err := unlock(h, wrong); err == nil || !strings.Contains(err.Error(), "invalid key provided") {
			t.Errorf("unlocked with %q: %v", wrong, err)
		}
	}
	for _, host := range []*testhost.Host{h, second} {
		if err := unlock(host, key); err != nil {
			t.Fatal(err)
		}
		state(host, "active")
	}
	managers(t, h, h, second)
	if err := unlock(h, key); err == nil || !strings.Contains(err.Error(), "not locked") {
		t.Errorf("unlocked twice: %v", err)
	}
	Docker(t, h, "service", "scale", "-d", "web=4")
	running(t, h, "web", 4)

	// Another key; then none.
	Docker(t, second, "swarm", "unlock-key", "--rotate")
	next := Docker(t, h, "swarm", "unlock-key", "-q")
	if next == key {
		t.Error("the key is the same after its rotation")
	}
	Eventually(t, 60*time.Second, "the new key to be the one", func(ctx context.Context) error {
		if err := errors.Join(h.Stop(ctx), h.Start(ctx)); err != nil {
			return err
		}
		return unlock(h, next)
	})
	managers(t, h, h, second)
	Docker(t, h, "swarm", "update", "--autolock=false")
	Eventually(t, 60*time.Second, "no lock any more", func(ctx context.Context) error {
		if err := errors.Join(h.Stop(ctx), h.Start(ctx)); err != nil {
			return err
		}
		if out, err := h.Docker(ctx, "info", "-f", "{{.Swarm.LocalNodeState}}"); err != nil || out != "active" {
			return fmt.Errorf("%s %w", out, errors.Join(err, unlock(h, next)))
		}
		return nil
	})
	managers(t, h, h, second)
	Refused(t, h, []string{"no unlock key is set"}, "swarm", "unlock-key")
	running(t, h, "web", 4)
}

// noSecrets looks through a folder for what nobody may read there.
func noSecrets(t *testing.T, dir string) {
	t.Helper()
	files := 0
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		doc, err := os.ReadFile(path)
		files++
		for _, secret := range []string{"correct horse", "Y29ycmVjdCBob3Jz", "BEGIN PRIVATE KEY", "SWMTKN-1-", "SWMKEY-1-", "BEGIN SAMPAN DATA KEY"} {
			if bytes.Contains(doc, []byte(secret)) {
				t.Errorf("%q is in %s", secret, path)
			}
		}
		return err
	}); err != nil || files < 4 {
		t.Fatalf("%d files looked through, %v", files, err)
	}
}
