package builder

import (
	"context"
	"net"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/build"
)

// hubKey is the name under which Docker's clients keep the credentials of docker.io, which is asked for as hubHost.
const (
	hubKey  = "https://index.docker.io/v1/"
	hubHost = "registry-1.docker.io"
)

// credentials answers BuildKit's questions for credentials with those that came with a request of the classic builder,
// which has no session of the client's. It is a session of this program with itself.
type credentials struct {
	auth.UnimplementedAuthServer
	known map[string]build.Credentials
}

// Register offers it in a session.
func (c *credentials) Register(s *grpc.Server) { auth.RegisterAuthServer(s, c) }

// Credentials returns those of a registry; none, if none are known.
func (c *credentials) Credentials(_ context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	host := r.Host
	if host == hubHost {
		host = hubKey
	}
	known, ok := c.known[host]
	if !ok {
		known = c.known["https://"+host]
	}
	if known.IdentityToken != "" {
		return &auth.CredentialsResponse{Secret: known.IdentityToken}, nil
	}
	return &auth.CredentialsResponse{Username: known.Username, Secret: known.Password}, nil
}

// withCredentials opens a session that has them, until end is called.
func (b *Builder) withCredentials(ctx context.Context, known map[string]build.Credentials) (id string, end func(), err error) {
	s, err := session.NewSession(ctx, "")
	if err != nil {
		return "", nil, err
	}
	s.Allow(&credentials{known: known})
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		_ = s.Run(ctx, func(ctx context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() { _ = b.sessions.HandleConn(ctx, theirs, meta) }()
			return ours, nil
		})
	}()
	return s.ID(), func() { _ = s.Close(); cancel() }, nil
}
