package onehost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestKilledAtRandomPoints kills the daemon, the keeper or both again and again, after a random delay or at a named place
// in the code, while containers are created, started, entered, stopped and removed and an image is pulled. Afterwards
// every container is in a true state, its exit code is right (or unknown, where nobody was there to see it), its log is
// whole, and nothing stays. SAMPAN_KILLS says how often, SAMPAN_KILL_SEED repeats a run.
func TestKilledAtRandomPoints(t *testing.T) {
	t.Parallel()
	l := New(t, 1, testhost.InsecureArg)
	killAtRandomPoints(t, l, l.Hosts[0], 14)
}

// TestUserNSKilledAtRandomPoints is the same with a user namespace for each container.
func TestUserNSKilledAtRandomPoints(t *testing.T) {
	l, h := remapped(t, "--userns=auto", testhost.InsecureArg)
	killAtRandomPoints(t, l, h, 6)
}

func killAtRandomPoints(t *testing.T, l *testhost.Lab, h *testhost.Host, usual uint64) {
	kills, seed := Number(t, "SAMPAN_KILLS", usual), Number(t, "SAMPAN_KILL_SEED", rand.Uint64())
	t.Logf("SAMPAN_KILL_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	remote := pushed(t, l, "pulled:1")
	Docker(t, h, "run", "--rm", image, "true")
	leased := leases(t, h)
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	places := failpoints(t)
	Docker(t, h, "run", "-d", "--name", "always", image, "tick")
	pid := Docker(t, h, "inspect", "-f", "{{.State.Pid}}", "always")
	for k := range kills {
		victim := []string{"daemon", "keeper", "both", "daemon", "keeper"}[rnd.IntN(5)]
		what := fmt.Sprintf("kill %d, of %s", k, victim)
		delay := time.Duration(rnd.IntN(700)) * time.Millisecond
		if victim != "both" && rnd.IntN(2) == 0 {
			place := places[victim][rnd.IntN(len(places[victim]))]
			what += ", at " + place
			if err := h.KillDaemon(t.Context()); err != nil {
				t.Fatal(err)
			}
			if victim == "keeper" { // the next one has the failpoint
				_ = h.KillKeeper() // there may be none just now
			}
			if err := h.Start(t.Context(), "--failpoint", place+"=kill"); err != nil && h.DaemonPID() != 0 {
				t.Fatalf("%s: %v", what, err)
			}
			delay = 3 * time.Second // the longest that it is waited for
		}
		lives := make([]*life, 3)
		var wg sync.WaitGroup
		for i := range lives {
			c := &life{name: fmt.Sprintf("k%d-%d", k, i), ends: rnd.IntN(3) == 0, code: 1 + rnd.IntN(100)}
			lives[i] = c
			wg.Go(func() { c.live(t.Context(), h) })
		}
		if k%3 == 0 {
			wg.Go(func() {
				_, _ = h.Docker(t.Context(), "pull", "-q", remote)
				_, _ = h.Docker(t.Context(), "rmi", remote)
			})
		}
		over := make(chan struct{})
		go func() { wg.Wait(); close(over) }()
		gone := h.Gone()
		select {
		case <-gone: // at its failpoint
		case <-over:
		case <-time.After(delay): // somewhere in the lives, which take about this long
		}
		if victim != "daemon" {
			if err := h.KillKeeper(); err != nil && victim == "both" {
				t.Logf("%s: %v", what, err) // it died at its failpoint this moment
			}
		}
		if victim != "keeper" {
			if err := h.KillDaemon(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := h.Start(t.Context()); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		wg.Wait()
		for _, c := range lives {
			c.check(t, h, what, victim)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	equal(t, "the process that ran all the time", Docker(t, h, "inspect", "-f", "{{.State.Pid}}", "always"), pid)
	Docker(t, h, "stop", "always")
	equal(t, "its exit code", Docker(t, h, "inspect", "-f", "{{.State.ExitCode}}", "always"), "7")
	wholeTicks(t, Docker(t, h, "logs", "always"))
	Docker(t, h, "rm", "always")
	equal(t, "containers left", Docker(t, h, "ps", "-aq"), "")
	Docker(t, h, "pull", "-q", remote)
	contains(t, "the image that was pulled", Docker(t, h, "run", "--rm", remote, "echo", "whole"), "whole")
	Docker(t, h, "rmi", remote)
	NothingLeft(t, l, before)
	for name := range leases(t, h) {
		if !leased[name] {
			t.Errorf("left behind: the lease %s", name)
		}
	}
}

// pushed puts the test image into a registry that the lab's hosts reach and returns its name there.
func pushed(t *testing.T, l *testhost.Lab, repo string) string {
	t.Helper()
	r, err := l.StartRegistry()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	archive, err := Archive()
	if err != nil {
		t.Fatal(err)
	}
	name, err := r.Push(t.Context(), archive, repo)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// failpoints finds the places in the engine's code where a process can be killed, by who passes them.
func failpoints(t *testing.T) map[string][]string {
	t.Helper()
	root, err := testhost.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	hit := regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)
	for _, dir := range []string{"internal/keeper", "internal/engine", "internal/network"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range hit.FindAllSubmatch(text, -1) {
				name, who := string(m[1]), "daemon"
				switch {
				case name == "keeper.listen": // it would never come to be
					continue
				case strings.HasPrefix(name, "keeper."):
					who = "keeper"
				}
				found[who] = append(found[who], name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, who := range []string{"daemon", "keeper"} {
		slices.Sort(found[who])
		if found[who] = slices.Compact(found[who]); len(found[who]) == 0 {
			t.Fatalf("no failpoint of the %s is in the code", who)
		}
	}
	return found
}

// leases are those of the image store. They are read while no daemon runs.
func leases(t *testing.T, h *testhost.Host) map[string]bool {
	t.Helper()
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(h.DataRoot(), "image", "metadata.db"), 0o600, &bolt.Options{ReadOnly: true, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	err = db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("v1"))
		for _, name := range []string{"sampan", "leases"} {
			if b == nil {
				return fmt.Errorf("no bucket %s in the metadata", name)
			}
			b = b.Bucket([]byte(name))
		}
		if b == nil {
			return nil
		}
		return b.ForEach(func(name, _ []byte) error {
			lease := b.Bucket(name)
			if lease == nil {
				return fmt.Errorf("lease %s is no bucket", name)
			}
			// One with an end keeps what an interrupted pull has loaded for the next attempt, and goes by itself.
			if labels := lease.Bucket([]byte("labels")); labels == nil || labels.Get([]byte("containerd.io/gc.expire")) == nil {
				found[string(name)] = true
			}
			return nil
		})
	})
	if err := errors.Join(err, db.Close(), h.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	return found
}

// life is a container's: created, started, stopped unless it ends by itself, and removed.
type life struct {
	name string
	ends bool // by itself, with code
	code int
	// ready is whether it took signals when it was stopped.
	ready bool
	// What docker said about each step; the step after a failed one is tried all the same.
	created, started, entered, stopped, removed error
}

func (c *life) live(ctx context.Context, h *testhost.Host) {
	do := func(args ...string) error {
		_, err := h.Docker(ctx, append(args, c.name)...)
		return err
	}
	args := []string{"create", "--name", c.name, image, "tick"}
	if c.ends {
		args = append(args[:4], "exit", strconv.Itoa(c.code))
	}
	_, c.created = h.Docker(ctx, args...)
	c.started = do("start")
	if !c.ends {
		c.ready = c.firstLine(ctx, h) == nil
		_, c.entered = h.Docker(ctx, "exec", c.name, "/probe", "exit", "3")
		c.stopped = do("stop")
	}
	if c.code%2 == 0 {
		c.removed = do("rm")
	} else {
		c.removed = errors.New("not asked for")
	}
}

// firstLine waits for it to print something: before that it takes no signals, as process 1 of a container does not see
// those it does not handle. It is an error if it does not run, as far as the daemon knows once it answers.
func (c *life) firstLine(ctx context.Context, h *testhost.Host) error {
	var not error
	err := testhost.WaitFor(ctx, 60*time.Second, c.name+"'s first line", func(ctx context.Context) error {
		status, err := h.Docker(ctx, "inspect", "-f", "{{.State.Status}}", c.name)
		switch {
		case err != nil && strings.Contains(err.Error(), "o such"), err == nil && status != "running":
			not = errors.New("it does not run: " + status)
			return nil
		case err != nil:
			return err
		}
		out, err := h.Docker(ctx, "logs", c.name)
		if err == nil && out == "" {
			err = errors.New("no line yet")
		}
		return err
	})
	return errors.Join(err, not)
}

// check fails the test unless the container is what it can be after such a life, and removes it.
func (c *life) check(t *testing.T, h *testhost.Host, what, victim string) {
	t.Helper()
	bothGone := victim == "both"
	what = fmt.Sprintf("%s: %s (create %v, start %v, exec %v, stop %v, rm %v)", what, c.name, c.created, c.started, c.entered, c.stopped, c.removed)
	var exit *exec.ExitError
	switch {
	case c.ends:
	case c.entered == nil:
		t.Errorf("%s: an exec that ends with 3 is said to have ended with 0", what)
	case errors.As(c.entered, &exit) && exit.ExitCode() != 3 && strings.HasSuffix(c.entered.Error(), ": "): // and no reason
		if victim == "keeper" || exit.ExitCode() != 255 { // what the command says when there is no daemon to ask
			t.Errorf("%s: an exec that ends with 3 is said to have ended otherwise", what)
		}
	}
	state, err := h.Docker(t.Context(), "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}} {{.Id}} {{.State.Error}}", c.name)
	if err != nil {
		if !strings.Contains(err.Error(), "o such") {
			t.Errorf("%s: %v", what, err)
		} else if c.created == nil && c.removed != nil && !c.mayBeRemoved() {
			t.Errorf("%s: it is gone", what)
		}
		return
	}
	if c.removed == nil {
		t.Errorf("%s: it is there still: %s", what, state)
	}
	f := strings.SplitN(state, " ", 5)
	if c.started == nil && f[0] == "created" {
		t.Errorf("%s: it was started and is %s", what, state)
	}
	if f[0] == "running" && c.ends {
		// It may have been started this moment.
		Eventually(t, 60*time.Second, what+": its end", func(ctx context.Context) error {
			if state, err = h.Docker(ctx, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}} {{.Id}} {{.State.Error}}", c.name); err != nil {
				return err
			}
			if f = strings.SplitN(state, " ", 5); f[0] != "exited" {
				return errors.New(state)
			}
			return nil
		})
	}
	switch f[0] {
	case "running":
		if c.stopped == nil {
			t.Errorf("%s: it was stopped and is %s", what, state)
		}
		if _, err := os.Stat("/proc/" + f[2]); err != nil || f[2] == "0" {
			t.Errorf("%s: it is said to run: %s, and does not", what, state)
		}
		if err := c.firstLine(t.Context(), h); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := h.Docker(t.Context(), "stop", c.name); err != nil {
			t.Errorf("%s: stop: %v", what, err)
		}
		equal(t, what+": exit code after a stop", Docker(t, h, "inspect", "-f", "{{.State.ExitCode}}", c.name), "7")
		wholeTicks(t, Docker(t, h, "logs", c.name))
	case "exited":
		if f[2] != "0" {
			t.Errorf("%s: %s with a process", what, state)
		}
		if left := testhost.CgroupProcesses(filepath.Join(h.CgroupParent(), f[3])); len(left) > 0 {
			t.Errorf("%s: %s, and its processes %v live", what, state, left)
		}
		logs, want := Docker(t, h, "logs", c.name), "7"
		switch {
		case c.ends:
			want = strconv.Itoa(c.code)
		case !c.ready:
			want = f[1]
		}
		if f[1] != want && (!bothGone || f[1] != "255" || len(f) < 5 || f[4] == "") {
			t.Errorf("%s: %s, want exit code %s", what, state, want)
		}
		switch {
		case c.ends || f[1] != "7":
		case bothGone && !strings.Contains(logs, "last "):
			// It ended while neither was there: what it had printed last went with its pipe. The rest is whole.
			wholeTicks(t, fmt.Sprintf("%s\nlast %d", logs, strings.Count(logs, "\n")))
		default:
			wholeTicks(t, logs)
		}
	case "created":
	default:
		t.Errorf("%s: %s", what, state)
	}
	if _, err := h.Docker(t.Context(), "rm", c.name); err != nil {
		t.Errorf("%s: rm: %v", what, err)
	}
}

// mayBeRemoved tells whether a removal was under way when the daemon died.
func (c *life) mayBeRemoved() bool { return c.removed != nil && c.code%2 == 0 }
