package container

import (
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// TestLinks: a link outlives a rename of its target, gives it a second name, and can be removed by itself.
func TestLinks(t *testing.T) {
	b := newBed(t)
	db := b.create(Config{Name: "db"}, "sleep")
	web := b.create(Config{Name: "web", Host: HostConfig{Links: []string{"db:/store", "db"}}}, "sleep")
	if err := b.m.Rename(t.Context(), db, "postgres"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"web/store", "/web/db"} {
		if c, err := b.m.Get(name); err != nil || c.ID != db {
			t.Errorf("%s is %v, %v", name, c.Config.Name, err)
		}
	}
	if err := b.m.Remove(t.Context(), "web/store", false, false, true); err != nil {
		t.Fatal(err)
	}
	if _, err := b.m.Get("web/store"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a removed link is found: %v", err)
	}
	if c, err := b.m.Get("web/db"); err != nil || c.ID != db {
		t.Errorf("the other link is gone: %v", err)
	}
	if _, err := b.m.Get(web); err != nil {
		t.Error(err)
	}
	if err := b.m.Remove(t.Context(), "web", false, false, true); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("a container's own name was removed as a link: %v", err)
	}

	_, _, err := b.m.Create(t.Context(), Config{Image: "prog", Cmd: []string{"sleep"}, Host: HostConfig{Links: []string{"nobody:x"}}}, "")
	if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "could not get container for nobody") {
		t.Errorf("a link to nobody: %v", err)
	}
}

// TestHiddenPathsAreShown: inspect tells which paths are masked and read-only, also where nobody chose them.
func TestHiddenPathsAreShown(t *testing.T) {
	b := newBed(t)
	paths := func(h HostConfig) (masked, readonly []string) {
		t.Helper()
		c, err := b.m.Get(b.create(Config{Host: h}, "sleep"))
		if err != nil {
			t.Fatal(err)
		}
		return c.Config.Host.MaskedPaths, c.Config.Host.ReadonlyPaths
	}
	if m, r := paths(HostConfig{}); !strings.Contains(strings.Join(m, " "), "/proc/kcore") || !strings.Contains(strings.Join(r, " "), "/proc/sys") {
		t.Errorf("by default: masked %q, read-only %q", m, r)
	}
	if m, r := paths(HostConfig{MaskedPaths: []string{}, ReadonlyPaths: []string{"/proc/bus"}}); m == nil || len(m) != 0 || len(r) != 1 {
		t.Errorf("chosen: masked %q, read-only %q", m, r)
	}
	if m, r := paths(HostConfig{Privileged: true}); m != nil || r != nil {
		t.Errorf("privileged: masked %q, read-only %q", m, r)
	}
}
