package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/build"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// readText reads a configuration file with that text.
func readText(t *testing.T, text string, flags ...string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := Default()
	return c, c.ReadFile(path, func(name string) bool { return slices.Contains(flags, name) })
}

// dockerdKeys are all keys that dockerd takes in its file, with values that administrators give them, and what becomes of
// them here: "" they have their effect, "note:" is followed by part of what is said, anything else is why they are
// refused.
var dockerdKeys = []struct{ key, value, want string }{
	{"allow-direct-routing", `true`, ""},
	{"allow-nondistributable-artifacts", `["reg.example:5000"]`, "note:layers of every kind"},
	{"authorization-plugins", `[]`, ""},
	{"authorization-plugins", `["opa"]`, "there are no plugins"},
	{"bip", `"172.30.0.1/16"`, ""},
	{"bip6", `"fd00:1::1/64"`, ""},
	{"bridge", `"none"`, ""},
	{"bridge-accept-fwmark", `"1/3"`, ""},
	{"builder", `{"gc": {"enabled": true, "defaultKeepStorage": "20GB", "policy": [{"keepStorage": "10GB", "filter": ["unused-for=2200h", "type=source.local"]}, {"keepStorage": "50GB", "all": true}]}}`, ""},
	{"builder", `{"gc": {"defaultReservedSpace": "20 apples"}}`, "failed to parse gc.defaultReservedSpace"},
	{"builder", `{"entitlements": {"security-insecure": true}}`, "no step of a build is privileged"},
	{"cdi-spec-dirs", `["/etc/cdi"]`, ""},
	{"cgroup-parent", `"/mine"`, ""},
	{"containerd", `"/run/containerd/containerd.sock"`, "note:no containerd runs"},
	{"containerd-namespace", `"moby"`, ""},
	{"containerd-plugin-namespace", `"plugins.moby"`, ""},
	{"cpu-rt-period", `0`, ""},
	{"cpu-rt-period", `1000000`, "give the containers that need it"},
	{"cpu-rt-runtime", `950000`, "give the containers that need it"},
	{"cri-containerd", `true`, "no containerd runs"},
	{"data-root", `"/srv/sampan"`, ""},
	{"debug", `true`, ""},
	{"default-address-pools", `[{"base": "10.30.0.0/16", "size": 24}]`, ""},
	{"default-cgroupns-mode", `"private"`, ""},
	{"default-cgroupns-mode", `"mine"`, `default-cgroupns-mode "mine"`},
	{"default-gateway", `"10.0.0.1"`, ""},
	{"default-gateway-v6", `"fd00::1"`, ""},
	{"default-ipc-mode", `"shareable"`, ""},
	{"default-ipc-mode", `"host"`, "not supported as default value"},
	{"default-network-opts", `{"bridge": {"com.docker.network.driver.mtu": "1400"}}`, ""},
	{"default-runtime", `"runc"`, ""},
	{"default-runtime", `"nvidia"`, "use CDI"},
	{"default-shm-size", `"128M"`, ""},
	{"default-shm-size", `"much"`, "invalid size"},
	{"default-stop-timeout", `0`, ""},
	{"default-stop-timeout", `-1`, "invalid default stop timeout"},
	{"default-ulimits", `{"nofile": {"Name": "nofile", "Hard": 64000, "Soft": 64000}, "core": {"Hard": 0, "Soft": 0}}`, ""},
	{"default-ulimits", `{"files": {"Name": "files", "Hard": 1, "Soft": 1}}`, "invalid ulimit type: files"},
	{"deprecated-key-path", `"/etc/docker/key.json"`, "note:host's ID"},
	{"dns", `["10.0.0.53"]`, ""},
	{"dns-opts", `["ndots:2"]`, ""},
	{"dns-search", `["example.org"]`, ""},
	{"exec-opts", `["native.cgroupdriver=cgroupfs"]`, ""},
	{"exec-opts", `["native.cgroupdriver=systemd"]`, "note:without asking systemd"},
	{"exec-opts", `["isolation=hyperv"]`, "unknown option"},
	{"exec-root", `"/run/other"`, ""},
	{"experimental", `false`, ""},
	{"experimental", `true`, "note:no experimental mode"},
	{"features", `{"buildkit": true, "containerd-snapshotter": true}`, ""},
	{"features", `{"containerd-snapshotter": false}`, "note:always on"},
	{"firewall-backend", `"nftables"`, ""},
	{"firewall-backend", `"iptables"`, "nftables only"},
	{"fixed-cidr", `"172.17.1.0/24"`, ""},
	{"fixed-cidr-v6", `"fd00::/80"`, ""},
	{"group", `"docker"`, ""},
	{"host-gateway-ip", `"10.0.0.1"`, ""},
	{"host-gateway-ips", `["10.0.0.1", "fd00::1"]`, ""},
	{"hosts", `["unix:///run/other.sock"]`, ""},
	{"hosts", `["unix:///run/other.sock", "tcp://0.0.0.0:2375"]`, "rules the host"},
	{"icc", `false`, ""},
	{"init", `true`, ""},
	{"init-path", `"/usr/bin/tini"`, ""},
	{"insecure-registries", `["10.0.0.0/8", "reg.example:5000"]`, ""},
	{"insecure-registries", `["http://reg.example/v2"]`, "insecure registry"},
	{"ip", `"127.0.0.1"`, ""},
	{"ip-forward", `true`, ""},
	{"ip-forward-no-drop", `true`, ""},
	{"ip-masq", `true`, ""},
	{"ip6tables", `true`, ""},
	{"iptables", `false`, "no iptables rules to leave out"},
	{"ipv6", `true`, ""},
	{"labels", `["rack=1"]`, ""},
	{"live-restore", `true`, ""},
	{"live-restore", `false`, "note:always outlive the daemon"},
	{"log-driver", `"local"`, ""},
	{"log-driver", `"splunk"`, "no log driver named 'splunk'"},
	{"log-format", `"json"`, ""},
	{"log-format", `"xml"`, "want text or json"},
	{"log-level", `"fatal"`, ""},
	{"log-opts", `{"max-size": "10m", "max-file": "3"}`, ""},
	{"max-concurrent-downloads", `10`, ""},
	{"max-concurrent-uploads", `10`, ""},
	{"max-download-attempts", `-2`, "max-download-attempts"},
	{"metrics-addr", `"127.0.0.1:9323"`, ""},
	{"min-api-version", `"1.40"`, "note:clients of every version"},
	{"mtu", `1450`, ""},
	{"network-control-plane-mtu", `1400`, "note:MTU of an overlay"},
	{"network-diagnostic-port", `2000`, "note:no diagnostic server"},
	{"no-new-privileges", `true`, ""},
	{"node-generic-resources", `["gpu=2"]`, ""},
	{"nri-opts", `{"enable": false}`, ""},
	{"nri-opts", `{"enable": true}`, "no NRI plugins"},
	{"pidfile", `"/run/other.pid"`, ""},
	{"proxies", `{"http-proxy": "http://proxy.example:3128", "https-proxy": "http://proxy.example:3128", "no-proxy": "*.example"}`, ""},
	{"raw-logs", `true`, ""},
	{"registry-mirrors", `["https://mirror.example"]`, ""},
	{"registry-mirrors", `["mirror.example"]`, "registry mirror"},
	{"rootless", `true`, "need root"},
	{"runtimes", `{"runc": {"path": "runc"}}`, ""},
	{"runtimes", `{"nvidia": {"path": "nvidia-container-runtime", "runtimeArgs": []}}`, "note:those that ask for nvidia are refused"},
	{"seccomp-profile", `"unconfined"`, ""},
	{"seccomp-profile", `"/nothing/here.json"`, "cannot be read"},
	{"selinux-enabled", `false`, ""},
	{"selinux-enabled", `true`, "no SELinux labels"},
	{"shutdown-timeout", `15`, "note:nothing waits for them"},
	{"storage-driver", `"overlay2"`, ""},
	{"storage-driver", `"zfs"`, "overlayfs alone"},
	{"storage-opts", `["overlay2.override_kernel_check=true"]`, ""},
	{"storage-opts", `["overlay2.size=10G"]`, "size of containers' root file systems is not limited"},
	{"swarm-default-advertise-addr", `"eth0"`, ""},
	{"swarm-raft-election-tick", `10`, "note:etcd"},
	{"swarm-raft-heartbeat-tick", `1`, "note:etcd"},
	{"tls", `false`, ""},
	{"tlscacert", `"/etc/docker/ca.pem"`, ""},
	{"tlscert", `"/etc/docker/cert.pem"`, ""},
	{"tlskey", `"/etc/docker/key.pem"`, ""},
	{"tlsverify", `true`, ""},
	{"userland-proxy", `false`, ""},
	{"userland-proxy-path", `"/usr/bin/docker-proxy"`, "note:the daemon itself"},
	{"userns-remap", `"default"`, ""},
}

// TestEveryKeyOfDockerd: a key of dockerd's works, or is said to have no effect, or is refused with the reason; none is
// unknown.
func TestEveryKeyOfDockerd(t *testing.T) {
	tried := map[string]bool{}
	for _, k := range dockerdKeys {
		tried[k.key] = true
		c, err := readText(t, `{"`+k.key+`": `+k.value+`}`)
		if err == nil {
			err = c.Validate()
		}
		note, noted := strings.CutPrefix(k.want, "note:")
		switch {
		case k.want == "" && (err != nil || len(c.Notes) > 0):
			t.Errorf("%s: %s: %v, %q", k.key, k.value, err, c.Notes)
		case noted && (err != nil || len(c.Notes) != 1 || !strings.HasPrefix(c.Notes[0], k.key+" has no effect: ") || !strings.Contains(c.Notes[0], note)):
			t.Errorf("%s: %s: %v, %q, want a note with %q", k.key, k.value, err, c.Notes, note)
		case k.want != "" && !noted && (!fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), k.want)):
			t.Errorf("%s: %s: %v, want %q", k.key, k.value, err, k.want)
		}
	}
	for name := range keys {
		if !tried[name] && name != "userns" {
			t.Errorf("%s is not tried", name)
		}
	}
}

// TestKeysAreDocumented: the table of docs/configuration.md has every key, and says of each whether a reload applies it.
func TestKeysAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) > 4 {
			for name := range strings.SplitSeq(cells[1], ",") {
				rows[strings.Trim(strings.TrimSpace(name), "`")] = strings.TrimSpace(cells[2])
			}
		}
	}
	for name, k := range keys {
		row, there := rows[name]
		if !there {
			t.Errorf("%s is not in the table", name)
		} else if (row == "yes") != k.live {
			t.Errorf("%s: the table says of a reload %q, the program %v", name, row, k.live)
		}
	}
}

// TestFileSaysAllThatIsWrong: somebody who copies a file learns in one go what to delete.
func TestFileSaysAllThatIsWrong(t *testing.T) {
	_, err := readText(t, "\ufeff"+`{"storage-driver": "zfs", "selinux-enabled": true, "grph": 1, "graph": "/x", "oom-score-adjust": -500, "mtu": "big", "debug": true}`, "debug")
	if err == nil {
		t.Fatal("it was taken")
	}
	for _, want := range []string{`"storage-driver": `, `"selinux-enabled": true cannot be had`, `"grph": there is no such key`, `"graph": there is no such key: it is called "data-root"`,
		`"oom-score-adjust": there is no such key: set OOMScoreAdjust=`, `"mtu": json: cannot unmarshal`, "given as a flag and in the file: debug"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
	if _, err := readText(t, `{"proxies": {"no-proxy": "x"}}`, "no-proxy"); err == nil {
		t.Error("a proxy as a flag and in the file was taken")
	}
	if _, err := readText(t, `{"host-gateway-ip": "10.0.0.1", "host-gateway-ips": ["10.0.0.1"]}`); err == nil {
		t.Error("both names of one key were taken")
	}
}

func TestKeysHaveTheirEffect(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := readText(t, `{"default-ulimits": {"nofile": {"Name": "nofile", "Hard": 20, "Soft": 10}}, "default-shm-size": "1M", "default-ipc-mode": "shareable",
		"default-cgroupns-mode": "private", "init": true, "no-new-privileges": true, "default-stop-timeout": 3, "seccomp-profile": "`+profile+`",
		"max-concurrent-downloads": 4, "proxies": {"https-proxy": "http://p:1"}, "tls": true, "log-level": "FATAL", "default-shm-size": 1048576,
		"builder": {"gc": {"defaultKeepStorage": "1GB", "policy": [{"reservedSpace": "2kb", "filter": ["unused-for=1h", "type=regular", "inuse"]}]}, "entitlements": {"network-host": false},
			"history": {"maxAge": "1h", "maxEntries": 7}}}`)
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	d := c.Defaults
	if !slices.Equal(d.Ulimits, []container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}) || d.ShmSize != 1<<20 || d.IpcMode != "shareable" || d.CgroupnsMode != "private" ||
		!d.Init || !d.NoNewPrivileges || *d.StopTimeout != 3 || !strings.Contains(d.Seccomp, "ALLOW") || c.SeccompProfile != profile {
		t.Errorf("%+v", d)
	}
	if c.Limits.Downloads != 4 || c.Proxies.HTTPS != "http://p:1" || !c.TLSVerify || c.Level() != 8 {
		t.Errorf("%+v", c)
	}
	b := c.BuildSettings
	want := build.PruneRequest{ReservedSpace: 2048, KeepDuration: time.Hour, Filter: []string{"type==regular,inuse"}}
	if b.ReservedSpace != 1<<30 || len(b.GC) != 1 || !same(b.GC[0], want) || !b.NoHostNetwork || b.HistoryAge != time.Hour || b.HistoryEntries != 7 {
		t.Errorf("%+v", b)
	}
	if _, err := readText(t, `{"tls": true, "tlsverify": false}`); err != nil {
		t.Fatal(err)
	}
	c, _ = readText(t, `{"tls": true, "tlsverify": false}`)
	if err := c.Validate(); err == nil {
		t.Error("TLS without asking for clients' certificates was taken")
	}
}

func same(a, b any) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}
