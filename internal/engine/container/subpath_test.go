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

// TestSubpaths: a part of a volume is shown to a container, and nothing beside it.
func TestSubpaths(t *testing.T) {
	b := newBed(t)
	v, err := b.m.Volumes.CreateFor(t.Context(), volume.Volume{Name: "parts"}, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"good": "dir", "root": "/", "up": "../.."} {
		if err := os.Symlink(target, filepath.Join(v.Mountpoint, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"dir", "empty"} {
		if err := os.Mkdir(filepath.Join(v.Mountpoint, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "dir/file"), []byte("part"), 0o644); err != nil {
		t.Fatal(err)
	}
	part := func(sub, target string) Config {
		return Config{Host: HostConfig{Mounts: []Mount{{Type: MountVolume, Source: "parts", Target: target, Subpath: sub}}}}
	}
	if out := b.runOut(part("good", "/v"), "cat", "/v/file"); out != "part" {
		t.Errorf("through a link inside: %q", out)
	}
	if out := b.runOut(part("dir/file", "/etc/one"), "cat", "/etc/one"); out != "part" {
		t.Errorf("a file: %q", out)
	}
	if out := b.runOut(part("empty", "/data"), "cat", "/data/deep/file"); out != "from the image" {
		t.Errorf("an empty folder is not filled from the image: %q", out)
	}
	for _, c := range []struct{ sub, says string }{
		{"root", "escapes the base directory"}, {"up", "escapes the base directory"}, {"root/etc", "escapes the base directory"},
		{"nosuch", "cannot access path nosuch"},
	} {
		err := b.m.Start(t.Context(), b.create(part(c.sub, "/v"), "wait"))
		if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.sub, err)
		}
	}
	for _, sub := range []string{"../x", "/x", "a/../../x"} {
		cfg := part(sub, "/v")
		cfg.Image, cfg.Cmd = "prog", []string{"wait"}
		if _, _, err := b.m.Create(t.Context(), cfg, ""); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "relative path within the volume") {
			t.Errorf("%s: %v", sub, err)
		}
	}
}

// TestMountedImagesAreInUse: an image that is mounted into a container is one it uses.
func TestMountedImagesAreInUse(t *testing.T) {
	b := newBed(t)
	c, err := b.m.Get(b.create(Config{Host: HostConfig{Mounts: []Mount{{Type: MountImage, Source: "prog", Target: "/image"}}}}, "wait"))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.MountedImages) != 1 || c.MountedImages[0] != b.images.images["prog"].ID {
		t.Errorf("mounted images: %q", c.MountedImages)
	}
}

// TestAFileIsNoFolder: a path that ends in a slash asks for a folder, and a file is refused in so many words.
func TestAFileIsNoFolder(t *testing.T) {
	b := newBed(t)
	id := b.create(Config{}, "wait")
	_, _, errFrom := b.m.CopyFrom(t.Context(), id, "/etc/passwd/")
	_, errStat := b.m.StatPath(t.Context(), id, "/etc/passwd/")
	errTo := b.m.CopyTo(t.Context(), id, "/etc/passwd/", archiveOf(t), CopyOptions{})
	for what, err := range map[string]error{"copy from": errFrom, "stat": errStat, "copy to": errTo} {
		if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "not a directory") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := b.m.StatPath(t.Context(), id, "/etc/passwd/x"); !fault.Is(err, fault.NotFound) {
		t.Errorf("below a file: %v", err)
	}
}

// TestUpdateOfThrottles: limits of devices can be changed while the container runs, and last.
func TestUpdateOfThrottles(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{}, "wait")
	device := blockDevice(t)
	if _, err := b.m.Update(t.Context(), id, Resources{BlkioReadBps: []ThrottleDevice{{Path: device, Rate: 1 << 20}}}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.m.Update(t.Context(), id, Resources{BlkioWriteIOps: []ThrottleDevice{{Path: device, Rate: 100}}}, nil); err != nil {
		t.Fatal(err)
	}
	c, err := b.m.Get(id)
	if r := c.Config.Host.Resources; err != nil || len(r.BlkioReadBps) != 1 || r.BlkioReadBps[0].Rate != 1<<20 || len(r.BlkioWriteIOps) != 1 {
		t.Errorf("%+v %v", r, err)
	}
}

// blockDevice is a block device of this machine.
func blockDevice(t *testing.T) string {
	t.Helper()
	all, _ := filepath.Glob("/dev/[svn]*")
	for _, p := range all {
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			return p
		}
	}
	t.Skip("this machine has no block device")
	return ""
}

// TestWhatIsMissingForAMount: neither an image to mount nor a volume's driver that is missing is told with the code that
// clients take for the container's own image missing, which they then pull.
func TestWhatIsMissingForAMount(t *testing.T) {
	b := newBed(t)
	for _, c := range []struct {
		mount Mount
		says  string
	}{
		{Mount{Type: MountImage, Source: "nosuch", Target: "/image"}, "No such image: nosuch"},
		{Mount{Type: MountVolume, Source: "vol", Target: "/vol", Driver: "nosuch"}, "error looking up volume plugin nosuch"},
	} {
		cfg := Config{Image: "prog", Host: HostConfig{Mounts: []Mount{c.mount}}}
		if _, _, err := b.m.Create(t.Context(), cfg, ""); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.mount.Type, err)
		}
	}
	if _, _, err := b.m.Create(t.Context(), Config{Image: "nosuch"}, ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("the container's own image: %v", err)
	}
}
