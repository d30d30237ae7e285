package node

import (
	"slices"
	"testing"

	"github.com/sampan-cloud/sampan/internal/node/config"
)

// TestInfoSaysHowImagesAreKept: clients look for it first of all, as Docker says nothing else there.
func TestInfoSaysHowImagesAreKept(t *testing.T) {
	h := newHostInfo(config.Config{DataRoot: t.TempDir()}, "id")
	if got := h.base.DriverStatus[0]; got != [2]string{"driver-type", "io.containerd.snapshotter.v1"} {
		t.Errorf("%v", got)
	}
}

// TestInfoNamesProxies: without what they are logged in with.
func TestInfoNamesProxies(t *testing.T) {
	h := newHostInfo(config.Config{DataRoot: t.TempDir(), ProxyEnviron: []string{"https_proxy=http://me:secret@proxy.example:3128", "HTTP_PROXY=http://proxy.example:1", "NO_PROXY=a,b"}}, "id").Info()
	if h.HTTPProxy != "http://proxy.example:1" || h.HTTPSProxy != "http://xxxxx:xxxxx@proxy.example:3128" || h.NoProxy != "a,b" {
		t.Errorf("%q %q %q", h.HTTPProxy, h.HTTPSProxy, h.NoProxy)
	}
}

// TestInfoSaysWhichBuildAndInitItIs: an init of the user's own is named by its path, and of its version nothing is known.
func TestInfoSaysWhichBuildAndInitItIs(t *testing.T) {
	inits := func(h *hostInfo) (versions []string) {
		for _, c := range h.base.Components {
			if c.Name == "sampan-init" {
				versions = append(versions, c.Version)
			}
		}
		return versions
	}
	cfg := config.Config{DataRoot: t.TempDir(), Version: "1.2", Built: "2026-11-30T21:00:00Z"}
	if h := newHostInfo(cfg, "id"); h.base.BuildTime != cfg.Built || h.base.InitBinary != "sampan-init" || !slices.Equal(inits(h), []string{"1.2"}) {
		t.Errorf("%+v", h.base)
	}
	cfg.Init = "/usr/bin/tini"
	if h := newHostInfo(cfg, "id"); h.base.InitBinary != cfg.Init || inits(h) != nil {
		t.Errorf("%+v", h.base)
	}
}
