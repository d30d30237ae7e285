package docker

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/network"
)

func TestNetworkOptionsAndDefaults(t *testing.T) {
	l := newLab(t)
	l.networks.defaults = map[string]map[string]string{"bridge": {"com.docker.network.driver.mtu": "1400", "com.docker.network.enable_ipv6": "true"}}
	c := l.client(t)
	yes, no := true, false
	for name, test := range map[string]struct {
		o          client.NetworkCreateOptions
		mtu        string
		ipv4, ipv6 bool
	}{
		"defaults":       {client.NetworkCreateOptions{}, "1400", true, true},
		"said otherwise": {client.NetworkCreateOptions{EnableIPv6: &no, Options: map[string]string{"com.docker.network.driver.mtu": "1300"}}, "1300", true, false},
		"by an option":   {client.NetworkCreateOptions{EnableIPv6: &yes, Options: map[string]string{"com.docker.network.enable_ipv4": "false"}}, "1400", false, true},
	} {
		n, err := c.NetworkCreate(t.Context(), strings.ReplaceAll(name, " ", "-"), test.o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := l.networks.all[n.ID].Spec
		if got.Options["com.docker.network.driver.mtu"] != test.mtu || got.IPv4 != test.ipv4 || got.IPv6 != test.ipv6 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	_, err := c.NetworkCreate(t.Context(), "x", client.NetworkCreateOptions{Options: map[string]string{"com.docker.network.enable_ipv4": "perhaps"}})
	if !cerrdefs.IsInvalidArgument(err) {
		t.Errorf("no bool: %v", err)
	}
}

func TestConfigurationNetworksAndTheirWire(t *testing.T) {
	l := newLab(t)
	c := l.client(t)
	cfg, err := c.NetworkCreate(t.Context(), "cfg", client.NetworkCreateOptions{ConfigOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.NetworkCreate(t.Context(), "app", client.NetworkCreateOptions{ConfigFrom: "cfg"}); err != nil {
		t.Fatal(err)
	}
	if n, err := c.NetworkInspect(t.Context(), cfg.ID, client.NetworkInspectOptions{}); err != nil || !n.Network.ConfigOnly {
		t.Errorf("%+v, %v", n.Network.Network, err)
	}
	if n, err := c.NetworkInspect(t.Context(), "app", client.NetworkInspectOptions{}); err != nil || n.Network.ConfigFrom.Network != "cfg" {
		t.Errorf("%+v, %v", n.Network.Network, err)
	}
	for name, o := range map[string]client.NetworkCreateOptions{
		"of an overlay": {Driver: "overlay", ConfigFrom: "cfg"}, "with a scope": {ConfigOnly: true, Scope: "local"}} {
		if _, err := c.NetworkCreate(t.Context(), "x", o); !cerrdefs.IsNotImplemented(err) && !cerrdefs.IsPermissionDenied(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNetworksThatTheClusterRemoved: a network that the cluster has no more is shown no more, though containers that end
// hold it on this host still: a stack that is deployed again makes its own, as one of the same name is not there. Without
// a manager to ask it is shown, as what is in use here.
func TestNetworksThatTheClusterRemoved(t *testing.T) {
	l := newLab(t)
	c, ctx := l.client(t), t.Context()
	l.swarm.cluster = newFakeCluster(clusterSpecForTest)
	l.swarm.cluster.networks["new"] = &cloud.Network{Meta: cloud.Meta{ID: "new"}, Spec: cloud.NetworkSpec{Name: "shop", Driver: "overlay"}}
	for _, id := range []string{"old", "new"} {
		l.networks.all[id] = network.Network{ID: id, Scope: network.ScopeSwarm, Spec: network.Spec{Name: "shop", Driver: "overlay"}}
	}
	ids := func() (ids []string) {
		t.Helper()
		nets, err := c.NetworkList(ctx, client.NetworkListOptions{Filters: make(client.Filters).Add("name", "shop")})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nets.Items {
			ids = append(ids, n.ID)
		}
		slices.Sort(ids)
		return ids
	}
	if got := ids(); !slices.Equal(got, []string{"new"}) {
		t.Errorf("listed are %q", got)
	}
	if n, err := c.NetworkInspect(ctx, "shop", client.NetworkInspectOptions{}); err != nil || n.Network.ID != "new" {
		t.Errorf("by name: %q, %v", n.Network.ID, err)
	}
	l.swarm.cluster = nil
	if got := ids(); !slices.Equal(got, []string{"new", "old"}) {
		t.Errorf("without a manager are listed %q", got)
	}
}

// TestSubnetStatus: how much of a network's subnets is taken is told from version 1.52 on.
func TestSubnetStatus(t *testing.T) {
	l := newLab(t)
	c := l.client(t)
	subnet := netip.MustParsePrefix("10.5.0.0/24")
	if _, err := c.NetworkCreate(t.Context(), "app", client.NetworkCreateOptions{IPAM: &apinetwork.IPAM{Config: []apinetwork.IPAMConfig{{Subnet: subnet}}}}); err != nil {
		t.Fatal(err)
	}
	n, err := c.NetworkInspect(t.Context(), "app", client.NetworkInspectOptions{})
	if want := (apinetwork.SubnetStatuses{subnet: {IPsInUse: 3, DynamicIPsAvailable: 253}}); err != nil || n.Network.Status == nil || !maps.Equal(n.Network.Status.IPAM.Subnets, want) {
		t.Errorf("%+v, %v", n.Network.Status, err)
	}
	if _, _, body := l.do(t, "GET", "/v1.51/networks/app", "", ""); strings.Contains(body, "DynamicIPsAvailable") {
		t.Errorf("version 1.51: %s", body)
	}
}

// TestChosenHardwareAddress: the address that a container was given on its first network is in its configuration for
// clients before 1.52, whether it was given for the container or for the network.
func TestChosenHardwareAddress(t *testing.T) {
	l := newLab(t)
	for name, body := range map[string]string{
		"for the container": `{"Image": "app", "MacAddress": "02:42:ac:11:00:42"}`,
		"for the network":   `{"Image": "app", "HostConfig": {"NetworkMode": "bridge"}, "NetworkingConfig": {"EndpointsConfig": {"bridge": {"MacAddress": "02:42:ac:11:00:42"}}}}`,
	} {
		id := strings.ReplaceAll(name, " ", "-")
		if status, _, text := l.do(t, "POST", "/v1.44/containers/create?name="+id, "application/json", body); status != 201 {
			t.Fatalf("%s: %d %s", name, status, text)
		}
		const want = `"MacAddress":"02:42:ac:11:00:42"`
		if _, _, text := l.do(t, "GET", "/v1.51/containers/"+id+"/json", "", ""); !strings.Contains(strings.ReplaceAll(text, " ", ""), want) {
			t.Errorf("%s, version 1.51: %s", name, text)
		}
	}
}

// TestNetworkNames: a network may have any name but an empty one, and is found by it, whatever is in it.
func TestNetworkNames(t *testing.T) {
	l := newLab(t)
	c := l.client(t)
	for _, name := range []string{"kiwl$%^", "test@#$", "web/front end", "réseau", "a/connect", "%2f?x=y"} {
		n, err := c.NetworkCreate(t.Context(), name, client.NetworkCreateOptions{})
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if got, err := c.NetworkInspect(t.Context(), name, client.NetworkInspectOptions{}); err != nil || got.Network.ID != n.ID || got.Network.Name != name {
			t.Errorf("%q is found as %q: %v", name, got.Network.Name, err)
		}
		l.containers.asked = nil
		_, joins := c.NetworkConnect(t.Context(), name, client.NetworkConnectOptions{Container: "web"})
		_, leaves := c.NetworkDisconnect(t.Context(), name, client.NetworkDisconnectOptions{Container: "web"})
		if want := []string{"connect web " + n.ID + " aliases=[] ip=invalid IP", "disconnect web " + n.ID + " force=false"}; joins != nil || leaves != nil || !slices.Equal(l.containers.asked, want) {
			t.Errorf("a container joins and leaves %q: %q, %v, %v", name, l.containers.asked, joins, leaves)
		}
		if _, err := c.NetworkRemove(t.Context(), name, client.NetworkRemoveOptions{}); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := c.NetworkCreate(t.Context(), " ", client.NetworkCreateOptions{}); !cerrdefs.IsInvalidArgument(err) {
		t.Errorf("an empty name: %v", err)
	}
	if status, _, _ := l.do(t, "POST", "/networks/bridge/leave", "application/json", `{"Container": "x"}`); status != 404 {
		t.Errorf("an unknown verb: %d", status)
	}
}
