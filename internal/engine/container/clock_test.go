package container

import (
	"testing"
	"testing/synctest"
	"time"
)

// The wall clock may be set while a container runs: how long it ran, and with that whether its restarts are slowed down,
// does not follow.
func TestClockIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &run{began: time.Now(), whole: true}
		<-time.After(3 * time.Second) // of the bubble's own clock
		for name, byClock := range map[string]time.Duration{"not": 3 * time.Second, "ahead": 24 * time.Hour, "back": -24 * time.Hour} {
			if got := r.lasted(byClock); got != 3*time.Second {
				t.Errorf("set %s: it ran for %v, want 3s", name, got)
			}
		}
		// Taken over from a daemon before: at least what was seen.
		r.whole = false
		if got := r.lasted(time.Minute); got != time.Minute {
			t.Errorf("taken over: %v, want what the clock says", got)
		}
		if got := r.lasted(-time.Hour); got != 3*time.Second {
			t.Errorf("taken over, the clock set back: %v, want what was seen", got)
		}
	})
}
