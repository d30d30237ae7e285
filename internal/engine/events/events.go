// Package events carries what happened on this host to whoever listens, and keeps the newest for those who ask later.
package events

import (
	"context"
	"sync"
	"time"
)

// Event is one thing that happened, in the terms of Docker's events: Type is container, image, network, volume, daemon,
// node, service, secret or config; Action is create, start, die, …
type Event struct {
	Type   string
	Action string
	ID     string            // of what it happened to
	Attrs  map[string]string // name, image, exitCode, signal, …
	Scope  string            // local or swarm
	Time   time.Time
}

// kept is how many past events a bus remembers, as many as Docker does.
const kept = 256

// Bus delivers events in order to every subscriber. The zero Bus is ready for use.
type Bus struct {
	mu   sync.Mutex
	past []Event
	subs map[*subscription]struct{}
}

// waiting is how many events wait for a subscriber that does not read, before it is given up.
const waiting = 16 << 10

type subscription struct {
	queue []Event
	over  bool          // it was given up
	wake  chan struct{} // capacity 1
}

// Publish delivers e to every subscriber; it never blocks. Time and Scope are set if they are empty.
func (b *Bus) Publish(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	if e.Scope == "" {
		e.Scope = "local"
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.past = append(b.past, e)
	if len(b.past) > kept {
		b.past = append(b.past[:0], b.past[len(b.past)-kept:]...)
	}
	for s := range b.subs {
		if s.queue = append(s.queue, e); len(s.queue) > waiting {
			s.queue, s.over = nil, true
			delete(b.subs, s)
		}
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// Subscribe returns the remembered events not older than since (all for the zero time) and a channel with every later
// one, which is closed when ctx ends, or when thousands wait for a subscriber that does not read: it has missed some then,
// and must not believe otherwise.
func (b *Bus) Subscribe(ctx context.Context, since time.Time) (past []Event, next <-chan Event) {
	s := &subscription{wake: make(chan struct{}, 1)}
	b.mu.Lock()
	for _, e := range b.past {
		if !e.Time.Before(since) {
			past = append(past, e)
		}
	}
	if b.subs == nil {
		b.subs = map[*subscription]struct{}{}
	}
	b.subs[s] = struct{}{}
	b.mu.Unlock()

	out := make(chan Event)
	go func() {
		defer close(out)
		defer func() {
			b.mu.Lock()
			delete(b.subs, s)
			b.mu.Unlock()
		}()
		for {
			b.mu.Lock()
			batch, over := s.queue, s.over
			s.queue = nil
			b.mu.Unlock()
			if over {
				return
			}
			for _, e := range batch {
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			}
			if len(batch) > 0 {
				continue
			}
			select {
			case <-s.wake:
			case <-ctx.Done():
				return
			}
		}
	}()
	return past, out
}
