// Package failpoint names the places where a multi-step path can break, so that tests can break each of them.
//
// A path calls Hit("engine/container.start.after-mount") between its steps. Nothing happens unless a test (in process,
// Enable) or the operator of a test host (the --failpoint flag of sampand) armed that name.
package failpoint

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Action is what an armed failpoint does.
type Action string

// The actions.
const (
	Fail Action = "fail" // Hit returns an error
	Kill Action = "kill" // the process is ended by SIGKILL
	Stop Action = "stop" // the process stops itself (SIGSTOP) until somebody continues it
)

var (
	armed  atomic.Bool // a fast path for the case that nothing is armed
	mu     sync.Mutex
	points = map[string]Action{}
	seen   = map[string]int{}
)

// Enable arms the named failpoint and returns a function that disarms it.
func Enable(name string, a Action) (disable func()) {
	mu.Lock()
	defer mu.Unlock()
	points[name] = a
	armed.Store(true)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		delete(points, name)
		armed.Store(len(points) > 0)
	}
}

// EnableSpec arms the failpoints of a comma separated list of name=action.
func EnableSpec(spec string) error {
	for item := range strings.SplitSeq(spec, ",") {
		if item == "" {
			continue
		}
		name, action, ok := strings.Cut(item, "=")
		if !ok || !slices.Contains([]Action{Fail, Kill, Stop}, Action(action)) {
			return fmt.Errorf("failpoint %q: want NAME=fail, NAME=kill or NAME=stop", item)
		}
		Enable(name, Action(action))
	}
	return nil
}

// Record makes Hit count every name it passes, armed or not, so that a test can enumerate a path's failpoints.
func Record() (names func() []string) {
	mu.Lock()
	defer mu.Unlock()
	clear(seen)
	armed.Store(true)
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		armed.Store(len(points) > 0)
		return slices.Sorted(maps.Keys(seen))
	}
}

// Hit marks a place in a multi-step path. It returns nil unless the name is armed with Fail.
func Hit(name string) error {
	if !armed.Load() {
		return nil
	}
	mu.Lock()
	a := points[name]
	seen[name]++
	mu.Unlock()
	switch a {
	case Fail:
		return fmt.Errorf("failpoint %s", name)
	case Kill:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case Stop:
		// To the own thread: by another one's signal this one would go on for a moment.
		runtime.LockOSThread()
		_ = syscall.Tgkill(os.Getpid(), syscall.Gettid(), syscall.SIGSTOP)
		runtime.UnlockOSThread()
	}
	return nil
}
