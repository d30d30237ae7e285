package image

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// TestTagOfAnImageThatIsBeingRemoved: who names an image that somebody removes meanwhile is told that there is none, and
// not that it has the name.
func TestTagOfAnImageThatIsBeingRemoved(t *testing.T) {
	s := open(t)
	img := load(t, s, plain("app:1"))[0]
	found, _, err := s.find("app:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), "app:1", false, true, nil); err != nil {
		t.Fatal(err)
	}
	_, err = s.setNames(s.ns(t.Context()), found.ID, found.Target, "docker.io/library/app:2") // as Tag goes on
	wantKind(t, err, fault.NotFound, "No such image: "+img.ID)
	if recs, err := s.records().List(s.ns(t.Context())); err != nil || len(recs) > 0 {
		t.Errorf("names of nothing are left: %v, %v", recs, err)
	}
}

// TestNameThatMovesWhileItIsRemoved stays with the image that it has moved to, and an image that gets another name while
// its last one is removed stays.
func TestNameThatMovesWhileItIsRemoved(t *testing.T) {
	s := open(t)
	imgs := load(t, s, plain("one:1"), plain("two:1"))
	one := s.byID(imgs[0].ID)
	name := s.namesOf(one.ID)
	if err := s.Tag(t.Context(), "two:1", "one:1"); err != nil {
		t.Fatal(err)
	}
	if err := s.dropNames(s.ns(t.Context()), one, name, true); err != nil { // as Remove of one:1 goes on
		t.Fatal(err)
	}
	if got, err := s.Get(t.Context(), "one:1"); err != nil || got.ID != imgs[1].ID {
		t.Errorf("one:1 is %s, %v; want the image that got the name", got.ID, err)
	}

	two := s.byID(imgs[1].ID)
	if err := s.dropNames(s.ns(t.Context()), two, s.namesOf(two.ID), true); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(t.Context(), two.ID); err != nil || len(got.RepoTags) > 0 {
		t.Errorf("an image in use that lost its last name: %v, %v", got.RepoTags, err)
	}
	if err := s.Tag(t.Context(), two.ID, "two:2"); err != nil {
		t.Fatal(err)
	}
	names := s.namesOf(two.ID)
	if err := s.Tag(t.Context(), two.ID, "late:1"); err != nil {
		t.Fatal(err)
	}
	if out, _, err := s.deleteImage(s.ns(t.Context()), two, names); err != nil || len(out) > 0 { // as Remove of two:2 goes on
		t.Errorf("removal of an image that has got another name: %v, %v", out, err)
	}
	if got, err := s.Get(t.Context(), "late:1"); err != nil || len(got.RepoTags) != 1 {
		t.Errorf("late:1: %v, %v", got.RepoTags, err)
	}
}

// TestLoadsSideBySide: a load whose archive does not come holds up no other, also of an archive with the same files.
func TestLoadsSideBySide(t *testing.T) {
	s := open(t)
	archive := build(t, plain("app:1"))
	r, w := io.Pipe()
	stalled := make(chan error, 1)
	go func() {
		_, err := s.Load(t.Context(), r, nil)
		stalled <- err
	}()
	if _, err := w.Write(archive[:len(archive)/2]); err != nil {
		t.Fatal(err)
	}
	loaded := make(chan error, 1)
	go func() {
		_, err := s.Load(t.Context(), bytes.NewReader(archive), nil)
		loaded <- err
	}()
	select {
	case err := <-loaded:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it waits for the other")
	}
	if _, err := w.Write(archive[len(archive)/2:]); err != nil {
		t.Error(err)
	}
	_ = w.Close()
	if err := <-stalled; err != nil {
		t.Error(err)
	}
	if left, err := s.content().ListStatuses(s.ns(t.Context())); err != nil || len(left) > 0 {
		t.Errorf("blobs half-way: %v, %v", left, err)
	}
}

// TestNamesWhileIndexesAreReread: what is known of images is never older than the last name that was given.
func TestNamesWhileIndexesAreReread(t *testing.T) {
	s := open(t)
	load(t, s, plain("app:1"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if err := s.reread(s.ns(t.Context())); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for n := range 60 {
		name := fmt.Sprintf("app:x%d", n)
		if err := s.Tag(t.Context(), "app:1", name); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(t.Context(), name); err != nil {
			t.Errorf("just tagged: %v", err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

// TestLooksAtAContainerThatIsAtWork: files and folders that come and go in its root file system are no error.
func TestLooksAtAContainerThatIsAtWork(t *testing.T) {
	s := open(t)
	img := load(t, s, plain("app:1"))[0]
	root := rootfsOf(t, s, "busy", img.ID).Path
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 3 {
		wg.Go(func() {
			own := filepath.Join(root, fmt.Sprint(n))
			for {
				select {
				case <-stop:
					return
				default:
				}
				_ = os.MkdirAll(filepath.Join(own, "a", "b"), 0o755)
				_ = os.WriteFile(filepath.Join(own, "a", "file"), []byte("x"), 0o644)
				_ = os.RemoveAll(own)
			}
		})
	}
	for range 150 {
		if _, err := s.RootfsDiff(t.Context(), "busy"); err != nil {
			t.Errorf("changes: %v", err)
			break
		}
		if _, _, err := s.RootfsUsage(t.Context(), "busy"); err != nil {
			t.Errorf("size: %v", err)
			break
		}
	}
	for range 5 {
		if _, err := s.Commit(t.Context(), CommitRequest{ContainerID: "busy", ParentID: img.ID}); err != nil {
			t.Errorf("commit: %v", err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

// TestCommitOfAContainerThatIsBeingRemoved gives the whole or nothing.
func TestCommitOfAContainerThatIsBeingRemoved(t *testing.T) {
	s := open(t)
	img := load(t, s, plain("app:1"))[0]
	const files = 300
	for n := range 12 {
		id := fmt.Sprintf("c%d", n)
		if err := s.PrepareRootfs(t.Context(), id, img.ID); err != nil {
			t.Fatal(err)
		}
		upper := filepath.Join(s.cfg.Root, rootfsFolder, id, upperFolder)
		for i := range files {
			dir := filepath.Join(upper, fmt.Sprint(i%10))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, fmt.Sprint(i)), "x")
		}
		gone := make(chan error, 1)
		go func() {
			for range n * 100 { // anywhere in the course of it
				runtime.Gosched()
			}
			gone <- s.RemoveRootfs(t.Context(), id)
		}()
		made, err := s.Commit(t.Context(), CommitRequest{ContainerID: id, ParentID: img.ID})
		if rerr := <-gone; rerr != nil {
			t.Fatal(rerr)
		}
		if err != nil {
			wantKind(t, err, fault.NotFound, id)
			continue
		}
		r := rootfsOf(t, s, id+"-again", made.ID)
		there, err := filepath.Glob(filepath.Join(r.Path, "[0-9]", "*"))
		if err != nil || len(there) != files {
			t.Errorf("the image has %d files of %d: %v", len(there), files, err)
		}
	}
}
