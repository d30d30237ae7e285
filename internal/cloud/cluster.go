package cloud

import (
	"net/netip"
	"slices"
	"time"
)

// Cluster is the one object that describes the whole cluster. Its ID is the cluster's ID, its name is "default".
type Cluster struct {
	Meta
	Spec   ClusterSpec `json:"spec"`
	CA     CA          `json:"ca"`
	Tokens JoinTokens  `json:"tokens"`
	// UnlockKey is under what managers lock their keys on disk, as users keep it; empty: they do not.
	UnlockKey string        `json:"unlockKey,omitempty"`
	Status    ClusterStatus `json:"status"`
}

// ClusterSpec is what `docker swarm update` changes.
type ClusterSpec struct {
	Name             string            `json:"name"`
	Labels           map[string]string `json:"labels,omitempty"`
	TaskHistoryLimit int               `json:"taskHistoryLimit"` // finished tasks kept per slot
	HeartbeatPeriod  time.Duration     `json:"heartbeatPeriod"`
	CertExpiry       time.Duration     `json:"certExpiry"`
	ForceRotate      uint64            `json:"forceRotate,omitempty"` // a change asks for another certificate authority
	AutoLock         bool              `json:"autoLock,omitempty"`    // managers that start wait to be unlocked
	AddressPools     []netip.Prefix    `json:"addressPools"`          // where overlay subnets come from
	SubnetSize       int               `json:"subnetSize"`            // prefix length of one subnet cut from a pool
	DataPathPort     uint16            `json:"dataPathPort"`          // VXLAN's UDP port
}

// CA is the certificate authority of the cluster. Key never leaves the managers.
type CA struct {
	Cert   []byte `json:"cert"` // PEM
	Key    []byte `json:"key"`  // PEM
	Digest string `json:"digest"`
	// Next is the authority that is to take this one's place; nil when none is.
	Next *NextCA `json:"next,omitempty"`
}

// NextCA is an authority on its way in. First every node learns to trust it; when all do, it issues: every node gets a
// certificate of it; when all have one, it takes the place of its predecessor, which nobody trusts any more from then on.
type NextCA struct {
	Cert    []byte `json:"cert"` // PEM
	Key     []byte `json:"key"`  // PEM
	Digest  string `json:"digest"`
	Issuing bool   `json:"issuing,omitempty"`
}

// Bundle returns the roots that nodes are to trust now, in PEM; the first is the one that issues certificates.
func (c *CA) Bundle() []byte {
	switch {
	case c.Next == nil:
		return slices.Clone(c.Cert)
	case c.Next.Issuing:
		return slices.Concat(c.Next.Cert, c.Cert)
	}
	return slices.Concat(c.Cert, c.Next.Cert)
}

// IssuingDigest returns the digest of Bundle's first root, which join tokens vouch for.
func (c *CA) IssuingDigest() string {
	if c.Next != nil && c.Next.Issuing {
		return c.Next.Digest
	}
	return c.Digest
}

// IssuingKey returns the key of Bundle's first root.
func (c *CA) IssuingKey() []byte {
	if c.Next != nil && c.Next.Issuing {
		return c.Next.Key
	}
	return c.Key
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
