package keeper_test

import (
	"testing"
	"time"
)

// BenchmarkRun is what the keeper adds to a container's life: create, start, exit, delete.
func BenchmarkRun(b *testing.B) {
	h := newHost(b)
	var steps [4]time.Duration
	for b.Loop() {
		s := h.spec("exit", "0")
		at := time.Now()
		step := func(i int) {
			steps[i] += time.Since(at)
			at = time.Now()
		}
		h.create(s)
		step(0)
		h.start(s.ID)
		step(1)
		h.exit(s.ID, "")
		step(2)
		if err := h.c.Delete(h.ctx(), s.ID); err != nil {
			b.Fatal(err)
		}
		step(3)
	}
	for i, name := range []string{"create", "start", "exit", "delete"} {
		b.ReportMetric(float64(steps[i].Milliseconds())/float64(b.N), name+"-ms/op")
	}
}
