package userns

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	_ "unsafe" // for go:linkname

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault/undo"
)

// PinNet makes a network namespace that the user namespace at the path user owns, and pins it at a path that must not
// exist. It lives until it is unpinned (Unpin, netns.Remove) and nobody is in it any more.
func PinNet(user, net string) error {
	u := undo.New()
	defer func() { _ = u.Run() }()
	err := joined(user, func(pid int) error { return pin(u, pid, "net", net) })
	if err != nil {
		return fmt.Errorf("network namespace of the user namespace %s: %w", user, err)
	}
	u.Done()
	return nil
}

// joined makes a process in the user namespace at a path and in a new network namespace which that owns, gives it to f,
// and ends it. Only a process with one thread may change its user namespace: it is a fork of this one that never returns
// to Go's runtime.
func joined(user string, f func(pid int) error) error {
	ns, err := os.Open(user)
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error, 1)
	// The process ends with the thread that made it.
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- func() error {
			syscall.ForkLock.Lock()
			pid, errno := forkInto(ns.Fd(), uintptr(os.Getpid()))
			syscall.ForkLock.Unlock()
			if errno != 0 {
				return errno
			}
			var status unix.WaitStatus
			if err := waitFor(pid, &status, unix.WUNTRACED); err != nil {
				return err
			}
			switch {
			case status.Exited():
				return explain(syscall.Errno(status.ExitStatus()))
			case !status.Stopped():
				return fmt.Errorf("the process that makes it was ended: signal %d", status.Signal())
			}
			err := f(pid)
			_ = unix.Kill(pid, unix.SIGKILL)
			_ = waitFor(pid, &status, 0)
			return err
		}()
	}()
	return <-done
}

func waitFor(pid int, status *unix.WaitStatus, options int) error {
	for {
		if _, err := unix.Wait4(pid, status, options, nil); err != unix.EINTR {
			return err
		}
	}
}

// forkInto forks a process that joins a user namespace, makes a network namespace and stops, or ends with the number of
// an error as its exit code. It lives no longer than its parent, nor than the thread that it was forked from. In it
// nothing may grow the stack, allocate or be scheduled: there are raw system calls only.
//
//go:noinline
//go:norace
//go:nocheckptr
func forkInto(user, parent uintptr) (pid int, errno syscall.Errno) {
	beforeFork()
	child, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || child != 0 {
		afterFork()
		return int(child), errno
	}
	afterForkInChild()
	var self, above uintptr
	_, _, errno = syscall.RawSyscall(unix.SYS_SETNS, user, unix.CLONE_NEWUSER, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWNET, 0, 0)
	}
	if errno == 0 { // not earlier: joining a user namespace takes it back
		_, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0, 0)
	}
	if errno == 0 {
		if above, _, _ = syscall.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); above != parent {
			errno = unix.ESRCH
		}
	}
	if errno == 0 {
		self, _, _ = syscall.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
		_, _, errno = syscall.RawSyscall(unix.SYS_KILL, self, uintptr(syscall.SIGSTOP), 0)
	}
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
}

// What package syscall itself calls around a fork: signals wait, and the child has none of the parent's handlers.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()
