package container

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
)

func TestWhichDevicesAreMeant(t *testing.T) {
	gpu := [][]string{{"gpu"}}
	for name, tc := range map[string]struct {
		r       DeviceRequest
		vendors []string
		want    string // "!" and a part of the error
	}{
		"all of them":                  {DeviceRequest{Count: -1, Capabilities: gpu}, []string{"nvidia.com"}, "nvidia.com/gpu=all"},
		"two":                          {DeviceRequest{Count: 2, Capabilities: gpu}, []string{"nvidia.com"}, "nvidia.com/gpu=0 nvidia.com/gpu=1"},
		"by index and by name":         {DeviceRequest{DeviceIDs: []string{"3", "a.com/b=c"}, Capabilities: gpu}, []string{"nvidia.com"}, "nvidia.com/gpu=3 a.com/b=c"},
		"another vendor's":             {DeviceRequest{Count: -1, Capabilities: gpu}, []string{"amd.com"}, "amd.com/gpu=all"},
		"one of two sets":              {DeviceRequest{Count: 1, Capabilities: [][]string{{"tpu"}, {"gpu", "compute"}}}, []string{"amd.com", "nvidia.com"}, "nvidia.com/gpu=0"},
		"a driver by name":             {DeviceRequest{Driver: "nvidia", Count: 1}, []string{"nvidia.com"}, "nvidia.com/gpu=0"},
		"by full name":                 {DeviceRequest{Driver: "cdi", DeviceIDs: []string{"a.com/b=c"}}, nil, "a.com/b=c"},
		"none described":               {DeviceRequest{Count: 1, Capabilities: gpu}, nil, `!could not select device driver "" with capabilities: [[gpu]]`},
		"an unknown driver":            {DeviceRequest{Driver: "x", Count: 1}, []string{"nvidia.com"}, `!could not select device driver "x"`},
		"no capability":                {DeviceRequest{Count: 1}, []string{"nvidia.com"}, "!could not select device driver"},
		"both number and names":        {DeviceRequest{Count: 1, DeviceIDs: []string{"0"}, Capabilities: gpu}, []string{"nvidia.com"}, "!cannot set both Count and DeviceIDs"},
		"a number of described ones":   {DeviceRequest{Driver: "cdi", Count: 1}, nil, "!unexpected count"},
		"options of described devices": {DeviceRequest{Driver: "cdi", Options: map[string]string{"a": "b"}}, nil, "!unexpected options"},
	} {
		got, err := tc.r.names(tc.vendors)
		if part, bad := strings.CutPrefix(tc.want, "!"); bad {
			if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q", name, err, part)
			}
		} else if err != nil || strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %q %v, want %q", name, got, err, tc.want)
		}
	}
}

func TestDescribedDevices(t *testing.T) {
	b := newBed(t)
	dir := filepath.Join(b.dir, "cdi")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.m.devices.dirs = []string{dir, filepath.Join(b.dir, "not-there")}
	shared := filepath.Join(b.dir, "driver.txt")
	if err := os.WriteFile(shared, []byte("library"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, names, warnings := b.m.Devices(); len(names) != 0 || len(warnings) != 0 {
		t.Errorf("with nothing described: %q %q", names, warnings)
	}
	missing := b.create(Config{Host: HostConfig{DeviceRequests: []DeviceRequest{{Driver: "cdi", DeviceIDs: []string{"sampan.test/null=one"}}}}}, "env")
	if err := b.m.Start(t.Context(), missing); err == nil || !strings.Contains(err.Error(), "unresolvable CDI devices sampan.test/null=one") {
		t.Errorf("a device that nobody describes: %v", err)
	}
	// Described while the daemon runs, as when a driver is installed.
	if err := os.WriteFile(filepath.Join(dir, "null.json"), []byte(`{"cdiVersion":"0.6.0","kind":"sampan.test/null","devices":[
		{"name":"one","containerEdits":{"deviceNodes":[{"path":"/dev/sampan-null","hostPath":"/dev/null"}]}}],
		"containerEdits":{"env":["FROM_CDI=yes"],"mounts":[{"hostPath":"`+shared+`","containerPath":"/driver.txt","options":["ro","bind"]}]}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "torn.json"), []byte(`{"cdiVersion":`), 0o644); err != nil {
		t.Fatal(err)
	}
	_, names, warnings := b.m.Devices()
	if !slices.Equal(names, []string{"sampan.test/null=one"}) || len(warnings) != 1 || !strings.Contains(warnings[0], "torn.json") {
		t.Errorf("described: %q, wrong: %q", names, warnings)
	}
	b.start(missing)
	if code := b.wait(missing, ""); code != 0 || !strings.Contains(b.output(missing), "FROM_CDI=yes\n") {
		t.Errorf("code %d, variables %q", code, b.output(missing))
	}
	reads := b.run(Config{Host: HostConfig{DeviceRequests: []DeviceRequest{{Driver: "cdi", DeviceIDs: []string{"sampan.test/null=one"}}}}},
		"cat", "/dev/sampan-null", "/driver.txt")
	if code := b.wait(reads, ""); code != 0 || b.output(reads) != "library" {
		t.Errorf("code %d, device and file hold %q", code, b.output(reads))
	}
}
