package host

import (
	"context"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// leaseService serves the leases by which the builder keeps what it needs from being collected.
type leaseService struct {
	leasesapi.UnimplementedLeasesServer
	store leases.Manager
}

// Create makes a lease.
func (s *leaseService) Create(ctx context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	id := leases.WithRandomID()
	if r.ID != "" {
		id = leases.WithID(r.ID)
	}
	l, err := s.store.Create(ctx, id, leases.WithLabels(r.Labels))
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &leasesapi.CreateResponse{Lease: wireLease(l)}, nil
}

// Delete gives a lease up; with Sync, what it held is gone on return.
func (s *leaseService) Delete(ctx context.Context, r *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	var opts []leases.DeleteOpt
	if r.Sync {
		opts = append(opts, leases.SynchronousDelete)
	}
	return empty, errgrpc.ToGRPC(s.store.Delete(ctx, leases.Lease{ID: r.ID}, opts...))
}

// List lists leases.
func (s *leaseService) List(ctx context.Context, r *leasesapi.ListRequest) (*leasesapi.ListResponse, error) {
	all, err := s.store.List(ctx, r.Filters...)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	out := &leasesapi.ListResponse{}
	for _, l := range all {
		out.Leases = append(out.Leases, wireLease(l))
	}
	return out, nil
}

// AddResource puts something under a lease.
func (s *leaseService) AddResource(ctx context.Context, r *leasesapi.AddResourceRequest) (*emptypb.Empty, error) {
	return empty, errgrpc.ToGRPC(s.store.AddResource(ctx, leases.Lease{ID: r.ID}, resource(r.Resource)))
}

// DeleteResource takes something from under a lease.
func (s *leaseService) DeleteResource(ctx context.Context, r *leasesapi.DeleteResourceRequest) (*emptypb.Empty, error) {
	return empty, errgrpc.ToGRPC(s.store.DeleteResource(ctx, leases.Lease{ID: r.ID}, resource(r.Resource)))
}

// ListResources lists what is under a lease.
func (s *leaseService) ListResources(ctx context.Context, r *leasesapi.ListResourcesRequest) (*leasesapi.ListResourcesResponse, error) {
	all, err := s.store.ListResources(ctx, leases.Lease{ID: r.ID})
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	out := &leasesapi.ListResourcesResponse{}
	for _, res := range all {
		out.Resources = append(out.Resources, &leasesapi.Resource{ID: res.ID, Type: res.Type})
	}
	return out, nil
}

func resource(r *leasesapi.Resource) leases.Resource {
	return leases.Resource{ID: r.GetID(), Type: r.GetType()}
}

func wireLease(l leases.Lease) *leasesapi.Lease {
	return &leasesapi.Lease{ID: l.ID, Labels: l.Labels, CreatedAt: timestamppb.New(l.CreatedAt)}
}
