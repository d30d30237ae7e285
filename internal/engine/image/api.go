package image

// ImportOptions are those of an import from a root file system archive.
type ImportOptions struct {
	Message  string
	Platform string
	Changes  []string // Dockerfile instructions: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME, WORKDIR, …
}

// CommitRequest makes an image of a container's root file system. ParentID is the image the container runs.
type CommitRequest struct {
	ContainerID string
	ParentID    string
	Ref         string // empty: no name
	Author      string
	Comment     string
	Changes     []string
	// Config is the image config as the container runs it.
	Config Image
}

// ChangeKind is what happened to a path. The values are Docker's.
type ChangeKind uint8

// The kinds of change.
const (
	Modified ChangeKind = iota
	Added
	Deleted
)

// Change is one path that differs from the image.
type Change struct {
	Path string
	Kind ChangeKind
}
