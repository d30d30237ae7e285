package docker

import (
	"net/http"
	"path"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// distributionAPI tells what a registry has, without pulling it.
type distributionAPI struct {
	registry Registry
	host     Host
}

func (a *distributionAPI) routes() []route {
	return []route{{method: "GET", pattern: "/distribution/{name...}", serve: a.inspect, since: 1030}}
}

func (a *distributionAPI) inspect(w *response, r *request) error {
	name, verb := path.Split(r.PathValue("name"))
	name = strings.TrimSuffix(name, "/")
	if verb != "json" || name == "" {
		return fault.New(fault.NotFound, "page not found")
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return fault.New(fault.InvalidArgument, "%w", err)
	}
	if a.registry == nil {
		return fault.New(fault.NotImplemented, "asking a registry for %s is not possible: the daemon has no client of registries", name)
	}
	descriptor, platforms, err := a.registry.Resolve(r.Context(), reference.TagNameOnly(named).String(), registryAuth(r))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, registry.DistributionInspect{Descriptor: descriptor, Platforms: list(platforms)})
}
