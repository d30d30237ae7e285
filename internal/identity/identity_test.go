package identity

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA(time.Now().Add(-100 * time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *CA, s Subject, life time.Duration) (certPEM, keyPEM []byte) {
	t.Helper()
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(csr, s, life, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func newNodeOf(t *testing.T, ca *CA, id, role string) *Node {
	t.Helper()
	cert, key := issue(t, ca, Subject{id, role, "cluster"}, 0)
	n, err := Create(t.TempDir(), cert, key, ca.CertPEM(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCertificateSaysWhoANodeIs(t *testing.T) {
	ca := newCA(t)
	again, err := ParseCA(ca.CertPEM(), ca.KeyPEM())
	if err != nil || again.Digest() != ca.Digest() {
		t.Fatalf("a CA that was written and read is not itself: %v", err)
	}
	want := Subject{"node1", Manager, "cluster"}
	certPEM, _ := issue(t, again, want, 0)
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	got, expired, err := ca.Verify(cert, time.Now())
	if err != nil || got != want || expired {
		t.Fatalf("%+v, %v, %v", got, expired, err)
	}
	if life := time.Until(cert.NotAfter); life < 89*24*time.Hour || life > 91*24*time.Hour {
		t.Errorf("the certificate lives for %v", life)
	}
	if _, expired, err = ca.Verify(cert, time.Now().Add(DefaultNodeLifetime+time.Hour)); err != nil || !expired {
		t.Errorf("after its end: expired %v, %v", expired, err)
	}
	for _, before := range []time.Duration{12 * time.Hour, 20 * 365 * 24 * time.Hour} { // its own and its root's beginning lie ahead
		if got, expired, err = ca.Verify(cert, time.Now().Add(-before)); err != nil || got != want || expired {
			t.Errorf("on a host whose clock is %v slow: %+v, %v, %v", before, got, expired, err)
		}
	}
	if _, _, err = ca.Verify(cert, time.Now().Add(CALifetime+time.Hour)); err == nil {
		t.Error("a certificate outlives its CA")
	}
	if _, _, err := newCA(t).Verify(cert, time.Now()); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("another cluster's CA accepts it: %v", err)
	}
	other := newCA(t)
	both, err := ParseCA(slices.Concat(other.CertPEM(), ca.CertPEM()), other.KeyPEM())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := both.Verify(cert, time.Now()); err != nil {
		t.Errorf("a bundle of both roots does not accept it: %v", err)
	}
	if _, _, err := both.Only(ca.Digest()).Verify(cert, time.Now()); err != nil || both.Only(newCA(t).Digest()) != nil {
		t.Errorf("the root that signed it does not accept it: %v", err)
	}
	if _, _, err := both.Only(other.Digest()).Verify(cert, time.Now()); err == nil {
		t.Error("what a stranger put beside the one root that a token vouches for is trusted")
	}
	if turned, _ := ParseCA(slices.Concat(ca.CertPEM(), other.CertPEM()), nil); !turned.SameRoots(both) || turned.SameRoots(ca) || ca.SameRoots(turned) {
		t.Error("bundles are not compared by their roots")
	}
	if _, err := ParseCA(ca.CertPEM(), newCA(t).KeyPEM()); err == nil {
		t.Error("a CA with another's key is accepted")
	}
}

func TestSignRefusesBadRequests(t *testing.T) {
	ca := newCA(t)
	for name, csr := range map[string][]byte{
		"empty": nil, "no PEM": []byte("hello"), "another block": ca.CertPEM(),
		"damaged": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")}),
	} {
		if _, err := ca.Sign(csr, Subject{"n", Worker, "c"}, 0, time.Now()); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFilesAreReadBackAndGuarded(t *testing.T) {
	ca := newCA(t)
	n := newNodeOf(t, ca, "node1", Worker)
	info, err := os.Stat(n.path())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the key's file: %v, %v", info, err)
	}
	again, err := Load(n.dir, "", nil)
	if err != nil || again.Subject() != n.Subject() {
		t.Fatalf("read back: %v", err)
	}
	cert, _ := issue(t, ca, n.Subject(), 0)
	_, otherKey := issue(t, ca, n.Subject(), 0)
	if err := n.Install(cert, otherKey, ca.CertPEM()); err == nil {
		t.Error("a certificate with another key is installed")
	}
	cert, key := issue(t, newCA(t), n.Subject(), 0)
	if err := n.Install(cert, key, ca.CertPEM()); err == nil {
		t.Error("a certificate of another CA is installed")
	}
	if _, err := Load(n.dir, "", nil); err != nil {
		t.Errorf("what was refused damaged what was there: %v", err)
	}
	if _, err := Load(t.TempDir(), "", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty folder: %v", err)
	}
}

// shake connects a client and a server and returns what each says.
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		s := tls.Server(c, server)
		err = s.Handshake()
		if err == nil {
			_, _ = s.Write([]byte("x"))
		}
		done <- err
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1)) // a refused certificate shows on the first read in TLS 1.3
		c.Close()
	}
	return <-done, err
}

func TestWhoIsLetIn(t *testing.T) {
	ca := newCA(t)
	manager, worker := newNodeOf(t, ca, "m1", Manager), newNodeOf(t, ca, "w1", Worker)
	other := newNodeOf(t, newCA(t), "m2", Manager)
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	oldCert, err := ca.Sign(csr, Subject{"w2", Worker, "cluster"}, time.Hour, time.Now().Add(-48*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	expired, err := Create(t.TempDir(), oldCert, key, ca.CertPEM(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !expired.Expired() {
		t.Fatal("a certificate two days old for one hour has not expired")
	}
	for _, c := range []struct {
		name   string
		admit  Admit
		client *tls.Config
		ok     bool
	}{
		{"a worker where any node may", AnyNode, worker.ClientConfig(), true},
		{"a manager where managers may", ManagerOnly, manager.ClientConfig(), true},
		{"a worker where managers may", ManagerOnly, worker.ClientConfig(), false},
		{"a host without certificate where any node may", AnyNode, JoinConfig(ca, nil), false},
		{"a host without certificate where anyone may", Anyone, JoinConfig(ca, nil), true},
		{"a host that knows nothing where anyone may", Anyone, BlindConfig(), true},
		{"an expired node where any node may", AnyNode, expired.ClientConfig(), false},
		{"an expired node where anyone may", Anyone, expired.ClientConfig(), true},
		{"a node of another cluster where anyone may", Anyone, other.ClientConfig(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			serverErr, clientErr := shake(t, manager.ServerConfig(c.admit), c.client)
			if (serverErr == nil && clientErr == nil) != c.ok {
				t.Errorf("server: %v, client: %v", serverErr, clientErr)
			}
		})
	}
	t.Run("a worker posing as a manager", func(t *testing.T) {
		if _, err := shake(t, worker.ServerConfig(Anyone), manager.ClientConfig()); err == nil {
			t.Error("the client believes it")
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		old := manager.ClientConfig()
		old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		if err, _ := shake(t, manager.ServerConfig(Anyone), old); err == nil {
			t.Error("accepted")
		}
	})
}

func TestCertificatesRenewThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		n := newNodeOf(t, ca, "w1", Worker)
		start := time.Now()
		renewed := make(chan time.Duration, 10)
		failures := 3
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go n.KeepFresh(ctx, slog.New(slog.DiscardHandler), func(context.Context) error {
			if failures > 0 {
				failures--
				return errors.New("no manager answers")
			}
			cert, key := issue(t, ca, n.Subject(), 0)
			renewed <- time.Since(start)
			return n.Install(cert, key, ca.CertPEM())
		})
		for _, c := range []struct {
			after time.Duration // of the bubble's clock: no time passes
			times int
		}{{44 * 24 * time.Hour, 0}, {10 * 24 * time.Hour, 1}, {50 * 24 * time.Hour, 1}} {
			<-time.After(c.after)
			synctest.Wait()
			if len(renewed) != c.times {
				t.Fatalf("%v after the start it was renewed %d times more, want %d", time.Since(start), len(renewed), c.times)
			}
			for range c.times {
				<-renewed
			}
		}
		if n.Expired() {
			t.Fatal("expired")
		}
	})
}

func TestCertificateRenewsAfterMonthsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		dir := newNodeOf(t, ca, "w1", Worker).dir
		<-time.After(300 * 24 * time.Hour) // of the bubble's clock
		n, err := Load(dir, "", nil)
		if err != nil || !n.Expired() {
			t.Fatalf("an expired certificate cannot be loaded: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go n.KeepFresh(ctx, slog.New(slog.DiscardHandler), func(context.Context) error {
			cert, key := issue(t, ca, n.Subject(), 0)
			return n.Install(cert, key, ca.CertPEM())
		})
		<-n.Changed()
		if n.Expired() {
			t.Fatal("still expired")
		}
	})
}

func TestTokens(t *testing.T) {
	ca := newCA(t)
	token, err := NewToken(ca.Digest())
	if err != nil {
		t.Fatal(err)
	}
	if len(token) != len("SWMTKN-1-")+50+1+25 {
		t.Errorf("token %q has not Docker's length", token)
	}
	parsed, err := ParseToken(" " + token + "\n")
	if err != nil || parsed.Digest != ca.Digest() || len(parsed.Secret) != 25 {
		t.Fatalf("%+v, %v", parsed, err)
	}
	other, err := NewToken(ca.Digest())
	if err != nil || SameToken(token, other) || !SameToken(token, token) || SameToken("", "") {
		t.Error("tokens are not told apart")
	}
	for _, bad := range []string{
		"", "x", "SWMTKN", "SWMTKN-1", "SWMTKN-2-" + token[9:], token[:len(token)-1], token + "x", "SWMTKN-1--",
		strings.ToUpper(token), "SWMTKN-1-" + strings.Repeat("z", 50) + "-" + parsed.Secret, strings.Replace(token, "-1-", "-1-+", 1),
	} {
		if _, err := ParseToken(bad); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "invalid join token") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("SWMTKN-1-" + strings.Repeat("1", 50) + "-" + strings.Repeat("a", 25))
	f.Add("SWMTKN-1-" + strings.Repeat("z", 50) + "-" + strings.Repeat("-", 25))
	f.Add("SWMTKN-2-0-x-y")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err == nil && (len(token.Digest) != 64 || len(token.Secret) != 25) {
			t.Errorf("%q gives %+v", s, token)
		}
	})
}

func TestUsersOwnAuthority(t *testing.T) {
	make := func(edit func(tmpl *x509.Certificate)) (cert, key []byte) {
		private, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "own"}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(CALifetime), KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true}
		edit(tmpl)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, private.Public(), private)
		if err != nil {
			t.Fatal(err)
		}
		return encodeCert(der), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})
	}
	cert, key := make(func(*x509.Certificate) {})
	ca, err := Usable(append([]byte("some text\n"), cert...), key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	n := newNodeOf(t, ca, "w1", Worker)
	if n.Subject().NodeID != "w1" || string(ca.CertPEM()) != string(cert) {
		t.Errorf("%+v", n.Subject())
	}
	leaf, leafKey := make(func(c *x509.Certificate) { c.IsCA = false })
	short, shortKey := make(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(24 * time.Hour) })
	future, futureKey := make(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(24 * time.Hour) })
	for name, c := range map[string]struct{ cert, key []byte }{
		"no key": {cert, nil}, "another's key": {cert, leafKey}, "no certificate": {[]byte("x"), key}, "no authority": {leaf, leafKey},
		"two certificates": {slices.Concat(cert, short), key}, "ends too soon": {short, shortKey}, "begins later": {future, futureKey},
		"an encrypted key": {cert, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})},
	} {
		if _, err := Usable(c.cert, c.key, time.Now()); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
