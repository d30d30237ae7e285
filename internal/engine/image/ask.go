package image

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Login asks the registry that auth.ServerAddress names ("" is Docker Hub) whether it takes the credentials. It keeps
// nothing; clients keep credentials and send them along.
func (s *Store) Login(ctx context.Context, auth Auth) (identityToken string, err error) {
	host := registryHost(auth.ServerAddress)
	if host == "" {
		return "", fault.New(fault.InvalidArgument, "invalid registry address %q: want HOST[:PORT]", auth.ServerAddress)
	}
	client := s.hub.client(ctx, host)
	authz := authorizer(client, host, auth)
	var seen []*http.Response
	for range 3 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/v2/", nil)
		if err != nil {
			return "", fault.New(fault.InvalidArgument, "invalid registry address %q: %w", auth.ServerAddress, err)
		}
		if err := authz.Authorize(ctx, req); err != nil {
			return "", loginError(host, err)
		}
		res, err := client.Do(req)
		if err != nil {
			return "", loginError(host, err)
		}
		_ = res.Body.Close()
		switch {
		case res.StatusCode == http.StatusOK:
			return auth.IdentityToken, nil
		case res.StatusCode != http.StatusUnauthorized:
			return "", fault.New(fault.Unavailable, "login attempt to https://%s/v2/ failed with status: %s", host, res.Status)
		}
		seen = append(seen, res)
		if err := authz.AddResponses(ctx, seen); err != nil {
			return "", loginError(host, err)
		}
	}
	return "", loginError(host, docker.ErrInvalidAuthorization)
}

// registryHost returns the host of an address as users write it: with or without a scheme and a path.
func registryHost(address string) string {
	if address == "" || strings.Contains(address, "index.docker.io") || address == hubDomain {
		return hubHost
	}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}

func loginError(host string, err error) error {
	var unexpected interface{ Timeout() bool }
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization), strings.Contains(err.Error(), "401"):
		return fault.New(fault.Unauthorized, "Get \"https://%s/v2/\": unauthorized: incorrect username or password", host)
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &unexpected):
		return fault.New(fault.Unavailable, "login to %s: %w", host, err)
	}
	return fault.New(fault.Unauthorized, "login to %s: %w", host, err)
}

// Resolve returns the descriptor that a registry has for ref, and the platforms there are of it. Nothing is kept.
func (s *Store) Resolve(ctx context.Context, ref string, auth Auth) (ocispec.Descriptor, []ocispec.Platform, error) {
	named, err := parseRef(ref)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	resolver := s.hub.resolver(ctx, named, auth, false, nil)
	_, desc, err := resolver.Resolve(ctx, named.String())
	if err != nil {
		return desc, nil, registryError("pull", named, err)
	}
	fetch := func(d ocispec.Descriptor, into any) error {
		if err := checkDescriptor(d); err != nil || d.Size > maxManifest {
			return fault.New(fault.InvalidArgument, "%s: malformed descriptor of %s", reference.FamiliarString(named), d.Digest)
		}
		fetcher, err := resolver.Fetcher(ctx, named.String())
		if err != nil {
			return registryError("pull", named, err)
		}
		body, err := fetcher.Fetch(ctx, d)
		if err != nil {
			return registryError("pull", named, err)
		}
		defer body.Close()
		b, err := io.ReadAll(io.LimitReader(body, d.Size+1))
		if err != nil {
			return registryError("pull", named, err)
		}
		if d.Digest.Algorithm().FromBytes(b) != d.Digest {
			return fault.New(fault.InvalidArgument, "%s: content of %s does not have that digest", reference.FamiliarString(named), d.Digest)
		}
		return json.Unmarshal(b, into)
	}
	var doc struct {
		Manifests []ocispec.Descriptor
		Config    ocispec.Descriptor
	}
	if err := fetch(desc, &doc); err != nil {
		return desc, nil, err
	}
	var out []ocispec.Platform
	for _, m := range doc.Manifests {
		if m.Platform != nil && m.Platform.OS != "unknown" {
			out = append(out, *m.Platform)
		}
	}
	if len(doc.Manifests) == 0 && doc.Config.Digest != "" {
		var p ocispec.Platform
		if err := fetch(doc.Config, &p); err != nil {
			return desc, nil, err
		}
		out = append(out, platforms.Normalize(p))
	}
	return desc, out, nil
}
