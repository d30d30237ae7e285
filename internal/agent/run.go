package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

// The agent's times.
const (
	connectWait = 5 * time.Second
	startWait   = 5 * time.Second // for a manager's first word
	// beatTimeout is for one heartbeat, silence for all of them: then the manager counts as gone and another is tried.
	beatTimeout = time.Second
	silence     = 2 * time.Second
	// offlineAfter is how long without a session makes the node look after its tasks itself.
	offlineAfter   = 3 * time.Second
	minBackoff     = 50 * time.Millisecond
	maxBackoff     = 500 * time.Millisecond
	describePeriod = 10 * time.Second
	tellEvery      = time.Minute // how often the log says that there is no session
)

// Agent is one node's side of the cluster.
type Agent struct {
	cfg     Config
	views   *views
	tasks   *tasks
	reports *reporter
	secrets *files

	mu     sync.Mutex
	link   *Link         // of the open session
	online chan struct{} // closed when a session opens, made anew when it ends
	alone  chan struct{} // closed when there has been no session for offlineAfter, made anew when one opens
	lonely *time.Timer   // closes alone
	logs   map[string]context.CancelFunc
}

// New returns the agent. It reads what an earlier one left at StatePath; nothing runs before Run.
func New(cfg Config) (*Agent, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.RoleChanged == nil {
		cfg.RoleChanged = func(cloud.Role) {}
	}
	if cfg.TrustWanted == nil {
		cfg.TrustWanted = func(string) {}
	}
	a := &Agent{cfg: cfg, online: make(chan struct{}), alone: make(chan struct{}), logs: map[string]context.CancelFunc{}}
	a.secrets = &files{dir: cfg.SecretsDir, logger: cfg.Logger}
	a.reports = newReporter(a)
	a.tasks = newTasks(a)
	a.views = newViews(a)
	if err := a.views.load(); err != nil {
		cfg.Logger.Warn("the last view of the cluster cannot be read; waiting for the managers", "file", cfg.StatePath, "error", err)
	}
	return a, nil
}

// Run keeps the node in the cluster until ctx ends. Then it leaves the tasks' containers and the networks as they are.
func (a *Agent) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	a.expectManagers()
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.lonely.Stop()
	}()
	a.tasks.listen(ctx, &wg)
	a.tasks.start(ctx, &wg)
	wg.Go(func() { a.views.run(ctx) })
	wg.Go(func() { a.reports.run(ctx) })
	backoff := minBackoff
	var told time.Time
	for ctx.Err() == nil {
		began := time.Now()
		err := a.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > 4*maxBackoff {
			backoff = minBackoff
		}
		if a.cfg.Removed != nil && fault.Is(err, fault.NotFound) {
			a.cfg.Removed()
		}
		// Managers come and go; only those that stay away are worth a line, and not one for each attempt.
		level := slog.LevelDebug
		if a.isOnItsOwn() && time.Since(told) > tellEvery {
			level, told = slog.LevelWarn, time.Now()
		}
		a.cfg.Logger.Log(ctx, level, "no session with the managers: this node goes on from what it knows and tries again", "error", err)
		pause(ctx, backoff/2+rand.N(backoff))
		backoff = min(2*backoff, maxBackoff)
	}
	return nil
}

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

// session is one session with the leading manager; it returns why it ended.
func (a *Agent) session(ctx context.Context) (err error) {
	cctx, cancelConnect := context.WithTimeout(ctx, connectWait)
	link, err := a.cfg.Managers.Connect(cctx)
	cancelConnect()
	if err != nil {
		return err
	}
	asked := ctx // below, ctx ends with the session
	defer func() {
		if link.Report != nil && asked.Err() == nil {
			err = link.Report(err)
		}
		if link.Close != nil {
			_ = link.Close.Close()
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := link.Dispatcher.Session(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Hello{Hello: a.hello()}}); err != nil && !errors.Is(err, io.EOF) {
		return cause(ctx, err)
	} // after EOF, Recv says why the manager ended the stream
	slow := time.AfterFunc(startWait, func() { cancel(fault.New(fault.DeadlineExceeded, "the manager did not begin the session in time")) })
	first, err := stream.Recv()
	slow.Stop()
	if err != nil {
		return cause(ctx, err)
	}
	start := first.GetStart()
	if start == nil {
		return fault.New(fault.Internal, "the manager's first word was not the beginning of a session")
	}
	a.cfg.Managers.Update(start.GetManagers())
	a.tellRole(start.GetRole())
	a.cfg.TrustWanted(start.GetTrust())
	a.views.begin(start.GetSession())
	a.open(&link)
	defer a.close()

	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { cancel(a.beat(ctx, link, start)) })
	wg.Go(func() {
		if err := a.speak(ctx, stream); !errors.Is(err, io.EOF) { // after EOF, Recv says why the manager ended the stream
			cancel(err)
		}
	})
	for {
		m, err := stream.Recv()
		if err != nil {
			return cause(ctx, err)
		}
		switch m := m.GetKind().(type) {
		case *rpc.ManagerMessage_Change:
			if err := a.views.change(m.Change); err != nil {
				return err
			}
			a.cfg.Managers.Update(m.Change.GetManagers())
			a.tellRole(m.Change.GetRole())
			a.cfg.TrustWanted(m.Change.GetTrust())
		case *rpc.ManagerMessage_Logs:
			a.serveLogs(ctx, link, m.Logs, &wg)
		case *rpc.ManagerMessage_LogCancel:
			a.cancelLogs(m.LogCancel.GetId())
		}
	}
}

// cause prefers our own reason for ending a stream to gRPC's "canceled".
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && ctx.Err() != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}

func (a *Agent) tellRole(role string) {
	if role != "" {
		a.cfg.RoleChanged(cloud.Role(role))
	}
}

func (a *Agent) hello() *rpc.Hello {
	session, revision := a.views.held()
	h := &rpc.Hello{Protocol: 1, Description: encode(a.cfg.Description()), Session: session, Revision: revision, Tasks: a.reports.all()}
	if a.cfg.DataAddrs != nil {
		for _, addr := range a.cfg.DataAddrs() {
			h.DataAddrs = append(h.DataAddrs, addr.String())
		}
	}
	return h
}

func (a *Agent) open(link *Link) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.link = link
	close(a.online)
	if !a.lonely.Stop() { // it is closed
		a.alone = make(chan struct{})
	}
	a.reports.nudge()
}

func (a *Agent) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.link = nil
	a.online = make(chan struct{})
	a.expectManagers()
}

// expectManagers begins to count how long there is no session. Called with mu held.
func (a *Agent) expectManagers() {
	alone := a.alone
	a.lonely = time.AfterFunc(offlineAfter, func() { close(alone) })
}

// connected returns a way to the leader, or nil, and a channel that is closed when there is one.
func (a *Agent) connected() (*Link, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.link, a.online
}

// onItsOwn returns a channel that is closed while the node has to look after its tasks itself.
func (a *Agent) onItsOwn() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.alone
}

func (a *Agent) isOnItsOwn() bool {
	select {
	case <-a.onItsOwn():
		return true
	default:
		return false
	}
}

// beat sends heartbeats and returns when the manager does not take them any more.
func (a *Agent) beat(ctx context.Context, link Link, start *rpc.SessionStart) error {
	period := time.Duration(start.GetHeartbeatPeriod())
	if period <= 0 {
		period = 500 * time.Millisecond
	}
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	heard := time.Now()
	for {
		bctx, cancel := context.WithTimeout(ctx, max(beatTimeout, period))
		resp, err := link.Heartbeats.Heartbeat(bctx, &rpc.HeartbeatRequest{Session: start.GetSession()})
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			heard = time.Now()
			if p := time.Duration(resp.GetPeriod()); p > 0 && p != period {
				period = p
				ticker.Reset(period)
			}
		} else if kind := fault.KindOf(rpc.FromStatus(err)); kind == fault.NotFound || isRedirect(err) {
			return err // the session is over
		} else if time.Since(heard) > max(silence, 3*period) {
			return fault.New(fault.Unavailable, "the manager does not answer heartbeats: %w", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func isRedirect(err error) bool {
	_, ok := rpc.RedirectOf(err)
	return ok
}

// speak sends acknowledgements and changes of the node's description.
func (a *Agent) speak(ctx context.Context, stream rpc.Dispatcher_SessionClient) error {
	last := string(encode(a.cfg.Description()))
	describe := func() error {
		now := string(encode(a.cfg.Description()))
		if now == last {
			return nil
		}
		last = now
		return stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Description{Description: []byte(now)}})
	}
	ticker := time.NewTicker(describePeriod)
	defer ticker.Stop()
	acked := uint64(0)
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.views.ackable:
			if rev, ok := a.views.toAck(); ok && rev != acked {
				acked = rev
				err = stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Ack{Ack: &rpc.Ack{Revision: rev}}})
			}
		case <-a.cfg.Redescribe:
			err = describe()
		case <-ticker.C:
			err = describe()
		}
		if err != nil {
			return err
		}
	}
}

// leader returns a way to the leader for a request that a user waits for.
func (a *Agent) leader(ctx context.Context) (*Link, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	for {
		link, online := a.connected()
		if link != nil {
			return link, nil
		}
		select {
		case <-online:
		case <-ctx.Done():
			return nil, errNoManager
		}
	}
}

var errNoManager = fault.New(fault.Unavailable, "no manager of the cluster can be reached at the moment: try again")

func encode(o any) []byte {
	doc, err := json.Marshal(o)
	if err != nil {
		panic(err) // domain types can be encoded
	}
	return doc
}

// Attached is what Attach gives a standalone container.
type Attached struct {
	Attachment *cloud.Attachment
	Network    *cloud.Network
}

// Attach gives a standalone container an address on an attachable network of the cluster, and returns when this host
// has the network. Asked again for the same container and network, it answers the same.
func (a *Agent) Attach(ctx context.Context, r *rpc.AttachRequest) (Attached, error) {
	link, err := a.leader(ctx)
	if err != nil {
		return Attached{}, err
	}
	resp, err := link.Dispatcher.Attach(ctx, r)
	if err != nil {
		return Attached{}, rpc.FromStatus(err)
	}
	got := Attached{new(cloud.Attachment), new(cloud.Network)}
	if err := json.Unmarshal(resp.GetAttachment(), got.Attachment); err != nil {
		return Attached{}, fault.New(fault.Internal, "attachment: %w", err)
	}
	if err := json.Unmarshal(resp.GetNetwork(), got.Network); err != nil {
		return Attached{}, fault.New(fault.Internal, "network: %w", err)
	}
	// The member tells the view that follows from this from an older one, which may have a network that is about to go.
	member := cloud.MemberID(got.Attachment.ID, got.Network.ID)
	if err := a.views.await(ctx, func(v *cloud.NodeView) bool { return v.Networks[got.Network.ID] != nil && v.Members[member] != nil }); err != nil {
		return Attached{}, fault.New(fault.DeadlineExceeded, "network %s did not become ready on this host: %w", got.Network.Spec.Name, err)
	}
	return got, nil
}

// Detach gives back what Attach gave; networkID "" stands for all networks of the container. It waits for no manager:
// what is not given back the leader finds by itself.
func (a *Agent) Detach(ctx context.Context, containerID, networkID string) error {
	link, _ := a.connected()
	if link == nil {
		return errNoManager
	}
	_, err := link.Dispatcher.Detach(ctx, &rpc.DetachRequest{ContainerId: containerID, NetworkId: networkID})
	return rpc.FromStatus(err)
}

// Network finds a network of the cluster that this host has, by ID or name.
func (a *Agent) Network(ref string) (*cloud.Network, bool) {
	v := a.views.current()
	if n := v.Networks[ref]; n != nil {
		return n, true
	}
	for _, n := range v.Networks {
		if n.Spec.Name == ref || len(ref) >= 4 && strings.HasPrefix(n.ID, ref) {
			return n, true
		}
	}
	return nil, false
}
