package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

func stat(t testing.TB, path string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t)
}

func xattr(t testing.TB, path, name string) string {
	t.Helper()
	b, err := getXattr(path, name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// layered has everything in its layers that a layer can have.
func layered() testimage.Spec {
	return testimage.Spec{
		Tags: []string{"layered:1"},
		Files: map[string]testimage.File{
			"/keep":       testimage.Text("keep"),
			"/gone":       testimage.Text("gone"),
			"/dir/a":      testimage.Text("a"),
			"/dir/b":      testimage.Text("b"),
			"/opaque/old": testimage.Text("old"),
			"/one":        {Data: []byte("linked"), UID: 5, GID: 6, Mode: 0o4755},
			"/two":        {Hardlink: "/one"},
			"/attr":       {Data: []byte("x"), Xattrs: map[string]string{"user.colour": "blue", "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
			"/sparse":     {Sparse: 64 << 20},
			"/sym":        {Symlink: "/keep"},
			"/tmp":        {Dir: true, Mode: 0o1777},
		},
		Layers: []map[string]testimage.File{{
			"/gone":       {Whiteout: true},
			"/dir/a":      {Whiteout: true},
			"/opaque":     {Opaque: true},
			"/opaque/new": testimage.Text("new"),
		}},
	}
}

func TestLayersKeepWhatTheyHold(t *testing.T) {
	s := open(t)
	img := load(t, s, layered())[0]
	r := rootfsOf(t, s, "c", img.ID)
	at := func(p string) string { return filepath.Join(r.Path, p) }
	for _, p := range []string{"gone", "dir/a", "opaque/old", ".wh.gone", "opaque/.wh..wh..opq"} {
		if _, err := os.Lstat(at(p)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", p, err)
		}
	}
	for p, want := range map[string]string{"keep": "keep", "dir/b": "b", "opaque/new": "new", "two": "linked", "sym": ""} {
		if p == "sym" {
			if l, err := os.Readlink(at(p)); err != nil || l != "/keep" {
				t.Errorf("symbolic link %q, %v", l, err)
			}
		} else if got := read(t, at(p)); got != want {
			t.Errorf("%s holds %q, want %q", p, got, want)
		}
	}
	one, two := stat(t, at("one")), stat(t, at("two"))
	if one.Ino != two.Ino || one.Nlink != 2 {
		t.Errorf("hard links: inodes %d and %d, %d names", one.Ino, two.Ino, one.Nlink)
	}
	if one.Uid != 5 || one.Gid != 6 || one.Mode&0o7777 != 0o4755 {
		t.Errorf("owner %d:%d mode %o", one.Uid, one.Gid, one.Mode&0o7777)
	}
	if m := stat(t, at("tmp")).Mode & 0o7777; m != 0o1777 {
		t.Errorf("/tmp has mode %o", m)
	}
	if got := xattr(t, at("attr"), "user.colour"); got != "blue" {
		t.Errorf("attribute %q", got)
	}
	if got := xattr(t, at("attr"), "security.capability"); len(got) != 20 {
		t.Errorf("capability of %d bytes", len(got))
	}
	if st := stat(t, at("sparse")); st.Size != 64<<20 || st.Blocks*512 > 1<<20 {
		t.Errorf("sparse file: %d bytes in %d blocks", st.Size, st.Blocks)
	}
	if m := stat(t, r.Path).Mode & 0o7777; m != 0o755 {
		t.Errorf("/ has mode %o", m)
	}
}

// disturb changes a root file system in every way.
func disturb(t testing.TB, root string) {
	t.Helper()
	at := func(p string) string { return filepath.Join(root, p) }
	write(t, at("new"), "new")
	write(t, at("keep"), "changed")
	for _, err := range []error{
		os.Remove(at("dir/b")),
		os.RemoveAll(at("opaque")),
		os.Mkdir(at("opaque"), 0o700),
		os.WriteFile(at("opaque/newer"), []byte("newer"), 0o600),
		os.Mkdir(at("folder"), 0o711),
		os.WriteFile(at("folder/x"), []byte("x"), 0o600),
		os.Link(at("folder/x"), at("folder/y")),
		os.Symlink("nowhere", at("folder/s")),
		unix.Mkfifo(at("folder/fifo"), 0o622),
		unix.Setxattr(at("folder/x"), "user.note", []byte("n"), 0),
		os.Chown(at("folder/x"), 12, 34),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestDiffIsDockers(t *testing.T) {
	s := open(t)
	img := load(t, s, layered())[0]
	r := rootfsOf(t, s, "c", img.ID)
	if got, err := s.RootfsDiff(t.Context(), "c"); err != nil || len(got) != 0 {
		t.Errorf("changes of a fresh container: %v, %v", got, err)
	}
	disturb(t, r.Path)
	got, err := s.RootfsDiff(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range got {
		lines = append(lines, string("CAD"[c.Kind])+" "+c.Path)
	}
	want := []string{"C /dir", "D /dir/b", "A /folder", "A /folder/fifo", "A /folder/s", "A /folder/x", "A /folder/y", "C /keep", "A /new",
		"C /opaque", "D /opaque/new", "A /opaque/newer"}
	if !slices.Equal(lines, want) {
		t.Errorf("changes\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func TestCommitKeepsWhatTheContainerHas(t *testing.T) {
	s := open(t)
	img := load(t, s, layered())[0]
	r := rootfsOf(t, s, "c", img.ID)
	disturb(t, r.Path)
	cfg := img
	cfg.Config.Cmd = []string{"/run"}
	cfg.Config.Env = []string{"A=1"}
	made, err := s.Commit(t.Context(), CommitRequest{ContainerID: "c", ParentID: img.ID, Ref: "made:1", Author: "me", Comment: "why", Changes: []string{"ENV B=2"}, Config: cfg})
	if err != nil {
		t.Fatal(err)
	}
	if made.Author != "me" || made.Comment != "why" || !slices.Equal(made.Config.Env, []string{"A=1", "B=2"}) || !slices.Equal(made.Config.Cmd, []string{"/run"}) ||
		len(made.Layers) != 3 || len(made.History) != 3 || !slices.Equal(made.RepoTags, []string{"made:1"}) {
		t.Errorf("image %+v", made)
	}
	if made.ID == img.ID {
		t.Fatal("the commit has its parent's ID")
	}
	m := rootfsOf(t, s, "d", made.ID)
	at := func(p string) string { return filepath.Join(m.Path, p) }
	for p, want := range map[string]string{"new": "new", "keep": "changed", "opaque/newer": "newer", "folder/y": "x", "one": "linked"} {
		if got := read(t, at(p)); got != want {
			t.Errorf("%s holds %q, want %q", p, got, want)
		}
	}
	for _, p := range []string{"dir/b", "opaque/new", "gone"} {
		if _, err := os.Lstat(at(p)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", p, err)
		}
	}
	x := stat(t, at("folder/x"))
	if x.Uid != 12 || x.Gid != 34 || x.Ino != stat(t, at("folder/y")).Ino || xattr(t, at("folder/x"), "user.note") != "n" {
		t.Errorf("folder/x: %+v", x)
	}
	if stat(t, at("folder/fifo")).Mode&unix.S_IFMT != unix.S_IFIFO || stat(t, at("folder")).Mode&0o7777 != 0o711 {
		t.Error("kind or mode lost")
	}
	// Nothing changed: an image without a new layer.
	rootfsOf(t, s, "e", img.ID)
	same, err := s.Commit(t.Context(), CommitRequest{ContainerID: "e", ParentID: img.ID, Config: img})
	if err != nil || len(same.Layers) != 2 || len(same.RepoTags) != 0 {
		t.Errorf("commit of an unchanged container: %d layers, %v, %v", len(same.Layers), same.RepoTags, err)
	}
}

func TestExportIsTheWholeTree(t *testing.T) {
	s := open(t)
	img := load(t, s, layered())[0]
	if err := s.PrepareRootfs(t.Context(), "stopped", img.ID); err != nil {
		t.Fatal(err)
	}
	r := rootfsOf(t, s, "mounted", img.ID)
	disturb(t, r.Path)
	for name, want := range map[string][]string{
		"stopped": {".dockerenv", "attr", "dev/", "dev/console", "dev/pts/", "dev/shm/", "dir/", "dir/b",
			"etc/", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "keep", "one", "opaque/", "opaque/new", "proc/", "sparse", "sym", "sys/", "tmp/", "two"},
		"mounted": {".dockerenv", "attr", "dev/", "dev/console", "dev/pts/", "dev/shm/", "dir/",
			"etc/", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "folder/", "folder/fifo", "folder/s", "folder/x", "folder/y", "keep", "new", "one", "opaque/", "opaque/newer", "proc/", "sparse", "sym", "sys/", "tmp/", "two"},
	} {
		var b bytes.Buffer
		if err := s.ExportLayer(t.Context(), name, &b); err != nil {
			t.Fatal(err)
		}
		var names []string
		links := map[string]string{}
		for tr := tar.NewReader(&b); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, h.Name)
			if h.Typeflag == tar.TypeLink {
				links[h.Name] = h.Linkname
			}
			if h.Name == "attr" && h.PAXRecords["SCHILY.xattr.user.colour"] != "blue" {
				t.Errorf("%s: attributes %v", name, h.PAXRecords)
			}
		}
		if !slices.Equal(names, want) {
			t.Errorf("%s: %v, want %v", name, names, want)
		}
		if links["two"] != "one" {
			t.Errorf("%s: links %v", name, links)
		}
	}
	if m, _ := filepath.Glob(filepath.Join(s.cfg.ExecRoot, "look-*")); len(m) > 0 {
		t.Errorf("temporary mounts left: %v", m)
	}
}

func TestUsage(t *testing.T) {
	s := open(t)
	img := load(t, s, plain("u:1"))[0]
	r := rootfsOf(t, s, "c", img.ID)
	rw0, total0, err := s.RootfsUsage(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	if total0 != rw0+img.Size {
		t.Errorf("total %d, want %d + %d", total0, rw0, img.Size)
	}
	if err := os.WriteFile(filepath.Join(r.Path, "f"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	rw1, total1, err := s.RootfsUsage(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	if rw1-rw0 != 1<<20 || total1-total0 != 1<<20 {
		t.Errorf("a mebibyte more shows as %d and %d", rw1-rw0, total1-total0)
	}
}

func TestManyLayersMount(t *testing.T) {
	s := open(t)
	spec := testimage.Spec{Tags: []string{"many:1"}, Files: map[string]testimage.File{"/0": testimage.Text("0")}}
	for i := range 119 {
		spec.Layers = append(spec.Layers, map[string]testimage.File{fmt.Sprintf("/%d", i+1): testimage.Text("x")})
	}
	img := load(t, s, spec)[0]
	r := rootfsOf(t, s, "c", img.ID)
	for _, f := range []string{"0", "60", "119"} {
		read(t, filepath.Join(r.Path, f))
	}
	var b bytes.Buffer
	if err := s.UnmountRootfs(t.Context(), "c", r.Path); err != nil {
		t.Fatal(err)
	}
	if err := s.ExportLayer(t.Context(), "c", &b); err != nil {
		t.Error(err)
	}
}

func TestContainersOfOneImageStartTogether(t *testing.T) {
	s := open(t)
	img := load(t, s, plain("par:1"))[0]
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() { // collections and removals in between take nothing away
		for {
			select {
			case <-stop:
				return
			default:
				if err := s.GC(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	})
	var work sync.WaitGroup
	dir := t.TempDir()
	for i := range 20 {
		work.Go(func() {
			id := fmt.Sprintf("c%d", i)
			target := filepath.Join(dir, id)
			if err := s.PrepareRootfs(t.Context(), id, img.ID); err != nil {
				t.Error(err)
				return
			}
			r, err := s.MountRootfs(t.Context(), id, target)
			if err != nil {
				t.Error(err)
				return
			}
			if got := read(t, filepath.Join(r.Path, "etc/motd")); got != "welcome\n" {
				t.Errorf("%s: %q", id, got)
			}
			if err := errors.Join(s.UnmountRootfs(t.Context(), id, target), s.RemoveRootfs(t.Context(), id)); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	close(stop)
	wg.Wait()
	if _, err := s.Remove(t.Context(), "par:1", false, true, nil); err != nil {
		t.Fatal(err)
	}
	s.removals.Wait()
	wantNothing(t, s)
}

// TestFailuresLeaveNothing breaks every multi-step path at each of its failpoints.
func TestFailuresLeaveNothing(t *testing.T) {
	s := open(t)
	archive := build(t, plain("fp:1"))
	r := registry(t)
	ref := r.Host + "/fp:1"
	func() {
		other := open(t)
		load(t, other, plain(ref))
		if err := other.Push(t.Context(), ref, Auth{}, nil); err != nil {
			t.Fatal(err)
		}
	}()
	paths := map[string]func() error{
		"load": func() error {
			_, err := s.Load(t.Context(), bytes.NewReader(archive), nil)
			return err
		},
		"pull": func() error {
			_, err := s.Pull(t.Context(), ref, "", Auth{}, nil)
			return err
		},
		"prepare": func() error {
			imgs, err := s.Load(t.Context(), bytes.NewReader(archive), nil)
			if err != nil {
				return err
			}
			return s.PrepareRootfs(t.Context(), "c", imgs[0].ID)
		},
	}
	clean := func() {
		t.Helper()
		for _, name := range []string{"fp:1", ref} {
			_, _ = s.Remove(t.Context(), name, true, true, nil)
		}
		if err := s.RemoveRootfs(t.Context(), "c"); err != nil {
			t.Error(err)
		}
		ctx := s.ns(t.Context())
		ls, err := s.leases().List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, l := range ls { // a failed pull keeps its blobs for an hour: say that it is over
			if l.Labels["containerd.io/gc.expire"] != "" {
				if err := s.leases().Delete(ctx, l); err != nil {
					t.Error(err)
				}
			}
		}
		if err := s.GC(t.Context()); err != nil {
			t.Error(err)
		}
		s.removals.Wait()
		wantNothing(t, s)
	}
	for name, path := range paths {
		names := failpoint.Record()
		if err := path(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		points := names()
		if len(points) == 0 {
			t.Errorf("%s has no failpoint", name)
		}
		clean()
		for _, p := range points {
			if !strings.HasPrefix(p, "engine/image.") {
				continue
			}
			disarm := failpoint.Enable(p, failpoint.Fail)
			err := path()
			disarm()
			if err == nil {
				t.Errorf("%s went through broken at %s", name, p)
			}
			clean()
			if err := path(); err != nil {
				t.Errorf("%s after it was broken at %s: %v", name, p, err)
			}
			clean()
		}
	}
}

func BenchmarkRootfs(b *testing.B) {
	requireRoot(b)
	s := openAt(b, Config{Root: tempRoot(b)})
	var img Image
	spec := testimage.Spec{Tags: []string{"bench:1"}, Files: map[string]testimage.File{"/x": testimage.Text("x")}, Config: ocispec.ImageConfig{}}
	for i := range 4 {
		spec.Layers = append(spec.Layers, map[string]testimage.File{fmt.Sprintf("/%d", i): testimage.Text("x")})
	}
	img = load(b, s, spec)[0]
	dir := b.TempDir()
	steps := []struct {
		name string
		do   func(id, target string) error
		took time.Duration
	}{
		{name: "prepare", do: func(id, _ string) error { return s.PrepareRootfs(b.Context(), id, img.ID) }},
		{name: "mount", do: func(id, target string) error { _, err := s.MountRootfs(b.Context(), id, target); return err }},
		{name: "write", do: func(_, target string) error { return os.WriteFile(filepath.Join(target, "f"), []byte("x"), 0o600) }},
		{name: "unmount", do: func(id, target string) error { return s.UnmountRootfs(b.Context(), id, target) }},
		{name: "remove", do: func(id, _ string) error { return s.RemoveRootfs(b.Context(), id) }},
	}
	n := 0
	for b.Loop() {
		id := fmt.Sprintf("c%d", n)
		n++
		for i := range steps {
			start := time.Now()
			if err := steps[i].do(id, filepath.Join(dir, id)); err != nil {
				b.Fatal(err)
			}
			steps[i].took += time.Since(start)
		}
	}
	for _, step := range steps {
		b.ReportMetric(float64(step.took.Microseconds())/float64(n), "µs/"+step.name)
	}
}

func BenchmarkOpen(b *testing.B) {
	requireRoot(b)
	root := tempRoot(b)
	for b.Loop() {
		s, err := Open(Config{Root: root})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
