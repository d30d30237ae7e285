package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// logBroker joins those who read logs with the nodes that have them. A subscription asks each node for a part; the node
// answers each part with one PublishLogs stream.
type logBroker struct {
	mu    sync.Mutex
	parts map[string]*logPart
}

type logPart struct {
	id     string
	node   string
	tasks  []string
	sub    *logSubscription
	opened bool
	began  int64 // when the node began to read, by its own clock; Unix nanoseconds, 0 if it did not
}

type logSubscription struct {
	ctx    context.Context
	frames chan *rpc.LogFrame
	ended  chan logEnd // one per part
}

// logEnd is the end of a part.
type logEnd struct {
	part *logPart
	why  string // "" for well
}

// askAgainAfter is the pause before a node is asked again for what it did not read to its end.
const askAgainAfter = time.Second

func newLogBroker() *logBroker { return &logBroker{parts: map[string]*logPart{}} }

func (b *logBroker) add(node string, tasks []string, sub *logSubscription) *logPart {
	p := &logPart{id: cloud.NewID(), node: node, tasks: tasks, sub: sub}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parts[p.id] = p
	return p
}

// end closes a part, once.
func (b *logBroker) end(p *logPart, why string) {
	b.mu.Lock()
	_, open := b.parts[p.id]
	delete(b.parts, p.id)
	b.mu.Unlock()
	if !open {
		return
	}
	select {
	case p.sub.ended <- logEnd{p, why}:
	case <-p.sub.ctx.Done():
	}
}

func (b *logBroker) open(id, node string) (*logPart, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.parts[id]
	if p == nil || p.node != node || p.opened {
		return nil, fault.New(fault.NotFound, "nobody reads logs of request %q any more", id)
	}
	p.opened = true
	return p, nil
}

// nodeGone ends the parts of a node whose session ended before it began to answer them; with down, all of them.
func (b *logBroker) nodeGone(node string, down bool) {
	b.mu.Lock()
	var gone []*logPart
	for _, p := range b.parts {
		if p.node == node && (down || !p.opened) {
			gone = append(gone, p)
		}
	}
	b.mu.Unlock()
	for _, p := range gone {
		go b.end(p, fmt.Sprintf("node %s is not available", node)) // a slow reader must not hold up the caller
	}
}

// PublishLogs takes a node's answer to a log request.
func (d *Dispatcher) PublishLogs(stream rpc.Dispatcher_PublishLogsServer) error {
	t, err := d.current()
	if err != nil {
		return err
	}
	node, err := caller(stream.Context())
	if err != nil {
		return err
	}
	var p *logPart
	why := "the stream broke off"
	defer func() {
		if p != nil {
			t.logs.end(p, why)
		}
	}()
	for {
		f, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			why = ""
			return stream.SendAndClose(&rpc.PublishLogsResponse{})
		}
		if err != nil {
			why = err.Error()
			return err
		}
		if p == nil {
			if p, err = t.logs.open(f.GetRequestId(), node); err != nil {
				return err
			}
			if p.began = f.GetTime(); f.GetTaskId() == "" {
				continue // it only says that it is here
			}
		}
		f.NodeId = node
		select {
		case p.sub.frames <- f:
		case <-p.sub.ctx.Done():
			return fault.New(fault.NotFound, "nobody reads these logs any more")
		}
	}
}

// SubscribeLogs is Subscribe for another manager.
func (d *Dispatcher) SubscribeLogs(r *rpc.LogRequest, stream rpc.Dispatcher_SubscribeLogsServer) error {
	return d.Subscribe(stream.Context(), r, stream.Send)
}

// Leads reports whether this manager's dispatcher serves.
func (d *Dispatcher) Leads() bool { return d.term.Load() != nil }

// Subscribe reads the logs of tasks from the nodes that have them, in the order in which they come, until all are read,
// or with Follow until ctx ends. Logs that cannot be had are told in the error at the end. Who follows a service's logs gets
// those of a node that was away when it is back.
func (d *Dispatcher) Subscribe(ctx context.Context, r *rpc.LogRequest, emit func(*rpc.LogFrame) error) error {
	t, err := d.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(t.ctx, cancel)
	defer stop()

	sub := &logSubscription{ctx: ctx, frames: make(chan *rpc.LogFrame), ended: make(chan logEnd)}
	asked := map[string]bool{}
	var places LogPlaces
	broken := map[string]*rpc.LogRequest{} // by task: how to go on with what broke off
	told := map[string]string{}            // by task: why its node cannot read its log
	unreadable := map[string]bool{}        // tasks whose node said so twice, and is asked no more
	again := time.NewTicker(askAgainAfter)
	defer again.Stop()
	var events <-chan state.Event
	var tasks []*cloud.Task
	wanted := func(task *cloud.Task) bool {
		return placed(task) && !asked[task.ID] &&
			(slices.Contains(r.GetTaskIds(), task.ID) || slices.Contains(r.GetServiceIds(), task.ServiceID))
	}
	snapshot := func(tx state.Tx) {
		for _, task := range state.List[*cloud.Task](tx, state.By{}) {
			if wanted(task) {
				tasks = append(tasks, task)
			}
		}
	}
	if r.GetFollow() && len(r.GetServiceIds()) > 0 {
		events = t.store.Watch(ctx, snapshot, cloud.KindTask)
	} else {
		t.store.View(snapshot)
	}
	open := 0
	var missing []string
	ask := func(tasks []*cloud.Task, r *rpc.LogRequest) {
		byNode := map[string][]string{}
		for _, task := range tasks {
			asked[task.ID] = true
			byNode[task.NodeID] = append(byNode[task.NodeID], task.ID)
		}
		for node, ids := range byNode {
			p := t.logs.add(node, ids, sub)
			open++
			context.AfterFunc(ctx, func() { t.cancelLogs(p) })
			if !t.askForLogs(p, ids, r) {
				go t.logs.end(p, fmt.Sprintf("node %s is not available", node))
			}
		}
	}
	// goOn prepares to read what a part has left: of tasks that go on, and of all if it broke off.
	goOn := func(p *logPart, brokeOff bool) {
		for _, id := range p.tasks {
			if task := t.task(id); task == nil || task.Status.State.Ended() && !brokeOff || unreadable[id] {
				continue
			}
			rest := proto.Clone(r).(*rpc.LogRequest)
			since, ok := places.Again(id)
			if !ok && r.GetTail() >= 0 && p.began != 0 {
				since, ok = max(p.began, r.GetSince()), true
			}
			if ok {
				rest.Since, rest.Tail = since, -1
			}
			broken[id] = rest
		}
	}
	ask(tasks, r)
	for open > 0 || events != nil {
		select {
		case <-ctx.Done():
			if t.ctx.Err() != nil {
				return rpc.NotLeader("")
			}
			return ctx.Err()
		case f := <-sub.frames:
			if f.GetError() != "" {
				if told[f.GetTaskId()] == f.GetError() {
					unreadable[f.GetTaskId()] = true
					continue
				}
				told[f.GetTaskId()] = f.GetError()
				missing = append(missing, fmt.Sprintf("task %s: %s", f.GetTaskId(), f.GetError()))
				continue
			}
			if !places.Take(f) {
				continue
			}
			if err := emit(f); err != nil {
				return err
			}
		case end := <-sub.ended:
			open--
			if events != nil {
				goOn(end.part, end.why != "")
			} else if end.why != "" {
				missing = append(missing, end.why)
			}
		case <-again.C:
			for id, rest := range broken {
				task := t.task(id)
				if task != nil && !t.hasSession(task.NodeID) {
					continue
				}
				delete(broken, id)
				if task != nil {
					ask([]*cloud.Task{task}, rest)
				}
			}
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if task, _ := e.Object.(*cloud.Task); task != nil && wanted(task) && task.Status.State >= cloud.TaskStarting {
				all := proto.Clone(r).(*rpc.LogRequest)
				all.Tail = -1 // of what is printed from now on, everything is wanted
				ask([]*cloud.Task{task}, all)
			}
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fault.New(fault.Unavailable, "warning: incomplete log stream. some logs could not be retrieved for the following reasons: %s",
			strings.Join(slices.Compact(missing), ", "))
	}
	return nil
}

func (t *term) task(id string) (task *cloud.Task) {
	t.store.View(func(tx state.Tx) { task = state.Get[*cloud.Task](tx, id) })
	return task
}

func (t *term) hasSession(node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sessions[node] != nil
}

// askForLogs sends the request down the node's session; false: there is none.
func (t *term) askForLogs(p *logPart, tasks []string, r *rpc.LogRequest) bool {
	return t.tell(p.node, &rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Logs{Logs: &rpc.LogRequest{
		Id: p.id, TaskIds: tasks, Follow: r.GetFollow(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Tail: r.GetTail(),
		Since: r.GetSince(), Until: r.GetUntil(),
	}}})
}

func (t *term) cancelLogs(p *logPart) {
	t.logs.mu.Lock()
	_, open := t.logs.parts[p.id]
	delete(t.logs.parts, p.id)
	t.logs.mu.Unlock()
	if open {
		t.tell(p.node, &rpc.ManagerMessage{Kind: &rpc.ManagerMessage_LogCancel{LogCancel: &rpc.LogCancel{Id: p.id}}})
	}
}

func (t *term) tell(node string, m *rpc.ManagerMessage) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[node]
	if s == nil {
		return false
	}
	s.outbox = append(s.outbox, m)
	s.nudge()
	return true
}
