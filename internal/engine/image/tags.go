package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// maxTags bounds what a registry is believed to have of one repository.
const maxTags = 10000

// Tags returns the tags that a registry has of a repository, in its order.
func (s *Store) Tags(ctx context.Context, repository string, auth Auth) ([]string, error) {
	named, err := parseRef(repository)
	if err != nil {
		return nil, err
	}
	host := reference.Domain(named)
	if host == hubDomain {
		host = hubHost
	}
	client := s.hub.Load().client(ctx, host)
	authorize := authorizer(client, host, auth)
	next := &url.URL{Scheme: "https", Host: host, Path: "/v2/" + reference.Path(named) + "/tags/list"}
	var tags []string
	for next != nil && len(tags) < maxTags {
		page, link, err := tagPage(ctx, client, authorize, next)
		if err != nil {
			return nil, registryError("pull", reference.TrimNamed(named), err)
		}
		tags = append(tags, page...)
		next = link
	}
	return tags, nil
}

// tagPage gets one page of a list of tags, and where the next one is.
func tagPage(ctx context.Context, client *http.Client, authorize docker.Authorizer, from *url.URL) ([]string, *url.URL, error) {
	var seen []*http.Response
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), nil)
		if err != nil {
			return nil, nil, err
		}
		if err := authorize.Authorize(ctx, req); err != nil {
			return nil, nil, err
		}
		res, err := client.Do(req)
		if err != nil {
			return nil, nil, err
		}
		body, err := io.ReadAll(io.LimitReader(res.Body, 8<<20))
		_ = res.Body.Close()
		if err != nil {
			return nil, nil, err
		}
		switch {
		case res.StatusCode == http.StatusUnauthorized && len(seen) < 3:
			seen = append(seen, res) //nolint:bodyclose // it is closed above
			if err := authorize.AddResponses(ctx, seen); err != nil {
				return nil, nil, err
			}
			continue
		case res.StatusCode == http.StatusNotFound:
			return nil, nil, fault.New(fault.NotFound, "repository %s not found: does not exist or no pull access", strings.TrimSuffix(strings.TrimPrefix(from.Path, "/v2/"), "/tags/list"))
		case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
			return nil, nil, docker.ErrInvalidAuthorization
		case res.StatusCode != http.StatusOK:
			return nil, nil, fmt.Errorf("list of tags: the registry answers %s", res.Status)
		}
		var list struct{ Tags []string }
		if err := json.Unmarshal(body, &list); err != nil {
			return nil, nil, fmt.Errorf("list of tags: %w", err)
		}
		link, err := nextLink(res.Header.Get("Link"), from)
		return list.Tags, link, err
	}
}

// nextLink reads a Link header with rel="next"; nil when there is none. It never leads to another host, which would be
// shown the credentials.
func nextLink(header string, from *url.URL) (*url.URL, error) {
	target, rest, ok := strings.Cut(strings.TrimPrefix(header, "<"), ">")
	if !ok || !strings.Contains(rest, "next") {
		return nil, nil
	}
	u, err := from.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("list of tags: %w", err)
	}
	if u.Host != from.Host {
		return nil, errors.New("list of tags: the registry leads to another host")
	}
	return u, nil
}
