package builder

import (
	"context"
	"strings"

	"github.com/distribution/reference"
	bkexecutor "github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
)

// ownSyntax serves the frontends that a Dockerfile names in "# syntax=". Docker's own, docker/dockerfile of version 1, is
// the one in this program already: it is not fetched from a registry for what is here. Any other is an image and is run.
type ownSyntax struct {
	frontend.Frontend
	own frontend.Frontend
}

// Solve builds with a frontend.
func (f *ownSyntax) Solve(ctx context.Context, bridge frontend.FrontendLLBBridge, exec bkexecutor.Executor, opts map[string]string,
	inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	if isOwnSyntax(opts["source"]) {
		return f.own.Solve(ctx, bridge, exec, opts, inputs, sid, sm)
	}
	return f.Frontend.Solve(ctx, bridge, exec, opts, inputs, sid, sm)
}

// isOwnSyntax reports whether the image of a frontend is what this program has in it: a release of docker/dockerfile 1,
// not pinned to a digest and not of the labs channel.
func isOwnSyntax(source string) bool {
	named, err := reference.ParseNormalizedNamed(source)
	if err != nil || named.Name() != "docker.io/docker/dockerfile" {
		return false
	}
	if _, ok := named.(reference.Digested); ok {
		return false
	}
	tag := "latest"
	if t, ok := named.(reference.Tagged); ok {
		tag = t.Tag()
	}
	return tag == "latest" || tag == "1" || strings.HasPrefix(tag, "1.") && !strings.Contains(tag, "-")
}
