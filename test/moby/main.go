// Moby runs moby's own integration tests, of a checkout of github.com/moby/moby that the user has, against a host of
// ours, and prints how many pass, package by package. Nothing of moby is in this repository: the tests are built where
// they are and run from outside, through DOCKER_HOST, as its makers run them against a remote daemon.
//
//	go run ./test/moby -moby ~/src/moby container image volume system
//	go run ./test/moby -moby ~/src/moby -cli ~/bin/docker-25.0.5 DockerAPISuite DockerCLIRunSuite
//
// The second line runs suites of its command-line tests, with the docker command that moby itself takes for them.
//
// The images that the tests want are made here out of busybox (a static one must be installed) and a program of our
// own, as no registry is needed; debian:trixie-slim is taken from -debian.
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
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
)

// options are what the command line says.
type options struct {
	moby, bin, daemon, debian, out, run, cli string
	local                                    bool
	timeout                                  time.Duration
	packages                                 []string
}

func main() {
	var o options
	flag.StringVar(&o.moby, "moby", "", "a checkout of github.com/moby/moby")
	flag.StringVar(&o.bin, "bin", "bin", "folder of Sampan's programs")
	flag.StringVar(&o.daemon, "daemon", "", "another daemon to test, such as /usr/sbin/dockerd; empty: sampand")
	flag.StringVar(&o.debian, "debian", "", "tar of a Debian root file system with gcc, libc6-dev and libcap2-bin; empty: busybox under its name")
	flag.StringVar(&o.out, "out", "", "folder for what the tests print and their programs, which are built unless it has them; empty: a new one")
	flag.StringVar(&o.run, "run", ".", "run only tests that match this regular expression")
	flag.StringVar(&o.cli, "cli", "docker", "the docker command of the command-line tests")
	flag.BoolVar(&o.local, "local", false, "run also what the tests skip with a remote daemon; what starts a dockerd of its own then fails")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Minute, "the longest that one package may take")
	flag.Parse()
	if o.packages = flag.Args(); len(o.packages) == 0 {
		o.packages = []string{"container", "image", "volume", "system"}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "moby:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	switch {
	case os.Getuid() != 0:
		return errors.New("hosts are network namespaces: run it as root")
	case o.moby == "":
		return errors.New("-moby must name a checkout of github.com/moby/moby")
	}
	if o.out == "" {
		if o.out, err = os.MkdirTemp("", "moby-"); err != nil {
			return err
		}
	} else if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	if o.out, err = filepath.Abs(o.out); err != nil {
		return err
	}
	for _, pkg := range o.packages {
		if err := build(ctx, o, pkg); err != nil {
			return err
		}
	}
	archive, err := images(ctx, o.debian)
	if err != nil {
		return err
	}
	lab, err := testhost.NewLab(ctx, 1, testhost.Options{Binaries: o.bin, Daemon: o.daemon})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close(ctx)) }()
	host := lab.Hosts[0]
	if err := host.Start(ctx); err != nil {
		return err
	}
	if _, err := host.DockerInput(ctx, archive, "load"); err != nil {
		return err
	}
	var all []score
	for _, pkg := range o.packages {
		s, err := test(ctx, o, host, pkg)
		if err != nil {
			return fmt.Errorf("%s: %w", pkg, err)
		}
		fmt.Println(s)
		all = append(all, s)
	}
	log, _ := os.ReadFile(host.LogPath())
	_ = os.WriteFile(filepath.Join(o.out, "daemon.log"), log, 0o644)
	fmt.Printf("%s\nWhat the tests printed is in %s.\n", table(all), o.out)
	return nil
}

// program is where the test program of a package is.
func (o *options) program(pkg string) string {
	if isSuite(pkg) {
		pkg = cliTests
	}
	return filepath.Join(o.out, strings.ReplaceAll(pkg, "/", "-")+".test")
}

func (o *options) source(pkg string) string {
	if isSuite(pkg) {
		return filepath.Join(o.moby, cliTests)
	}
	return filepath.Join(o.moby, "integration", pkg)
}

// build makes a package's test program, unless -out has it.
func build(ctx context.Context, o options, pkg string) error {
	out := o.program(pkg)
	if _, err := os.Stat(out); err == nil {
		return nil
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", out, ".")
	cmd.Dir = o.source(pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the tests of %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// test runs a package's tests to the end: where a test takes its program down with it, the rest is run without it.
func test(ctx context.Context, o options, host *testhost.Host, pkg string) (score, error) {
	s := newScore(pkg)
	program := o.program(pkg)
	out, err := os.Create(filepath.Join(o.out, strings.ReplaceAll(pkg, "/", "-")+".txt"))
	if err != nil {
		return s, err
	}
	defer out.Close()
	for {
		args := []string{"--net=" + host.NetNS, program, "-test.v", "-test.run=" + pattern(pkg, o.run), "-test.timeout=" + o.timeout.String()}
		if skip := s.finished(); skip != "" {
			args = append(args, "-test.skip="+skip)
		}
		cmd := exec.CommandContext(ctx, "nsenter", args...)
		cmd.Dir = o.source(pkg)
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+host.DockerHost())
		if !o.local {
			cmd.Env = append(cmd.Env, "DOCKER_REMOTE_DAEMON=1")
		}
		if isSuite(pkg) {
			cmd.Env = append(cmd.Env, cliEnviron(&o, host.Dir)...)
		} else {
			cmd.Env = append(cmd.Env, "DOCKER_CONFIG="+host.Dir)
		}
		if o.daemon != "" { // only Sampan and newer Dockers keep images as containerd does
			cmd.Env = append(cmd.Env, "TEST_INTEGRATION_USE_GRAPHDRIVER=1")
		}
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			return s, err
		}
		cmd.Stderr = cmd.Stdout
		if err := cmd.Start(); err != nil {
			return s, err
		}
		crashed, err := s.read(pipe, out)
		if err != nil {
			return s, err
		}
		err = cmd.Wait()
		if ctx.Err() != nil {
			return s, ctx.Err()
		}
		if !crashed {
			var failed *exec.ExitError
			if err != nil && !errors.As(err, &failed) {
				return s, err
			}
			return s, nil
		}
	}
}
