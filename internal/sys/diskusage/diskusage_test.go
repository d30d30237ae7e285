package diskusage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestOf(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sub", "file")
	if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o755), os.WriteFile(file, make([]byte, 100_000), 0o644)); err != nil {
		t.Fatal(err)
	}
	once, err := Of(t.Context(), dir)
	if err != nil || once < 100_000 {
		t.Fatalf("%d bytes, %v; want what a file of 100000 takes", once, err)
	}
	if err := os.Link(file, file+"-again"); err != nil {
		t.Fatal(err)
	}
	if twice, err := Of(t.Context(), dir); err != nil || twice > once+50_000 {
		t.Errorf("%d bytes with a second name of the file, %d before: %v", twice, once, err)
	}
	if _, err := Of(t.Context(), filepath.Join(dir, "nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a folder that is not there: %v", err)
	}
}

// TestWhileSomebodyWorks: files and folders that come and go are no error.
func TestWhileSomebodyWorks(t *testing.T) {
	dir := t.TempDir()
	keep := filepath.Join(dir, "keep")
	if err := os.WriteFile(keep, make([]byte, 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			own := filepath.Join(dir, fmt.Sprint(n))
			for {
				select {
				case <-stop:
					return
				default:
				}
				_ = os.MkdirAll(filepath.Join(own, "a", "b"), 0o755)
				_ = os.WriteFile(filepath.Join(own, "a", "file"), nil, 0o644)
				_ = os.RemoveAll(own)
			}
		})
	}
	for range 500 {
		if n, err := Of(t.Context(), dir); err != nil || n < 100_000 {
			t.Errorf("%d bytes, %v", n, err)
			break
		}
	}
	close(stop)
	wg.Wait()
}
