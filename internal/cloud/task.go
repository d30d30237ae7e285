package cloud

import (
	"net/netip"
	"time"
)

// TaskState is a step in a task's life. States only grow, but for failures that jump to an end.
type TaskState uint8

// The task states, in the order in which a task passes them. Everything from Complete on is an end.
const (
	TaskNew       TaskState = iota // made by an orchestrator
	TaskPending                    // has its addresses, waits for a node
	TaskAssigned                   // has a node
	TaskAccepted                   // its agent has it
	TaskPreparing                  // image and networks are being readied
	TaskReady                      // could start
	TaskStarting                   // is starting, or started and not yet healthy
	TaskRunning                    // runs, and is healthy if it has a health check
	TaskComplete                   // ended with exit code 0
	TaskShutdown                   // stopped on request
	TaskFailed                     // ended otherwise
	TaskRejected                   // the node could not run it
	TaskRemove                     // desired only: to be stopped and forgotten
	TaskOrphaned                   // its node has been gone for too long
)

var taskStateNames = [...]string{"new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running",
	"complete", "shutdown", "failed", "rejected", "remove", "orphaned"}

// String returns the state as Docker's API spells it.
func (s TaskState) String() string {
	if int(s) < len(taskStateNames) {
		return taskStateNames[s]
	}
	return "unknown"
}

// Ended reports whether a task in this state runs no more.
func (s TaskState) Ended() bool { return s >= TaskComplete }

// Task is one container's worth of a service: placed on one node at most once, never moved.
type Task struct {
	Meta
	ServiceID   string            `json:"serviceID"`
	ServiceName string            `json:"serviceName"`    // as of its making
	Slot        int               `json:"slot,omitempty"` // 1…; 0 for a task of a global service
	NodeID      string            `json:"nodeID,omitempty"`
	Spec        TaskSpec          `json:"spec"`
	SpecVersion uint64            `json:"specVersion"`
	Desired     TaskState         `json:"desired"`
	Status      TaskStatus        `json:"status"`
	Networks    []TaskNetwork     `json:"networks,omitempty"`
	Ports       []PortConfig      `json:"ports,omitempty"`   // the service's, as allocated
	Labels      map[string]string `json:"labels,omitempty"`  // the service's
	Generic     []GenericResource `json:"generic,omitempty"` // what the scheduler took of the node for it
	// Restarts are the times at which earlier tasks of this slot and specification were replaced because they had ended,
	// oldest first, as far as the restart policy needs them.
	Restarts []time.Time `json:"restarts,omitempty"`
	// Iteration is the run of its job that the task belongs to; nil for a task of a service that is no job.
	Iteration *uint64 `json:"iteration,omitempty"`
	// StartAfter is when a task made ahead (Desired is TaskReady) may start: a restart delay.
	StartAfter time.Time `json:"startAfter,omitzero"`
}

// TaskStatus is what is known of a task. The agent owns it once the task has a node.
type TaskStatus struct {
	State       TaskState    `json:"state"`
	Message     string       `json:"message,omitempty"`
	Err         string       `json:"err,omitempty"`
	Timestamp   time.Time    `json:"timestamp"`
	RunningAt   time.Time    `json:"runningAt,omitzero"` // when it entered TaskRunning
	ContainerID string       `json:"containerID,omitempty"`
	PID         int          `json:"pid,omitempty"`
	ExitCode    int          `json:"exitCode,omitempty"`
	HostPorts   []PortConfig `json:"hostPorts,omitempty"` // what host-mode ports were really given
}

// TaskNetwork is what the allocator gave a task on one network.
type TaskNetwork struct {
	NetworkID string         `json:"networkID"`
	Addrs     []netip.Prefix `json:"addrs"`
	Aliases   []string       `json:"aliases,omitempty"`
}

// Serving reports whether the task may be sent requests: it runs, is healthy, and is meant to go on.
func (t *Task) Serving() bool {
	return t.Status.State == TaskRunning && t.Desired <= TaskRunning
}

// Attachment is a standalone container on an attachable cluster network, made by its node on the user's request.
type Attachment struct {
	Meta
	NodeID      string         `json:"nodeID"`
	NetworkID   string         `json:"networkID"`
	ContainerID string         `json:"containerID"`
	Name        string         `json:"name"` // the container's
	Aliases     []string       `json:"aliases,omitempty"`
	Requested   []netip.Addr   `json:"requested,omitempty"` // addresses the user asked for
	Addrs       []netip.Prefix `json:"addrs,omitempty"`     // what the allocator gave
	Err         string         `json:"err,omitempty"`       // why it gave none
}
