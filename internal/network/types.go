// Package network owns a host's networks: sandboxes (pinned network namespaces) and what is in them, bridges, overlays,
// addresses of host-local networks, names, virtual IPs and published ports. It takes desired configuration and makes the
// kernel (netlink and nftables, no ip, nft or iptables programs) and the keeper's name table agree with it; everything
// it made is found again after a restart. It knows containers only as sandbox IDs and is told what the cluster looks
// like by Apply; it never asks.
package network

import (
	"net/netip"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// The drivers.
const (
	DriverBridge  = "bridge"
	DriverHost    = "host"
	DriverNull    = "null"
	DriverOverlay = "overlay"
	DriverMacvlan = "macvlan"
	DriverIPvlan  = "ipvlan"
)

// The networks that every host has.
const (
	NameBridge = "bridge"
	NameHost   = "host"
	NameNone   = "none"
)

// Scope is how far a network reaches.
type Scope string

// The scopes.
const (
	ScopeLocal Scope = "local"
	ScopeSwarm Scope = "swarm"
)

// Network is a network as this host knows it. Local ones are made here and kept on disk; those of scope swarm are
// copies of the cluster's that Apply brought, present while something on this host uses them.
type Network struct {
	ID      string // 64 hex digits (local) or 25 characters of base 36 (swarm)
	Created time.Time
	Scope   Scope
	Spec    Spec
	Subnets []cloud.IPAMConfig // complete
	Link    string             // the bridge's interface name; of macvlan and ipvlan networks, the parent's
	Made    bool               // of macvlan and ipvlan networks: the parent was made here and goes with the last of them
	Foreign bool               // the bridge was there before, and stays
	VNI     uint32
	MTU     int
	Members map[string]Endpoint // by sandbox ID: the endpoints on this host
	Peers   []netip.Addr        // overlay: underlay addresses of the other hosts on it
}

// Spec is what a user asks for.
type Spec struct {
	Name       string
	Driver     string // "" is bridge
	IPAMDriver string // "" or "default"
	IPAM       []cloud.IPAMConfig
	// IPAMOptions are shown as they were given: there is no driver of addresses that knows any.
	IPAMOptions map[string]string
	Internal    bool
	Attachable  bool
	Ingress     bool
	IPv4, IPv6  bool
	// NoAddresses: with neither IPv4 nor IPv6, which otherwise stands for IPv4.
	NoAddresses bool
	Options     map[string]string // see options.go
	Labels      map[string]string
	// ConfigOnly: the network is nothing but a configuration for others, which name it in ConfigFrom.
	ConfigOnly bool
	ConfigFrom string
}

// subnet is one of a network's.
type subnet = cloud.IPAMConfig

// SandboxSpec is a sandbox to be made and joined to networks.
type SandboxSpec struct {
	ID        string // the container's ID for a container
	Owner     string // the container's name: its DNS name where the network offers one
	Hostname  string
	Domain    string // of the hostname; empty: it has none, or has it in it
	Endpoints []EndpointSpec
	Ports     []PortBinding // published by a bridge network
	DNS       []netip.Addr  // replaces the host's upstream servers
	Search    []string
	Options   []string
	Sysctls   map[string]string // net.* ones, written into the namespace
	// NoNetwork: a namespace with loopback only.
	NoNetwork bool
	// Namespace is where the network namespace is pinned that the sandbox is made of: one that a user namespace owns. It
	// goes over to the sandbox. Empty: a new one, owned by the host's.
	Namespace string
	Links     map[string][]netip.Addr // names that only this sandbox resolves
}

// EndpointSpec joins a sandbox to a network.
type EndpointSpec struct {
	Network    string // name or ID
	Aliases    []string
	IPv4       netip.Addr // invalid: any. On an overlay, the address that the cluster's allocator gave
	IPv6       netip.Addr
	LinkLocal  []netip.Addr // further addresses of the interface
	MAC        string
	Links      []string // NAME:ALIAS of containers on the network: names that only this sandbox has for them
	GwPriority int
	DriverOpts map[string]string
	// Task is set for a task's endpoint: its member entry in the cluster's view names it, not Owner and Aliases.
	Task string
}

// Endpoint is one interface of a sandbox. It is everything that inspect shows of one, which is why it is long.
type Endpoint struct {
	ID          string // 64 hex digits
	NetworkID   string
	NetworkName string
	SandboxID   string
	Owner       string
	Interface   string // in the sandbox: eth0, …
	MAC         string
	IPv4, IPv6  netip.Prefix
	Gateway4    netip.Addr
	Gateway6    netip.Addr
	LinkLocal   []netip.Prefix
	// OnLink4 and OnLink6: everything that leaves goes out by the interface, without a gateway.
	OnLink4, OnLink6 bool
	Aliases          []string
	DNSNames         []string
}

// PortBinding publishes a port of a sandbox on this host. HostIP invalid: all addresses, IPv4 and IPv6. HostPort 0: any
// free one; HostPortEnd above HostPort: any free one of the range.
type PortBinding struct {
	Protocol    string // tcp, udp, sctp
	Port        uint16
	HostIP      netip.Addr
	HostPort    uint16
	HostPortEnd uint16
}

// BoundPort is a published port as it is. A binding to all addresses gives one for 0.0.0.0 and one for ::.
type BoundPort struct {
	Protocol string
	Port     uint16
	HostIP   netip.Addr
	HostPort uint16
}

// Sandbox is a sandbox as made.
type Sandbox struct {
	ID         string
	NetNS      string // path of the pinned namespace
	Endpoints  []Endpoint
	Ports      []BoundPort
	ResolvConf []byte   // for the container's /etc/resolv.conf
	Hosts      []string // "ADDR NAME…" lines for its /etc/hosts
}

// The manager is (*Manager), in manager.go:
//
//	New(Config) (*Manager, error)          Config: data root, exec root, name server (keeper), default bridge (bip, fixed-cidr,
//	                                       mtu), address pools, logger; finds what an earlier daemon made; removes what has no owner
//	Create(ctx, Spec) (Network, error)     scope local
//	Remove(ctx, nameOrID) error            fault.Conflict while it has endpoints, fault.Forbidden for predefined ones
//	Get(nameOrID) (Network, error)         full ID, full name, unique ID prefix; in that order
//	List() []Network
//	Prune(ctx, filter) ([]string, error)
//	Attach(ctx, SandboxSpec) (*Sandbox, error)   idempotent by ID
//	Detach(ctx, sandboxID) error                 ports, names and addresses are free on return; namespace and links go in the background
//	Connect(ctx, sandboxID, EndpointSpec) (Endpoint, error)   live
//	Disconnect(ctx, sandboxID, network string) error
//	Rename(ctx, sandboxID, owner string) error   its DNS name follows
//	Sandbox(id) (*Sandbox, bool)
//	Keep(ids []string)                     after a restart: every sandbox not named is removed
//	Apply(ctx, *cloud.NodeView, self string) error   makes overlays, forwarding, names, VIPs and ingress agree with the view of node self;
//	                                       nil view: not in a cluster, everything of scope swarm is removed
//	Close() error                          leaves everything in the kernel in place
