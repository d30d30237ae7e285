package control

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control/authority"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// API is the control API. Every manager has one; it reads this manager's mirror of the state, which holds all that this
// manager wrote, and writes through the state's transactions.
type API struct {
	cfg APIConfig
}

// APIConfig is what NewAPI needs.
type APIConfig struct {
	Store    state.Store
	Election Election
	// CaughtUp is closed when Store shows all that was committed before this manager started; nil: it does already.
	CaughtUp <-chan struct{}
	// Local is this manager's dispatcher, through which logs come while it leads.
	Local LocalLogs
	// Leader connects to the leading manager, when it is another, on behalf of Logs.
	Leader func(ctx context.Context) (rpc.DispatcherClient, error)
	Logger *slog.Logger
}

// LocalLogs is (*dispatcher.Dispatcher).
type LocalLogs interface {
	Leads() bool
	Subscribe(ctx context.Context, r *rpc.LogRequest, emit func(*rpc.LogFrame) error) error
}

// NewAPI returns the control API over a store.
func NewAPI(cfg APIConfig) *API {
	if cfg.CaughtUp != nil {
		cfg.Store = newSettled(cfg.Store, cfg.CaughtUp)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &API{cfg: cfg}
}

// Leader returns the ID of the leading manager's node, "" when there is none.
func (a *API) Leader() string { return a.cfg.Election.LeaderNode() }

// ManagerReachable reports whether a manager answers.
func (a *API) ManagerReachable(nodeID string) bool { return a.cfg.Election.Reachable(nodeID) }

var errOutOfSequence = fault.New(fault.OutOfDate, "update out of sequence")

// find returns the object that ref names: by its ID, its name, or the beginning of the ID of one object only.
func find[T cloud.Object](tx state.Tx, ref string, names func(T) []string) (T, error) {
	var zero T
	kind := string(zero.ObjectKind())
	if ref == "" {
		return zero, fault.New(fault.InvalidArgument, "%s ID or name must be provided", kind)
	}
	if o, ok := tx.Get(zero.ObjectKind(), ref).(T); ok {
		return o, nil
	}
	var named, prefixed []T
	for _, o := range state.List[T](tx, state.By{}) {
		if slices.Contains(names(o), ref) {
			named = append(named, o)
		}
		if strings.HasPrefix(o.GetMeta().ID, ref) {
			prefixed = append(prefixed, o)
		}
	}
	matches := named
	if len(matches) == 0 {
		matches = prefixed
	}
	switch len(matches) {
	case 0:
		return zero, fault.New(fault.NotFound, "%s %s not found", kind, ref)
	case 1:
		return matches[0], nil
	}
	return zero, fault.New(fault.InvalidArgument, "%s %s is ambiguous (%d matches found)", kind, ref, len(matches))
}

func ownName[T cloud.Object](o T) []string { return []string{o.ObjectName()} }

func get[T cloud.Object](a *API, ref string, names func(T) []string) (o T, err error) {
	a.cfg.Store.View(func(tx state.Tx) { o, err = find(tx, ref, names) })
	return o, err
}

func list[T cloud.Object](a *API) (out []T) {
	a.cfg.Store.View(func(tx state.Tx) { out = state.List[T](tx, state.By{}) })
	return out
}

// freshen waits, as long as that is worth it, until what any manager has written is seen here: for reads whose answer a
// user changes and sends back, perhaps to another manager than the one asked before.
func (a *API) freshen(ctx context.Context) {
	if a.cfg.Election == nil || a.cfg.Election.LeaderNode() == "" {
		return // the last known state is all there is
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = a.cfg.Store.Linearize(ctx)
}

// GetCluster returns the one object that describes the cluster.
func (a *API) GetCluster(ctx context.Context) (*cloud.Cluster, error) {
	a.freshen(ctx)
	all := list[*cloud.Cluster](a)
	if len(all) == 0 {
		return nil, fault.New(fault.Unavailable, "the cluster's state is not there yet: try again")
	}
	return all[0], nil
}

// ClusterChange is what UpdateCluster does.
type ClusterChange struct {
	Spec                                  cloud.ClusterSpec
	RotateWorkerToken, RotateManagerToken bool
	RotateUnlockKey                       bool
	// CACert and CAKey, in PEM, are the certificate authority that is to replace the cluster's. Without them, a Spec whose
	// ForceRotate differs asks for one that is made here.
	CACert, CAKey []byte
}

// UpdateCluster replaces the cluster's specification, and its join tokens and certificate authority where asked.
func (a *API) UpdateCluster(ctx context.Context, version uint64, change ClusterChange) error {
	spec := change.Spec
	if err := ValidateCluster(&spec); err != nil {
		return err
	}
	var ca *identity.CA
	var err error
	switch {
	case len(change.CACert) > 0:
		ca, err = identity.Usable(change.CACert, change.CAKey, time.Now())
	case len(change.CAKey) > 0:
		err = fault.New(fault.InvalidArgument, "a key of a certificate authority was given without its certificate")
	}
	if err != nil {
		return err
	}
	return a.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		all := state.List[*cloud.Cluster](tx, state.By{})
		if len(all) == 0 {
			return fault.New(fault.Unavailable, "the cluster's state is not there yet: try again")
		}
		c := state.Clone(all[0])
		if !c.SpecReadAt(version) {
			return errOutOfSequence
		}
		if ca == nil && spec.ForceRotate != c.Spec.ForceRotate {
			if ca, err = identity.NewCA(time.Now()); err != nil {
				return err
			}
		}
		if ca != nil {
			if err := authority.Begin(c, ca); err != nil {
				return err
			}
		}
		// What was fixed when the cluster was made stays.
		spec.Name, spec.AddressPools, spec.SubnetSize, spec.DataPathPort = c.Spec.Name, c.Spec.AddressPools, c.Spec.SubnetSize, c.Spec.DataPathPort
		c.Spec = spec
		switch {
		case !spec.AutoLock:
			c.UnlockKey = ""
		case c.UnlockKey == "" || change.RotateUnlockKey:
			c.UnlockKey = identity.NewUnlockKey()
		}
		if change.RotateWorkerToken {
			if c.Tokens.Worker, err = identity.NewToken(c.CA.IssuingDigest()); err != nil {
				return err
			}
		}
		if change.RotateManagerToken {
			if c.Tokens.Manager, err = identity.NewToken(c.CA.IssuingDigest()); err != nil {
				return err
			}
		}
		return tx.Put(c)
	})
}

func nodeNames(n *cloud.Node) []string { return []string{n.Description.Hostname, n.Spec.Name} }

// ListNodes returns all nodes.
func (a *API) ListNodes(context.Context) ([]*cloud.Node, error) { return list[*cloud.Node](a), nil }

// GetNode finds a node.
func (a *API) GetNode(ctx context.Context, ref string) (*cloud.Node, error) {
	a.freshen(ctx)
	return get(a, ref, nodeNames)
}

// UpdateNode replaces a node's specification. A manager is not demoted if the rest could not decide any more.
func (a *API) UpdateNode(ctx context.Context, id string, version uint64, spec cloud.NodeSpec) error {
	if err := ValidateNode(&spec); err != nil {
		return err
	}
	return a.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		n, err := find(tx, id, nodeNames)
		if err != nil {
			return err
		}
		if !n.SpecReadAt(version) {
			return errOutOfSequence
		}
		switch {
		case n.Spec.Role == cloud.RoleManager && spec.Role == cloud.RoleWorker:
			err = a.mayDemote(tx, n)
		case n.Spec.Role == cloud.RoleWorker && spec.Role == cloud.RoleManager:
			err = MayAddManager(tx)
		}
		if err != nil {
			return err
		}
		c := state.Clone(n)
		c.Spec = spec
		return tx.Put(c)
	})
}

// MayAddManager refuses one manager more than a cluster can have. A node that is to be a manager counts as one.
func MayAddManager(tx state.Tx) error {
	managers := 0
	for _, n := range state.List[*cloud.Node](tx, state.By{}) {
		if n.Spec.Role == cloud.RoleManager || n.Manager != nil {
			managers++
		}
	}
	if managers >= cloud.MaxManagers {
		return fault.New(fault.FailedPrecondition, "the cluster has %d managers already, which is the most it can have: demote one first, or join as a worker", managers)
	}
	return nil
}

func (a *API) mayDemote(tx state.Tx, n *cloud.Node) error {
	rest, reachable := 0, 0
	for _, other := range state.List[*cloud.Node](tx, state.By{}) {
		if other.ID == n.ID || other.Spec.Role != cloud.RoleManager || other.Manager == nil {
			continue
		}
		rest++
		if a.cfg.Election.Reachable(other.ID) {
			reachable++
		}
	}
	if rest == 0 {
		return fault.New(fault.FailedPrecondition, "attempting to demote the last manager of the swarm")
	}
	if reachable < rest/2+1 {
		return fault.New(fault.FailedPrecondition, "can't remove member from the raft: this would result in a loss of quorum")
	}
	return nil
}

// RemoveNode forgets a node that is down, or any worker with force.
func (a *API) RemoveNode(ctx context.Context, ref string, force bool) error {
	return a.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		n, err := find(tx, ref, nodeNames)
		if err != nil {
			return err
		}
		if n.Spec.Role == cloud.RoleManager || n.Manager != nil {
			return fault.New(fault.FailedPrecondition, "node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", n.ID)
		}
		if !force && n.Status.State == cloud.NodeReady {
			return fault.New(fault.FailedPrecondition, "node %s is not down and can't be removed", n.ID)
		}
		for _, at := range slices.Clone(state.List[*cloud.Attachment](tx, state.ByNode(n.ID))) {
			if err := tx.Delete(cloud.KindAttachment, at.ID); err != nil {
				return err
			}
		}
		return tx.Delete(cloud.KindNode, n.ID)
	})
}

// GetTask finds a task, by the name of its container too.
func (a *API) GetTask(_ context.Context, ref string) (*cloud.Task, error) {
	t, err := get(a, ref, func(t *cloud.Task) []string { return []string{t.Name()} })
	if err != nil {
		return nil, err
	}
	return publicTask(t), nil
}

// ListTasks returns all tasks.
func (a *API) ListTasks(context.Context) ([]*cloud.Task, error) {
	all := list[*cloud.Task](a)
	for i, t := range all {
		all[i] = publicTask(t)
	}
	return all, nil
}

// publicTask returns the task without the registry's credentials.
func publicTask(t *cloud.Task) *cloud.Task {
	if t.Spec.Container.PullAuth == "" {
		return t
	}
	c := *t
	c.Spec.Container.PullAuth = ""
	return &c
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
