package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	rerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

// retryPause is the wait before attempt n of a download.
func retryPause(n int) time.Duration {
	return min(time.Duration(n*n)*200*time.Millisecond, 5*time.Second)
}

// Pull fetches an image from its registry, for the given platform (OS/ARCH[/VARIANT], empty: this host's). What was
// downloaded before, whole or in part, is not fetched again. progress, if not nil, gets the lines that Docker shows; it is
// called by one goroutine at a time.
func (s *Store) Pull(ctx context.Context, ref, platform string, auth Auth, progress func(Progress)) (pulled Image, err error) {
	emit := serial(progress)
	named, err := parseRef(ref)
	if err != nil {
		return Image{}, err
	}
	match := platforms.Default()
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return Image{}, fault.New(fault.InvalidArgument, "platform %q: %w", platform, err)
		}
		match = platforms.Only(p)
	}
	ctx, done, err := s.withLease(s.ns(ctx))
	if err != nil {
		return Image{}, err
	}
	defer func() {
		// After a failure the lease keeps what was downloaded for the next attempt, until it expires or somebody prunes.
		if err == nil {
			done()
			// Now the image's names hold it: what attempts before left would only outlive them.
			if _, e := s.dropInterrupted(context.WithoutCancel(ctx), pulled.Target.Digest); e != nil {
				s.log.Warn("what an interrupted pull left is kept until it expires", "image", ref, "err", e)
			}
		} else {
			s.interrupt(ctx)
		}
	}()

	tag := ""
	switch n := named.(type) {
	case reference.Digested:
		tag = n.Digest().String()
	case reference.Tagged:
		tag = n.Tag()
	}
	resolver := s.hub.Load().resolver(ctx, named, auth, false, nil)
	_, desc, err := resolver.Resolve(ctx, named.String())
	if err != nil {
		return Image{}, registryError("pull", named, err)
	}
	fetcher, err := resolver.Fetcher(ctx, named.String())
	if err != nil {
		return Image{}, registryError("pull", named, err)
	}
	emit(Progress{ID: tag, Status: "Pulling from " + reference.Path(named)})
	p := &puller{s: s, fetcher: fetcher, named: named, emit: emit, source: map[string]string{
		labels.LabelDistributionSource + "." + reference.Domain(named): reference.Path(named),
	}}
	root := desc.Digest
	manifest, err := p.manifest(ctx, desc, match, 0)
	if err != nil {
		return Image{}, registryError("pull", named, err)
	}
	img, err := p.image(ctx, manifest)
	if err != nil {
		return Image{}, registryError("pull", named, err)
	}
	target := manifest
	if root != manifest.Digest {
		target = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: root, Size: desc.Size}
		if isIndex(desc.MediaType) {
			target.MediaType = desc.MediaType
		}
		if err := s.bindIndex(ctx, target, 0); err != nil {
			return Image{}, registryError("pull", named, err)
		}
		img.ID, img.Target = root.String(), target
	}
	if got := (ocispec.Platform{OS: img.OS, Architecture: img.Architecture, Variant: img.Variant}); platform != "" && img.OS != "" && !match.Match(platforms.Normalize(got)) {
		return Image{}, fault.New(fault.NotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
			reference.FamiliarString(named), platforms.Format(got), platform)
	}

	canonical, err := reference.WithDigest(reference.TrimNamed(named), root)
	if err != nil {
		return Image{}, err
	}
	names := []string{canonical.String()}
	if _, byDigest := named.(reference.Digested); !byDigest {
		names = append(names, named.String())
	}
	before := s.namesOf(img.ID)
	if err := failpoint.Hit("engine/image.pull.before-name"); err != nil {
		return Image{}, err
	}
	pulledImage, err := s.setNames(ctx, img.ID, target, names...)
	if err != nil {
		return Image{}, err
	}
	emit(Progress{Status: "Digest: " + root.String()})
	if slices.Contains(before, names[len(names)-1]) {
		emit(Progress{Status: "Status: Image is up to date for " + reference.FamiliarString(named)})
	} else {
		emit(Progress{Status: "Status: Downloaded newer image for " + reference.FamiliarString(named)})
	}
	return s.forPlatform(ctx, &pulledImage, img.ID, platform)
}

// puller is one pull.
type puller struct {
	s       *Store
	fetcher remotes.Fetcher
	named   reference.Named
	emit    func(Progress)
	source  map[string]string // label that says where a blob came from, for mounts between repositories at a push
}

// manifest fetches desc and, if it is an index, goes on to the best manifest in it.
func (p *puller) manifest(ctx context.Context, desc ocispec.Descriptor, match platforms.MatchComparer, depth int) (ocispec.Descriptor, error) {
	if depth > 3 {
		return desc, fault.New(fault.InvalidArgument, "index %s: more than 3 indexes within each other", desc.Digest)
	}
	if err := checkDescriptor(desc); err != nil {
		return desc, fault.New(fault.InvalidArgument, "manifest: %w", err)
	}
	if desc.Size > maxManifest {
		return desc, fault.New(fault.InvalidArgument, "manifest %s has %d bytes; more than %d are refused", desc.Digest, desc.Size, maxManifest)
	}
	if strings.HasPrefix(desc.MediaType, "application/vnd.docker.distribution.manifest.v1+") {
		return desc, fault.New(fault.InvalidArgument, "media type %q is no longer supported: rebuild the image, or push it again, as %q or %q",
			desc.MediaType, images.MediaTypeDockerSchema2Manifest, ocispec.MediaTypeImageManifest)
	}
	desc.URLs = nil // only the registry is asked, whatever other places a document names
	if err := p.fetch(ctx, desc, nil); err != nil {
		return desc, err
	}
	b, err := content.ReadBlob(ctx, p.s.content(), desc)
	if err != nil {
		return desc, err
	}
	if mt := sniffMediaType(b); mt != "" {
		desc.MediaType = mt
	}
	switch {
	case isManifest(desc.MediaType):
		return desc, nil
	case !isIndex(desc.MediaType):
		return desc, fault.New(fault.InvalidArgument, "%s has the media type %s, which is no image", p.named, desc.MediaType)
	}
	var idx ocispec.Index
	if err := json.Unmarshal(b, &idx); err != nil {
		return desc, fault.New(fault.InvalidArgument, "index %s: %w", desc.Digest, err)
	}
	best, err := choose(idx.Manifests, match)
	if err != nil {
		return desc, fault.New(fault.NotFound, "no matching manifest for %s in the manifest list entries: %w", p.named, err)
	}
	return p.manifest(ctx, best, match, depth+1)
}

// choose finds the best manifest for a platform; an entry that names no platform is taken if there is no other.
func choose(list []ocispec.Descriptor, match platforms.MatchComparer) (best ocispec.Descriptor, err error) {
	var have []string
	var chosen *ocispec.Descriptor
	for i, d := range list {
		if !isManifest(d.MediaType) && !isIndex(d.MediaType) {
			continue
		}
		switch {
		case d.Platform == nil:
			if chosen == nil {
				chosen = &list[i]
			}
		case d.Platform.OS == "unknown": // attestations
		default:
			have = append(have, platforms.Format(*d.Platform))
			if match.Match(platforms.Normalize(*d.Platform)) && (chosen == nil || chosen.Platform == nil || match.Less(platforms.Normalize(*d.Platform), platforms.Normalize(*chosen.Platform))) {
				chosen = &list[i]
			}
		}
	}
	if chosen == nil {
		return best, fmt.Errorf("it has %s", strings.Join(have, ", "))
	}
	return *chosen, nil
}

// imageConfigs are the media types of images' configs, and those that old registries put in their place. Others are of
// charts and other things that registries keep.
var imageConfigs = []string{images.MediaTypeDockerSchema2Config, ocispec.MediaTypeImageConfig,
	"application/octet-stream", "application/json", "text/html", ""}

// image fetches the blobs of a manifest and unpacks them, each layer as soon as it and those below are there.
func (p *puller) image(ctx context.Context, target ocispec.Descriptor) (*Image, error) {
	cs := p.s.content()
	m, err := readManifest(ctx, cs, target)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(imageConfigs, m.Config.MediaType) {
		return nil, fault.New(fault.InvalidArgument, "unsupported media type %s: %s is not an image", m.Config.MediaType, p.named)
	}
	m.Config.URLs = nil
	if err := p.fetch(ctx, m.Config, nil); err != nil {
		return nil, err
	}
	c, err := readConfig(ctx, cs, m.Config, len(m.Layers))
	if err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		p.emit(Progress{ID: short(l.Digest), Status: "Pulling fs layer"})
	}
	arrived := make([]chan struct{}, len(m.Layers))
	for i := range arrived {
		arrived[i] = make(chan struct{})
	}
	known := make([]bool, len(m.Layers))
	g, gctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, p.s.limits.Load().Downloads)
	for i, l := range m.Layers {
		g.Go(func() error {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-gctx.Done():
				return gctx.Err()
			}
			fresh, err := p.layer(gctx, l)
			if err != nil {
				return err
			}
			known[i] = !fresh
			close(arrived[i])
			return nil
		})
	}
	g.Go(func() error {
		return p.s.unpackLayers(gctx, &unpacking{
			layers: m.Layers, diffIDs: c.RootFS.DiffIDs, progress: p.emit,
			arrived: func(ctx context.Context, n int) error {
				select {
				case <-arrived[n]:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			stacked: func(n int) {
				if known[n] {
					p.emit(Progress{ID: short(m.Layers[n].Digest), Status: "Already exists"})
				} else {
					p.emit(Progress{ID: short(m.Layers[n].Digest), Status: "Pull complete"})
				}
			},
		})
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := p.s.bind(ctx, target, m, c); err != nil {
		return nil, err
	}
	return imageOf(target, target, m.Config.Digest, c), nil
}

// layer fetches a layer with its lines of progress; fresh is false when it was there.
func (p *puller) layer(ctx context.Context, desc ocispec.Descriptor) (fresh bool, err error) {
	if !images.IsLayerType(desc.MediaType) {
		return false, fault.New(fault.InvalidArgument, "layer %s has the media type %s, which is no layer", short(desc.Digest), desc.MediaType)
	}
	desc.URLs = nil
	meter := newMeter(p.emit, Progress{ID: short(desc.Digest), Status: "Downloading", Total: desc.Size})
	if err := p.fetch(ctx, desc, func(n int64) { fresh = true; meter.set(n) }); err != nil {
		return fresh, err
	}
	if fresh {
		meter.done()
		p.emit(Progress{ID: short(desc.Digest), Status: "Verifying Checksum"})
		p.emit(Progress{ID: short(desc.Digest), Status: "Download complete"})
	}
	return fresh, nil
}

// fetch brings a blob into the content store under ctx's lease, unless it is there. It goes on where an earlier attempt,
// of this process or another, stopped. at is told how many bytes are there.
func (p *puller) fetch(ctx context.Context, desc ocispec.Descriptor, at func(int64)) error {
	// A blob wanted by two pulls at once is fetched by one of them.
	unlock, err := p.s.keys.lock(ctx, "blob/"+desc.Digest.String())
	if err != nil {
		return err
	}
	defer unlock()
	for attempt := 1; ; attempt++ {
		got, err := p.tryFetch(ctx, desc, at)
		if err == nil || ctx.Err() != nil || !worthRetrying(err) {
			return err
		}
		if got > 0 {
			attempt = 1
		}
		if attempt >= p.s.limits.Load().Attempts {
			return err
		}
		p.emit(Progress{ID: short(desc.Digest), Status: fmt.Sprintf("Retrying in %d seconds", int(retryPause(attempt).Seconds()+0.999))})
		if err := sleep(ctx, retryPause(attempt)); err != nil {
			return err
		}
	}
}

// errDamaged says that the bytes do not have the digest they should have.
var errDamaged = errors.New("filesystem layer verification failed")

// tryFetch is one attempt; got is the number of bytes it added.
func (p *puller) tryFetch(ctx context.Context, desc ocispec.Descriptor, at func(int64)) (got int64, err error) {
	cs := p.s.content()
	ref := remotes.MakeRefKey(ctx, desc)
	w, err := content.OpenWriter(ctx, cs, content.WithRef(ref), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer w.Close()
	st, err := w.Status()
	if err != nil {
		return 0, err
	}
	from := st.Offset
	if from > desc.Size {
		if err := w.Truncate(0); err != nil {
			return 0, err
		}
		from = 0
	}
	if at != nil {
		at(from)
	}
	if from < desc.Size {
		got, err = p.download(ctx, desc, w, from, at)
		if from > 0 && got == 0 && refusesRange(err) {
			// The registry has whole blobs only: what is here of this one is of no use.
			if err := w.Truncate(0); err != nil {
				return 0, err
			}
			from = 0
			got, err = p.download(ctx, desc, w, from, at)
		}
		if err != nil {
			return got, err
		}
	}
	if err := failpoint.Hit("engine/image.fetch.before-commit"); err != nil {
		return got, err
	}
	err = w.Commit(ctx, desc.Size, desc.Digest, content.WithLabels(p.source))
	if err == nil || errdefs.IsAlreadyExists(err) {
		return got, nil
	}
	if errdefs.IsFailedPrecondition(err) {
		// Not what was asked for. If a part of it was there before, that part may be to blame: once more, from the start.
		_ = w.Close()
		_ = cs.Abort(ctx, ref)
		err = fmt.Errorf("%w for digest %s", errDamaged, desc.Digest)
		if from > 0 {
			return got, err
		}
		return got, fault.As(fault.InvalidArgument, err)
	}
	return got, err
}

// download writes the bytes of a blob behind the first from, and returns how many came.
func (p *puller) download(ctx context.Context, desc ocispec.Descriptor, w io.Writer, from int64, at func(int64)) (got int64, err error) {
	rc, err := p.fetcher.Fetch(ctx, desc)
	if err != nil {
		return 0, err
	}
	defer rc.Close()
	if from > 0 {
		sk, ok := rc.(io.Seeker)
		if !ok {
			return 0, fmt.Errorf("blob %s: the download cannot be resumed", short(desc.Digest))
		}
		if _, err := sk.Seek(from, io.SeekStart); err != nil {
			return 0, err
		}
	}
	got, err = copyCounted(ctx, w, io.LimitReader(rc, desc.Size-from), func(n int64) {
		if at != nil {
			at(from + n)
		}
	})
	if err == nil && from+got < desc.Size {
		err = fmt.Errorf("blob %s: %w after %d of %d bytes", short(desc.Digest), io.ErrUnexpectedEOF, from+got, desc.Size)
	}
	return got, err
}

// refusesRange reports whether a registry did not want to send the rest of a blob. Those that cannot should send the whole
// of it instead; some answer 416.
func refusesRange(err error) bool {
	var status rerrors.ErrUnexpectedStatus
	return errors.As(err, &status) && status.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// worthRetrying tells errors of the way from those that come again.
func worthRetrying(err error) bool {
	if fault.KindOf(err) != fault.Internal || errdefs.IsNotFound(err) {
		return false
	}
	var re interface{ Timeout() bool }
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errDamaged) || errors.As(err, &re) || isReset(err)
}

func copyCounted(ctx context.Context, w io.Writer, r io.Reader, at func(int64)) (n int64, err error) {
	buf := make([]byte, 64<<10)
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		m, err := r.Read(buf)
		if m > 0 {
			if _, err := w.Write(buf[:m]); err != nil {
				return n, err
			}
			n += int64(m)
			at(n)
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// leaseContent adds a blob to ctx's lease. Asking whether it exists comes after.
func (s *Store) leaseContent(ctx context.Context, d digest.Digest) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	return s.leases().AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: d.String(), Type: "content"})
}
