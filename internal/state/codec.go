package state

import (
	"encoding/json"
	"fmt"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// New returns an empty object of the kind, or nil for an unknown kind.
func New(kind cloud.Kind) cloud.Object {
	switch kind {
	case cloud.KindCluster:
		return new(cloud.Cluster)
	case cloud.KindNode:
		return new(cloud.Node)
	case cloud.KindService:
		return new(cloud.Service)
	case cloud.KindTask:
		return new(cloud.Task)
	case cloud.KindNetwork:
		return new(cloud.Network)
	case cloud.KindAttachment:
		return new(cloud.Attachment)
	case cloud.KindSecret:
		return new(cloud.Secret)
	case cloud.KindConfig:
		return new(cloud.Config)
	}
	return nil
}

// Encode returns the object as the JSON document in which it is stored. Unknown fields written by a newer version are
// lost by an older one: managers are upgraded before workers, and one manager at a time.
func Encode(o cloud.Object) ([]byte, error) { return json.Marshal(o) }

// Decode reads what Encode wrote; version is the store's revision of the document.
func Decode(kind cloud.Kind, doc []byte, version uint64) (cloud.Object, error) {
	o := New(kind)
	if o == nil {
		return nil, fmt.Errorf("stored object of unknown kind %q", kind)
	}
	if err := json.Unmarshal(doc, o); err != nil {
		return nil, fmt.Errorf("decode %s: %w", kind, err)
	}
	o.GetMeta().Version = version
	return o, nil
}

// Clone returns a deep copy of the object, its version included.
func Clone[T cloud.Object](o T) T {
	doc, err := Encode(o)
	if err != nil {
		panic(err) // every stored type can be encoded: a test does so
	}
	c, err := Decode(o.ObjectKind(), doc, o.GetMeta().Version)
	if err != nil {
		panic(err)
	}
	return c.(T)
}
