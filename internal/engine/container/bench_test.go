package container

import "testing"

// BenchmarkRun is docker run --rm of a program that ends at once, without images, networks and HTTP.
func BenchmarkRun(b *testing.B) {
	bd := newBed(b)
	for b.Loop() {
		id := bd.create(Config{}, "exit", "0")
		bd.start(id)
		bd.wait(id, "not-running")
		if err := bd.m.Remove(b.Context(), id, false, true, false); err != nil {
			b.Fatal(err)
		}
	}
}
