// Package lb gives a sandbox its virtual IPs: connections that begin inside it and go to a virtual IP are sent to the
// service's ready members in turn, by nftables in the sandbox's own namespace. There is no proxy and nothing on the way:
// what leaves the sandbox is addressed to the member.
//
// One table holds it all: a map from virtual IP to the chain that picks, and one map from virtual IP and number to
// member. A member that comes or goes costs an element or two and, as the number to pick from changes, one chain of one
// rule; connections that are under way keep their member, as connection tracking holds it. A virtual IP without ready
// members refuses at once. The table is the state: a Table that is opened again reads it and changes only what differs.
package lb

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// TableName is the table's name in each sandbox.
const TableName = "sampan_vip"

// VIP is a virtual IP as a sandbox should see it. VIPs are shared between sandboxes and never changed: one that is
// different is another one.
type VIP struct {
	Addr    netip.Addr
	Members []netip.Addr // who gets new connections; without any they are refused
	// Draining are members that get none, but are there: what is connected to them goes on.
	Draining []netip.Addr
}

// Table is the virtual IPs of one sandbox. It is safe for concurrent use.
type Table struct {
	path string
	salt uint32

	mu    sync.Mutex
	known map[netip.Addr]*frontend // nil: to be read
	state tableState
	// direct are the interfaces given to Direct; nil: to be read.
	direct []string
	plain  bool // the table has no set of such interfaces
}

// tableState says what has to come before the first change.
type tableState uint8

const (
	tableNone  tableState = iota // it is to be made
	tableOther                   // there is one of another shape
	tableGood
)

// frontend is a virtual IP as it is in the kernel: slot i is what number i is sent to.
type frontend struct {
	vip   *VIP // what it was made from; nil after a restart
	slots []netip.Addr
}

// Open returns the table of the namespace pinned at path. The salt (the sandbox's ID) turns the order of members, so
// that a thousand new sandboxes do not all begin with the same one. Open touches nothing.
func Open(path, salt string) *Table {
	h := fnv.New32a()
	_, _ = h.Write([]byte(salt))
	return &Table{path: path, salt: h.Sum32()}
}

var (
	table = nft.Table{Family: nft.INet, Name: TableName}
	four  = family{"4", nft.DstIP4, nft.IPv4()}
	six   = family{"6", nft.DstIP6, nft.IPv6()}
)

// family is one of the two versions of IP, with the names of what holds it.
type family struct {
	suffix string
	dst    nft.Field
	match  nft.Rule
}

func of(a netip.Addr) family {
	if a.Is4() {
		return four
	}
	return six
}

// vips is the set of all virtual IPs: what is still addressed to one after translation has nobody to go to.
func (f family) vips() nft.Map { return nft.Map{Name: "vips" + f.suffix, Key: []nft.Field{f.dst}} }

// services says which chain picks for a virtual IP that has ready members.
func (f family) services() nft.Map {
	return nft.Map{Name: "services" + f.suffix, Key: []nft.Field{f.dst}, Verdicts: true}
}

// backends says who number i of a virtual IP is. The number is declared as a mark, which has the same size and order: nft
// 1.0 cannot list keys with plain numbers in them.
func (f family) backends() nft.Map {
	return nft.Map{Name: "backends" + f.suffix, Key: []nft.Field{f.dst, nft.CTMark}, Value: []nft.Field{f.dst}}
}

func chainOf(vip netip.Addr) string { return "vip_" + hex.EncodeToString(vip.AsSlice()) }

// pick is the chain of a virtual IP with n members. The rule is there twice: a packet that comes in the very moment of a
// change may see the chain of before or after with the members of the other, and not find the number it drew. It draws
// again, from a counter that hardly ever moves and so gives low numbers, which are there.
func pick(vip netip.Addr, n int) nft.Chain {
	f := of(vip)
	draw := nft.DNATAddrMap(vip.Is6(), f.backends().Name, f.dst, nft.RoundRobin(uint32(n)))
	return nft.Chain{Name: chainOf(vip), Rules: []nft.Rule{draw, draw}}
}

// base is the table without virtual IPs.
func base() nft.Content {
	reset := nft.Rule{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	var dispatch, refuse []nft.Rule
	var all []nft.Map
	for _, f := range []family{four, six} {
		dispatch = append(dispatch, nft.Join(f.match, nft.VerdictMap(f.services().Name, f.dst)))
		refuse = append(refuse,
			nft.Join(f.match, nft.Is(nft.L4Proto, nft.TCP), nft.InSet(f.vips().Name, f.dst), reset),
			nft.Join(f.match, nft.InSet(f.vips().Name, f.dst), nft.Reject()))
		all = append(all, f.vips(), f.services(), f.backends())
	}
	return nft.Content{Maps: all, Chains: []nft.Chain{
		{Name: "output", Type: nft.TypeNAT, Hook: nft.Output, Priority: nft.PriorityDNAT, Rules: dispatch},
		// Packets of programs that are nested in the sandbox (containers in a container) are forwarded.
		{Name: "prerouting", Type: nft.TypeNAT, Hook: nft.Prerouting, Priority: nft.PriorityDNAT, Rules: dispatch},
		{Name: "refuse", Type: nft.TypeFilter, Hook: nft.Output, Priority: nft.PriorityFilter, Rules: refuse},
		{Name: "refuse_forwarded", Type: nft.TypeFilter, Hook: nft.Forward, Priority: nft.PriorityFilter, Rules: refuse},
	}}
}

// Set makes the sandbox's virtual IPs those of want, by address. What is as it should be is not touched.
func (t *Table) Set(want map[netip.Addr]*VIP) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known != nil && t.same(want) { // before any system call: most calls change nothing here
		return nil
	}
	ns, err := netns.Open(t.path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	conn := nft.Open(ns.FD())
	restarted, err := t.learn(conn)
	if err != nil {
		return fmt.Errorf("virtual IPs of %s: %w", t.path, err)
	}
	lost, err := t.change(conn, want)
	if err != nil {
		t.known = nil // look before the next try
		return fmt.Errorf("virtual IPs of %s: %w", t.path, err)
	}
	if restarted {
		lost = losses{vips: want} // who went while nobody looked cannot be told
	}
	if err := failpoint.Hit("network/lb.set.before-sweep"); err != nil {
		t.known = nil
		return err
	}
	if err := Sweep(ns, lost.vips, lost.members); err != nil {
		t.known = nil
		return fmt.Errorf("virtual IPs of %s: %w", t.path, err)
	}
	return nil
}

// learn reads what is in the kernel, if that is not known; found says that there are virtual IPs of an earlier process.
func (t *Table) learn(conn *nft.Conn) (found bool, err error) {
	if t.known != nil {
		return false, nil
	}
	t.known, t.state, err = read(conn)
	return len(t.known) > 0, err
}

func (t *Table) same(want map[netip.Addr]*VIP) bool {
	if len(t.known) != len(want) {
		return false
	}
	for addr, v := range want {
		if f := t.known[addr]; f == nil || f.vip != v {
			return false
		}
	}
	return true
}

// atOnce is how many virtual IPs are changed in one transaction: each must be changed as a whole, all of them need not,
// and the kernel's answers to a transaction have to fit a socket's buffer.
const atOnce = 200

// change brings the kernel from known to want and returns the virtual IPs that lost somebody.
func (t *Table) change(conn *nft.Conn, want map[netip.Addr]*VIP) (losses, error) {
	lost := losses{vips: map[netip.Addr]*VIP{}, members: []netip.Addr{}}
	var todo []netip.Addr
	for addr := range t.known {
		if want[addr] == nil {
			todo = append(todo, addr)
		}
	}
	for addr, v := range want {
		if old := t.known[addr]; old == nil || old.vip != v {
			todo = append(todo, addr)
		}
	}
	for part := range slices.Chunk(todo, atOnce) {
		next := map[netip.Addr]*frontend{}
		err := conn.Do(func(tx *nft.Tx) error {
			// A transaction that only adds is done at once; one that takes something away waits until no packet can
			// be looking at it. So a new sandbox's table is not replaced.
			switch t.state {
			case tableNone:
				tx.Add(table, base())
			case tableOther:
				tx.Replace(table, base())
				t.plain = true
			}
			for _, addr := range part {
				next[addr] = t.changeOne(tx, addr, want[addr], &lost)
			}
			return failpoint.Hit("network/lb.change.commit")
		})
		if err != nil {
			return losses{}, err
		}
		t.state = tableGood
		for addr, f := range next {
			if t.known[addr] = f; f == nil {
				delete(t.known, addr)
			}
		}
	}
	return lost, nil
}

// losses are the virtual IPs that lost somebody, and whom.
type losses struct {
	vips    map[netip.Addr]*VIP
	members []netip.Addr
}

// changeOne enters the change of one virtual IP; nil v: it is to go.
func (t *Table) changeOne(tx *nft.Tx, addr netip.Addr, v *VIP, lost *losses) *frontend {
	old := t.known[addr]
	if old != nil {
		now := v
		if v == nil {
			now = &VIP{Addr: addr}
		}
		if gone := old.without(now); len(gone) > 0 {
			lost.vips[addr], lost.members = now, append(lost.members, gone...)
		}
	}
	if v == nil {
		t.drop(tx, addr, old)
		return nil
	}
	var was []netip.Addr
	if old != nil {
		was = old.slots
	}
	f := &frontend{vip: v, slots: Fill(was, v.Members, t.salt)}
	t.replace(tx, addr, old, f)
	return f
}

// without are those who get no new connections any more, and those who were draining and are gone.
func (f *frontend) without(now *VIP) []netip.Addr {
	return Gone(f.slots, f.draining(), now.Members, now.Draining)
}

func (f *frontend) draining() []netip.Addr {
	if f.vip == nil {
		return nil
	}
	return f.vip.Draining
}

// Gone are those of members that are members no more, and those of draining that are neither.
func Gone(members, draining, nowMembers, nowDraining []netip.Addr) []netip.Addr {
	var gone []netip.Addr
	for _, m := range members {
		if !slices.Contains(nowMembers, m) {
			gone = append(gone, m)
		}
	}
	for _, m := range draining {
		if !slices.Contains(nowMembers, m) && !slices.Contains(nowDraining, m) {
			gone = append(gone, m)
		}
	}
	return gone
}

func (t *Table) drop(tx *nft.Tx, addr netip.Addr, old *frontend) {
	f := of(addr)
	key := nft.Element{Key: []any{addr}}
	tx.Take(table, f.vips(), []nft.Element{key})
	if len(old.slots) > 0 {
		tx.Take(table, f.services(), []nft.Element{key})
		tx.Take(table, f.backends(), elements(addr, old.slots, 0, false))
		tx.DeleteChain(table, chainOf(addr))
	}
}

// replace changes one virtual IP: the numbers whose member differs, and the chain if there are more or fewer of them.
func (t *Table) replace(tx *nft.Tx, addr netip.Addr, old, next *frontend) {
	f := of(addr)
	key := nft.Element{Key: []any{addr}, Do: nft.Goto(chainOf(addr))}
	var was []netip.Addr
	if old == nil {
		tx.Put(table, f.vips(), []nft.Element{{Key: key.Key}})
	} else {
		was = old.slots
	}
	for i := range min(len(was), len(next.slots)) {
		if was[i] != next.slots[i] {
			tx.Take(table, f.backends(), elements(addr, was[i:i+1], i, false))
			tx.Put(table, f.backends(), elements(addr, next.slots[i:i+1], i, true))
		}
	}
	n := len(next.slots)
	if n > len(was) {
		tx.Put(table, f.backends(), elements(addr, next.slots[len(was):], len(was), true))
	}
	switch {
	case n == len(was):
	case n == 0:
		tx.Take(table, f.services(), []nft.Element{{Key: key.Key}})
		tx.DeleteChain(table, chainOf(addr))
	case len(was) == 0:
		tx.Add(table, nft.Content{Chains: []nft.Chain{pick(addr, n)}})
		tx.Put(table, f.services(), []nft.Element{key})
	default:
		tx.SetChain(table, pick(addr, n))
	}
	if n < len(was) {
		tx.Take(table, f.backends(), elements(addr, was[n:], n, false))
	}
}

func elements(vip netip.Addr, members []netip.Addr, first int, values bool) []nft.Element {
	out := make([]nft.Element, len(members))
	for i, m := range members {
		out[i].Key = []any{vip, nft.Index(uint32(first + i))}
		if values {
			out[i].Value = []any{m}
		}
	}
	return out
}

// Fill gives each of want a number, without gaps, changing as few of the numbers in use as it can: who stays keeps his
// number unless it is past the end. The salt turns the order in which free numbers are given.
func Fill[T comparable](was, want []T, salt uint32) []T {
	waiting := make(map[T]bool, len(want))
	for _, w := range want {
		waiting[w] = true
	}
	n := len(waiting) // one of each
	slots, taken := make([]T, n), make([]bool, n)
	for i, w := range was[:min(len(was), n)] {
		if waiting[w] {
			slots[i], taken[i] = w, true
			delete(waiting, w)
		}
	}
	next := 0
	for i := range want {
		w := want[(i+int(salt%uint32(len(want))))%len(want)]
		if !waiting[w] {
			continue
		}
		delete(waiting, w)
		for taken[next] {
			next++
		}
		slots[next], taken[next] = w, true
	}
	return slots
}

// read learns from the kernel what an earlier process made.
func read(conn *nft.Conn) (map[netip.Addr]*frontend, tableState, error) {
	known := map[netip.Addr]*frontend{}
	tables, err := conn.Tables(nft.INet)
	if err != nil || !slices.Contains(tables, TableName) {
		return known, tableNone, err
	}
	for _, f := range []family{four, six} {
		vips, err := conn.Elements(table, f.vips())
		if err != nil {
			return nil, tableOther, err
		}
		for _, e := range vips {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				known[a] = &frontend{}
			}
		}
		backends, err := conn.Elements(table, f.backends())
		if err != nil {
			return nil, tableOther, err
		}
		if err := decode(known, f, backends); err != nil {
			// Not as this program writes it: made anew.
			return map[netip.Addr]*frontend{}, tableOther, nil
		}
	}
	return known, tableGood, nil
}

// decode puts the members into their slots; an error if the numbers have gaps.
func decode(known map[netip.Addr]*frontend, f family, elements []nftables.SetElement) error {
	size := int(f.dst.Type.Bytes)
	bySlot := map[netip.Addr]map[uint32]netip.Addr{}
	for _, e := range elements {
		if len(e.Key) != size+4 || len(e.Val) < size {
			return errors.New("an element of another shape")
		}
		vip, _ := netip.AddrFromSlice(e.Key[:size])
		member, _ := netip.AddrFromSlice(e.Val[:size])
		if bySlot[vip] == nil {
			bySlot[vip] = map[uint32]netip.Addr{}
		}
		bySlot[vip][nativeUint32(e.Key[size:])] = member
	}
	for vip, members := range bySlot {
		if known[vip] == nil {
			return errors.New("a virtual IP that is not in the set")
		}
		slots := make([]netip.Addr, len(members))
		for i := range slots {
			m, ok := members[uint32(i)]
			if !ok {
				return errors.New("a number without a member")
			}
			slots[i] = m
		}
		known[vip].slots = slots
	}
	return nil
}

// VIPs are the virtual IPs that the sandbox has, with who gets their new connections, as the kernel has them.
func (t *Table) VIPs() (map[netip.Addr][]netip.Addr, error) {
	ns, err := netns.Open(t.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	known, _, err := read(nft.Open(ns.FD()))
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr][]netip.Addr{}
	for vip, f := range known {
		out[vip] = slices.SortedFunc(slices.Values(f.slots), netip.Addr.Compare)
	}
	return out, nil
}

// Remove takes the table away, and with it all virtual IPs.
func (t *Table) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ns, err := netns.Open(t.path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	if err := nft.Open(ns.FD()).Do(func(tx *nft.Tx) error { tx.Delete(table); return nil }); err != nil {
		return fmt.Errorf("virtual IPs of %s: %w", t.path, err)
	}
	t.known, t.direct, t.plain = nil, nil, false
	return nil
}
