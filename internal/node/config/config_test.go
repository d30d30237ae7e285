package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
)

func TestConfigValidate(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string // part of the message; empty: valid
	}{
		"default":               {func(*Config) {}, ""},
		"no host":               {func(c *Config) { c.Hosts = nil }, "give at least one"},
		"relative socket":       {func(c *Config) { c.Hosts = []string{"unix://run/x.sock"} }, "must be absolute"},
		"long socket":           {func(c *Config) { c.Hosts = []string{"unix:///" + strings.Repeat("x", 120)} }, "at most 107 bytes"},
		"tcp without TLS":       {func(c *Config) { c.Hosts = []string{"tcp://0.0.0.0:2376"} }, "--tlsverify"},
		"tcp with half of TLS":  {func(c *Config) { c.Hosts, c.TLSVerify = []string{"tcp://0.0.0.0:2376"}, true }, "--tlscacert"},
		"tcp without port":      {func(c *Config) { c.Hosts = []string{"tcp://0.0.0.0"} }, "missing port"},
		"fd":                    {func(c *Config) { c.Hosts = []string{"fd://"} }, "not offered"},
		"no scheme":             {func(c *Config) { c.Hosts = []string{"/run/x.sock"} }, "unix://PATH"},
		"same folders":          {func(c *Config) { c.ExecRoot = c.DataRoot }, "a folder of its own"},
		"log level":             {func(c *Config) { c.LogLevel = "loud" }, `--log-level "loud"`},
		"label":                 {func(c *Config) { c.Labels = []string{"=x"} }, "KEY=VALUE"},
		"labels in conflict":    {func(c *Config) { c.Labels = []string{"a=1", "a=2"} }, "conflict labels for a=2 and a=1"},
		"a label twice":         {func(c *Config) { c.Labels = []string{"a=1", "a=1"} }, ""},
		"bip without prefix":    {func(c *Config) { c.BIP = "172.17.0.1" }, "172.17.0.1/16"},
		"bip is the network":    {func(c *Config) { c.BIP = "172.17.0.0/16" }, "172.17.0.1/16"},
		"bip":                   {func(c *Config) { c.BIP = "172.17.0.1/16" }, ""},
		"fixed cidr":            {func(c *Config) { c.FixedCIDR = "x" }, "--fixed-cidr"},
		"mtu":                   {func(c *Config) { c.MTU = 20 }, "68 to 65535"},
		"cgroup parent":         {func(c *Config) { c.CgroupParent = "sampan" }, "absolute path"},
		"cgroup parent goes up": {func(c *Config) { c.CgroupParent = "/a/../.." }, "absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			test.change(&c)
			err := c.Validate()
			switch {
			case test.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want a message with %q", err, test.want)
			}
		})
	}
}

func TestConfigFile(t *testing.T) {
	read := func(t *testing.T, text string, flags ...string) (Config, error) {
		path := filepath.Join(t.TempDir(), "daemon.json")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		c := Default()
		return c, c.ReadFile(path, func(name string) bool {
			for _, f := range flags {
				if f == name {
					return true
				}
			}
			return false
		})
	}
	path := filepath.Join(t.TempDir(), "daemon.json")
	text := `{"data-root": "/srv/sampan", "labels": ["rack=1"], "insecure-registries": ["10.0.0.0/8"], "debug": true, "mtu": 1400,
		"default-address-pools": [{"base": "10.30.0.0/16", "size": 24}], "log-opts": {"max-size": "10m"}}`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := Default()
	if err := c.ReadFile(path, func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if c.DataRoot != "/srv/sampan" || len(c.Labels) != 1 || !c.Debug || c.MTU != 1400 || len(c.Pools) != 1 || c.Pools[0].Size != 24 || c.LogOpts["max-size"] != "10m" {
		t.Errorf("read %+v", c)
	}
	for name, test := range map[string]struct {
		text  string
		flags []string
		want  string
	}{
		"broken":              {`{"debug": tru`, nil, "invalid character"},
		"unknown key":         {`{"data-rot": "/x"}`, nil, `"data-rot": there is no such key`},
		"wrong type":          {`{"mtu": "big"}`, nil, "cannot unmarshal"},
		"in both places":      {`{"debug": true, "hosts": ["unix:///x"]}`, []string{"host", "debug"}, "debug, hosts"},
		"bad pool":            {`{"default-address-pools": [{"base": "10.0.0.0", "size": 24}]}`, nil, "address pool"},
		"a pool with no size": {`{"default-address-pools": [{"base": "10.0.0.0/8"}]}`, nil, "base=CIDR,size=BITS"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := read(t, test.text, test.flags...); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want a message with %q", err, test.want)
			}
		})
	}
}

func FuzzParseAddressPool(f *testing.F) {
	for _, seed := range []string{"base=10.0.0.0/8,size=24", "size=24,base=fd00::/8", "base=,size=", "base=10.0.0.0/8,size=x", ",,,", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseAddressPool(text)
		if err == nil && (!p.Base.IsValid() || p.Size == 0 || p.Base != p.Base.Masked()) {
			t.Errorf("%q was taken as %+v", text, p)
		}
	})
}

// TestEmptyConfigFile: a configuration file without anything in it configures nothing.
func TestEmptyConfigFile(t *testing.T) {
	var c Config
	if err := c.ReadFile(os.DevNull, func(string) bool { return false }); err != nil {
		t.Error(err)
	}
}
