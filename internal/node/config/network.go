package config

import (
	"net/netip"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
)

// NoBridge, as the name of the default bridge, is for a host that has no default network.
const NoBridge = "none"

// Network is what can be set about the networks of this host. It has a field for each of dockerd's flags, which
// is why it is long.
type Network struct {
	Bridge             string // the default bridge, made by somebody else; "none": no default bridge
	IPv6               bool   // of the default bridge
	BIP6               string
	FixedCIDR6         string
	DefaultGateway     string
	DefaultGateway6    string
	ICC                bool
	IPMasq             bool
	IP                 string // where ports are published that name no address
	IPForward          bool
	IPForwardNoDrop    bool
	IPTables           bool
	IP6Tables          bool
	UserlandProxy      bool
	AllowDirectRouting bool
	BridgeAcceptFwMark string
	FirewallBackend    string
	DNS                []string // of containers that name no server
	DNSOptions         []string
	DNSSearch          []string
	HostGatewayIPs     []string                     // what host-gateway stands for
	DefaultOptions     map[string]map[string]string // of new networks, by driver
	LinkEnv            bool                         // variables for links on the default bridge, as before Docker 29
}

// defaultNetwork is dockerd's.
func defaultNetwork() Network {
	return Network{ICC: true, IPMasq: true, IPForward: true, IPTables: true, IP6Tables: true, UserlandProxy: true}
}

// SetDefaultOption gives new networks of a driver an option.
func (c *Network) SetDefaultOption(driver, key, value string) {
	if c.DefaultOptions == nil {
		c.DefaultOptions = map[string]map[string]string{}
	}
	if c.DefaultOptions[driver] == nil {
		c.DefaultOptions[driver] = map[string]string{}
	}
	c.DefaultOptions[driver][key] = value
}

// ParseDefaultOption reads DRIVER=KEY=VALUE, the form of --default-network-opt.
func (c *Network) ParseDefaultOption(text string) error {
	driver, option, _ := strings.Cut(text, "=")
	key, value, ok := strings.Cut(option, "=")
	if !ok || driver == "" || key == "" {
		return fault.New(fault.InvalidArgument, "--default-network-opt %q: want DRIVER=KEY=VALUE, for example bridge=com.docker.network.driver.mtu=1400", text)
	}
	c.SetDefaultOption(driver, key, value)
	return nil
}

// validate reports what is wrong by bad.
func (c *Network) validate(bip string, bad func(format string, args ...any)) {
	address := func(flag, s string, v6 bool) {
		if a, err := netip.ParseAddr(s); s != "" && (err != nil || a.Is6() != v6) {
			bad("--%s %q: want an address of the right version of IP", flag, s)
		}
	}
	for _, p := range []struct{ flag, text string }{{"bip6", c.BIP6}, {"fixed-cidr-v6", c.FixedCIDR6}} {
		if v, err := netip.ParsePrefix(p.text); p.text != "" && (err != nil || !v.Addr().Is6() || v.Addr().IsMulticast()) {
			bad("--%s %q: want an IPv6 address with its prefix, for example fd00:1::1/64", p.flag, p.text)
		}
	}
	address("default-gateway", c.DefaultGateway, false)
	address("default-gateway-v6", c.DefaultGateway6, true)
	if _, err := netip.ParseAddr(c.IP); c.IP != "" && err != nil {
		bad("--ip %q: want an address of this host", c.IP)
	}
	for _, list := range []struct {
		flag  string
		addrs []string
	}{{"dns", c.DNS}, {"host-gateway-ip", c.HostGatewayIPs}} {
		for _, s := range list.addrs {
			if _, err := netip.ParseAddr(s); err != nil {
				bad("--%s %q: want an address", list.flag, s)
			}
		}
	}
	switch {
	case len(c.Bridge) > 15:
		bad("--bridge %q: an interface name has at most 15 characters", c.Bridge)
	case c.Bridge != "" && (bip != "" || c.BIP6 != ""):
		bad("--bridge and --bip: give one: a bridge that somebody else makes has its addresses")
	}
	if !c.IPTables || !c.IP6Tables {
		bad("--iptables=false, --ip6tables=false: there are no iptables rules to leave out: the rules that isolate containers and publish ports are nftables of Sampan's own (nft list table inet sampan), and networks are not made without them. A port that nothing is to open is not published; --ip-masq=false and the option com.docker.network.bridge.gateway_mode_ipv4=routed turn translation off")
	}
	if c.FirewallBackend != "" && c.FirewallBackend != "nftables" {
		bad("--firewall-backend %q: there is nftables only", c.FirewallBackend)
	}
}

// Networks puts the configuration, which Validate has looked at, into network's words.
func (c *Config) Networks() network.Config {
	prefix := func(s string) netip.Prefix { p, _ := netip.ParsePrefix(s); return p }
	addr := func(s string) netip.Addr { a, _ := netip.ParseAddr(s); return a }
	n := c.Network
	out := network.Config{DataRoot: c.DataRoot, ExecRoot: c.ExecRoot,
		Bridge: network.BridgeConfig{MTU: c.MTU, BIP: prefix(c.BIP), FixedCIDR: prefix(c.FixedCIDR), Gateway4: addr(n.DefaultGateway),
			IPv6: n.IPv6, BIP6: prefix(n.BIP6), FixedCIDR6: prefix(n.FixedCIDR6), Gateway6: addr(n.DefaultGateway6), Bind: addr(n.IP),
			NoICC: !n.ICC, NoMasquerade: !n.IPMasq, Link: n.Bridge},
		NoForwarding: !n.IPForward, OpenForwarding: n.IPForwardNoDrop, DirectRouting: n.AllowDirectRouting, AcceptMark: n.BridgeAcceptFwMark,
		NoProxy: !n.UserlandProxy, DefaultOptions: n.DefaultOptions}
	if n.Bridge == NoBridge {
		out.Bridge.Link, out.Bridge.Disabled = "", true
	}
	for _, p := range c.Pools {
		out.Pools = append(out.Pools, network.Pool(p))
	}
	return out
}

// HostGateways are the addresses that host-gateway stands for, of a configuration that Validate has looked at.
func (c *Network) HostGateways() []netip.Addr {
	out := make([]netip.Addr, 0, len(c.HostGatewayIPs))
	for _, s := range c.HostGatewayIPs {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}
