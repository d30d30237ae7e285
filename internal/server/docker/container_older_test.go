package docker

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestOlderCreates: a request means what it meant in its version.
func TestOlderCreates(t *testing.T) {
	const bind = `{"Type":"bind","Source":"/s","Target":"/t","ReadOnly":true`
	for _, c := range []struct {
		version apiVersion
		host    string
		says    string // of the error, else of the engine's configuration
	}{
		{1044, `"Mounts":[` + bind + `}]`, `"ReadOnlyNonRecursive":false`},
		{1043, `"Mounts":[` + bind + `}]`, `"ReadOnlyNonRecursive":true`},
		{1043, `"Binds":["/s:/t:ro"]`, `"ReadOnlyNonRecursive":true`},
		{1043, `"Mounts":[` + bind + `,"BindOptions":{"ReadOnlyForceRecursive":true}}]`, "ReadOnlyForceRecursive needs API v1.44"},
		{1044, `"Mounts":[` + bind + `,"BindOptions":{"ReadOnlyForceRecursive":true,"Propagation":"rprivate"}}]`, `"ReadOnlyForceRecursive":true`},
		{1042, `"Mounts":[` + bind + `,"BindOptions":{"CreateMountpoint":true}}]`, `"CreateMountpoint":true`},
		{1041, `"Mounts":[` + bind + `,"BindOptions":{"CreateMountpoint":true,"NonRecursive":true},"TmpfsOptions":{"SizeBytes":1}}]`, `"ReadOnlyForceRecursive":false,"CreateMountpoint":false`},
		{1044, `"Mounts":[{"Type":"volume","Source":"vv","Target":"/t","VolumeOptions":{"Subpath":"x"}}]`, "Subpath needs API v1.45"},
		{1047, `"Mounts":[{"Type":"image","Source":"x","Target":"/t"}]`, "needs API v1.48"},
		{1042, `"Annotations":{"a":"b"}`, `"Annotations":null`},
		{1041, `"ConsoleSize":[10,20]`, `"ConsoleSize":[0,0]`},
		{1039, `"NetworkMode":"none"`, `"IpcMode":"shareable"`},
		{1040, `"Capabilities":["NET_ADMIN"]`, "use CapAdd and CapDrop"},
		{1041, `"Capabilities":["NET_ADMIN"]`, `"CapAdd":null`},
		{1040, `"NetworkMode":"none"`, `"IpcMode":""`},
	} {
		if got := engineConfig(t, `"HostConfig":{`+c.host+`}`, c.version); !strings.Contains(got, c.says) {
			t.Errorf("%s of version %s lacks %s: %s", c.host, c.version, c.says, got)
		}
	}
}

// engineConfig is what a create request of a version comes to: the error, or else the engine's configuration and the warnings.
func engineConfig(t *testing.T, fields string, version apiVersion) string {
	t.Helper()
	var body createBody
	if err := json.Unmarshal([]byte(`{"Image":"x",`+fields+`}`), &body); err != nil {
		t.Fatal(err)
	}
	cfg, warnings, err := containerConfig(body, "n", version)
	if err != nil {
		return err.Error()
	}
	b, err := json.Marshal([]any{cfg, warnings})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestHardwareAddressesByVersion: it was said of the container first, then of the endpoint.
func TestHardwareAddressesByVersion(t *testing.T) {
	const (
		own      = `"MacAddress":"02:00:00:00:00:01"`
		endpoint = `"HostConfig":{"NetworkMode":"n1"},"NetworkingConfig":{"EndpointsConfig":{"n1":{"MacAddress":"02:00:00:00:00:02"}}}`
	)
	for _, c := range []struct {
		version apiVersion
		fields  string
		says    string
	}{
		{1043, endpoint, `"LinkLocalIPs":null,"MAC":""`},
		{1044, endpoint, `"LinkLocalIPs":null,"MAC":"02:00:00:00:00:02"`},
		{1043, own + `,"HostConfig":{"NetworkMode":"none"}`, "conflicting options: mac-address and the network mode"},
		{1043, own + `,"HostConfig":{"NetworkMode":"n1"}`, `"MAC":"02:00:00:00:00:01"`},
		{1044, own + "," + endpoint, "must match the endpoint-specific MAC address"},
		{1044, own + `,"HostConfig":{"NetworkMode":"none"}`, "is now deprecated"},
		{1052, own + "," + endpoint, `"MAC":"02:00:00:00:00:02"`},
		{1051, `"HostConfig":{"PortBindings":{"81/tcp":[],"80/tcp":null}}`, `,null]`},
		{1052, `"HostConfig":{"PortBindings":{"81/tcp":[],"80/tcp":null}}`, "have an empty list of port-bindings: 80/tcp, 81/tcp."},
	} {
		if got := engineConfig(t, c.fields, c.version); !strings.Contains(got, c.says) {
			t.Errorf("%s of version %s lacks %s: %s", c.fields, c.version, c.says, got)
		}
	}
}
