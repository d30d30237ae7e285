package server

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/cgroups"
)

func TestParseStat(t *testing.T) {
	line := "7 (a ) b) Z 1 7 7 0 -1 4228108 121 0 0 0 0 0 0 0 20 0 1 0 31337 0 0 18446744073709551615 0 0 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 768\n"
	st, err := parseStat([]byte(line))
	if err != nil || st.state != 'Z' || st.ticks != 31337 || st.exitCode != 768 {
		t.Errorf("%+v %v", st, err)
	}
	for _, bad := range []string{"", "7 (x", "7 (x) R 1 2", "7 (x) " + line[10:40]} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
	if st, err := readStat(os.Getpid()); err != nil || st.ticks == 0 {
		t.Errorf("own: %+v %v", st, err)
	}
}

func TestProcessTrees(t *testing.T) {
	for name, tc := range map[string]struct {
		mountinfo string
		want      []string
	}{
		"version 2": {"30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n25 1 8:1 / / rw - ext4 /dev/sda1 rw\n", []string{"/sys/fs/cgroup"}},
		"hybrid": {"31 30 0:27 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw\n" +
			"32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
			"33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\nshort - line\n", []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"}},
	} {
		path := filepath.Join(t.TempDir(), "mountinfo")
		if err := os.WriteFile(path, []byte(tc.mountinfo), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := processTrees(path); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v %v, want %v", name, got, err, tc.want)
		}
	}
}

// Version 2 tells of kills by changing a file; only a rise of oom_kill counts.
func TestOOMEventsOfVersion2(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory.events")
	write := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600) // no truncation: that would be a change of its own
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	write("low 0\noom 0\noom_kill 1\n")
	var w oomWatcher
	told := make(chan struct{}, 10)
	if err := w.watch(path, func() { told <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.file.Close() })
	write("low 1\noom 0\noom_kill 1\n")
	write("low 1\noom 1\noom_kill 2\n")
	<-told
	write("low 1\noom 2\noom_kill 3\n")
	<-told
	if len(told) > 0 {
		t.Error("told of what was no kill")
	}
}

func TestMergeResources(t *testing.T) {
	limit := int64(5)
	have := &cgroups.Resources{Memory: 100, MemorySwap: 200, CpuShares: 7, PidsLimit: &limit}
	got, err := mergeResources(have, []byte(`{"memory":{"limit":50},"cpu":{"shares":1024,"cpus":"0"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got.Memory != 50 || got.MemorySwap != 200 || got.CpuShares != 1024 || got.CpuWeight == 0 || got.CpusetCpus != "0" || *got.PidsLimit != 5 {
		t.Errorf("%+v", got)
	}
	if have.Memory != 100 || have.CpuShares != 7 {
		t.Error("what was given changed")
	}
	if _, err := mergeResources(have, []byte(`{"memory":"much"}`)); err == nil {
		t.Error("malformed resources accepted")
	}
}
