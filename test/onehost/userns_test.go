package onehost

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// remapped makes a host whose containers have user namespaces.
func remapped(t *testing.T, args ...string) (*testhost.Lab, *testhost.Host) {
	t.Helper()
	t.Parallel()
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(text), "%d.%d", &major, &minor); err == nil && (major < 5 || major == 5 && minor < 19) {
		refusedWithoutShiftedMounts(t, args...)
		t.Skip("user namespaces for containers need Linux 5.19; on this kernel sampand says so")
	}
	l := New(t, 1, args...)
	return l, l.Hosts[0]
}

// refusedWithoutShiftedMounts: a daemon that cannot do what it is asked for says what that takes, and does not start.
func refusedWithoutShiftedMounts(t *testing.T, args ...string) {
	t.Helper()
	RequireRoot(t)
	l, err := testhost.NewLab(t.Context(), 1, testhost.Options{Binaries: os.Getenv("SAMPAN_BIN"), Args: args})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close(t.Context())
	h := l.Hosts[0]
	if err := h.Launch(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 60*time.Second, "the daemon's word on what it takes", func(context.Context) error {
		if text := h.LogTail(5); !strings.Contains(text, "5.19") {
			return errors.New(text)
		}
		return nil
	})
	if _, err := os.Stat(h.Socket); err == nil {
		t.Error("the daemon serves nevertheless")
	}
}

// owner is the user that the first process of a container is on the host.
func owner(t *testing.T, h *testhost.Host, name string) uint32 {
	t.Helper()
	pid := Docker(t, h, "inspect", "-f", "{{.State.Pid}}", name)
	text, err := os.ReadFile("/proc/" + pid + "/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	var inside, outside, count uint32
	if _, err := fmt.Sscan(string(text), &inside, &outside, &count); err != nil {
		t.Fatalf("uid_map %q: %v", text, err)
	}
	return outside
}

// TestUserNSAuto: with --userns=auto each container's users are nobody else's on the host, and all the rest works as
// without.
func TestUserNSAuto(t *testing.T) {
	l, h := remapped(t, "--userns=auto")
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "info", Docker(t, h, "info", "-f", "{{.SecurityOptions}}"), "name=userns")
	Docker(t, h, "run", "-d", "--name", "web", "-p", "8080:8080", image)
	Docker(t, h, "run", "-d", "--name", "other", image, "sleep")
	Docker(t, h, "run", "-d", "--name", "plain", "--userns", "host", image, "sleep")
	web, other := owner(t, h, "web"), owner(t, h, "other")
	if web == 0 || other == 0 || web == other || owner(t, h, "plain") != 0 {
		t.Errorf("on the host, web's root is %d, other's %d, plain's %d", web, other, owner(t, h, "plain"))
	}
	equal(t, "inside it is root", strings.Join(strings.Fields(Docker(t, h, "exec", "web", "/probe", "id"))[:2], " "), "0 0")
	equal(t, "and a user", strings.Join(strings.Fields(Docker(t, h, "exec", "-u", "user", "web", "/probe", "id"))[:2], " "), "1000 1000")
	contains(t, "published", fetch(t, l.Client, "http://"+h.Addr.String()+":8080"), l.Client.Addr.String())

	Docker(t, h, "network", "create", "net1")
	Docker(t, h, "network", "connect", "net1", "web")
	Docker(t, h, "network", "connect", "net1", "other")
	contains(t, "connected while running", Soon(t, h, "exec", "other", "/probe", "get", "http://web:8080"), " ")

	// Its own files are its own, and those of the image too.
	Docker(t, h, "exec", "web", "/probe", "write", "/data/new", "x")
	equal(t, "owners", Docker(t, h, "exec", "web", "/probe", "owner", "/", "/data/hello", "/data/new", "/etc/hosts", "/etc/hostname", "/dev/shm"),
		strings.TrimSpace(strings.Repeat("0:0\n", 6)))
	Docker(t, h, "exec", "web", "/probe", "chown", "/data/new", "1000", "1000")
	Docker(t, h, "run", "--rm", "-w", "/not/there/yet", image, "write", "mine", "x")
	contains(t, "diff", Docker(t, h, "diff", "web"), "A /data/new")
	// The range belongs to the container, running or not.
	Docker(t, h, "restart", "-t", "1", "web")
	if again := owner(t, h, "web"); again != web {
		t.Errorf("after a restart web's root is %d, before %d", again, web)
	}
	equal(t, "owner kept", Docker(t, h, "exec", "web", "/probe", "owner", "/data/new"), "1000:1000")
	joined := Docker(t, h, "run", "-d", "--network", "container:web", "--pid", "container:web", image, "sleep")
	if o := owner(t, h, joined); o != web {
		t.Errorf("who joins web has the root %d, web %d", o, web)
	}
	contains(t, "in web's network", Soon(t, h, "exec", joined, "/probe", "get", "http://127.0.0.1:8080"), "127.0.0.1")
	Docker(t, h, "rm", "-f", joined)
	// Its network may be its own, too: in this its root is root, as in the namespaces that it joins.
	Docker(t, h, "run", "-d", "--name", "donor", "--ipc", "shareable", image, "sleep")
	donor := owner(t, h, "donor")
	for _, flags := range [][]string{{"--pid", "container:donor"}, {"--ipc", "container:donor"}, {"--pid", "container:donor", "--network", "none"}} {
		joined := Docker(t, h, append(append([]string{"run", "-d", "--sysctl", "net.ipv4.ip_forward=1"}, flags...), image, "sleep")...)
		if o := owner(t, h, joined); o != donor {
			t.Errorf("%v: who joins donor has the root %d, donor %d", flags, o, donor)
		}
		Docker(t, h, "restart", "-t", "1", joined)
		if flags[len(flags)-1] != "none" {
			contains(t, "in its own network", Soon(t, h, "exec", joined, "/probe", "get", "http://"+h.Addr.String()+":8080"), " ")
		}
		Docker(t, h, "rm", "-f", joined)
	}
	for want, flags := range map[string][]string{
		"privileged mode is incompatible with user namespaces":                                {"--privileged"},
		"cannot share the host's network namespace when user namespaces are enabled":          {"--network", "host"},
		"cannot share the host PID namespace when user namespaces are enabled":                {"--pid", "host"},
		"is in the host's user namespace: what joins its namespaces must be there too (--use": {"--network", "container:plain"},
		"containers web and other have a user namespace each":                                 {"--network", "container:web", "--pid", "container:other"},
		"No such container: nosuch":                                                           {"--network", "container:nosuch"},
	} {
		Refused(t, h, []string{want}, append(append([]string{"run", "--rm"}, flags...), image, "true")...)
	}
	Docker(t, h, "run", "--rm", "--privileged", "--userns", "host", image, "true")
	Docker(t, h, "rm", "-f", "web", "other", "donor", "plain")
	Docker(t, h, "network", "rm", "net1")
	NothingLeft(t, l, before)
}

// TestUserNSRemap: with --userns-remap every container's users are those that are set aside for one, and what is volatile
// about a daemon's flags harms nothing: containers made before are what they were.
func TestUserNSRemap(t *testing.T) {
	const first = 300000
	_, h := remapped(t)
	Docker(t, h, "run", "-d", "--name", "before", image, "sleep")
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The machine's own /etc/subuid is not written to.
	file := filepath.Join(h.Dir, "subid")
	if err := os.WriteFile(file, fmt.Appendf(nil, "dockremap:%d:65536\n", first), 0o644); err != nil {
		t.Fatal(err)
	}
	h.Own = map[string]string{"/etc/subuid": file, "/etc/subgid": file}
	if err := h.Start(t.Context(), "--userns-remap=default"); err != nil {
		t.Fatal(err)
	}
	contains(t, "info", Docker(t, h, "info", "-f", "{{.SecurityOptions}}"), "name=userns")
	Docker(t, h, "start", "before")
	if before := owner(t, h, "before"); before != 0 {
		t.Errorf("a container of before has the root %d", before)
	}
	Docker(t, h, "run", "-d", "--name", "one", image, "sleep")
	Docker(t, h, "run", "-d", "--name", "two", image, "sleep")
	if one, two := owner(t, h, "one"), owner(t, h, "two"); one != first || one != two {
		t.Errorf("the roots of two containers are %d and %d", one, two)
	}
	equal(t, "owners", Docker(t, h, "exec", "one", "/probe", "owner", "/", "/data/hello", "/etc/hosts"), "0:0\n0:0\n0:0")
	Docker(t, h, "run", "--rm", "--userns", "host", "--privileged", image, "true")
	Docker(t, h, "run", "--rm", "-v", "vol:/data", image, "write", "/data/mine", "kept")
	equal(t, "a volume filled from the image", Docker(t, h, "run", "--rm", "-v", "vol:/data", "--userns", "host", image, "owner", "/data/hello", "/data/mine"), "0:0\n0:0")
	joined := Docker(t, h, "run", "-d", "--network", "container:one", "--pid", "container:one", image, "sleep")
	if o := owner(t, h, joined); o != first {
		t.Errorf("who joins one has the root %d", o)
	}
	if o := owner(t, h, Docker(t, h, "run", "-d", "--pid", "container:one", image, "sleep")); o != first {
		t.Errorf("who joins one's processes has the root %d", o)
	}
	Refused(t, h, []string{"have a user namespace each"}, "run", "--rm", "--network", "container:one", "--pid", "container:two", image, "true")
}

// TestUserNSRights: the root of a container is root over what is its own, and nobody elsewhere.
func TestUserNSRights(t *testing.T) {
	_, h := remapped(t, "--userns=auto")
	Docker(t, h, "run", "--rm", "--sysctl", "net.ipv4.ip_forward=1", image, "cat", "/proc/sys/net/ipv4/ip_forward")
	Docker(t, h, "run", "--rm", "--cap-drop", "ALL", "-u", "user", image, "listen-ping")
	Docker(t, h, "run", "--rm", "-u", "user", image, "listen", "80")
	Docker(t, h, "run", "--rm", image, "listen-raw")
	Docker(t, h, "run", "--rm", "--tmpfs", "/t", image, "write", "/t/x", "y")
	Docker(t, h, "run", "--rm", "--shm-size", "1m", image, "write", "/dev/shm/x", "y")
	Docker(t, h, "run", "--rm", "--ipc", "shareable", image, "write", "/dev/shm/x", "y")
	Docker(t, h, "run", "--rm", "--ipc", "host", image, "true")
	Docker(t, h, "run", "--rm", "--init", "--read-only", image, "true")
	Docker(t, h, "run", "--rm", "-t", image, "echo", "x")
	Docker(t, h, "run", "--rm", "--cgroupns", "host", image, "true")
	Docker(t, h, "run", "--rm", "--network", "none", "-m", "64m", "--pids-limit", "100", "--ulimit", "nofile=100:100", image, "true")
	Docker(t, h, "run", "--rm", "--device", "/dev/null:/dev/mine", image, "open", "/dev/mine")

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Docker(t.Context(), "run", "--rm", "-v", dir+":/host", image, "cat", "/host/secret"); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a container's root read a file of the host's root: %v", err)
	}
	if _, err := h.Docker(t.Context(), "run", "--rm", "-v", dir+":/host", image, "write", "/host/x", "y"); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a container's root wrote where the host's root may only: %v", err)
	}
	equal(t, "with the host's", Docker(t, h, "run", "--rm", "--userns", "host", "-v", dir+":/host", image, "cat", "/host/secret"), "s")
}

// TestUserNSFiles: volumes are shared between containers whatever their users are on the host, and what comes out of a
// container by cp, commit and export has the owners that it has inside.
func TestUserNSFiles(t *testing.T) {
	l, h := remapped(t, "--userns=auto")
	Docker(t, h, "run", "--rm", "-v", "vol:/data", image, "write", "/data/mine", "kept")
	Docker(t, h, "run", "-d", "--name", "box", "-v", "vol:/data", image, "sleep")
	equal(t, "a volume filled from the image, and written by another", Docker(t, h, "exec", "box", "/probe", "owner", "/data", "/data/hello", "/data/mine"), "0:0\n0:0\n0:0")
	Docker(t, h, "exec", "box", "/probe", "chown", "/data/mine", "1000", "1000")
	equal(t, "by name of the container's user", Docker(t, h, "run", "--rm", "-u", "user", "-v", "vol:/data", image, "owner", "/data/mine"), "1000:1000")
	equal(t, "without a user namespace", Docker(t, h, "run", "--rm", "--userns", "host", "-v", "vol:/data", image, "owner", "/data/mine"), "1000:1000")

	equal(t, "an image as a mount", Docker(t, h, "run", "--rm", "--mount", "type=image,source="+image+",target=/img", image, "owner", "/img", "/img/data/hello"), "0:0\n0:0")

	in := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(in, []byte("in"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(in, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	check := func(name, how string) {
		t.Helper()
		for i, to := range []string{"/data/", "/top-"} { // a volume, and the container's own
			path := fmt.Sprintf("%s%s%d", to, how, i)
			Docker(t, h, "cp", "-a", in, name+":"+path)
			head, err := tar.NewReader(strings.NewReader(Docker(t, h, "cp", "-a", name+":"+path, "-") + strings.Repeat("\x00", 1024))).Next()
			if err != nil || head.Uid != 1000 || head.Gid != 1000 {
				t.Errorf("%s, copied in and out: %v %+v", path, err, head)
			}
		}
	}
	check("box", "running")
	equal(t, "copied into a running one", Docker(t, h, "exec", "box", "/probe", "owner", "/data/running0", "/top-running1"), "1000:1000\n1000:1000")
	Docker(t, h, "stop", "-t", "1", "box")
	check("box", "stopped")
	Docker(t, h, "start", "box")
	equal(t, "copied into a stopped one", Docker(t, h, "exec", "box", "/probe", "owner", "/data/stopped0", "/top-stopped1"), "1000:1000\n1000:1000")

	Docker(t, h, "commit", "box", "copy:1")
	equal(t, "in the image", Docker(t, h, "run", "--rm", "--userns", "host", "--entrypoint", "/probe", "copy:1", "owner", "/top-running1", "/probe"), "1000:1000\n0:0")
	export := Docker(t, h, "export", "box")
	if !bytes.Contains([]byte(export), []byte("top-running1")) || strings.Contains(export, fmt.Sprint(owner(t, h, "box"))) {
		t.Error("an export has the host's IDs in it")
	}

	// The daemon's end and the keeper's change nothing.
	root := owner(t, h, "box")
	if err := errors.Join(h.KillDaemon(t.Context()), h.KillKeeper()); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "still root inside", Docker(t, h, "exec", "box", "/probe", "owner", "/top-running1"), "1000:1000")
	Docker(t, h, "run", "-d", "--name", "next", image, "sleep")
	if owner(t, h, "box") != root || owner(t, h, "next") == root {
		t.Errorf("after the daemon's end box has %d, before %d; next has %d", owner(t, h, "box"), root, owner(t, h, "next"))
	}
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	Docker(t, h, "start", "box")
	if owner(t, h, "box") != root {
		t.Errorf("after a boot box has %d, before %d", owner(t, h, "box"), root)
	}
	_ = l
}

// TestUserNSInACluster: tasks of services have user namespaces like any container, on overlays and behind virtual IPs.
func TestUserNSInACluster(t *testing.T) {
	l, h := remapped(t, "--userns=auto")
	if err := l.Swarm(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	Docker(t, h, "network", "create", "-d", "overlay", "--attachable", "shop")
	Docker(t, h, "service", "create", "-d", "--no-resolve-image", "--name", "api", "--network", "shop", "--replicas", "2", "-p", "8080:8080", image)
	Eventually(t, 60*time.Second, "an answer through the virtual IP", func(ctx context.Context) error {
		_, err := h.Docker(ctx, "run", "--rm", "--network", "shop", image, "get", "http://api:8080")
		return err
	})
	fetch(t, l.Client, "http://"+h.Addr.String()+":8080")
}
