package host

import (
	"context"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

// imageService serves the names of images; creating one makes an image of what was built.
type imageService struct {
	imagesapi.UnimplementedImagesServer
	store images.Store
}

// Get finds an image by its name.
func (s *imageService) Get(ctx context.Context, r *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	img, err := s.store.Get(ctx, r.Name)
	if err != nil {
		return nil, statusOf(err)
	}
	return &imagesapi.GetImageResponse{Image: wireImage(img)}, nil
}

// List lists the names of images.
func (s *imageService) List(ctx context.Context, r *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	all, err := s.store.List(ctx, r.Filters...)
	if err != nil {
		return nil, statusOf(err)
	}
	out := &imagesapi.ListImagesResponse{}
	for _, img := range all {
		out.Images = append(out.Images, wireImage(img))
	}
	return out, nil
}

// Create makes an image.
func (s *imageService) Create(ctx context.Context, r *imagesapi.CreateImageRequest) (*imagesapi.CreateImageResponse, error) {
	img, err := s.store.Create(ctx, imageOf(r.Image))
	if err != nil {
		return nil, statusOf(err)
	}
	return &imagesapi.CreateImageResponse{Image: wireImage(img)}, nil
}

// Update makes an image.
func (s *imageService) Update(ctx context.Context, r *imagesapi.UpdateImageRequest) (*imagesapi.UpdateImageResponse, error) {
	img, err := s.store.Update(ctx, imageOf(r.Image), r.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, statusOf(err)
	}
	return &imagesapi.UpdateImageResponse{Image: wireImage(img)}, nil
}

// statusOf puts errors of the engine and of containerd's libraries into gRPC's words.
func statusOf(err error) error {
	if fault.KindOf(err) != fault.Internal {
		return rpc.ToStatus(err)
	}
	return errgrpc.ToGRPC(err)
}

func wireImage(img images.Image) *imagesapi.Image {
	t := img.Target
	return &imagesapi.Image{Name: img.Name, Labels: img.Labels,
		Target:    &types.Descriptor{MediaType: t.MediaType, Digest: t.Digest.String(), Size: t.Size, Annotations: t.Annotations},
		CreatedAt: timestamppb.New(img.CreatedAt), UpdatedAt: timestamppb.New(img.UpdatedAt)}
}

func imageOf(img *imagesapi.Image) images.Image {
	t := img.GetTarget()
	return images.Image{Name: img.GetName(), Labels: img.GetLabels(),
		Target:    ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize(), Annotations: t.GetAnnotations()},
		CreatedAt: img.GetCreatedAt().AsTime(), UpdatedAt: img.GetUpdatedAt().AsTime()}
}
