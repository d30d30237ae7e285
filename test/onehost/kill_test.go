package onehost

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// number is a number from the environment, or what is usual.
func number(t *testing.T, name string, usual uint64) uint64 {
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

// TestKilledAtRandomPoints kills the daemon, the keeper or both again and again while containers are created, started,
// stopped and removed. Afterwards every container is in a true state, its exit code is right (or unknown, where nobody was
// there to see it), its log is whole, and nothing stays. SAMPAN_KILLS says how often, SAMPAN_KILL_SEED repeats a run.
func TestKilledAtRandomPoints(t *testing.T) {
	l, h := one(t)
	killAtRandomPoints(t, l, h, 12)
}

// TestUserNSKilledAtRandomPoints is the same with a user namespace for each container.
func TestUserNSKilledAtRandomPoints(t *testing.T) {
	l, h := remapped(t, "--userns=auto")
	killAtRandomPoints(t, l, h, 6)
}

func killAtRandomPoints(t *testing.T, l *testhost.Lab, h *testhost.Host, usual uint64) {
	kills, seed := number(t, "SAMPAN_KILLS", usual), number(t, "SAMPAN_KILL_SEED", rand.Uint64())
	t.Logf("SAMPAN_KILL_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	Docker(t, h, "run", "--rm", image, "true")
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	Docker(t, h, "run", "-d", "--name", "always", image, "tick")
	pid := Docker(t, h, "inspect", "-f", "{{.State.Pid}}", "always")
	for k := range kills {
		victim := []string{"daemon", "keeper", "both"}[rnd.IntN(3)]
		lives := make([]*life, 3)
		var wg sync.WaitGroup
		for i := range lives {
			c := &life{name: fmt.Sprintf("k%d-%d", k, i), ends: rnd.IntN(2) == 0, code: 1 + rnd.IntN(100)}
			lives[i] = c
			wg.Go(func() { c.live(t.Context(), h) })
		}
		// Somewhere in the three lives, which take about this long.
		<-time.After(time.Duration(rnd.IntN(500)) * time.Millisecond)
		what := fmt.Sprintf("kill %d, of %s", k, victim)
		if victim != "daemon" {
			if err := h.KillKeeper(); err != nil && victim == "keeper" {
				t.Errorf("%s: %v", what, err)
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
			c.check(t, h, what, victim == "both")
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
	NothingLeft(t, l, before)
}

// life is a container's: created, started, stopped unless it ends by itself, and removed.
type life struct {
	name string
	ends bool // by itself, with code
	code int
	// ready is whether it took signals when it was stopped.
	ready bool
	// What docker said about each step; the step after a failed one is tried all the same.
	created, started, stopped, removed error
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
	err := testhost.WaitFor(ctx, 10*time.Second, c.name+"'s first line", func(ctx context.Context) error {
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
func (c *life) check(t *testing.T, h *testhost.Host, what string, bothGone bool) {
	t.Helper()
	what = fmt.Sprintf("%s: %s (create %v, start %v, stop %v, rm %v)", what, c.name, c.created, c.started, c.stopped, c.removed)
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
		Eventually(t, 10*time.Second, what+": its end", func(ctx context.Context) error {
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
		if !c.ends && f[1] == "7" {
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
