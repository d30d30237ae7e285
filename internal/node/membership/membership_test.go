package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// host is a daemon's membership with stand-ins for the control plane and the agent.
type host struct {
	*Membership
	t    *testing.T
	root string
	addr string

	mu     sync.Mutex
	env    *ManagerEnv // while the control plane runs
	agent  *NodeEnv    // while the agent runs
	left   int
	planes int // control planes started
}

func newHost(t *testing.T, name string) *host {
	t.Helper()
	h := &host{t: t, root: t.TempDir(), addr: freeAddr(t)}
	h.boot(name, nil)
	t.Cleanup(func() { h.Stop() })
	return h
}

// boot makes the daemon anew on the same folder.
func (h *host) boot(name string, now func() time.Time) {
	h.t.Helper()
	m, err := New(Config{
		DataRoot: h.root, Hostname: name, NoFsync: true, Now: now,
		Logger: slog.New(slog.NewTextHandler(h.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})).With("host", name),
		Hooks: Hooks{
			ManagerStarted: func(env ManagerEnv) (func(), error) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.env = &env
				h.planes++
				return func() {
					h.mu.Lock()
					defer h.mu.Unlock()
					h.env = nil
				}, nil
			},
			NodeStarted: func(env NodeEnv) (func(), error) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.agent = &env
				return func() {
					h.mu.Lock()
					defer h.mu.Unlock()
					h.agent = nil
				}, nil
			},
			Left: func(context.Context) error {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.left++
				return nil
			},
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.Membership = m
	if err := m.Start(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (h *host) plane() *ManagerEnv {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.env
}

func (h *host) running() *NodeEnv {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.agent
}

func (h *host) init() {
	h.t.Helper()
	start := time.Now()
	if _, err := h.Init(h.t.Context(), InitRequest{ListenAddr: h.addr}); err != nil {
		h.t.Fatal(err)
	}
	h.t.Logf("init took %v", time.Since(start))
}

func (h *host) tokens() cloud.JoinTokens {
	h.t.Helper()
	return h.Local().Cluster.Tokens
}

func (h *host) join(through *host, token string) {
	h.t.Helper()
	start := time.Now()
	if err := h.Join(h.t.Context(), JoinRequest{ListenAddr: h.addr, RemoteAddrs: []string{through.addr}, Token: token}); err != nil {
		h.t.Fatal(err)
	}
	h.t.Logf("join took %v", time.Since(start))
}

// object returns the node's object as a manager has it.
func (h *host) object(manager *host) (n *cloud.Node) {
	id := h.Local().NodeID
	manager.plane().Store.View(func(tx state.Tx) { n = state.Get[*cloud.Node](tx, id) })
	return n
}

// setRole does what `docker node promote` and the session with the leader do.
func (h *host) setRole(manager *host, role cloud.Role) {
	h.t.Helper()
	id := h.Local().NodeID
	if err := manager.plane().Store.Update(h.t.Context(), func(tx state.WriteTx) error {
		n := state.Clone(state.Get[*cloud.Node](tx, id))
		n.Spec.Role = role
		return tx.Put(n)
	}); err != nil {
		h.t.Fatal(err)
	}
	h.running().SetRole(role)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never happened: %s", what)
		}
	}
}

func write(t *testing.T, h *host, id string) {
	t.Helper()
	if err := h.plane().Store.Update(t.Context(), func(tx state.WriteTx) error {
		return tx.Put(&cloud.Task{Meta: cloud.Meta{ID: id}})
	}); err != nil {
		t.Fatalf("write %s: %v", id, err)
	}
}

func has(h *host, id string) (found bool) {
	env := h.plane()
	if env == nil {
		return false
	}
	env.Store.View(func(tx state.Tx) { found = state.Get[*cloud.Task](tx, id) != nil })
	return found
}

func wantErr(t *testing.T, err error, kind fault.Kind, text string) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Fatalf("error is %v (%v), want %v with %q", err, fault.KindOf(err), kind, text)
	}
}

// untouched checks that a host is in no cluster and nothing of one lies about.
func (h *host) untouched() {
	h.t.Helper()
	if l := h.Local(); l.State != "inactive" {
		h.t.Errorf("the host is %+v", l)
	}
	if _, err := os.Stat(filepath.Join(h.root, "swarm")); !errors.Is(err, os.ErrNotExist) {
		h.t.Errorf("the folder swarm is there: %v", err)
	}
	if h.running() != nil || h.plane() != nil {
		h.t.Error("agent or control plane run")
	}
}

func TestInitRestartLeave(t *testing.T) {
	a := newHost(t, "a")
	wantErr(t, a.Leave(t.Context(), false), fault.Unavailable, "This node is not part of a swarm")
	a.init()
	l := a.Local()
	if l.State != "active" || !l.ControlAvailable || l.NodesTotal != 1 || l.ManagersTotal != 1 || l.NodeAddr != "127.0.0.1" || l.Cluster == nil ||
		l.Cluster.Spec.Name != "default" || l.Cluster.Spec.TaskHistoryLimit != 5 {
		t.Fatalf("after init: %+v", l)
	}
	_, err := a.Init(t.Context(), InitRequest{ListenAddr: freeAddr(t)})
	wantErr(t, err, fault.Unavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`)
	leads := a.plane().Election.Leadership(t.Context())
	for now := range leads {
		if now {
			break
		}
	}
	if a.plane().Election.LeaderNode() != l.NodeID || a.plane().Election.LeaderAddr() != a.addr {
		t.Fatal("the only manager does not lead")
	}
	write(t, a, "kept")

	a.Stop()
	for range leads { // ends
	}
	a.boot("a", nil)
	if again := a.Local(); again.NodeID != l.NodeID || again.ClusterID != l.ClusterID || again.Cluster == nil {
		t.Fatalf("after a restart: %+v", again)
	}
	if !has(a, "kept") {
		t.Fatal("the state did not outlive the restart")
	}
	write(t, a, "more")

	wantErr(t, a.Leave(t.Context(), false), fault.Unavailable, "Removing the last manager erases all current state of the swarm. Use `--force`")
	if err := a.Leave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	a.untouched()
	if a.left != 1 {
		t.Errorf("Left was called %d times", a.left)
	}
	a.init() // and again
}

func TestInitRefusesBadRequests(t *testing.T) {
	a := newHost(t, "a")
	for name, c := range map[string]struct {
		edit func(*InitRequest)
		text string
	}{
		"advertise address": {func(r *InitRequest) { r.AdvertiseAddr = "no-such-interface" }, "advertise address must be"},
		"data path port":    {func(r *InitRequest) { r.DataPathPort = 80 }, "not in valid range (1024-49151) : 80"},
		"certificate life":  {func(r *InitRequest) { r.Spec.CertExpiry = time.Minute }, "minimum certificate expiry time"},
		"subnet size":       {func(r *InitRequest) { r.SubnetSize = 31 }, "subnet size is out of range"},
	} {
		t.Run(name, func(t *testing.T) {
			r := InitRequest{ListenAddr: a.addr}
			c.edit(&r)
			_, err := a.Init(t.Context(), r)
			wantErr(t, err, fault.InvalidArgument, c.text)
			a.untouched()
		})
	}
	taken, err := net.Listen("tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Init(t.Context(), InitRequest{ListenAddr: a.addr})
	wantErr(t, err, fault.FailedPrecondition, "address already in use")
	a.untouched()
	taken.Close()
	for _, name := range []string{"membership.init.certified", "membership.init.written"} {
		disable := failpoint.Enable(name, failpoint.Fail)
		if _, err := a.Init(t.Context(), InitRequest{ListenAddr: a.addr}); err == nil {
			t.Errorf("init succeeds although %s fails", name)
		}
		disable()
		a.untouched()
	}
	a.init()
}

func TestJoin(t *testing.T) {
	a, b, c := newHost(t, "a"), newHost(t, "b"), newHost(t, "c")
	a.init()
	tokens := a.tokens()
	foreign := newHost(t, "x")
	foreign.init()

	nodes := func() int { return a.Local().NodesTotal }
	for name, x := range map[string]struct {
		remote, token, text string
		kind                fault.Kind
	}{
		"no token":       {a.addr, "SWMTKN-nonsense", "invalid join token", fault.InvalidArgument},
		"another secret": {a.addr, tokens.Worker[:len(tokens.Worker)-3] + "000", "invalid join token", fault.InvalidArgument},
		"another swarm":  {a.addr, foreign.tokens().Worker, "remote CA does not match fingerprint. Expected: ", fault.InvalidArgument},
		"nobody there":   {freeAddr(t), tokens.Worker, "could not reach manager 127.0.0.1:", fault.Unavailable},
		"no address":     {"", tokens.Worker, "is not the address of a manager", fault.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			err := b.Join(t.Context(), JoinRequest{ListenAddr: b.addr, RemoteAddrs: []string{x.remote}, Token: x.token})
			wantErr(t, err, x.kind, x.text)
			b.untouched()
			if nodes() != 1 {
				t.Errorf("the cluster has %d nodes", nodes())
			}
		})
	}
	for _, name := range []string{"membership.join.certified", "membership.join.started", "membership.promote.certified", "membership.promote.added", "membership.promote.started"} {
		t.Run(name, func(t *testing.T) {
			defer failpoint.Enable(name, failpoint.Fail)()
			err := b.Join(t.Context(), JoinRequest{ListenAddr: b.addr, RemoteAddrs: []string{a.addr}, Token: tokens.Manager})
			if err == nil {
				t.Fatal("join succeeds")
			}
			b.untouched()
			if name != "membership.join.certified" { // killed before it could say goodbye, its node stays, as one that is down
				eventually(t, "the node is gone", func() bool { return nodes() == 1 })
			} else if err := a.plane().Store.Update(t.Context(), func(tx state.WriteTx) error {
				for _, n := range state.List[*cloud.Node](tx, state.By{}) {
					if n.Manager == nil {
						return tx.Delete(cloud.KindNode, n.ID)
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			write(t, a, name) // the quorum is unharmed
		})
	}

	b.join(a, tokens.Worker)
	if l := b.Local(); l.State != "active" || l.ControlAvailable || l.ClusterID != a.Local().ClusterID || len(l.Managers) != 1 {
		t.Fatalf("the worker is %+v", l)
	}
	if n := b.object(a); n == nil || n.Spec.Role != cloud.RoleWorker || n.Description.Hostname != "b" {
		t.Fatalf("the worker's object is %+v", n)
	}
	err := b.Join(t.Context(), JoinRequest{ListenAddr: b.addr, RemoteAddrs: []string{a.addr}, Token: tokens.Worker})
	wantErr(t, err, fault.Unavailable, "This node is already part of a swarm")

	c.join(a, tokens.Manager)
	if l := c.Local(); !l.ControlAvailable || l.Cluster == nil || l.NodesTotal != 3 || l.ManagersTotal != 2 {
		t.Fatalf("the new manager is %+v", l)
	}
	write(t, c, "by the new manager")
	eventually(t, "the first manager shows it", func() bool { return has(a, "by the new manager") })

	// Its folder survives.
	b.Stop()
	b.boot("b", nil)
	if l := b.Local(); l.State != "active" || b.running() == nil {
		t.Fatalf("the worker after a restart: %+v", l)
	}
	if err := b.Leave(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	b.untouched()
	eventually(t, "the node counts as down", func() bool {
		down := 0
		a.plane().Store.View(func(tx state.Tx) {
			for _, n := range state.List[*cloud.Node](tx, state.By{}) {
				if n.Status.State == cloud.NodeDown {
					down++
				}
			}
		})
		return down == 1
	})
}

// TestJoinAsksAgain: a manager that cannot be reached at first, as one that starts anew, is asked again.
func TestJoinAsksAgain(t *testing.T) {
	a, b := newHost(t, "a"), newHost(t, "b")
	a.init()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if n == 0 {
				_ = c.Close()
				continue
			}
			manager, err := net.Dial("tcp", a.addr)
			if err != nil {
				_ = c.Close()
				continue
			}
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_, _ = to.Close(), from.Close()
			}
			go pass(c, manager)
			go pass(manager, c)
		}
	}()
	if err := b.Join(t.Context(), JoinRequest{ListenAddr: b.addr, RemoteAddrs: []string{l.Addr().String()}, Token: a.tokens().Worker}); err != nil {
		t.Fatal(err)
	}
}

func TestThreeManagersOutliveOne(t *testing.T) {
	a, b, c, w := newHost(t, "a"), newHost(t, "b"), newHost(t, "c"), newHost(t, "w")
	a.init()
	b.join(a, a.tokens().Manager)
	c.join(b, a.tokens().Manager) // through a manager that does not lead
	w.join(c, a.tokens().Worker)
	a.Stop()
	write(t, b, "of two")
	eventually(t, "the other shows it", func() bool { return has(c, "of two") })
	if lead := b.plane().Election.LeaderNode(); lead != b.Local().NodeID && lead != c.Local().NodeID {
		t.Errorf("%q leads", lead)
	}
	if b.plane().Election.Reachable(a.Local().NodeID) {
		t.Error("the stopped manager counts as reachable")
	}
	// The worker finds another manager.
	if err := w.renew(t.Context(), w.Membership.current); err != nil {
		t.Fatal(err)
	}
	// And one joins meanwhile.
	newHost(t, "d").join(b, b.tokens().Worker)
	a.boot("a", nil)
	eventually(t, "the first is back", func() bool { return has(a, "of two") })
	write(t, a, "of three")
	wantErr(t, a.Leave(t.Context(), false), fault.Unavailable, "participating as a manager")
	if err := a.Leave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	a.untouched()
	eventually(t, "two managers are left", func() bool { return b.Local().ManagersTotal == 2 })
	write(t, b, "without it")
}

func TestPromoteAndDemoteLive(t *testing.T) {
	a, b := newHost(t, "a"), newHost(t, "b")
	a.init()
	b.join(a, a.tokens().Worker)
	agent := b.running()
	for round := range 2 {
		b.setRole(a, cloud.RoleManager)
		eventually(t, "the worker is a manager", func() bool { return b.Local().ControlAvailable && b.object(a).Manager != nil })
		write(t, b, "promoted"+string(rune('0'+round)))
		if b.running() != agent {
			t.Error("the agent was restarted")
		}
		b.setRole(a, cloud.RoleWorker)
		eventually(t, "the manager is a worker", func() bool {
			return !b.Local().ControlAvailable && b.object(a).Manager == nil && b.Membership.current.id.Subject().Role == identity.Worker
		})
		if _, err := os.Stat(filepath.Join(b.root, "swarm", "etcd")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the worker keeps the cluster's state: %v", err)
		}
		write(t, a, "demoted"+string(rune('0'+round)))
	}

	// The manager that leads is demoted, by itself having asked another.
	b.setRole(a, cloud.RoleManager)
	eventually(t, "the worker is a manager", func() bool { return b.Local().ControlAvailable && b.object(a).Manager != nil })
	a.setRole(b, cloud.RoleWorker)
	eventually(t, "the first manager is a worker", func() bool { return !a.Local().ControlAvailable })
	write(t, b, "alone")
	if l := b.Local(); l.ManagersTotal != 1 || l.NodesTotal != 2 {
		t.Errorf("%+v", l)
	}
	// The last one cannot be.
	b.setRole(b, cloud.RoleWorker)
	write(t, b, "still here")
	if !b.Local().ControlAvailable {
		t.Error("the last manager was demoted")
	}
}

func TestADemotedManagerThatWasAwayComesBackAsWorker(t *testing.T) {
	a, b, c := newHost(t, "a"), newHost(t, "b"), newHost(t, "c")
	a.init()
	b.join(a, a.tokens().Manager)
	c.join(a, a.tokens().Manager)
	id := b.Local().NodeID
	b.Stop()
	eventually(t, "the others see it go", func() bool { return !a.plane().Election.Reachable(id) })
	if err := a.plane().Store.Update(t.Context(), func(tx state.WriteTx) error {
		n := state.Clone(state.Get[*cloud.Node](tx, id))
		n.Spec.Role = cloud.RoleWorker
		return tx.Put(n)
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the leader takes its member out", func() bool { return a.Local().ManagersTotal == 2 })
	b.boot("b", nil)
	b.running().SetRole(cloud.RoleWorker) // as the leader tells its agent
	eventually(t, "it is a worker", func() bool {
		return !b.Local().ControlAvailable && b.Membership.running().id.Subject().Role == identity.Worker
	})
	// A quorum must not be given away.
	c.Stop()
	wantErr(t, func() error { return a.plane().RemoveMember(t.Context(), a.Local().NodeID) }(), fault.Unavailable, "")
}

func TestForceNewCluster(t *testing.T) {
	a, b, w := newHost(t, "a"), newHost(t, "b"), newHost(t, "w")
	a.init()
	b.join(a, a.tokens().Manager)
	w.join(a, a.tokens().Worker)
	write(t, a, "kept")
	b.Stop()
	eventually(t, "the quorum is lost", func() bool { return strings.Contains(a.Local().Error, "does not have a leader") })
	if !has(a, "kept") || a.Local().NodesTotal != 3 {
		t.Fatal("without quorum reads do not go on")
	}
	id, err := a.Init(t.Context(), InitRequest{ForceNewCluster: true})
	if err != nil || id != a.Local().NodeID {
		t.Fatalf("%s, %v", id, err)
	}
	if !has(a, "kept") {
		t.Fatal("the state is lost")
	}
	write(t, a, "after")
	if l := a.Local(); l.ManagersTotal != 1 || l.NodesTotal != 3 || l.Error != "" {
		t.Fatalf("%+v", l)
	}
	if err := w.renew(t.Context(), w.Membership.running()); err != nil {
		t.Errorf("the worker is cut off: %v", err)
	}
	newHost(t, "c").join(a, a.tokens().Manager)
	write(t, a, "with a new one")
}

func TestRemovedNodeSaysSo(t *testing.T) {
	a, w := newHost(t, "a"), newHost(t, "w")
	a.init()
	w.join(a, a.tokens().Worker)
	id := w.Local().NodeID
	if err := a.plane().Store.Update(t.Context(), func(tx state.WriteTx) error { return tx.Delete(cloud.KindNode, id) }); err != nil {
		t.Fatal(err)
	}
	// As the agent does when its session ends with this.
	_ = w.running().Managers.Report(rpc.Conn{}, rpc.ToStatus(fault.New(fault.NotFound, "node is not part of the cluster")))
	eventually(t, "the node knows", func() bool { return w.Local().State == "error" && w.running() == nil })
	if !strings.Contains(w.Local().Error, "has been removed") || w.left != 1 {
		t.Errorf("%+v", w.Local())
	}
	if err := w.Leave(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	w.untouched()
	w.join(a, a.tokens().Worker)
}

func TestMonthsOff(t *testing.T) {
	a, w := newHost(t, "a"), newHost(t, "w")
	a.init()
	w.join(a, a.tokens().Worker)
	a.Stop()
	w.Stop()
	later := func() time.Time { return time.Now().Add(300 * 24 * time.Hour) }
	a.boot("a", later)
	if a.Membership.running().id.Expired() {
		t.Fatal("the manager could not renew its own certificate")
	}
	w.boot("w", later)
	eventually(t, "the worker's certificate is renewed", func() bool { return !w.Membership.running().id.Expired() })
}

func TestPortLetsOnlyManagersTakePartInRaft(t *testing.T) {
	a, b, w := newHost(t, "a"), newHost(t, "b"), newHost(t, "w")
	a.init()
	b.join(a, a.tokens().Manager)
	w.join(a, a.tokens().Worker)
	get := func(cfg *tls.Config) (int, error) {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}, Timeout: 10 * time.Second}
		defer c.CloseIdleConnections()
		resp, err := c.Get("https://" + a.addr + "/members")
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	if code, err := get(b.Membership.running().id.ClientConfig()); err != nil || code != http.StatusOK {
		t.Fatalf("a manager is refused: %d, %v", code, err)
	}
	if _, err := get(w.Membership.running().id.ClientConfig()); err == nil {
		t.Error("a worker reaches the replicated state")
	}
	if _, err := get(identity.BlindConfig()); err == nil {
		t.Error("a host without certificate reaches the replicated state")
	}
	if resp, err := http.Get("http://" + a.addr + "/members"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("the port answers without TLS")
		}
	}
	// A demoted manager keeps its certificate until it notices: it counts for nothing.
	old := b.Membership.running().id.ClientConfig()
	id := b.Local().NodeID
	if err := a.plane().RemoveMember(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := a.plane().Store.Update(t.Context(), func(tx state.WriteTx) error {
		n := state.Clone(state.Get[*cloud.Node](tx, id))
		n.Spec.Role = cloud.RoleWorker
		return tx.Put(n)
	}); err != nil {
		t.Fatal(err)
	}
	if code, err := get(old); err != nil || code != http.StatusGone {
		t.Errorf("a demoted manager reaches the replicated state: %d, %v", code, err)
	}
}

func TestRolesAreCheckedCallByCall(t *testing.T) {
	a, w := newHost(t, "a"), newHost(t, "w")
	a.init()
	w.join(a, a.tokens().Worker)
	call := func(cfg *tls.Config, do func(context.Context, *grpc.ClientConn) error) error {
		c, err := rpc.Dial(a.addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return rpc.FromStatus(do(t.Context(), c))
	}
	add := func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := rpc.NewMembershipClient(c).AddManager(ctx, &rpc.AddManagerRequest{RpcAddr: "127.0.0.1:9", PeerUrl: "https://127.0.0.1:9"})
		return err
	}
	worker := w.Membership.running().id.ClientConfig()
	wantErr(t, call(worker, add), fault.Forbidden, "AddManager is for managers only: node "+w.Local().NodeID+" is a worker")
	wantErr(t, call(worker, func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := rpc.NewMembershipClient(c).RemoveManager(ctx, &rpc.RemoveManagerRequest{})
		return err
	}), fault.Forbidden, "RemoveManager is for managers only")
	wantErr(t, call(identity.BlindConfig(), add), fault.Unauthorized, "needs the certificate of a node")
	wantErr(t, call(identity.BlindConfig(), func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := rpc.NewMembershipClient(c).RenewCertificate(ctx, &rpc.RenewCertificateRequest{})
		return err
	}), fault.Unauthorized, "needs the certificate of a node")
	manager := a.Membership.running().id.ClientConfig()
	wantErr(t, call(manager, func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := rpc.NewMembershipClient(c).AddManager(ctx, &rpc.AddManagerRequest{RpcAddr: "0.0.0.0:1", PeerUrl: "https://0.0.0.0:1"})
		return err
	}), fault.InvalidArgument, "are not the address of a manager's port")
	wantErr(t, call(manager, func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := rpc.NewMembershipClient(c).RemoveManager(ctx, &rpc.RemoveManagerRequest{})
		return err
	}), fault.FailedPrecondition, "attempting to demote the last manager of the swarm")
	wantErr(t, call(worker, func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := rpc.NewMembershipClient(c).RenewCertificate(ctx, &rpc.RenewCertificateRequest{CsrPem: []byte("x")})
		return err
	}), fault.InvalidArgument, "certificate request")
}

func TestADeadManagerThatIsRemovedCountsNoMore(t *testing.T) {
	a, b, c := newHost(t, "a"), newHost(t, "b"), newHost(t, "c")
	a.init()
	b.join(a, a.tokens().Manager)
	c.join(a, a.tokens().Manager)
	id := c.Local().NodeID
	c.Stop()
	if err := a.plane().Store.Update(t.Context(), func(tx state.WriteTx) error { return tx.Delete(cloud.KindNode, id) }); err != nil {
		t.Fatal(err)
	}
	members := func() int { return len(a.Membership.running().manager.store.Members()) }
	eventually(t, "its member is taken out", func() bool { return members() == 2 })
	// It comes back, and learns that it is out.
	c.boot("c", nil)
	eventually(t, "the node knows", func() bool { return c.Local().State == "error" })
	if err := c.Leave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	c.join(b, a.tokens().Manager)
	if members() != 3 {
		t.Errorf("%d members", members())
	}
}

func TestDamagedMembershipCanBeLeft(t *testing.T) {
	a := newHost(t, "a")
	a.init()
	a.Stop()
	if err := os.WriteFile(filepath.Join(a.root, "swarm", "state.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.boot("a", nil)
	if l := a.Local(); l.State != "error" || !strings.Contains(l.Error, "cannot be read") {
		t.Fatalf("%+v", l)
	}
	if err := a.Leave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	a.untouched()
}
