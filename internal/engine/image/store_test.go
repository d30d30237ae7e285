package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: unpacks layers with their owners, and mounts overlays")
	}
}

func openAt(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// tempRoot is a folder whose name has nothing of the test's, which may hold what overlayfs does not take.
func tempRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sampan-image-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func open(t testing.TB) *Store {
	t.Helper()
	requireRoot(t)
	return openAt(t, Config{Root: tempRoot(t)})
}

func build(t testing.TB, specs ...testimage.Spec) []byte {
	t.Helper()
	b, err := testimage.BuildAll(t.Context(), specs...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func load(t testing.TB, s *Store, specs ...testimage.Spec) []Image {
	t.Helper()
	imgs, err := s.Load(t.Context(), bytes.NewReader(build(t, specs...)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return imgs
}

func plain(tags ...string) testimage.Spec {
	return testimage.Spec{
		Tags:   tags,
		Files:  map[string]testimage.File{"/bin/hello": {Data: []byte("hello " + strings.Join(tags, " ")), Mode: 0o755}, "/etc/motd": testimage.Text("welcome\n")},
		Config: ocispec.ImageConfig{Cmd: []string{"/bin/hello"}, Env: []string{"PATH=/bin"}, Labels: map[string]string{"a": "b"}},
	}
}

// rootfsOf mounts a container's root file system for the rest of the test.
func rootfsOf(t testing.TB, s *Store, container, image string) Rootfs {
	t.Helper()
	if err := s.PrepareRootfs(t.Context(), container, image); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "rootfs")
	r, err := s.MountRootfs(t.Context(), container, target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.UnmountRootfs(context.Background(), container, target); err != nil {
			t.Error(err)
		}
	})
	return r
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantKind(t testing.TB, err error, kind fault.Kind, words string) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("error %v (%v), want %v with %q", err, fault.KindOf(err), kind, words)
	}
}

func TestOpenTwiceIsRefused(t *testing.T) {
	s := open(t)
	_, err := Open(Config{Root: s.cfg.Root})
	wantKind(t, err, fault.Unavailable, "in use by another process")
}

func TestLoadGivesTheImage(t *testing.T) {
	s := open(t)
	var lines []string
	imgs, err := s.Load(t.Context(), bytes.NewReader(build(t, plain("hello:1", "example.com/x/hello"))), func(p Progress) { lines = append(lines, p.Status) })
	if err != nil {
		t.Fatal(err)
	}
	if len(imgs) != 1 {
		t.Fatalf("%d images, want 1", len(imgs))
	}
	img := imgs[0]
	if want := []string{"example.com/x/hello:latest", "hello:1"}; !slices.Equal(img.RepoTags, want) {
		t.Errorf("RepoTags %v, want %v", img.RepoTags, want)
	}
	if !slices.Equal(img.Config.Cmd, []string{"/bin/hello"}) || img.Labels["a"] != "b" || img.Size == 0 || len(img.Layers) != 1 || len(img.LayerSizes) != 1 || img.LayerSizes[0] != img.Size {
		t.Errorf("image %+v", img)
	}
	for _, line := range []string{"Loaded image: hello:1", "Loaded image: example.com/x/hello:latest"} {
		if !slices.Contains(lines, line) {
			t.Errorf("no line %q in %q", line, lines)
		}
	}
	short := strings.TrimPrefix(img.ID, "sha256:")[:10]
	for _, ref := range []string{"hello:1", "docker.io/library/hello:1", "example.com/x/hello", img.ID, short, "sha256:" + short, strings.TrimPrefix(img.ID, "sha256:")} {
		if got, err := s.Get(t.Context(), ref); err != nil || got.ID != img.ID {
			t.Errorf("Get(%q) = %v, %v", ref, got.ID, err)
		}
	}
	r := rootfsOf(t, s, "c1", img.ID)
	if got := read(t, filepath.Join(r.Path, "etc/motd")); got != "welcome\n" {
		t.Errorf("file of the image: %q", got)
	}
}

func TestGetSaysNoSuchImage(t *testing.T) {
	s := open(t)
	for ref, words := range map[string]string{
		"nope":                              "No such image: nope:latest",
		"nope:2":                            "No such image: nope:2",
		"sha256:" + strings.Repeat("a", 64): "No such image: sha256:aaa",
		"deadbeef":                          "No such image: deadbeef:latest",
	} {
		_, err := s.Get(t.Context(), ref)
		wantKind(t, err, fault.NotFound, words)
	}
	for _, ref := range []string{"", "UPPER", "a b", "x:", "-"} {
		_, err := s.Get(t.Context(), ref)
		wantKind(t, err, fault.InvalidArgument, "")
	}
}

func TestLoadTakesEveryShape(t *testing.T) {
	s := open(t)
	raw := build(t, plain("shape:1"))
	var gz, zs bytes.Buffer
	zw := gzip.NewWriter(&gz)
	_, _ = zw.Write(raw)
	_ = zw.Close()
	sw, _ := zstd.NewWriter(&zs)
	_, _ = sw.Write(raw)
	_ = sw.Close()
	var xs bytes.Buffer
	xw, err := xz.NewWriter(&xs)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = xw.Write(raw)
	_ = xw.Close()
	want := ""
	for name, b := range map[string][]byte{"plain": raw, "gzip": gz.Bytes(), "zstd": zs.Bytes(), "xz": xs.Bytes()} {
		imgs, err := s.Load(t.Context(), bytes.NewReader(b), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want == "" {
			want = imgs[0].ID
		}
		if imgs[0].ID != want {
			t.Errorf("%s: ID %s, want %s", name, imgs[0].ID, want)
		}
	}
}

func TestLoadRefusesRubbish(t *testing.T) {
	s := open(t)
	raw := build(t, plain("bad:1"))
	var empty bytes.Buffer
	_ = tar.NewWriter(&empty).Close()
	var lying bytes.Buffer
	tw := tar.NewWriter(&lying)
	body := `[{"Config":"../../etc/passwd","RepoTags":["x:1"],"Layers":[]}]`
	_ = tw.WriteHeader(&tar.Header{Name: "manifest.json", Size: int64(len(body)), Mode: 0o644})
	_, _ = tw.Write([]byte(body))
	_ = tw.Close()
	for name, b := range map[string][]byte{
		"nothing": nil, "noise": []byte(strings.Repeat("x", 4096)), "empty tar": empty.Bytes(), "cut": raw[:len(raw)/2], "no such config": lying.Bytes(),
	} {
		_, err := s.Load(t.Context(), bytes.NewReader(b), nil)
		if !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v (%v), want an invalid argument", name, err, fault.KindOf(err))
		}
	}
	// What Docker wrote before version 1.10: no manifest, but a folder for each layer.
	var old bytes.Buffer
	tw = tar.NewWriter(&old)
	for name, body := range map[string]string{"repositories": `{"x":{"1":"abc"}}`, "abc/VERSION": "1.0", "abc/json": `{"id":"abc"}`, "abc/layer.tar": ""} {
		_ = tw.WriteHeader(&tar.Header{Name: name, Size: int64(len(body)), Mode: 0o644})
		_, _ = tw.Write([]byte(body))
	}
	_ = tw.Close()
	_, err := s.Load(t.Context(), &old, nil)
	wantKind(t, err, fault.InvalidArgument, "before 1.10")
	if l, _ := s.List(t.Context()); len(l) != 0 {
		t.Errorf("images after failed loads: %v", l)
	}
	// And the store still works.
	load(t, s, plain("good:1"))
}

func TestSaveIsStableAndLoadsAgain(t *testing.T) {
	s := open(t)
	load(t, s, plain("save:1", "save:2"), testimage.Spec{Tags: []string{"other:1"}, Files: map[string]testimage.File{"/x": testimage.Text("x")}})
	save := func(s *Store, refs ...string) []byte {
		t.Helper()
		var b bytes.Buffer
		if err := s.Save(t.Context(), refs, &b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	first := save(s, "save:1", "save:2", "other:1")
	if !bytes.Equal(first, save(s, "other:1", "save:2", "save:1")) {
		t.Error("a second save of the same images has other bytes")
	}
	if !bytes.Equal(save(s, "save"), save(s, "save:1", "save:2")) {
		t.Error("a repository's name does not save all its tags")
	}
	other := openAt(t, Config{Root: tempRoot(t)})
	if _, err := other.Load(t.Context(), bytes.NewReader(first), nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, save(other, "save:1", "save:2", "other:1")) {
		t.Error("saved, loaded elsewhere and saved again: other bytes")
	}
	// What docker load reads is there: manifest.json with paths of files in the archive.
	names := map[string]bool{}
	var manifest string
	for tr := tar.NewReader(bytes.NewReader(first)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = true
		if h.Name == "manifest.json" {
			b, _ := io.ReadAll(tr)
			manifest = string(b)
		}
	}
	for _, want := range []string{"oci-layout", "index.json", "manifest.json"} {
		if !names[want] {
			t.Errorf("no %s in the archive", want)
		}
	}
	if !strings.Contains(manifest, `"save:1","save:2"`) {
		t.Errorf("manifest.json: %s", manifest)
	}
	var b bytes.Buffer
	wantKind(t, s.Save(t.Context(), []string{"nope"}, &b), fault.NotFound, "No such image: nope:latest")
}

func TestTagMovesANameAndLeavesTheOldImageDangling(t *testing.T) {
	s := open(t)
	a := load(t, s, plain("a:1"))[0]
	b := load(t, s, plain("b:1"))[0]
	if err := s.Tag(t.Context(), "b:1", "a:1"); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Get(t.Context(), "a:1"); got.ID != b.ID {
		t.Errorf("a:1 is %s, want %s", got.ID, b.ID)
	}
	if got, err := s.Get(t.Context(), a.ID); err != nil || len(got.RepoTags) != 0 {
		t.Errorf("the image that lost its name: %v, %v", got.RepoTags, err)
	}
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	rootfsOf(t, s, "c", a.ID) // still whole
	if err := s.Tag(t.Context(), a.ID, "again"); err != nil {
		t.Fatal(err)
	}
	l, _ := s.List(t.Context())
	if len(l) != 2 {
		t.Errorf("%d images, want 2", len(l))
	}
	for ref, kind := range map[string]fault.Kind{"UPPER": fault.InvalidArgument, "x@sha256:" + strings.Repeat("a", 64): fault.InvalidArgument, "sha256:abc": fault.InvalidArgument} {
		wantKind(t, s.Tag(t.Context(), "again", ref), kind, "")
	}
	wantKind(t, s.Tag(t.Context(), "nope", "x:1"), fault.NotFound, "No such image: nope:latest")
}

func TestRemove(t *testing.T) {
	stopped := func(ids ...string) func(string) []string { return func(string) []string { return ids } }
	cid := strings.Repeat("c", 64)
	for _, c := range []struct {
		name    string
		tags    []string
		ref     string // "ID" stands for the ID
		force   bool
		inUse   func(string) []string
		removed []string // "ID" for deletion
		kind    fault.Kind
		words   string
		left    int
	}{
		{name: "last name deletes", tags: []string{"r:1"}, ref: "r:1", removed: []string{"r:1", "ID"}},
		{name: "one of two names untags", tags: []string{"r:1", "r:2"}, ref: "r:2", removed: []string{"r:2"}, left: 1},
		{name: "ID with one name", tags: []string{"r:1"}, ref: "ID", removed: []string{"r:1", "ID"}},
		{name: "ID with two repositories", tags: []string{"r:1", "q:1"}, ref: "ID", kind: fault.Conflict, words: "(must be forced) - image is referenced in multiple repositories", left: 1},
		{name: "ID with two repositories, force", tags: []string{"r:1", "q:1"}, ref: "ID", force: true, removed: []string{"q:1", "r:1", "ID"}},
		{name: "name in use", tags: []string{"r:1"}, ref: "r:1", inUse: stopped(cid), kind: fault.Conflict, words: `conflict: unable to remove repository reference "r:1" (must force) - container cccccccccccc is using its referenced image `, left: 1},
		{name: "name in use, force", tags: []string{"r:1"}, ref: "r:1", force: true, inUse: stopped(cid), removed: []string{"r:1", "ID"}},
		{name: "name runs, force", tags: []string{"r:1"}, ref: "r:1", force: true, inUse: stopped(RunningPrefix + cid), removed: []string{"r:1"}, left: 1},
		{name: "one of two names in use", tags: []string{"r:1", "q:1"}, ref: "r:1", inUse: stopped(cid), removed: []string{"r:1"}, left: 1},
		{name: "ID in use", tags: []string{"r:1"}, ref: "ID", inUse: stopped(cid), kind: fault.Conflict, words: "(must be forced) - image is being used by stopped container cccccccccccc", left: 1},
		{name: "ID runs, force", tags: []string{"r:1"}, ref: "ID", force: true, inUse: stopped(RunningPrefix + cid), kind: fault.Conflict, words: "(cannot be forced) - image is being used by running container cccccccccccc", left: 1},
		{name: "missing", tags: []string{"r:1"}, ref: "s", kind: fault.NotFound, words: "No such image: s:latest", left: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			img := load(t, s, plain(c.tags...))[0]
			ref := strings.ReplaceAll(c.ref, "ID", img.ID)
			out, err := s.Remove(t.Context(), ref, c.force, true, c.inUse)
			if c.words != "" {
				wantKind(t, err, c.kind, c.words)
			} else if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range out {
				switch {
				case r.Untagged != "":
					got = append(got, r.Untagged)
				case r.Deleted == img.ID:
					got = append(got, "ID")
				}
			}
			if !slices.Equal(got, c.removed) {
				t.Errorf("removed %v, want %v", got, c.removed)
			}
			l, _ := s.List(t.Context())
			if len(l) != c.left {
				t.Errorf("%d images left, want %d", len(l), c.left)
			}
			if c.left == 0 {
				if err := s.GC(t.Context()); err != nil {
					t.Fatal(err)
				}
				wantNothing(t, s)
			}
		})
	}
}

func TestImageOfARunningContainerStays(t *testing.T) {
	s := open(t)
	img := load(t, s, plain("runs:1"))[0]
	rootfsOf(t, s, "ccc", img.ID) // mounted, as that of a container that runs
	users := func(string) []string { return []string{"ccc"} }
	_, err := s.Remove(t.Context(), img.ID, true, true, users)
	wantKind(t, err, fault.Conflict, "(cannot be forced) - image is being used by running container ccc")
	if out, err := s.Remove(t.Context(), "runs:1", true, true, users); err != nil || len(out) != 1 {
		t.Errorf("untagging by force: %v, %v", out, err)
	}
	if got, err := s.Get(t.Context(), img.ID); err != nil || len(got.RepoTags) != 0 {
		t.Errorf("%v, %v", got.RepoTags, err)
	}
}

// wantNothing checks that the store holds no blob, partial download, snapshot or lease.
func wantNothing(t testing.TB, s *Store) {
	t.Helper()
	for _, pattern := range []string{"content/blobs/sha256/*", "content/ingest/*", "overlayfs/snapshots/*", "rootfs/*"} {
		if m, _ := filepath.Glob(filepath.Join(s.cfg.Root, pattern)); len(m) > 0 {
			t.Errorf("left on disk: %v", m)
		}
	}
	if l, err := s.leases().List(s.ns(t.Context())); err != nil || len(l) > 0 {
		t.Errorf("leases left: %v, %v", l, err)
	}
}

func TestPrune(t *testing.T) {
	s := open(t)
	load(t, s, plain("keep:1"), plain("used:1"), plain("drop:1"))
	used, _ := s.Get(t.Context(), "used:1")
	out, freed, err := s.Prune(t.Context(),
		func(i Image) bool { return !slices.Contains(i.RepoTags, "keep:1") },
		func(id string) []string {
			if id == used.ID {
				return []string{"c"}
			}
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 2 || out[0].Untagged != "drop:1" || freed == 0 {
		t.Errorf("removed %v, freed %d", out, freed)
	}
	if l, _ := s.List(t.Context()); len(l) != 2 {
		t.Errorf("%d images left, want 2", len(l))
	}
}

func TestRootfsOutlivesItsImage(t *testing.T) {
	s := open(t)
	img := load(t, s, plain("gone:1"))[0]
	if err := s.PrepareRootfs(t.Context(), "c1", img.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), img.ID, true, true, func(string) []string { return []string{"c1"} }); err != nil {
		t.Fatal(err)
	}
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Also across a restart.
	root := s.cfg.Root
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openAt(t, Config{Root: root})
	if err := again.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "m")
	r, err := again.MountRootfs(t.Context(), "c1", target)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(r.Path, "etc/motd")); got != "welcome\n" {
		t.Errorf("file of the removed image: %q", got)
	}
	if err := errors.Join(again.UnmountRootfs(t.Context(), "c1", target), again.RemoveRootfs(t.Context(), "c1"), again.GC(t.Context())); err != nil {
		t.Fatal(err)
	}
	again.removals.Wait()
	wantNothing(t, again)
}

func TestRootfsIsPreparedOnceAndRemovedTwice(t *testing.T) {
	s := open(t)
	img := load(t, s, plain("once:1"))[0]
	if err := s.PrepareRootfs(t.Context(), "c", img.ID); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.PrepareRootfs(t.Context(), "c", img.ID), fault.AlreadyExists, "container c has a root file system already")
	wantKind(t, s.PrepareRootfs(t.Context(), "../x", img.ID), fault.InvalidArgument, "invalid container ID")
	wantKind(t, s.PrepareRootfs(t.Context(), "d", "sha256:"+strings.Repeat("0", 64)), fault.NotFound, "No such image")
	target := filepath.Join(t.TempDir(), "m")
	for range 2 {
		if _, err := s.MountRootfs(t.Context(), "c", target); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := s.UnmountRootfs(t.Context(), "c", target); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := s.RemoveRootfs(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.MountRootfs(t.Context(), "c", target)
	wantKind(t, err, fault.NotFound, "has no root file system")
}

// TestKeepRemovesWhatARemovalLeft: a process killed between a layer's end in the database and that of its folder leaves
// the folder, and the next one removes it.
func TestKeepRemovesWhatARemovalLeft(t *testing.T) {
	s := open(t)
	img := load(t, s, plain("left:1"))[0]
	left := filepath.Join(s.cfg.Root, "overlayfs/snapshots/4711")
	if err := os.MkdirAll(filepath.Join(left, "fs/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Keep(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a removal left is there: %v", err)
	}
	if err := s.PrepareRootfs(t.Context(), "c", img.ID); err != nil {
		t.Errorf("an image that is there cannot be run: %v", err)
	}
}

// TestKeepOnAnEmptyHost: the first start finds no database of layers yet, which is nothing to warn of.
func TestKeepOnAnEmptyHost(t *testing.T) {
	if err := open(t).Keep(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestKeepRemovesTheRest(t *testing.T) {
	s := open(t)
	img := load(t, s, plain("k:1"))[0]
	for _, c := range []string{"a", "b", "c"} {
		if err := s.PrepareRootfs(t.Context(), c, img.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Keep(t.Context(), []string{"b"}); err != nil {
		t.Fatal(err)
	}
	s.removals.Wait()
	entries, _ := os.ReadDir(filepath.Join(s.cfg.Root, rootfsFolder))
	if len(entries) != 1 || entries[0].Name() != "b" {
		t.Errorf("left: %v", entries)
	}
}

func TestImageFromScratch(t *testing.T) {
	s := open(t)
	img := load(t, s, testimage.Spec{Tags: []string{"empty:1"}})[0]
	r := rootfsOf(t, s, "c", img.ID)
	// What the runtime mounts on is there already, so that it is no change of the container's.
	for _, p := range []string{"proc", "sys", "dev", "etc/hosts", "etc/resolv.conf", "etc/hostname"} {
		if _, err := os.Stat(filepath.Join(r.Path, p)); err != nil {
			t.Error(err)
		}
	}
	write(t, filepath.Join(r.Path, "f"), "x")
	changes, err := s.RootfsDiff(t.Context(), "c")
	if err != nil || len(changes) != 1 || changes[0] != (Change{"/f", Added}) {
		t.Errorf("changes %v, %v", changes, err)
	}
}

func TestImport(t *testing.T) {
	s := open(t)
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	_ = tw.WriteHeader(&tar.Header{Name: "hello.txt", Mode: 0o600, Size: 2, Uid: 7, ModTime: time.Unix(1000, 0)})
	_, _ = tw.Write([]byte("hi"))
	_ = tw.Close()
	img, err := s.Import(t.Context(), bytes.NewReader(b.Bytes()), "imp", ImportOptions{
		Message: "a note", Platform: "linux/arm64",
		Changes: []string{`CMD ["/x","y"]`, "ENV A=1 B='two words'", "EXPOSE 80 53/udp", "WORKDIR /w", "LABEL k=v", "VOLUME /data", "USER 7:8", "STOPSIGNAL SIGINT", "ENTRYPOINT run it"},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := img.Config
	if !slices.Equal(c.Cmd, []string{"/x", "y"}) || !slices.Equal(c.Env, []string{"A=1", "B=two words"}) || c.WorkingDir != "/w" || c.User != "7:8" ||
		c.StopSignal != "SIGINT" || !slices.Equal(c.Entrypoint, []string{"/bin/sh", "-c", "run it"}) || c.Labels["k"] != "v" {
		t.Errorf("config %+v", c)
	}
	if _, ok := c.ExposedPorts["53/udp"]; !ok {
		t.Errorf("ports %v", c.ExposedPorts)
	}
	if _, ok := c.Volumes["/data"]; !ok {
		t.Errorf("volumes %v", c.Volumes)
	}
	if img.Comment != "a note" || img.Architecture != "arm64" || !slices.Equal(img.RepoTags, []string{"imp:latest"}) {
		t.Errorf("image %+v", img)
	}
	r := rootfsOf(t, s, "c", img.ID)
	if got := read(t, filepath.Join(r.Path, "hello.txt")); got != "hi" {
		t.Errorf("file %q", got)
	}
	_, err = s.Import(t.Context(), strings.NewReader(strings.Repeat("rubbish", 1000)), "", ImportOptions{})
	wantKind(t, err, fault.InvalidArgument, "not a tar archive")
	_, err = s.Import(t.Context(), bytes.NewReader(b.Bytes()), "", ImportOptions{Changes: []string{"RUN rm -rf /"}})
	wantKind(t, err, fault.InvalidArgument, "run is not a valid change command")
	// Without a name it is there by its ID.
	if empty, err := s.Import(t.Context(), strings.NewReader(""), "empty", ImportOptions{}); err != nil || len(empty.Layers) != 1 {
		t.Errorf("nothing at all is an image without files: %+v %v", empty, err)
	}
	nameless, err := s.Import(t.Context(), bytes.NewReader(b.Bytes()), "", ImportOptions{})
	if err != nil || len(nameless.RepoTags) != 0 {
		t.Errorf("import without a name: %v, %v", nameless.RepoTags, err)
	}
}
