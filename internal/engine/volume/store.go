package volume

import (
	"context"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Store holds the volumes of this host.
type Store struct{ root string }

var errTodo = fault.New(fault.NotImplemented, "not yet")

// Open opens.
func Open(root string) (*Store, error) { return &Store{root: root}, nil }

// Create creates.
func (s *Store) Create(ctx context.Context, v Volume) (Volume, error) { return Volume{}, errTodo }

// Get gets.
func (s *Store) Get(name string) (Volume, error) { return Volume{}, errTodo }

// List lists.
func (s *Store) List() []Volume { return nil }

// Remove removes.
func (s *Store) Remove(ctx context.Context, name string, force bool) error { return errTodo }

// Acquire counts user as using the volume.
func (s *Store) Acquire(ctx context.Context, name, user string) (path string, err error) {
	return "", errTodo
}

// Release ends the use.
func (s *Store) Release(ctx context.Context, name, user string) error { return errTodo }

// Users lists.
func (s *Store) Users(name string) []string { return nil }

// Size measures.
func (s *Store) Size(name string) (int64, error) { return 0, errTodo }

// CopyUp fills an empty volume.
func CopyUp(ctx context.Context, fromRootfsDir, volumePath string) error { return errTodo }
