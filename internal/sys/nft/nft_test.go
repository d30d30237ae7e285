package nft_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
}

func newNS(t *testing.T) *netns.NS {
	t.Helper()
	requireRoot(t)
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := netns.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ns.Close()
		if err := netns.Remove(path); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// ruleset is what the nft command shows.
func ruleset(t *testing.T, ns *netns.NS) string {
	t.Helper()
	out, err := exec.Command("nsenter", "--net="+ns.Path(), "nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset (Debian package nftables): %v\n%s", err, out)
	}
	return string(out)
}

var (
	table = nft.Table{Family: nft.INet, Name: "sampan-test"}
	ports = nft.Map{Name: "ports", Key: []nft.Field{nft.DstIP4, nft.L4Proto, nft.DstPort}, Value: []nft.Field{nft.DstIP4, nft.DstPort}}
)

func content() nft.Content {
	verdicts := nft.Map{Name: "verdicts", Key: []nft.Field{nft.IIfName}, Verdicts: true,
		Elements: []nft.Element{{Key: []any{"eth7"}, Do: nft.Jump("side")}}}
	six := nft.Map{Name: "six", Key: []nft.Field{nft.DstIP6, nft.L4Proto, nft.DstPort}, Value: []nft.Field{nft.DstIP6, nft.DstPort},
		Elements: []nft.Element{{Key: []any{netip.MustParseAddr("fd00::1"), nft.UDP, nft.Port(53)}, Value: []any{netip.MustParseAddr("fd01::2"), nft.Port(5353)}}}}
	set := nft.Map{Name: "hosts", Key: []nft.Field{nft.SrcIP4}, Elements: []nft.Element{{Key: []any{netip.MustParseAddr("10.0.0.9")}}}}
	backends := nft.Map{Name: "backends", Key: []nft.Field{nft.Random(1)}, Value: []nft.Field{nft.DstIP4},
		Elements: []nft.Element{{Key: []any{nft.Index(0)}, Value: []any{netip.MustParseAddr("10.0.0.3")}}, {Key: []any{nft.Index(1)}, Value: []any{netip.MustParseAddr("10.0.0.4")}}}}
	p := ports
	p.Elements = []nft.Element{{Key: []any{netip.MustParseAddr("10.0.0.1"), nft.TCP, nft.Port(80)}, Value: []any{netip.MustParseAddr("10.0.0.2"), nft.Port(8080)}}}
	return nft.Content{
		Maps: []nft.Map{p, six, verdicts, set, backends},
		Chains: []nft.Chain{
			{Name: "side", Rules: []nft.Rule{nft.Join(nft.IPv4(), nft.InSet("hosts", nft.SrcIP4), nft.Drop())}},
			{Name: "pre", Type: nft.TypeNAT, Hook: nft.Prerouting, Priority: nft.PriorityDNAT, Rules: []nft.Rule{
				nft.Join(nft.IPv4(), nft.DNATMap(false, "ports", nft.DstIP4, nft.L4Proto, nft.DstPort)),
				nft.Join(nft.IPv6(), nft.DNATMap(true, "six", nft.DstIP6, nft.L4Proto, nft.DstPort)),
				nft.Join(nft.IPv4(), nft.In(nft.DstIP4, netip.MustParsePrefix("10.1.0.0/20")), nft.DNATAddrMap(false, "backends", nft.Hash(2, 7, nft.SrcIP4, nft.DstIP4))),
				nft.Join(nft.IPv4(), nft.DNATAddrMap(false, "backends", nft.Random(2))),
			}},
			{Name: "fwd", Type: nft.TypeFilter, Hook: nft.Forward, Priority: nft.PriorityFilter, Rules: []nft.Rule{
				nft.Join(nft.AnyBit(nft.CTState, nft.StateEstablished|nft.StateRelated), nft.Accept()),
				nft.Join(nft.AnyBit(nft.CTStatus, nft.StatusDNAT), nft.Is(nft.CTDstPort, nft.Port(80)), nft.Is(nft.L4Proto, nft.TCP), nft.Accept()),
				nft.Join(nft.IPv4(), nft.Is(nft.CTDstIP4, netip.MustParseAddr("10.9.9.9")), nft.Drop()),
				nft.VerdictMap("verdicts", nft.IIfName),
				nft.Join(nft.Is(nft.DstType, nft.TypeLocal), nft.Reject()),
				nft.Join(nft.SetMark(0xff00, 0x1200), nft.SetCTMark(0xff, 0x3), nft.Count(), nft.RestoreMark(0xff)),
			}},
			{Name: "post", Type: nft.TypeNAT, Hook: nft.Postrouting, Priority: nft.PrioritySNAT, Rules: []nft.Rule{
				nft.Join(nft.IPv4(), nft.In(nft.SrcIP4, netip.MustParsePrefix("172.17.0.0/16")), nft.Not(nft.OIfName, "sampan0"), nft.Masquerade()),
				nft.Join(nft.IPv4(), nft.Is(nft.L4Proto, nft.TCP), nft.SNAT(netip.MustParseAddr("127.0.0.11"), 53)),
				nft.Join(nft.IPv6(), nft.Is(nft.L4Proto, nft.UDP), nft.SNAT(netip.MustParseAddr("fd00::7"), 0)),
			}},
			{Name: "out", Type: nft.TypeNAT, Hook: nft.Output, Priority: nft.PriorityDNAT, Rules: []nft.Rule{
				nft.Join(nft.Is(nft.L4Proto, nft.TCP), nft.Is(nft.DstPort, nft.Port(53)), nft.RedirectTo(4053)),
				nft.Join(nft.IPv4(), nft.Is(nft.L4Proto, nft.UDP), nft.DNAT(netip.MustParseAddr("127.0.0.11"), 4053)),
			}},
		},
	}
}

func TestReplaceIsWholeAndRepeatable(t *testing.T) {
	ns := newNS(t)
	c := nft.Open(ns.FD())
	other := nft.Table{Family: nft.IP4, Name: "somebody"}
	if err := c.Do(func(tx *nft.Tx) error { tx.Add(other, nft.Content{}); return nil }); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := c.Do(func(tx *nft.Tx) error { tx.Replace(table, content()); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	got := ruleset(t, ns)
	for _, want := range []string{
		"table ip somebody",
		"10.0.0.1 . tcp . 80 : 10.0.0.2 . 8080", "fd00::1 . udp . 53 : fd01::2 . 5353", `"eth7" : jump side`,
		"dnat ip to ip daddr . meta l4proto . th dport map @ports",
		"dnat ip6 to ip6 daddr . meta l4proto . th dport map @six",
		"jhash ip saddr . ip daddr mod 2 seed 0x7 map @backends", "numgen random mod 2 map @backends",
		"ip saddr 172.17.0.0/16 oifname != \"sampan0\" masquerade", "redirect to :4053", "dnat ip to 127.0.0.11:4053",
		"snat ip to 127.0.0.11:53", "snat ip6 to fd00::7", "iifname vmap @verdicts", "ip saddr @hosts drop",
		"fib daddr type local reject", "ct original proto-dst", "ct original ip daddr 10.9.9.9",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the ruleset lacks %q", want)
		}
	}
	if n := strings.Count(got, "masquerade"); n != 1 {
		t.Errorf("%d masquerade rules after three replacements, want 1", n)
	}
	if t.Failed() {
		t.Log(got)
	}
}

func TestMapsAndChainsChangeAlone(t *testing.T) {
	ns := newNS(t)
	c := nft.Open(ns.FD())
	if err := c.Do(func(tx *nft.Tx) error { tx.Replace(table, content()); return nil }); err != nil {
		t.Fatal(err)
	}
	el := nft.Element{Key: []any{netip.MustParseAddr("10.0.0.1"), nft.TCP, nft.Port(81)}, Value: []any{netip.MustParseAddr("10.0.0.5"), nft.Port(81)}}
	if err := c.Do(func(tx *nft.Tx) error { tx.Put(table, ports, []nft.Element{el}); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := ruleset(t, ns); !strings.Contains(got, "10.0.0.1 . tcp . 80 :") || !strings.Contains(got, "10.0.0.1 . tcp . 81 : 10.0.0.5 . 81") {
		t.Errorf("after Put:\n%s", got)
	}
	if err := c.Do(func(tx *nft.Tx) error { tx.Take(table, ports, []nft.Element{el}); return nil }); err != nil {
		t.Fatal(err)
	}
	m := ports
	m.Elements = []nft.Element{{Key: []any{netip.MustParseAddr("10.0.0.7"), nft.SCTP, nft.Port(9)}, Value: []any{netip.MustParseAddr("10.0.0.8"), nft.Port(9)}}}
	err := c.Do(func(tx *nft.Tx) error {
		tx.SetMap(table, m)
		tx.SetChain(table, nft.Chain{Name: "side", Rules: []nft.Rule{nft.Accept()}})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := ruleset(t, ns)
	if strings.Contains(got, ". tcp . 8") || !strings.Contains(got, "10.0.0.7 . sctp . 9 : 10.0.0.8 . 9") {
		t.Errorf("after SetMap:\n%s", got)
	}
	if strings.Contains(got, "@hosts drop") {
		t.Errorf("SetChain kept an old rule:\n%s", got)
	}
	// A transaction with a mistake at its end changes nothing.
	err = c.Do(func(tx *nft.Tx) error {
		tx.SetMap(table, ports)
		tx.SetChain(table, nft.Chain{Name: "side", Rules: []nft.Rule{nft.Jump("nowhere")}})
		return nil
	})
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("jump to a chain that is not there: %v", err)
	}
	if after := ruleset(t, ns); after != got {
		t.Errorf("a failed transaction left something behind:\n%s", after)
	}
	if err := c.Do(func(tx *nft.Tx) error { tx.Delete(table); tx.Delete(table); return nil }); err != nil {
		t.Fatal(err)
	}
	if names, err := c.Tables(nft.INet); err != nil || len(names) != 0 {
		t.Errorf("tables left: %v, %v", names, err)
	}
}

func TestManyElementsInOneTransaction(t *testing.T) {
	ns := newNS(t)
	c := nft.Open(ns.FD())
	m := ports
	for i := range 30000 {
		m.Elements = append(m.Elements, nft.Element{
			Key:   []any{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), nft.TCP, nft.Port(80)},
			Value: []any{netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), nft.Port(80)}})
	}
	for range 2 {
		err := c.Do(func(tx *nft.Tx) error { tx.Replace(table, nft.Content{Maps: []nft.Map{m}}); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(ruleset(t, ns), ". tcp . 80 :"); n != 30000 {
		t.Errorf("%d elements, want 30000", n)
	}
}

func TestTransactionsAtTheSameTime(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		ns := newNS(t)
		wg.Go(func() {
			for range 5 {
				if err := nft.Open(ns.FD()).Do(func(tx *nft.Tx) error { tx.Replace(table, content()); return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestElementsAreReadFromTheNamespaceTheyAreIn(t *testing.T) {
	ns := newNS(t)
	c := nft.Open(ns.FD())
	if err := c.Do(func(tx *nft.Tx) error { tx.Replace(table, content()); return nil }); err != nil {
		t.Fatal(err)
	}
	// From several goroutines, as any of them may be on the process' main thread: that one must never be moved.
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				elements, err := c.Elements(table, ports)
				if err != nil || len(elements) != 1 || string(elements[0].Key[:4]) != "\x0a\x00\x00\x01" || string(elements[0].Val[:4]) != "\x0a\x00\x00\x02" {
					t.Errorf("elements: %v, %v", elements, err)
				}
				if now, err := os.Readlink("/proc/self/ns/net"); now != before {
					t.Errorf("the process is in %s, %v, and was in %s", now, err, before)
				}
			}
		})
	}
	wg.Wait()
	if _, err := c.Elements(nft.Table{Family: nft.INet, Name: "nowhere"}, ports); err == nil {
		t.Error("a table that is not there has elements")
	}
	if _, err := nft.Open(0).Elements(table, ports); err == nil {
		t.Error("the process' own namespace has the table")
	}
}

// BenchmarkReplaceMap is what a change of a virtual IP waits for.
func BenchmarkReplaceMap(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root: it makes network namespaces")
	}
	path := filepath.Join(b.TempDir(), "ns")
	ns, err := netns.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = ns.Close(); _ = netns.Remove(path) }()
	c := nft.Open(ns.FD())
	for b.Loop() {
		if err := c.Do(func(tx *nft.Tx) error { tx.Replace(table, content()); return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
