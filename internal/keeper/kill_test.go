package keeper_test

import (
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

var kills = flag.Int("kills", 20, "how often TestKeeperIsKilledAtRandom kills the keeper")

// The keeper is killed again and again while containers come and go: every exit code is right or said to be unknown,
// every log whole, and nothing stays.
func TestKeeperIsKilledAtRandom(t *testing.T) {
	h := newHost(t)
	var mu sync.Mutex
	exits := map[string]chan keeper.Status{}
	go func() {
		for e := range h.c.Events() {
			if e.Type == keeper.EventExit {
				mu.Lock()
				ch := exits[e.Status.ID]
				mu.Unlock()
				if ch != nil && e.Status.ExecID == "" {
					ch <- e.Status
				}
			}
		}
	}()
	done := make(chan struct{})
	var lives sync.WaitGroup
	var unknown, known int
	for range 4 {
		lives.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				code := 1 + rand.IntN(100)
				s := h.spec("exit", strconv.Itoa(code))
				if code%2 == 0 {
					s = h.spec("print", "line 1\n", "line 2")
					code = 0
				}
				exit := make(chan keeper.Status, 4)
				mu.Lock()
				exits[s.ID] = exit
				mu.Unlock()
				if _, err := h.c.Create(h.ctx(), s); err != nil {
					if !fault.Is(err, fault.Unavailable) {
						t.Errorf("Create: %v", err)
					}
					_ = h.c.Delete(h.ctx(), s.ID)
					continue
				}
				if _, err := h.c.Start(h.ctx(), s.ID); err != nil {
					t.Errorf("Start: %v", err)
					_ = h.c.Delete(h.ctx(), s.ID)
					continue
				}
				var st keeper.Status
				select {
				case st = <-exit:
				case <-h.ctx().Done():
					t.Errorf("no exit of %s", s.ID)
					return
				}
				mu.Lock()
				if st.ExitUnknown {
					unknown++
				} else if known++; st.ExitCode != code {
					t.Errorf("exit code %d, want %d", st.ExitCode, code)
				}
				mu.Unlock()
				if code == 0 {
					if got := logText(t, s.Log.Path); got != "line 1\nline 2" {
						t.Errorf("log %q", got)
					}
				}
				if err := h.c.Delete(h.ctx(), s.ID); err != nil {
					t.Errorf("Delete: %v", err)
				}
			}
		})
	}
	for range *kills {
		pid := h.c.PID()
		mu.Lock()
		n := known + unknown
		mu.Unlock()
		more := 1 + rand.IntN(4)
		h.eventually("some containers have come and gone", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return known+unknown >= n+more
		})
		_ = unix.Kill(pid, unix.SIGKILL)
		h.eventually("a new keeper is there", func() bool { now := h.c.PID(); return now != 0 && now != pid })
	}
	close(done)
	lives.Wait()
	t.Logf("%d exit codes known, %d unknown", known, unknown)
}

// TestDaemonDiesWhileAKeeperStarts: the next daemon finds nobody listening and starts a keeper too. It gets on with the
// first one.
func TestDaemonDiesWhileAKeeperStarts(t *testing.T) {
	h := newHost(t)
	if err := h.c.Shutdown(h.ctx()); err != nil {
		t.Fatal(err)
	}
	first := exec.Command(keeperBinary, "serve", "--exec-root", h.root, "--cgroup-parent", cgroupParent, "--failpoint", "keeper.listen=stop")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	go func() { _ = first.Wait() }() // it ends with the host, after this test
	h.eventually("the first keeper has the lock", func() bool { return state(first.Process.Pid) == "T" })
	wg.Go(func() {
		h.eventually("the second keeper waits", func() bool { return len(children(os.Getpid())) > 1 })
		_ = first.Process.Signal(unix.SIGCONT)
	})
	h.connect()
	if got := h.c.PID(); got != first.Process.Pid {
		t.Errorf("keeper %d, want the first, %d", got, first.Process.Pid)
	}
}
