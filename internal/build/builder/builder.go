// Package builder is the program that builds images: BuildKit as a library, with the image store and the containers of
// the sampand that started it. The store is reached by containerd's own protocols on the connection that the two share,
// steps run by buildrpc; clients' requests come from sampand as they are. It keeps what it knows of builds done (what
// leads to which layer, their history) in a folder of its own.
package builder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/moby/buildkit/cache/remotecache"
	inlineremotecache "github.com/moby/buildkit/cache/remotecache/inline"
	localremotecache "github.com/moby/buildkit/cache/remotecache/local"
	registryremotecache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/tracing/detect"
	"github.com/moby/buildkit/worker"
	bolt "go.etcd.io/bbolt"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sampan-cloud/sampan/internal/build"
	"github.com/sampan-cloud/sampan/internal/engine/image"
)

// Config is what the program was started with.
type Config struct {
	Root     string // what outlives it
	ExecRoot string // mount points and files of steps that run
	// Host is the connection to the daemon.
	Host net.Conn
	// Registries says which registries have mirrors or may be insecure.
	Registries image.Config
	// HostGateway is the address that host-gateway stands for; empty: none.
	HostGateway string
	Settings    build.Settings
	// Version is the daemon's.
	Version string
	Logger  *slog.Logger
}

// Builder is a running BuildKit.
type Builder struct {
	log        *slog.Logger
	controller *control.Controller
	sessions   *session.Manager
	grpc       *grpc.Server
	host       *grpc.ClientConn
	contexts   *contexts
	gateway    string // what host-gateway stands for
	jobs       jobs
	// Gone is closed when the daemon's end of the connection is closed: there is nothing left to do then but to end.
	Gone <-chan struct{}
}

// lockWait bounds the wait for a builder that was told to end and still holds its databases.
const lockWait = 5e9 // nanoseconds

// New opens what earlier builders have left and makes everything that requests need.
func New(ctx context.Context, cfg Config) (_ *Builder, err error) {
	if err := os.MkdirAll(cfg.Root, 0o710); err != nil {
		return nil, fmt.Errorf("folder of the builder: %w", err)
	}
	hosts, err := image.RegistryHosts(cfg.Registries)
	if err != nil {
		return nil, err
	}
	b := &Builder{log: cfg.Logger, contexts: newContexts(), gateway: cfg.HostGateway}
	var closers []func() error
	defer func() {
		if err != nil {
			for _, c := range closers {
				err = errors.Join(err, c())
			}
		}
	}()
	if b.host, b.Gone, err = dial(cfg.Host); err != nil {
		return nil, err
	}
	closers = append(closers, b.host.Close)
	if b.sessions, err = session.NewManager(); err != nil {
		return nil, err
	}
	opts, err := workerOptions(cfg, b.host, hosts)
	if err != nil {
		return nil, err
	}
	closers = append(closers, opts.MetadataStore.Close)
	w, err := newImageWorker(ctx, opts, b.contexts)
	if err != nil {
		return nil, err
	}
	workers := &worker.Controller{}
	if err := workers.Add(w); err != nil {
		return nil, err
	}
	gw, err := gateway.NewGatewayFrontend(workers.Infos(), nil)
	if err != nil {
		return nil, err
	}
	storage, err := bboltcachestorage.NewStore(filepath.Join(cfg.Root, "cache.db"))
	if err != nil {
		return nil, fmt.Errorf("cache of the builder: %w", err)
	}
	closers = append(closers, storage.Close)
	history, err := bolt.Open(filepath.Join(cfg.Root, "history.db"), 0o600, &bolt.Options{Timeout: lockWait, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("history of the builder: %w", err)
	}
	closers = append(closers, history.Close)
	detect.Recorder = detect.NewTraceRecorder() // the history of builds has their spans
	b.controller, err = control.NewController(control.Opt{
		TraceCollector:   detect.Recorder,
		SessionManager:   b.sessions,
		WorkerController: workers,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build),
			"gateway.v0":    &ownSyntax{Frontend: gw, own: forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build)},
		},
		CacheManager: solver.NewCacheManager(ctx, "local", storage, worker.NewCacheResultStorage(workers)),
		CacheStore:   storage,
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"local":    localremotecache.ResolveCacheImporterFunc(b.sessions),
			"registry": registryremotecache.ResolveCacheImporterFunc(b.sessions, opts.ContentStore, hosts),
		},
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"inline":   inlineremotecache.ResolveCacheExporterFunc(),
			"local":    localremotecache.ResolveCacheExporterFunc(b.sessions),
			"registry": registryremotecache.ResolveCacheExporterFunc(b.sessions, hosts),
		},
		Entitlements:   allowed(cfg.Settings),
		HistoryDB:      history,
		HistoryConfig:  historyConfig(cfg.Settings),
		LeaseManager:   opts.LeaseManager,
		ContentStore:   opts.ContentStore,
		GarbageCollect: w.GarbageCollect,
	})
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	b.grpc = newControlServer(sdktrace.NewTracerProvider(sdktrace.WithResource(detect.Resource()), sdktrace.WithSyncer(detect.Recorder)))
	b.controller.Register(b.grpc)
	return b, nil
}

// Close closes the builder's databases.
func (b *Builder) Close() error {
	b.grpc.Stop()
	return errors.Join(b.controller.Close(), b.host.Close())
}

// maxMessage bounds what the daemon and the builder say to each other at once.
const maxMessage = 64 << 20

// dial speaks gRPC over conn, once; gone is closed when it has ended.
func dial(conn net.Conn) (_ *grpc.ClientConn, gone <-chan struct{}, err error) {
	ended := make(chan struct{})
	w := &watched{Conn: conn, ended: ended}
	var used sync.Once
	cc, err := grpc.NewClient("passthrough:///sampand",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithIdleTimeout(0), // there is no second connection to be had
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			var c net.Conn
			used.Do(func() { c = w })
			if c == nil {
				return nil, errors.New("the daemon has closed the connection")
			}
			return c, nil
		}))
	return cc, ended, err
}

// watched tells when the connection cannot be read from any more.
type watched struct {
	net.Conn
	once  sync.Once
	ended chan struct{}
}

// Read reads from the connection.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.once.Do(func() { close(w.ended) })
	}
	return n, err
}

var _ http.Handler = (*Builder)(nil)
