// Package etcdstate is the replicated state.Store: an etcd member in this process, written through its own functions (no
// client port is opened) and read from a mirror fed by one watch. It serves no port at all: whoever owns the manager's
// port routes the other members' requests to PeerHandler, after checking that they come from a manager.
package etcdstate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/mirror"
)

// The member's settings. A follower calls an election when it has not heard of its leader for between one and two
// election timeouts: a lost leader is replaced within 1.8 s. A stall must last a whole election timeout to be mistaken for
// a loss, and a member that merely stalled itself disturbs nobody, thanks to pre-vote.
const (
	tickMs     = 100
	electionMs = 900

	quotaBytes      = 1 << 30
	maxRequestBytes = 4 << 20 // above mirror.DefaultLimits.Bytes with its keys and compares
	maxTxnOps       = 4096
	snapshotEntries = 2000 // entries kept in memory between snapshots
	catchUpEntries  = 500
	maxMembers      = cloud.MaxManagers
	compactionAge   = "5m"
)

// WriteTimeout is how long a change waits for a leader and a quorum before it fails with fault.Unavailable.
const WriteTimeout = 6 * time.Second

// Config describes this member.
type Config struct {
	Dir     string // the member's data; exists already when the member is restarted
	Name    string // the node's ID
	PeerURL string // https://ADDR:PORT where the other members reach PeerHandler
	Cluster string // the cluster's ID
	// InitialCluster is what AddLearner returned for this member; empty for the first member of a new cluster. It is
	// not looked at when Dir has the member's data.
	InitialCluster string
	// ForceNewCluster makes this member the only one, keeping its state: for when the quorum is lost for good.
	ForceNewCluster bool

	// DataKey is the key (AES-256) that the cluster's state is encrypted with before etcd has it; empty: it is not. All
	// members have the same.
	DataKey []byte

	// For requests to other members. Certificate and key are in one file, so that they change together; it is read for
	// every connection. ServerName is what the others' certificates must name.
	KeyPairFile string
	CAFile      string
	ServerName  string

	Logger *slog.Logger
	// NoFsync is for tests only: state is lost when the machine crashes.
	NoFsync bool
	// WriteTimeout replaces the constant of that name in tests.
	WriteTimeout time.Duration
	// Stopped is called, once, when the member has stopped by itself. It does so for one reason: it was removed from the
	// cluster. (What it cannot go on with, like a broken disk, ends the whole process.)
	Stopped func()
}

// Store is a state.Store on an embedded etcd member. A member's life (its server, its mirror, its leadership) is one
// thing, and its locks are between them.
type Store struct {
	*mirror.Store
	mirror *mirror.Mirror
	cfg    Config
	logger *slog.Logger
	etcd   *embed.Etcd
	server *etcdserver.EtcdServer
	client *clientv3.Client
	peers  http.Handler

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once

	reconfigure sync.Mutex // raft takes one change of membership at a time
	lease       sharedLease
	lead        leadership
	caughtUp    chan struct{}
	seal        *seal
}

// sharedLease is the lease under which answered requests are remembered for now.
type sharedLease struct {
	mu    sync.Mutex
	id    clientv3.LeaseID
	until time.Time // when the next one is asked for
}

// leadership is whether this member leads.
type leadership struct {
	mu      sync.Mutex
	now     bool
	changed chan struct{} // closed when now changes
}

var _ state.Store = (*Store)(nil)

// Initialized reports whether dir holds a member's data.
func Initialized(dir string) bool {
	names, err := os.ReadDir(filepath.Join(dir, "member", "wal"))
	return err == nil && len(names) > 0
}

// Open starts the member. The mirror shows what the member has on disk when Open returns; a quorum is not waited for, see
// Ready. Joining a cluster needs one of its members to answer.
func Open(cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.WriteTimeout == 0 {
		cfg.WriteTimeout = WriteTimeout
	}
	seal, err := newSeal(cfg.DataKey)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the cluster's state: %w", err)
	}
	fresh := !Initialized(cfg.Dir)
	e, err := start(cfg, fresh)
	if err != nil {
		return nil, fmt.Errorf("start the cluster's state: %w", err)
	}
	m := mirror.New(cfg.Logger)
	s := &Store{
		mirror: m, cfg: cfg, logger: cfg.Logger, etcd: e, server: e.Server, client: v3client.New(e.Server),
		peers: etcdhttp.NewPeerHandler(e.GetLogger(), e.Server), lead: leadership{changed: make(chan struct{})},
		caughtUp: make(chan struct{}), seal: seal,
	}
	s.Store = mirror.NewStore(m, s, nil)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	rev, err := s.load()
	if err != nil {
		s.Close()
		return nil, err
	}
	s.wg.Go(func() { s.follow(rev) })
	if fresh {
		s.wg.Go(s.electSelf)
	}
	s.wg.Go(s.catchUp)
	s.wg.Go(s.watchLeadership)
	s.wg.Go(s.watchStop)
	return s, nil
}

func embedConfig(cfg Config) (*embed.Config, error) {
	peer, err := url.Parse(cfg.PeerURL)
	if err != nil || peer.Host == "" {
		return nil, fmt.Errorf("peer URL %q: %w", cfg.PeerURL, errors.Join(err, errors.New("want https://ADDRESS:PORT")))
	}
	ec := embed.NewConfig()
	ec.Name = cfg.Name
	ec.Dir = cfg.Dir
	ec.ListenPeerUrls, ec.ListenClientUrls, ec.AdvertiseClientUrls = nil, nil, nil
	ec.AdvertisePeerUrls = []url.URL{*peer}
	ec.InitialClusterToken = cfg.Cluster
	ec.InitialCluster = cfg.Name + "=" + cfg.PeerURL
	if cfg.InitialCluster != "" {
		ec.ClusterState = embed.ClusterStateFlagExisting
		ec.InitialCluster = cfg.InitialCluster
	}
	ec.ForceNewCluster = cfg.ForceNewCluster
	ec.PeerTLSInfo = transport.TLSInfo{
		CertFile: cfg.KeyPairFile, KeyFile: cfg.KeyPairFile, TrustedCAFile: cfg.CAFile, ServerName: cfg.ServerName,
	}
	ec.TlsMinVersion = "TLS1.3"
	ec.TickMs, ec.ElectionMs = tickMs, electionMs
	ec.PreVote = true
	// Its check refuses changes of membership until all members have been connected for 5 s, which would make every join
	// wait. AddLearner and RemoveMember ask for a quorum themselves.
	ec.StrictReconfigCheck = false
	ec.QuotaBackendBytes = quotaBytes
	ec.MaxRequestBytes = maxRequestBytes
	ec.MaxTxnOps = maxTxnOps
	ec.SnapshotCount, ec.SnapshotCatchUpEntries = snapshotEntries, catchUpEntries
	ec.MaxLearners = maxMembers
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, compactionAge
	ec.EnableGRPCGateway = false
	ec.UnsafeNoFsync = cfg.NoFsync
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZapLogger(cfg.Logger))
	return ec, nil
}

// PeerHandler serves the other members. It trusts its caller: only managers of this cluster may reach it.
func (s *Store) PeerHandler() http.Handler { return s.peers }

// Ready waits until the member takes part in the cluster: it has a leader, and its name is known to the others.
func (s *Store) Ready(ctx context.Context) error {
	select {
	case <-s.server.ReadyNotify():
		return nil
	case <-s.server.StopNotify():
		return errStopped()
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "the cluster's managers have no quorum: no leader was found: %w", ctx.Err())
	}
}

func errStopped() error {
	return fault.New(fault.Unavailable, "the cluster's state has been stopped on this node")
}

// handOver bounds how long a leader that stops waits for another to take over: without a quorum nobody will.
const handOver = time.Second

// Close stops the member, handing leadership to another one first.
func (s *Store) Close() {
	s.once.Do(func() {
		s.cancel()
		s.mirror.Close()
		handed := make(chan struct{})
		go func() {
			defer close(handed)
			_ = s.StepDown()
		}()
		select {
		case <-handed:
		case <-time.After(handOver):
		}
		s.server.HardStop() // ends StepDown, too; Close alone would try it anew, for seven seconds
		<-handed
		s.etcd.Close()
		_ = s.client.Close()
		s.wg.Wait()
	})
}

// watchStop tells when the member ends by itself. That it was removed is not to be read off its own list of members: it
// may hear it from the others, who turn it away, before the change itself has reached it, or without that ever doing so.
func (s *Store) watchStop() {
	select {
	case <-s.ctx.Done():
		return
	case <-s.server.StopNotify():
	}
	if s.ctx.Err() != nil {
		return
	}
	s.logger.Info("this node's member of the replicated state has stopped: it was removed")
	if s.cfg.Stopped != nil {
		go s.cfg.Stopped()
	}
}
