package control_test

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/sampan-cloud/sampan/internal/agent"
	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/memstate"
)

// TestAgentOverTheWire has an agent and two managers speak real gRPC: it asks the one that does not lead, is sent on to
// the other, runs a task, and follows the leader when it changes.
func TestAgentOverTheWire(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	store := memstate.New()
	defer store.Close()
	s := &sim{t: t, store: store, hosts: map[string]*host{}, leading: -1, dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	addrs := map[string]string{}
	for i, name := range []string{"node1", "node2"} {
		m := &manager{s: s, index: i, node: name, leads: make(chan bool, 16)}
		m.leader = control.NewLeader(control.LeaderConfig{NodeID: name, Store: store, Election: m, Logger: s.log})
		s.managers = append(s.managers, m)
		wg.Go(func() { _ = m.leader.Run(ctx) })
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		srv := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			resp, err := h(named(ctx), req)
			return resp, rpc.ToStatus(err)
		}), grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			return rpc.ToStatus(h(srv, namedStream{ss}))
		}))
		rpc.RegisterDispatcherServer(srv, m.leader.Dispatcher())
		wg.Go(func() { _ = srv.Serve(l) })
		defer srv.Stop()
		addrs[name] = l.Addr().String()
	}
	node := func(name string) *cloud.Node {
		n := nodeObject(name, 0, true)
		n.Manager.Addr = addrs[name]
		return n
	}
	must(t, control.Bootstrap(ctx, store, &cloud.Cluster{Meta: cloud.Meta{ID: "cluster"}}, node("node1")))
	must(t, store.Update(ctx, func(tx state.WriteTx) error { return tx.Put(node("node2")) }))
	s.elect(1)

	h := newHost(s, "node1", 0)
	way := &way{addrs: []string{addrs["node1"], addrs["node2"]}}
	a, err := agent.New(agent.Config{
		NodeID: "node1", Managers: way, Engine: engine{h}, Images: images{h}, Events: &h.bus, Networks: networks{h},
		StatePath: filepath.Join(s.dir, "view.json"),
		Description: func() cloud.NodeDescription {
			return cloud.NodeDescription{Hostname: "node1", OS: "linux", Architecture: "x86_64"}
		},
		DataAddrs: func() []netip.Addr { return []netip.Addr{h.addr} }, Logger: s.log,
	})
	must(t, err)
	wg.Go(func() { _ = a.Run(ctx) })

	api := control.NewAPI(control.APIConfig{Store: store, Election: s.managers[0]})
	_, err = api.CreateService(ctx, webSpec("web", "web:1", 1), "")
	must(t, err)
	await(t, store, "the task runs", func() bool { return len(s.serving("web")) == 1 })
	if way.preferred() != addrs["node2"] {
		t.Error("the agent was not sent on to the leader")
	}
	s.elect(0)
	h.kill(s.serving("web")[0].ID, 1)
	await(t, store, "under another leader it is replaced", func() bool {
		return len(s.tasks("web")) == 2 && len(s.serving("web")) == 1
	})
	if way.preferred() != addrs["node1"] {
		t.Error("the agent did not follow the leader")
	}
	if err := a.Detach(ctx, "none", ""); err != nil {
		t.Error(err)
	}
	_, err = a.Attach(ctx, &rpc.AttachRequest{Network: "ingress", ContainerId: "c"})
	wantError(t, err, fault.Forbidden, "Could not attach to network ingress")
}

// await waits for a condition of the state, looking after each of its changes.
func await(t *testing.T, store *memstate.Store, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	events := store.Watch(ctx, func(state.Tx) {})
	for !cond() {
		if _, ok := <-events; !ok {
			t.Fatalf("not so after a minute: %s", what)
		}
	}
}

const callerKey = "caller"

func named(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	return rpc.WithCaller(ctx, rpc.Caller{NodeID: md.Get(callerKey)[0], Role: rpc.RoleManager})
}

type namedStream struct{ grpc.ServerStream }

func (s namedStream) Context() context.Context { return named(s.ServerStream.Context()) }

// way is a pool of connections without TLS.
type way struct {
	mu    sync.Mutex
	addrs []string
}

func (w *way) preferred() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.addrs[0]
}

func (w *way) Update([]string) {}

func (w *way) Connect(context.Context) (agent.Link, error) {
	addr := w.preferred()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			return invoke(metadata.AppendToOutgoingContext(ctx, callerKey, "node1"), method, req, reply, cc, o...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(metadata.AppendToOutgoingContext(ctx, callerKey, "node1"), d, cc, method, o...)
		}))
	if err != nil {
		return agent.Link{}, err
	}
	c := rpc.NewDispatcherClient(conn)
	return agent.Link{Dispatcher: c, Heartbeats: c, Close: conn, Report: func(err error) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if to, ok := rpc.RedirectOf(err); ok && to != "" {
			w.addrs = append([]string{to}, slices.DeleteFunc(w.addrs, func(a string) bool { return a == to })...)
		} else if ok {
			w.addrs = append(w.addrs[1:], w.addrs[0])
		}
		return rpc.FromStatus(err)
	}}, nil
}
