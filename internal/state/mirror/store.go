package mirror

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"k8s.io/utils/third_party/forked/golang/btree"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
)

// IdempotencyTTL is how long an answered request is remembered.
const IdempotencyTTL = 24 * time.Hour

// Txn is what a Backend commits at once, or not at all.
type Txn struct {
	Compares map[string]uint64 // key → the revision at which it was last written; 0: it must not exist
	Puts     map[string][]byte
	Deletes  map[string]struct{}
	Expiring map[string]struct{} // of Puts: forgotten after IdempotencyTTL
}

// Backend makes transactions durable.
type Backend interface {
	// Commit returns ok false when a compare failed, and in either case the revision that View must reach before the
	// caller goes on. Every revision it makes is handed to the mirror's Apply.
	Commit(ctx context.Context, txn Txn) (ok bool, rev uint64, err error)
}

// Limits bound one transaction.
type Limits struct {
	Compares int
	Ops      int
	Bytes    int
	BatchOps int // at which Batch splits
}

// DefaultLimits are below those that etcdstate sets for etcd.
var DefaultLimits = Limits{Compares: 2000, Ops: 2000, Bytes: 1400 << 10, BatchOps: 128}

// Store is View, Watch, Update and Batch on a mirror. What is missing from state.Store is Linearize.
type Store struct {
	*Mirror
	backend Backend
	limits  Limits
	now     func() time.Time
}

// NewStore returns a store whose transactions go to the backend; nil now means time.Now.
func NewStore(m *Mirror, b Backend, now func() time.Time) *Store {
	if now == nil {
		now = time.Now
	}
	return &Store{Mirror: m, backend: b, limits: DefaultLimits, now: now}
}

// Update is state.Store's.
func (s *Store) Update(ctx context.Context, change func(state.WriteTx) error) error {
	for {
		tx := s.begin()
		if err := change(tx); err != nil {
			return err
		}
		if tx.empty() {
			return nil
		}
		if err := tx.fits(s.limits); err != nil {
			return err
		}
		if ok, err := s.commit(ctx, tx); err != nil || ok {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fault.New(fault.DeadlineExceeded, "the change met concurrent changes until its time was over: %w", err)
		}
	}
}

// Batch is state.Store's. Changes before one that fails are written, those after it are not.
func (s *Store) Batch(ctx context.Context, changes []func(state.WriteTx) error) error {
	for done := 0; done < len(changes); {
		tx := s.begin()
		end := done
		var failed error
		for ; end < len(changes); end++ {
			save := tx.save()
			if failed = changes[end](tx); failed != nil {
				tx.restore(save)
				break
			}
			if tx.size() > s.limits.BatchOps || tx.fits(s.limits) != nil {
				if end > done { // it goes first into the next transaction
					tx.restore(save)
					break
				}
				if err := tx.fits(s.limits); err != nil {
					return err
				}
				end++
				break
			}
		}
		if !tx.empty() {
			ok, err := s.commit(ctx, tx)
			if err != nil {
				return err
			}
			if !ok {
				if err := ctx.Err(); err != nil {
					return fault.New(fault.DeadlineExceeded, "the changes met concurrent changes until their time was over: %w", err)
				}
				continue // the same group again, on a newer snapshot
			}
		}
		if failed != nil {
			return failed
		}
		done = end
	}
	return nil
}

func (s *Store) commit(ctx context.Context, tx *tx) (ok bool, err error) {
	ok, rev, err := s.backend.Commit(ctx, tx.txn())
	if err != nil {
		return false, err
	}
	// The mirror follows without the network; the caller's deadline must not hide that the change was made.
	if err := s.Wait(context.WithoutCancel(ctx), rev); err != nil {
		return false, err
	}
	if ok {
		for _, w := range tx.writes {
			if w.object != nil {
				w.object.GetMeta().Version = rev
			}
		}
	}
	return ok, nil
}

func (s *Store) begin() *tx {
	s.mu.Lock()
	base := s.snapshotLocked()
	view := &snapshot{s.rev, s.tree.Clone()}
	s.mu.Unlock()
	return &tx{snapshot: view, base: base, now: s.now, compares: map[string]uint64{}, writes: map[string]write{}}
}

// write is what becomes of one key: put, or deleted when doc is nil.
type write struct {
	doc      []byte
	object   cloud.Object // the caller's, of an object's key
	expiring bool
}

// tx is a write transaction: reads see its own tree, where it applies what it writes.
type tx struct {
	*snapshot
	base     *snapshot // as others see it
	now      func() time.Time
	compares map[string]uint64
	writes   map[string]write
	bytes    int
}

type savepoint struct {
	tree     *btree.BTree[item]
	compares map[string]uint64
	writes   map[string]write
	bytes    int
}

func (t *tx) save() savepoint {
	sp := savepoint{t.tree.Clone(), make(map[string]uint64, len(t.compares)), make(map[string]write, len(t.writes)), t.bytes}
	for k, v := range t.compares {
		sp.compares[k] = v
	}
	for k, v := range t.writes {
		sp.writes[k] = v
	}
	return sp
}

func (t *tx) restore(sp savepoint) {
	t.snapshot = &snapshot{t.rev, sp.tree}
	t.compares, t.writes, t.bytes = sp.compares, sp.writes, sp.bytes
}

func (t *tx) empty() bool { return len(t.writes) == 0 }

// size counts operations as the backend does.
func (t *tx) size() int { return max(len(t.writes), len(t.compares)) }

func (t *tx) fits(l Limits) error {
	if len(t.writes) > l.Ops || len(t.compares) > l.Compares || t.bytes > l.Bytes {
		return fault.New(fault.Exhausted, "a change of %d objects and %d KiB is too large for one transaction: make it in smaller steps",
			len(t.writes), t.bytes>>10)
	}
	return nil
}

func (t *tx) txn() Txn {
	out := Txn{Compares: t.compares, Puts: map[string][]byte{}, Deletes: map[string]struct{}{}, Expiring: map[string]struct{}{}}
	for key, w := range t.writes {
		if w.doc == nil {
			out.Deletes[key] = struct{}{}
			continue
		}
		out.Puts[key] = w.doc
		if w.expiring {
			out.Expiring[key] = struct{}{}
		}
	}
	return out
}

// touch makes the transaction depend on the key being as the base shows it.
func (t *tx) touch(key string, rev uint64) {
	if _, ok := t.compares[key]; !ok {
		t.compares[key] = rev
		t.bytes += len(key) + 16
	}
}

func (t *tx) touchObject(kind cloud.Kind, id string) {
	if o := t.base.Get(kind, id); o != nil {
		t.touch(ObjectKey(o.GetMeta().Project, kind, id), o.GetMeta().Version)
	} else {
		t.touch(ObjectKey(DefaultProject, kind, id), 0)
	}
}

func (t *tx) write(key string, w write) {
	if old, ok := t.writes[key]; ok {
		t.bytes -= len(old.doc)
	} else {
		t.bytes += len(key) + 16
	}
	t.bytes += len(w.doc)
	t.writes[key] = w
}

func (t *tx) Get(kind cloud.Kind, id string) cloud.Object {
	t.touchObject(kind, id)
	return t.snapshot.Get(kind, id)
}

func (t *tx) Put(o cloud.Object) error {
	meta, kind := o.GetMeta(), o.ObjectKind()
	if meta.Project == "" {
		meta.Project = DefaultProject
	}
	if !validPart(meta.ID) || !validPart(meta.Project) {
		return fault.New(fault.InvalidArgument, "%s with ID %q in project %q cannot be stored: both must be set and hold no slash", kind, meta.ID, meta.Project)
	}
	prev := t.snapshot.Get(kind, meta.ID)
	now := t.now().UTC().Round(0)
	switch {
	case prev == nil && meta.Version != 0:
		return fault.New(fault.NotFound, "%s %s not found: it has been removed", kind, meta.ID)
	case prev == nil:
		meta.CreatedAt, meta.Born = now, t.rev+1
	case prev.GetMeta().Version != meta.Version && meta.Version == 0:
		return fault.New(fault.AlreadyExists, "%s %s already exists", kind, meta.ID)
	case prev.GetMeta().Version != meta.Version:
		return fault.New(fault.OutOfDate, "update out of sequence: %s %s has changed since version %d was read (it is at %d now)",
			kind, meta.ID, meta.Version, prev.GetMeta().Version)
	case prev.GetMeta().Project != meta.Project:
		return fault.New(fault.InvalidArgument, "%s %s cannot move from project %s to %s", kind, meta.ID, prev.GetMeta().Project, meta.Project)
	default:
		meta.CreatedAt, meta.Born = prev.GetMeta().CreatedAt, prev.GetMeta().Born
	}
	meta.UpdatedAt = now
	meta.SpecSince = 0
	if s, ok := o.(cloud.Specified); ok {
		// What others have read counts, not what this transaction wrote before.
		if base := t.base.Get(kind, meta.ID); base != nil && s.SameSpec(base) {
			meta.SpecSince = cmp.Or(base.GetMeta().SpecSince, base.GetMeta().Version)
		}
	}

	oldName := ""
	if prev != nil {
		oldName = prev.ObjectName()
	}
	if name := o.ObjectName(); name != oldName {
		if name != "" {
			key := nameKey(meta.Project, kind, name)
			if owner, _ := t.record(key); owner != "" {
				return fault.New(fault.AlreadyExists, "%s %s already exists", kind, name)
			}
			t.setRecord(key, meta.ID, false)
		}
		if oldName != "" {
			t.deleteRecord(nameKey(meta.Project, kind, oldName))
		}
	}

	doc, err := state.Encode(o)
	if err != nil {
		return fault.New(fault.InvalidArgument, "%s %s cannot be stored: %w", kind, meta.ID, err)
	}
	key := ObjectKey(meta.Project, kind, meta.ID)
	if base := t.base.Get(kind, meta.ID); base != nil {
		t.touch(key, base.GetMeta().Version)
	} else {
		t.touch(key, 0)
	}
	t.write(key, write{doc: doc, object: o})
	setObject(t.tree, prev, o)
	return nil
}

func (t *tx) Delete(kind cloud.Kind, id string) error {
	prev := t.snapshot.Get(kind, id)
	if prev == nil {
		return fault.New(fault.NotFound, "%s %s not found", kind, id)
	}
	t.touchObject(kind, id)
	meta := prev.GetMeta()
	if name := prev.ObjectName(); name != "" {
		t.deleteRecord(nameKey(meta.Project, kind, name))
	}
	t.write(ObjectKey(meta.Project, kind, id), write{})
	setObject(t.tree, prev, nil)
	return nil
}

func (t *tx) Recall(project, key string) (id string, ok bool) {
	k := idemKey(project, key)
	_, rev := t.base.record(k)
	t.touch(k, rev)
	id, _ = t.record(k)
	return id, id != ""
}

func (t *tx) Remember(project, key, id string) error {
	if key == "" || id == "" {
		return fmt.Errorf("idempotency key %q for object %q: both must be set", key, id)
	}
	t.setRecord(idemKey(project, key), id, true)
	return nil
}

func (t *tx) setRecord(key, value string, expiring bool) {
	_, rev := t.base.record(key)
	t.touch(key, rev)
	t.write(key, write{doc: []byte(value), expiring: expiring})
	t.tree.ReplaceOrInsert(item{key: recordItem(key), value: value})
}

func (t *tx) deleteRecord(key string) {
	_, rev := t.base.record(key)
	t.touch(key, rev)
	t.write(key, write{})
	t.tree.Delete(item{key: recordItem(key)})
}
