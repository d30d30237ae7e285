package docker

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// imageAPI serves images.
type imageAPI struct {
	backend    Images
	containers Containers
	host       Host
	events     Events
}

func (a *imageAPI) routes() []route {
	return []route{
		{method: "GET", pattern: "/images/json", serve: a.list},
		{method: "GET", pattern: "/images/get", serve: a.save},
		{method: "POST", pattern: "/images/create", serve: a.create},
		{method: "POST", pattern: "/images/load", serve: a.load},
		{method: "POST", pattern: "/images/prune", serve: a.prune, since: 1025},
		{method: "GET", pattern: "/images/{name...}", serve: named(map[string]handler{
			"json": a.inspect, "history": a.history, "get": a.save, "attestations": a.attestations,
		})},
		{method: "POST", pattern: "/images/{name...}", serve: named(map[string]handler{"push": a.push, "tag": a.tag})},
		{method: "DELETE", pattern: "/images/{name...}", serve: a.remove},
	}
}

// users tells which containers use an image, given by its ID or a manifest of it, as their own or as a mount.
func (a *imageAPI) users(imageID string) (ids []string) {
	for _, c := range a.containers.List() {
		if uses(&c, imageID) {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

func uses(c *container.Container, imageID string) bool {
	return c.ImageID == imageID || c.ImageDigest == imageID || slices.Contains(c.MountedImages, imageID)
}

func (a *imageAPI) list(w *response, r *request) error {
	f, err := r.parseFilters("before", "dangling", "label", "label!", "reference", "since", "until")
	if err != nil {
		return err
	}
	if name := r.query.Get("filter"); name != "" && r.version < 1025 && !f.has("reference") {
		f["reference"] = []string{name}
	}
	dangling, err := f.flag("dangling", false)
	if err != nil {
		return err
	}
	until, err := f.earliestUntil(now())
	if err != nil {
		return err
	}
	if r.version >= 1054 && r.flag("identity") && !r.flag("manifests") {
		return fault.New(fault.InvalidArgument, "identity requires manifests=1")
	}
	var before, since time.Time
	for key, into := range map[string]*time.Time{"before": &before, "since": &since} {
		for _, ref := range f[key] {
			img, err := a.backend.Get(r.Context(), ref)
			if err != nil {
				return err
			}
			*into = img.Created
		}
	}
	for _, pattern := range f["reference"] {
		if _, err := path.Match(pattern, ""); err != nil {
			return fault.New(fault.InvalidArgument, "invalid filter 'reference=%s': %w", pattern, err)
		}
	}
	images, err := a.backend.List(r.Context())
	if err != nil {
		return err
	}
	slices.SortStableFunc(images, func(a, b image.Image) int { return b.Created.Compare(a.Created) })
	sizes, containers := sizesOf(images), a.containers.List()
	out := []apiimage.Summary{}
	for _, img := range images {
		switch {
		case f.has("dangling") && dangling != (len(img.RepoTags) == 0), !f.labels("label", img.Labels), !f.notLabels(img.Labels),
			!before.IsZero() && !img.Created.Before(before), !since.IsZero() && !img.Created.After(since),
			!until.IsZero() && !img.Created.Before(until):
			continue
		}
		s := imageSummary(&img, r)
		if r.version >= 1051 {
			s.Containers = 0
			for i := range containers {
				if uses(&containers[i], img.ID) {
					s.Containers++
				}
			}
		}
		if r.version >= 1042 && r.flag("shared-size") {
			s.SharedSize = sizes.shared(&img)
		}
		if f.has("reference") {
			s.RepoTags = slices.DeleteFunc(slices.Clone(s.RepoTags), func(tag string) bool { return !matchesReference(f["reference"], tag) })
			s.RepoDigests = slices.DeleteFunc(slices.Clone(s.RepoDigests), func(d string) bool { return !matchesReference(f["reference"], d) })
			if len(s.RepoTags) == 0 && len(s.RepoDigests) == 0 {
				continue
			}
		}
		if r.version >= 1047 && r.flag("manifests") {
			s.Manifests = manifests(&img, a.users)
		}
		out = append(out, s)
	}
	return writeJSON(w, http.StatusOK, older(out, r.version))
}

// matchesReference reports whether a name matches one of the glob patterns, in one of the ways to spell it.
func matchesReference(patterns []string, name string) bool {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(patterns, func(p string) bool {
		if ok, _ := reference.FamiliarMatch(p, named); ok {
			return true
		}
		// In full, too: docker.io/library/redis, with its tag or without.
		if ok, _ := path.Match(p, named.String()); ok {
			return true
		}
		ok, _ := path.Match(p, named.Name())
		return ok
	})
}

func (a *imageAPI) inspect(w *response, r *request) error {
	platform, err := r.platform(1049)
	if err != nil {
		return err
	}
	if platform != nil && r.flag("manifests") {
		return fault.New(fault.InvalidArgument, "conflicting options: manifests and platform options cannot both be set")
	}
	img, err := a.forPlatform(r, platform)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, imageInspect(&img, r, platform != nil, a.users))
}

// forPlatform finds the image that a request is about, as the platform shows it.
func (a *imageAPI) forPlatform(r *request, platform *ocispec.Platform) (image.Image, error) {
	if platform == nil {
		return a.backend.Get(r.Context(), r.PathValue("name"))
	}
	name := platforms.Format(*platform)
	img, err := a.backend.ForPlatform(r.Context(), r.PathValue("name"), name)
	if err == nil && !platforms.OnlyStrict(platforms.Normalize(*platform)).Match(platforms.Normalize(platformOf(&img))) {
		err = fault.New(fault.NotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
			r.PathValue("name"), platforms.Format(platformOf(&img)), name)
	}
	return img, err
}

func platformOf(img *image.Image) ocispec.Platform {
	return ocispec.Platform{OS: img.OS, Architecture: img.Architecture, Variant: img.Variant}
}

func (a *imageAPI) history(w *response, r *request) error {
	platform, err := r.platform(1048)
	if err != nil {
		return err
	}
	img, err := a.forPlatform(r, platform)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, imageHistory(&img))
}

// attestations shows the statements that a builder made of an image.
func (a *imageAPI) attestations(w *response, r *request) error {
	if r.version < 1055 {
		return fault.New(fault.NotFound, "page not found")
	}
	if len(r.query["platform"]) > 1 {
		return fault.New(fault.InvalidArgument, "only one platform value is currently supported")
	}
	platform, err := r.platform(1055)
	if err != nil {
		return err
	}
	list, err := a.backend.Attestations(r.Context(), r.PathValue("name"), platform, r.query["type"], r.flag("statement"))
	if err != nil {
		return err
	}
	out := make([]apiimage.AttestationStatement, len(list))
	for i, at := range list {
		out[i] = apiimage.AttestationStatement{Descriptor: at.Descriptor, PredicateType: at.PredicateType}
		if at.Statement != nil {
			out[i].Statement = &at.Statement
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func (a *imageAPI) create(w *response, r *request) error {
	platform := r.query.Get("platform")
	if r.version < 1032 {
		platform = ""
	}
	if platform != "" {
		if _, err := platforms.Parse(platform); err != nil {
			return fault.New(fault.InvalidArgument, "invalid platform %q: %w", platform, err)
		}
	}
	if from := r.query.Get("fromImage"); from != "" {
		return a.pull(w, r, from, platform)
	}
	if r.query.Get("fromSrc") == "" {
		return fault.New(fault.InvalidArgument, "one of fromImage (to pull) and fromSrc (to import) is needed")
	}
	return a.importImage(w, r, platform)
}

func (a *imageAPI) pull(w *response, r *request, from, platform string) error {
	ref, err := pullReference(from, r.query.Get("tag"))
	if err != nil {
		return err
	}
	refs := []string{ref}
	if r.query.Get("tag") == "" && untagged(from) {
		if refs, err = a.everyTag(r, from); err != nil {
			return err
		}
	}
	out := newProgressStream(w)
	for _, ref := range refs {
		img, err := a.backend.Pull(r.Context(), ref, platform, registryAuth(r), out.progress)
		if err != nil {
			return out.done(err)
		}
		familiar := familiarName(ref)
		tell(a.events, "image", "pull", familiar, "name", bareName(familiar), "imageID", img.ID)
	}
	return out.done(nil)
}

// untagged reports whether a name is a repository's alone, which stands for all its tags.
func untagged(name string) bool {
	named, err := reference.ParseNormalizedNamed(name)
	return err == nil && reference.IsNameOnly(named)
}

// everyTag returns the names of all images that a registry has of a repository.
func (a *imageAPI) everyTag(r *request, repository string) ([]string, error) {
	tags, err := a.backend.Tags(r.Context(), repository, registryAuth(r))
	if err != nil {
		return nil, err
	}
	if len(tags) == 0 {
		return nil, fault.New(fault.NotFound, "repository %s has no tags", repository)
	}
	refs := make([]string, len(tags))
	for i, tag := range tags {
		if refs[i], err = pullReference(repository, tag); err != nil {
			return nil, err
		}
	}
	return refs, nil
}

// pullReference joins a name and a tag, which may be a digest.
func pullReference(name, tag string) (string, error) {
	named, err := reference.ParseNormalizedNamed(strings.TrimSuffix(name, ":"))
	if err != nil {
		return "", fault.New(fault.InvalidArgument, "%w", err)
	}
	if tag != "" {
		if d, derr := digest.Parse(tag); derr == nil {
			named, err = reference.WithDigest(reference.TrimNamed(named), d)
		} else {
			named, err = reference.WithTag(named, tag)
		}
		if err != nil {
			return "", fault.New(fault.InvalidArgument, "%w", err)
		}
	}
	if reference.FamiliarName(named) == "scratch" {
		return "", fault.New(fault.Forbidden, "'scratch' is a reserved name")
	}
	return reference.TagNameOnly(named).String(), nil
}

// registryAuth returns the credentials of a request; malformed ones count as none, as some clients send those.
func registryAuth(r *request) image.Auth {
	c, err := authconfig.Decode(r.Header.Get(registry.AuthHeader))
	if err != nil || c == nil {
		return image.Auth{}
	}
	return image.Auth{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken, ServerAddress: c.ServerAddress}
}

func (a *imageAPI) importImage(w *response, r *request, platform string) error {
	ref, err := repoTag(r.query.Get("repo"), r.query.Get("tag"))
	if err != nil {
		return err
	}
	src, in := r.query.Get("fromSrc"), io.Reader(r.Body)
	out := newProgressStream(w)
	if src != "-" {
		body, err := download(r.Context(), src)
		if err != nil {
			return err
		}
		defer body.Close()
		in = body
		out.status("Downloading from " + src)
	}
	opts := image.ImportOptions{Message: r.query.Get("message"), Platform: platform, Changes: r.query["changes"]}
	if opts.Message == "" {
		opts.Message = "Imported from " + src
	}
	img, err := a.backend.Import(r.Context(), in, ref, opts)
	if err == nil {
		out.status(img.ID)
		a.imageEvent("import", &img, cmp.Or(familiarName(ref), img.ID))
	}
	return out.done(err)
}

// download opens the archive that an import names by URL.
func download(ctx context.Context, src string) (io.ReadCloser, error) {
	if !strings.Contains(src, "://") {
		src = "http://" + src
	}
	u, err := url.Parse(src)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fault.New(fault.InvalidArgument, "cannot import from %q: it must be - or a URL of http or https", src)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "cannot import from %q: %w", src, err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "download %s: %w", src, err)
	}
	if res.StatusCode >= 400 {
		res.Body.Close()
		return nil, fault.New(fault.NotFound, "download %s: the server answers %s", src, res.Status)
	}
	return res.Body, nil
}

func (a *imageAPI) load(w *response, r *request) error {
	only, err := r.platforms(1048)
	if err != nil {
		return err
	}
	out := newProgressStream(w)
	out.mute = r.flagOr("quiet", true)
	said := false
	images, err := a.backend.Load(r.Context(), r.Body, func(p image.Progress) {
		if strings.HasPrefix(p.Status, "Loaded image") {
			said = true
			out.stream(p.Status)
			return
		}
		out.progress(p)
	}, only...)
	for _, img := range images {
		a.imageEvent("load", &img, img.ID)
	}
	if err == nil && !said {
		for _, img := range images {
			for _, tag := range img.RepoTags {
				out.stream("Loaded image: " + tag)
			}
			if len(img.RepoTags) == 0 {
				out.stream("Loaded image ID: " + img.ID)
			}
		}
	}
	return out.done(err)
}

func (a *imageAPI) save(w *response, r *request) error {
	names := r.query["names"]
	if name := r.PathValue("name"); name != "" {
		names = []string{name}
	}
	if len(names) == 0 {
		return fault.New(fault.InvalidArgument, "no image names given: name them in the parameter names")
	}
	only, err := r.platforms(1048)
	if err != nil {
		return err
	}
	var images []image.Image
	for _, name := range names {
		found, err := a.meant(r.Context(), name)
		if err != nil {
			return err
		}
		images = append(images, found...)
	}
	return sendTar(w, func(out io.Writer) error {
		err := a.backend.Save(r.Context(), names, out, only...)
		if err == nil {
			for _, img := range images {
				a.imageEvent("save", &img, img.ID)
			}
		}
		return err
	})
}

// meant are the images that a name stands for where a repository's alone stands for all its tags.
func (a *imageAPI) meant(ctx context.Context, name string) ([]image.Image, error) {
	img, err := a.backend.Get(ctx, name)
	if err == nil || !fault.Is(err, fault.NotFound) || !untagged(name) {
		return []image.Image{img}, err
	}
	all, lerr := a.backend.List(ctx)
	if lerr != nil {
		return nil, lerr
	}
	all = slices.DeleteFunc(all, func(img image.Image) bool {
		return !slices.ContainsFunc(img.RepoTags, func(tag string) bool { return bareName(tag) == bareName(name) })
	})
	if len(all) == 0 {
		return nil, err
	}
	return all, nil
}

func (a *imageAPI) push(w *response, r *request) error {
	ref, err := repoTag(r.PathValue("name"), r.query.Get("tag"))
	if err != nil {
		return err
	}
	refs := []string{ref}
	if r.query.Get("tag") == "" && untagged(r.PathValue("name")) {
		if refs, err = a.everyLocalTag(r); err != nil {
			return err
		}
	}
	var only []ocispec.Platform
	if p, err := r.platform(1046); err != nil {
		return err
	} else if p != nil {
		only = append(only, *p)
	}
	out := newProgressStream(w)
	for _, ref := range refs {
		if err := a.backend.Push(r.Context(), ref, registryAuth(r), out.progress, only...); err != nil {
			return out.done(err)
		}
		familiar := familiarName(ref)
		tell(a.events, "image", "push", familiar, "name", bareName(familiar))
	}
	return out.done(nil)
}

// everyLocalTag returns the names of all images that this host has of the repository in the path.
func (a *imageAPI) everyLocalTag(r *request) ([]string, error) {
	images, err := a.backend.List(r.Context())
	if err != nil {
		return nil, err
	}
	name, refs := bareName(r.PathValue("name")), []string(nil)
	for _, img := range images {
		for _, tag := range img.RepoTags {
			if bareName(tag) == name {
				refs = append(refs, tag)
			}
		}
	}
	if len(refs) == 0 {
		return nil, fault.New(fault.NotFound, "An image does not exist locally with the tag: %s", name)
	}
	slices.Sort(refs)
	return refs, nil
}

func (a *imageAPI) tag(w *response, r *request) error {
	target, err := repoTag(r.query.Get("repo"), r.query.Get("tag"))
	if err != nil {
		return err
	}
	if target == "" {
		return fault.New(fault.InvalidArgument, "the parameter repo is needed: the name to give to the image")
	}
	if err := a.backend.Tag(r.Context(), r.PathValue("name"), target); err != nil {
		return err
	}
	if img, err := a.backend.Get(r.Context(), target); err == nil {
		a.imageEvent("tag", &img, familiarName(target))
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (a *imageAPI) remove(w *response, r *request) error {
	name := r.PathValue("name")
	if strings.TrimSpace(name) == "" {
		return fault.New(fault.InvalidArgument, "image name cannot be blank")
	}
	if r.version >= 1050 && r.query.Has("platforms") {
		return a.removePlatforms(w, r, name)
	}
	removed, err := a.backend.Remove(r.Context(), name, r.flag("force"), !r.flag("noprune"), a.users)
	a.removedEvents(removed)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, removals(removed))
}

// removePlatforms removes some of the platforms of an image.
func (a *imageAPI) removePlatforms(w *response, r *request, name string) error {
	var list []ocispec.Platform
	for _, s := range r.query["platforms"] {
		p, err := decodePlatform(s)
		if err != nil {
			return err
		}
		list = append(list, *p)
	}
	removed, err := a.backend.RemovePlatforms(r.Context(), name, list, r.flag("force"), a.users)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, removals(removed))
}

func removals(in []image.Removed) []apiimage.DeleteResponse {
	out := make([]apiimage.DeleteResponse, len(in))
	for i, r := range in {
		out[i] = apiimage.DeleteResponse{Untagged: r.Untagged, Deleted: r.Deleted}
	}
	return out
}

func (a *imageAPI) prune(w *response, r *request) error {
	f, err := r.parseFilters("dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	dangling, err := f.flag("dangling", true)
	if err != nil {
		return err
	}
	until, err := f.until(now())
	if err != nil {
		return err
	}
	removed, freed, err := a.backend.Prune(r.Context(), func(img image.Image) bool {
		return (!dangling || len(img.RepoTags) == 0) && (until.IsZero() || img.Created.Before(until)) &&
			f.labels("label", img.Labels) && f.notLabels(img.Labels)
	}, a.users)
	a.removedEvents(removed)
	if err != nil {
		return err
	}
	tellReclaimed(a.events, "image", unsigned(freed))
	return writeJSON(w, http.StatusOK, apiimage.PruneReport{ImagesDeleted: removals(removed), SpaceReclaimed: unsigned(freed)})
}
