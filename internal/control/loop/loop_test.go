package loop

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/memstate"
)

// TestPasses: one at the beginning, one for a burst of changes of the kinds asked for, one at the time asked for.
func TestPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memstate.New()
		put := func(o cloud.Object) {
			t.Helper()
			if err := store.Update(t.Context(), func(tx state.WriteTx) error { return tx.Put(o) }); err != nil {
				t.Fatal(err)
			}
		}
		put(&cloud.Node{Meta: cloud.Meta{ID: "before"}})
		var passes []time.Duration
		var begun, noted int
		start := time.Now()
		l := Loop{
			Store: store, Kinds: []cloud.Kind{cloud.KindNode}, Settle: time.Millisecond,
			Begin: func(tx state.Tx) { begun = len(state.List[*cloud.Node](tx, state.By{})) },
			Note:  func(state.Event) { noted++ },
			Pass: func(context.Context) time.Time {
				passes = append(passes, time.Since(start))
				if len(passes) == 2 {
					return time.Now().Add(time.Hour)
				}
				return time.Time{}
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		synctest.Wait()
		put(&cloud.Task{Meta: cloud.Meta{ID: "of another kind"}})
		put(&cloud.Node{Meta: cloud.Meta{ID: "one"}})
		put(&cloud.Node{Meta: cloud.Meta{ID: "two"}})
		<-time.After(24 * time.Hour)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if begun != 1 || noted != 2 {
			t.Errorf("began with %d nodes and heard of %d changes, want 1 and 2", begun, noted)
		}
		want := []time.Duration{0, l.Settle, l.Settle + time.Hour}
		if len(passes) != len(want) {
			t.Fatalf("passes at %v, want %v", passes, want)
		}
		for i := range want {
			if passes[i] != want[i] {
				t.Errorf("pass %d at %v, want %v", i, passes[i], want[i])
			}
		}
	})
}
