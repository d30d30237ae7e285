// Package ipam hands out the subnets and addresses of a host's own networks. It holds nothing on disk: whoever uses it
// keeps what it was given and claims it again after a restart. It is not safe for concurrent use.
package ipam

import (
	"crypto/rand"
	"errors"
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Pool is address space that subnets of Size bits are cut from.
type Pool struct {
	Base netip.Prefix
	Size int
}

// DefaultPools are Docker's: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in parts of 4096 addresses.
func DefaultPools() []Pool {
	pools := make([]Pool, 0, 16)
	for b := byte(17); b < 32; b++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, b}), 16)
		pools = append(pools, Pool{Base: p, Size: 16})
	}
	return append(pools, Pool{Base: netip.MustParsePrefix("192.168.0.0/16"), Size: 20})
}

// The errors that Docker's users and tests know by their words.
var (
	ErrOverlap   = errors.New("invalid pool request: Pool overlaps with other one on this address space")
	ErrNoSubnet  = errors.New("all predefined address pools have been fully subnetted")
	ErrTaken     = errors.New("Address already in use") //nolint:staticcheck // Docker's words
	ErrExhausted = errors.New("no available addresses on this pool")
)

// Request describes a subnet to be taken.
type Request struct {
	// Subnet, if it is invalid, is one that is cut from the pools; with an unspecified address (0.0.0.0/24, ::/96) one of
	// that size.
	Subnet  netip.Prefix
	Range   netip.Prefix
	Gateway netip.Addr // invalid: the first address, or none at all with NoGateway
	Aux     map[string]netip.Addr
	// NoGateway leaves a subnet without a gateway that was not asked for.
	NoGateway bool
	// Shared lets others that ask for it too take the very same subnet; an address is given once all the same. Networks
	// that lead to one physical network share its subnet so.
	Shared bool
}

// Given reports whether the subnet is asked for by its address.
func (r Request) Given() bool { return r.Subnet.IsValid() && !r.Subnet.Addr().IsUnspecified() }

// Space is the address space of a host: which subnets and addresses are taken.
type Space struct {
	pools   []Pool
	subnets map[ownedPrefix]*Subnet
}

// ownedPrefix is a subnet as one network has it.
type ownedPrefix struct {
	owner  string
	prefix netip.Prefix
}

// New returns an empty space; no pools stands for the default ones.
func New(pools []Pool) (*Space, error) {
	if len(pools) == 0 {
		pools = DefaultPools()
	}
	for _, p := range pools {
		if !p.Base.IsValid() || p.Base != p.Base.Masked() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen()-2 {
			return nil, fault.New(fault.InvalidArgument, "invalid address pool: base %s, size %d: want a network address and a size from %d to %d",
				p.Base, p.Size, max(p.Base.Bits(), 0), p.Base.Addr().BitLen()-2)
		}
	}
	return &Space{pools: pools, subnets: map[ownedPrefix]*Subnet{}}, nil
}

// Subnet is a subnet as one network has it.
type Subnet struct {
	Prefix  netip.Prefix
	Range   netip.Prefix
	Gateway netip.Addr // invalid: it has none
	Aux     map[string]netip.Addr
	*block
	hint netip.Addr // no address of the range below it is free
}

// block is the addresses of a subnet, which several networks may share.
type block struct {
	shared  bool
	used    map[netip.Addr]bool
	holders []*Subnet
}

// Check says what is wrong with a request for a given subnet, in Docker's words, or nil.
func Check(r Request) error {
	s := r.Subnet
	family := 4
	if s.Addr().Is6() {
		family = 6
	}
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fault.New(fault.InvalidArgument, format, args...))
	}
	if s != s.Masked() {
		bad("invalid subnet %s: it should be %s", s, s.Masked())
	}
	if s.Bits() > s.Addr().BitLen()-1 {
		bad("invalid subnet %s: it has no room for two endpoints", s)
	}
	if r.Range.IsValid() {
		switch {
		case r.Range.Addr().Is6() != s.Addr().Is6():
			bad("invalid ip-range %s: parent subnet is an IPv%d block", r.Range, family)
		case r.Range.Bits() < s.Bits():
			bad("invalid ip-range %s: CIDR block is bigger than its parent subnet %s", r.Range, s)
		case r.Range != r.Range.Masked():
			bad("invalid ip-range %s: it should be %s", r.Range, r.Range.Masked())
		case !s.Overlaps(r.Range):
			bad("invalid ip-range %s: parent subnet %s doesn't contain ip-range", r.Range, s)
		}
	}
	address := func(what string, a netip.Addr) {
		switch {
		case !a.IsValid():
		case a.Is6() != s.Addr().Is6():
			bad("invalid %s: parent subnet is an IPv%d block", what, family)
		case !s.Contains(a):
			bad("invalid %s: parent subnet %s doesn't contain this address", what, s)
		}
	}
	if r.Gateway.IsValid() {
		address("gateway "+r.Gateway.String(), r.Gateway)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Aux)) {
		address("auxiliary address "+name, r.Aux[name])
	}
	if err := errors.Join(errs...); err != nil {
		return fault.New(fault.InvalidArgument, "invalid network config:\n%w", err)
	}
	return nil
}

// Take takes a subnet for a network, the owner. One that is asked for must not overlap with one that is taken, but for
// shared ones; one that is cut from the pools does not overlap with those of avoid (the host's routes) either. v6 chooses
// the family of one that is cut; without IPv6 pools it is a random unique local one.
func (s *Space) Take(owner string, r Request, v6 bool, avoid []netip.Prefix) (*Subnet, error) {
	if !r.Given() {
		p, err := s.cut(v6, r.Subnet.Bits(), avoid)
		if err != nil {
			return nil, err
		}
		if r.Range.IsValid() || r.Gateway.IsValid() || len(r.Aux) > 0 {
			return nil, fault.New(fault.InvalidArgument, "invalid network config: an ip-range, gateway or auxiliary address needs a subnet")
		}
		r.Subnet = p
	} else if err := Check(r); err != nil {
		return nil, err
	}
	b, err := s.blockFor(owner, r)
	if err != nil {
		return nil, err
	}
	n := &Subnet{Prefix: r.Subnet, Range: r.Range, Gateway: r.Gateway, Aux: r.Aux, block: b}
	if !n.Range.IsValid() {
		n.Range = n.Prefix
	}
	n.hint = n.Range.Addr()
	var taken []netip.Addr
	defer func() {
		if s.subnets[ownedPrefix{owner, n.Prefix}] != n {
			for _, a := range taken {
				delete(b.used, a)
			}
		}
	}()
	for _, name := range slices.Sorted(maps.Keys(n.Aux)) {
		if a := n.Aux[name]; b.used[a] {
			return nil, fault.New(fault.InvalidArgument, "invalid auxiliary address %s: %s cannot be used or is given twice", name, a)
		}
		b.used[n.Aux[name]] = true
		taken = append(taken, n.Aux[name])
	}
	switch {
	case n.Gateway.IsValid() && b.used[n.Gateway]:
		return nil, fault.New(fault.InvalidArgument, "invalid gateway %s: it is the subnet's own, its broadcast, an auxiliary address or another network's", n.Gateway)
	case n.Gateway.IsValid():
		b.used[n.Gateway] = true
	case !r.NoGateway:
		// The first address that is free, from the range if there is one, as Docker does.
		if n.Gateway, err = n.Alloc(netip.Addr{}); err != nil {
			return nil, err
		}
	}
	b.holders = append(b.holders, n)
	s.subnets[ownedPrefix{owner, n.Prefix}] = n
	return n, nil
}

// blockFor finds the addresses of a shared subnet, or begins new ones.
func (s *Space) blockFor(owner string, r Request) (*block, error) {
	var found *block
	for k, t := range s.subnets {
		switch {
		case !k.prefix.Overlaps(r.Subnet):
		case k.prefix == r.Subnet && k.owner != owner && r.Shared && t.shared:
			found = t.block
		default:
			return nil, fault.As(fault.Forbidden, ErrOverlap)
		}
	}
	if found != nil {
		return found, nil
	}
	b := &block{shared: r.Shared, used: map[netip.Addr]bool{}}
	switch room := r.Subnet.Addr().BitLen() - r.Subnet.Bits(); {
	case r.Subnet.Addr().Is6():
		b.used[r.Subnet.Addr()] = true // that of any router
	case room > 1: // two hosts on a wire have no use for these (RFC 3021)
		b.used[r.Subnet.Addr()], b.used[last(r.Subnet)] = true, true
	}
	return b, nil
}

// Give takes an owner's subnet back; once nobody shares it, with all its addresses.
func (s *Space) Give(owner string, p netip.Prefix) {
	k := ownedPrefix{owner, p}
	n := s.subnets[k]
	if n == nil {
		return
	}
	delete(s.subnets, k)
	n.holders = slices.DeleteFunc(n.holders, func(o *Subnet) bool { return o == n })
	for _, a := range n.Aux {
		n.release(a)
	}
	if n.Gateway.IsValid() {
		n.release(n.Gateway)
	}
}

// Subnet is the subnet that the owner has taken as p, nil if it has none.
func (s *Space) Subnet(owner string, p netip.Prefix) *Subnet { return s.subnets[ownedPrefix{owner, p}] }

// Status counts the addresses of the subnet that are in use, whoever shares it, and those of the range that can still be
// given. What does not fit the numbers is the greatest there is.
func (n *Subnet) Status() (inUse, available uint64) {
	inRange := uint64(0)
	for a := range n.used {
		if n.Range.Contains(a) {
			inRange++
		}
	}
	switch room := n.Range.Addr().BitLen() - n.Range.Bits(); {
	case room < 64:
		available = 1<<room - inRange
	case room == 64 && inRange > 0:
		available = math.MaxUint64 - inRange + 1
	default:
		available = math.MaxUint64
	}
	return uint64(len(n.used)), available
}

// cut takes a free subnet from the pools, of the pools' sizes or, if size is above 0, of that.
func (s *Space) cut(v6 bool, size int, avoid []netip.Prefix) (netip.Prefix, error) {
	free := func(p netip.Prefix) (blocker netip.Prefix, ok bool) {
		for t := range s.subnets {
			if t.prefix.Overlaps(p) {
				return t.prefix, false
			}
		}
		for _, t := range avoid {
			if t.Overlaps(p) {
				return t, false
			}
		}
		return netip.Prefix{}, true
	}
	none := true
	for _, pool := range s.pools {
		if pool.Base.Addr().Is6() != v6 {
			continue
		}
		none = false
		if size > 0 {
			if pool.Size = size; size < pool.Base.Bits() {
				continue
			}
		}
		for p := netip.PrefixFrom(pool.Base.Addr(), pool.Size); p.IsValid() && pool.Base.Contains(p.Addr()); {
			blocker, ok := free(p)
			if ok {
				return p, nil
			}
			// Go on behind whichever of the two is bigger.
			if blocker.Bits() > p.Bits() {
				blocker = p
			}
			next := last(blocker.Masked()).Next()
			if !next.IsValid() || !pool.Base.Contains(next) {
				break
			}
			p = netip.PrefixFrom(next, pool.Size)
		}
	}
	if v6 && none {
		for range 16 {
			a := [16]byte{0: 0xfd}
			_, _ = rand.Read(a[1:6])
			p := netip.PrefixFrom(netip.AddrFrom16(a), 64)
			if _, ok := free(p); ok {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, fault.As(fault.Exhausted, ErrNoSubnet)
}

// Alloc takes an address of the subnet: the wanted one, which must be free but may be outside the range, or with an
// invalid one the lowest free of the range.
func (n *Subnet) Alloc(want netip.Addr) (netip.Addr, error) {
	if want.IsValid() {
		if !n.Prefix.Contains(want) {
			return want, fault.New(fault.InvalidArgument, "invalid address %s: it is not in the network's subnet %s", want, n.Prefix)
		}
		if n.used[want] {
			return want, fault.New(fault.AlreadyExists, "%w: %s", ErrTaken, want)
		}
		n.used[want] = true
		return want, nil
	}
	for a := n.hint; a.IsValid() && n.Range.Contains(a); a = a.Next() {
		if !n.used[a] {
			n.used[a] = true
			n.hint = a.Next()
			return a, nil
		}
	}
	n.hint = last(n.Range) // full: do not look again before something is freed
	return netip.Addr{}, fault.New(fault.Exhausted, "%w: %s", ErrExhausted, n.Range)
}

// Free gives an endpoint's address back.
func (n *Subnet) Free(a netip.Addr) {
	if n.used[a] && !slices.ContainsFunc(n.holders, func(h *Subnet) bool { return a == h.Gateway }) {
		n.release(a)
	}
}

func (b *block) release(a netip.Addr) {
	delete(b.used, a)
	for _, h := range b.holders {
		if h.Range.Contains(a) && a.Less(h.hint) || !h.hint.IsValid() {
			h.hint = a
		}
	}
}

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
