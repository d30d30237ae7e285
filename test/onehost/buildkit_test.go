package onehost

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bk "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"

	"github.com/sampan-cloud/sampan/internal/testhost"
)

// buildSpec is a build as buildx asks for it.
type buildSpec struct {
	dockerfile string
	files      map[string]string // of the context
	tags       string            // comma between them
	attrs      map[string]string // of the frontend: build-arg:…, target, …
	exports    []bk.ExportEntry  // nil: the host's image store
	session    []session.Attachable
	cacheFrom  []bk.CacheOptionsEntry
	cacheTo    []bk.CacheOptionsEntry
	allow      []string
	direct     bool             // speak gRPC to the API itself, without a tunnel
	started    func(log string) // told what was printed, at every piece
}

// built is what came of a build.
type built struct {
	log    string // the steps' names and what they printed
	cached map[string]bool
	id     string
}

// buildBound is how long a build may take before it counts as hung.
const buildBound = 2 * time.Minute

// solve builds by BuildKit's own protocol over the host's API: the way of buildx, which a machine with tests may lack.
func solve(ctx context.Context, t testing.TB, h *testhost.Host, s buildSpec) (built, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, testhost.Patient(buildBound))
	defer cancel()
	docker, err := h.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer docker.Close()
	c, err := bk.New(ctx, "", bk.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return docker.DialHijack(ctx, "/grpc", "h2c", nil)
	}), bk.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
		return docker.DialHijack(ctx, "/session", proto, meta)
	}))
	if s.direct { // as newer clients do: HTTP/2 on the API's socket from the first byte
		c, err = bk.New(ctx, h.DockerHost())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dir := t.TempDir()
	write(t, dir, "Dockerfile", s.dockerfile)
	for name, text := range s.files {
		write(t, dir, name, text)
	}
	local, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	attrs := map[string]string{"image-resolve-mode": "local"}
	for k, v := range s.attrs {
		attrs[k] = v
	}
	if s.exports == nil {
		s.exports = []bk.ExportEntry{{Type: "moby", Attrs: map[string]string{"name": s.tags}}}
	}
	var out built
	out.cached = map[string]bool{}
	var log strings.Builder
	status := make(chan *bk.SolveStatus)
	var g errgroup.Group
	g.Go(func() error {
		seen := map[string]bool{}
		for st := range status {
			for _, v := range st.Vertexes {
				if !seen[v.Digest.String()] {
					seen[v.Digest.String()] = true
					fmt.Fprintln(&log, v.Name)
				}
				if v.Cached {
					out.cached[v.Name] = true
				}
				if v.Error != "" {
					fmt.Fprintln(&log, v.Error)
				}
			}
			for _, l := range st.Logs {
				log.Write(l.Data)
			}
			if s.started != nil {
				s.started(log.String())
			}
		}
		return nil
	})
	res, err := c.Solve(ctx, nil, bk.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: attrs, LocalMounts: map[string]fsutil.FS{"context": local, "dockerfile": local},
		Exports: s.exports, Session: s.session, CacheImports: s.cacheFrom, CacheExports: s.cacheTo, AllowedEntitlements: s.allow}, status)
	_ = g.Wait()
	out.log = log.String()
	if res != nil {
		out.id = res.ExporterResponse["containerimage.digest"]
	}
	return out, err
}

// mustSolve is solve for builds that must work.
func mustSolve(t testing.TB, h *testhost.Host, s buildSpec) built {
	t.Helper()
	b, err := solve(t.Context(), t, h, s)
	if err != nil {
		t.Fatalf("%v\n%s", err, b.log)
	}
	return b
}

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// archive is a tar of files.
func archive(t testing.TB, files map[string]string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// when calls f once a build has printed text.
func when(text string, f func()) func(string) {
	var once sync.Once
	return func(log string) {
		if strings.Contains(log, text) {
			once.Do(f)
		}
	}
}
