package orchestrator

import (
	"slices"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// planJob plans for a service whose tasks run to their end: a number of completions, so many at a time, or one on every
// eligible node. Each change of the service is another iteration, which begins from nothing; what runs of an earlier one
// is stopped.
func planJob(svc *cloud.Service, tasks []*cloud.Task, w world) plan {
	p := newPlanner(svc, w)
	var current []*cloud.Task
	for _, t := range tasks {
		switch {
		case svc.Job != nil && t.Iteration != nil && *t.Iteration == svc.Job.Iteration:
			current = append(current, t)
		case t.Status.State.Ended():
			p.want(t, cloud.TaskShutdown)
		default:
			p.want(t, cloud.TaskRemove)
		}
	}
	p.group(current)
	for _, s := range p.slots {
		p.sort(s)
		p.heal(s)
	}
	if svc.Spec.Mode.Global {
		p.coverNodes()
	} else {
		p.countCompletions()
	}
	for _, s := range p.slots {
		p.promote(s)
	}
	p.forget(tasks)
	return p.plan
}

// countCompletions makes as many new tasks as may run at the same time and are still needed.
func (p *planner) countCompletions() {
	active, used := uint64(0), map[int]bool{}
	for _, s := range p.slots {
		used[s.number] = true
		if s.filled() && !s.done {
			active++
		}
	}
	mode := p.svc.Spec.Mode
	for n := 1; active < mode.MaxConcurrent && uint64(n) <= mode.Replicas; n++ {
		if used[n] {
			continue
		}
		s := &slot{number: n}
		p.slots = append(p.slots, s)
		p.replace(s, cloud.TaskRunning, nil, time.Time{})
		active++
	}
}

// completed reports whether a task of a job has done what it was for.
func completed(t *cloud.Task) bool {
	return t.Iteration != nil && t.Status.State == cloud.TaskComplete
}

// completedSlot reports whether any task of the slot has completed: one whose node was thought lost may have gone on.
func completedSlot(s *slot) bool { return slices.ContainsFunc(s.tasks, completed) }
