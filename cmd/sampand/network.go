package main

import (
	"github.com/spf13/pflag"

	"github.com/sampan-cloud/sampan/internal/node/config"
)

// networkFlags adds the flags of networks, which have dockerd's names; options takes those of new networks.
func networkFlags(f *pflag.FlagSet, c *config.Network, options *[]string) {
	f.StringVarP(&c.Bridge, "bridge", "b", "", `bridge that the default network uses and somebody else made; "none": no default network`)
	f.BoolVar(&c.IPv6, "ipv6", false, "IPv6 on the default bridge")
	f.StringVar(&c.BIP6, "bip6", "", "IPv6 address and prefix of the default bridge")
	f.StringVar(&c.FixedCIDR6, "fixed-cidr-v6", "", "part of the default bridge's IPv6 subnet that containers get addresses from")
	f.StringVar(&c.DefaultGateway, "default-gateway", "", "gateway of containers on the default bridge")
	f.StringVar(&c.DefaultGateway6, "default-gateway-v6", "", "IPv6 gateway of containers on the default bridge")
	f.BoolVar(&c.ICC, "icc", true, "containers on the default bridge reach each other")
	f.BoolVar(&c.IPMasq, "ip-masq", true, "what leaves the default bridge has the host's address")
	f.StringVar(&c.IP, "ip", "", "address of the host that the default bridge's ports are published on")
	f.BoolVar(&c.IPForward, "ip-forward", true, "make the host pass packets on")
	f.BoolVar(&c.IPForwardNoDrop, "ip-forward-no-drop", false, "and do so for everybody, not for containers only")
	f.BoolVar(&c.IPTables, "iptables", true, "cannot be turned off: there are no iptables rules")
	f.BoolVar(&c.IP6Tables, "ip6tables", true, "cannot be turned off: there are no ip6tables rules")
	f.BoolVar(&c.UserlandProxy, "userland-proxy", true, "copy connections that the kernel cannot translate: by IPv6 to containers without it, and to [::1]")
	f.BoolVar(&c.AllowDirectRouting, "allow-direct-routing", false, "published ports are open at containers' own addresses too")
	f.StringVar(&c.BridgeAcceptFwMark, "bridge-accept-fwmark", "", "let packets with this firewall mark (MARK[/MASK]) in to containers")
	f.StringVar(&c.FirewallBackend, "firewall-backend", "", "nftables, the only one")
	f.StringArrayVar(&c.DNS, "dns", nil, "name server of containers that name none")
	f.StringArrayVar(&c.DNSOptions, "dns-opt", nil, "option for resolv.conf of containers that name none")
	f.StringArrayVar(&c.DNSSearch, "dns-search", nil, "search domain of containers that name none")
	f.StringArrayVar(&c.HostGatewayIPs, "host-gateway-ip", nil, "address that host-gateway stands for in --add-host (default: the container's gateway)")
	f.StringArrayVar(options, "default-network-opt", nil, "DRIVER=KEY=VALUE option of new networks")
}
