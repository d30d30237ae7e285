// Package doctor looks at a host and says what of the kernel's features is there, what is used instead of what is not,
// and what a user can do about it. It changes nothing: what has to be tried is tried in a namespace of its own. It knows
// what Sampan needs of a host and nothing of Sampan's programs.
package doctor

import (
	"io/fs"
	"os"
)

// Status is the result of a probe.
type Status string

// The statuses. Missing is worse than Note only where the finding is needed.
const (
	OK      Status = "ok"
	Note    Status = "note"    // works, with something a user should know
	Missing Status = "missing" // is not there
)

// Finding is what one probe found.
type Finding struct {
	Name    string `json:"name"`
	Status  Status `json:"status"`
	Needed  bool   `json:"needed"`            // without it Sampan does not work
	Found   string `json:"found"`             // what is there
	Instead string `json:"instead,omitempty"` // what is used instead of what is missing
	Advice  string `json:"advice,omitempty"`  // what to do
}

// Fatal reports whether the finding keeps Sampan from working.
func (f Finding) Fatal() bool { return f.Needed && f.Status == Missing }

// Host is what probes look at. Tests put a host of their own making in its place.
type Host struct {
	Files    fs.FS  // the root file system
	Root     bool   // whether the caller may try what needs root
	DataRoot string // where sampand keeps its data; it need not exist
	// Free returns the free and total bytes of the file system that a path is on.
	Free func(path string) (free, total uint64, err error)
	// Try tries network features in a network namespace of its own and returns an error for each that fails, by name.
	Try func(features []string) (map[string]error, error)
	// Dropping returns the chains of this host's firewall that drop forwarded packets by their policy.
	Dropping func() ([]Chain, error)
}

// Chain is a chain of the host's firewall.
type Chain struct{ Family, Table, Name string }

// This returns the host that the program runs on.
func This(dataRoot string) *Host {
	return &Host{Files: os.DirFS("/"), Root: os.Geteuid() == 0, DataRoot: dataRoot, Free: diskFree, Try: tryNetwork, Dropping: droppingChains}
}

// Examine runs every probe.
func (h *Host) Examine() []Finding {
	var out []Finding
	for _, probe := range []func() []Finding{
		h.privileges, h.kernel, h.cgroups, h.filesystems, h.namespaces, h.seccomp, h.network, h.bpf, h.forwarding, h.ports, h.disk,
	} {
		out = append(out, probe()...)
	}
	return out
}
