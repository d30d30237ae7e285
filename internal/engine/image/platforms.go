package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Kinds of entries of an index.
const (
	KindImage       = "image"
	KindAttestation = "attestation" // what a builder says of an image: its provenance, what is in it
	KindUnknown     = "unknown"
)

// How builders mark attestations in an index.
const (
	annotationRefType   = "vnd.docker.reference.type"
	annotationRefDigest = "vnd.docker.reference.digest"
	attestationRefType  = "attestation-manifest"
)

// Manifest is an entry of an image for several platforms.
type Manifest struct {
	Descriptor ocispec.Descriptor
	Platform   ocispec.Platform
	Kind       string
	Of         digest.Digest // of an attestation: the manifest it is about
	// Available says that all its blobs are on this host.
	Available bool
	Content   int64 // bytes of its blobs on this host
	Unpacked  int64 // bytes of its layers, if they are unpacked
}

// readManifests reads what an index lists, in its order, with what of it is on this host. Indexes in it are followed.
func (s *Store) readManifests(ctx context.Context, index ocispec.Descriptor, depth int) ([]Manifest, error) {
	if depth > maxDepth {
		return nil, fault.New(fault.InvalidArgument, "index %s: more than %d indexes within each other", index.Digest, maxDepth)
	}
	idx, err := readIndex(ctx, s.content(), index)
	if err != nil {
		return nil, err
	}
	var out []Manifest
	for _, d := range idx.Manifests {
		if err := checkDescriptor(d); err != nil {
			return nil, fault.New(fault.InvalidArgument, "index %s: %w", index.Digest, err)
		}
		if isIndex(d.MediaType) {
			inner, err := s.readManifests(ctx, d, depth+1)
			if err != nil && !errdefs.IsNotFound(err) {
				return nil, err
			}
			out = append(out, inner...)
			continue
		}
		out = append(out, s.readEntry(ctx, d))
	}
	return out, nil
}

// maxDepth is how many indexes may be within each other.
const maxDepth = 3

// readEntry looks at one entry of an index. What cannot be read is not available.
func (s *Store) readEntry(ctx context.Context, d ocispec.Descriptor) Manifest {
	e := Manifest{Descriptor: d, Kind: KindUnknown}
	if d.Platform != nil {
		e.Platform = *d.Platform
	}
	if d.Annotations[annotationRefType] == attestationRefType {
		e.Kind, e.Of = KindAttestation, digest.Digest(d.Annotations[annotationRefDigest])
	} else if isManifest(d.MediaType) && e.Platform.OS != "unknown" {
		e.Kind = KindImage
	}
	m, err := readManifest(ctx, s.content(), d)
	if err != nil {
		return e
	}
	e.Content, e.Available = d.Size, true
	for _, b := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if _, err := s.content().Info(ctx, b.Digest); err != nil {
			e.Available = false
			continue
		}
		e.Content += b.Size
	}
	if e.Kind != KindImage || !e.Available {
		return e
	}
	c, err := readConfig(ctx, s.content(), m.Config, len(m.Layers))
	if err != nil {
		e.Available = false
		return e
	}
	if d.Platform == nil {
		e.Platform = ocispec.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	}
	if chain := chainOf(c.RootFS.DiffIDs); chain != "" {
		for _, name := range chainsOf(stringsOf(c.RootFS.DiffIDs)) {
			u, err := s.snapshots().Usage(ctx, name)
			if err != nil {
				e.Unpacked = 0
				break
			}
			e.Unpacked += u.Size
		}
	}
	return e
}

func stringsOf(ids []digest.Digest) []string {
	out := make([]string, len(ids))
	for i, d := range ids {
		out[i] = d.String()
	}
	return out
}

var errNothingHere = errors.New("nothing of it is on this host")

// shown is the manifest by which an image for several platforms is shown and run: the best for this host, else the
// first there is.
func shown(list []Manifest) (*Manifest, error) {
	if best := bestOf(list, platforms.Default()); best != nil {
		return best, nil
	}
	for i := range list {
		if list[i].Available && list[i].Kind == KindImage {
			return &list[i], nil
		}
	}
	return nil, fault.As(fault.NotFound, errNothingHere)
}

// bestOf is the best available image of a platform, nil when there is none.
func bestOf(list []Manifest, match platforms.MatchComparer) (best *Manifest) {
	for i := range list {
		m := &list[i]
		if !m.Available || m.Kind != KindImage || !match.Match(platforms.Normalize(m.Platform)) {
			continue
		}
		if best == nil || match.Less(platforms.Normalize(m.Platform), platforms.Normalize(best.Platform)) {
			best = m
		}
	}
	return best
}

// ForPlatform is Get for one platform (OS/ARCH[/VARIANT]) of an image for several. It is fault.NotFound when that is not on
// this host; an image for one platform is returned as it is, whatever platform that is.
func (s *Store) ForPlatform(ctx context.Context, ref, platform string) (Image, error) {
	img, _, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	return s.forPlatform(ctx, img, ref, platform)
}

// forPlatform is ForPlatform of an image that has been found by ref.
func (s *Store) forPlatform(ctx context.Context, img *Image, ref, platform string) (Image, error) {
	if platform == "" || len(img.Manifests) == 0 {
		return img.clone(), nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return Image{}, fault.New(fault.InvalidArgument, "platform %q: %w", platform, err)
	}
	m := bestOf(img.Manifests, platforms.Only(p))
	if m == nil {
		return Image{}, fault.New(fault.NotFound, "image with reference %s was found but does not provide the specified platform (%s)", ref, platform)
	}
	return s.view(ctx, img, m)
}

// view is an image as its manifest m shows it.
func (s *Store) view(ctx context.Context, img *Image, m *Manifest) (Image, error) {
	if m.Descriptor.Digest == img.Manifest.Digest {
		return img.clone(), nil
	}
	v, err := s.readPlatform(s.ns(ctx), img.Target, m.Descriptor)
	if errdefs.IsNotFound(err) {
		return Image{}, fault.New(fault.NotFound, "No such image: %s", img.ID) // removed since it was found
	}
	if err != nil {
		return Image{}, err
	}
	v.RepoTags, v.RepoDigests, v.LastTagged, v.Manifests = img.RepoTags, img.RepoDigests, img.LastTagged, img.Manifests
	return v.clone(), nil
}

// unpacked extracts the layers of one platform of an image that is on this host and may not be unpacked.
func (s *Store) unpacked(ctx context.Context, img *Image) (err error) {
	ctx, done, err := s.withLease(s.ns(ctx))
	if err != nil {
		return err
	}
	defer s.after(ctx, done, &err)
	if err := s.leaseImage(ctx, img); err != nil {
		return err
	}
	_, err = s.adoptManifest(ctx, img.Manifest, nil)
	return err
}

// RemovePlatforms removes platforms of an image for several: their manifests and what only those referred to. The image
// goes with the last of them. inUse is that of Remove, asked with a manifest's digest.
func (s *Store) RemovePlatforms(ctx context.Context, ref string, list []ocispec.Platform, force bool, inUse func(string) []string) (out []Removed, err error) {
	ctx = s.ns(ctx)
	s.removing.Lock()
	defer s.removing.Unlock()
	img, _, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	going := map[digest.Digest]bool{}
	for _, p := range list {
		m := bestOf(img.Manifests, platforms.OnlyStrict(platforms.Normalize(p)))
		if m == nil {
			return nil, fault.New(fault.NotFound, "image with reference %s was found but does not provide the specified platform (%s)", ref, platforms.FormatAll(p))
		}
		containers, running := s.users(inUse, m.Descriptor.Digest.String())
		if running || len(containers) > 0 && !force {
			return nil, fault.New(fault.Conflict, "conflict: unable to delete %s - its platform %s is used by container %s",
				ref, platforms.FormatAll(p), shortID(containers[0]))
		}
		going[m.Descriptor.Digest] = true
		out = append(out, Removed{Deleted: m.Descriptor.Digest.String(), ImageID: img.ID})
	}
	left := slices.ContainsFunc(img.Manifests, func(m Manifest) bool {
		return m.Available && m.Kind == KindImage && !going[m.Descriptor.Digest]
	})
	if !left {
		names := s.namesOf(img.ID)
		for _, n := range names {
			out = append(out, Removed{Untagged: Familiar(n), ImageID: img.ID})
		}
		deleted, _, err := s.deleteImage(ctx, img, names)
		return append(out, deleted...), err
	}
	if err := s.unbind(ctx, img.Target, going, 0); err != nil {
		return nil, err
	}
	if err := s.GC(ctx); err != nil {
		return nil, err
	}
	return out, s.reread(ctx, img.Target.Digest)
}

// bindIndex ties an index to what of it is on this host, for the garbage collector.
func (s *Store) bindIndex(ctx context.Context, index ocispec.Descriptor, depth int) error {
	if depth > maxDepth {
		return fault.New(fault.InvalidArgument, "index %s: more than %d indexes within each other", index.Digest, maxDepth)
	}
	cs := s.content()
	idx, err := readIndex(ctx, cs, index)
	if err != nil {
		return err
	}
	labels := map[string]string{}
	for i, d := range idx.Manifests {
		if err := checkDescriptor(d); err != nil {
			return fault.New(fault.InvalidArgument, "index %s: %w", index.Digest, err)
		}
		if _, err := cs.Info(ctx, d.Digest); errdefs.IsNotFound(err) {
			continue
		} else if err != nil {
			return err
		}
		switch {
		case isIndex(d.MediaType):
			err = s.bindIndex(ctx, d, depth+1)
		case isManifest(d.MediaType):
			var m ocispec.Manifest
			if m, err = readManifest(ctx, cs, d); err == nil {
				err = setLabels(ctx, cs, d.Digest, contentLabels(m))
			}
		}
		if err != nil {
			return err
		}
		labels[childLabel(i)] = d.Digest.String()
	}
	return setLabels(ctx, cs, index.Digest, labels)
}

func childLabel(i int) string { return fmt.Sprintf("%sm.%d", labelRefContent, i) }

// unbind undoes bindIndex for some manifests.
func (s *Store) unbind(ctx context.Context, index ocispec.Descriptor, going map[digest.Digest]bool, depth int) error {
	idx, err := readIndex(ctx, s.content(), index)
	if errdefs.IsNotFound(err) && depth > 0 {
		return nil
	} else if err != nil {
		return err
	}
	labels := map[string]string{}
	for i, d := range idx.Manifests {
		switch {
		case going[d.Digest]:
			labels[childLabel(i)] = "" // removes it
		case isIndex(d.MediaType) && depth < maxDepth:
			if err := s.unbind(ctx, d, going, depth+1); err != nil {
				return err
			}
		}
	}
	if len(labels) == 0 {
		return nil
	}
	return setLabels(ctx, s.content(), index.Digest, labels)
}

// contentLabels are the labels by which the garbage collector goes from a manifest to its config and layers.
func contentLabels(m ocispec.Manifest) map[string]string {
	labels := map[string]string{labelRefContent + "config": m.Config.Digest.String()}
	for i, l := range m.Layers {
		labels[fmt.Sprintf("%sl.%d", labelRefContent, i)] = l.Digest.String()
	}
	return labels
}

// everything lists the blobs of an image that are on this host, its target among them: of an index all its entries.
func (s *Store) everything(ctx context.Context, d ocispec.Descriptor, depth int, add func(ocispec.Descriptor)) error {
	cs := s.content()
	switch {
	case isIndex(d.MediaType) && depth <= maxDepth:
		idx, err := readIndex(ctx, cs, d)
		if err != nil {
			return err
		}
		for _, child := range idx.Manifests {
			if _, err := cs.Info(ctx, child.Digest); err == nil {
				if err := s.everything(ctx, child, depth+1, add); err != nil {
					return err
				}
			}
		}
	case isManifest(d.MediaType):
		m, err := readManifest(ctx, cs, d)
		if err != nil {
			return err
		}
		for _, b := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
			if _, err := cs.Info(ctx, b.Digest); err == nil {
				add(b)
			}
		}
	}
	add(d) // after what it refers to
	return nil
}

// whole reports whether everything of an image for several platforms is on this host.
func (i *Image) whole() bool {
	return !slices.ContainsFunc(i.Manifests, func(m Manifest) bool { return !m.Available })
}

// findPlatform finds an image by ID, or one platform of it by the digest of its manifest.
func (s *Store) findPlatform(ctx context.Context, id string) (*Image, error) {
	img, _, err := s.find(id)
	if err != nil || id == img.ID {
		return img, err
	}
	for i := range img.Manifests {
		if m := &img.Manifests[i]; m.Descriptor.Digest.String() == id {
			v, err := s.view(ctx, img, m)
			return &v, err
		}
	}
	return img, nil
}

// roots are the documents that an image is made of for some platforms: its target, or with only the manifests for those;
// first is the one that whoever knows no platforms gets. Each of the platforms must be on this host.
func (i *Image) roots(only []ocispec.Platform) (list []ocispec.Descriptor, first ocispec.Descriptor, err error) {
	name := shortID(i.ID)
	if len(i.RepoTags) > 0 {
		name = i.RepoTags[0]
	}
	if len(only) == 0 {
		d := ocispec.Descriptor{MediaType: i.Target.MediaType, Digest: i.Target.Digest, Size: i.Target.Size}
		if i.OS != "" && len(i.Manifests) == 0 {
			d.Platform = &ocispec.Platform{OS: i.OS, Architecture: i.Architecture, Variant: i.Variant}
		}
		return []ocispec.Descriptor{d}, i.Manifest, nil
	}
	all := i.Manifests
	if len(all) == 0 {
		all = []Manifest{{Descriptor: i.Manifest, Kind: KindImage, Available: true, Platform: ocispec.Platform{OS: i.OS, Architecture: i.Architecture, Variant: i.Variant}}}
	}
	for _, p := range only {
		m := bestOf(all, platforms.OnlyStrict(platforms.Normalize(p)))
		if m == nil {
			return nil, first, fault.New(fault.NotFound, "image with reference %s was found but does not provide the specified platform (%s)", name, platforms.FormatAll(p))
		}
		d := ocispec.Descriptor{MediaType: m.Descriptor.MediaType, Digest: m.Descriptor.Digest, Size: m.Descriptor.Size, Platform: &m.Platform}
		if !slices.ContainsFunc(list, func(have ocispec.Descriptor) bool { return have.Digest == d.Digest }) {
			list = append(list, d)
		}
	}
	return list, list[0], nil
}

// others are the images of what an index or manifest lists that run on none of some platforms; every is true if all do
// that.
func (s *Store) others(ctx context.Context, target ocispec.Descriptor, only []ocispec.Platform) (others map[digest.Digest]bool, every bool, err error) {
	list := []Manifest{s.readEntry(ctx, target)}
	if isIndex(target.MediaType) {
		if list, err = s.readManifests(ctx, target, 0); err != nil {
			return nil, false, err
		}
	}
	others, every = map[digest.Digest]bool{}, true
	for _, m := range list {
		if !m.Available || m.Kind != KindImage {
			continue
		}
		if slices.ContainsFunc(only, func(p ocispec.Platform) bool {
			return platforms.OnlyStrict(platforms.Normalize(p)).Match(platforms.Normalize(m.Platform))
		}) {
			every = false
			continue
		}
		others[m.Descriptor.Digest] = true
	}
	return others, every, nil
}
