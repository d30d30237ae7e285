// Package image owns a host's images: their content, layers and names, kept by containerd's content store, metadata
// database and overlayfs snapshotter inside this process, and the root file systems made from them. It speaks to
// registries and reads and writes archives. It knows nothing of running containers but the snapshots they hold.
package image

import (
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image on this host, as one of its platforms shows it. ID is the digest of its manifest or, where it is
// made for several platforms, of its index, as Docker shows it since version 29. It is everything that inspect and list
// show, which is why it is long.
type Image struct {
	ID           string             // sha256:…
	Target       ocispec.Descriptor // its manifest or index
	Manifest     ocispec.Descriptor // its platform's manifest: Target itself unless that is an index
	Manifests    []Manifest         // what the index lists; nil without one
	ConfigID     string             // digest of its config, which older versions had for an ID
	RepoTags     []string
	RepoDigests  []string
	Created      time.Time
	Author       string
	Comment      string
	OS           string
	Architecture string
	Variant      string
	Size         int64    // bytes of its layers, unpacked
	Content      int64    // bytes of its manifest, config and layers as they are kept packed
	Layers       []string // diff IDs, lowest first
	LayerSizes   []int64  // bytes of each, unpacked
	Labels       map[string]string
	Config       ocispec.ImageConfig
	// Healthcheck, OnBuild and Shell are Docker's additions to the OCI config.
	Healthcheck *Healthcheck
	OnBuild     []string
	Shell       []string
	History     []ocispec.History
	LastTagged  time.Time
	Containers  int // containers that use it, when counted
}

// Healthcheck as in an image's config.
type Healthcheck struct {
	Test          []string      `json:",omitempty"`
	Interval      time.Duration `json:",omitempty"`
	Timeout       time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
	Retries       int           `json:",omitempty"`
}

// Progress is one line of a pull, push or load as clients show it; the fields are those of Docker's JSON messages.
type Progress struct {
	ID      string // layer's short ID, or the tag
	Status  string
	Current int64 // bytes
	Total   int64 // bytes, 0: unknown
	Aux     any   // pushed digest and the like
}

// Auth are a registry's credentials.
type Auth struct {
	Username, Password string
	IdentityToken      string
	RegistryToken      string
	ServerAddress      string
}

// Removed is one effect of removing an image.
type Removed struct {
	Untagged string
	Deleted  string // an image's ID, a platform's digest or a layer's
	ImageID  string // of the image that it happened to; empty for layers
}

// Rootfs is a container's writable root file system.
type Rootfs struct {
	Path  string // where it is mounted, when it is
	Upper string // the writable layer's folder
}

// The store is (*Store), in store.go:
//
//	Open(Config) (*Store, error)                  Config: root folder, registries (mirrors, insecure), logger
//	Close() error
//	Get(ctx, ref string) (Image, error)           name, name@digest, ID or unique prefix of one; fault.NotFound "No such image: REF"
//	List(ctx) ([]Image, error)
//	Pull(ctx, ref, platform string, Auth, func(Progress)) (Image, error)
//	Push(ctx, ref string, Auth, func(Progress)) error
//	Load(ctx, io.Reader, func(Progress)) ([]Image, error)    OCI and docker-archive layouts, gzip and zstd
//	Save(ctx, []string, io.Writer) error
//	Import(ctx, io.Reader, ref string, ImportOptions) (Image, error)
//	Tag(ctx, source, target string) error
//	Remove(ctx, ref string, force, prune bool, inUse func(id string) []string) ([]Removed, error)
//	Prune(ctx, filter func(Image) bool, inUse) ([]Removed, int64, error)
//	Commit(ctx, CommitRequest) (Image, error)
//	History via Image.History
//	PrepareRootfs(ctx, containerID, imageID string) error     a snapshot on the image's layers, leased by the container
//	MountRootfs(ctx, containerID, target string) (Rootfs, error)   mounts the snapshot; idempotent
//	UnmountRootfs(ctx, containerID, target string) error
//	RemoveRootfs(ctx, containerID string) error
//	RootfsUsage(ctx, containerID) (rw, total int64, err error)
//	RootfsDiff(ctx, containerID) ([]Change, error); ExportLayer(ctx, containerID, io.Writer) error
//	Keep(ctx, containerIDs []string) error        removes the snapshots of containers that are gone
