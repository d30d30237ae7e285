package docker

import (
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"

	"github.com/sampan-cloud/sampan/internal/engine/image"
)

func imageSummary(img *image.Image, r *request) apiimage.Summary {
	s := apiimage.Summary{
		ID: img.ID, Created: img.Created.Unix(), Labels: img.Labels, RepoTags: list(img.RepoTags), RepoDigests: list(img.RepoDigests),
		SharedSize: -1, Containers: -1, Size: img.Size,
	}
	if img.Created.IsZero() {
		s.Created = 0
	}
	if r.version < 1043 && len(s.RepoTags)+len(s.RepoDigests) == 0 {
		s.RepoTags, s.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
	}
	if r.version >= 1048 && img.Target.Digest != "" {
		s.Descriptor = &img.Target
	}
	return s
}

// older are image summaries in the form of their version: before 1.44 they had the size twice.
func older(list []apiimage.Summary, v apiVersion) any {
	if v >= 1044 {
		return list
	}
	type summary struct {
		apiimage.Summary
		VirtualSize int64
	}
	out := make([]summary, len(list))
	for i, s := range list {
		out[i] = summary{s, s.Size}
	}
	return out
}

// manifests shows what an image has for which platforms. users tells which containers use a manifest.
func manifests(img *image.Image, users func(string) []string) []apiimage.ManifestSummary {
	in := img.Manifests
	if len(in) == 0 {
		in = []image.Manifest{{Descriptor: img.Target, Platform: platformOf(img), Kind: image.KindImage, Available: true, Content: img.Content, Unpacked: img.Size}}
	}
	out := make([]apiimage.ManifestSummary, len(in))
	for i, m := range in {
		s := apiimage.ManifestSummary{ID: m.Descriptor.Digest.String(), Descriptor: m.Descriptor, Available: m.Available, Kind: apiimage.ManifestKind(m.Kind)}
		s.Size.Content, s.Size.Total = m.Content, m.Content+m.Unpacked
		switch m.Kind {
		case image.KindImage:
			s.ImageData = &apiimage.ImageProperties{Platform: m.Platform, Containers: list(users(s.ID))}
			s.ImageData.Size.Unpacked = m.Unpacked
		case image.KindAttestation:
			s.AttestationData = &apiimage.AttestationProperties{For: m.Of}
		}
		out[i] = s
	}
	return out
}

// legacyImageInspect adds what versions before 1.52 always had.
type legacyImageInspect struct {
	apiimage.InspectResponse
	Parent        string
	Comment       string
	DockerVersion string
	Author        string
	VirtualSize   int64 `json:",omitempty"`
	Config        any
	// Container is the one that the last step of a build ran in, ContainerConfig its settings: before 1.45. No builder of
	// today has one, so both say nothing.
	Container       *string            `json:",omitempty"`
	ContainerConfig *oldestImageConfig `json:",omitempty"`
}

// legacyImageConfig shows what newer versions leave out when it is empty: templates of users look for it.
type legacyImageConfig struct {
	*dockerspec.DockerOCIImageConfig
	Cmd        []string
	Entrypoint []string
	Env        []string
	Labels     map[string]string
	OnBuild    []string
	User       string
	Volumes    map[string]struct{}
	WorkingDir string
}

// oldestImageConfig is that of before 1.50, with fields of containers that never meant anything for images.
type oldestImageConfig struct {
	legacyImageConfig
	Hostname, Domainname, Image             string
	AttachStdin, AttachStdout, AttachStderr bool
	Tty, OpenStdin, StdinOnce               bool
}

func imageInspect(img *image.Image, r *request, onePlatform bool, users func(string) []string) any {
	out := apiimage.InspectResponse{
		ID: img.ID, RepoTags: list(img.RepoTags), RepoDigests: list(img.RepoDigests), Comment: img.Comment, Author: img.Author,
		Config: imageConfig(img), Architecture: img.Architecture, Variant: img.Variant, Os: img.OS, Size: img.Size,
		RootFS: apiimage.RootFS{Type: "layers", Layers: list(img.Layers)}, Metadata: apiimage.Metadata{LastTagTime: img.LastTagged},
	}
	if !img.Created.IsZero() || r.version < 1044 {
		out.Created = img.Created.UTC().Format(time.RFC3339Nano)
	}
	if r.version >= 1048 && img.Target.Digest != "" {
		out.Descriptor = &img.Target
		if onePlatform {
			d, p := img.Manifest, platformOf(img)
			d.Platform, out.Descriptor = &p, &d
		}
		if r.flag("manifests") {
			out.Manifests = manifests(img, users)
		}
	}
	if r.version >= 1052 {
		return out
	}
	out.GraphDriver = &storage.DriverData{Name: "overlayfs", Data: map[string]string{}}
	c := legacyImageConfig{
		DockerOCIImageConfig: out.Config, Cmd: out.Config.Cmd, Entrypoint: out.Config.Entrypoint, Env: out.Config.Env, Labels: out.Config.Labels,
		OnBuild: out.Config.OnBuild, User: out.Config.User, Volumes: out.Config.Volumes, WorkingDir: out.Config.WorkingDir,
	}
	legacy := legacyImageInspect{InspectResponse: out, Comment: img.Comment, Author: img.Author, Config: c}
	if r.version < 1050 {
		legacy.Config = oldestImageConfig{legacyImageConfig: c}
	}
	if r.version < 1044 {
		legacy.VirtualSize = img.Size
	}
	if r.version < 1045 {
		legacy.Container, legacy.ContainerConfig = new(string), new(oldestImageConfig)
	}
	return legacy
}

func imageConfig(img *image.Image) *dockerspec.DockerOCIImageConfig {
	out := &dockerspec.DockerOCIImageConfig{ImageConfig: img.Config,
		DockerOCIImageConfigExt: dockerspec.DockerOCIImageConfigExt{OnBuild: img.OnBuild, Shell: img.Shell}}
	if h := img.Healthcheck; h != nil {
		out.Healthcheck = &dockerspec.HealthcheckConfig{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod,
			StartInterval: h.StartInterval, Retries: h.Retries}
	}
	return out
}

// imageHistory lists the steps that made an image, newest first. Only the newest has an ID.
func imageHistory(img *image.Image) []apiimage.HistoryResponseItem {
	out := []apiimage.HistoryResponseItem{}
	layer := len(img.LayerSizes) // the top one; entries and layers go down together
	for i := len(img.History) - 1; i >= 0; i-- {
		h := img.History[i]
		item := apiimage.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment, Tags: []string{}}
		if !h.EmptyLayer && layer > 0 {
			layer--
			item.Size = img.LayerSizes[layer]
		}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		out = append(out, item)
	}
	if len(out) == 0 {
		out = append(out, apiimage.HistoryResponseItem{Created: img.Created.Unix(), Comment: img.Comment, Size: img.Size})
	}
	out[0].ID, out[0].Tags = img.ID, list(img.RepoTags)
	return out
}
