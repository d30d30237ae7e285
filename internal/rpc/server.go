package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// The roles that a certificate gives, as they travel in messages.
const (
	RoleWorker  = "worker"
	RoleManager = "manager"
)

// maxMessage bounds one message either way. A node's full view is the largest.
const maxMessage = 64 << 20

// Caller is who made a call: what the client's certificate says, never a field of the message.
type Caller struct {
	NodeID  string
	Role    string // RoleWorker or RoleManager
	Expired bool   // the certificate is past its end: good for RenewCertificate only
}

type callerKey struct{}

// CallerFrom returns who made the call that ctx belongs to. ok is false for calls that need no certificate (Join).
func CallerFrom(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// WithCaller returns ctx as a handler called by c would see it.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// ServerConfig is what NewServer needs to know.
type ServerConfig struct {
	// TLS asks for a client certificate without demanding one (Join has none yet). nil: connections arrive as *tls.Conn
	// whose handshake is done (see Handshaken), or without TLS in tests.
	TLS *tls.Config
	// Identify judges the certificate that the caller showed: an error is answered to the caller. It must verify the
	// chain, as the TLS configuration may leave that to it.
	Identify func(cert *x509.Certificate) (Caller, error)
	Logger   *slog.Logger
}

// access is who may call a method.
type access uint8

const (
	forNobody  access = iota
	forAnybody        // no certificate needed
	forExpired        // a node, even with an expired certificate
	forNodes
	forManagers
)

// accessOf is decided here for every method; one that is not listed is refused. A manager may do all that a worker may.
var accessOf = map[string]access{
	Join_GetRootCA_FullMethodName:              forAnybody,
	Join_IssueCertificate_FullMethodName:       forAnybody,
	Membership_RenewCertificate_FullMethodName: forExpired,
	Membership_AddManager_FullMethodName:       forManagers,
	Membership_PromoteManager_FullMethodName:   forManagers,
	Membership_RemoveManager_FullMethodName:    forManagers,
	Membership_Leave_FullMethodName:            forNodes,
	Dispatcher_Session_FullMethodName:          forNodes,
	Dispatcher_Heartbeat_FullMethodName:        forNodes,
	Dispatcher_UpdateTaskStatus_FullMethodName: forNodes,
	Dispatcher_Attach_FullMethodName:           forNodes,
	Dispatcher_Detach_FullMethodName:           forNodes,
	Dispatcher_PublishLogs_FullMethodName:      forNodes,
	Dispatcher_SubscribeLogs_FullMethodName:    forManagers,
}

// NewServer returns a gRPC server that checks on every call whether the caller's role may make it, puts the Caller into
// the context, turns errors into statuses, and survives a handler's panic.
func NewServer(cfg ServerConfig) *grpc.Server {
	g := gate{cfg}
	creds := Handshaken()
	if cfg.TLS != nil {
		creds = credentials.NewTLS(cfg.TLS)
	}
	return grpc.NewServer(
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(1024),
		grpc.ConnectionTimeout(10*time.Second),
		// A peer that vanished without a word is noticed by the server even where no stream is open.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 2 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.ChainStreamInterceptor(g.stream),
	)
}

type gate struct{ cfg ServerConfig }

func (g gate) admit(ctx context.Context, method string) (context.Context, error) {
	need := accessOf[method]
	if need == forAnybody {
		return ctx, nil
	}
	if need == forNobody {
		return nil, status.Errorf(codes.Unimplemented, "unknown method %s", method)
	}
	cert, ok := peerCertificate(ctx)
	if !ok {
		return nil, ToStatus(fault.New(fault.Unauthorized, "%s needs the certificate of a node of this cluster", shortName(method)))
	}
	c, err := g.cfg.Identify(cert)
	if err != nil {
		return nil, ToStatus(err)
	}
	if c.Expired && need != forExpired {
		return nil, ToStatus(fault.New(fault.Unauthorized, "the certificate of node %s has expired: renew it first", c.NodeID))
	}
	if need == forManagers && c.Role != RoleManager {
		return nil, ToStatus(fault.New(fault.Forbidden, "%s is for managers only: node %s is a %s", shortName(method), c.NodeID, c.Role))
	}
	return WithCaller(ctx, c), nil
}

func (g gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	ctx, err = g.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	defer g.rescue(info.FullMethod, &err)
	resp, err = handler(ctx, req)
	return resp, ToStatus(err)
}

func (g gate) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	ctx, err := g.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	defer g.rescue(info.FullMethod, &err)
	return ToStatus(handler(srv, &streamWithContext{ss, ctx}))
}

// rescue keeps one bad request from taking the manager down.
func (g gate) rescue(method string, err *error) {
	if p := recover(); p != nil {
		if g.cfg.Logger != nil {
			g.cfg.Logger.Error("rpc handler panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
		}
		*err = status.Errorf(codes.Internal, "internal error in %s: see the manager's log", shortName(method))
	}
}

type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *streamWithContext) Context() context.Context { return s.ctx }

func shortName(method string) string { return method[strings.LastIndexByte(method, '/')+1:] }

func peerCertificate(ctx context.Context) (*x509.Certificate, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil, false
	}
	return info.State.PeerCertificates[0], true
}

// Handshaken returns the transport credentials of a server whose listener hands out *tls.Conn with a finished handshake:
// one port then serves several protocols, chosen by ALPN.
func Handshaken() credentials.TransportCredentials { return handshaken{} }

type handshaken struct{}

func (handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	tc, ok := c.(*tls.Conn)
	if !ok {
		return nil, nil, fault.New(fault.Unauthorized, "connection from %s is not TLS", c.RemoteAddr())
	}
	return c, credentials.TLSInfo{
		State:          tc.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (handshaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fault.New(fault.NotImplemented, "these credentials serve only")
}

func (handshaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (handshaken) Clone() credentials.TransportCredentials { return handshaken{} }
func (handshaken) OverrideServerName(string) error         { return nil }
