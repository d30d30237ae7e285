package rpc

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// How long one manager may take before the next is tried.
const (
	connectTimeout = 800 * time.Millisecond
	betweenRounds  = 200 * time.Millisecond
)

// Managers is how a node reaches the cluster's managers: it keeps their addresses, on disk too, talks to the one that
// answered last, follows a redirect to the leader, and goes on to the next when one fails. It may be used concurrently.
type Managers struct {
	file    string
	tls     *tls.Config
	logger  *slog.Logger
	doubted func()

	mu    sync.Mutex
	addrs []string // the preferred one first
	conns map[string]*grpc.ClientConn
	done  bool
}

// ManagersConfig is what NewManagers needs. TLS is a client's configuration; its certificate may change under way
// (GetClientCertificate).
type ManagersConfig struct {
	File   string   // where the addresses are kept; "": nowhere
	Addrs  []string // added to those in the file
	TLS    *tls.Config
	Logger *slog.Logger
	// Doubted is called when a manager's answer may mean that it does not know this node (any more). It must not wait.
	// nil: nobody cares.
	Doubted func()
}

// NewManagers reads the addresses kept and returns the pool. It opens no connection yet.
func NewManagers(cfg ManagersConfig) (*Managers, error) {
	m := &Managers{file: cfg.File, tls: cfg.TLS, logger: cfg.Logger, doubted: cfg.Doubted, conns: map[string]*grpc.ClientConn{}}
	if m.logger == nil {
		m.logger = slog.New(slog.DiscardHandler)
	}
	if m.file != "" {
		doc, err := os.ReadFile(m.file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("read the managers' addresses: %w", err)
		default:
			if err := json.Unmarshal(doc, &m.addrs); err != nil {
				m.logger.Warn("the file of managers' addresses is damaged; going on without it", "file", m.file, "error", err)
				m.addrs = nil
			}
		}
	}
	for _, a := range cfg.Addrs {
		if a != "" && !slices.Contains(m.addrs, a) {
			m.addrs = append(m.addrs, a)
		}
	}
	m.save()
	return m, nil
}

// Addrs returns the addresses, the preferred one first.
func (m *Managers) Addrs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.addrs)
}

// Update replaces the addresses, as a manager's answer named them. An empty list is ignored: a node must never forget
// its way back. Connections to managers that are gone are closed once idle calls on them have failed over.
func (m *Managers) Update(addrs []string) {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a string) bool { return a == "" })
	if len(addrs) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.addrs) > 0 { // keep the preferred one in front
		if i := slices.Index(addrs, m.addrs[0]); i > 0 {
			addrs[0], addrs[i] = addrs[i], addrs[0]
		}
	}
	if slices.Equal(addrs, m.addrs) {
		return
	}
	m.addrs = addrs
	for a, c := range m.conns {
		if !slices.Contains(addrs, a) {
			_ = c.Close()
			delete(m.conns, a)
		}
	}
	m.save()
}

// save is called with mu held (or before the pool is shared).
func (m *Managers) save() {
	if m.file == "" || len(m.addrs) == 0 {
		return
	}
	doc, err := json.Marshal(m.addrs)
	if err == nil {
		err = writeFileAtomically(m.file, doc)
	}
	if err != nil {
		m.logger.Warn("cannot keep the managers' addresses", "file", m.file, "error", err)
	}
}

func writeFileAtomically(path string, doc []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-"+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(doc)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Conn is a connection to one manager. It belongs to the pool: do not close it. Say how a call on it ended with Report.
type Conn struct {
	*grpc.ClientConn
	Addr string
}

// Conn returns a connection to the preferred manager, or to the next that can be reached. It fails with
// fault.Unavailable when none can, or when ctx ends.
func (m *Managers) Conn(ctx context.Context) (Conn, error) {
	var last error
	for _, addr := range m.Addrs() {
		c, err := m.conn(addr)
		if err != nil {
			return Conn{}, err
		}
		if err := waitReady(ctx, c); err != nil {
			last = fmt.Errorf("could not reach manager %s: %w", addr, err)
			m.demote(addr)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		return Conn{ClientConn: c, Addr: addr}, nil
	}
	if last == nil {
		last = errors.New("the address of no manager is known")
	}
	return Conn{}, fault.As(fault.Unavailable, last)
}

// Dial returns a connection of its own to the manager at addr (heartbeats must not queue behind a stream's backlog). The
// caller closes it.
func (m *Managers) Dial(addr string) (*grpc.ClientConn, error) { return Dial(addr, m.tls) }

// Report says how a call on a connection ended: after a redirect the leader is preferred, after a manager failed the
// next one is. It returns the error with its kind, nil for nil.
func (m *Managers) Report(c Conn, err error) error {
	if err == nil {
		m.prefer(c.Addr)
		return nil
	}
	if leader, ok := RedirectOf(err); ok {
		if leader != "" {
			m.prefer(leader)
		} else {
			m.demote(c.Addr)
		}
	} else if movesOn(err) {
		m.demote(c.Addr)
	}
	err = FromStatus(err)
	if m.doubted != nil && (fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unauthorized)) {
		m.doubted()
	}
	return err
}

// movesOn tells failures of the manager from answers to the request.
func movesOn(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.Unknown, codes.Unimplemented:
		return true
	}
	return false
}

// Do makes a call that may be repeated, on the preferred manager, following redirects and failing over until a manager
// answers or ctx ends. The error has its kind.
func (m *Managers) Do(ctx context.Context, call func(context.Context, grpc.ClientConnInterface) error) error {
	var last error
	for attempt := 0; ; attempt++ {
		c, err := m.Conn(ctx)
		if err == nil {
			err = call(ctx, c)
			if err == nil {
				m.prefer(c.Addr)
				return nil
			}
			// Canceled while ctx lives: the connection was closed by Reset or Update.
			code := status.Code(err)
			again := code == codes.Unavailable || code == codes.Canceled && ctx.Err() == nil
			err = m.Report(c, err)
			if !again {
				return err
			}
		}
		if last == nil || ctx.Err() == nil {
			last = err // what the managers said is worth more than "context canceled"
		}
		wait := betweenRounds
		if attempt == 0 {
			wait = 0 // the next manager or the leader at once
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(wait):
		}
	}
}

// Reset closes every connection: the next call makes a new one. It is for when this node's certificate has changed, as a
// connection keeps the one that it was made with.
func (m *Managers) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closeAll()
}

// Close closes every connection for good.
func (m *Managers) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = true
	m.closeAll()
}

func (m *Managers) closeAll() {
	for a, c := range m.conns {
		_ = c.Close()
		delete(m.conns, a)
	}
}

func (m *Managers) conn(addr string) (*grpc.ClientConn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done {
		return nil, fault.New(fault.Unavailable, "this node is leaving the cluster")
	}
	if c := m.conns[addr]; c != nil {
		return c, nil
	}
	c, err := Dial(addr, m.tls)
	if err != nil {
		return nil, err
	}
	m.conns[addr] = c
	return c, nil
}

// prefer moves addr to the front. A redirect may name a manager that this node has not heard of.
func (m *Managers) prefer(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.addrs) > 0 && m.addrs[0] == addr {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(m.addrs), func(a string) bool { return a == addr })
	m.addrs = append([]string{addr}, rest...)
	m.save()
}

// demote moves addr to the back.
func (m *Managers) demote(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.addrs, addr); i >= 0 {
		m.addrs = append(slices.Delete(slices.Clone(m.addrs), i, i+1), addr)
	}
}

// Dial returns a connection to the RPC server at addr, which connects when first used and again after it broke.
func Dial(addr string, cfg *tls.Config) (*grpc.ClientConn, error) {
	c, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		// The transport's own backoff stays short: the pool decides when to give up on a manager.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
	)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "manager address %q: %w", addr, err)
	}
	return c, nil
}

// waitReady waits until the connection is up, its attempt failed, or connectTimeout passed.
func waitReady(ctx context.Context, c *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c.Connect()
	for {
		s := c.GetState()
		switch s {
		case connectivity.Ready:
			return nil
		case connectivity.Shutdown:
			return errors.New("connection closed")
		case connectivity.TransientFailure:
			// Only a call tells why: it fails at once with the reason.
			err := c.Invoke(ctx, Join_GetRootCA_FullMethodName, &GetRootCARequest{}, &GetRootCAResponse{})
			if err == nil {
				return nil // it came up meanwhile
			}
			c.ResetConnectBackoff() // the next attempt on this address starts at once
			return errors.New(status.Convert(err).Message())
		case connectivity.Idle:
			c.Connect()
		}
		if !c.WaitForStateChange(ctx, s) {
			return ctx.Err()
		}
	}
}
