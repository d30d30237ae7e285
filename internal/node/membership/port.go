package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/state/etcdstate"
)

// port is a manager's one port. Whoever speaks HTTP/2 (it says so in the TLS handshake) is a node or a joining host and
// reaches the RPC server, which checks roles call by call; everything else is another manager's Raft and must show a
// manager's certificate before it is heard.
type port struct {
	listener net.Listener
	logger   *slog.Logger
	peers    *http.Server
	rpcConns *connQueue
	wg       sync.WaitGroup

	mu      sync.Mutex
	handler http.Handler // of Raft; nil until the member runs
}

const handshakeTimeout = 10 * time.Second

// peerVerdict is what becomes of a manager's node that comes for Raft.
type peerVerdict uint8

const (
	peerAllowed peerVerdict = iota
	peerRemoved             // was demoted or removed: it is told so, which ends its member
	peerUnknown             // may try again
)

// openPort serves l. allowPeer is asked about each manager's node that comes for Raft.
func openPort(l net.Listener, id *identity.Node, allowPeer func(nodeID string) peerVerdict, logger *slog.Logger) *port {
	p := &port{listener: l, logger: logger, rpcConns: newConnQueue(l.Addr())}
	p.peers = &http.Server{
		Handler:           http.HandlerFunc(p.servePeer),
		ReadHeaderTimeout: handshakeTimeout,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if _, refused := c.(refusedConn); refused {
				return context.WithValue(ctx, refusedKey{}, true)
			}
			return ctx
		},
		ErrorLog: log.New(io.Discard, "", 0), // etcd ends requests of removed members by a panic
	}
	rpcTLS, peerTLS := id.ServerConfig(identity.Anyone), id.ServerConfig(identity.ManagerOnly)
	rpcTLS.NextProtos = []string{"h2"}
	both := &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Contains(h.SupportedProtos, "h2") {
				return rpcTLS, nil
			}
			return peerTLS, nil
		},
	}
	peerConns := newConnQueue(l.Addr())
	p.wg.Go(func() { _ = p.peers.Serve(peerConns) })
	p.wg.Go(func() {
		defer peerConns.Close()
		defer p.rpcConns.Close()
		for {
			c, err := l.Accept()
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				logger.Warn("accept a connection of the cluster", "error", err)
				time.Sleep(50 * time.Millisecond) // out of file descriptors: others must finish first
				continue
			}
			p.wg.Go(func() {
				tc := tls.Server(c, both)
				ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
				defer cancel()
				if err := tc.HandshakeContext(ctx); err != nil {
					logger.Debug("a connection to the manager's port was refused", "from", c.RemoteAddr(), "error", err)
					_ = c.Close()
					return
				}
				cs := tc.ConnectionState()
				if cs.NegotiatedProtocol == "h2" {
					p.rpcConns.put(tc)
					return
				}
				s, err := identity.SubjectOf(cs.PeerCertificates[0])
				if err != nil {
					_ = tc.Close()
					return
				}
				switch allowPeer(s.NodeID) {
				case peerRemoved:
					logger.Debug("a node that is no manager tried to take part in the replicated state", "node", s.NodeID, "from", c.RemoteAddr())
					peerConns.put(refusedConn{tc})
					return
				case peerUnknown:
					_ = tc.Close()
					return
				}
				peerConns.put(tc)
			})
		}
	})
	return p
}

func (p *port) setPeerHandler(h http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handler = h
}

// refusedConn is of a manager that was removed or demoted and does not know it: it is told, and told nothing else.
type refusedConn struct{ net.Conn }

type refusedKey struct{}

func (p *port) servePeer(w http.ResponseWriter, r *http.Request) {
	if r.Context().Value(refusedKey{}) != nil {
		etcdstate.RemovedHandler().ServeHTTP(w, r)
		return
	}
	p.mu.Lock()
	h := p.handler
	p.mu.Unlock()
	if h == nil {
		http.Error(w, "the member is starting", http.StatusServiceUnavailable)
		return
	}
	h.ServeHTTP(w, r)
}

func (p *port) close() {
	_ = p.listener.Close()
	_ = p.peers.Close()
	_ = p.rpcConns.Close()
	p.wg.Wait()
}

// connQueue is a net.Listener of connections that were accepted elsewhere.
type connQueue struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newConnQueue(addr net.Addr) *connQueue {
	return &connQueue{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (q *connQueue) put(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.closed:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *connQueue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

// Addr implements net.Listener.
func (q *connQueue) Addr() net.Addr { return q.addr }
