package onehost

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestInit: with --init the container's own process is a child that signals reach, and its exit code is the container's.
func TestInit(t *testing.T) {
	_, h := one(t)
	_, err := h.Docker(t.Context(), "run", "--rm", "--init", image, "exit", "9")
	if exitCode(err) != 9 {
		t.Errorf("ended with %d, want 9: %v", exitCode(err), err)
	}
	_, err = h.Docker(t.Context(), "run", "--rm", "--init", "--entrypoint", "/nothing", image)
	if exitCode(err) != 127 {
		t.Errorf("a missing program ended with %d, want 127: %v", exitCode(err), err)
	}
	Docker(t, h, "run", "-d", "--init", "--name", "ticker", image, "tick")
	contains(t, "top", Docker(t, h, "top", "ticker"), "/sbin/docker-init -- /probe tick")
	Docker(t, h, "stop", "ticker")
	equal(t, "exit code after SIGTERM", Docker(t, h, "inspect", "-f", "{{.State.ExitCode}}", "ticker"), "7")
	Docker(t, h, "start", "ticker")
	Docker(t, h, "kill", "ticker")
	equal(t, "exit code after SIGKILL", Docker(t, h, "inspect", "-f", "{{.State.ExitCode}}", "ticker"), "137")
}

// TestUnknownContainerIsNoMissingImage: the docker command answers a 404 to create by pulling the image.
func TestUnknownContainerIsNoMissingImage(t *testing.T) {
	_, h := one(t)
	for _, flags := range [][]string{{"--network", "container:nobody"}, {"--volumes-from", "nobody"}, {"--pid", "container:nobody"}} {
		_, err := h.Docker(t.Context(), append(append([]string{"run", "--rm"}, flags...), image, "true")...)
		if exitCode(err) != 125 || !strings.Contains(err.Error(), "No such container: nobody") || strings.Contains(err.Error(), "Unable to find image") {
			t.Errorf("%v: %v", flags, err)
		}
	}
	Refused(t, h, []string{"--storage-opt"}, "run", "--rm", "--storage-opt", "size=1G", image, "true")
	_, err := h.Docker(t.Context(), "run", "--rm", "-u", "nobody", image, "true")
	if err == nil || strings.Count(err.Error(), "unable to find user nobody") != 1 {
		t.Errorf("an unknown user: %v", err)
	}
	Docker(t, h, "run", "-d", "--name", "c1", image, "sleep")
	Refused(t, h, []string{"unable to find user nobody"}, "exec", "-u", "nobody", "c1", "/probe", "true")
	Refused(t, h, []string{"Could not find the file /nothing in container c1"}, "cp", "c1:/nothing", "-")
	Refused(t, h, []string{"nosuchcolumn"}, "top", "c1", "-o", "nosuchcolumn")
	left := Docker(t, h, "ps", "-aq")
	equal(t, "containers", left, Docker(t, h, "inspect", "-f", "{{slice .Id 0 12}}", "c1"))
}

// TestEvents: images, volumes and networks are announced, whoever made them, in Docker's order and with its attributes.
func TestEvents(t *testing.T) {
	_, h := one(t)
	id := Docker(t, h, "image", "inspect", "-f", "{{.Id}}", image)
	Docker(t, h, "tag", image, "copy:1")
	Docker(t, h, "rmi", "copy:1")
	Docker(t, h, "run", "--name", "onhost", "--network", "host", image, "true")
	Docker(t, h, "commit", "onhost", "made:1")
	made := Docker(t, h, "image", "inspect", "-f", "{{.Id}}", "made:1")
	Docker(t, h, "rmi", "made:1")
	Docker(t, h, "rm", "onhost")
	Docker(t, h, "run", "--rm", "-v", "/data", image, "true")
	Docker(t, h, "volume", "create", "vol1")
	Docker(t, h, "network", "create", "net1")
	Docker(t, h, "network", "rm", "net1")
	until := strconv.FormatInt(time.Now().Unix()+1, 10) // the command waits until then
	list := func(filter string) string {
		return strings.ReplaceAll(Docker(t, h, "events", "--since", "1h", "--until", until, "--filter", filter, "--format", "{{.Type}} {{.Action}}"), "\n", ", ")
	}
	equal(t, "images", list("type=image"), "image load, image tag, image untag, image create, image tag, image untag, image delete")
	about := func(filter, format string) string {
		return strings.ReplaceAll(Docker(t, h, "events", "--since", "1h", "--until", until, "--filter", filter, "--format", format), "\n", ", ")
	}
	equal(t, "names taken away", about("event=untag", "{{.Actor.ID}} {{.Actor.Attributes.name}}"), id+" copy:1, "+made+" made:1")
	equal(t, "an image, not its layers", about("event=delete", "{{.Actor.ID}}"), made)
	equal(t, "connections", about("event=connect", "{{.Actor.Attributes.name}} {{.Actor.Attributes.type}}"), "host host, bridge bridge")
	equal(t, "a start and an end", about("type=network", "{{.Action}}")+"; "+about("container=onhost", "{{.Action}}"), "connect, disconnect, connect, disconnect, create, destroy; create, attach, start, die, commit, destroy")
	equal(t, "volumes", list("type=volume"), "volume create, volume mount, volume unmount, volume destroy, volume create")
	equal(t, "networks", list("network=net1"), "network create, network destroy")
}

// TestNamesAfterConnect: a container of the default bridge, which has the host's name servers, knows its neighbours once
// it is on a network that has names.
func TestNamesAfterConnect(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "network", "create", "net1")
	Docker(t, h, "run", "-d", "--name", "web", "--network", "net1", "-h", "www", "--domainname", "shop.example", image)
	contains(t, "hosts", Docker(t, h, "exec", "web", "/probe", "cat", "/etc/hosts"), "\twww.shop.example www")
	Docker(t, h, "run", "-d", "--name", "late", image, "sleep")
	Docker(t, h, "network", "connect", "net1", "late")
	contains(t, "resolv.conf", Docker(t, h, "exec", "late", "/probe", "cat", "/etc/resolv.conf"), "nameserver 127.0.0.11")
	contains(t, "by name", Soon(t, h, "exec", "late", "/probe", "get", "http://web:8080"), "www")
}

// TestOneSubnetOfAKind: a bridge network has one subnet of IPv4 and one of IPv6; a second is refused, and nothing is left.
func TestOneSubnetOfAKind(t *testing.T) {
	_, h := one(t)
	Refused(t, h, []string{"bridge driver doesn't support multiple subnets"}, "network", "create", "--subnet", "10.5.0.0/24", "--subnet", "10.6.0.0/24", "net1")
	Docker(t, h, "network", "create", "--ipv6", "--subnet", "10.5.0.0/24", "--subnet", "fd00:5::/64", "net1")
	Docker(t, h, "network", "create", "--subnet", "10.6.0.0/24", "net2")
}

// TestSecondDaemonIsRefused: another daemon on the same folders, with a pidfile of its own, ends with a message and does
// not touch the containers of the first.
func TestSecondDaemonIsRefused(t *testing.T) {
	l, h := one(t)
	Docker(t, h, "run", "-d", "--name", "runs", image, "sleep")
	for flag, args := range map[string][]string{
		"--exec-root": {"--data-root", filepath.Join(t.TempDir(), "data"), "--exec-root", h.ExecRoot()},
		"--data-root": {"--data-root", h.DataRoot(), "--exec-root", filepath.Join(t.TempDir(), "exec")},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		args = append([]string{"--net=" + h.NetNS, l.Binaries.Path("sampand"), "-H", "unix://" + filepath.Join(t.TempDir(), "s"),
			"--pidfile", filepath.Join(t.TempDir(), "pid"), "--cgroup-parent", h.CgroupParent()}, args...)
		out, err := exec.CommandContext(ctx, "nsenter", args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), flag+" ") || !strings.Contains(string(out), "in use by another sampand") {
			t.Errorf("a second daemon on %s: %v\n%s", flag, err, out)
		}
	}
	equal(t, "the first one's container", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "runs"), "running")
}

// TestReboot: after the host's boot, restart policies bring back what is to come back, with its published port, and
// nothing else.
func TestReboot(t *testing.T) {
	l, h := one(t)
	Docker(t, h, "run", "-d", "--name", "always", "--restart", "always", "-p", "8080:8080", image)
	Docker(t, h, "run", "-d", "--name", "unless", "--restart", "unless-stopped", image)
	Docker(t, h, "run", "-d", "--name", "stopped", "--restart", "unless-stopped", image)
	Docker(t, h, "run", "-d", "--name", "never", image)
	Docker(t, h, "run", "-d", "--rm", "--name", "passing", image)
	Docker(t, h, "stop", "stopped")
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	fetch(t, l.Client, "http://"+h.Addr.String()+":8080")
	want := "always running, never exited, stopped exited, unless running"
	Eventually(t, 60*time.Second, want, func(ctx context.Context) error {
		out, err := h.Docker(ctx, "ps", "-a", "--format", "{{.Names}} {{.State}}")
		lines := strings.Split(out, "\n")
		slices.Sort(lines)
		if err == nil && strings.Join(lines, ", ") != want {
			err = errors.New(out)
		}
		return err
	})
	equal(t, "an exit that nobody saw", Docker(t, h, "inspect", "-f", "{{.State.ExitCode}}", "never"), "255")
}
