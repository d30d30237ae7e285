package image

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

const (
	resourceSnapshot = "snapshots/" + snapshotter
	labelRefContent  = "containerd.io/gc.ref.content."
	labelRefSnapshot = "containerd.io/gc.ref.snapshot." + snapshotter
	labelRefView     = labelRefSnapshot + "/view"
	viewPrefix       = "view/" // of the snapshot that tells where the folders of a chain are
)

// adopt makes an image of blobs that are in the content store and held by ctx's lease: it unpacks its layers, ties
// blobs and layers together for the garbage collector, and returns what the blobs say.
func (s *Store) adopt(ctx context.Context, target ocispec.Descriptor, progress func(Progress)) (*Image, error) {
	cs := s.content()
	m, err := readManifest(ctx, cs, target)
	if err != nil {
		return nil, err
	}
	c, err := readConfig(ctx, cs, m.Config, len(m.Layers))
	if err != nil {
		return nil, err
	}
	for i, l := range m.Layers {
		if err := s.unpackLayer(ctx, l, c.RootFS.DiffIDs, i, progress); err != nil {
			return nil, err
		}
	}
	if err := s.bind(ctx, target, m, c); err != nil {
		return nil, err
	}
	return imageOf(target, m.Config.Digest, c), nil
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
	labels := map[string]string{labelRefContent + "config": m.Config.Digest.String()}
	for i, l := range m.Layers {
		labels[fmt.Sprintf("%sl.%d", labelRefContent, i)] = l.Digest.String()
	}
	return setLabels(ctx, cs, target.Digest, labels)
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

// unpackLayer extracts layer n of an image on top of the layers below it, unless that has been done before.
func (s *Store) unpackLayer(ctx context.Context, layer ocispec.Descriptor, diffIDs []digest.Digest, n int, progress func(Progress)) error {
	chain, parent := chainOf(diffIDs[:n+1]), chainOf(diffIDs[:n])
	unlock, err := s.keys.lock(ctx, "chain/"+chain)
	if err != nil {
		return err
	}
	defer unlock()
	if there, err := s.holdSnapshot(ctx, chain); there || err != nil {
		return err
	}
	sn := s.snapshots()
	key := "extract/" + rand.Text() + "/" + chain
	mounts, err := sn.Prepare(ctx, key, parent)
	if err != nil {
		return fmt.Errorf("layer %s: %w", short(layer.Digest), err)
	}
	err = s.extract(ctx, layer, diffIDs[n], mounts, progress)
	if err == nil {
		err = failpoint.Hit("engine/image.unpack.before-commit")
	}
	if err == nil {
		err = sn.Commit(ctx, chain, key)
		if errdefs.IsAlreadyExists(err) {
			err = nil
			_ = sn.Remove(context.WithoutCancel(ctx), key)
		}
	}
	if err != nil {
		_ = sn.Remove(context.WithoutCancel(ctx), key)
		return fmt.Errorf("layer %s: %w", short(layer.Digest), err)
	}
	return nil
}

// extract writes a layer into the folder of an active snapshot and checks that what came out of the compression is what
// the image's config promises.
func (s *Store) extract(ctx context.Context, layer ocispec.Descriptor, want digest.Digest, mounts []mount.Mount, progress func(Progress)) error {
	upper, parents, err := foldersOf(mounts)
	if err != nil {
		return err
	}
	ra, err := s.content().ReaderAt(ctx, layer)
	if err != nil {
		return err
	}
	defer ra.Close()
	meter := newMeter(progress, Progress{ID: short(layer.Digest), Status: "Extracting", Total: layer.Size})
	stream, err := compression.DecompressStream(io.TeeReader(content.NewReader(ra), meter))
	if err != nil {
		return fault.New(fault.InvalidArgument, "compression: %w", err)
	}
	defer stream.Close()
	sum := digest.Canonical.Digester()
	in := io.TeeReader(stream, sum.Hash())
	if err := applyTar(ctx, in, upper, parents); err != nil {
		return fmt.Errorf("extracting: %w", err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // what follows the archive's end counts for the digest
		return fmt.Errorf("extracting: %w", err)
	}
	if sum.Digest() != want {
		return fault.New(fault.InvalidArgument, "its content has the digest %s, the image's config names %s: the image is damaged or forged", sum.Digest(), want)
	}
	meter.done()
	return nil
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

// applyTar extracts a layer into an overlay's upper folder: whiteouts become character devices 0:0 and opaque folders
// get their attribute; in the lowest layer, where there is nothing to hide, they are left out. Files that the archive
// says are sparse get their holes back.
func applyTar(ctx context.Context, r io.Reader, upper string, parents []string) error {
	var sparse []string
	opts := []archive.ApplyOpt{
		archive.WithFilter(func(h *tar.Header) (bool, error) {
			if h.Typeflag == tar.TypeGNUSparse {
				// The reader already expands it; the extraction below knows regular files only.
				h.Typeflag = tar.TypeReg
				sparse = append(sparse, h.Name)
			} else if h.PAXRecords["GNU.sparse.major"] != "" {
				sparse = append(sparse, h.Name)
			}
			return true, nil
		}),
	}
	if len(parents) > 0 {
		opts = append(opts, archive.WithParents(parents), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	}
	if _, err := archive.Apply(ctx, upper, r, opts...); err != nil {
		return err
	}
	if len(sparse) == 0 {
		return nil
	}
	root, err := os.OpenRoot(upper) // a link in the layer must not lead a later open out of it
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range sparse {
		f, err := root.OpenFile(filepath.Clean(strings.TrimLeft(name, "/")), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // replaced or removed by a later entry
		}
		st, _ := f.Stat()
		err = punchZeros(f)
		if st != nil {
			_ = unix.Futimes(int(f.Fd()), []unix.Timeval{unix.NsecToTimeval(st.ModTime().UnixNano()), unix.NsecToTimeval(st.ModTime().UnixNano())})
		}
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// punchZeros gives the blocks of f that are all zeros back to the file system.
func punchZeros(f *os.File) error {
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return err
	}
	const block = 64 << 10
	buf := make([]byte, block)
	for off := int64(0); ; off += block {
		n, err := io.ReadFull(f, buf)
		if n > 0 && allZero(buf[:n]) {
			if e := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(n)); e != nil {
				return nil // the file system has no holes: the file is right all the same
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
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
