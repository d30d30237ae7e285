package image

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// BenchmarkLoad loads the archive that SAMPAN_BENCH_ARCHIVE names.
func BenchmarkLoad(b *testing.B) {
	path := os.Getenv("SAMPAN_BENCH_ARCHIVE")
	if path == "" {
		b.Skip("SAMPAN_BENCH_ARCHIVE names no archive")
	}
	for range b.N {
		b.StopTimer()
		s := open(b)
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		syscall.Sync()
		b.StartTimer()
		var before, after syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
		if _, err := s.Load(b.Context(), f, nil); err != nil {
			b.Fatal(err)
		}
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
		cpu := func(r syscall.Rusage) time.Duration { return time.Duration(r.Utime.Nano() + r.Stime.Nano()) }
		b.ReportMetric(float64((cpu(after) - cpu(before)).Milliseconds()), "cpu-ms")
		b.StopTimer()
		_ = f.Close()
		b.StartTimer()
	}
}
