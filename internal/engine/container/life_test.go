package container

import (
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// The order of docker run: create, attach, wait, start.
func TestRunLinesUp(t *testing.T) {
	b := newBed(t)
	id := b.create(Config{Name: "one"}, "lines", "2000")
	s, err := b.m.Attach(t.Context(), id, AttachOptions{Stdout: true, Stderr: true, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	type end struct {
		code int
		err  error
	}
	listening, ended := make(chan struct{}), make(chan end, 1)
	go func() {
		code, _, err := b.m.Wait(t.Context(), id, "next-exit", func() { close(listening) })
		ended <- end{code, err}
	}()
	<-listening
	b.start(id)
	out, _ := readAll(t, s)
	if n := strings.Count(out, "\n"); n != 2000 || !strings.HasPrefix(out, "line 0\n") || !strings.HasSuffix(out, "line 1999\n") {
		t.Errorf("attach got %d lines", n)
	}
	if e := <-ended; e.code != 0 || e.err != nil {
		t.Errorf("wait: %+v", e)
	}
	if got := b.output(id); got != out {
		t.Errorf("the log has %d bytes, the attach %d", len(got), len(out))
	}
	contains(t, b.actions(id), "create", "attach", "start", "die")
	st := b.state(id)
	if st.Status != StatusExited || st.Running || st.PID != 0 || st.FinishedAt.Before(st.StartedAt) {
		t.Errorf("state %+v", st)
	}
}

func TestExitCodesAndStopping(t *testing.T) {
	b := newBed(t)
	t.Run("exit code", func(t *testing.T) {
		id := b.run(Config{}, "exit", "42")
		if code := b.wait(id, "not-running"); code != 42 || b.state(id).ExitCode != 42 {
			t.Errorf("code %d, state %d", code, b.state(id).ExitCode)
		}
	})
	t.Run("stop", func(t *testing.T) {
		id := b.run(Config{}, "trap", "7")
		b.ready(id, "ready")
		if err := b.m.Start(t.Context(), id); !fault.Is(err, fault.NotModified) {
			t.Errorf("second start: %v", err)
		}
		if err := b.m.Kill(t.Context(), id, "HUP"); err != nil {
			t.Fatal(err)
		}
		b.ready(id, "got hangup")
		if err := b.m.Stop(t.Context(), id, "", nil); err != nil {
			t.Fatal(err)
		}
		if s := b.state(id); s.ExitCode != 7 || s.Running {
			t.Errorf("state %+v", s)
		}
		if err := b.m.Stop(t.Context(), id, "", nil); !fault.Is(err, fault.NotModified) {
			t.Errorf("second stop: %v", err)
		}
		contains(t, b.actions(id), "start", "kill", "kill", "die", "stop")
		if err := b.m.Kill(t.Context(), id, ""); !fault.Is(err, fault.Conflict) {
			t.Errorf("kill of a stopped one: %v", err)
		}
	})
	t.Run("stop that has to kill", func(t *testing.T) {
		id := b.run(Config{}, "stubborn")
		b.ready(id, "ready")
		zero := 0
		if err := b.m.Stop(t.Context(), id, "", &zero); err != nil {
			t.Fatal(err)
		}
		if s := b.state(id); s.ExitCode != 137 {
			t.Errorf("state %+v", s)
		}
	})
	t.Run("restart", func(t *testing.T) {
		id := b.run(Config{}, "trap", "0")
		b.ready(id, "ready")
		before := b.state(id).PID
		if err := b.m.Restart(t.Context(), id, "", nil); err != nil {
			t.Fatal(err)
		}
		if s := b.state(id); !s.Running || s.PID == before {
			t.Errorf("state %+v", s)
		}
		contains(t, b.actions(id), "start", "die", "stop", "start", "restart")
	})
	t.Run("pause", func(t *testing.T) {
		id := b.run(Config{}, "trap", "0")
		b.ready(id, "ready")
		if err := b.m.Pause(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if s := b.state(id); s.Status != StatusPaused || !s.Running {
			t.Errorf("state %+v", s)
		}
		if err := b.m.Start(t.Context(), id); !fault.Is(err, fault.Conflict) {
			t.Errorf("start of a paused one: %v", err)
		}
		if err := b.m.Unpause(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := b.m.Pause(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := b.m.Stop(t.Context(), id, "", nil); err != nil { // a paused one can be stopped
			t.Fatal(err)
		}
		contains(t, b.actions(id), "pause", "unpause", "pause", "die", "stop")

		b.start(id)
		b.ready(id, "ready")
		if err := b.m.Pause(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := b.m.Restart(t.Context(), id, "", nil); err != nil {
			t.Fatal(err)
		}
		if s := b.state(id); s.Status != StatusRunning || s.Paused {
			t.Errorf("after the restart of a paused one: %+v", s)
		}
	})
	t.Run("program missing", func(t *testing.T) {
		id := b.create(Config{Entrypoint: []string{"/no/such/program"}})
		err := b.m.Start(t.Context(), id)
		if err == nil || !strings.Contains(err.Error(), "no such file or directory") {
			t.Errorf("start: %v", err)
		}
		if s := b.state(id); s.Status != StatusCreated || s.ExitCode != 127 || s.Error == "" {
			t.Errorf("state %+v", s)
		}
		if m := b.mounts(); strings.Contains(strings.Join(m, " "), id) {
			t.Errorf("mounts left: %v", m)
		}
	})
}
