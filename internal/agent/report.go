package agent

import (
	"context"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

const (
	// reportDelay gathers the steps of many tasks into one message; an end is not delayed.
	reportDelay   = 15 * time.Millisecond
	reportTimeout = 10 * time.Second
	reportRetry   = 300 * time.Millisecond
)

// reporter tells the managers what became of the tasks. What could not be told is kept; a new session begins by telling
// everything.
type reporter struct {
	a    *Agent
	wake chan struct{} // capacity 1

	mu     sync.Mutex
	known  map[string]cloud.TaskStatus
	unsent map[string]bool // not told, or not known to be
	urgent bool
}

func newReporter(a *Agent) *reporter {
	return &reporter{a: a, wake: make(chan struct{}, 1), known: map[string]cloud.TaskStatus{}, unsent: map[string]bool{}}
}

func (r *reporter) nudge() { poke(r.wake) }

func (r *reporter) restore(statuses map[string]cloud.TaskStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.Copy(r.known, statuses)
	for id := range statuses {
		r.unsent[id] = true // whether they were told is not known
	}
}

func (r *reporter) statuses() map[string]cloud.TaskStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.known)
}

func (r *reporter) get(task string) (cloud.TaskStatus, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.known[task]
	return s, ok
}

// told reports whether the managers have what was said last of the task.
func (r *reporter) told(task string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, known := r.known[task]
	return known && !r.unsent[task]
}

func (r *reporter) set(task string, s cloud.TaskStatus) {
	r.mu.Lock()
	r.known[task] = s
	r.unsent[task] = true
	r.urgent = r.urgent || s.State.Ended()
	r.mu.Unlock()
	r.nudge()
}

func (r *reporter) forget(task string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, task)
	delete(r.unsent, task)
}

// all returns every status, for the beginning of a session.
func (r *reporter) all() []*rpc.TaskStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*rpc.TaskStatus, 0, len(r.known))
	for id, s := range r.known {
		out = append(out, &rpc.TaskStatus{TaskId: id, Status: encode(s)})
	}
	return out
}

// take returns what is to be told now.
func (r *reporter) take() map[string]cloud.TaskStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	batch := make(map[string]cloud.TaskStatus, len(r.unsent))
	for id := range r.unsent {
		batch[id] = r.known[id]
	}
	r.urgent = false
	return batch
}

// done notes that a batch was told; what changed since was not.
func (r *reporter) done(batch map[string]cloud.TaskStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range batch {
		if reflect.DeepEqual(r.known[id], s) {
			delete(r.unsent, id)
		}
	}
}

func (r *reporter) isUrgent() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.urgent
}

func (r *reporter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		if !r.isUrgent() && !pause(ctx, reportDelay) {
			return
		}
		link, _ := r.a.connected()
		if link == nil {
			continue // the next session nudges
		}
		batch := r.take()
		if len(batch) == 0 {
			continue
		}
		err := r.send(ctx, link, batch)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			r.done(batch)
		default:
			r.a.cfg.Logger.Debug("states of tasks could not be reported: will try again", "tasks", len(batch), "error", err)
			if !pause(ctx, reportRetry) {
				return
			}
			r.nudge()
		}
	}
}

func (r *reporter) send(ctx context.Context, link *Link, batch map[string]cloud.TaskStatus) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	session, _ := r.a.views.held()
	req := &rpc.UpdateTaskStatusRequest{Session: session}
	for id, s := range batch {
		req.Tasks = append(req.Tasks, &rpc.TaskStatus{TaskId: id, Status: encode(s)})
	}
	_, err := link.Dispatcher.UpdateTaskStatus(ctx, req)
	return err
}
