package container

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
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
