package cloud

import (
	"net/netip"
)

// Role is what a node may do.
type Role string

// The roles.
const (
	RoleWorker  Role = "worker"
	RoleManager Role = "manager"
)

// MaxManagers is how many managers a cluster can have: each decides with every change, so that more of them make the
// cluster slower and, past seven, not noticeably safer.
const MaxManagers = 7

// Availability says whether a node takes tasks.
type Availability string

// The availabilities: active takes tasks, pause takes no new ones, drain gives its tasks away.
const (
	AvailabilityActive Availability = "active"
	AvailabilityPause  Availability = "pause"
	AvailabilityDrain  Availability = "drain"
)

// NodeState is whether a node answers.
type NodeState string

// The node states.
const (
	NodeUnknown      NodeState = "unknown"
	NodeDown         NodeState = "down"
	NodeReady        NodeState = "ready"
	NodeDisconnected NodeState = "disconnected"
)

// Node is a host of the cluster. Heartbeats are not stored; Status changes only when the state does.
type Node struct {
	Meta
	Spec        NodeSpec        `json:"spec"`
	Description NodeDescription `json:"description"`
	Status      NodeStatus      `json:"status"`
	Manager     *ManagerStatus  `json:"manager,omitempty"` // set while the node is a member of the state store
	Ingress     IngressLeg      `json:"ingress"`
}

// NodeSpec is what `docker node update` changes.
type NodeSpec struct {
	Name         string            `json:"name,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Role         Role              `json:"role"`
	Availability Availability      `json:"availability"`
}

// NodeDescription is what the node's agent reports of its host.
type NodeDescription struct {
	Hostname      string            `json:"hostname"`
	OS            string            `json:"os"`
	Architecture  string            `json:"architecture"` // as uname -m: x86_64, aarch64
	EngineVersion string            `json:"engineVersion"`
	Labels        map[string]string `json:"labels,omitempty"` // sampand --label
	Resources     Resources         `json:"resources"`
	UnderlayMTU   int               `json:"underlayMTU"` // of the interface that carries the node's data address
	TrustRoot     string            `json:"trustRoot,omitempty"`
	Subnets       []netip.Prefix    `json:"subnets,omitempty"` // of the host's own links and bridges: cluster networks avoid them
}

// NodeStatus is what the managers know of the node.
type NodeStatus struct {
	State   NodeState    `json:"state"`
	Message string       `json:"message,omitempty"`
	Addrs   []netip.Addr `json:"addrs,omitempty"` // the node's data addresses: VXLAN ends, and where it answers
}

// Addr returns the node's first data address, the zero Addr if it has none yet.
func (s NodeStatus) Addr() netip.Addr {
	if len(s.Addrs) == 0 {
		return netip.Addr{}
	}
	return s.Addrs[0]
}

// ManagerStatus is a manager's part in the replicated state.
type ManagerStatus struct {
	Addr     string `json:"addr"`     // HOST:PORT of its RPC server
	MemberID uint64 `json:"memberID"` // etcd's ID of the member
	PeerURL  string `json:"peerURL"`
}

// IngressLeg is where the node's host namespace is joined to the ingress network. Mark is the value in the connection
// mark that sends replies back through this node (see IngressMarkMask).
type IngressLeg struct {
	Addrs []netip.Addr `json:"addrs,omitempty"`
	Mark  uint32       `json:"mark,omitempty"`
}

// IngressMarkMask are the bits of a packet's or connection's mark that hold the number of an ingress node (1 to 4095).
// The other bits are left to other programs.
const (
	IngressMarkMask  uint32 = 0x0fff0000
	IngressMarkShift        = 16
)

// Platform is an operating system and machine, either may be empty for any.
type Platform struct {
	OS           string `json:"os,omitempty"`
	Architecture string `json:"architecture,omitempty"`
}

// Resources are amounts of a host or of a request. Zero means none asked for.
type Resources struct {
	NanoCPUs    int64 `json:"nanoCPUs,omitempty"`
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	Pids        int64 `json:"pids,omitempty"`
	// Generic are resources of the users' own kinds. A request asks for amounts only.
	Generic []GenericResource `json:"generic,omitempty"`
}

// IsZero reports whether nothing is there, or asked for.
func (r *Resources) IsZero() bool {
	return r.NanoCPUs == 0 && r.MemoryBytes == 0 && r.Pids == 0 && len(r.Generic) == 0
}
