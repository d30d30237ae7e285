package image

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	mathbig "math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

// TestAnIllRegistryIsAskedAgain: what is answered with "later" at first is pulled and pushed all the same.
func TestAnIllRegistryIsAskedAgain(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			r := registry(t)
			ref, id := pushed(t, r)
			s := open(t)
			r.Set(testimage.Faults{Fail: status, FailFirst: 1, RetryAfter: "0"})
			if img, err := s.Pull(t.Context(), ref, "", Auth{}, nil); err != nil || img.ID != id {
				t.Fatalf("pull: %v", err)
			}
			if err := s.Tag(t.Context(), ref, r.Host+"/team/other:1"); err != nil {
				t.Fatal(err)
			}
			r.Set(testimage.Faults{Fail: status, FailFirst: 1, RetryAfter: "0"})
			if err := s.Push(t.Context(), r.Host+"/team/other:1", Auth{}, nil); err != nil {
				t.Errorf("push: %v", err)
			}
		})
	}
}

func TestPauses(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		status int
		after  string
		wait   time.Duration
		again  bool
	}{
		{200, "", 0, false},
		{404, "1", 0, false},
		{429, "", time.Second, true},
		{503, "3", 3 * time.Second, true},
		{503, "0", 0, true},
		{503, "3600", time.Hour, false},
		{503, "nonsense", time.Second, true},
		{503, "-1", time.Second, true},
		{429, "Fri, 02 Jan 2026 03:04:10 GMT", 5 * time.Second, true},
		{429, "Fri, 02 Jan 2026 03:00:00 GMT", 0, true},
	} {
		res := &http.Response{StatusCode: c.status, Header: http.Header{}}
		if c.after != "" {
			res.Header.Set("Retry-After", c.after)
		}
		if wait, again := comeAgain(res, time.Second, now); again != c.again || again && wait != c.wait {
			t.Errorf("%d, Retry-After %q: %v, %v; want %v, %v", c.status, c.after, wait, again, c.wait, c.again)
		}
	}
}

type answers func(*http.Request) (*http.Response, error)

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

// TestPatienceEnds: waits double, tries are counted, and who asks can give up.
func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		p := &patient{pause: time.Second, next: answers(func(*http.Request) (*http.Response, error) {
			asked++
			return &http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{}, Body: http.NoBody}, nil
		})}
		req := httptest.NewRequest(http.MethodGet, "http://reg.example/v2/", nil)
		began := time.Now()
		if res, err := p.RoundTrip(req); err != nil || res.StatusCode != http.StatusServiceUnavailable || asked != patientTries {
			t.Errorf("%v, %v after %d requests", res, err, asked)
		}
		if d := time.Since(began); d != 7*time.Second {
			t.Errorf("it took %v, want 1+2+4 s", d)
		}
		asked = 0
		if res, err := p.RoundTrip(httptest.NewRequest(http.MethodPost, "http://reg.example/v2/", strings.NewReader("x"))); err != nil || res.StatusCode != http.StatusServiceUnavailable || asked != 1 {
			t.Errorf("a request with a body: %v, %v after %d requests", res, err, asked)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if _, err := p.RoundTrip(req.WithContext(ctx)); err == nil {
			t.Error("it went on after its caller had given up")
		}
	})
}

// TestUploadsThatBreakAreRepeated as pulls are.
func TestUploadsThatBreakAreRepeated(t *testing.T) {
	r := registry(t)
	s := open(t)
	ref := r.Host + "/team/app:1"
	img := load(t, s, testimage.Spec{Tags: []string{ref}, Files: map[string]testimage.File{"/a": {Data: noise(big, 1)}}})[0]
	r.Set(testimage.Faults{CutUploads: 2, CutFrom: big})
	var again int
	err := s.Push(t.Context(), ref, Auth{}, func(p Progress) {
		if strings.HasPrefix(p.Status, "Retrying in") {
			again++
		}
	})
	if err != nil || again == 0 { // the first time may be repeated below this
		t.Fatalf("%v after %d repeats", err, again)
	}
	if got, err := open(t).Pull(t.Context(), ref, "", Auth{}, nil); err != nil || got.ID != img.ID {
		t.Errorf("what was pushed: %v", err)
	}
}

// tlsRegistry serves r by TLS with a certificate of an authority of its own, to who shows a certificate of the same.
func tlsRegistry(t *testing.T, r *testimage.Server, clients bool) (host string, authority, cert, key []byte) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: mathbig.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: mathbig.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"reg.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &leafKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	authority = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	front := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.Host}))
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	front.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	if clients {
		front.TLS.ClientAuth, front.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		front.TLS.ClientCAs.AppendCertsFromPEM(authority)
	}
	front.StartTLS()
	t.Cleanup(front.Close)
	return front.Listener.Addr().String(), authority, cert, key
}

// TestCertificatesOfARegistry: those in the folder of its name are used, from the moment they lie there.
func TestCertificatesOfARegistry(t *testing.T) {
	for name, clients := range map[string]bool{"an authority": false, "a certificate to show, too": true} {
		t.Run(name, func(t *testing.T) {
			host, authority, cert, key := tlsRegistry(t, registry(t), clients)
			dirs := []string{t.TempDir(), t.TempDir()}
			hub, err := newRegistries(Config{CertDirs: dirs})
			if err != nil {
				t.Fatal(err)
			}
			// A loopback address needs no authority: this looks at the transport that any other would get.
			get := func() error {
				own, err := hub.certs.of(host, hub.secure)
				if err != nil {
					return err
				}
				res, err := (&http.Client{Transport: own}).Get("https://" + host + "/v2/")
				if err == nil {
					_ = res.Body.Close()
				}
				return err
			}
			if err := get(); err == nil || !strings.Contains(err.Error(), "signed by unknown authority") {
				t.Fatalf("without its authority: %v", err)
			}
			folder := filepath.Join(dirs[1], host)
			if err := os.Mkdir(folder, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(folder, "ca.crt"), string(authority))
			if err := get(); (err != nil) != clients {
				t.Errorf("with its authority: %v", err)
			}
			write(t, filepath.Join(folder, "client.cert"), string(cert))
			if err := get(); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "missing key client.key for client certificate client.cert") {
				t.Errorf("a certificate without its key: %v", err)
			}
			write(t, filepath.Join(folder, "client.key"), string(key))
			if err := get(); err != nil {
				t.Errorf("with everything: %v", err)
			}
			write(t, filepath.Join(folder, "other.crt"), "nonsense")
			_, err = openAt(t, Config{Root: tempRoot(t), CertDirs: dirs}).Pull(t.Context(), host+"/x", "", Auth{}, nil)
			wantKind(t, err, fault.InvalidArgument, "no certificate in it")
		})
	}
}

// TestMirrorsTakeTurns: one that is down, one that has nothing and one that is ill do not keep the next from answering.
func TestMirrorsTakeTurns(t *testing.T) {
	r := registry(t)
	builder := open(t)
	img := load(t, builder, plain(r.Host+"/library/mirrored:1"))[0]
	if err := builder.Push(t.Context(), r.Host+"/library/mirrored:1", Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	forbidden := registry(t)
	forbidden.Set(testimage.Faults{Fail: http.StatusForbidden})
	s := openAt(t, Config{Root: tempRoot(t), Mirrors: []string{"http://" + dead.Addr().String(), "http://" + registry(t).Host, "http://" + forbidden.Host, "http://" + r.Host}})
	if got, err := s.Pull(t.Context(), "mirrored:1", "", Auth{}, nil); err != nil || got.ID != img.ID {
		t.Errorf("%v", err)
	}
}

// TestPlainHTTPOfASimpleServer: one that answers the beginning of TLS with something that is no HTTP either.
func TestPlainHTTPOfASimpleServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				if first, err := r.Peek(1); err != nil || first[0] == 0x16 {
					_, _ = io.WriteString(c, "<!DOCTYPE HTML>bad request")
					return
				}
				if _, err := http.ReadRequest(r); err == nil {
					_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
				}
			}()
		}
	}()
	r, err := newRegistries(Config{})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+l.Addr().String()+"/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := r.client(t.Context(), l.Addr().String()).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		t.Errorf("%s", res.Status)
	}
}
