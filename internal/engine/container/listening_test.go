package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/engine/events"
)

// TestSignalsWaitForYoungPrograms: a signal that would be dropped waits until the program listens to it.
func TestSignalsWaitForYoungPrograms(t *testing.T) {
	m := &Manager{log: testLog(t), youth: patience}
	m.host.procRoot = t.TempDir()
	status := filepath.Join(m.host.procRoot, "77", "status")
	if err := os.Mkdir(filepath.Dir(status), 0o755); err != nil {
		t.Fatal(err)
	}
	name := "x"
	write := func(blocked, ignored, caught uint64) {
		t.Helper()
		text := fmt.Sprintf("Name:\t%s\nSigBlk:\t%016x\nSigIgn:\t%016x\nSigCgt:\t%016x\n", name, blocked, ignored, caught)
		if err := os.WriteFile(status+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(status+".new", status); err != nil {
			t.Fatal(err)
		}
	}
	const term = 1 << (syscall.SIGTERM - 1)
	c := newCtr("x", t.TempDir())
	c.rec.State = State{Status: StatusRunning, Running: true, PID: 77, StartedAt: time.Now()}
	c.publish()

	write(0, 0, 1<<(syscall.SIGHUP-1))
	if m.host.listens(77, syscall.SIGTERM) || !m.host.listens(77, syscall.SIGHUP) || !m.host.listens(78, syscall.SIGTERM) {
		t.Error("who listens to what is read wrongly")
	}
	name = "runc:[2:INIT]" // whose signals are not the program's
	write(0, 0, term)
	if m.host.listens(77, syscall.SIGTERM) {
		t.Error("the runtime's init is taken for the program")
	}
	name = "x"
	write(0, 0, 1<<(syscall.SIGHUP-1))
	done := make(chan struct{})
	go func() {
		m.untilListening(t.Context(), c, syscall.SIGTERM)
		close(done)
	}()
	m.untilListening(t.Context(), c, syscall.SIGKILL) // needs nobody to listen
	m.untilListening(t.Context(), c, syscall.SIGHUP)
	select {
	case <-done:
		t.Error("did not wait")
	default:
	}
	write(0, 0, term)
	<-done
	for _, listening := range [][3]uint64{{term, 0, 0}, {0, term, 0}} {
		write(listening[0], listening[1], listening[2])
		m.untilListening(t.Context(), c, syscall.SIGTERM)
	}
	write(0, 0, 0)
	c.rec.State.StartedAt = time.Now().Add(-patience)
	c.publish()
	m.untilListening(t.Context(), c, syscall.SIGTERM) // old enough to know what it does
}

// signalled is a keeper that notes the signals that it is to send.
type signalled struct {
	Keeper
	sent chan int
}

func (s *signalled) Signal(_ context.Context, _, _ string, sig int, _ bool) error {
	s.sent <- sig
	return nil
}

// TestStopMeetsARestart: a stop that comes while a restart policy starts the container once more is for the new run, whose
// program is looked at before it is told.
func TestStopMeetsARestart(t *testing.T) {
	k := &signalled{sent: make(chan int, 1)}
	m := &Manager{log: testLog(t), youth: patience}
	m.Keeper, m.Events = k, &events.Bus{}
	m.host.procRoot = t.TempDir()
	// looked is given the other end of a process' status when somebody reads that.
	looked := func(pid string) <-chan *os.File {
		status := filepath.Join(m.host.procRoot, pid, "status")
		if err := errors.Join(os.Mkdir(filepath.Dir(status), 0o755), syscall.Mkfifo(status, 0o600)); err != nil {
			t.Fatal(err)
		}
		c := make(chan *os.File, 1)
		go func() {
			f, err := os.OpenFile(status, os.O_WRONLY, 0)
			if err != nil {
				t.Error(err)
			}
			c <- f
		}()
		return c
	}
	listens := func(f *os.File) {
		_, err := fmt.Fprintf(f, "SigCgt:\t%016x\n", 1<<(syscall.SIGTERM-1))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	first, second := looked("77"), looked("78")
	c := newCtr("x", t.TempDir())
	c.rec.ManuallyStopped = true // nothing to be written
	c.rec.State = State{Status: StatusRunning, Running: true, PID: 77, StartedAt: time.Now().Add(-time.Second)}
	c.publish()
	c.mu.Lock() // the first run ends and is restarted
	ended := make(chan error, 1)
	go func() {
		_, err := m.end(t.Context(), c, syscall.SIGTERM)
		ended <- err
	}()
	listens(<-first)
	c.rec.State = State{Status: StatusRunning, Running: true, PID: 78, StartedAt: time.Now()}
	c.publish()
	c.mu.Unlock()
	select {
	case <-k.sent:
		t.Fatal("the signal was sent to a program that may not listen yet: it would be lost")
	case f := <-second:
		listens(f)
	}
	if sig := <-k.sent; sig != int(syscall.SIGTERM) {
		t.Errorf("signal %d", sig)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
