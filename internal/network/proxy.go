package network

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// hostSocket holds a port of the host. Packets to it are translated before they could reach it, but for those by IPv6
// that the kernel cannot translate, which a proxy accepts.
type hostSocket struct{ file *os.File }

// Close gives the port back.
func (s *hostSocket) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// openHostSocket takes a port in the calling thread's namespace; port 0 is the kernel's choice.
func openHostSocket(proto string, addr netip.Addr, port uint16) (_ *hostSocket, got uint16, err error) {
	domain, kind, protocol := unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP
	if addr.Is6() {
		domain = unix.AF_INET6
	}
	switch proto {
	case "udp":
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case "sctp":
		protocol = unix.IPPROTO_SCTP
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if proto == "sctp" && (errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT)) {
		// A host that does not speak it, and translates it all the same: no program can have the port.
		if port == 0 {
			port = uint16(32768 + rand.IntN(28000))
		}
		return &hostSocket{}, port, nil
	} else if err != nil {
		return nil, 0, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if domain == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return nil, 0, os.NewSyscallError("setsockopt", err)
		}
	}
	if proto != "udp" {
		// Connections of an earlier listener that still linger are no reason to refuse. (With UDP it would let two
		// programs have the port.)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: addr4(addr), Port: int(port)}
	if addr.Is6() {
		sa = &unix.SockaddrInet6{Addr: addr.As16(), Port: int(port)}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return nil, 0, os.NewSyscallError("bind", err)
	}
	if proto != "udp" {
		// Only a listening socket keeps off others that also ask to reuse addresses.
		if err := unix.Listen(fd, 128); err != nil {
			return nil, 0, os.NewSyscallError("listen", err)
		}
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nil, 0, os.NewSyscallError("getsockname", err)
	}
	switch l := local.(type) {
	case *unix.SockaddrInet4:
		got = uint16(l.Port)
	case *unix.SockaddrInet6:
		got = uint16(l.Port)
	}
	return &hostSocket{file: os.NewFile(uintptr(fd), fmt.Sprintf("port %s/%s", netip.AddrPortFrom(addr, got), proto))}, got, nil
}

func addr4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

// dialer connects from the host's namespace.
type dialer func(network string, to netip.AddrPort) (net.Conn, error)

func (m *Manager) dialFromHost(network string, to netip.AddrPort) (c net.Conn, err error) {
	err = m.host.Do(func() error {
		c, err = net.Dial(network, to.String())
		return err
	})
	return c, err
}

// proxy copies connections.
type proxy struct {
	l     net.Listener
	mu    sync.Mutex
	conns map[net.Conn]bool
	ended bool
}

// startProxy accepts what comes to the socket and copies it to and from the target.
func startProxy(proto string, s *hostSocket, dial dialer, to netip.AddrPort) io.Closer {
	switch {
	case s.file == nil || proto == "sctp":
		return nil
	case proto == "udp":
		return startRelay(s, dial, to)
	}
	l, err := net.FileListener(s.file) // a duplicate: the port stays reserved when the proxy ends
	if err != nil {
		return nil
	}
	p := &proxy{l: l, conns: map[net.Conn]bool{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c, dial, to)
		}
	}()
	return p
}

func (p *proxy) serve(c net.Conn, dial dialer, to netip.AddrPort) {
	defer func() { _ = c.Close() }()
	if !p.track(c, true) {
		return
	}
	defer p.track(c, false)
	out, err := dial("tcp", to)
	if err != nil {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0) // the client sees a reset, as it would from a closed port
		}
		return
	}
	defer func() { _ = out.Close() }()
	if !p.track(out, true) {
		return
	}
	defer p.track(out, false)
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, out}, {out, c}} {
		wg.Go(func() {
			_, _ = io.Copy(way[1], way[0])
			if tc, ok := way[1].(*net.TCPConn); ok {
				_ = tc.CloseWrite()
			}
		})
	}
	wg.Wait()
}

func (p *proxy) track(c net.Conn, on bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !on {
		delete(p.conns, c)
	} else if !p.ended {
		p.conns[c] = true
	}
	return !p.ended
}

// Close ends the proxy and its connections.
func (p *proxy) Close() error {
	err := p.l.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for c := range p.conns {
		_ = c.Close()
	}
	return err
}

// relay copies datagrams, each client's by a socket of its own.
type relay struct {
	in    net.PacketConn
	mu    sync.Mutex
	flows map[string]net.Conn // by client
	ended bool
}

const (
	// flowIdle ends a client's flow that is silent, as connection tracking would.
	flowIdle = 90 * time.Second
	maxFlows = 1024
)

func startRelay(s *hostSocket, dial dialer, to netip.AddrPort) io.Closer {
	in, err := net.FilePacketConn(s.file)
	if err != nil {
		return nil
	}
	r := &relay{in: in, flows: map[string]net.Conn{}}
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := in.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			} else if err != nil {
				continue // a client that has gone
			}
			if out := r.flow(from, dial, to); out != nil {
				_ = out.SetReadDeadline(time.Now().Add(flowIdle))
				_, _ = out.Write(buf[:n])
			}
		}
	}()
	return r
}

// flow is the client's socket to the target.
func (r *relay) flow(from net.Addr, dial dialer, to netip.AddrPort) net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if out := r.flows[from.String()]; out != nil || r.ended || len(r.flows) >= maxFlows {
		return out
	}
	out, err := dial("udp", to)
	if err != nil {
		return nil
	}
	r.flows[from.String()] = out
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := out.Read(buf)
			if err != nil {
				break // silent for long, or the port of the target is closed
			}
			_, _ = r.in.WriteTo(buf[:n], from)
		}
		r.mu.Lock()
		delete(r.flows, from.String())
		r.mu.Unlock()
		_ = out.Close()
	}()
	return out
}

// Close ends the relay and its flows.
func (r *relay) Close() error {
	err := r.in.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	for _, out := range r.flows {
		_ = out.Close()
	}
	return err
}

// flowsTo matches tracked flows to published ports.
type flowsTo []mapping

// MatchConntrackFlow is for netlink's conntrack filter.
func (f flowsTo) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, m := range f {
		dst, ok := netip.AddrFromSlice(flow.Forward.DstIP)
		if !ok || nft.Proto(flow.Forward.Protocol) != m.proto || flow.Forward.DstPort != m.host.Port() {
			continue
		}
		if dst = dst.Unmap(); dst.Is6() == m.host.Addr().Is6() && (m.host.Addr().IsUnspecified() || m.host.Addr() == dst) {
			return true
		}
	}
	return false
}

// forgetFlows removes tracked flows, in the calling thread's namespace.
func forgetFlows(ms []mapping) error {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("connection tracking: %w", err)
	}
	defer h.Close()
	for _, v6 := range []bool{false, true} {
		var part flowsTo
		for _, m := range ms {
			if m.host.Addr().Is6() == v6 {
				part = append(part, m)
			}
		}
		family := netlink.InetFamily(unix.AF_INET)
		if v6 {
			family = unix.AF_INET6
		}
		if len(part) == 0 {
			continue
		}
		if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, part); err != nil {
			return fmt.Errorf("connection tracking: %w", err)
		}
	}
	return nil
}
