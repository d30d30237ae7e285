package cloud

import "net/netip"

// Names that the cluster's own networks have.
const (
	IngressNetworkName = "ingress"
	DriverOverlay      = "overlay"
)

// Network is a network that spans hosts.
type Network struct {
	Meta
	Spec   NetworkSpec   `json:"spec"`
	Status NetworkStatus `json:"status"`
}

// NetworkSpec is what a user asks for.
type NetworkSpec struct {
	Name       string            `json:"name"`
	Labels     map[string]string `json:"labels,omitempty"`
	Driver     string            `json:"driver"`
	Options    map[string]string `json:"options,omitempty"` // com.docker.network.driver.mtu, encrypted, …
	Internal   bool              `json:"internal,omitempty"`
	Attachable bool              `json:"attachable,omitempty"`
	Ingress    bool              `json:"ingress,omitempty"`
	IPv6       bool              `json:"ipv6,omitempty"`
	IPAM       []IPAMConfig      `json:"ipam,omitempty"`
	// IPAMOptions are shown as they were given: there is no driver of addresses that knows any.
	IPAMOptions map[string]string `json:"ipam_options,omitempty"`
}

// IPAMConfig is one subnet. Subnet may be invalid (unset): the allocator cuts one from the cluster's pools.
type IPAMConfig struct {
	Subnet  netip.Prefix          `json:"subnet,omitzero"`
	Range   netip.Prefix          `json:"range,omitzero"` // addresses are given from here; unset: the whole subnet
	Gateway netip.Addr            `json:"gateway,omitzero"`
	Aux     map[string]netip.Addr `json:"aux,omitempty"` // addresses never given
}

// NetworkStatus is what the allocator gave the network.
type NetworkStatus struct {
	VNI     uint32       `json:"vni,omitempty"`
	Subnets []IPAMConfig `json:"subnets,omitempty"` // complete: subnet and gateway always set
	MTU     int          `json:"mtu,omitempty"`     // of the overlay: the least underlay MTU less the encapsulation
}

// PredefinedNetwork reports whether the name is that of a network which every host has of its own.
func PredefinedNetwork(name string) bool { return name == "host" || name == "bridge" || name == "none" }
