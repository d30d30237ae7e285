package container

import (
	"context"
	"io"
	"os"

	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// Keeper runs processes: (*keeper.Client).
type Keeper interface {
	Create(ctx context.Context, spec keeper.Spec) (keeper.Status, error)
	Start(ctx context.Context, id string) (keeper.Status, error)
	Exec(ctx context.Context, p keeper.Process) (keeper.Status, error)
	Attach(ctx context.Context, o keeper.AttachOptions) (*keeper.Stream, error)
	Signal(ctx context.Context, id, execID string, sig int, all bool) error
	Resize(ctx context.Context, id, execID string, rows, cols uint16) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Update(ctx context.Context, id string, r keeper.Resources) error
	Delete(ctx context.Context, id string) error
	List(ctx context.Context) ([]keeper.Status, error)
	Events() <-chan keeper.Event
}

// Images gives containers their root file systems: (*image.Store).
type Images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
	// ForPlatform is Get for one platform of an image that is for several.
	ForPlatform(ctx context.Context, ref, platform string) (image.Image, error)
	// PrepareRootfs takes the digest of a manifest, too.
	PrepareRootfs(ctx context.Context, containerID, imageID string) error
	MountRootfs(ctx context.Context, containerID, target string) (image.Rootfs, error)
	// MountRootfsShifted is MountRootfs with the owners of files shifted by a user namespace; nil: by none.
	MountRootfsShifted(ctx context.Context, containerID, target string, ns *os.File) (image.Rootfs, error)
	UnmountRootfs(ctx context.Context, containerID, target string) error
	RemoveRootfs(ctx context.Context, containerID string) error
	RootfsUsage(ctx context.Context, containerID string) (rw, total int64, err error)
	RootfsDiff(ctx context.Context, containerID string) ([]image.Change, error)
	ExportLayer(ctx context.Context, containerID string, w io.Writer) error
	Commit(ctx context.Context, r image.CommitRequest) (image.Image, error)
}

// Volumes holds the named volumes that containers mount: (*volume.Store).
type Volumes interface {
	CreateFor(ctx context.Context, v volume.Volume, user string) (volume.Volume, error)
	Get(name string) (volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	Reserve(ctx context.Context, name, user string) error
	Acquire(ctx context.Context, name, user string) (path string, err error)
	Unmount(ctx context.Context, name, user string) error
	Release(ctx context.Context, name, user string) error
}

// Networks joins containers to networks. internal/node implements it over internal/network.
type Networks interface {
	// Attach makes the container's sandbox and joins it to the networks of its configuration. It is idempotent by the
	// container's ID. With host networking the attachment has no namespace.
	// ns is where the network namespace is pinned that the sandbox is to be made of, which goes over to it; empty: a new
	// one of the host's.
	Attach(ctx context.Context, c Container, ns string) (Attachment, error)
	// Detach gives up everything Attach made; a container that has nothing is no error.
	Detach(ctx context.Context, id string) error
	// Connect and Disconnect change a running container's endpoints.
	Connect(ctx context.Context, id, network string, e EndpointConfig) (Endpoint, error)
	Disconnect(ctx context.Context, id, network string) error
	// ResolvConf is what a running container's /etc/resolv.conf should be on the networks it is on now; nil: not known.
	ResolvConf(id string) []byte
	// Ports are a running container's published ports as they are now: they depend on the networks it is on.
	Ports(id string) []BoundPort
	// ResolveNetwork finds a network by ID, name or unique ID prefix.
	ResolveNetwork(nameOrID string) (id, name string, err error)
}

// Events takes what happens to containers: (*events.Bus).
type Events interface {
	Publish(e events.Event)
}
