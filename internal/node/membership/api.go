// Package membership is this host's part in a cluster: how it starts one, joins, leaves, becomes a manager and ceases to
// be one, and comes back after the daemon's restart. It owns the node's identity, the replicated state and the RPC
// server of a manager, and knows nothing of services: what runs on top is started and stopped through Hooks.
package membership

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// Config is what New needs.
type Config struct {
	DataRoot string // state, certificates and membership are kept in its folder swarm
	Hostname string
	Logger   *slog.Logger
	Now      func() time.Time // nil: time.Now
	// OwnSubnets returns the subnets of this host's own bridges: an address in one is never advertised. May be nil.
	OwnSubnets func() []netip.Prefix
	Hooks      Hooks
	// NoFsync is for tests: the cluster's state does not outlive a crash of the machine.
	NoFsync bool
}

// Hooks are how what runs on top of membership is built and torn down. Each may be nil.
type Hooks struct {
	// ManagerStarted is called when this node has become a manager: by init, by join, by promotion, at the daemon's
	// start. The RPC server starts once it has returned: it registers its services in env.Registrar. stop must return
	// soon; the store still answers reads while it runs.
	ManagerStarted func(env ManagerEnv) (stop func(), err error)
	// NodeStarted is called on every node of a cluster, managers too (after ManagerStarted): it starts the agent. It is
	// not called again when the role changes. stop must return soon, leaving tasks as they are.
	NodeStarted func(env NodeEnv) (stop func(), err error)
	// Left is called after the node has left: tasks and networks of the cluster are to be removed from the host.
	Left func(ctx context.Context) error
}

// ManagerEnv is what a manager's control plane is built from.
type ManagerEnv struct {
	NodeID    string
	ClusterID string
	Addr      string // HOST:PORT of this manager's RPC server
	Store     state.Store
	// CaughtUp is closed when Store shows all that was committed before this manager started.
	CaughtUp  <-chan struct{}
	Registrar grpc.ServiceRegistrar
	// Election says which manager leads.
	Election *Election
	// Managers reaches the managers, this one included (log subscriptions are sent to the leader).
	Managers *rpc.Managers
	// RemoveMember takes another manager out of the replicated state: demotion, and `node rm -f` of a dead manager. It
	// refuses what would lose the quorum.
	RemoveMember func(ctx context.Context, nodeID string) error
	Logger       *slog.Logger
}

// NodeEnv is what an agent is built from.
type NodeEnv struct {
	NodeID       string
	ClusterID    string
	Hostname     string
	Managers     *rpc.Managers
	DataAddrs    []netip.Addr // VXLAN ends of this node
	DataPathPort uint16
	// SetRole is to be called with the role that the managers name (SessionStart, ViewChange). It returns at once;
	// promotion and demotion are carried out behind it, as often as it takes.
	SetRole func(cloud.Role)
	// SetTrust is to be called with the fingerprint of the roots that the managers name; it returns at once. TrustRoot
	// returns the roots that the node goes by, in PEM; what TrustChanged holds says that they have changed.
	SetTrust     func(fingerprint string)
	TrustRoot    func() string
	TrustChanged <-chan struct{}
	// Removed is to be called when a manager answers that this node is no longer part of the cluster.
	Removed func()
	Logger  *slog.Logger
}

// InitRequest says how to start a cluster.
type InitRequest struct {
	ListenAddr      string // HOST:PORT, default 0.0.0.0:2377
	AdvertiseAddr   string // IP, interface name, or either with a port; empty: the only address, else an error that lists them
	DataPathAddr    string
	DataPathPort    uint16
	Pools           []netip.Prefix
	SubnetSize      int
	ForceNewCluster bool
	Availability    cloud.Availability
	Spec            cloud.ClusterSpec
}

// JoinRequest says how to join one.
type JoinRequest struct {
	ListenAddr    string
	AdvertiseAddr string
	DataPathAddr  string
	RemoteAddrs   []string
	Token         string
	Availability  cloud.Availability
}

// Local is what the node knows of its membership without asking anybody.
type Local struct {
	State            string // inactive, pending, active, error
	NodeID           string
	NodeAddr         string
	ClusterID        string
	ControlAvailable bool
	Error            string
	Managers         []Peer
	Cluster          *cloud.Cluster // on a manager
	NodesTotal       int            // on a manager
	ManagersTotal    int
}

// Peer is a manager as a node knows it; NodeID is empty where only the address is known.
type Peer struct{ NodeID, Addr string }
