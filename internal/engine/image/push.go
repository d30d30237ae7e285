package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	rerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Pushed is what the last line of a push carries as Aux.
type Pushed struct {
	Tag    string
	Digest string
	Size   int64
}

// Push sends an image to the registry its name says. Without a tag in ref, every tag of the repository is pushed. What
// the registry has is not sent again. progress, if not nil, gets the lines that Docker shows; it is called by one
// goroutine at a time. only chooses one platform of the image.
func (s *Store) Push(ctx context.Context, ref string, auth Auth, progress func(Progress), only ...ocispec.Platform) error {
	emit := serial(progress)
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return fault.New(fault.InvalidArgument, "invalid reference format: %q: %w", ref, err)
	}
	if _, ok := named.(reference.Digested); ok {
		return fault.New(fault.InvalidArgument, "cannot push a digest reference: %s", ref)
	}
	chosen := map[string]string{} // full name → image ID
	s.index.mu.RLock()
	for name, id := range s.index.names {
		rest, ok := strings.CutPrefix(name, named.Name()+":")
		if ok && (reference.IsNameOnly(named) || name == named.String()) && !strings.Contains(rest, "/") {
			chosen[name] = id
		}
	}
	s.index.mu.RUnlock()
	if len(chosen) == 0 {
		if reference.IsNameOnly(named) {
			return fault.New(fault.NotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(named))
		}
		return fault.New(fault.NotFound, "An image does not exist locally with the tag: %s", reference.FamiliarString(named))
	}
	ctx, done, err := s.withLease(s.ns(ctx))
	if err != nil {
		return err
	}
	defer done()
	emit(Progress{Status: fmt.Sprintf("The push refers to repository [%s]", named.Name())})
	for _, name := range slices.Sorted(maps.Keys(chosen)) {
		tagged, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return err
		}
		if err := s.pushOne(ctx, tagged, s.byID(chosen[name]), only, auth, emit); err != nil {
			return registryError("push", tagged, err)
		}
	}
	return nil
}

func (s *Store) pushOne(ctx context.Context, named reference.Named, img *Image, only []ocispec.Platform, auth Auth, emit func(Progress)) error {
	if img == nil {
		return fault.New(fault.NotFound, "No such image: %s", reference.FamiliarString(named))
	}
	if err := s.leaseImage(ctx, img); err != nil {
		return err
	}
	// An image for several platforms goes as a whole, or, where this host has not all of it, as the platform that it has.
	target := img.Manifest
	if len(only) > 0 {
		_, first, err := img.roots(only)
		if err != nil {
			return err
		}
		target = ocispec.Descriptor{MediaType: first.MediaType, Digest: first.Digest, Size: first.Size}
	} else if img.whole() {
		target = img.Target
	}
	var blobs, manifests []ocispec.Descriptor
	seen := map[string]bool{} // platforms share layers, and a manifest may name one twice
	err := s.everything(ctx, target, 0, func(d ocispec.Descriptor) {
		switch {
		case seen[d.Digest.String()]:
		case isManifest(d.MediaType) || isIndex(d.MediaType):
			manifests = append(manifests, d)
		default:
			blobs = append(blobs, d)
		}
		seen[d.Digest.String()] = true
	})
	if err != nil {
		return err
	}
	track := docker.NewInMemoryTracker()
	// The name without the digest would make the pusher look whether the tag has the manifest, which is what is wanted:
	// the tag is moved even if the registry has the manifest under another one.
	pusher, err := s.hub.Load().resolver(ctx, named, auth, true, track).Pusher(ctx, named.String())
	if err != nil {
		return err
	}
	for _, b := range blobs {
		if images.IsLayerType(b.MediaType) {
			emit(Progress{ID: short(b.Digest), Status: "Preparing"})
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.limits.Load().Uploads)
	for _, b := range blobs {
		lines := emit
		if !images.IsLayerType(b.MediaType) {
			lines = nil
		}
		g.Go(func() error { return s.pushBlob(gctx, pusher, track, b, lines) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	// A registry takes no manifest before what it names. Only the last is what the tag stands for.
	for i, m := range manifests {
		p := pusher
		if i < len(manifests)-1 {
			byDigest, err := reference.WithDigest(reference.TrimNamed(named), m.Digest)
			if err != nil {
				return err
			}
			if p, err = s.hub.Load().resolver(ctx, named, auth, true, track).Pusher(ctx, byDigest.String()); err != nil {
				return err
			}
		}
		if err := s.pushBlob(ctx, p, track, m, nil); err != nil {
			return err
		}
	}
	s.index.mu.RLock()
	still := s.index.names[named.String()] == img.ID // or what was removed meanwhile would be back under its digest
	s.index.mu.RUnlock()
	if target.Digest == img.Target.Digest && still {
		canonical, err := reference.WithDigest(reference.TrimNamed(named), target.Digest)
		if err != nil {
			return err
		}
		if _, err := s.setNames(ctx, img.ID, img.Target, canonical.String()); err != nil {
			return err
		}
	}
	tag := named.(reference.Tagged).Tag()
	d := target.Digest.String()
	emit(Progress{Status: fmt.Sprintf("%s: digest: %s size: %d", tag, d, target.Size)})
	emit(Progress{Aux: Pushed{Tag: tag, Digest: d, Size: target.Size}})
	return nil
}

// pushBlob sends one blob or manifest, again if the way broke. emit is nil for what Docker shows no line for.
func (s *Store) pushBlob(ctx context.Context, pusher remotes.Pusher, track docker.StatusTracker, desc ocispec.Descriptor, emit func(Progress)) error {
	for attempt := 1; ; attempt++ {
		err := s.tryPush(ctx, pusher, track, desc, emit)
		if err == nil || ctx.Err() != nil || attempt >= s.limits.Load().Attempts || !worthRetrying(err) && !isUnwell(err) {
			return err
		}
		if emit != nil {
			emit(Progress{ID: short(desc.Digest), Status: fmt.Sprintf("Retrying in %d seconds", int(retryPause(attempt).Seconds()+0.999))})
		}
		if err := sleep(ctx, retryPause(attempt)); err != nil {
			return err
		}
	}
}

// isUnwell reports what a registry says when it is not well, or has too much to do.
func isUnwell(err error) bool {
	var status rerrors.ErrUnexpectedStatus
	return errors.As(err, &status) && (status.StatusCode >= 500 || status.StatusCode == http.StatusTooManyRequests)
}

// tryPush is one attempt of pushBlob.
func (s *Store) tryPush(ctx context.Context, pusher remotes.Pusher, track docker.StatusTracker, desc ocispec.Descriptor, emit func(Progress)) error {
	line := Progress{ID: short(desc.Digest), Status: "Pushing", Total: desc.Size}
	show := func(status string) {
		if emit != nil {
			emit(Progress{ID: line.ID, Status: status})
		}
	}
	// Where the blob came from, so that the registry can take it over from there by itself.
	if info, err := s.content().Info(ctx, desc.Digest); err == nil {
		for k, v := range info.Labels {
			if strings.HasPrefix(k, labels.LabelDistributionSource) {
				if desc.Annotations == nil {
					desc.Annotations = map[string]string{}
				}
				desc.Annotations[k] = v
			}
		}
	}
	w, err := pusher.Push(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		st, _ := track.GetStatus(remotes.MakeRefKey(ctx, desc))
		if st.MountedFrom != "" {
			show("Mounted from " + strings.TrimPrefix(st.MountedFrom, hubDomain+"/"))
		} else {
			show("Layer already exists")
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	ra, err := s.content().ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer ra.Close()
	meter := newMeter(emit, line)
	err = content.Copy(ctx, w, io.TeeReader(content.NewReader(ra), meter), desc.Size, desc.Digest)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
		return err
	}
	show("Pushed")
	return nil
}
