// Package agent is one node's side of the cluster: it holds the session with the managers, keeps the newest view of the
// cluster on disk, gives it to the networks, and runs the node's tasks through the engine, one transition at a time per
// task. It decides nothing about the cluster; without managers it goes on with what it was told last.
package agent

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

// Engine is (*container.Manager), as far as tasks need it.
type Engine interface {
	Create(ctx context.Context, cfg container.Config, platform string) (id string, warnings []string, err error)
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id, signal string, timeout *int) error
	Remove(ctx context.Context, id string, force, volumes, link bool) error
	Get(id string) (container.Container, error)
	List() []container.Container
	Wait(ctx context.Context, id, condition string, ready func()) (code int, errMsg string, err error)
	Logs(ctx context.Context, id string, o container.LogOptions) (container.LogReader, error)
}

// Images is (*image.Store), as far as tasks need it.
type Images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
	Pull(ctx context.Context, ref, platform string, auth image.Auth, progress func(image.Progress)) (image.Image, error)
}

// Events is (*events.Bus): health and ends of containers are heard there.
type Events interface {
	Subscribe(ctx context.Context, since time.Time) ([]events.Event, <-chan events.Event)
}

// Networks is (*network.Manager).
type Networks interface {
	// Apply makes the host's cluster networks agree with the view; nil: not in a cluster.
	Apply(ctx context.Context, view *cloud.NodeView, self string) error
}

// Managers is the way to the cluster's managers; OverPool makes it of the pool that internal/rpc keeps.
type Managers interface {
	// Connect returns a way to the manager that leads, as far as known.
	Connect(ctx context.Context) (Link, error)
	// Update tells the addresses of all managers.
	Update(addrs []string)
}

// Link is a way to one manager. Heartbeats have a connection of their own, so that no backlog delays them.
type Link struct {
	Dispatcher rpc.DispatcherClient
	Heartbeats rpc.DispatcherClient
	// Report says how a call ended; it returns the error with its kind.
	Report func(error) error
	Close  io.Closer
}

// Config is what New needs. All but SecretsDir and the callbacks must be set.
type Config struct {
	NodeID      string
	Managers    Managers
	Engine      Engine
	Images      Images
	Events      Events
	Networks    Networks
	StatePath   string // file in which the newest view is kept
	SecretsDir  string // folder for the files of secrets and configs; made, and a tmpfs mounted on it where permitted
	Description func() cloud.NodeDescription
	DataAddrs   func() []netip.Addr
	// RoleChanged is called with the role that the node should have, whenever it is told.
	RoleChanged func(cloud.Role)
	// TrustWanted is called with the fingerprint of the roots that the node should trust, whenever it is told. May be nil.
	TrustWanted func(fingerprint string)
	// Redescribe holds something when Description has news that the managers wait for. May be nil.
	Redescribe <-chan struct{}
	// Removed is called when a manager says that this node is not part of the cluster any more.
	Removed func()
	Logger  *slog.Logger
}
