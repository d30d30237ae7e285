package image

import (
	"context"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

// RunningPrefix may go before a container's ID in what an inUse function returns, to say that the container runs: its
// image cannot be removed even by force. One whose root file system is mounted counts as running without it.
const RunningPrefix = "running:"

// users are the containers that use an image, running ones first.
func (s *Store) users(inUse func(string) []string, id string) (ids []string, running bool) {
	if inUse == nil {
		return nil, false
	}
	list := slices.Clone(inUse(id))
	if len(list) > 0 {
		mounted := s.mountedContainers()
		for i, c := range list {
			if mounted[c] {
				list[i] = RunningPrefix + c
			}
		}
	}
	slices.SortStableFunc(list, func(a, b string) int {
		ra, rb := strings.HasPrefix(a, RunningPrefix), strings.HasPrefix(b, RunningPrefix)
		switch {
		case ra && !rb:
			return -1
		case rb && !ra:
			return 1
		}
		return 0
	})
	for i, c := range list {
		if rest, ok := strings.CutPrefix(c, RunningPrefix); ok {
			list[i], running = rest, true
		}
	}
	return list, running
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// Remove removes a name of an image, and the image with its last name; or, given an ID, the image. It follows Docker: an
// image that containers use needs force, one that runs cannot be removed, one with names in several repositories needs
// force when named by ID. prune is kept for Docker's option: an image here has no untagged parents to remove with it.
// inUse returns the IDs of containers that use an image, see RunningPrefix; nil: none. What the image leaves is deleted
// before Remove returns, but for layers that other images and containers stand on.
func (s *Store) Remove(ctx context.Context, ref string, force, prune bool, inUse func(imageID string) []string) ([]Removed, error) {
	ctx = s.ns(ctx)
	s.removing.Lock() // between looking for conflicts and removing, no other removal
	defer s.removing.Unlock()
	img, name, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	names := s.namesOf(img.ID)
	containers, running := s.users(inUse, img.ID)

	if byID := name == "" && !strings.Contains(ref, "@"); !byID {
		if !force && len(containers) > 0 && singleReference(names) {
			return nil, fault.New(fault.Conflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
				ref, shortID(containers[0]), shortID(img.ID))
		}
		drop := []string{name}
		rest := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
		if named, err := reference.ParseNormalizedNamed(ref); err == nil && (name == "" || strings.Contains(name, "@")) {
			// REPOSITORY@DIGEST stands for all names of that repository.
			of := func(n string) bool { return repoOf(n) == named.Name() }
			drop = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !of(n) })
			rest = slices.DeleteFunc(slices.Clone(names), of)
		} else {
			// With the last tag of a repository its digests go too.
			repo := repoOf(name)
			if !slices.ContainsFunc(rest, func(n string) bool { return !strings.Contains(n, "@") && repoOf(n) == repo }) {
				for _, n := range slices.Clone(rest) {
					if strings.Contains(n, "@") && repoOf(n) == repo {
						drop = append(drop, n)
						rest = slices.DeleteFunc(rest, func(x string) bool { return x == n })
					}
				}
			}
		}
		var out []Removed
		for _, n := range drop {
			out = append(out, Removed{Untagged: Familiar(n), ImageID: img.ID})
		}
		if len(rest) > 0 || running || (len(containers) > 0 && !force) {
			// Named otherwise still, or in use: then it stays without a name.
			return out, s.dropNames(ctx, img, drop, true)
		}
		deleted, _, err := s.deleteImage(ctx, img, drop)
		return append(out, deleted...), err
	}

	if err := s.deleteConflict(img, names, force, inUse); err != nil {
		return nil, err
	}
	var out []Removed
	for _, n := range names {
		out = append(out, Removed{Untagged: Familiar(n), ImageID: img.ID})
	}
	deleted, _, err := s.deleteImage(ctx, img, names)
	return append(out, deleted...), err
}

// deleteConflict is the reason why an image cannot be deleted, nil if there is none.
func (s *Store) deleteConflict(img *Image, names []string, force bool, inUse func(string) []string) error {
	containers, running := s.users(inUse, img.ID)
	switch {
	case running:
		return fault.New(fault.Conflict, "conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", shortID(img.ID), shortID(containers[0]))
	case !force && len(names) > 0 && !singleReference(names):
		return fault.New(fault.Conflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", shortID(img.ID))
	case !force && len(containers) > 0:
		return fault.New(fault.Conflict, "conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", shortID(img.ID), shortID(containers[0]))
	}
	return nil
}

// deleteImage removes an image with its names, which are all that the caller knows of, and what only it referred to. freed
// is the space of that. An image that has been given another name meanwhile stays with that.
func (s *Store) deleteImage(ctx context.Context, img *Image, names []string) (out []Removed, freed int64, err error) {
	out = []Removed{{Deleted: img.ID, ImageID: img.ID}}
	gone, err := s.onlyOf(img)
	if err != nil {
		return nil, 0, err
	}
	there := slices.DeleteFunc(slices.Clone(gone), func(c string) bool { // a platform may not be unpacked
		_, err := s.snapshots().Stat(ctx, c)
		return err != nil
	})
	freed = s.sumUsage(ctx, there)
	if err := s.dropNames(ctx, img, names, false); err != nil {
		return nil, 0, err
	}
	if s.byID(img.ID) != nil {
		return nil, 0, nil
	}
	if err := failpoint.Hit("engine/image.remove.before-collection"); err != nil {
		return nil, 0, err
	}
	for _, c := range slices.Backward(there) {
		out = append(out, Removed{Deleted: c})
	}
	return out, freed, s.GC(ctx)
}

// onlyOf are the layers, lowest first, that no other image and no container stands on.
func (s *Store) onlyOf(img *Image) ([]string, error) {
	s.rootfs.mu.RLock()
	used, err := s.usedChains()
	s.rootfs.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	mine := chainsOf(img.Layers)
	shared := 0 // so many of the lowest are somebody else's too
	for _, other := range s.all() {
		if other.ID == img.ID {
			continue
		}
		for i, c := range chainsOf(other.Layers) {
			if i < len(mine) && mine[i] == c {
				shared = max(shared, i+1)
			}
		}
	}
	for i, c := range mine {
		if used[c] {
			shared = max(shared, i+1)
		}
	}
	return mine[shared:], nil
}

// Prune removes the images that filter accepts and no container uses, with all their names, and what interrupted pulls
// left. freed is the space it gave back.
func (s *Store) Prune(ctx context.Context, filter func(Image) bool, inUse func(imageID string) []string) (out []Removed, freed int64, err error) {
	ctx = s.ns(ctx)
	s.removing.Lock()
	defer s.removing.Unlock()
	list, err := s.List(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, c := range list {
		if err := ctx.Err(); err != nil {
			return out, freed, err
		}
		if filter != nil && !filter(c) {
			continue
		}
		if containers, _ := s.users(inUse, c.ID); len(containers) > 0 {
			continue
		}
		img := s.byID(c.ID)
		if img == nil {
			continue
		}
		names := s.namesOf(img.ID)
		for _, n := range names {
			out = append(out, Removed{Untagged: Familiar(n), ImageID: img.ID})
		}
		deleted, n, err := s.deleteImage(ctx, img, names)
		out = append(out, deleted...)
		freed += n
		if err != nil {
			return out, freed, err
		}
	}
	// Also without an image to remove: what an interrupted pull or a removed container left.
	left, err := s.dropInterrupted(ctx, "")
	if err != nil {
		return out, freed, err
	}
	before := s.sizes(ctx, left)
	if err := s.GC(ctx); err != nil {
		return out, freed, err
	}
	after := s.sizes(ctx, left)
	for r, n := range before {
		if _, still := after[r]; !still {
			freed += n
		}
	}
	return out, freed, nil
}

// singleReference reports whether all names are of one repository with at most one tag.
func singleReference(names []string) bool {
	tags, repos := 0, map[string]bool{}
	for _, n := range names {
		repos[repoOf(n)] = true
		if !strings.Contains(n, "@") {
			tags++
		}
	}
	return len(repos) == 1 && tags <= 1
}

func repoOf(name string) string {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return n.Name()
}
