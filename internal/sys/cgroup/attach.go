// Package cgroup knows which control groups the host has, and makes attaching processes to them quick.
package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Unified reports whether the host has version 2 alone.
var Unified = sync.OnceValue(func() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
})

var expecting atomic.Bool

// ExpectAttach tells the kernel that a process is about to be attached to a control group, and returns at once.
//
// An attach takes a lock against every fork and exit of the host (cgroup_threadgroup_rwsem in kernel/cgroup/cgroup.c, a
// per-CPU semaphore). Its first taker in a while waits for an RCU grace period, 7 to 20 ms; who takes it before another
// grace period is over does not wait. ExpectAttach begins the first one: it attaches this process to the group that it is
// in, which moves nothing. Where that fails nothing but time is lost.
func ExpectAttach() {
	if !expecting.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer expecting.Store(false)
		_ = attachSelf()
	}()
}

func attachSelf() error {
	groups, err := os.ReadFile("/proc/self/cgroup") // anew each time: somebody may have moved this process
	if err != nil {
		return err
	}
	group, err := one(string(groups))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join("/sys/fs/cgroup", group, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(strconv.Itoa(os.Getpid()))
	return err
}

// one returns the path, below /sys/fs/cgroup, of one of the groups that the lines of a /proc/PID/cgroup name: with
// version 1 the freezer's, where no process is charged for anything.
func one(lines string) (string, error) {
	unified := ""
	for line := range strings.Lines(lines) {
		switch _, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":"); {
		case strings.HasPrefix(rest, "freezer:"):
			return filepath.Join("freezer", strings.TrimPrefix(rest, "freezer:")), nil
		case strings.HasPrefix(rest, ":"):
			unified = rest[1:]
		}
	}
	if unified == "" {
		return "", errors.New("neither a group of version 2 nor a freezer's")
	}
	return unified, nil
}
