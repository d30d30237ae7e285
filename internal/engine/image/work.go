package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// transientLease is how long what an interrupted pull, load or commit left behind is kept for the next attempt, unless
// somebody prunes.
const transientLease = time.Hour

// workLabel tells the leases of the store's own work from those of whoever else uses it.
const workLabel = "sampan.work"

// withLease gives ctx a lease that keeps everything made under it from the garbage collector until done is called.
// If the process dies first, the lease expires and a later collection takes what it held.
func (s *Store) withLease(ctx context.Context) (_ context.Context, done func(), err error) {
	var l leases.Lease
	if err := leases.WithRandomID()(&l); err != nil {
		return nil, nil, fmt.Errorf("image store: lease: %w", err)
	}
	m := s.leases()
	s.working.Store(l.ID, nil) // before there is one: whoever sees the lease sees that it is in use
	if _, err := m.Create(ctx, leases.WithID(l.ID), leases.WithExpiration(transientLease), leases.WithLabel(workLabel, "1")); err != nil {
		s.working.Delete(l.ID)
		return nil, nil, fmt.Errorf("image store: lease: %w", err)
	}
	return leases.WithLease(ctx, l.ID), func() {
		// The work's own context may be cancelled by now; the lease must go all the same.
		if err := m.Delete(context.WithoutCancel(ctx), l); err != nil {
			s.log.Warn("image store: lease not removed; it expires", "lease", l.ID, "err", err)
		}
		s.working.Delete(l.ID)
	}, nil
}

// interrupt leaves what ctx's lease holds to the next attempt.
func (s *Store) interrupt(ctx context.Context) {
	if id, ok := leases.FromContext(ctx); ok {
		s.working.Delete(id)
	}
}

// dropInterrupted gives up what interrupted work left for the next attempt, so that the next collection takes it: all of
// it, or that of work which had come to have the blob of. held are the blobs, partial downloads and layers that were kept
// for it, among them some that others hold as well.
func (s *Store) dropInterrupted(ctx context.Context, of digest.Digest) (held []leases.Resource, err error) {
	m := s.leases()
	all, err := m.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("image store: leases: %w", err)
	}
	for _, l := range all {
		if _, own := l.Labels[workLabel]; !own {
			continue
		}
		if _, busy := s.working.Load(l.ID); busy {
			continue
		}
		resources, err := m.ListResources(ctx, l)
		if errdefs.IsNotFound(err) { // the work ended, or another prune was faster, since the leases were listed
			continue
		}
		if err != nil {
			return held, fmt.Errorf("image store: lease %s: %w", l.ID, err)
		}
		if of != "" && !slices.Contains(resources, leases.Resource{ID: of.String(), Type: "content"}) {
			continue
		}
		err = m.Delete(ctx, l)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return held, fmt.Errorf("image store: lease %s: %w", l.ID, err)
		}
		held = append(held, resources...)
	}
	return held, nil
}

// dropStillborn removes the folders of downloads that a process which was killed had made and not named yet: the content
// store's own collection goes by the names.
func dropStillborn(content string) error {
	folders, err := filepath.Glob(filepath.Join(content, "ingest", "*"))
	if err != nil {
		return err
	}
	for _, folder := range folders {
		name, err := os.ReadFile(filepath.Join(folder, "ref"))
		if err == nil && len(name) > 0 {
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.RemoveAll(folder); err != nil {
			return err
		}
	}
	return nil
}

// sizes are the bytes that each of the resources takes; what is not there is left out.
func (s *Store) sizes(ctx context.Context, resources []leases.Resource) map[leases.Resource]int64 {
	out := map[leases.Resource]int64{}
	for _, r := range resources {
		switch r.Type {
		case "content":
			if info, err := s.content().Info(ctx, digest.Digest(r.ID)); err == nil {
				out[r] = info.Size
			}
		case "ingests":
			if st, err := s.content().Status(ctx, r.ID); err == nil {
				out[r] = st.Offset
			}
		case resourceSnapshot:
			if u, err := s.snapshots().Usage(ctx, r.ID); err == nil {
				out[r] = u.Size
			}
		}
	}
	return out
}
