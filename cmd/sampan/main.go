// Command sampan is the docker command, taken whole, with verbs of its own beside it. Without being told otherwise it
// speaks to the sampand of this host.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli-plugins/manager"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/commands"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/flags"
	dockerversion "github.com/docker/cli/cli/version"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

// Set by the linker; built is the time of the commit in RFC 3339.
var version, commit, built = "dev", "unknown", ""

// defaultHost is where a host's sampand listens.
const defaultHost = "unix:///run/sampan/sampan.sock"

func main() { os.Exit(run()) }

// run executes the command line and returns the program's exit code.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := execute(ctx)
	interrupted := ctx.Err() != nil
	switch {
	case err == nil:
		return 0
	case interrupted && (errdefs.IsCanceled(err) || errors.Is(err, context.Canceled)):
		return 130
	}
	if msg := explain(err); msg != "" {
		fmt.Fprintln(os.Stderr, msg)
	}
	var status cli.StatusError
	if errors.As(err, &status) && status.StatusCode != 0 {
		return status.StatusCode
	}
	return 1
}

// explain adds what to do where docker's words leave a user alone: nobody listens where the daemon should be.
func explain(err error) string {
	msg := err.Error()
	if strings.Contains(msg, "failed to connect to the docker API") || strings.Contains(msg, "Is the docker daemon running?") {
		msg += "\nIs sampand running? Start it with `systemctl start sampand`, or `sampand` as root. -H or SAMPAN_HOST names another host."
	}
	return msg
}

func execute(ctx context.Context) error {
	dockerversion.Version, dockerversion.GitCommit, dockerversion.PlatformName, dockerversion.BuildTime = version, commit, "Sampan", built
	docker, err := command.NewDockerCli(command.WithBaseContext(ctx))
	if err != nil {
		return err
	}
	logrus.SetOutput(docker.Err())

	root, opts := newRoot(docker)
	top := cli.NewTopLevelCommand(root, docker, opts, root.Flags())
	cmd, args, err := top.HandleGlobalFlags()
	if err != nil {
		return err
	}
	chooseHost(opts, os.Getenv, configuredContext(docker, opts))
	if err := top.Initialize(); err != nil {
		return err
	}
	if len(args) > 0 {
		if _, _, err := cmd.Find(args); err != nil {
			if ran, err := runPlugin(docker, opts, cmd, args[0]); ran {
				return err
			}
		}
	}
	go func() { // a third signal ends a command that does not heed the first
		<-ctx.Done()
		more := make(chan os.Signal, 2)
		signal.Notify(more, syscall.SIGTERM, syscall.SIGINT)
		<-more
		<-more
		docker.In().RestoreTerminal()
		os.Exit(130)
	}()
	cmd.SetArgs(args)
	return cmd.ExecuteContext(ctx)
}

// newRoot returns the command tree: docker's, and Sampan's own verbs.
func newRoot(docker *command.DockerCli) (*cobra.Command, *flags.ClientOptions) {
	root := &cobra.Command{
		Use:           "sampan [OPTIONS] COMMAND [ARG...]",
		Short:         "Ordinary Linux hosts as one microservice cloud: Docker's commands, and Sampan's own",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version + ", build " + commit,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return command.ShowHelp(docker.Err())(cmd, args)
			}
			return fmt.Errorf("sampan: unknown command: sampan %s\n\nRun 'sampan --help' for more information", args[0])
		},
		TraverseChildren:      true,
		DisableFlagsInUseLine: true,
		CompletionOptions:     cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetIn(docker.In())
	root.SetOut(docker.Out())
	root.SetErr(docker.Err())
	opts, _ := cli.SetupRootCommand(root)
	root.SetVersionTemplate("Sampan version {{.Version}}\n")
	root.Annotations["additionalHelp"] = "The daemon is sampand. SAMPAN_HOST names the one to speak to, before DOCKER_HOST; the default is\n" + defaultHost + ".\n"
	root.Flags().BoolP("version", "v", false, "Print version information and quit")
	commands.AddCommands(root, docker)
	root.AddCommand(newDoctorCommand(), newComposeCommand(docker))
	for _, c := range root.Commands() {
		switch c.Name() {
		case "version":
			c.Short = "Show the versions of this command and of the daemon"
		case "system":
			c.Short = "Manage the daemon and its host"
		case "bake", "checkpoint": // sampand has no such thing
			c.Hidden = true
		}
	}
	return root, opts
}

// configuredContext returns the context that docker's configuration or environment chooses, "" for none.
func configuredContext(docker *command.DockerCli, opts *flags.ClientOptions) string {
	if opts.Context != "" {
		return opts.Context
	}
	if name := os.Getenv("DOCKER_CONTEXT"); name != "" {
		return name
	}
	if opts.ConfigDir != "" {
		config.SetDir(opts.ConfigDir)
	}
	return docker.ConfigFile().CurrentContext
}

// chooseHost names the daemon to speak to: the one of -H, of SAMPAN_HOST, of DOCKER_HOST, of the context, or this
// host's, in this order.
func chooseHost(opts *flags.ClientOptions, getenv func(string) string, context string) {
	if len(opts.Hosts) > 0 || opts.Context != "" {
		return
	}
	switch host := getenv("SAMPAN_HOST"); {
	case host != "":
		opts.Hosts = []string{host}
	case getenv("DOCKER_HOST") != "":
	case context != "" && context != "default":
	default:
		opts.Hosts = []string{defaultHost}
	}
}

// runPlugin runs one of docker's CLI plugins, such as compose, if name is one. The plugin finds the daemon by the
// environment.
func runPlugin(docker *command.DockerCli, opts *flags.ClientOptions, root *cobra.Command, name string) (ran bool, err error) {
	plugin, err := manager.PluginRunCommand(docker, name, root)
	if err != nil {
		return false, nil //nolint:nilerr // no such plugin: the root command says that there is no such command
	}
	if len(opts.Hosts) > 0 {
		plugin.Env = append(plugin.Env, "DOCKER_HOST="+opts.Hosts[0])
	}
	err = plugin.Run()
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return true, cli.StatusError{StatusCode: exit.ExitCode()}
	}
	return true, err
}
