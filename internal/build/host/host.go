// Package host is what sampand gives the program that builds images, over the one connection that the two share: the
// inside of the image store, by containerd's own protocols, and the running of a build's steps as containers. It knows
// nothing of Dockerfiles or of how builds are solved.
package host

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path"
	"sync"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/build/buildrpc"
	"github.com/sampan-cloud/sampan/internal/engine/image"
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
	Delete(ctx context.Context, id string) error
	Wait(ctx context.Context, id, execID string) (keeper.Status, error)
}

// Sandbox is a step's place on a network.
type Sandbox struct {
	NetNS      string   // path of the pinned namespace; empty: the host's
	ResolvConf []byte   // empty: the host's own
	Hosts      []string // lines for /etc/hosts
}

// Networks gives steps their network. internal/node implements it over internal/network.
type Networks interface {
	// AttachStep makes a sandbox on the network of that mode: "default", "host" or "none".
	AttachStep(ctx context.Context, id, mode, hostname string) (Sandbox, error)
	// DetachStep gives it up; one that is not there is no error.
	DetachStep(ctx context.Context, id string) error
}

// Config is what a builder is served from.
type Config struct {
	Store        image.Shared
	Keeper       Keeper
	Networks     Networks
	CgroupParent string // of steps that name none
	Logger       *slog.Logger
}

// maxMessage bounds a message: a list of snapshots or leases, or a step's specification. Content goes in pieces.
const maxMessage = 64 << 20

// Serve answers the builder at the other end of conn until either end closes it, or ctx ends. When it returns, no step
// of the builder's is left.
func Serve(ctx context.Context, conn net.Conn, cfg Config) error {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.WaitForHandlers(true))
	contentapi.RegisterContentServer(s, contentserver.New(cfg.Store.Content))
	snapshotsapi.RegisterSnapshotsServer(s, &snapshotService{store: cfg.Store.Snapshots})
	leasesapi.RegisterLeasesServer(s, &leaseService{store: cfg.Store.Leases})
	imagesapi.RegisterImagesServer(s, &imageService{store: cfg.Store.Images})
	buildrpc.RegisterStepsServer(s, &stepService{Config: cfg})
	once := &onceListener{conn: conn, closed: make(chan struct{})}
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	err := s.Serve(once)
	s.Stop() // waits for the handlers: each takes its step down
	if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// onceListener accepts one connection, and then ends when that is closed.
type onceListener struct {
	mu     sync.Mutex
	conn   net.Conn
	once   sync.Once
	closed chan struct{}
}

// Accept returns the connection, and at the next call waits for its end.
func (l *onceListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	conn := l.conn
	l.conn = nil
	l.mu.Unlock()
	if conn != nil {
		return &toldConn{Conn: conn, l: l}, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

// Close ends the wait.
func (l *onceListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr has nothing to tell.
func (l *onceListener) Addr() net.Addr { return &net.UnixAddr{Name: "builder", Net: "unix"} }

// toldConn tells its listener when it is closed.
type toldConn struct {
	net.Conn
	l *onceListener
}

// Close closes the connection and with it the listener.
func (c *toldConn) Close() error {
	_ = c.l.Close()
	return c.Conn.Close()
}

func (c *Config) groupOf(parent, id string) string {
	if parent == "" {
		parent = c.CgroupParent
	}
	return path.Join("/", parent, id)
}
