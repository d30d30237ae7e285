package server

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// starts keeps apart the making of processes and the search for strays.
//
// A start that breaks off half-way (the container was killed meanwhile) can leave children of ours that nobody waits
// for: stages of libcontainer's init whose IDs it had not read yet. One that is in the container's PID namespace keeps
// the namespace's first process from ever being gone, as the kernel lets that one go last (zap_pid_ns_processes): the
// container's exit would never be seen.
type starts struct{ mu sync.RWMutex }

// begin is called before a process is made. The returned function is called once the process is looked after, or given
// up with err; then strays are looked for.
func (s *Server) beginStart() (end func(err error)) {
	s.starts.mu.RLock()
	return func(err error) {
		s.starts.mu.RUnlock()
		if err != nil {
			go s.reapStrays()
		}
	}
}

// reapStrays ends and reaps every child that nobody looks after.
func (s *Server) reapStrays() {
	s.starts.mu.Lock()
	defer s.starts.mu.Unlock()
	own := map[int]bool{}
	for _, p := range s.all() {
		own[p.status().PID] = true
	}
	for _, pid := range children() {
		if own[pid] {
			continue
		}
		s.log.Warn("a start that broke off left a process; it is ended", "pid", pid)
		killAndReap(pid)
	}
}

// children lists the processes whose parent this one is, zombies included.
func children() []int {
	var pids []int
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended: its children are another's now, and listed there or next time
		}
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func killAndReap(pid int) {
	_ = unix.Kill(pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}
