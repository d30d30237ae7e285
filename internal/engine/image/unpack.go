package image

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/sampan-cloud/sampan/internal/engine/image/layer"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

const (
	resourceSnapshot = "snapshots/" + snapshotter
	labelRefContent  = "containerd.io/gc.ref.content."
	labelRefSnapshot = "containerd.io/gc.ref.snapshot." + snapshotter
	labelRefView     = labelRefSnapshot + "/view"
	labelUpper       = "containerd.io/snapshot/overlay.upperdir"
	viewPrefix       = "view/" // of the snapshot that tells where the folders of a chain are
)

// adopt makes an image of blobs that are in the content store and held by ctx's lease: it unpacks its layers, ties
// blobs and layers together for the garbage collector, and returns what the blobs say.
func (s *Store) adopt(ctx context.Context, target ocispec.Descriptor, progress func(Progress)) (*Image, error) {
	if !isIndex(target.MediaType) {
		return s.adoptManifest(ctx, target, progress)
	}
	list, err := s.readManifests(ctx, target, 0)
	if err != nil {
		return nil, err
	}
	m, err := shown(list)
	if err != nil {
		return nil, err
	}
	img, err := s.adoptManifest(ctx, m.Descriptor, progress)
	if err != nil && isTarError(err) && ctx.Err() == nil {
		// No root file system, but all there to be looked at and handed on.
		if progress != nil {
			progress(Progress{Status: "Error unpacking image: " + err.Error()})
		}
		img, err = s.readPlatform(ctx, target, m.Descriptor)
	}
	if err != nil {
		return nil, err
	}
	img.ID, img.Target = target.Digest.String(), target
	return img, s.bindIndex(ctx, target, 0)
}

// adoptManifest is adopt of one platform.
func (s *Store) adoptManifest(ctx context.Context, target ocispec.Descriptor, progress func(Progress)) (*Image, error) {
	cs := s.content()
	m, err := readManifest(ctx, cs, target)
	if err != nil {
		return nil, err
	}
	c, err := readConfig(ctx, cs, m.Config, len(m.Layers))
	if err != nil {
		return nil, err
	}
	if err := s.unpackLayers(ctx, &unpacking{layers: m.Layers, diffIDs: c.RootFS.DiffIDs, progress: progress}); err != nil {
		return nil, err
	}
	if err := s.bind(ctx, target, m, c); err != nil {
		return nil, err
	}
	return imageOf(target, target, m.Config.Digest, c), nil
}

// bind sets the labels by which the garbage collector goes from manifest to config and layers, and from config to the
// unpacked layers.
func (s *Store) bind(ctx context.Context, target ocispec.Descriptor, m ocispec.Manifest, c configFile) error {
	cs := s.content()
	chain := chainOf(c.RootFS.DiffIDs)
	if chain != "" {
		if err := s.ensureView(ctx, chain); err != nil {
			return err
		}
		if err := setLabels(ctx, cs, m.Config.Digest, map[string]string{
			labelRefSnapshot: chain,
			labelRefView:     viewPrefix + chain,
		}); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("engine/image.bind.between"); err != nil {
		return err
	}
	return setLabels(ctx, cs, target.Digest, contentLabels(m))
}

func setLabels(ctx context.Context, cs content.Manager, d digest.Digest, labels map[string]string) error {
	paths := make([]string, 0, len(labels))
	for k := range labels {
		paths = append(paths, "labels."+k)
	}
	_, err := cs.Update(ctx, content.Info{Digest: d, Labels: labels}, paths...)
	return err
}

// ensureView makes a read-only snapshot over chain. It takes no space; the snapshotter tells the folders of a chain only
// through one.
func (s *Store) ensureView(ctx context.Context, chain string) error {
	key := viewPrefix + chain
	unlock, err := s.keys.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	if there, err := s.holdSnapshot(ctx, key); there || err != nil {
		return err
	}
	_, err = s.snapshots().View(ctx, key, chain)
	return err
}

// holdSnapshot reports whether a snapshot exists, and if so adds it to ctx's lease. One that is made under the lease
// needs no more: that is why it looks first, and again once it has the lease, as a collection may come between.
func (s *Store) holdSnapshot(ctx context.Context, key string) (bool, error) {
	for leased := false; ; leased = true {
		if _, err := s.snapshots().Stat(ctx, key); errdefs.IsNotFound(err) {
			return false, nil
		} else if err != nil || leased {
			return err == nil, err
		}
		if err := s.leaseSnapshot(ctx, key); err != nil {
			return false, err
		}
	}
}

// leaseSnapshot adds a snapshot to ctx's lease, so that it stays if it exists.
func (s *Store) leaseSnapshot(ctx context.Context, key string) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	return s.leases().AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: key, Type: resourceSnapshot})
}

// unpacking is the extraction of an image's layers.
type unpacking struct {
	layers   []ocispec.Descriptor
	diffIDs  []digest.Digest
	progress func(Progress) // may be nil
	// arrived returns when the blob of layer n is there; nil: all are.
	arrived func(ctx context.Context, n int) error
	// stacked is called, lowest first, when layer n is in its place; may be nil.
	stacked func(n int)
}

// unpackLayers extracts the layers of an image, but for those that are there already. They are extracted side by side, in
// whatever order they arrive, and stacked in their own.
func (s *Store) unpackLayers(ctx context.Context, u *unpacking) error {
	done := make([]chan struct{}, len(u.layers)) // closed when the layer and those below are in their place
	for i := range done {
		done[i] = make(chan struct{})
	}
	g, gctx := errgroup.WithContext(ctx)
	for n, l := range u.layers {
		g.Go(func() error {
			if u.arrived != nil {
				if err := u.arrived(gctx, n); err != nil {
					return err
				}
			}
			below := func() error {
				if n == 0 {
					return nil
				}
				select {
				case <-done[n-1]:
					return nil
				case <-gctx.Done():
					return gctx.Err()
				}
			}
			if err := s.unpackLayer(gctx, u, n, below); err != nil {
				return fmt.Errorf("layer %s: %w", short(l.Digest), err)
			}
			if u.stacked != nil {
				u.stacked(n)
			}
			close(done[n])
			return nil
		})
	}
	return g.Wait()
}

// unpackLayer extracts layer n and puts it on top of those below, which below waits for, unless that has been done before.
func (s *Store) unpackLayer(ctx context.Context, u *unpacking, n int, below func() error) error {
	chain, parent := chainOf(u.diffIDs[:n+1]), chainOf(u.diffIDs[:n])
	unlock, err := s.keys.lock(ctx, "chain/"+chain)
	if err != nil {
		return err
	}
	defer unlock()
	if there, err := s.holdSnapshot(ctx, chain); err != nil {
		return err
	} else if there {
		return below()
	}
	// Whoever has one of the slots waits for nothing but its own work, so none of them is lost to a wait in a circle.
	select {
	case s.unpackers <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	key := extractionKey(chain)
	dir, applied, err := s.extractAlone(ctx, u, n, key)
	<-s.unpackers
	if err == nil {
		err = below()
	}
	if err == nil && n > 0 {
		err = s.adoptFolders(ctx, dir, applied, u.diffIDs[:n])
	}
	if err == nil {
		err = failpoint.Hit("engine/image.unpack.before-commit")
	}
	if err == nil {
		err = s.commitLayer(ctx, key, chain, parent)
	}
	if err != nil {
		_ = s.snapshots().Remove(context.WithoutCancel(ctx), key)
	}
	return err
}

// commitLayer makes of the snapshot key, in which a layer was extracted alone, the one of chain.
func (s *Store) commitLayer(ctx context.Context, key, chain, parent string) error {
	var opts []snapshots.Opt
	if parent != "" {
		opts = append(opts, snapshots.WithParent(parent))
	}
	err := s.snapshots().Commit(ctx, chain, key, opts...)
	if errdefs.IsAlreadyExists(err) {
		_ = s.snapshots().Remove(context.WithoutCancel(ctx), key)
		return nil
	}
	return err
}

// extractionKey names a snapshot for a layer that is extracted alone. what says which.
func extractionKey(what string) string { return "extract/" + rand.Text() + "/" + what }

// folderAlone makes the snapshot key, which stands on no other yet, and returns its folder.
func (s *Store) folderAlone(ctx context.Context, key string) (dir string, err error) {
	mounts, err := s.snapshots().Prepare(ctx, key, "")
	if err != nil {
		return "", err
	}
	dir, _, err = foldersOf(mounts)
	return dir, err
}

// extractAlone extracts layer n into a snapshot of its own.
func (s *Store) extractAlone(ctx context.Context, u *unpacking, n int, key string) (dir string, a layer.Applied, err error) {
	if dir, err = s.folderAlone(ctx, key); err != nil {
		return "", a, err
	}
	a, err = s.extract(ctx, u.layers[n], u.diffIDs[n], dir, n == 0, u.progress)
	return dir, a, err
}

// adoptFolders gives the folders that a layer in dir only implies what the layers below, which are in their place, say
// of them.
func (s *Store) adoptFolders(ctx context.Context, dir string, a layer.Applied, below []digest.Digest) error {
	var lower []string // highest first
	for n := len(below); n > 0 && len(a.Implied) > 0; n-- {
		folder, err := s.folderOf(ctx, chainOf(below[:n]))
		if err != nil {
			return err
		}
		lower = append(lower, folder)
	}
	return a.Adopt(dir, func(name string) (string, error) {
		if name == "/" {
			return lower[0], nil
		}
		at, info, err := findBelow(lower, name)
		if err != nil || info == nil || !info.IsDir() {
			return "", err
		}
		return at, nil
	})
}

// folderOf is the folder of a chain's highest layer.
func (s *Store) folderOf(ctx context.Context, chain string) (string, error) {
	info, err := s.snapshots().Stat(ctx, chain)
	if err != nil {
		return "", err
	}
	dir := info.Labels[labelUpper]
	if dir == "" {
		return "", fmt.Errorf("the snapshotter does not say where layers %s are", chain)
	}
	return dir, nil
}

// extract writes a layer into a folder and checks that what came out of the compression is what the image's config
// promises. Decompression, digest and extraction run side by side.
func (s *Store) extract(ctx context.Context, desc ocispec.Descriptor, want digest.Digest, dir string, lowest bool, progress func(Progress)) (layer.Applied, error) {
	ra, err := s.content().ReaderAt(ctx, desc)
	if err != nil {
		return layer.Applied{}, err
	}
	defer ra.Close()
	meter := newMeter(progress, Progress{ID: short(desc.Digest), Status: "Extracting", Total: desc.Size})
	stream, compression, err := layer.Decompress(io.TeeReader(content.NewReader(ra), meter))
	if err != nil {
		return layer.Applied{}, fault.New(fault.InvalidArgument, "compression: %w", err)
	}
	defer stream.Close()
	if !want.Algorithm().Available() {
		return layer.Applied{}, fault.New(fault.InvalidArgument, "diff ID %s: unknown algorithm", want)
	}
	sum := want.Algorithm().Digester()
	hash := sum.Hash()
	known := compression == layer.Plain && desc.Digest == want // as the content store has checked it
	if known {
		hash = nil
	}
	in := layer.NewPipe(stream, hash)
	defer in.Close()
	a, err := layer.Apply(ctx, dir, in, lowest)
	if err != nil {
		return a, fmt.Errorf("extracting: %w", err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // what follows the archive's end counts for the digest
		return a, fmt.Errorf("extracting: %w", err)
	}
	if !known && sum.Digest() != want {
		return a, fault.New(fault.InvalidArgument, "its content has the digest %s, the image's config names %s: the image is damaged or forged", sum.Digest(), want)
	}
	meter.done()
	return a, nil
}

// foldersOf reads from a snapshot's mounts the folder that gets its files and those of its parents, highest first. For
// one without parents the mount is a bind of that folder.
func foldersOf(mounts []mount.Mount) (upper string, lower []string, err error) {
	if len(mounts) != 1 {
		return "", nil, fmt.Errorf("snapshot has %d mounts, not 1", len(mounts))
	}
	m := mounts[0]
	if m.Type == "bind" {
		return m.Source, nil, nil
	}
	for _, o := range m.Options {
		if v, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = v
		} else if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lower = strings.Split(v, ":")
		}
	}
	if m.Type != "overlay" || (upper == "" && lower == nil) {
		return "", nil, fmt.Errorf("snapshot has a mount of type %s without folders", m.Type)
	}
	return upper, lower, nil
}

// short is a digest as progress lines show it.
func short(d digest.Digest) string {
	h := d.Encoded()
	return h[:min(12, len(h))]
}

// sumUsage is the size of the given chains as unpacked.
func (s *Store) sumUsage(ctx context.Context, chains []string) (n int64) {
	for _, c := range chains {
		if u, err := s.snapshots().Usage(ctx, c); err == nil {
			n += u.Size
		}
	}
	return n
}
