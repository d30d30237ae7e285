// Package volume owns a host's named volumes of the local driver: folders under DATA-ROOT/volumes that outlive the
// containers that use them.
package volume

import "time"

// Volume is a named volume.
type Volume struct {
	Name       string
	Driver     string // local
	Mountpoint string
	Created    time.Time
	Labels     map[string]string
	Options    map[string]string // type, device, o: mounted while in use
	Anonymous  bool
}

// The store is (*Store), in store.go:
//
//	Open(root string) (*Store, error)
//	Create(ctx, Volume) (Volume, error)            idempotent by name; fault.Conflict for the same name with other options; empty name: random
//	Get(name) (Volume, error)                      fault.NotFound "get NAME: no such volume"
//	List() []Volume
//	Remove(ctx, name string, force bool) error     fault.Conflict with the users' IDs while in use
//	Acquire(ctx, name, user string) (path string, err error)    counts user as using it (mounts if it has options)
//	Release(ctx, name, user string) error
//	Users(name) []string
//	Size(name) (int64, error)
