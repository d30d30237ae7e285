package docker

import (
	"encoding/json"
	"net/http"

	"github.com/distribution/reference"
	apicontainer "github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// commitBody is the configuration that a commit lays over a container's.
type commitBody struct{ apicontainer.Config }

func (b *commitBody) UnmarshalJSON(raw []byte) error { return json.Unmarshal(listed(raw), &b.Config) }

// commit makes an image of a container. The body, if any, replaces parts of the configuration it runs with.
func (a *containerAPI) commit(w *response, r *request) error {
	var override commitBody
	if err := r.decode(&override); err != nil {
		return err
	}
	ref, err := repoTag(r.query.Get("repo"), r.query.Get("tag"))
	if err != nil {
		return err
	}
	c, err := a.backend.Get(r.query.Get("container"))
	if err != nil {
		return err
	}
	img, err := a.backend.Commit(r.Context(), c.ID, image.CommitRequest{
		ContainerID: c.ID, ParentID: c.ImageID, Ref: ref, Author: r.query.Get("author"), Comment: r.query.Get("comment"),
		Changes: r.query["changes"], Config: overrides(&override.Config),
	}, r.flagOr("pause", true))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apicontainer.CommitResponse{ID: img.ID})
}

// overrides are the parts of the image's configuration that the request sets.
func overrides(in *apicontainer.Config) image.Image {
	cfg := ocispec.ImageConfig{User: in.User, Env: in.Env, Entrypoint: in.Entrypoint, Cmd: in.Cmd, WorkingDir: in.WorkingDir,
		Labels: in.Labels, StopSignal: in.StopSignal, Volumes: in.Volumes}
	for p := range in.ExposedPorts {
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = map[string]struct{}{}
		}
		cfg.ExposedPorts[p.String()] = struct{}{}
	}
	out := image.Image{Config: cfg, Shell: in.Shell, OnBuild: in.OnBuild}
	if h := in.Healthcheck; h != nil {
		out.Healthcheck = &image.Healthcheck{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	return out
}

// repoTag joins a repository and a tag to a reference with a tag; "" when there is no repository.
func repoTag(repo, tag string) (string, error) {
	if repo == "" {
		return "", nil
	}
	named, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return "", fault.New(fault.InvalidArgument, "%w", err)
	}
	if _, digested := named.(reference.Digested); digested {
		return "", fault.New(fault.InvalidArgument, "invalid reference format: cannot refer to %q by digest here", repo)
	}
	if tag != "" {
		if named, err = reference.WithTag(reference.TrimNamed(named), tag); err != nil {
			return "", fault.New(fault.InvalidArgument, "%w", err)
		}
	}
	return reference.TagNameOnly(named).String(), nil
}
