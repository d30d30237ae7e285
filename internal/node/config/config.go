package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sampan-cloud/sampan/internal/build"
	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// Config is everything that can be set about a daemon, checked by Validate. The names of flags and of keys in the
// configuration file are dockerd's. It has a field for each of them, which is why it is long.
type Config struct {
	Hosts        []string // where the API listens: unix://PATH, tcp://ADDR:PORT, fd:// is not offered
	DataRoot     string   // what outlives a boot: images, containers, volumes, networks, the cluster's state
	ExecRoot     string   // what does not: sockets, pinned namespaces, mounts
	PidFile      string
	LogLevel     string // debug, info, warn, error; dockerd's trace, fatal and panic too
	LogFormat    string // text, json
	Debug        bool
	Labels       []string // KEY=VALUE
	BIP          string   // address and prefix of the default bridge, "" for 172.17.0.1/16 or the next free
	FixedCIDR    string
	Pools        []AddressPool // where subnets of local networks come from
	MTU          int           // of local networks, 0: 1500
	Network      Network
	Insecure     []string // registries spoken to over plain HTTP or with unknown certificates
	Mirrors      []string // of docker.io
	CertDirs     []string // folders with a folder of certificates for each registry that has its own
	CgroupParent string   // "/sampan"
	Generic      []string // KIND=NUMBER or KIND=NAME: resources that this host has as a node of a cluster
	UsernsRemap  string   // whose IDs containers' are on the host: "default", USER[:GROUP], UID[:GID]; "": the host's
	Userns       string   // "auto": a range of IDs for each container; "" or "host": the host's
	Group        string   // owner of the unix socket
	TLS          *bool    // nil: as TLSVerify says
	TLSVerify    bool
	TLSCACert    string
	TLSCert      string
	TLSKey       string
	LogDriver    string
	LogOpts      map[string]string
	CDISpecDirs  []string // folders with descriptions of devices
	Defaults     container.Defaults
	// SeccompProfile is the path of that among the defaults, or "unconfined"; "": this program's own.
	SeccompProfile string
	Limits         image.Limits // of the traffic with registries
	Proxies        Proxies
	BuildSettings  build.Settings
	Features       map[string]bool // dockerd's; they change nothing
	SwarmAdvertise string          // address that a cluster is told of this host if nobody names another
	MetricsAddr    string          // ADDRESS:PORT of a listener for metrics alone, "" for none
	Keeper         string          // path of sampan-keeper, "" for the one beside this program
	Init           string          // path of sampan-init, "" for the one beside this program
	Builder        string          // path of sampan-builder, "" for the one beside this program
	BuilderIdle    time.Duration   // how long one without work is kept, 0: the default
	ProxyEnviron   []string        // of the builder: HTTP_PROXY=… and the like
	// Proxy chooses the proxy that a registry is reached by; nil: none.
	Proxy      func(*http.Request) (*url.URL, error)
	Failpoints string // for test hosts: NAME=ACTION,…
	Version    string
	Commit     string
	Built      string // when, in RFC 3339; "" if the build does not say
	// Notes say what of the configuration has no effect.
	Notes []string

	file map[string]json.RawMessage // what the configuration file says
}

// AddressPool is a pool of subnets: Base is cut into subnets of Size bits.
type AddressPool struct {
	Base netip.Prefix
	Size int
}

// Default is the configuration of a daemon that is started without flags.
func Default() Config {
	return Config{
		Hosts: []string{"unix:///run/sampan/sampan.sock"}, DataRoot: "/var/lib/sampan", ExecRoot: "/run/sampan",
		CertDirs: []string{"/etc/sampan/certs.d", "/etc/docker/certs.d"},
		PidFile:  "/run/sampan/sampand.pid", LogLevel: "info", LogFormat: "text", CgroupParent: "/sampan", LogDriver: "json-file",
		Network: defaultNetwork(),
	}
}

// Validate checks the configuration and makes its paths absolute.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fault.New(fault.InvalidArgument, format, args...))
	}
	for _, p := range []*string{&c.DataRoot, &c.ExecRoot} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			bad("folder %q: %v", *p, err)
		}
		*p = abs
	}
	if c.DataRoot == c.ExecRoot {
		bad("--data-root and --exec-root are both %s: give each a folder of its own", c.DataRoot)
	}
	if len(c.Hosts) == 0 {
		bad("no --host: give at least one, for example unix:///run/sampan/sampan.sock")
	}
	for _, h := range c.Hosts {
		scheme, addr, ok := strings.Cut(h, "://")
		switch {
		case !ok:
			bad("--host %q: want unix://PATH or tcp://ADDRESS:PORT", h)
		case scheme == "unix" && !filepath.IsAbs(addr):
			bad("--host %q: the path must be absolute", h)
		case scheme == "unix" && len(addr) > 107:
			bad("--host %q: a socket's path has at most 107 bytes", h)
		case scheme == "unix":
		case scheme == "tcp":
			if _, _, err := net.SplitHostPort(addr); err != nil {
				bad("--host %q: %v", h, err)
			}
			if !c.TLSVerify || c.TLSCACert == "" || c.TLSCert == "" || c.TLSKey == "" {
				bad("--host %q: whoever reaches this port rules the host, so it needs --tlsverify with --tlscacert, --tlscert and --tlskey", h)
			}
		default:
			bad("--host %q: %s is not offered, want unix:// or tcp://", h, scheme)
		}
	}
	if c.MetricsAddr != "" {
		if _, _, err := net.SplitHostPort(c.MetricsAddr); err != nil {
			bad("--metrics-addr %q: want ADDRESS:PORT, for example 127.0.0.1:9323", c.MetricsAddr)
		}
	}
	if _, ok := logLevels[strings.ToLower(c.LogLevel)]; !ok {
		bad("--log-level %q: want debug, info, warn or error", c.LogLevel)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		bad("--log-format %q: want text or json", c.LogFormat)
	}
	if c.TLS != nil {
		switch {
		case *c.TLS && !c.TLSVerify && c.isSet("tlsverify"):
			bad("--tls with --tlsverify=false: whoever reaches the port would rule the host")
		case *c.TLS:
			c.TLSVerify = true
		}
	}
	for _, err := range []error{c.Defaults.Validate(), c.Limits.Validate(), image.CheckRegistries(c.Mirrors, c.Insecure)} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if err := container.CheckLog(container.LogConfig{Driver: c.LogDriver, Options: c.LogOpts}); err != nil {
		bad("--log-driver, --log-opt: %w", err)
	}
	labels := map[string]string{}
	for _, l := range c.Labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			bad("--label %q: want KEY=VALUE", l)
		}
		if other, twice := labels[k]; twice && other != v {
			bad("--label: conflict labels for %s=%s and %s=%s", k, v, k, other)
		}
		labels[k] = v
	}
	if _, err := cloud.ParseGenericResources(c.Generic); err != nil {
		bad("--node-generic-resource: %w", err)
	}
	if c.BIP != "" {
		if p, err := netip.ParsePrefix(c.BIP); err != nil {
			bad("--bip %q: want an address with its prefix, for example 172.17.0.1/16", c.BIP)
		} else if p.Masked().Addr() == p.Addr() {
			bad("--bip %q: this is the network's own address: give the bridge one inside it, for example %s/%d", c.BIP, p.Addr().Next(), p.Bits())
		}
	}
	if c.FixedCIDR != "" {
		if _, err := netip.ParsePrefix(c.FixedCIDR); err != nil {
			bad("--fixed-cidr %q: %v", c.FixedCIDR, err)
		}
	}
	if c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535) {
		bad("--mtu %d: want 68 to 65535", c.MTU)
	}
	c.Network.validate(c.BIP, bad)
	for _, p := range c.Pools {
		if p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen()-2 {
			bad("--default-address-pool base=%s,size=%d: size must be between %d and %d", p.Base, p.Size, p.Base.Bits(), p.Base.Addr().BitLen()-2)
		}
	}
	if c.Userns != "" && c.Userns != "host" && c.Userns != "auto" {
		bad("--userns %q: want auto or host", c.Userns)
	}
	if c.Userns == "auto" && c.UsernsRemap != "" {
		bad("--userns=auto and --userns-remap=%s: choose one", c.UsernsRemap)
	}
	if !strings.HasPrefix(c.CgroupParent, "/") || strings.Contains(c.CgroupParent, "..") {
		bad("--cgroup-parent %q: want an absolute path in the hierarchy, for example /sampan", c.CgroupParent)
	}
	return errors.Join(errs...)
}

// logLevels are the levels of the log, with those that dockerd has besides.
var logLevels = map[string]slog.Level{"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn,
	"error": slog.LevelError, "fatal": slog.LevelError, "panic": slog.LevelError}

// Level is from which level on the daemon logs.
func (c *Config) Level() slog.Level {
	if c.Debug {
		return slog.LevelDebug
	}
	return logLevels[strings.ToLower(c.LogLevel)]
}

// CheckFiles looks at what the configuration names and a start would need: certificates, the socket's group, programs.
func (c *Config) CheckFiles() error {
	var errs []error
	if slices.ContainsFunc(c.Hosts, func(h string) bool { return strings.HasPrefix(h, "tcp://") }) {
		_, err := c.ServerTLS()
		errs = append(errs, err)
	}
	if c.Group != "" {
		_, err := user.LookupGroup(c.Group)
		errs = append(errs, err)
	}
	for _, p := range [][2]string{{"--init-path", c.Init}, {"--keeper", c.Keeper}, {"--builder", c.Builder}} {
		if p[1] != "" {
			if _, err := os.Stat(p[1]); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p[0], err))
			}
		}
	}
	if _, err := c.UserNS(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// isSet reports whether the configuration file has the key.
func (c *Config) isSet(name string) bool { return c.file[name] != nil }

// ParseAddressPool reads base=CIDR,size=BITS, the form of --default-address-pool.
func ParseAddressPool(text string) (AddressPool, error) {
	var p AddressPool
	for field := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		var err error
		switch key {
		case "base":
			p.Base, err = netip.ParsePrefix(value)
			p.Base = p.Base.Masked()
		case "size":
			_, err = fmt.Sscanf(value, "%d", &p.Size)
		default:
			err = errors.New("want base=CIDR,size=BITS")
		}
		if err != nil {
			return p, fault.New(fault.InvalidArgument, "address pool %q: %w", text, err)
		}
	}
	if !p.Base.IsValid() || p.Size == 0 {
		return p, fault.New(fault.InvalidArgument, "address pool %q: want base=CIDR,size=BITS", text)
	}
	return p, nil
}
