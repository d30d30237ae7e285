package events

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A subscriber that does not read costs no more than a bound, holds up nobody, and is told by its channel's end.
func TestSubscriberThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bus
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, lazy := b.Subscribe(ctx, time.Time{})
		_, eager := b.Subscribe(ctx, time.Time{})
		const n = 3 * waiting
		for range n {
			b.Publish(Event{Type: "container", Action: "start"})
			<-eager
			synctest.Wait()
		}
		b.mu.Lock()
		if len(b.subs) != 1 {
			t.Errorf("%d subscriptions, want the one that reads", len(b.subs))
		}
		b.mu.Unlock()
		got := 0
		for range lazy {
			got++
		}
		if got > 1 { // what the channel had
			t.Errorf("%d events after it was given up", got)
		}
	})
}
