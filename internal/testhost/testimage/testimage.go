// Package testimage makes images and a registry for tests, the demo and the bench, without any network: images FROM
// scratch out of static binaries and files, and a registry in this process that can be told to misbehave.
package testimage

import (
	"context"
	"errors"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Spec describes an image of one layer.
type Spec struct {
	// Tags are its names, such as "shop/order:1". At least one.
	Tags []string
	// Files are its files by absolute path.
	Files map[string]File
	// Config is its run configuration.
	Config ocispec.ImageConfig
}

// File is a file of an image: Data, or the file HostPath of this machine if that is set.
type File struct {
	Data     []byte
	HostPath string
	Mode     uint32 // permission bits; 0: 0644, or HostPath's
	// Symlink makes a symbolic link to this target instead.
	Symlink string
}

// Build returns the image as a docker-archive that `docker load` and image.Store.Load take. The same Spec gives the same
// bytes.
func Build(ctx context.Context, spec Spec) ([]byte, error) { return nil, errors.New("not yet") }

// GoBinary builds a static binary of the Go package (or .go file) pkg, with the build run in dir, into a file under
// outDir, and returns its path.
func GoBinary(ctx context.Context, dir, pkg, outDir string) (string, error) {
	return "", errors.New("not yet")
}
