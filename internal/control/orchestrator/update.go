package orchestrator

import (
	"fmt"
	"slices"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

const defaultMonitor = 5 * time.Second

// update rolls a change of the specification over the slots: as many at a time as the service allows, each counted as in
// hand until its new task ran (or ended) and the delay after it passed; it watches the new tasks for the monitor time
// and pauses, goes on or rolls back when too many of them fail.
func (p *planner) update() {
	var dirty []*slot // still to be changed
	waiting := false  // for another try, or for a new task to take over
	for _, s := range p.slots {
		if s.removed || s.fresh != nil {
			continue
		}
		stale := len(s.dirty) > 0 || s.done && p.isDirty(s.tasks[0])
		if stale && len(s.clean) == 0 {
			switch failed, ok := p.nextTry(s); {
			case !ok: // what runs stays
			case p.pending(failed, p.restartDelay()):
				waiting = true
			default:
				dirty = append(dirty, s)
			}
		}
		if len(s.clean) > 0 {
			p.takeOver(s)
			waiting = waiting || len(s.dirty) > 0
		}
	}
	status := p.svc.Update
	if status == nil {
		if len(dirty) == 0 {
			return
		}
		status = &cloud.UpdateStatus{State: cloud.UpdateUpdating, StartedAt: p.now, Message: "update in progress"}
		p.setUpdate(*status)
	} else if status.StartedAt.IsZero() { // a rollback that a user asked for
		status = &cloud.UpdateStatus{State: status.State, StartedAt: p.now, Message: status.Message}
		p.setUpdate(*status)
	}
	switch status.State {
	case cloud.UpdatePaused, cloud.UpdateRollbackPaused:
		return
	case cloud.UpdateCompleted, cloud.UpdateRollbackCompleted:
		// What fails now is no update's fault. A slot that became stale all the same (its node's labels changed, say) is
		// still brought up to date.
		if len(dirty) == 0 {
			return
		}
	}
	rollback := status.State == cloud.UpdateRollbackStarted
	cfg := p.svc.Spec.Update
	if rollback {
		cfg = p.svc.Spec.Rollback
	}
	if status.CompletedAt.IsZero() && p.failed(cfg, status, rollback) {
		return
	}
	inHand, settled := p.progress(cfg, status)
	free := len(dirty)
	if cfg.Parallelism > 0 {
		free = min(free, max(0, int(cfg.Parallelism)-inHand))
	}
	// Slots that do not serve anyway go first.
	slices.SortStableFunc(dirty, func(a, b *slot) int {
		switch ra, rb := a.running(), b.running(); {
		case ra == rb:
			return 0
		case rb:
			return -1
		}
		return 1
	})
	for _, s := range dirty[:free] {
		if cfg.Order == cloud.StartFirst {
			p.replace(s, cloud.TaskRunning, p.triesOf(s), time.Time{})
			continue
		}
		for _, t := range s.dirty {
			p.want(t, cloud.TaskShutdown)
		}
		s.dirty = nil
		p.replace(s, cloud.TaskReady, nil, time.Time{})
	}
	if len(dirty) > 0 || waiting || !settled {
		return
	}
	switch status.State {
	case cloud.UpdateUpdating:
		p.setUpdate(cloud.UpdateStatus{State: cloud.UpdateCompleted, StartedAt: status.StartedAt, CompletedAt: p.now, Message: "update completed"})
	case cloud.UpdateRollbackStarted:
		p.setUpdate(cloud.UpdateStatus{State: cloud.UpdateRollbackCompleted, StartedAt: status.StartedAt, CompletedAt: p.now, Message: "rollback completed"})
	}
}

// nextTry returns since when the slot, whose old task still runs, waits for another new one, and false if it may have none:
// with start-first, a new task that failed before it ran is tried again as the restart policy says.
func (p *planner) nextTry(s *slot) (failed time.Time, ok bool) {
	newest := s.tasks[0]
	if newest.SpecVersion != p.svc.SpecVersion || !endedByItself(newest) {
		return time.Time{}, true
	}
	_, ok = p.mayRestart(newest)
	return newest.Status.Timestamp, ok
}

// triesOf returns the restarts that the slot's next new task is to remember.
func (p *planner) triesOf(s *slot) []time.Time {
	if newest := s.tasks[0]; newest.SpecVersion == p.svc.SpecVersion && endedByItself(newest) {
		restarts, _ := p.mayRestart(newest)
		return restarts
	}
	return nil
}

// takeOver ends the tasks of another specification in a slot that has a right one: at once, or with start-first when the
// right one runs.
func (p *planner) takeOver(s *slot) {
	order := p.svc.Spec.Update.Order
	if p.svc.Update != nil && p.svc.Update.State == cloud.UpdateRollbackStarted {
		order = p.svc.Spec.Rollback.Order
	}
	if order == cloud.StartFirst && !isRunning(s.clean[0]) {
		return
	}
	for _, t := range s.dirty {
		p.want(t, cloud.TaskShutdown)
	}
	s.dirty = nil
}

// newTasks calls each for the tasks that the current update made, slot by slot. An update that began in what is the future
// since the clock was set back has made all of its version.
func (p *planner) newTasks(status *cloud.UpdateStatus, each func(*slot, *cloud.Task)) {
	ahead := status.StartedAt.Sub(p.now) > skew
	for _, s := range p.slots {
		for _, t := range s.tasks {
			if t.SpecVersion == p.svc.SpecVersion && (ahead || !t.CreatedAt.Before(status.StartedAt)) {
				each(s, t)
			}
		}
	}
}

// reached returns when the task ran, or ended without; ok is false before.
func reached(t *cloud.Task) (at time.Time, ok bool) {
	switch {
	case !t.Status.RunningAt.IsZero():
		return t.Status.RunningAt, true
	case t.Status.State == cloud.TaskRunning || endedByItself(t):
		return t.Status.Timestamp, true
	}
	return time.Time{}, false
}

// failed acts on new tasks that failed and reports whether the update is over for it.
func (p *planner) failed(cfg cloud.UpdateConfig, status *cloud.UpdateStatus, rollback bool) bool {
	monitor := cfg.Monitor
	if monitor == 0 {
		monitor = defaultMonitor
	}
	failures := map[*slot]string{}
	p.newTasks(status, func(s *slot, t *cloud.Task) {
		bad := t.Status.State == cloud.TaskFailed || t.Status.State == cloud.TaskRejected ||
			t.Status.State == cloud.TaskComplete && (p.svc.Spec.Task.Restart.Condition == cloud.RestartAny || p.svc.Spec.Task.Restart.Condition == "")
		if bad && (t.Status.RunningAt.IsZero() || t.Status.Timestamp.Sub(t.Status.RunningAt) <= monitor) {
			failures[s] = t.ID
		}
	})
	total := 0
	for _, s := range p.slots {
		if !s.removed {
			total++
		}
	}
	if len(failures) == 0 || float64(len(failures))/float64(max(total, 1)) <= cfg.MaxFailureRatio {
		return false
	}
	var culprit string
	for _, s := range p.slots {
		if id := failures[s]; id != "" {
			culprit = id
			break
		}
	}
	switch {
	case cfg.FailureAction == cloud.FailureContinue:
		return false
	case cfg.FailureAction == cloud.FailureRollback && !rollback && p.svc.PreviousSpec != nil:
		msg := fmt.Sprintf("update rolled back due to failure or early termination of task %s", culprit)
		now := p.now
		p.service = func(svc *cloud.Service) {
			svc.Spec, svc.PreviousSpec = *svc.PreviousSpec, nil
			svc.SpecVersion++
			svc.Update = &cloud.UpdateStatus{State: cloud.UpdateRollbackStarted, StartedAt: now, Message: msg}
		}
	case rollback:
		p.setUpdate(cloud.UpdateStatus{State: cloud.UpdateRollbackPaused, StartedAt: status.StartedAt,
			Message: fmt.Sprintf("rollback paused due to failure or early termination of task %s", culprit)})
	default:
		p.setUpdate(cloud.UpdateStatus{State: cloud.UpdatePaused, StartedAt: status.StartedAt,
			Message: fmt.Sprintf("update paused due to failure or early termination of task %s", culprit)})
	}
	return true
}

// progress returns how many slots are in hand, and whether every new task is past its monitor time.
func (p *planner) progress(cfg cloud.UpdateConfig, status *cloud.UpdateStatus) (inHand int, settled bool) {
	monitor := cfg.Monitor
	if monitor == 0 {
		monitor = defaultMonitor
	}
	first := map[*slot]time.Time{} // when the first new task of the slot got there
	seen := map[*slot]bool{}
	settled = true
	p.newTasks(status, func(s *slot, t *cloud.Task) {
		at, ok := reached(t)
		if !ok && !slices.Contains(s.clean, t) && !slices.Contains(s.draining, t) {
			return // given up before it ran, as its node was lost
		}
		seen[s] = true
		if ok && (first[s].IsZero() || at.Before(first[s])) {
			first[s] = at
		}
		if ok && !t.Status.State.Ended() && p.pending(at, monitor) {
			settled = false
		}
	})
	for _, s := range p.slots {
		if s.removed {
			continue
		}
		if s.fresh != nil { // made by this very plan
			inHand++
			settled = false
			continue
		}
		if !seen[s] {
			continue
		}
		at := first[s]
		if at.IsZero() {
			inHand++
			settled = false
		} else if p.pending(at, cfg.Delay) {
			inHand++
		}
	}
	return inHand, settled
}

func (p *planner) setUpdate(u cloud.UpdateStatus) {
	p.service = func(svc *cloud.Service) { svc.Update = &u }
}
