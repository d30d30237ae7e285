// Package arch holds the test that keeps the house's floors: an import goes down, never up.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sampan-cloud/sampan/"

// floors says, for each room of the house, which other rooms it may import, and why. A package belongs to the room with
// the longest matching prefix. fault may be imported by all and is not listed.
var floors = []struct {
	room string
	may  []string
	why  string
}{
	{"internal/fault", nil, "error kinds, undo and failpoints stand on the standard library alone"},
	{"internal/arch", nil, "it looks at the others, it does not use them"},
	{"internal/sys", nil, "thin wrappers of kernel interfaces know nothing of Sampan"},
	{"internal/cloud", nil, "the domain imports the standard library and fault"},
	{"internal/rpc", []string{"internal/identity"}, "what hosts say to each other; identity gives its callers their names"},
	{"internal/identity", []string{"internal/sys"}, "certificates and tokens"},
	{"internal/keeper", []string{"internal/sys"}, "re-executed as every container's init: each import costs each start"},
	{"internal/engine", []string{"internal/keeper", "internal/sys"}, "one host, cluster-blind: not cloud, not state, not network"},
	{"internal/build", []string{"internal/engine", "internal/keeper", "internal/rpc", "internal/sys"}, "building images: a program of its own over the engine; knows no cluster"},
	{"internal/network", []string{"internal/cloud", "internal/keeper", "internal/sys"}, "desired configuration in, kernel out: it does not know the engine"},
	{"internal/state", []string{"internal/cloud"}, "only etcdstate imports etcd"},
	{"internal/control", []string{"internal/cloud", "internal/state", "internal/rpc", "internal/identity"}, "leader loops over state"},
	{"internal/agent", []string{"internal/cloud", "internal/rpc", "internal/engine", "internal/network"}, "one host's tasks"},
	{"internal/doctor", []string{"internal/sys"}, "probes of the host"},
	{"internal/server", []string{"internal/cloud", "internal/engine", "internal/build", "internal/network", "internal/state", "internal/control"}, "wire types to domain and back"},
	{"internal/node", []string{"internal"}, "the composition root imports everything"},
	{"internal/testhost", []string{"internal"}, "hosts for tests and the demo"},
	{"cmd/demo", []string{"internal", "examples/shop"}, "it reads what the shop answers"},
	{"cmd", []string{"internal"}, "flags, configuration, run"},
	{"internal/testhost/labtest/probe", nil, "a program of its own"},
	{"examples", nil, "what a user would write"},
	{"bench", []string{"internal/testhost", "bench"}, "measures from outside"},
	{"test", []string{"internal"}, "whole programs on whole hosts"},
}

// outside names modules that only some rooms may import.
var outside = map[string][]string{
	"go.etcd.io/etcd/":                       {"internal/state/etcdstate"},
	"github.com/moby/moby/api":               {"internal/server", "internal/testhost", "test", "bench", "cmd"},
	"github.com/docker/cli":                  {"cmd/sampan"},
	"github.com/opencontainers/runc":         {"internal/keeper", "cmd/sampan-keeper"},
	"github.com/containerd/containerd":       {"internal/engine/image", "internal/build"},
	"github.com/moby/buildkit":               {"internal/build/builder"},
	"github.com/google/nftables":             {"internal/sys", "internal/network", "internal/doctor"},
	"github.com/google/go-containerregistry": {"internal/testhost"},
}

type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestImportsGoDown(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		room := roomOf(path)
		if room < 0 {
			t.Errorf("%s: no room in the floors table: add one, with what it may import and why", path)
			continue
		}
		may := floors[room].may
		for _, imported := range p.Imports {
			if inner, ok := strings.CutPrefix(imported, module); ok {
				other := roomOf(inner)
				if other == room || within(inner, "internal/fault") || slices.ContainsFunc(may, func(m string) bool { return within(inner, m) }) {
					continue
				}
				t.Errorf("%s imports %s: not allowed (%s)", path, inner, floors[room].why)
			}
			for prefix, rooms := range outside {
				if strings.HasPrefix(imported, prefix) && !slices.ContainsFunc(rooms, func(r string) bool { return within(path, r) }) {
					t.Errorf("%s imports %s: only %s may", path, imported, strings.Join(rooms, ", "))
				}
			}
		}
	}
}

// TestDomainIsPure: cloud imports the standard library and fault only.
func TestDomainIsPure(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != module+"internal/cloud" {
			continue
		}
		for _, imported := range p.Imports {
			if first, _, _ := strings.Cut(imported, "/"); strings.Contains(first, ".") && !strings.HasPrefix(imported, module+"internal/fault") {
				t.Errorf("internal/cloud imports %s", imported)
			}
		}
	}
}

func within(path, room string) bool { return path == room || strings.HasPrefix(path, room+"/") }

func roomOf(path string) int {
	best := -1
	for i, f := range floors {
		if within(path, f.room) && (best < 0 || len(f.room) > len(floors[best].room)) {
			best = i
		}
	}
	return best
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-tags", "seccomp", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
