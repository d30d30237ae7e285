package enter

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// endLimit is how long a killed child is waited for.
const endLimit = time.Second

// ErrNotEnded tells of a child that was killed and has not gone yet, as one that is frozen by version 1 of cgroups goes only
// when it is thawed.
var ErrNotEnded = errors.New("a process that was killed has not ended yet")

// ending are the children that were killed and not reaped yet.
var ending struct {
	sync.Mutex
	pids map[int]bool
}

// End kills a child of this process and reaps it. One that does not go soon is reaped when it does (ErrNotEnded).
func End(pid int) error {
	ending.Lock()
	if ending.pids[pid] {
		ending.Unlock()
		return ErrNotEnded
	}
	if ending.pids == nil {
		ending.pids = map[int]bool{}
	}
	ending.pids[pid] = true
	ending.Unlock()
	ended := make(chan error, 1)
	go func() {
		err := killAndReap(pid)
		ending.Lock()
		delete(ending.pids, pid)
		ending.Unlock()
		ended <- err
	}()
	bound := time.NewTimer(endLimit)
	defer bound.Stop()
	select {
	case err := <-ended:
		return err
	case <-bound.C:
		return ErrNotEnded
	}
}

func killAndReap(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return os.NewSyscallError("kill", err)
	}
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return os.NewSyscallError("wait4", err)
		}
	}
}
