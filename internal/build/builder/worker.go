package builder

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	ctd "github.com/containerd/containerd/v2/client"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/session"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	bkhttp "github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/worker/base"
	wlabel "github.com/moby/buildkit/worker/label"
	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/build/buildrpc"
	"github.com/sampan-cloud/sampan/internal/engine/image"
)

// labelHostGateway is where clients look for the address behind host-gateway.
const labelHostGateway = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"

// workerOptions wires BuildKit's worker to the daemon's store.
func workerOptions(cfg Config, host *grpc.ClientConn, hosts docker.RegistryHosts) (base.WorkerOpt, error) {
	id, err := base.ID(cfg.Root)
	if err != nil {
		return base.WorkerOpt{}, fmt.Errorf("builder: %w", err)
	}
	md, err := metadata.NewStore(filepath.Join(cfg.Root, "metadata.db"))
	if err != nil {
		return base.WorkerOpt{}, fmt.Errorf("metadata of the builder: %w", err)
	}
	lm := leaseutil.WithNamespace(leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(host)), image.Namespace)
	content := containerdsnapshot.NewContentStore(contentproxy.NewContentStore(contentapi.NewContentClient(host)), image.Namespace)
	snapshots := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(host), image.Snapshotter)
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "unknown"
	}
	labels := map[string]string{
		wlabel.Executor:    "sampan",
		wlabel.Snapshotter: image.Snapshotter, // by this label clients know that every kind of output and cache is served
		wlabel.Hostname:    hostname,
		wlabel.Network:     "bridge",
	}
	if cfg.HostGateway != "" {
		labels[labelHostGateway] = cfg.HostGateway
	}
	return base.WorkerOpt{
		ID:              id,
		Root:            cfg.Root,
		Labels:          labels,
		Platforms:       archutil.SupportedPlatforms(true),
		GCPolicy:        keepPolicy(cfg.Root, cfg.Settings),
		BuildkitVersion: buildkitVersion(),
		Executor:        &executor{steps: buildrpc.NewStepsClient(host), root: filepath.Join(cfg.ExecRoot, "steps"), log: cfg.Logger},
		Snapshotter:     containerdsnapshot.NewSnapshotter(image.Snapshotter, snapshots, image.Namespace, nil),
		ContentStore:    content,
		Applier:         apply.NewFileSystemApplier(content),
		Differ:          walking.NewWalkingDiff(content),
		ImageStore:      namespaced{ctd.NewImageStoreFromClient(imagesapi.NewImagesClient(host))},
		RegistryHosts:   hosts,
		LeaseManager:    lm,
		GarbageCollect: func(ctx context.Context) (gc.Stats, error) {
			l, err := lm.Create(ctx, leases.WithRandomID())
			if err != nil {
				return nil, err
			}
			return nil, lm.Delete(ctx, l, leases.SynchronousDelete)
		},
		MetadataStore: md,
		MountPoolRoot: filepath.Join(cfg.ExecRoot, "cachemounts"),
	}, nil
}

// imageWorker is BuildKit's worker with the daemon's image store as an output, and contexts that came with a request.
type imageWorker struct {
	*base.Worker
}

func newImageWorker(ctx context.Context, opts base.WorkerOpt, rt http.RoundTripper) (*imageWorker, error) {
	w, err := base.NewWorker(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	source, err := bkhttp.NewSource(bkhttp.Opt{CacheAccessor: w.CacheManager(), Transport: rt})
	if err != nil {
		return nil, err
	}
	w.SourceManager.Register(source)
	w.HTTPSource = source
	return &imageWorker{w}, nil
}

// Exporter returns an output by its name.
func (w *imageWorker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	if name != exporterMoby && name != client.ExporterImage {
		return w.Worker.Exporter(name, sm)
	}
	exp, err := w.Worker.Exporter(client.ExporterImage, sm)
	if err != nil {
		return nil, err
	}
	return &storeExporter{exp}, nil
}
