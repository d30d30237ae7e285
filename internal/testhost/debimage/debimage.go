// Package debimage makes root file systems of Debian packages, for images of programs that others wrote. Packages are
// fetched by apt with all that they depend on and unpacked; their installation scripts do not run, so there are no
// accounts but those given.
package debimage

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Account is a user with a group of its own.
type Account struct {
	Name string
	ID   int
	Home string
}

// Root unpacks packages and what they depend on into dir. cache is a folder that keeps the packages for the next time.
func Root(ctx context.Context, cache, dir string, accounts []Account, packages ...string) error {
	files, err := fetch(ctx, cache, packages)
	if err != nil {
		return err
	}
	// As on an installed system; the packages' own folders of these names are laid into them.
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(dir, "usr", name), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := unpack(ctx, f, dir); err != nil {
			return fmt.Errorf("unpacking %s: %w", filepath.Base(f), err)
		}
	}
	return writeAccounts(dir, accounts)
}

// fetch downloads the packages that a system without any would need, and returns their files.
func fetch(ctx context.Context, cache string, packages []string) ([]string, error) {
	if err := os.MkdirAll(filepath.Join(cache, "partial"), 0o755); err != nil {
		return nil, err
	}
	nothing := filepath.Join(cache, "status") // the list of what is installed
	if err := os.WriteFile(nothing, nil, 0o644); err != nil {
		return nil, err
	}
	apt := func(mode, archives string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-y", "-o", "Dir::State::status=" + nothing, "-o", "Dir::Cache::archives=" + archives,
			"-o", "APT::Sandbox::User=root", "--no-install-recommends", mode, "install"}, packages...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("apt-get %s install %s: %w: %s", mode, strings.Join(packages, " "), err, strings.TrimSpace(stderr.String()))
		}
		return out, nil
	}
	// What lies in the cache already is not listed, so the list is made with an empty one.
	empty := filepath.Join(cache, "empty")
	if err := os.MkdirAll(filepath.Join(empty, "partial"), 0o755); err != nil {
		return nil, err
	}
	list, err := apt("--print-uris", empty)
	if err != nil { // a machine that has never looked at what there is
		if out, uerr := exec.CommandContext(ctx, "apt-get", "-q", "update").CombinedOutput(); uerr != nil {
			return nil, fmt.Errorf("apt-get update: %w: %s", uerr, out)
		}
		if list, err = apt("--print-uris", empty); err != nil {
			return nil, err
		}
	}
	if _, err := apt("--download-only", cache); err != nil {
		return nil, err
	}
	var files []string
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) >= 3 && strings.HasPrefix(line, "'") { // 'URI' FILE SIZE HASH
			files = append(files, filepath.Join(cache, f[1]))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("apt-get lists no packages for %s", strings.Join(packages, " "))
	}
	return files, nil
}

// unpack lays a package's files into dir.
func unpack(ctx context.Context, deb, dir string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	var complaints strings.Builder
	from := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	from.Stdout, from.Stderr = w, io.Discard
	to := exec.CommandContext(ctx, "tar", "-x", "--keep-directory-symlink", "-C", dir)
	to.Stdin, to.Stderr = r, &complaints
	err = from.Start()
	_ = w.Close()
	if err != nil {
		return err
	}
	terr := to.Run()
	if err := from.Wait(); err != nil {
		return err
	}
	if terr != nil {
		return fmt.Errorf("%w: %s", terr, complaints.String())
	}
	return nil
}

func writeAccounts(dir string, accounts []Account) error {
	passwd, group := "root:x:0:0:root:/root:/bin/bash\n", "root:x:0:\n"
	for _, a := range accounts {
		passwd += fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", a.Name, a.ID, a.ID, a.Home)
		group += fmt.Sprintf("%s:x:%d:\n", a.Name, a.ID)
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, a := range accounts {
		home := filepath.Join(dir, a.Home)
		if err := os.MkdirAll(home, 0o755); err != nil {
			return err
		}
		if err := filepath.WalkDir(home, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, a.ID, a.ID)
		}); err != nil {
			return err
		}
	}
	return nil
}
