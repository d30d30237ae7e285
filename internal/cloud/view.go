package cloud

import (
	"fmt"
	"net/netip"
)

// NodeView is all that one node is told of the cluster, and no more: its tasks and their secrets, the networks these
// are on and everything reachable there, and the published ports. The dispatcher derives it from state and streams its
// changes; the agent keeps the newest on disk, so that a node without managers goes on from it.
type NodeView struct {
	Revision uint64                     `json:"revision"`
	Tasks    map[string]*Task           `json:"tasks"`    // by ID
	Secrets  map[string]*Secret         `json:"secrets"`  // by ID
	Configs  map[string]*Config         `json:"configs"`  // by ID
	Networks map[string]*Network        `json:"networks"` // by ID
	Members  map[string]*Member         `json:"members"`  // by ID
	Services map[string]*VirtualService `json:"services"` // by Key
	Peers    map[string]*Peer           `json:"peers"`    // by node ID
}

// Member is one address on a cluster network and who is behind it: a task or a standalone container. It is the one fact
// from which forwarding entries, names, virtual IPs and published ports are made.
type Member struct {
	ID          string       `json:"id"` // task or attachment ID, "/", network ID
	NetworkID   string       `json:"networkID"`
	NodeID      string       `json:"nodeID"`
	ServiceID   string       `json:"serviceID,omitempty"` // empty for a standalone container
	ServiceName string       `json:"serviceName,omitempty"`
	Name        string       `json:"name"`              // the task's or container's full name
	Aliases     []string     `json:"aliases,omitempty"` // of the service, or of the standalone container
	Addrs       []netip.Addr `json:"addrs"`
	Ready       bool         `json:"ready"` // false: reachable by address, in no name, VIP or published port
}

// MemberID returns the ID of the member that a task or attachment is on a network.
func MemberID(owner, networkID string) string { return owner + "/" + networkID }

// VirtualService is a service as seen on one network.
type VirtualService struct {
	ServiceID string       `json:"serviceID"`
	NetworkID string       `json:"networkID"`
	Name      string       `json:"name"`
	Aliases   []string     `json:"aliases,omitempty"`
	Mode      EndpointMode `json:"mode"`
	VIPs      []netip.Addr `json:"vips,omitempty"`
	Ports     []PortConfig `json:"ports,omitempty"` // ingress-mode ports; on the ingress network only
	// Serves are the ports of its members that can be asked for by name; not on the ingress network.
	Serves []PortConfig `json:"serves,omitempty"`
}

// Key is the service's key in NodeView.Services.
func (s *VirtualService) Key() string { return s.ServiceID + "/" + s.NetworkID }

// Peer is another node (or this one) as the data path knows it.
type Peer struct {
	NodeID  string       `json:"nodeID"`
	Addrs   []netip.Addr `json:"addrs"` // underlay addresses
	Ingress IngressLeg   `json:"ingress"`
}

// NewNodeView returns an empty view with all its maps made.
func NewNodeView() *NodeView {
	return &NodeView{
		Tasks: map[string]*Task{}, Secrets: map[string]*Secret{}, Configs: map[string]*Config{},
		Networks: map[string]*Network{}, Members: map[string]*Member{}, Services: map[string]*VirtualService{},
		Peers: map[string]*Peer{},
	}
}

// MAC returns the hardware address of the interface that has addr on a cluster network: 02:42 and the four bytes of an
// IPv4 address, as Docker does, so that every host can write neighbour entries without being told.
func MAC(addr netip.Addr) string {
	b := addr.Unmap().AsSlice()
	b = b[len(b)-4:]
	return fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}
