// sampan-keeper is the parent of a host's containers and holds what must not blink when sampand goes: their output,
// their exit codes and the name server. sampand starts it; it lives on when sampand ends.
//
//	sampan-keeper serve --exec-root DIR   serve the daemon of an exec root
//	sampan-keeper init                    the first steps of a container's process; started by serve only
//	sampan-keeper enter                   a process on its way into a container that runs; started by serve only
//	sampan-keeper compile-filter          compiles a seccomp profile; started by serve only
//	sampan-keeper version
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	_ "github.com/opencontainers/cgroups/devices" // device rules of containers
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters namespaces before Go's runtime starts
	"github.com/sirupsen/logrus"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/keeper/filtercache"
	"github.com/sampan-cloud/sampan/internal/keeper/names"
	"github.com/sampan-cloud/sampan/internal/keeper/server"
	"github.com/sampan-cloud/sampan/internal/sys/stackdump"
)

var version = "dev" // set by the build

// libcontainer sends a thread into a container's mount namespace and lets it end there; Go's runtime cannot end the main
// thread and would park it, in that namespace, for ever: the namespace would stay, and /proc/self would show its mounts.
// So the main thread is kept for the main goroutine, which does nothing of the kind.
func init() { runtime.LockOSThread() }

func main() {
	// A container's process on its way to its program: nothing else may happen here.
	if len(os.Args) > 1 && os.Args[1] == "init" {
		if err := filtercache.Use(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		libcontainer.Init()
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sampan-keeper:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) > 0 && args[0] == "serve":
		return serve(args[1:])
	case len(args) == 1 && args[0] == "compile-filter":
		return filtercache.Compile(os.Stdin, os.Stdout)
	case len(args) == 1 && args[0] == "version":
		fmt.Printf("sampan-keeper %s, protocol %d\n", version, keeper.ProtocolVersion)
		return nil
	}
	return fmt.Errorf("usage: sampan-keeper serve --exec-root DIR | version; sampand starts it by itself")
}

func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	var (
		execRoot     = flags.String("exec-root", "/run/sampan", "folder of sockets and runtime state")
		cgroupParent = flags.String("cgroup-parent", "", "group beside which the keeper has its own")
		debugLog     = flags.Bool("debug", false, "log more")
		failpoints   = flags.String("failpoint", "", "arm failpoints, for tests: NAME=fail|kill|stop,…")
		handoverFD   = flags.Int("handover-fd", -1, "socket by which the daemon hands over what it holds")
		resumeFD     = flags.Int("resume-fd", -1, "what the program before this one left in this process")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if !filepath.IsAbs(*execRoot) {
		return fmt.Errorf("the exec root must be an absolute path, not %q", *execRoot)
	}
	level, rlevel := slog.LevelInfo, logrus.InfoLevel
	if *debugLog {
		level, rlevel = slog.LevelDebug, logrus.DebugLevel
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	logrus.SetOutput(os.Stderr)
	logrus.SetLevel(rlevel)
	if err := server.Seal(os.Args, os.Environ()); err != nil {
		logger.Warn("the program cannot run from a sealed copy: every start of a container makes its own, which takes longer", "err", err)
	}
	if err := failpoint.EnableSpec(*failpoints); err != nil {
		return err
	}
	// The file it runs from has a number for a name.
	_ = os.WriteFile("/proc/self/comm", []byte("sampan-keeper"), 0)
	// The last to be killed for memory; not to be had without the capability.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(-999)), 0)
	debug.SetGCPercent(50) // small rather than fast: it mostly sleeps
	stackdump.OnSignal(*execRoot, "keeper", logger)
	// Caught and dropped, not ignored: what a process ignores its children ignore too, and these are the containers.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	build, err := keeper.BuildOf("/proc/self/exe")
	if err != nil {
		logger.Warn("this program does not know its own build: the next daemon will replace it", "err", err)
	}
	again := []string{os.Args[0], "serve", "--exec-root", *execRoot}
	if *cgroupParent != "" {
		again = append(again, "--cgroup-parent", *cgroupParent)
	}
	if *debugLog {
		again = append(again, "--debug")
	}
	return server.Run(ctx, server.Config{
		ExecRoot:     *execRoot,
		CgroupParent: *cgroupParent,
		Names:        names.New(logger),
		Filters:      filtercache.New("/proc/self/exe", "compile-filter"),
		Logger:       logger,
		HandoverFD:   *handoverFD,
		ResumeFD:     *resumeFD,
		Build:        build,
		Args:         again,
	})
}
