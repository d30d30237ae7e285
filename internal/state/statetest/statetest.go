// Package statetest is what every implementation of state.Store must pass: the promises in state.Store's
// documentation, one test each.
package statetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
)

// patience is how long a promised event may take before the test fails. Nothing waits for it to pass.
const patience = 30 * time.Second

// Run runs the suite. open returns an empty store that is closed by the test's cleanup.
func Run(t *testing.T, open func(t *testing.T) state.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, state.Store)
	}{
		{"a writer reads its own writes", readsOwnWrites},
		{"a put sets times and version", setsTimesAndVersion},
		{"objects handed out do not change", handedOutObjectsStay},
		{"an ID is taken once", idTakenOnce},
		{"a name is taken once per project and kind", nameTakenOnce},
		{"a name is free again after rename and removal", nameFreed},
		{"an old version is refused", oldVersionRefused},
		{"the version of a specification outlives changes of the rest", specSince},
		{"removing what is not there is NotFound", removeMissing},
		{"the error of a change comes back unchanged and nothing is written", changeError},
		{"a transaction sees what it wrote", transactionSeesItself},
		{"indexes follow the objects", indexes},
		{"lists are ordered by ID", ordered},
		{"a snapshot stays as it is", snapshotStays},
		{"concurrent increments all count", increments},
		{"of two creators of one name one wins", nameRace},
		{"a change that read what another removed runs again", readsAreChecked},
		{"a batch of thousands is written", bigBatch},
		{"a batch of large objects is written", heavyBatch},
		{"a batch stops at the change that fails", batchStops},
		{"changes of a batch see the ones before them", batchSeesItself},
		{"too large a change is refused", tooLarge},
		{"a watch begins where its snapshot ends", watchFromSnapshot},
		{"a watch filters kinds", watchKinds},
		{"a watch reports removal with the last version", watchRemoval},
		{"a slow watcher gets the newest of each object", slowWatcher},
		{"a watch ends with its context", watchEnds},
		{"watchers agree on the order", watchOrder},
		{"linearize", linearize},
		{"a request with the same key is answered once", once},
		{"every kind is stored whole", everyKind},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func service(name string) *cloud.Service {
	s := &cloud.Service{Meta: cloud.Meta{ID: cloud.NewID()}}
	s.Spec.Name = name
	return s
}

func task(id, serviceID, nodeID string) *cloud.Task {
	return &cloud.Task{Meta: cloud.Meta{ID: id}, ServiceID: serviceID, NodeID: nodeID}
}

func put(t *testing.T, s state.Store, objects ...cloud.Object) {
	t.Helper()
	must(t, s.Update(t.Context(), func(tx state.WriteTx) error {
		for _, o := range objects {
			if err := tx.Put(o); err != nil {
				return err
			}
		}
		return nil
	}))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Fatalf("error is %v (%v), want one of kind %v", err, fault.KindOf(err), kind)
	}
}

func get[T cloud.Object](s state.Store, id string) (o T) {
	s.View(func(tx state.Tx) { o = state.Get[T](tx, id) })
	return o
}

func next(t *testing.T, events <-chan state.Event) state.Event {
	t.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			t.Fatal("the watch ended")
		}
		return e
	case <-time.After(patience):
		t.Fatal("no event came")
	}
	panic("unreachable")
}

func readsOwnWrites(t *testing.T, s state.Store) {
	for i := range 20 {
		a := service(fmt.Sprint("s", i))
		put(t, s, a)
		if got := get[*cloud.Service](s, a.ID); got == nil || got.Spec.Name != a.Spec.Name {
			t.Fatalf("after Update returned, View shows %+v", got)
		}
	}
}

func setsTimesAndVersion(t *testing.T, s state.Store) {
	a := service("a")
	put(t, s, a)
	first := get[*cloud.Service](s, a.ID)
	if first.CreatedAt.IsZero() || !first.CreatedAt.Equal(first.UpdatedAt) || first.Version == 0 || first.Project != "default" {
		t.Fatalf("after creation: %+v", first.Meta)
	}
	if a.Version != first.Version {
		t.Errorf("the object that was put says version %d, the store %d", a.Version, first.Version)
	}
	put(t, s, state.Clone(first))
	second := get[*cloud.Service](s, a.ID)
	if !second.CreatedAt.Equal(first.CreatedAt) || second.UpdatedAt.Before(first.UpdatedAt) || second.Version <= first.Version {
		t.Fatalf("after replacement: %+v, before: %+v", second.Meta, first.Meta)
	}
	b := service("b")
	put(t, s, b)
	third := get[*cloud.Service](s, b.ID)
	if second.CompareAge(&first.Meta) != 0 || third.CompareAge(&second.Meta) <= 0 || second.CompareAge(&third.Meta) >= 0 {
		t.Errorf("what was made later is not younger: %+v, %+v, %+v", first.Meta, second.Meta, third.Meta)
	}
	third.CreatedAt = first.CreatedAt.Add(-time.Hour)
	if third.CompareAge(&first.Meta) <= 0 {
		t.Error("a clock that was set back makes it older")
	}
}

func handedOutObjectsStay(t *testing.T, s state.Store) {
	a := service("a")
	a.Spec.Labels = map[string]string{"v": "1"}
	put(t, s, a)
	old := get[*cloud.Service](s, a.ID)
	b := state.Clone(old)
	b.Spec.Labels["v"] = "2"
	put(t, s, b)
	a.Spec.Labels["v"] = "changed by the caller after Put"
	if old.Spec.Labels["v"] != "1" || get[*cloud.Service](s, a.ID).Spec.Labels["v"] != "2" {
		t.Fatal("an object changed under its reader")
	}
}

func idTakenOnce(t *testing.T, s state.Store) {
	a := service("a")
	put(t, s, a)
	b := service("b")
	b.ID = a.ID
	err := s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Put(b) })
	wantKind(t, err, fault.AlreadyExists)
}

func nameTakenOnce(t *testing.T, s state.Store) {
	put(t, s, service("web"))
	err := s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Put(service("web")) })
	wantKind(t, err, fault.AlreadyExists)
	if !strings.Contains(err.Error(), "web") {
		t.Errorf("%q does not name what is taken", err)
	}
	err = s.Update(t.Context(), func(tx state.WriteTx) error {
		if err := tx.Put(service("x")); err != nil {
			return err
		}
		return tx.Put(service("x"))
	})
	wantKind(t, err, fault.AlreadyExists)
	// Not taken: the same name in another kind, in another project, and objects without names.
	other := service("web")
	other.Project = "team"
	n := &cloud.Network{Meta: cloud.Meta{ID: cloud.NewID()}}
	n.Spec.Name = "web"
	put(t, s, other, n, task("t1", "", ""), task("t2", "", ""))
}

func nameFreed(t *testing.T, s state.Store) {
	a := service("web")
	put(t, s, a)
	renamed := state.Clone(get[*cloud.Service](s, a.ID))
	renamed.Spec.Name = "front"
	put(t, s, renamed)
	b := service("web")
	put(t, s, b)
	must(t, s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Delete(cloud.KindService, b.ID) }))
	// Removed and taken again in one transaction.
	must(t, s.Update(t.Context(), func(tx state.WriteTx) error {
		if err := tx.Delete(cloud.KindService, a.ID); err != nil {
			return err
		}
		if err := tx.Put(service("front")); err != nil {
			return err
		}
		return tx.Put(service("web"))
	}))
	for _, name := range []string{"web", "front"} {
		s.View(func(tx state.Tx) {
			if found := state.List[*cloud.Service](tx, state.ByName(name)); len(found) != 1 {
				t.Errorf("%d services are named %s", len(found), name)
			}
		})
	}
}

func oldVersionRefused(t *testing.T, s state.Store) {
	a := service("a")
	put(t, s, a)
	old := state.Clone(get[*cloud.Service](s, a.ID))
	put(t, s, state.Clone(old))
	err := s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Put(old) })
	wantKind(t, err, fault.OutOfDate)
	if !strings.Contains(err.Error(), "update out of sequence") {
		t.Errorf("error %q is not what clients know", err)
	}
	must(t, s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Delete(cloud.KindService, a.ID) }))
	err = s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Put(old) })
	wantKind(t, err, fault.NotFound)
}

func specSince(t *testing.T, s state.Store) {
	var versions []uint64
	change := func(edits ...func(*cloud.Node)) *cloud.Node {
		t.Helper()
		if err := s.Update(t.Context(), func(tx state.WriteTx) error {
			for _, edit := range edits {
				n := &cloud.Node{Meta: cloud.Meta{ID: "n"}, Spec: cloud.NodeSpec{Labels: map[string]string{"a": "1"}}}
				if old := state.Get[*cloud.Node](tx, "n"); old != nil {
					n = state.Clone(old)
				}
				edit(n)
				if err := tx.Put(n); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		var n *cloud.Node
		s.View(func(tx state.Tx) { n = state.Get[*cloud.Node](tx, "n") })
		versions = append(versions, n.Version)
		return n
	}
	status := func(n *cloud.Node) { n.Status.Message += "x" }
	label := func(n *cloud.Node) { n.Spec.Labels["a"] += "1" }
	check := func(n *cloud.Node, want ...bool) {
		t.Helper()
		for i, w := range want {
			if n.SpecReadAt(versions[i]) != w {
				t.Errorf("at version %d, specification since %d: read at %d counts %v", n.Version, n.SpecSince, versions[i], !w)
			}
		}
		if n.SpecReadAt(n.Version+1) || n.SpecReadAt(0) {
			t.Error("a version that never was counts")
		}
	}
	check(change(func(*cloud.Node) {}), true)
	check(change(status), true, true)
	check(change(status), true, true, true)
	check(change(label), false, false, false, true)
	check(change(status, status), false, false, false, true, true)
	check(change(label, status), false, false, false, false, false, true)
	check(change(status), false, false, false, false, false, true, true)
}

func removeMissing(t *testing.T, s state.Store) {
	err := s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Delete(cloud.KindService, "nope") })
	wantKind(t, err, fault.NotFound)
}

func changeError(t *testing.T, s state.Store) {
	mine := errors.New("mine")
	a := service("a")
	err := s.Update(t.Context(), func(tx state.WriteTx) error {
		if err := tx.Put(a); err != nil {
			return err
		}
		return mine
	})
	if err != mine { //nolint:errorlint // the promise is identity
		t.Fatalf("got %v", err)
	}
	if get[*cloud.Service](s, a.ID) != nil {
		t.Fatal("a failed change was written")
	}
}

func transactionSeesItself(t *testing.T, s state.Store) {
	a := service("a")
	must(t, s.Update(t.Context(), func(tx state.WriteTx) error {
		if err := tx.Put(a); err != nil {
			return err
		}
		if state.Get[*cloud.Service](tx, a.ID) == nil || len(state.List[*cloud.Service](tx, state.ByName("a"))) != 1 {
			t.Error("a put is not seen in its transaction")
		}
		if err := tx.Put(task("t", a.ID, "n1")); err != nil {
			return err
		}
		if len(state.List[*cloud.Task](tx, state.ByService(a.ID))) != 1 {
			t.Error("an index does not show the put")
		}
		if err := tx.Delete(cloud.KindTask, "t"); err != nil {
			return err
		}
		if state.Get[*cloud.Task](tx, "t") != nil || len(state.List[*cloud.Task](tx, state.ByService(a.ID))) != 0 {
			t.Error("a removal is not seen in its transaction")
		}
		s.View(func(outside state.Tx) {
			if state.Get[*cloud.Service](outside, a.ID) != nil {
				t.Error("others see what is not committed")
			}
		})
		return nil
	}))
	if get[*cloud.Task](s, "t") != nil {
		t.Error("what was put and removed in one transaction is there")
	}
}

func indexes(t *testing.T, s state.Store) {
	a, b := task("a", "svc", "n1"), task("b", "svc", "")
	a.Networks = []cloud.TaskNetwork{{NetworkID: "net1"}, {NetworkID: "net2"}}
	att := &cloud.Attachment{Meta: cloud.Meta{ID: "att"}, NodeID: "n1", NetworkID: "net1"}
	put(t, s, a, b, att)
	ids := func(by state.By) (out []string) {
		s.View(func(tx state.Tx) {
			for _, x := range state.List[*cloud.Task](tx, by) {
				out = append(out, x.ID)
			}
		})
		return out
	}
	check := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("of the service", ids(state.ByService("svc")), "a", "b")
	check("on node n1", ids(state.ByNode("n1")), "a")
	check("on no node", ids(state.ByNode("")), "b")
	check("on net2", ids(state.ByNetwork("net2")), "a")
	check("all", ids(state.By{}), "a", "b")
	s.View(func(tx state.Tx) {
		if l := state.List[*cloud.Attachment](tx, state.ByNetwork("net1")); len(l) != 1 {
			t.Errorf("%d attachments on net1", len(l))
		}
	})
	moved := state.Clone(get[*cloud.Task](s, "a"))
	moved.NodeID, moved.Networks = "n2", moved.Networks[:1]
	put(t, s, moved)
	check("on node n1 after the move", ids(state.ByNode("n1")))
	check("on node n2 after the move", ids(state.ByNode("n2")), "a")
	check("on net2 after the move", ids(state.ByNetwork("net2")))
	must(t, s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Delete(cloud.KindTask, "a") }))
	check("of the service after removal", ids(state.ByService("svc")), "b")
}

func ordered(t *testing.T, s state.Store) {
	for _, id := range []string{"m", "z", "a", "k"} {
		put(t, s, task(id, "svc", ""))
	}
	s.View(func(tx state.Tx) {
		for _, by := range []state.By{{}, state.ByService("svc")} {
			l := state.List[*cloud.Task](tx, by)
			if !slices.IsSortedFunc(l, func(a, b *cloud.Task) int { return strings.Compare(a.ID, b.ID) }) || len(l) != 4 {
				t.Errorf("list is not ordered: %v", l)
			}
		}
	})
}

func snapshotStays(t *testing.T, s state.Store) {
	put(t, s, task("a", "", ""))
	s.View(func(tx state.Tx) {
		rev := tx.Revision()
		put(t, s, task("b", "", "")) // a write while a reader reads must not wait for it
		if tx.Revision() != rev || len(tx.List(cloud.KindTask, state.By{})) != 1 {
			t.Error("the snapshot changed under its reader")
		}
		s.View(func(newer state.Tx) {
			if newer.Revision() <= rev || len(newer.List(cloud.KindTask, state.By{})) != 2 {
				t.Error("a view within a view does not show the newest")
			}
		})
	})
}

func increments(t *testing.T, s state.Store) {
	a := task("a", "", "")
	put(t, s, a)
	const writers, each = 4, 10
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if err := s.Update(t.Context(), func(tx state.WriteTx) error {
					c := state.Clone(state.Get[*cloud.Task](tx, "a"))
					c.Slot++
					return tx.Put(c)
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := get[*cloud.Task](s, "a").Slot; got != writers*each {
		t.Fatalf("%d of %d increments count", got, writers*each)
	}
}

func nameRace(t *testing.T, s state.Store) {
	for round := range 5 {
		name := fmt.Sprint("race", round)
		errs := make([]error, 4)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				errs[i] = s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Put(service(name)) })
			})
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else {
				wantKind(t, err, fault.AlreadyExists)
			}
		}
		if won != 1 {
			t.Fatalf("%d creators of one name won", won)
		}
	}
}

func readsAreChecked(t *testing.T, s state.Store) {
	net := &cloud.Network{Meta: cloud.Meta{ID: "net"}}
	net.Spec.Name = "net"
	put(t, s, net)
	runs := 0
	err := s.Update(t.Context(), func(tx state.WriteTx) error {
		runs++
		if tx.Get(cloud.KindNetwork, "net") == nil {
			return fault.New(fault.NotFound, "network net not found")
		}
		if runs == 1 { // somebody else is faster
			must(t, s.Update(t.Context(), func(other state.WriteTx) error { return other.Delete(cloud.KindNetwork, "net") }))
		}
		return tx.Put(task("t", "", ""))
	})
	wantKind(t, err, fault.NotFound)
	if runs != 2 || get[*cloud.Task](s, "t") != nil {
		t.Fatalf("after %d runs: the task of a removed network was written", runs)
	}
	// And what was missing when read.
	runs = 0
	must(t, s.Update(t.Context(), func(tx state.WriteTx) error {
		runs++
		if tx.Get(cloud.KindTask, "late") == nil && runs == 1 {
			put(t, s, task("late", "", ""))
		}
		return tx.Put(task("u", "", ""))
	}))
	if runs != 2 {
		t.Fatalf("ran %d times although what it had found missing was created", runs)
	}
}

func bigBatch(t *testing.T, s state.Store) {
	const n = 1500
	changes := make([]func(state.WriteTx) error, n)
	for i := range changes {
		changes[i] = func(tx state.WriteTx) error { return tx.Put(service(fmt.Sprintf("s%05d", i))) }
	}
	must(t, s.Batch(t.Context(), changes))
	s.View(func(tx state.Tx) {
		if l := tx.List(cloud.KindService, state.By{}); len(l) != n {
			t.Errorf("%d of %d are there", len(l), n)
		}
	})
}

func heavyBatch(t *testing.T, s state.Store) {
	const n = 8
	changes := make([]func(state.WriteTx) error, n)
	for i := range changes {
		changes[i] = func(tx state.WriteTx) error {
			secret := &cloud.Secret{Meta: cloud.Meta{ID: fmt.Sprint("secret", i)}}
			secret.Spec = cloud.SecretSpec{Name: fmt.Sprint("secret", i), Data: bytes.Repeat([]byte{byte(i)}, 500<<10)}
			return tx.Put(secret)
		}
	}
	must(t, s.Batch(t.Context(), changes))
	for i := range n {
		got := get[*cloud.Secret](s, fmt.Sprint("secret", i))
		if got == nil || !bytes.Equal(got.Spec.Data, bytes.Repeat([]byte{byte(i)}, 500<<10)) {
			t.Fatalf("secret %d is not as it was put", i)
		}
	}
}

func batchStops(t *testing.T, s state.Store) {
	mine := errors.New("mine")
	err := s.Batch(t.Context(), []func(state.WriteTx) error{
		func(tx state.WriteTx) error { return tx.Put(task("a", "", "")) },
		func(tx state.WriteTx) error {
			if err := tx.Put(task("half", "", "")); err != nil {
				return err
			}
			return mine
		},
		func(tx state.WriteTx) error { return tx.Put(task("c", "", "")) },
	})
	if !errors.Is(err, mine) {
		t.Fatal(err)
	}
	if get[*cloud.Task](s, "a") == nil || get[*cloud.Task](s, "half") != nil || get[*cloud.Task](s, "c") != nil {
		t.Fatal("a batch must write what came before the failed change, and nothing of it or after it")
	}
}

func batchSeesItself(t *testing.T, s state.Store) {
	put(t, s, task("a", "", ""))
	changes := make([]func(state.WriteTx) error, 300)
	for i := range changes {
		changes[i] = func(tx state.WriteTx) error {
			c := state.Clone(state.Get[*cloud.Task](tx, "a"))
			if c.Slot != i {
				t.Errorf("change %d reads slot %d", i, c.Slot)
			}
			c.Slot++
			if err := tx.Put(c); err != nil {
				return err
			}
			return tx.Put(task(fmt.Sprint("t", i), "", ""))
		}
	}
	must(t, s.Batch(t.Context(), changes))
	if got := get[*cloud.Task](s, "a").Slot; got != len(changes) {
		t.Fatalf("slot is %d", got)
	}
}

func tooLarge(t *testing.T, s state.Store) {
	err := s.Update(t.Context(), func(tx state.WriteTx) error {
		c := &cloud.Config{Meta: cloud.Meta{ID: "big"}}
		c.Spec = cloud.SecretSpec{Name: "big", Data: make([]byte, 2<<20)}
		return tx.Put(c)
	})
	wantKind(t, err, fault.Exhausted)
	put(t, s, task("after", "", ""))
}

func watchFromSnapshot(t *testing.T, s state.Store) {
	put(t, s, task("before", "", ""))
	var seen []cloud.Object
	events := s.Watch(t.Context(), func(tx state.Tx) {
		seen = tx.List(cloud.KindTask, state.By{})
		put(t, s, task("during", "", "")) // after the snapshot, before Watch returns
	})
	put(t, s, task("after", "", ""))
	if len(seen) != 1 {
		t.Fatalf("the snapshot shows %d tasks", len(seen))
	}
	for _, id := range []string{"during", "after"} {
		e := next(t, events)
		if e.ID != id || e.Kind != cloud.KindTask || e.Object == nil || e.Removed != nil || e.Revision != e.Object.GetMeta().Version {
			t.Fatalf("event %+v, want the creation of %s", e, id)
		}
	}
}

func watchKinds(t *testing.T, s state.Store) {
	events := s.Watch(t.Context(), nil, cloud.KindService, cloud.KindNetwork)
	put(t, s, task("t", "", ""))
	a := service("a")
	put(t, s, a)
	if e := next(t, events); e.ID != a.ID {
		t.Fatalf("got %+v", e)
	}
}

func watchRemoval(t *testing.T, s state.Store) {
	a := service("a")
	put(t, s, a)
	events := s.Watch(t.Context(), nil)
	must(t, s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Delete(cloud.KindService, a.ID) }))
	e := next(t, events)
	if e.Object != nil || e.Removed == nil || e.Removed.(*cloud.Service).Spec.Name != "a" || e.Revision <= a.Version {
		t.Fatalf("got %+v", e)
	}
}

func slowWatcher(t *testing.T, s state.Store) {
	put(t, s, task("a", "", ""))
	events := s.Watch(t.Context(), nil)
	const n = 200
	for range n {
		must(t, s.Update(t.Context(), func(tx state.WriteTx) error {
			c := state.Clone(state.Get[*cloud.Task](tx, "a"))
			c.Slot++
			return tx.Put(c)
		}))
	}
	put(t, s, task("end", "", ""))
	last, count := 0, 0
	for {
		e := next(t, events)
		if e.ID == "end" {
			break
		}
		count++
		last = e.Object.(*cloud.Task).Slot
	}
	if last != n {
		t.Fatalf("the newest that the watcher saw is %d of %d", last, n)
	}
	if count > 3 {
		t.Errorf("%d events of one object were queued", count)
	}
}

func watchEnds(t *testing.T, s state.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	events := s.Watch(ctx, nil)
	put(t, s, task("a", "", "")) // not taken
	cancel()
	deadline := time.After(patience)
	for {
		select {
		case _, ok := <-events:
			if !ok {
				return
			}
		case <-deadline:
			t.Fatal("the channel stays open")
		}
	}
}

func watchOrder(t *testing.T, s state.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	channels := []<-chan state.Event{s.Watch(ctx, nil), s.Watch(ctx, nil)}
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := range 20 {
				if err := s.Update(ctx, func(tx state.WriteTx) error { return tx.Put(task(fmt.Sprintf("t%d-%d", w, i), "", "")) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var orders [2][]string
	for i, events := range channels {
		var rev uint64
		for range 60 {
			e := next(t, events)
			if e.Revision < rev {
				t.Fatalf("revision %d after %d", e.Revision, rev)
			}
			rev = e.Revision
			orders[i] = append(orders[i], e.ID)
		}
	}
	if !slices.Equal(orders[0], orders[1]) {
		t.Fatal("two watchers saw different orders")
	}
}

func linearize(t *testing.T, s state.Store) {
	put(t, s, task("a", "", ""))
	must(t, s.Linearize(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s.Linearize(ctx) == nil {
		t.Error("Linearize succeeds although its context has ended")
	}
}

func once(t *testing.T, s state.Store) {
	made := 0
	create := func(tx state.WriteTx) (string, error) {
		made++
		a := service(fmt.Sprint("svc", made))
		return a.ID, tx.Put(a)
	}
	first, err := state.Once(t.Context(), s, "", "request-1", create)
	must(t, err)
	again, err := state.Once(t.Context(), s, "default", "request-1", create)
	must(t, err)
	other, err := state.Once(t.Context(), s, "", "request/2", create)
	must(t, err)
	if first != again || first == other || made != 2 {
		t.Fatalf("IDs %s, %s, %s after %d creations", first, again, other, made)
	}
	_, err = state.Once(t.Context(), s, "", "request-3", func(state.WriteTx) (string, error) { return "", fault.New(fault.Conflict, "no") })
	wantKind(t, err, fault.Conflict)
	if _, err = state.Once(t.Context(), s, "", "request-3", create); err != nil {
		t.Fatalf("a request that failed cannot be made again: %v", err)
	}
	ids := make([]string, 4)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			var err error
			ids[i], err = state.Once(t.Context(), s, "", "parallel", func(tx state.WriteTx) (string, error) {
				a := service("parallel")
				return a.ID, tx.Put(a)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(slices.Compact(ids)) != 1 {
		t.Fatalf("one request made several objects: %v", ids)
	}
}

func everyKind(t *testing.T, s state.Store) {
	for _, kind := range cloud.Kinds() {
		o := state.New(kind)
		o.GetMeta().ID = "id-of-" + string(kind)
		switch o := o.(type) {
		case *cloud.Cluster:
			o.Spec.Name = "default"
			o.Spec.AddressPools = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
			o.CA.Key = []byte("key")
		case *cloud.Node:
			o.Manager = &cloud.ManagerStatus{Addr: "10.0.0.1:2377", MemberID: 1<<63 + 5}
		}
		put(t, s, o)
		var got cloud.Object
		s.View(func(tx state.Tx) { got = tx.Get(kind, o.GetMeta().ID) })
		if got == nil {
			t.Fatalf("%s is not there", kind)
		}
		want, err := state.Encode(o)
		must(t, err)
		have, err := state.Encode(got)
		must(t, err)
		if !bytes.Equal(want, have) {
			t.Errorf("%s came back as %s, was %s", kind, have, want)
		}
	}
}
