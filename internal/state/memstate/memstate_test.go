package memstate_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/memstate"
	"github.com/sampan-cloud/sampan/internal/state/mirror"
	"github.com/sampan-cloud/sampan/internal/state/statetest"
)

func TestConformance(t *testing.T) {
	statetest.Run(t, func(t *testing.T) state.Store {
		s := memstate.New()
		t.Cleanup(s.Close)
		return s
	})
}

func TestIdempotencyKeysAreForgottenAfterADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstate.New()
		defer s.Close()
		made := 0
		create := func(state.WriteTx) (string, error) { made++; return "id", nil }
		for _, wait := range []time.Duration{0, mirror.IdempotencyTTL - time.Minute, 2 * time.Minute} {
			<-time.After(wait) // the bubble's clock: no time passes
			synctest.Wait()
			if _, err := state.Once(t.Context(), s, "", "key", create); err != nil {
				t.Fatal(err)
			}
		}
		if made != 2 {
			t.Fatalf("the request was carried out %d times, want once and once more after a day", made)
		}
	})
}
