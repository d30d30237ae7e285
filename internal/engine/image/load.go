package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/image/layer"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

// ownIngests is a content store to which blobs come under names of their own: those of an archive come under the names of
// their files, which another archive that is loaded at the time has as well.
type ownIngests struct {
	content.Store
	prefix string
}

// Writer begins to write a blob, or goes on with one.
func (o ownIngests) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var w content.WriterOpts
	for _, opt := range opts {
		if err := opt(&w); err != nil {
			return nil, err
		}
	}
	return o.Store.Writer(ctx, append(slices.Clip(opts), content.WithRef(o.prefix+w.Ref))...)
}

// found is an image of an archive.
type found struct {
	target ocispec.Descriptor
	names  []string
}

// Load takes every image of an archive into the store: one that `docker save` wrote in any version since 1.10, or an OCI
// layout, plain or compressed with gzip, zstd, xz or bzip2. Of an image for several
// platforms all that the archive has is kept, or those of only, and this host's is unpacked. It returns the images; a line
// of progress "Loaded image: NAME" (or "Loaded image ID: ID") goes out for each.
func (s *Store) Load(ctx context.Context, r io.Reader, progress func(Progress), only ...ocispec.Platform) (out []Image, err error) {
	emit := serial(progress)
	ctx, done, err := s.withLease(s.ns(ctx))
	if err != nil {
		return nil, err
	}
	var trimmed []digest.Digest // indexes that were cut down to some platforms
	defer func() {
		if err == nil && len(trimmed) > 0 {
			err = s.trim(ctx, trimmed, out)
		}
	}()
	defer s.after(ctx, done, &err)

	cs := ownIngests{s.content(), "load-" + rand.Text() + "-"}
	defer func() { err = errors.Join(err, abortIngests(context.WithoutCancel(ctx), cs, cs.prefix)) }()

	stream, _, err := layer.Decompress(r)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "archive: %w", err)
	}
	defer stream.Close()
	idx, err := archive.ImportIndex(ctx, cs, stream)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, archiveError(err)
	}
	list, err := findImages(ctx, cs, idx)
	if err != nil {
		return nil, archiveError(err)
	}
	if len(list) == 0 {
		return nil, fault.New(fault.InvalidArgument, "the archive holds no image for %s", platforms.Format(platforms.DefaultSpec()))
	}
	for _, f := range list {
		var others map[digest.Digest]bool
		if len(only) > 0 {
			var every bool
			if others, every, err = s.others(ctx, f.target, only); err != nil {
				return out, archiveError(err)
			}
			if every {
				return out, fault.New(fault.NotFound, "requested platform(s) %s not found: the archive has no such image", formatAll(only))
			}
		}
		img, err := s.adopt(ctx, f.target, emit)
		if errors.Is(err, errNothingHere) {
			return out, fault.New(fault.InvalidArgument, "the archive holds no image for %s", platforms.Format(platforms.DefaultSpec()))
		}
		if err != nil {
			return out, archiveError(err)
		}
		if err := failpoint.Hit("engine/image.load.before-name"); err != nil {
			return out, err
		}
		loaded, err := s.setNames(ctx, img.ID, f.target, f.names...)
		if err != nil {
			return out, err
		}
		if len(others) > 0 {
			if err := s.unbind(ctx, f.target, others, 0); err != nil {
				return out, err
			}
			trimmed = append(trimmed, f.target.Digest)
		}
		out = append(out, loaded)
		for _, n := range f.names {
			emit(Progress{Status: "Loaded image: " + Familiar(n)})
		}
		if len(f.names) == 0 {
			emit(Progress{Status: "Loaded image ID: " + img.ID})
		}
	}
	return out, nil
}

// trim takes away what indexes no longer hold, once no lease does, and looks at their images anew.
func (s *Store) trim(ctx context.Context, indexes []digest.Digest, loaded []Image) error {
	if err := s.GC(ctx); err != nil {
		return err
	}
	if err := s.reread(ctx, indexes...); err != nil {
		return err
	}
	for i := range loaded {
		img, err := s.Get(ctx, loaded[i].ID)
		if fault.Is(err, fault.NotFound) {
			continue // loaded, and removed by somebody since
		}
		if err != nil {
			return err
		}
		loaded[i] = img
	}
	return nil
}

func formatAll(list []ocispec.Platform) string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = platforms.FormatAll(p)
	}
	return strings.Join(out, ", ")
}

// Familiar is an image's name as people write it: redis:7 and not docker.io/library/redis:7.
func Familiar(name string) string {
	if n, err := reference.ParseNormalizedNamed(name); err == nil {
		return reference.FamiliarString(n)
	}
	return name
}

// archiveError says that an archive is at fault, unless the error knows better.
func archiveError(err error) error {
	if fault.KindOf(err) != fault.Internal {
		return err
	}
	var syn *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errdefs.IsNotFound(err):
		return fault.New(fault.InvalidArgument, "the archive is not whole: %w", err)
	case isTarError(err), errors.As(err, &syn), errors.As(err, &typ), errdefs.IsInvalidArgument(err), errdefs.IsFailedPrecondition(err):
		return fault.New(fault.InvalidArgument, "not an image archive: %w", err)
	case strings.Contains(err.Error(), "unrecognized image format"):
		return fault.New(fault.InvalidArgument, "not an image archive: %w: it has neither a manifest.json nor an OCI layout; what Docker saved before 1.10 has to be loaded and saved by a Docker of 1.10 to 25 first", err)
	}
	return fault.New(fault.InvalidArgument, "archive: %w", err)
}

func abortIngests(ctx context.Context, cs content.Store, prefix string) error {
	list, err := cs.ListStatuses(ctx)
	if err != nil {
		return err
	}
	for _, st := range list {
		if strings.HasPrefix(st.Ref, prefix) {
			if err := cs.Abort(ctx, st.Ref); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
	}
	return nil
}

// findImages lists the images of an archive's index, those with several names once.
func findImages(ctx context.Context, p content.Provider, desc ocispec.Descriptor) ([]*found, error) {
	var list []*found
	seen := map[string]*found{}
	idx, err := readIndex(ctx, p, desc)
	if err != nil {
		return nil, err
	}
	for _, d := range idx.Manifests {
		name, err := nameInArchive(d)
		if err != nil {
			return nil, err
		}
		target, err := pick(ctx, p, d)
		if errors.Is(err, errNoPlatform) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f := seen[target.Digest.String()]
		if f == nil {
			f = &found{target: target}
			seen[target.Digest.String()] = f
			list = append(list, f)
		}
		if name != "" {
			f.names = append(f.names, name)
		}
	}
	return list, nil
}

var errNoPlatform = errors.New("nothing for this platform")

// pick is the descriptor of an image of an archive, a manifest or an index, without what the archive says of it.
func pick(ctx context.Context, p content.Provider, d ocispec.Descriptor) (ocispec.Descriptor, error) {
	if err := checkDescriptor(d); err != nil {
		return d, fault.New(fault.InvalidArgument, "index: %w", err)
	}
	clean := ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	switch {
	case isIndex(d.MediaType):
		_, err := readIndex(ctx, p, clean)
		return clean, err
	case !isManifest(d.MediaType), d.Platform != nil && d.Platform.OS == "unknown":
		return d, errNoPlatform
	}
	_, err := readManifest(ctx, p, clean)
	return clean, err
}

func readIndex(ctx context.Context, p content.Provider, desc ocispec.Descriptor) (ocispec.Index, error) {
	var idx ocispec.Index
	if desc.Size > maxManifest {
		return idx, fault.New(fault.InvalidArgument, "index %s has %d bytes; more than %d are refused", desc.Digest, desc.Size, maxManifest)
	}
	b, err := content.ReadBlob(ctx, p, desc)
	if err != nil {
		return idx, err
	}
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&idx); err != nil {
		return idx, fault.New(fault.InvalidArgument, "index %s: %w", desc.Digest, err)
	}
	return idx, nil
}

// nameInArchive is the full name that an archive gives an image, empty if none. In an OCI layout that did not come from
// Docker or containerd the annotation holds a bare tag, which names nothing by itself.
func nameInArchive(d ocispec.Descriptor) (string, error) {
	name := d.Annotations[images.AnnotationImageName]
	if name == "" {
		name = d.Annotations[ocispec.AnnotationRefName]
		if !strings.ContainsAny(name, "/:") {
			return "", nil
		}
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fault.New(fault.InvalidArgument, "image name %q: %w", name, err)
	}
	if _, ok := named.(reference.Digested); ok {
		return "", nil
	}
	return reference.TagNameOnly(named).String(), nil
}
