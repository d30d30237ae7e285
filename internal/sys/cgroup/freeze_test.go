package cgroup

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// tree makes folders with files as the kernel would, and returns the first one's path.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// TestFreezeOfVersion2: what cannot be frozen in time goes on, and has the limits that it had, as those have that were made
// in it; what can has them too.
func TestFreezeOfVersion2(t *testing.T) {
	for name, stops := range map[string]bool{"in time": true, "never": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limits := map[string]string{
					"c/cpu.max": "5000 100000", "c/cpu.weight": "1", "c/inner/cpu.max": "max 100000", "c/inner/cpu.weight": "100",
				}
				files := maps.Clone(limits)
				files["c/cgroup.freeze"], files["c/cgroup.events"] = "0\n", "populated 1\nfrozen 0\n"
				root := tree(t, files)
				group := filepath.Join(root, "c")
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("a second"))
				defer cancel()
				noted := Held{}
				err := Freeze(ctx, Groups{"": group}, func(held Held) error {
					maps.Copy(noted, held)
					return nil
				}, func() {
					if got := read(t, filepath.Join(group, "cpu.max")) + " " + read(t, filepath.Join(group, "inner/cpu.weight")); got != "max 10000" {
						t.Errorf("while it is being frozen: %q", got)
					}
					if stops {
						_ = os.WriteFile(filepath.Join(group, "cgroup.events"), []byte("populated 1\nfrozen 1\n"), 0)
					}
				})
				want := "0"
				if stops {
					want = "1"
				}
				if (err == nil) != stops || err != nil && !strings.Contains(err.Error(), "a second") {
					t.Errorf("error %v", err)
				}
				if got := read(t, filepath.Join(group, "cgroup.freeze")); got != want {
					t.Errorf("cgroup.freeze %s, want %s", got, want)
				}
				for name, text := range limits {
					if got := read(t, filepath.Join(root, name)); got != text || noted[filepath.Join(root, name)] != text {
						t.Errorf("%s: %q, noted %q, want %q", name, got, noted[filepath.Join(root, name)], text)
					}
				}
			})
		})
	}
}

func TestFrozenAbove(t *testing.T) {
	for _, tc := range []struct {
		name   string
		files  map[string]string
		groups map[string]string
		want   string
	}{
		{"version 1", map[string]string{
			"f/a/freezer.state": "FROZEN\n", "f/a/freezer.self_freezing": "1\n",
			"f/a/b/freezer.state": "FREEZING\n", "f/a/b/freezer.self_freezing": "0\n", "f/tasks": "",
		}, map[string]string{"freezer": "f/a/b/not/yet/c"}, "f/a/freezer.state"},
		{"version 1, thawed, another is frozen", map[string]string{
			"f/a/freezer.state": "THAWED\n", "f/x/freezer.state": "FROZEN\n", "f/x/freezer.self_freezing": "1\n",
		}, map[string]string{"freezer": "f/a/c"}, ""},
		{"the group alone", map[string]string{
			"f/a/freezer.state": "THAWED\n", "f/a/c/freezer.state": "FROZEN\n", "f/a/c/freezer.self_freezing": "1\n",
		}, map[string]string{"freezer": "f/a/c"}, ""},
		{"version 2", map[string]string{
			"u/cgroup.procs": "", "u/a/cgroup.freeze": "1\n", "u/a/b/cgroup.freeze": "0\n",
		}, map[string]string{"": "u/a/b/not/yet/c"}, "u/a/cgroup.freeze"},
		{"both, neither frozen", map[string]string{
			"f/a/freezer.state": "THAWED\n", "u/a/cgroup.freeze": "0\n",
		}, map[string]string{"freezer": "f/a/c", "": "u/a/c"}, ""},
		{"neither there", nil, map[string]string{}, ""},
	} {
		root := tree(t, tc.files)
		groups := Groups{}
		for controller, dir := range tc.groups {
			groups[controller] = filepath.Join(root, dir)
		}
		want := tc.want
		if want != "" {
			want = filepath.Join(root, want)
		}
		if got := FrozenAbove(groups); got != want {
			t.Errorf("%s: %q, want %q", tc.name, got, want)
		}
	}
}

// BenchmarkFrozenAbove is what each start of a container pays to be told of a frozen group.
func BenchmarkFrozenAbove(b *testing.B) {
	groups := Groups{"freezer": "/sys/fs/cgroup/freezer/docker/c", "": "/sys/fs/cgroup/unified/docker/c"}
	if Unified() {
		groups = Groups{"": "/sys/fs/cgroup/docker/c"}
	}
	for b.Loop() {
		if above := FrozenAbove(groups); above != "" {
			b.Fatal(above)
		}
	}
}
