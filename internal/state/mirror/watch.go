package mirror

import (
	"container/list"
	"context"
	"slices"
	"sync"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
)

type objectRef struct {
	kind cloud.Kind
	id   string
}

// watcher queues events until its consumer takes them, at most one per object: the queue is bounded by the state's size
// however slow the consumer is.
type watcher struct {
	kinds []cloud.Kind // none: all
	wake  chan struct{}

	mu      sync.Mutex
	queue   list.List // of state.Event, oldest first
	byOwner map[objectRef]*list.Element
}

// push is called with the mirror's lock held and never waits.
func (w *watcher) push(e state.Event) {
	if len(w.kinds) > 0 && !slices.Contains(w.kinds, e.Kind) {
		return
	}
	ref := objectRef{e.Kind, e.ID}
	w.mu.Lock()
	if old := w.byOwner[ref]; old != nil {
		w.queue.Remove(old)
	}
	w.byOwner[ref] = w.queue.PushBack(e)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) pop() (state.Event, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := w.queue.Front()
	if first == nil {
		return state.Event{}, false
	}
	e := w.queue.Remove(first).(state.Event)
	delete(w.byOwner, objectRef{e.Kind, e.ID})
	return e, true
}

// Watch calls read with a snapshot (read may be nil) and then delivers what changes after it, until ctx ends or the
// mirror is closed; then the channel is closed.
func (m *Mirror) Watch(ctx context.Context, read func(state.Tx), kinds ...cloud.Kind) <-chan state.Event {
	w := &watcher{kinds: kinds, wake: make(chan struct{}, 1), byOwner: map[objectRef]*list.Element{}}
	m.mu.Lock()
	s := m.snapshotLocked()
	m.watchers[w] = struct{}{}
	m.mu.Unlock()
	if read != nil {
		read(s)
	}
	out := make(chan state.Event)
	go func() {
		defer close(out)
		defer func() {
			m.mu.Lock()
			delete(m.watchers, w)
			m.mu.Unlock()
		}()
		for {
			e, ok := w.pop()
			if !ok {
				select {
				case <-w.wake:
					continue
				case <-ctx.Done():
					return
				case <-m.closed:
					return
				}
			}
			select {
			case out <- e:
			case <-ctx.Done():
				return
			case <-m.closed:
				return
			}
		}
	}()
	return out
}
