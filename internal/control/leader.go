package control

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control/allocator"
	"github.com/sampan-cloud/sampan/internal/control/authority"
	"github.com/sampan-cloud/sampan/internal/control/dispatcher"
	"github.com/sampan-cloud/sampan/internal/control/orchestrator"
	"github.com/sampan-cloud/sampan/internal/control/scheduler"
	"github.com/sampan-cloud/sampan/internal/state"
)

// Leader runs the control loops while this manager leads, and stops them when it does not.
type Leader struct {
	cfg        LeaderConfig
	dispatcher *dispatcher.Dispatcher
}

// LeaderConfig is what NewLeader needs.
type LeaderConfig struct {
	NodeID   string // of this manager
	Store    state.Store
	Election Election
	Logger   *slog.Logger
}

// NewLeader returns a Leader; nothing runs before Run.
func NewLeader(cfg LeaderConfig) *Leader {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Leader{cfg: cfg}
	l.dispatcher = dispatcher.New(dispatcher.Config{
		Store: cfg.Store, LeaderAddr: l.leaderAddr, Logger: cfg.Logger,
	})
	return l
}

// Dispatcher returns the service to register with this manager's gRPC server. It answers with a redirect while this
// manager does not lead.
func (l *Leader) Dispatcher() *dispatcher.Dispatcher { return l.dispatcher }

// leaderAddr returns where the leader's RPC server is.
func (l *Leader) leaderAddr() (addr string) {
	id := l.cfg.Election.LeaderNode()
	if id == "" || id == l.cfg.NodeID {
		return ""
	}
	l.cfg.Store.View(func(tx state.Tx) {
		if n := state.Get[*cloud.Node](tx, id); n != nil && n.Manager != nil {
			addr = n.Manager.Addr
		}
	})
	return addr
}

// Run starts and stops the loops as this manager comes to lead and ceases to, until ctx ends.
func (l *Leader) Run(ctx context.Context) error {
	stop := func() {}
	defer func() { stop() }()
	leads := false
	for leading := range l.cfg.Election.Leadership(ctx) {
		if leading == leads {
			continue
		}
		leads = leading
		stop() // returns when the loops of the earlier term have ended
		stop = func() {}
		if !leading {
			l.cfg.Logger.Info("this manager leads the cluster no more")
			continue
		}
		l.cfg.Logger.Info("this manager leads the cluster")
		term, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.lead(term)
		}()
		stop = func() {
			cancel()
			<-done
		}
	}
	return nil
}

// lead runs the loops until term ends. A loop that fails is started again: the state tells it where things stand.
func (l *Leader) lead(term context.Context) {
	previous := l.takeOver(term)
	loops := map[string]func(context.Context) error{
		"dispatcher":   func(ctx context.Context) error { return l.dispatcher.Run(ctx, previous) },
		"orchestrator": orchestrator.New(l.cfg.Store, l.cfg.Logger).Run,
		"allocator":    allocator.New(l.cfg.Store, l.cfg.Logger).Run,
		"scheduler":    scheduler.New(l.cfg.Store, l.cfg.Logger).Run,
		"authority":    authority.New(l.cfg.Store, l.cfg.Logger).Run,
	}
	var wg sync.WaitGroup
	for name, run := range loops {
		wg.Go(func() {
			for term.Err() == nil {
				if err := run(term); term.Err() == nil {
					l.cfg.Logger.Error("a control loop ended and is started again", "loop", name, "error", err)
					pause(term, time.Second)
				}
			}
		})
	}
	wg.Wait()
}

// takeOver writes down who leads now and returns who led before. Its failure harms nothing but the speed at which the
// loss of the earlier leader's host is noticed.
func (l *Leader) takeOver(ctx context.Context) (previous string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := l.cfg.Store.Linearize(ctx); err != nil {
		l.cfg.Logger.Warn("take over leadership: state not confirmed", "error", err)
	}
	err := l.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		clusters := state.List[*cloud.Cluster](tx, state.By{})
		if len(clusters) == 0 || clusters[0].Status.Leader == l.cfg.NodeID {
			return nil
		}
		c := state.Clone(clusters[0])
		previous, c.Status.Leader = c.Status.Leader, l.cfg.NodeID
		return tx.Put(c)
	})
	if err != nil {
		l.cfg.Logger.Warn("take over leadership: not written down", "error", err)
	}
	return previous
}

// pause waits for d; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
