package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/image/layer"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

// writeBlob stores b under its digest.
func (s *Store) writeBlob(ctx context.Context, mediaType string, b []byte) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	err := content.WriteBlob(ctx, s.content(), "blob-"+desc.Digest.String(), bytes.NewReader(b), desc)
	return desc, err
}

// writeLayer compresses what fill writes into a layer blob, and returns it with the digest of the uncompressed archive.
func (s *Store) writeLayer(ctx context.Context, ref string, fill func(io.Writer) error) (ocispec.Descriptor, digest.Digest, error) {
	cs := s.content()
	var none ocispec.Descriptor
	w, err := content.OpenWriter(ctx, cs, content.WithRef(ref))
	if err != nil {
		return none, "", err
	}
	defer w.Close()
	fail := func(err error) (ocispec.Descriptor, digest.Digest, error) {
		_ = w.Close()
		_ = cs.Abort(context.WithoutCancel(ctx), ref)
		return none, "", err
	}
	if err := w.Truncate(0); err != nil {
		return fail(err)
	}
	zw, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return fail(err)
	}
	sum := digest.Canonical.Digester()
	if err := fill(io.MultiWriter(zw, sum.Hash())); err != nil {
		return fail(err)
	}
	if err := zw.Close(); err != nil {
		return fail(err)
	}
	st, err := w.Status()
	if err != nil {
		return fail(err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: w.Digest(), Size: st.Offset}
	if err := w.Commit(ctx, desc.Size, desc.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return fail(err)
	}
	return desc, sum.Digest(), nil
}

// build writes config and manifest of an image whose layers are in the store, unpacks it and names it. An image without
// a name becomes a dangling one.
func (s *Store) build(ctx context.Context, c configFile, layers []ocispec.Descriptor, names ...string) (Image, error) {
	blob, err := json.Marshal(c)
	if err != nil {
		return Image{}, err
	}
	config, err := s.writeBlob(ctx, ocispec.MediaTypeImageConfig, blob)
	if err != nil {
		return Image{}, err
	}
	blob, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    layers,
	})
	if err != nil {
		return Image{}, err
	}
	target, err := s.writeBlob(ctx, ocispec.MediaTypeImageManifest, blob)
	if err != nil {
		return Image{}, err
	}
	img, err := s.adopt(ctx, target, nil)
	if err != nil {
		return Image{}, err
	}
	if err := failpoint.Hit("engine/image.build.before-name"); err != nil {
		return Image{}, err
	}
	return s.setNames(ctx, img.ID, target, names...)
}

// Import makes an image of one layer of a root file system archive: a tar, plain or compressed with gzip or zstd.
func (s *Store) Import(ctx context.Context, r io.Reader, ref string, o ImportOptions) (_ Image, err error) {
	var names []string
	if ref != "" {
		named, err := nameForWriting(ref)
		if err != nil {
			return Image{}, err
		}
		names = []string{named.String()}
	}
	platform := platforms.DefaultSpec()
	if o.Platform != "" {
		if platform, err = platforms.Parse(o.Platform); err != nil {
			return Image{}, fault.New(fault.InvalidArgument, "platform %q: %w", o.Platform, err)
		}
	}
	var rc runConfig
	if err := applyChanges(&rc, o.Changes); err != nil {
		return Image{}, err
	}
	ctx, done, err := s.withLease(s.ns(ctx))
	if err != nil {
		return Image{}, err
	}
	defer s.after(ctx, done, &err)

	now := stamp()
	blob, diffID, err := s.importLayer(ctx, now, r)
	if err != nil {
		if fault.KindOf(err) == fault.Internal && isTarError(err) {
			return Image{}, fault.New(fault.InvalidArgument, "import: not a tar archive: %w", err)
		}
		return Image{}, fmt.Errorf("import: %w", err)
	}
	c := configFile{
		Created:      &now,
		Architecture: platform.Architecture,
		Variant:      platform.Variant,
		OS:           platform.OS,
		Config:       rc,
		Comment:      o.Message,
		RootFS:       ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
		History:      []ocispec.History{{Created: &now, Comment: o.Message}},
	}
	return s.build(ctx, c, []ocispec.Descriptor{blob}, names...)
}

// importLayer makes the lowest layer of an archive: its blob, and its files, which are extracted while the blob is being
// compressed.
func (s *Store) importLayer(ctx context.Context, now time.Time, r io.Reader) (_ ocispec.Descriptor, _ digest.Digest, err error) {
	key := extractionKey("import")
	defer func() {
		if err != nil {
			_ = s.snapshots().Remove(context.WithoutCancel(ctx), key)
		}
	}()
	dir, err := s.folderAlone(ctx, key)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	blob, diffID, err := s.writeLayer(ctx, "import-"+now.Format(time.RFC3339Nano), func(w io.Writer) error {
		stream, _, err := layer.Decompress(r)
		if err != nil {
			return fault.New(fault.InvalidArgument, "archive: %w", err)
		}
		defer stream.Close()
		in := layer.NewPipe(io.TeeReader(stream, w), nil)
		defer in.Close()
		if _, err := layer.Apply(ctx, dir, in, true); err != nil {
			return fmt.Errorf("extracting: %w", err)
		}
		_, err = io.Copy(io.Discard, in) // what follows the archive's end is of the blob too
		return err
	})
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	chain := chainOf([]digest.Digest{diffID})
	unlock, err := s.keys.lock(ctx, "chain/"+chain)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	defer unlock()
	if there, err := s.holdSnapshot(ctx, chain); err != nil {
		return ocispec.Descriptor{}, "", err
	} else if there {
		_ = s.snapshots().Remove(context.WithoutCancel(ctx), key)
		return blob, diffID, nil
	}
	return blob, diffID, s.commitLayer(ctx, key, chain, "")
}

// after ends the lease of work that made something; if the work failed, what it made is collected at once.
func (s *Store) after(ctx context.Context, done func(), err *error) {
	done()
	if *err != nil {
		s.removals.Go(func() {
			if e := s.GC(s.closed); e != nil {
				s.log.Warn("clearing up after a failure", "err", e)
			}
		})
	}
}

// Commit makes an image of what a container changed, on top of the image it runs. Whoever calls it pauses the container
// first if the files must be of one moment.
func (s *Store) Commit(ctx context.Context, r CommitRequest) (_ Image, err error) {
	var names []string
	if r.Ref != "" {
		named, err := nameForWriting(r.Ref)
		if err != nil {
			return Image{}, err
		}
		names = []string{named.String()}
	}
	parent, err := s.findPlatform(ctx, r.ParentID)
	if err != nil {
		return Image{}, err
	}
	dir, _, lower, err := s.chainUnder(ctx, r.ContainerID)
	if err != nil {
		return Image{}, err
	}
	rc := runConfig{ImageConfig: cloneConfig(r.Config.Config), Healthcheck: r.Config.Healthcheck, OnBuild: r.Config.OnBuild, Shell: r.Config.Shell}
	if err := applyChanges(&rc, r.Changes); err != nil {
		return Image{}, err
	}
	ctx, done, err := s.withLease(s.ns(ctx))
	if err != nil {
		return Image{}, err
	}
	defer s.after(ctx, done, &err)

	cs := s.content()
	if err := s.leaseImage(ctx, parent); err != nil {
		return Image{}, err
	}
	m, err := readManifest(ctx, cs, parent.Manifest)
	if err != nil {
		return Image{}, err
	}
	now := stamp()
	files := 0
	blob, diffID, err := s.writeLayer(ctx, "commit-"+r.ContainerID+"-"+now.Format(time.RFC3339Nano), func(w io.Writer) error {
		t := newTarWriter(w)
		upper := filepath.Join(dir, upperFolder)
		err := walkUpper(ctx, upper, lower, func(e upperEntry) error {
			files++
			if e.kind == Deleted {
				return t.whiteout(e.path)
			}
			if err := t.file(upper, e.path, e.info); err != nil {
				return err
			}
			if e.opaque && e.kind == Modified {
				return t.opaque(e.path)
			}
			return nil
		})
		return errors.Join(meanwhile(dir, r.ContainerID, err), t.close())
	})
	if err != nil {
		return Image{}, fmt.Errorf("commit of container %s: %w", r.ContainerID, err)
	}
	c := fileOf(*parent)
	c.Created, c.Author, c.Comment, c.Config, c.Container = &now, r.Author, r.Comment, rc, r.ContainerID
	if c.OS == "" {
		c.OS, c.Architecture = runtime.GOOS, runtime.GOARCH
	}
	layers := m.Layers
	h := ocispec.History{Created: &now, Author: r.Author, Comment: r.Comment, CreatedBy: strings.Join(rc.Cmd, " "), EmptyLayer: files == 0}
	if files > 0 {
		layers = append(layers, blob)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, diffID)
	}
	c.History = append(c.History, h)
	return s.build(ctx, c, layers, names...)
}

// leaseImage keeps an image's blobs and layers while ctx's lease lasts, even if its last name is removed.
func (s *Store) leaseImage(ctx context.Context, img *Image) error {
	if err := s.leaseContent(ctx, img.Target.Digest); err != nil {
		return err
	}
	if _, err := s.content().Info(ctx, img.Target.Digest); err != nil {
		if errdefs.IsNotFound(err) {
			return fault.New(fault.NotFound, "No such image: %s", img.ID)
		}
		return err
	}
	return nil
}
