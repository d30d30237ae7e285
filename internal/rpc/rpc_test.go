package rpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sampan-cloud/sampan/internal/fault"
)

func TestErrorsKeepTheirKind(t *testing.T) {
	for kind := fault.Internal; kind <= fault.Exhausted; kind++ {
		sent := fmt.Errorf("while joining: %w", fault.New(kind, "what happened to %s", "x"))
		got := FromStatus(ToStatus(sent))
		if !fault.Is(got, kind) || got.Error() != sent.Error() {
			t.Errorf("%v came back as %v: %v", kind, fault.KindOf(got), got)
		}
	}
	if ToStatus(nil) != nil || FromStatus(nil) != nil {
		t.Error("nil is an error")
	}
	if err := FromStatus(ToStatus(context.DeadlineExceeded)); !fault.Is(err, fault.DeadlineExceeded) {
		t.Errorf("a deadline came back as %v", err)
	}
	if err := FromStatus(status.Error(codes.Unavailable, "transport is closing")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("gRPC's own error came back as %v", fault.KindOf(err))
	}
	addr, ok := RedirectOf(FromStatus(NotLeader("10.0.0.1:2377")))
	if !ok || addr != "10.0.0.1:2377" || !fault.Is(FromStatus(NotLeader("")), fault.Unavailable) {
		t.Errorf("a redirect came back as %q, %v", addr, ok)
	}
	if _, ok := RedirectOf(errors.New("x")); ok {
		t.Error("any error redirects")
	}
}

func TestEveryMethodHasARule(t *testing.T) {
	for _, d := range []grpc.ServiceDesc{Join_ServiceDesc, Membership_ServiceDesc, Dispatcher_ServiceDesc} {
		var names []string
		for _, m := range d.Methods {
			names = append(names, m.MethodName)
		}
		for _, s := range d.Streams {
			names = append(names, s.StreamName)
		}
		for _, n := range names {
			if accessOf["/"+d.ServiceName+"/"+n] == forNobody {
				t.Errorf("%s/%s can be called by nobody: say who may in accessOf", d.ServiceName, n)
			}
		}
	}
}

// certificate makes a self-signed one; what it says is what identify reads.
func certificate(t *testing.T, node, role string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"manager"},
		Subject: pkix.Name{CommonName: node, OrganizationalUnit: []string{role}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func identify(c *x509.Certificate) (Caller, error) {
	switch role := c.Subject.OrganizationalUnit[0]; role {
	case "stranger":
		return Caller{}, fault.New(fault.Unauthorized, "not of this cluster")
	case "expired":
		return Caller{NodeID: c.Subject.CommonName, Role: RoleWorker, Expired: true}, nil
	default:
		return Caller{NodeID: c.Subject.CommonName, Role: role}, nil
	}
}

func clientTLS(t *testing.T, node, role string) *tls.Config {
	cfg := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	if role != "" {
		cfg.Certificates = []tls.Certificate{certificate(t, node, role)}
	}
	return cfg
}

// testManager answers as a manager; what it answers is set by the test.
type testManager struct {
	UnimplementedJoinServer
	UnimplementedMembershipServer
	addr   string
	server *grpc.Server
	calls  atomic.Int64
	leave  func(context.Context) error
}

func (m *testManager) GetRootCA(context.Context, *GetRootCARequest) (*GetRootCAResponse, error) {
	return &GetRootCAResponse{}, nil
}

func (m *testManager) RenewCertificate(context.Context, *RenewCertificateRequest) (*IssueCertificateResponse, error) {
	return &IssueCertificateResponse{}, nil
}

func (m *testManager) AddManager(context.Context, *AddManagerRequest) (*AddManagerResponse, error) {
	panic("a bug")
}

func (m *testManager) Leave(ctx context.Context, _ *LeaveRequest) (*LeaveResponse, error) {
	m.calls.Add(1)
	return &LeaveResponse{}, m.leave(ctx)
}

func startManager(t *testing.T, leave func(context.Context) error) *testManager {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &testManager{addr: l.Addr().String(), leave: leave}
	m.server = NewServer(ServerConfig{
		TLS:      &tls.Config{Certificates: []tls.Certificate{certificate(t, "m", RoleManager)}, ClientAuth: tls.RequestClientCert},
		Identify: identify,
	})
	RegisterJoinServer(m.server, m)
	RegisterMembershipServer(m.server, m)
	go func() { _ = m.server.Serve(l) }()
	t.Cleanup(m.server.Stop)
	return m
}

func TestRolesAreChecked(t *testing.T) {
	var caller Caller
	m := startManager(t, func(ctx context.Context) error {
		caller, _ = CallerFrom(ctx)
		return nil
	})
	join := func(c grpc.ClientConnInterface) error {
		_, err := NewJoinClient(c).GetRootCA(t.Context(), &GetRootCARequest{})
		return err
	}
	renew := func(c grpc.ClientConnInterface) error {
		_, err := NewMembershipClient(c).RenewCertificate(t.Context(), &RenewCertificateRequest{})
		return err
	}
	leave := func(c grpc.ClientConnInterface) error {
		_, err := NewMembershipClient(c).Leave(t.Context(), &LeaveRequest{})
		return err
	}
	promote := func(c grpc.ClientConnInterface) error {
		_, err := NewMembershipClient(c).PromoteManager(t.Context(), &PromoteManagerRequest{})
		return err
	}
	const none = fault.NotModified // no error
	for _, c := range []struct {
		role string
		call func(grpc.ClientConnInterface) error
		want fault.Kind
	}{
		{"", join, none}, {"", renew, fault.Unauthorized}, {"", leave, fault.Unauthorized},
		{"stranger", join, none}, {"stranger", leave, fault.Unauthorized},
		{"expired", renew, none}, {"expired", leave, fault.Unauthorized},
		{RoleWorker, leave, none}, {RoleWorker, promote, fault.Forbidden},
		{RoleManager, leave, none}, {RoleManager, promote, fault.NotImplemented}, // it reaches the service
	} {
		conn, err := Dial(m.addr, clientTLS(t, "n1", c.role))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		err = FromStatus(c.call(conn))
		if c.want == none && err != nil || c.want != none && !fault.Is(err, c.want) {
			t.Errorf("%q: %v, want %v", c.role, err, c.want)
		}
	}
	if caller != (Caller{NodeID: "n1", Role: RoleManager}) {
		t.Errorf("the service sees %+v", caller)
	}
}

func TestAPanicIsAnAnswer(t *testing.T) {
	m := startManager(t, nil)
	c, err := Dial(m.addr, clientTLS(t, "n", RoleManager))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = NewMembershipClient(c).AddManager(t.Context(), &AddManagerRequest{})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "a bug") {
		t.Errorf("got %v", err)
	}
	if _, err := NewMembershipClient(c).RenewCertificate(t.Context(), &RenewCertificateRequest{}); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func newPool(t *testing.T, addrs ...string) *Managers {
	t.Helper()
	p, err := NewManagers(ManagersConfig{File: filepath.Join(t.TempDir(), "managers.json"), Addrs: addrs, TLS: clientTLS(t, "n", RoleWorker)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func leave(ctx context.Context, c grpc.ClientConnInterface) error {
	_, err := NewMembershipClient(c).Leave(ctx, &LeaveRequest{})
	return err
}

func TestPoolFollowsTheLeaderAndFailsOver(t *testing.T) {
	ok := func(context.Context) error { return nil }
	leader := startManager(t, ok)
	follower := startManager(t, func(context.Context) error { return NotLeader(leader.addr) })
	p := newPool(t, follower.addr) // it does not know the leader yet
	if err := p.Do(t.Context(), leave); err != nil {
		t.Fatal(err)
	}
	if p.Addrs()[0] != leader.addr || leader.calls.Load() != 1 {
		t.Fatalf("the leader is not preferred: %v", p.Addrs())
	}
	if err := p.Do(t.Context(), leave); err != nil || follower.calls.Load() != 1 {
		t.Fatalf("the follower was asked again: %v", err)
	}
	follower.leave = ok
	leader.server.Stop()
	if err := p.Do(t.Context(), leave); err != nil {
		t.Fatalf("no failover: %v", err)
	}
	if p.Addrs()[0] != follower.addr {
		t.Errorf("the dead manager is preferred: %v", p.Addrs())
	}
	// An answer is an answer: it is not asked of the others.
	follower.leave = func(context.Context) error { return fault.New(fault.Conflict, "no") }
	before := follower.calls.Load()
	if err := p.Do(t.Context(), leave); !fault.Is(err, fault.Conflict) || follower.calls.Load() != before+1 {
		t.Errorf("%v after %d calls", err, follower.calls.Load()-before)
	}
}

func TestPoolGivesUpWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	l.Close()
	p := newPool(t, gone)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = p.Do(ctx, leave)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "could not reach manager "+gone) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
	if err := newPool(t).Do(ctx, leave); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without addresses: %v", err)
	}
}

func TestPoolRemembersAddresses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "managers.json")
	open := func(addrs ...string) *Managers {
		p, err := NewManagers(ManagersConfig{File: file, Addrs: addrs, TLS: clientTLS(t, "", "")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	open("a:1", "b:1")
	p := open("a:1")
	if !slices.Equal(p.Addrs(), []string{"a:1", "b:1"}) {
		t.Fatalf("%v", p.Addrs())
	}
	p.Update([]string{"c:1", "a:1"}) // the preferred one stays in front
	p.Update(nil)
	if got := open().Addrs(); !slices.Equal(got, []string{"a:1", "c:1"}) {
		t.Fatalf("%v", got)
	}
}

func TestPoolTakesUpANewCertificate(t *testing.T) {
	var seen Caller
	m := startManager(t, func(ctx context.Context) error {
		seen, _ = CallerFrom(ctx)
		return nil
	})
	certs := []tls.Certificate{certificate(t, "n", RoleWorker), certificate(t, "n", RoleManager)}
	var now atomic.Int64
	p, err := NewManagers(ManagersConfig{Addrs: []string{m.addr}, TLS: &tls.Config{
		InsecureSkipVerify:   true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[now.Load()], nil },
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i, role := range []string{RoleWorker, RoleManager} {
		now.Store(int64(i))
		p.Reset()
		if err := p.Do(t.Context(), leave); err != nil || seen.Role != role {
			t.Fatalf("seen as %+v, want %s: %v", seen, role, err)
		}
	}
}
