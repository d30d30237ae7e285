package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// A node on which a service failed this often lately is taken only if no other can.
const (
	manyFailures = 5
	lately       = 5 * time.Minute
)

// decision is a node for a task, or the reason why there is none.
type decision struct {
	task    *cloud.Task
	node    string
	generic []cloud.GenericResource // of the node, for the task
	reason  string
}

// host is a node with what its tasks leave of it.
type host struct {
	*cloud.Node
	cpu, memory int64
	generic     []cloud.GenericResource
	holders     []*cloud.Task // that have generic resources of it
	ports       map[portKey]bool
	tasks       int            // that are meant to run
	perService  map[string]int // likewise
	failures    map[string]int // lately, by service
}

type portKey struct {
	protocol cloud.Protocol
	port     uint16
}

// decide finds a node for every task that waits for one, oldest first, so that each sees what those before it took.
func decide(nodes []*cloud.Node, tasks []*cloud.Task, now time.Time) []decision {
	var waiting []*cloud.Task
	for _, t := range tasks {
		if t.Status.State == cloud.TaskPending && t.Desired <= cloud.TaskRunning {
			waiting = append(waiting, t)
		}
	}
	if len(waiting) == 0 {
		return nil
	}
	slices.SortStableFunc(waiting, func(a, b *cloud.Task) int {
		return cmp.Or(a.CompareAge(&b.Meta), cmp.Compare(a.ServiceID, b.ServiceID), cmp.Compare(a.Slot, b.Slot))
	})
	hosts := map[string]*host{}
	var list []*host
	for _, n := range nodes {
		h := &host{Node: n, cpu: n.Description.Resources.NanoCPUs, memory: n.Description.Resources.MemoryBytes,
			generic: n.Description.Resources.Generic, ports: map[portKey]bool{}, perService: map[string]int{}, failures: map[string]int{}}
		hosts[n.ID] = h
		list = append(list, h)
	}
	going := map[place][]*cloud.Task{}
	for _, t := range tasks {
		h := hosts[t.NodeID]
		if h == nil || t.Status.State < cloud.TaskAssigned {
			continue
		}
		if !t.Status.State.Ended() {
			// One that is being stopped has what it has until it has ended, but does not count as load any more.
			h.occupy(t)
			if t.Desired <= cloud.TaskRunning {
				h.load(t)
			} else {
				going[placeOf(t)] = append(going[placeOf(t)], t)
			}
			continue
		}
		if (t.Status.State == cloud.TaskFailed || t.Status.State == cloud.TaskRejected) && now.Sub(t.Status.Timestamp).Abs() < lately { // a failure hours ahead was before the clock was set back
			h.failures[t.ServiceID]++
		}
	}
	var out []decision
	for _, t := range waiting {
		// What a task's predecessor still has is the task's own: it does not start before that has ended.
		var before []*cloud.Task
		if t.Desired == cloud.TaskReady {
			before = going[placeOf(t)]
		}
		for _, p := range before {
			hosts[p.NodeID].vacate(p)
		}
		h, reason := choose(list, t)
		for _, p := range before {
			if h == nil || h.ID != p.NodeID {
				hosts[p.NodeID].occupy(p)
			}
		}
		switch {
		case h != nil:
			given, _, _ := cloud.TakeGeneric(h.generic, t.Spec.Reservations.Generic)
			placed := *t
			placed.Generic = given
			h.occupy(&placed)
			h.load(t)
			out = append(out, decision{task: t, node: h.ID, generic: given})
		case reason != t.Status.Err:
			out = append(out, decision{task: t, reason: reason})
		}
	}
	return out
}

// load counts the task as one of the host's.
func (h *host) load(t *cloud.Task) {
	h.tasks++
	h.perService[t.ServiceID]++
}

// occupy books what the task has of the host: what it reserves, and its ports.
func (h *host) occupy(t *cloud.Task) {
	if len(t.Generic) > 0 {
		h.holders = append(h.holders, t)
		h.generic = cloud.WithoutGeneric(h.generic, t.Generic)
	}
	h.cpu -= t.Spec.Reservations.NanoCPUs
	h.memory -= t.Spec.Reservations.MemoryBytes
	for _, p := range hostPorts(t) {
		h.ports[p] = true
	}
}

// vacate undoes occupy.
func (h *host) vacate(t *cloud.Task) {
	h.cpu += t.Spec.Reservations.NanoCPUs
	h.memory += t.Spec.Reservations.MemoryBytes
	for _, p := range hostPorts(t) {
		delete(h.ports, p)
	}
	if len(t.Generic) > 0 {
		h.holders = slices.DeleteFunc(h.holders, func(o *cloud.Task) bool { return o == t })
		h.generic = h.Description.Resources.Generic
		for _, o := range h.holders {
			h.generic = cloud.WithoutGeneric(h.generic, o.Generic)
		}
	}
}

// place is where tasks of a service follow each other: a slot, or a node for a global service.
type place struct {
	service, node string
	slot          int
}

func placeOf(t *cloud.Task) place {
	if t.Slot == 0 {
		return place{service: t.ServiceID, node: t.NodeID}
	}
	return place{service: t.ServiceID, slot: t.Slot}
}

func hostPorts(t *cloud.Task) []portKey {
	var out []portKey
	for _, p := range t.Ports {
		if p.Mode == cloud.PublishHost && p.Published != 0 {
			out = append(out, portKey{p.Protocol, p.Published})
		}
	}
	return out
}

// filter is one reason why a node cannot take a task. explain says so of a number of nodes.
type filter struct {
	passes  func(*host) bool
	explain func(nodes int) string
}

func counted(one, many string) func(int) string {
	return func(n int) string {
		if n == 1 {
			return fmt.Sprintf(one, n)
		}
		return fmt.Sprintf(many, n)
	}
}

func filters(t *cloud.Task) []filter {
	constraints, err := cloud.ParseConstraints(t.Spec.Placement.Constraints)
	ports := hostPorts(t)
	r, place := t.Spec.Reservations, t.Spec.Placement
	return []filter{
		{func(h *host) bool {
			return h.Status.State == cloud.NodeReady && h.Spec.Availability == cloud.AvailabilityActive
		}, counted("%d node not available for new tasks", "%d nodes not available for new tasks")},
		{func(h *host) bool {
			_, _, ok := cloud.TakeGeneric(h.generic, r.Generic)
			return ok && r.NanoCPUs <= max(h.cpu, 0) && r.MemoryBytes <= max(h.memory, 0)
		},
			counted("insufficient resources on %d node", "insufficient resources on %d nodes")},
		{func(h *host) bool { return err == nil && h.Satisfies(constraints) },
			counted("scheduling constraints not satisfied on %d node", "scheduling constraints not satisfied on %d nodes")},
		{func(h *host) bool {
			return len(place.Platforms) == 0 || slices.ContainsFunc(place.Platforms, func(p cloud.Platform) bool {
				return p.Fits(h.Description.OS, h.Description.Architecture)
			})
		}, counted("unsupported platform on %d node", "unsupported platform on %d nodes")},
		{func(h *host) bool { return !slices.ContainsFunc(ports, func(p portKey) bool { return h.ports[p] }) },
			counted("host-mode port already in use on %d node", "host-mode port already in use on %d nodes")},
		{func(h *host) bool {
			return place.MaxReplicas == 0 || uint64(h.perService[t.ServiceID]) < place.MaxReplicas
		}, func(int) string { return "max replicas per node limit exceed" }},
	}
}

// choose returns the best host for the task, or the reason why none can take it.
func choose(hosts []*host, t *cloud.Task) (*host, string) {
	checks := filters(t)
	failed := make([]int, len(checks))
	var able []*host
	for _, h := range hosts {
		if t.NodeID != "" && h.ID != t.NodeID { // a global service's task has its node already
			continue
		}
		i := slices.IndexFunc(checks, func(f filter) bool { return !f.passes(h) })
		if i >= 0 {
			failed[i]++
			continue
		}
		able = append(able, h)
	}
	if len(able) == 0 {
		return nil, explain(checks, failed)
	}
	if slices.ContainsFunc(able, func(h *host) bool { return h.failures[t.ServiceID] < manyFailures }) {
		able = slices.DeleteFunc(able, func(h *host) bool { return h.failures[t.ServiceID] >= manyFailures })
	}
	scope := hosts
	for _, by := range t.Spec.Placement.SpreadOver {
		able, scope = leastLoadedGroup(able, scope, by, t.ServiceID)
	}
	return slices.MinFunc(able, func(a, b *host) int {
		return cmp.Or(cmp.Compare(a.perService[t.ServiceID], b.perService[t.ServiceID]),
			cmp.Compare(a.tasks, b.tasks), cmp.Compare(a.ID, b.ID))
	}), ""
}

func explain(checks []filter, failed []int) string {
	type part struct {
		nodes int
		text  string
	}
	var parts []part
	for i, n := range failed {
		if n > 0 {
			parts = append(parts, part{n, checks[i].explain(n)})
		}
	}
	if len(parts) == 0 {
		return "no suitable node"
	}
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(b.nodes, a.nodes) })
	texts := make([]string, len(parts))
	for i, p := range parts {
		texts[i] = p.text
	}
	return "no suitable node (" + strings.Join(texts, "; ") + ")"
}

// leastLoadedGroup keeps those able hosts, and those of scope, whose value of the label has the fewest tasks of the
// service. Tasks on hosts of the same value that cannot take more count too.
func leastLoadedGroup(able, scope []*host, by, service string) (_, _ []*host) {
	value := func(h *host) string {
		v, _ := h.Value(by)
		return v
	}
	load := map[string]int{}
	for _, h := range scope {
		load[value(h)] += h.perService[service]
	}
	least := value(slices.MinFunc(able, func(a, b *host) int {
		return cmp.Or(cmp.Compare(load[value(a)], load[value(b)]), cmp.Compare(value(a), value(b)))
	}))
	within := func(hosts []*host) []*host {
		return slices.DeleteFunc(slices.Clone(hosts), func(h *host) bool { return value(h) != least })
	}
	return within(able), within(scope)
}
