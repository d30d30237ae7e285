// Package dispatcher is the leader's side of the sessions with the nodes. Each node is streamed what it needs of the
// cluster and no more, as changes of a view with revisions that the node acknowledges once they are in its kernel; the
// node reports what became of its tasks. It also judges from heartbeats which nodes are there.
//
// # From a cut to the replica that serves elsewhere
//
// With default settings, in the worst case: the last heartbeat came just before the cut, and 3.0 s without one make the
// node down (downAfter), noticed within 0.1 s (tick). That very moment its tasks' members are not ready in the next push
// (push, 3 ms), so requests go to the remaining members. Writing the node's state, making, addressing and placing the new
// task are four commits, 0.1 s together on a slow disk; its node prepares and starts it in about 0.3 s when the image is
// there, reports in batches of 20 ms, one more commit and push: 0.1 s. Sum 3.6 s of the 5 s that are promised.
//
// When the lost node led: the managers elect another in about 1.5 s. It gives nodes downAfter to find it, but the node
// that led before only formerLeaderGrace, as its silence began before the election did: 1.5 + 2.2 + 0.1 + 0.5 = 4.3 s. One
// that merely lost an election to an overloaded disk finds the new leader within half a second of it.
//
// # No false alarm
//
// Heartbeats have a connection of their own, take no lock that is held over I/O, and are never stored. The clock they are
// measured by stands still while the leader itself does: a tick that comes late counts as on time (clock).
package dispatcher

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// The dispatcher's times.
const (
	// HeartbeatPeriod is how often a node says that it is there, unless the cluster's specification says otherwise.
	HeartbeatPeriod = 500 * time.Millisecond
	// dockerPeriod is what Docker's command line sends as the cluster's heartbeat period if nobody asked for one. Taking
	// it by its word would make every loss of a host take ten times as long.
	dockerPeriod      = 5 * time.Second
	downAfter         = 3 * time.Second
	formerLeaderGrace = 2200 * time.Millisecond
	tick              = 100 * time.Millisecond
	push              = 3 * time.Millisecond
	// stopWait bounds how long a planned stop waits for every node to know that it must send nobody there any more. It
	// is a few round trips for nodes that answer; one that hangs must not hold an update for longer.
	stopWait = 2 * time.Second
)

// Config is what New needs.
type Config struct {
	Store state.Store
	// LeaderAddr returns where the leading manager's RPC server is, "" if unknown or this one.
	LeaderAddr func() string
	Logger     *slog.Logger
}

// Dispatcher serves the Dispatcher service of internal/rpc: by itself while this manager leads, else with redirects.
type Dispatcher struct {
	rpc.UnimplementedDispatcherServer
	cfg  Config
	term atomic.Pointer[term]
}

// New returns a dispatcher that answers with redirects until Run.
func New(cfg Config) *Dispatcher {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.LeaderAddr == nil {
		cfg.LeaderAddr = func() string { return "" }
	}
	return &Dispatcher{cfg: cfg}
}

// term is one time of leading.
type term struct {
	id     string
	ctx    context.Context
	store  state.Store
	logger *slog.Logger

	mu       sync.Mutex
	model    *model              // guarded by mu
	sessions map[string]*session // by node, guarded by mu
	changed  chan struct{}       // closed and made anew when nodes come; guarded by mu

	clock  *clock
	status *statusWriter
	logs   *logBroker
	wake   chan struct{} // capacity 1: something is to be flushed
}

// Run serves while this manager leads; previous is the node that led before, "" if unknown or this one.
func (d *Dispatcher) Run(ctx context.Context, previous string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := &term{
		id: cloud.NewID(), ctx: ctx, store: d.cfg.Store, logger: d.cfg.Logger,
		model: newModel(), sessions: map[string]*session{}, changed: make(chan struct{}),
		clock: newClock(HeartbeatPeriod), logs: newLogBroker(), wake: make(chan struct{}, 1),
	}
	t.status = newStatusWriter(t.store, t.logger)
	events := t.store.Watch(ctx, t.model.load,
		cloud.KindTask, cloud.KindNode, cloud.KindNetwork, cloud.KindService, cloud.KindSecret, cloud.KindConfig,
		cloud.KindAttachment, cloud.KindCluster)
	t.clock.period = t.model.heartbeatPeriod()
	for id, n := range t.model.nodes {
		switch {
		case n.Status.State == cloud.NodeDown:
		case id == previous:
			t.clock.grant(id, downAfter-formerLeaderGrace)
		default:
			t.clock.grant(id, 0)
		}
	}
	t.model.flush(time.Now())

	var wg sync.WaitGroup
	wg.Go(func() { t.status.run(ctx) })
	wg.Go(func() { t.keepNodes() })
	d.term.Store(t)
	defer func() {
		d.term.Store(nil)
		cancel()
		t.endSessions()
		wg.Wait()
	}()
	t.follow(events)
	return nil
}

// follow takes changes into the model and pushes what comes of them, a few milliseconds' worth at a time.
func (t *term) follow(events <-chan state.Event) {
	timer := time.NewTimer(0)
	timer.Stop()
	defer timer.Stop()
	armed := false
	arm := func() {
		if !armed {
			armed = true
			timer.Reset(push)
		}
	}
	for {
		select {
		case <-t.ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			t.mu.Lock()
			t.model.apply(e)
			if e.Kind == cloud.KindNode {
				close(t.changed)
				t.changed = make(chan struct{})
			}
			t.mu.Unlock()
			if e.Kind == cloud.KindNode {
				t.nodeChanged(e)
			}
			arm()
		case <-t.wake:
			arm()
		case <-timer.C:
			armed = false
			t.flush()
		}
	}
}

// nudge asks for a flush.
func (t *term) nudge() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *term) flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.model.flush(time.Now())
	for _, s := range t.sessions {
		if s.behind() || t.meta(s.node) != s.meta {
			s.nudge()
		}
	}
}

// nodeChanged keeps the clock's list of nodes, and ends the session of a node that was removed.
func (t *term) nodeChanged(e state.Event) {
	if e.Removed != nil {
		t.clock.forget(e.ID)
		t.mu.Lock()
		s := t.sessions[e.ID]
		t.mu.Unlock()
		if s != nil {
			s.end(fault.New(fault.NotFound, "node %s was removed from the cluster", e.ID))
		}
		return
	}
	n := e.Object.(*cloud.Node)
	if n.Status.State != cloud.NodeDown {
		t.clock.meet(e.ID)
		return
	}
	t.mu.Lock()
	s := t.sessions[e.ID]
	if s == nil || n.Status.Message != silentMessage { // it said goodbye
		t.model.setDown(e.ID, true)
	}
	t.mu.Unlock()
	if s == nil {
		t.clock.forget(e.ID)
		return
	}
	if n.Status.Message != silentMessage {
		t.clock.forget(e.ID)
		s.end(fault.New(fault.FailedPrecondition, "node %s has left the cluster", e.ID))
		return
	}
	// It was written down as silent after it had come back.
	go t.persist(s.ctx, e.ID, func(n *cloud.Node) {
		n.Status.State, n.Status.Message = cloud.NodeReady, ""
	}, func() bool { return s.ctx.Err() == nil })
}

// current returns the term of this manager, or the redirect to the leader.
func (d *Dispatcher) current() (*term, error) {
	if t := d.term.Load(); t != nil {
		return t, nil
	}
	return nil, rpc.NotLeader(d.cfg.LeaderAddr())
}

func caller(ctx context.Context) (string, error) {
	c, ok := rpc.CallerFrom(ctx)
	if !ok || c.NodeID == "" {
		return "", fault.New(fault.Unauthorized, "this call needs the certificate of a node of this cluster")
	}
	return c.NodeID, nil
}

// period is how often nodes are to send heartbeats.
func (t *term) period() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.model.heartbeatPeriod()
}
