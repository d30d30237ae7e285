// Package control is what managers do with the cluster's state. API is the control API that any manager serves: it
// checks what users ask for and writes it down. Leader runs the loops that make it true, on the elected leader only:
// orchestrator, allocator, scheduler and dispatcher, each level-triggered on the state and on nothing else, so that one
// killed anywhere is taken up by the next. The package knows nothing of HTTP, containers or kernels.
package control

import (
	"context"
	"time"
)

// LogOptions choose lines of tasks' logs. Tail -1: all. The zero times are no bounds.
type LogOptions struct {
	Stdout, Stderr bool
	Follow         bool
	Tail           int
	Since, Until   time.Time
	// Services: while following, tasks of these services join as they start.
	Services []string
}

// TaskLog is one line of a task's log.
type TaskLog struct {
	TaskID string
	NodeID string
	Stderr bool
	Time   time.Time
	Line   []byte // with its newline if it had one
	Attrs  map[string]string
}

// Event says that something of the cluster changed, in the terms of Docker's events of scope swarm: Type is node,
// service, network, secret or config; Action is create, update or remove.
type Event struct {
	Type   string
	Action string
	ID     string
	Attrs  map[string]string // name, and what changed: state.old, state.new, replicas.old, …
	Time   time.Time
}

// Election says who leads: internal/node implements it over etcdstate.
type Election interface {
	// Leadership says at once and after every change whether this manager leads, until ctx ends; then the channel is
	// closed. It is (*etcdstate.Store).Leadership.
	Leadership(ctx context.Context) <-chan bool
	// LeaderNode returns the leading manager's node ID, "" when there is none.
	LeaderNode() string
	// Reachable reports whether the manager with that node ID answers.
	Reachable(nodeID string) bool
}
