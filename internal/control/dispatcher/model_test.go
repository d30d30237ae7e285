package dispatcher

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestViewsEqualThoseDerivedFromScratch changes everything at random and compares, after each flush, the views that were
// kept up to date with those that a new leader would make, and with what an agent has that took only the changes.
func TestViewsEqualThoseDerivedFromScratch(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := &world{rnd: rand.New(rand.NewPCG(seed, 1)), objects: map[string]cloud.Object{}, down: map[string]bool{}}
			m := newModel()
			agents := map[string]*receiver{}
			for i := range 250 {
				for range 1 + w.rnd.IntN(4) {
					w.change(m)
				}
				m.flush(start.Add(time.Duration(i) * time.Hour))
				m.flush(start.Add(time.Duration(i)*time.Hour + stopWait)) // no stop is held back for longer
				fresh := newModel()
				for _, id := range slices.Sorted(maps.Keys(w.objects)) {
					o := w.objects[id]
					fresh.apply(state.Event{Kind: o.ObjectKind(), ID: id, Object: o})
				}
				for id := range w.down {
					fresh.setDown(id, true)
				}
				fresh.released = maps.Clone(m.released)
				fresh.flush(start)
				fresh.flush(start.Add(time.Hour))
				if len(m.views) != len(fresh.views) {
					t.Fatalf("step %d: %d views, want %d", i, len(m.views), len(fresh.views))
				}
				for node, v := range m.views {
					same(t, fmt.Sprintf("step %d, view of %s", i, node), v.all(), fresh.views[node].all())
					a := agents[node]
					if a == nil || a.view != v {
						a = &receiver{view: v, docs: map[key][]byte{}}
						agents[node] = a
					}
					a.take(w.rnd, m.rev)
					same(t, fmt.Sprintf("step %d, agent of %s", i, node), a.docs, v.all())
				}
			}
		})
	}
}

// receiver is what an agent makes of the changes it is sent.
type receiver struct {
	view *view
	docs map[key][]byte
	sent uint64
}

func (r *receiver) take(rnd *rand.Rand, rev uint64) {
	changes, ok := r.view.since(r.sent)
	if !ok {
		changes, r.docs = r.view.all(), map[key][]byte{}
	}
	for k, doc := range changes {
		if r.docs[k] = doc; doc == nil {
			delete(r.docs, k)
		}
	}
	r.sent = rev
	if rnd.IntN(3) > 0 {
		r.view.ack(rev)
	}
}

func same(t *testing.T, what string, got, want map[key][]byte) {
	t.Helper()
	for k, doc := range got {
		if !bytes.Equal(doc, want[k]) {
			t.Fatalf("%s: %v is %s, want %s", what, k, doc, want[k])
		}
	}
	for k := range want {
		if got[k] == nil {
			t.Fatalf("%s: %v is missing", what, k)
		}
	}
}

type world struct {
	rnd     *rand.Rand
	objects map[string]cloud.Object
	down    map[string]bool
}

func (w *world) change(m *model) {
	set := func(id string, o cloud.Object) {
		o.GetMeta().ID = id
		w.objects[id] = o
		m.apply(state.Event{Kind: o.ObjectKind(), ID: id, Object: o})
	}
	remove := func(id string) {
		if o := w.objects[id]; o != nil {
			delete(w.objects, id)
			delete(w.down, id)
			m.apply(state.Event{Kind: o.ObjectKind(), ID: id, Removed: o})
		}
	}
	r := w.rnd
	name := func(kind string, n int) string { return fmt.Sprintf("%s%d", kind, r.IntN(n)) }
	net := func() string { return name("net", 3) }
	switch r.IntN(12) {
	case 0:
		id := name("node", 4)
		set(id, &cloud.Node{Status: cloud.NodeStatus{State: cloud.NodeReady, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 99, 0, byte(r.IntN(4))})}}})
	case 1:
		if r.IntN(4) == 0 {
			remove(name("node", 4))
		}
	case 2:
		id := net()
		set(id, &cloud.Network{Spec: cloud.NetworkSpec{Name: id, Ingress: id == "net0"}, Status: cloud.NetworkStatus{VNI: uint32(r.IntN(3))}})
	case 3:
		if r.IntN(4) == 0 {
			remove(net())
		}
	case 4:
		id := name("svc", 3)
		s := &cloud.Service{Spec: cloud.ServiceSpec{Name: id}}
		s.Spec.Task.Networks = []cloud.NetworkConnection{{Target: net()}}
		s.Endpoint.VIPs = []cloud.VirtualIP{{NetworkID: net(), Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.9/24")}}}
		if r.IntN(2) == 0 {
			s.Spec.Endpoint.Ports = []cloud.PortConfig{{Target: 80}}
			s.Endpoint.Ports = []cloud.PortConfig{{Target: 80, Published: uint16(30000 + r.IntN(3))}}
		}
		set(id, s)
	case 5:
		if r.IntN(3) == 0 {
			remove(name("svc", 3))
		}
	case 6, 7, 8:
		id := name("task", 12)
		if old, ok := w.objects[id].(*cloud.Task); ok && r.IntN(3) > 0 {
			c := state.Clone(old)
			c.Status.State = max(c.Status.State, cloud.TaskState(r.IntN(int(cloud.TaskRejected))))
			if c.Status.State == cloud.TaskRunning && r.IntN(2) == 0 {
				c.Desired = cloud.TaskShutdown
			}
			set(id, c)
			return
		}
		t := &cloud.Task{ServiceID: name("svc", 3), ServiceName: "s", Slot: 1, NodeID: name("node", 4), Desired: cloud.TaskRunning,
			Networks: []cloud.TaskNetwork{{NetworkID: net(), Addrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(200))}), 24)}}}}
		t.Status.State = cloud.TaskState(r.IntN(int(cloud.TaskRunning) + 1))
		t.Spec.Container.Secrets = []cloud.FileReference{{ID: name("secret", 2)}}
		remove(id)
		set(id, t)
	case 9:
		remove(name("task", 12))
	case 10:
		if id := name("att", 3); r.IntN(2) == 0 {
			set(id, &cloud.Attachment{NodeID: name("node", 4), NetworkID: net(), Name: "box", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.77/24")}})
		} else {
			remove(id)
		}
		set(name("secret", 2), &cloud.Secret{Spec: cloud.SecretSpec{Data: []byte{byte(r.IntN(5))}}})
	case 11:
		if id := name("node", 4); w.objects[id] != nil {
			down := r.IntN(2) == 0
			if delete(w.down, id); down {
				w.down[id] = true
			}
			m.setDown(id, down)
		}
	}
}

func node(id string) *cloud.Node {
	n := &cloud.Node{Status: cloud.NodeStatus{State: cloud.NodeReady}}
	n.ID = id
	return n
}

// stage is a task that serves on n1, with n1, n2 and n3 on its network (tasks of theirs are there).
func stage() (*model, *cloud.Task) {
	m := newModel()
	for _, id := range []string{"n1", "n2", "n3"} {
		m.apply(state.Event{Kind: cloud.KindNode, ID: id, Object: node(id)})
	}
	m.apply(state.Event{Kind: cloud.KindNetwork, ID: "net", Object: &cloud.Network{Meta: cloud.Meta{ID: "net"}}})
	var first *cloud.Task
	for _, id := range []string{"1", "2", "3"} {
		task := &cloud.Task{Meta: cloud.Meta{ID: "t" + id}, ServiceID: "s", Slot: 1, NodeID: "n" + id, Desired: cloud.TaskRunning,
			Networks: []cloud.TaskNetwork{{NetworkID: "net", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1" + id + "/24")}}}}
		task.Status.State = cloud.TaskRunning
		m.apply(state.Event{Kind: cloud.KindTask, ID: task.ID, Object: task})
		if first == nil {
			first = task
		}
	}
	m.flush(start)
	for _, v := range m.views {
		v.ack(m.rev)
	}
	return m, first
}

func (m *model) toldToStop(t *testing.T, task *cloud.Task) bool {
	t.Helper()
	e := m.views[task.NodeID].entries[key{kindTask, task.ID}]
	if e == nil {
		t.Fatal("the node does not have its task")
	}
	return bytes.Contains(e.doc, []byte(fmt.Sprintf(`"desired":%d`, cloud.TaskShutdown)))
}

func wantStop(m *model, task *cloud.Task) {
	c := state.Clone(task)
	c.Desired = cloud.TaskShutdown
	m.apply(state.Event{Kind: cloud.KindTask, ID: c.ID, Object: c})
	m.flush(start)
}

func TestPlannedStopIsHeldUntilEveryNodeAcknowledged(t *testing.T) {
	m, task := stage()
	wantStop(m, task)
	for i, id := range []string{"n2", "n1", "n3"} {
		if m.toldToStop(t, task) {
			t.Fatalf("stopped after %d of 3 acknowledgements", i)
		}
		m.views[id].ack(m.rev)
		m.flush(start.Add(time.Millisecond))
	}
	if !m.toldToStop(t, task) {
		t.Error("not stopped after all acknowledgements")
	}
}

func TestPlannedStopDoesNotWaitForNodesThatAreDown(t *testing.T) {
	m, task := stage()
	wantStop(m, task)
	m.views["n1"].ack(m.rev)
	m.views["n2"].ack(m.rev)
	m.setDown("n3", true)
	m.flush(start)
	m.views["n1"].ack(m.rev)
	m.views["n2"].ack(m.rev)
	m.flush(start)
	if !m.toldToStop(t, task) {
		t.Error("waits for a node that is down")
	}
}

func TestPlannedStopWaitsNoLongerThanItsBound(t *testing.T) {
	m, task := stage()
	wantStop(m, task)
	m.flush(start.Add(stopWait - time.Millisecond))
	if m.toldToStop(t, task) {
		t.Error("stopped before the bound")
	}
	m.flush(start.Add(stopWait))
	if !m.toldToStop(t, task) {
		t.Error("not stopped at the bound")
	}
}

func TestStopOnceSaidIsNotTakenBack(t *testing.T) {
	m, task := stage()
	c := state.Clone(task)
	c.Desired, c.Status.State = cloud.TaskShutdown, cloud.TaskStarting
	m.apply(state.Event{Kind: cloud.KindTask, ID: c.ID, Object: c})
	m.flush(start)
	if !m.toldToStop(t, task) {
		t.Fatal("a task that does not serve need not be waited for")
	}
	c = state.Clone(c)
	c.Status.State = cloud.TaskRunning // reported late
	m.apply(state.Event{Kind: cloud.KindTask, ID: c.ID, Object: c})
	m.flush(start)
	if !m.toldToStop(t, task) {
		t.Error("the stop was taken back")
	}
}

func TestDeadTaskIsOutInTheVeryNextPush(t *testing.T) {
	m, task := stage()
	m.setDead(task.ID)
	m.flush(start)
	for id, v := range m.views {
		if e := v.entries[key{kindMember, "t1/net"}]; !bytes.Contains(e.doc, []byte(`"ready":false`)) {
			t.Errorf("node %s still has it: %s", id, e.doc)
		}
	}
}

func TestClockForgivesTheLeadersOwnStalls(t *testing.T) {
	c := newClock(HeartbeatPeriod)
	c.meet("n1")
	if silent := c.advance(10*time.Minute, HeartbeatPeriod); len(silent) != 0 {
		t.Error("a leader that stood still for ten minutes calls a node silent")
	}
	for range 19 { // each tick comes twice as late as it should
		if silent := c.advance(2*tick, HeartbeatPeriod); len(silent) != 0 {
			t.Fatal("lateness counts as silence")
		}
	}
	var silent []string
	for range 12 {
		silent = append(silent, c.advance(tick, HeartbeatPeriod)...)
	}
	if !slices.Equal(silent, []string{"n1"}) {
		t.Errorf("silent: %v, want n1 once", silent)
	}
	c.open("n1", "s2")
	if _, ok := c.beat("n1", "s1"); ok {
		t.Error("heartbeats of another session count")
	}
	if _, ok := c.beat("n1", "s2"); !ok {
		t.Error("heartbeats of this session do not count")
	}
}

// TestAShorterPeriodDeclaresNobodyDown: a node keeps to the period that it was told until it hears of the new one.
func TestAShorterPeriodDeclaresNobodyDown(t *testing.T) {
	const long = 20 * time.Second
	c := newClock(long)
	c.open("n1", "s")
	for range long / tick {
		if silent := c.advance(tick, HeartbeatPeriod); len(silent) != 0 {
			t.Fatal("silent although its next heartbeat is not due yet")
		}
	}
	if period, ok := c.beat("n1", "s"); !ok || period != HeartbeatPeriod {
		t.Errorf("is told the period %v, %v", period, ok)
	}
	var silent []string
	for range 2 * downAfter / tick {
		silent = append(silent, c.advance(tick, HeartbeatPeriod)...)
	}
	if !slices.Equal(silent, []string{"n1"}) {
		t.Errorf("silent after it was told the short period: %v, want n1", silent)
	}
}
