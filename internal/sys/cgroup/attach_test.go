package cgroup

import (
	"os"
	"testing"
)

func TestOne(t *testing.T) {
	for _, c := range []struct{ name, lines, want string }{
		{"version 2", "0::/system.slice/sampan.service\n", "/system.slice/sampan.service"},
		{"version 1 beside an empty version 2", "9:name=systemd:/\n6:freezer:/a:b\n5:cpu,cpuacct:/x\n0::/\n", "freezer/a:b"},
		{"version 1 alone", "2:pids:/p\n1:freezer:/\n", "freezer"},
		{"no freezer", "2:pids:/p\n", ""},
		{"nothing", "", ""},
	} {
		got, err := one(c.lines)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

// TestAttachSelf: what makes attaching quick leaves this process where it is.
func TestAttachSelf(t *testing.T) {
	groups := func() string {
		b, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := groups()
	if err := attachSelf(); err != nil {
		t.Fatal(err)
	}
	if after := groups(); after != before {
		t.Errorf("groups before:\n%s\nand after:\n%s", before, after)
	}
}
