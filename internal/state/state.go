// Package state defines how the cluster's desired and actual state is read, changed and watched. There are two
// implementations, etcdstate (replicated) and memstate (one process), and one conformance suite that both pass
// (statetest). All control loops talk to each other through it and through nothing else.
package state

import (
	"context"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// Store is the cluster's state as one process sees it. All methods may be called concurrently. Objects handed out by
// reads and events are shared: whoever wants to change one takes a Clone first (Update's Put takes ownership of what it
// is given).
type Store interface {
	// View calls read with a consistent snapshot of this process' mirror. It never waits for the network. The mirror
	// holds at least everything this process has written.
	View(read func(Tx))

	// Update runs change against a snapshot and writes what it put and deleted in one transaction, which succeeds only
	// if nothing that change read by Get, or wrote, has changed since; otherwise change runs again on a newer snapshot.
	// It returns change's error unchanged, and fault.Unavailable while there is no quorum.
	// When it returns nil, View shows the result.
	Update(ctx context.Context, change func(WriteTx) error) error

	// Batch is Update for many independent objects: each call of change is atomic, the whole is not. It is split into
	// as many transactions as the store's limits demand.
	Batch(ctx context.Context, changes []func(WriteTx) error) error

	// Watch delivers every change after the snapshot that read is called with, in order, one event per object and
	// revision, until ctx ends; then the channel is closed. A watcher that is too slow is not dropped: its events are
	// coalesced by object (the newest wins), so consumers are level-triggered.
	Watch(ctx context.Context, read func(Tx), kinds ...cloud.Kind) <-chan Event

	// Linearize waits until View shows everything that was committed before the call, anywhere in the cluster.
	Linearize(ctx context.Context) error
}

// Event says that an object changed. Exactly one of Object and Removed is set; Removed is its last version.
type Event struct {
	Revision uint64
	Kind     cloud.Kind
	ID       string
	Object   cloud.Object
	Removed  cloud.Object
}

// Tx reads. Use the typed Get, List and the finders of this package.
type Tx interface {
	Revision() uint64
	// Get returns the object or nil.
	Get(kind cloud.Kind, id string) cloud.Object
	// List returns every object that the index entry holds, ordered by ID.
	List(kind cloud.Kind, by By) []cloud.Object
}

// WriteTx reads and writes. Get and List show what this transaction has put.
type WriteTx interface {
	Tx
	// Put creates or replaces an object. Its Meta.Version must be 0 to create (fault.AlreadyExists if the ID, or the
	// name within project and kind, is taken) or the version last read to replace (fault.OutOfDate if it is older).
	// Put sets CreatedAt and UpdatedAt.
	Put(cloud.Object) error
	// Delete removes an object; fault.NotFound if there is none.
	Delete(kind cloud.Kind, id string) error
}

// By selects objects by an index. The zero By selects all.
type By struct {
	Index Index
	Value string
}

// Index names an index that every implementation keeps.
type Index uint8

// The indexes.
const (
	All       Index = iota
	byName          // ObjectName
	byNode          // Task.NodeID, Attachment.NodeID
	byService       // Task.ServiceID
	byNetwork       // Task.Networks, Attachment.NetworkID
)

// ByName selects the object with that name.
func ByName(name string) By { return By{byName, name} }

// ByNode selects tasks and attachments of a node; of no node when id is "".
func ByNode(id string) By { return By{byNode, id} }

// ByService selects the tasks of a service.
func ByService(id string) By { return By{byService, id} }

// ByNetwork selects tasks and attachments on a network.
func ByNetwork(id string) By { return By{byNetwork, id} }

// Values returns the values under which an index holds an object; implementations keep their indexes by it.
func (i Index) Values(o cloud.Object) []string {
	switch o := o.(type) {
	case *cloud.Task:
		switch i {
		case byNode:
			return []string{o.NodeID}
		case byService:
			return []string{o.ServiceID}
		case byNetwork:
			ids := make([]string, 0, len(o.Networks))
			for _, n := range o.Networks {
				ids = append(ids, n.NetworkID)
			}
			return ids
		}
	case *cloud.Attachment:
		switch i {
		case byNode:
			return []string{o.NodeID}
		case byNetwork:
			return []string{o.NetworkID}
		}
	}
	if name := o.ObjectName(); i == byName && name != "" {
		return []string{name}
	}
	return nil
}

// Indexes lists the indexes with values.
func Indexes() []Index { return []Index{byName, byNode, byService, byNetwork} }

// Get returns the object of type T with that ID, or nil: Get[*cloud.Service](tx, id).
func Get[T cloud.Object](tx Tx, id string) T {
	var zero T
	o, _ := tx.Get(zero.ObjectKind(), id).(T)
	return o
}

// List returns the objects of type T that by selects, ordered by ID.
func List[T cloud.Object](tx Tx, by By) []T {
	var zero T
	objects := tx.List(zero.ObjectKind(), by)
	out := make([]T, 0, len(objects))
	for _, o := range objects {
		out = append(out, o.(T))
	}
	return out
}
