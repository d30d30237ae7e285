// Package mirror is what the implementations of state.Store share: the in-memory copy of the state with its indexes, the
// transactions that run on it, and the watchers that it feeds. Where changes are made durable is a Backend's business;
// whatever it commits comes back through Apply, in the order of revisions, and only then is seen by readers.
//
// The copy is a copy-on-write tree: a reader holds a snapshot that never changes and never blocks the writer.
package mirror

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"k8s.io/utils/third_party/forked/golang/btree"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
)

// Change is one key of a revision: put, or deleted when Value is nil.
type Change struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Mirror is the copy. Its zero value is not usable; see New.
type Mirror struct {
	logger *slog.Logger

	mu       sync.Mutex
	rev      uint64
	tree     *btree.BTree[item]
	snap     *snapshot     // of rev; nil until somebody asks
	advanced chan struct{} // closed when rev rises; nil while nobody waits
	watchers map[*watcher]struct{}

	closed    chan struct{}
	closeOnce sync.Once
}

// New returns an empty mirror at revision 0.
func New(logger *slog.Logger) *Mirror {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Mirror{
		logger: logger, tree: newTree(), watchers: map[*watcher]struct{}{}, closed: make(chan struct{}),
	}
}

// item is an entry of the tree: an object, an index's reference to one, or a record. One tree for all makes a snapshot
// one clone.
type item struct {
	key    string
	object cloud.Object
	value  string // of a record
	rev    uint64 // of a record
}

func newTree() *btree.BTree[item] {
	return btree.New(8, func(a, b item) bool { return a.key < b.key })
}

func objectItem(kind cloud.Kind, id string) string { return "o\x00" + string(kind) + "\x00" + id }

func recordItem(key string) string { return "r\x00" + key }

func indexPrefix(kind cloud.Kind, index state.Index, value string) string {
	return "i\x00" + string(kind) + "\x00" + string(rune('a'+index)) + value + "\x00"
}

// setObject puts o where prev was (either may be nil), in all indexes.
func setObject(t *btree.BTree[item], prev, o cloud.Object) {
	if prev != nil {
		kind, id := prev.ObjectKind(), prev.GetMeta().ID
		for _, i := range state.Indexes() {
			for _, v := range i.Values(prev) {
				t.Delete(item{key: indexPrefix(kind, i, v) + id})
			}
		}
		if o == nil {
			t.Delete(item{key: objectItem(kind, id)})
		}
	}
	if o == nil {
		return
	}
	kind, id := o.ObjectKind(), o.GetMeta().ID
	t.ReplaceOrInsert(item{key: objectItem(kind, id), object: o})
	for _, i := range state.Indexes() {
		for _, v := range i.Values(o) {
			t.ReplaceOrInsert(item{key: indexPrefix(kind, i, v) + id, object: o})
		}
	}
}

// snapshot is a state.Tx on a tree that nobody changes.
type snapshot struct {
	rev  uint64
	tree *btree.BTree[item]
}

func (s *snapshot) Revision() uint64 { return s.rev }

func (s *snapshot) Get(kind cloud.Kind, id string) cloud.Object {
	found, _ := s.tree.Get(item{key: objectItem(kind, id)})
	return found.object
}

func (s *snapshot) List(kind cloud.Kind, by state.By) []cloud.Object {
	prefix := objectItem(kind, "")
	if by.Index != state.All {
		prefix = indexPrefix(kind, by.Index, by.Value)
	}
	var out []cloud.Object
	s.ascend(prefix, func(i item) { out = append(out, i.object) })
	return out
}

func (s *snapshot) ascend(prefix string, each func(item)) {
	s.tree.AscendGreaterOrEqual(item{key: prefix}, func(i item) bool {
		if len(i.key) < len(prefix) || i.key[:len(prefix)] != prefix {
			return false
		}
		each(i)
		return true
	})
}

func (s *snapshot) record(key string) (value string, rev uint64) {
	found, _ := s.tree.Get(item{key: recordItem(key)})
	return found.value, found.rev
}

// snapshotLocked is called with mu held.
func (m *Mirror) snapshotLocked() *snapshot {
	if m.snap == nil {
		m.snap = &snapshot{m.rev, m.tree.Clone()}
	}
	return m.snap
}

// View calls read with the newest snapshot. read may keep the objects, and may call View again.
func (m *Mirror) View(read func(state.Tx)) {
	m.mu.Lock()
	s := m.snapshotLocked()
	m.mu.Unlock()
	read(s)
}

// Revision returns the newest revision that View shows.
func (m *Mirror) Revision() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rev
}

// Wait returns once View shows the revision.
func (m *Mirror) Wait(ctx context.Context, rev uint64) error {
	for {
		m.mu.Lock()
		if m.rev >= rev {
			m.mu.Unlock()
			return nil
		}
		if m.advanced == nil {
			m.advanced = make(chan struct{})
		}
		advanced := m.advanced
		m.mu.Unlock()
		select {
		case <-advanced:
		case <-ctx.Done():
			return ctx.Err()
		case <-m.closed:
			return errClosed()
		}
	}
}

func errClosed() error {
	return fault.New(fault.Unavailable, "the cluster's state is being closed on this node")
}

// Apply takes in everything that was committed up to rev. Callers are serial, and their revisions rise.
func (m *Mirror) Apply(rev uint64, changes []Change) {
	type decoded struct {
		Change
		kind   cloud.Kind
		id     string
		record bool
		object cloud.Object
	}
	all := make([]decoded, 0, len(changes))
	for _, c := range changes {
		d := decoded{Change: c}
		d.kind, d.id, d.record = parseKey(c.Key)
		if !d.record {
			if state.New(d.kind) == nil {
				continue // a newer version's
			}
			if c.Value != nil {
				o, err := state.Decode(d.kind, c.Value, c.Revision)
				if err != nil {
					m.logger.Error("an object of the cluster's state cannot be read; it is ignored", "key", c.Key, "error", err)
					continue
				}
				d.object = o
			}
		}
		all = append(all, d)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range all {
		if d.record {
			i := item{key: recordItem(d.Key), value: string(d.Value), rev: d.Revision}
			if d.Value == nil {
				m.tree.Delete(i)
			} else {
				m.tree.ReplaceOrInsert(i)
			}
			continue
		}
		found, _ := m.tree.Get(item{key: objectItem(d.kind, d.id)})
		prev := found.object
		if prev == nil && d.object == nil {
			continue
		}
		setObject(m.tree, prev, d.object)
		e := state.Event{Revision: d.Revision, Kind: d.kind, ID: d.id, Object: d.object}
		if d.object == nil {
			e.Removed = prev
		}
		for w := range m.watchers {
			w.push(e)
		}
	}
	if rev > m.rev {
		m.rev = rev
	}
	m.snap = nil
	if m.advanced != nil {
		close(m.advanced)
		m.advanced = nil
	}
}

// Reset takes in a complete copy of the state at rev, for when the changes that led to it are gone (compaction).
// Watchers see the difference.
func (m *Mirror) Reset(rev uint64, all []Change) {
	fresh := make(map[string]uint64, len(all))
	for _, c := range all {
		fresh[c.Key] = c.Revision
	}
	m.mu.Lock()
	s := m.snapshotLocked()
	m.mu.Unlock()
	known := map[string]uint64{}
	s.ascend("o\x00", func(i item) {
		meta := i.object.GetMeta()
		known[ObjectKey(meta.Project, i.object.ObjectKind(), meta.ID)] = meta.Version
	})
	s.ascend("r\x00", func(i item) { known[i.key[len("r\x00"):]] = i.rev })

	changes := make([]Change, 0, len(all))
	for _, key := range slices.Sorted(maps.Keys(known)) {
		if _, ok := fresh[key]; !ok {
			changes = append(changes, Change{Key: key, Revision: rev})
		}
	}
	puts := slices.DeleteFunc(slices.Clone(all), func(c Change) bool {
		v, ok := known[c.Key]
		return ok && v == c.Revision
	})
	slices.SortStableFunc(puts, func(a, b Change) int { return int(int64(a.Revision) - int64(b.Revision)) })
	m.Apply(rev, append(puts, changes...))
}

// Close ends every watcher and every wait. Views go on showing the last state.
func (m *Mirror) Close() {
	m.closeOnce.Do(func() { close(m.closed) })
}
