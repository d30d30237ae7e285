package container

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// TestReadOnlyBinds: a read-only bind covers the mounts inside it, unless it is asked not to.
func TestReadOnlyBinds(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(inner, unix.MNT_DETACH) })
	write := func(m Mount) string {
		t.Helper()
		m.Type, m.Source, m.Target, m.ReadOnly = MountBind, dir, "/b", true
		return b.runOut(Config{Host: HostConfig{Mounts: []Mount{m}}}, "write", "/b/inner/x", "y")
	}
	for _, m := range []Mount{{}, {ReadOnlyForceRecursive: true, Propagation: "rprivate"}} {
		if out := write(m); !strings.Contains(out, "read-only") {
			t.Errorf("%+v: a mount inside could be written to: %q", m, out)
		}
	}
	if out := write(Mount{ReadOnlyNonRecursive: true}); out != "" {
		t.Errorf("a mount inside should stay writable: %q", out)
	}
	for _, m := range []Mount{
		{ReadOnlyNonRecursive: true}, {ReadOnlyForceRecursive: true, Propagation: "rprivate"},
		{ReadOnly: true, ReadOnlyNonRecursive: true, ReadOnlyForceRecursive: true}, {ReadOnly: true, ReadOnlyForceRecursive: true},
	} {
		m.Type, m.Source, m.Target = MountBind, dir, "/b"
		if _, _, err := b.m.Create(t.Context(), Config{Image: "prog", Host: HostConfig{Mounts: []Mount{m}}}, ""); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "conflict") {
			t.Errorf("%+v: %v", m, err)
		}
	}
}

// TestBindsOfOwnFolders: a container that sees where others are mounted lets go of them when they go.
func TestBindsOfOwnFolders(t *testing.T) {
	b := newBed(t)
	for _, source := range []string{b.dir, filepath.Join(b.dir, "run"), filepath.Join(b.dir, "containers"), "/"} {
		bind := func(propagation string) (Container, error) {
			id, _, err := b.m.Create(t.Context(), Config{Image: "prog", Cmd: []string{"echo", "runs"}, Host: HostConfig{
				Mounts: []Mount{{Type: MountBind, Source: source, Target: "/b", Propagation: propagation}}}}, "")
			if err != nil {
				return Container{}, err
			}
			return b.m.Get(id)
		}
		c, err := bind("")
		if err != nil || c.Mounts[0].Propagation != "rslave" {
			t.Fatalf("%s: %+v %v", source, c.Mounts, err)
		}
		// Also where the host's mounts are private, and nothing could be passed on.
		b.start(c.ID)
		b.wait(c.ID, "not-running")
		if out := b.output(c.ID); out != "runs\n" {
			t.Errorf("%s: %q", source, out)
		}
		if c, err := bind("rshared"); err != nil || c.Mounts[0].Propagation != "rshared" {
			t.Errorf("%s: %+v %v", source, c.Mounts, err)
		}
		for _, p := range []string{"private", "rprivate", "slave", "shared"} {
			if _, err := bind(p); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "within the daemon root") {
				t.Errorf("%s, %s: %v", source, p, err)
			}
		}
	}
	c, err := b.m.Get(b.create(Config{Host: HostConfig{Mounts: []Mount{{Type: MountBind, Source: t.TempDir(), Target: "/b"}}}}))
	if err != nil || c.Mounts[0].Propagation != "rprivate" {
		t.Errorf("another folder: %+v %v", c.Mounts, err)
	}
}

// TestModeOfVolumes: inspect shows for a volume what Docker shows.
func TestModeOfVolumes(t *testing.T) {
	b := newBed(t)
	if _, err := b.m.Volumes.CreateFor(t.Context(), volume.Volume{Name: "vol"}, ""); err != nil {
		t.Fatal(err)
	}
	c, err := b.m.Get(b.create(Config{Host: HostConfig{Mounts: []Mount{{Type: MountVolume, Source: "vol", Target: "/v"}, {Type: MountVolume, Target: "/w", Mode: "nocopy"}}}}))
	if err != nil || len(c.Mounts) != 2 || c.Mounts[0].Mode != "z" || c.Mounts[1].Mode != "nocopy" {
		t.Errorf("%+v %v", c.Mounts, err)
	}
}
