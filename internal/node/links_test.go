package node

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
)

// TestLinksAreForTheDefaultBridge: a container on the default bridge cannot be linked to one that is not on it.
func TestLinksAreForTheDefaultBridge(t *testing.T) {
	other := container.Container{ID: "o", Config: container.Config{Name: "other"}, State: container.State{Running: true},
		Networks: container.Attachment{Endpoints: map[string]container.Endpoint{"mine": {NetworkName: "mine"}}}}
	joined := container.Container{ID: "j", Config: container.Config{Name: "joined", Host: container.HostConfig{NetworkMode: "container:o"}}, State: container.State{Running: true}}
	s := &sandboxes{get: func(id string) (container.Container, error) {
		if id == "j" {
			return joined, nil
		}
		return other, nil
	}}
	c := container.Container{Config: container.Config{Name: "c", Host: container.HostConfig{Links: []string{"o:alias"}}}}
	spec := network.SandboxSpec{Links: map[string][]netip.Addr{}}
	if err := s.link(c, &spec); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "Cannot link to /other, as it does not belong to the default network") {
		t.Errorf("%v", err)
	}
	other.Networks.Endpoints["bridge"] = container.Endpoint{NetworkName: "bridge", IPv4: netip.MustParsePrefix("172.17.0.2/16")}
	if err := s.link(c, &spec); err != nil || len(spec.Links["alias"]) != 1 {
		t.Errorf("%v %v", spec.Links, err)
	}
	c.Config.Host.Links = []string{"j:next"}
	if err := s.link(c, &spec); err != nil || len(spec.Links["next"]) != 1 {
		t.Errorf("one that joins another's network: %v %v", spec.Links, err)
	}
}
