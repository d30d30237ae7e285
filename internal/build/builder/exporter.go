package builder

import (
	"context"
	"errors"
	"maps"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/result"
	"golang.org/x/sync/errgroup"

	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// exporterMoby is the name by which Docker's clients ask for the daemon's own image store.
const exporterMoby = "moby"

// storeExporter puts what was built into the daemon's image store. BuildKit's image exporter writes the blobs and names
// the image, which makes the daemon unpack it.
type storeExporter struct{ exporter.Exporter }

// Resolve reads what a client wants of the output.
func (e *storeExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	attrs = maps.Clone(attrs)
	if attrs == nil {
		attrs = map[string]string{}
	}
	names, err := completeNames(attrs[string(exptypes.OptKeyName)])
	if err != nil {
		return nil, err
	}
	push, _ := strconv.ParseBool(attrs[string(exptypes.OptKeyPush)])
	if v, ok := attrs[string(exptypes.OptKeyPush)]; ok && v == "" {
		push = true
	}
	attrs[string(exptypes.OptKeyName)] = strings.Join(names, ",")
	attrs[string(exptypes.OptKeyUnpack)] = "false" // naming it does that
	attrs[string(exptypes.OptKeyDanglingPrefix)] = strings.TrimSuffix(image.DanglingPrefix, "@")
	attrs[string(exptypes.OptKeyDanglingEmptyOnly)] = "true"
	if push && len(names) == 0 {
		return nil, fault.New(fault.InvalidArgument, "pushing needs a name: give one with --tag")
	}
	inst, err := e.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	return &storeInstance{ExporterInstance: inst, push: push}, nil
}

// completeNames checks the names an image is to get and adds the default tag.
func completeNames(list string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	for name := range strings.SplitSeq(list, ",") {
		if name == "" {
			continue
		}
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return nil, fault.New(fault.InvalidArgument, "invalid reference format: %q: %w", name, err)
		}
		if _, ok := named.(reference.Digested); ok {
			return nil, errors.New("build tag cannot contain a digest")
		}
		if full := reference.TagNameOnly(named).String(); !seen[full] {
			seen[full] = true
			out = append(out, full)
		}
	}
	return out, nil
}

type storeInstance struct {
	exporter.ExporterInstance
	push bool
}

// Export puts a result into the store.
func (i *storeInstance) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	if !i.push {
		src = withoutIncidental(src)
	}
	// The daemon unpacks the image when it is named: layers that so far are only known to be in a registry come now.
	g, gctx := errgroup.WithContext(ctx)
	refs := []cache.ImmutableRef{src.Ref}
	for _, r := range src.Refs {
		refs = append(refs, r)
	}
	for _, r := range refs {
		if r != nil {
			g.Go(func() error { return r.Extract(gctx, session.NewGroup(info.SessionID)) })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, nil, nil, err
	}
	return i.ExporterInstance.Export(ctx, src, info)
}

// withoutIncidental leaves out the attestations that clients ask for unasked, "inline only": they tell when and how a
// build was run, which would make another image of every build of the same.
func withoutIncidental(src *exporter.Source) *exporter.Source {
	kept := map[string][]exporter.Attestation{}
	for platform, all := range src.Attestations {
		for _, a := range all {
			if incidental, _ := strconv.ParseBool(string(a.Metadata[result.AttestationInlineOnlyKey])); !incidental {
				kept[platform] = append(kept[platform], a)
			}
		}
	}
	src = src.Clone()
	src.Attestations = kept
	return src
}
