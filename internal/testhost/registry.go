package testhost

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Registry is an image registry on the lab's client machine, over plain HTTP: hosts need --insecure-registry for its
// address (InsecureArg).
type Registry struct {
	Addr   string // 10.99.0.100:5000, the first part of its images' names
	lab    *Lab
	server *http.Server
}

// InsecureArg is the sampand flag that lets a host use a lab's registry.
const InsecureArg = "--insecure-registry=10.99.0.0/24"

// StartRegistry serves a registry from this process until Close.
func (l *Lab) StartRegistry() (*Registry, error) {
	r := &Registry{Addr: net.JoinHostPort(l.Client.Addr.String(), "5000"), lab: l}
	var listener net.Listener
	err := l.Client.Do(func() error {
		var err error
		listener, err = net.Listen("tcp", r.Addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r.server = &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

// Close ends the registry.
func (r *Registry) Close() error { return r.server.Close() }

// Push puts the one image of a docker-archive into the registry under repo ("shop/order:1") and returns its full name.
func (r *Registry) Push(ctx context.Context, archive []byte, repo string) (string, error) {
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }, nil)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", repo, err)
	}
	ref, err := name.ParseReference(r.Addr+"/"+repo, name.Insecure)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{DialContext: r.lab.Client.Dial}
	defer transport.CloseIdleConnections()
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(transport)); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	return ref.String(), nil
}
