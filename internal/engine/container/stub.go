package container

import (
	"context"
	"io"
	"os"

	"github.com/sampan-cloud/sampan/internal/fault"
)

var errTodo = fault.New(fault.NotImplemented, "not built yet")

type statsCache struct{}

func (h *host) cgroupDir(pid int, controllers ...string) (string, error) { return "", errTodo }
func writeTar(ctx context.Context, w io.Writer, root *os.Root, name, rebase string, whole bool) error {
	return errTodo
}

// Stats returns a running container's counters.
func (m *Manager) Stats(ctx context.Context, id string) (Stats, error) { return Stats{}, errTodo }

// StatPath describes a path in a container.
func (m *Manager) StatPath(ctx context.Context, id, path string) (PathStat, error) {
	return PathStat{}, errTodo
}

// CopyFrom returns a path of a container as a tar archive.
func (m *Manager) CopyFrom(ctx context.Context, id, path string) (io.ReadCloser, PathStat, error) {
	return nil, PathStat{}, errTodo
}

// CopyTo extracts a tar archive into a folder of a container.
func (m *Manager) CopyTo(ctx context.Context, id, path string, tar io.Reader, o CopyOptions) error {
	return errTodo
}
