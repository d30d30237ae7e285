package volume

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts, and files of other owners")
	}
}

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	again, err := Open(s.root)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func create(t *testing.T, s *Store, v Volume) Volume {
	t.Helper()
	got, err := s.Create(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func wantKind(t *testing.T, err error, kind fault.Kind, words string) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("error %v (%v), want %v with %q", err, fault.KindOf(err), kind, words)
	}
}

func TestVolumeOutlivesTheDaemon(t *testing.T) {
	s := open(t)
	v := create(t, s, Volume{Name: "data", Labels: map[string]string{"a": "b"}})
	if v.Driver != "local" || v.Mountpoint != filepath.Join(s.root, "data", "_data") || v.Created.IsZero() {
		t.Errorf("volume %+v", v)
	}
	path, err := s.Acquire(t.Context(), "data", "c1")
	if err != nil || path != v.Mountpoint {
		t.Fatalf("%s, %v", path, err)
	}
	if err := os.WriteFile(filepath.Join(path, "f"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := reopen(t, s)
	got, err := again.Get("data")
	if err != nil || got.Labels["a"] != "b" || !got.Created.Equal(v.Created) {
		t.Errorf("%+v, %v", got, err)
	}
	if b, err := os.ReadFile(filepath.Join(got.Mountpoint, "f")); err != nil || string(b) != "kept" {
		t.Errorf("%q, %v", b, err)
	}
	if n, err := again.Size("data"); err != nil || n < 4 {
		t.Errorf("size %d, %v", n, err)
	}
}

func TestCreateIsIdempotent(t *testing.T) {
	s := open(t)
	a := create(t, s, Volume{Name: "same"})
	b := create(t, s, Volume{Name: "same", Labels: map[string]string{"other": "x"}})
	if !a.Created.Equal(b.Created) || len(b.Labels) != 0 {
		t.Errorf("%+v is not %+v", b, a)
	}
	_, err := s.Create(t.Context(), Volume{Name: "same", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}})
	wantKind(t, err, fault.Conflict, "a volume of this name with other driver options exists")
	if l := s.List(); len(l) != 1 {
		t.Errorf("%d volumes", len(l))
	}
}

func TestBadVolumes(t *testing.T) {
	s := open(t)
	for _, c := range []struct {
		v     Volume
		kind  fault.Kind
		words string
	}{
		{Volume{Name: "a"}, fault.InvalidArgument, "volume name is too short, names should be at least two alphanumeric characters"},
		{Volume{Name: "../x"}, fault.InvalidArgument, `"../x" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`},
		{Volume{Name: ".x"}, fault.InvalidArgument, "invalid characters"},
		{Volume{Name: "x y"}, fault.InvalidArgument, "invalid characters"},
		{Volume{Name: strings.Repeat("x", 300)}, fault.InvalidArgument, "too long"},
		{Volume{Name: "xx", Driver: "nope"}, fault.NotFound, `error looking up volume plugin nope: plugin "nope" not found`},
		{Volume{Name: "xx", Options: map[string]string{"foo": "1"}}, fault.InvalidArgument, `invalid option: "foo"`},
		{Volume{Name: "xx", Options: map[string]string{"type": "tmpfs"}}, fault.InvalidArgument, `missing required option: "device"`},
		{Volume{Name: "xx", Options: map[string]string{"device": "/x"}}, fault.InvalidArgument, `missing required option: "type"`},
	} {
		_, err := s.Create(t.Context(), c.v)
		wantKind(t, err, c.kind, c.words)
	}
	_, err := s.Get("none")
	wantKind(t, err, fault.NotFound, "get none: no such volume")
	_, err = s.Acquire(t.Context(), "none", "c")
	wantKind(t, err, fault.NotFound, "get none: no such volume")
	wantKind(t, s.Remove(t.Context(), "none", false), fault.NotFound, "get none: no such volume")
	if err := s.Remove(t.Context(), "none", true); err != nil {
		t.Error(err)
	}
	if err := s.Release(t.Context(), "none", "c"); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(s.root); len(entries) != 0 {
		t.Errorf("left on disk: %v", entries)
	}
}

func TestAnonymous(t *testing.T) {
	s := open(t)
	v := create(t, s, Volume{})
	if len(v.Name) != 64 || !v.Anonymous {
		t.Errorf("%+v", v)
	}
	if _, ok := v.Labels[LabelAnonymous]; !ok {
		t.Errorf("labels %v", v.Labels)
	}
	if got, err := reopen(t, s).Get(v.Name); err != nil || !got.Anonymous {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestInUse(t *testing.T) {
	s := open(t)
	create(t, s, Volume{Name: "busy"})
	for _, user := range []string{"c2", "c1", "c1"} {
		if _, err := s.Acquire(t.Context(), "busy", user); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Reserve(t.Context(), "busy", "c3"); err != nil {
		t.Fatal(err)
	}
	if got := s.Users("busy"); !slices.Equal(got, []string{"c1", "c2", "c3"}) {
		t.Errorf("users %v", got)
	}
	wantKind(t, s.Remove(t.Context(), "busy", true), fault.Conflict, "remove busy: volume is in use - [c1, c2, c3]")
	for _, user := range []string{"c1", "c2", "c2"} {
		if err := s.Release(t.Context(), "busy", user); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Unmount(t.Context(), "busy", "c3"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.Remove(t.Context(), "busy", false), fault.Conflict, "volume is in use - [c3]")
	if err := s.Release(t.Context(), "busy", "c3"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "busy", false); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(s.root); len(entries) != 0 {
		t.Errorf("left on disk: %v", entries)
	}
	create(t, s, Volume{Name: "busy"}) // the name is free
}

func mounted(t *testing.T, dir string) bool {
	t.Helper()
	m, err := mountinfo.Mounted(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestAFileSystemTheKernelDoesNotKnow: as NFS is on a host without its client.
func TestAFileSystemTheKernelDoesNotKnow(t *testing.T) {
	requireRoot(t)
	s := open(t)
	if _, err := s.Create(t.Context(), Volume{Name: "share", Options: map[string]string{"type": "nosuchfs", "device": ":/export", "o": "addr=192.0.2.1,password=secret"}}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Acquire(t.Context(), "share", "c1")
	if err == nil || !strings.Contains(err.Error(), `does not know file systems of the type "nosuchfs": load its module`) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	if err := s.Remove(t.Context(), "share", false); err != nil {
		t.Errorf("it cannot be removed: %v", err)
	}
}

func TestOptionsAreMountedWhileInUse(t *testing.T) {
	requireRoot(t)
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "theirs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]map[string]string{
		"tmpfs": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=7"},
		"bind":  {"type": "none", "device": source, "o": "bind"},
		"short": {"device": source, "o": "bind"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			v := create(t, s, Volume{Name: name, Options: o})
			if mounted(t, v.Mountpoint) {
				t.Error("mounted without a user")
			}
			if err := s.Reserve(t.Context(), name, "c0"); err != nil || mounted(t, v.Mountpoint) {
				t.Errorf("mounted for a container that does not run: %v", err)
			}
			for _, c := range []string{"c1", "c2"} {
				if _, err := s.Acquire(t.Context(), name, c); err != nil {
					t.Fatal(err)
				}
			}
			if !mounted(t, v.Mountpoint) {
				t.Fatal("not mounted")
			}
			_ = s.Release(t.Context(), name, "c1")
			if !mounted(t, v.Mountpoint) {
				t.Error("unmounted under its last user")
			}
			// A daemon that died left the mount: the next one takes it over.
			again := reopen(t, s)
			if _, err := again.Acquire(t.Context(), name, "c2"); err != nil {
				t.Fatal(err)
			}
			if err := again.Unmount(t.Context(), name, "c2"); err != nil || mounted(t, v.Mountpoint) {
				t.Errorf("still mounted after the last container stopped: %v", err)
			}
			if err := again.Release(t.Context(), name, "c2"); err != nil {
				t.Fatal(err)
			}
			if n, err := again.Size(name); err != nil || n != -1 {
				t.Errorf("size %d, %v", n, err)
			}
			if _, err := again.Acquire(t.Context(), name, "c3"); err != nil {
				t.Fatal(err)
			}
			// One that died and whose containers are gone: removal takes the mount away and leaves what it showed.
			third := reopen(t, again)
			if err := third.Remove(t.Context(), name, false); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(source, "theirs")); err != nil {
				t.Errorf("removal went through the mount: %v", err)
			}
		})
	}
	s := open(t)
	create(t, s, Volume{Name: "broken", Options: map[string]string{"type": "none", "device": "/does/not/exist", "o": "bind"}})
	_, err := s.Acquire(t.Context(), "broken", "c")
	if err == nil || !strings.Contains(err.Error(), "failed to mount local volume") {
		t.Errorf("%v", err)
	}
	if u := s.Users("broken"); len(u) != 0 {
		t.Errorf("a failed mount counts as use: %v", u)
	}
}
func TestHalfMadeVolumesGo(t *testing.T) {
	s := open(t)
	create(t, s, Volume{Name: "there"})
	disarm := failpoint.Enable("engine/volume.create.before-rename", failpoint.Fail)
	_, err := s.Create(t.Context(), Volume{Name: "half"})
	disarm()
	if err == nil {
		t.Error("went through")
	}
	if err := os.MkdirAll(filepath.Join(s.root, ".new-x", "_data"), 0o700); err != nil {
		t.Fatal(err)
	}
	disarm = failpoint.Enable("engine/volume.remove.renamed", failpoint.Fail)
	err = s.Remove(t.Context(), "there", false)
	disarm()
	if err == nil {
		t.Error("went through")
	}
	again := reopen(t, s)
	if l := again.List(); len(l) != 0 {
		t.Errorf("volumes %v", l)
	}
	if entries, _ := os.ReadDir(s.root); len(entries) != 0 {
		t.Errorf("left on disk: %v", entries)
	}
}

func TestCopyUp(t *testing.T) {
	requireRoot(t)
	from := filepath.Join(t.TempDir(), "from")
	at := func(p string) string { return filepath.Join(from, p) }
	for _, err := range []error{
		os.MkdirAll(at("dir"), 0o755),
		os.Chown(from, 11, 22),
		unix.Chmod(from, 0o1770),
		os.WriteFile(at("dir/f"), []byte("f"), 0o644),
		os.Chown(at("dir/f"), 33, 44),
		unix.Chmod(at("dir/f"), 0o2751),
		os.Link(at("dir/f"), at("g")),
		os.Symlink("dir/f", at("s")),
		unix.Setxattr(at("dir/f"), "user.note", []byte("n"), 0),
		unix.Mkfifo(at("fifo"), 0o600),
		os.WriteFile(at("hole"), nil, 0o600),
		os.Truncate(at("hole"), 64<<20),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := open(t)
	v := create(t, s, Volume{Name: "cp"})
	// Several containers at once: every one finds the whole.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := CopyUp(t.Context(), from, v.Mountpoint); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(v.Mountpoint, "hole")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	st := func(p string) *syscall.Stat_t {
		t.Helper()
		i, err := os.Lstat(filepath.Join(v.Mountpoint, p))
		if err != nil {
			t.Fatal(err)
		}
		return i.Sys().(*syscall.Stat_t)
	}
	if x := st(""); x.Uid != 11 || x.Gid != 22 || x.Mode&0o7777 != 0o1770 {
		t.Errorf("folder: %d:%d %o", x.Uid, x.Gid, x.Mode&0o7777)
	}
	f := st("dir/f")
	if f.Uid != 33 || f.Gid != 44 || f.Mode&0o7777 != 0o2751 || f.Ino != st("g").Ino {
		t.Errorf("file: %+v", f)
	}
	var b [8]byte
	if n, err := unix.Getxattr(filepath.Join(v.Mountpoint, "dir/f"), "user.note", b[:]); err != nil || string(b[:n]) != "n" {
		t.Errorf("attribute %q, %v", b[:max(n, 0)], err)
	}
	if l, err := os.Readlink(filepath.Join(v.Mountpoint, "s")); err != nil || l != "dir/f" {
		t.Errorf("link %q, %v", l, err)
	}
	if h := st("hole"); h.Size != 64<<20 || h.Blocks > 100 {
		t.Errorf("hole: %d bytes in %d blocks", h.Size, h.Blocks)
	}
	// What is in use stays as it is.
	if err := os.Remove(filepath.Join(v.Mountpoint, "s")); err != nil {
		t.Fatal(err)
	}
	if err := CopyUp(t.Context(), from, v.Mountpoint); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(v.Mountpoint, "s")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a volume that holds something was filled again")
	}
	// Nothing at that place of the image, or a file: nothing to copy.
	w := create(t, s, Volume{Name: "empty"})
	for _, p := range []string{"nowhere", "g"} {
		if err := CopyUp(t.Context(), at(p), w.Mountpoint); err != nil {
			t.Error(err)
		}
	}
	// A failure leaves it empty; so does a crash, once the daemon starts again.
	for _, p := range []string{"engine/volume.copyup.marked", "engine/volume.copyup.copied"} {
		disarm := failpoint.Enable(p, failpoint.Fail)
		err := CopyUp(t.Context(), from, w.Mountpoint)
		disarm()
		if err == nil {
			t.Errorf("%s: went through", p)
		}
		if entries, _ := os.ReadDir(w.Mountpoint); len(entries) != 0 {
			t.Errorf("%s: left %v", p, entries)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(s.root, "empty", copyMark), nil, 0o600), os.WriteFile(filepath.Join(w.Mountpoint, "half"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	reopen(t, s)
	if entries, _ := os.ReadDir(w.Mountpoint); len(entries) != 0 {
		t.Errorf("after a crash: %v", entries)
	}
}

func TestManyAtOnce(t *testing.T) {
	s := open(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				if _, err := s.Create(t.Context(), Volume{Name: "race"}); err != nil {
					t.Error(err)
				}
				if _, err := s.Acquire(t.Context(), "race", "c"); err != nil && !fault.Is(err, fault.NotFound) {
					t.Error(err)
				}
				_ = s.Release(t.Context(), "race", "c")
				if err := s.Remove(t.Context(), "race", true); err != nil && !fault.Is(err, fault.Conflict) {
					t.Error(err)
				}
				s.List()
				s.Users("race")
			}
		})
	}
	wg.Wait()
}

// TestTwoRemoveOne: the second is told that there is no such volume, and who creates one while it is removed has a new one.
func TestTwoRemoveOne(t *testing.T) {
	s := open(t)
	for range 30 {
		if _, err := s.Create(t.Context(), Volume{Name: "data"}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for n := range errs {
			wg.Go(func() { errs[n] = s.Remove(t.Context(), "data", false) })
		}
		wg.Wait()
		removed := 0
		for _, err := range errs {
			switch {
			case err == nil:
				removed++
			case !fault.Is(err, fault.NotFound):
				t.Error(err)
			}
		}
		if removed != 1 {
			t.Fatalf("%d say that they have removed it", removed)
		}
	}
	for range 30 {
		if _, err := s.Create(t.Context(), Volume{Name: "data"}); err != nil {
			t.Fatal(err)
		}
		gone := make(chan error, 1)
		go func() { gone <- s.Remove(t.Context(), "data", true) }()
		if _, err := s.CreateFor(t.Context(), Volume{Name: "data"}, "c"); err != nil {
			t.Fatal(err)
		}
		if err := <-gone; err != nil && !fault.Is(err, fault.Conflict) {
			t.Fatal(err)
		}
		v, err := s.Get("data")
		if err == nil {
			_, err = os.Stat(v.Mountpoint)
		}
		if err != nil {
			t.Fatalf("the volume that was made is gone: %v", err)
		}
		if err := s.Release(t.Context(), "data", "c"); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"ok", "", "a", "../x", "x/y", ".x", "x\x00y", "ä"} {
		f.Add(s)
	}
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, name string) {
		if CheckName(name) == nil && filepath.Dir(filepath.Join(root, name)) != root {
			t.Errorf("%q leads out of the folder", name)
		}
	})
}
