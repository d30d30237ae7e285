package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestRotateCA: the cluster's certificate authority is replaced while requests stream: no task is touched, no request
// fails, tokens change, nobody trusts the old one, and hosts come back and join as before. A node that is away holds it
// up; the next authority may be the user's own.
func TestRotateCA(t *testing.T) {
	t.Parallel()
	l := New(t, 5)
	h, worker, late := l.Hosts[0], l.Hosts[3], l.Hosts[4]
	Docker(t, h, "swarm", "init", "--advertise-addr", h.Addr.String())
	joinAll(t, h, l.Hosts[1:3]...)
	Docker(t, worker, "swarm", "join", "--token", Docker(t, h, "swarm", "join-token", "-q", "worker"), h.Addr.String()+":2377")
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 4, "--network", "n", "--publish", "8080:8080")
	answers(t, l.Client, fmt.Sprintf("http://%s:8080", worker.Addr), 4)
	tasks := Docker(t, h, "service", "ps", "-q", "--no-trunc", "web")
	stop := stream(l.Client, fmt.Sprintf("http://%s:8080", worker.Addr))
	before := Docker(t, h, "swarm", "ca")
	token := Docker(t, h, "swarm", "join-token", "-q", "manager")

	out := Docker(t, h, "swarm", "ca", "--rotate") // which waits until all is done
	after := Docker(t, l.Hosts[1], "swarm", "ca")
	if after == before || !strings.Contains(after, "BEGIN CERTIFICATE") || !strings.HasSuffix(strings.TrimSpace(out), after) {
		t.Errorf("the authority was\n%s\nand is\n%s\nrotation printed\n%s", before, after, out)
	}
	for _, host := range l.Hosts[:4] {
		if roots := strings.TrimSpace(string(read(t, filepath.Join(host.DataRoot(), "swarm", "certificates", "swarm-root-ca.crt")))); roots != after {
			t.Errorf("%s trusts\n%s", host.Name, roots)
		}
	}
	managers(t, h, l.Hosts[:3]...)
	Refused(t, late, []string{"fingerprint"}, "swarm", "join", "--token", token, h.Addr.String()+":2377")
	joinAll(t, l.Hosts[1], late)
	managers(t, late, l.Hosts[0], l.Hosts[1], l.Hosts[2], late)

	noneFailed(t, stop)
	if now := Docker(t, h, "service", "ps", "-q", "--no-trunc", "web"); now != tasks {
		t.Errorf("tasks changed from\n%s\nto\n%s", tasks, now)
	}

	// One node is away. Then it is back.
	if err := worker.KillDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	cert, key := ownAuthority(t)
	Docker(t, h, "swarm", "ca", "--rotate", "--detach", "--ca-cert", cert, "--ca-key", key)
	Refused(t, h, []string{"external"}, "swarm", "ca", "--rotate", "--ca-cert", cert, "--external-ca", "protocol=cfssl,url=https://ca.example")
	status(t, h, worker, "Down")
	if ca := Docker(t, h, "swarm", "ca"); ca != after {
		t.Error("the authority was replaced without the node that is away")
	}
	if err := worker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 60*time.Second, "the user's own authority", func(ctx context.Context) error {
		want := strings.TrimSpace(string(read(t, cert)))
		for _, host := range l.Hosts {
			roots, err := os.ReadFile(filepath.Join(host.DataRoot(), "swarm", "certificates", "swarm-root-ca.crt"))
			if err != nil || strings.TrimSpace(string(roots)) != want {
				return fmt.Errorf("%s trusts another one: %w", host.Name, errors.Join(err))
			}
		}
		return nil
	})

	// Everybody can still come back.
	for _, host := range l.Hosts {
		if err := host.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.StartAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	managers(t, h, l.Hosts[0], l.Hosts[1], l.Hosts[2], late)
	status(t, h, worker, "Ready")
	Docker(t, h, "service", "scale", "-d", "web=6")
	running(t, h, "web", 6)
}

// ownAuthority makes a certificate authority as a user would, and returns its files.
func ownAuthority(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the user's own"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(5 * 365 * 24 * time.Hour), KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
