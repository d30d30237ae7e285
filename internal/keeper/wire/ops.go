package wire

// The operations. A request's body and its response's body are named beside each; package keeper has the types.
const (
	OpHello    = "hello"    // Hello → HelloReply
	OpCreate   = "create"   // Spec → Status
	OpStart    = "start"    // Target → Status
	OpExec     = "exec"     // Process → Status
	OpAttach   = "attach"   // AttachOptions → AttachReply; the connection then carries frames
	OpSignal   = "signal"   // Signal → nothing
	OpResize   = "resize"   // Resize → nothing
	OpPause    = "pause"    // Target → nothing
	OpResume   = "resume"   // Target → nothing
	OpUpdate   = "update"   // Update → nothing
	OpDelete   = "delete"   // Target → nothing
	OpList     = "list"     // nothing → []Status
	OpStatus   = "status"   // Target → Status
	OpNames    = "names"    // NameTable → nothing
	OpUpgrade  = "upgrade"  // Upgrade → no response: the keeper is replaced
	OpShutdown = "shutdown" // nothing → nothing

	PushEvent = "event" // Event
	PushHold  = "hold"  // Handle, with its descriptors: the daemon keeps them for a keeper that dies
	PushDrop  = "drop"  // Handle: the daemon closes them

	// On the socket that a new keeper inherits, from the daemon: any number of PushHold, then HandoverDone with a Handover;
	// and back HandoverReady, or an error.
	HandoverDone  = "done"
	HandoverReady = "ready"
)

// Hello opens a connection.
type Hello struct {
	Version int  `json:"version"`
	Events  bool `json:"events"` // push events and descriptors on this connection
}

// HelloReply answers it.
type HelloReply struct {
	Version int    `json:"version"`
	PID     int    `json:"pid"`
	Build   string `json:"build,omitempty"` // keeper.BuildOf the running program; empty: not known
	// Instance tells one run of the program from another, also of those in one process.
	Instance string `json:"instance,omitempty"`
}

// AttachReply answers an attach. A keeper that sends none cannot take up an attach to the keeper before it.
type AttachReply struct {
	Instance string `json:"instance"`
	// From is at which byte of each stream, numbered as streams are, the output begins.
	From []int64 `json:"from"`
	// Input is how many bytes were written to the process' standard input, by all who were ever attached.
	Input int64 `json:"input,omitempty"`
	// InputUnsure: the keeper before this one was killed in the middle of a write; perhaps there are more.
	InputUnsure bool `json:"inputUnsure,omitempty"`
}

// Handover is what a daemon tells a new keeper beside what it holds.
type Handover struct {
	// Attached are those who were attached to the keeper before and come back, one entry for each.
	Attached []Target `json:"attached,omitempty"`
	// New: the daemon has had no keeper before. Of those whom the daemon before it was to attach nobody comes any more.
	New bool `json:"new,omitempty"`
}

// Target names a container or one of its execs.
type Target struct {
	ID     string `json:"id"`
	ExecID string `json:"execID,omitempty"`
}

// Signal is a signal to a process or to all of a container's.
type Signal struct {
	Target
	Signal int  `json:"signal"`
	All    bool `json:"all,omitempty"`
}

// Resize sets a terminal's size.
type Resize struct {
	Target
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Upgrade tells the keeper to become the named program.
type Upgrade struct {
	Binary string `json:"binary"`
}

// Handle names descriptors of a process, one name for each descriptor beside the message.
type Handle struct {
	Target
	Names []string `json:"names"`
}

// The names of descriptors in a Handle.
const (
	HandlePIDFD  = "pidfd"
	HandlePTY    = "pty"
	HandleStdin  = "stdin"  // the writing end
	HandleStdout = "stdout" // the reading end: keeps what is in the pipe if the process goes while no keeper is there
	HandleStderr = "stderr"
	HandleRelay  = "relay" // what was taken from a terminal and is not in the spool yet
	HandleStart  = "start" // the reading end by which a created container is let run, while it is
)
