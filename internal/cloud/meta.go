package cloud

import (
	"cmp"
	"reflect"
	"time"
)

// DefaultProject is the tenant that everything belongs to until a request names another.
const DefaultProject = "default"

// Kind names a class of stored objects. It is part of the storage key and of the wire between hosts.
type Kind string

// The kinds of stored objects.
const (
	KindCluster    Kind = "cluster"
	KindNode       Kind = "node"
	KindService    Kind = "service"
	KindTask       Kind = "task"
	KindNetwork    Kind = "network"
	KindAttachment Kind = "attachment"
	KindSecret     Kind = "secret"
	KindConfig     Kind = "config"
)

// Kinds lists every stored kind.
func Kinds() []Kind {
	return []Kind{KindCluster, KindNode, KindService, KindTask, KindNetwork, KindAttachment, KindSecret, KindConfig}
}

// Meta is what every stored object has. ID is 25 characters of base 36 (see NewID). Version is the revision of the
// store at which the object was last written; the store sets it, and an update that carries an older one is refused.
// SpecSince, which the store sets too, is the version since which the object's specification is what it is, 0 for since
// Version: what the control loops write beside it is no reason to refuse a user's change. Born, set by the store as well,
// is larger than that of every object which the transaction that made this one could see, and 0 in documents from before
// there was such a number.
type Meta struct {
	ID        string    `json:"id"`
	Project   string    `json:"project"`
	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
	SpecSince uint64    `json:"specSince,omitempty"`
	Born      uint64    `json:"born,omitempty"`
	Version   uint64    `json:"-"`
}

// SpecReadAt reports whether who read the object at that version has seen the specification that it has now.
func (m *Meta) SpecReadAt(version uint64) bool {
	return version <= m.Version && version >= cmp.Or(m.SpecSince, m.Version)
}

// CompareAge is negative if the object was made before the other, whatever the clock said then, and 0 if both were made
// in one moment.
func (m *Meta) CompareAge(other *Meta) int {
	return cmp.Or(cmp.Compare(m.Born, other.Born), m.CreatedAt.Compare(other.CreatedAt))
}

// Object is implemented by pointers to every stored type.
type Object interface {
	GetMeta() *Meta
	// ObjectKind is what kind of object it is.
	ObjectKind() Kind
	// ObjectName is the name by which users find the object, unique within project and kind; empty if it has none.
	ObjectName() string
}

// Specified is implemented by objects whose specification users replace while control loops write the rest.
type Specified interface {
	Object
	// SameSpec reports whether o, an object of the same kind, has the same specification.
	SameSpec(o Object) bool
}

// SameSpec implements Specified.
func (c *Cluster) SameSpec(o Object) bool {
	other, ok := o.(*Cluster)
	return ok && reflect.DeepEqual(c.Spec, other.Spec)
}

// SameSpec implements Specified.
func (n *Node) SameSpec(o Object) bool {
	other, ok := o.(*Node)
	return ok && reflect.DeepEqual(n.Spec, other.Spec)
}

// SameSpec implements Specified.
func (s *Service) SameSpec(o Object) bool {
	other, ok := o.(*Service)
	return ok && reflect.DeepEqual(s.Spec, other.Spec)
}

// GetMeta returns m itself, for types that embed Meta.
func (m *Meta) GetMeta() *Meta { return m }

// ObjectKind is KindCluster.
func (*Cluster) ObjectKind() Kind { return KindCluster }

// ObjectKind is KindNode.
func (*Node) ObjectKind() Kind { return KindNode }

// ObjectKind is KindService.
func (*Service) ObjectKind() Kind { return KindService }

// ObjectKind is KindTask.
func (*Task) ObjectKind() Kind { return KindTask }

// ObjectKind is KindNetwork.
func (*Network) ObjectKind() Kind { return KindNetwork }

// ObjectKind is KindAttachment.
func (*Attachment) ObjectKind() Kind { return KindAttachment }

// ObjectKind is KindSecret.
func (*Secret) ObjectKind() Kind { return KindSecret }

// ObjectKind is KindConfig.
func (*Config) ObjectKind() Kind { return KindConfig }

// ObjectName is the name in the specification.
func (c *Cluster) ObjectName() string { return c.Spec.Name }

// ObjectName is empty: two hosts may have the same name.
func (*Node) ObjectName() string { return "" }

// ObjectName is the name in the specification.
func (s *Service) ObjectName() string { return s.Spec.Name }

// ObjectName is empty: users find it by ID.
func (*Task) ObjectName() string { return "" }

// ObjectName is the name in the specification.
func (n *Network) ObjectName() string { return n.Spec.Name }

// ObjectName is empty: users find it by ID.
func (*Attachment) ObjectName() string { return "" }

// ObjectName is the name in the specification.
func (s *Secret) ObjectName() string { return s.Spec.Name }

// ObjectName is the name in the specification.
func (c *Config) ObjectName() string { return c.Spec.Name }
