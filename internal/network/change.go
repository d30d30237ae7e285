package network

import (
	"context"
	"errors"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// Connect joins a sandbox to one more network while it runs.
func (m *Manager) Connect(ctx context.Context, sandboxID string, es EndpointSpec) (Endpoint, error) {
	var ep Endpoint
	err := m.change(ctx, sandboxID, func(sb *sandbox, ns *netns.NS, u *undo.Stack) error {
		j, err := m.join(ctx, sb, ns, es)
		if err != nil {
			return err
		}
		u.Add(func() error { return m.leave(sb, j) })
		ep = j.Endpoint
		return nil
	})
	return ep, err
}

// Disconnect takes a sandbox off a network while it runs.
func (m *Manager) Disconnect(ctx context.Context, sandboxID string, network string) error {
	return m.change(ctx, sandboxID, func(sb *sandbox, _ *netns.NS, _ *undo.Stack) error {
		m.mu.Lock()
		n, err := m.find(network)
		id := network // one that the cluster has taken away is known by the endpoint only
		if err == nil {
			id = n.ID
		}
		var j *joined
		for _, o := range sb.Joined {
			if o.NetworkID == id || err != nil && o.NetworkName == network {
				j = o
			}
		}
		m.mu.Unlock()
		if j == nil {
			if err != nil {
				return err
			}
			return fault.New(fault.Forbidden, "container %s is not connected to network %s", sandboxID, n.Spec.Name)
		}
		if v4, v6 := sb.gateways(); v4 == j || v6 == j {
			if err := m.unpublish(sb); err != nil {
				return err
			}
		}
		return m.leave(sb, j)
	})
}

// change does something to a sandbox that is there, and settles it.
func (m *Manager) change(ctx context.Context, sandboxID string, f func(*sandbox, *netns.NS, *undo.Stack) error) error {
	m.mu.Lock()
	sb, ok := m.sandboxes[sandboxID]
	m.mu.Unlock()
	if !ok {
		return fault.New(fault.NotFound, "no sandbox %s: the container is not running", sandboxID)
	}
	sb.op.Lock()
	defer sb.op.Unlock()
	if sb.gone {
		return fault.New(fault.NotFound, "no sandbox %s: the container is not running", sandboxID)
	}
	if sb.NetNS == "" {
		return fault.New(fault.InvalidArgument, "container sharing network namespace with another container or host cannot be connected to any other network")
	}
	ns, err := netns.Open(sb.NetNS)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	u := undo.New()
	defer func() {
		// Taken back, the sandbox must be settled as it was.
		if err := u.Run(); err != nil {
			m.log.Error("taking back a failed change of a sandbox", "sandbox", sandboxID, "error", err)
		}
	}()
	u.Add(func() error { return errors.Join(m.settle(context.WithoutCancel(ctx), sb, ns), m.keep(sb)) })
	if err := f(sb, ns, u); err != nil {
		return err
	}
	if err := failpoint.Hit("network.change.done"); err != nil {
		return err
	}
	if err := m.settle(ctx, sb, ns); err != nil {
		return err
	}
	if err := m.keep(sb); err != nil {
		return err
	}
	if err := failpoint.Hit("network.change.kept"); err != nil {
		return err
	}
	if err := m.announce(ctx, sb); err != nil {
		return err
	}
	u.Done()
	return nil
}

// Rename gives a sandbox's owner, the container, another name: its DNS name follows.
func (m *Manager) Rename(ctx context.Context, sandboxID, owner string) error {
	m.mu.Lock()
	sb, ok := m.sandboxes[sandboxID]
	m.mu.Unlock()
	if !ok {
		return nil // its next sandbox has the new name from the start
	}
	sb.op.Lock()
	defer sb.op.Unlock()
	m.mu.Lock()
	sb.Spec.Owner = owner
	for _, e := range sb.all() {
		e.Owner = owner
	}
	for _, j := range sb.Joined {
		if len(j.DNSNames) > 0 {
			j.DNSNames = dnsNames(sb.Spec, j.Spec)
		}
	}
	m.mu.Unlock()
	if sb.gone {
		return nil
	}
	if err := m.keep(sb); err != nil {
		return err
	}
	return m.announce(ctx, sb)
}
