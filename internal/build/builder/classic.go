package builder

import (
	controlapi "github.com/moby/buildkit/api/services/control"

	"github.com/sampan-cloud/sampan/internal/build"
)

type classic struct {
	out *messages
	req *build.Request
}

func newClassic(out *messages, r *build.Request) *classic { return &classic{out: out, req: r} }

func (c *classic) status(*controlapi.StatusResponse) error { return nil }

func (c *classic) done(string) error { return nil }
