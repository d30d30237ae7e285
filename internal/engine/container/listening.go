package container

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The first process of a PID namespace gets only the signals that it listens to: the kernel drops the others. A program
// that has just been started has not come to that yet, and a stop sent meanwhile would be lost, to end in SIGKILL ten
// seconds later. So a signal to a young container waits until it is listened to.
const (
	youth         = 500 * time.Millisecond // so long after its start a program may still be getting ready
	listeningPoll = 5 * time.Millisecond   // there is no event for it
	runsToLookAt  = 3                      // their pauses double: a signal soon meets one that waits for its restart
)

// lockListening takes c.mu when the container's first process listens to sig, or is no longer young, or needs not listen. A
// restart policy may start another one between the look and the lock: that one is looked at, too.
func (m *Manager) lockListening(ctx context.Context, c *ctr, sig syscall.Signal) {
	for range runsToLookAt {
		run := m.untilListening(ctx, c, sig)
		c.mu.Lock()
		if s := &c.rec.State; !s.Running || s.Restarting || s.StartedAt.Equal(run) {
			return
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
}

// untilListening returns when a container's first process listens to sig, or is no longer young, or needs not listen; it
// tells that process by the start of its run.
func (m *Manager) untilListening(ctx context.Context, c *ctr, sig syscall.Signal) (run time.Time) {
	snap := c.snapshot()
	s := &snap.State
	run = s.StartedAt
	if sig == syscall.SIGKILL || sig == syscall.SIGSTOP || !s.Running || s.Paused || s.Restarting || snap.Config.Host.PidMode != "" {
		return run
	}
	left := m.youth - max(0, time.Since(s.StartedAt)) // the clock may have been set back
	if left <= 0 {
		return run
	}
	over := time.NewTimer(left)
	defer over.Stop()
	poll := time.NewTicker(listeningPoll)
	defer poll.Stop()
	for !m.host.listens(s.PID, sig) {
		select {
		case <-poll.C:
		case <-over.C:
			return run
		case <-ctx.Done():
			return run
		}
	}
	return run
}

// listens reports whether a process does anything about a signal: catches, blocks or ignores it. One that is gone, or of
// which that cannot be known, does. The runtime's init does not, though it catches them all: the program that it is about
// to become would never get the signal, and be ended by it before its first instruction.
func (h *host) listens(pid int, sig syscall.Signal) bool {
	b, err := os.ReadFile(filepath.Join(h.procRoot, strconv.Itoa(pid), "status"))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		if name == "Name" && strings.HasPrefix(strings.TrimSpace(value), "runc:[") {
			return false
		}
		if name != "SigBlk" && name != "SigIgn" && name != "SigCgt" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil || mask&(1<<(uint(sig)-1)) != 0 {
			return true
		}
	}
	return false
}
