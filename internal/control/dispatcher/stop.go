package dispatcher

import (
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// Planned stops. When a task that serves is to go (update, scale-down, drain), its members stop being ready on every node
// first. The stop itself is held back from the task's own node until each node that has one of its networks has
// acknowledged a view without it, so that no request meets a process that is going down. Nodes that are down are not
// waited for, and nobody for longer than stopWait.

// taskDoc returns the task as its node is to see it. Of the status only the end is told: the node knows the rest better.
func (f *flushing) taskDoc(v *view, t *cloud.Task) []byte {
	c := *t
	c.UpdatedAt = time.Time{}
	if !t.Status.State.Ended() {
		c.Status = cloud.TaskStatus{State: cloud.TaskAssigned}
	}
	if f.mustHold(t) {
		if _, known := f.held[t.ID]; !known {
			f.held[t.ID] = f.now
		}
		c.Desired = cloud.TaskRunning
	} else {
		delete(f.held, t.ID)
		if t.Desired > cloud.TaskRunning {
			f.released[t.ID] = true // what was said once is not taken back
		}
	}
	return encode(&c)
}

// mustHold: somebody may still send the task requests.
func (m *model) mustHold(t *cloud.Task) bool {
	return t.Desired > cloud.TaskRunning && t.Status.State == cloud.TaskRunning && len(t.Networks) > 0 &&
		!m.dead[t.ID] && m.answers(t.NodeID) && !m.released[t.ID]
}

// letGo releases the stops that need to wait no longer and reports whether there were any. It is called with all views
// derived: the entries of a held task's members say "not ready", and their revision is the one to be acknowledged.
func (m *model) letGo(now time.Time) (any bool) {
	for id, since := range m.held {
		t := m.tasks[id]
		if t == nil {
			delete(m.held, id)
			continue
		}
		if now.Sub(since) < stopWait && !m.everyoneKnows(t) {
			continue
		}
		delete(m.held, id)
		m.released[id] = true
		m.dirty.views[t.NodeID] = true
		any = true
	}
	return any
}

// everyoneKnows: each node that answers and is on a network of the task has acknowledged the newest state of its member.
func (m *model) everyoneKnows(t *cloud.Task) bool {
	for _, n := range t.Networks {
		k := key{kindMember, cloud.MemberID(t.ID, n.NetworkID)}
		for node, v := range m.viewsOn[n.NetworkID] {
			if m.down[node] {
				continue
			}
			if e := v.entries[k]; e != nil && e.rev > v.acked {
				return false
			}
		}
	}
	return true
}
