package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/agent"
	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
	"github.com/sampan-cloud/sampan/internal/node/membership"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

// startManager builds the control plane of a manager: the API at once, the loops whenever this manager leads.
func (n *Node) startManager(env membership.ManagerEnv) (ManagerPlane, error) {
	leader := control.NewLeader(control.LeaderConfig{NodeID: env.NodeID, Store: env.Store, Election: env.Election, Logger: n.log})
	rpc.RegisterDispatcherServer(env.Registrar, leader.Dispatcher())
	links := &leaderLinks{env: env}
	api := control.NewAPI(control.APIConfig{Store: env.Store, CaughtUp: env.CaughtUp, Election: env.Election, Local: leader.Dispatcher(), Leader: links.dispatcher,
		Logger: n.log})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := leader.Run(ctx); err != nil {
			n.log.Error("control loops ended", "error", err)
		}
	})
	return ManagerPlane{API: api, Stop: func() { cancel(); wg.Wait(); links.close() }}, nil
}

// leaderLinks is how a manager that does not lead reaches the one that does: one connection, made anew when another
// leads.
type leaderLinks struct {
	env  membership.ManagerEnv
	mu   sync.Mutex
	addr string
	conn *grpc.ClientConn
}

func (l *leaderLinks) dispatcher(context.Context) (rpc.DispatcherClient, error) {
	addr := l.env.Election.LeaderAddr()
	if addr == "" {
		return nil, fault.New(fault.Unavailable, "no manager leads the cluster at the moment: try again")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addr != addr {
		conn, err := l.env.Managers.Dial(addr)
		if err != nil {
			return nil, err
		}
		if l.conn != nil {
			_ = l.conn.Close()
		}
		l.addr, l.conn = addr, conn
	}
	return rpc.NewDispatcherClient(l.conn), nil
}

func (l *leaderLinks) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		_ = l.conn.Close()
	}
}

// startAgent runs this node's side of the cluster.
func (n *Node) startAgent(env membership.NodeEnv) (stop func(), err error) {
	if len(env.DataAddrs) > 0 {
		n.networks.SetDataPath(env.DataAddrs[0], int(env.DataPathPort))
	}
	a, err := agent.New(agent.Config{
		NodeID: env.NodeID, Managers: agent.OverPool(env.Managers), Engine: n.containers, Images: n.images, Events: n.bus, Networks: n.networks,
		StatePath:  filepath.Join(n.cfg.DataRoot, "swarm", "view.json"),
		SecretsDir: n.secretsDir(),
		Description: func() cloud.NodeDescription {
			d := n.host.description(mtuOf(env.DataAddrs))
			d.Subnets = n.subnets()
			d.TrustRoot = env.TrustRoot()
			return d
		},
		DataAddrs:   func() []netip.Addr { return env.DataAddrs },
		RoleChanged: env.SetRole, TrustWanted: env.SetTrust, Redescribe: env.TrustChanged, Removed: env.Removed, Logger: n.log,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil && ctx.Err() == nil {
			n.log.Error("the agent ended", "error", err)
		}
	})
	n.agents.set(a)
	return func() {
		n.agents.set(nil)
		cancel()
		wg.Wait()
	}, nil
}

// left removes what the cluster had on this host: its tasks, then its networks.
func (n *Node) left(ctx context.Context) error {
	for _, c := range n.containers.List() {
		if c.Config.Labels[labelTask] == "" {
			continue
		}
		if err := n.containers.Remove(ctx, c.ID, true, true, false); err != nil && !fault.Is(err, fault.NotFound) {
			n.log.Warn("remove a task's container after leaving the cluster", "container", c.ID, "error", err)
		}
	}
	return errors.Join(n.networks.Apply(ctx, nil, ""), agent.RemoveSecrets(n.secretsDir()))
}

// secretsDir is where the files of tasks' secrets and configs are, in memory.
func (n *Node) secretsDir() string { return filepath.Join(n.cfg.ExecRoot, "secrets") }

// subnets are those of the host's own links and bridges, which networks of the cluster had better not have. What the
// cluster itself put on the host is left out.
func (n *Node) subnets() []netip.Prefix {
	var cluster []netip.Prefix
	for _, net := range n.networks.List() {
		if net.Scope == network.ScopeSwarm {
			for _, s := range net.Subnets {
				cluster = append(cluster, s.Subnet)
			}
		}
	}
	all := n.ownSubnets()
	for _, p := range linkSubnets() {
		if !slices.Contains(cluster, p) {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

// agentSlot holds the running agent, if this host is in a cluster: standalone containers get their addresses on the
// cluster's networks through it.
type agentSlot struct {
	log *slog.Logger
	mu  sync.Mutex
	a   *agent.Agent
}

func (s *agentSlot) set(a *agent.Agent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.a = a
}

func (s *agentSlot) get() *agent.Agent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.a
}

// attach asks the managers for an address on a cluster network.
func (s *agentSlot) attach(ctx context.Context, c container.Container, name string, e network.EndpointSpec) (network.EndpointSpec, error) {
	a := s.get()
	if a == nil {
		return e, fault.New(fault.NotFound, "network %s not found", name)
	}
	ask := &rpc.AttachRequest{Network: name, ContainerId: c.ID, Name: c.Config.Name, Aliases: e.Aliases}
	for _, addr := range []netip.Addr{e.IPv4, e.IPv6} {
		if addr.IsValid() {
			ask.Addrs = append(ask.Addrs, addr.String())
		}
	}
	got, err := a.Attach(ctx, ask)
	if err != nil {
		return e, err
	}
	attachment := got.Attachment
	e.Network = attachment.NetworkID
	for _, p := range attachment.Addrs {
		if p.Addr().Is4() {
			e.IPv4 = p.Addr()
		} else {
			e.IPv6 = p.Addr()
		}
	}
	return e, nil
}

// findNetwork finds a network of the cluster. A worker does not know those that it does not need: there, any name may be
// one, and attach knows.
func (n *Node) findNetwork(ref string) (id, name string, ok bool) {
	if n.agents.get() == nil {
		return "", "", false
	}
	api, err := n.cluster.Cluster()
	if err != nil {
		return ref, ref, true
	}
	net, err := api.GetNetwork(context.Background(), ref)
	if err != nil {
		return "", "", false
	}
	return net.ID, net.Spec.Name, true
}

// detach gives the address back; without managers the leader's sweep does so later.
func (s *agentSlot) detach(ctx context.Context, containerID, networkID string) {
	if a := s.get(); a != nil {
		if err := a.Detach(ctx, containerID, networkID); err != nil {
			s.log.Debug("give an attachment back", "container", containerID, "error", err)
		}
	}
}
