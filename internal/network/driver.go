package network

import (
	"context"

	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// driver joins sandboxes to the networks of one kind. The manager chooses the endpoint's interface name, hardware
// address and addresses, and sets routes and names; a driver makes the interface and connects it.
type driver interface {
	// attach makes the interface ep.Interface in the sandbox's namespace ns: hardware address ep.MAC, addresses ep.IPv4
	// and ep.IPv6 (either may be invalid), up, on network n. n and ep are the callee's to read only. If it fails,
	// nothing stays. Attaching an endpoint that is attached is no error.
	attach(ctx context.Context, n *Network, ep *Endpoint, ns *netns.NS) error
	// detach takes the interface away and whatever of the endpoint is outside the namespace, which is pinned at sandbox.
	// The namespace may be gone, and the endpoint may never have been attached.
	detach(ctx context.Context, n *Network, ep *Endpoint, sandbox string) error
}

// localDriver is a driver of networks of this host. All but attach and detach are called with Manager.mu held; others
// are the networks that are there already.
type localDriver interface {
	driver
	// configure checks the options of a network that is to be made and sets what follows from them: its link, its MTU.
	configure(n *Network, others []*Network) error
	// create makes what the network needs on the host. If it fails, nothing stays.
	create(n *Network) error
	// restore makes what of it is missing.
	restore(n *Network) error
	// remove takes it away.
	remove(n *Network, others []*Network) error
}

// What apply*.go owes the manager (called from here; none of it may take Manager.mu, which may be held):
//
//	type clusterSide struct{ … }                       all that it keeps
//	newClusterSide(m *Manager) (*clusterSide, error)   called by New before earlier sandboxes are looked at; m.cfg, m.log
//	                                                   and m.host (the host's namespace) are set
//	(*clusterSide).driver() driver                     of the networks of scope swarm
//	(*clusterSide).attached(ctx, sandboxRef) error     a sandbox has joined a network of scope swarm: program what is
//	                                                   inside it (virtual IPs); also told of each one found at a restart.
//	                                                   An error undoes the attach
//	(*clusterSide).detached(ctx, sandboxRef)           it has left; its namespace may be about to go
//	(*clusterSide).close() error
//
// What it may call:
//
//	m.setCluster(ctx, networks, names)   the networks of scope swarm on this host and the names on each, both complete;
//	                                     kept for a restart, and published to the name server if they changed
//	m.sandboxesOn(networkID)             who is on a network here; "" lists all sandboxes

// sandboxRef is a sandbox as told to other parts of the package: a copy.
type sandboxRef struct {
	ID        string
	NetNS     string     // path of the pinned namespace
	Endpoints []Endpoint // in the order of joining, without the host bridge's
}
