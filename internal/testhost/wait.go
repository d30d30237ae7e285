package testhost

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// pollEvery is how often Wait looks: often enough that a test loses no time, seldom enough that hosts under test on two
// cores do not notice.
const pollEvery = 50 * time.Millisecond

// Wait returns when ready returns nil, and with ready's last error when ctx ends first. what names the condition.
func Wait(ctx context.Context, what string, ready func(ctx context.Context) error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var last error
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err // what a look says that was cut short by the bound tells nothing
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w", what, last)
		}
	}
}

// Patient stretches a bound for machines that are slow by nature: SAMPAN_PATIENCE says how many times, as emulated ones
// need. It is for bounds alone, which only a test that fails reaches.
func Patient(bound time.Duration) time.Duration { return bound * patience() }

var patience = sync.OnceValue(func() time.Duration {
	n, _ := strconv.Atoi(os.Getenv("SAMPAN_PATIENCE"))
	return time.Duration(max(n, 1))
})

// WaitFor is Wait with a bound of its own, stretched by Patient.
func WaitFor(ctx context.Context, bound time.Duration, what string, ready func(ctx context.Context) error) error {
	bound = Patient(bound)
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	return Wait(ctx, fmt.Sprintf("%s (%s)", what, bound), ready)
}
