package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// Config is everything that can be set about a daemon, checked by Validate. The names of flags and of keys in the
// configuration file are dockerd's. It has a field for each of them, which is why it is long.
type Config struct {
	Hosts        []string // where the API listens: unix://PATH, tcp://ADDR:PORT, fd:// is not offered
	DataRoot     string   // what outlives a boot: images, containers, volumes, networks, the cluster's state
	ExecRoot     string   // what does not: sockets, pinned namespaces, mounts
	PidFile      string
	LogLevel     string // debug, info, warn, error
	Debug        bool
	Labels       []string // KEY=VALUE
	BIP          string   // address and prefix of the default bridge, "" for 172.17.0.1/16 or the next free
	FixedCIDR    string
	Pools        []AddressPool // where subnets of local networks come from
	MTU          int           // of local networks, 0: 1500
	Network      NetworkConfig
	Insecure     []string // registries spoken to over plain HTTP or with unknown certificates
	Mirrors      []string // of docker.io
	CertDirs     []string // folders with a folder of certificates for each registry that has its own
	CgroupParent string   // "/sampan"
	Generic      []string // KIND=NUMBER or KIND=NAME: resources that this host has as a node of a cluster
	UsernsRemap  string   // whose IDs containers' are on the host: "default", USER[:GROUP], UID[:GID]; "": the host's
	Userns       string   // "auto": a range of IDs for each container; "" or "host": the host's
	Group        string   // owner of the unix socket
	TLSVerify    bool
	TLSCACert    string
	TLSCert      string
	TLSKey       string
	LogDriver    string
	LogOpts      map[string]string
	CDISpecDirs  []string      // folders with descriptions of devices
	MetricsAddr  string        // ADDRESS:PORT of a listener for metrics alone, "" for none
	Keeper       string        // path of sampan-keeper, "" for the one beside this program
	Init         string        // path of sampan-init, "" for the one beside this program
	Builder      string        // path of sampan-builder, "" for the one beside this program
	BuilderIdle  time.Duration // how long one without work is kept, 0: the default
	ProxyEnviron []string      // of the builder: HTTP_PROXY=… and the like
	// Proxy chooses the proxy that a registry is reached by; nil: none.
	Proxy      func(*http.Request) (*url.URL, error)
	Failpoints string // for test hosts: NAME=ACTION,…
	Version    string
	Commit     string
	Built      string // when, in RFC 3339; "" if the build does not say
}

// AddressPool is a pool of subnets: Base is cut into subnets of Size bits.
type AddressPool struct {
	Base netip.Prefix
	Size int
}

// DefaultConfig is the configuration of a daemon that is started without flags.
func DefaultConfig() Config {
	return Config{
		Hosts: []string{"unix:///run/sampan/sampan.sock"}, DataRoot: "/var/lib/sampan", ExecRoot: "/run/sampan",
		CertDirs: []string{"/etc/sampan/certs.d", "/etc/docker/certs.d"},
		PidFile:  "/run/sampan/sampand.pid", LogLevel: "info", CgroupParent: "/sampan", LogDriver: "json-file",
		Network: defaultNetworkConfig(),
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
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		bad("--log-level %q: want debug, info, warn or error", c.LogLevel)
	}
	for _, l := range c.Labels {
		if k, _, ok := strings.Cut(l, "="); !ok || k == "" {
			bad("--label %q: want KEY=VALUE", l)
		}
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

// configFile is the JSON of --config-file, with dockerd's keys. It has a field for each key, which is why it is long.
type configFile struct {
	networkFile
	Hosts        []string          `json:"hosts"`
	DataRoot     *string           `json:"data-root"`
	ExecRoot     *string           `json:"exec-root"`
	PidFile      *string           `json:"pidfile"`
	LogLevel     *string           `json:"log-level"`
	Debug        *bool             `json:"debug"`
	Labels       []string          `json:"labels"`
	BIP          *string           `json:"bip"`
	FixedCIDR    *string           `json:"fixed-cidr"`
	MTU          *int              `json:"mtu"`
	Insecure     []string          `json:"insecure-registries"`
	Mirrors      []string          `json:"registry-mirrors"`
	CgroupParent *string           `json:"cgroup-parent"`
	Generic      []string          `json:"node-generic-resources"`
	UsernsRemap  *string           `json:"userns-remap"`
	Userns       *string           `json:"userns"`
	Group        *string           `json:"group"`
	TLSVerify    *bool             `json:"tlsverify"`
	TLSCACert    *string           `json:"tlscacert"`
	TLSCert      *string           `json:"tlscert"`
	TLSKey       *string           `json:"tlskey"`
	LogDriver    *string           `json:"log-driver"`
	MetricsAddr  *string           `json:"metrics-addr"`
	CDISpecDirs  []string          `json:"cdi-spec-dirs"`
	Init         *string           `json:"init-path"`
	LogOpts      map[string]string `json:"log-opts"`
	Pools        []struct {
		Base string `json:"base"`
		Size int    `json:"size"`
	} `json:"default-address-pools"`
}

// fileFlags gives, for each key that can stand in the file and on the command line, the flag's name.
var fileFlags = map[string]string{"hosts": "host", "labels": "label", "insecure-registries": "insecure-registry",
	"registry-mirrors": "registry-mirror", "default-address-pools": "default-address-pool", "log-opts": "log-opt", "cdi-spec-dirs": "cdi-spec-dir", "node-generic-resources": "node-generic-resource",
	"dns-opts":         "dns-opt",
	"host-gateway-ips": "host-gateway-ip", "default-network-opts": "default-network-opt"}

// ReadFile lays the configuration file at path under what the command line said: flagged reports whether a flag was
// given. A key that is given in both places is refused, as dockerd does; so is a key that is unknown.
func (c *Config) ReadFile(path string, flagged func(name string) bool) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(strings.TrimSpace(string(text))) == 0 {
		return nil // nothing is configured: /dev/null, say
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &keys); err != nil {
		return fault.New(fault.InvalidArgument, "configuration file %s: %w", path, err)
	}
	var both []string
	for key := range keys {
		flag := key
		if f, ok := fileFlags[key]; ok {
			flag = f
		}
		if flagged(flag) {
			both = append(both, key)
		}
	}
	if len(both) > 0 {
		slices.Sort(both)
		return fault.New(fault.InvalidArgument, "configuration file %s: given as a flag and in the file: %s: keep one", path, strings.Join(both, ", "))
	}
	var f configFile
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return fault.New(fault.InvalidArgument, "configuration file %s: %w", path, err)
	}
	set(&c.DataRoot, f.DataRoot)
	set(&c.ExecRoot, f.ExecRoot)
	set(&c.PidFile, f.PidFile)
	set(&c.LogLevel, f.LogLevel)
	set(&c.Debug, f.Debug)
	set(&c.BIP, f.BIP)
	set(&c.FixedCIDR, f.FixedCIDR)
	set(&c.MTU, f.MTU)
	set(&c.CgroupParent, f.CgroupParent)
	set(&c.UsernsRemap, f.UsernsRemap)
	set(&c.Userns, f.Userns)
	set(&c.Group, f.Group)
	set(&c.TLSVerify, f.TLSVerify)
	set(&c.TLSCACert, f.TLSCACert)
	set(&c.TLSCert, f.TLSCert)
	set(&c.TLSKey, f.TLSKey)
	set(&c.LogDriver, f.LogDriver)
	set(&c.MetricsAddr, f.MetricsAddr)
	if f.CDISpecDirs != nil {
		c.CDISpecDirs = f.CDISpecDirs
	}
	set(&c.Init, f.Init)
	c.Network.lay(&f.networkFile)
	if f.Hosts != nil {
		c.Hosts = f.Hosts
	}
	if f.LogOpts != nil {
		c.LogOpts = f.LogOpts
	}
	c.Labels = append(c.Labels, f.Labels...)
	c.Insecure = append(c.Insecure, f.Insecure...)
	c.Generic = append(c.Generic, f.Generic...)
	c.Mirrors = append(c.Mirrors, f.Mirrors...)
	for _, p := range f.Pools {
		pool, err := ParseAddressPool(fmt.Sprintf("base=%s,size=%d", p.Base, p.Size))
		if err != nil {
			return err
		}
		c.Pools = append(c.Pools, pool)
	}
	return nil
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}
