package network

import (
	"maps"
	"net/netip"
	"sync"

	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// hostTable is the one table that this package has in the host's namespace. Everything that decides about packets of
// bridge networks is in it; what other programs have is not looked at.
var hostTable = nft.Table{Family: nft.INet, Name: "sampan"}

// The maps of published ports: those bound to one host address, and those bound to all. And the sets of published ports
// at containers' own addresses, where a network lets packets in that are routed there.
var (
	setOpen4 = nft.Map{Name: "open4", Key: []nft.Field{nft.DstIP4, nft.L4Proto, nft.DstPort}}
	setOpen6 = nft.Map{Name: "open6", Key: []nft.Field{nft.DstIP6, nft.L4Proto, nft.DstPort}}

	mapOne4 = nft.Map{Name: "one4", Key: []nft.Field{nft.DstIP4, nft.L4Proto, nft.DstPort}, Value: []nft.Field{nft.DstIP4, nft.DstPort}}
	mapAll4 = nft.Map{Name: "all4", Key: []nft.Field{nft.L4Proto, nft.DstPort}, Value: []nft.Field{nft.DstIP4, nft.DstPort}}
	mapOne6 = nft.Map{Name: "one6", Key: []nft.Field{nft.DstIP6, nft.L4Proto, nft.DstPort}, Value: []nft.Field{nft.DstIP6, nft.DstPort}}
	mapAll6 = nft.Map{Name: "all6", Key: []nft.Field{nft.L4Proto, nft.DstPort}, Value: []nft.Field{nft.DstIP6, nft.DstPort}}
)

// mapping is a published port as the kernel translates it.
type mapping struct {
	front
	to netip.AddrPort
}

// front is a port of the host.
type front struct {
	proto nft.Proto
	host  netip.AddrPort // unspecified address: all of its family
}

// opening is a published port of a container, at the container's own address.
type opening struct {
	proto nft.Proto
	to    netip.AddrPort
}

// segment is a bridge network as the firewall sees it.
type segment struct {
	link       string
	internal   bool
	icc        bool
	masquerade bool
	trusted    []string // interfaces
	four, six  side
}

// side is a segment for one version of IP.
type side struct {
	subnets []netip.Prefix
	mode    gatewayMode
	source  netip.Addr // of what leaves; invalid: the address of the interface that it leaves by
}

// firewall programs hostTable. It is safe for concurrent use.
type firewall struct {
	conn   *nft.Conn
	router *router
	// direct lets packets that are routed to a container's own address in by published ports, on all networks.
	direct bool
	accept *markRule

	mu       sync.Mutex
	segments map[string]segment // by network ID
	mappings map[front]netip.AddrPort
	opened   map[string][]opening // by sandbox
	open     map[opening]int      // how often each is in opened
}

// markRule matches packets whose mark has a value in the bits of a mask.
type markRule struct{ mask, value uint32 }

func newFirewall(conn *nft.Conn, r *router) *firewall {
	return &firewall{conn: conn, router: r, segments: map[string]segment{}, mappings: map[front]netip.AddrPort{},
		opened: map[string][]opening{}, open: map[opening]int{}}
}

// set adds or changes a network's rules.
func (f *firewall) set(id string, s segment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, had := f.segments[id]
	f.segments[id] = s
	if err := f.replace(); err != nil {
		delete(f.segments, id)
		if had {
			f.segments[id] = old
		}
		return err
	}
	return nil
}

// unset removes a network's rules.
func (f *firewall) unset(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.segments[id]; !ok {
		return nil
	}
	delete(f.segments, id)
	return f.replace()
}

// publication is what a sandbox publishes.
type publication struct {
	sandbox  string
	mappings []mapping
	open     []opening
}

// load sets everything at once, in one transaction.
func (f *firewall) load(segments map[string]segment, all []publication) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.segments, f.mappings, f.opened, f.open = segments, map[front]netip.AddrPort{}, map[string][]opening{}, map[opening]int{}
	for _, p := range all {
		for _, m := range p.mappings {
			f.mappings[m.front] = m.to
		}
		f.opened[p.sandbox] = p.open
		for _, o := range p.open {
			f.open[o]++
		}
	}
	return f.replace()
}

// publish makes the sandbox's mappings what the kernel translates by, whatever it translated those ports to before, and
// its openings those it has.
func (f *firewall) publish(p publication) error { return f.change(p, true) }

// unpublish removes mappings, and the sandbox's openings.
func (f *firewall) unpublish(p publication) error { return f.change(p, false) }

func (f *firewall) change(p publication, add bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, was := maps.Clone(f.mappings), f.opened[p.sandbox]
	closing, opening := f.reopen(p, add)
	err := f.conn.Do(func(tx *nft.Tx) error {
		for _, m := range p.mappings {
			to, there := f.mappings[m.front]
			if there && (!add || to != m.to) {
				table, element := mapping{m.front, to}.element()
				tx.Take(hostTable, table, []nft.Element{element})
				delete(f.mappings, m.front)
			}
			if add && to != m.to {
				table, element := m.element()
				tx.Put(hostTable, table, []nft.Element{element})
				f.mappings[m.front] = m.to
			}
		}
		for _, o := range closing {
			set, element := o.element()
			tx.Take(hostTable, set, []nft.Element{element})
		}
		for _, o := range opening {
			set, element := o.element()
			tx.Put(hostTable, set, []nft.Element{element})
		}
		return nil
	})
	if err != nil {
		if f.replace() == nil {
			return nil // somebody else had been at our table: it is right now, as a whole
		}
		f.mappings = old
		if add {
			f.reopen(publication{sandbox: p.sandbox, open: was}, true)
		} else {
			for _, m := range p.mappings {
				delete(f.mappings, m.front)
			}
		}
	}
	return err
}

// reopen enters a sandbox's openings in the books and returns what the kernel is to close and to open for it.
func (f *firewall) reopen(p publication, add bool) (closing, opening []opening) {
	want := p.open
	if !add {
		want = nil
	}
	was := f.opened[p.sandbox]
	for _, o := range want {
		if f.open[o]++; f.open[o] == 1 {
			opening = append(opening, o)
		}
	}
	for _, o := range was {
		if f.open[o]--; f.open[o] == 0 {
			delete(f.open, o)
			closing = append(closing, o)
		}
	}
	if f.opened[p.sandbox] = want; len(want) == 0 {
		delete(f.opened, p.sandbox)
	}
	return closing, opening
}

func (o opening) element() (nft.Map, nft.Element) {
	set := setOpen4
	if o.to.Addr().Is6() {
		set = setOpen6
	}
	return set, nft.Element{Key: []any{o.to.Addr(), o.proto, nft.Port(o.to.Port())}}
}

func (m mapping) element() (nft.Map, nft.Element) {
	value := []any{m.to.Addr(), nft.Port(m.to.Port())}
	switch all := m.host.Addr().IsUnspecified(); {
	case m.host.Addr().Is4() && all:
		return mapAll4, nft.Element{Key: []any{m.proto, nft.Port(m.host.Port())}, Value: value}
	case m.host.Addr().Is4():
		return mapOne4, nft.Element{Key: []any{m.host.Addr(), m.proto, nft.Port(m.host.Port())}, Value: value}
	case all:
		return mapAll6, nft.Element{Key: []any{m.proto, nft.Port(m.host.Port())}, Value: value}
	}
	return mapOne6, nft.Element{Key: []any{m.host.Addr(), m.proto, nft.Port(m.host.Port())}, Value: value}
}

// replace makes the table what the books say.
func (f *firewall) replace() error {
	return f.conn.Do(func(tx *nft.Tx) error {
		if len(f.segments) == 0 && len(f.mappings) == 0 {
			tx.Delete(hostTable)
			return nil
		}
		tx.Replace(hostTable, f.content())
		return nil
	})
}
