package testhost

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// Binaries is the folder with sampand, sampan, sampan-builder, sampan-keeper and sampan-init.
type Binaries string

// Path returns the path of one program.
func (b Binaries) Path(name string) string { return filepath.Join(string(b), name) }

var (
	buildOnce sync.Once
	built     Binaries
	errBuild  error
)

// FindBinaries returns dir if it is not empty, which a caller takes from its environment or flags; otherwise it builds
// the programs once per process into a temporary folder.
func FindBinaries(ctx context.Context, dir string) (Binaries, error) {
	if dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(filepath.Join(abs, "sampand")); err != nil {
			return "", fmt.Errorf("programs of Sampan in %s: %w: run make build", abs, err)
		}
		return Binaries(abs), nil
	}
	buildOnce.Do(func() {
		root, err := ModuleRoot()
		if err != nil {
			errBuild = err
			return
		}
		out, err := os.MkdirTemp("", "sampan-bin-")
		if err != nil {
			errBuild = err
			return
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-o", out+"/", "./cmd/sampand", "./cmd/sampan", "./cmd/sampan-builder")
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if msg, err := cmd.CombinedOutput(); err != nil {
			errBuild = fmt.Errorf("build the programs: %w\n%s", err, msg)
			return
		}
		if errBuild = BuildKeeper(ctx, filepath.Join(out, "sampan-keeper"), ""); errBuild != nil {
			return
		}
		init := exec.CommandContext(ctx, "gcc", "-static", "-Os", "-s", "-o", filepath.Join(out, "sampan-init"), "cmd/sampan-init/init.c")
		init.Dir = root
		if msg, err := init.CombinedOutput(); err != nil {
			errBuild = fmt.Errorf("build sampan-init: %w\n%s", err, msg)
			return
		}
		built = Binaries(out)
	})
	return built, errBuild
}

// BuildKeeper builds the keeper at path, as make build does; version is what it calls itself, if any.
func BuildKeeper(ctx context.Context, path, version string) error {
	root, err := ModuleRoot()
	if err != nil {
		return err
	}
	flags := `-extldflags "-static"`
	if version != "" {
		flags += " -X main.version=" + version
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "seccomp osusergo netgo", "-ldflags", flags, "-o", path, "./cmd/sampan-keeper")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=1")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build sampan-keeper: %w\n%s", err, msg)
	}
	return nil
}

// ModuleRoot returns the folder with go.mod, seen from the working folder upward.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod above the working folder: run this inside a checkout of Sampan")
		}
		dir = parent
	}
}
