// Package workloads runs what people run: servers out of Debian's packages, and clients that others wrote. They see the
// faults that a small test program does not.
package workloads

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	"github.com/sampan-cloud/sampan/internal/testhost/debimage"
	"github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// image holds all of the programs; it is made once in this process and imported by each host.
const image = "debian/workloads:12"

var accounts = []debimage.Account{{Name: "www-data", ID: 33, Home: "/var/www"}, {Name: "postgres", ID: 100, Home: "/var/lib/postgresql"},
	{Name: "redis", ID: 101, Home: "/var/lib/redis"}, {Name: "rabbitmq", ID: 102, Home: "/var/lib/rabbitmq"}}

var archive = sync.OnceValues(func() (string, error) {
	ctx := context.Background()
	work, err := os.MkdirTemp("", "workloads-")
	if err != nil {
		return "", err
	}
	cache := filepath.Join(os.TempDir(), "sampan-debian-packages")
	root := filepath.Join(work, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", err
	}
	if err := debimage.Root(ctx, cache, root, accounts, "base-files", "bash", "coreutils", "dash", "findutils", "grep", "hostname", "mawk", "procps", "sed", "util-linux",
		"nginx", "redis-server", "redis-tools", "postgresql-15", "rabbitmq-server", "python3", "python3-docker", "python3-pika", "nodejs"); err != nil {
		return "", err
	}
	// What the packages' scripts would have made.
	for name, target := range map[string]string{"usr/bin/awk": "mawk", "usr/bin/erl": "../lib/erlang/bin/erl", "usr/bin/epmd": "../lib/erlang/bin/epmd",
		"usr/bin/escript": "../lib/erlang/bin/escript"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil && !os.IsExist(err) {
			return "", err
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "tmp"), 0o1777); err != nil {
		return "", err
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		return "", err
	}
	out := filepath.Join(work, "root.tar")
	text, err := exec.CommandContext(ctx, "tar", "-c", "-f", out, "-C", root, "--exclude", "./usr/share/doc", "--exclude", "./usr/share/man", ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("tar: %w: %s", err, text)
	}
	return out, os.RemoveAll(root)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := archive(); err == nil && os.Getuid() == 0 {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// one makes a host that has the image.
func one(t *testing.T) (*testhost.Lab, *testhost.Host) {
	t.Helper()
	labtest.RequireRoot(t)
	path, err := archive()
	if err != nil {
		t.Fatal(err)
	}
	l := labtest.New(t, 1)
	h := l.Hosts[0]
	labtest.Docker(t, h, "import", "--change", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/usr/lib/postgresql/15/bin LANG=C.UTF-8", path, image)
	return l, h
}

// eventually asks by the docker command until what it prints contains want.
func eventually(t *testing.T, h *testhost.Host, want string, args ...string) string {
	t.Helper()
	var out string
	labtest.Eventually(t, 60*time.Second, fmt.Sprintf("docker %s prints %q", strings.Join(args, " "), want), func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, h.CLI(), append([]string{"-H", h.DockerHost()}, args...)...)
		text, err := cmd.CombinedOutput() // what a server logs is on either
		if out = string(text); err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("it prints %q", out)
		}
		return err
	})
	return out
}
