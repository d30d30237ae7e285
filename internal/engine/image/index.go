package image

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// index is what is known of images without opening a file: it mirrors the image records of the metadata database, which
// stay the truth. Images in it are never changed, only replaced.
type index struct {
	mu    sync.RWMutex
	names map[string]string // full name (docker.io/library/x:latest, or …@sha256:…) → image ID
	byID  map[string]*Image
	parts map[string]*Image        // by the digests of their configs and platforms' manifests
	blobs map[digest.Digest]*Image // by target: what its blobs say, read once
}

// danglingPrefix starts the record of an image that has no name. No reference of a registry can look like it.
const danglingPrefix = "<none>@"

// reload reads the image records and updates the index.
func (s *Store) reload(ctx context.Context) error {
	recs, err := s.records().List(ctx)
	if err != nil {
		return err
	}
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	var (
		names = make(map[string]string, len(recs))
		byID  = make(map[string]*Image, len(recs))
		blobs = make(map[digest.Digest]*Image, len(recs))
	)
	for _, r := range recs {
		base := s.index.blobs[r.Target.Digest]
		if base == nil {
			if base, err = s.readImage(ctx, r.Target); err != nil {
				s.log.Error("image left out: its content cannot be read; pull or load it again", "name", r.Name, "err", err)
				continue
			}
		}
		blobs[r.Target.Digest] = base
		img := byID[base.ID]
		if img == nil {
			c := *base
			img = &c
			byID[base.ID] = img
		}
		names[r.Name] = base.ID
		if r.UpdatedAt.After(img.LastTagged) {
			img.LastTagged = r.UpdatedAt
		}
		if strings.HasPrefix(r.Name, danglingPrefix) {
			continue
		}
		ref, err := reference.ParseNormalizedNamed(r.Name)
		if err != nil {
			continue
		}
		if _, ok := ref.(reference.Digested); ok {
			img.RepoDigests = append(img.RepoDigests, reference.FamiliarString(ref))
		} else {
			img.RepoTags = append(img.RepoTags, reference.FamiliarString(ref))
			img.RepoDigests = append(img.RepoDigests, reference.FamiliarName(ref)+"@"+img.ID)
		}
	}
	parts := map[string]*Image{}
	for _, img := range byID {
		slices.Sort(img.RepoTags)
		slices.Sort(img.RepoDigests)
		img.RepoDigests = slices.Compact(img.RepoDigests)
		parts[img.ConfigID] = img
		for _, m := range img.Manifests {
			parts[m.Descriptor.Digest.String()] = img
		}
	}
	s.index.names, s.index.byID, s.index.blobs, s.index.parts = names, byID, blobs, parts
	return nil
}

// forget makes the next reload read a target's blobs again.
func (s *Store) forget(target digest.Digest) {
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	delete(s.index.blobs, target)
}

// readImage reads what the blobs of an image say.
func (s *Store) readImage(ctx context.Context, target ocispec.Descriptor) (*Image, error) {
	if !isIndex(target.MediaType) {
		return s.readPlatform(ctx, target, target)
	}
	list, err := s.readManifests(ctx, target, 0)
	if err != nil {
		return nil, err
	}
	m, err := shown(list)
	if err != nil {
		return nil, err
	}
	img, err := s.readPlatform(ctx, target, m.Descriptor)
	if err != nil {
		return nil, err
	}
	img.Manifests = list
	return img, nil
}

// readPlatform reads what the blobs of one manifest of an image say.
func (s *Store) readPlatform(ctx context.Context, target, manifest ocispec.Descriptor) (*Image, error) {
	cs := s.content()
	m, err := readManifest(ctx, cs, manifest)
	if err != nil {
		return nil, err
	}
	c, err := readConfig(ctx, cs, m.Config, len(m.Layers))
	if err != nil {
		return nil, err
	}
	img := imageOf(target, manifest, m.Config.Digest, c)
	img.Content = manifest.Size
	for _, b := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if _, err := cs.Info(ctx, b.Digest); err == nil {
			img.Content += b.Size
		}
	}
	for i, chain := range chainsOf(img.Layers) {
		u, err := s.snapshots().Usage(ctx, chain)
		switch {
		case errdefs.IsNotFound(err) && target.Digest != manifest.Digest:
			u.Size = m.Layers[i].Size // a platform that is not unpacked
		case err != nil:
			return nil, fmt.Errorf("layer %s: %w", chain, err)
		}
		img.LayerSizes = append(img.LayerSizes, u.Size)
		img.Size += u.Size
	}
	return img, nil
}

var hexPrefix = regexp.MustCompile(`^(sha256:)?[0-9a-f]{1,64}$`)

// parseRef parses the name of an image as users write it and adds the default tag.
func parseRef(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fault.As(fault.InvalidArgument, err) // Docker's words
	}
	// With a tag and a digest the digest decides, as everywhere in Docker.
	if d, ok := named.(reference.Digested); ok {
		return reference.WithDigest(reference.TrimNamed(named), d.Digest())
	}
	return reference.TagNameOnly(named), nil
}

// find resolves ref: a name, a name with digest, an ID, or the unique prefix of one. name is the full name when it was
// found by that. It returns an Image of the index.
func (s *Store) find(ref string) (img *Image, name string, err error) {
	if ref == "" {
		return nil, "", fault.New(fault.InvalidArgument, "image name cannot be blank")
	}
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	full, isID := strings.CutPrefix(ref, "sha256:")
	if len(full) == 64 && hexPrefix.MatchString(full) {
		if img := s.index.byID["sha256:"+full]; img != nil {
			return img, "", nil
		}
		if img := s.index.parts["sha256:"+full]; img != nil {
			return img, "", nil
		}
		if isID {
			return nil, "", fault.New(fault.NotFound, "No such image: %s", ref)
		}
	}
	shown := ref
	named, perr := parseRef(ref)
	if perr == nil {
		shown = reference.FamiliarString(named)
		if id, ok := s.index.names[named.String()]; ok {
			return s.index.byID[id], named.String(), nil
		}
		if d, ok := named.(reference.Digested); ok {
			// The digest of the platform's own manifest names the image as well as that of the index it came from.
			for _, img := range s.index.byID {
				if (img.Target.Digest == d.Digest() || img.Manifest.Digest == d.Digest()) && hasRepo(img, named) {
					return img, "", nil
				}
			}
		}
	}
	if hexPrefix.MatchString(ref) {
		var found *Image
		for id, img := range s.index.byID {
			if strings.HasPrefix(id, "sha256:"+full) {
				if found != nil {
					return nil, "", fault.New(fault.InvalidArgument, "image ID prefix %s is ambiguous: give more of it", ref)
				}
				found = img
			}
		}
		if found != nil {
			return found, "", nil
		}
	}
	if perr != nil {
		return nil, "", perr
	}
	return nil, "", fault.New(fault.NotFound, "No such image: %s", shown)
}

func hasRepo(img *Image, named reference.Named) bool {
	familiar := reference.FamiliarName(named)
	for _, r := range slices.Concat(img.RepoTags, img.RepoDigests) {
		if n, err := reference.ParseNormalizedNamed(r); err == nil && reference.FamiliarName(n) == familiar {
			return true
		}
	}
	return false
}

// Get finds an image by name, name@digest, ID or unique prefix of one. The error for a missing one is fault.NotFound
// with Docker's words.
func (s *Store) Get(_ context.Context, ref string) (Image, error) {
	img, _, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	return img.clone(), nil
}

// List returns every image, newest first. An image without a name has neither RepoTags nor, mostly, RepoDigests.
func (s *Store) List(context.Context) ([]Image, error) {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	out := make([]Image, 0, len(s.index.byID))
	for _, img := range s.index.byID {
		out = append(out, img.clone())
	}
	slices.SortFunc(out, func(a, b Image) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

// namesOf returns the full names of an image, sorted, the dangling record's left out.
func (s *Store) namesOf(id string) []string {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	var out []string
	for name, i := range s.index.names {
		if i == id && !strings.HasPrefix(name, danglingPrefix) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// byID returns an image of the index, nil when there is none.
func (s *Store) byID(id string) *Image {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	return s.index.byID[id]
}

// all returns the images of the index.
func (s *Store) all() []*Image {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	return slices.Collect(maps.Values(s.index.byID))
}

// stamp is the time that names get; a name's newest is its image's LastTagged.
func stamp() time.Time { return time.Now().UTC() }
