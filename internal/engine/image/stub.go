package image

import (
	"context"
	"io"
	"sync"

	"github.com/sampan-cloud/sampan/internal/fault"
)

const rootfsFolder = "rootfs"

type registries struct{}
type index struct{ sync.RWMutex }
type rootfsTable struct{ sync.Mutex }

func newRegistries(mirrors, insecure []string) (*registries, error) { return &registries{}, nil }
func (s *Store) reload(ctx context.Context) error                   { return nil }
func (s *Store) openRootfs(ctx context.Context) error               { return nil }
func (s *Store) dropIdlePins(ctx context.Context) error             { return nil }

var errTodo = fault.New(fault.NotImplemented, "not yet")

// Get finds an image.
func (s *Store) Get(ctx context.Context, ref string) (Image, error) { return Image{}, errTodo }

// List lists.
func (s *Store) List(ctx context.Context) ([]Image, error) { return nil, errTodo }

// Pull pulls.
func (s *Store) Pull(ctx context.Context, ref, platform string, auth Auth, progress func(Progress)) (Image, error) {
	return Image{}, errTodo
}

// Push pushes.
func (s *Store) Push(ctx context.Context, ref string, auth Auth, progress func(Progress)) error {
	return errTodo
}

// Load loads.
func (s *Store) Load(ctx context.Context, r io.Reader, progress func(Progress)) ([]Image, error) {
	return nil, errTodo
}

// Save saves.
func (s *Store) Save(ctx context.Context, refs []string, w io.Writer) error { return errTodo }

// Import imports.
func (s *Store) Import(ctx context.Context, r io.Reader, ref string, o ImportOptions) (Image, error) {
	return Image{}, errTodo
}

// Tag tags.
func (s *Store) Tag(ctx context.Context, source, target string) error { return errTodo }

// Remove removes.
func (s *Store) Remove(ctx context.Context, ref string, force, prune bool, inUse func(imageID string) []string) ([]Removed, error) {
	return nil, errTodo
}

// Prune prunes.
func (s *Store) Prune(ctx context.Context, filter func(Image) bool, inUse func(imageID string) []string) ([]Removed, int64, error) {
	return nil, 0, errTodo
}

// Commit commits.
func (s *Store) Commit(ctx context.Context, r CommitRequest) (Image, error) { return Image{}, errTodo }

// PrepareRootfs prepares.
func (s *Store) PrepareRootfs(ctx context.Context, containerID, imageID string) error { return errTodo }

// MountRootfs mounts.
func (s *Store) MountRootfs(ctx context.Context, containerID, target string) (Rootfs, error) {
	return Rootfs{}, errTodo
}

// UnmountRootfs unmounts.
func (s *Store) UnmountRootfs(ctx context.Context, containerID, target string) error { return errTodo }

// RemoveRootfs removes.
func (s *Store) RemoveRootfs(ctx context.Context, containerID string) error { return errTodo }

// RootfsUsage measures.
func (s *Store) RootfsUsage(ctx context.Context, containerID string) (rw, total int64, err error) {
	return 0, 0, errTodo
}

// RootfsDiff compares.
func (s *Store) RootfsDiff(ctx context.Context, containerID string) ([]Change, error) {
	return nil, errTodo
}

// ExportLayer exports.
func (s *Store) ExportLayer(ctx context.Context, containerID string, w io.Writer) error {
	return errTodo
}

// Keep keeps.
func (s *Store) Keep(ctx context.Context, containerIDs []string) error { return errTodo }
