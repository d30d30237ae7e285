package names

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func many(n int) (out []netip.Addr) {
	for i := range n {
		out = append(out, netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}))
	}
	return out
}

func crowd(n int) (out []keeper.Server) {
	for i := range n {
		out = append(out, keeper.Server{Name: fmt.Sprintf("a-task-with-a-long-name.%d", i), Port: 80})
	}
	return out
}

func testTable() *keeper.NameTable {
	return &keeper.NameTable{Networks: map[string]keeper.Names{
		"front": {Records: map[string][]netip.Addr{"web": addrs("10.0.0.2", "10.0.0.3", "fd00::2"), "db": addrs("10.0.0.9"), "many": many(300)},
			Services: map[string][]keeper.Server{"_http._tcp.web": {{Name: "web", Port: 80}, {Name: "db", Port: 8080}}, "_idle._tcp.web": {}, "_all._tcp.many": crowd(200)},
			Reverse:  map[netip.Addr]string{netip.MustParseAddr("10.0.0.2"): "web.front", netip.MustParseAddr("fd00::2"): "web.front"}},
		"back": {Records: map[string][]netip.Addr{"db": addrs("10.1.0.9"), "only.back": addrs("10.1.0.8")}},
		"far":  {Records: map[string][]netip.Addr{"secret": addrs("10.2.0.9")}},
	}}
}

var testResolver = keeper.Resolver{Networks: []string{"front", "back"}, Own: map[string][]netip.Addr{"buddy": addrs("10.3.0.1"), "WEB": addrs("9.9.9.9")}}

func pack(t testing.TB, name string, kind dnsmessage.Type, edns int) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 99, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	if edns > 0 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(edns, 0, false); err != nil {
			t.Fatal(err)
		}
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}})
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unpack(t testing.TB, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("unpack %x: %v", b, err)
	}
	return m
}

func values(m dnsmessage.Message) []string {
	out := []string{}
	for _, a := range m.Answers {
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(r.A).String())
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(r.AAAA).String())
		case *dnsmessage.SRVResource:
			out = append(out, fmt.Sprintf("%s%d", r.Target, r.Port))
		case *dnsmessage.PTRResource:
			out = append(out, r.PTR.String())
		}
	}
	slices.Sort(out)
	return out
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		what, name string
		kind       dnsmessage.Type
		rcode      dnsmessage.RCode
		want       []string
	}{
		{"both addresses", "web.", dnsmessage.TypeA, 0, []string{"10.0.0.2", "10.0.0.3"}},
		{"in any case", "wEb.", dnsmessage.TypeA, 0, []string{"10.0.0.2", "10.0.0.3"}},
		{"IPv6", "web.", dnsmessage.TypeAAAA, 0, []string{"fd00::2"}},
		{"ANY", "web.", dnsmessage.TypeALL, 0, []string{"10.0.0.2", "10.0.0.3", "fd00::2"}},
		{"a name without IPv6 is there all the same", "db.", dnsmessage.TypeAAAA, 0, []string{}},
		{"a kind that no name has", "db.", dnsmessage.TypeMX, 0, []string{}},
		{"the first network's", "db.", dnsmessage.TypeA, 0, []string{"10.0.0.9"}},
		{"the second network's", "only.back.", dnsmessage.TypeA, 0, []string{"10.1.0.8"}},
		{"a service", "_HTTP._tcp.web.", dnsmessage.TypeSRV, 0, []string{"db.8080", "web.80"}},
		{"a service that nobody serves", "_idle._tcp.web.", dnsmessage.TypeSRV, 0, []string{}},
		{"a service has no address", "_http._tcp.web.", dnsmessage.TypeA, 0, []string{}},
		{"an unknown service", "_nosuch._tcp.web.", dnsmessage.TypeSRV, dnsmessage.RCodeServerFailure, []string{}},
		{"a name is no service", "web.", dnsmessage.TypeSRV, 0, []string{}},
		{"its own", "buddy.", dnsmessage.TypeA, 0, []string{"10.3.0.1"}},
		{"of a network it is not on", "secret.", dnsmessage.TypeA, dnsmessage.RCodeServerFailure, []string{}},
		{"backwards", "2.0.0.10.in-addr.arpa.", dnsmessage.TypePTR, 0, []string{"web.front."}},
		{"backwards IPv6", "2" + strings.Repeat(".0", 27) + ".0.0.d.f.ip6.arpa.", dnsmessage.TypePTR, 0, []string{"web.front."}},
		{"backwards, unknown", "7.0.0.10.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeServerFailure, []string{}},
		{"the root", ".", dnsmessage.TypeNS, dnsmessage.RCodeServerFailure, []string{}},
	} {
		t.Run(c.what, func(t *testing.T) {
			reply, forward := answer(pack(t, c.name, c.kind, 0), true, testResolver, testTable())
			if forward != nil {
				t.Fatal("it is forwarded")
			}
			m := unpack(t, reply)
			if m.RCode != c.rcode || m.ID != 99 || !m.Response || !m.RecursionAvailable || m.Truncated || len(m.Questions) != 1 || m.Questions[0].Name.String() != c.name {
				t.Errorf("%+v %+v", m.Header, m.Questions)
			}
			if got := values(m); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			for _, a := range m.Answers {
				if a.Header.TTL != 0 {
					t.Errorf("TTL %d: the answer would outlive the truth", a.Header.TTL)
				}
			}
		})
	}
}

func TestWhatIsForwarded(t *testing.T) {
	up := testResolver
	up.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.53:53")}
	inner := up
	inner.Authoritative = true
	for _, c := range []struct {
		name    string
		r       keeper.Resolver
		forward bool
		rcode   dnsmessage.RCode
	}{
		{"example.com.", up, true, 0}, {"nosuch.", up, true, 0}, {"nosuch.", inner, false, dnsmessage.RCodeNameError},
		{"example.com.", testResolver, false, dnsmessage.RCodeServerFailure},
	} {
		reply, forward := answer(pack(t, c.name, dnsmessage.TypeA, 0), true, c.r, testTable())
		if (forward != nil) != c.forward || forward == nil && unpack(t, reply).RCode != c.rcode {
			t.Errorf("%s: forwarded %v, reply %x", c.name, forward != nil, reply)
		}
	}
}

func TestTruncation(t *testing.T) {
	for _, c := range []struct {
		edns int
		udp  bool
		most int
		full bool
	}{{0, true, 512, false}, {100, true, 512, false}, {900, true, 900, false}, {60000, true, maxUDP, false}, {0, false, 65535, true}} {
		reply, _ := answer(pack(t, "many.", dnsmessage.TypeA, c.edns), c.udp, testResolver, testTable())
		m := unpack(t, reply)
		if len(reply) > c.most || m.Truncated == c.full {
			t.Errorf("EDNS %d, UDP %v: %d bytes, truncated %v", c.edns, c.udp, len(reply), m.Truncated)
		}
		if c.full && len(m.Answers) != 300 || !c.full && (len(m.Answers) < 20 || len(reply) < c.most-40) {
			t.Errorf("EDNS %d, UDP %v: %d answers in %d bytes", c.edns, c.udp, len(m.Answers), len(reply))
		}
		if hasOPT := len(m.Additionals) == 1; hasOPT != (c.edns > 0) {
			t.Errorf("EDNS %d: answered with EDNS: %v", c.edns, hasOPT)
		}
	}
}

// TestServicesComeWithAddresses: who asks for a service need not ask for its servers' addresses, unless they do not fit.
func TestServicesComeWithAddresses(t *testing.T) {
	reply, _ := answer(pack(t, "_http._tcp.web.", dnsmessage.TypeSRV, 1232), true, testResolver, testTable())
	got := map[string]int{}
	for _, r := range unpack(t, reply).Additionals {
		if r.Header.Type == dnsmessage.TypeA || r.Header.Type == dnsmessage.TypeAAAA {
			got[r.Header.Name.String()]++
		}
	}
	if got["web."] != 3 || got["db."] != 1 {
		t.Errorf("additional addresses: %v", got)
	}
	reply, _ = answer(pack(t, "_all._tcp.many.", dnsmessage.TypeSRV, 0), true, testResolver, testTable())
	if m := unpack(t, reply); len(reply) > plainUDP || !m.Truncated || len(m.Answers) == 0 {
		t.Errorf("by UDP: %d bytes, %d answers, truncated %v", len(reply), len(m.Answers), m.Truncated)
	}
	reply, _ = answer(pack(t, "_all._tcp.many.", dnsmessage.TypeSRV, 0), false, testResolver, testTable())
	if m := unpack(t, reply); m.Truncated || len(m.Answers) != 200 {
		t.Errorf("by TCP: %d answers, truncated %v", len(m.Answers), m.Truncated)
	}
}

func TestTheOrderChanges(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		reply, _ := answer(pack(t, "web.", dnsmessage.TypeA, 0), true, testResolver, testTable())
		seen[netip.AddrFrom4(unpack(t, reply).Answers[0].Body.(*dnsmessage.AResource).A).String()] = true
	}
	if len(seen) != 2 {
		t.Errorf("first of the answers: %v", seen)
	}
}

func TestOddMessages(t *testing.T) {
	good := pack(t, "web.", dnsmessage.TypeA, 1232)
	change := func(f func(b []byte)) []byte {
		b := slices.Clone(good)
		f(b)
		return b
	}
	for what, c := range map[string]struct {
		msg   []byte
		rcode int // -1: no answer
	}{
		"too short":       {good[:7], -1},
		"an answer":       {change(func(b []byte) { b[2] |= 0x80 }), -1},
		"an update":       {change(func(b []byte) { b[2] |= 5 << 3 }), int(dnsmessage.RCodeNotImplemented)},
		"no question":     {change(func(b []byte) { b[5] = 0 }), int(dnsmessage.RCodeFormatError)},
		"two questions":   {change(func(b []byte) { b[5] = 2 }), int(dnsmessage.RCodeFormatError)},
		"cut":             {good[:14], int(dnsmessage.RCodeFormatError)},
		"another class":   {change(func(b []byte) { b[20] = 3 }), int(dnsmessage.RCodeRefused)},
		"EDNS version 7":  {change(func(b []byte) { b[len(b)-5] = 7 }), 0},
		"a name's length": {change(func(b []byte) { b[12] = 63 }), int(dnsmessage.RCodeFormatError)},
	} {
		reply, forward := answer(c.msg, true, testResolver, testTable())
		if forward != nil || (reply == nil) != (c.rcode < 0) {
			t.Errorf("%s: reply %x", what, reply)
			continue
		}
		if reply != nil && int(reply[3]&0xf) != c.rcode {
			t.Errorf("%s: code %d, want %d", what, reply[3]&0xf, c.rcode)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(pack(f, "web.", dnsmessage.TypeA, 0), true)
	f.Add(pack(f, "many.", dnsmessage.TypeALL, 700), true)
	f.Add(pack(f, "2.0.0.10.in-addr.arpa.", dnsmessage.TypePTR, 0), false)
	f.Add(pack(f, "2"+strings.Repeat(".0", 27)+".0.0.d.f.ip6.arpa.", dnsmessage.TypePTR, 0), false)
	table, r := testTable(), testResolver
	r.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.53:53")}
	f.Fuzz(func(t *testing.T, msg []byte, udp bool) {
		reply, forward := answer(msg, udp, r, table)
		if forward != nil {
			forward.matches(msg, 1)
			reply = forward.fit(msg, udp)
		}
		if reply != nil && forward == nil && (len(reply) < headerSize || binary.BigEndian.Uint16(reply) != binary.BigEndian.Uint16(msg)) {
			t.Errorf("reply %x to %x", reply, msg)
		}
	})
}

// sandbox is a namespace with loopback, and the server's entry for it.
func sandbox(t *testing.T, port uint16) (*netns.NS, keeper.Resolver) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	ns, err := netns.Create(filepath.Join(t.TempDir(), "ns"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ns.Close()
		if err := netns.Remove(ns.Path()); err != nil {
			t.Error(err)
		}
	})
	h, err := ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := link.Up(h, "lo"); err != nil {
		t.Fatal(err)
	}
	return ns, keeper.Resolver{NetNS: ns.Path(), Listen: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.11"), port), Networks: []string{"front"}}
}

func askIn(t *testing.T, ns *netns.NS, network, at string, query []byte) (dnsmessage.Message, error) {
	t.Helper()
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.Dial(network, at)
		return err
	})
	if err != nil {
		return dnsmessage.Message{}, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 64<<10)
	var n int
	if network == "tcp" {
		_, err = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...))
		if err == nil {
			_, err = io.ReadFull(c, buf[:2])
		}
		if err == nil {
			n, err = io.ReadFull(c, buf[:binary.BigEndian.Uint16(buf)])
		}
	} else if _, err = c.Write(query); err == nil {
		n, err = c.Read(buf)
	}
	if err != nil {
		return dnsmessage.Message{}, err
	}
	return unpack(t, buf[:n]), nil
}

func TestServerFollowsTheTable(t *testing.T) {
	a, ra := sandbox(t, 5301)
	b, rb := sandbox(t, 5301)
	s := New(nil)
	t.Cleanup(func() { _ = s.Close() })
	table := testTable()
	table.Sandboxes = map[string]keeper.Resolver{"a": ra, "b": rb}
	if err := s.Set(*table); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []*netns.NS{a, b} {
		for _, network := range []string{"udp", "tcp"} {
			m, err := askIn(t, ns, network, "127.0.0.11:5301", pack(t, "web.", dnsmessage.TypeA, 0))
			if err != nil || len(m.Answers) != 2 {
				t.Errorf("%s: %+v, %v", network, m, err)
			}
		}
	}
	next := testTable()
	next.Networks["front"].Records["web"] = addrs("10.0.0.77")
	bad := rb
	bad.NetNS = "/nosuch/netns"
	next.Sandboxes = map[string]keeper.Resolver{"a": ra, "gone": bad}
	if err := s.Set(*next); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a sandbox without a namespace: %v", err)
	}
	if m, err := askIn(t, a, "udp", "127.0.0.11:5301", pack(t, "web.", dnsmessage.TypeA, 0)); err != nil || !slices.Equal(values(m), []string{"10.0.0.77"}) {
		t.Errorf("after the change: %v, %v", values(m), err)
	}
	if _, err := askIn(t, b, "tcp", "127.0.0.11:5301", pack(t, "web.", dnsmessage.TypeA, 0)); err == nil {
		t.Error("a sandbox that has gone is still answered")
	}
}

// world is an upstream server that answers everything with one address, or with what f makes of it.
func world(t *testing.T, ns *netns.NS, at string, f func(m *dnsmessage.Message)) {
	t.Helper()
	var p net.PacketConn
	err := ns.Do(func() (err error) {
		p, err = net.ListenPacket("udp", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response = true
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60},
				Body: &dnsmessage.AResource{A: [4]byte{93, 184, 215, 14}}}}
			f(&m)
			if out, err := m.Pack(); err == nil {
				_, _ = p.WriteTo(out, from)
			}
		}
	}()
}

func TestForwarding(t *testing.T) {
	ns, r := sandbox(t, 5301)
	world(t, ns, "127.0.0.1:5001", func(m *dnsmessage.Message) {})
	world(t, ns, "127.0.0.1:5002", func(m *dnsmessage.Message) { m.RCode, m.Answers = dnsmessage.RCodeServerFailure, nil })
	world(t, ns, "127.0.0.1:5003", func(m *dnsmessage.Message) { m.ID++ })                                                    // somebody's forgery
	world(t, ns, "127.0.0.1:5004", func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("evil.com.") }) // another
	world(t, ns, "127.0.0.1:5005", func(m *dnsmessage.Message) { m.RCode, m.Answers = dnsmessage.RCodeNameError, nil })
	s := New(nil)
	t.Cleanup(func() { _ = s.Close() })
	for _, c := range []struct {
		what    string
		servers []int
		rcode   dnsmessage.RCode
	}{
		{"one good server", []int{5001}, dnsmessage.RCodeSuccess},
		{"a dead one first", []int{5999, 5001}, dnsmessage.RCodeSuccess},
		{"a failing one first", []int{5002, 5001}, dnsmessage.RCodeSuccess},
		{"forged answers first", []int{5003, 5004, 5001}, dnsmessage.RCodeSuccess},
		{"only a failing one", []int{5002}, dnsmessage.RCodeServerFailure},
		{"only a dead one", []int{5999}, dnsmessage.RCodeServerFailure},
		{"one that says there is none", []int{5005, 5001}, dnsmessage.RCodeNameError},
	} {
		t.Run(c.what, func(t *testing.T) {
			r.Upstreams = nil
			for _, p := range c.servers {
				r.Upstreams = append(r.Upstreams, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(p)))
			}
			table := testTable()
			table.Sandboxes = map[string]keeper.Resolver{"a": r}
			if err := s.Set(*table); err != nil {
				t.Fatal(err)
			}
			m, err := askIn(t, ns, "udp", "127.0.0.11:5301", pack(t, "Example.com.", dnsmessage.TypeA, 0))
			if err != nil || m.ID != 99 || m.RCode != c.rcode {
				t.Errorf("%+v, %v", m, err)
			}
			if want := c.rcode == dnsmessage.RCodeSuccess; want != slices.Equal(values(m), []string{"93.184.215.14"}) {
				t.Errorf("answers: %v", values(m))
			}
		})
	}
}

func TestUpstreamsOfTheHost(t *testing.T) {
	ns, r := sandbox(t, 5301)
	// The server runs in this test's namespace, where only loopback is used.
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := p.LocalAddr().String()
	_ = p.Close()
	here, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = here.Close() })
	world(t, here, at, func(*dnsmessage.Message) {})
	r.Upstreams, r.UpstreamsFromHost = []netip.AddrPort{netip.MustParseAddrPort(at)}, true
	s := New(nil)
	t.Cleanup(func() { _ = s.Close() })
	table := testTable()
	table.Sandboxes = map[string]keeper.Resolver{"a": r}
	if err := s.Set(*table); err != nil {
		t.Fatal(err)
	}
	if m, err := askIn(t, ns, "udp", "127.0.0.11:5301", pack(t, "example.com.", dnsmessage.TypeA, 0)); err != nil || len(m.Answers) != 1 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestGarbageIsSurvived(t *testing.T) {
	ns, r := sandbox(t, 5301)
	s := New(nil)
	t.Cleanup(func() { _ = s.Close() })
	table := testTable()
	table.Sandboxes = map[string]keeper.Resolver{"a": r}
	if err := s.Set(*table); err != nil {
		t.Fatal(err)
	}
	good := pack(t, "web.", dnsmessage.TypeA, 0)
	err := ns.Do(func() error {
		for _, network := range []string{"udp", "tcp"} {
			c, err := net.Dial(network, "127.0.0.11:5301")
			if err != nil {
				return err
			}
			for i := range good {
				b := slices.Clone(good)
				b[i] ^= 0xff
				_, _ = c.Write(b)
				_, _ = c.Write(b[:i])
			}
			_ = c.Close()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := askIn(t, ns, "udp", "127.0.0.11:5301", good); err != nil || len(m.Answers) != 2 {
		t.Errorf("%+v, %v", m, err)
	}
}
