package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// dockerManifest is an entry of manifest.json, by which Docker loads an archive.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Save writes images as one archive that is an OCI layout and what `docker load` takes at once. refs are names, names
// with digest, IDs, or names without tag for all of a repository's. The same images give the same bytes, on any host and
// at any time: files come in order of name, with no times, and layers as they came. only chooses platforms of each; none:
// all that are on this host.
func (s *Store) Save(ctx context.Context, refs []string, w io.Writer, only ...ocispec.Platform) (err error) {
	if len(refs) == 0 {
		return fault.New(fault.InvalidArgument, "no image to save was named")
	}
	chosen := map[string]map[string]bool{} // image ID → names to save it under
	for _, ref := range refs {
		if err := s.choose(ref, chosen); err != nil {
			return err
		}
	}
	ctx, done, err := s.withLease(s.ns(ctx))
	if err != nil {
		return err
	}
	defer done()

	var (
		cs        = s.content()
		blobs     = map[digest.Digest]ocispec.Descriptor{}
		index     = ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
		manifests []dockerManifest
	)
	for _, id := range slices.Sorted(maps.Keys(chosen)) {
		img := s.byID(id)
		if img == nil {
			return fault.New(fault.NotFound, "No such image: %s", id)
		}
		if err := s.leaseImage(ctx, img); err != nil {
			return err
		}
		names := slices.Sorted(maps.Keys(chosen[id]))
		roots, first, err := img.roots(only)
		if err != nil {
			return err
		}
		for _, root := range roots {
			if err := s.everything(ctx, root, 0, func(b ocispec.Descriptor) { blobs[b.Digest] = b }); err != nil {
				return err
			}
			if err := addNames(&index, root, names); err != nil {
				return err
			}
		}
		// For those who know no platforms, one has the names.
		m, err := readManifest(ctx, cs, first)
		if err != nil {
			return err
		}
		dm := dockerManifest{Config: blobPath(m.Config.Digest), RepoTags: []string{}, Layers: []string{}}
		for _, l := range m.Layers {
			dm.Layers = append(dm.Layers, blobPath(l.Digest))
		}
		for _, name := range names {
			dm.RepoTags = append(dm.RepoTags, Familiar(name))
		}
		manifests = append(manifests, dm)
	}

	// In order of name: blobs/… comes before index.json, manifest.json and oci-layout.
	tw := tar.NewWriter(w)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	for _, d := range slices.Sorted(maps.Keys(blobs)) {
		if err := writeBlobFile(ctx, cs, tw, blobs[d]); err != nil {
			return fmt.Errorf("saving blob %s: %w", d, err)
		}
	}
	for _, f := range []struct {
		name string
		v    any
	}{
		{ocispec.ImageIndexFile, index},
		{"manifest.json", manifests},
		{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}},
	} {
		b, err := json.Marshal(f.v)
		if err != nil {
			return err
		}
		if err := writeFile(tw, f.name, int64(len(b)), bytes.NewReader(b)); err != nil {
			return err
		}
	}
	return tw.Close()
}

// addNames lists a manifest or index in an archive's index under its names.
func addNames(index *ocispec.Index, root ocispec.Descriptor, names []string) error {
	if len(names) == 0 {
		index.Manifests = append(index.Manifests, root)
	}
	for _, name := range names {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return err
		}
		d := root
		d.Annotations = map[string]string{images.AnnotationImageName: name}
		if t, ok := named.(reference.Tagged); ok {
			d.Annotations[ocispec.AnnotationRefName] = t.Tag()
		}
		index.Manifests = append(index.Manifests, d)
	}
	return nil
}

// choose adds what ref means to a save.
func (s *Store) choose(ref string, chosen map[string]map[string]bool) error {
	add := func(id string, names ...string) {
		if chosen[id] == nil {
			chosen[id] = map[string]bool{}
		}
		for _, n := range names {
			chosen[id][n] = true
		}
	}
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(named) {
		// All tags of the repository, unless ref is an ID after all.
		some := false
		s.index.mu.RLock()
		for name, id := range s.index.names {
			if rest, ok := strings.CutPrefix(name, named.Name()+":"); ok && !strings.Contains(rest, "/") {
				add(id, name)
				some = true
			}
		}
		s.index.mu.RUnlock()
		if some {
			return nil
		}
	}
	img, name, err := s.find(ref)
	if err != nil {
		return err
	}
	if name == "" || strings.Contains(name, "@") {
		add(img.ID)
	} else {
		add(img.ID, name)
	}
	return nil
}

func blobPath(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

func writeBlobFile(ctx context.Context, cs content.Provider, tw *tar.Writer, d ocispec.Descriptor) error {
	ra, err := cs.ReaderAt(ctx, d)
	if err != nil {
		return err
	}
	defer ra.Close()
	return writeFile(tw, blobPath(d.Digest), ra.Size(), content.NewReader(ra))
}

func writeFile(tw *tar.Writer, name string, size int64, r io.Reader) error {
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err := io.Copy(tw, r)
	return err
}
