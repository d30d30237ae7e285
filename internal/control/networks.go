package control

import (
	"context"
	"slices"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
)

// allocationWait is how long CreateNetwork waits for the subnet, so that whoever looks at once sees it. Without a leader
// the network is made all the same and gets its subnet later.
const allocationWait = 2 * time.Second

// CreateNetwork checks a specification and writes it down.
func (a *API) CreateNetwork(ctx context.Context, spec cloud.NetworkSpec) (string, error) {
	if spec.Driver == "" {
		spec.Driver = cloud.DriverOverlay
	}
	if err := ValidateNetwork(&spec); err != nil {
		return "", err
	}
	id := cloud.NewID()
	err := a.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		if len(state.List[*cloud.Network](tx, state.ByName(spec.Name))) > 0 || cloud.PredefinedNetwork(spec.Name) {
			return fault.New(fault.AlreadyExists, "network with name %s already exists", spec.Name)
		}
		for _, n := range state.List[*cloud.Network](tx, state.By{}) {
			if spec.Ingress && n.Spec.Ingress {
				return fault.New(fault.AlreadyExists, "ingress network (%s) is already present", n.ID)
			}
			for _, taken := range slices.Concat(n.Spec.IPAM, n.Status.Subnets) {
				for _, c := range spec.IPAM {
					if c.Subnet.IsValid() && taken.Subnet.IsValid() && c.Subnet.Overlaps(taken.Subnet) {
						return fault.New(fault.Forbidden, "invalid pool request: Pool overlaps with other one on this address space: %s and %s of network %s",
							c.Subnet, taken.Subnet, n.Spec.Name)
					}
				}
			}
		}
		return tx.Put(&cloud.Network{Meta: cloud.Meta{ID: id, Project: cloud.DefaultProject}, Spec: state.Clone(&cloud.Network{Spec: spec}).Spec})
	})
	if err != nil {
		return "", err
	}
	a.awaitSubnet(ctx, id)
	return id, nil
}

func (a *API) awaitSubnet(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, allocationWait)
	defer cancel()
	given := func(n *cloud.Network) bool { return n == nil || len(n.Status.Subnets) > 0 }
	done := false
	events := a.cfg.Store.Watch(ctx, func(tx state.Tx) { done = given(state.Get[*cloud.Network](tx, id)) }, cloud.KindNetwork)
	for !done {
		e, ok := <-events
		if !ok {
			return
		}
		if e.ID == id {
			n, _ := e.Object.(*cloud.Network)
			done = given(n)
		}
	}
}

// RemoveNetwork forgets a network that nothing uses.
func (a *API) RemoveNetwork(ctx context.Context, ref string) error {
	return a.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		n, err := find(tx, ref, ownName[*cloud.Network])
		if err != nil {
			return err
		}
		services := map[string]bool{}
		for _, s := range state.List[*cloud.Service](tx, state.By{}) {
			services[s.ID] = true
			if n.Spec.Ingress && s.Spec.Endpoint.PublishesIngress() {
				return fault.New(fault.FailedPrecondition, "ingress network cannot be removed because service %s depends on it", s.Spec.Name)
			}
			if slices.ContainsFunc(s.Spec.Task.Networks, func(c cloud.NetworkConnection) bool { return c.Target == n.ID || c.Target == n.Spec.Name }) {
				return fault.New(fault.FailedPrecondition, "network %s is in use by service %s", n.Spec.Name, s.Spec.Name)
			}
		}
		for _, t := range state.List[*cloud.Task](tx, state.ByNetwork(n.ID)) {
			// The tasks of a service just removed are about to be told to end: docker stack rm need not wait for that.
			if services[t.ServiceID] && t.Desired <= cloud.TaskRunning && !t.Status.State.Ended() {
				return fault.New(fault.FailedPrecondition, "network %s is in use by task %s", n.Spec.Name, t.ID)
			}
		}
		for _, at := range state.List[*cloud.Attachment](tx, state.ByNetwork(n.ID)) {
			return fault.New(fault.FailedPrecondition, "error while removing network: network %s has active endpoints (container %s on node %s)", n.Spec.Name, at.Name, at.NodeID)
		}
		return tx.Delete(cloud.KindNetwork, n.ID)
	})
}

// GetNetwork finds a network of the cluster.
func (a *API) GetNetwork(_ context.Context, ref string) (*cloud.Network, error) {
	return get(a, ref, ownName[*cloud.Network])
}

// ListNetworks returns all networks of the cluster.
func (a *API) ListNetworks(context.Context) ([]*cloud.Network, error) {
	return list[*cloud.Network](a), nil
}
