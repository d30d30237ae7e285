package container

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

func TestBackoff(t *testing.T) {
	always := RestartPolicy{Name: "always"}
	var b backoff
	var got []time.Duration
	for range 12 {
		pause, ok := b.next(always, 0, time.Second)
		if !ok {
			t.Fatal("always does not restart")
		}
		got = append(got, pause)
	}
	want := []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000}
	for i := range want {
		want[i] *= time.Millisecond
	}
	if !slices.Equal(got, want) {
		t.Errorf("pauses %v, want %v", got, want)
	}
	if pause, _ := b.next(always, 0, 10*time.Second); pause != 100*time.Millisecond {
		t.Errorf("after a steady run: %v", pause)
	}
	b.reset()
	onFailure := RestartPolicy{Name: "on-failure", MaxRetries: 2}
	var restarts int
	for range 5 {
		if _, ok := b.next(onFailure, 1, 0); ok {
			restarts++
		}
	}
	if restarts != 2 {
		t.Errorf("on-failure:2 restarts %d times", restarts)
	}
	b.reset()
	if _, ok := b.next(onFailure, 0, 0); ok {
		t.Error("on-failure restarts after success")
	}
	if _, ok := b.next(RestartPolicy{}, 1, 0); ok {
		t.Error("no policy restarts")
	}
}

// The pause is taken before the restart, and a stop during it ends it.
func TestRestartPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Manager{log: testLog(t), byID: map[string]*ctr{}, byName: map[string]string{}}
		m.ctx, m.cancel = context.WithCancel(context.Background())
		c := newCtr("x", t.TempDir())
		c.rec.State = State{Status: StatusRestarting, Running: true, Restarting: true, ExitCode: 3}
		c.rec.Config.Host.NetworkMode = "container:gone" // its start fails at once
		c.publish()
		w := c.waiters.listen(false, nil)
		begin := time.Now()
		c.mu.Lock()
		m.restartLater(c, 800*time.Millisecond)
		c.mu.Unlock()
		<-w.ch
		if d := time.Since(begin); d != 800*time.Millisecond {
			t.Errorf("started after %v", d)
		}

		c.rec.State = State{Status: StatusRestarting, Running: true, Restarting: true, ExitCode: 3}
		w = c.waiters.listen(false, nil)
		c.mu.Lock()
		m.restartLater(c, time.Minute)
		m.giveUpRestart(c)
		c.mu.Unlock()
		if r := <-w.ch; r.code != 3 || c.snapshot().State.Status != StatusExited {
			t.Errorf("%+v %+v", r, c.snapshot().State)
		}
		m.cancel()
		m.wg.Wait()
	})
}

func TestRestartPolicy(t *testing.T) {
	b := newBed(t)
	t.Run("on-failure", func(t *testing.T) {
		id := b.run(Config{Host: HostConfig{Restart: RestartPolicy{Name: "on-failure", MaxRetries: 2}}}, "exit", "5")
		b.eventually("three ends", func() bool {
			c, err := b.m.Get(id)
			return err == nil && c.State.Status == StatusExited && c.RestartCount == 2
		})
		if s := b.state(id); s.ExitCode != 5 || s.Running {
			t.Errorf("state %+v", s)
		}
		if n := b.starts(id); n != 3 {
			t.Errorf("%d starts", n)
		}
		// Whoever starts it again begins to count anew.
		b.start(id)
		b.eventually("three more ends", func() bool { return b.starts(id) == 6 && b.state(id).Status == StatusExited })
		if c, err := b.m.Get(id); err != nil || c.RestartCount != 2 {
			t.Errorf("restarted %d times after it was started again, %v", c.RestartCount, err)
		}
	})
	t.Run("a daemon's end in between gives no further retries", func(t *testing.T) {
		id := b.run(Config{Host: HostConfig{Restart: RestartPolicy{Name: "on-failure", MaxRetries: 3}}}, "exit", "5")
		b.eventually("a second restart", func() bool { c, err := b.m.Get(id); return err == nil && c.RestartCount == 2 && c.State.Restarting })
		if err := b.m.Close(); err != nil {
			t.Fatal(err)
		}
		b.open()
		b.eventually("the last end", func() bool { return b.state(id).Status == StatusExited })
		if c, err := b.m.Get(id); err != nil || c.RestartCount != 3 || b.starts(id) != 4 {
			t.Errorf("%d restarts, %d starts, %v", c.RestartCount, b.starts(id), err)
		}
	})
	t.Run("always, until stopped", func(t *testing.T) {
		id := b.run(Config{Host: HostConfig{Restart: RestartPolicy{Name: "always"}}}, "exit", "0")
		b.eventually("a restart", func() bool { c, err := b.m.Get(id); return err == nil && c.RestartCount >= 2 })
		if err := b.m.Stop(t.Context(), id, "", nil); err != nil {
			t.Fatal(err)
		}
		if s := b.state(id); s.Running || s.Restarting {
			t.Errorf("state %+v", s)
		}
	})
	t.Run("killed process comes back, docker kill does not", func(t *testing.T) {
		id := b.run(Config{Host: HostConfig{Restart: RestartPolicy{Name: "unless-stopped"}}}, "wait")
		first := b.state(id).PID
		if p, err := os.FindProcess(first); err != nil || p.Kill() != nil {
			t.Fatal("cannot kill the process")
		}
		b.eventually("a restart", func() bool { s := b.state(id); return s.Status == StatusRunning && s.PID != first })
		if err := b.m.Kill(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
		if s := b.state(id); s.Running || s.ExitCode != 137 {
			t.Errorf("state %+v", s)
		}
	})
	t.Run("auto remove", func(t *testing.T) {
		id := b.create(Config{Volumes: []string{"/scratch"}, Host: HostConfig{AutoRemove: true}}, "exit", "9")
		c, err := b.m.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		code := make(chan int, 1)
		listening := make(chan struct{})
		go func() {
			n, _, _ := b.m.Wait(t.Context(), id, "removed", func() { close(listening) })
			code <- n
		}()
		<-listening
		b.start(id)
		if n := <-code; n != 9 {
			t.Errorf("code %d", n)
		}
		if _, err := b.m.Get(id); !fault.Is(err, fault.NotFound) {
			t.Errorf("get: %v", err)
		}
		if _, err := b.m.Volumes.Get(c.Mounts[0].Name); !fault.Is(err, fault.NotFound) {
			t.Errorf("its anonymous volume: %v", err)
		}
		contains(t, b.actions(id), "create", "start", "die", "destroy")
	})
	// The end that a forced removal brings about is not the occasion of the automatic one: the two would get into each
	// other's way, and who asked be told that somebody else is at it.
	t.Run("forced removal of one to be removed", func(t *testing.T) {
		for range 5 {
			id := b.run(Config{Volumes: []string{"/scratch"}, Host: HostConfig{AutoRemove: true}}, "wait")
			c, err := b.m.Get(id)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.m.Remove(t.Context(), id, true, false, false); err != nil {
				t.Fatal(err)
			}
			if _, err := b.m.Volumes.Get(c.Mounts[0].Name); !fault.Is(err, fault.NotFound) {
				t.Errorf("its anonymous volume: %v", err)
			}
		}
	})
}

// starts is how often a container was started so far.
func (b *bed) starts(id string) (n int) {
	for _, a := range b.actions(id) {
		if a == "start" {
			n++
		}
	}
	return n
}

func TestHealthMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		codes := []int{1, 1, 0, 1, 1, 1, 0} // by probe
		var at []time.Duration
		var seen []string
		h := &monitor{
			cfg: Health{Interval: 10 * time.Second, StartPeriod: 5 * time.Second, StartInterval: 2 * time.Second},
			age: func() time.Duration { return time.Since(begin) }, status: healthStarting,
			paused: func() bool { return false },
			probe: func(context.Context) HealthResult {
				at = append(at, time.Since(begin))
				return HealthResult{Start: time.Now(), ExitCode: codes[len(at)-1]}
			},
		}
		h.report = func(_ HealthResult, status string, streak int) {
			seen = append(seen, status)
			if len(seen) == len(codes) {
				cancel()
			}
		}
		h.run(ctx)
		wantAt := []time.Duration{2, 4, 6, 16, 26, 36, 46}
		for i := range wantAt {
			wantAt[i] *= time.Second
		}
		if !slices.Equal(at, wantAt) {
			t.Errorf("probes at %v, want %v", at, wantAt)
		}
		want := []string{"starting", "starting", "healthy", "healthy", "healthy", "unhealthy", "healthy"}
		if !slices.Equal(seen, want) {
			t.Errorf("statuses %v, want %v", seen, want)
		}
	})
}

func TestHealth(t *testing.T) {
	b := newBed(t)
	vol := filepath.Join(b.dir, "shared")
	if err := os.Mkdir(vol, 0o755); err != nil {
		t.Fatal(err)
	}
	id := b.run(Config{
		Health: &Health{Test: []string{"CMD", "/bin/prog", "health", "/s/state"}, Interval: 20 * time.Millisecond, Retries: 2},
		Host:   HostConfig{Mounts: []Mount{{Type: MountBind, Source: vol, Target: "/s"}}},
	}, "wait")
	if s := b.state(id); s.Health == nil || s.Health.Status != "starting" {
		t.Fatalf("health at the start: %+v", s.Health)
	}
	b.eventually("unhealthy", func() bool { return b.state(id).Health.Status == "unhealthy" })
	if err := os.WriteFile(filepath.Join(vol, "state"), []byte("ok"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.eventually("healthy", func() bool { return b.state(id).Health.Status == "healthy" })
	h := b.state(id).Health
	last := h.Log[len(h.Log)-1]
	if last.ExitCode != 0 || !strings.Contains(last.Output, "probe: ok") || len(h.Log) > 5 || h.FailingStreak != 0 {
		t.Errorf("health %+v", h)
	}
	contains(t, b.actions(id), "health_status: unhealthy", "health_status: healthy")
	// It stays so while the daemon is exchanged.
	if err := b.m.Close(); err != nil {
		t.Fatal(err)
	}
	b.open()
	if h := b.state(id).Health; h == nil || h.Status != "healthy" {
		t.Errorf("health after the daemon's start: %+v", h)
	}
	if err := b.m.Kill(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}

	slow := b.run(Config{Health: &Health{Test: []string{"CMD", "/bin/prog", "stubborn"}, Interval: time.Millisecond, Timeout: 30 * time.Millisecond, Retries: 1}}, "wait")
	b.eventually("unhealthy", func() bool { return b.state(slow).Health.Status == "unhealthy" })
	if out := b.state(slow).Health.Log[0].Output; !strings.HasPrefix(out, "Health check exceeded timeout (30ms)") {
		t.Errorf("output %q", out)
	}
	// Only the check is ended: there are further ones.
	b.eventually("a check after the one that took too long", func() bool {
		s := b.state(slow)
		return !s.Running || slices.ContainsFunc(s.Health.Log[1:], func(r HealthResult) bool { return strings.HasPrefix(r.Output, "Health check exceeded") })
	})
	if s := b.state(slow); !s.Running {
		t.Errorf("a check that took too long ended the container: %+v", s)
	}
}

// TestEndForWantOfMemoryIsTold: the exit may be seen before the kernel's notification, which then comes too late.
func TestEndForWantOfMemoryIsTold(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{}, "wait")
	st := b.state(id)
	end := keeper.Status{ID: id, PID: st.PID, State: keeper.Exited, ExitCode: 137, OOMKilled: true, ExitedAt: time.Now()}
	b.m.handle(t.Context(), keeper.Event{Type: keeper.EventExit, Status: end})
	b.m.handle(t.Context(), keeper.Event{Type: keeper.EventOOM, Status: end})
	b.eventually("its end", func() bool { return slices.Contains(b.actions(id), "die") })
	got := b.actions(id)
	if oom, die := slices.Index(got, "oom"), slices.Index(got, "die"); oom < 0 || oom > die || slices.Contains(got[oom+1:], "oom") {
		t.Errorf("told %v, want oom once, before die", got)
	}
}

// TestHealthOfADaemonThatEnds: a check that the daemon's end breaks off is all that ends.
func TestHealthOfADaemonThatEnds(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{Health: &Health{Test: []string{"CMD", "/bin/prog", "stubborn"}, Interval: time.Millisecond, Timeout: time.Hour}}, "wait")
	b.eventually("a check under way", func() bool { return slices.Contains(b.actions(id), "exec_start: /bin/prog stubborn") })
	b.exec(id, ExecConfig{Cmd: []string{"/bin/prog", "echo"}}) // as long as that takes, the check's own streams have too
	if err := b.m.Close(); err != nil {
		t.Fatal(err)
	}
	before := len(b.actions(id))
	b.open()
	b.eventually("the next check", func() bool {
		return slices.Contains(b.actions(id)[before:], "exec_start: /bin/prog stubborn") || !b.state(id).Running
	})
	if s := b.state(id); !s.Running {
		t.Errorf("the container ended with the daemon: %+v", s)
	}
}
