package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	rerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Resolve asks a registry what ref stands for: the descriptor of the manifest or index, and the platforms there are of it.
// Nothing is stored.
func (s *Store) Resolve(ctx context.Context, ref string, auth Auth) (ocispec.Descriptor, []ocispec.Platform, error) {
	named, err := parseRef(ref)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	ctx = s.ns(ctx)
	resolver := s.hub.Load().resolver(ctx, named, auth, false, nil)
	_, desc, err := resolver.Resolve(ctx, named.String())
	if err != nil {
		return desc, nil, registryError("pull", named, err)
	}
	fetcher, err := resolver.Fetcher(ctx, named.String())
	if err != nil {
		return desc, nil, registryError("pull", named, err)
	}
	list, err := platformsOf(ctx, fetcher, &desc)
	return desc, list, registryError("pull", named, err)
}

// platformsOf reads the platforms of a manifest or index, and its media type if the registry did not say.
func platformsOf(ctx context.Context, f remotes.Fetcher, desc *ocispec.Descriptor) ([]ocispec.Platform, error) {
	b, err := fetchSmall(ctx, f, *desc, maxManifest)
	if err != nil {
		return nil, err
	}
	if mt := sniffMediaType(b); mt != "" {
		desc.MediaType = mt
	}
	if isIndex(desc.MediaType) {
		var idx ocispec.Index
		if err := json.Unmarshal(b, &idx); err != nil {
			return nil, fmt.Errorf("index %s: %w", desc.Digest, err)
		}
		var list []ocispec.Platform
		for _, m := range idx.Manifests {
			if m.Platform != nil && m.Platform.OS != "unknown" {
				list = append(list, platforms.Normalize(*m.Platform))
			}
		}
		return list, nil
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if b, err = fetchSmall(ctx, f, m.Config, maxConfig); err != nil {
		return nil, err
	}
	var p ocispec.Platform
	if err := json.Unmarshal(b, &p); err != nil || p.OS == "" {
		return nil, nil //nolint:nilerr // not an image's config: no platform
	}
	return []ocispec.Platform{p}, nil
}

// fetchSmall fetches a document and checks its digest.
func fetchSmall(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor, most int64) ([]byte, error) {
	if err := checkDescriptor(desc); err != nil {
		return nil, fault.New(fault.InvalidArgument, "descriptor: %w", err)
	}
	if desc.Size > most {
		return nil, fault.New(fault.InvalidArgument, "%s has %d bytes; more than %d are refused", desc.Digest, desc.Size, most)
	}
	rc, err := f.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, desc.Size+1))
	if err != nil {
		return nil, err
	}
	if desc.Digest.Algorithm().FromBytes(b) != desc.Digest {
		return nil, fault.As(fault.InvalidArgument, fmt.Errorf("%w for digest %s", errDamaged, desc.Digest))
	}
	return b, nil
}

// Login checks credentials with the registry that auth.ServerAddress names, "" being Docker Hub. It returns the identity
// token that the registry gives in exchange, if it does. Wrong credentials are fault.Unauthorized.
func (s *Store) Login(ctx context.Context, auth Auth) (identityToken string, err error) {
	host := auth.ServerAddress
	for _, prefix := range []string{"https://", "http://"} {
		host = strings.TrimPrefix(host, prefix)
	}
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "", hubDomain, "index." + hubDomain:
		host = hubHost
	}
	if _, err := reference.ParseNormalizedNamed(host + "/x"); err != nil {
		return "", fault.New(fault.InvalidArgument, "registry address %q: want HOST[:PORT]", auth.ServerAddress)
	}
	client := s.hub.Load().client(ctx, host)
	client.Timeout = time.Minute
	a := docker.NewDockerAuthorizer(docker.WithAuthClient(client),
		docker.WithAuthCreds(func(string) (string, string, error) {
			if auth.IdentityToken != "" {
				return "", auth.IdentityToken, nil
			}
			return auth.Username, auth.Password, nil
		}),
		docker.WithFetchRefreshToken(func(_ context.Context, token string, _ *http.Request) { identityToken = token }))
	url := "https://" + host + "/v2/"
	refused := func() error {
		return fault.New(fault.Unauthorized, "Get %q: unauthorized: incorrect username or password", url)
	}
	var seen []*http.Response
	for range 3 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		if err := a.Authorize(ctx, req); err != nil {
			var status rerrors.ErrUnexpectedStatus
			if errors.As(err, &status) && status.StatusCode < 500 || errors.Is(err, docker.ErrInvalidAuthorization) {
				return "", refused()
			}
			return "", fault.New(fault.Unavailable, "login to %s: %w", host, err)
		}
		res, err := client.Do(req)
		if err != nil {
			return "", fault.New(fault.Unavailable, "login to %s: %w", host, err)
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
		_ = res.Body.Close()
		switch {
		case res.StatusCode == http.StatusOK:
			return identityToken, nil
		case res.StatusCode == http.StatusForbidden:
			return "", refused()
		case res.StatusCode != http.StatusUnauthorized:
			return "", fault.New(fault.Unavailable, "login to %s: the registry answers %s", host, res.Status)
		}
		seen = append(seen, res) //nolint:bodyclose // it is closed above
		if err := a.AddResponses(ctx, seen); err != nil {
			return "", refused()
		}
	}
	return "", refused()
}
