package dispatcher

import (
	"context"
	"encoding/json"
	"log/slog"
	"reflect"
	"sync"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// report is what a node says of one of its tasks.
type report struct {
	task   string
	status cloud.TaskStatus
}

func reportsOf(in []*rpc.TaskStatus, logger *slog.Logger) []report {
	out := make([]report, 0, len(in))
	for _, ts := range in {
		r := report{task: ts.GetTaskId()}
		if err := json.Unmarshal(ts.GetStatus(), &r.status); err != nil {
			logger.Warn("a node reported a task's status that cannot be read", "task", ts.GetTaskId(), "error", err)
			continue
		}
		out = append(out, r)
	}
	return out
}

// UpdateTaskStatus takes what a node says of its tasks. It answers when that is in the state.
func (d *Dispatcher) UpdateTaskStatus(ctx context.Context, r *rpc.UpdateTaskStatusRequest) (*rpc.UpdateTaskStatusResponse, error) {
	t, err := d.current()
	if err != nil {
		return nil, err
	}
	node, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	reports := reportsOf(r.GetTasks(), t.logger)
	t.noteEnds(node, reports)
	if err := t.status.write(ctx, node, reports); err != nil {
		return nil, err
	}
	return &rpc.UpdateTaskStatusResponse{}, nil
}

// noteEnds takes tasks that ended out of every name and virtual address in the very next push, before the state has it.
func (t *term) noteEnds(node string, reports []report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range reports {
		if r.status.State.Ended() {
			if task := t.model.tasks[r.task]; task != nil && task.NodeID == node {
				t.model.setDead(r.task)
				t.nudge()
			}
		}
	}
}

// statusWriter writes reports of all nodes together, as many as come while the write before is under way.
type statusWriter struct {
	store  state.Store
	logger *slog.Logger
	wake   chan struct{} // capacity 1

	mu      sync.Mutex
	pending map[string]owned
	done    *waiters
}

type owned struct {
	node   string
	status cloud.TaskStatus
}

type waiters struct {
	over chan struct{}
	err  error
}

func newStatusWriter(store state.Store, logger *slog.Logger) *statusWriter {
	return &statusWriter{store: store, logger: logger, wake: make(chan struct{}, 1), pending: map[string]owned{},
		done: &waiters{over: make(chan struct{})}}
}

// write returns when the reports are in the state, or could not be written.
func (w *statusWriter) write(ctx context.Context, node string, reports []report) error {
	if len(reports) == 0 {
		return nil
	}
	w.mu.Lock()
	for _, r := range reports {
		w.pending[r.task] = owned{node, r.status}
	}
	done := w.done
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
	select {
	case <-done.over:
		return done.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *statusWriter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			w.mu.Lock()
			w.done.err = fault.New(fault.Unavailable, "this manager leads the cluster no more")
			close(w.done.over)
			w.done = &waiters{over: make(chan struct{})}
			w.mu.Unlock()
			return
		case <-w.wake:
		}
		w.mu.Lock()
		batch, done := w.pending, w.done
		w.pending, w.done = map[string]owned{}, &waiters{over: make(chan struct{})}
		w.mu.Unlock()
		done.err = w.commit(ctx, batch)
		close(done.over)
	}
}

func (w *statusWriter) commit(ctx context.Context, batch map[string]owned) error {
	var changes []func(state.WriteTx) error
	for id, o := range batch {
		changes = append(changes, func(tx state.WriteTx) error {
			t := state.Get[*cloud.Task](tx, id)
			// Only the task's own node speaks for it, and nobody takes back an end.
			if t == nil || t.NodeID != o.node || t.Status.State.Ended() || reflect.DeepEqual(t.Status, o.status) {
				return nil
			}
			t = state.Clone(t)
			t.Status = o.status
			return tx.Put(t)
		})
	}
	if len(changes) == 0 {
		return nil
	}
	err := w.store.Batch(ctx, changes)
	if err != nil && ctx.Err() == nil {
		w.logger.Warn("write task states: the nodes will report again", "tasks", len(changes), "error", err)
	}
	return err
}
