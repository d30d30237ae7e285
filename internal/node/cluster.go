package node

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/node/membership"
	"github.com/sampan-cloud/sampan/internal/server/docker"
)

// Cluster is this host's membership of a cluster as the Docker API sees it (docker.Swarm).
type Cluster struct {
	*membership.Membership

	advertise string // address of this host, where none is named; "": it is found out

	mu  sync.Mutex
	api docker.Cluster // while this node is a manager
}

var _ docker.Swarm = (*Cluster)(nil)

// ManagerPlane is a running control plane: the control API and how to end it.
type ManagerPlane struct {
	API  docker.Cluster
	Stop func()
}

// NewCluster returns the membership that the data root holds, not yet started. startManager builds the control plane
// whenever this node becomes a manager; it replaces cfg.Hooks.ManagerStarted.
func NewCluster(cfg membership.Config, startManager func(membership.ManagerEnv) (ManagerPlane, error)) (*Cluster, error) {
	c := &Cluster{}
	cfg.Hooks.ManagerStarted = func(env membership.ManagerEnv) (func(), error) {
		plane, err := startManager(env)
		if err != nil {
			return nil, err
		}
		c.setAPI(plane.API)
		return func() {
			c.setAPI(nil)
			plane.Stop()
		}, nil
	}
	m, err := membership.New(cfg)
	if err != nil {
		return nil, err
	}
	c.Membership = m
	return c, nil
}

func (c *Cluster) setAPI(api docker.Cluster) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.api = api
}

func (c *Cluster) current() docker.Cluster {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.api
}

// Local says what this node knows of its membership without asking anybody.
func (c *Cluster) Local() docker.LocalSwarm {
	l := c.Membership.Local()
	out := docker.LocalSwarm{
		State: l.State, NodeID: l.NodeID, NodeAddr: l.NodeAddr, ClusterID: l.ClusterID, Error: l.Error,
		ControlAvailable: l.ControlAvailable, Cluster: l.Cluster, NodesTotal: l.NodesTotal, ManagersTotal: l.ManagersTotal,
	}
	for _, p := range l.Managers {
		out.Managers = append(out.Managers, docker.ManagerPeer(p))
	}
	return out
}

// Init makes this node the first manager of a new cluster, or of one whose quorum is lost (ForceNewCluster).
func (c *Cluster) Init(ctx context.Context, r docker.SwarmInit) (nodeID string, err error) {
	if !r.ForceNewCluster {
		r.AdvertiseAddr = c.advertised(r.ListenAddr, r.AdvertiseAddr)
	}
	return c.Membership.Init(ctx, membership.InitRequest(r))
}

// Join makes this node part of the cluster whose managers are at r.RemoteAddrs.
func (c *Cluster) Join(ctx context.Context, r docker.SwarmJoin) error {
	r.AdvertiseAddr = c.advertised(r.ListenAddr, r.AdvertiseAddr)
	return c.Membership.Join(ctx, membership.JoinRequest(r))
}

// advertised is the address that others are told of this host: the configured one if it listens on all and none is named.
func (c *Cluster) advertised(listen, named string) string {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		host = listen
	}
	if addr, err := netip.ParseAddr(host); named != "" || host != "" && (err != nil || !addr.IsUnspecified()) {
		return named
	}
	return c.advertise
}

// Cluster is the control API on a manager; elsewhere it fails with Docker's words.
func (c *Cluster) Cluster() (docker.Cluster, error) {
	if api := c.current(); api != nil {
		return api, nil
	}
	if back := c.Membership.Restarting(); back != nil {
		<-back
		if api := c.current(); api != nil {
			return api, nil
		}
	}
	switch c.Membership.Local().State {
	case "locked":
		return nil, membership.ErrLocked
	case "inactive":
		return nil, fault.New(fault.Unavailable, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	}
	return nil, fault.New(fault.Unavailable, "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "+
		"Please run this command on a manager node or promote the current node to a manager.")
}
