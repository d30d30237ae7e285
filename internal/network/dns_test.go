package network

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sampan-cloud/sampan/internal/keeper"
	nameserver "github.com/sampan-cloud/sampan/internal/keeper/names"
	"github.com/sampan-cloud/sampan/internal/network/nettest"
)

func TestRenamedContainerIsFoundByItsNewName(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "app"})
	a, b := s.attach(on("a", "app")), s.attach(on("b", "app"))
	if err := s.m.Rename(t.Context(), fullID("a"), "fresh"); err != nil {
		t.Fatal(err)
	}
	if got := lookup(t, b, "A", "fresh"); !slices.Equal(got, []string{a.addr(0).String()}) {
		t.Errorf("fresh is %v", got)
	}
	if msg := ask(t, b, "udp", "A", "a"); len(msg.Answers) > 0 {
		t.Errorf("the old name is still %v", msg.Answers)
	}
}

// lookup asks the name server of a sandbox, by UDP.
func lookup(t *testing.T, b *testBox, kind, name string) []string {
	t.Helper()
	msg := ask(t, b, "udp", kind, name)
	var out []string
	for _, a := range msg.Answers {
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(r.A).String())
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(r.AAAA).String())
		case *dnsmessage.PTRResource:
			out = append(out, r.PTR.String())
		}
	}
	slices.Sort(out)
	return out
}

// ask sends a question to 127.0.0.11:53.
func ask(t *testing.T, b *testBox, network, kind, name string) dnsmessage.Message {
	t.Helper()
	q := dnsmessage.Question{Name: dnsmessage.MustNewName(name + "."), Class: dnsmessage.ClassINET,
		Type: map[string]dnsmessage.Type{"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "PTR": dnsmessage.TypePTR, "MX": dnsmessage.TypeMX}[kind]}
	query := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{q}}
	raw, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	err = b.Do(func() (err error) {
		c, err = net.Dial(network, "127.0.0.11:53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 64<<10)
	var n int
	if network == "tcp" {
		_, err = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...))
		if err == nil {
			_, err = io.ReadFull(c, buf[:2])
		}
		if err == nil {
			n, err = io.ReadFull(c, buf[:binary.BigEndian.Uint16(buf)])
		}
	} else {
		_, err = c.Write(raw)
		if err == nil {
			n, err = c.Read(buf)
		}
	}
	var msg dnsmessage.Message
	if err == nil {
		err = msg.Unpack(buf[:n])
	}
	if err != nil {
		t.Fatalf("%s asks for %s %s: %v", b.Name, kind, name, err)
	}
	if msg.ID != 7 || !msg.Response {
		t.Errorf("answer: %+v", msg.Header)
	}
	return msg
}

func TestNamesOfUserDefinedNetworks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	upstream(t, outside)
	s.create(Spec{Name: "app", IPv4: true, IPv6: true})
	s.create(Spec{Name: "other"})
	s.create(Spec{Name: "inner", Internal: true})
	spec := on("db", "app")
	spec.Endpoints[0].Aliases = []string{"Store"}
	db := s.attach(spec)
	client := on("client", "app")
	client.DNS = []netip.Addr{netip.MustParseAddr("10.99.0.99"), outside.Addr} // the first is nobody
	client.Endpoints[0].Links = []string{"db:Buddy"}
	client.Search, client.Options = []string{"corp.example"}, []string{"timeout:3"}
	c := s.attach(client)
	if got, want := string(c.ResolvConf), "nameserver 127.0.0.11\nsearch corp.example\noptions timeout:3 ndots:0\n"; got != want {
		t.Errorf("resolv.conf:\n%s", got)
	}
	for _, name := range []string{"db", "DB", "store", "db.app", fullID("db")[:12], "db-host"} {
		if got := lookup(t, c, "A", name); !slices.Equal(got, []string{db.addr(0).String()}) {
			t.Errorf("A %s: %v", name, got)
		}
		if got := lookup(t, c, "AAAA", name); !slices.Equal(got, []string{db.addr6(0).String()}) {
			t.Errorf("AAAA %s: %v", name, got)
		}
	}
	if got := lookup(t, c, "A", "buddy"); !slices.Equal(got, []string{db.addr(0).String()}) {
		t.Errorf("a link: %v", got)
	}
	if msg := ask(t, c, "tcp", "A", "db"); len(msg.Answers) != 1 || msg.Answers[0].Header.TTL != 0 {
		t.Errorf("by TCP: %+v", msg)
	}
	b := db.addr(0).As4()
	if got := lookup(t, c, "PTR", fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0])); !slices.Equal(got, []string{"db.app."}) {
		t.Errorf("PTR: %v", got)
	}
	for _, network := range []string{"udp", "tcp"} {
		if got := ask(t, c, network, "A", "example.com"); len(got.Answers) != 1 || got.RCode != dnsmessage.RCodeSuccess {
			t.Errorf("forwarded by %s: %+v", network, got)
		}
	}
	if msg := ask(t, c, "udp", "A", "nosuch"); msg.RCode != dnsmessage.RCodeNameError {
		t.Errorf("a name that nobody knows: %s", msg.RCode)
	}
	o := s.attach(on("stranger", "other"))
	if got := lookup(t, o, "A", "db.App"); len(got) > 0 {
		t.Errorf("a container of another network finds db: %v", got)
	}
	i := s.attach(on("i", "inner"))
	if msg := ask(t, i, "udp", "A", "db"); msg.RCode != dnsmessage.RCodeNameError {
		t.Errorf("on an internal network: %s", msg.RCode)
	}
	if got := lookup(t, i, "A", "i"); !slices.Equal(got, []string{i.addr(0).String()}) {
		t.Errorf("itself: %v", got)
	}
	d := s.attach(on("d", "bridge"))
	if strings.Contains(string(d.ResolvConf), "127.0.0.11") {
		t.Errorf("on the default bridge: %s", d.ResolvConf)
	}
	if err := s.m.Detach(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, "udp", "A", "db"); len(got.Answers) != 0 {
		t.Errorf("after it has gone: %+v", got.Answers)
	}
}

// upstream is a name server out in the world that knows example.com.
func upstream(t *testing.T, at *nettest.Space) {
	t.Helper()
	world := nameserver.New(nil)
	t.Cleanup(func() { _ = world.Close() })
	err := world.Set(keeper.NameTable{
		Networks:  map[string]keeper.Names{"world": {Records: map[string][]netip.Addr{"example.com": {netip.MustParseAddr("93.184.215.14")}}}},
		Sandboxes: map[string]keeper.Resolver{"world": {NetNS: at.Path(), Listen: netip.AddrPortFrom(at.Addr, 53), Networks: []string{"world"}, Authoritative: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPort53IsTheContainersOwn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create(Spec{Name: "app"})
	a, b := s.attach(on("a", "app")), s.attach(on("b", "app"))
	a.Serve(53)
	if got, _ := b.MustAsk("udp", hostport(a.addr(0), 53)); got != "a" {
		t.Error(got)
	}
	if got := lookup(t, a, "A", "b"); !slices.Equal(got, []string{b.addr(0).String()}) {
		t.Errorf("b is %v", got)
	}
}

func TestLoopbackNameServersOfTheHost(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *Config) {
		if err := os.WriteFile(c.ResolvConf, []byte("# a stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	a := s.attach(on("a", "bridge"))
	if got, want := string(a.ResolvConf), "nameserver 127.0.0.11\noptions edns0 trust-ad ndots:0\n"; got != want {
		t.Errorf("resolv.conf:\n%s", got)
	}
	r := s.names.table.Sandboxes[a.Sandbox.ID]
	if !r.UpstreamsFromHost || !slices.Equal(r.Upstreams, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53")}) {
		t.Errorf("resolver: %+v", r)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 1.2.3.4\nsearch a b\noptions ndots:2\n# x\n;y\n"))
	f.Add([]byte("nameserver fe80::1%eth0\r\nnameserver"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, a := range parseResolvConf(b).servers {
			if !a.IsValid() {
				t.Error("an invalid server")
			}
		}
	})
}
