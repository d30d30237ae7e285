package container

import (
	"slices"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// TestDefaultsFillWhatIsNotSaid: what a container says itself counts, also when it says the opposite.
func TestDefaultsFillWhatIsNotSaid(t *testing.T) {
	d := Defaults{ShmSize: 1 << 20, IpcMode: "shareable", CgroupnsMode: "private", NoNewPrivileges: true,
		Ulimits: []Ulimit{{Name: "nofile", Soft: 100, Hard: 200}, {Name: "core", Soft: 0, Hard: 0}}}
	var silent HostConfig
	d.fill(&silent, hierarchy{})
	if silent.ShmSize != 1<<20 || silent.IpcMode != "shareable" || silent.CgroupnsMode != "private" || !slices.Equal(silent.SecurityOpt, []string{"no-new-privileges"}) {
		t.Errorf("filled %+v", silent)
	}
	own := HostConfig{ShmSize: 5, IpcMode: "private", CgroupnsMode: "host", SecurityOpt: []string{"no-new-privileges=false"}}
	filled := own
	d.fill(&filled, hierarchy{})
	if filled.ShmSize != 5 || filled.IpcMode != "private" || filled.CgroupnsMode != "host" || !slices.Equal(filled.SecurityOpt, own.SecurityOpt) {
		t.Errorf("overwritten: %+v", filled)
	}
	want := []Ulimit{{Name: "nofile", Soft: 1, Hard: 2}, {Name: "core"}}
	if got := d.ulimits(want[:1]); !slices.Equal(got, want) {
		t.Errorf("limits %v, want %v", got, want)
	}
	// With cgroup version 1 privileged containers are in the host's, as Docker has it.
	privileged := HostConfig{Privileged: true}
	if d.fill(&privileged, hierarchy{}); privileged.CgroupnsMode != "" {
		t.Errorf("privileged: %q", privileged.CgroupnsMode)
	}
}

func TestDefaultsAreValidated(t *testing.T) {
	for name, d := range map[string]Defaults{
		"limit":    {Ulimits: []Ulimit{{Name: "files"}}},
		"order":    {Ulimits: []Ulimit{{Name: "nofile", Soft: 3, Hard: 2}}},
		"size":     {ShmSize: -1},
		"IPC":      {IpcMode: "host"},
		"cgroupns": {CgroupnsMode: "x"},
		"profile":  {Seccomp: "{"},
	} {
		if err := d.Validate(); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := Defaults{Ulimits: []Ulimit{{Name: "nofile", Soft: 2, Hard: 3}}, Seccomp: `{"defaultAction": "SCMP_ACT_ALLOW"}`}
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
}
