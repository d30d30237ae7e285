// Package nettest makes hosts and sandboxes for the tests of networks: namespaces that are joined by a switch with no
// way out, and programs in them that say who they are. Nothing touches the namespace that the test runs in.
package nettest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// RequireRoot skips the test without root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
}

// Lab is a switch that hosts are joined to, 10.99.0.0/24.
type Lab struct {
	t    testing.TB
	dir  string
	ns   *Space
	next int
}

// Space is a namespace: a host's, or a sandbox's.
type Space struct {
	*netns.NS
	Name string
	Dir  string     // a host's own folder
	Addr netip.Addr // a host's, on the switch
	t    testing.TB
}

// New makes a lab that goes with the test.
func New(t testing.TB) *Lab {
	t.Helper()
	RequireRoot(t)
	l := &Lab{t: t, dir: t.TempDir()}
	l.ns = l.Space("switch")
	l.ns.with(func(h *netlink.Handle) error {
		_, err := link.AddBridge(h, link.Bridge{Name: "lan", MTU: 1500})
		return errors.Join(err, link.Up(h, "lan"))
	})
	return l
}

// Space makes a namespace with loopback only.
func (l *Lab) Space(name string) *Space {
	l.t.Helper()
	dir := filepath.Join(l.dir, name)
	ns, err := netns.Create(filepath.Join(dir, "ns"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = ns.Close()
		if err := netns.Remove(filepath.Join(dir, "ns")); err != nil {
			l.t.Error(err)
		}
	})
	s := &Space{NS: ns, Name: name, Dir: dir, t: l.t}
	s.with(func(h *netlink.Handle) error { return link.Up(h, "lo") })
	return s
}

// Host makes a host on the switch: 10.99.0.1, 10.99.0.2, …
func (l *Lab) Host(name string) *Space {
	l.t.Helper()
	s := l.Space(name)
	l.next++
	s.Addr = netip.AddrFrom4([4]byte{10, 99, 0, byte(l.next)})
	port := fmt.Sprintf("port%d", l.next)
	l.ns.with(func(h *netlink.Handle) error {
		lan, err := link.Index(h, "lan")
		return errors.Join(err,
			link.AddVeth(h, link.Veth{Name: port, Peer: "eth0", PeerNS: s.FD(), MTU: 1500, Master: lan}),
			link.Up(h, port))
	})
	s.with(func(h *netlink.Handle) error {
		eth0, err := link.Index(h, "eth0")
		return errors.Join(err, link.AddAddr(h, eth0, netip.PrefixFrom(s.Addr, 24)), link.Up(h, "eth0"))
	})
	return s
}

func (s *Space) with(f func(h *netlink.Handle) error) {
	s.t.Helper()
	h, err := s.Netlink()
	if err == nil {
		err = f(h)
		h.Close()
	}
	if err != nil {
		s.t.Fatalf("%s: %v", s.Name, err)
	}
}

// DefaultRoute sends what has no other way through an address.
func (s *Space) DefaultRoute(via netip.Addr) {
	s.t.Helper()
	s.with(func(h *netlink.Handle) error { return link.SetRoute(h, link.Route{Via: via}) })
}

// Wire joins two spaces by a pair of interfaces with an address each.
func (s *Space) Wire(name string, addr netip.Prefix, peer *Space, peerName string, peerAddr netip.Prefix) {
	s.t.Helper()
	s.with(func(h *netlink.Handle) error {
		return link.AddVeth(h, link.Veth{Name: name, Peer: peerName, PeerNS: peer.FD()})
	})
	for _, end := range []struct {
		s    *Space
		name string
		addr netip.Prefix
	}{{s, name, addr}, {peer, peerName, peerAddr}} {
		end.s.with(func(h *netlink.Handle) error {
			i, err := link.Index(h, end.name)
			return errors.Join(err, link.AddAddr(h, i, end.addr), link.Up(h, end.name))
		})
	}
}

// Serve answers every TCP connection and every UDP datagram on the port with the space's name and the client's address,
// and echoes what else comes on a TCP connection.
func (s *Space) Serve(port uint16) {
	s.t.Helper()
	s.serve("4", fmt.Sprintf("0.0.0.0:%d", port))
}

// Serve6 is Serve over IPv6.
func (s *Space) Serve6(port uint16) {
	s.t.Helper()
	s.serve("6", fmt.Sprintf("[::]:%d", port))
}

func (s *Space) serve(version, addr string) {
	s.t.Helper()
	var l net.Listener
	var p net.PacketConn
	err := s.Do(func() (err error) {
		if l, err = net.Listen("tcp"+version, addr); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp"+version, addr)
		return err
	})
	if err != nil {
		s.t.Fatalf("%s: %v", s.Name, err)
	}
	s.t.Cleanup(func() { _, _ = l.Close(), p.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = fmt.Fprintf(c, "%s %s\n", s.Name, host(c.RemoteAddr()))
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	go s.answer(p)
}

// answer tells who sends a datagram the space's name and who he is.
func (s *Space) answer(p net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		_, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = p.WriteTo(fmt.Appendf(nil, "%s %s\n", s.Name, host(from)), from)
	}
}

func host(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

// Conn is a connection to a space's server.
type Conn struct {
	net.Conn
	r *bufio.Reader
	// Server is who answered, Client the address that the server saw.
	Server, Client string
}

// Dial connects to a server. It waits no longer than a few seconds.
func (s *Space) Dial(network, addr string) (*Conn, error) {
	var c net.Conn
	err := s.Do(func() (err error) {
		d := net.Dialer{Timeout: 3 * time.Second}
		c, err = d.Dial(network, addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	conn := &Conn{Conn: c, r: bufio.NewReader(c)}
	if err := conn.hello(strings.HasPrefix(network, "udp")); err != nil {
		_ = c.Close()
		return nil, err
	}
	return conn, nil
}

func (c *Conn) hello(udp bool) error {
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if udp {
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return err
	}
	c.Server, c.Client, _ = strings.Cut(strings.TrimSpace(line), " ")
	return nil
}

// Again sends one more datagram and reads who answers.
func (c *Conn) Again() error { return c.hello(true) }

// Echo sends bytes on a TCP connection and reads them back.
func (c *Conn) Echo(b []byte) error {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		sent <- err
	}()
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c.r, got); err != nil {
		return err
	}
	if string(got) != string(b) {
		return errors.New("what came back is not what was sent")
	}
	return <-sent
}

// Ask connects, and returns who answered.
func (s *Space) Ask(network, addr string) (server, client string, err error) {
	c, err := s.Dial(network, addr)
	if err != nil {
		return "", "", err
	}
	_ = c.Close()
	return c.Server, c.Client, nil
}

// MustAsk is Ask for a server that must answer.
func (s *Space) MustAsk(network, addr string) (server, client string) {
	s.t.Helper()
	server, client, err := s.Ask(network, addr)
	if err != nil {
		s.t.Fatalf("from %s: %v", s.Name, err)
	}
	return server, client
}

// Spread asks n times and counts the answers of each server.
func (s *Space) Spread(network, addr string, n int) map[string]int {
	s.t.Helper()
	got := map[string]int{}
	for range n {
		server, _ := s.MustAsk(network, addr)
		got[server]++
	}
	return got
}

// Links lists the interfaces of the space.
func (s *Space) Links() []string {
	s.t.Helper()
	var names []string
	s.with(func(h *netlink.Handle) error {
		links, err := h.LinkList()
		for _, l := range links {
			names = append(names, l.Attrs().Name)
		}
		return err
	})
	return names
}

// Open is a space that somebody else made and removes.
func (l *Lab) Open(name, path string) *Space {
	l.t.Helper()
	ns, err := netns.Open(path)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = ns.Close() })
	return &Space{NS: ns, Name: name, Dir: filepath.Join(l.dir, name), t: l.t}
}
