package image

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Documents larger than these are refused unread: they come from anybody.
const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	maxLayers   = 500 // overlayfs stacks no more
)

// configFile is an image's config blob: OCI's, with Docker's additions.
type configFile struct {
	Created         *time.Time        `json:"created,omitempty"`
	Author          string            `json:"author,omitempty"`
	Architecture    string            `json:"architecture"`
	Variant         string            `json:"variant,omitempty"`
	OS              string            `json:"os"`
	OSVersion       string            `json:"os.version,omitempty"`
	OSFeatures      []string          `json:"os.features,omitempty"`
	Config          runConfig         `json:"config"`
	RootFS          ocispec.RootFS    `json:"rootfs"`
	History         []ocispec.History `json:"history,omitempty"`
	Comment         string            `json:"comment,omitempty"`
	Container       string            `json:"container,omitempty"`
	ContainerConfig *json.RawMessage  `json:"container_config,omitempty"`
}

type runConfig struct {
	ocispec.ImageConfig
	Healthcheck *Healthcheck `json:"Healthcheck,omitempty"`
	OnBuild     []string     `json:"OnBuild,omitempty"`
	Shell       []string     `json:"Shell,omitempty"`
}

// readManifest reads and checks a manifest that is in the content store.
func readManifest(ctx context.Context, p content.Provider, desc ocispec.Descriptor) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if desc.Size > maxManifest {
		return m, fault.New(fault.InvalidArgument, "manifest %s has %d bytes; more than %d are refused", desc.Digest, desc.Size, maxManifest)
	}
	b, err := content.ReadBlob(ctx, p, desc)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fault.New(fault.InvalidArgument, "manifest %s: %w", desc.Digest, err)
	}
	if err := checkDescriptor(m.Config); err != nil {
		return m, fault.New(fault.InvalidArgument, "manifest %s: config: %w", desc.Digest, err)
	}
	if len(m.Layers) > maxLayers {
		return m, fault.New(fault.InvalidArgument, "manifest %s has %d layers; overlayfs stacks at most %d", desc.Digest, len(m.Layers), maxLayers)
	}
	for i, l := range m.Layers {
		if err := checkDescriptor(l); err != nil {
			return m, fault.New(fault.InvalidArgument, "manifest %s: layer %d: %w", desc.Digest, i, err)
		}
	}
	return m, nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	if d.Size < 0 {
		return fmt.Errorf("size %d is negative", d.Size)
	}
	return nil
}

// readConfig reads and checks an image's config for a manifest of the given number of layers.
func readConfig(ctx context.Context, p content.Provider, desc ocispec.Descriptor, layers int) (configFile, error) {
	var c configFile
	if desc.Size > maxConfig {
		return c, fault.New(fault.InvalidArgument, "image config %s has %d bytes; more than %d are refused", desc.Digest, desc.Size, maxConfig)
	}
	b, err := content.ReadBlob(ctx, p, desc)
	if err != nil {
		return c, err
	}
	return parseConfig(b, desc.Digest, layers)
}

func parseConfig(b []byte, d digest.Digest, layers int) (configFile, error) {
	var c configFile
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fault.New(fault.InvalidArgument, "image config %s: %w", d, err)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return c, fault.New(fault.InvalidArgument, "image config %s names %d layers, its manifest has %d", d, len(c.RootFS.DiffIDs), layers)
	}
	for i, id := range c.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return c, fault.New(fault.InvalidArgument, "image config %s: diff ID %d %q: %w", d, i, id, err)
		}
	}
	return c, nil
}

// chainOf is the name of the snapshot of an image's whole root file system; empty for an image without layers.
func chainOf(diffIDs []digest.Digest) string {
	return identity.ChainID(diffIDs).String()
}

// chainsOf are the names of the snapshots of every prefix of diffIDs, lowest first.
func chainsOf(layers []string) []string {
	ids := make([]digest.Digest, len(layers))
	for i, l := range layers {
		ids[i] = digest.Digest(l)
	}
	out := make([]string, 0, len(ids))
	for _, c := range identity.ChainIDs(ids) {
		out = append(out, c.String())
	}
	return out
}

// imageOf builds the part of an Image that its blobs say.
func imageOf(target, manifest ocispec.Descriptor, config digest.Digest, c configFile) *Image {
	img := &Image{
		ID:           target.Digest.String(),
		Target:       target,
		Manifest:     manifest,
		ConfigID:     config.String(),
		Author:       c.Author,
		Comment:      c.Comment,
		OS:           c.OS,
		Architecture: c.Architecture,
		Variant:      c.Variant,
		Labels:       c.Config.Labels,
		Config:       c.Config.ImageConfig,
		Healthcheck:  c.Config.Healthcheck,
		OnBuild:      c.Config.OnBuild,
		Shell:        c.Config.Shell,
		History:      c.History,
	}
	if c.Created != nil {
		img.Created = *c.Created
	}
	for _, d := range c.RootFS.DiffIDs {
		img.Layers = append(img.Layers, d.String())
	}
	return img
}

// fileOf is the config blob that says what img says.
func fileOf(img Image) configFile {
	c := configFile{
		Author:       img.Author,
		Comment:      img.Comment,
		OS:           img.OS,
		Architecture: img.Architecture,
		Variant:      img.Variant,
		Config:       runConfig{ImageConfig: img.Config, Healthcheck: img.Healthcheck, OnBuild: img.OnBuild, Shell: img.Shell},
		RootFS:       ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
		History:      slices.Clone(img.History),
	}
	if !img.Created.IsZero() {
		c.Created = &img.Created
	}
	for _, l := range img.Layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.Digest(l))
	}
	return c
}

// clone returns a copy whose slices and maps the caller may change.
func (i *Image) clone() Image {
	c := *i
	c.RepoTags = slices.Clone(i.RepoTags)
	c.RepoDigests = slices.Clone(i.RepoDigests)
	c.Layers = slices.Clone(i.Layers)
	c.LayerSizes = slices.Clone(i.LayerSizes)
	c.Labels = maps.Clone(i.Labels)
	c.Config = cloneConfig(i.Config)
	c.OnBuild = slices.Clone(i.OnBuild)
	c.Shell = slices.Clone(i.Shell)
	c.History = slices.Clone(i.History)
	c.Manifests = slices.Clone(i.Manifests)
	if i.Healthcheck != nil {
		h := *i.Healthcheck
		h.Test = slices.Clone(h.Test)
		c.Healthcheck = &h
	}
	return c
}

func cloneConfig(c ocispec.ImageConfig) ocispec.ImageConfig {
	c.Env = slices.Clone(c.Env)
	c.Cmd = slices.Clone(c.Cmd)
	c.Entrypoint = slices.Clone(c.Entrypoint)
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Volumes = maps.Clone(c.Volumes)
	c.Labels = maps.Clone(c.Labels)
	return c
}

// isIndex and isManifest tell descriptors apart; an archive or registry may leave the media type out.
func isIndex(mt string) bool    { return images.IsIndexType(mt) }
func isManifest(mt string) bool { return images.IsManifestType(mt) }

// A manifest or index starts here; media type decides, else what the JSON holds.
func sniffMediaType(b []byte) string {
	var d struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
	}
	if json.Unmarshal(b, &d) != nil {
		return ""
	}
	switch {
	case d.MediaType != "":
		return d.MediaType
	case d.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	case d.Config != nil:
		return ocispec.MediaTypeImageManifest
	}
	return ""
}
