package orchestrator

import (
	"log/slog"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/memstate"
)

// TestUpdateBegunWhileTheServiceGetsAddresses: the allocator writes to a service that a user has just changed, as the
// orchestrator plans its update. The update is noted all the same, so that its tasks are watched.
func TestUpdateBegunWhileTheServiceGetsAddresses(t *testing.T) {
	store := memstate.New()
	o := New(store, slog.New(slog.DiscardHandler))
	svc := &cloud.Service{Meta: cloud.Meta{ID: "s", Project: cloud.DefaultProject}, SpecVersion: 2, Spec: cloud.ServiceSpec{Name: "web", Mode: cloud.ServiceMode{Replicas: 1},
		Task: cloud.TaskSpec{ForceUpdate: 1}}}
	old := &cloud.Task{Meta: cloud.Meta{ID: "t", Project: cloud.DefaultProject}, ServiceID: "s", Slot: 1, SpecVersion: 1, Desired: cloud.TaskRunning,
		Status: cloud.TaskStatus{State: cloud.TaskRunning, Timestamp: time.Now()}}
	put := func(all ...cloud.Object) {
		t.Helper()
		if err := store.Update(t.Context(), func(tx state.WriteTx) error {
			for _, one := range all {
				if err := tx.Put(state.Clone(one)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	put(svc, old)
	var p plan
	store.View(func(tx state.Tx) {
		p = planFor(tx, "s", time.Now().UTC())
		svc = state.Clone(state.Get[*cloud.Service](tx, "s"))
	})
	svc.Endpoint.Mode = cloud.EndpointVIP
	put(svc)
	if err := o.carryOut(t.Context(), "s", &p); err != nil {
		t.Fatal(err)
	}
	store.View(func(tx state.Tx) {
		now := state.Get[*cloud.Service](tx, "s")
		if now.Update == nil || now.Update.State != cloud.UpdateUpdating || now.Endpoint.Mode != cloud.EndpointVIP {
			t.Errorf("update %+v, endpoint %+v", now.Update, now.Endpoint)
		}
		if n := len(state.List[*cloud.Task](tx, state.ByService("s"))); n != 2 {
			t.Errorf("%d tasks, want the old one and its successor", n)
		}
	})
}
