package control

import (
	"context"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
)

// settlePatience bounds how long a manager that has just started keeps users waiting for a state that is not old. Without
// a quorum the last known one is all there is.
const settlePatience = 3 * time.Second

// settled is a store that shows nothing before it has caught up with what was committed while this manager was away:
// whoever reads an object right after a restart, changes it and sends it back is not refused for having read an old one.
type settled struct {
	state.Store
	caughtUp <-chan struct{}
	patience context.Context // ends when nobody waits any more
}

func newSettled(s state.Store, caughtUp <-chan struct{}) *settled {
	patience, cancel := context.WithTimeout(context.Background(), settlePatience)
	context.AfterFunc(patience, cancel)
	return &settled{s, caughtUp, patience}
}

func (s *settled) wait(ctx context.Context) {
	select {
	case <-s.caughtUp:
	case <-s.patience.Done():
	case <-ctx.Done():
	}
}

// View implements state.Store.
func (s *settled) View(read func(state.Tx)) {
	s.wait(context.Background())
	s.Store.View(read)
}

// Update implements state.Store.
func (s *settled) Update(ctx context.Context, change func(state.WriteTx) error) error {
	s.wait(ctx)
	return s.Store.Update(ctx, change)
}

// Watch implements state.Store.
func (s *settled) Watch(ctx context.Context, read func(state.Tx), kinds ...cloud.Kind) <-chan state.Event {
	s.wait(ctx)
	return s.Store.Watch(ctx, read, kinds...)
}
