package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/log"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/sampan-cloud/sampan/internal/fault"
)

const (
	namespace   = "sampan"    // of everything in the metadata database
	snapshotter = "overlayfs" // its name in the metadata database and in gc labels
	lockWait    = 2 * time.Second
)

// Config says where a store keeps its files and how it reaches registries.
type Config struct {
	// Root is the folder of everything that must survive: DATA-ROOT/image.
	Root string
	// ExecRoot is a folder for what need not survive a reboot: /run/sampan/image. Empty: Root/tmp.
	ExecRoot string
	// Mirrors are URLs tried before docker.io itself, for docker.io's images only.
	Mirrors []string
	// Insecure are the registries (HOST, HOST:PORT, IP or CIDR) that may speak plain HTTP or show a certificate nobody
	// signed. Loopback addresses always may.
	Insecure []string
	// CertDirs are folders with a folder HOST[:PORT] for each registry that has certificates of its own: in it, NAME.crt are
	// authorities, NAME.cert with NAME.key what this host shows. The first that has one for a registry counts.
	CertDirs []string
	// Limits are those at first; SetLimits replaces them.
	Limits Limits
	// Proxy chooses the proxy to reach a registry by, such as http.ProxyFromEnvironment. Nil: none.
	Proxy func(*http.Request) (*url.URL, error)
	// Logger may be nil.
	Logger *slog.Logger
}

// Store holds the images of this host. It is safe for concurrent use; one process at a time may have a root open. Its
// fields are containerd's stores and the locks between them, which cannot be had apart.
type Store struct {
	cfg     Config
	log     *slog.Logger
	foreign *log.Entry // log, for containerd's libraries
	hub     atomic.Pointer[registries]
	db      *metadata.DB
	layers  snapshots.Snapshotter // the one below db's, to be closed

	limits   atomic.Pointer[Limits]
	index    index
	rootfs   rootfsTable
	removals sync.WaitGroup // folders being deleted in the background
	exclusion

	stop   context.CancelFunc
	closed context.Context
}

// exclusion keeps pieces of work apart.
type exclusion struct {
	naming    sync.Mutex    // of changes to image records
	keys      keyedMutex    // of blobs and chains being made
	unpackers chan struct{} // slots of layers being extracted
	removing  sync.Mutex    // one removal at a time
	gcMu      sync.Mutex
	working   sync.Map // IDs of the leases of work in progress
}

// Open opens or creates the store under cfg.Root. It reads the names of images and nothing of their content, so that it
// takes a few milliseconds. It fails when another process has the root open.
func Open(cfg Config) (*Store, error) {
	if cfg.Root == "" {
		return nil, fault.New(fault.InvalidArgument, "image store: no root folder given")
	}
	root, err := filepath.Abs(cfg.Root)
	if err != nil {
		return nil, err
	}
	cfg.Root = root
	if strings.ContainsAny(root, ",:\\") {
		return nil, fault.New(fault.InvalidArgument,
			"image store: root folder %s: overlay mounts take no path with a comma, colon or backslash: choose another", root)
	}
	if cfg.ExecRoot == "" {
		cfg.ExecRoot = filepath.Join(root, "tmp")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	hub, err := newRegistries(cfg)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{cfg.Root, cfg.ExecRoot, filepath.Join(root, rootfsFolder)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	cs, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return nil, fmt.Errorf("image store: content: %w", err)
	}
	lower := filepath.Join(root, "overlayfs")
	for _, dir := range []string{root, lower} {
		if err := checkDatabase(filepath.Join(dir, "metadata.db")); err != nil {
			return nil, err
		}
	}
	ms, err := storage.NewMetaStore(filepath.Join(lower, "metadata.db"), func(o *bolt.Options) error {
		o.Timeout = lockWait
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("image store: overlayfs snapshotter: %w", err)
	}
	// Removal only renames inside the transaction; the files go when the garbage collector calls Cleanup.
	sn, err := overlay.NewSnapshotter(lower, overlay.AsynchronousRemove, overlay.WithUpperdirLabel, overlay.WithMetaStore(ms))
	if err != nil {
		return nil, fmt.Errorf("image store: overlayfs snapshotter under %s: %w", root, err)
	}
	opts := *bolt.DefaultOptions
	opts.Timeout = lockWait
	opts.NoStatistics = true
	bdb, err := bolt.Open(filepath.Join(root, "metadata.db"), 0o600, &opts)
	if err != nil {
		_ = sn.Close()
		if errors.Is(err, berrors.ErrTimeout) {
			return nil, fault.New(fault.Unavailable, "image store: %s is in use by another process: stop it, or give this one another data root", root)
		}
		return nil, fmt.Errorf("image store: metadata: %w", err)
	}
	if err := dropStillborn(filepath.Join(root, "content")); err != nil {
		_, _ = bdb.Close(), sn.Close()
		return nil, fmt.Errorf("image store: content: %w", err)
	}
	db := metadata.NewDB(bdb, cs, map[string]snapshots.Snapshotter{snapshotter: sn})
	s := &Store{cfg: cfg, log: cfg.Logger, foreign: newBridge(cfg.Logger), db: db, layers: sn, exclusion: exclusion{unpackers: make(chan struct{}, unpackers())}}
	s.hub.Store(hub)
	if err := s.SetLimits(cfg.Limits); err != nil {
		return nil, errors.Join(err, db.Close(), sn.Close())
	}
	s.closed, s.stop = context.WithCancel(context.Background())
	ctx := s.ns(s.closed)
	if err := db.Init(ctx); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("image store: metadata: %w", err)
	}
	if err := s.reload(ctx); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := s.openRootfs(ctx); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("image store: %w", err)
	}
	return s, nil
}

// unpackers is how many layers are extracted at once: each keeps one core busy with decompressing and half of one with
// the rest.
func unpackers() int { return min(max(runtime.NumCPU(), 2), 8) }

// Close ends background work and closes the databases. Mounted root file systems stay mounted.
func (s *Store) Close() error {
	s.stop()
	s.removals.Wait()
	return errors.Join(s.db.Close(), s.layers.Close())
}

// ns adds what containerd's libraries want to know of a context.
func (s *Store) ns(ctx context.Context) context.Context {
	return log.WithLogger(namespaces.WithNamespace(ctx, namespace), s.foreign)
}

func (s *Store) content() content.Store           { return s.db.ContentStore() }
func (s *Store) snapshots() snapshots.Snapshotter { return s.db.Snapshotter(snapshotter) }
func (s *Store) records() images.Store            { return metadata.NewImageStore(s.db) }
func (s *Store) leases() leases.Manager           { return metadata.NewLeaseManager(s.db) }

// GC removes every blob, layer and partial download that no image, container or work in progress refers to.
func (s *Store) GC(ctx context.Context) error {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	ctx = s.ns(ctx)
	if err := s.dropIdlePins(ctx); err != nil {
		return err
	}
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("image store: garbage collection: %w", err)
	}
	return nil
}

// keyedMutex is a mutex per key.
type keyedMutex struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	ch    chan struct{}
	users int
}

// lock waits until nobody else holds key, or ctx ends.
func (k *keyedMutex) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyLock{ch: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
	select {
	case l.ch <- struct{}{}:
		return func() { <-l.ch; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
