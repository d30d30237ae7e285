// Package identity owns who is who between hosts: the cluster's certificate authority, the certificates that say a
// node's ID and role, the tokens that let a host join, and the TLS configurations built on them. It decides whether a
// certificate is one of this cluster, never what its bearer may do.
package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// The roles of a node.
const (
	Worker  = "worker"
	Manager = "manager"
)

// Lifetimes.
const (
	CALifetime          = 20 * 365 * 24 * time.Hour
	DefaultNodeLifetime = 90 * 24 * time.Hour
	MinNodeLifetime     = time.Hour
	// Certificates are valid from a little before they were issued, for hosts whose clocks differ.
	backdate = time.Hour
)

// unitPrefix makes a role the organizational unit of a certificate, as Docker's certificates have it.
const unitPrefix = "swarm-"

// ManagerName is the DNS name that every manager's certificate carries beside its node's ID: clients ask for it, because
// addresses change.
const ManagerName = unitPrefix + Manager

// Subject is what a node's certificate says.
type Subject struct {
	NodeID    string
	Role      string
	ClusterID string
}

// SubjectOf reads the subject of a certificate that the cluster's CA has signed.
func SubjectOf(cert *x509.Certificate) (Subject, error) {
	s := Subject{NodeID: cert.Subject.CommonName}
	if len(cert.Subject.Organization) == 1 {
		s.ClusterID = cert.Subject.Organization[0]
	}
	for _, role := range []string{Worker, Manager} {
		if len(cert.Subject.OrganizationalUnit) == 1 && cert.Subject.OrganizationalUnit[0] == unitPrefix+role {
			s.Role = role
		}
	}
	if s.NodeID == "" || s.ClusterID == "" || s.Role == "" {
		return Subject{}, fault.New(fault.Unauthorized, "the certificate of %q is not a node's", cert.Subject)
	}
	return s, nil
}

// CA is a certificate authority: what it trusts, and, on a manager, the key to sign with.
type CA struct {
	bundle []byte // PEM: the current root first, then those still trusted while rotating
	roots  []*x509.Certificate
	key    crypto.Signer // nil where only trust is needed
}

// NewCA makes the authority of a new cluster.
func NewCA(now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "swarm-ca"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(CALifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{bundle: encodeCert(der), roots: []*x509.Certificate{root}, key: key}, nil
}

// ParseCA reads a PEM bundle of roots and the first one's key, which may be nil.
func ParseCA(bundle, key []byte) (*CA, error) {
	roots, err := parseCerts(bundle)
	if err != nil {
		return nil, fmt.Errorf("the cluster's CA: %w", err)
	}
	for _, r := range roots {
		if !r.IsCA {
			return nil, fmt.Errorf("the cluster's CA: certificate %q is not an authority's", r.Subject)
		}
	}
	c := &CA{bundle: bytes.Clone(bundle), roots: roots}
	if len(key) == 0 {
		return c, nil
	}
	if c.key, err = parseKey(key); err != nil {
		return nil, fmt.Errorf("the cluster's CA: %w", err)
	}
	if own, ok := c.key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !own.Equal(roots[0].PublicKey) {
		return nil, errors.New("the cluster's CA: the key is not the first certificate's")
	}
	return c, nil
}

// CertPEM returns the bundle of trusted roots.
func (c *CA) CertPEM() []byte { return bytes.Clone(c.bundle) }

// KeyPEM returns the key, nil if it is not here.
func (c *CA) KeyPEM() []byte {
	if c.key == nil {
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return nil // cannot be: it was parsed or made here
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// Digest returns the SHA-256 of the current root certificate in hexadecimal: what join tokens vouch for.
func (c *CA) Digest() string {
	sum := sha256.Sum256(c.roots[0].Raw)
	return hex.EncodeToString(sum[:])
}

// Only returns an authority that trusts nothing but the root with that digest, nil if c does not trust it. What else is in
// a bundle that was sent by a stranger is the stranger's word.
func (c *CA) Only(digest string) *CA {
	for _, r := range c.roots {
		if only := (&CA{bundle: encodeCert(r.Raw), roots: []*x509.Certificate{r}}); only.Digest() == digest {
			return only
		}
	}
	return nil
}

// SameRoots reports whether both trust the same roots, in whatever order.
func (c *CA) SameRoots(other *CA) bool {
	within := func(a, b *CA) bool {
		return !slices.ContainsFunc(a.roots, func(r *x509.Certificate) bool { return !slices.ContainsFunc(b.roots, r.Equal) })
	}
	return within(c, other) && within(other, c)
}

// Fingerprint tells bundles apart: the SHA-256, in hexadecimal, of the PEM documents as they are.
func Fingerprint(bundle []byte) string {
	sum := sha256.Sum256(bundle)
	return hex.EncodeToString(sum[:])
}

// Usable checks that a user's certificate and key can be a cluster's authority, and returns it.
func Usable(certPEM, keyPEM []byte, now time.Time) (*CA, error) {
	if len(keyPEM) == 0 {
		return nil, fault.New(fault.InvalidArgument, "the key of the new certificate authority is needed: external authorities are not implemented")
	}
	ca, err := ParseCA(certPEM, keyPEM)
	if err != nil {
		return nil, fault.As(fault.InvalidArgument, err)
	}
	root := ca.roots[0]
	switch {
	case len(ca.roots) != 1:
		return nil, fault.New(fault.InvalidArgument, "the file of the new certificate authority holds %d certificates: exactly one is needed", len(ca.roots))
	case root.CheckSignatureFrom(root) != nil:
		return nil, fault.New(fault.InvalidArgument, "the certificate of the new authority %q is not signed by itself: it must be a root", root.Subject)
	case now.Before(root.NotBefore) || now.Add(DefaultNodeLifetime).After(root.NotAfter):
		return nil, fault.New(fault.InvalidArgument, "the certificate of the new authority is valid from %s to %s: it must be valid now and for longer than nodes' certificates are",
			root.NotBefore.UTC().Format(time.DateOnly), root.NotAfter.UTC().Format(time.DateOnly))
	}
	ca.bundle = encodeCert(root.Raw) // without what else stands in the file
	return ca, nil
}

// Sign issues a node's certificate for the key in the request. Nothing else of the request is looked at: what the
// certificate says is decided here.
func (c *CA) Sign(csrPEM []byte, s Subject, lifetime time.Duration, now time.Time) (certPEM []byte, err error) {
	if c.key == nil {
		return nil, fault.New(fault.FailedPrecondition, "this node does not have the key of the cluster's CA")
	}
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fault.New(fault.InvalidArgument, "the certificate request is not in PEM form")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fault.New(fault.InvalidArgument, "certificate request: %w", err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fault.New(fault.InvalidArgument, "certificate request: an ECDSA key on P-256 is needed")
	}
	if lifetime <= 0 {
		lifetime = DefaultNodeLifetime
	}
	end := now.Add(max(lifetime, MinNodeLifetime))
	if root := c.roots[0]; end.After(root.NotAfter) {
		end = root.NotAfter
	}
	names := []string{s.NodeID}
	if s.Role == Manager {
		names = append(names, ManagerName)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(),
		Subject: pkix.Name{
			CommonName: s.NodeID, Organization: []string{s.ClusterID}, OrganizationalUnit: []string{unitPrefix + s.Role},
		},
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:              names,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.roots[0], pub, c.key)
	if err != nil {
		return nil, err
	}
	return encodeCert(der), nil
}

// Verify checks that the CA has issued the certificate and that it is a node's. expired says that it is past its end,
// which is no error here: whoever asks decides what an expired certificate is still good for. It holds no longer than
// the root that signed it. When it or the root was issued does not matter: that may lie ahead of a clock which is slow or
// was set back, and who has such a certificate has it from the cluster all the same.
func (c *CA) Verify(cert *x509.Certificate, now time.Time) (s Subject, expired bool, err error) {
	at := now
	if now.After(cert.NotAfter) {
		expired, at = true, cert.NotAfter
	}
	at = latest(at, cert.NotBefore)
	err = errors.New("the cluster's authority has expired")
	for _, r := range c.roots {
		if now.After(r.NotAfter) {
			continue
		}
		pool := x509.NewCertPool()
		pool.AddCert(r)
		if _, err = cert.Verify(x509.VerifyOptions{
			Roots: pool, CurrentTime: latest(at, r.NotBefore), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		}); err == nil {
			break
		}
	}
	if err != nil {
		return Subject{}, false, fault.New(fault.Unauthorized, "certificate of %q: %w", cert.Subject.CommonName, err)
	}
	s, err = SubjectOf(cert)
	return s, expired, err
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// NewRequest makes a key and the request for its certificate.
func NewRequest() (keyPEM, csrPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), nil
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func parseCerts(bundle []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := bundle; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate found")
	}
	return out, nil
}

func parseKey(doc []byte) (crypto.Signer, error) {
	for rest := doc; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return nil, errors.New("no private key found")
		}
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted")
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("private key of type %T cannot sign", key)
		}
		return signer, nil
	}
}
