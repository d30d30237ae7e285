// Package nft programs nftables over netlink: tables of our own, one for each purpose, whose content is replaced in one
// transaction, so that a packet sees the old rules or the new ones and never half of them. It never lists, flushes or
// changes a table that it was not given by name.
package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/thread"
)

// Family is what packets a table sees.
type Family = nftables.TableFamily

// The families.
const (
	INet Family = nftables.TableFamilyINet // IPv4 and IPv6
	IP4  Family = nftables.TableFamilyIPv4
	IP6  Family = nftables.TableFamilyIPv6
	ARP  Family = nftables.TableFamilyARP
	L2   Family = nftables.TableFamilyBridge
)

// Table names a table.
type Table struct {
	Family Family
	Name   string
}

func (t Table) lib() *nftables.Table { return &nftables.Table{Name: t.Name, Family: t.Family} }

// Hook is where a base chain sees packets.
type Hook uint32

// The hooks.
const (
	Prerouting  Hook = unix.NF_INET_PRE_ROUTING
	Input       Hook = unix.NF_INET_LOCAL_IN
	Forward     Hook = unix.NF_INET_FORWARD
	Output      Hook = unix.NF_INET_LOCAL_OUT
	Postrouting Hook = unix.NF_INET_POST_ROUTING
)

// The usual priorities: lower ones come first.
const (
	PriorityRaw    = -300
	PriorityMangle = -150
	PriorityDNAT   = -100
	PriorityFilter = 0
	PrioritySNAT   = 100
)

// The types of base chains.
const (
	TypeFilter = "filter"
	TypeNAT    = "nat"
	TypeRoute  = "route"
)

// Chain is a chain with its rules. Without a Type it is a regular one that others jump to.
type Chain struct {
	Name     string
	Type     string
	Hook     Hook
	Priority int
	// PolicyDrop drops what no rule decided on; otherwise it is accepted.
	PolicyDrop bool
	Rules      []Rule
}

// Map is a named map, or a set when it has no Value. Its key is the fields' values side by side.
type Map struct {
	Name     string
	Key      []Field
	Value    []Field // of the fields only the types count
	Verdicts bool    // a map to verdicts, instead of Value
	Interval bool    // keys are ranges (Element.KeyEnd)
	Elements []Element
}

// Element is an element of a map or set. Values are of the types that Is takes.
type Element struct {
	Key    []any
	KeyEnd []any // Interval maps: the last key of the range
	Value  []any
	Do     Rule // maps of verdicts: a single verdict
}

// Content is the whole of a table.
type Content struct {
	Chains []Chain
	Maps   []Map
}

// Conn reads and changes the nftables of one network namespace. It keeps no socket between transactions and is safe for
// concurrent use.
type Conn struct{ fd int }

// Open returns a connection to the namespace of the descriptor (netns.NS.FD), which must stay open; 0 is the namespace
// that the process is in.
func Open(nsFD int) *Conn { return &Conn{fd: nsFD} }

// Do runs one transaction: everything that f asks of tx happens, or nothing.
func (c *Conn) Do(f func(tx *Tx) error) error {
	lib, socket, err := c.dial()
	if err != nil {
		return err
	}
	defer hangUp(lib)
	tx := &Tx{conn: lib}
	if err := f(tx); err != nil {
		return err
	}
	if err := tx.size(socket); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return explain(lib.Flush())
}

// dial opens a socket in the namespace, to which it belongs from then on, whoever uses it. (The library would enter the
// namespace itself, on any thread, the process' main one included.)
func (c *Conn) dial() (lib *nftables.Conn, socket *netlink.Conn, err error) {
	open := func() (err error) {
		lib, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
			socket = s
			return nil
		}))
		return err
	}
	if c.fd == 0 {
		err = open()
	} else {
		err = thread.Throwaway(func() error {
			if err := unix.Setns(c.fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace: %w", err)
			}
			return open()
		})
	}
	if err != nil {
		return nil, nil, fmt.Errorf("nftables: %w", err)
	}
	return lib, socket, nil
}

// closing bounds how many sockets are being closed, as each takes a thread; the next are closed by who used them.
var closing = make(chan struct{}, 8)

// hangUp closes a socket without waiting for it: after a transaction that deleted anything the kernel closes it only when
// no packet can see what was deleted any more, 7 to 200 ms later, while the new rules are in force since the transaction.
func hangUp(lib *nftables.Conn) {
	select {
	case closing <- struct{}{}:
		go func() {
			defer func() { <-closing }()
			_ = lib.CloseLasting()
		}()
	default:
		_ = lib.CloseLasting()
	}
}

// Tables lists the tables of a family, of others too.
func (c *Conn) Tables(f Family) ([]string, error) {
	lib, _, err := c.dial()
	if err != nil {
		return nil, err
	}
	defer hangUp(lib)
	tables, err := lib.ListTablesOfFamily(f)
	if err != nil {
		return nil, explain(err)
	}
	names := make([]string, 0, len(tables))
	for _, t := range tables {
		names = append(names, t.Name)
	}
	return names, nil
}

// Elements reads the elements of a map or set as the kernel has them: keys and values are bytes, each field filled up to
// a multiple of four.
func (c *Conn) Elements(t Table, m Map) ([]nftables.SetElement, error) {
	lib, _, err := c.dial()
	if err != nil {
		return nil, err
	}
	defer hangUp(lib)
	elements, err := lib.GetSetElements(m.lib(t))
	if err != nil {
		return nil, fmt.Errorf("elements of %s: %w", m.Name, explain(err))
	}
	return elements, nil
}

func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return fault.New(fault.FailedPrecondition, "nftables: the kernel lacks nftables or an expression that is needed: %w", err)
	case errors.Is(err, unix.EPERM):
		return fault.New(fault.Forbidden, "nftables: not permitted, root is needed: %w", err)
	case errors.Is(err, unix.ENOENT):
		return fault.New(fault.NotFound, "nftables: %w", err)
	}
	return fmt.Errorf("nftables: %w", err)
}

// Tx is a transaction that is being put together.
type Tx struct {
	conn  *nftables.Conn
	bytes int // about how much is going to be sent
	sets  uint32
}

// size makes the socket hold the whole transaction, which the kernel takes in one message only, and answers without the
// requests in them.
func (tx *Tx) size(c *netlink.Conn) error {
	_ = c.SetOption(netlink.CapAcknowledge, true)
	// A megabyte of receive buffer holds some thousand acknowledgements.
	return errors.Join(c.SetWriteBuffer(max(1<<18, 2*tx.bytes)), c.SetReadBuffer(1<<20))
}

// Replace makes the table exactly as described, whether or not it was there. A transaction that deletes anything (this
// one, SetChain, SetMap, Take) keeps the kernel busy for an RCU grace period after it, 4 to 20 ms; one that only adds does not:
// where a table cannot be there yet, as in a new namespace, Add is the better choice.
func (tx *Tx) Replace(t Table, c Content) {
	tx.Delete(t)
	tx.Add(t, c)
}

// Add makes the table if it is not there and adds to it. Chains that are there keep their rules, and the new rules come
// after them.
func (tx *Tx) Add(t Table, c Content) {
	tx.conn.AddTable(t.lib())
	for _, m := range c.Maps {
		tx.addMap(t, m)
	}
	for _, ch := range c.Chains {
		tx.addChain(t, ch)
	}
	for _, m := range c.Maps { // after the chains: verdicts name them
		tx.Put(t, m, m.Elements)
	}
	for _, ch := range c.Chains {
		tx.addRules(t, ch)
	}
}

// Delete removes the table with everything in it; none there is no error.
func (tx *Tx) Delete(t Table) {
	tx.conn.AddTable(t.lib())
	tx.conn.DelTable(t.lib())
}

// SetChain replaces the rules of a chain, which is made if it is not there.
func (tx *Tx) SetChain(t Table, ch Chain) {
	tx.addChain(t, ch)
	tx.conn.FlushChain(&nftables.Chain{Name: ch.Name, Table: t.lib()})
	tx.addRules(t, ch)
}

// DeleteChain removes a chain that is there and that nothing jumps to.
func (tx *Tx) DeleteChain(t Table, name string) {
	c := &nftables.Chain{Name: name, Table: t.lib()}
	tx.conn.FlushChain(c)
	tx.conn.DelChain(c)
}

// SetMap replaces the elements of a map or set, which is made if it is not there.
func (tx *Tx) SetMap(t Table, m Map) {
	tx.addMap(t, m)
	tx.conn.FlushSet(m.lib(t))
	tx.Put(t, m, m.Elements)
}

// DeleteMap removes a map or set that is there and that no rule uses.
func (tx *Tx) DeleteMap(t Table, m Map) { tx.conn.DelSet(m.lib(t)) }

// Put adds elements to a map or set that is there. An element that is there already with the same value is no error;
// with another value the transaction fails with EEXIST.
func (tx *Tx) Put(t Table, m Map, elements []Element) {
	set := m.lib(t)
	for part := range chunks(m.encode(elements)) {
		_ = tx.conn.SetAddElements(set, part) // cannot fail: named, and marshals byte slices
	}
	tx.bytes += 160 * len(elements)
}

// Take removes elements, of which the keys count, from a map or set. Each must be there.
func (tx *Tx) Take(t Table, m Map, elements []Element) {
	set := m.lib(t)
	for part := range chunks(m.encode(elements)) {
		_ = tx.conn.SetDeleteElements(set, part)
	}
	tx.bytes += 160 * len(elements)
}

func (tx *Tx) addChain(t Table, ch Chain) {
	c := &nftables.Chain{Name: ch.Name, Table: t.lib()}
	if ch.Type != "" {
		policy := nftables.ChainPolicyAccept
		if ch.PolicyDrop {
			policy = nftables.ChainPolicyDrop
		}
		c.Type = nftables.ChainType(ch.Type)
		c.Hooknum = nftables.ChainHookRef(nftables.ChainHook(ch.Hook))
		c.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(ch.Priority))
		c.Policy = &policy
	}
	tx.conn.AddChain(c)
	tx.bytes += 200
}

func (tx *Tx) addRules(t Table, ch Chain) {
	for _, r := range ch.Rules {
		tx.conn.AddRule(&nftables.Rule{Table: t.lib(), Chain: &nftables.Chain{Name: ch.Name}, Exprs: r})
		tx.bytes += 100 + 80*len(r)
	}
}

func (tx *Tx) addMap(t Table, m Map) {
	set := m.lib(t)
	// The number is the transaction's own. Left to the library it would come from a counter that all transactions of the
	// process share without a lock.
	tx.sets++
	set.ID = tx.sets
	_ = tx.conn.AddSet(set, nil) // fails for anonymous sets only
	tx.bytes += 300
}

func (m Map) lib(t Table) *nftables.Set {
	s := &nftables.Set{Table: t.lib(), Name: m.Name, IsMap: m.Verdicts || len(m.Value) > 0, Interval: m.Interval,
		KeyType: join(m.Key), Concatenation: len(m.Key) > 1}
	if len(m.Key) == 1 && slices.Contains(hostOrder, m.Key[0].Type.Name) {
		s.KeyByteOrder = binaryutil.NativeEndian // for the eyes of those who list it
	}
	switch {
	case m.Verdicts:
		s.DataType = nftables.TypeVerdict
	case s.IsMap:
		s.DataType = join(m.Value)
	}
	return s
}

// hostOrder are the types whose values are in the machine's byte order.
var hostOrder = []string{nftables.TypeInteger.Name, nftables.TypeMark.Name, nftables.TypeIFName.Name, nftables.TypeIFIndex.Name}

func join(fields []Field) nftables.SetDatatype {
	if len(fields) == 1 {
		return fields[0].Type
	}
	types := make([]nftables.SetDatatype, 0, len(fields))
	for _, f := range fields {
		types = append(types, f.Type)
	}
	return nftables.MustConcatSetType(types...)
}

func (m Map) encode(elements []Element) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(elements))
	for _, e := range elements {
		el := nftables.SetElement{Key: key(e.Key)}
		if m.Interval && len(e.KeyEnd) > 0 {
			el.KeyEnd = key(e.KeyEnd)
		}
		switch {
		case m.Verdicts && len(e.Do) > 0:
			el.VerdictData, _ = e.Do[len(e.Do)-1].(*expr.Verdict)
		case len(e.Value) > 0:
			el.Val = key(e.Value)
		}
		out = append(out, el)
	}
	return out
}

// chunks cuts the elements so that each part fits a netlink attribute, which is at most 64 KiB long.
func chunks(all []nftables.SetElement) func(yield func([]nftables.SetElement) bool) {
	return func(yield func([]nftables.SetElement) bool) {
		for len(all) > 0 {
			n := min(len(all), 300)
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}
