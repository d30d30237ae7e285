package lb

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// overlays is the set of interfaces on which connections that go to no virtual IP are not tracked.
func overlays() nft.Map { return nft.Map{Name: "overlays", Key: []nft.Field{nft.IIfName}} }

// untracked keeps TCP that is addressed to a member itself out of connection tracking: nothing is to be translated back,
// and tracking costs a noticeable share of an overlay's throughput (docs/performance.md). What leaves for a virtual IP
// is tracked, and so are its answers: they come from a member to whom no socket here is connected.
func untracked() nft.Content {
	var out, in []nft.Rule
	for _, f := range []family{four, six} {
		tcp := nft.Join(f.match, nft.Is(nft.L4Proto, nft.TCP))
		out = append(out, nft.Join(nft.InSet("overlays", nft.OIfName), tcp, nft.NotInSet(f.vips().Name, f.dst), nft.NoTrack()))
		in = append(in, nft.Join(nft.InSet("overlays", nft.IIfName), tcp, nft.OwnSocket(), nft.NoTrack()))
	}
	return nft.Content{Maps: []nft.Map{overlays()}, Chains: []nft.Chain{
		{Name: "direct_out", Type: nft.TypeFilter, Hook: nft.Output, Priority: nft.PriorityRaw, Rules: out},
		{Name: "direct_in", Type: nft.TypeFilter, Hook: nft.Prerouting, Priority: nft.PriorityRaw, Rules: in},
	}}
}

// Direct names the sandbox's interfaces on overlays: TCP on them that goes to no virtual IP is not tracked. Where the
// kernel cannot tell such connections apart, all stay tracked, which is slower and nothing else.
func (t *Table) Direct(interfaces []string) error {
	interfaces = slices.Sorted(slices.Values(interfaces))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.direct != nil && slices.Equal(t.direct, interfaces) {
		return nil
	}
	ns, err := netns.Open(t.path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	conn := nft.Open(ns.FD())
	if _, err := t.learn(conn); err != nil {
		return fmt.Errorf("virtual IPs of %s: %w", t.path, err)
	}
	if t.state == tableOther || t.plain {
		t.direct = interfaces
		return nil // Set makes it anew, or has made it, without
	}
	had := t.direct
	if had == nil && t.state == tableGood {
		elements, err := conn.Elements(table, overlays())
		if err != nil {
			t.direct, t.plain = interfaces, true // made without, as the kernel has no such expression
			return nil
		}
		had = []string{}
		for _, e := range elements {
			had = append(had, strings.TrimRight(string(e.Key), "\x00"))
		}
	}
	err = conn.Do(func(tx *nft.Tx) error {
		if t.state == tableNone {
			if err := failpoint.Hit("network/lb.direct.socket"); err != nil { // as a kernel without the expression
				return err
			}
			tx.Add(table, base())
			tx.Add(table, untracked())
		}
		tx.Take(table, overlays(), names(had, interfaces))
		tx.Put(table, overlays(), names(interfaces, had))
		return nil
	})
	switch {
	case err == nil:
		t.state = tableGood
	case t.state != tableNone:
		return fmt.Errorf("interfaces on overlays of %s: %w", t.path, err)
	default:
		t.plain = true
	}
	t.direct = interfaces
	return nil
}

// names are the elements for those of all that are not in without.
func names(all, without []string) (out []nft.Element) {
	for _, name := range all {
		if !slices.Contains(without, name) {
			out = append(out, nft.Element{Key: []any{name}})
		}
	}
	return out
}
