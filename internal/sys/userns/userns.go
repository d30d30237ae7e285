package userns

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
)

// born makes a process in new namespaces, gives it to f, and ends it before it has run anything of its own: it is
// traced and stops at its first instruction. What f opened or pinned of its namespaces stays.
func born(flags uintptr, m Mapping, f func(pid int) error) error {
	done := make(chan error, 1)
	// The tracer is a thread; it must live as long as the process.
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- func() error {
			p, err := os.StartProcess("/proc/self/exe", []string{"userns"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
				Cloneflags: unix.CLONE_NEWUSER | flags, UidMappings: sysMap(m.UIDs), GidMappings: sysMap(m.GIDs),
				GidMappingsEnableSetgroups: true, Ptrace: true, Pdeathsig: syscall.SIGKILL,
			}})
			if err != nil {
				return explain(err)
			}
			err = f(p.Pid)
			_ = p.Kill()
			_, _ = p.Wait()
			return err
		}()
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	return nil
}

// explain gives the errors that a host's settings cause a kind and a way out.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return fault.New(fault.FailedPrecondition, "%w: this host allows no further one; raise it with sysctl user.max_user_namespaces", err)
	case errors.Is(err, unix.EPERM):
		return fault.New(fault.FailedPrecondition, "%w: they are switched off on this host (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)", err)
	}
	return err
}

func sysMap(ranges []Range) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, 0, len(ranges))
	for _, r := range ranges {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(r.Inside), HostID: int(r.Outside), Size: int(r.Count)})
	}
	return out
}

// Open makes a user namespace that lives as long as the file that is returned and what was made with it.
func Open(m Mapping) (*os.File, error) {
	var f *os.File
	err := born(0, m, func(pid int) (err error) {
		f, err = os.Open(procNS(pid, "user"))
		return err
	})
	return f, err
}

// Pin makes a user namespace and a network namespace that it owns, and pins each at a path of its own, which must not
// exist. They live until they are unpinned (Unpin, netns.Remove) and nobody is in them any more.
func Pin(user, net string, m Mapping) error {
	u := undo.New()
	defer func() { _ = u.Run() }()
	err := born(unix.CLONE_NEWNET, m, func(pid int) error {
		if err := pin(u, pid, "user", user); err != nil {
			return err
		}
		return pin(u, pid, "net", net)
	})
	if err == nil {
		u.Done()
	}
	return err
}

// pin pins a namespace of a process at a path, which must not exist. It is undone by u.
func pin(u *undo.Stack, pid int, kind, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_ = f.Close()
	u.Add(func() error { return os.Remove(path) })
	if err := failpoint.Hit("sys/userns.pin." + kind); err != nil {
		return err
	}
	if err := unix.Mount(procNS(pid, kind), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	u.Add(func() error { return unix.Unmount(path, unix.MNT_DETACH) })
	return nil
}

// Unpin takes a pinned namespace's path away. It is not an error if nothing is there.
func Unpin(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin namespace %s: %w", path, err)
	}
	return nil
}

func procNS(pid int, kind string) string { return "/proc/" + strconv.Itoa(pid) + "/ns/" + kind }

// keeperID is the ID that files of the host's root have on disk where a mapping has WithRoot. It is nobody's: the two
// above it mean "none" and "unchanged" to system calls.
const keeperID = math.MaxUint32 - 2

// WithRoot is the mapping with the host's root in it, as an ID that no user of an image has. It is for the mounts that
// overlayfs writes to: it keeps files of its own there, which belong to whoever mounted it.
func (m Mapping) WithRoot() Mapping {
	root := Range{Inside: keeperID, Outside: 0, Count: 1}
	return Mapping{UIDs: append(append([]Range{}, m.UIDs...), root), GIDs: append(append([]Range{}, m.GIDs...), root)}
}

// Mount mounts the folder source on target so that whoever owns a file there owns it by the ID that ns maps the file's
// to: files of user 0 on disk belong to the root of ns. Mounts below source do not show. The file system must allow it
// (ext4, xfs and btrfs do; tmpfs from Linux 6.3).
func Mount(source, target string, ns *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: source, Err: err}
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	switch err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); {
	case errors.Is(err, unix.EINVAL):
		return fault.New(fault.FailedPrecondition, "the file system of %s has no ID-mapped mounts on this kernel", source)
	case err != nil:
		return &os.PathError{Op: "mount_setattr", Path: source, Err: err}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	// Nothing that is mounted on or below it elsewhere is to follow.
	return unix.Mount("", target, "", unix.MS_PRIVATE, "")
}
