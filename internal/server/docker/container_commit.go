package docker

import (
	"net/http"

	"github.com/distribution/reference"
	apicontainer "github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// commit makes an image of a container. The body, if any, replaces parts of the configuration it runs with.
func (a *containerAPI) commit(w *response, r *request) error {
	var override apicontainer.Config
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
		Changes: r.query["changes"], Config: committedConfig(&c.Config, &override),
	}, r.flagOr("pause", true))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apicontainer.CommitResponse{ID: img.ID})
}

func committedConfig(c *container.Config, override *apicontainer.Config) image.Image {
	cfg := ocispec.ImageConfig{User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir, Labels: c.Labels, StopSignal: c.StopSignal}
	replace(&cfg.User, override.User)
	replace(&cfg.WorkingDir, override.WorkingDir)
	replace(&cfg.StopSignal, override.StopSignal)
	if override.Env != nil {
		cfg.Env = override.Env
	}
	if override.Cmd != nil {
		cfg.Cmd = override.Cmd
	}
	if override.Entrypoint != nil {
		cfg.Entrypoint = override.Entrypoint
	}
	if override.Labels != nil {
		cfg.Labels = override.Labels
	}
	for _, p := range c.ExposedPorts {
		if port, ok := wirePort(p); ok {
			cfg.ExposedPorts = with(cfg.ExposedPorts, port.String())
		}
	}
	for p := range override.ExposedPorts {
		cfg.ExposedPorts = with(cfg.ExposedPorts, p.String())
	}
	for _, v := range c.Volumes {
		cfg.Volumes = with(cfg.Volumes, v)
	}
	out := image.Image{Config: cfg, Shell: c.Shell}
	if h := c.Health; h != nil {
		out.Healthcheck = &image.Healthcheck{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	return out
}

func replace(s *string, by string) {
	if by != "" {
		*s = by
	}
}

func with(set map[string]struct{}, key string) map[string]struct{} {
	if set == nil {
		set = map[string]struct{}{}
	}
	set[key] = struct{}{}
	return set
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
