// Package names is the name server of a host's sandboxes, run by the keeper: for each sandbox a UDP and a TCP socket in
// its network namespace, which answer from the last keeper.NameTable and forward the rest. It goes on serving while
// there is no daemon, and it must start in next to no time, as the keeper's program is every container's init. (For that
// it reads and writes messages with x/net/dns/dnsmessage: with miekg/dns the program is 2 MB bigger and starts 0.3 ms
// later.)
package names

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

const (
	// inFlight bounds the questions of one sandbox that are being forwarded: each holds a socket of the keeper.
	inFlight = 128
	// connections bounds the TCP connections of one sandbox.
	connections = 64
	// tcpIdle ends a TCP connection on which nothing is asked.
	tcpIdle = 10 * time.Second
)

// Server answers the sandboxes of one host. It is safe for concurrent use.
type Server struct {
	log   *slog.Logger
	table atomic.Pointer[keeper.NameTable]
	// silent are the upstream servers that have not answered, with the time of it. They are few: those of the host's
	// resolv.conf, and those that users gave containers.
	silent sync.Map

	mu     sync.Mutex
	boxes  map[string]*box
	closed bool
	wg     sync.WaitGroup
}

// box is the sockets of one sandbox.
type box struct {
	id     string
	server *Server
	netns  string
	listen netip.AddrPort
	udp    *net.UDPConn
	tcp    net.Listener
	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{} // questions that are being forwarded
	conns  chan struct{}
}

// New returns a server without sandboxes.
func New(logger *slog.Logger) *Server {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{log: logger, boxes: map[string]*box{}}
	s.table.Store(&keeper.NameTable{})
	return s
}

// Set replaces what is served: sockets of new sandboxes are opened, those of sandboxes that are gone are closed, the
// others are not touched. A sandbox whose sockets cannot be opened does not keep the others from being served; it is
// named in the error and tried again by the next Set. The table is the server's from then on.
func (s *Server) Set(t keeper.NameTable) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("the name server is closed")
	}
	s.table.Store(&t)
	for id, b := range s.boxes {
		if r, ok := t.Sandboxes[id]; !ok || r.NetNS != b.netns || r.Listen != b.listen {
			b.close()
			delete(s.boxes, id)
		}
	}
	var errs []error
	for id, r := range t.Sandboxes {
		if s.boxes[id] != nil {
			continue
		}
		b, err := s.open(id, r)
		if err != nil {
			errs = append(errs, fmt.Errorf("name server of sandbox %s: %w", id, err))
			continue
		}
		s.boxes[id] = b
	}
	return errors.Join(errs...)
}

// Close closes all sockets and waits until nothing is answered any more.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, b := range s.boxes {
		b.close()
	}
	clear(s.boxes)
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

func (s *Server) open(id string, r keeper.Resolver) (*box, error) {
	ns, err := netns.Open(r.NetNS)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	b := &box{id: id, server: s, netns: r.NetNS, listen: r.Listen, slots: make(chan struct{}, inFlight), conns: make(chan struct{}, connections)}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	err = ns.Do(func() (err error) {
		if b.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(r.Listen)); err != nil {
			return err
		}
		if b.tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(r.Listen)); err != nil {
			_ = b.udp.Close()
		}
		return err
	})
	if err != nil {
		b.cancel()
		return nil, err
	}
	s.wg.Go(b.serveUDP)
	s.wg.Go(b.serveTCP)
	return b, nil
}

func (b *box) close() {
	b.cancel()
	_, _ = b.udp.Close(), b.tcp.Close()
}

// resolver is the box's part of the newest table.
func (b *box) resolver() (keeper.Resolver, *keeper.NameTable) {
	t := b.server.table.Load()
	return t.Sandboxes[b.id], t
}

// buffers are shared by all sandboxes: a sandbox that asks nothing holds none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

func (b *box) serveUDP() {
	raw, err := b.udp.SyscallConn()
	if err != nil {
		return
	}
	for {
		// Waiting for a question without holding a buffer for it.
		if err := raw.Read(readable); err != nil {
			return
		}
		buf := buffers.Get().(*[]byte)
		n, from, err := b.udp.ReadFromUDPAddrPort(*buf)
		if err != nil {
			buffers.Put(buf)
			if b.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // the asker has gone (port unreachable)
		}
		reply, forward := b.answer((*buf)[:n], true)
		switch {
		case reply != nil:
			_, _ = b.udp.WriteToUDPAddrPort(reply, from)
		case forward != nil:
			b.forwardUDP(forward, from)
		}
		buffers.Put(buf)
	}
}

// forwardUDP forwards a question in the background; forward.query is copied.
func (b *box) forwardUDP(f *question, from netip.AddrPort) {
	select {
	case b.slots <- struct{}{}:
	default:
		_, _ = b.udp.WriteToUDPAddrPort(f.fail(), from) // too many: the asker tries again
		return
	}
	f.query = append([]byte(nil), f.query...)
	b.server.wg.Go(func() {
		defer func() { <-b.slots }()
		_, _ = b.udp.WriteToUDPAddrPort(b.forward(f, true), from)
	})
}

func (b *box) serveTCP() {
	for {
		c, err := b.tcp.Accept()
		if err != nil {
			if b.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: let others finish.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-b.ctx.Done():
				return
			}
			continue
		}
		select {
		case b.conns <- struct{}{}:
			b.server.wg.Go(func() {
				defer func() { <-b.conns }()
				b.serveConn(c)
			})
		default:
			_ = c.Close()
		}
	}
}

func (b *box) serveConn(c net.Conn) {
	stop := context.AfterFunc(b.ctx, func() { _ = c.Close() })
	defer stop()
	defer func() { _ = c.Close() }()
	var size [2]byte
	for {
		_ = c.SetDeadline(time.Now().Add(tcpIdle))
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		reply, forward := b.answer(query, false)
		if forward != nil {
			select {
			case b.slots <- struct{}{}:
				reply = b.forward(forward, false)
				<-b.slots
			default:
				reply = forward.fail()
			}
		}
		if reply == nil {
			return // not a question
		}
		_ = c.SetDeadline(time.Now().Add(tcpIdle))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}
