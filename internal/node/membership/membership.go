package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/etcdstate"
)

// Membership is this host's part in a cluster.
type Membership struct {
	cfg    Config
	dir    string // DATA-ROOT/swarm
	logger *slog.Logger
	now    func() time.Time

	ops sync.Mutex // one of Start, Stop, Init, Join, Leave and changes of role at a time

	mu      sync.Mutex // guards what follows; held for moments only
	current *membership
	joining bool
	locked  bool   // the membership is on disk, under a key that only users have
	failure string // why the membership does not work, for docker info
	// restarting is closed when the manager's parts, which are being started anew, are back; nil at other times.
	restarting chan struct{}
}

// membership is a running membership.
type membership struct {
	rec  record
	id   *identity.Node
	pool *rpc.Managers

	ctx    context.Context // ends when the membership stops
	cancel context.CancelFunc
	wg     sync.WaitGroup
	roles  chan cloud.Role // wanted; capacity 1, the newest wins
	doubts chan struct{}   // whether this node is still part of the cluster; capacity 1

	trustNews    chan struct{} // wantTrust has changed; capacity 1
	trustChanged chan struct{} // the agent is to tell the roots that this node goes by; capacity 1

	rejoin bool // this node's copy of the state is no member's any more; guarded by Membership.ops

	// Guarded by Membership.mu.
	manager   *manager
	stopAgent func()
	wantTrust string // fingerprint of the roots that the managers want trusted
}

// New returns the membership as it is on disk, not yet started.
func New(cfg Config) (*Membership, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Membership{cfg: cfg, dir: filepath.Join(cfg.DataRoot, "swarm"), logger: cfg.Logger, now: cfg.Now}, nil
}

// Start resumes the membership that the data root holds, if any. It waits for no quorum and for no other host. What
// cannot be resumed is told by Local, and is no reason for the daemon not to start.
func (m *Membership) Start(ctx context.Context) error {
	m.ops.Lock()
	defer m.ops.Unlock()
	rec, err := readRecord(m.dir)
	if err != nil {
		m.fail(err)
		return nil
	}
	if rec == nil {
		// What an Init or Join that was killed has left behind.
		return os.RemoveAll(m.dir)
	}
	id, err := identity.Load(filepath.Join(m.dir, certsDir), "", m.now)
	if errors.Is(err, identity.ErrLocked) {
		m.setLocked(true)
		m.logger.Warn("this manager's keys are locked: it takes part in its cluster again after \"docker swarm unlock\"")
		return nil
	}
	if err != nil {
		m.fail(err)
		return nil
	}
	return m.take(ctx, rec, id)
}

// take takes up the membership that the record describes. Called with ops held.
func (m *Membership) take(ctx context.Context, rec *record, id *identity.Node) error {
	cur, err := m.begin(*rec, id, nil)
	if err != nil {
		return err
	}
	if id.Subject().Role == identity.Manager {
		if etcdstate.Initialized(filepath.Join(m.dir, etcdDir)) {
			if err := m.resumeManager(ctx, cur); err != nil {
				m.logger.Error("this node cannot take up its part as a manager; trying again", "error", err)
				m.fail(err)
				cur.want(cloud.RoleManager)
			}
		} else {
			cur.want(cloud.RoleManager) // stopped on the way to become one
		}
	}
	if err := m.startAgent(cur); err != nil {
		m.logger.Error("this node's part in the cluster could not be taken up", "error", err)
		m.fail(err)
	}
	return nil
}

func (m *Membership) resumeManager(ctx context.Context, cur *membership) error {
	mg, err := m.startManager(ctx, cur.rec, cur.id, cur.pool, managerStart{})
	if err != nil {
		return err
	}
	m.mu.Lock()
	cur.manager = mg
	m.mu.Unlock()
	for _, member := range mg.store.Members() {
		if member.ID == mg.store.MemberID() && member.Learner {
			cur.want(cloud.RoleManager) // stopped before it had its vote
		}
	}
	return nil
}

// begin makes the running membership, without manager and agent.
func (m *Membership) begin(rec record, id *identity.Node, addrs []string) (*membership, error) {
	cur := &membership{rec: rec, id: id, roles: make(chan cloud.Role, 1), doubts: make(chan struct{}, 1),
		trustNews: make(chan struct{}, 1), trustChanged: make(chan struct{}, 1)}
	var err error
	if cur.pool, err = rpc.NewManagers(rpc.ManagersConfig{
		File: filepath.Join(m.dir, managersFile), Addrs: addrs, TLS: id.ClientConfig(), Logger: m.logger, Doubted: cur.doubt,
	}); err != nil {
		return nil, err
	}
	cur.ctx, cur.cancel = context.WithCancel(context.Background())
	m.mu.Lock()
	m.current, m.failure = cur, ""
	m.mu.Unlock()
	cur.wg.Go(func() { id.KeepFresh(cur.ctx, m.logger, func(ctx context.Context) error { return m.renew(ctx, cur) }) })
	cur.wg.Go(func() { m.followRole(cur) })
	cur.wg.Go(func() { m.followTrust(cur) })
	cur.wg.Go(func() { m.clearDoubts(cur) })
	return cur, nil
}

func (m *Membership) startAgent(cur *membership) error {
	hook := m.cfg.Hooks.NodeStarted
	if hook == nil {
		return nil
	}
	stop, err := hook(NodeEnv{
		NodeID: cur.rec.NodeID, ClusterID: cur.rec.ClusterID, Hostname: m.cfg.Hostname, Managers: cur.pool,
		DataAddrs: []netip.Addr{cur.rec.DataPath}, DataPathPort: cur.rec.DataPathPort,
		SetRole: func(r cloud.Role) { m.setRole(cur, r) }, SetTrust: func(f string) { m.setTrust(cur, f) },
		TrustRoot: func() string { return m.trustRoot(cur) }, TrustChanged: cur.trustChanged, Removed: func() { go m.removed(cur) }, Logger: m.logger,
	})
	if err != nil {
		return fmt.Errorf("start this node's agent: %w", err)
	}
	m.mu.Lock()
	cur.stopAgent = stop
	m.mu.Unlock()
	return nil
}

// Stop ends everything that Start, Init or Join started; the membership stays on disk.
func (m *Membership) Stop() {
	cur := m.running()
	if cur != nil {
		cur.cancel() // a change of role under way gives up
	}
	m.ops.Lock()
	m.end()
	m.ops.Unlock()
	if cur != nil {
		cur.wg.Wait()
	}
}

// end stops the running membership, the agent first. Called with ops held.
func (m *Membership) end() {
	m.mu.Lock()
	cur := m.current
	m.current = nil
	var stopAgent func()
	var mg *manager
	if cur != nil {
		stopAgent, mg = cur.stopAgent, cur.manager
		cur.stopAgent, cur.manager = nil, nil
	}
	m.mu.Unlock()
	if cur == nil {
		return
	}
	cur.cancel()
	if stopAgent != nil {
		stopAgent()
	}
	if mg != nil {
		mg.stop()
	}
	cur.pool.Close()
	// followRole may wait for ops, which we hold: it sees that its context has ended, and is not waited for.
}

func (m *Membership) running() *membership {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current
}

func (m *Membership) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failure = ""
	if err != nil {
		m.failure = err.Error()
	}
}

// Local says what this node knows of its membership without asking anybody.
func (m *Membership) Local() Local {
	m.mu.Lock()
	cur, failure, joining, locked := m.current, m.failure, m.joining, m.locked
	var mg *manager
	if cur != nil {
		mg = cur.manager
	}
	m.mu.Unlock()
	switch {
	case locked:
		return Local{State: "locked"}
	case cur == nil && failure != "":
		return Local{State: "error", Error: failure}
	case cur == nil && joining:
		return Local{State: "pending"}
	case cur == nil:
		return Local{State: "inactive"}
	}
	l := Local{State: "active", NodeID: cur.rec.NodeID, NodeAddr: cur.rec.Advertise.Addr().String(), ClusterID: cur.rec.ClusterID, Error: failure}
	if failure != "" {
		l.State = "error"
	}
	if mg == nil {
		for _, a := range cur.pool.Addrs() {
			l.Managers = append(l.Managers, Peer{Addr: a})
		}
		return l
	}
	l.ControlAvailable = true
	if id, _ := mg.store.Leader(); id == 0 {
		l.Error = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online."
	}
	mg.store.View(func(tx state.Tx) {
		l.Cluster = state.Get[*cloud.Cluster](tx, cur.rec.ClusterID)
		for _, n := range state.List[*cloud.Node](tx, state.By{}) {
			l.NodesTotal++
			if n.Manager != nil {
				l.ManagersTotal++
				l.Managers = append(l.Managers, Peer{n.ID, n.Manager.Addr})
			}
		}
	})
	return l
}

// renew replaces this node's certificate. A manager signs its own where it can.
func (m *Membership) renew(ctx context.Context, cur *membership) error {
	m.mu.Lock()
	mg := cur.manager
	m.mu.Unlock()
	if mg != nil && mg.renewSelf() == nil {
		cur.pool.Reset()
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	key, csr, err := identity.NewRequest()
	if err != nil {
		return err
	}
	var resp *rpc.IssueCertificateResponse
	err = cur.pool.Do(ctx, func(ctx context.Context, c grpc.ClientConnInterface) (err error) {
		resp, err = rpc.NewMembershipClient(c).RenewCertificate(ctx, &rpc.RenewCertificateRequest{CsrPem: csr})
		return err
	})
	if fault.Is(err, fault.NotFound) {
		go m.removed(cur)
	}
	if err != nil {
		return fmt.Errorf("renew this node's certificate: %w", err)
	}
	if err := cur.id.Install(resp.GetCertificatePem(), key, resp.GetCaPem()); err != nil {
		return err
	}
	cur.pool.Update(resp.GetManagers())
	cur.pool.Reset() // connections know the old certificate
	return nil
}

func (cur *membership) doubt() {
	select {
	case cur.doubts <- struct{}{}:
	default:
	}
}

// clearDoubts asks the managers whether this node is still part of the cluster, at most once a second.
func (m *Membership) clearDoubts(cur *membership) {
	for {
		select {
		case <-cur.ctx.Done():
			return
		case <-cur.doubts:
		}
		err := m.askWhoWeAre(cur)
		if fault.Is(err, fault.NotFound) {
			go m.removed(cur)
			return
		}
		select {
		case <-cur.ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// askWhoWeAre asks a manager, another one if this node is one. Who calls is looked at before what is asked for: an empty
// request is refused to a node, and a stranger is told that it is one (fault.NotFound).
func (m *Membership) askWhoWeAre(cur *membership) error {
	ctx, cancel := context.WithTimeout(cur.ctx, 10*time.Second)
	defer cancel()
	m.mu.Lock()
	mg := cur.manager
	m.mu.Unlock()
	pool := cur.pool
	if mg != nil {
		others, err := m.others(cur, mg)
		if err != nil {
			return err
		}
		defer others.Close()
		pool = others
	}
	c, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	_, err = rpc.NewMembershipClient(c).RenewCertificate(ctx, &rpc.RenewCertificateRequest{})
	return rpc.FromStatus(err)
}

// removed takes note that the cluster knows this node no more. What belonged to the cluster is taken off the host; the
// user ends the rest with `docker swarm leave`, or joins anew after it.
func (m *Membership) removed(cur *membership) {
	m.ops.Lock()
	defer m.ops.Unlock()
	m.mu.Lock()
	if m.current != cur || m.failure == errRemoved {
		m.mu.Unlock()
		return
	}
	m.failure = errRemoved
	stopAgent := cur.stopAgent
	cur.stopAgent = nil
	m.mu.Unlock()
	m.logger.Warn("this node has been removed from the cluster")
	cur.cancel()
	m.stopManager(cur)
	if stopAgent != nil {
		stopAgent()
	}
	if hook := m.cfg.Hooks.Left; hook != nil {
		if err := hook(context.Background()); err != nil {
			m.logger.Error("not everything of the cluster could be taken off this host", "error", err)
		}
	}
}

const errRemoved = `this node has been removed from the swarm. Use "docker swarm leave" before it joins again.`

// Errors in Docker's words.
var (
	errNoSwarm     = fault.New(fault.Unavailable, "This node is not part of a swarm")
	errSwarmExists = fault.New(fault.Unavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`)
)

// Leave takes this node out of its cluster. A manager needs force: it takes a vote, or the whole cluster, with it.
func (m *Membership) Leave(ctx context.Context, force bool) error {
	m.mu.Lock()
	cur, failure, locked := m.current, m.failure, m.locked
	var mg *manager
	if cur != nil {
		mg = cur.manager
	}
	m.mu.Unlock()
	switch {
	case locked && !force:
		return fault.New(fault.Unavailable, "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.")
	case cur == nil && failure == "" && !locked:
		return errNoSwarm
	}
	if mg != nil && !force {
		return leaveWarning(mg)
	}
	if cur != nil {
		cur.cancel() // a change of role under way gives up
	}
	m.ops.Lock()
	defer m.ops.Unlock()
	if cur != nil {
		m.sayGoodbye(ctx, cur, false)
	}
	m.end()
	m.fail(nil)
	m.setLocked(false)
	var errs []error
	if hook := m.cfg.Hooks.Left; hook != nil {
		errs = append(errs, hook(context.WithoutCancel(ctx)))
	}
	errs = append(errs, wipe(m.dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the node has left the swarm, but not everything was taken off this host: %w", err)
	}
	return nil
}

func leaveWarning(mg *manager) error {
	msg := "You are attempting to leave the swarm on a node that is participating as a manager. "
	voters, reachable := 0, 0
	for _, member := range mg.store.Members() {
		if member.Learner || member.ID == mg.store.MemberID() {
			continue
		}
		voters++
		if addr, err := cutScheme(member.PeerURL); err == nil && mg.probe.reachable(addr) {
			reachable++
		}
	}
	switch {
	case voters == 0:
		return fault.New(fault.Unavailable, "%sRemoving the last manager erases all current state of the swarm. Use `--force` to ignore this message. ", msg)
	case reachable < voters/2+1:
		msg += fmt.Sprintf("Removing this node leaves %v managers out of %v. Without a Raft quorum your swarm will be inaccessible. ", reachable, voters+1)
	}
	return fault.New(fault.Unavailable, "%sThe only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.", msg)
}

// sayGoodbye tells the managers, if any answers, so that they need not find out. Called with ops held.
func (m *Membership) sayGoodbye(ctx context.Context, cur *membership, forget bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	m.mu.Lock()
	mg := cur.manager
	m.mu.Unlock()
	pool := cur.pool
	if mg != nil {
		others, err := m.others(cur, mg)
		if err != nil {
			return // the last one
		}
		defer others.Close()
		pool = others
		_ = mg.store.StepDown()
	}
	if cur.id.Subject().Role == identity.Manager { // one that failed to become a manager may have left a member behind
		if err := pool.Do(ctx, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := rpc.NewMembershipClient(c).RemoveManager(ctx, &rpc.RemoveManagerRequest{})
			return err
		}); err != nil {
			m.logger.Warn("the other managers could not take this one out of the replicated state", "error", err)
		}
	}
	if err := pool.Do(ctx, func(ctx context.Context, c grpc.ClientConnInterface) error {
		_, err := rpc.NewMembershipClient(c).Leave(ctx, &rpc.LeaveRequest{Forget: forget})
		return err
	}); err != nil {
		m.logger.Warn("no manager could be told that this node leaves", "error", err)
	}
}

// others returns a pool of the managers beside this one; the caller closes it.
func (m *Membership) others(cur *membership, mg *manager) (*rpc.Managers, error) {
	addrs := mg.managerAddrs()[1:]
	if len(addrs) == 0 {
		return nil, fault.New(fault.FailedPrecondition, "attempting to demote the last manager of the swarm")
	}
	return rpc.NewManagers(rpc.ManagersConfig{Addrs: addrs, TLS: cur.id.ClientConfig(), Logger: m.logger})
}
