package names

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sampan-cloud/sampan/internal/keeper"
)

const (
	headerSize = 12
	// plainUDP is what an answer by UDP may be long without EDNS; maxUDP is the most that is sent: what goes through any
	// Ethernet in one piece.
	plainUDP = 512
	maxUDP   = 1232
)

// question is a question that was understood.
type question struct {
	header dnsmessage.Header
	q      dnsmessage.Question
	name   string // lower case, without the trailing dot
	query  []byte // as it came
	edns   bool
	size   int // of the longest answer
}

// answer answers a message, or says that it is to be forwarded. Both are nil for what deserves no answer: it is no DNS
// message, or an answer itself.
func (b *box) answer(msg []byte, udp bool) (reply []byte, forward *question) {
	r, t := b.resolver()
	return answer(msg, udp, r, t)
}

func answer(msg []byte, udp bool, r keeper.Resolver, t *keeper.NameTable) (reply []byte, forward *question) {
	if len(msg) < headerSize {
		return nil, nil
	}
	f := &question{query: msg, size: 64<<10 - 1}
	if udp {
		f.size = plainUDP
	}
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.Response {
		return nil, nil
	}
	f.header = h
	if h.OpCode != 0 {
		return f.refuse(dnsmessage.RCodeNotImplemented), nil
	}
	q, err := p.Question()
	if err != nil || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return f.refuse(dnsmessage.RCodeFormatError), nil
	}
	f.q, f.name = q, lower(q.Name)
	if rc := f.readEDNS(&p, udp); rc != dnsmessage.RCodeSuccess {
		return f.reply(rc, nil), nil
	}
	if q.Class != dnsmessage.ClassINET && q.Class != dnsmessage.ClassANY {
		return f.reply(dnsmessage.RCodeRefused, nil), nil
	}
	if q.Type == dnsmessage.TypePTR {
		if addr, ok := reverse(f.name); ok {
			for _, id := range r.Networks {
				if name, ok := t.Networks[id].Reverse[addr]; ok {
					return f.replyPTR(name), nil
				}
			}
		}
	} else if servers, network, ok := serving(f.name, r, t); ok {
		if q.Type != dnsmessage.TypeSRV {
			servers = nil // the name is there, and has nothing else
		}
		return f.replySRV(servers, t.Networks[network].Records), nil
	} else if addrs, ok := lookup(f.name, r, t); ok {
		return f.reply(dnsmessage.RCodeSuccess, choose(addrs, q.Type)), nil
	}
	switch {
	case r.Authoritative && !strings.Contains(f.name, "."):
		return f.reply(dnsmessage.RCodeNameError, nil), nil
	case len(r.Upstreams) == 0:
		return f.fail(), nil
	}
	return nil, f
}

// readEDNS reads what the message says of itself behind its question.
func (f *question) readEDNS(p *dnsmessage.Parser, udp bool) dnsmessage.RCode {
	if p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return dnsmessage.RCodeFormatError
	}
	for {
		h, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			return dnsmessage.RCodeSuccess
		} else if err != nil {
			return dnsmessage.RCodeFormatError
		}
		if h.Type == dnsmessage.TypeOPT {
			if f.edns {
				return dnsmessage.RCodeFormatError // one at most
			}
			f.edns = true
			if udp {
				f.size = min(max(int(h.Class), plainUDP), maxUDP)
			}
			if version := byte(h.TTL >> 16); version != 0 {
				return badVersion
			}
		}
		if err := p.SkipAdditional(); err != nil {
			return dnsmessage.RCodeFormatError
		}
	}
}

// badVersion is the extended code for an EDNS version that is not known.
const badVersion dnsmessage.RCode = 16

// lookup finds a name: the sandbox's own first, then in its networks in order.
func lookup(name string, r keeper.Resolver, t *keeper.NameTable) ([]netip.Addr, bool) {
	if addrs, ok := r.Own[name]; ok {
		return addrs, true
	}
	for _, id := range r.Networks {
		if addrs, ok := t.Networks[id].Records[name]; ok {
			return addrs, true
		}
	}
	return nil, false
}

// serving finds who serves a port of a service, and on which network.
func serving(name string, r keeper.Resolver, t *keeper.NameTable) (servers []keeper.Server, network string, ok bool) {
	if !strings.HasPrefix(name, "_") {
		return nil, "", false
	}
	for _, id := range r.Networks {
		if servers, ok := t.Networks[id].Services[name]; ok {
			return servers, id, true
		}
	}
	return nil, "", false
}

// choose picks the addresses of the kind that is asked for, in another order each time.
func choose(addrs []netip.Addr, t dnsmessage.Type) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		switch t {
		case dnsmessage.TypeA:
			if a.Is4() {
				out = append(out, a)
			}
		case dnsmessage.TypeAAAA:
			if a.Is6() {
				out = append(out, a)
			}
		case dnsmessage.TypeALL:
			out = append(out, a)
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// reply is the answer with as many of the addresses as fit, marked as truncated if some do not: an asker that does not
// ask again by TCP then has at least those.
func (f *question) reply(rc dnsmessage.RCode, addrs []netip.Addr) []byte {
	msg := f.pack(rc, false, f.addresses(addrs))
	if len(msg) <= f.size {
		return msg
	}
	lo, hi := 0, len(addrs) // lo fit
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		if len(f.pack(rc, true, f.addresses(addrs[:mid]))) <= f.size {
			lo = mid
		} else {
			hi = mid
		}
	}
	return f.pack(rc, true, f.addresses(addrs[:lo]))
}

// addresses writes address records. Their time to live is 0: the next question gets what is true then.
func (f *question) addresses(addrs []netip.Addr) func(*dnsmessage.Builder) error {
	return func(b *dnsmessage.Builder) error { return addressRecords(b, f.q.Name, addrs) }
}

func addressRecords(b *dnsmessage.Builder, name dnsmessage.Name, addrs []netip.Addr) error {
	h := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}
	for _, a := range addrs {
		var err error
		if a = a.Unmap(); a.Is4() {
			err = b.AResource(h, dnsmessage.AResource{A: a.As4()})
		} else {
			err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.As16()})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// replySRV names the servers, in another order each time, with their addresses as far as these fit.
func (f *question) replySRV(servers []keeper.Server, records map[string][]netip.Addr) []byte {
	servers = slices.Clone(servers)
	rand.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	var msg []byte
	for n := len(servers); ; n /= 2 {
		some := func(b *dnsmessage.Builder) error { return f.servers(b, servers[:n]) }
		with := func(b *dnsmessage.Builder) error { return serverAddresses(b, servers[:n], records) }
		for _, additional := range []func(*dnsmessage.Builder) error{with, nil} {
			if msg = f.packAll(dnsmessage.RCodeSuccess, n < len(servers), some, additional); len(msg) <= f.size {
				return msg
			}
		}
		if n == 0 {
			return msg
		}
	}
}

func (f *question) servers(b *dnsmessage.Builder, servers []keeper.Server) error {
	for _, s := range servers {
		target, err := dnsmessage.NewName(s.Name + ".")
		if err != nil {
			return err
		}
		h := dnsmessage.ResourceHeader{Name: f.q.Name, Class: dnsmessage.ClassINET}
		if err := b.SRVResource(h, dnsmessage.SRVResource{Weight: 1, Port: s.Port, Target: target}); err != nil {
			return err
		}
	}
	return nil
}

func serverAddresses(b *dnsmessage.Builder, servers []keeper.Server, records map[string][]netip.Addr) error {
	done := map[string]bool{}
	for _, s := range servers {
		target, err := dnsmessage.NewName(s.Name + ".")
		if err != nil {
			return err
		}
		if done[s.Name] {
			continue
		}
		done[s.Name] = true
		if err := addressRecords(b, target, records[s.Name]); err != nil {
			return err
		}
	}
	return nil
}

func (f *question) replyPTR(name string) []byte {
	n, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		return f.fail()
	}
	return f.pack(dnsmessage.RCodeSuccess, false, func(b *dnsmessage.Builder) error {
		return b.PTRResource(dnsmessage.ResourceHeader{Name: f.q.Name, Class: dnsmessage.ClassINET}, dnsmessage.PTRResource{PTR: n})
	})
}

// fail says that the question cannot be answered now.
func (f *question) fail() []byte { return f.reply(dnsmessage.RCodeServerFailure, nil) }

func (f *question) pack(rc dnsmessage.RCode, truncated bool, answers func(*dnsmessage.Builder) error) []byte {
	return f.packAll(rc, truncated, answers, nil)
}

// packAll is pack with additional records, unless additional is nil.
func (f *question) packAll(rc dnsmessage.RCode, truncated bool, answers, additional func(*dnsmessage.Builder) error) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, plainUDP), f.replyHeader(rc, truncated))
	b.EnableCompression()
	err := b.StartQuestions()
	if err == nil {
		err = b.Question(f.q)
	}
	if err == nil {
		err = b.StartAnswers()
	}
	if err == nil {
		err = answers(&b)
	}
	if err == nil && (f.edns || additional != nil) {
		err = b.StartAdditionals()
		if err == nil && additional != nil {
			err = additional(&b)
		}
		if err == nil && f.edns {
			var h dnsmessage.ResourceHeader
			if err = h.SetEDNS0(maxUDP, rc, false); err == nil {
				err = b.OPTResource(h, dnsmessage.OPTResource{})
			}
		}
	}
	msg, ferr := b.Finish()
	if err != nil || ferr != nil {
		return f.refuse(dnsmessage.RCodeServerFailure)
	}
	return msg
}

func (f *question) replyHeader(rc dnsmessage.RCode, truncated bool) dnsmessage.Header {
	return dnsmessage.Header{ID: f.header.ID, Response: true, OpCode: f.header.OpCode, Truncated: truncated,
		RecursionDesired: f.header.RecursionDesired, RecursionAvailable: true, RCode: rc & 0xf}
}

// refuse answers with a header alone: for what was not understood.
func (f *question) refuse(rc dnsmessage.RCode) []byte {
	b := dnsmessage.NewBuilder(nil, f.replyHeader(rc, false))
	msg, err := b.Finish()
	if err != nil {
		return nil
	}
	return msg
}

// lower is a name as the table has it. Only ASCII letters have cases in DNS.
func lower(n dnsmessage.Name) string {
	b := []byte(strings.TrimSuffix(n.String(), "."))
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// reverse is the address that a name under in-addr.arpa or ip6.arpa stands for.
func reverse(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(s, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(s) != 63 {
		return netip.Addr{}, false
	}
	var a [16]byte
	for i := range 32 {
		c := s[62-2*i]
		var d byte
		switch {
		case '0' <= c && c <= '9':
			d = c - '0'
		case 'a' <= c && c <= 'f':
			d = c - 'a' + 10
		default:
			return netip.Addr{}, false
		}
		if i > 0 && s[63-2*i] != '.' {
			return netip.Addr{}, false
		}
		a[i/2] |= d << (4 * (1 - i%2))
	}
	return netip.AddrFrom16(a), true
}
