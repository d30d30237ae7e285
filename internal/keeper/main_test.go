package keeper_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/keeper"
	// The program that is built and run here is made of these: a change of theirs makes what the tests said before void.
	_ "github.com/sampan-cloud/sampan/internal/keeper/filtercache"
	_ "github.com/sampan-cloud/sampan/internal/keeper/names"
	_ "github.com/sampan-cloud/sampan/internal/keeper/server"
	"github.com/sampan-cloud/sampan/internal/testhost"
)

var raceKeeper = flag.Bool("race-keeper", false, "build the keeper with the race detector too; starts then take long")

var (
	keeperBinary string
	rootfs       string
	cgroupParent = fmt.Sprintf("/sampan-keeper-test-%d", os.Getpid())
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	code, err := withPrograms(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func withPrograms(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "keeper-test-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // for those who are root in a user namespace
		return 0, err
	}
	defer removeCgroups()
	keeperBinary, rootfs = filepath.Join(dir, "sampan-keeper"), filepath.Join(dir, "rootfs")
	for _, d := range []string{"proc", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			return 0, err
		}
	}
	// Where nothing can be built, as in a virtual machine, both are there.
	if tool := os.Getenv("SAMPAN_TOOL"); tool != "" {
		keeperBinary = filepath.Join(os.Getenv("SAMPAN_BIN"), "sampan-keeper")
		if out, err := exec.Command("cp", tool, filepath.Join(rootfs, "tool")).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("cp: %w\n%s", err, out)
		}
		return m.Run(), nil
	}
	if out, err := exec.Command("gcc", "-static", "-O1", "-o", filepath.Join(rootfs, "tool"), "testdata/tool.c").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("gcc: %w\n%s", err, out)
	}
	build := []string{"build", "-tags", "seccomp", "-o", keeperBinary}
	if *raceKeeper {
		build = append(build, "-race")
	}
	if out, err := exec.Command("go", append(build, "github.com/sampan-cloud/sampan/cmd/sampan-keeper")...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building the keeper: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// cgroupDirs returns every folder of the tests' groups, deepest first.
func cgroupDirs() []string {
	var dirs []string
	tops, _ := filepath.Glob("/sys/fs/cgroup/*" + cgroupParent)
	for _, top := range append(tops, "/sys/fs/cgroup"+cgroupParent) {
		_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append([]string{path}, dirs...)
			}
			return nil
		})
	}
	return dirs
}

func removeCgroups() {
	for _, dir := range cgroupDirs() {
		_ = os.Remove(dir)
	}
}

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes real containers")
	}
}

// host is an exec root with its keeper.
type host struct {
	t    testing.TB
	root string
	cfg  keeper.Config
	c    *keeper.Client
}

// newHost starts a keeper; its end checks that nothing stays.
func newHost(t testing.TB) *host {
	t.Helper()
	return newHostWith(t, "")
}

// newHostWith is newHost with failpoints armed in the keeper.
func newHostWith(t testing.TB, failpoints string) *host {
	t.Helper()
	requireRoot(t)
	root, err := os.MkdirTemp("", "kt-")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, root: root, cfg: keeper.Config{
		Binary: keeperBinary, ExecRoot: root, CgroupParent: cgroupParent, Failpoints: failpoints,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
	t.Cleanup(h.end)
	h.connect()
	return h
}

func (h *host) connect() {
	h.t.Helper()
	c, err := keeper.Ensure(h.ctx(), h.cfg)
	if err != nil {
		h.t.Fatalf("Ensure: %v", err)
	}
	h.c = c
}

// ctx is bounded so that a hang fails the test with its log.
func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.t.Context()), testhost.Patient(60*time.Second))
	h.t.Cleanup(cancel)
	return ctx
}

func (h *host) end() {
	defer os.RemoveAll(h.root)
	defer func() {
		text, _ := os.ReadFile(keeper.LogPath(h.root))
		if bytes.Contains(text, []byte("DATA RACE")) || bytes.Contains(text, []byte("panic:")) {
			h.t.Error("the keeper's log tells of a bug")
		}
		if h.t.Failed() {
			h.t.Logf("the keeper's log:\n%s", text)
		}
	}()
	if h.c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	list, err := h.c.List(ctx)
	if err != nil {
		h.t.Errorf("List: %v", err)
	}
	for _, st := range list {
		if st.ExecID == "" {
			if err := h.c.Delete(ctx, st.ID); err != nil {
				h.t.Errorf("Delete: %v", err)
			}
		}
	}
	if err := h.c.Shutdown(ctx); err != nil {
		h.t.Errorf("Shutdown: %v", err)
	}
	for _, dir := range []string{"containers", "io"} {
		if left, _ := os.ReadDir(filepath.Join(h.root, "keeper", dir)); len(left) > 0 {
			h.t.Errorf("left behind in %s: %v", dir, left)
		}
	}
	for _, dir := range cgroupDirs() {
		if filepath.Base(dir) != filepath.Base(cgroupParent) {
			h.t.Errorf("left behind: %s", dir)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(mounts, []byte(h.root)) || bytes.Contains(mounts, []byte(rootfs)) {
		h.t.Error("left behind: a mount")
	}
}

func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// spec is a container that runs the tool with args.
func (h *host) spec(args ...string) keeper.Spec {
	id := newID()
	return keeper.Spec{
		ID: id, Bundle: bundle(id, nil, args...),
		Log: keeper.LogSpec{Driver: "json-file", Path: filepath.Join(h.root, "logs", id+"-json.log")},
	}
}

func process(args ...string) *specs.Process {
	return &specs.Process{
		Args: append([]string{"/tool"}, args...), Cwd: "/", Env: []string{"PATH=/"},
		Capabilities: &specs.LinuxCapabilities{},
	}
}

func bundle(id string, change func(*specs.Spec), args ...string) json.RawMessage {
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: rootfs, Readonly: true},
		Process: process(args...),
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join(cgroupParent, id),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	if change != nil {
		change(s)
	}
	text, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return text
}

func (h *host) create(s keeper.Spec) keeper.Status {
	h.t.Helper()
	st, err := h.c.Create(h.ctx(), s)
	if err != nil {
		h.t.Fatalf("Create: %v", err)
	}
	return st
}

func (h *host) start(id string) keeper.Status {
	h.t.Helper()
	st, err := h.c.Start(h.ctx(), id)
	if err != nil {
		h.t.Fatalf("Start: %v", err)
	}
	return st
}

func (h *host) run(s keeper.Spec) keeper.Status {
	h.t.Helper()
	h.create(s)
	return h.start(s.ID)
}

func (h *host) attach(o keeper.AttachOptions) *keeper.Stream {
	h.t.Helper()
	s, err := h.c.Attach(h.ctx(), o)
	if err != nil {
		h.t.Fatalf("Attach: %v", err)
	}
	context.AfterFunc(h.ctx(), func() { _ = s.Close() }) // a hang ends the read, and with that the test
	return s
}

// runReady runs the tool's sleep and waits until it takes signals.
func (h *host) runReady(s keeper.Spec) keeper.Status {
	h.t.Helper()
	st := h.run(s)
	h.eventually("the container is ready", func() bool { return logText(h.t, s.Log.Path) == "ready\n" })
	return st
}

// event waits for the next event that matches.
func (h *host) event(match func(keeper.Event) bool) keeper.Event {
	h.t.Helper()
	ctx := h.ctx()
	for {
		select {
		case e, ok := <-h.c.Events():
			if !ok {
				h.t.Fatal("events ended")
			}
			if match(e) {
				return e
			}
		case <-ctx.Done():
			h.t.Fatal("the event did not come")
		}
	}
}

func (h *host) exit(id, execID string) keeper.Status {
	h.t.Helper()
	return h.event(func(e keeper.Event) bool {
		return e.Type == keeper.EventExit && e.Status.ID == id && e.Status.ExecID == execID
	}).Status
}

func mustExit(t testing.TB, st keeper.Status, code int) {
	t.Helper()
	if st.State != keeper.Exited || st.ExitCode != code || st.ExitUnknown || st.PID != 0 || st.ExitedAt.IsZero() {
		t.Errorf("status %+v, want exited with %d", st, code)
	}
}

// readUntil reads an attach until what came contains want.
func readUntil(t testing.TB, s *keeper.Stream, want string) string {
	t.Helper()
	var got strings.Builder
	for !strings.Contains(got.String(), want) {
		_, p, err := s.Read()
		if err != nil {
			t.Fatalf("attach ended with %v after %q, before %q", err, got.String(), want)
		}
		got.Write(p)
	}
	return got.String()
}

// readAll reads an attach to its end: stdout, stderr.
func readAll(t testing.TB, s *keeper.Stream) (stdout, stderr string) {
	t.Helper()
	var out [3]bytes.Buffer
	for {
		stream, p, err := s.Read()
		if errors.Is(err, io.EOF) {
			return out[1].String(), out[2].String()
		}
		if err != nil {
			t.Fatalf("attach: %v", err)
		}
		out[stream].Write(p)
	}
}

type entry struct {
	Log, Stream string
	Attrs       map[string]string
	Time        time.Time
}

// logText returns what a log says, entries joined.
func logText(t testing.TB, path string) string {
	t.Helper()
	var b strings.Builder
	for _, e := range logEntries(t, path) {
		b.WriteString(e.Log)
	}
	return b.String()
}

func logEntries(t testing.TB, path string) []entry {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var list []entry
	for line := range bytes.Lines(text) {
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		list = append(list, e)
	}
	return list
}

// eventually waits for what has no event of its own: a process that the keeper is not there to see.
func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	ctx := h.ctx()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			h.t.Fatalf("did not happen: %s", what)
		}
	}
}

// kill9 kills a process and waits until it is gone.
func (h *host) kill9(pid int) {
	h.t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	h.eventually("the process is gone", func() bool {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil || bytes.Contains(text, []byte(") Z "))
	})
}
