package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Files in the certificates folder. Certificate and key share a file, so that no crash can part them.
const (
	nodeFile = "swarm-node.pem"
	rootFile = "swarm-root-ca.crt"
)

// Node is this host's own identity: its certificate and key and the roots it trusts, on disk and in use. All of them can
// be replaced while TLS configurations built from it are in use.
type Node struct {
	dir string
	now func() time.Time

	changing sync.Mutex // one change of what is on disk at a time

	mu      sync.RWMutex
	certPEM []byte
	keys    keys
	memory  *memoryFile // certificate and key in PEM, for KeyPairFile; nil until somebody asks
	cert    tls.Certificate
	subject Subject
	ca      *CA
	changed chan struct{} // closed by the next Install
}

// Create keeps a node's first certificate in dir and returns its identity. now may be nil.
func Create(dir string, certPEM, keyPEM, caPEM []byte, now func() time.Time) (*Node, error) {
	n := newNode(dir, now)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of certificates: %w", err)
	}
	if err := n.Install(certPEM, keyPEM, caPEM); err != nil {
		return nil, err
	}
	return n, nil
}

// Load reads the identity that dir holds; unlock is the key under which it was locked, if it was: see ErrLocked. The
// certificate may have expired: see Expired.
func Load(dir, unlock string, now func() time.Time) (*Node, error) {
	n := newNode(dir, now)
	doc, err := os.ReadFile(n.path())
	if err != nil {
		return nil, fmt.Errorf("read this node's certificate: %w", err)
	}
	certPEM, k, err := parseFile(doc, unlock)
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(n.CAFile())
	if err != nil {
		return nil, fmt.Errorf("read the cluster's CA: %w", err)
	}
	if err := n.use(certPEM, k, roots); err != nil {
		return nil, err
	}
	return n, nil
}

func newNode(dir string, now func() time.Time) *Node {
	if now == nil {
		now = time.Now
	}
	return &Node{dir: dir, now: now, changed: make(chan struct{})}
}

// path is where certificate and keys are kept.
func (n *Node) path() string { return filepath.Join(n.dir, nodeFile) }

// KeyPairFile is a path from which certificate and key can be read, as they are at that moment, by this process. They are
// not on disk there.
func (n *Node) KeyPairFile() (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.memory == nil {
		m, err := newMemoryFile()
		if err != nil {
			return "", err
		}
		if err := m.replace(n.pair()); err != nil {
			return "", err
		}
		n.memory = m
	}
	return n.memory.path(), nil
}

// pair is certificate and key in PEM. Called with mu held.
func (n *Node) pair() []byte { return pairOf(n.certPEM, n.keys) }

func pairOf(certPEM []byte, k keys) []byte { return slices.Concat(certPEM, []byte{'\n'}, k.private) }

// CAFile is where the trusted roots are.
func (n *Node) CAFile() string { return filepath.Join(n.dir, rootFile) }

// Install replaces certificate, key and roots, first on disk and then in use. What does not fit together is refused.
func (n *Node) Install(certPEM, keyPEM, caPEM []byte) error {
	n.changing.Lock()
	defer n.changing.Unlock()
	k := n.heldKeys()
	k.private = keyPEM
	if _, _, _, err := n.check(pairOf(certPEM, k), caPEM); err != nil {
		return err
	}
	if err := writeFile(n.CAFile(), caPEM, 0o644); err != nil {
		return fmt.Errorf("keep the cluster's CA: %w", err)
	}
	if err := n.write(certPEM, k); err != nil {
		return err
	}
	return n.use(certPEM, k, caPEM)
}

func (n *Node) heldKeys() keys {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.keys
}

func (n *Node) write(certPEM []byte, k keys) error {
	doc, err := k.file(certPEM)
	if err != nil {
		return err
	}
	if err := writeFile(n.path(), doc, 0o600); err != nil {
		return fmt.Errorf("keep this node's certificate: %w", err)
	}
	return nil
}

// DataKey returns the key with which the cluster's state is encrypted, nil on a worker and where it is not.
func (n *Node) DataKey() []byte { return n.heldKeys().data }

// SetDataKey keeps the key with which the cluster's state is encrypted; nil: forget it.
func (n *Node) SetDataKey(key []byte) error {
	return n.changeKeys(func(k *keys) { k.data = key })
}

// SetUnlockKey locks what is kept on disk under another unlock key; empty: not at all.
func (n *Node) SetUnlockKey(unlock string) error {
	return n.changeKeys(func(k *keys) { k.unlock = unlock })
}

func (n *Node) changeKeys(change func(*keys)) error {
	n.changing.Lock()
	defer n.changing.Unlock()
	old := n.heldKeys()
	k := old
	change(&k)
	if k.unlock == old.unlock && bytes.Equal(k.data, old.data) {
		return nil
	}
	n.mu.RLock()
	certPEM := n.certPEM
	n.mu.RUnlock()
	if err := n.write(certPEM, k); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.keys = k
	return nil
}

func (n *Node) check(pair, roots []byte) (tls.Certificate, Subject, *CA, error) {
	fail := func(err error) (tls.Certificate, Subject, *CA, error) {
		return tls.Certificate{}, Subject{}, nil, fmt.Errorf("this node's certificate: %w", err)
	}
	cert, err := tls.X509KeyPair(pair, pair)
	if err != nil {
		return fail(err)
	}
	ca, err := ParseCA(roots, nil)
	if err != nil {
		return fail(err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fail(err)
		}
	}
	// The clock may be wrong on a host that has just booted: what matters here is who signed.
	subject, _, err := ca.Verify(cert.Leaf, cert.Leaf.NotAfter)
	if err != nil {
		return fail(err)
	}
	return cert, subject, ca, nil
}

func (n *Node) use(certPEM []byte, k keys, roots []byte) error {
	cert, subject, ca, err := n.check(pairOf(certPEM, k), roots)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.certPEM, n.keys = certPEM, k
	if n.memory != nil {
		if err := n.memory.replace(n.pair()); err != nil {
			return err
		}
	}
	n.cert, n.subject, n.ca = cert, subject, ca
	close(n.changed)
	n.changed = make(chan struct{})
	return nil
}

// Subject returns what the certificate in use says.
func (n *Node) Subject() Subject {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.subject
}

// CA returns the trusted roots.
func (n *Node) CA() *CA {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.ca
}

// Expired reports whether the certificate is past its end.
func (n *Node) Expired() bool { return n.now().After(n.leaf().NotAfter) }

// Changed returns a channel that is closed by the next Install.
func (n *Node) Changed() <-chan struct{} {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.changed
}

func (n *Node) leaf() *x509.Certificate {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.cert.Leaf
}

// RenewAt returns when half of the certificate's life is over.
func (n *Node) RenewAt() time.Time {
	leaf := n.leaf()
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
}

// KeepFresh calls renew (which installs a new certificate) from half of the certificate's life on, again and again until
// it succeeds, and goes on until ctx ends. An expired certificate is renewed at once.
func (n *Node) KeepFresh(ctx context.Context, logger *slog.Logger, renew func(context.Context) error) {
	const longest = time.Hour // timers stand still while a host sleeps: look at the clock now and then
	retry := time.Duration(0)
	for {
		changed := n.Changed()
		wait := n.RenewAt().Sub(n.now())
		if wait <= 0 {
			wait = retry
		} else if wait > 10*time.Minute {
			// Nodes that joined together shall not renew together.
			wait += time.Duration(rand.Int64N(int64(wait / 10)))
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
			retry = 0
			continue
		case <-time.After(min(wait, longest)):
		}
		if n.RenewAt().After(n.now()) {
			continue
		}
		if err := renew(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			retry = min(max(2*retry, time.Second), 5*time.Minute)
			logger.Warn("this node's certificate could not be renewed; trying again", "error", err, "valid until", n.leaf().NotAfter, "next try in", retry)
			continue
		}
		retry = 0
		logger.Info("this node's certificate was renewed", "valid until", n.leaf().NotAfter, "role", n.Subject().Role)
	}
}

// Peer verifies the certificate of another node: that it is of this cluster. expired is as in CA.Verify.
func (n *Node) Peer(cert *x509.Certificate) (s Subject, expired bool, err error) {
	n.mu.RLock()
	ca, own := n.ca, n.subject.ClusterID
	n.mu.RUnlock()
	s, expired, err = ca.Verify(cert, n.now())
	if err == nil && s.ClusterID != own {
		return Subject{}, false, fault.New(fault.Unauthorized, "the certificate of node %s is of another cluster", s.NodeID)
	}
	return s, expired, err
}

// Admit is whom a server lets in.
type Admit uint8

// Whom a server lets in.
const (
	Anyone      Admit = iota // no certificate is needed; one that is shown must be of this cluster, expired or not
	AnyNode                  // a node with a valid certificate
	ManagerOnly              // a manager with a valid certificate
)

// ServerConfig returns the TLS configuration of a server of this node.
func (n *Node) ServerConfig(admit Admit) *tls.Config {
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true, // a resumed session would outlive its certificate
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return n.certificate(), nil },
		ClientAuth:             tls.RequestClientCert, // verified below, against the roots of that moment
	}
	if admit != Anyone {
		cfg.ClientAuth = tls.RequireAnyClientCert
	}
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil // only Anyone gets here
		}
		s, expired, err := n.Peer(cs.PeerCertificates[0])
		switch {
		case err != nil:
			return err
		case admit == Anyone:
			return nil
		case expired:
			return fault.New(fault.Unauthorized, "the certificate of node %s has expired", s.NodeID)
		case admit == ManagerOnly && s.Role != Manager:
			return fault.New(fault.Forbidden, "node %s is a %s: only managers may come here", s.NodeID, s.Role)
		}
		return nil
	}
	return cfg
}

// ClientConfig returns the TLS configuration with which this node calls managers.
func (n *Node) ClientConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: ManagerName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return n.certificate(), nil
		},
		// Verified below, against the roots of that moment instead of those of this call.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			s, expired, err := n.Peer(cs.PeerCertificates[0])
			switch {
			case err != nil:
				return err
			case expired:
				return fault.New(fault.Unauthorized, "the certificate of manager %s has expired", s.NodeID)
			case s.Role != Manager:
				return fault.New(fault.Unauthorized, "node %s answers as a manager but is a %s", s.NodeID, s.Role)
			}
			return nil
		},
	}
}

// JoinConfig returns the TLS configuration with which a host without a certificate calls the managers of the cluster
// whose CA it has checked by the join token.
func JoinConfig(ca *CA, now func() time.Time) *tls.Config {
	if now == nil {
		now = time.Now
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         ManagerName,
		InsecureSkipVerify: true, // verified below
		VerifyConnection: func(cs tls.ConnectionState) error {
			s, expired, err := ca.Verify(cs.PeerCertificates[0], now())
			if err == nil && (expired || s.Role != Manager) {
				err = fault.New(fault.Unauthorized, "the certificate of %s is not that of a manager, or has expired", s.NodeID)
			}
			return err
		},
	}
}

// BlindConfig returns the TLS configuration for the one question that is asked before anything can be verified: what the
// cluster's CA is. The answer is checked against the digest in the join token.
func BlindConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: ManagerName, InsecureSkipVerify: true}
}

func (n *Node) certificate() *tls.Certificate {
	n.mu.RLock()
	defer n.mu.RUnlock()
	c := n.cert
	return &c
}

func writeFile(path string, doc []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-"+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(doc)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
