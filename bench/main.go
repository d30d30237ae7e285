// Bench measures Sampan and, in turn in the same run, docker.io's dockerd in hosts of its own, through the same docker
// command, and writes one Markdown table. Without dockerd it measures Sampan alone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/testhost"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

const image = "bench/tool:1"

func main() {
	bin := flag.String("bin", "bin", "folder of Sampan's programs")
	out := flag.String("out", "docs/performance.md", "where the table goes")
	only := flag.String("only", "", "measure only what has this in its name")
	runs := flag.Int("runs", 9, "pairs for each figure")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *bin, *out, *only, *runs); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// engine is one of the two that are compared.
type engine struct {
	name    string
	options testhost.Options
	archive []byte
}

func run(ctx context.Context, bin, out, only string, runs int) error {
	if os.Getuid() != 0 {
		return errors.New("hosts are network namespaces: run it as root")
	}
	tmp, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	root, err := testhost.ModuleRoot()
	if err != nil {
		return err
	}
	tool, err := testimage.GoBinary(ctx, root, "./bench/tool", tmp)
	if err != nil {
		return err
	}
	archive, err := testimage.Build(ctx, testimage.Spec{Tags: []string{image},
		Files: map[string]testimage.File{"/tool": {HostPath: tool, Mode: 0o755}}, Config: ocispec.ImageConfig{Entrypoint: []string{"/tool"}}})
	if err != nil {
		return err
	}
	b := &bench{runs: runs, tool: tool, tmp: tmp}
	b.engines = append(b.engines, engine{"sampan", testhost.Options{Binaries: bin, Args: []string{testhost.InsecureArg}}, archive})
	if dockerd, err := exec.LookPath("dockerd"); err == nil {
		b.engines = append(b.engines, engine{"docker", testhost.Options{Binaries: bin, Daemon: dockerd, Args: []string{testhost.InsecureArg}}, archive})
		version, _ := exec.CommandContext(ctx, dockerd, "--version").Output()
		b.peer = strings.TrimSpace(string(version))
	} else {
		fmt.Println("dockerd is not installed (apt-get install docker.io): measuring Sampan alone")
	}
	for _, m := range measures() {
		if !strings.Contains(m.name, only) {
			continue
		}
		row, err := b.measure(ctx, m)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Println(row)
		b.rows = append(b.rows, row)
	}
	if only != "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, []byte(b.report()), 0o644)
}
