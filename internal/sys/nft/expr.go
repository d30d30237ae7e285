package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rule is a rule's expressions in order: matches, statements, and a verdict at the end. Rules are written as
//
//	nft.Join(nft.Is(nft.IIfName, "eth0"), nft.Is(nft.L4Proto, nft.TCP), nft.Is(nft.DstPort, nft.Port(80)), nft.Drop())
type Rule []expr.Any

// Join puts the parts of a rule together.
func Join(parts ...Rule) Rule {
	var r Rule
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

// Field is something of a packet, its connection or a generator that a rule can look at.
type Field struct {
	Type nftables.SetDatatype
	load func(register uint32) []expr.Any
}

// Port is a transport port; Proto a transport protocol; Mark a packet or connection mark; Index a number made by
// Random, RoundRobin or Hash.
type (
	Port  uint16
	Proto uint8
	Mark  uint32
	Index uint32
)

// The protocols.
const (
	TCP    Proto = unix.IPPROTO_TCP
	UDP    Proto = unix.IPPROTO_UDP
	SCTP   Proto = unix.IPPROTO_SCTP
	ICMP   Proto = unix.IPPROTO_ICMP
	ICMPv6 Proto = unix.IPPROTO_ICMPV6
)

// The fields.
var (
	SrcIP4   = payload(nftables.TypeIPAddr, expr.PayloadBaseNetworkHeader, 12, 4)
	DstIP4   = payload(nftables.TypeIPAddr, expr.PayloadBaseNetworkHeader, 16, 4)
	SrcIP6   = payload(nftables.TypeIP6Addr, expr.PayloadBaseNetworkHeader, 8, 16)
	DstIP6   = payload(nftables.TypeIP6Addr, expr.PayloadBaseNetworkHeader, 24, 16)
	SrcPort  = payload(nftables.TypeInetService, expr.PayloadBaseTransportHeader, 0, 2)
	DstPort  = payload(nftables.TypeInetService, expr.PayloadBaseTransportHeader, 2, 2)
	NFProto  = meta(nftables.TypeNFProto, expr.MetaKeyNFPROTO)
	L4Proto  = meta(nftables.TypeInetProto, expr.MetaKeyL4PROTO)
	IIf      = meta(nftables.TypeIFIndex, expr.MetaKeyIIF)
	OIf      = meta(nftables.TypeIFIndex, expr.MetaKeyOIF)
	IIfName  = meta(nftables.TypeIFName, expr.MetaKeyIIFNAME)
	OIfName  = meta(nftables.TypeIFName, expr.MetaKeyOIFNAME)
	PktMark  = meta(nftables.TypeMark, expr.MetaKeyMARK)
	CTMark   = ct(nftables.TypeMark, expr.CtKeyMARK)
	CTState  = ct(nftables.TypeCTState, expr.CtKeySTATE)
	CTStatus = ct(nftables.TypeCTStatus, expr.CtKeySTATUS)
	// CTDstPort is the port that the connection's first packet was sent to, before any translation.
	CTDstPort = ct(nftables.TypeInetService, expr.CtKeyPROTODST)
	// CTDstIP4 and CTDstIP6 are the addresses that it was sent to.
	CTDstIP4 = ct(nftables.TypeIPAddr, expr.CtKeyDST)
	CTDstIP6 = ct(nftables.TypeIP6Addr, expr.CtKeyDST)
	// DstType is what the routing table says of the destination: Local, Unicast, …
	DstType = Field{Type: nftables.TypeFIBAddr, load: func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true}}
	}}
)

// Values of CTState and CTStatus, tested by AnyBit, and of DstType.
const (
	StateInvalid     uint32 = 1
	StateEstablished uint32 = 2
	StateRelated     uint32 = 4
	StateNew         uint32 = 8
	StatusSNAT       uint32 = 1 << 4
	StatusDNAT       uint32 = 1 << 5
	TypeLocal        uint32 = unix.RTN_LOCAL
)

// Random is a number from 0 below n, another one for each packet.
func Random(n uint32) Field { return numgen(unix.NFT_NG_RANDOM, n) }

// RoundRobin is a number from 0 below n: one more for each packet that comes to the rule.
func RoundRobin(n uint32) Field { return numgen(unix.NFT_NG_INCREMENTAL, n) }

func numgen(kind, n uint32) Field {
	return Field{Type: nftables.TypeInteger, load: func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Numgen{Register: reg, Modulus: n, Type: kind}}
	}}
}

// Hash is a number from 0 below n that depends on the values of the fields only.
func Hash(n, seed uint32, fields ...Field) Field {
	return Field{Type: nftables.TypeInteger, load: func(reg uint32) []expr.Any {
		out, size := loadAll(scratch, fields)
		return append(out, &expr.Hash{SourceRegister: register(scratch), DestRegister: reg, Length: size, Modulus: n,
			Seed: seed, Type: expr.HashTypeJenkins})
	}}
}

// scratch is the first of the four bytes wide registers (of 16) that Hash loads its fields into.
const scratch = 8

func payload(t nftables.SetDatatype, base expr.PayloadBase, offset, size uint32) Field {
	return Field{Type: t, load: func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: size}}
	}}
}

func meta(t nftables.SetDatatype, key expr.MetaKey) Field {
	return Field{Type: t, load: func(reg uint32) []expr.Any { return []expr.Any{&expr.Meta{Key: key, Register: reg}} }}
}

func ct(t nftables.SetDatatype, key expr.CtKey) Field {
	return Field{Type: t, load: func(reg uint32) []expr.Any { return []expr.Any{&expr.Ct{Key: key, Register: reg}} }}
}

// register names the register that starts at the given word: those of 16 bytes are 1 to 4, and between their starts
// those of 4 bytes, from 8 on, as the nft command does it.
func register(word uint32) uint32 {
	if word%4 == 0 {
		return unix.NFT_REG_1 + word/4
	}
	return unix.NFT_REG32_00 + word
}

// loadAll loads the fields side by side from the given word on and returns how many bytes they take.
func loadAll(word uint32, fields []Field) (out []expr.Any, size uint32) {
	for _, f := range fields {
		out = append(out, f.load(register(word+size/4))...)
		size += (f.Type.Bytes + 3) / 4 * 4
	}
	return out, size
}

// Is matches packets whose field has the value.
func Is(f Field, value any) Rule { return compare(f, expr.CmpOpEq, value) }

// Not matches packets whose field has another value.
func Not(f Field, value any) Rule { return compare(f, expr.CmpOpNeq, value) }

func compare(f Field, op expr.CmpOp, value any) Rule {
	return append(f.load(unix.NFT_REG_1), &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: encode(value)})
}

// In matches packets whose address field is in the prefix.
func In(f Field, p netip.Prefix) Rule { return inPrefix(f, expr.CmpOpEq, p) }

// NotIn matches packets whose address field is outside the prefix.
func NotIn(f Field, p netip.Prefix) Rule { return inPrefix(f, expr.CmpOpNeq, p) }

func inPrefix(f Field, op expr.CmpOp, p netip.Prefix) Rule {
	p = p.Masked()
	size := p.Addr().BitLen() / 8
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(f.load(unix.NFT_REG_1),
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: p.Addr().AsSlice()})
}

// AnyBit matches packets whose field (a mark, state or status) has at least one of the bits.
func AnyBit(f Field, bits uint32) Rule { return masked(f, expr.CmpOpNeq, bits, 0) }

// Masked matches packets whose field has the value in the bits of mask.
func Masked(f Field, mask, value uint32) Rule { return masked(f, expr.CmpOpEq, mask, value) }

func masked(f Field, op expr.CmpOp, mask, value uint32) Rule {
	return append(f.load(unix.NFT_REG_1),
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: native(mask), Xor: native(0)},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: native(value)})
}

// IPv4 matches packets of IPv4, in a table of family inet.
func IPv4() Rule { return Is(NFProto, Proto(unix.NFPROTO_IPV4)) }

// IPv6 matches packets of IPv6, in a table of family inet.
func IPv6() Rule { return Is(NFProto, Proto(unix.NFPROTO_IPV6)) }

// InSet matches packets whose fields, taken together, are an element of the named set.
func InSet(set string, fields ...Field) Rule { return lookup(set, false, fields) }

// NotInSet matches packets whose fields, taken together, are no element of the named set.
func NotInSet(set string, fields ...Field) Rule { return lookup(set, true, fields) }

func lookup(set string, invert bool, fields []Field) Rule {
	out, _ := loadAll(0, fields)
	return append(out, &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: set, Invert: invert})
}

// VerdictMap takes the verdict that the named map has for the fields; a packet that is not in the map goes on to the
// next rule.
func VerdictMap(name string, fields ...Field) Rule {
	out, _ := loadAll(0, fields)
	return append(out, &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: name, IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT})
}

func mapped(name string, fields []Field) Rule {
	out, _ := loadAll(0, fields)
	return append(out, &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: name, IsDestRegSet: true, DestRegister: unix.NFT_REG_1})
}

// MarkMap sets the packet's mark to what the named map (to Mark) has for the fields.
func MarkMap(name string, fields ...Field) Rule {
	return append(mapped(name, fields), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1})
}

// FieldMap is a field whose value is what the named map, of data type t, has for the fields; a rule that uses it ends
// for packets that are not in the map. It must be the first field where several are used.
func FieldMap(t nftables.SetDatatype, name string, fields ...Field) Field {
	return Field{Type: t, load: func(reg uint32) []expr.Any {
		out, _ := loadAll(scratch, fields)
		return append(out, &expr.Lookup{SourceRegister: register(scratch), SetName: name, IsDestRegSet: true, DestRegister: reg})
	}}
}

// DNATMap sends the packet's connection to the address and port that the named map (to an address and a Port) has for
// the fields; a packet that is not in the map goes on to the next rule. v6 is the family of the addresses.
func DNATMap(v6 bool, name string, fields ...Field) Rule {
	n := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: unix.NFT_REG_1, RegProtoMin: register(1), Specified: true}
	if v6 {
		n.Family, n.RegProtoMin = unix.NFPROTO_IPV6, register(4)
	}
	return append(mapped(name, fields), n)
}

// DNATAddrMap is DNATMap with a map to addresses: the port stays.
func DNATAddrMap(v6 bool, name string, fields ...Field) Rule {
	n := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: unix.NFT_REG_1}
	if v6 {
		n.Family = unix.NFPROTO_IPV6
	}
	return append(mapped(name, fields), n)
}

// DNAT sends the packet's connection to an address and, unless it is 0, a port.
func DNAT(addr netip.Addr, port uint16) Rule { return nat(expr.NATTypeDestNAT, addr, port) }

// SNAT gives the packet's connection a source address and, unless it is 0, a source port.
func SNAT(addr netip.Addr, port uint16) Rule { return nat(expr.NATTypeSourceNAT, addr, port) }

func nat(t expr.NATType, addr netip.Addr, port uint16) Rule {
	n := &expr.NAT{Type: t, Family: unix.NFPROTO_IPV4, RegAddrMin: unix.NFT_REG_1}
	if addr.Is6() {
		n.Family = unix.NFPROTO_IPV6
	}
	r := Rule{&expr.Immediate{Register: unix.NFT_REG_1, Data: addr.AsSlice()}}
	if port != 0 {
		r = append(r, &expr.Immediate{Register: unix.NFT_REG_2, Data: encode(Port(port))})
		n.RegProtoMin, n.Specified = unix.NFT_REG_2, true
	}
	return append(r, n)
}

// Masquerade gives the packet's connection the address of the interface that it leaves by.
func Masquerade() Rule { return Rule{&expr.Masq{}} }

// RedirectTo sends the packet's connection to a port of this namespace.
func RedirectTo(port uint16) Rule {
	return Rule{&expr.Immediate{Register: unix.NFT_REG_1, Data: encode(Port(port))}, &expr.Redir{RegisterProtoMin: unix.NFT_REG_1}}
}

// SetMark sets the bits of mask in the packet's mark to those of value.
func SetMark(mask, value uint32) Rule {
	r := Rule(PktMark.load(unix.NFT_REG_1))
	return append(r, merge(mask, value), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1})
}

// SetCTMark sets the bits of mask in the connection's mark to those of value.
func SetCTMark(mask, value uint32) Rule {
	r := Rule(CTMark.load(unix.NFT_REG_1))
	return append(r, merge(mask, value), &expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1})
}

// SetCTMarkFrom sets the connection's mark to the value of a field of four bytes.
func SetCTMarkFrom(f Field) Rule {
	return append(f.load(unix.NFT_REG_1), &expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1})
}

// RestoreMark sets the packet's mark to the bits of mask of its connection's mark.
func RestoreMark(mask uint32) Rule {
	r := Rule(CTMark.load(unix.NFT_REG_1))
	return append(r,
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: native(mask), Xor: native(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1})
}

func merge(mask, value uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: native(^mask), Xor: native(value & mask)}
}

// Count counts the packets and bytes that come this far in the rule.
func Count() Rule { return Rule{&expr.Counter{}} }

// OwnSocket matches packets of a connection that a socket of the namespace is bound to with this very address: an
// established one, seen from either end, and not a listener on all addresses. Linux 5.14; Do fails where the kernel has no
// such expression.
func OwnSocket() Rule {
	r := register(0)
	return Rule{
		&expr.Socket{Key: expr.SocketKeyWildcard, Register: r},
		&expr.Cmp{Op: expr.CmpOpEq, Register: r, Data: []byte{0}},
	}
}

// NoTrack keeps the packet out of connection tracking; in a chain of priority PriorityRaw.
func NoTrack() Rule { return Rule{&expr.Notrack{}} }

// Accept lets the packet go on behind this chain's hook; chains of other tables still see it.
func Accept() Rule { return Rule{&expr.Verdict{Kind: expr.VerdictAccept}} }

// Drop ends the packet's way, whatever other tables say.
func Drop() Rule { return Rule{&expr.Verdict{Kind: expr.VerdictDrop}} }

// Return goes back to the chain that jumped here, or to a base chain's policy.
func Return() Rule { return Rule{&expr.Verdict{Kind: expr.VerdictReturn}} }

// Jump goes on in a chain of the same table and comes back.
func Jump(chain string) Rule { return Rule{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

// Goto goes on in a chain of the same table and does not come back.
func Goto(chain string) Rule { return Rule{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }

// Reject answers that the port cannot be reached (and resets TCP).
func Reject() Rule {
	return Rule{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
}

// encode is a value as the kernel compares it: addresses and ports in network order, the rest in the machine's.
func encode(v any) []byte {
	switch v := v.(type) {
	case netip.Addr:
		return v.AsSlice()
	case Port:
		return binary.BigEndian.AppendUint16(nil, uint16(v))
	case Proto:
		return []byte{byte(v)}
	case Mark:
		return native(uint32(v))
	case Index:
		return native(uint32(v))
	case uint32:
		return native(v)
	case int:
		return native(uint32(v))
	case string: // an interface name
		b := make([]byte, unix.IFNAMSIZ)
		copy(b[:unix.IFNAMSIZ-1], v)
		return b
	case []byte:
		return v
	}
	panic(fmt.Sprintf("nft: no encoding for %T", v)) // a mistake in the calling code, never outside input
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// key is several values side by side, each filled up to four bytes; a single value is not filled up.
func key(values []any) []byte {
	if len(values) == 1 {
		return encode(values[0])
	}
	var out []byte
	for _, v := range values {
		out = append(out, encode(v)...)
		for len(out)%4 != 0 {
			out = append(out, 0)
		}
	}
	return out
}
