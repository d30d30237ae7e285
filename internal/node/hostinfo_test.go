package node

import "testing"

// TestInfoSaysHowImagesAreKept: clients look for it first of all, as Docker says nothing else there.
func TestInfoSaysHowImagesAreKept(t *testing.T) {
	h := newHostInfo(Config{DataRoot: t.TempDir()}, "id")
	if got := h.base.DriverStatus[0]; got != [2]string{"driver-type", "io.containerd.snapshotter.v1"} {
		t.Errorf("%v", got)
	}
}
