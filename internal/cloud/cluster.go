package cloud

import (
	"net/netip"
	"time"
)

// Cluster is the one object that describes the whole cluster. Its ID is the cluster's ID, its name is "default".
type Cluster struct {
	Meta
	Spec   ClusterSpec   `json:"spec"`
	CA     CA            `json:"ca"`
	Tokens JoinTokens    `json:"tokens"`
	Status ClusterStatus `json:"status"`
}

// ClusterSpec is what `docker swarm update` changes.
type ClusterSpec struct {
	Name             string            `json:"name"`
	Labels           map[string]string `json:"labels,omitempty"`
	TaskHistoryLimit int               `json:"taskHistoryLimit"` // finished tasks kept per slot
	HeartbeatPeriod  time.Duration     `json:"heartbeatPeriod"`
	CertExpiry       time.Duration     `json:"certExpiry"`
	AddressPools     []netip.Prefix    `json:"addressPools"` // where overlay subnets come from
	SubnetSize       int               `json:"subnetSize"`   // prefix length of one subnet cut from a pool
	DataPathPort     uint16            `json:"dataPathPort"` // VXLAN's UDP port
}

// CA is the certificate authority of the cluster. Key never leaves the managers.
type CA struct {
	Cert   []byte `json:"cert"` // PEM bundle: the current root, then those still trusted while rotating
	Key    []byte `json:"key"`  // PEM
	Digest string `json:"digest"`
}

// JoinTokens are the secrets that let a host join, as Docker shows them (SWMTKN-1-DIGEST-SECRET).
type JoinTokens struct {
	Worker  string `json:"worker"`
	Manager string `json:"manager"`
}

// ClusterStatus holds what the allocator keeps for the cluster as a whole.
type ClusterStatus struct {
	NextVNI uint32 `json:"nextVNI"`
	Leader  string `json:"leader,omitempty"` // node ID of the newest leading manager: its loss is what makes the next one
}
