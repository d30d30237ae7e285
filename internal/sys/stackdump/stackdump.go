// Package stackdump writes the stacks of a program's goroutines into a file when it gets SIGUSR1: what a program that
// seems to hang is doing. It knows nothing of the program.
package stackdump

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	prefix = "goroutine-stacks-"
	ending = ".log"
	// layout of the time in a file's name, always in UTC: names are in the order of their times.
	layout = "2006-01-02T150405.000000Z"
	// kept is how many files of one program stay in a folder, the newest.
	kept = 10
	// most is the size in bytes above which stacks are cut off.
	most = 64 << 20
)

// OnSignal makes the program write its stacks into a file in dir on each SIGUSR1, and log the file's path. program is
// part of the names: several programs may share a folder. The signal is caught, so children do not ignore it. It never
// ends.
func OnSignal(dir, program string, log *slog.Logger) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	go func() {
		for range c {
			path, err := write(dir, program, time.Now())
			if err != nil {
				// Somebody wants to see them, and may be without a disk because of what they show.
				log.Error("goroutine stacks cannot be written to a file; they follow on standard error", "error", err)
				_, _ = os.Stderr.Write(stacks())
				continue
			}
			log.Info("goroutine stacks written to "+path, "path", path)
		}
	}()
}

// write writes the stacks of now and deletes the oldest files of this program when there are more than kept.
func write(dir, program string, now time.Time) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, prefix+now.UTC().Format(layout)+"-"+program+ending)
	// O_EXCL: who can write to the folder cannot choose what is overwritten.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	if _, err := f.Write(stacks()); err != nil {
		_ = f.Close()
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	return path, thin(dir, program)
}

// thin leaves the newest files of a program.
func thin(dir, program string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var ours []string
	for _, e := range entries {
		if at, ok := strings.CutPrefix(e.Name(), prefix); ok {
			at, ok = strings.CutSuffix(at, "-"+program+ending)
			if _, err := time.Parse(layout, at); ok && err == nil {
				ours = append(ours, e.Name())
			}
		}
	}
	slices.Sort(ours)
	for _, name := range ours[:max(0, len(ours)-kept)] {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

func stacks() []byte {
	for size := 1 << 20; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size || size >= most {
			return buf[:n]
		}
	}
}
