// Package thread runs code that changes what belongs to an OS thread: its namespaces.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Throwaway runs f on an OS thread that ends with it, so that whatever f does to the thread's namespaces meets nobody
// else. Goroutines that f starts run elsewhere.
//
// It is never the process' main thread: that one cannot end, and /proc/self shows its namespaces as the whole process'.
func Throwaway(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Held while another thread does the work, and given back untouched.
			defer runtime.UnlockOSThread()
			done <- Throwaway(f)
			return
		}
		done <- f() // never unlocked: the thread ends with the goroutine
	}()
	return <-done
}
