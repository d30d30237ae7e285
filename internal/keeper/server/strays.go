package server

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sampan-cloud/sampan/internal/keeper/enter"
)

// starts keeps apart the making of processes and the search for strays.
//
// A start that breaks off half-way (the container was killed meanwhile) can leave children of ours that nobody waits
// for: stages of libcontainer's init whose IDs it had not read yet. One that is in the container's PID namespace keeps
// the namespace's first process from ever being gone, as the kernel lets that one go last (zap_pid_ns_processes): the
// container's exit would never be seen.
//
// So nothing is started during the search, and the search waits until nothing is being started. But a container can hold a
// start up for a while (it stops each process that it gets): others then go on, and the search is tried again.
type starts struct {
	gate
	queued atomic.Bool // a search is to begin; it will find what is left until then
}

// patience is how long starts are kept waiting for one that goes on before a search.
const patience = time.Second

// alone calls f when nothing is being started.
func (st *starts) alone(f func()) {
	for !st.tryAlone(patience, f) {
		time.Sleep(5 * patience)
	}
}

// beginStart is called before a process is made. The returned function is called once the process is looked after, or given
// up with err; then strays are looked for.
func (s *Server) beginStart() (end func(err error)) {
	s.starts.begin()
	return func(err error) {
		s.starts.done()
		if err != nil {
			go s.reapStrays()
		}
	}
}

// reapStrays ends and reaps every child that nobody looks after.
func (s *Server) reapStrays() {
	if !s.starts.queued.CompareAndSwap(false, true) {
		return
	}
	s.starts.alone(func() {
		s.starts.queued.Store(false)
		own := map[int]bool{}
		for _, p := range s.all() {
			own[p.status().PID] = true
		}
		for _, pid := range children() {
			if own[pid] {
				continue
			}
			s.log.Warn("a start that broke off left a process; it is ended", "pid", pid)
			if err := enter.End(pid); err != nil {
				s.log.Warn("a process that a start left has not ended", "pid", pid, "err", err)
			}
		}
	})
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
