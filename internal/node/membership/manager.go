package membership

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/etcdstate"
)

// manager is what runs on this host because it is a manager: its port, its member of the replicated state, its RPC
// server and the control plane on top.
type manager struct {
	rec    record
	id     *identity.Node
	logger *slog.Logger
	now    func() time.Time
	probe  *prober
	roots  *identity.CA // those that the member of the replicated state was started with

	port      *port
	storeMu   sync.RWMutex // the port is open, and asks allowPeer, before there is a store
	store     *etcdstate.Store
	server    *grpc.Server
	stopPlane func()
	ctx       context.Context // ends with stop
	cancel    context.CancelFunc
	wg        sync.WaitGroup
}

// managerStart is how a manager starts.
type managerStart struct {
	listener       net.Listener // nil: one is made for rec.Listen
	initialCluster string       // of a joining member
	force          bool         // give up the other members
	// prepare is called once the member runs, before anything is served but Raft.
	prepare func(ctx context.Context, mg *manager) error
}

// startManager starts the manager's parts, or none of them.
func (m *Membership) startManager(ctx context.Context, rec record, id *identity.Node, pool *rpc.Managers, how managerStart) (*manager, error) {
	u := undo.New()
	defer func() { _ = u.Run() }()
	mg := &manager{rec: rec, id: id, logger: m.logger, now: m.now, probe: newProber(), roots: id.CA()}

	l := how.listener
	if l == nil {
		var err error
		if l, err = listen(rec); err != nil {
			return nil, err
		}
	}
	mg.port = openPort(l, id, mg.allowPeer, m.logger)
	u.Add(func() error { mg.port.close(); return nil })

	keyPair, err := id.KeyPairFile()
	if err != nil {
		return nil, err
	}
	store, err := etcdstate.Open(etcdstate.Config{
		Dir: filepath.Join(m.dir, etcdDir), Name: rec.NodeID, PeerURL: rec.peerURL(), Cluster: rec.ClusterID,
		InitialCluster: how.initialCluster, ForceNewCluster: how.force,
		DataKey: id.DataKey(), KeyPairFile: keyPair, CAFile: id.CAFile(), ServerName: identity.ManagerName,
		Logger: m.logger, NoFsync: m.cfg.NoFsync, Stopped: func() { m.memberStopped(mg) },
	})
	if err != nil {
		return nil, err
	}
	mg.setStore(store)
	u.Add(func() error { store.Close(); return nil })
	if id.Expired() {
		// After months off nobody else could help: what is needed to sign is in the member's own copy of the state.
		if err := mg.renewSelf(); err != nil {
			m.logger.Warn("this manager's certificate has expired and cannot be renewed from its own state", "error", err)
		}
		pool.Reset()
	}
	mg.port.setPeerHandler(store.PeerHandler())
	if how.prepare != nil {
		if err := how.prepare(ctx, mg); err != nil {
			return nil, err
		}
	}

	mg.server = rpc.NewServer(rpc.ServerConfig{Identify: mg.identify, Logger: m.logger})
	rpc.RegisterJoinServer(mg.server, joinService{manager: mg})
	rpc.RegisterMembershipServer(mg.server, membershipService{manager: mg})
	if hook := m.cfg.Hooks.ManagerStarted; hook != nil {
		stop, err := hook(ManagerEnv{
			NodeID: rec.NodeID, ClusterID: rec.ClusterID, Addr: rec.Advertise.String(), Store: store, CaughtUp: store.CaughtUp(), Registrar: mg.server,
			Election: &Election{mg}, Managers: pool, RemoveMember: mg.removeMember, Logger: m.logger,
		})
		if err != nil {
			return nil, fmt.Errorf("start the control plane: %w", err)
		}
		mg.stopPlane = stop
	}
	mg.wg.Go(func() {
		if err := mg.server.Serve(mg.port.rpcConns); err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
			m.logger.Error("the manager's RPC server ended", "error", err)
		}
	})
	mg.ctx, mg.cancel = context.WithCancel(context.Background())
	mg.wg.Go(mg.keepMembers)
	mg.wg.Go(mg.keepLocked)
	u.Done()
	return mg, nil
}

func listen(rec record) (net.Listener, error) {
	l, err := net.Listen("tcp", rec.Listen.String())
	if err != nil {
		return nil, fault.New(fault.FailedPrecondition, "the manager's port cannot be opened: %w", err)
	}
	return l, nil
}

// stop ends the manager's parts, the control plane first.
func (mg *manager) stop() {
	mg.cancel()
	if mg.stopPlane != nil {
		mg.stopPlane()
	}
	// Streams of agents end only when they notice: they are cut, and find another manager.
	mg.server.Stop()
	mg.store.Close()
	mg.port.close()
	mg.wg.Wait()
}

func (mg *manager) setStore(s *etcdstate.Store) {
	mg.storeMu.Lock()
	defer mg.storeMu.Unlock()
	mg.store = s
}

// allowPeer decides about a node with a manager's certificate that comes for Raft.
func (mg *manager) allowPeer(nodeID string) peerVerdict {
	mg.storeMu.RLock()
	store := mg.store
	mg.storeMu.RUnlock()
	if store == nil || mg.isPeer(store, nodeID) {
		return peerAllowed // without a store nothing is served yet
	}
	// This member may lag behind: a new manager must not be told that it was removed.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	switch {
	case store.Linearize(ctx) != nil:
		return peerUnknown
	case mg.isPeer(store, nodeID):
		return peerAllowed
	}
	return peerRemoved
}

func (mg *manager) isPeer(store *etcdstate.Store, nodeID string) bool {
	allowed := false
	store.View(func(tx state.Tx) {
		n := state.Get[*cloud.Node](tx, nodeID)
		// A member that is joining has no state yet.
		allowed = n == nil && len(tx.List(cloud.KindCluster, state.By{})) == 0 || n != nil && roleFor(n) == cloud.RoleManager
	})
	return allowed || slices.ContainsFunc(store.Members(), func(m etcdstate.Member) bool { return m.Name == nodeID })
}

// identify is the RPC server's judgement of a caller's certificate.
func (mg *manager) identify(cert *x509.Certificate) (rpc.Caller, error) {
	s, expired, err := mg.id.Peer(cert)
	if err != nil {
		return rpc.Caller{}, err
	}
	return rpc.Caller{NodeID: s.NodeID, Role: s.Role, Expired: expired}, nil
}

// cluster returns the cluster's object, nil before this member has it.
func (mg *manager) cluster() (c *cloud.Cluster) {
	mg.store.View(func(tx state.Tx) { c = state.Get[*cloud.Cluster](tx, mg.rec.ClusterID) })
	return c
}

func (mg *manager) node(id string) (n *cloud.Node) {
	mg.store.View(func(tx state.Tx) { n = state.Get[*cloud.Node](tx, id) })
	return n
}

// managerAddrs returns the addresses of all managers, this one's first.
func (mg *manager) managerAddrs() []string {
	out := []string{mg.rec.Advertise.String()}
	mg.store.View(func(tx state.Tx) {
		for _, n := range state.List[*cloud.Node](tx, state.By{}) {
			if n.Manager != nil && n.ID != mg.rec.NodeID {
				out = append(out, n.Manager.Addr)
			}
		}
	})
	return out
}

// renewSelf signs this manager's next certificate with the CA's key in the state: no other host is needed.
func (mg *manager) renewSelf() error {
	cluster, self := mg.cluster(), mg.node(mg.rec.NodeID)
	if cluster == nil || self == nil || roleFor(self) != cloud.RoleManager {
		return fault.New(fault.Unavailable, "this manager does not have the cluster's state")
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		return err
	}
	cert, err := mg.sign(cluster, csr, mg.rec.NodeID, identity.Manager)
	if err != nil {
		return err
	}
	return mg.id.Install(cert, key, cluster.CA.Bundle())
}

// Election says which manager leads: the one that Raft has elected.
type Election struct{ mg *manager }

// Leadership says at once and after every change whether this manager leads, until ctx ends; then the channel is closed.
func (e *Election) Leadership(ctx context.Context) <-chan bool { return e.mg.store.Leadership(ctx) }

// LeaderNode returns the leading manager's node ID, "" when there is none.
func (e *Election) LeaderNode() string {
	_, name := e.mg.store.Leader()
	return name
}

// LeaderAddr returns where the leader's RPC server is, "" when there is none.
func (e *Election) LeaderAddr() string {
	if n := e.mg.node(e.LeaderNode()); n != nil && n.Manager != nil {
		return n.Manager.Addr
	}
	return ""
}

// Reachable reports whether the manager with that node ID answers.
func (e *Election) Reachable(nodeID string) bool {
	if nodeID == e.mg.rec.NodeID {
		return true
	}
	n := e.mg.node(nodeID)
	return n != nil && n.Manager != nil && e.mg.probe.reachable(n.Manager.Addr)
}

// prober finds out whether something listens at an address, and remembers it for a moment.
type prober struct {
	mu    sync.Mutex
	known map[string]probed
}

type probed struct {
	at time.Time
	ok bool
}

func newProber() *prober { return &prober{known: map[string]probed{}} }

func (p *prober) reachable(addr string) bool {
	const fresh, patience = time.Second, 700 * time.Millisecond
	p.mu.Lock()
	last := p.known[addr]
	p.mu.Unlock()
	if time.Since(last.at) < fresh {
		return last.ok
	}
	c, err := (&net.Dialer{Timeout: patience}).DialContext(context.Background(), "tcp", addr)
	if err == nil {
		_ = c.Close()
	}
	p.mu.Lock()
	p.known[addr] = probed{time.Now(), err == nil}
	p.mu.Unlock()
	return err == nil
}

// removeEtcd forgets this host's copy of the replicated state.
func (m *Membership) removeEtcd() error {
	if err := os.RemoveAll(filepath.Join(m.dir, etcdDir)); err != nil {
		return fmt.Errorf("remove this node's copy of the cluster's state: %w", err)
	}
	return nil
}
