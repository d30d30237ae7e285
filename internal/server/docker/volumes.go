package docker

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	apivolume "github.com/moby/moby/api/types/volume"

	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// volumeAPI serves the volumes of this host.
type volumeAPI struct {
	backend Volumes
	events  Events
}

func (a *volumeAPI) routes() []route {
	return []route{
		{method: "GET", pattern: "/volumes", serve: a.list},
		{method: "POST", pattern: "/volumes/create", serve: a.create},
		{method: "POST", pattern: "/volumes/prune", serve: a.prune, since: 1025},
		{method: "GET", pattern: "/volumes/{name}", serve: a.inspect},
		{method: "DELETE", pattern: "/volumes/{name}", serve: a.remove},
	}
}

func wireVolume(v volume.Volume) apivolume.Volume {
	return apivolume.Volume{Name: v.Name, Driver: cmp.Or(v.Driver, "local"), Mountpoint: v.Mountpoint, CreatedAt: v.Created.Format(time.RFC3339),
		Labels: v.Labels, Options: v.Options, Scope: "local"}
}

func (a *volumeAPI) list(w *response, r *request) error {
	f, err := r.parseFilters("dangling", "driver", "label", "name")
	if err != nil {
		return err
	}
	dangling, err := f.flag("dangling", false)
	if err != nil {
		return err
	}
	volumes := a.backend.List()
	slices.SortFunc(volumes, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
	out := apivolume.ListResponse{Volumes: []apivolume.Volume{}, Warnings: []string{}}
	for _, v := range volumes {
		if !f.is("driver", cmp.Or(v.Driver, "local")) || !f.labels("label", v.Labels) || !f.match("name", v.Name) ||
			f.has("dangling") && dangling != (len(a.backend.Users(v.Name)) == 0) {
			continue
		}
		out.Volumes = append(out.Volumes, wireVolume(v))
	}
	return writeJSON(w, http.StatusOK, out)
}

func (a *volumeAPI) inspect(w *response, r *request) error {
	v, err := a.backend.Get(r.PathValue("name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, wireVolume(v))
}

func (a *volumeAPI) create(w *response, r *request) error {
	var body apivolume.CreateRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	switch {
	case body.ClusterVolumeSpec != nil:
		return fault.New(fault.NotImplemented, "cluster volumes are not implemented: create the volume on each host, or mount a shared file system")
	case body.Name != "" && volume.CheckName(body.Name) != nil:
		return fault.New(fault.InvalidArgument, "create %s: %w", body.Name, volume.CheckName(body.Name))
	case body.Driver != "" && body.Driver != "local":
		return fault.New(fault.NotFound, "error looking up volume plugin %s: plugin %q not found", body.Driver, body.Driver)
	}
	v, err := a.backend.Create(r.Context(), volume.Volume{Name: body.Name, Driver: "local", Labels: body.Labels, Options: body.DriverOpts, Anonymous: body.Name == ""})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, wireVolume(v))
}

func (a *volumeAPI) remove(w *response, r *request) error {
	return noContent(w, a.backend.Remove(r.Context(), r.PathValue("name"), r.flag("force")))
}

// prune removes volumes that nobody uses: those without a name of their own, or all of them if asked to.
func (a *volumeAPI) prune(w *response, r *request) error {
	f, err := r.parseFilters("all", "label", "label!")
	if err != nil {
		return err
	}
	all, err := f.flag("all", r.version < 1042)
	if err != nil {
		return err
	}
	report := apivolume.PruneReport{VolumesDeleted: []string{}}
	for _, v := range a.backend.List() {
		if !all && !v.Anonymous || !f.labels("label", v.Labels) || !f.notLabels(v.Labels) || len(a.backend.Users(v.Name)) > 0 {
			continue
		}
		if err := a.pruneOne(r.Context(), v.Name, &report); err != nil {
			return err
		}
	}
	tellReclaimed(a.events, "volume", report.SpaceReclaimed)
	return writeJSON(w, http.StatusOK, report)
}

func (a *volumeAPI) pruneOne(ctx context.Context, name string, report *apivolume.PruneReport) error {
	size, _ := a.backend.Size(name)
	switch err := a.backend.Remove(ctx, name, false); fault.KindOf(err) {
	case fault.Conflict, fault.NotFound: // somebody uses it by now, or removed it
		return nil
	default:
		if err != nil {
			return err
		}
	}
	report.VolumesDeleted = append(report.VolumesDeleted, name)
	report.SpaceReclaimed += unsigned(size)
	return nil
}
