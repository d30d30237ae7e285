package onehost

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bk "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// The probe is the shell of the test image: RUN echo x is "/bin/sh -c 'echo x'", which it understands.

func TestBuild(t *testing.T) {
	l, h := one(t)
	server := serveFile(t, l, "from a server\n")
	mustSolve(t, h, buildSpec{tags: "docker.io/library/base:1", dockerfile: "FROM " + image + "\nONBUILD RUN echo triggered\nONBUILD RUN write /onbuild yes\n"})
	b := mustSolve(t, h, buildSpec{
		tags:  "docker.io/library/app:1,docker.io/library/app:2",
		attrs: map[string]string{"build-arg:WHO": "world", "label:from": "outside"},
		files: map[string]string{"in.tar": archive(t, map[string]string{"unpacked": "out of a tar\n"}), ".dockerignore": "*.log\n", "a.log": "no", "dir/b.txt": "b\n"},
		dockerfile: `# syntax=docker/dockerfile:1.7
ARG BASE=base:1
FROM ${BASE} AS tools
ARG WHO=nobody
RUN write /who $WHO
ADD in.tar /tar/
ADD ` + server + ` /url
FROM ` + image + `
LABEL inside=yes
COPY --from=tools --chown=user /who /tar/unpacked /url /onbuild /got/
COPY --chmod=600 <<EOT /here
from here
EOT
COPY . /context/
RUN <<EOR
echo here too
EOR
ENV COLOR=green
WORKDIR /data
USER user
HEALTHCHECK --interval=7s CMD true
CMD ["cat", "/got/who", "/got/unpacked", "/got/url", "/got/onbuild"]
`})
	contains(t, "what was printed", b.log, "triggered", "here too", "[stage-1", "exporting to image")
	equal(t, "output", Docker(t, h, "run", "--rm", "app:1"), "world\nout of a tar\nfrom a server\nyes")
	equal(t, "context", Docker(t, h, "run", "--rm", "app:2", "ls", "/context"), ".dockerignore\nDockerfile\ndir\nin.tar")
	equal(t, "user, folder", strings.Fields(Docker(t, h, "run", "--rm", "-h", "x", "app:1", "id"))[0], "1000")
	Docker(t, h, "run", "--rm", "app:1", "write", "/got/who", "the user's own")
	Refused(t, h, []string{"permission denied"}, "run", "--rm", "app:1", "cat", "/here")
	equal(t, "configuration", Docker(t, h, "image", "inspect", "-f", "{{.Config.Labels.inside}} {{.Config.Labels.from}} {{.Config.WorkingDir}} {{.Config.Healthcheck.Interval}} {{index .Config.Env 1}}", "app:1"),
		"yes outside /data 7s COLOR=green")
	equal(t, "identity", Docker(t, h, "image", "inspect", "-f", "{{.Id}}", "app:2"), b.id)
	contains(t, "history", Docker(t, h, "history", "--no-trunc", "app:1"), "COPY --chown=user /who /tar/unpacked", "HEALTHCHECK", "buildkit.dockerfile.v0")
	again := mustSolve(t, h, buildSpec{direct: true, tags: "docker.io/library/base:1", dockerfile: "FROM " + image + "\nONBUILD RUN echo triggered\nONBUILD RUN write /onbuild yes\n"})
	if again.id == "" {
		t.Error("a build from the cache made no image")
	}
	// A stage alone, by the ID of the image below it.
	id := strings.TrimPrefix(Docker(t, h, "image", "inspect", "-f", "{{.Id}}", "base:1"), "sha256:")[:12]
	mustSolve(t, h, buildSpec{tags: "docker.io/library/stage:1", attrs: map[string]string{"target": "first"},
		dockerfile: "FROM " + id + " AS first\nRUN write /first yes\nFROM first\nRUN exit 9\n"})
	equal(t, "stage", Docker(t, h, "run", "--rm", "stage:1", "cat", "/first"), "yes")
}

func TestBuildMounts(t *testing.T) {
	l, h := one(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hidden words"), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := secretsprovider.NewStore([]secretsprovider.Source{{ID: "s", FilePath: secret}})
	if err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(t.TempDir(), "agent")
	talk, err := net.Listen("unix", agent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { talk.Close() })
	ssh, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{ID: "default", Paths: []string{agent}}})
	if err != nil {
		t.Fatal(err)
	}
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	mounts := func(n int) built {
		return mustSolve(t, h, buildSpec{tags: "docker.io/library/m:1", session: []session.Attachable{secretsprovider.NewSecretProvider(store), ssh},
			attrs: map[string]string{"build-arg:N": fmt.Sprint(n)}, files: map[string]string{"sub/in": "bound"},
			dockerfile: `FROM ` + image + `
ARG N
RUN --mount=type=secret,id=s cat /run/secrets/s
RUN --mount=type=secret,id=s,env=WORDS env
RUN --mount=type=ssh env
RUN --mount=type=ssh ls /run/buildkit
RUN --mount=type=cache,target=/cache write /cache/run-$N kept
RUN --mount=type=cache,target=/cache ls /cache
RUN --mount=type=bind,source=sub,target=/b cat /b/in
RUN --mount=type=tmpfs,target=/t write /t/x y
`})
	}
	b := mounts(1)
	contains(t, "what steps see", b.log, "hidden words", "WORDS=hidden words", "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0", "\nssh_agent.0\n", "\nrun-1\n", "bound")
	contains(t, "the cache of the build before", mounts(2).log, "\nrun-1\nrun-2\n")
	for _, path := range []string{"/run/secrets/s", "/cache/run-1", "/t/x", "/b/in"} {
		Refused(t, h, []string{"no such file"}, "run", "--rm", "m:1", "cat", path)
	}
	NothingLeft(t, l, before)
}

func TestBuildNetworks(t *testing.T) {
	l, h := one(t)
	url := serveFile(t, l, "over the wire\n")
	address := "10.99.0.1" // of the host
	for _, c := range []struct {
		mode, run string
		allow     []string
		want      string
		fails     bool
	}{
		{"", "get " + url, nil, "over the wire", false},
		{"", "cat /etc/hosts", nil, "1.2.3.4\tnamed", false},
		{"none", "get " + url, nil, "unreachable", true},
		{"host", "lookup " + address, []string{"network.host"}, "", false},
	} {
		attrs := map[string]string{"no-cache": "", "add-hosts": "named=1.2.3.4"}
		if c.mode != "" {
			attrs["force-network-mode"] = c.mode
		}
		b, err := solve(t.Context(), t, h, buildSpec{dockerfile: "FROM " + image + "\nRUN " + c.run + "\n", attrs: attrs, allow: c.allow})
		if (err != nil) != c.fails {
			t.Errorf("network %q: %v\n%s", c.mode, err, b.log)
			continue
		}
		contains(t, "network "+c.mode, b.log, c.want)
	}
}

func TestBuildOutputs(t *testing.T) {
	_, h := one(t)
	const text = "FROM scratch\nCOPY a.txt /sub/\n"
	dir := t.TempDir()
	spec := func(kind string, attrs map[string]string) buildSpec {
		return buildSpec{dockerfile: text, files: map[string]string{"a.txt": "a\n"}, exports: []bk.ExportEntry{{Type: kind, Attrs: attrs, OutputDir: dir,
			Output: func(map[string]string) (io.WriteCloser, error) { return os.Create(filepath.Join(dir, kind)) }}}}
	}
	local := spec("local", nil)
	local.exports[0].Output = nil
	mustSolve(t, h, local)
	if b, err := os.ReadFile(filepath.Join(dir, "sub/a.txt")); err != nil || string(b) != "a\n" {
		t.Errorf("output local: %q, %v", b, err)
	}
	for kind, attrs := range map[string]map[string]string{"tar": nil, "oci": {"name": "docker.io/library/as-oci:1"}, "docker": {"name": "docker.io/library/as-docker:1"}} {
		s := spec(kind, attrs)
		s.exports[0].OutputDir = ""
		mustSolve(t, h, s)
		if kind == "tar" {
			continue
		}
		contains(t, "load of "+kind, Docker(t, h, "load", "-i", filepath.Join(dir, kind)), "Loaded image: as-"+kind+":1")
	}
	// An image for several platforms is kept whole, this host's foremost.
	both := buildSpec{dockerfile: text, files: map[string]string{"a.txt": "a\n"}, tags: "docker.io/library/both:1", attrs: map[string]string{"platform": "linux/amd64,linux/arm64"}}
	mustSolve(t, h, both)
	equal(t, "kept", Docker(t, h, "image", "inspect", "-f", "{{.Os}}/{{.Architecture}}", "both:1"), "linux/amd64")
	other := buildSpec{dockerfile: text, files: map[string]string{"a.txt": "a\n"}, tags: "docker.io/library/other:1", attrs: map[string]string{"platform": "linux/arm64,linux/s390x"}}
	mustSolve(t, h, other)
	contains(t, "of other platforms", Docker(t, h, "image", "inspect", "--platform", "linux/s390x", "-f", "{{.Architecture}}", "other:1"), "s390x")
}

func TestBuildCacheInARegistry(t *testing.T) {
	t.Parallel()
	l := New(t, 2, testhost.InsecureArg)
	r, err := l.StartRegistry()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	const text = "FROM " + image + "\nRUN write /slow work\nRUN echo done\n"
	cache := []bk.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": r.Addr + "/cache:1", "mode": "max"}}}
	mustSolve(t, l.Hosts[0], buildSpec{dockerfile: text, cacheTo: cache, exports: []bk.ExportEntry{{Type: "moby", Attrs: map[string]string{"name": r.Addr + "/app:1", "push": "true"}}}})
	from := []bk.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": r.Addr + "/cache:1"}}}
	b := mustSolve(t, l.Hosts[1], buildSpec{dockerfile: text, cacheFrom: from, tags: "docker.io/library/app:1"})
	if !b.cached["[2/3] RUN write /slow work"] || !b.cached["[3/3] RUN echo done"] {
		t.Errorf("the other host did not use the cache in the registry: %v\n%s", b.cached, b.log)
	}
	equal(t, "from the cache", Docker(t, l.Hosts[1], "run", "--rm", "app:1", "cat", "/slow"), "work")
	// The image pushed is pulled, and carries its own cache when asked to.
	Docker(t, l.Hosts[1], "pull", "-q", r.Addr+"/app:1")
	equal(t, "pushed", Docker(t, l.Hosts[1], "run", "--rm", r.Addr+"/app:1", "cat", "/slow"), "work")
	mustSolve(t, l.Hosts[0], buildSpec{dockerfile: "FROM " + image + "\nRUN write /inline cache\n", cacheTo: []bk.CacheOptionsEntry{{Type: "inline"}},
		exports: []bk.ExportEntry{{Type: "moby", Attrs: map[string]string{"name": r.Addr + "/inline:1", "push": "true"}}}})
	b = mustSolve(t, l.Hosts[1], buildSpec{dockerfile: "FROM " + image + "\nRUN write /inline cache\n", tags: "docker.io/library/inline:1",
		cacheFrom: []bk.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": r.Addr + "/inline:1"}}}})
	if !b.cached["[2/2] RUN write /inline cache"] {
		t.Errorf("the other host did not use the inline cache: %v\n%s", b.cached, b.log)
	}
	// FROM what only the registry has.
	mustSolve(t, l.Hosts[0], buildSpec{dockerfile: "FROM " + r.Addr + "/app:1\nRUN cat /slow\n", attrs: map[string]string{"image-resolve-mode": "pull"}, tags: "docker.io/library/pulled:1"})
}

func TestBuildThatFails(t *testing.T) {
	l, h := one(t)
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ dockerfile, want string }{
		{"FROM " + image + "\nRUN exit 7\n", `process "/bin/sh -c exit 7" did not complete successfully: exit code: 7`},
		{"FROM " + image + "\nRUN [\"/nothing\"]\n", "/nothing"},
		{"FROM " + image + "\nCOPY nothing /\n", `"/nothing": not found`},
		{"FRM x\n", "unknown instruction: FRM"},
		{"FROM " + image + "\nRUN --network=host echo x\n", "network.host is not allowed"},
		{"FROM " + image + "\nRUN --security=insecure echo x\n", "security.insecure is not allowed"},
	} {
		b, err := solve(t.Context(), t, h, buildSpec{dockerfile: c.dockerfile})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q\n%s", c.dockerfile, err, c.want, b.log)
		}
	}
	NothingLeft(t, l, before)
}

func TestBuildCancelled(t *testing.T) {
	l, h := one(t)
	mustSolve(t, h, buildSpec{dockerfile: "FROM " + image + "\nRUN echo warm\n"})
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = solve(ctx, t, h, buildSpec{dockerfile: "FROM " + image + "\nRUN tick\n", started: when("\ntick 3\n", cancel)})
	if err == nil {
		t.Error("a cancelled build worked")
	}
	NothingLeft(t, l, before)
}

// TestBuilderKilled ends the builder, and then the daemon, in the middle of a build: it fails with a reason, nothing
// stays, the next build works and finds the cache.
func TestBuilderKilled(t *testing.T) {
	l, h := one(t)
	const warm = "FROM " + image + "\nRUN echo warm\n"
	mustSolve(t, h, buildSpec{dockerfile: warm, tags: "docker.io/library/warm:1"})
	for _, victim := range []struct {
		name   string
		direct bool
		kill   func() error
		want   string
	}{
		{"builder", false, func() error { return syscall.Kill(builderPID(h), syscall.SIGKILL) }, "the builder is gone, and this build with it: it ended with signal: killed"},
		{"builder", true, func() error { return syscall.Kill(builderPID(h), syscall.SIGKILL) }, "the builder is gone, and this build with it: it ended with signal: killed"},
		{"sampand", false, func() error { return syscall.Kill(h.DaemonPID(), syscall.SIGKILL) }, ""},
	} {
		_, err := solve(t.Context(), t, h, buildSpec{direct: victim.direct, dockerfile: "FROM " + image + "\nRUN tick\n", started: when("\ntick 3\n", func() {
			if err := victim.kill(); err != nil {
				t.Error(err)
			}
		})})
		if err == nil || !strings.Contains(err.Error(), victim.want) {
			t.Errorf("%s killed: %v, want %q", victim.name, err, victim.want)
		}
		if victim.name == "sampand" {
			if err := h.KillDaemon(t.Context()); err != nil { // waits for its end
				t.Fatal(err)
			}
			if err := h.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		Eventually(t, 60*time.Second, "the end of what was being built", func(context.Context) error {
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err != nil {
				return err
			}
			if strings.Contains(string(mounts), filepath.Join(h.ExecRoot(), "build")+"/") {
				return fmt.Errorf("mounts are left")
			}
			if steps := testhost.ProcessesWith("probe\x00-c\x00tick"); len(steps) > 0 && inGroup(h, steps) {
				return fmt.Errorf("processes are left: %v", steps)
			}
			return nil
		})
		b := mustSolve(t, h, buildSpec{dockerfile: warm, tags: "docker.io/library/warm:2"})
		if !b.cached["[2/2] RUN echo warm"] {
			t.Errorf("%s killed: the cache was lost: %v", victim.name, b.cached)
		}
	}
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	mustSolve(t, h, buildSpec{dockerfile: warm, attrs: map[string]string{"no-cache": ""}})
	NothingLeft(t, l, before)
}

func TestBuilderEndsWhenIdle(t *testing.T) {
	t.Parallel()
	l := New(t, 1, "--builder-idle=100ms")
	h := l.Hosts[0]
	if pid := builderPID(h); pid != 0 {
		t.Errorf("a builder runs before anybody builds: %d", pid)
	}
	contains(t, "usage of a host that never built", Docker(t, h, "system", "df"), "Build Cache")
	if pid := builderPID(h); pid != 0 {
		t.Errorf("a look at the disk's usage started a builder: %d", pid)
	}
	for range 2 {
		mustSolve(t, h, buildSpec{dockerfile: "FROM " + image + "\nRUN echo x\n", tags: "docker.io/library/x:1"})
		Eventually(t, 60*time.Second, "the builder's end", func(context.Context) error {
			if pid := builderPID(h); pid != 0 {
				return fmt.Errorf("process %d", pid)
			}
			return nil
		})
	}
}

func TestBuildCacheUsageAndPrune(t *testing.T) {
	_, h := one(t)
	usage := func() (size int64, records int) {
		var u struct {
			BuildCache []struct{ Size int64 }
		}
		get(t, h, "GET", "/v1.45/system/df?type=build-cache", &u)
		for _, r := range u.BuildCache {
			size += r.Size
		}
		return size, len(u.BuildCache)
	}
	if size, n := usage(); size != 0 || n != 0 {
		t.Errorf("before any build the cache has %d records, %d bytes", n, size)
	}
	mustSolve(t, h, buildSpec{dockerfile: "FROM " + image + "\nRUN write /a a\nRUN write /b b\n", tags: "docker.io/library/kept:1"})
	if size, n := usage(); size == 0 || n < 3 {
		t.Errorf("after a build the cache has %d records, %d bytes", n, size)
	}
	contains(t, "df", Docker(t, h, "system", "df"), "Build Cache")
	var report struct {
		CachesDeleted  []string
		SpaceReclaimed uint64
	}
	get(t, h, "POST", "/v1.45/build/prune?all=1", &report)
	if len(report.CachesDeleted) == 0 {
		t.Errorf("a prune took %+v", report)
	}
	if _, n := usage(); n != 0 {
		t.Errorf("after a prune of all the cache has %d records", n)
	}
	// What an image has stays.
	equal(t, "image", Docker(t, h, "run", "--rm", "kept:1", "cat", "/a"), "a")
	b := mustSolve(t, h, buildSpec{dockerfile: "FROM kept:1\nRUN cat /b\n"})
	contains(t, "on top", b.log, "\nb\n")
}

// get asks the host's API.
func get(t *testing.T, h *testhost.Host, method, path string, into any) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.Socket)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://docker"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %d %s %v", method, path, res.StatusCode, body, err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
}

// serveFile serves a text from the lab's client machine and returns its URL.
func serveFile(t *testing.T, l *testhost.Lab, text string) string {
	t.Helper()
	var listener net.Listener
	if err := l.Client.Do(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(l.Client.Addr.String(), "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return "http://" + listener.Addr().String() + "/file"
}

// builderPID is the process ID of the host's builder, 0 when it does not run.
func builderPID(h *testhost.Host) int {
	for _, pid := range h.Processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.HasPrefix(string(line), "sampan-builder\x00") {
			return pid
		}
	}
	return 0
}

// inGroup reports whether any of the processes is in a group of the host's.
func inGroup(h *testhost.Host, pids []int) bool {
	own := testhost.CgroupProcesses(h.CgroupParent())
	for _, p := range pids {
		for _, o := range own {
			if p == o {
				return true
			}
		}
	}
	return false
}

func TestBuildsAtOnce(t *testing.T) {
	l, h := one(t)
	mustSolve(t, h, buildSpec{dockerfile: "FROM " + image + "\nRUN echo warm\n"})
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			b, err := solve(t.Context(), t, h, buildSpec{tags: fmt.Sprintf("docker.io/library/at-once:%d", n), dockerfile: fmt.Sprintf("FROM %s\nRUN write /n %d\nRUN cat /n\n", image, n)})
			if err != nil {
				t.Errorf("build %d: %v\n%s", n, err, b.log)
			}
		})
	}
	wg.Wait()
	for n := range 8 {
		equal(t, "image", Docker(t, h, "run", "--rm", fmt.Sprintf("at-once:%d", n), "cat", "/n"), fmt.Sprint(n))
	}
	NothingLeft(t, l, before)
}

// TestBuildBroken breaks each step of what the daemon does for builds: the build says so, and nothing stays.
func TestBuildBroken(t *testing.T) {
	for _, name := range []string{"build.start", "build/host.step.attached", "build/host.step.created", "build/host.step.started"} {
		t.Run(strings.ReplaceAll(name, "/", "."), func(t *testing.T) {
			t.Parallel()
			l := New(t, 1, "--failpoint="+name+"=fail")
			before, err := l.TakeResidue()
			if err != nil {
				t.Fatal(err)
			}
			b, err := solve(t.Context(), t, l.Hosts[0], buildSpec{dockerfile: "FROM " + image + "\nRUN echo x\n"})
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%v\n%s", err, b.log)
			}
			NothingLeft(t, l, before)
		})
	}
}
