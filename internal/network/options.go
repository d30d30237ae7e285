package network

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// The options of networks, in Docker's names.
const (
	optBridgeName  = "com.docker.network.bridge.name"
	optICC         = "com.docker.network.bridge.enable_icc"
	optMasquerade  = "com.docker.network.bridge.enable_ip_masquerade"
	optHostIP      = "com.docker.network.bridge.host_binding_ipv4"
	optMode4       = "com.docker.network.bridge.gateway_mode_ipv4"
	optMode6       = "com.docker.network.bridge.gateway_mode_ipv6"
	optInhibit4    = "com.docker.network.bridge.inhibit_ipv4"
	optTrusted     = "com.docker.network.bridge.trusted_host_interfaces"
	optDefault     = "com.docker.network.bridge.default_bridge"
	optMTU         = "com.docker.network.driver.mtu"
	optIfacePrefix = "com.docker.network.container_iface_prefix"
	optSource4     = "com.docker.network.host_ipv4"
	optSource6     = "com.docker.network.host_ipv6"
	optTellCount   = "com.docker.network.advertise_addr_nmsgs"
	optTellEvery   = "com.docker.network.advertise_addr_ms"
	optEnableIPv4  = "com.docker.network.enable_ipv4"
	optEnableIPv6  = "com.docker.network.enable_ipv6"

	optParent      = "parent"
	optMacvlanMode = "macvlan_mode"
	optIPvlanMode  = "ipvlan_mode"
	optIPvlanFlag  = "ipvlan_flag"
)

// auxGateway4 and auxGateway6 are names of auxiliary addresses that stand for the containers' gateway, where that is not
// the bridge.
const (
	auxGateway4 = "DefaultGatewayIPv4"
	auxGateway6 = "DefaultGatewayIPv6"
)

// gatewayMode is how the containers of a bridge network reach and are reached from outside, for one version of IP.
type gatewayMode string

// The gateway modes.
const (
	// modeNAT: what leaves has the host's address; what is published is translated; nothing else comes in.
	modeNAT gatewayMode = "nat"
	// modeUnprotected is modeNAT, but packets that are routed to a container's own address reach every port of it.
	modeUnprotected gatewayMode = "nat-unprotected"
	// modeRouted translates nothing: containers have their own addresses outside too, where published ports are open.
	modeRouted gatewayMode = "routed"
	// modeIsolated is of internal networks: the host has no address on the bridge.
	modeIsolated gatewayMode = "isolated"
)

// bridgeOptions are the options of a bridge network, read.
type bridgeOptions struct {
	name             string // of the interface; empty: made from the network's ID
	icc, masquerade  bool
	mode4, mode6     gatewayMode
	inhibit4         bool     // the bridge gets no IPv4 address
	trusted          []string // interfaces from which published ports are reached at the containers' own addresses
	bind             netip.Addr
	source4, source6 netip.Addr // of what leaves; invalid: that of the interface it leaves by
	mtu              int        // 0: the default
	ifacePrefix      string
}

// readBridge reads the options of a bridge network. Those that it does not know are left to whoever put them there.
func readBridge(options map[string]string) (bridgeOptions, error) {
	o := bridgeOptions{icc: true, masquerade: true, mode4: modeNAT, mode6: modeNAT}
	for name, value := range options {
		var err error
		switch name {
		case optBridgeName:
			if o.name = value; len(value) > 15 || strings.ContainsAny(value, "/ :") {
				return o, fault.New(fault.InvalidArgument, "invalid bridge name %q: an interface name has at most 15 characters, no slash, colon or space", value)
			}
		case optICC:
			o.icc, err = strconv.ParseBool(value)
		case optMasquerade:
			o.masquerade, err = strconv.ParseBool(value)
		case optInhibit4:
			o.inhibit4, err = strconv.ParseBool(value)
		case optMode4:
			o.mode4, err = readMode(value)
		case optMode6:
			o.mode6, err = readMode(value)
		case optTrusted:
			o.trusted = strings.FieldsFunc(value, func(r rune) bool { return r == ':' })
		case optHostIP:
			o.bind, err = netip.ParseAddr(value)
		case optSource4:
			if o.source4, err = netip.ParseAddr(value); err == nil && !o.source4.Is4() {
				err = fault.New(fault.InvalidArgument, "it is no IPv4 address")
			}
		case optSource6:
			if o.source6, err = netip.ParseAddr(value); err == nil && !o.source6.Is6() {
				err = fault.New(fault.InvalidArgument, "it is no IPv6 address")
			}
		case optIfacePrefix:
			if o.ifacePrefix = value; len(value) > 12 || strings.ContainsAny(value, "/ :") {
				err = fault.New(fault.InvalidArgument, "an interface name has at most 15 characters, no slash, colon or space")
			}
		case optTellCount, optTellEvery: // an address is announced once, where it has to be; see announcer
			err = checkTelling(name, value)
			if err != nil {
				return o, err
			}
		case optMTU:
			if o.mtu, err = strconv.Atoi(value); err == nil && o.mtu != 0 && (o.mtu < 68 || o.mtu > 65535) {
				err = fault.New(fault.InvalidArgument, "an MTU is from 68 to 65535")
			}
		}
		if err != nil {
			return o, fault.New(fault.InvalidArgument, "failed to parse %s value: %v (%q)", name, err, value)
		}
	}
	return o, nil
}

func checkTelling(name, value string) error {
	low, high, unit := 0, 3, "an integer"
	if name == optTellEvery {
		low, high, unit = 100, 2000, "integer milliseconds"
	}
	v, err := strconv.Atoi(value)
	switch {
	case err != nil:
		return fault.New(fault.InvalidArgument, "value for option %s %q must be %s", name, value, unit)
	case v < low || v > high:
		return fault.New(fault.InvalidArgument, "%s must be in the range %d to %d", name, low, high)
	}
	return nil
}

func readMode(s string) (gatewayMode, error) {
	switch m := gatewayMode(s); m {
	case modeNAT, modeUnprotected, modeRouted, modeIsolated:
		return m, nil
	}
	return "", fault.New(fault.InvalidArgument, "unknown gateway mode %s", s)
}

// bridge are the options of a bridge network, which were right when it was made.
func (n *Network) bridge() bridgeOptions {
	o, _ := readBridge(n.Spec.Options)
	return o
}

// mode is the gateway mode for a version of IP; empty for a network that publishes nothing.
func (n *Network) mode(v6 bool) gatewayMode {
	switch o := n.bridge(); {
	case n.Spec.Driver != DriverBridge || n.Scope != ScopeLocal || n.Spec.Internal:
		return ""
	case v6:
		return o.mode6
	default:
		return o.mode4
	}
}

// hostAddress is the address that the host has in a subnet of a bridge network; invalid if it has none.
func (n *Network) hostAddress(c subnet) netip.Addr {
	o := n.bridge()
	mode := o.mode4
	if c.Subnet.Addr().Is6() {
		mode = o.mode6
	} else if o.inhibit4 {
		return netip.Addr{}
	}
	if mode == modeIsolated {
		return netip.Addr{}
	}
	return c.Gateway
}

// gateway is where endpoints in a subnet of this host's network send what leaves it; invalid: nowhere.
func (n *Network) gateway(c subnet) netip.Addr {
	aux := auxGateway4
	if c.Subnet.Addr().Is6() {
		aux = auxGateway6
	}
	switch a := c.Aux[aux]; {
	case n.closed():
		return netip.Addr{}
	case a.IsValid():
		return a
	}
	return c.Gateway
}

// closed reports whether the network has no way out.
func (n *Network) closed() bool {
	return n.Spec.Internal || (n.Spec.Driver == DriverMacvlan || n.Spec.Driver == DriverIPvlan) && n.Spec.Options[optParent] == ""
}

// userDefined reports whether the network's containers find each other by name.
func (n *Network) userDefined() bool {
	switch n.Spec.Driver {
	case DriverOverlay, DriverMacvlan, DriverIPvlan:
		return true
	}
	return n.Spec.Driver == DriverBridge && n.Spec.Name != NameBridge && n.Spec.Name != gatewayBridge
}
