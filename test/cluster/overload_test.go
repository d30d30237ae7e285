package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestOverloadIsNoLoss: hosts that get only a fraction of the processors they want, and wait for their disk, are not
// taken for lost: no node is declared down and no task is replaced. SAMPAN_OVERLOAD says for how long, such as 10m.
func TestOverloadIsNoLoss(t *testing.T) {
	bound := 20 * time.Second
	if d := os.Getenv("SAMPAN_OVERLOAD"); d != "" {
		var err error
		if bound, err = time.ParseDuration(d); err != nil {
			t.Fatal(err)
		}
	}
	l := Cluster(t, 3, 3)
	h := l.Hosts[0]
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 6, "--network", "n", "--publish", "8080:8080")
	tasks := Docker(t, h, "service", "ps", "-q", "--no-trunc", "web")
	events := strings.Builder{}
	watched, stopWatching := context.WithCancel(t.Context())
	watcher := exec.CommandContext(watched, l.CLI, "-H", h.DockerHost(), "events", "--filter", "type=node", "--format", "{{json .Actor.Attributes}}")
	watcher.Stdout = &events
	if err := watcher.Start(); err != nil {
		t.Fatal(err)
	}

	// Eight loops on what is mostly fewer processors, and one that forces the disk the state is on.
	overload(t, bound, 8, `while :; do :; done`)
	over := overload(t, bound, 1, fmt.Sprintf(`while :; do dd if=/dev/zero of=%s bs=64k count=32 conv=fsync status=none; done`, filepath.Join(l.Dir, "load")))
	for n := 3; ; n ^= 1 { // changes are made meanwhile
		select {
		case <-over:
		default:
			if out, err := h.Docker(t.Context(), "service", "update", "-d", "--label-add", fmt.Sprint("n=", n), "web"); err != nil {
				t.Errorf("a change under load: %v %s", err, out)
			}
			continue
		}
		break
	}
	stopWatching()
	_ = watcher.Wait()
	if now := Docker(t, h, "service", "ps", "-q", "--no-trunc", "web"); now != tasks {
		t.Errorf("tasks were replaced: had\n%s\nand now has\n%s", tasks, now)
	}
	if strings.Contains(events.String(), "down") {
		t.Errorf("a node was declared down: %s", events.String())
	}
	for _, h := range l.Hosts {
		log, err := os.ReadFile(h.LogPath())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "counts as down") {
				t.Errorf("%s: %s", h.Name, line)
			}
			if strings.Contains(line, "this manager leads") {
				t.Logf("%s: %s", h.Name, line)
			}
		}
	}
}

// overload runs n shells with the script for the time d; the channel is closed when all have ended.
func overload(t *testing.T, d time.Duration, n int, script string) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	over := make(chan struct{})
	var all []*exec.Cmd
	for range n {
		// timeout ends it even if this process is killed.
		c := exec.CommandContext(ctx, "timeout", "-s", "KILL", fmt.Sprint(d.Seconds()+1), "sh", "-c", script)
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	go func() {
		for _, c := range all {
			_ = c.Wait()
		}
		close(over)
	}()
	return over
}
