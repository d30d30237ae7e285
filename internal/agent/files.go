package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// files holds the secrets and configs of tasks as files in memory, one folder per task, mounted into the containers one
// by one.
type files struct {
	dir    string
	logger *slog.Logger
	once   sync.Once
	err    error
}

// open makes the folder and mounts a tmpfs on it, unless it is on one already.
func (f *files) open() error {
	f.once.Do(func() {
		if f.dir == "" {
			f.err = fault.New(fault.FailedPrecondition, "this node has no folder for secrets")
			return
		}
		if f.err = os.MkdirAll(f.dir, 0o700); f.err != nil {
			return
		}
		var st unix.Statfs_t
		if err := unix.Statfs(f.dir, &st); err == nil && st.Type == unix.TMPFS_MAGIC {
			return
		}
		err := unix.Mount("tmpfs", f.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
		if err != nil {
			f.logger.Warn("no tmpfs for secrets: they are kept in a folder on disk", "folder", f.dir, "error", err)
		}
	})
	return f.err
}

// write makes the task's files and returns their mounts. Those that are templates are filled with values, with each other
// and with the task's environment.
func (f *files) write(t *cloud.Task, view *cloud.NodeView, values *cloud.TemplateContext, env []string) ([]container.Mount, error) {
	spec := &t.Spec.Container
	if len(spec.Secrets)+len(spec.Configs) == 0 {
		return nil, nil
	}
	all := cloud.TemplateFiles{Secrets: map[string][]byte{}, Configs: map[string][]byte{}, Env: env}
	for _, r := range spec.Secrets {
		s := view.Secrets[r.ID]
		if s == nil {
			return nil, fault.New(fault.NotFound, "secret not found: %s", r.Name)
		}
		all.Secrets[r.Path] = s.Spec.Data
	}
	for _, r := range spec.Configs {
		c := view.Configs[r.ID]
		if c == nil {
			return nil, fault.New(fault.NotFound, "config not found: %s", r.Name)
		}
		all.Configs[r.Path] = c.Spec.Data
	}
	if err := f.open(); err != nil {
		return nil, err
	}
	var mounts []container.Mount
	add := func(n int, kind string, r cloud.FileReference, content *cloud.SecretSpec, base string) error {
		data := content.Data
		if content.Templating != nil {
			var err error
			if data, err = values.ExpandPayload(data, &all); err != nil {
				return fmt.Errorf("failed to expand templated %s %s: %w", kind, r.Name, err)
			}
		}
		source := filepath.Join(f.dir, t.ID, kind+strconv.Itoa(n))
		if err := writeOwned(source, r, data); err != nil {
			return err
		}
		target := r.Path
		if !path.IsAbs(target) {
			target = path.Join(base, target)
		}
		mounts = append(mounts, container.Mount{Type: container.MountBind, Source: source, Target: target, ReadOnly: true, FromSpec: true})
		return nil
	}
	for i, r := range spec.Secrets {
		if err := add(i, "secret", r, &view.Secrets[r.ID].Spec, "/run/secrets"); err != nil {
			return nil, err
		}
	}
	for i, r := range spec.Configs {
		if err := add(i, "config", r, &view.Configs[r.ID].Spec, "/"); err != nil {
			return nil, err
		}
	}
	return mounts, nil
}

func writeOwned(name string, r cloud.FileReference, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	mode := fs.FileMode(r.Mode) & fs.ModePerm
	if r.Mode == 0 {
		mode = 0o444
	}
	// Removed first: an earlier attempt's file may be read-only.
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		return err
	}
	if err := os.Chmod(name, mode); err != nil {
		return err
	}
	uid, gid := number(r.UID), number(r.GID)
	if uid == os.Getuid() && gid == os.Getgid() {
		return nil
	}
	if err := os.Chown(name, uid, gid); err != nil {
		return fmt.Errorf("give %s to %d:%d: %w", r.Path, uid, gid, err)
	}
	return nil
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

func (f *files) remove(task string) {
	if f.dir == "" || task == "" {
		return
	}
	if err := os.RemoveAll(filepath.Join(f.dir, task)); err != nil {
		f.logger.Warn("remove a task's secrets", "task", task, "error", err)
	}
}

// RemoveSecrets takes away the folder of secrets and configs, and the file system mounted on it: for a node that has left
// its cluster, once the containers of its tasks are removed.
func RemoveSecrets(dir string) error {
	if dir == "" {
		return nil
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return os.RemoveAll(dir)
}
