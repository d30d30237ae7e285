package network

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// TestServicesByPort: a port of a service is asked for by its name or number and leads to the ready members, also where
// the service has a virtual IP.
func TestServicesByPort(t *testing.T) {
	members := []*cloud.Member{
		{ServiceID: "s", Name: "api.1.AAA", Addrs: []netip.Addr{addrOf("10.0.0.3")}, Ready: true},
		{ServiceID: "s", Name: "api.2.bbb", Addrs: []netip.Addr{addrOf("10.0.0.4")}},
		{ServiceID: "s", Name: "api.3.ccc", Addrs: []netip.Addr{addrOf("10.0.0.5")}, Ready: true},
	}
	services := []*cloud.VirtualService{{ServiceID: "s", Name: "Api", Aliases: []string{"back"}, VIPs: []netip.Addr{addrOf("10.0.0.2")},
		Serves: []cloud.PortConfig{{Name: "Grpc", Protocol: cloud.TCP, Target: 9000}, {Protocol: cloud.UDP, Target: 53}}},
		{ServiceID: "idle", Name: "idle", Serves: []cloud.PortConfig{{Target: 80}}}}
	got := names(&cloud.Network{Spec: cloud.NetworkSpec{Name: "Front"}}, services, group(members), members)
	for _, name := range []string{"_grpc._tcp.api", "_grpc._tcp.api.front", "_9000._tcp.back", "_9000._tcp.back.front"} {
		if want := []keeper.Server{{Name: "api.1.aaa", Port: 9000}, {Name: "api.3.ccc", Port: 9000}}; !slices.Equal(got.Services[name], want) {
			t.Errorf("%s: %v", name, got.Services[name])
		}
	}
	for _, s := range got.Services["_53._udp.api"] {
		if len(got.Records[s.Name]) != 1 {
			t.Errorf("the server %s has no address", s.Name)
		}
	}
	if s, ok := got.Services["_80._tcp.idle"]; !ok || len(s) > 0 {
		t.Errorf("a service without members: %v, %v", s, ok)
	}
	if _, ok := got.Services["_grpc._udp.api"]; ok {
		t.Error("another protocol is there")
	}
}
