package network

import (
	"cmp"
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
		if p.HostPort == 0 {
			continue // it is nothing of the host's
		}
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

// rebind reserves ports anew where the endpoints that carry them now ask for other addresses of the host than those
// before, or for none. A port that was any free one stays the same if it can.
func (m *Manager) rebind(sb *sandbox) error {
	if len(sb.Spec.Ports) == 0 || sb.NetNS == "" {
		return nil
	}
	to := m.bindTo(sb)
	if to.kind() == sb.BoundAs {
		return nil
	}
	was := sb.Bound
	if err := m.releasePorts(sb); err != nil {
		return err
	}
	return m.reservePorts(sb, was)
}

// reservePorts takes the host ports that the sandbox's spec asks for, of any free ones those it had. Nothing is
// translated yet.
func (m *Manager) reservePorts(sb *sandbox, was []BoundPort) error {
	if len(sb.Spec.Ports) == 0 || sb.NetNS == "" {
		return nil
	}
	to := m.bindTo(sb)
	m.mu.Lock()
	sb.BoundAs = to.kind()
	m.mu.Unlock()
	if to.closed {
		return nil // as Docker does: nothing is published on an internal network
	}
	return m.host.Do(func() error {
		for _, pb := range sb.Spec.Ports {
			if err := checkBinding(&pb); err != nil {
				return err
			}
			addrs, routed := to.addresses(pb.HostIP)
			var bound []BoundPort
			if len(addrs) > 0 {
				got, err := m.ports.reserve(sb.Spec.ID, again(pb, was), addrs, !pb.HostIP.IsValid())
				if err != nil && pb.HostPort == 0 {
					got, err = m.ports.reserve(sb.Spec.ID, pb, addrs, !pb.HostIP.IsValid())
				}
				if err != nil {
					return fault.As(fault.KindOf(err), fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w",
						sb.Spec.Owner, sb.Spec.ID, err))
				}
				bound = append(bound, got...)
			}
			for _, a := range routed {
				bound = append(bound, BoundPort{Protocol: pb.Protocol, Port: pb.Port, HostIP: a})
			}
			m.mu.Lock()
			for _, b := range bound {
				if b.HostPort != 0 || !slices.Contains(sb.Bound, b) {
					sb.Bound = append(sb.Bound, b)
				}
			}
			m.mu.Unlock()
		}
		return nil
	})
}

// again asks for the host port that a binding to any free one had.
func again(pb PortBinding, was []BoundPort) PortBinding {
	for _, p := range was {
		if pb.HostPort == 0 && p.Protocol == pb.Protocol && p.Port == pb.Port {
			pb.HostPort = p.HostPort
		}
	}
	return pb
}

// bindTo says on which of the host's addresses a sandbox's ports are published.
type bindTo struct {
	m        *Manager
	v4, v6   *joined // who carries them
	fallback netip.Addr
	closed   bool // nowhere
}

func (m *Manager) bindTo(sb *sandbox) bindTo {
	to := bindTo{m: m, closed: len(sb.Joined) > 0}
	to.v4, to.v6 = sb.carriers()
	for _, j := range sb.Joined {
		to.closed = to.closed && m.networkOf(&j.Endpoint).closed()
	}
	for _, j := range []*joined{to.v6, to.v4} {
		if j != nil {
			to.fallback = m.networkOf(&j.Endpoint).bridge().bind
		}
	}
	return to
}

// kind is the same for sandboxes whose ports are published on the same addresses.
func (b bindTo) kind() string {
	kind := fmt.Sprint(b.closed, " ", b.fallback)
	if b.v4 != nil {
		kind += " 4:" + string(b.v4.mode4)
	}
	if b.v6 != nil {
		kind += " 6:" + string(b.v6.mode6)
	}
	return kind
}

// addresses are those of the host that a binding to host takes a port of, and, unspecified, one for each version of IP in
// which the container's own address has the port and nothing of the host does.
func (b bindTo) addresses(host netip.Addr) (addrs, routed []netip.Addr) {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	if !host.IsValid() {
		host = b.fallback
	}
	none := b.v4 == nil && b.v6 == nil // what carries the ports may be connected later
	switch is4 := !host.IsValid() || host.Is4(); {
	case !is4:
	case b.v4 != nil && b.v4.mode4 == modeRouted:
		routed = append(routed, any4)
	case b.v4 != nil || none:
		addrs = append(addrs, orAny(host, any4))
	}
	both := !host.IsValid() || host == any4 && b.fallback == any4
	switch {
	case !both && !host.Is6():
	case b.v6 != nil && b.v6.mode6 == modeRouted:
		routed = append(routed, any6)
	case b.v6 != nil || !b.m.cfg.NoProxy && (none || b.v4 != nil && b.v4.mode4 != modeRouted):
		if !host.Is6() {
			host = any6
		}
		addrs = append(addrs, host)
	}
	return addrs, routed
}

func orAny(a, unspecified netip.Addr) netip.Addr {
	if !a.IsValid() {
		return unspecified
	}
	return a
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

// published is how the kernel translates the sandbox's published ports, given who carries them, and where they are open
// without translation.
func (sb *sandbox) published() publication {
	v4, v6 := sb.carriers()
	out := publication{sandbox: sb.Spec.ID}
	for _, p := range sb.Bound {
		var to netip.Addr
		if p.HostIP.Is4() && v4 != nil && v4.mode4 != modeRouted {
			to = v4.IPv4.Addr()
		} else if p.HostIP.Is6() && v6 != nil && v6.mode6 != modeRouted && !p.HostIP.IsLoopback() {
			to = v6.IPv6.Addr()
		}
		if to.IsValid() && p.HostPort != 0 {
			out.mappings = append(out.mappings, mapping{
				front: front{proto: protocols[p.Protocol], host: netip.AddrPortFrom(p.HostIP, p.HostPort)},
				to:    netip.AddrPortFrom(to, p.Port)})
		}
	}
	if len(sb.Bound) == 0 {
		return out
	}
	for _, j := range sb.Joined {
		for _, pb := range sb.Spec.Ports {
			proto := protocols[cmp.Or(pb.Protocol, "tcp")]
			for _, a := range []struct {
				open bool
				addr netip.Addr
			}{{j.open4, j.IPv4.Addr()}, {j.open6, j.IPv6.Addr()}} {
				if o := (opening{proto, netip.AddrPortFrom(a.addr, pb.Port)}); a.open && a.addr.IsValid() && !slices.Contains(out.open, o) {
					out.open = append(out.open, o)
				}
			}
		}
	}
	return out
}

// proxied is where the proxy sends what comes to a bound port's socket, past all translation; invalid: nowhere.
func (sb *sandbox) proxied(p BoundPort) netip.AddrPort {
	if p.HostIP.Is4() {
		return netip.AddrPort{}
	}
	v4, v6 := sb.carriers()
	switch {
	case v6 != nil && (v4 == nil || !p.HostIP.IsLoopback()):
		return netip.AddrPortFrom(v6.IPv6.Addr(), p.Port)
	case v4 != nil:
		return netip.AddrPortFrom(v4.IPv4.Addr(), p.Port)
	}
	return netip.AddrPort{}
}

// publishPorts makes the reserved ports reach the sandbox, by the endpoint that carries them now.
func (m *Manager) publishPorts(sb *sandbox) error {
	if len(sb.Bound) == 0 {
		return nil
	}
	want := sb.published()
	if err := m.fw.publish(want); err != nil {
		return err
	}
	if !m.cfg.NoProxy {
		m.ports.proxies(sb.Spec.ID, m.dialFromHost, sb.proxied)
	}
	m.forgetUDP(want.mappings)
	return nil
}

// unpublish takes the translation away; the ports stay reserved.
func (m *Manager) unpublish(sb *sandbox) error {
	if len(sb.Bound) == 0 {
		return nil
	}
	gone := sb.published()
	m.ports.proxies(sb.Spec.ID, m.dialFromHost, func(BoundPort) netip.AddrPort { return netip.AddrPort{} })
	err := m.fw.unpublish(gone)
	m.forgetUDP(gone.mappings)
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
