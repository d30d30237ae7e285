package orchestrator

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

const (
	defaultHistory = 5
	defaultDelay   = 5 * time.Second
	// orphanAfter is how long a task of a host that is down may still come back.
	orphanAfter = 24 * time.Hour
	// handOver bounds how long a task stays on a drained node because its replacement does not get to run.
	handOver = 30 * time.Second
	// skew is how far the clocks of the cluster's nodes may be apart.
	skew = time.Minute
)

// world is what a plan depends on besides the service and its tasks.
type world struct {
	now     time.Time
	nodes   map[string]*cloud.Node
	history int // finished tasks kept per slot
}

// plan is what is to be done for a service now.
type plan struct {
	service     func(*cloud.Service) // a change of the service, nil for none
	specVersion uint64
	desire      []desire
	orphan      []string
	remove      []*cloud.Task
	create      []*cloud.Task
	wake        time.Time // when to look again though nothing changed
}

type desire struct {
	task  string
	state cloud.TaskState
}

func (p *plan) want(t *cloud.Task, s cloud.TaskState) {
	for i := range p.desire {
		if p.desire[i].task == t.ID {
			p.desire[i].state = max(p.desire[i].state, s)
			return
		}
	}
	if t.Desired < s {
		p.desire = append(p.desire, desire{t.ID, s})
	}
}

func (p *plan) wakeAt(at time.Time) {
	if p.wake.IsZero() || at.Before(p.wake) {
		p.wake = at
	}
}

// slot is one place that a task of the service fills: a number, or a node for a global service.
type slot struct {
	number int
	node   string
	tasks  []*cloud.Task // newest first; those that are to be removed are left out

	clean    []*cloud.Task // meant to run, as the specification says; oldest first
	dirty    []*cloud.Task // meant to run, but made from another specification
	draining []*cloud.Task // meant to run, but its node gives its tasks away
	done     bool          // ended for good: the restart policy makes no other
	fresh    *cloud.Task   // made by this plan
	removed  bool
}

func (s *slot) filled() bool { return len(s.clean)+len(s.dirty) > 0 || s.done || s.fresh != nil }

func (s *slot) running() bool {
	return slices.ContainsFunc(slices.Concat(s.clean, s.dirty), isRunning)
}

func isRunning(t *cloud.Task) bool { return t.Status.State == cloud.TaskRunning }

// planner plans for one service.
type planner struct {
	plan
	world
	svc   *cloud.Service
	slots []*slot
	// constraints of the service as it is now; nil if they cannot be parsed, which validation forbids.
	constraints []cloud.Constraint
}

func newPlanner(svc *cloud.Service, w world) *planner {
	p := &planner{world: w, svc: svc}
	p.specVersion = svc.SpecVersion
	p.constraints, _ = cloud.ParseConstraints(svc.Spec.Task.Placement.Constraints)
	return p
}

func planService(svc *cloud.Service, tasks []*cloud.Task, w world) plan {
	if svc.Spec.Mode.Job {
		return planJob(svc, tasks, w)
	}
	p := newPlanner(svc, w)
	p.group(tasks)
	for _, s := range p.slots {
		p.sort(s)
		p.heal(s)
	}
	if svc.Spec.Mode.Global {
		p.coverNodes()
	} else {
		p.countReplicas()
	}
	p.update()
	for _, s := range p.slots {
		p.promote(s)
	}
	p.forget(tasks)
	return p.plan
}

// planRemoval ends and forgets the tasks of a service that is gone.
func planRemoval(tasks []*cloud.Task, w world) plan {
	p := &planner{world: w}
	for _, t := range tasks {
		p.want(t, cloud.TaskRemove)
	}
	p.forget(tasks)
	return p.plan
}

func (p *planner) group(tasks []*cloud.Task) {
	slots := map[string]*slot{}
	for _, t := range tasks {
		if t.Desired == cloud.TaskRemove {
			continue
		}
		if (t.Slot == 0) != p.svc.Spec.Mode.Global { // of an earlier mode
			p.want(t, cloud.TaskRemove)
			continue
		}
		key := t.NodeID
		if t.Slot != 0 {
			key = strconv.Itoa(t.Slot)
		}
		s := slots[key]
		if s == nil {
			s = &slot{number: t.Slot}
			if t.Slot == 0 {
				s.node = t.NodeID
			}
			slots[key] = s
		}
		s.tasks = append(s.tasks, t)
	}
	p.slots = slices.SortedFunc(maps.Values(slots), func(a, b *slot) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.node, b.node))
	})
	for _, s := range p.slots {
		slices.SortFunc(s.tasks, func(a, b *cloud.Task) int {
			return cmp.Or(cmp.Compare(b.SpecVersion, a.SpecVersion), b.CompareAge(&a.Meta), cmp.Compare(b.ID, a.ID))
		})
	}
}

// sort tells apart the tasks of a slot that are meant to run, and gives up those that ended or whose node is gone.
func (p *planner) sort(s *slot) {
	for _, t := range slices.Backward(s.tasks) {
		if t.Desired > cloud.TaskRunning {
			continue
		}
		switch {
		case t.Status.State.Ended() || p.lost(t) || t.Iteration != nil && p.drained(t):
			p.want(t, cloud.TaskShutdown)
		case p.drained(t):
			s.draining = append(s.draining, t)
		case p.isDirty(t):
			s.dirty = append(s.dirty, t)
		default:
			s.clean = append(s.clean, t)
		}
	}
	// More than one of the right kind can only come from two leaders at once. Keep the one that is furthest.
	if len(s.clean) > 1 {
		slices.SortStableFunc(s.clean, func(a, b *cloud.Task) int { return cmp.Compare(b.Status.State, a.Status.State) })
		for _, t := range s.clean[1:] {
			p.want(t, cloud.TaskShutdown)
		}
		s.clean = s.clean[:1]
	}
}

// lost: the task cannot go on where it is.
func (p *planner) lost(t *cloud.Task) bool {
	if t.NodeID == "" {
		return false
	}
	n := p.nodes[t.NodeID]
	if n == nil || n.Status.State == cloud.NodeDown {
		return true
	}
	constraints, err := cloud.ParseConstraints(t.Spec.Placement.Constraints)
	return err == nil && !n.Satisfies(constraints)
}

func (p *planner) drained(t *cloud.Task) bool {
	n := p.nodes[t.NodeID]
	return n != nil && n.Spec.Availability == cloud.AvailabilityDrain
}

// isDirty: the task was made from another specification, and the difference matters to it.
func (p *planner) isDirty(t *cloud.Task) bool {
	return t.Outdated(p.svc, p.nodes[t.NodeID], p.constraints)
}

// heal makes a new task where the slot has none that goes on.
func (p *planner) heal(s *slot) {
	if len(s.clean)+len(s.dirty) > 0 {
		return
	}
	if len(s.draining) > 0 {
		if p.svc.Spec.Mode.Global {
			p.endDraining(s)
			return
		}
		// Where the service has others to serve, or wants it so, the replacement runs before the old task goes.
		if p.svc.Spec.Mode.Replicas < 2 && p.svc.Spec.Update.Order != cloud.StartFirst {
			p.endDraining(s)
			p.replace(s, cloud.TaskReady, nil, time.Time{})
			return
		}
		p.replace(s, cloud.TaskRunning, nil, time.Time{})
		return
	}
	if completedSlot(s) {
		s.done = true
		return
	}
	newest := s.tasks[0]
	if !endedByItself(newest) {
		if p.svc.Spec.Mode.Global {
			return // coverNodes knows whether the node still wants one
		}
		p.replace(s, cloud.TaskReady, nil, time.Time{})
		return
	}
	restarts, ok := p.mayRestart(newest)
	if !ok {
		s.done = true
		return
	}
	if p.svc.Spec.Mode.Global && !p.eligible(s.node) {
		return
	}
	p.replace(s, cloud.TaskReady, restarts, p.now.Add(p.restartDelay()))
}

func (p *planner) restartDelay() time.Duration {
	if d := p.svc.Spec.Task.Restart.Delay; d != nil {
		return *d
	}
	return defaultDelay
}

func (p *planner) endDraining(s *slot) {
	for _, t := range s.draining {
		p.want(t, cloud.TaskShutdown)
	}
	s.draining = nil
}

func endedByItself(t *cloud.Task) bool {
	switch t.Status.State {
	case cloud.TaskComplete, cloud.TaskFailed, cloud.TaskRejected:
		return true
	}
	return false
}

// mayRestart says whether the restart policy allows another task after t, and returns the restarts to remember.
func (p *planner) mayRestart(t *cloud.Task) ([]time.Time, bool) {
	policy := p.svc.Spec.Task.Restart
	switch policy.Condition {
	case cloud.RestartNone:
		return nil, false
	case cloud.RestartOnFailure:
		if t.Status.State == cloud.TaskComplete {
			return nil, false
		}
	}
	if policy.MaxAttempts == 0 {
		return nil, true
	}
	var restarts []time.Time
	if t.SpecVersion == p.svc.SpecVersion {
		restarts = slices.Clone(t.Restarts)
	}
	if policy.Window > 0 {
		restarts = slices.DeleteFunc(restarts, func(at time.Time) bool { return at.Add(policy.Window).Before(t.Status.Timestamp) })
	}
	if uint64(len(restarts)) >= policy.MaxAttempts {
		return nil, false
	}
	return append(restarts, p.now), true
}

// replace makes a new task for the slot. desired TaskReady: it is readied, and started by promote once its predecessor is
// gone and the time has come; that is also the way of a slot without predecessor.
func (p *planner) replace(s *slot, desired cloud.TaskState, restarts []time.Time, after time.Time) {
	t := &cloud.Task{
		Meta:      cloud.Meta{ID: cloud.NewID(), Project: p.svc.Project},
		ServiceID: p.svc.ID, ServiceName: p.svc.Spec.Name, Slot: s.number, NodeID: s.node,
		Spec: p.svc.Spec.Task, SpecVersion: p.svc.SpecVersion, Desired: desired, Labels: p.svc.Spec.Labels,
		Status:   cloud.TaskStatus{State: cloud.TaskNew, Timestamp: p.now, Message: "created"},
		Restarts: restarts, StartAfter: after,
	}
	if p.svc.Job != nil {
		t.Iteration = new(p.svc.Job.Iteration)
	}
	s.fresh = t
	p.create = append(p.create, t)
}

// countReplicas adds slots, or removes those whose loss is felt least.
func (p *planner) countReplicas() {
	var filled []*slot
	used := map[int]bool{}
	for _, s := range p.slots {
		used[s.number] = true
		if s.filled() {
			filled = append(filled, s)
		}
	}
	want := int(p.svc.Spec.Mode.Replicas)
	if len(filled) > want {
		for _, s := range p.surplus(filled, len(filled)-want) {
			p.dropSlot(s)
		}
		return
	}
	for n, missing := 1, want-len(filled); missing > 0; n++ {
		if used[n] {
			continue
		}
		s := &slot{number: n}
		p.slots = append(p.slots, s)
		p.replace(s, cloud.TaskRunning, nil, time.Time{})
		missing--
	}
}

func (p *planner) dropSlot(s *slot) {
	s.removed = true
	for _, t := range s.tasks {
		p.want(t, cloud.TaskRemove)
	}
	if s.fresh != nil {
		p.create = slices.DeleteFunc(p.create, func(t *cloud.Task) bool { return t == s.fresh })
	}
}

// surplus chooses the slots to remove: those that do not run first, then from the nodes that have most of them.
func (p *planner) surplus(slots []*slot, n int) []*slot {
	nodeOf := func(s *slot) string {
		for _, t := range slices.Concat(s.clean, s.dirty) {
			return t.NodeID
		}
		return ""
	}
	perNode := map[string]int{}
	for _, s := range slots {
		if s.running() {
			perNode[nodeOf(s)]++
		}
	}
	rest := slices.Clone(slots)
	var out []*slot
	for range n {
		worst := slices.MaxFunc(rest, func(a, b *slot) int {
			idle := func(s *slot) int {
				if s.running() {
					return 0
				}
				return 1
			}
			return cmp.Or(cmp.Compare(idle(a), idle(b)), cmp.Compare(perNode[nodeOf(a)], perNode[nodeOf(b)]), cmp.Compare(a.number, b.number))
		})
		if worst.running() {
			perNode[nodeOf(worst)]--
		}
		out = append(out, worst)
		rest = slices.DeleteFunc(rest, func(s *slot) bool { return s == worst })
	}
	return out
}

// eligible: a global service has a task on the node.
func (p *planner) eligible(id string) bool {
	n := p.nodes[id]
	if n == nil || n.Status.State == cloud.NodeDown || n.Spec.Availability == cloud.AvailabilityDrain || !n.Satisfies(p.constraints) {
		return false
	}
	platforms := p.svc.Spec.Task.Placement.Platforms
	return len(platforms) == 0 || slices.ContainsFunc(platforms, func(f cloud.Platform) bool {
		return f.Fits(n.Description.OS, n.Description.Architecture)
	})
}

func (p *planner) coverNodes() {
	have := map[string]*slot{}
	for _, s := range p.slots {
		have[s.node] = s
		if p.nodes[s.node] == nil {
			p.dropSlot(s)
		} else if !p.eligible(s.node) {
			for _, t := range slices.Concat(s.clean, s.dirty, s.draining) {
				p.want(t, cloud.TaskShutdown)
			}
			s.clean, s.dirty, s.draining = nil, nil, nil
			s.removed = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(p.nodes)) {
		n := p.nodes[id]
		if !p.eligible(id) || n.Status.State != cloud.NodeReady || n.Spec.Availability != cloud.AvailabilityActive {
			continue
		}
		s := have[id]
		if s == nil {
			s = &slot{node: id}
			p.slots = append(p.slots, s)
		}
		if !s.filled() {
			p.replace(s, cloud.TaskReady, nil, time.Time{})
		}
	}
}

// promote starts the readied task of a slot when nothing holds it back, and ends what it replaces.
func (p *planner) promote(s *slot) {
	if s.removed {
		return
	}
	if s.fresh != nil {
		if s.fresh.Desired == cloud.TaskReady && !p.heldBack(s, s.fresh) {
			s.fresh.Desired = cloud.TaskRunning
		}
	}
	for _, t := range s.clean {
		if t.Desired == cloud.TaskReady && !p.heldBack(s, t) {
			p.want(t, cloud.TaskRunning)
		}
		for _, old := range s.draining {
			if isRunning(t) || !p.pending(t.CreatedAt, handOver) {
				p.want(old, cloud.TaskShutdown)
			}
		}
	}
}

// pending reports whether less than a wait has passed since at, and asks to be called again when it has. A time that lies
// ahead was written before the clock was set back: how long ago that was nobody knows, and nobody waits until it comes
// again.
func (p *planner) pending(at time.Time, wait time.Duration) bool {
	end := at.Add(wait)
	if !end.After(p.now) || at.Sub(p.now) > skew {
		return false
	}
	p.wakeAt(end)
	return true
}

func (p *planner) heldBack(s *slot, t *cloud.Task) bool {
	if delay := p.restartDelay(); p.pending(t.StartAfter.Add(-delay), delay) {
		return true
	}
	for _, other := range s.tasks {
		if other == t || other.Status.State.Ended() || other.Status.State < cloud.TaskAssigned {
			continue
		}
		if slices.Contains(s.draining, other) && p.svc.Spec.Mode.Replicas >= 2 {
			continue
		}
		// A host that does not answer cannot be waited for.
		if n := p.nodes[other.NodeID]; n == nil || n.Status.State == cloud.NodeDown {
			continue
		}
		return true
	}
	return false
}

// forget removes what has nothing left to tell.
func (p *planner) forget(tasks []*cloud.Task) {
	desired := map[string]cloud.TaskState{}
	for _, d := range p.desire {
		desired[d.task] = d.state
	}
	finished := map[string][]*cloud.Task{}
	for _, t := range tasks {
		want := max(t.Desired, desired[t.ID])
		if want <= cloud.TaskRunning {
			continue
		}
		node, gone := p.nodes[t.NodeID], false
		if t.NodeID != "" && !t.Status.State.Ended() && t.Status.State >= cloud.TaskAssigned {
			if node == nil {
				gone = true
			} else if node.Status.State == cloud.NodeDown {
				if at := node.UpdatedAt.Add(orphanAfter); p.now.Before(at) {
					p.wakeAt(at)
				} else {
					gone = true
				}
			}
		}
		switch {
		case t.Status.State < cloud.TaskAssigned:
			p.remove = append(p.remove, t) // never was anywhere
		case want == cloud.TaskRemove && (t.Status.State.Ended() || gone):
			p.remove = append(p.remove, t)
		case gone:
			p.orphan = append(p.orphan, t.ID)
		case t.Status.State.Ended():
			key := strconv.Itoa(t.Slot)
			if t.Slot == 0 {
				key = t.NodeID
			}
			finished[key] = append(finished[key], t)
		}
	}
	if p.history < 0 {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(finished)) {
		old := finished[key]
		slices.SortFunc(old, func(a, b *cloud.Task) int {
			return cmp.Or(b.CompareAge(&a.Meta), cmp.Compare(b.ID, a.ID))
		})
		keep := p.history
		if p.keepsLast(old[0]) {
			keep = max(keep, 1) // it says that the slot is done, or why its successor waits
		}
		p.remove = append(p.remove, old[min(keep, len(old)):]...)
	}
}

// keepsLast: the newest finished task of a slot stands for it.
func (p *planner) keepsLast(t *cloud.Task) bool {
	for _, s := range p.slots {
		if s.number == t.Slot && (t.Slot != 0 || s.node == t.NodeID) {
			return s.done
		}
	}
	return false
}
