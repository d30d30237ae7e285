// Package loop is what the leader's level-triggered loops have in common: a pass over the state at the beginning, after
// each burst of changes, and at the time that the pass before asked for. What a pass does is the loops' own business.
package loop

import (
	"context"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
)

// Retry is how soon a loop tries again what the store refused.
const Retry = 200 * time.Millisecond

// Loop is one of the leader's loops. Store, Kinds and Pass must be set.
type Loop struct {
	Store state.Store
	Kinds []cloud.Kind // whose changes are the reason for a pass
	// Settle is how long more changes are waited for after the first, so that a burst is one pass.
	Settle time.Duration
	// Begin is called with the state that the first pass meets, Note with every change after it. Both may be nil.
	Begin func(state.Tx)
	Note  func(state.Event)
	// Pass makes the state truer. It returns when to be called again though nothing changed, the zero time for not
	// before something does.
	Pass func(ctx context.Context) (again time.Time)
}

// Run works until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	begin, note := l.Begin, l.Note
	if begin == nil {
		begin = func(state.Tx) {}
	}
	if note == nil {
		note = func(state.Event) {}
	}
	events := l.Store.Watch(ctx, begin, l.Kinds...)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-events:
			if !ok {
				return nil
			}
			note(e)
			if !l.drain(ctx, events, note) {
				return nil
			}
		case <-timer.C:
		}
		if again := l.Pass(ctx); !again.IsZero() {
			timer.Reset(time.Until(again))
		} else {
			timer.Stop()
		}
	}
}

// drain takes what else arrives within the settling time; false: the watch ended.
func (l *Loop) drain(ctx context.Context, events <-chan state.Event, note func(state.Event)) bool {
	t := time.NewTimer(l.Settle)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case e, ok := <-events:
			if !ok {
				return false
			}
			note(e)
		case <-t.C:
			return true
		}
	}
}
