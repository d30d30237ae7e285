package cloud

import "time"

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
type Meta struct {
	ID        string    `json:"id"`
	Project   string    `json:"project"`
	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
	Version   uint64    `json:"-"`
}

// Object is implemented by pointers to every stored type.
type Object interface {
	GetMeta() *Meta
	ObjectKind() Kind
	// ObjectName is the name by which users find the object, unique within project and kind; empty if it has none.
	ObjectName() string
}

// GetMeta returns m itself, for types that embed Meta.
func (m *Meta) GetMeta() *Meta { return m }

func (*Cluster) ObjectKind() Kind    { return KindCluster }
func (*Node) ObjectKind() Kind       { return KindNode }
func (*Service) ObjectKind() Kind    { return KindService }
func (*Task) ObjectKind() Kind       { return KindTask }
func (*Network) ObjectKind() Kind    { return KindNetwork }
func (*Attachment) ObjectKind() Kind { return KindAttachment }
func (*Secret) ObjectKind() Kind     { return KindSecret }
func (*Config) ObjectKind() Kind     { return KindConfig }

func (c *Cluster) ObjectName() string  { return c.Spec.Name }
func (*Node) ObjectName() string       { return "" } // two hosts may have the same name
func (s *Service) ObjectName() string  { return s.Spec.Name }
func (*Task) ObjectName() string       { return "" }
func (n *Network) ObjectName() string  { return n.Spec.Name }
func (*Attachment) ObjectName() string { return "" }
func (s *Secret) ObjectName() string   { return s.Spec.Name }
func (c *Config) ObjectName() string   { return c.Spec.Name }
