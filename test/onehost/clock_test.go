//go:build vm

package onehost

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestClockIsSet: the system's clock is set hours ahead and then further back than it was, with containers and services at
// work. Whatever waits, waits as long as it would have. It is compiled for virtual machines alone (scripts/vm), as the
// clock is the whole machine's.
func TestClockIsSet(t *testing.T) {
	l, h := one(t)
	keepTime(t)
	if err := l.Swarm(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--name", "steady", image, "sleep"}, {"--name", "failing", "--restart-delay", "5s", image, "exit", "1"}} {
		Docker(t, h, append([]string{"service", "create", "--detach", "--no-resolve-image"}, args...)...)
	}
	Docker(t, h, "service", "create", "--detach", "--no-resolve-image", "--update-monitor", "20s", "--name", "rolled", image, "sleep")
	events := follow(t, h, "events", "--format", "{{.Type}} {{.Action}} {{json .Actor.Attributes}}")
	events.more(t, "a start of a service that fails", 1, "container start", `"com.docker.swarm.service.name":"failing"`)
	steady := runningTask(t, h, "steady")
	for _, by := range []time.Duration{6 * time.Hour, -12 * time.Hour} {
		t.Run(by.String(), func(t *testing.T) { setWhileAtWork(t, h, events, by) })
		equal(t, "the service's task", runningTask(t, h, "steady"), steady)
		equal(t, "the node", Docker(t, h, "node", "ls", "--format", "{{.Status}}"), "Ready")
	}
	if n := events.count("node update", `"state.new":"down"`); n > 0 {
		t.Errorf("the node was said to be down %d times", n)
	}
}

// setWhileAtWork sets the clock with containers of their own and services at work. events are the host's.
func setWhileAtWork(t *testing.T, h *testhost.Host, events *follower, by time.Duration) {
	suffix := fmt.Sprintf("-%dh", int(by.Abs().Hours()))
	start := func(name string, args ...string) {
		t.Helper()
		Docker(t, h, append([]string{"run", "-d", "--name", name + suffix}, args...)...)
	}
	of := func(name string) string { return fmt.Sprintf(`"name":%q`, name+suffix) }
	inspect := func(name, format string) string {
		t.Helper()
		return Docker(t, h, "inspect", "-f", format, name+suffix)
	}
	start("ticker", image, "tick")
	start("lasting", image, "sleep")
	start("stubborn", "--stop-signal", "WINCH", image, "sleep")
	start("beating", "--health-cmd", "/probe sleep 10s", "--health-interval", "1s", "--health-timeout", "60s", image, "sleep")
	start("patient", "--health-cmd", "/probe false", "--health-start-period", "3h", "--health-start-interval", "5s", "--health-retries", "1", image, "sleep")
	start("again", "--restart", "always", image, "exit", "1")
	log := follow(t, h, "logs", "-f", "--tail", "0", "ticker"+suffix)
	log.more(t, "lines", 1, "tick")
	waiter := follow(t, h, "wait", "lasting"+suffix)
	Docker(t, h, "service", "update", "--detach", "--force", "rolled")
	events.more(t, "the update's new task", 1, "container start", `"com.docker.swarm.service.name":"rolled"`)
	start("unready", "--health-cmd", "/probe false", "--health-start-period", "20s", "--health-start-interval", "5s", "--health-interval", "5s",
		"--health-retries", "1", image, "sleep")
	started := inspect("lasting", "{{.State.StartedAt}}")
	events.more(t, "a health check", 1, "container exec_create: /bin/sh -c /probe sleep", of("beating"))
	asked := time.Now()
	stop := follow(t, h, "stop", "-t", "5", "stubborn"+suffix)
	events.more(t, "the stop's signal", 1, "container kill", of("stubborn"))

	last := log.last()
	t.Log("setting the clock")
	moved := setClock(t, by)

	stop.ended(t, 60*time.Second)
	if took := time.Since(asked); took < 5*time.Second {
		t.Errorf("a stop with 5 seconds' time took %v", took)
	}
	equal(t, "exit code of what was stopped", inspect("stubborn", "{{.State.ExitCode}}"), "137")
	checks := func(name string) int { return events.count("container exec_create", of(name)) }
	beats, tries := checks("beating"), checks("patient")

	t.Log("logs")
	// Logs: what follows goes on, and a time is one of the clock as it is now.
	log.more(t, "lines of the followed log", 10, "tick")
	if lines := strings.Split(Docker(t, h, "logs", "--tail", "5", "ticker"+suffix), "\n"); len(lines) != 5 || tickOf(t, lines[4]) <= tickOf(t, last) {
		t.Errorf("the log's tail is %q, before the clock was set it was at %q", lines, last)
	}
	lines := strings.Split(Docker(t, h, "logs", "--since", strconv.FormatInt(moved.Unix(), 10), "ticker"+suffix), "\n")
	if tickOf(t, lines[len(lines)-1]) <= tickOf(t, last) || by > 0 && tickOf(t, lines[0]) < tickOf(t, last) {
		t.Errorf("the log since the clock was set is from %q to %q; before, it was at %q", lines[0], lines[len(lines)-1], last)
	}

	equal(t, "exec", Docker(t, h, "exec", "ticker"+suffix, "/probe", "echo", "hello"), "hello")
	equal(t, "a new container", Docker(t, h, "run", "--rm", image, "echo", "fresh"), "fresh")
	if status := Docker(t, h, "ps", "--filter", "name=ticker"+suffix, "--format", "{{.Status}} {{.RunningFor}}"); !strings.HasPrefix(status, "Up ") || strings.Contains(status, "-") {
		t.Errorf("ps says %q", status)
	}

	t.Log("an end")
	// An end after the clock was set: who waits hears of it, and its time is the clock's.
	ending := time.Now()
	Docker(t, h, "kill", "-s", "TERM", "lasting"+suffix)
	waiter.ended(t, 60*time.Second)
	equal(t, "wait", waiter.last(), "0")
	equal(t, "start of what ended", inspect("lasting", "{{.State.StartedAt}}"), started)
	finished, err := time.Parse(time.RFC3339Nano, inspect("lasting", "{{.State.FinishedAt}}"))
	if now := time.Now(); err != nil || finished.Round(0).Before(ending.Round(0)) || finished.After(now.Round(0)) {
		t.Errorf("finished at %v (%v), want between %v and %v", finished, err, ending, now)
	}
	contains(t, "events since the clock was set", Docker(t, h, "events", "--since", strconv.FormatInt(moved.Unix(), 10), "--until", strconv.FormatInt(time.Now().Unix()+1, 10),
		"--filter", "container=lasting"+suffix, "--format", "{{.Action}}"), "kill", "die")

	t.Log("what comes again")
	events.more(t, "another start by the restart policy", 1, "container start", of("again"))
	events.more(t, "two more starts of a service that fails", 2, "container start", `"com.docker.swarm.service.name":"failing"`)
	events.until(t, "two more health checks", func() bool { return checks("beating") >= beats+2 && checks("patient") >= tries+2 })
	t.Log("health")
	equal(t, "health", inspect("beating", "{{.State.Health.Status}}"), "healthy")
	if codes := inspect("beating", "{{range .State.Health.Log}}{{.ExitCode}} {{end}}"); strings.Trim(codes, "0 ") != "" {
		t.Errorf("health checks ended with %s: %s", codes, inspect("beating", "{{json .State.Health.Log}}"))
	}
	equal(t, "health within the start period", inspect("patient", "{{.State.Health.Status}}"), "starting")
	for what, asks := range map[string]struct {
		want string
		ask  []string
	}{
		"the end of a start period": {"unhealthy", []string{"inspect", "-f", "{{.State.Health.Status}}", "unready" + suffix}},
		"the end of an update":      {"completed", []string{"service", "inspect", "-f", "{{.UpdateStatus.State}}", "rolled"}},
	} {
		Eventually(t, 30*time.Second, what, func(ctx context.Context) error {
			if out, err := h.Docker(ctx, asks.ask...); err != nil || out != asks.want {
				return fmt.Errorf("%s %v, want %s", out, err, asks.want)
			}
			return nil
		})
	}
	for _, name := range []string{"ticker", "beating", "patient", "again", "unready", "stubborn", "lasting"} {
		Docker(t, h, "rm", "-f", name+suffix)
	}
}

func runningTask(t *testing.T, h *testhost.Host, service string) (id string) {
	t.Helper()
	Eventually(t, 60*time.Second, "a running task of "+service, func(ctx context.Context) (err error) {
		var state string
		id, err = h.Docker(ctx, "service", "ps", "--filter", "desired-state=running", "--format", "{{.ID}} {{.CurrentState}}", service)
		if id, state, _ = strings.Cut(id, " "); err == nil && !strings.HasPrefix(state, "Running") {
			err = fmt.Errorf("%s", state)
		}
		return err
	})
	return id
}

// tickOf is the number in a line of the ticker's.
func tickOf(t *testing.T, line string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimPrefix(line, "tick "))
	if err != nil {
		t.Fatalf("%q is no line of a ticker's log", line)
	}
	return n
}

// setClock moves the system's clock and returns what it says then. It refuses where this is no virtual machine of
// test/vm's, whose command line for the kernel nobody else has.
func setClock(t *testing.T, by time.Duration) time.Time {
	t.Helper()
	if line, err := os.ReadFile("/proc/cmdline"); err != nil || !strings.Contains(string(line), "vm.commands=") {
		t.Fatalf("the clock of a machine that is not of test/vm is left alone (%v)", err)
	}
	at := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &at); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}

// keepTime sets the clock right when the test is over.
func keepTime(t *testing.T) {
	began := time.Now()
	t.Cleanup(func() {
		right := began.Add(time.Since(began)) // what passed is measured by the monotonic clock
		setClock(t, right.Round(0).Sub(time.Now().Round(0)))
	})
}

// follower is a docker command that runs beside the test; it gathers what that prints.
type follower struct {
	what string
	done chan struct{} // closed when it has ended

	mu    sync.Mutex
	lines []string
	wake  chan struct{} // closed and replaced with each line
	err   error
}

func follow(t *testing.T, h *testhost.Host, args ...string) *follower {
	t.Helper()
	f := &follower{what: "docker " + strings.Join(args, " "), done: make(chan struct{}), wake: make(chan struct{})}
	cmd := exec.CommandContext(t.Context(), h.CLI(), append([]string{"-H", h.DockerHost()}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(f.done)
		for in := bufio.NewScanner(out); in.Scan(); {
			f.mu.Lock()
			f.lines = append(f.lines, in.Text())
			close(f.wake)
			f.wake = make(chan struct{})
			f.mu.Unlock()
		}
		f.err = cmd.Wait()
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-f.done })
	return f
}

// count is how many lines have all of want in them.
func (f *follower) count(want ...string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
lines:
	for _, line := range f.lines {
		for _, w := range want {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		n++
	}
	return n
}

func (f *follower) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.lines) == 0 {
		return ""
	}
	return f.lines[len(f.lines)-1]
}

// more waits until n more lines than there are now have all of want in them.
func (f *follower) more(t *testing.T, what string, n int, want ...string) {
	t.Helper()
	had := f.count(want...)
	f.until(t, what, func() bool { return f.count(want...) >= had+n })
}

// until waits for what comes true with a line.
func (f *follower) until(t *testing.T, what string, seen func() bool) {
	t.Helper()
	bound := time.After(testhost.Patient(20 * time.Second))
	for {
		f.mu.Lock()
		wake := f.wake
		f.mu.Unlock()
		if seen() {
			return
		}
		select {
		case <-wake:
		case <-f.done:
			t.Fatalf("%s: %s ended (%v)", what, f.what, f.err)
		case <-bound:
			t.Fatalf("%s: not seen by %s, the last was %q", what, f.what, f.last())
		}
	}
}

// ended waits until the command has ended and fails the test if that does not come or the command failed.
func (f *follower) ended(t *testing.T, bound time.Duration) {
	t.Helper()
	select {
	case <-f.done:
		if f.err != nil {
			t.Errorf("%s: %v", f.what, f.err)
		}
	case <-time.After(testhost.Patient(bound)):
		t.Fatalf("%s has not ended", f.what)
	}
}
