package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/thread"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

// StatPath describes a path in a container, running or not, volumes included. A link at its end is not followed unless
// the path ends in a slash or dot.
func (m *Manager) StatPath(ctx context.Context, id, name string) (PathStat, error) {
	c, err := m.find(id)
	if err != nil {
		return PathStat{}, err
	}
	var st PathStat
	err = m.withView(ctx, c, func(root *os.File, _ userns.Mapping) (err error) {
		st, err = statInRoot(root, name)
		return err
	})
	return st, pathError(err, id, name)
}

// CopyFrom returns a path of a container as a tar archive, whose entries begin with the path's last element.
func (m *Manager) CopyFrom(ctx context.Context, id, name string) (io.ReadCloser, PathStat, error) {
	c, err := m.find(id)
	if err != nil {
		return nil, PathStat{}, err
	}
	r, w := io.Pipe()
	found := make(chan PathStat, 1)
	done := make(chan error, 1)
	// The request's context ends with the request, its reader may live a little longer; the pipe ends the work.
	work := context.WithoutCancel(ctx)
	go func() {
		err := m.withView(work, c, func(root *os.File, ids userns.Mapping) error {
			st, err := statInRoot(root, name)
			if err != nil {
				return err
			}
			found <- st
			dir, base, entry := splitSource(name)
			parent, err := openInRoot(root, dir, unix.O_PATH|unix.O_DIRECTORY)
			if err != nil {
				return err
			}
			defer parent.Close()
			from, err := os.OpenRoot(procFD(parent))
			if err != nil {
				return err
			}
			defer from.Close()
			var hollow []string
			if base == "." {
				real, err := nameInRoot(root, parent) // a link may lead to the whole
				if err != nil {
					return err
				}
				if real == "/" {
					hollow = []string{joinEntry(entry, "dev")} // made anew by every start
				}
			}
			return writeTar(work, w, from, base, entry, false, ids, hollow...)
		})
		_ = w.CloseWithError(pathError(err, id, name))
		done <- err
	}()
	select {
	case st := <-found:
		s := c.snapshot()
		m.event(&s, "archive-path")
		return r, st, nil
	case err := <-done:
		select {
		case st := <-found: // done already, and well
			return r, st, nil
		default:
		}
		_ = r.Close()
		return nil, PathStat{}, pathError(err, id, name)
	}
}

// CopyTo extracts a tar archive into a folder of a container.
func (m *Manager) CopyTo(ctx context.Context, id, name string, archive io.Reader, o CopyOptions) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	snap := c.snapshot()
	err = m.withView(ctx, c, func(root *os.File, ids userns.Mapping) error {
		dst, err := openInRoot(root, name, unix.O_PATH)
		if err != nil {
			return err
		}
		defer dst.Close()
		st, err := dst.Stat()
		if err != nil {
			return err
		}
		if !st.IsDir() {
			return fault.New(fault.InvalidArgument, "extraction point is not a directory")
		}
		// A link may lead from what can be written to what cannot.
		real, err := nameInRoot(root, dst)
		if err != nil {
			return err
		}
		for _, p := range []string{name, real} {
			if err := writable(&snap, p); err != nil {
				return err
			}
		}
		owner := noOwner
		if o.CopyUIDGID && snap.Config.User != "" {
			u, err := lookupUser(procFD(root), snap.Config.User, nil)
			if err != nil {
				return err
			}
			owner = [2]int{int(u.UID), int(u.GID)}
		}
		x := &extraction{root: root, base: name, keepKinds: o.NoOverwriteDirNonDir, owner: owner, ids: ids}
		defer x.close()
		return x.run(ctx, archive)
	})
	if err != nil {
		return pathError(err, id, name)
	}
	m.event(&snap, "extract-to-dir")
	return nil
}

// nameInRoot is the path of an open file below root, without links.
func nameInRoot(root, f *os.File) (string, error) {
	above, err := os.Readlink(procFD(root))
	if err != nil {
		return "", err
	}
	full, err := os.Readlink(procFD(f))
	if err != nil {
		return "", err
	}
	return path.Clean("/" + strings.TrimPrefix(full, above)), nil
}

// writable refuses what the container itself could not write.
func writable(c *Container, name string) error {
	clean := path.Clean("/" + name)
	var on *MountPoint
	for _, mp := range c.Mounts {
		if (clean == mp.Destination || strings.HasPrefix(clean, mp.Destination+"/")) && (on == nil || len(mp.Destination) > len(on.Destination)) {
			on = &mp
		}
	}
	switch {
	case on != nil && !on.RW:
		return fault.New(fault.Forbidden, "mounted volume is marked read-only")
	case on == nil && c.Config.Host.ReadonlyRootfs:
		return fault.New(fault.Forbidden, "container rootfs is marked read-only")
	}
	return nil
}

// pathError puts an error about a path of a container, named as the user did, into the words that clients know.
func pathError(err error, ref, name string) error {
	var kind *fault.Error
	switch {
	case err == nil || errors.As(err, &kind):
		return err
	case errors.Is(err, unix.ENOTDIR) && followsLast(name):
		return fault.New(fault.InvalidArgument, "%s in container %s: not a directory", name, ref)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fault.New(fault.NotFound, "Could not find the file %s in container %s", name, ref)
	case errors.Is(err, unix.EROFS):
		return fault.New(fault.Forbidden, "%s in container %s is on a read-only file system", name, ref)
	case errors.Is(err, unix.ELOOP):
		return fault.New(fault.InvalidArgument, "%s in container %s: too many levels of symbolic links", name, ref)
	}
	return err
}

// followsLast reports whether a path asks for what a link at its end points to.
func followsLast(name string) bool {
	return name == "." || strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.")
}

// splitSource splits a path to be archived: the folder to open, what to archive in it, and what to call that.
func splitSource(name string) (dir, base, entry string) {
	clean := path.Clean("/" + name)
	switch {
	case path.Base(name) == ".": // also with a slash behind it
		return clean, ".", "."
	case clean == "/":
		return "/", ".", "/"
	case strings.HasSuffix(name, "/"):
		return clean, ".", path.Base(clean)
	}
	return path.Dir(clean), path.Base(clean), path.Base(clean)
}

func statInRoot(root *os.File, name string) (PathStat, error) {
	clean := path.Clean("/" + name)
	var f *os.File
	var err error
	if clean == "/" || followsLast(name) {
		f, err = openInRoot(root, clean, unix.O_PATH|unix.O_DIRECTORY)
	} else {
		var dir *os.File
		if dir, err = openInRoot(root, path.Dir(clean), unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return PathStat{}, err
		}
		defer dir.Close()
		var fd int
		fd, err = unix.Openat(int(dir.Fd()), path.Base(clean), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			f = os.NewFile(uintptr(fd), clean)
		}
	}
	if err != nil {
		return PathStat{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return PathStat{}, err
	}
	st := PathStat{Name: path.Base(clean), Size: fi.Size(), Mode: fi.Mode(), Mtime: fi.ModTime()}
	if fi.Mode()&fs.ModeSymlink != 0 {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), "", buf)
		if err != nil {
			return PathStat{}, &os.PathError{Op: "readlink", Path: clean, Err: err}
		}
		st.LinkTarget = string(buf[:n])
		if !path.IsAbs(st.LinkTarget) {
			st.LinkTarget = path.Join(path.Dir(clean), st.LinkTarget)
		}
	}
	return st, nil
}

// procFD is a path that leads to an open file, whatever its own path has become.
func procFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// withView calls f with the root folder of a container as its processes see it, the owners of files shifted by ids. If
// it does not run, its root file system and volumes are mounted for that long in a mount namespace of their own, and it
// cannot be started meanwhile.
func (m *Manager) withView(ctx context.Context, c *ctr, f func(root *os.File, ids userns.Mapping) error) error {
	c.mu.Lock()
	switch s := &c.rec.State; {
	case c.waiters.gone():
		c.mu.Unlock()
		return fault.New(fault.NotFound, "No such container: %s", c.id)
	case s.Status == StatusRemoving || s.Dead:
		c.mu.Unlock()
		return fault.New(fault.Conflict, "container %s is being removed", short(c.id))
	case s.Running && !s.Restarting:
		root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", s.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		ids := c.rec.IDs
		c.mu.Unlock()
		if err != nil && processGone(err) {
			return fault.New(fault.Conflict, "container %s has just ended: try again", short(c.id))
		}
		if err != nil {
			return fmt.Errorf("root of container %s: %w", short(c.id), err)
		}
		defer root.Close()
		return c.orRemoved(f(root, ids))
	}
	defer c.mu.Unlock()
	target, err := m.rootfsTarget(c)
	if err != nil {
		return err
	}
	r, err := m.mountIdle(ctx, c, target)
	if err != nil {
		return err
	}
	defer func() {
		if err := m.unmountAll(context.WithoutCancel(ctx), c); err != nil {
			m.log.Warn("unmounting a root file system", "container", c.id, "error", err)
		}
	}()
	done, err := m.useVolumes(context.WithoutCancel(ctx), c)
	if err != nil {
		return err
	}
	return errors.Join(inView(r.Path, viewMounts(&c.rec), func(root *os.File) error { return f(root, userns.Mapping{}) }), done())
}

// viewMounts are the mounts that a container which does not run is seen with, parents first: those of its configuration
// and the files that its last start made.
func viewMounts(r *record) []plannedMount {
	plan := slices.Clone(r.MountPlan)
	for _, m := range fileMounts(&r.Container) {
		if !slices.ContainsFunc(plan, func(p plannedMount) bool { return p.Destination == m.Destination }) {
			plan = append(plan, plannedMount{MountPoint: MountPoint{Type: MountBind, Source: m.Source, Destination: m.Destination}})
		}
	}
	slices.SortStableFunc(plan, func(a, b plannedMount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return plan
}

// inView runs f on a thread with a mount namespace of its own, in which the mounts are made below rootfs. The thread
// ends with f, and the mounts with it.
func inView(rootfs string, plan []plannedMount, f func(root *os.File) error) error {
	return thread.Throwaway(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("mount namespace: %w", err)
		}
		for _, p := range plan {
			if p.Type != MountVolume && p.Type != MountBind {
				continue
			}
			if err := bindPlanned(rootfs, p); err != nil {
				return fmt.Errorf("mount on %s: %w", p.Destination, err)
			}
		}
		// What is opened below this handle sees the mounts, whichever thread opens it.
		root, err := os.OpenFile(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer root.Close()
		return f(root)
	})
}

func bindPlanned(rootfs string, p plannedMount) error {
	if p.Subpath == "" {
		return bindInto(rootfs, p.Source, p)
	}
	f, err := openSubpath(p.Source, p.Subpath)
	if err != nil {
		return err
	}
	defer f.Close()
	return bindInto(rootfs, procFD(f), p)
}

func bindInto(rootfs, src string, p plannedMount) error {
	st, err := os.Stat(src)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a bind's source that the start would make or refuse
	}
	if err != nil {
		return err
	}
	target, err := securejoin.SecureJoin(rootfs, p.Destination)
	if err != nil {
		return err
	}
	if !exists(target) {
		if st.IsDir() {
			err = os.MkdirAll(target, 0o755)
		} else if err = os.MkdirAll(path.Dir(target), 0o755); err == nil {
			err = os.WriteFile(target, nil, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return unix.Mount(src, target, "", unix.MS_BIND|unix.MS_REC, "")
}
