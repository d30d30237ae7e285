package server

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/sys/cgroup"
)

// record is what is on disk of a container or exec, so that a keeper started later can go on with it.
type record struct {
	ID          string         `json:"id"`
	ExecID      string         `json:"execID,omitempty"`
	Making      bool           `json:"making,omitempty"`   // it is not whole: to be taken down
	Starting    bool           `json:"starting,omitempty"` // it was asked to run; perhaps it does
	Terminal    bool           `json:"terminal,omitempty"`
	OpenStdin   bool           `json:"openStdin,omitempty"`
	StdinOnce   bool           `json:"stdinOnce,omitempty"`
	StdinClosed bool           `json:"stdinClosed,omitempty"`
	Attach      bool           `json:"attach,omitempty"` // an exec that somebody attaches to, and has not left yet
	Log         keeper.LogSpec `json:"log,omitzero"`
	SharedPIDs  bool           `json:"sharedPIDs,omitempty"` // its PID namespace is not its own: its processes do not go with its first one
	Ticks       uint64         `json:"ticks,omitempty"`      // when the process was started, tells it from a later one with its ID
	Status      keeper.Status  `json:"status"`
	Final       *keeper.Status `json:"final,omitempty"` // it has exited, but perhaps not all it printed is in the log
	// Cgroups are the paths of the container's groups, by controller.
	Cgroups map[string]string `json:"cgroups,omitempty"`
	// Held are the limits that are lifted while it is being paused: it is to go on and get them back.
	Held cgroup.Held `json:"held,omitempty"`
}

const recordName = "record.json"

// writeJSON replaces a file at once.
func writeJSON(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func readJSON(path string, v any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}
