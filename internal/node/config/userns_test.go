package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

func testAccounts(t *testing.T, subuid, subgid string) accounts {
	t.Helper()
	dir := t.TempDir()
	a := accounts{passwd: filepath.Join(dir, "passwd"), group: filepath.Join(dir, "group"), subuid: filepath.Join(dir, "subuid"), subgid: filepath.Join(dir, "subgid")}
	for path, text := range map[string]string{a.passwd: "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n",
		a.group: "root:x:0:\nalice:x:1000:\nstaff:x:50:\nbob:x:1001:\n", a.subuid: subuid, a.subgid: subgid} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func TestUsernsRemap(t *testing.T) {
	ranges := "alice:100000:65536\nalice:300000:10\n"
	a := testAccounts(t, ranges, ranges)
	for _, spec := range []string{"alice", "1000", "alice:alice", "alice:staff", "1000:50", "alice:1000"} {
		u, err := a.userNS(spec, "")
		if err != nil || len(u.Remap.UIDs) != 2 || u.Remap.UIDs[1] != (userns.Range{Inside: 65536, Outside: 300000, Count: 10}) || len(u.Remap.GIDs) != 2 {
			t.Errorf("%s: %+v, %v", spec, u, err)
		}
	}
	if u, err := a.userNS("root", ""); err != nil || u.On() {
		t.Errorf("root is remapped to %+v, %v", u, err)
	}
	for spec, want := range map[string]string{
		"carol": `Error during uid lookup for "carol"`, "2000": "Uid 2000 has no entry in /etc/passwd", "alice:nobody": `Error during gid lookup for "nobody"`,
		"alice:77": "Gid 77 has no entry in /etc/group", "a:b:c": `Invalid user/group specification in --userns-remap: "a:b:c"`, ":": "Invalid user/group specification",
		"bob": `no subuid ranges found for user "bob"`,
	} {
		if _, err := a.userNS(spec, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", spec, err, want)
		}
	}
}

// TestUsernsRemapDefault: IDs are set aside for dockremap once, above those of others, and are the same afterwards.
func TestUsernsRemapDefault(t *testing.T) {
	a := testAccounts(t, "alice:100000:65536\nbob:900000:65536", "")
	first, err := a.userNS("default", "")
	if err != nil {
		t.Fatal(err)
	}
	if u, g := first.Remap.Out(0, 0); u != 965536 || g != 100000 {
		t.Errorf("root is %d:%d", u, g)
	}
	again, err := a.userNS("default", "")
	if err != nil || again.Remap.String() != first.Remap.String() {
		t.Errorf("%v, then %v (%v)", first.Remap, again.Remap, err)
	}
	if text, err := os.ReadFile(a.subuid); err != nil || string(text) != "alice:100000:65536\nbob:900000:65536\ndockremap:965536:65536\n" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestUsernsAuto(t *testing.T) {
	u, err := testAccounts(t, "", "").userNS("", "auto")
	if err != nil || len(u.Pool) != 4094 {
		t.Errorf("%d ranges, %v", len(u.Pool), err)
	}
	u, err = testAccounts(t, "alice:1879048192:65536\n", "bob:1879113728:65537\n").userNS("", "auto")
	if err != nil || len(u.Pool) != 4091 || u.Pool[0].Outside != 1879048192+3*container.PoolSize {
		t.Errorf("beside those of others: %d ranges, the first %+v, %v", len(u.Pool), u.Pool[0], err)
	}
	u, err = testAccounts(t, "sampan:5000000:131072\n", "sampan:5000000:131072\n").userNS("", "auto")
	if err != nil || len(u.Pool) != 1 || u.Pool[0].Outside != 5000000 {
		t.Errorf("its own: %+v, %v", u.Pool, err)
	}
	if _, err := testAccounts(t, "sampan:5000000:131072\n", "").userNS("", "auto"); err == nil {
		t.Error("users without groups were taken")
	}
}
