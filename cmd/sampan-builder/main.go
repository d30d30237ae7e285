// Sampan-builder is the program that builds images for the sampand that starts it. It is not meant to be run by hand.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/sampan-cloud/sampan/internal/build/builder"
	"github.com/sampan-cloud/sampan/internal/sys/stackdump"
)

// Set by the linker.
var version, commit = "dev", "unknown"

// What sampand hands over.
const (
	listenerFD = 3
	hostFD     = 4
)

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "sampan-builder:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var cfg builder.Config
	var debug bool
	var settings string
	cmd := &cobra.Command{
		Use:           "sampan-builder",
		Short:         "Builds images for sampand, which starts it",
		Args:          cobra.NoArgs,
		Version:       version + ", build " + commit,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error {
			if settings != "" {
				if err := json.Unmarshal([]byte(settings), &cfg.Settings); err != nil {
					return fmt.Errorf("--settings: %w", err)
				}
			}
			return run(cfg, debug)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Root, "root", "", "folder of what outlives the program")
	f.StringVar(&cfg.ExecRoot, "exec-root", "", "folder of what does not")
	f.StringArrayVar(&cfg.Registries.Mirrors, "registry-mirror", nil, "mirror of the default registry")
	f.StringArrayVar(&cfg.Registries.Insecure, "insecure-registry", nil, "registry spoken to without verified TLS")
	f.StringArrayVar(&cfg.Registries.CertDirs, "cert-dir", nil, "folder with a folder of certificates for each registry that has its own")
	f.StringVar(&cfg.HostGateway, "host-gateway", "", "address that host-gateway stands for")
	f.StringVar(&cfg.Version, "version-of-daemon", "", "version of the daemon")
	f.StringVar(&settings, "settings", "", "what else can be set, as JSON")
	f.BoolVar(&debug, "debug", false, "log at level debug")
	return cmd
}

func run(cfg builder.Config, debug bool) error {
	if cfg.Root == "" || cfg.ExecRoot == "" {
		return errors.New("this program is started by sampand when it builds images")
	}
	level := slog.LevelInfo
	logrus.SetLevel(logrus.WarnLevel) // BuildKit's own
	if debug {
		level = slog.LevelDebug
		logrus.SetLevel(logrus.DebugLevel)
	}
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	// Not in its own folder, which is swept when it ends.
	stackdump.OnSignal(filepath.Dir(cfg.ExecRoot), "builder", cfg.Logger)
	cfg.Registries.Proxy = http.ProxyFromEnvironment
	// The daemon is spared when memory runs out. This program is not: it is what a large build makes large.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0o644); err != nil {
		cfg.Logger.Warn("the builder is spared when memory runs out", "error", err)
	}
	// What is mounted for a moment goes where the daemon looks for what a killed builder has left.
	tmp := filepath.Join(cfg.ExecRoot, "tmp")
	if err := errors.Join(os.MkdirAll(tmp, 0o700), os.Setenv("TMPDIR", tmp)); err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(listenerFD, "listener"))
	if err != nil {
		return fmt.Errorf("listener: %w", err)
	}
	if cfg.Host, err = net.FileConn(os.NewFile(hostFD, "sampand")); err != nil {
		return fmt.Errorf("connection to sampand: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	b, err := builder.New(ctx, cfg)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: b, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)}
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case <-b.Gone:
		// Nobody is left to build for, and without the store nothing can be closed in order.
		os.Exit(0)
	case <-ctx.Done():
	case err = <-failed:
	}
	_ = server.Close()
	return errors.Join(err, b.Close())
}
