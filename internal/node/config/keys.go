package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/docker/go-units"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// key is a key of the configuration file, with dockerd's name if dockerd has it.
type key struct {
	flag string // its name on the command line, if that is another
	live bool   // a reload applies it, or there is nothing to be applied
	// set lays a value over the configuration. It adds to c.Notes what of it has no effect, and refuses what cannot be had.
	set func(c *Config, raw json.RawMessage) error
}

// keys are all keys of the configuration file: those of Sampan and those of dockerd, with or without an effect here.
var keys = map[string]key{
	"hosts":      {flag: "host", set: value(func(c *Config) *[]string { return &c.Hosts })},
	"data-root":  {set: value(func(c *Config) *string { return &c.DataRoot })},
	"exec-root":  {set: value(func(c *Config) *string { return &c.ExecRoot })},
	"pidfile":    {set: value(func(c *Config) *string { return &c.PidFile })},
	"log-level":  {live: true, set: value(func(c *Config) *string { return &c.LogLevel })},
	"log-format": {set: value(func(c *Config) *string { return &c.LogFormat })},
	"raw-logs":   {live: true, set: anything[bool]},
	"debug":      {live: true, set: value(func(c *Config) *bool { return &c.Debug })},
	"labels":     {flag: "label", live: true, set: value(func(c *Config) *[]string { return &c.Labels })},

	"bip":                  {set: value(func(c *Config) *string { return &c.BIP })},
	"fixed-cidr":           {set: value(func(c *Config) *string { return &c.FixedCIDR })},
	"mtu":                  {set: value(func(c *Config) *int { return &c.MTU })},
	"bridge":               {set: value(func(c *Config) *string { return &c.Network.Bridge })},
	"ipv6":                 {set: value(func(c *Config) *bool { return &c.Network.IPv6 })},
	"bip6":                 {set: value(func(c *Config) *string { return &c.Network.BIP6 })},
	"fixed-cidr-v6":        {set: value(func(c *Config) *string { return &c.Network.FixedCIDR6 })},
	"default-gateway":      {set: value(func(c *Config) *string { return &c.Network.DefaultGateway })},
	"default-gateway-v6":   {set: value(func(c *Config) *string { return &c.Network.DefaultGateway6 })},
	"icc":                  {set: value(func(c *Config) *bool { return &c.Network.ICC })},
	"ip-masq":              {set: value(func(c *Config) *bool { return &c.Network.IPMasq })},
	"ip":                   {set: value(func(c *Config) *string { return &c.Network.IP })},
	"ip-forward":           {set: value(func(c *Config) *bool { return &c.Network.IPForward })},
	"ip-forward-no-drop":   {set: value(func(c *Config) *bool { return &c.Network.IPForwardNoDrop })},
	"iptables":             {set: value(func(c *Config) *bool { return &c.Network.IPTables })},
	"ip6tables":            {set: value(func(c *Config) *bool { return &c.Network.IP6Tables })},
	"userland-proxy":       {set: value(func(c *Config) *bool { return &c.Network.UserlandProxy })},
	"userland-proxy-path":  {live: true, set: idle[string]("the daemon itself copies what the kernel cannot translate", "")},
	"allow-direct-routing": {set: value(func(c *Config) *bool { return &c.Network.AllowDirectRouting })},
	"bridge-accept-fwmark": {set: value(func(c *Config) *string { return &c.Network.BridgeAcceptFwMark })},
	"firewall-backend":     {set: value(func(c *Config) *string { return &c.Network.FirewallBackend })},
	"dns":                  {set: value(func(c *Config) *[]string { return &c.Network.DNS })},
	"dns-opts":             {flag: "dns-opt", set: value(func(c *Config) *[]string { return &c.Network.DNSOptions })},
	"dns-search":           {set: value(func(c *Config) *[]string { return &c.Network.DNSSearch })},
	"host-gateway-ip": {set: func(c *Config, raw json.RawMessage) error {
		var ip string
		err := decode(raw, &ip)
		c.Network.HostGatewayIPs = []string{ip}
		return err
	}},
	"host-gateway-ips":      {flag: "host-gateway-ip", set: value(func(c *Config) *[]string { return &c.Network.HostGatewayIPs })},
	"default-network-opts":  {flag: "default-network-opt", set: value(func(c *Config) *map[string]map[string]string { return &c.Network.DefaultOptions })},
	"default-address-pools": {flag: "default-address-pool", set: setPools},

	"network-control-plane-mtu": {live: true, set: idle[int]("the MTU of an overlay follows from those of its hosts", 0, 1500)},
	"network-diagnostic-port":   {live: true, set: idle[int]("there is no diagnostic server", 0)},

	"insecure-registries":              {flag: "insecure-registry", live: true, set: value(func(c *Config) *[]string { return &c.Insecure })},
	"registry-mirrors":                 {flag: "registry-mirror", live: true, set: value(func(c *Config) *[]string { return &c.Mirrors })},
	"allow-nondistributable-artifacts": {live: true, set: idle[[]string]("layers of every kind are pushed")},
	"max-concurrent-downloads":         {live: true, set: value(func(c *Config) *int { return &c.Limits.Downloads })},
	"max-concurrent-uploads":           {live: true, set: value(func(c *Config) *int { return &c.Limits.Uploads })},
	"max-download-attempts":            {live: true, set: value(func(c *Config) *int { return &c.Limits.Attempts })},
	"proxies":                          {set: setProxies},
	"cdi-spec-dirs":                    {flag: "cdi-spec-dir", set: value(func(c *Config) *[]string { return &c.CDISpecDirs })},

	"cgroup-parent":         {set: value(func(c *Config) *string { return &c.CgroupParent })},
	"init-path":             {set: value(func(c *Config) *string { return &c.Init })},
	"userns-remap":          {set: value(func(c *Config) *string { return &c.UsernsRemap })},
	"userns":                {set: value(func(c *Config) *string { return &c.Userns })},
	"log-driver":            {set: value(func(c *Config) *string { return &c.LogDriver })},
	"log-opts":              {flag: "log-opt", set: value(func(c *Config) *map[string]string { return &c.LogOpts })},
	"init":                  {live: true, set: value(func(c *Config) *bool { return &c.Defaults.Init })},
	"no-new-privileges":     {live: true, set: value(func(c *Config) *bool { return &c.Defaults.NoNewPrivileges })},
	"default-ipc-mode":      {live: true, set: value(func(c *Config) *string { return &c.Defaults.IpcMode })},
	"default-cgroupns-mode": {live: true, set: value(func(c *Config) *string { return &c.Defaults.CgroupnsMode })},
	"default-shm-size":      {live: true, set: setShmSize},
	"default-ulimits":       {flag: "default-ulimit", live: true, set: setUlimits},
	"default-stop-timeout":  {live: true, set: setStopTimeout},
	"seccomp-profile":       {live: true, set: setSeccomp},
	"default-runtime": {live: true, set: only[string]("containers are run by libcontainer in sampan-keeper, and there is no other runtime; for devices, such as GPUs, use CDI (docs/compatibility.md)",
		"", "runc", "io.containerd.runc.v2")},
	"runtimes":        {flag: "add-runtime", live: true, set: setRuntimes},
	"selinux-enabled": {live: true, set: only[bool]("containers get no SELinux labels", false)},
	"cpu-rt-period":   {live: true, set: only[int64]("give the containers that need it --cpu-rt-period", 0)},
	"cpu-rt-runtime":  {live: true, set: only[int64]("give the containers that need it --cpu-rt-runtime", 0)},
	"exec-opts":       {flag: "exec-opt", live: true, set: setExecOpts},
	"storage-driver":  {live: true, set: only[string]("images and containers are stored by overlayfs alone", "", "overlay2", "overlay", "overlayfs")},
	"storage-opts":    {flag: "storage-opt", live: true, set: setStorageOpts},

	"group":                 {set: value(func(c *Config) *string { return &c.Group })},
	"tls":                   {set: value(func(c *Config) **bool { return &c.TLS })},
	"tlsverify":             {set: value(func(c *Config) *bool { return &c.TLSVerify })},
	"tlscacert":             {set: value(func(c *Config) *string { return &c.TLSCACert })},
	"tlscert":               {set: value(func(c *Config) *string { return &c.TLSCert })},
	"tlskey":                {set: value(func(c *Config) *string { return &c.TLSKey })},
	"authorization-plugins": {flag: "authorization-plugin", live: true, set: only[[]string]("there are no plugins, and without them everything would be allowed")},
	"min-api-version":       {live: true, set: idle[string]("clients of every version from 1.24 are served", "", "1.24")},
	"metrics-addr":          {set: value(func(c *Config) *string { return &c.MetricsAddr })},

	"node-generic-resources":       {flag: "node-generic-resource", set: value(func(c *Config) *[]string { return &c.Generic })},
	"swarm-default-advertise-addr": {set: value(func(c *Config) *string { return &c.SwarmAdvertise })},
	"swarm-raft-heartbeat-tick":    {live: true, set: idle[int]("the cluster's state is kept by etcd, with its own numbers", 0)},
	"swarm-raft-election-tick":     {live: true, set: idle[int]("the cluster's state is kept by etcd, with its own numbers", 0)},

	"builder":  {live: true, set: setBuilder},
	"features": {flag: "feature", live: true, set: setFeatures},
	"nri-opts": {live: true, set: setNRI},

	"live-restore":     {live: true, set: idle[bool]("containers always outlive the daemon", true)},
	"shutdown-timeout": {live: true, set: idle[int]("containers outlive the daemon, nothing waits for them")},
	"experimental":     {live: true, set: idle[bool]("there is no experimental mode", false)},
	"rootless":         {live: true, set: only[bool]("namespaces, mounts and networks need root; containers' own root can be nobody on the host: docs/user-namespaces.md", false)},

	"containerd":                  {live: true, set: idle[string](noContainerd, "")},
	"containerd-namespace":        {live: true, set: idle[string](noContainerd, "", "moby")},
	"containerd-plugin-namespace": {flag: "containerd-plugins-namespace", live: true, set: idle[string](noContainerd, "", "plugins.moby")},
	"cri-containerd":              {live: true, set: only[bool](noContainerd, false)},
	"deprecated-key-path":         {live: true, set: idle[string]("the host's ID is in the data root", "")},
}

const noContainerd = "containerd's libraries are part of the daemon, no containerd runs"

// gone are keys that dockerd had or never had in its file, with what to do instead.
var gone = map[string]string{
	"graph":                   `it is called "data-root"`,
	"oom-score-adjust":        "set OOMScoreAdjust= in the service's unit",
	"cluster-store":           "clusters are made by docker swarm init",
	"cluster-store-opts":      "clusters are made by docker swarm init",
	"cluster-advertise":       "clusters are made by docker swarm init",
	"api-cors-header":         "put a proxy before the API",
	"disable-legacy-registry": "registries of version 1 are not spoken to",
	"default-init":            `it is called "init-path"`,
	"http-proxy":              `put it into "proxies"`,
	"https-proxy":             `put it into "proxies"`,
	"no-proxy":                `put it into "proxies"`,
}

func decode(raw json.RawMessage, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// value is a key with a field of its own.
func value[T any](field func(*Config) *T) func(*Config, json.RawMessage) error {
	return func(c *Config, raw json.RawMessage) error {
		to := new(T)
		if err := decode(raw, to); err != nil {
			return err
		}
		*field(c) = *to
		return nil
	}
}

// anything is a key that may have any value of its type, as all of them have the same effect here.
func anything[T any](_ *Config, raw json.RawMessage) error { return decode(raw, new(T)) }

// idle is a key that has no effect, and why. Who gives it one of the values agreed does not need to be told.
func idle[T any](why string, agreed ...T) func(*Config, json.RawMessage) error {
	return func(c *Config, raw json.RawMessage) error {
		is, err := among(raw, agreed)
		if err == nil && !is {
			c.note("%s", why)
		}
		return err
	}
}

// only is a key of which all but some values are refused, and why.
func only[T any](why string, agreed ...T) func(*Config, json.RawMessage) error {
	return func(_ *Config, raw json.RawMessage) error {
		is, err := among(raw, agreed)
		if err == nil && !is {
			return fault.New(fault.InvalidArgument, "%s cannot be had: %s", bytes.TrimSpace(raw), why)
		}
		return err
	}
}

// among reports whether a value is one of some; an empty list or map is nothing, and always is.
func among[T any](raw json.RawMessage, some []T) (bool, error) {
	var v T
	if err := decode(raw, &v); err != nil {
		return false, err
	}
	text, err := json.Marshal(v)
	if err != nil || slices.Contains([]string{"null", "[]", "{}"}, string(text)) {
		return true, err
	}
	for _, s := range some {
		if one, err := json.Marshal(s); err == nil && string(one) == string(text) {
			return true, nil
		}
	}
	return false, nil
}

func setPools(c *Config, raw json.RawMessage) error {
	var list []struct {
		Base string `json:"base"`
		Size int    `json:"size"`
	}
	if err := decode(raw, &list); err != nil {
		return err
	}
	c.Pools = nil
	for _, p := range list {
		pool, err := ParseAddressPool(fmt.Sprintf("base=%s,size=%d", p.Base, p.Size))
		if err != nil {
			return err
		}
		c.Pools = append(c.Pools, pool)
	}
	return nil
}

func setProxies(c *Config, raw json.RawMessage) error {
	var p struct {
		HTTP  string `json:"http-proxy"`
		HTTPS string `json:"https-proxy"`
		No    string `json:"no-proxy"`
	}
	err := decode(raw, &p)
	have := c.Proxies
	c.Proxies = Proxies{HTTP: cmp.Or(p.HTTP, have.HTTP), HTTPS: cmp.Or(p.HTTPS, have.HTTPS), No: cmp.Or(p.No, have.No)}
	return err
}

// setShmSize takes a number of bytes, or text with a unit as in "64M".
func setShmSize(c *Config, raw json.RawMessage) error {
	var text string
	if decode(raw, &text) != nil {
		return decode(raw, &c.Defaults.ShmSize)
	}
	size, err := units.RAMInBytes(text)
	c.Defaults.ShmSize = size
	return err
}

// setUlimits takes the file's form, limits by name, or a list of the command line's: NAME=SOFT[:HARD].
func setUlimits(c *Config, raw json.RawMessage) error {
	c.Defaults.Ulimits = nil
	var list []string
	if decode(raw, &list) == nil {
		for _, text := range list {
			u, err := units.ParseUlimit(text)
			if err != nil {
				return err
			}
			c.Defaults.Ulimits = append(c.Defaults.Ulimits, container.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
		}
		return nil
	}
	var byName map[string]struct {
		Name       string
		Hard, Soft int64
	}
	if err := decode(raw, &byName); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		u := byName[name]
		if u.Name != "" && u.Name != name {
			return fault.New(fault.InvalidArgument, "the limit %q is called %q inside", name, u.Name)
		}
		c.Defaults.Ulimits = append(c.Defaults.Ulimits, container.Ulimit{Name: name, Soft: u.Soft, Hard: u.Hard})
	}
	return nil
}

func setStopTimeout(c *Config, raw json.RawMessage) error {
	var seconds int
	if err := decode(raw, &seconds); err != nil {
		return err
	}
	if seconds < 0 {
		return fault.New(fault.InvalidArgument, "invalid default stop timeout: %d", seconds)
	}
	c.Defaults.StopTimeout = &seconds
	return nil
}

// setSeccomp reads the profile's file, as dockerd does: "builtin" and "unconfined" are none.
func setSeccomp(c *Config, raw json.RawMessage) error {
	var path string
	if err := decode(raw, &path); err != nil {
		return err
	}
	switch c.SeccompProfile = path; path {
	case "", "builtin":
		c.Defaults.Seccomp, c.SeccompProfile = "", ""
	case "unconfined":
		c.Defaults.Seccomp = path
	default:
		text, err := os.ReadFile(path)
		if err != nil {
			return fault.New(fault.InvalidArgument, "the profile cannot be read: %w", err)
		}
		c.Defaults.Seccomp = string(text)
	}
	return nil
}

// setRuntimes takes note of runtimes, which containers cannot ask for: it is they who are refused. The command line's form is
// a list of NAME=PATH.
func setRuntimes(c *Config, raw json.RawMessage) error {
	var all map[string]json.RawMessage
	var list []string
	if decode(raw, &list) != nil {
		if err := decode(raw, &all); err != nil {
			return err
		}
	}
	for name := range all {
		list = append(list, name)
	}
	for i, name := range list {
		list[i], _, _ = strings.Cut(name, "=")
	}
	if list = slices.DeleteFunc(list, func(name string) bool { return name == "runc" }); len(list) > 0 {
		slices.Sort(list)
		c.note("containers are run by libcontainer in sampan-keeper, those that ask for %s are refused; for devices, such as GPUs, use CDI", strings.Join(list, ", "))
	}
	return nil
}

func setExecOpts(c *Config, raw json.RawMessage) error {
	var list []string
	if err := decode(raw, &list); err != nil {
		return err
	}
	for _, o := range list {
		name, v, ok := strings.Cut(o, "=")
		switch name, v = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(v); {
		case !ok || name == "" || v == "":
			return fault.New(fault.InvalidArgument, "invalid exec-opt (%s): must be formatted 'opt=value'", o)
		case name != "native.cgroupdriver":
			return fault.New(fault.InvalidArgument, "invalid exec-opt (%s): unknown option: '%s'", o, name)
		case v == "systemd":
			c.note("%s: control groups are made in the file system, below --cgroup-parent, without asking systemd", o)
		case v != "cgroupfs":
			return fault.New(fault.InvalidArgument, "invalid exec-opt (%s): want cgroupfs or systemd", o)
		}
	}
	return nil
}

func setStorageOpts(c *Config, raw json.RawMessage) error {
	var list []string
	if err := decode(raw, &list); err != nil {
		return err
	}
	for _, o := range list {
		if !strings.HasPrefix(strings.ToLower(o), "overlay2.override_kernel_check=") {
			return fault.New(fault.InvalidArgument, "%s cannot be had: images and containers are stored by overlayfs, and the size of containers' root file systems is not limited", o)
		}
	}
	return nil
}

// setFeatures takes dockerd's features, or the command line's list of NAME[=BOOL].
func setFeatures(c *Config, raw json.RawMessage) error {
	var list []string
	features := map[string]bool{}
	if decode(raw, &list) == nil {
		for _, f := range list {
			name, v, ok := strings.Cut(f, "=")
			features[name] = !ok || v == "true" || v == "1"
		}
	} else if err := decode(raw, &features); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(features)) {
		switch on := features[name]; {
		case (name == "buildkit" || name == "containerd-snapshotter" || name == "cdi") && on: // always so
		case name == "cdi":
			return fault.New(fault.InvalidArgument, `"cdi" cannot be turned off: set "cdi-spec-dirs" to an empty folder`)
		case name == "containerd-snapshotter":
			c.note("containerd-snapshotter is always on: images are kept in containerd's own form")
		case name == "buildkit":
			c.note("buildkit is always on: the command chooses by DOCKER_BUILDKIT how it shows a build")
		default:
			c.note("there is no feature %q", name)
		}
	}
	c.Features = features
	return nil
}

// setNRI takes what dockerd does: an object with "enable", or the command line's text.
func setNRI(_ *Config, raw json.RawMessage) error {
	var o struct {
		Enable       bool   `json:"enable"`
		PluginPath   string `json:"plugin-path"`
		PluginConfig string `json:"plugin-config-path"`
		SocketPath   string `json:"socket-path"`
	}
	var text string
	if decode(raw, &text) == nil {
		o.Enable = strings.Contains(text, "enable=true") || strings.HasPrefix(text, "enable,") || text == "enable"
	} else if err := decode(raw, &o); err != nil {
		return err
	}
	if o.Enable {
		return fault.New(fault.InvalidArgument, "there are no NRI plugins")
	}
	return nil
}

// setBuilder reads dockerd's "builder".
func setBuilder(c *Config, raw json.RawMessage) error {
	var in builderFile
	if err := decode(raw, &in); err != nil {
		return err
	}
	s, err := in.settings(c)
	c.BuildSettings = s
	return err
}
