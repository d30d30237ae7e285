package testhost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/thread"
)

// LAN is a switch without a way out, in a network namespace of its own, to which machines are joined.
type LAN struct {
	Prefix netip.Prefix // machines are .1, .2, …
	dir    string       // where namespaces are pinned
	name   string
	ns     netns.NsHandle
	undo   *undo.Stack
}

// Machine is a network namespace on a LAN: a host for a daemon, or a client outside of the cluster.
type Machine struct {
	Name  string
	Addr  netip.Addr
	NetNS string // path of the pinned namespace
	lan   *LAN
	ns    netns.NsHandle
	port  string // the switch's end of the cable
}

// NewLAN makes a switch; namespaces are pinned under dir. Close takes it back.
func NewLAN(dir, name string, prefix netip.Prefix) (*LAN, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("test hosts are network namespaces: this needs root")
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	l := &LAN{Prefix: prefix, dir: dir, name: name, undo: undo.New()}
	ns, err := l.newNamespace("switch")
	if err != nil {
		return nil, err
	}
	l.ns = ns
	err = in(ns, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("add bridge lan0: %w", err)
		}
		return netlink.LinkSetUp(br)
	})
	if err != nil {
		return nil, errors.Join(err, l.undo.Run())
	}
	return l, nil
}

// Join makes a machine with the n-th address of the LAN.
func (l *LAN) Join(name string, n int) (*Machine, error) {
	addr := l.Prefix.Masked().Addr()
	for range n {
		addr = addr.Next()
	}
	ns, err := l.newNamespace(name)
	if err != nil {
		return nil, err
	}
	m := &Machine{Name: name, Addr: addr, NetNS: filepath.Join(l.dir, name), lan: l, ns: ns, port: fmt.Sprintf("port%d", n)}
	err = in(l.ns, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: m.port}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add cable %s: %w", m.port, err)
		}
		br, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	if err != nil {
		return nil, err
	}
	return m, in(ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		ipnet := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(l.Prefix.Bits(), addr.BitLen())}
		if err := netlink.AddrAdd(eth, &netlink.Addr{IPNet: ipnet}); err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, addr, err)
		}
		return netlink.LinkSetUp(eth)
	})
}

// Close removes the switch and every machine.
func (l *LAN) Close() error { return l.undo.Run() }

// newNamespace makes a network namespace and pins it at dir/name.
func (l *LAN) newNamespace(name string) (netns.NsHandle, error) {
	path := filepath.Join(l.dir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return -1, fmt.Errorf("pin namespace %s: %w", name, err)
	}
	_ = f.Close()
	l.undo.Add(func() error { return os.Remove(path) })
	err = thread.Throwaway(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace %s: %w", name, err)
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return -1, err
	}
	l.undo.Add(func() error { return unix.Unmount(path, unix.MNT_DETACH) })
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return -1, err
	}
	l.undo.Add(ns.Close)
	return ns, nil
}

// Do runs f on a thread inside the machine's network namespace. What f starts in other goroutines is not inside.
func (m *Machine) Do(f func() error) error { return in(m.ns, f) }

// AddAddr gives the machine a further address on the switch, such as one of IPv6.
func (m *Machine) AddAddr(p netip.Prefix) error {
	return in(m.ns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: unix.IFA_F_NODAD})
	})
}

// Cut pulls the machine's cable out of the switch; Heal puts it back.
func (m *Machine) Cut() error { return m.setPort(false) }

// Heal puts the cable back.
func (m *Machine) Heal() error { return m.setPort(true) }

// forgetNeighbours empties the machine's table of link-layer addresses. One for which the kernel asked in vain while the
// cable was out would refuse the next connection.
func (m *Machine) forgetNeighbours() error {
	return in(m.ns, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		neighbours, err := netlink.NeighList(eth.Attrs().Index, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list the neighbours of %s: %w", m.Name, err)
		}
		for _, n := range neighbours {
			if n.State&netlink.NUD_NOARP != 0 {
				continue
			}
			if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("forget the neighbour %s of %s: %w", n.IP, m.Name, err)
			}
		}
		return nil
	})
}

func (m *Machine) setPort(up bool) error {
	return in(m.lan.ns, func() error {
		port, err := netlink.LinkByName(m.port)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(port)
		}
		return netlink.LinkSetDown(port)
	})
}

// Dial connects from inside the machine's namespace.
func (m *Machine) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := in(m.ns, func() error {
		var err error
		// A literal address: nothing is looked up, so the socket is made on this thread.
		d := net.Dialer{FallbackDelay: -1}
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// HTTP returns a client whose connections come from this machine, a new one for each request.
func (m *Machine) HTTP(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{DialContext: m.Dial, DisableKeepAlives: true}}
}

// in runs f inside ns.
func in(ns netns.NsHandle, f func() error) error {
	return thread.Throwaway(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}
