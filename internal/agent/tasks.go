package agent

import (
	"context"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// The labels of a task's container, as Docker sets them.
const (
	labelTask        = "com.docker.swarm.task"
	labelTaskID      = "com.docker.swarm.task.id"
	labelTaskName    = "com.docker.swarm.task.name"
	labelServiceID   = "com.docker.swarm.service.id"
	labelServiceName = "com.docker.swarm.service.name"
	labelNodeID      = "com.docker.swarm.node.id"
)

// tasks holds the runners of this node's tasks, one each.
type tasks struct {
	a *Agent

	mu      sync.Mutex
	ctx     context.Context // nil before start
	wg      *sync.WaitGroup
	runners map[string]*runner
	byCtr   map[string]*runner // by container ID
	moved   chan struct{}      // closed when a container was started or a task has ended, and made anew
	pulls   map[string]*sync.Mutex
}

func newTasks(a *Agent) *tasks {
	return &tasks{a: a, runners: map[string]*runner{}, byCtr: map[string]*runner{}, moved: make(chan struct{}), pulls: map[string]*sync.Mutex{}}
}

// start takes up the tasks of the view that an earlier agent left.
func (s *tasks) start(ctx context.Context, wg *sync.WaitGroup) {
	s.mu.Lock()
	s.ctx, s.wg = ctx, wg
	s.mu.Unlock()
	if s.a.views.isKnown() {
		s.sync(s.a.views.current())
	}
}

// listen wakes the runner of a container to which something happened. What, it reads from the engine.
func (s *tasks) listen(ctx context.Context, wg *sync.WaitGroup) {
	_, next := s.a.cfg.Events.Subscribe(ctx, time.Time{})
	wg.Go(func() {
		for e := range next {
			if e.Type != "container" {
				continue
			}
			s.mu.Lock()
			r := s.byCtr[e.ID]
			s.mu.Unlock()
			if r != nil {
				poke(r.wake)
			}
		}
	})
}

// sync makes the runners agree with the view: a runner for each of its tasks; those of tasks that left it end them and
// remove their containers, as do new ones for containers whose task nobody knows any more.
func (s *tasks) sync(view *cloud.NodeView) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil {
		return
	}
	for id, t := range view.Tasks {
		r := s.runners[id]
		if r == nil {
			r = newRunner(s.a, t)
			s.runners[id] = r
			s.wg.Go(func() { s.run(r) })
		} else {
			r.tell(t)
		}
	}
	for id, r := range s.runners {
		if view.Tasks[id] == nil {
			r.dismiss()
		}
	}
	for _, c := range s.a.cfg.Engine.List() {
		id := c.Config.Labels[labelTaskID]
		if id == "" || s.runners[id] != nil {
			continue
		}
		r := newRunner(s.a, &cloud.Task{Meta: cloud.Meta{ID: id}, Desired: cloud.TaskRemove})
		r.dismiss()
		s.runners[id] = r
		s.wg.Go(func() { s.run(r) })
	}
}

func (s *tasks) run(r *runner) {
	if !r.run(s.ctx) {
		return // the agent ends; the task does not
	}
	s.mu.Lock()
	delete(s.runners, r.id)
	s.mu.Unlock()
	s.announce()
	s.a.reports.forget(r.id)
	// It may have come back meanwhile: a session with an older view, then a newer one.
	if s.a.views.current().Tasks[r.id] != nil {
		s.sync(s.a.views.current())
	}
}

// bind says which container is the task's.
func (s *tasks) bind(containerID string, r *runner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byCtr[containerID] = r
}

// announce wakes those who wait for a task to have a started container, or to have ended without.
func (s *tasks) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.moved)
	s.moved = make(chan struct{})
}

func (s *tasks) unbind(containerID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byCtr, containerID)
}

// pullLock makes tasks that need the same image wait for one pull.
func (s *tasks) pullLock(ref string) *sync.Mutex {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pulls[ref] == nil {
		s.pulls[ref] = new(sync.Mutex)
	}
	return s.pulls[ref]
}

// containerOf finds the container of a task.
func (s *tasks) containerOf(task string) (container.Container, bool) {
	for _, c := range s.a.cfg.Engine.List() {
		if c.Config.Labels[labelTaskID] == task {
			return c, true
		}
	}
	return container.Container{}, false
}

// awaitStart returns the container of a task once it has been started. A task that ends before has none, or one that
// never printed anything.
func (s *tasks) awaitStart(ctx context.Context, task string) (container.Container, error) {
	for {
		s.mu.Lock()
		moved, r := s.moved, s.runners[task]
		s.mu.Unlock()
		c, ok := s.containerOf(task)
		if ok && !c.State.StartedAt.IsZero() {
			return c, nil
		}
		if status, known := s.a.reports.get(task); known && status.State.Ended() || ok && r == nil {
			return c, nil
		}
		if r == nil {
			return container.Container{}, fault.New(fault.NotFound, "task %s is not on this node", task)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return container.Container{}, ctx.Err()
		}
	}
}
