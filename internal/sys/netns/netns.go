// Package netns makes, pins, opens and enters network namespaces. A pinned namespace is a file that the namespace is
// bind mounted on; it lives until the file is unmounted, whoever made it. The package never assumes that the process is
// in the machine's first namespace and never enters one that it was not asked to.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/sys/thread"
)

// NS is an open network namespace. The zero value is not usable; Close it when done. It is safe for concurrent use.
type NS struct {
	path string
	file *os.File
}

// Create makes a new namespace and pins it at path, which must not be pinned yet. Loopback in it is down.
func Create(path string) (*NS, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	_ = f.Close()
	err = thread.Throwaway(func() error {
		if err := failpoint.Hit("sys/netns.create.unshare"); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		own := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(own, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w", path, err), os.Remove(path))
	}
	ns, err := Open(path)
	if err != nil {
		return nil, errors.Join(err, Remove(path))
	}
	return ns, nil
}

// Move pins the namespace that is pinned at from at to instead, which must not be pinned yet.
func Move(from, to string) (*NS, error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", to, err)
	}
	f, err := os.OpenFile(to, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", to, err)
	}
	_ = f.Close()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: bind mount of %s: %w", to, from, err), os.Remove(to))
	}
	ns, err := Open(to)
	if err == nil {
		err = Remove(from)
	}
	if err != nil {
		return nil, errors.Join(err, Remove(to))
	}
	return ns, nil
}

// Open opens the namespace that is pinned at path, or any other path that is a namespace (/proc/PID/ns/net).
func Open(path string) (*NS, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "network namespace %s: %w", path, err)
	} else if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	if st.Type != unix.NSFS_MAGIC {
		_ = f.Close()
		return nil, fault.New(fault.NotFound, "network namespace %s: a plain file, nothing is pinned there", path)
	}
	return &NS{path: path, file: f}, nil
}

// Current opens the namespace that the calling process is in.
func Current() (*NS, error) {
	// The calling thread's own, which is the process's for every thread that has not been moved.
	return Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
}

// Path is where the namespace was opened.
func (n *NS) Path() string { return n.path }

// FD is the open descriptor, valid until Close.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Inode tells namespaces apart: two with the same inode are the same namespace.
func (n *NS) Inode() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(n.FD(), &st); err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", n.path, err)
	}
	return st.Ino, nil
}

// Close closes the descriptor; a pinned namespace stays.
func (n *NS) Close() error { return n.file.Close() }

// Do runs f inside the namespace, on an OS thread of its own that is thrown away afterwards: goroutines that f starts
// are not inside.
func (n *NS) Do(f func() error) error {
	return thread.Throwaway(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.path, err)
		}
		return f()
	})
}

// Netlink opens a route netlink handle to the namespace. It is safe for concurrent use; Close it when done.
func (n *NS) Netlink() (*netlink.Handle, error) {
	var h *netlink.Handle
	err := n.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink in network namespace %s: %w", n.path, err)
	}
	return h, nil
}

// Sysctl writes net.* settings inside the namespace: keys as sysctl(8) writes them, net.ipv4.ip_forward. An interface
// name with a dot in it is written with a slash there, as sysctl(8) does.
func (n *NS) Sysctl(settings map[string]string) error {
	if len(settings) == 0 {
		return nil
	}
	return n.Do(func() error {
		for k, v := range settings {
			if err := WriteSysctl(k, v); err != nil {
				return err
			}
		}
		return nil
	})
}

// WriteSysctl writes one net.* setting of the namespace that the calling thread is in.
func WriteSysctl(key, value string) error {
	path, err := sysctlPath(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
	}
	return nil
}

// ReadSysctl reads one net.* setting of the namespace that the calling thread is in.
func ReadSysctl(key string) (string, error) {
	path, err := sysctlPath(key)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func sysctlPath(key string) (string, error) {
	swap := strings.NewReplacer(".", "/", "/", ".")
	rel := swap.Replace(key)
	if !strings.HasPrefix(rel, "net/") || filepath.Clean(rel) != rel {
		return "", fault.New(fault.InvalidArgument, "sysctl %q is not a net.* setting", key)
	}
	return "/proc/sys/" + rel, nil
}

// Remove unpins the namespace at path and removes the file. What is inside goes when its last process and descriptor
// have. It is not an error if nothing is there.
func Remove(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin network namespace %s: %w", path, err)
	}
	return nil
}
