package docker

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	apicontainer "github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// now is the clock of list answers, which show ages.
func now() time.Time { return time.Now() }

func (a *containerAPI) list(w *response, r *request) error {
	f, err := r.parseFilters("ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label",
		"name", "network", "publish", "since", "status", "volume")
	if err != nil {
		return err
	}
	limit, err := r.integer("limit", -1<<31, 1<<31-1)
	if err != nil {
		return err
	}
	wanted, err := a.matcher(r.Context(), f)
	if err != nil {
		return err
	}
	// A status or a limit asks for containers that do not run, too.
	all := r.flag("all") || f.has("status") || limit != nil && *limit > 0
	containers := a.backend.List()
	slices.SortStableFunc(containers, func(a, b container.Container) int { return b.Created.Compare(a.Created) })
	out, links, images := []apicontainer.Summary{}, linkNames(containers), map[string]image.Image{}
	for i := range containers {
		c := &containers[i]
		if !all && !c.State.Running || !wanted(c) {
			continue
		}
		s := a.summary(r, c, links, images)
		if r.flag("size") {
			if s.SizeRw, s.SizeRootFs, err = a.backend.Size(r.Context(), c.ID); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		if out = append(out, s); limit != nil && *limit > 0 && len(out) == *limit {
			break
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// summary is a container as lists of the request's version show it. links are the names that others have for it, images
// what names of images were found to stand for.
func (a *containerAPI) summary(r *request, c *container.Container, links map[string][]string, images map[string]image.Image) apicontainer.Summary {
	s := summary(c, now())
	s.Names = append(s.Names, links[c.ID]...)
	s.Image = a.imageName(r.Context(), c, images)
	if r.version >= 1048 {
		s.ImageManifestDescriptor = a.manifestOf(r, c)
	}
	if r.version < 1046 {
		s.HostConfig.Annotations = nil
	}
	if r.version < 1052 {
		s.Health = nil
	}
	return s
}

// imageName is what a container's image is called now: the name that it was made with while that still stands for the
// image, else the image's ID. images is what names were found to stand for.
func (a *containerAPI) imageName(ctx context.Context, c *container.Container, images map[string]image.Image) string {
	name := c.Config.Image
	if name == "" || name == c.ImageID {
		return c.ImageID
	}
	img, asked := images[name]
	if !asked {
		if found, err := a.images.Get(ctx, name); err == nil {
			img = found
		}
		images[name] = img
	}
	if !runs(c, &img) {
		return c.ImageID
	}
	return name
}

// matcher turns the filters of a list into a predicate.
func (a *containerAPI) matcher(ctx context.Context, f filters) (func(*container.Container) bool, error) {
	bad := func(key, value, why string) error {
		return fault.New(fault.InvalidArgument, "invalid filter '%s=%s': %s", key, value, why)
	}
	for _, s := range f["status"] {
		if err := apicontainer.ValidateContainerState(apicontainer.ContainerState(s)); err != nil {
			return nil, bad("status", s, err.Error())
		}
	}
	for _, s := range f["health"] {
		if err := apicontainer.ValidateHealthStatus(apicontainer.HealthStatus(s)); err != nil {
			return nil, bad("health", s, err.Error())
		}
	}
	for _, s := range f["exited"] {
		if _, err := strconv.Atoi(s); err != nil {
			return nil, bad("exited", s, "it must be an exit code")
		}
	}
	for _, key := range []string{"publish", "expose"} {
		for _, s := range f[key] {
			if _, err := apinetwork.ParsePortRange(s); err != nil {
				return nil, bad(key, s, err.Error())
			}
		}
	}
	isTask, err := f.flag("is-task", false)
	if err != nil {
		return nil, err
	}
	var before, since time.Time
	for _, bound := range []struct {
		key  string
		into *time.Time
	}{{"before", &before}, {"since", &since}} {
		for _, id := range f[bound.key] {
			c, err := a.backend.Get(id)
			if err != nil {
				return nil, err
			}
			if bound.into.IsZero() || c.Created.Before(*bound.into) {
				*bound.into = c.Created
			}
		}
	}
	ancestors, err := a.ancestors(ctx, f["ancestor"])
	if err != nil {
		return nil, err
	}
	return func(c *container.Container) bool {
		health := "none"
		if c.State.Health != nil {
			health = c.State.Health.Status
		}
		name := strings.TrimPrefix(c.Config.Name, "/")
		switch {
		case !f.prefix("id", c.ID), !f.match("name", name, "/"+name), !f.labels("label", c.Config.Labels),
			!f.is("status", string(c.State.Status)), !f.is("health", health), !f.is("isolation", "", "default"),
			!before.IsZero() && !c.Created.Before(before), !since.IsZero() && !c.Created.After(since):
			return false
		case f.has("exited") && (c.State.Running || c.State.FinishedAt.IsZero() || !f.is("exited", strconv.Itoa(exitCode(&c.State)))):
			return false
		case f.has("is-task") && isTask != (c.Config.Labels["com.docker.swarm.task.id"] != ""):
			return false
		case f.has("ancestor") && !ancestors(c):
			return false
		case f.has("volume") && !slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool {
			return f.is("volume", m.Name, m.Source, m.Destination) && (m.Name != "" || m.Destination != "")
		}):
			return false
		case f.has("network") && !onNetwork(c, f):
			return false
		case (f.has("publish") || f.has("expose")) && !anyPort(f["publish"], hostPorts(c)) && !anyPort(f["expose"], c.Config.ExposedPorts):
			return false // one of the two is enough
		}
		return true
	}, nil
}

// ancestors returns a predicate for containers of any of the images named, or of images built on them.
func (a *containerAPI) ancestors(ctx context.Context, refs []string) (func(*container.Container) bool, error) {
	var wanted []image.Image
	for _, ref := range refs {
		img, err := a.images.Get(ctx, ref)
		if fault.Is(err, fault.NotFound) {
			continue // no image, no containers of it; but some may still carry the name
		} else if err != nil {
			return nil, err
		}
		wanted = append(wanted, img)
	}
	descends := map[string]bool{} // by the image's ID, as far as it was asked for
	return func(c *container.Container) bool {
		does, known := descends[c.ImageID]
		if !known {
			img, err := a.images.Get(ctx, c.ImageID)
			does = slices.ContainsFunc(wanted, func(w image.Image) bool { return runs(c, &w) || err == nil && builtOn(&img, &w) })
			descends[c.ImageID] = does
		}
		return does || slices.ContainsFunc(refs, func(ref string) bool { return familiar(ref) == familiar(c.Config.Image) })
	}, nil
}

// runs reports whether a container was made from img.
func runs(c *container.Container, img *image.Image) bool {
	return img.ID != "" && (img.ID == c.ImageID || img.ID == c.ImageDigest || img.ConfigID != "" && img.ConfigID == c.ImageID)
}

// builtOn reports whether child was built on parent: it begins with parent's layers, made by the same steps.
func builtOn(child, parent *image.Image) bool {
	if len(parent.Layers) == 0 || len(child.Layers) < len(parent.Layers) || len(child.History) < len(parent.History) ||
		!slices.Equal(child.Layers[:len(parent.Layers)], parent.Layers) {
		return false
	}
	return slices.EqualFunc(child.History[:len(parent.History)], parent.History, func(a, b ocispec.History) bool {
		sameTime := a.Created == nil && b.Created == nil || a.Created != nil && b.Created != nil && a.Created.Equal(*b.Created)
		return sameTime && a.CreatedBy == b.CreatedBy && a.EmptyLayer == b.EmptyLayer
	})
}

// familiar spells an image's name in full, so that "redis" and "docker.io/library/redis:latest" are the same.
func familiar(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.TagNameOnly(named).String()
}

func onNetwork(c *container.Container, f filters) bool {
	if f.is("network", c.Config.Host.NetworkMode) {
		return true
	}
	for name, e := range c.Networks.Endpoints {
		if f.is("network", name, e.NetworkName, e.NetworkID) || f.prefix("network", e.NetworkID) && e.NetworkID != "" {
			return true
		}
	}
	for name := range c.Config.Network.Endpoints {
		if f.is("network", name) {
			return true
		}
	}
	return false
}

func hostPorts(c *container.Container) []container.Port {
	var out []container.Port
	for _, b := range c.Networks.Ports {
		out = append(out, container.Port{Port: b.HostPort, Protocol: b.Port.Protocol})
	}
	return out
}

func anyPort(ranges []string, ports []container.Port) bool {
	for _, s := range ranges {
		r, err := apinetwork.ParsePortRange(s)
		if err != nil {
			continue
		}
		if slices.ContainsFunc(ports, func(p container.Port) bool {
			return p.Port >= r.Start() && p.Port <= r.End() && string(r.Proto()) == p.Protocol
		}) {
			return true
		}
	}
	return false
}

// linkNames are the names that containers have for others by --link, "/LINKING/ALIAS", by the ID of the other.
func linkNames(all []container.Container) map[string][]string {
	names := map[string][]string{}
	for i := range all {
		for _, l := range all[i].Config.Host.LinkList() {
			names[l.Target] = append(names[l.Target], "/"+all[i].Config.Name+"/"+l.Alias)
		}
	}
	return names
}

func summary(c *container.Container, at time.Time) apicontainer.Summary {
	s := apicontainer.Summary{
		ID: c.ID, Names: []string{"/" + strings.TrimPrefix(c.Config.Name, "/")}, Image: cmp.Or(c.Config.Image, c.ImageID), ImageID: c.ImageID,
		Command: commandLine(c.Path, c.Args), Created: c.Created.Unix(), Ports: portSummaries(c), Labels: mapping(c.Config.Labels),
		State: apicontainer.ContainerState(c.State.Status), Status: statusLine(&c.State, at), Health: &apicontainer.HealthSummary{Status: apicontainer.NoHealthcheck},
		NetworkSettings: &apicontainer.NetworkSettingsSummary{Networks: endpoints(c)}, Mounts: wireMounts(c.Mounts),
	}
	s.HostConfig.NetworkMode = cmp.Or(c.Config.Network.Left, c.Config.Host.NetworkMode)
	s.HostConfig.Annotations = c.Config.Host.Annotations
	if h := c.State.Health; h != nil {
		s.Health = &apicontainer.HealthSummary{Status: apicontainer.HealthStatus(h.Status), FailingStreak: h.FailingStreak}
	}
	return s
}

// commandLine writes a command as a user would type it.
func commandLine(path string, args []string) string {
	var b strings.Builder
	b.WriteString(path)
	for _, arg := range args {
		if strings.ContainsAny(arg, " \t\n'\"") {
			arg = "'" + arg + "'"
		}
		b.WriteString(" " + arg)
	}
	return b.String()
}

// statusLine says in words how the container is, as in the STATUS column of docker ps.
func statusLine(s *container.State, at time.Time) string {
	switch {
	case s.Status == container.StatusRemoving:
		return "Removal In Progress"
	case s.Dead:
		return "Dead"
	case s.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", exitCode(s), ago(at, s.FinishedAt))
	case s.Running && s.Paused:
		return "Up " + ago(at, s.StartedAt) + " (Paused)"
	case s.Running && s.Health != nil && s.Health.Status == "starting":
		return "Up " + ago(at, s.StartedAt) + " (health: starting)"
	case s.Running && s.Health != nil && s.Health.Status != "none" && s.Health.Status != "":
		return "Up " + ago(at, s.StartedAt) + " (" + s.Health.Status + ")"
	case s.Running:
		return "Up " + ago(at, s.StartedAt)
	case s.FinishedAt.IsZero() || s.Status == container.StatusCreated:
		return "Created"
	}
	return fmt.Sprintf("Exited (%d) %s ago", exitCode(s), ago(at, s.FinishedAt))
}

func portSummaries(c *container.Container) []apicontainer.PortSummary {
	out := []apicontainer.PortSummary{}
	if !c.State.Running {
		return out
	}
	bound := map[container.Port]bool{}
	for _, b := range c.Networks.Ports {
		if b.HostPort == 0 {
			continue // it is open at the container's own address only
		}
		bound[b.Port] = true
		out = append(out, apicontainer.PortSummary{IP: b.HostIP, PrivatePort: b.Port.Port, PublicPort: b.HostPort, Type: b.Port.Protocol})
	}
	for _, p := range c.Config.ExposedPorts {
		if !bound[p] {
			out = append(out, apicontainer.PortSummary{PrivatePort: p.Port, Type: p.Protocol})
		}
	}
	return out
}
