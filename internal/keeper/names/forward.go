package names

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// Askers give up after about five seconds a try: two rounds over the servers must have been made by then where one of
// two does not answer.
const (
	askTimeout   = 1500 * time.Millisecond
	totalTimeout = 8 * time.Second
	rounds       = 2
	silence      = 10 * time.Second // how long a server that did not answer is asked last
)

// forward asks the sandbox's upstream servers one after the other and returns the first good answer; else the last bad
// one, or a failure.
func (b *box) forward(f *question, udp bool) []byte {
	r, _ := b.resolver()
	ctx, cancel := context.WithTimeout(b.ctx, totalTimeout)
	defer cancel()
	var bad []byte
	for range rounds {
		for _, server := range b.server.order(r.Upstreams) {
			if ctx.Err() != nil {
				return f.fail()
			}
			reply, err := b.ask(ctx, f, server, r.UpstreamsFromHost, udp)
			if err != nil {
				b.server.silent.Store(server, time.Now())
				b.server.log.Debug("an upstream name server did not answer", "server", server, "name", f.name, "error", err)
				continue
			}
			b.server.silent.Delete(server)
			switch dnsmessage.RCode(reply[3] & 0xf) {
			case dnsmessage.RCodeSuccess, dnsmessage.RCodeNameError:
				return f.fit(reply, udp)
			}
			bad = reply
		}
		if bad != nil {
			return f.fit(bad, udp) // every server that lives has said no: a second round would say the same
		}
	}
	return f.fail()
}

// order puts the servers that have lately not answered behind the others, so that not every question waits for them.
func (s *Server) order(servers []netip.AddrPort) []netip.AddrPort {
	var first, last []netip.AddrPort
	for _, a := range servers {
		if at, ok := s.silent.Load(a); ok && time.Since(at.(time.Time)) < silence {
			last = append(last, a)
		} else {
			first = append(first, a)
		}
	}
	return append(first, last...)
}

// ask puts the question to one server. The ID on the way is a random one.
func (b *box) ask(ctx context.Context, f *question, server netip.AddrPort, fromHost, udp bool) ([]byte, error) {
	deadline := time.Now().Add(askTimeout)
	network := "tcp"
	if udp {
		network = "udp"
	}
	var c net.Conn
	dial := func() (err error) {
		d := net.Dialer{Deadline: deadline}
		c, err = d.DialContext(ctx, network, server.String())
		return err
	}
	var err error
	if fromHost {
		err = dial()
	} else {
		err = b.inside(dial)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	id := uint16(rand.Uint32())
	query := append([]byte(nil), f.query...)
	binary.BigEndian.PutUint16(query, id)
	if !udp {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := receive(c, *buf, udp)
		if err != nil {
			return nil, err
		}
		reply := (*buf)[:n]
		if f.matches(reply, id) {
			reply = append([]byte(nil), reply...)
			binary.BigEndian.PutUint16(reply, f.header.ID)
			return reply, nil
		}
		if !udp {
			return nil, errors.New("its answer is to another question")
		}
	}
}

func receive(c net.Conn, buf []byte, udp bool) (int, error) {
	if udp {
		return c.Read(buf)
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return 0, err
	}
	return io.ReadFull(c, buf[:binary.BigEndian.Uint16(size[:])])
}

// inside runs f in the sandbox's namespace.
func (b *box) inside(f func() error) error {
	ns, err := netns.Open(b.netns)
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", b.id, err)
	}
	defer func() { _ = ns.Close() }()
	return ns.Do(f)
}

// matches reports whether a message is an answer to the question.
func (f *question) matches(reply []byte, id uint16) bool {
	if len(reply) < headerSize {
		return false
	}
	var p dnsmessage.Parser
	h, err := p.Start(reply)
	if err != nil || h.ID != id || !h.Response {
		return false
	}
	q, err := p.Question()
	if err == dnsmessage.ErrSectionDone {
		return h.RCode != dnsmessage.RCodeSuccess // some servers refuse without repeating the question
	}
	return err == nil && q.Type == f.q.Type && q.Class == f.q.Class && strings.EqualFold(q.Name.String(), f.q.Name.String())
}

// fit truncates an answer that is longer than the asker can take.
func (f *question) fit(reply []byte, udp bool) []byte {
	limit := f.size
	if udp && f.edns {
		limit = max(limit, int(f.asked()))
	}
	if len(reply) <= limit {
		return reply
	}
	return f.pack(dnsmessage.RCode(reply[3]&0xf), true, func(*dnsmessage.Builder) error { return nil })
}

// asked is the length of answers that the asker says it takes.
func (f *question) asked() uint16 {
	var p dnsmessage.Parser
	if _, err := p.Start(f.query); err != nil || p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return plainUDP
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return plainUDP
		}
		if h.Type == dnsmessage.TypeOPT {
			return uint16(h.Class)
		}
		if p.SkipAdditional() != nil {
			return plainUDP
		}
	}
}
