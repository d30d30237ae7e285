package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNetworkConfiguration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	text := `{"bip": "10.1.0.1/24", "fixed-cidr": "10.1.0.128/25", "default-gateway": "10.1.0.9", "ipv6": true, "bip6": "fd01::1/64", "fixed-cidr-v6": "fd01::/80",
		"default-gateway-v6": "fd01::9", "icc": false, "ip-masq": false, "ip": "10.99.0.1", "ip-forward": false, "ip-forward-no-drop": true, "userland-proxy": false,
		"allow-direct-routing": true, "bridge-accept-fwmark": "1/3", "iptables": true, "dns": ["10.0.0.53"], "dns-opts": ["ndots:2"], "dns-search": ["example.org"],
		"host-gateway-ips": ["10.0.0.1", "fd00::1"], "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1400"}}, "firewall-backend": "nftables"}`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := Default()
	if err := c.ReadFile(path, func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	n := c.Networks()
	b := n.Bridge
	if b.BIP.String() != "10.1.0.1/24" || b.FixedCIDR.Bits() != 25 || b.Gateway4.String() != "10.1.0.9" || !b.IPv6 || b.BIP6.String() != "fd01::1/64" ||
		b.FixedCIDR6.Bits() != 80 || b.Gateway6.String() != "fd01::9" || !b.NoICC || !b.NoMasquerade || b.Bind != netip.MustParseAddr("10.99.0.1") {
		t.Errorf("bridge: %+v", b)
	}
	if !n.NoForwarding || !n.OpenForwarding || !n.NoProxy || !n.DirectRouting || n.AcceptMark != "1/3" || n.DefaultOptions["bridge"]["com.docker.network.driver.mtu"] != "1400" {
		t.Errorf("%+v", n)
	}
	if d := c.Network; len(d.DNS) != 1 || len(d.DNSOptions) != 1 || len(d.DNSSearch) != 1 || len(d.HostGateways()) != 2 {
		t.Errorf("%+v", d)
	}
	plain := Default()
	if n := plain.Networks(); n.NoProxy || n.NoForwarding || n.Bridge.NoICC || n.Bridge.NoMasquerade || n.Bridge.Disabled {
		t.Errorf("without flags: %+v", n)
	}
	none := Default()
	none.Network.Bridge = "none"
	if n := none.Networks(); !n.Bridge.Disabled || n.Bridge.Link != "" {
		t.Errorf("--bridge none: %+v", n.Bridge)
	}
}

func TestNetworkConfigurationIsRefused(t *testing.T) {
	for want, edit := range map[string]func(*Config){
		"--bip6":                 func(c *Config) { c.Network.BIP6 = "10.0.0.1/8" },
		"--fixed-cidr-v6":        func(c *Config) { c.Network.FixedCIDR6 = "ff02::/64" },
		"--default-gateway":      func(c *Config) { c.Network.DefaultGateway = "fd00::1" },
		"--ip ":                  func(c *Config) { c.Network.IP = "here" },
		"--dns":                  func(c *Config) { c.Network.DNS = []string{"ns.example.org"} },
		"--host-gateway-ip":      func(c *Config) { c.Network.HostGatewayIPs = []string{"x"} },
		"--bridge and --bip":     func(c *Config) { c.Network.Bridge, c.BIP = "br0", "10.0.0.1/24" },
		"no iptables rules":      func(c *Config) { c.Network.IPTables = false },
		"there is nftables only": func(c *Config) { c.Network.FirewallBackend = "iptables" },
		"at most 15 characters":  func(c *Config) { c.Network.Bridge = "a-name-that-is-too-long" },
	} {
		c := Default()
		edit(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, text := range []string{"", "bridge", "bridge=mtu", "=a=b", "bridge==b"} {
		if err := new(Network).ParseDefaultOption(text); err == nil {
			t.Errorf("--default-network-opt %q is taken", text)
		}
	}
}
