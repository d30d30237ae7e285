package network

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/sampan-cloud/sampan/internal/keeper"
)

// NameServer takes the names to serve: the keeper's client.
type NameServer interface {
	SetNames(ctx context.Context, t keeper.NameTable) error
}

// Config is what a Manager needs. DataRoot and ExecRoot must be set.
type Config struct {
	DataRoot string // networks are kept in DataRoot/network
	ExecRoot string // namespaces are pinned in ExecRoot/netns, what is only true until a reboot is in ExecRoot/network
	Names    NameServer
	Bridge   BridgeConfig
	Pools    []Pool // that subnets are cut from; none: Docker's defaults
	// HostNetNS is the path of the namespace that counts as the host's; empty: the one the process is in.
	HostNetNS  string
	ResolvConf string // empty: /etc/resolv.conf
	// NoForwarding leaves it to others to make the host pass packets on; OpenForwarding does it for everybody, not only
	// for networks, on a host that did not.
	NoForwarding, OpenForwarding bool
	// DirectRouting lets packets that are routed to a container's own address in by published ports.
	DirectRouting bool
	// AcceptMark lets packets with this mark, MARK or MARK/MASK, in to containers; empty: none.
	AcceptMark string
	// NoProxy: no port is published that the kernel alone cannot translate.
	NoProxy bool
	// DefaultOptions are given to new networks, by driver, that do not say otherwise; see Manager.DefaultOptions.
	DefaultOptions map[string]map[string]string
	Logger         *slog.Logger
}

// BridgeConfig is of the network "bridge".
type BridgeConfig struct {
	BIP          netip.Prefix // the bridge's address and subnet; invalid: the first free one of the pools
	FixedCIDR    netip.Prefix // containers' addresses are given from here; invalid: the whole subnet
	Gateway4     netip.Addr   // the containers'; invalid: the bridge
	IPv6         bool
	BIP6         netip.Prefix
	FixedCIDR6   netip.Prefix
	Gateway6     netip.Addr
	Bind         netip.Addr // where ports are published that say nothing else; invalid: everywhere
	MTU          int        // of all bridge networks that do not say their own; 0: 1500
	NoICC        bool       // containers on it cannot reach each other
	NoMasquerade bool       // what leaves it keeps its address
	Link         string     // the bridge's interface, which somebody else makes and addresses; empty: one of our own
	Disabled     bool       // there is no network "bridge"
}

// Pool is address space that subnets of Size bits are cut from.
type Pool struct {
	Base netip.Prefix
	Size int
}
