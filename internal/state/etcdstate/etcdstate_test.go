package etcdstate

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/mirror"
	"github.com/sampan-cloud/sampan/internal/state/statetest"
)

func TestConformance(t *testing.T) {
	statetest.Run(t, func(t *testing.T) state.Store {
		s, err := Open(Config{Dir: t.TempDir(), Name: "n1", Cluster: t.Name(), PeerURL: "http://127.0.0.1:1", NoFsync: true, DataKey: make([]byte, 32)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	})
}

// host is a place where a member can run: an address and a folder.
type host struct {
	t        *testing.T
	name     string
	dir      string
	listener net.Listener
	server   *http.Server

	mu      sync.Mutex
	handler http.Handler

	store   *Store
	logger  *slog.Logger
	stopped chan struct{}
}

func newHost(t *testing.T, name string) *host {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, name: name, dir: t.TempDir(), listener: l, stopped: make(chan struct{}, 1)}
	// etcd panics on purpose when a removed member calls: net/http catches that.
	h.server = &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		handler := h.handler
		h.mu.Unlock()
		if handler == nil {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		handler.ServeHTTP(w, r)
	})}
	go func() { _ = h.server.Serve(l) }()
	t.Cleanup(func() {
		h.close()
		_ = h.server.Close()
	})
	return h
}

func (h *host) url() string { return "http://" + h.listener.Addr().String() }

func (h *host) open(initialCluster string, force bool) *Store {
	h.t.Helper()
	s, err := Open(Config{
		Dir: h.dir, Name: h.name, Cluster: "c", PeerURL: h.url(), InitialCluster: initialCluster, ForceNewCluster: force,
		Logger: h.logger, NoFsync: true, WriteTimeout: 20 * time.Second, Stopped: func() { h.stopped <- struct{}{} },
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.handler = s.PeerHandler()
	h.mu.Unlock()
	h.store = s
	return s
}

func (h *host) close() {
	if h.store == nil {
		return
	}
	h.mu.Lock()
	h.handler = nil
	h.mu.Unlock()
	h.store.Close()
	h.store = nil
}

// waitStopped waits until the member has ended by itself.
func (h *host) waitStopped() {
	h.t.Helper()
	select {
	case <-h.stopped:
	case <-time.After(30 * time.Second):
		h.t.Fatal("the removed member runs on")
	}
}

// kill stops the member without a word to the others.
func (h *host) kill() {
	h.mu.Lock()
	h.handler = nil
	h.mu.Unlock()
	h.store.cancel()
	h.store.server.HardStop()
	h.close()
}

func (h *host) join(through *Store) *Store {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	id, initial, err := through.AddLearner(ctx, h.name, h.url())
	if err != nil {
		h.t.Fatal(err)
	}
	s := h.open(initial, false)
	if s.MemberID() != id {
		h.t.Fatalf("member is %x, was added as %x", s.MemberID(), id)
	}
	if err := through.Promote(ctx, id); err != nil {
		h.t.Fatal(err)
	}
	return s
}

func write(t *testing.T, s *Store, id string) {
	t.Helper()
	if err := s.Update(t.Context(), func(tx state.WriteTx) error {
		return tx.Put(&cloud.Task{Meta: cloud.Meta{ID: id}})
	}); err != nil {
		t.Fatalf("write %s: %v", id, err)
	}
}

func waitTask(t *testing.T, s *Store, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	found := false
	for events := s.Watch(ctx, func(tx state.Tx) { found = state.Get[*cloud.Task](tx, id) != nil }); !found; {
		e, ok := <-events
		if !ok {
			t.Fatalf("task %s never came", id)
		}
		found = e.ID == id
	}
}

func waitLeads(t *testing.T, s *Store, want bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for leads := range s.Leadership(ctx) {
		if leads == want {
			return
		}
	}
	t.Fatalf("member never changed to leading=%v", want)
}

func TestThreeMembersOutliveTheLossOfTheLeader(t *testing.T) {
	a, b, c := newHost(t, "a"), newHost(t, "b"), newHost(t, "c")
	sa := a.open("", false)
	write(t, sa, "first")
	sb := b.join(sa)
	sc := c.join(sa)
	for _, s := range []*Store{sa, sb, sc} {
		waitTask(t, s, "first")
	}
	for _, m := range sa.Members() {
		if m.Learner {
			t.Errorf("%s is a learner still", m.Name)
		}
	}
	write(t, sb, "by a follower")
	if err := sc.Linearize(t.Context()); err != nil {
		t.Fatal(err)
	}
	sc.View(func(tx state.Tx) {
		if state.Get[*cloud.Task](tx, "by a follower") == nil {
			t.Error("after Linearize a member does not show what another one has written")
		}
	})

	waitLeads(t, sa, true)
	a.kill()
	write(t, sb, "after the loss") // waits for the election by itself
	waitTask(t, sc, "after the loss")
	if _, leader := sb.Leader(); leader != "b" && leader != "c" {
		t.Errorf("leader is %q", leader)
	}

	// Its folder is whole: it comes back and catches up.
	sa = a.open("", false)
	waitTask(t, sa, "after the loss")
	write(t, sa, "back again")

	// The dead one is taken out for good.
	b.kill()
	var dead uint64
	for _, m := range sa.Members() {
		if m.Name == "b" {
			dead = m.ID
		}
	}
	if err := sa.RemoveMember(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	if err := sa.RemoveMember(t.Context(), dead); err != nil {
		t.Fatalf("removing a member a second time: %v", err)
	}
	write(t, sc, "of two")
}

func TestARemovedMemberStops(t *testing.T) {
	a, b := newHost(t, "a"), newHost(t, "b")
	sa := a.open("", false)
	sb := b.join(sa)
	if err := sa.RemoveMember(t.Context(), sb.MemberID()); err != nil {
		t.Fatal(err)
	}
	b.waitStopped()
	write(t, sa, "alone")
	// The same host may join anew, with an empty folder.
	b.close()
	b.dir = t.TempDir()
	sb = b.join(sa)
	waitTask(t, sb, "alone")
}

// Nobody tells the removed member of its removal: it is turned away when it comes back.
func TestAMemberRemovedWhileItWasAwayStops(t *testing.T) {
	a, b, c := newHost(t, "a"), newHost(t, "b"), newHost(t, "c")
	sa := a.open("", false)
	id := b.join(sa).MemberID()
	c.join(sa)
	b.close()
	if err := sa.RemoveMember(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	b.open("", false)
	b.waitStopped()
	write(t, sa, "without it")
}

func TestWithoutQuorumReadsGoOnAndWritesSaySo(t *testing.T) {
	a, b := newHost(t, "a"), newHost(t, "b")
	sa := a.open("", false)
	write(t, sa, "kept")
	b.join(sa)
	waitLeads(t, sa, true)
	b.kill()
	waitLeads(t, sa, false)
	sa.cfg.WriteTimeout = 500 * time.Millisecond
	err := sa.Update(t.Context(), func(tx state.WriteTx) error { return tx.Put(&cloud.Task{Meta: cloud.Meta{ID: "x"}}) })
	if !fault.Is(err, fault.Unavailable) {
		t.Fatalf("a write without quorum: %v (%v)", err, fault.KindOf(err))
	}
	if err := sa.Linearize(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("linearize without quorum: %v", err)
	}
	mine := errors.New("mine")
	if err := sa.Update(t.Context(), func(state.WriteTx) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("a change that writes nothing must not wait for a quorum: %v", err)
	}
	waitTask(t, sa, "kept")

	// The quorum is given up.
	a.close()
	sa = a.open("", true)
	waitTask(t, sa, "kept")
	write(t, sa, "after force-new-cluster")
	if m := sa.Members(); len(m) != 1 || m[0].Name != "a" {
		t.Fatalf("members are %+v", m)
	}
	// And a plain restart keeps it so.
	a.close()
	sa = a.open("", false)
	write(t, sa, "after a restart")
	waitTask(t, sa, "after force-new-cluster")
}

func TestMirrorIsLoadedAnewAfterCompaction(t *testing.T) {
	h := newHost(t, "a")
	s := h.open("", false)
	for i := range 20 {
		write(t, s, fmt.Sprint("t", i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := s.Watch(ctx, nil)
	rev := int64(s.Revision())
	if _, err := s.client.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	// A watch that is told to begin before the compaction fails, and what follows it loads everything.
	if err := s.watch(2); err == nil {
		t.Fatal("the watch does not notice that its revisions are gone")
	}
	if _, err := s.load(); err != nil {
		t.Fatal(err)
	}
	write(t, s, "next")
	if e := <-events; e.ID != "next" {
		t.Fatalf("loading the same state anew told watchers of %+v", e)
	}
}

func TestRepeatedAttemptFindsItsOwnWrite(t *testing.T) {
	h := newHost(t, "a")
	s := h.open("", false)
	write(t, s, "old")
	if err := s.Update(t.Context(), func(tx state.WriteTx) error {
		if err := tx.Delete(cloud.KindTask, "old"); err != nil {
			return err
		}
		return tx.Put(&cloud.Task{Meta: cloud.Meta{ID: "new"}})
	}); err != nil {
		t.Fatal(err)
	}
	// The same transaction once more, as after an attempt whose answer was lost.
	doc, err := s.client.Get(t.Context(), "/sampan/v1/default/task/new")
	if err != nil {
		t.Fatal(err)
	}
	txn := mirrorTxn("/sampan/v1/default/task/new", doc.Kvs[0].Value, "/sampan/v1/default/task/old", 2)
	if ok, _, err := s.try(t.Context(), txn, false); ok || err != nil {
		t.Fatalf("a first attempt must not take another's write for its own: %v, %v", ok, err)
	}
	if ok, rev, err := s.try(t.Context(), txn, true); !ok || err != nil || rev != uint64(doc.Kvs[0].ModRevision) {
		t.Fatalf("the repeated attempt says %v, revision %d, %v", ok, rev, err)
	}
	txn.Puts["/sampan/v1/default/task/new"] = []byte("another's")
	if ok, _, err := s.try(t.Context(), txn, true); ok || err != nil {
		t.Fatalf("a repeated attempt took another's write for its own: %v, %v", ok, err)
	}
}

func mirrorTxn(putKey string, doc []byte, deleted string, deletedRev uint64) mirror.Txn {
	return mirror.Txn{
		Compares: map[string]uint64{putKey: 0, deleted: deletedRev},
		Puts:     map[string][]byte{putKey: doc},
		Deletes:  map[string]struct{}{deleted: {}},
	}
}

// TestOnlyANewMemberIsToldToStand: told to stand while it applies its log, a restarted member may panic (see electSelf),
// which takes a loop held up at the wrong moment and shows on overloaded hosts only. So what is tested is that it is not
// told to, and that it leads all the same, with more in its log than it has applied, some of it compacted.
func TestOnlyANewMemberIsToldToStand(t *testing.T) {
	h := newHost(t, "lone")
	var log sharedLog
	h.logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.open("", false)
	waitLeads(t, h.store, true)
	if n := log.count(standsAtOnce); n != 1 {
		t.Fatalf("a new member was told to stand %d times", n)
	}
	write(t, h.store, "first")
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 2 * snapshotEntries / 16 {
				if _, err := h.store.client.Put(t.Context(), "other", "entry"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	write(t, h.store, "last")
	h.kill()
	h.open("", false)
	waitLeads(t, h.store, true)
	waitTask(t, h.store, "first")
	waitTask(t, h.store, "last")
	h.close()
	if n := log.count(standsAtOnce); n != 1 {
		t.Error("a restarted member was told to stand")
	}
}

// sharedLog holds what several goroutines log.
type sharedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *sharedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *sharedLog) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

// What a member shows right after its start may be old; it says when it is not any more.
func TestCaughtUpAfterARestart(t *testing.T) {
	a, b, c := newHost(t, "a"), newHost(t, "b"), newHost(t, "c")
	sa := a.open("", false)
	b.join(sa)
	c.join(sa)
	for round := range 3 {
		// The third member is away while the others write, and then they all are, killed in the middle of it.
		c.kill()
		write(t, sa, fmt.Sprint("without c ", round))
		sc := c.open("", false)
		shows := func(s *Store, id string) {
			t.Helper()
			select {
			case <-s.CaughtUp():
			case <-time.After(30 * time.Second):
				t.Fatal("never caught up")
			}
			s.View(func(tx state.Tx) {
				if state.Get[*cloud.Task](tx, id) == nil {
					t.Errorf("%q is not there", id)
				}
			})
		}
		shows(sc, fmt.Sprint("without c ", round))
		last := fmt.Sprint("last of ", round)
		write(t, sa, last)
		for _, h := range []*host{a, b, c} {
			h.kill()
		}
		for _, h := range []*host{a, b, c} {
			h.open("", false)
		}
		sa = a.store
		for _, h := range []*host{a, b, c} {
			shows(h.store, last)
		}
	}
}

// A cluster that was founded a moment ago has not agreed on its version: whoever joins then waits for that.
func TestJoiningAClusterJustFounded(t *testing.T) {
	for i := range 5 {
		a, b := newHost(t, fmt.Sprintf("a%d", i)), newHost(t, fmt.Sprintf("b%d", i))
		b.join(a.open("", false))
	}
}

// Members that join at the same time change the list that each of them was given. Here the list that b was given lacks
// c, which is added after it and before b starts.
func TestJoiningWhileAnotherOneIsAdded(t *testing.T) {
	a, b, c := newHost(t, "a"), newHost(t, "b"), newHost(t, "c")
	sa := a.open("", false)
	_, forB, err := sa.AddLearner(t.Context(), b.name, b.url())
	if err != nil {
		t.Fatal(err)
	}
	id, forC, err := sa.AddLearner(t.Context(), c.name, c.url())
	if err != nil {
		t.Fatal(err)
	}
	sb := b.open(forB, false)
	write(t, sa, "before")
	waitTask(t, sb, "before")
	// And c's has one too many.
	if err := sa.RemoveMember(t.Context(), sb.MemberID()); err != nil {
		t.Fatal(err)
	}
	b.waitStopped()
	b.close()
	sc := c.open(forC, false)
	if sc.MemberID() != id {
		t.Errorf("c is %x, was added as %x", sc.MemberID(), id)
	}
	waitTask(t, sc, "before")
}

// Nothing of the state but kinds, IDs and names is on a manager's disk in the clear.
func TestStateOnDiskIsEncrypted(t *testing.T) {
	dir, key := t.TempDir(), bytes.Repeat([]byte{7}, 32)
	open := func(key []byte) (*Store, error) {
		return Open(Config{Dir: dir, Name: "n1", Cluster: "c", PeerURL: "http://127.0.0.1:1", NoFsync: true, DataKey: key})
	}
	s, err := open(key)
	if err != nil {
		t.Fatal(err)
	}
	secret := &cloud.Secret{Meta: cloud.Meta{ID: "s"}, Spec: cloud.SecretSpec{Name: "nameofit", Data: []byte("the-secret-itself")}}
	if err := s.Update(t.Context(), func(tx state.WriteTx) error { return tx.Put(secret) }); err != nil {
		t.Fatal(err)
	}
	s.Close()
	names, clear := false, []byte(base64.StdEncoding.EncodeToString([]byte("the-secret-itself")))
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		doc, err := os.ReadFile(path)
		names = names || bytes.Contains(doc, []byte("nameofit"))
		if bytes.Contains(doc, clear) || bytes.Contains(doc, []byte("the-secret-itself")) {
			t.Errorf("the secret is in %s", path)
		}
		return err
	}); err != nil || !names {
		t.Fatalf("the folder was not looked through: %v", err)
	}
	for _, wrong := range [][]byte{nil, bytes.Repeat([]byte{8}, 32)} {
		if s, err := open(wrong); err == nil {
			s.Close()
			t.Error("opened with a wrong key")
		}
	}
	if s, err = open(key); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.View(func(tx state.Tx) {
		if got := state.Get[*cloud.Secret](tx, "s"); got == nil || string(got.Spec.Data) != "the-secret-itself" {
			t.Errorf("read back %+v", got)
		}
	})
}
