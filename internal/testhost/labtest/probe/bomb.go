package main

import (
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// bomb is a fork bomb: it and all that come of it fork without end, each time again when that is refused. After most
// forks all wait, so that a limit that does not hold costs the machine no more than that.
func bomb(most string) error {
	n, err := strconv.ParseUint(most, 10, 32)
	if err != nil {
		return err
	}
	page, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	fmt.Println("bombing")
	runtime.LockOSThread()
	forkForEver((*atomic.Uint32)(unsafe.Pointer(&page[0])), uint32(n))
	return nil
}

// forkForEver does not return. forks is shared by all processes. A child has this one thread of the Go runtime: it may do
// nothing but system calls, not even grow its stack.
//
//go:nosplit
//go:norace
func forkForEver(forks *atomic.Uint32, most uint32) {
	pause := syscall.Timespec{Nsec: 50_000_000}
	for {
		if forks.Load() < most {
			// The child goes on in this very loop.
			if _, _, refused := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0); refused == 0 {
				forks.Add(1)
				continue
			}
		}
		_, _, _ = syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
	}
}
