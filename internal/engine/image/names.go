package image

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// setNames makes every name of names point to the image, which must be unpacked, and returns it as it then is. Unless a
// lease of ctx holds it, it may have been removed since it was looked for: that is fault.NotFound. In
// the same transaction, images that lose their last name by it, and the image itself if names is empty, become dangling:
// no image ever vanishes because its name was given away.
func (s *Store) setNames(ctx context.Context, id string, target ocispec.Descriptor, names ...string) (Image, error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	err := s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		store := s.records()
		// No collection comes between this and the record, which then keeps everything that the target refers to.
		if _, err := s.content().Info(ctx, target.Digest); err != nil {
			return err
		}
		for _, name := range names {
			old, err := store.Get(ctx, name)
			switch {
			case errdefs.IsNotFound(err):
				if _, err := store.Create(ctx, images.Image{Name: name, Target: target, CreatedAt: stamp()}); err != nil {
					return err
				}
			case err != nil:
				return err
			default:
				if _, err := store.Update(ctx, images.Image{Name: name, Target: target}, "target"); err != nil {
					return err
				}
				if old.Target.Digest != target.Digest {
					if err := s.keepNameless(ctx, store, old, names); err != nil {
						return err
					}
				}
			}
		}
		if len(names) > 0 {
			return s.dropNameless(ctx, store, id)
		}
		if len(s.namesOf(id)) > 0 {
			return nil
		}
		return createRecord(ctx, store, danglingPrefix+id, target)
	})
	if errdefs.IsNotFound(err) {
		return Image{}, fault.New(fault.NotFound, "No such image: %s", id)
	}
	if err != nil {
		return Image{}, fmt.Errorf("naming image %s: %w", id, err)
	}
	if isIndex(target.MediaType) {
		s.forget(target.Digest) // another platform of it may have come
	}
	if err := s.reload(ctx); err != nil {
		return Image{}, err
	}
	return s.Get(ctx, id)
}

// reread reads what indexes hold anew, after some of it came or went.
func (s *Store) reread(ctx context.Context, indexes ...digest.Digest) error {
	s.naming.Lock()
	defer s.naming.Unlock()
	for _, d := range indexes {
		s.forget(d)
	}
	return s.reload(ctx)
}

// keepNameless gives the image of record old, which just lost that name, a dangling record if taken are all its names.
func (s *Store) keepNameless(ctx context.Context, store images.Store, old images.Image, taken []string) error {
	s.index.mu.RLock()
	base := s.index.blobs[old.Target.Digest]
	s.index.mu.RUnlock()
	if base == nil {
		return nil // an unreadable image: nothing to keep
	}
	for _, name := range s.namesOf(base.ID) {
		lost := false
		for _, t := range taken {
			lost = lost || t == name
		}
		if !lost {
			return nil
		}
	}
	return createRecord(ctx, store, danglingPrefix+base.ID, old.Target)
}

// dropNameless drops the records by which an image is kept without a name.
func (s *Store) dropNameless(ctx context.Context, store images.Store, id string) error {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	for name, of := range s.index.names {
		if of == id && strings.HasPrefix(name, danglingPrefix) {
			if err := dropRecord(ctx, store, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func createRecord(ctx context.Context, store images.Store, name string, target ocispec.Descriptor) error {
	_, err := store.Create(ctx, images.Image{Name: name, Target: target, CreatedAt: stamp()})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func dropRecord(ctx context.Context, store images.Store, name string) error {
	if err := store.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// dropNames removes those of names that are the image's still; with keep, the image stays as a dangling one if it has no
// others.
func (s *Store) dropNames(ctx context.Context, img *Image, names []string, keep bool) error {
	s.naming.Lock()
	defer s.naming.Unlock()
	left := s.namesOf(img.ID)
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !slices.Contains(left, n) })
	left = slices.DeleteFunc(left, func(n string) bool { return slices.Contains(names, n) })
	err := s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		store := s.records()
		if keep && len(left) == 0 {
			if err := createRecord(ctx, store, danglingPrefix+img.ID, img.Target); err != nil {
				return err
			}
		}
		for _, n := range names {
			if err := dropRecord(ctx, store, n); err != nil {
				return err
			}
		}
		if !keep && len(left) == 0 {
			return s.dropNameless(ctx, store, img.ID)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing names of image %s: %w", img.ID, err)
	}
	return s.reload(ctx)
}

// Tag gives the image source the name target, taking it from another image if need be.
func (s *Store) Tag(ctx context.Context, source, target string) error {
	ctx = s.ns(ctx)
	named, err := nameForWriting(target)
	if err != nil {
		return err
	}
	img, _, err := s.find(source)
	if err != nil {
		return err
	}
	_, err = s.setNames(ctx, img.ID, img.Target, named.String())
	return err
}

// nameForWriting parses a name to be given to an image: no digest, and nothing that reads as an ID.
func nameForWriting(target string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(target)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "invalid reference format: %q: %w", target, err)
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, fault.New(fault.InvalidArgument, "refusing to create a tag with a digest reference: %s", target)
	}
	if strings.HasSuffix(reference.Path(named), "/sha256") && reference.FamiliarName(named) == "sha256" {
		return nil, fault.New(fault.InvalidArgument, "refusing to create an ambiguous tag using digest algorithm as name")
	}
	return reference.TagNameOnly(named), nil
}
