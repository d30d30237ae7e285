package server

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// starts keeps apart the making of processes and the search for strays.
//
// A start that breaks off half-way (the container was killed meanwhile) can leave children of ours that nobody waits
// for: stages of libcontainer's init whose IDs it had not read yet. One that is in the container's PID namespace keeps
// the namespace's first process from ever being gone, as the kernel lets that one go last (zap_pid_ns_processes): the
// container's exit would never be seen.
//
// So nothing is started during the search, and the search waits until nothing is being started. But a container can hold a
// start up for as long as it likes (it stops each process that it gets): others then go on, and the search is tried again.
type starts struct {
	queued atomic.Bool // a search is to begin; it will find what is left until then
	search sync.Mutex  // one at a time

	mu        sync.Mutex
	running   int
	idle      chan struct{} // closed when nothing is being started any more; nil if nobody waits for that
	searching chan struct{} // closed when things may be started again; nil if they may
}

// patience is how long starts are kept waiting for one that goes on before a search.
const patience = time.Second

// begin waits for a search to be over; done is to follow.
func (st *starts) begin() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for st.searching != nil {
		over := st.searching
		st.mu.Unlock()
		<-over
		st.mu.Lock()
	}
	st.running++
}

func (st *starts) done() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.running--; st.running == 0 && st.idle != nil {
		close(st.idle)
		st.idle = nil
	}
}

// alone calls f when nothing is being started.
func (st *starts) alone(f func()) {
	st.search.Lock()
	defer st.search.Unlock()
	for !st.tryAlone(f) {
		time.Sleep(5 * patience)
	}
}

func (st *starts) tryAlone(f func()) bool {
	idle, over := make(chan struct{}), make(chan struct{})
	st.mu.Lock()
	st.searching = over
	if st.running == 0 {
		close(idle)
	} else {
		st.idle = idle
	}
	st.mu.Unlock()
	defer func() {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.idle, st.searching = nil, nil
		close(over)
	}()
	bound := time.NewTimer(patience)
	defer bound.Stop()
	select {
	case <-idle:
		f()
		return true
	case <-bound.C:
		return false
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
			killAndReap(pid)
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

func killAndReap(pid int) {
	_ = unix.Kill(pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}
