package stackdump

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSignalWritesStacks: the log names a file with the stacks of all goroutines.
func TestSignalWritesStacks(t *testing.T) {
	dir := t.TempDir()
	logged, to := io.Pipe()
	OnSignal(dir, "test", slog.New(slog.NewTextHandler(to, nil)))
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 4096)
	n, err := logged.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "goroutine-stacks-*-test.log"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	if want := "goroutine stacks written to " + files[0]; !strings.Contains(string(line[:n]), want) {
		t.Errorf("log %q, want %q", line[:n], want)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte("TestSignalWritesStacks")) || bytes.Count(text, []byte("goroutine ")) < 2 {
		t.Errorf("not the stacks of all goroutines:\n%s", text)
	}
}

// TestOldFilesGo: a folder does not fill up, and what is not this program's stays.
func TestOldFilesGo(t *testing.T) {
	dir := t.TempDir()
	for _, other := range []string{"goroutine-stacks-2020-01-01T000000.000000Z-other.log", "goroutine-stacks-mine-test.log", "x.log"} {
		if err := os.WriteFile(filepath.Join(dir, other), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	var newest string
	for i := range kept + 5 {
		path, err := write(dir, "test", began.Add(time.Duration(i)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		newest = path
	}
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != kept+3 {
		t.Errorf("%d files: %v", len(all), all)
	}
	if _, err := os.Stat(newest); err != nil {
		t.Error(err)
	}
}
