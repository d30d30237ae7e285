package image

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// annotationPredicate says, of a layer of an attestation, what kind of statement it is.
const annotationPredicate = "in-toto.io/predicate-type"

// maxStatement bounds a statement that is read into memory: a list of everything in a large image is some megabytes.
const maxStatement = 64 << 20

// Attestation is an in-toto statement that a builder put beside an image.
type Attestation struct {
	Descriptor    ocispec.Descriptor
	PredicateType string
	Statement     json.RawMessage // nil unless asked for
}

// Attestations returns the statements about a platform of an image; nil: this host's. types, if any, are the predicate
// types wanted.
func (s *Store) Attestations(ctx context.Context, ref string, platform *ocispec.Platform, types []string, statements bool) (_ []Attestation, err error) {
	ctx = s.ns(ctx)
	defer func() {
		if errdefs.IsNotFound(err) && !fault.Is(err, fault.NotFound) { // the image was removed since it was found
			err = fault.New(fault.NotFound, "No such image: %s", ref)
		}
	}()
	img, _, err := s.find(ref)
	if err != nil || len(img.Manifests) == 0 {
		return nil, err
	}
	match := platforms.Default()
	if platform != nil {
		match = platforms.OnlyStrict(platforms.Normalize(*platform))
	}
	about := bestOf(img.Manifests, match)
	if about == nil {
		return nil, fault.New(fault.NotFound, "image with reference %s was found but does not provide the specified platform", ref)
	}
	var out []Attestation
	for _, e := range img.Manifests {
		if e.Kind != KindAttestation || e.Of != about.Descriptor.Digest || !e.Available {
			continue
		}
		m, err := readManifest(ctx, s.content(), e.Descriptor)
		if err != nil {
			return nil, err
		}
		for _, l := range m.Layers {
			a := Attestation{Descriptor: l, PredicateType: l.Annotations[annotationPredicate]}
			if a.PredicateType == "" || len(types) > 0 && !slices.Contains(types, a.PredicateType) {
				continue
			}
			if statements {
				if l.Size > maxStatement {
					return nil, fault.New(fault.InvalidArgument, "statement %s has %d bytes; more than %d are refused", l.Digest, l.Size, maxStatement)
				}
				if a.Statement, err = content.ReadBlob(ctx, s.content(), l); err != nil {
					return nil, err
				}
				if !json.Valid(a.Statement) {
					return nil, fault.New(fault.InvalidArgument, "statement %s is not JSON", l.Digest)
				}
			}
			out = append(out, a)
		}
	}
	return out, nil
}
