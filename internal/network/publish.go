package network

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// portBook knows which ports of the host are published, and holds a socket for each, so that no other program takes
// one and none that another program has is given out. It is safe for concurrent use.
type portBook struct {
	mu    sync.Mutex
	taken map[hostPort]string // to the sandbox
	held  map[string][]*held  // by sandbox
}

type hostPort struct {
	proto string
	addr  netip.Addr
	port  uint16
}

func (p hostPort) String() string { return netip.AddrPortFrom(p.addr, p.port).String() }

// held is a published port with its socket.
type held struct {
	BoundPort
	sock  *hostSocket // nil: another program has taken it while there was no daemon
	proxy io.Closer
}

func newPortBook() *portBook {
	return &portBook{taken: map[hostPort]string{}, held: map[string][]*held{}}
}

// conflict reports whether a port is published already, on the same address or on all.
func (b *portBook) conflict(p hostPort) bool {
	if _, ok := b.taken[p]; ok {
		return true
	}
	if !p.addr.IsUnspecified() {
		all := netip.IPv4Unspecified()
		if p.addr.Is6() {
			all = netip.IPv6Unspecified()
		}
		_, ok := b.taken[hostPort{p.proto, all, p.port}]
		return ok
	}
	for o := range b.taken {
		if o.proto == p.proto && o.port == p.port && o.addr.Is6() == p.addr.Is6() {
			return true
		}
	}
	return false
}

func (b *portBook) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, hs := range b.held {
		for _, h := range hs {
			h.close()
		}
	}
	clear(b.held)
	clear(b.taken)
}

func (h *held) close() {
	if h.proxy != nil {
		_ = h.proxy.Close()
	}
	if h.sock != nil {
		_ = h.sock.Close()
	}
}

func (b *portBook) release(sandbox string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.held[sandbox] {
		h.close()
		delete(b.taken, hostPort{h.Protocol, h.HostIP, h.HostPort})
	}
	delete(b.held, sandbox)
}

// reserve takes a port for a binding on each of the addresses, the same on all. Called in the host's namespace.
func (b *portBook) reserve(sandbox string, pb PortBinding, addrs []netip.Addr, implied6 bool) ([]BoundPort, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	first, last := int(pb.HostPort), int(max(pb.HostPort, pb.HostPortEnd))
	tries := last - first + 1
	if first == 0 {
		tries = 64 // ports that the kernel chooses
	}
	var err error
	for i := range tries {
		port := uint16(0)
		if first != 0 {
			port = uint16(first + i)
		}
		var hs []*held
		hs, err = b.try(pb, addrs, port, implied6)
		if err == nil {
			var out []BoundPort
			for _, h := range hs {
				b.taken[hostPort{h.Protocol, h.HostIP, h.HostPort}] = sandbox
				b.held[sandbox] = append(b.held[sandbox], h)
				out = append(out, h.BoundPort)
			}
			return out, nil
		}
		if !fault.Is(err, fault.AlreadyExists) {
			return nil, err
		}
	}
	if first != last && first != 0 {
		return nil, fault.New(fault.AlreadyExists, "Bind for %s:%d-%d failed: all ports are allocated", addrs[0], first, last)
	}
	return nil, err
}

func (b *portBook) try(pb PortBinding, addrs []netip.Addr, port uint16, implied6 bool) (_ []*held, err error) {
	var hs []*held
	defer func() {
		if err != nil {
			for _, h := range hs {
				h.close()
			}
		}
	}()
	for _, a := range addrs {
		if port != 0 && b.conflict(hostPort{pb.Protocol, a, port}) {
			return nil, fault.New(fault.AlreadyExists, "Bind for %s failed: port is already allocated", netip.AddrPortFrom(a, port))
		}
		s, got, err := openHostSocket(pb.Protocol, a, port)
		if err != nil && a.Is6() && implied6 && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
			continue // a host without IPv6
		}
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			return nil, fault.New(fault.AlreadyExists, "failed to bind host port %s/%s: address already in use", netip.AddrPortFrom(a, port), pb.Protocol)
		case err != nil:
			return nil, fault.New(fault.InvalidArgument, "failed to bind host port %s/%s: %w", netip.AddrPortFrom(a, port), pb.Protocol, err)
		case port == 0 && b.conflict(hostPort{pb.Protocol, a, got}):
			_ = s.Close()
			return nil, fault.New(fault.AlreadyExists, "Bind for %s failed: port is already allocated", netip.AddrPortFrom(a, got))
		}
		port = got
		hs = append(hs, &held{BoundPort: BoundPort{Protocol: pb.Protocol, Port: pb.Port, HostIP: a, HostPort: port}, sock: s})
	}
	return hs, nil
}

// claim takes ports that an earlier daemon had published. They stay published whatever happened meanwhile.
func (b *portBook) claim(sandbox string, ports []BoundPort) (lost []BoundPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range ports {
		h := &held{BoundPort: p}
		s, _, err := openHostSocket(p.Protocol, p.HostIP, p.HostPort)
		if err != nil {
			lost = append(lost, p)
		} else {
			h.sock = s
		}
		b.taken[hostPort{p.Protocol, p.HostIP, p.HostPort}] = sandbox
		b.held[sandbox] = append(b.held[sandbox], h)
	}
	return lost
}

// proxies runs the copying of what the kernel cannot translate: connections to [::1], and those by IPv6 to a sandbox
// that has no IPv6.
func (b *portBook) proxies(sandbox string, dial dialer, to func(BoundPort) netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.held[sandbox] {
		if h.proxy != nil {
			_ = h.proxy.Close()
			h.proxy = nil
		}
		if target := to(h.BoundPort); target.IsValid() && h.sock != nil {
			h.proxy = startProxy(h.Protocol, h.sock, dial, target)
		}
	}
}

var protocols = map[string]nft.Proto{"tcp": nft.TCP, "udp": nft.UDP, "sctp": nft.SCTP}

// reservePorts takes the host ports that the sandbox's spec asks for. Nothing is translated yet.
func (m *Manager) reservePorts(sb *sandbox) error {
	if len(sb.Spec.Ports) == 0 {
		return nil
	}
	fallback := netip.Addr{}
	if v4, _ := sb.gateways(); v4 != nil {
		n := m.networkOf(&v4.Endpoint)
		if a, err := netip.ParseAddr(n.Spec.Options[optHostIP]); err == nil && !a.IsUnspecified() {
			fallback = a
		}
	}
	internal := len(sb.Joined) > 0
	for _, j := range sb.Joined {
		internal = internal && m.networkOf(&j.Endpoint).Spec.Internal
	}
	if internal || sb.NetNS == "" {
		return nil // as Docker does: nothing is published on an internal network
	}
	return m.host.Do(func() error {
		for _, pb := range sb.Spec.Ports {
			if err := checkBinding(&pb); err != nil {
				return err
			}
			addrs, implied6 := []netip.Addr{pb.HostIP}, false
			switch {
			case !pb.HostIP.IsValid() && fallback.IsValid():
				addrs[0] = fallback
			case !pb.HostIP.IsValid():
				addrs, implied6 = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, true
			}
			bound, err := m.ports.reserve(sb.Spec.ID, pb, addrs, implied6)
			if err != nil {
				return fault.As(fault.KindOf(err), fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w",
					sb.Spec.Owner, sb.Spec.ID, err))
			}
			m.mu.Lock()
			sb.Bound = append(sb.Bound, bound...)
			m.mu.Unlock()
		}
		return nil
	})
}

func checkBinding(pb *PortBinding) error {
	if pb.Protocol == "" {
		pb.Protocol = "tcp"
	}
	pb.HostIP = pb.HostIP.Unmap()
	if _, ok := protocols[pb.Protocol]; !ok {
		return fault.New(fault.InvalidArgument, "invalid proto: %s: want tcp, udp or sctp", pb.Protocol)
	}
	if pb.Port == 0 {
		return fault.New(fault.InvalidArgument, "invalid container port 0: want 1 to 65535")
	}
	if pb.HostPortEnd != 0 && pb.HostPortEnd < pb.HostPort {
		return fault.New(fault.InvalidArgument, "invalid host port range %d-%d: the end is before the start", pb.HostPort, pb.HostPortEnd)
	}
	return nil
}

// mappings is how the kernel translates the sandbox's published ports, given who carries them.
func (sb *sandbox) mappings() []mapping {
	v4, v6 := sb.gateways()
	var out []mapping
	for _, p := range sb.Bound {
		var to netip.Addr
		if p.HostIP.Is4() && v4 != nil {
			to = v4.IPv4.Addr()
		} else if p.HostIP.Is6() && v6 != nil && !p.HostIP.IsLoopback() {
			to = v6.IPv6.Addr()
		}
		if to.IsValid() {
			out = append(out, mapping{
				front: front{proto: protocols[p.Protocol], host: netip.AddrPortFrom(p.HostIP, p.HostPort)},
				to:    netip.AddrPortFrom(to, p.Port)})
		}
	}
	return out
}

// proxied is where the proxy sends what comes to a bound port's socket, past all translation; invalid: nowhere.
func (sb *sandbox) proxied(p BoundPort) netip.AddrPort {
	if p.HostIP.Is4() {
		return netip.AddrPort{}
	}
	v4, v6 := sb.gateways()
	switch {
	case v4 != nil:
		return netip.AddrPortFrom(v4.IPv4.Addr(), p.Port)
	case v6 != nil:
		return netip.AddrPortFrom(v6.IPv6.Addr(), p.Port)
	}
	return netip.AddrPort{}
}

// publishPorts makes the reserved ports reach the sandbox, by the endpoint that carries them now.
func (m *Manager) publishPorts(sb *sandbox) error {
	if len(sb.Bound) == 0 {
		return nil
	}
	want := sb.mappings()
	if err := m.fw.publish(want); err != nil {
		return err
	}
	m.ports.proxies(sb.Spec.ID, m.dialFromHost, sb.proxied)
	m.forgetUDP(want)
	return nil
}

// unpublish takes the translation away; the ports stay reserved.
func (m *Manager) unpublish(sb *sandbox) error {
	if len(sb.Bound) == 0 {
		return nil
	}
	gone := sb.mappings()
	m.ports.proxies(sb.Spec.ID, m.dialFromHost, func(BoundPort) netip.AddrPort { return netip.AddrPort{} })
	err := m.fw.unpublish(gone)
	m.forgetUDP(gone)
	return err
}

// releasePorts unpublishes and gives the ports back.
func (m *Manager) releasePorts(sb *sandbox) error {
	err := m.unpublish(sb)
	m.ports.release(sb.Spec.ID)
	m.mu.Lock()
	sb.Bound = nil
	m.mu.Unlock()
	return err
}

// forgetUDP removes tracked UDP flows to ports whose translation has changed: a flow goes on as it was translated at its
// first packet, for as long as packets come.
func (m *Manager) forgetUDP(ms []mapping) {
	ms = slices.DeleteFunc(slices.Clone(ms), func(x mapping) bool { return x.proto != nft.UDP })
	if len(ms) == 0 {
		return
	}
	if err := m.host.Do(func() error { return forgetFlows(ms) }); err != nil {
		m.log.Warn("cannot remove tracked UDP flows of a published port", "error", err)
	}
}
