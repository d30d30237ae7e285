package container

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// leave ends the daemon's side as its death does: the manager and its connection go, the containers stay.
func (b *bed) leave() {
	b.t.Helper()
	if err := b.m.Close(); err != nil {
		b.t.Fatal(err)
	}
	if err := b.client.Close(); err != nil {
		b.t.Fatal(err)
	}
}

// back is the daemon's next start.
func (b *bed) back() {
	b.t.Helper()
	var err error
	b.client, err = keeper.Ensure(b.t.Context(), keeper.Config{Binary: built.keeper, ExecRoot: filepath.Join(b.dir, "run"), CgroupParent: b.cgroup, Logger: testLog(b.t)})
	if err != nil {
		b.t.Fatal(err)
	}
	b.bus = &events.Bus{}
	b.open()
}

func TestRestore(t *testing.T) {
	b := newBed(t)
	fifo := filepath.Join(b.dir, "gate")
	if err := unix.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	gate := HostConfig{Mounts: []Mount{{Type: MountBind, Source: fifo, Target: "/gate"}}}
	goesOn := b.run(Config{Name: "goes-on"}, "trap", "3")
	b.ready(goesOn, "ready")
	ends := b.run(Config{Name: "ends", Host: gate}, "gate", "/gate")
	stopped := b.run(Config{Name: "stopped", Host: HostConfig{Restart: RestartPolicy{Name: "unless-stopped"}}}, "trap", "0")
	b.ready(stopped, "ready")
	if err := b.m.Stop(t.Context(), stopped, "", nil); err != nil {
		t.Fatal(err)
	}
	always := b.run(Config{Name: "always", Host: HostConfig{Restart: RestartPolicy{Name: "always"}}}, "wait")
	b.ready(always, "ready")
	created := b.create(Config{Name: "created", Host: HostConfig{Restart: RestartPolicy{Name: "always"}}})
	pid, alwaysPID, endsPID := b.state(goesOn).PID, b.state(always).PID, b.state(ends).PID

	b.leave()
	done := exitOf(t, endsPID)
	if err := os.WriteFile(fifo, []byte("17"), 0); err != nil {
		t.Fatal(err)
	}
	done()
	done = exitOf(t, alwaysPID)
	if err := unix.Kill(alwaysPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	done()
	// A folder that cannot be read hurts nobody else.
	broken := filepath.Join(b.dir, "containers", strings.Repeat("c", 64))
	if err := os.Mkdir(broken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, recordFile), []byte("{half a rec"), 0o600); err != nil {
		t.Fatal(err)
	}

	b.back()
	if s := b.state("goes-on"); !s.Running || s.PID != pid {
		t.Errorf("goes-on: %+v", s)
	}
	if code := b.wait("ends", "not-running"); code != 17 {
		t.Errorf("ends: code %d", code)
	}
	if s := b.state("ends"); s.ExitUnknown || s.ExitCode != 17 || s.Status != StatusExited {
		t.Errorf("ends: %+v", s)
	}
	if s := b.state("stopped"); s.Running {
		t.Errorf("stopped: %+v", s)
	}
	if s := b.state("created"); s.Status != StatusCreated {
		t.Errorf("created: %+v", s)
	}
	_ = created
	sandboxes, rootfs := b.m.Held()
	for _, id := range []string{goesOn, always, filepath.Base(broken)} {
		if !slices.Contains(sandboxes, id) || !slices.Contains(rootfs, id) {
			t.Errorf("%s is not held: %v %v", short(id), sandboxes, rootfs)
		}
	}
	if slices.Contains(sandboxes, stopped) || !slices.Contains(rootfs, stopped) {
		t.Errorf("stopped: %v %v", sandboxes, rootfs)
	}
	b.eventually("always comes back", func() bool { s := b.state("always"); return s.Status == StatusRunning && s.PID != alwaysPID })
	if _, err := os.Stat(filepath.Join(broken, recordFile)); err != nil {
		t.Errorf("the unreadable record: %v", err)
	}
	// What goes on is fully there: exec, stop, its log.
	if out, _, code := b.exec("goes-on", ExecConfig{Cmd: []string{"/bin/prog", "echo", "hi"}}); out != "hi\n" || code != 0 {
		t.Errorf("exec: %q %d", out, code)
	}
	if err := b.m.Stop(t.Context(), "goes-on", "", nil); err != nil {
		t.Fatal(err)
	}
	if s := b.state("goes-on"); s.ExitCode != 3 {
		t.Errorf("goes-on: %+v", s)
	}
	if out := b.output("goes-on"); out != "ready\ngot terminated\n" {
		t.Errorf("log %q", out)
	}
	b.start("ends")
	if err := os.WriteFile(fifo, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	if code := b.wait("ends", "not-running"); code != 0 {
		t.Errorf("second life: %d", code)
	}
}

// The host was restarted: nobody knows how the containers ended.
func TestRestoreAfterReboot(t *testing.T) {
	b := newBed(t)
	plain := b.run(Config{Name: "plain"}, "wait")
	again := b.run(Config{Name: "again", Host: HostConfig{Restart: RestartPolicy{Name: "unless-stopped"}}}, "wait")
	gone := b.run(Config{Name: "gone", Host: HostConfig{AutoRemove: true}}, "wait")
	before := b.state(again).PID
	if err := b.m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{plain, again, gone} {
		if err := b.client.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.client.Close(); err != nil {
		t.Fatal(err)
	}
	b.back()
	if s := b.state(plain); s.Running || !s.ExitUnknown || s.Error == "" {
		t.Errorf("plain: %+v", s)
	}
	if code := b.wait(plain, "not-running"); code != unknownExit {
		t.Errorf("plain: code %d", code)
	}
	b.eventually("again runs", func() bool { s := b.state(again); return s.Status == StatusRunning && s.PID != before })
	b.eventually("gone is gone", func() bool { _, err := b.m.Get(gone); return err != nil })
}

// A daemon that dies in the middle of a start leaves a container that can be started.
func TestRestoreAfterHalfAStart(t *testing.T) {
	b := newBed(t)
	id := b.create(Config{}, "trap", "0")
	c, err := b.m.find(id)
	if err != nil {
		t.Fatal(err)
	}
	// The process runs, but the record was not written any more.
	old, err := os.ReadFile(filepath.Join(c.dir, recordFile))
	if err != nil {
		t.Fatal(err)
	}
	b.start(id)
	b.ready(id, "ready")
	pid := b.state(id).PID
	b.leave()
	if err := os.WriteFile(filepath.Join(c.dir, recordFile), old, 0o600); err != nil {
		t.Fatal(err)
	}
	b.back()
	if s := b.state(id); !s.Running || s.PID != pid {
		t.Errorf("state %+v", s)
	}
	if err := b.m.Stop(t.Context(), id, "", nil); err != nil {
		t.Fatal(err)
	}
}

// exitOf returns a function that waits until the process has ended.
func exitOf(t *testing.T, pid int) func() {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		defer unix.Close(fd)
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, int(patience.Milliseconds()))
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				t.Fatalf("process %d does not end: %v", pid, err)
			}
			return
		}
	}
}

// tellingKeeper tells of every container that it is to forget, before it does.
type tellingKeeper struct {
	Keeper
	forgets func(id string)
}

func (k tellingKeeper) Delete(ctx context.Context, id string) error {
	k.forgets(id)
	return k.Keeper.Delete(ctx, id)
}

// The keeper forgets a container that has ended as soon as it is told to. A daemon killed right then has to find the exit
// code in its own record.
func TestAnEndIsOnDiskBeforeTheKeeperForgetsIt(t *testing.T) {
	b := newBed(t)
	onDisk := make(chan State, 1)
	b.leave()
	b.wrap = func(k Keeper) Keeper {
		return tellingKeeper{k, func(id string) {
			c, err := readRecord(filepath.Join(b.dir, "containers", id), id)
			if err != nil {
				t.Error(err)
				c = newCtr(id, "")
			}
			onDisk <- c.rec.State
		}}
	}
	b.back()
	id := b.run(Config{Name: "ends"}, "exit", "7")
	b.wait(id, "not-running")
	if s := <-onDisk; s.Status != StatusExited || s.ExitCode != 7 || s.Running {
		t.Errorf("on disk is %+v", s)
	}
}
