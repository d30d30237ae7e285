package host

import (
	"context"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// snapshotService serves the store's layers. Whatever snapshotter a request names, there is the one.
type snapshotService struct {
	snapshotsapi.UnimplementedSnapshotsServer
	store snapshots.Snapshotter
}

var empty = &emptypb.Empty{}

// Prepare makes a writable snapshot.
func (s *snapshotService) Prepare(ctx context.Context, r *snapshotsapi.PrepareSnapshotRequest) (*snapshotsapi.PrepareSnapshotResponse, error) {
	mounts, err := s.store.Prepare(ctx, r.Key, r.Parent, snapshots.WithLabels(r.Labels))
	return &snapshotsapi.PrepareSnapshotResponse{Mounts: mount.ToProto(mounts)}, errgrpc.ToGRPC(err)
}

// View makes a snapshot to be read.
func (s *snapshotService) View(ctx context.Context, r *snapshotsapi.ViewSnapshotRequest) (*snapshotsapi.ViewSnapshotResponse, error) {
	mounts, err := s.store.View(ctx, r.Key, r.Parent, snapshots.WithLabels(r.Labels))
	return &snapshotsapi.ViewSnapshotResponse{Mounts: mount.ToProto(mounts)}, errgrpc.ToGRPC(err)
}

// Mounts tells how a snapshot is mounted.
func (s *snapshotService) Mounts(ctx context.Context, r *snapshotsapi.MountsRequest) (*snapshotsapi.MountsResponse, error) {
	mounts, err := s.store.Mounts(ctx, r.Key)
	return &snapshotsapi.MountsResponse{Mounts: mount.ToProto(mounts)}, errgrpc.ToGRPC(err)
}

// Commit makes a layer of a writable snapshot.
func (s *snapshotService) Commit(ctx context.Context, r *snapshotsapi.CommitSnapshotRequest) (*emptypb.Empty, error) {
	opts := []snapshots.Opt{snapshots.WithLabels(r.Labels)}
	if r.Parent != "" {
		opts = append(opts, snapshots.WithParent(r.Parent))
	}
	return empty, errgrpc.ToGRPC(s.store.Commit(ctx, r.Name, r.Key, opts...))
}

// Remove removes a snapshot.
func (s *snapshotService) Remove(ctx context.Context, r *snapshotsapi.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	return empty, errgrpc.ToGRPC(s.store.Remove(ctx, r.Key))
}

// Stat tells of a snapshot.
func (s *snapshotService) Stat(ctx context.Context, r *snapshotsapi.StatSnapshotRequest) (*snapshotsapi.StatSnapshotResponse, error) {
	info, err := s.store.Stat(ctx, r.Key)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &snapshotsapi.StatSnapshotResponse{Info: proxy.InfoToProto(info)}, nil
}

// Update changes a snapshot's labels.
func (s *snapshotService) Update(ctx context.Context, r *snapshotsapi.UpdateSnapshotRequest) (*snapshotsapi.UpdateSnapshotResponse, error) {
	info, err := s.store.Update(ctx, proxy.InfoFromProto(r.Info), r.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &snapshotsapi.UpdateSnapshotResponse{Info: proxy.InfoToProto(info)}, nil
}

// List tells of all snapshots, a hundred at a time.
func (s *snapshotService) List(r *snapshotsapi.ListSnapshotsRequest, out snapshotsapi.Snapshots_ListServer) error {
	var some []*snapshotsapi.Info
	send := func() error {
		list := some
		some = nil
		return out.Send(&snapshotsapi.ListSnapshotsResponse{Info: list})
	}
	err := s.store.Walk(out.Context(), func(_ context.Context, info snapshots.Info) error {
		if some = append(some, proxy.InfoToProto(info)); len(some) < 100 {
			return nil
		}
		return send()
	}, r.Filters...)
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	if len(some) > 0 {
		return send()
	}
	return nil
}

// Usage tells the space that a snapshot takes.
func (s *snapshotService) Usage(ctx context.Context, r *snapshotsapi.UsageRequest) (*snapshotsapi.UsageResponse, error) {
	usage, err := s.store.Usage(ctx, r.Key)
	return proxy.UsageToProto(usage), errgrpc.ToGRPC(err)
}

// Cleanup is the store's own business: its collection of garbage does it.
func (s *snapshotService) Cleanup(context.Context, *snapshotsapi.CleanupRequest) (*emptypb.Empty, error) {
	return empty, nil
}
