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
		{1040, `"NetworkMode":"none"`, `"IpcMode":""`},
	} {
		var body createBody
		if err := json.Unmarshal([]byte(`{"Image":"x","HostConfig":{`+c.host+`}}`), &body); err != nil {
			t.Fatal(err)
		}
		cfg, _, err := containerConfig(body, "n", c.version)
		got := ""
		if err != nil {
			got = err.Error()
		} else if b, merr := json.Marshal(cfg); merr == nil {
			got = string(b)
		}
		if !strings.Contains(got, c.says) {
			t.Errorf("%s of version %s lacks %s: %s", c.host, c.version, c.says, got)
		}
	}
}
