package docker

import (
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/plugin"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// unserved answers the paths of the API that Sampan does not serve: with 501 and the reason, so that a user learns what
// to do instead. docs/compatibility.md lists them.
func unserved() []route {
	var out []route
	for _, u := range []struct{ method, pattern, why string }{
		{"GET", "/images/search", "searching Docker Hub is not implemented: search at https://hub.docker.com"},
		{"GET", "/containers/{id}/checkpoints", "checkpoints are not implemented"},
		{"POST", "/containers/{id}/checkpoints", "checkpoints are not implemented"},
		{"DELETE", "/containers/{id}/checkpoints/{checkpoint}", "checkpoints are not implemented"},
		{"PUT", "/volumes/{name}", "only cluster volumes can be updated, and those are not implemented"},
		{"GET", "/plugins/privileges", noPlugins},
		{"POST", "/plugins/pull", noPlugins},
		{"POST", "/plugins/create", noPlugins},
	} {
		out = append(out, route{method: u.method, pattern: u.pattern, serve: func(*response, *request) error {
			return fault.New(fault.NotImplemented, "%s", u.why)
		}})
	}
	// Clients ask for plugins in passing, when a user has not said what a name is of: that there is none is an answer.
	for _, method := range []string{"GET", "POST", "DELETE"} {
		out = append(out, route{method: method, pattern: "/plugins/{rest...}", serve: func(_ *response, r *request) error {
			name, _, _ := strings.Cut(r.PathValue("rest"), "/")
			return fault.New(fault.NotFound, "plugin %q not found", name)
		}})
	}
	return append(out,
		route{method: "GET", pattern: "/plugins", serve: func(w *response, _ *request) error {
			return writeJSON(w, http.StatusOK, []plugin.Plugin{})
		}},
	)
}

const noPlugins = "plugins are not implemented: network and volume drivers are part of sampand"
