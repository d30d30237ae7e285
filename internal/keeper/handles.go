package keeper

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// handles are the duplicates of the keeper's descriptors that the daemon holds: pidfds, which tell the exit code of a
// process that nobody waited for; pty masters, without which a terminal hangs up; and pipes, which lose what is in
// them when the last descriptor is closed. A keeper that is started after another died gets them.
type handles struct {
	mu sync.Mutex
	m  map[wire.Target]map[string]int
}

func (h *handles) hold(t wire.Handle, fds []int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.m == nil {
		h.m = map[wire.Target]map[string]int{}
	}
	set := h.m[t.Target]
	if set == nil {
		set = map[string]int{}
		h.m[t.Target] = set
	}
	for i, name := range t.Names {
		if old, ok := set[name]; ok {
			_ = unix.Close(old)
		}
		set[name] = fds[i]
	}
}

func (h *handles) drop(t wire.Handle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	set := h.m[t.Target]
	for _, name := range t.Names {
		if fd, ok := set[name]; ok {
			_ = unix.Close(fd)
			delete(set, name)
		}
	}
	if len(set) == 0 {
		delete(h.m, t.Target)
	}
}

func (h *handles) dropContainer(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for t, set := range h.m {
		if t.ID == id {
			wire.CloseFDs(slices.Collect(maps.Values(set)))
			delete(h.m, t)
		}
	}
}

func (h *handles) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, set := range h.m {
		wire.CloseFDs(slices.Collect(maps.Values(set)))
	}
	h.m = nil
}

// each calls f for every process with its handles; the descriptors may be used during the call only.
func (h *handles) each(f func(wire.Handle, []int) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	targets := slices.SortedFunc(maps.Keys(h.m), func(a, b wire.Target) int {
		return strings.Compare(targetKey(a.ID, a.ExecID), targetKey(b.ID, b.ExecID))
	})
	for _, t := range targets {
		hd := wire.Handle{Target: t}
		var fds []int
		for _, name := range slices.Sorted(maps.Keys(h.m[t])) {
			hd.Names = append(hd.Names, name)
			fds = append(fds, h.m[t][name])
		}
		if err := f(hd, fds); err != nil {
			return err
		}
	}
	return nil
}
