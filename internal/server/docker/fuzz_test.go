package docker

import (
	"encoding/json"
	"testing"
	"time"

	apinetwork "github.com/moby/moby/api/types/network"
	apiswarm "github.com/moby/moby/api/types/swarm"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// FuzzFilters: whatever a client sends is understood or refused as the client's fault.
func FuzzFilters(f *testing.F) {
	for _, s := range []string{``, `{}`, `{"name":{"a":true,"b":false}}`, `{"name":["a","b"]}`, `{"until":["24h"]}`, `{"dangling":["true","0"]}`, `{"name":["("]}`, `[]`, `{"a":null}`, `{"a":3}`, `{"a":{"b":1}}`, `nonsense`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := decodeFilters(s)
		if err != nil {
			if !fault.Is(err, fault.InvalidArgument) {
				t.Errorf("%q: %v is of kind %v", s, err, fault.KindOf(err))
			}
			return
		}
		_ = got.accept("name", "label")
		_ = got.match("name", "web")
		_ = got.labels("label", map[string]string{"a": "b"})
		for _, err := range []error{second(got.until(time.Now())), second(got.flag("dangling", false))} {
			if err != nil && !fault.Is(err, fault.InvalidArgument) {
				t.Errorf("%q: %v", s, err)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

// FuzzCreate: no body of a create request makes the server panic, and what is refused is the client's fault.
func FuzzCreate(f *testing.F) {
	for _, s := range []string{
		`{"Image":"x","Cmd":["a"],"HostConfig":{"Binds":["/a:/b:ro","v:/c"],"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"80-90"}]},"Mounts":[{"Type":"tmpfs","Target":"/t"}]},"NetworkingConfig":{"EndpointsConfig":{"n":{"IPAMConfig":{"IPv4Address":"10.0.0.1"}},"m":null}}}`,
		`{"Image":"x","MacAddress":"02:42:00:00:00:01","Healthcheck":{"Test":["CMD","a"],"Interval":1000000000}}`,
		`{"HostConfig":{"Ulimits":[null],"BlkioWeightDevice":[null],"Devices":[{}]}}`, `{}`, `null`, `[]`, `"x"`, `{"Volumes":{"/a":{},"b":{}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var create createBody
		err := decodeJSON(body, &create)
		if err == nil {
			for _, v := range []apiVersion{minVersion, 1043, maxVersion} {
				if _, _, err = containerConfig(create, "n", v); err != nil {
					break
				}
			}
		}
		if err != nil && !fault.Is(err, fault.InvalidArgument) && !fault.Is(err, fault.NotImplemented) {
			t.Errorf("%s: %v is of kind %v", body, err, fault.KindOf(err))
		}
	})
}

// FuzzService: a specification that is taken comes back as it was taken.
func FuzzService(f *testing.F) {
	whole, _ := json.Marshal(full())
	f.Add(whole)
	f.Add([]byte(`{"TaskTemplate":{"ContainerSpec":{"Image":"x","Secrets":[null],"Mounts":[{}]}}}`))
	f.Add([]byte(`{"Mode":{"Replicated":null},"EndpointSpec":{"Ports":[{"TargetPort":1}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var in apiswarm.ServiceSpec
		if decodeJSON(body, &in) != nil {
			return
		}
		spec, err := serviceSpec(&in)
		if err != nil {
			if !fault.Is(err, fault.InvalidArgument) && !fault.Is(err, fault.NotImplemented) {
				t.Errorf("%s: %v is of kind %v", body, err, fault.KindOf(err))
			}
			return
		}
		wire := wireServiceSpec(&spec)
		again, err := serviceSpec(&wire)
		if err != nil {
			t.Fatalf("%s: what was given out is refused: %v", body, err)
		}
		if !spec.Task.Equal(&again.Task) {
			t.Errorf("%s: comes back changed:\n%+v\n%+v", body, spec.Task, again.Task)
		}
	})
}

// FuzzNetwork: the same for networks.
func FuzzNetwork(f *testing.F) {
	f.Add([]byte(`{"Name":"n","IPAM":{"Config":[{"Subnet":"10.0.0.0/24","Gateway":"10.0.0.1","IPRange":"10.0.0.128/25","AuxiliaryAddresses":{"a":"10.0.0.2"}},{"Subnet":"fd00::/64"}]}}`))
	f.Add([]byte(`{"IPAM":{"Config":[{},{}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var in apinetwork.CreateRequest
		if decodeJSON(body, &in) != nil {
			return
		}
		for _, err := range []error{second(localNetworkSpec(&in)), second(clusterNetworkSpec(&in))} {
			if err != nil && !fault.Is(err, fault.InvalidArgument) {
				t.Errorf("%s: %v", body, err)
			}
		}
	})
}

// FuzzPath: no path makes the server panic.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/v1.44/x", "/v1./x", "/v/x", "//", "", "/v1.44", "/v99999999999.1/x", "/_ping"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, rest, err := splitVersion(s)
		if err == nil && (v < minVersion || v > maxVersion || len(rest) == 0 || rest[0] != '/') {
			t.Errorf("%q: %v %q", s, v, rest)
		}
	})
}
