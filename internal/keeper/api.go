// Package keeper is the daemon's side of sampan-keeper, the small program that is the parent of a host's containers and
// holds what must not blink when the daemon goes: their I/O and log files, their exit codes, and the name server with
// its sockets and last table. One keeper serves one sampand (one exec root); it outlives it, and is found again at
// EXEC-ROOT/keeper.sock.
//
// The program itself is internal/keeper/server (containers, I/O) and internal/keeper/names (name server). It is
// re-executed as every container's init, so what it imports is counted in milliseconds per start.
package keeper

import (
	"encoding/json"
	"net/netip"
	"time"
)

// ProtocolVersion is spoken by this daemon. A keeper that answers Hello with a newer one is refused with a clear error;
// one with an older one, or of another build, is upgraded in place (execve), in either direction: what a keeper leaves
// on disk and to the program after it is read by every build of the same version.
const ProtocolVersion = 1

// Spec is a container to be created: everything is prepared (root file system mounted, namespace pinned, hosts files
// written); the keeper only runs it.
type Spec struct {
	ID            string          `json:"id"`     // 64 hex digits
	Bundle        json.RawMessage `json:"bundle"` // OCI runtime spec (specs.Spec); Linux.CgroupsPath set, network namespace path set
	Terminal      bool            `json:"terminal"`
	OpenStdin     bool            `json:"openStdin"` // keep stdin open for attaches; false: /dev/null
	StdinOnce     bool            `json:"stdinOnce"` // close stdin when the first attached client has gone
	Log           LogSpec         `json:"log"`
	SystemdCgroup bool            `json:"systemdCgroup,omitempty"`
	NoNewKeyring  bool            `json:"noNewKeyring,omitempty"`
	OOMScoreAdj   *int            `json:"oomScoreAdj,omitempty"`
}

// LogSpec says where the keeper writes what the container prints. Driver "json-file" writes Docker's json-file format
// to Path with rotation (Path.1 is the previous file); "none" writes nothing; "spool" is for drivers that live in the
// daemon and reads like json-file.
type LogSpec struct {
	Driver   string            `json:"driver"`
	Path     string            `json:"path"`
	MaxSize  int64             `json:"maxSize,omitempty"` // bytes, 0: no rotation
	MaxFiles int               `json:"maxFiles,omitempty"`
	Compress bool              `json:"compress,omitempty"`
	Attrs    map[string]string `json:"attrs,omitempty"`
}

// Process is a process to exec in a running container.
type Process struct {
	Container string          `json:"container"`
	ExecID    string          `json:"execID"`  // 64 hex digits
	Process   json.RawMessage `json:"process"` // OCI process (specs.Process)
	Terminal  bool            `json:"terminal"`
	OpenStdin bool            `json:"openStdin"`
	// Attach: somebody will attach to it. What it prints before is kept; more than can be kept holds it up.
	Attach bool `json:"attach,omitempty"`
}

// Status is what the keeper knows of a container or exec.
type Status struct {
	ID        string    `json:"id"`
	ExecID    string    `json:"execID,omitempty"`
	PID       int       `json:"pid,omitempty"` // in the daemon's PID namespace; 0 when it does not run
	State     State     `json:"state"`
	Paused    bool      `json:"paused,omitempty"`
	StartedAt time.Time `json:"startedAt,omitzero"`
	ExitedAt  time.Time `json:"exitedAt,omitzero"`
	ExitCode  int       `json:"exitCode"` // 128+signal when killed by one; -1 with ExitUnknown
	OOMKilled bool      `json:"oomKilled,omitempty"`
	// ExitUnknown: the process is gone and nobody saw its exit code.
	ExitUnknown bool `json:"exitUnknown,omitempty"`
}

// State is where a process stands.
type State string

// The states.
const (
	Created State = "created" // its init waits for Start
	Running State = "running"
	Exited  State = "exited"
)

// EventType is what happened.
type EventType string

// The event types.
const (
	EventExit EventType = "exit" // Status is the final one
	EventOOM  EventType = "oom"
)

// Event is told to the daemon. Exits are kept by the keeper until Delete, so a daemon that was away reads them by List.
type Event struct {
	Type   EventType `json:"type"`
	Status Status    `json:"status"`
}

// Resources are the limits that can change while a container runs: an OCI linux.resources document.
type Resources = json.RawMessage

// NameTable is the whole of what the name server answers: replaced at once, never changed in part. The keeper keeps the
// newest on disk and serves it whether or not a daemon is there.
type NameTable struct {
	Revision  uint64              `json:"revision"`
	Networks  map[string]Names    `json:"networks"`  // by network ID
	Sandboxes map[string]Resolver `json:"sandboxes"` // by sandbox ID
}

// Names are the names of one network: lower case, without a trailing dot, to addresses.
type Names struct {
	Records map[string][]netip.Addr `json:"records"`
	// Reverse gives the name for an address (PTR), for example NAME.NETWORK.
	Reverse map[netip.Addr]string `json:"reverse,omitempty"`
	// Services are those that can be asked for by SRV: "_PORT._PROTOCOL.NAME" (RFC 2782) to who serves them. A service
	// that nobody serves now is there all the same.
	Services map[string][]Server `json:"services,omitempty"`
}

// Server is who serves a port of a service: a name among the network's Records, and the port.
type Server struct {
	Name string `json:"name"`
	Port uint16 `json:"port"`
}

// Resolver is the name server of one sandbox: it answers from its networks in order, then forwards.
type Resolver struct {
	NetNS     string                  `json:"netns"`  // path of the pinned namespace
	Listen    netip.AddrPort          `json:"listen"` // 127.0.0.11 and the port that the sandbox's redirect points to; UDP and TCP
	Networks  []string                `json:"networks"`
	Own       map[string][]netip.Addr `json:"own,omitempty"` // names of this sandbox alone (links)
	Upstreams []netip.AddrPort        `json:"upstreams,omitempty"`
	// UpstreamsFromHost: the upstream servers are asked from the host's namespace (they are loopback addresses there).
	UpstreamsFromHost bool     `json:"upstreamsFromHost,omitempty"`
	Search            []string `json:"search,omitempty"`
	NDots             int      `json:"ndots,omitempty"`
	// Authoritative: an unqualified name that is not found is NXDOMAIN and is not forwarded (internal networks).
	Authoritative bool `json:"authoritative,omitempty"`
}

// AttachOptions choose the streams of an attach.
type AttachOptions struct {
	ID     string `json:"id"`
	ExecID string `json:"execID,omitempty"`
	Stdin  bool   `json:"stdin,omitempty"`
	Stdout bool   `json:"stdout,omitempty"`
	Stderr bool   `json:"stderr,omitempty"`
	// From is set when an attach to a keeper that is gone is taken up with the next one: which byte of each stream,
	// numbered as streams are, is wanted next.
	From []int64 `json:"from,omitempty"`
}

// The client is (*Client), in client.go: Ensure finds or starts the keeper of an exec root; Create, Start, Exec, Attach,
// Signal, Resize, Pause, Resume, Update, Delete, List, Status, Events, SetNames, PID, Close, Shutdown and Upgrade are its
// methods.
