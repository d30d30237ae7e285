package membership

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// Defaults of a cluster's specification, Docker's where Docker has one.
const (
	clusterName          = "default"
	defaultHistory       = 5
	defaultSubnetSize    = 24
	defaultDataPathPort  = 4789
	defaultHeartbeat     = 5 * time.Second
	initTimeout          = 30 * time.Second
	joinTimeout          = 40 * time.Second
	minPort, maxDataPort = 1024, 49151
)

// enter begins Init or Join: it holds ops until the returned function is called.
func (m *Membership) enter() (leave func(), err error) {
	m.ops.Lock()
	m.mu.Lock()
	if m.current != nil || m.failure != "" || m.locked {
		err := errSwarmExists
		if m.locked {
			err = ErrLocked
		}
		m.mu.Unlock()
		m.ops.Unlock()
		return nil, err
	}
	m.joining = true
	m.mu.Unlock()
	return func() {
		m.mu.Lock()
		m.joining = false
		m.mu.Unlock()
		m.ops.Unlock()
	}, nil
}

// clusterSpec completes what the user asked for, and refuses what cannot work.
func clusterSpec(r InitRequest) (cloud.ClusterSpec, error) {
	s := r.Spec
	s.Name = clusterName
	if s.TaskHistoryLimit == 0 {
		s.TaskHistoryLimit = defaultHistory
	}
	s.HeartbeatPeriod = cmp.Or(s.HeartbeatPeriod, defaultHeartbeat)
	s.CertExpiry = cmp.Or(s.CertExpiry, identity.DefaultNodeLifetime)
	if s.CertExpiry < identity.MinNodeLifetime {
		return s, fault.New(fault.InvalidArgument, "minimum certificate expiry time is %s, not %s", identity.MinNodeLifetime, s.CertExpiry)
	}
	s.AddressPools = r.Pools
	if len(s.AddressPools) == 0 {
		s.AddressPools = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	}
	s.SubnetSize = cmp.Or(r.SubnetSize, defaultSubnetSize)
	if s.SubnetSize < 1 || s.SubnetSize > 29 {
		return s, fault.New(fault.InvalidArgument, "subnet size is out of range: %d (1 to 29)", s.SubnetSize)
	}
	for i, p := range s.AddressPools {
		if !p.IsValid() || !p.Addr().Is4() {
			return s, fault.New(fault.InvalidArgument, "invalid CIDR: %q. An address pool is an IPv4 subnet", p)
		}
		if s.SubnetSize < p.Bits() {
			return s, fault.New(fault.InvalidArgument, "invalid CIDR: %q. Subnet size is too small for pool: %d", p, s.SubnetSize)
		}
		for _, q := range s.AddressPools[:i] {
			if p.Overlaps(q) {
				return s, fault.New(fault.InvalidArgument, "address pools %s and %s overlap", q, p)
			}
		}
	}
	s.DataPathPort = cmp.Or(r.DataPathPort, defaultDataPathPort)
	if s.DataPathPort < minPort || s.DataPathPort > maxDataPort {
		return s, fault.New(fault.InvalidArgument, "data path port number is not in valid range (%d-%d) : %d", minPort, maxDataPort, s.DataPathPort)
	}
	return s, nil
}

// Init makes this node the first manager of a new cluster, or of one whose quorum is lost (ForceNewCluster).
func (m *Membership) Init(ctx context.Context, r InitRequest) (nodeID string, err error) {
	spec, err := clusterSpec(r)
	if err != nil {
		return "", err
	}
	res, err := m.resolver()
	if err != nil {
		return "", err
	}
	if r.ForceNewCluster && m.running() != nil {
		return m.forceNew(ctx, r, res)
	}
	leave, err := m.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	listenAddr, err := res.listen(r.ListenAddr)
	if err != nil {
		return "", err
	}
	if _, err := res.advertise(r.AdvertiseAddr, listenAddr); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	u := undo.New()
	defer func() { err = errors.Join(err, u.Run()) }()
	if err := m.makeDir(u); err != nil {
		return "", err
	}
	l, err := listen(record{Listen: listenAddr})
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = l.Close()
		}
	}()
	// Port 0 has become a number.
	listenAddr = netip.AddrPortFrom(listenAddr.Addr(), l.Addr().(*net.TCPAddr).AddrPort().Port())
	advertise, err := res.advertise(r.AdvertiseAddr, listenAddr)
	if err != nil {
		return "", err
	}
	dataPath, err := res.dataPath(r.DataPathAddr, advertise.Addr())
	if err != nil {
		return "", err
	}
	rec := record{
		ClusterID: cloud.NewID(), NodeID: cloud.NewID(), Listen: listenAddr, Advertise: advertise, DataPath: dataPath,
		DataPathPort: spec.DataPathPort,
	}

	cluster, id, err := m.found(rec, spec)
	if err != nil {
		return "", err
	}
	if err := failpoint.Hit("membership.init.certified"); err != nil {
		return "", err
	}
	cur, err := m.begin(rec, id, []string{advertise.String()})
	if err != nil {
		return "", err
	}
	u.Add(func() error { m.end(); return nil })
	mg, err := m.startManager(ctx, rec, id, cur.pool, managerStart{
		listener: l,
		prepare: func(ctx context.Context, mg *manager) error {
			first := &cloud.Node{
				Meta:        cloud.Meta{ID: rec.NodeID},
				Spec:        cloud.NodeSpec{Role: cloud.RoleManager, Availability: cmp.Or(r.Availability, cloud.AvailabilityActive)},
				Description: cloud.NodeDescription{Hostname: m.cfg.Hostname},
				Status:      cloud.NodeStatus{State: cloud.NodeUnknown, Addrs: []netip.Addr{dataPath}},
				Manager:     &cloud.ManagerStatus{Addr: advertise.String(), MemberID: mg.store.MemberID(), PeerURL: rec.peerURL()},
			}
			if err := control.Bootstrap(ctx, mg.store, cluster, first); err != nil {
				return err
			}
			return failpoint.Hit("membership.init.written")
		},
	})
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	cur.manager = mg
	m.mu.Unlock()
	if err := m.startAgent(cur); err != nil {
		return "", err
	}
	if err := rec.write(m.dir); err != nil {
		return "", err
	}
	u.Done()
	m.logger.Info("this node has founded a cluster", "cluster", rec.ClusterID, "node", rec.NodeID, "address", advertise)
	return rec.NodeID, nil
}

// found makes the authority and the tokens of a new cluster, and this node's certificate.
func (m *Membership) found(rec record, spec cloud.ClusterSpec) (*cloud.Cluster, *identity.Node, error) {
	ca, err := identity.NewCA(m.now())
	if err != nil {
		return nil, nil, err
	}
	cluster := &cloud.Cluster{
		Meta: cloud.Meta{ID: rec.ClusterID}, Spec: spec,
		CA: cloud.CA{Cert: ca.CertPEM(), Key: ca.KeyPEM(), Digest: ca.Digest()},
	}
	for _, token := range []*string{&cluster.Tokens.Worker, &cluster.Tokens.Manager} {
		if *token, err = identity.NewToken(ca.Digest()); err != nil {
			return nil, nil, err
		}
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		return nil, nil, err
	}
	cert, err := ca.Sign(csr, identity.Subject{NodeID: rec.NodeID, Role: identity.Manager, ClusterID: rec.ClusterID}, spec.CertExpiry, m.now())
	if err != nil {
		return nil, nil, err
	}
	id, err := identity.Create(filepath.Join(m.dir, certsDir), cert, key, ca.CertPEM(), m.now)
	if err != nil {
		return nil, nil, err
	}
	if spec.AutoLock {
		cluster.UnlockKey = identity.NewUnlockKey()
	}
	return cluster, id, errors.Join(id.SetDataKey(identity.NewDataKey()), id.SetUnlockKey(cluster.UnlockKey))
}

// makeDir makes the empty folder of a membership that begins.
func (m *Membership) makeDir(u *undo.Stack) error {
	if err := os.RemoveAll(m.dir); err != nil {
		return fmt.Errorf("make room for the membership: %w", err)
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return fmt.Errorf("make room for the membership: %w", err)
	}
	u.Add(func() error { return wipe(m.dir) })
	return nil
}

// forceNew makes this manager the only one, with the state that it has: the other managers are lost, or given up.
func (m *Membership) forceNew(ctx context.Context, r InitRequest, res resolver) (string, error) {
	m.ops.Lock()
	defer m.ops.Unlock()
	cur := m.running()
	if cur == nil {
		return "", errNoSwarm
	}
	m.mu.Lock()
	mg := cur.manager
	m.mu.Unlock()
	if mg == nil {
		return "", fault.New(fault.FailedPrecondition, "This node is not a swarm manager: only a manager has the state from which a new cluster can be made")
	}
	rec := cur.rec
	if r.AdvertiseAddr != "" || r.ListenAddr != "" {
		l, err := res.listen(cmp.Or(r.ListenAddr, rec.Listen.String()))
		if err != nil {
			return "", err
		}
		a, err := res.advertise(cmp.Or(r.AdvertiseAddr, rec.Advertise.String()), l)
		if err != nil {
			return "", err
		}
		rec.Listen, rec.Advertise = l, a
	}
	if err := rec.write(m.dir); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	m.stopManager(cur)
	cur.rec = rec
	mg, err := m.startManager(ctx, rec, cur.id, cur.pool, managerStart{
		force: true,
		prepare: func(ctx context.Context, mg *manager) error {
			if err := mg.store.Ready(ctx); err != nil {
				return err
			}
			if err := mg.store.MovePeerURL(ctx, rec.peerURL()); err != nil {
				return err
			}
			return mg.forgetOtherManagers(ctx)
		},
	})
	if err != nil {
		// As before, then: with the others, if they come back.
		return "", errors.Join(fmt.Errorf("make a new cluster of this manager's state: %w", err), m.resumeManager(ctx, cur))
	}
	m.mu.Lock()
	cur.manager = mg
	m.failure = ""
	m.mu.Unlock()
	cur.pool.Update([]string{rec.Advertise.String()})
	m.logger.Warn("this node has become the only manager of its cluster", "node", rec.NodeID)
	return rec.NodeID, nil
}

// forgetOtherManagers writes down that this manager is the only one.
func (mg *manager) forgetOtherManagers(ctx context.Context) error {
	var ids []string
	mg.store.View(func(tx state.Tx) {
		for _, n := range state.List[*cloud.Node](tx, state.By{}) {
			if n.Manager != nil || n.Spec.Role == cloud.RoleManager {
				ids = append(ids, n.ID)
			}
		}
	})
	var changes []func(state.WriteTx) error
	for _, id := range ids {
		changes = append(changes, func(tx state.WriteTx) error {
			n := state.Get[*cloud.Node](tx, id)
			if n == nil {
				return nil
			}
			n = state.Clone(n)
			if id == mg.rec.NodeID {
				n.Manager = &cloud.ManagerStatus{Addr: mg.rec.Advertise.String(), MemberID: mg.store.MemberID(), PeerURL: mg.rec.peerURL()}
			} else {
				n.Manager, n.Spec.Role = nil, cloud.RoleWorker
			}
			return tx.Put(n)
		})
	}
	return mg.store.Batch(ctx, changes)
}

// Join makes this node part of the cluster whose managers are at r.RemoteAddrs.
func (m *Membership) Join(ctx context.Context, r JoinRequest) (err error) {
	leave, err := m.enter()
	if err != nil {
		return err
	}
	defer leave()
	token, err := identity.ParseToken(r.Token)
	if err != nil {
		return err
	}
	res, err := m.resolver()
	if err != nil {
		return err
	}
	rec := record{}
	if rec.Listen, err = res.listen(r.ListenAddr); err != nil {
		return err
	}
	if r.AdvertiseAddr != "" {
		if rec.Advertise, err = res.advertise(r.AdvertiseAddr, rec.Listen); err != nil {
			return err
		}
	}
	if _, err = res.dataPath(r.DataPathAddr, netip.Addr{}); err != nil {
		return err
	}
	var remotes []string
	for _, a := range r.RemoteAddrs {
		addr, err := remote(a)
		if err != nil {
			return err
		}
		remotes = append(remotes, addr)
	}
	if len(remotes) == 0 {
		return fault.New(fault.InvalidArgument, "at least 1 RemoteAddr is required to join")
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()

	u := undo.New()
	defer func() { err = errors.Join(err, u.Run()) }()
	if err := m.makeDir(u); err != nil {
		return err
	}
	issued, key, through, err := m.obtain(ctx, remotes, token, r)
	if err != nil {
		return err
	}
	if !rec.Advertise.IsValid() {
		// The address by which this host reaches the manager is one by which it can be reached.
		addr := rec.Listen.Addr()
		if addr.IsUnspecified() {
			if addr, err = localAddr(ctx, through); err != nil {
				return err
			}
		}
		rec.Advertise = netip.AddrPortFrom(addr, rec.Listen.Port())
	}
	if rec.DataPath, err = res.dataPath(r.DataPathAddr, rec.Advertise.Addr()); err != nil {
		return err
	}
	rec.ClusterID, rec.NodeID, rec.DataPathPort = issued.GetClusterId(), issued.GetNodeId(), uint16(issued.GetDataPathPort())
	id, err := identity.Create(filepath.Join(m.dir, certsDir), issued.GetCertificatePem(), key, issued.GetCaPem(), m.now)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("membership.join.certified"); err != nil {
		return err
	}
	// The manager that answered is asked first; the list names the others.
	cur, err := m.begin(rec, id, append([]string{through}, issued.GetManagers()...))
	if err != nil {
		return err
	}
	cur.pool.Update(issued.GetManagers())
	u.Add(func() error {
		m.sayGoodbye(ctx, cur, true)
		m.end()
		return nil
	})
	if id.Subject().Role == identity.Manager {
		if err := m.becomeManager(ctx, cur); err != nil {
			return err
		}
	}
	if err := m.startAgent(cur); err != nil {
		return err
	}
	if err := failpoint.Hit("membership.join.started"); err != nil {
		return err
	}
	if err := rec.write(m.dir); err != nil {
		return err
	}
	u.Done()
	m.logger.Info("this node has joined a cluster", "cluster", rec.ClusterID, "node", rec.NodeID, "role", id.Subject().Role)
	return nil
}

// obtain asks the managers in turn for a certificate. The digest in the token proves the manager to this host, the
// token this host to the manager.
func (m *Membership) obtain(ctx context.Context, remotes []string, token identity.Token, r JoinRequest) (resp *rpc.IssueCertificateResponse, keyPEM []byte, through string, err error) {
	keyPEM, csr, err := identity.NewRequest()
	if err != nil {
		return nil, nil, "", err
	}
	idempotency := rand.Text()
	patience := time.After(reachPatience)
	for {
		var errs []error
		for _, addr := range remotes {
			resp, err := m.obtainFrom(ctx, addr, token, &rpc.IssueCertificateRequest{
				CsrPem: csr, Token: strings.TrimSpace(r.Token), Hostname: m.cfg.Hostname, IdempotencyKey: idempotency,
				Availability: string(r.Availability),
			})
			if err == nil {
				return resp, keyPEM, addr, nil
			}
			if !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.DeadlineExceeded) {
				return nil, nil, "", err // an answer
			}
			errs = append(errs, fmt.Errorf("could not reach manager %s: %w", addr, err))
		}
		select {
		case <-time.After(reachAgain):
			continue
		case <-patience:
		case <-ctx.Done():
		}
		return nil, nil, "", fault.As(fault.Unavailable, errors.Join(errs...))
	}
}

// A join asks again for reachPatience, every reachAgain, when no manager can be reached: one that starts anew answers a
// moment later, and so does one whose link-layer address this host gave up to find while its own cable was out.
// (swarmkit's nodes ask five times, two seconds apart.)
const (
	reachPatience = 3 * time.Second
	reachAgain    = 300 * time.Millisecond
)

func (m *Membership) obtainFrom(ctx context.Context, addr string, token identity.Token, req *rpc.IssueCertificateRequest) (*rpc.IssueCertificateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	blind, err := rpc.Dial(addr, identity.BlindConfig())
	if err != nil {
		return nil, err
	}
	defer blind.Close()
	hello, cancelHello := context.WithTimeout(ctx, 5*time.Second)
	defer cancelHello()
	roots, err := rpc.NewJoinClient(blind).GetRootCA(hello, &rpc.GetRootCARequest{})
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	ca, err := identity.ParseCA(roots.GetCaPem(), nil)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "%s does not answer like a manager: %w", addr, err)
	}
	if ca = ca.Only(token.Digest); ca == nil {
		return nil, fault.New(fault.InvalidArgument, "remote CA does not match fingerprint. Expected: %s (is the join token that of another swarm?)", token.Digest)
	}
	conn, err := rpc.Dial(addr, identity.JoinConfig(ca, m.now))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for {
		resp, err := rpc.NewJoinClient(conn).IssueCertificate(ctx, req, grpc.WaitForReady(false))
		if err == nil {
			return resp, nil
		}
		err = rpc.FromStatus(err)
		if !fault.Is(err, fault.Unavailable) {
			return nil, err
		}
		// The managers may be electing a leader. The idempotency key makes it the same request.
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// localAddr returns this host's address on the way to addr.
func localAddr(ctx context.Context, addr string) (netip.Addr, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return netip.Addr{}, fault.New(fault.Unavailable, "could not reach manager %s: %w", addr, err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), nil
}
