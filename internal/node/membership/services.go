package membership

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// joinService is rpc.Join: it answers hosts that have no certificate yet.
type joinService struct {
	rpc.UnimplementedJoinServer
	*manager
}

// membershipService is rpc.Membership: it answers nodes.
type membershipService struct {
	rpc.UnimplementedMembershipServer
	*manager
}

// GetRootCA tells the cluster's roots; the caller checks them against the digest in its token.
func (s joinService) GetRootCA(context.Context, *rpc.GetRootCARequest) (*rpc.GetRootCAResponse, error) {
	return &rpc.GetRootCAResponse{CaPem: s.id.CA().CertPEM()}, nil
}

// IssueCertificate makes a node of the host that knows a join token.
func (s joinService) IssueCertificate(ctx context.Context, r *rpc.IssueCertificateRequest) (*rpc.IssueCertificateResponse, error) {
	// A token that was just rotated on another manager must not be taken, nor its successor refused.
	if err := s.store.Linearize(ctx); err != nil {
		return nil, err
	}
	cluster := s.cluster()
	if cluster == nil {
		return nil, fault.New(fault.Unavailable, "this manager is not ready yet: try again")
	}
	var role cloud.Role
	switch {
	case identity.SameToken(cluster.Tokens.Worker, r.GetToken()):
		role = cloud.RoleWorker
	case identity.SameToken(cluster.Tokens.Manager, r.GetToken()):
		role = cloud.RoleManager
	default:
		return nil, fault.New(fault.InvalidArgument, "invalid join token: A valid join token is necessary to join this cluster (it may have been rotated: "+
			"\"docker swarm join-token worker\" on a manager shows the present one)")
	}
	availability := cloud.Availability(r.GetAvailability())
	switch availability {
	case "":
		availability = cloud.AvailabilityActive
	case cloud.AvailabilityActive, cloud.AvailabilityPause, cloud.AvailabilityDrain:
	default:
		return nil, fault.New(fault.InvalidArgument, "invalid availability %q: must be active, pause or drain", availability)
	}
	if len(r.GetHostname()) > 253 || len(r.GetCsrPem()) > 16<<10 {
		return nil, fault.New(fault.InvalidArgument, "the join request is too large")
	}
	// The request is looked at before a node is made for it.
	if _, err := s.sign(cluster, r.GetCsrPem(), "probe", identity.Worker); err != nil {
		return nil, err
	}
	key := r.GetIdempotencyKey()
	if key != "" {
		key = "join-" + string(role) + "-" + key
	}
	nodeID, err := state.Once(ctx, s.store, "", key, func(tx state.WriteTx) (string, error) {
		if role == cloud.RoleManager {
			if err := control.MayAddManager(tx); err != nil {
				return "", err
			}
		}
		n := &cloud.Node{
			Meta:        cloud.Meta{ID: cloud.NewID()},
			Spec:        cloud.NodeSpec{Role: role, Availability: availability},
			Description: cloud.NodeDescription{Hostname: r.GetHostname()},
			Status:      cloud.NodeStatus{State: cloud.NodeUnknown},
		}
		return n.ID, tx.Put(n)
	})
	if err != nil {
		return nil, err
	}
	s.logger.Info("a host joins the cluster", "node", nodeID, "hostname", r.GetHostname(), "role", role)
	return s.issue(cluster, r.GetCsrPem(), nodeID, role)
}

func (m *manager) sign(cluster *cloud.Cluster, csr []byte, nodeID, role string) ([]byte, error) {
	ca, err := identity.ParseCA(cluster.CA.Bundle(), cluster.CA.IssuingKey())
	if err != nil {
		return nil, err
	}
	return ca.Sign(csr, identity.Subject{NodeID: nodeID, Role: role, ClusterID: cluster.ID}, cluster.Spec.CertExpiry, m.now())
}

func (m *manager) issue(cluster *cloud.Cluster, csr []byte, nodeID string, role cloud.Role) (*rpc.IssueCertificateResponse, error) {
	cert, err := m.sign(cluster, csr, nodeID, string(role))
	if err != nil {
		return nil, err
	}
	return &rpc.IssueCertificateResponse{
		NodeId: nodeID, Role: string(role), CertificatePem: cert, CaPem: cluster.CA.Bundle(), Managers: m.managerAddrs(),
		ClusterId: cluster.ID, DataPathPort: uint32(cluster.Spec.DataPathPort),
	}, nil
}

// caller returns the node that makes the call, as the state has it.
func (m *manager) caller(ctx context.Context) (*cloud.Node, error) {
	c, ok := rpc.CallerFrom(ctx)
	if !ok {
		return nil, fault.New(fault.Unauthorized, "the call needs a node's certificate")
	}
	if n := m.node(c.NodeID); n != nil {
		return n, nil
	}
	if err := m.store.Linearize(ctx); err != nil {
		return nil, err
	}
	if n := m.node(c.NodeID); n != nil {
		return n, nil
	}
	return nil, fault.New(fault.NotFound, "node %s is no longer part of this cluster: it has been removed", c.NodeID)
}

// roleFor is the role that a node's next certificate gives. A manager that is being demoted stays one until it has left
// the replicated state.
func roleFor(n *cloud.Node) cloud.Role {
	if n.Manager != nil {
		return cloud.RoleManager
	}
	return n.Spec.Role
}

// RenewCertificate issues the caller's next certificate.
func (s membershipService) RenewCertificate(ctx context.Context, r *rpc.RenewCertificateRequest) (*rpc.IssueCertificateResponse, error) {
	// Its role may have changed a moment ago; without a quorum the last known one is good.
	_ = s.store.Linearize(ctx)
	n, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	cluster := s.cluster()
	if cluster == nil {
		return nil, fault.New(fault.Unavailable, "this manager is not ready yet: try again")
	}
	return s.issue(cluster, r.GetCsrPem(), n.ID, roleFor(n))
}

// AddManager makes a learner of the calling node.
func (s membershipService) AddManager(ctx context.Context, r *rpc.AddManagerRequest) (*rpc.AddManagerResponse, error) {
	if err := s.store.Linearize(ctx); err != nil {
		return nil, err
	}
	n, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	if n.Spec.Role != cloud.RoleManager {
		return nil, fault.New(fault.Forbidden, "node %s is not meant to be a manager: promote it first", n.ID)
	}
	addr, err := netip.ParseAddrPort(r.GetRpcAddr())
	if err != nil || !addr.IsValid() || addr.Addr().IsUnspecified() || r.GetPeerUrl() != "https://"+addr.String() {
		return nil, fault.New(fault.InvalidArgument, "%q and %q are not the address of a manager's port", r.GetRpcAddr(), r.GetPeerUrl())
	}
	id, initial, err := s.store.AddLearner(ctx, n.ID, r.GetPeerUrl())
	if err != nil {
		return nil, err
	}
	return &rpc.AddManagerResponse{MemberId: id, InitialCluster: initial, DataKey: s.id.DataKey()}, nil
}

// PromoteManager gives the calling node's member its vote.
func (s membershipService) PromoteManager(ctx context.Context, _ *rpc.PromoteManagerRequest) (*rpc.PromoteManagerResponse, error) {
	n, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	for _, member := range s.store.Members() {
		if member.Name != n.ID {
			continue
		}
		if err := s.store.Promote(ctx, member.ID); err != nil {
			return nil, err
		}
		addr, _ := cutScheme(member.PeerURL)
		return &rpc.PromoteManagerResponse{}, s.store.Update(ctx, func(tx state.WriteTx) error {
			n := state.Get[*cloud.Node](tx, n.ID)
			if n == nil {
				return fault.New(fault.NotFound, "the node has been removed")
			}
			n = state.Clone(n)
			n.Manager = &cloud.ManagerStatus{Addr: addr, MemberID: member.ID, PeerURL: member.PeerURL}
			return tx.Put(n)
		})
	}
	return nil, fault.New(fault.NotFound, "node %s is not a member of the replicated state", n.ID)
}

// RemoveManager takes the calling node's member out.
func (s membershipService) RemoveManager(ctx context.Context, _ *rpc.RemoveManagerRequest) (*rpc.RemoveManagerResponse, error) {
	c, _ := rpc.CallerFrom(ctx)
	return &rpc.RemoveManagerResponse{}, s.removeMember(ctx, c.NodeID)
}

// Leave notes that the calling node has gone on purpose, so that nobody waits for it.
func (s membershipService) Leave(ctx context.Context, r *rpc.LeaveRequest) (*rpc.LeaveResponse, error) {
	n, err := s.caller(ctx)
	if fault.Is(err, fault.NotFound) {
		return &rpc.LeaveResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	s.logger.Info("a node has left the cluster", "node", n.ID, "hostname", n.Description.Hostname)
	return &rpc.LeaveResponse{}, s.store.Update(ctx, func(tx state.WriteTx) error {
		n := state.Get[*cloud.Node](tx, n.ID)
		if n == nil {
			return nil
		}
		if r.GetForget() {
			return tx.Delete(cloud.KindNode, n.ID)
		}
		n = state.Clone(n)
		n.Status.State, n.Status.Message = cloud.NodeDown, "node has left the cluster"
		if n.Manager == nil {
			n.Spec.Role = cloud.RoleWorker
		}
		return tx.Put(n)
	})
}

// removeMember takes a node's member out of the replicated state, unless the rest would have no quorum.
func (m *manager) removeMember(ctx context.Context, nodeID string) error {
	if err := m.store.Linearize(ctx); err != nil {
		return err
	}
	voters, reachable := 0, 0
	var id uint64
	voter := false
	for _, member := range m.store.Members() {
		if member.Name == nodeID {
			id, voter = member.ID, !member.Learner
			continue
		}
		if member.Learner {
			continue
		}
		voters++
		addr, _ := cutScheme(member.PeerURL)
		if member.ID == m.store.MemberID() || m.probe.reachable(addr) {
			reachable++
		}
	}
	if voter && voters == 0 {
		return fault.New(fault.FailedPrecondition, "attempting to demote the last manager of the swarm")
	}
	if voter && reachable < voters/2+1 {
		return fault.New(fault.FailedPrecondition, "can't remove member from the raft: this would result in a loss of quorum (of %d other managers %d answer)", voters, reachable)
	}
	if id != 0 {
		if err := m.store.RemoveMember(ctx, id); err != nil {
			return err
		}
	}
	return m.store.Update(ctx, func(tx state.WriteTx) error {
		n := state.Get[*cloud.Node](tx, nodeID)
		if n == nil || n.Manager == nil {
			return nil
		}
		n = state.Clone(n)
		n.Manager = nil
		return tx.Put(n)
	})
}

func cutScheme(peerURL string) (addr string, err error) {
	const scheme = "https://"
	if len(peerURL) <= len(scheme) || peerURL[:len(scheme)] != scheme {
		return "", fmt.Errorf("peer URL %q: want https://ADDRESS:PORT", peerURL)
	}
	return peerURL[len(scheme):], nil
}
