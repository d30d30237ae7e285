// Sampand is the daemon of a Sampan host: the Docker Engine API, the container engine, its networks, and the host's part
// in a cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/net/http/httpproxy"

	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/node"
	"github.com/sampan-cloud/sampan/internal/node/config"
	"github.com/sampan-cloud/sampan/internal/sys/stackdump"
)

// Set by the linker; built is the time of the commit in RFC 3339.
var version, commit, built = "dev", "unknown", ""

const defaultConfigFile = "/etc/sampan/daemon.json"

// Libraries that change a thread's namespaces or working folder take whichever thread they are on. The main thread cannot
// be thrown away afterwards, and /proc/self shows it as the whole process: it is kept for the main goroutine, which does
// nothing of the kind.
func init() { runtime.LockOSThread() }

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "sampand:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	cfg := config.Default()
	cfg.Version, cfg.Commit, cfg.Built = version, commit, built
	cfg.Network.LinkEnv = os.Getenv("DOCKER_KEEP_DEPRECATED_LEGACY_LINKS_ENV_VARS") == "1" // dockerd's name for it
	var file string
	var pools, options []string
	var others []*keyFlag
	var validate bool
	// load is the configuration by the command line and the file as it is now.
	load := func(cmd *cobra.Command) (config.Config, error) {
		c := cfg
		c.Network.DefaultOptions = nil
		for _, text := range pools {
			p, err := config.ParseAddressPool(text)
			if err != nil {
				return c, err
			}
			c.Pools = append(c.Pools, p)
		}
		for _, text := range options {
			if err := c.Network.ParseDefaultOption(text); err != nil {
				return c, err
			}
		}
		if err := lay(&c, others); err != nil {
			return c, err
		}
		err := c.ReadFile(file, cmd.Flags().Changed)
		if errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config-file") {
			err = nil
		}
		return c, errors.Join(err, c.Validate()) // everything that is wrong, at once
	}
	cmd := &cobra.Command{
		Use:                   "sampand [OPTIONS]",
		DisableFlagsInUseLine: true,
		Short:                 "The daemon of a Sampan host",
		Long:                  "Sampand runs containers and services on this host and serves the Docker Engine API.\nPoint the docker command at it: DOCKER_HOST=unix:///run/sampan/sampan.sock",
		Args:                  cobra.NoArgs,
		Version:               version + ", build " + commit,
		SilenceUsage:          true,
		SilenceErrors:         true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load(cmd)
			if err != nil {
				return err
			}
			if validate {
				if err := c.CheckFiles(); err != nil {
					return err
				}
				for _, note := range c.Notes {
					cmd.PrintErrln("warning:", note)
				}
				cmd.PrintErrln("configuration OK")
				return nil
			}
			return run(c, func() (config.Config, error) { return load(cmd) })
		},
	}
	f := cmd.Flags()
	f.SortFlags = true
	f.StringArrayVarP(&cfg.Hosts, "host", "H", cfg.Hosts, "where the API listens: unix://PATH, or tcp://ADDRESS:PORT with TLS")
	f.StringVar(&cfg.DataRoot, "data-root", cfg.DataRoot, "folder of what outlives a boot: images, containers, volumes, cluster state")
	f.StringVar(&cfg.ExecRoot, "exec-root", cfg.ExecRoot, "folder of what does not: sockets, pinned namespaces, mounts")
	f.StringVarP(&cfg.PidFile, "pidfile", "p", cfg.PidFile, "file for the daemon's process ID")
	f.StringVar(&file, "config-file", defaultConfigFile, "JSON file with dockerd's keys")
	f.BoolVar(&validate, "validate", false, "check the configuration and exit")
	f.StringVar(&cfg.LogFormat, "log-format", cfg.LogFormat, `"text" or "json"`)
	f.StringVar(&cfg.Proxies.HTTP, "http-proxy", "", "proxy for registries that are spoken to by HTTP")
	f.StringVar(&cfg.Proxies.HTTPS, "https-proxy", "", "proxy for registries that are spoken to by HTTPS")
	f.StringVar(&cfg.Proxies.No, "no-proxy", "", "hosts that are reached without a proxy, separated by commas")
	f.StringVarP(&cfg.LogLevel, "log-level", "l", cfg.LogLevel, `"debug", "info", "warn" or "error"`)
	f.BoolVarP(&cfg.Debug, "debug", "D", false, "log at level debug")
	f.StringArrayVar(&cfg.Labels, "label", nil, "KEY=VALUE label of this host; placement sees it as engine.labels.KEY")
	f.StringVar(&cfg.BIP, "bip", "", "address and prefix of the default bridge, such as 172.17.0.1/16")
	f.StringVar(&cfg.FixedCIDR, "fixed-cidr", "", "part of the default bridge's subnet that containers get addresses from")
	f.StringArrayVar(&pools, "default-address-pool", nil, "base=CIDR,size=BITS pool that subnets of local networks are cut from")
	networkFlags(f, &cfg.Network, &options)
	others = keyFlags(f)
	f.IntVar(&cfg.MTU, "mtu", 0, "MTU of local networks")
	f.StringArrayVar(&cfg.Insecure, "insecure-registry", nil, "registry (HOST[:PORT] or CIDR) spoken to without verified TLS")
	f.StringArrayVar(&cfg.Mirrors, "registry-mirror", nil, "mirror of the default registry")
	f.StringVar(&cfg.CgroupParent, "cgroup-parent", cfg.CgroupParent, "control group above all containers")
	f.StringVar(&cfg.UsernsRemap, "userns-remap", "", "whose subordinate IDs containers' users have on the host: default, USER[:GROUP] or UID[:GID]")
	f.StringVar(&cfg.Userns, "userns", "", `"auto": each container's users have IDs of their own on the host; "host": the host's`)
	f.StringVarP(&cfg.Group, "group", "G", "", "group that may use the unix socket")
	f.BoolVar(&cfg.TLSVerify, "tlsverify", false, "ask clients of tcp:// for a certificate")
	f.StringVar(&cfg.TLSCACert, "tlscacert", "", "certificates that sign clients")
	f.StringVar(&cfg.TLSCert, "tlscert", "", "the daemon's certificate")
	f.StringVar(&cfg.TLSKey, "tlskey", "", "the daemon's key")
	f.StringVar(&cfg.LogDriver, "log-driver", cfg.LogDriver, "log driver of containers that choose none")
	f.StringToStringVar(&cfg.LogOpts, "log-opt", nil, "option of that log driver")
	f.StringArrayVar(&cfg.Generic, "node-generic-resource", nil, "resource of this host as a node of a cluster, KIND=NUMBER or KIND=NAME")
	f.StringArrayVar(&cfg.CDISpecDirs, "cdi-spec-dir", nil, "folder with CDI descriptions of devices (default /etc/cdi and /var/run/cdi)")
	f.StringVar(&cfg.MetricsAddr, "metrics-addr", "", "ADDRESS:PORT that serves /metrics in Prometheus' form, as the API's socket does")
	f.StringVar(&cfg.Keeper, "keeper", "", "path of sampan-keeper (default: beside this program)")
	f.StringVar(&cfg.Init, "init-path", "", "path of sampan-init, which --init puts into containers (default: beside this program)")
	f.StringVar(&cfg.Builder, "builder", "", "path of sampan-builder, which builds images (default: beside this program)")
	f.DurationVar(&cfg.BuilderIdle, "builder-idle", 0, "how long a builder without work is kept")
	_ = f.MarkHidden("builder-idle")
	f.StringVar(&cfg.Failpoints, "failpoint", "", "break on purpose: NAME=fail|kill|stop,…")
	_ = f.MarkHidden("failpoint")
	return cmd
}

// run runs the daemon until it is told to end. reload reads the configuration again.
func run(cfg config.Config, reload func() (config.Config, error)) error {
	if os.Getuid() != 0 {
		return errors.New("not root: namespaces, mounts and networks need root: run it with sudo or as a systemd service")
	}
	setProxy(cfg.Proxies)
	cfg.Proxy, cfg.ProxyEnviron = takeProxy()
	level := new(slog.LevelVar)
	level.Set(cfg.Level())
	how := &slog.HandlerOptions{Level: level}
	log := slog.New(slog.NewTextHandler(os.Stderr, how))
	if cfg.LogFormat == "json" {
		log = slog.New(slog.NewJSONHandler(os.Stderr, how))
	}
	image.BridgeLibraries(log)
	stackdump.OnSignal(cfg.ExecRoot, "sampand", log)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	n, err := node.New(ctx, cfg, log)
	if err != nil {
		return err
	}
	go func() {
		for range hangup {
			log.Info("signal to reload the configuration")
			next, err := reload()
			var later []string
			if err == nil {
				later, err = n.Reload(next)
			}
			if err != nil {
				log.Error("the configuration is not reloaded, nothing has changed", "error", err)
				continue
			}
			level.Set(next.Level())
			if len(later) > 0 {
				log.Warn("changed keys of the configuration need a restart of the daemon", "keys", strings.Join(later, ", "))
			}
			log.Info("configuration reloaded")
		}
	}()
	return n.Run(ctx)
}

// setProxy puts configured proxies in the place of those in the environment.
func setProxy(p config.Proxies) {
	for name, value := range map[string]string{"HTTP_PROXY": p.HTTP, "HTTPS_PROXY": p.HTTPS, "NO_PROXY": p.No} {
		if value != "" {
			_ = os.Setenv(name, value)
			_ = os.Setenv(strings.ToLower(name), value)
		}
	}
}

// takeProxy reads the proxy for registries from the environment and removes it there: hosts of a cluster speak to each
// other directly, and some libraries would take it for that too. environ is what it took.
func takeProxy() (_ func(*http.Request) (*url.URL, error), environ []string) {
	choose := httpproxy.FromEnvironment().ProxyFunc()
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"} {
		for _, name := range []string{name, strings.ToLower(name)} {
			if value, ok := os.LookupEnv(name); ok {
				environ = append(environ, name+"="+value)
				_ = os.Unsetenv(name)
			}
		}
	}
	return func(r *http.Request) (*url.URL, error) { return choose(r.URL) }, environ
}
