package docker

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"

	"github.com/containerd/platforms"
	apicontainer "github.com/moby/moby/api/types/container"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// containerAPI serves what is done to containers, but for their streams (streamAPI), files (archiveAPI) and execs.
type containerAPI struct {
	backend Containers
	images  Images
	events  Events
	host    Host
	logger  *slog.Logger
}

func (a *containerAPI) routes() []route {
	return []route{
		{method: "GET", pattern: "/containers/json", serve: a.list},
		{method: "POST", pattern: "/containers/create", serve: a.create},
		{method: "POST", pattern: "/containers/prune", serve: a.prune, since: 1025},
		{method: "GET", pattern: "/containers/{id}/json", serve: a.inspect},
		{method: "GET", pattern: "/containers/{id}/{alias}/json", serve: a.inspectLink},
		{method: "GET", pattern: "/containers/{id}/top", serve: a.top},
		{method: "GET", pattern: "/containers/{id}/stats", serve: a.stats},
		{method: "GET", pattern: "/containers/{id}/changes", serve: a.changes},
		{method: "POST", pattern: "/containers/{id}/start", serve: a.start},
		{method: "POST", pattern: "/containers/{id}/stop", serve: a.stop},
		{method: "POST", pattern: "/containers/{id}/restart", serve: a.restart},
		{method: "POST", pattern: "/containers/{id}/kill", serve: a.kill},
		{method: "POST", pattern: "/containers/{id}/pause", serve: a.pause},
		{method: "POST", pattern: "/containers/{id}/unpause", serve: a.unpause},
		{method: "POST", pattern: "/containers/{id}/rename", serve: a.rename},
		{method: "POST", pattern: "/containers/{id}/update", serve: a.update},
		{method: "POST", pattern: "/containers/{id}/resize", serve: a.resize},
		{method: "POST", pattern: "/containers/{id}/wait", serve: a.wait},
		{method: "DELETE", pattern: "/containers/{id}", serve: a.remove},
		{method: "DELETE", pattern: "/containers/{id}/{alias}", serve: a.removeLink},
		{method: "POST", pattern: "/commit", serve: a.commit},
	}
}

func (a *containerAPI) create(w *response, r *request) error {
	var body createBody
	switch err := r.decode(&body); {
	case errors.Is(err, errNoJSON), err == nil && r.ContentLength == 0:
		return fault.New(fault.InvalidArgument, "invalid JSON: EOF")
	case err != nil:
		return err
	}
	cfg, warnings, err := containerConfig(body, r.query.Get("name"), r.version)
	if err != nil {
		return err
	}
	platform := r.query.Get("platform")
	if r.version < 1041 {
		platform = ""
	}
	if platform != "" {
		if _, err := platforms.Parse(platform); err != nil {
			return fault.New(fault.InvalidArgument, "invalid platform %q: %w", platform, err)
		}
	}
	id, more, err := a.backend.Create(r.Context(), cfg, platform)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apicontainer.CreateResponse{ID: id, Warnings: list(append(warnings, more...))})
}

func (a *containerAPI) start(w *response, r *request) error {
	if r.ContentLength > 7 || r.ContentLength == -1 {
		return fault.New(fault.InvalidArgument,
			"starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if checkpoint := r.query.Get("checkpoint"); checkpoint != "" {
		if !volumeName.MatchString(checkpoint) {
			return fault.New(fault.InvalidArgument, "invalid checkpoint ID %q, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", checkpoint)
		}
		return fault.New(fault.NotImplemented, "checkpoints are not implemented: start the container without one")
	}
	return noContent(w, a.backend.Start(r.Context(), r.PathValue("id")))
}

func (a *containerAPI) stop(w *response, r *request) error {
	timeout, err := r.seconds("t")
	if err != nil {
		return err
	}
	return noContent(w, a.backend.Stop(r.Context(), r.PathValue("id"), r.stopSignal(), timeout))
}

func (a *containerAPI) restart(w *response, r *request) error {
	timeout, err := r.seconds("t")
	if err != nil {
		return err
	}
	return noContent(w, a.backend.Restart(r.Context(), r.PathValue("id"), r.stopSignal(), timeout))
}

// stopSignal returns the signal to stop with, which clients may choose since 1.42.
func (r *request) stopSignal() string {
	if r.version < 1042 {
		return ""
	}
	return r.query.Get("signal")
}

func (a *containerAPI) kill(w *response, r *request) error {
	id := r.PathValue("id")
	if err := a.backend.Kill(r.Context(), id, r.query.Get("signal")); err != nil {
		return fault.New(fault.KindOf(err), "cannot kill container: %s: %w", id, err)
	}
	return noContent(w, nil)
}

func (a *containerAPI) pause(w *response, r *request) error {
	return noContent(w, a.backend.Pause(r.Context(), r.PathValue("id")))
}

func (a *containerAPI) unpause(w *response, r *request) error {
	return noContent(w, a.backend.Unpause(r.Context(), r.PathValue("id")))
}

func (a *containerAPI) rename(w *response, r *request) error {
	name := strings.TrimPrefix(r.query.Get("name"), "/")
	if name == "" {
		return fault.New(fault.InvalidArgument, "Neither old nor new names may be empty")
	}
	return noContent(w, a.backend.Rename(r.Context(), r.PathValue("id"), name))
}

func (a *containerAPI) update(w *response, r *request) error {
	var body apicontainer.UpdateConfig
	if err := r.decode(&body); err != nil {
		return err
	}
	if r.version < 1040 {
		body.PidsLimit = nil
	}
	resources := resourcesOf(&body.Resources)
	var policy *container.RestartPolicy
	if body.RestartPolicy.Name != "" {
		if err := apicontainer.ValidateRestartPolicy(body.RestartPolicy); err != nil {
			return fault.As(fault.InvalidArgument, err)
		}
		policy = &container.RestartPolicy{Name: string(body.RestartPolicy.Name), MaxRetries: body.RestartPolicy.MaximumRetryCount}
	}
	warnings, err := a.backend.Update(r.Context(), r.PathValue("id"), resources, policy)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, apicontainer.UpdateResponse{Warnings: list(warnings)})
}

func (a *containerAPI) resize(w *response, r *request) error {
	rows, cols, err := r.size()
	if err != nil {
		return err
	}
	return ok(w, a.backend.Resize(r.Context(), r.PathValue("id"), rows, cols))
}

func (a *containerAPI) remove(w *response, r *request) error {
	return noContent(w, a.backend.Remove(r.Context(), r.PathValue("id"), r.flag("force"), r.flag("v"), r.flag("link")))
}

// inspectLink inspects the container that {id} links to as {alias}.
func (a *containerAPI) inspectLink(w *response, r *request) error {
	r.SetPathValue("id", r.PathValue("id")+"/"+r.PathValue("alias"))
	return a.inspect(w, r)
}

// removeLink removes the link that {id} has to another container as {alias}.
func (a *containerAPI) removeLink(w *response, r *request) error {
	if !r.flag("link") {
		if _, err := a.backend.Get(r.PathValue("id") + "/" + r.PathValue("alias")); err != nil {
			return err
		}
		return fault.New(fault.InvalidArgument, "%s/%s is the name of a link: say that the link is to be removed, not a container", r.PathValue("id"), r.PathValue("alias"))
	}
	return noContent(w, a.backend.Remove(r.Context(), r.PathValue("id")+"/"+r.PathValue("alias"), false, false, true))
}

func (a *containerAPI) top(w *response, r *request) error {
	titles, processes, err := a.backend.Top(r.Context(), r.PathValue("id"), r.query.Get("ps_args"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, apicontainer.TopResponse{Titles: list(titles), Processes: list(processes)})
}

func (a *containerAPI) changes(w *response, r *request) error {
	changes, err := a.backend.Diff(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	out := make([]apicontainer.FilesystemChange, len(changes))
	for i, c := range changes {
		out[i] = apicontainer.FilesystemChange{Kind: apicontainer.ChangeType(c.Kind), Path: c.Path}
	}
	return writeJSON(w, http.StatusOK, out)
}

// wait answers in two parts: the headers once it listens, so that a client may start the container then, and the exit
// code when the condition is met.
func (a *containerAPI) wait(w *response, r *request) error {
	condition := apicontainer.WaitConditionNotRunning
	if c := apicontainer.WaitCondition(r.query.Get("condition")); c != "" && r.version >= 1030 {
		switch c {
		case apicontainer.WaitConditionNotRunning, apicontainer.WaitConditionNextExit, apicontainer.WaitConditionRemoved:
			condition = c
		default:
			return fault.New(fault.InvalidArgument, "invalid condition: %q", string(c))
		}
	}
	ready := func() {
		if r.version < 1030 {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		w.Flush()
	}
	code, msg, err := a.backend.Wait(r.Context(), r.PathValue("id"), string(condition), ready)
	if err != nil {
		if w.status == 0 || r.Context().Err() != nil {
			return err
		}
		msg = err.Error()
	}
	result := apicontainer.WaitResponse{StatusCode: int64(code)}
	if msg != "" {
		result.Error = &apicontainer.WaitExitError{Message: msg}
	}
	if w.status == 0 {
		return writeJSON(w, http.StatusOK, result)
	}
	body, _ := marshal(result)
	_, _ = w.Write(body)
	return nil
}

func (a *containerAPI) prune(w *response, r *request) error {
	f, err := r.parseFilters("label", "label!", "until")
	if err != nil {
		return err
	}
	until, err := f.until(now())
	if err != nil {
		return err
	}
	ids, freed, err := a.backend.Prune(r.Context(), func(c container.Container) bool {
		return (until.IsZero() || c.Created.Before(until)) && f.labels("label", c.Config.Labels) && f.notLabels(c.Config.Labels)
	})
	if err != nil {
		return err
	}
	tellReclaimed(a.events, "container", unsigned(freed))
	return writeJSON(w, http.StatusOK, apicontainer.PruneReport{ContainersDeleted: list(ids), SpaceReclaimed: unsigned(freed)})
}

// noContent answers with 204, or with err if there is one.
func noContent(w *response, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

// ok answers with 200 and no body, or with err if there is one.
func ok(w *response, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusOK)
	}
	return err
}

func unsigned(n int64) uint64 { return uint64(max(n, 0)) }
