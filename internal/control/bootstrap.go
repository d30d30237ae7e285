package control

import (
	"context"
	"net/netip"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control/dispatcher"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
)

// ClusterDefaults fills what a new cluster's specification leaves open.
func ClusterDefaults(s *cloud.ClusterSpec) {
	if s.Name == "" {
		s.Name = "default"
	}
	if s.TaskHistoryLimit == 0 {
		s.TaskHistoryLimit = 5
	}
	if s.HeartbeatPeriod == 0 {
		s.HeartbeatPeriod = dispatcher.HeartbeatPeriod
	}
	if s.CertExpiry == 0 {
		s.CertExpiry = 90 * 24 * time.Hour
	}
	if len(s.AddressPools) == 0 {
		s.AddressPools = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	}
	if s.SubnetSize == 0 {
		s.SubnetSize = 24
	}
	if s.DataPathPort == 0 {
		s.DataPathPort = 4789
	}
}

// Bootstrap writes down a new cluster, its first node, and its ingress network, which gets the first subnet of the
// address pools from the allocator.
func Bootstrap(ctx context.Context, store state.Store, c *cloud.Cluster, first *cloud.Node) error {
	ClusterDefaults(&c.Spec)
	if err := ValidateCluster(&c.Spec); err != nil {
		return err
	}
	ingress := &cloud.Network{
		Meta: cloud.Meta{ID: cloud.NewID(), Project: cloud.DefaultProject},
		Spec: cloud.NetworkSpec{Name: cloud.IngressNetworkName, Driver: cloud.DriverOverlay, Ingress: true, IPv6: true},
	}
	return store.Update(ctx, func(tx state.WriteTx) error {
		if len(state.List[*cloud.Cluster](tx, state.By{})) > 0 {
			return fault.New(fault.AlreadyExists, "this state holds a cluster already")
		}
		for _, o := range []cloud.Object{state.Clone(c), state.Clone(first), state.Clone(ingress)} {
			m := o.GetMeta()
			if m.Project == "" {
				m.Project = cloud.DefaultProject
			}
			if err := tx.Put(o); err != nil {
				return err
			}
		}
		return nil
	})
}
