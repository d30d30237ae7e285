// Package labtest gives tests labs: made for the test, closed after it, with the logs kept when it fails and a look at
// what was left behind when it does not.
package labtest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/testhost"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

// Image is the name of the image that every host of a test's lab has: FROM scratch, with the static program of
// internal/testhost/labtest/probe at /probe.
const Image = "test/probe:1"

// Number is what a variable of the environment says, or what is usual without it: how long a random test is, and its seed.
func Number(t testing.TB, name string, usual uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: want a number", name, text)
	}
	return n
}

// RequireRoot skips the test without root, as test hosts are network namespaces.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: test hosts are network namespaces")
	}
}

// New makes a lab of n hosts with their daemons started and the test image loaded. SAMPAN_BIN names the folder of the
// programs; without it they are built once.
func New(t testing.TB, n int, args ...string) *testhost.Lab {
	t.Helper()
	RequireRoot(t)
	ctx := context.Background()
	l, err := testhost.NewLab(ctx, n, testhost.Options{Binaries: os.Getenv("SAMPAN_BIN"), Args: append([]string{"-D"}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, l)
		}
		if err := l.Close(ctx); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	if err := l.StartAll(ctx); err != nil {
		t.Fatal(err)
	}
	Load(t, l.Hosts...)
	return l
}

// Cluster is New with the hosts made one cluster, the first managers of them managers.
func Cluster(t testing.TB, n, managers int, args ...string) *testhost.Lab {
	t.Helper()
	l := New(t, n, args...)
	if err := l.Swarm(t.Context(), managers); err != nil {
		t.Fatal(err)
	}
	return l
}

// Load gives hosts the test image.
func Load(t testing.TB, hosts ...*testhost.Host) {
	t.Helper()
	archive, err := Archive()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, h := range hosts {
		wg.Go(func() {
			if _, err := h.DockerInput(t.Context(), archive, "load"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// Archive is the test image as a docker-archive, built once in this process.
var Archive = sync.OnceValues(func() ([]byte, error) {
	ctx := context.Background()
	probe := os.Getenv("SAMPAN_PROBE") // built beforehand, where there is no Go
	if probe == "" {
		root, err := testhost.ModuleRoot()
		if err != nil {
			return nil, err
		}
		tmp, err := os.MkdirTemp("", "probe-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(tmp)
		if probe, err = testimage.GoBinary(ctx, root, "./internal/testhost/labtest/probe", tmp); err != nil {
			return nil, err
		}
	}
	return testimage.Build(ctx, testimage.Spec{
		Tags: []string{Image},
		Files: map[string]testimage.File{
			"/probe":      {HostPath: probe, Mode: 0o755},
			"/bin/sh":     {Symlink: "/probe"}, // health commands are given as CMD-SHELL: the probe understands its own verbs after -c
			"/etc/passwd": {Data: []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")},
			"/etc/group":  {Data: []byte("root:x:0:\nuser:x:1000:\n")},
			"/data/hello": {Data: []byte("from the image\n")},
		},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/probe"}, Cmd: []string{"serve"}},
	})
})

// Docker runs the docker command against h and fails the test if it fails.
func Docker(t testing.TB, h *testhost.Host, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testhost.Patient(90*time.Second))
	defer cancel()
	out, err := h.Docker(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Soon is Docker again and again until it succeeds: for a server that has been started and may not listen yet.
func Soon(t testing.TB, h *testhost.Host, args ...string) (out string) {
	t.Helper()
	Eventually(t, 60*time.Second, h.Name+": docker "+strings.Join(args, " "), func(ctx context.Context) (err error) {
		out, err = h.Docker(ctx, args...)
		return err
	})
	return out
}

// Refused runs the docker command and fails the test unless it fails with a message that has all of want in it.
func Refused(t testing.TB, h *testhost.Host, want []string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testhost.Patient(60*time.Second))
	defer cancel()
	out, err := h.Docker(ctx, args...)
	if err == nil {
		t.Errorf("docker %s: worked and printed %q, want a refusal with %q", strings.Join(args, " "), out, want)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("docker %s: %v\nwant a message with %q", strings.Join(args, " "), err, w)
		}
	}
}

// Eventually waits for a condition and fails the test if it does not come true within bound.
func Eventually(t testing.TB, bound time.Duration, what string, ready func(ctx context.Context) error) {
	t.Helper()
	if err := testhost.WaitFor(t.Context(), bound, what, ready); err != nil {
		t.Fatal(err)
	}
}

// NothingLeft fails the test if anything is on the lab's hosts that was not there before.
func NothingLeft(t testing.TB, l *testhost.Lab, before testhost.Residue) {
	t.Helper()
	Eventually(t, 60*time.Second, "everything taken down", func(context.Context) error {
		now, err := l.TakeResidue()
		if err != nil {
			return err
		}
		if left := before.Left(now); len(left) > 0 {
			return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		return nil
	})
}

// keepLogs copies every host's logs to a folder of their own and says where.
func keepLogs(t testing.TB, l *testhost.Lab) {
	dir, err := os.MkdirTemp("", "failed-"+strings.ReplaceAll(t.Name(), "/", "-")+"-")
	if err != nil {
		t.Log(err)
		return
	}
	for _, h := range l.Hosts {
		for _, path := range []string{h.LogPath(), filepath.Join(h.ExecRoot(), "keeper.log"), filepath.Join(h.ExecRoot(), "builder.log")} {
			from, err := os.Open(path)
			if err != nil {
				continue
			}
			if to, err := os.Create(filepath.Join(dir, h.Name+"-"+filepath.Base(path))); err == nil {
				_, _ = io.Copy(to, from)
				_ = to.Close()
			}
			_ = from.Close()
		}
	}
	t.Logf("the hosts' logs are kept in %s", dir)
}
