package builder

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/moby/buildkit/identity"
)

// jobs are the builds under way that a client gave an ID.
type jobs struct {
	mu sync.Mutex
	m  map[string]context.CancelFunc
}

// begin notes a build; end forgets it.
func (j *jobs) begin(ctx context.Context, id string) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	if id == "" {
		return ctx, cancel
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.m == nil {
		j.m = map[string]context.CancelFunc{}
	}
	j.m[id] = cancel
	return ctx, func() {
		j.mu.Lock()
		delete(j.m, id)
		j.mu.Unlock()
		cancel()
	}
}

// cancel ends a build; one that is not there is no error.
func (j *jobs) cancel(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if cancel, ok := j.m[id]; ok {
		cancel()
	}
}

// contexts are the bodies of requests, to be had once each by an HTTP URL that only this program knows: BuildKit's source
// for URLs fetches a build's context by it.
type contexts struct {
	next http.RoundTripper
	mu   sync.Mutex
	m    map[string]io.ReadCloser
}

const contextHost = "sampan-build-context-"

func newContexts() *contexts {
	return &contexts{next: http.DefaultTransport, m: map[string]io.ReadCloser{}}
}

// put gives a body a URL until drop is called.
func (c *contexts) put(body io.ReadCloser) (url string, drop func()) {
	id := identity.NewID()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m[id] = body
	return "http://" + contextHost + id, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.m, id)
	}
}

// RoundTrip answers such a URL, and leaves others to the network.
func (c *contexts) RoundTrip(r *http.Request) (*http.Response, error) {
	id, ok := strings.CutPrefix(r.URL.Host, contextHost)
	if !ok {
		return c.next.RoundTrip(r)
	}
	c.mu.Lock()
	body := c.m[id]
	delete(c.m, id)
	c.mu.Unlock()
	if body == nil || r.Method != http.MethodGet {
		return nil, errors.New("the build's context was read already")
	}
	return &http.Response{Status: "200 OK", StatusCode: http.StatusOK, Body: body, ContentLength: -1, Request: r, Header: http.Header{}}, nil
}
