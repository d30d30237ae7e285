package builder

import (
	"context"
	"runtime/debug"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/buildkit/client"
	bkversion "github.com/moby/buildkit/version"

	"github.com/sampan-cloud/sampan/internal/engine/image"
)

// namespaced asks for images under the store's namespace.
type namespaced struct{ images.Store }

func in(ctx context.Context) context.Context { return namespaces.WithNamespace(ctx, image.Namespace) }

// Get finds an image.
func (n namespaced) Get(ctx context.Context, name string) (images.Image, error) {
	return n.Store.Get(in(ctx), name)
}

// List lists images.
func (n namespaced) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	return n.Store.List(in(ctx), filters...)
}

// Create makes an image.
func (n namespaced) Create(ctx context.Context, img images.Image) (images.Image, error) {
	return n.Store.Create(in(ctx), img)
}

// Update makes an image.
func (n namespaced) Update(ctx context.Context, img images.Image, fields ...string) (images.Image, error) {
	return n.Store.Update(in(ctx), img, fields...)
}

// Delete is refused by the store.
func (n namespaced) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	return n.Store.Delete(in(ctx), name, opts...)
}

const buildkitModule = "github.com/moby/buildkit"

// buildkitVersion is the version of the library in this program, which the library itself does not know.
func buildkitVersion() client.BuildkitVersion {
	v := client.BuildkitVersion{Package: buildkitModule, Version: "unknown"}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == buildkitModule {
				v.Version, bkversion.Version = m.Version, m.Version
			}
		}
	}
	return v
}
