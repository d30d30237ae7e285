package membership

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// DefaultPort is where managers serve nodes and each other.
const DefaultPort = 2377

// iface is an interface of the host with what matters for choosing an address.
type iface struct {
	name  string
	up    bool
	loop  bool
	addrs []netip.Addr
}

func hostInterfaces() ([]iface, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	out := make([]iface, 0, len(list))
	for _, i := range list {
		x := iface{name: i.Name, up: i.Flags&net.FlagUp != 0, loop: i.Flags&net.FlagLoopback != 0}
		addrs, err := i.Addrs()
		if err != nil {
			continue // gone meanwhile
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				x.addrs = append(x.addrs, p.Addr().Unmap())
			}
		}
		out = append(out, x)
	}
	return out, nil
}

// resolver turns what users write for addresses into addresses, by Docker's rules.
type resolver struct {
	interfaces []iface
	own        []netip.Prefix // subnets of the host's own bridges
}

func (m *Membership) resolver() (resolver, error) {
	list, err := hostInterfaces()
	if err != nil {
		return resolver{}, fault.New(fault.Internal, "list the host's interfaces: %w", err)
	}
	r := resolver{interfaces: list}
	if m.cfg.OwnSubnets != nil {
		r.own = m.cfg.OwnSubnets()
	}
	return r, nil
}

var errNotAnAddress = errors.New("neither an address nor an interface")

// input resolves an interface's name or an IP address.
func (r resolver) input(s string) (netip.Addr, error) {
	for _, i := range r.interfaces {
		if i.name == s {
			return i.only()
		}
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, errNotAnAddress
	}
	return a.Unmap(), nil
}

// only returns the one address of an interface, the IPv4 one where it has one of each family.
func (i iface) only() (netip.Addr, error) {
	var v4, v6 netip.Addr
	for _, a := range i.addrs {
		slot, family := &v6, "IPv6"
		if a.Is4() {
			slot, family = &v4, "IPv4"
		} else if a.IsLinkLocalUnicast() {
			continue
		}
		if slot.IsValid() {
			return netip.Addr{}, fault.New(fault.InvalidArgument, "interface %s has more than one %s address (%s and %s)", i.name, family, *slot, a)
		}
		*slot = a
	}
	switch {
	case v4.IsValid():
		return v4, nil
	case v6.IsValid():
		return v6, nil
	}
	return netip.Addr{}, fault.New(fault.InvalidArgument, "interface %s has no usable IPv4 or IPv6 address", i.name)
}

// splitPort splits ADDR, ADDR:PORT, [ADDR6]:PORT or INTERFACE:PORT. port is 0 when none is given.
func splitPort(s string) (host string, port uint16, err error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.String(), 0, nil // an IPv6 address has colons of its own
	}
	h, p, err := net.SplitHostPort(s)
	if err != nil {
		if strings.Contains(s, ":") {
			return "", 0, err
		}
		return s, 0, nil
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, errors.New("port " + p + " is not a number up to 65535")
	}
	return h, uint16(n), nil
}

// listen resolves the address to listen on; "" is every address, on the default port. Port 0 is left to the kernel.
func (r resolver) listen(s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), DefaultPort), nil
	}
	host, port, err := splitPort(s)
	if err != nil {
		return netip.AddrPort{}, fault.New(fault.InvalidArgument, "could not parse listen address %s: %w", s, err)
	}
	if port == 0 && !strings.HasSuffix(s, ":0") {
		port = DefaultPort
	}
	addr := netip.IPv4Unspecified()
	if host != "" {
		if addr, err = r.input(host); errors.Is(err, errNotAnAddress) {
			err = fault.New(fault.InvalidArgument, "listen address must be an IP address or network interface (with optional port number), not %q", s)
		}
	}
	return netip.AddrPortFrom(addr, port), err
}

// advertise resolves the address that others are told. port is the one listened on.
func (r resolver) advertise(s string, listen netip.AddrPort) (netip.AddrPort, error) {
	if s == "" {
		if !listen.Addr().IsUnspecified() {
			return listen, nil
		}
		a, err := r.only()
		return netip.AddrPortFrom(a, listen.Port()), err
	}
	host, port, err := splitPort(s)
	if err != nil {
		return netip.AddrPort{}, fault.New(fault.InvalidArgument, "could not parse advertise address %s: %w", s, err)
	}
	addr, err := r.input(host)
	if errors.Is(err, errNotAnAddress) || err == nil && addr.IsUnspecified() {
		return netip.AddrPort{}, fault.New(fault.InvalidArgument, "advertise address must be a non-zero IP address or network interface (with optional port number), not %q", s)
	}
	return netip.AddrPortFrom(addr, cmp.Or(port, listen.Port())), err
}

// dataPath resolves the address for traffic between containers; "" is the advertised one.
func (r resolver) dataPath(s string, advertised netip.Addr) (netip.Addr, error) {
	if s == "" {
		return advertised, nil
	}
	addr, err := r.input(s)
	if errors.Is(err, errNotAnAddress) || err == nil && addr.IsUnspecified() {
		return netip.Addr{}, fault.New(fault.InvalidArgument, "data path address must be a non-zero IP address or network interface (without a port number), not %q", s)
	}
	return addr, err
}

// only returns the host's one address: not loopback, not link-local, not of a bridge of its own.
func (r resolver) only() (netip.Addr, error) {
	var found netip.Addr
	var where string
	for _, i := range r.interfaces {
		if !i.up || i.loop {
			continue
		}
		var v4, v6 netip.Addr
		own := false
		for _, a := range i.addrs {
			if !a.IsGlobalUnicast() {
				continue
			}
			for _, p := range r.own {
				own = own || p.Contains(a)
			}
			slot := &v6
			if a.Is4() {
				slot = &v4
			}
			if slot.IsValid() && !own {
				return netip.Addr{}, fault.New(fault.InvalidArgument, "could not choose an IP address to advertise since this system has multiple addresses on interface %s (%s and %s) - specify one with --advertise-addr", i.name, *slot, a)
			}
			*slot = a
		}
		a := v4
		if !a.IsValid() {
			a = v6
		}
		if own || !a.IsValid() {
			continue
		}
		if found.IsValid() {
			return netip.Addr{}, fault.New(fault.InvalidArgument, "could not choose an IP address to advertise since this system has multiple addresses on different interfaces (%s on %s and %s on %s) - specify one with --advertise-addr", found, where, a, i.name)
		}
		found, where = a, i.name
	}
	if !found.IsValid() {
		return netip.Addr{}, fault.New(fault.InvalidArgument, "could not find the system's IP address - specify one with --advertise-addr")
	}
	return found, nil
}

// remote completes the address of a manager with the default port.
func remote(s string) (string, error) {
	host, port, err := splitPort(strings.TrimSpace(s))
	if err != nil || host == "" {
		return "", fault.New(fault.InvalidArgument, "%q is not the address of a manager: want HOST or HOST:PORT", s)
	}
	return net.JoinHostPort(host, strconv.Itoa(int(cmp.Or(port, DefaultPort)))), nil
}
