package onehost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// unified reports whether this machine governs resources by cgroup version 2 alone.
func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// limit reads a file of a container's control group: v1's of a controller, or v2's.
func limit(t *testing.T, h *testhost.Host, name, controller, v1, v2 string) string {
	t.Helper()
	id := Docker(t, h, "inspect", "-f", "{{.Id}} {{.HostConfig.CgroupParent}}", name)
	id, parent, _ := strings.Cut(id, " ")
	if parent == "" {
		parent = h.CgroupParent()
	}
	path := filepath.Join("/sys/fs/cgroup", parent, id, v2)
	if !unified() {
		path = filepath.Join("/sys/fs/cgroup", controller, parent, id, v1)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// either is v2 on a machine with cgroup version 2 and v1 on others.
func either(v1, v2 string) string {
	if unified() {
		return v2
	}
	return v1
}

// TestLimitsInTheKernel: what the command asks for is what the kernel was told, at the start and live.
func TestLimitsInTheKernel(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "box", "-m", "64m", "--memory-swap", "96m", "--memory-reservation", "32m", "--cpus", "0.5", "--cpu-shares", "512",
		"--cpuset-cpus", "0", "--pids-limit", "50", image, "sleep")
	check := func(what, controller, v1, v2, want1, want2 string) {
		t.Helper()
		equal(t, what, limit(t, h, "box", controller, v1, v2), either(want1, want2))
	}
	check("memory", "memory", "memory.limit_in_bytes", "memory.max", "67108864", "67108864")
	check("reservation", "memory", "memory.soft_limit_in_bytes", "memory.low", "33554432", "33554432")
	if unified() {
		check("swap", "", "", "memory.swap.max", "", "33554432") // version 2 counts swap alone
	}
	check("quota", "cpu", "cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000")
	check("cpuset", "cpuset", "cpuset.cpus", "cpuset.cpus", "0", "0")
	check("processes", "pids", "pids.max", "pids.max", "50", "50")
	shares := limit(t, h, "box", "cpu", "cpu.shares", "cpu.weight")
	if n, err := strconv.Atoi(shares); err != nil || unified() && (n < 15 || n > 70) || !unified() && n != 512 {
		t.Errorf("CPU shares of 512 became %s", shares)
	}
	Docker(t, h, "update", "-m", "128m", "--memory-swap", "256m", "--cpus", "0.25", "--pids-limit", "60", "--cpu-shares", "2048", "box")
	check("updated memory", "memory", "memory.limit_in_bytes", "memory.max", "134217728", "134217728")
	check("updated quota", "cpu", "cpu.cfs_quota_us", "cpu.max", "25000", "25000 100000")
	check("updated processes", "pids", "pids.max", "pids.max", "60", "60")
	contains(t, "stats", Docker(t, h, "stats", "--no-stream", "--format", "{{.MemUsage}}", "box"), "/ 128MiB")

	// The container sees its own group, read-only.
	contains(t, "its own group, seen inside", Docker(t, h, "run", "--rm", "-m", "64m", image, "cat",
		either("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max")), "67108864")
	_, err := h.Docker(t.Context(), "run", "--rm", image, "write", either("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"), "1")
	if err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("a container wrote its own limit: %v", err)
	}
	if inside := Docker(t, h, "run", "--rm", "--cgroupns", "private", image, "cat", "/proc/self/cgroup"); !strings.Contains(inside+"\n", ":/\n") {
		t.Errorf("in a cgroup namespace of its own: %s", inside)
	}
	contains(t, "in the host's cgroup namespace", Docker(t, h, "run", "--rm", "--cgroupns", "host", image, "cat", "/proc/self/cgroup"), h.CgroupParent()+"/")
	contains(t, "info", Docker(t, h, "info", "-f", "{{.CgroupVersion}} {{.CgroupDriver}}"), either("1 cgroupfs", "2 cgroupfs"))
}

// TestCgroupParent: a container's group is made where it is asked for, and taken away.
func TestCgroupParent(t *testing.T) {
	_, h := one(t)
	parent := h.CgroupParent() + "/teams/blue"
	Docker(t, h, "run", "-d", "--name", "box", "--cgroup-parent", parent, "-m", "32m", image, "sleep")
	equal(t, "memory", limit(t, h, "box", "memory", "memory.limit_in_bytes", "memory.max"), "33554432")
	id := Docker(t, h, "inspect", "-f", "{{.Id}}", "box")
	Docker(t, h, "rm", "-f", "box")
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", either("memory", ""), parent, id)); !os.IsNotExist(err) {
		t.Errorf("the group of a removed container: %v", err)
	}
}

// TestOutOfMemory: a container that takes more than it may is killed, and that is told.
func TestOutOfMemory(t *testing.T) {
	_, h := one(t)
	_, err := h.Docker(t.Context(), "run", "--name", "hungry", "-m", "16m", "--memory-swap", "16m", image, "eat", "64")
	if exitCode(err) != 137 {
		t.Errorf("ended with %d, want 137: %v", exitCode(err), err)
	}
	equal(t, "told", Docker(t, h, "inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "hungry"), "true 137")
	until := strconv.FormatInt(time.Now().Unix()+1, 10)
	contains(t, "event", Docker(t, h, "events", "--since", "1h", "--until", until, "--filter", "container=hungry", "--format", "{{.Action}}"), "oom", "die")
	Docker(t, h, "run", "--name", "content", "-m", "64m", image, "eat", "16")
	equal(t, "one that keeps to its limit", Docker(t, h, "inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "content"), "false 0")
}

// TestPidsLimit: a container cannot have more processes than it may. A fork bomb is held there, and the host, its other
// containers and whoever ends the bomb hardly notice.
func TestPidsLimit(t *testing.T) {
	l, h := one(t)
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	Docker(t, h, "run", "--rm", "--pids-limit", "200", image, "spawn", "20")
	if _, err := h.Docker(t.Context(), "run", "--rm", "--pids-limit", "20", image, "spawn", "40"); err == nil || !strings.Contains(err.Error(), "resource temporarily unavailable") {
		t.Errorf("40 processes where 20 are allowed: %v", err)
	}
	Docker(t, h, "run", "-d", "--name", "bomb", "--pids-limit", "50", image, "bomb", "2000")
	bombing := func() {
		t.Helper()
		Eventually(t, 60*time.Second, "forks refused by the thousand", func(context.Context) error {
			events := limit(t, h, "bomb", "pids", "pids.events", "pids.events")
			if n, err := strconv.Atoi(strings.TrimPrefix(strings.Split(events, "\n")[0], "max ")); err != nil || n < 1000 {
				return fmt.Errorf("pids.events: %q", events)
			}
			return nil
		})
	}
	bombing()
	equal(t, "processes", Docker(t, h, "stats", "--no-stream", "--format", "{{.PIDs}}", "bomb"), "50")
	equal(t, "another container", Docker(t, h, "run", "--rm", image, "echo", "fine"), "fine")
	if _, err := h.Docker(t.Context(), "exec", "bomb", "/probe", "true"); err == nil {
		t.Error("a command found room for its threads where there may be none")
	}
	equal(t, "it goes on", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "bomb"), "running")
	promptly := func(args ...string) {
		t.Helper()
		began := time.Now()
		Docker(t, h, args...)
		if took := time.Since(began); took > testhost.Patient(10*time.Second) {
			t.Errorf("docker %s of a fork bomb took %v", strings.Join(args, " "), took)
		}
	}
	promptly("stop", "-t", "1", "bomb")
	equal(t, "stopped", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "bomb"), "exited")
	Docker(t, h, "start", "bomb")
	bombing()
	promptly("rm", "-f", "bomb")
	NothingLeft(t, l, before)
}

// TestDeviceRules: a container opens the devices that it may and no others, also those whose nodes it makes itself.
func TestDeviceRules(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "--rm", image, "open", "/dev/null")
	// /dev/kmsg, which takes a capability beside the rule.
	_, err := h.Docker(t.Context(), "run", "--rm", "--cap-add", "SYSLOG", image, "mknod-open", "/k", "c", "1", "11")
	if err == nil || !strings.Contains(err.Error(), "operation not permitted") {
		t.Errorf("a device that no rule allows: %v", err)
	}
	Docker(t, h, "run", "--rm", "--cap-add", "SYSLOG", "--device-cgroup-rule", "c 1:11 rwm", image, "mknod-open", "/k", "c", "1", "11")
	Docker(t, h, "run", "--rm", "--cap-add", "SYSLOG", "--device-cgroup-rule", "c 1:* rwm", image, "mknod-open", "/k", "c", "1", "11")
	Docker(t, h, "run", "--rm", "--cap-add", "SYSLOG", "--device", "/dev/kmsg:/dev/log1", image, "open", "/dev/log1")
	Docker(t, h, "run", "--rm", "--privileged", image, "open", "/dev/kmsg")
	// A live update of other limits leaves the rules alone.
	Docker(t, h, "run", "-d", "--name", "box", "--cap-add", "SYSLOG", "--device-cgroup-rule", "c 1:11 rwm", image, "sleep")
	Docker(t, h, "update", "--cpus", "0.5", "box")
	Docker(t, h, "exec", "box", "/probe", "mknod-open", "/k", "c", "1", "11")
	Docker(t, h, "run", "-d", "--name", "plain", "--cap-add", "SYSLOG", image, "sleep")
	Docker(t, h, "update", "--cpus", "0.5", "plain")
	if _, err := h.Docker(t.Context(), "exec", "plain", "/probe", "mknod-open", "/k", "c", "1", "11"); err == nil {
		t.Error("after an update a container may open what it might not before")
	}
}

// TestPauseStopsTheClock: a paused container does nothing, takes signals when it goes on, and can be removed as it is.
func TestPauseStopsTheClock(t *testing.T) {
	l, h := one(t)
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	Docker(t, h, "run", "-d", "--name", "ticker", image, "tick")
	count := func() int { return strings.Count(Docker(t, h, "logs", "ticker"), "\n") }
	Eventually(t, 60*time.Second, "ticks", func(context.Context) error {
		if n := count(); n < 2 {
			return fmt.Errorf("%d lines", n)
		}
		return nil
	})
	Docker(t, h, "pause", "ticker")
	Refused(t, h, []string{"is paused"}, "exec", "ticker", "/probe", "true")
	paused := count()
	Docker(t, h, "inspect", "ticker")
	if n := count(); n != paused {
		t.Errorf("a paused container printed: %d lines became %d", paused, n)
	}
	Docker(t, h, "unpause", "ticker")
	Eventually(t, 60*time.Second, "further ticks", func(context.Context) error {
		if n := count(); n <= paused {
			return errors.New("none")
		}
		return nil
	})
	Docker(t, h, "pause", "ticker")
	Docker(t, h, "rm", "-f", "ticker")
	NothingLeft(t, l, before)
}

// TestBelowAFrozenGroup: below a control group that somebody froze nothing starts, which is said with what to do, and what
// ran there is stopped and removed as everywhere.
func TestBelowAFrozenGroup(t *testing.T) {
	l, h := one(t)
	parent := h.CgroupParent() + "/batch"
	run := []string{"run", "-d", "--cgroup-parent", parent, "--name"}
	for _, name := range []string{"stopped", "removed"} {
		Docker(t, h, append(run, name, image, "sleep")...)
	}
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	file, freeze, thaw := filepath.Join("/sys/fs/cgroup", parent, "cgroup.freeze"), "1", "0"
	if !unified() {
		file, freeze, thaw = filepath.Join("/sys/fs/cgroup/freezer", parent, "freezer.state"), "FROZEN", "THAWED"
	}
	set := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	set(freeze)
	Refused(t, h, []string{"frozen", "echo " + thaw + " > " + file}, append(run, "late", image, "sleep")...)
	Docker(t, h, "rm", "late")
	if out, err := h.Docker(t.Context(), "exec", "stopped", "/probe", "true"); err == nil || !strings.Contains(out, "frozen") {
		t.Errorf("exec: %q %v", out, err)
	}
	NothingLeft(t, l, before)
	Docker(t, h, "stop", "-t", "1", "stopped")
	equal(t, "ended by", Docker(t, h, "inspect", "-f", "{{.State.ExitCode}}", "stopped"), "137")
	Docker(t, h, "rm", "-f", "removed")
	set(thaw)
	Docker(t, h, append(run, "late", image, "sleep")...)
}

// TestBlockIO: rates and weights for a disk reach the kernel, where it has them.
func TestBlockIO(t *testing.T) {
	_, h := one(t)
	disk := ""
	for _, d := range []string{"/dev/vda", "/dev/sda", "/dev/nvme0n1"} {
		if _, err := os.Stat(d); err == nil {
			disk = d
			break
		}
	}
	if disk == "" {
		t.Skip("this machine has no disk to limit")
	}
	Docker(t, h, "run", "-d", "--name", "box", "--device-read-bps", disk+":1mb", "--device-write-iops", disk+":100", image, "sleep")
	if unified() {
		contains(t, "rates", limit(t, h, "box", "", "", "io.max"), "rbps=1048576", "wiops=100")
	} else {
		contains(t, "read rate", limit(t, h, "box", "blkio", "blkio.throttle.read_bps_device", ""), " 1048576")
		contains(t, "write rate", limit(t, h, "box", "blkio", "blkio.throttle.write_iops_device", ""), " 100")
	}
	out := Docker(t, h, "run", "-d", "--name", "heavy", "--blkio-weight", "300", image, "sleep")
	if unified() && !strings.Contains(out, "WARNING") {
		id := Docker(t, h, "inspect", "-f", "{{.Id}}", "heavy")
		for _, file := range []string{"io.bfq.weight", "io.weight"} {
			if text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", h.CgroupParent(), id, file)); err == nil {
				t.Logf("%s: %s", file, text)
			}
		}
	}
}

// TestPrivilegedHasWhatTheDaemonHas: also where the daemon lacks a capability, and no more.
func TestPrivilegedHasWhatTheDaemonHas(t *testing.T) {
	_, h := one(t)
	caps := func(status, name string) uint64 {
		t.Helper()
		_, rest, _ := strings.Cut(status, name+":")
		n, err := strconv.ParseUint(strings.Fields(rest + " -")[0], 16, 64)
		if err != nil {
			t.Fatalf("%s: %v in\n%s", name, err, status)
		}
		return n
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.DaemonPID()))
	if err != nil {
		t.Fatal(err)
	}
	want := caps(string(text), "CapPrm") & caps(string(text), "CapBnd")
	inside := Docker(t, h, "run", "--rm", "--privileged", image, "cat", "/proc/self/status")
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
		if got := caps(inside, set); got != want {
			t.Errorf("%s is %x, the daemon's %x", set, got, want)
		}
	}
	if got := caps(Docker(t, h, "run", "--rm", "--cap-add", "ALL", image, "cat", "/proc/self/status"), "CapEff"); got != want {
		t.Errorf("with all capabilities it has %x, the daemon %x", got, want)
	}
}
