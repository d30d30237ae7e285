package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

// What the process that is killed is told by its environment.
const (
	churnRoot    = "SAMPAN_IMAGE_TEST_CHURN_ROOT"
	churnRef     = "SAMPAN_IMAGE_TEST_CHURN_REF"
	churnArchive = "SAMPAN_IMAGE_TEST_CHURN_ARCHIVE"
	churnSeed    = "SAMPAN_IMAGE_TEST_CHURN_SEED"
	churnPoint   = "SAMPAN_IMAGE_TEST_CHURN_FAILPOINT"
)

// TestChurnHelper is the process that TestNoCrashLeaksOrLosesALayer kills; by itself it does nothing. It pulls, loads,
// tags, commits, removes and prunes without end, in two places at once, and prints a line after each.
func TestChurnHelper(t *testing.T) {
	root := os.Getenv(churnRoot)
	if root == "" {
		t.Skip("runs inside TestNoCrashLeaksOrLosesALayer")
	}
	archive, err := os.ReadFile(os.Getenv(churnArchive))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(os.Getenv(churnSeed), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if p := os.Getenv(churnPoint); p != "" {
		failpoint.Enable(p, failpoint.Kill)
	}
	var work sync.WaitGroup
	for n := range uint64(2) {
		work.Go(func() { churn(t.Context(), s, rand.New(rand.NewPCG(seed, n)), archive, fmt.Sprintf("c%d", n)) })
	}
	work.Wait()
}

// churn does one thing after another. What fails because the other one did something meanwhile does not matter.
func churn(ctx context.Context, s *Store, r *rand.Rand, archive []byte, container string) {
	names := []string{"churn:1", "churn:2", "churn:3", "churn:made", os.Getenv(churnRef)}
	used := func(id string) (users []string) {
		for _, c := range []string{"c0", "c1"} {
			if b, err := os.ReadFile(filepath.Join(s.cfg.Root, rootfsFolder, c, "image")); err == nil && string(b) == id {
				users = append(users, c)
			}
		}
		return users
	}
	for i := 0; ; i++ {
		name := names[r.IntN(len(names))]
		switch r.IntN(8) {
		case 0:
			_, _ = s.Load(ctx, bytes.NewReader(archive), nil)
		case 1:
			_, _ = s.Pull(ctx, os.Getenv(churnRef), "", Auth{}, nil)
		case 2:
			_ = s.Tag(ctx, name, names[r.IntN(3)])
		case 3:
			_, _ = s.Remove(ctx, name, true, true, used)
		case 4:
			_, _, _ = s.Prune(ctx, func(i Image) bool { return len(i.RepoTags) == 0 }, used)
		case 5:
			_ = s.RemoveRootfs(ctx, container)
		case 6:
			if img, err := s.Get(ctx, name); err == nil && s.PrepareRootfs(ctx, container, img.ID) == nil {
				_ = os.WriteFile(filepath.Join(s.cfg.Root, rootfsFolder, container, "image"), []byte(img.ID), 0o600)
				_ = os.WriteFile(filepath.Join(s.cfg.Root, rootfsFolder, container, upperFolder, "mine"), []byte(strings.Repeat("x", r.IntN(1000))), 0o600)
			}
		case 7:
			if b, err := os.ReadFile(filepath.Join(s.cfg.Root, rootfsFolder, container, "image")); err == nil {
				_, _ = s.Commit(ctx, CommitRequest{ContainerID: container, ParentID: string(b), Ref: "churn:made"})
			}
		}
		fmt.Println("DID", i)
	}
}

// TestNoCrashLeaksOrLosesALayer kills a process with SIGKILL at random moments, and at every failpoint, while it pulls,
// loads, commits, removes and prunes. What the next process finds is whole: every image can be run and every container
// has its files; and once the time of what was cut off is over, the store holds what images and containers refer to, to the
// last blob and layer, and nothing else.
func TestNoCrashLeaksOrLosesALayer(t *testing.T) {
	requireRoot(t)
	r := registry(t)
	ref := r.Host + "/team/churn:1"
	var specs []testimage.Spec
	for n := range 4 {
		specs = append(specs, testimage.Spec{Tags: []string{fmt.Sprintf("churn:%d", n+1)},
			Files:  map[string]testimage.File{"/etc/motd": testimage.Text("welcome\n"), "/base": {Data: noise(200<<10, 1)}},
			Layers: []map[string]testimage.File{{"/own": {Data: noise(100<<10, uint64(n+2))}}, {"/etc/motd": testimage.Text("welcome\n"), "/base": {Whiteout: true}}}})
	}
	last := specs[3]
	last.Tags = []string{ref}
	other := open(t)
	load(t, other, last)
	if err := other.Push(t.Context(), ref, Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(archive, build(t, specs[:3]...), 0o600); err != nil {
		t.Fatal(err)
	}
	points := []string{"", "", "", "", "", "", "engine/image.rootfs.pinned", "engine/image.rootfs.made", "engine/image.pull.before-name",
		"engine/image.fetch.before-commit", "engine/image.bind.between", "engine/image.unpack.before-commit", "engine/image.load.before-name",
		"engine/image.build.before-name", "engine/image.remove.before-collection"}
	if testing.Short() {
		points = points[4:8]
	}
	root := tempRoot(t)
	for n, point := range points {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChurnHelper$", "-test.v", "-test.timeout=2m")
		cmd.Env = append(os.Environ(), churnRoot+"="+root, churnRef+"="+ref, churnArchive+"="+archive, churnSeed+"="+strconv.Itoa(n), churnPoint+"="+point)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 5 + rand.IntN(40)
		if point != "" {
			lines = 1 << 20 // until it kills itself
		}
		did := 0
		for in := bufio.NewScanner(out); did < lines && in.Scan(); {
			if strings.HasPrefix(in.Text(), "DID") {
				did++
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if did == 0 && point == "" {
			t.Fatalf("round %d: it did nothing", n)
		}
		func() {
			s, err := Open(Config{Root: root})
			if err != nil {
				t.Fatalf("round %d (%s): %v", n, point, err)
			}
			defer s.Close()
			wantWhole(t, s)
			if t.Failed() {
				t.Fatalf("round %d (%s), after %d steps", n, point, did)
			}
		}()
	}
	s := openAt(t, Config{Root: root})
	for _, c := range containersOf(t, s) {
		if err := s.RemoveRootfs(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := s.Prune(t.Context(), nil, nil); err != nil {
		t.Error(err)
	}
	s.removals.Wait()
	wantNothing(t, s)
}

// TestNamelessDownloadsGo: a process can be killed when it has made a download's folder and not named it yet.
func TestNamelessDownloadsGo(t *testing.T) {
	root := tempRoot(t)
	for _, folder := range []string{"made", "named"} {
		if err := os.MkdirAll(filepath.Join(root, "content/ingest", folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "content/ingest/named/ref"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, Config{Root: root})
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, s)
}

func containersOf(t *testing.T, s *Store) (ids []string) {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Root, rootfsFolder))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), hiddenPrefix) {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// wantWhole checks that everything that is there can be used, and that nothing else is once what was cut off has expired.
func wantWhole(t *testing.T, s *Store) {
	t.Helper()
	ctx := s.ns(t.Context())
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	look := func(container string) {
		t.Helper()
		target := filepath.Join(t.TempDir(), "look")
		root, err := s.MountRootfs(ctx, container, target)
		if err != nil {
			t.Errorf("container %s: %v", container, err)
			return
		}
		if b, err := os.ReadFile(filepath.Join(root.Path, "etc/motd")); err != nil || string(b) != "welcome\n" {
			t.Errorf("container %s: %q, %v", container, b, err)
		}
		if err := s.UnmountRootfs(ctx, container, target); err != nil {
			t.Error(err)
		}
	}
	containers := containersOf(t, s)
	for _, c := range containers {
		look(c)
	}
	for _, img := range list {
		if err := s.PrepareRootfs(ctx, "probe", img.ID); err != nil {
			t.Errorf("image %s %v: %v", img.ID, img.RepoTags, err)
			continue
		}
		look("probe")
		if err := s.RemoveRootfs(ctx, "probe"); err != nil {
			t.Error(err)
		}
		if err := s.Save(ctx, []string{img.ID}, new(bytes.Buffer)); err != nil {
			t.Errorf("save of image %s: %v", img.ID, err)
		}
	}
	leases, err := s.leases().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		if l.Labels["containerd.io/gc.expire"] != "" {
			if err := s.leases().Delete(ctx, l); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Keep(ctx, containers); err != nil {
		t.Error(err)
	}
	s.removals.Wait()

	blobs, layers := referred(ctx, t, s)
	err = s.content().Walk(ctx, func(i content.Info) error {
		if !blobs[i.Digest] {
			t.Errorf("blob %s (%d bytes) is kept, and nothing refers to it", i.Digest, i.Size)
		}
		delete(blobs, i.Digest)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for d := range blobs {
		t.Errorf("blob %s is gone, and an image refers to it", d)
	}
	for _, c := range containers {
		chain, err := os.Readlink(filepath.Join(s.cfg.Root, rootfsFolder, c, chainLink))
		if err != nil {
			t.Fatal(err)
		}
		layers[chain] = true
	}
	err = s.snapshots().Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if !layers[strings.TrimPrefix(i.Name, viewPrefix)] && !standsUnder(ctx, t, s, i.Name, layers) {
			t.Errorf("layer %s is kept, and nothing stands on it", i.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// On disk there is what the database has, no more.
	folders, err := os.ReadDir(filepath.Join(s.cfg.Root, "overlayfs/snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	known := 0
	_ = s.layers.Walk(ctx, func(context.Context, snapshots.Info) error { known++; return nil })
	if len(folders) != known {
		t.Errorf("%d folders of layers on disk, the database knows %d", len(folders), known)
	}
}

// standsUnder reports whether one of the layers that are needed stands on another.
func standsUnder(ctx context.Context, t *testing.T, s *Store, name string, needed map[string]bool) bool {
	for n := range needed {
		for at := n; at != ""; {
			if at == name {
				return true
			}
			info, err := s.snapshots().Stat(ctx, at)
			if errdefs.IsNotFound(err) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			at = info.Parent
		}
	}
	return false
}

// referred are the blobs that image records lead to, as the documents themselves say, and the layers of their configs.
func referred(ctx context.Context, t *testing.T, s *Store) (blobs map[digest.Digest]bool, layers map[string]bool) {
	t.Helper()
	blobs, layers = map[digest.Digest]bool{}, map[string]bool{}
	cs := s.content()
	recs, err := s.records().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var walk func(d ocispec.Descriptor, must bool)
	walk = func(d ocispec.Descriptor, must bool) {
		if _, err := cs.Info(ctx, d.Digest); errdefs.IsNotFound(err) && !must {
			return // a platform that was not pulled
		}
		blobs[d.Digest] = true
		if images.IsConfigType(d.MediaType) {
			b, err := content.ReadBlob(ctx, cs, d)
			var c ocispec.Image
			if err != nil || json.Unmarshal(b, &c) != nil {
				t.Errorf("config %s: %v", d.Digest, err)
			}
			layers[chainOf(c.RootFS.DiffIDs)] = true
			return
		}
		children, err := images.Children(ctx, cs, d)
		if err != nil {
			t.Errorf("%s: %v", d.Digest, err)
		}
		for _, c := range children {
			walk(c, !images.IsIndexType(d.MediaType))
		}
	}
	for _, r := range recs {
		walk(r.Target, true)
	}
	return blobs, layers
}
