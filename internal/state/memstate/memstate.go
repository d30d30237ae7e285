// Package memstate is a state.Store in one process' memory: for tests of what stands on the state, and for one host
// without a cluster. It differs from etcdstate in where a transaction is made durable (nowhere) and in nothing else.
package memstate

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/mirror"
)

// Store is a state.Store. Close it to end its watchers.
type Store struct {
	*mirror.Store
	backend *backend
}

var _ state.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	m := mirror.New(nil)
	b := &backend{mirror: m, revs: map[string]uint64{}, timers: map[string]*time.Timer{}}
	return &Store{mirror.NewStore(m, b, nil), b}
}

// Linearize returns at once: there is nobody else.
func (s *Store) Linearize(ctx context.Context) error { return ctx.Err() }

// Close ends all watchers.
func (s *Store) Close() {
	s.Mirror.Close()
	s.backend.close()
}

type backend struct {
	mirror *mirror.Mirror

	mu     sync.Mutex
	rev    uint64
	revs   map[string]uint64 // key → revision of its last write
	timers map[string]*time.Timer
}

func (b *backend) Commit(ctx context.Context, txn mirror.Txn) (ok bool, rev uint64, err error) {
	if err := ctx.Err(); err != nil {
		return false, 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, want := range txn.Compares {
		if b.revs[key] != want {
			return false, b.rev, nil
		}
	}
	b.rev++
	changes := make([]mirror.Change, 0, len(txn.Puts)+len(txn.Deletes))
	for key, doc := range txn.Puts {
		b.revs[key] = b.rev
		changes = append(changes, mirror.Change{Key: key, Value: doc, Revision: b.rev})
		if _, ok := txn.Expiring[key]; ok {
			b.expire(key)
		}
	}
	for key := range txn.Deletes {
		delete(b.revs, key)
		changes = append(changes, mirror.Change{Key: key, Revision: b.rev})
	}
	slices.SortFunc(changes, func(a, c mirror.Change) int { return strings.Compare(a.Key, c.Key) })
	b.mirror.Apply(b.rev, changes)
	return true, b.rev, nil
}

// expire is called with mu held.
func (b *backend) expire(key string) {
	if t := b.timers[key]; t != nil {
		t.Stop()
	}
	b.timers[key] = time.AfterFunc(mirror.IdempotencyTTL, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.timers, key)
		if _, ok := b.revs[key]; !ok {
			return
		}
		b.rev++
		delete(b.revs, key)
		b.mirror.Apply(b.rev, []mirror.Change{{Key: key, Revision: b.rev}})
	})
}

func (b *backend) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, t := range b.timers {
		t.Stop()
		delete(b.timers, key)
	}
}
