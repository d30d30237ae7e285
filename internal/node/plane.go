package node

import (
	"context"
	"net/netip"
	"path/filepath"
	"sync"

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
	election := &election{env: env}
	leader := control.NewLeader(control.LeaderConfig{NodeID: env.NodeID, Store: env.Store, Election: election, Logger: n.log})
	rpc.RegisterDispatcherServer(env.Registrar, leader.Dispatcher())
	api := control.NewAPI(control.APIConfig{NodeID: env.NodeID, Store: env.Store, Election: election, Managers: env.Managers,
		NewToken: env.NewToken, RemoveMember: env.RemoveMember, Logger: n.log})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := leader.Run(ctx); err != nil {
			n.log.Error("control loops ended", "error", err)
		}
	})
	return ManagerPlane{API: api, Stop: func() { cancel(); wg.Wait() }}, nil
}

// election is raft's own leadership as the control loops see it (control.Election): they run where the state's leader
// is, so that their writes have the shortest way.
type election struct{ env membership.ManagerEnv }

// Campaign waits until this manager leads; the context it returns ends with that.
func (e *election) Campaign(ctx context.Context) (context.Context, error) {
	watch, stop := context.WithCancel(ctx)
	changes := e.env.Leadership(watch)
	for {
		select {
		case leads, ok := <-changes:
			if !ok {
				stop()
				return nil, context.Cause(ctx)
			}
			if !leads {
				continue
			}
		case <-ctx.Done():
			stop()
			return nil, ctx.Err()
		}
		term, end := context.WithCancel(ctx)
		go func() {
			defer stop()
			defer end()
			for {
				select {
				case leads, ok := <-changes:
					if !ok || !leads {
						return
					}
				case <-term.Done():
					return
				}
			}
		}()
		return term, nil
	}
}

// Leader returns the leading manager's node ID.
func (e *election) Leader() string {
	id, _ := e.env.Leader()
	return id
}

// Reachable reports whether a manager answers.
func (e *election) Reachable(nodeID string) bool { return e.env.Reachable(nodeID) }

// startAgent runs this node's side of the cluster.
func (n *Node) startAgent(env membership.NodeEnv) (stop func(), err error) {
	a, err := agent.New(agent.Config{
		NodeID: env.NodeID, Managers: agent.OverPool(env.Managers), Engine: n.containers, Images: n.images, Events: n.bus, Networks: n.networks,
		StatePath:  filepath.Join(n.cfg.DataRoot, "swarm", "view.json"),
		SecretsDir: filepath.Join(n.cfg.ExecRoot, "secrets"),
		Description: func() cloud.NodeDescription {
			return n.host.description(network.UnderlayMTU(env.DataAddrs))
		},
		DataAddrs:   func() []netip.Addr { return env.DataAddrs },
		RoleChanged: env.SetRole, Removed: env.Removed, Logger: n.log,
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
	return n.networks.Apply(ctx, nil, "")
}

// agentSlot holds the running agent, if this host is in a cluster: standalone containers get their addresses on the
// cluster's networks through it.
type agentSlot struct {
	mu sync.Mutex
	a  *agent.Agent
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
		return e, fault.New(fault.Unavailable, "network %s not found", name)
	}
	var asked []netip.Addr
	for _, addr := range []netip.Addr{e.IPv4, e.IPv6} {
		if addr.IsValid() {
			asked = append(asked, addr)
		}
	}
	attachment, err := a.Attach(ctx, name, c.ID, c.Config.Name, e.Aliases, asked)
	if err != nil {
		return e, err
	}
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

// detach gives the address back; without managers the leader's sweep does so later.
func (s *agentSlot) detach(ctx context.Context, containerID, networkID string) {
	if a := s.get(); a != nil {
		a.Detach(ctx, containerID, networkID)
	}
}
