package thread

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNeverTheMainThread: however many run at once, the process' main thread keeps its namespaces, and no thread that
// was used comes back.
func TestNeverTheMainThread(t *testing.T) {
	used := map[int]bool{}
	var mu sync.Mutex
	for range 50 {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				runtime.Gosched()
				_ = Throwaway(func() error {
					mu.Lock()
					defer mu.Unlock()
					used[unix.Gettid()] = true
					return nil
				})
			})
		}
		wg.Wait()
	}
	if used[unix.Getpid()] {
		t.Error("the main thread was thrown away")
	}
	if len(used) == 0 {
		t.Error("nothing ran")
	}
}
