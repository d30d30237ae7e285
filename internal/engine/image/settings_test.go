package image

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

// TestLimitsOfPulls: they hold for what begins after they were set.
func TestLimitsOfPulls(t *testing.T) {
	r := registry(t)
	ref, id := pushed(t, r)
	s := open(t)
	if err := s.SetLimits(Limits{Downloads: 1, Attempts: 1}); err != nil {
		t.Fatal(err)
	}
	end := pullHeld(t, s, r, ref)
	blobs := 0
	for _, q := range r.Requests() {
		if q.Method == http.MethodGet && strings.Contains(q.Path, "/blobs/") {
			blobs++
		}
	}
	if blobs != 2 { // the config, and one of two layers
		t.Errorf("%d blobs were asked for, want 2", blobs)
	}
	_ = end()
	r.Set(testimage.Faults{Cut: 1, CutFrom: big, RefuseRange: true})
	if _, err := s.Pull(t.Context(), ref, "", Auth{}, nil); err == nil {
		t.Error("a pull with one attempt went on after its connection was cut")
	}
	if err := s.SetLimits(Limits{}); err != nil {
		t.Fatal(err)
	}
	r.Set(testimage.Faults{Cut: 1, CutFrom: big, RefuseRange: true})
	if img, err := s.Pull(t.Context(), ref, "", Auth{}, nil); err != nil || img.ID != id {
		t.Errorf("with Docker's limits: %s, %v", img.ID, err)
	}
	if err := s.SetLimits(Limits{Uploads: -1}); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "max-concurrent-uploads") {
		t.Errorf("a negative limit: %v", err)
	}
}

// TestRegistriesAreReplaced: a mirror that is named later is used from then on; what is wrong changes nothing.
func TestRegistriesAreReplaced(t *testing.T) {
	r := registry(t)
	s := open(t)
	img := load(t, s, plain(r.Host+"/library/mirrored:1"))[0]
	if err := s.Push(t.Context(), r.Host+"/library/mirrored:1", Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	other := openAt(t, Config{Root: tempRoot(t), Mirrors: []string{"http://127.0.0.1:1"}})
	if err := other.SetRegistries([]string{"http://" + r.Host}, nil); err != nil {
		t.Fatal(err)
	}
	if err := other.SetRegistries([]string{"x"}, nil); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("a mirror that is none: %v", err)
	}
	if got, err := other.Pull(t.Context(), "mirrored:1", "", Auth{}, nil); err != nil || got.ID != img.ID {
		t.Errorf("%s, %v", got.ID, err)
	}
}
