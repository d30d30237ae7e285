package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	rerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/sampan-cloud/sampan/internal/fault"
)

const (
	hubDomain = "docker.io"
	hubHost   = "registry-1.docker.io"
)

// registries knows how to reach registries: which speak plain HTTP, which have mirrors.
type registries struct {
	secure   *http.Transport
	insecure *http.Transport
	certs    transports
	mirrors  []*url.URL
	hosts    map[string]bool // insecure, HOST or HOST:PORT
	nets     []netip.Prefix  // insecure
}

func newRegistries(cfg Config) (*registries, error) {
	base := &http.Transport{
		Proxy:                 cfg.Proxy,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConns:          20,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		ExpectContinueTimeout: 5 * time.Second,
		ForceAttemptHTTP2:     true,
	}
	r := &registries{secure: base, insecure: base.Clone(), certs: transports{dirs: cfg.CertDirs}, hosts: map[string]bool{}}
	r.insecure.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // what an insecure registry is
	for _, m := range cfg.Mirrors {
		u, err := url.Parse(m)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
			return nil, fault.New(fault.InvalidArgument, "registry mirror %q: want http://HOST[:PORT][/PATH] or https://…", m)
		}
		r.mirrors = append(r.mirrors, u)
	}
	for _, i := range cfg.Insecure {
		if p, err := netip.ParsePrefix(i); err == nil {
			r.nets = append(r.nets, p.Masked())
			continue
		}
		if a, err := netip.ParseAddr(strings.Trim(i, "[]")); err == nil {
			r.nets = append(r.nets, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
			continue
		}
		host := strings.TrimSuffix(i, "/")
		if host == "" || strings.ContainsAny(host, "/ ") {
			return nil, fault.New(fault.InvalidArgument, "insecure registry %q: want HOST, HOST:PORT, an IP address or a CIDR, without http:// and path", i)
		}
		r.hosts[strings.ToLower(host)] = true
	}
	return r, nil
}

// isInsecure reports whether HOST[:PORT] may be spoken to without a trusted certificate. A name counts by what was
// configured for the name, and for the addresses it stands for if those are all within a configured range.
func (r *registries) isInsecure(ctx context.Context, hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	host = strings.ToLower(host)
	if r.hosts[strings.ToLower(hostport)] || r.hosts[host] || host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	if err == nil {
		return r.insecureAddr(addr)
	}
	if len(r.nets) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(addrs) == 0 {
		return false
	}
	for _, a := range addrs {
		if !r.insecureAddr(a) {
			return false
		}
	}
	return true
}

func (r *registries) insecureAddr(a netip.Addr) bool {
	a = a.Unmap()
	if a.IsLoopback() {
		return true
	}
	for _, p := range r.nets {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// resolver speaks to the registry of named with the given credentials, which go to that registry alone: no mirror, no
// host it redirects to sees them.
func (r *registries) resolver(ctx context.Context, named reference.Named, auth Auth, push bool, track docker.StatusTracker) remotes.Resolver {
	own := registryOf(named)
	client := r.client(ctx, own)
	list := r.hostsOf(ctx, named, push, authorizer(client, own, auth))
	hosts := func(string) ([]docker.RegistryHost, error) { return list, nil }
	return docker.NewResolver(docker.ResolverOptions{
		Hosts:   hosts,
		Tracker: track,
		Headers: http.Header{"User-Agent": {"sampan"}},
	})
}

// registryOf is the host of the registry that has the images called named.
func registryOf(named reference.Named) string {
	if domain := reference.Domain(named); domain != hubDomain {
		return domain
	}
	return hubHost
}

// hostsOf lists where the images called named can be had: mirrors, unless it is for pushing, then the registry itself,
// which own shows the credentials.
func (r *registries) hostsOf(ctx context.Context, named reference.Named, push bool, own docker.Authorizer) []docker.RegistryHost {
	var list []docker.RegistryHost
	if reference.Domain(named) == hubDomain && !push {
		for _, m := range r.mirrors {
			client := r.client(ctx, m.Host)
			list = append(list, docker.RegistryHost{
				Client:       client,
				Authorizer:   &inTurn{a: docker.NewDockerAuthorizer(docker.WithAuthClient(client))},
				Host:         m.Host,
				Scheme:       m.Scheme,
				Path:         strings.TrimSuffix(m.Path, "/") + "/v2",
				Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
			})
		}
	}
	host := registryOf(named)
	return append(list, docker.RegistryHost{
		Client:       r.client(ctx, host),
		Authorizer:   own,
		Host:         host,
		Scheme:       "https",
		Path:         "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
	})
}

// firstPause is how long is waited before a request is repeated for the first time.
const firstPause = 500 * time.Millisecond

func (r *registries) client(ctx context.Context, host string) *http.Client {
	insecure, base := r.isInsecure(ctx, host), r.secure
	if insecure {
		base = r.insecure
	}
	var way http.RoundTripper
	own, err := r.certs.of(host, base)
	switch {
	case err != nil:
		way = refusing{err}
	case insecure:
		// HTTPS first, without looking at the certificate, and plain HTTP if nobody speaks TLS there: as Docker does.
		way = docker.NewHTTPFallback(noTLS{own})
	default:
		way = own
	}
	return &http.Client{Transport: &patient{next: way, pause: firstPause}, CheckRedirect: redirect}
}

// redirect follows a registry to where it keeps its blobs, without the credentials unless that is the registry itself.
// net/http by itself would also show them to other ports of the host and to hosts below its domain.
func redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("the registry redirects in a circle: stopped after 10 redirects")
	}
	if req.URL.Host != via[0].URL.Host {
		req.Header.Del("Authorization")
	}
	return nil
}

func authorizer(client *http.Client, host string, a Auth) docker.Authorizer {
	if a.RegistryToken != "" {
		return fixedToken{host: host, token: a.RegistryToken}
	}
	return &inTurn{a: docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(func(h string) (string, string, error) {
		if h != host {
			return "", "", nil
		}
		if a.IdentityToken != "" {
			return "", a.IdentityToken, nil
		}
		return a.Username, a.Password, nil
	}))}
}

// inTurn lets one request at a time ask for a token: containerd's authorizer reads and writes the expiry of a token that
// several requests share without a lock.
type inTurn struct {
	mu sync.Mutex
	a  docker.Authorizer
}

// Authorize adds the credentials to a request.
func (i *inTurn) Authorize(ctx context.Context, r *http.Request) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.a.Authorize(ctx, r)
}

// AddResponses learns from what the registry refused.
func (i *inTurn) AddResponses(ctx context.Context, rs []*http.Response) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.a.AddResponses(ctx, rs)
}

// fixedToken is an Authorizer with a token that the client brought along.
type fixedToken struct{ host, token string }

// Authorize adds the token to a request for its registry.
func (f fixedToken) Authorize(_ context.Context, r *http.Request) error {
	if r.URL.Host == f.host {
		r.Header.Set("Authorization", "Bearer "+f.token)
	}
	return nil
}

// AddResponses has nothing better to offer when the token is refused.
func (fixedToken) AddResponses(context.Context, []*http.Response) error {
	return fmt.Errorf("the registry refused the token: %w", docker.ErrInvalidAuthorization)
}

// registryError gives what a registry or the way to it answered a kind and Docker's words.
func registryError(verb string, named reference.Named, err error) error {
	if err == nil || fault.KindOf(err) != fault.Internal || errors.Is(err, context.Canceled) {
		return err
	}
	name := reference.FamiliarName(named)
	var status rerrors.ErrUnexpectedStatus
	code := 0
	if errors.As(err, &status) {
		code = status.StatusCode
	}
	var ne net.Error
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization), code == http.StatusUnauthorized, code == http.StatusForbidden:
		if verb == "push" {
			return fault.New(fault.Forbidden, "push access denied for %s: repository does not exist or may require 'docker login': denied: requested access to the resource is denied", name)
		}
		return fault.New(fault.NotFound, "pull access denied for %s, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", name)
	case errdefs.IsNotFound(err), code == http.StatusNotFound:
		if verb == "push" {
			return fault.New(fault.NotFound, "%s: %w", name, err)
		}
		return fault.New(fault.NotFound, "manifest for %s not found: manifest unknown: manifest unknown", reference.FamiliarString(named))
	case code == http.StatusTooManyRequests:
		return fault.New(fault.Unavailable, "toomanyrequests: the registry of %s limits its pulls: log in, or try again later", name)
	case errors.Is(err, context.DeadlineExceeded):
		return fault.As(fault.DeadlineExceeded, err)
	case errors.As(err, &ne), code >= 500:
		return fault.New(fault.Unavailable, "%s %s: registry %s: %w", verb, name, reference.Domain(named), err)
	}
	return fmt.Errorf("%s %s: %w", verb, name, err)
}
