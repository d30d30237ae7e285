package node

import (
	"testing"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/node/config"
)

// TestReloadAttributes: scripts read them from dockerd's event.
func TestReloadAttributes(t *testing.T) {
	c := config.Default()
	a := reloadAttributes(&c, "host1", "2")
	for name, want := range map[string]string{"name": "host1", "debug": "false", "labels": "[]", "insecure-registries": "[]", "registry-mirrors": "[]",
		"max-concurrent-downloads": "3", "max-concurrent-uploads": "5", "max-download-attempts": "5", "default-stop-timeout": "10",
		"default-shm-size": "67108864", "default-ipc-mode": "private", "default-cgroupns-mode": "private", "default-runtime": "runc", "features": "map[]"} {
		if a[name] != want {
			t.Errorf("%s: %q, want %q", name, a[name], want)
		}
	}
	seconds := 0
	c.Defaults = container.Defaults{StopTimeout: &seconds, CgroupnsMode: "host"}
	if a := reloadAttributes(&c, "host1", "2"); a["default-stop-timeout"] != "0" || a["default-cgroupns-mode"] != "host" {
		t.Errorf("%v", a)
	}
}

// TestAdvertisedAddress: the configured one is for hosts that listen everywhere, when nobody names another.
func TestAdvertisedAddress(t *testing.T) {
	c := &Cluster{advertise: "eth1"}
	for _, x := range []struct{ listen, named, want string }{
		{"0.0.0.0:2377", "", "eth1"}, {"", "", "eth1"}, {"[::]:2377", "", "eth1"}, {"0.0.0.0", "", "eth1"},
		{"0.0.0.0:2377", "10.0.0.1", "10.0.0.1"}, {"10.0.0.2:2377", "", ""}, {"eth0:2377", "", ""},
	} {
		if got := c.advertised(x.listen, x.named); got != x.want {
			t.Errorf("listening on %q, told %q: %q, want %q", x.listen, x.named, got, x.want)
		}
	}
}
