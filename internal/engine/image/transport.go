package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// patient repeats requests that a registry could not answer for now: it asks for fewer requests, or it, or what stands
// before it, is ill. The registry's own word on when to come again is kept.
type patient struct {
	next http.RoundTripper
	// pause is the first wait; it doubles each time.
	pause time.Duration
}

const (
	patientTries = 4
	// patientWait is the longest wait that a registry may ask for; if it is longer the answer is handed on.
	patientWait = 20 * time.Second
)

// RoundTrip implements http.RoundTripper.
func (p *patient) RoundTrip(r *http.Request) (*http.Response, error) {
	for try := 1; ; try++ {
		res, err := p.next.RoundTrip(r)
		if err != nil || try == patientTries || r.Method != http.MethodGet && r.Method != http.MethodHead {
			return res, err
		}
		wait, again := comeAgain(res, p.pause<<(try-1), time.Now())
		if !again {
			return res, nil
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
		_ = res.Body.Close()
		if err := sleep(r.Context(), wait); err != nil {
			return nil, err
		}
	}
}

// noTLS has the fallback to plain HTTP hear of every server that does not speak TLS: it looks for the beginning of an
// answer in HTTP's words, but simple servers answer what they do not understand with less than that.
type noTLS struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t noTLS) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.RoundTripper.RoundTrip(r)
	if other, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		other.RecordHeader = [5]byte([]byte("HTTP/"))
		err = other
	}
	return res, err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// comeAgain tells whether and when a request is to be repeated. Wait is what it is without the registry's word.
func comeAgain(res *http.Response, wait time.Duration, now time.Time) (time.Duration, bool) {
	switch res.StatusCode {
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return 0, false
	}
	if after := res.Header.Get("Retry-After"); after != "" {
		if n, err := strconv.Atoi(after); err == nil && n >= 0 {
			wait = time.Duration(n) * time.Second
		} else if at, err := http.ParseTime(after); err == nil {
			wait = max(0, at.Sub(now))
		}
	}
	return wait, wait <= patientWait
}

// hostCerts are the certificates for one registry, as they lie in a folder named HOST or HOST:PORT: NAME.crt are
// authorities that may sign the registry's, NAME.cert and NAME.key are what this host shows.
type hostCerts struct {
	authorities *x509.CertPool // nil: the system's alone
	own         []tls.Certificate
	state       string // of the files: it changes when one of them does
}

// readCerts reads the folders DIR/HOST[:PORT] of dirs; the first of them that is there counts.
func readCerts(dirs []string, host string) (hostCerts, error) {
	for _, dir := range dirs {
		if strings.ContainsAny(host, "/\\") || host == "" || host == "." || host == ".." {
			return hostCerts{}, nil
		}
		c, err := readCertFolder(filepath.Join(dir, host))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return c, err
	}
	return hostCerts{}, nil
}

func readCertFolder(dir string) (hostCerts, error) {
	var c hostCerts
	entries, err := os.ReadDir(dir)
	if err != nil {
		return c, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		ext := filepath.Ext(path)
		if ext != ".crt" && ext != ".cert" && ext != ".key" {
			continue
		}
		st, err := os.Stat(path)
		if err != nil {
			return c, err
		}
		c.state += fmt.Sprintf("%s %d %d\n", path, st.Size(), st.ModTime().UnixNano())
		switch base := strings.TrimSuffix(path, ext); ext {
		case ".crt":
			pem, err := os.ReadFile(path)
			if err != nil {
				return c, err
			}
			if c.authorities == nil {
				if c.authorities, err = x509.SystemCertPool(); err != nil {
					c.authorities = x509.NewCertPool()
				}
			}
			if !c.authorities.AppendCertsFromPEM(pem) {
				return c, fault.New(fault.InvalidArgument, "%s: no certificate in it", path)
			}
		case ".cert":
			if _, err := os.Stat(base + ".key"); errors.Is(err, fs.ErrNotExist) {
				return c, fault.New(fault.InvalidArgument, "missing key %s.key for client certificate %s. CA certificates must use the extension .crt", filepath.Base(base), e.Name())
			}
			pair, err := tls.LoadX509KeyPair(path, base+".key")
			if err != nil {
				return c, fault.New(fault.InvalidArgument, "%s: %w", path, err)
			}
			c.own = append(c.own, pair)
		case ".key":
			if _, err := os.Stat(base + ".cert"); errors.Is(err, fs.ErrNotExist) {
				return c, fault.New(fault.InvalidArgument, "missing client certificate %s.cert for key %s", filepath.Base(base), e.Name())
			}
		}
	}
	return c, nil
}

// transports keeps one transport for each registry that has certificates of its own.
type transports struct {
	mu   sync.Mutex
	dirs []string
	all  map[string]*certTransport // by host
}

type certTransport struct {
	state     string
	transport *http.Transport
}

// of is base with the certificates for a registry, as they are now.
func (t *transports) of(host string, base *http.Transport) (*http.Transport, error) {
	if len(t.dirs) == 0 {
		return base, nil
	}
	c, err := readCerts(t.dirs, host)
	if err != nil {
		return nil, fmt.Errorf("certificates for registry %s: %w", host, err)
	}
	if c.state == "" {
		return base, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.all[host]; have != nil {
		if have.state == c.state {
			return have.transport, nil
		}
		have.transport.CloseIdleConnections()
	}
	own := base.Clone()
	if own.TLSClientConfig == nil {
		own.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	own.TLSClientConfig.RootCAs, own.TLSClientConfig.Certificates = c.authorities, c.own
	if t.all == nil {
		t.all = map[string]*certTransport{}
	}
	t.all[host] = &certTransport{state: c.state, transport: own}
	return own, nil
}

// refusing answers every request with an error: what is configured for a registry cannot be used.
type refusing struct{ err error }

// RoundTrip implements http.RoundTripper.
func (r refusing) RoundTrip(*http.Request) (*http.Response, error) { return nil, r.err }
