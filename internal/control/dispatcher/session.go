package dispatcher

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state"
)

// session is a node's stream. All but wake, ctx and the cause are guarded by the term's mu.
type session struct {
	id     string
	node   string
	view   *view
	sent   uint64 // newest revision that was sent, or that the node had
	full   bool   // the next change is the whole view
	meta   string // role and managers as last sent
	outbox []*rpc.ManagerMessage
	ctx    context.Context
	cancel context.CancelCauseFunc
	wakeUp chan struct{} // capacity 1
}

func (s *session) nudge() {
	select {
	case s.wakeUp <- struct{}{}:
	default:
	}
}

func (s *session) end(cause error) { s.cancel(cause) }

func (s *session) behind() bool { return s.full || s.view.newest() > s.sent }

// newNodeWait is how long a node that this manager has not heard of yet may wait to become known: another manager may
// have let it in a moment ago.
const newNodeWait = 2 * time.Second

// Session hands the caller its view and takes its acknowledgements.
func (d *Dispatcher) Session(stream rpc.Dispatcher_SessionServer) error {
	t, err := d.current()
	if err != nil {
		return err
	}
	node, err := caller(stream.Context())
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil || hello.GetProtocol() != 1 {
		return fault.New(fault.InvalidArgument, "a session begins with a Hello of protocol 1; upgrade the managers before the workers")
	}
	desc := new(cloud.NodeDescription)
	if err := json.Unmarshal(hello.GetDescription(), desc); err != nil {
		return fault.New(fault.InvalidArgument, "node description: %w", err)
	}
	addrs, err := parseAddrs(hello.GetDataAddrs())
	if err != nil {
		return err
	}
	s, err := t.open(stream.Context(), node, hello)
	if err != nil {
		return err
	}
	defer t.close(s)

	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.cancel(nil)
	wg.Go(func() {
		t.persist(s.ctx, node, func(n *cloud.Node) {
			n.Description = *desc
			n.Status = cloud.NodeStatus{State: cloud.NodeReady, Addrs: addrs}
		}, func() bool { return s.ctx.Err() == nil })
	})
	reports := reportsOf(hello.GetTasks(), t.logger)
	t.noteEnds(node, reports)
	wg.Go(func() { _ = t.status.write(s.ctx, node, reports) })
	received := make(chan error, 1)
	go func() { received <- t.receive(stream, s) }()
	err = t.send(stream, s)
	select {
	case rerr := <-received:
		if err == nil {
			err = rerr
		}
	default: // ends with the stream, which ends with this return
	}
	if errors.Is(err, io.EOF) {
		return nil // the agent ended it
	}
	return err
}

func parseAddrs(in []string) ([]netip.Addr, error) {
	out := make([]netip.Addr, 0, len(in))
	for _, a := range in {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			return nil, fault.New(fault.InvalidArgument, "data address %q: %w", a, err)
		}
		out = append(out, addr)
	}
	return out, nil
}

// open makes the node's new session, which replaces an older one.
func (t *term) open(ctx context.Context, node string, hello *rpc.Hello) (*session, error) {
	if err := t.known(ctx, node); err != nil {
		return nil, err
	}
	s := &session{id: t.id + "." + cloud.NewID(), node: node, wakeUp: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return nil, rpc.NotLeader("")
	}
	if old := t.sessions[node]; old != nil {
		old.end(fault.New(fault.Unavailable, "the node began another session"))
	}
	t.sessions[node] = s
	t.model.setDown(node, false)
	t.model.dirty.views[node] = true
	t.model.flush(time.Now())
	s.view = t.model.views[node]
	if s.view == nil {
		return nil, fault.New(fault.NotFound, "node %s is not part of the cluster: let it leave, and join again", node)
	}
	// The view's revisions mean something within one term only.
	resumes := strings.HasPrefix(hello.GetSession(), t.id+".") && hello.GetRevision() >= s.view.logFrom && hello.GetRevision() <= t.model.rev
	s.sent, s.full = hello.GetRevision(), !resumes
	s.meta = t.meta(node)
	s.outbox = append(s.outbox, &rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Start{Start: &rpc.SessionStart{
		Session: s.id, Managers: t.model.managers(), Role: t.role(node), Trust: t.trust(node), HeartbeatPeriod: int64(t.model.heartbeatPeriod()),
	}}})
	t.clock.open(node, s.id)
	t.nudge()
	return s, nil
}

// known waits until the node is in the state.
func (t *term) known(ctx context.Context, node string) error {
	timeout := time.NewTimer(newNodeWait)
	defer timeout.Stop()
	for {
		t.mu.Lock()
		_, ok := t.model.nodes[node]
		changed := t.changed
		t.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-t.ctx.Done():
			return rpc.NotLeader("")
		case <-timeout.C:
			return fault.New(fault.NotFound, "node %s is not part of the cluster: let it leave, and join again", node)
		}
	}
}

// role returns the role that a node should have.
func (t *term) role(node string) string {
	if n := t.model.nodes[node]; n != nil {
		return string(n.Spec.Role)
	}
	return ""
}

// trust returns the fingerprint of the roots that a node is to trust. Managers are told one after the other, this one
// last, as each starts its part in the replicated state anew; until its turn, a manager is told nothing.
func (t *term) trust(node string) string {
	c := t.model.cluster
	if c == nil {
		return ""
	}
	bundle := string(c.CA.Bundle())
	n := t.model.nodes[node]
	if n == nil || n.Manager == nil {
		return identity.Fingerprint([]byte(bundle))
	}
	for id, other := range t.model.nodes {
		before := node == c.Status.Leader || id != c.Status.Leader && id < node
		if id != node && before && other.Manager != nil && other.Status.State == cloud.NodeReady && other.Description.TrustRoot != bundle {
			return ""
		}
	}
	return identity.Fingerprint([]byte(bundle))
}

func (t *term) meta(node string) string {
	return t.role(node) + " " + t.trust(node) + " " + strings.Join(t.model.managers(), " ")
}

func (t *term) close(s *session) {
	s.cancel(nil)
	t.mu.Lock()
	if t.sessions[s.node] == s {
		delete(t.sessions, s.node)
	}
	t.mu.Unlock()
	t.logs.nodeGone(s.node, false)
}

// endSessions closes every stream at the end of the term.
func (t *term) endSessions() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sessions {
		s.end(rpc.NotLeader(""))
	}
}

// send streams to the node whatever it lacks, coalesced for as long as the stream is busy.
func (t *term) send(stream rpc.Dispatcher_SessionServer, s *session) error {
	for {
		for _, m := range t.collect(s) {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		select {
		case <-s.wakeUp:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}

// collect returns what is to be sent now.
func (t *term) collect(s *session) []*rpc.ManagerMessage {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := s.outbox
	s.outbox = nil
	change := &rpc.ViewChange{Full: s.full, From: s.sent, Revision: t.model.rev}
	var docs map[key][]byte
	if !s.full && s.view.newest() > s.sent {
		var ok bool
		if docs, ok = s.view.since(s.sent); !ok {
			s.full, change.Full = true, true
		}
	}
	if s.full {
		docs = s.view.all()
		change.From = 0
	}
	for k, doc := range docs {
		change.Changes = append(change.Changes, &rpc.Change{Kind: k.kind, Key: k.id, Document: doc})
	}
	meta := t.meta(s.node)
	if len(docs) == 0 && !s.full && meta == s.meta {
		return out
	}
	if meta != s.meta {
		s.meta = meta
		change.Role, change.Trust, change.Managers = t.role(s.node), t.trust(s.node), t.model.managers()
	}
	s.full, s.sent = false, t.model.rev
	return append(out, &rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Change{Change: change}})
}

func (t *term) receive(stream rpc.Dispatcher_SessionServer, s *session) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			s.cancel(err)
			return err
		}
		switch m := m.GetKind().(type) {
		case *rpc.AgentMessage_Ack:
			t.mu.Lock()
			if t.sessions[s.node] == s && m.Ack.GetRevision() <= t.model.rev {
				s.view.ack(m.Ack.GetRevision())
			}
			waiting := len(t.model.held) > 0
			t.mu.Unlock()
			if waiting {
				t.nudge()
			}
		case *rpc.AgentMessage_Description:
			desc := new(cloud.NodeDescription)
			if err := json.Unmarshal(m.Description, desc); err != nil {
				s.cancel(fault.New(fault.InvalidArgument, "node description: %w", err))
				return err
			}
			t.persist(s.ctx, s.node, func(n *cloud.Node) { n.Description = *desc }, func() bool { return s.ctx.Err() == nil })
		}
	}
}

// Attach gives a standalone container of the calling node an address on an attachable network. Asked again, it answers
// with what it gave before.
func (d *Dispatcher) Attach(ctx context.Context, r *rpc.AttachRequest) (*rpc.AttachResponse, error) {
	t, err := d.current()
	if err != nil {
		return nil, err
	}
	node, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	requested, err := parseAddrs(r.GetAddrs())
	if err != nil {
		return nil, err
	}
	var at *cloud.Attachment
	err = t.store.Update(ctx, func(tx state.WriteTx) error {
		n := findNetwork(tx, r.GetNetwork())
		switch {
		case n == nil:
			return fault.New(fault.NotFound, "network %s not found", r.GetNetwork())
		case !n.Spec.Attachable || n.Spec.Ingress:
			return fault.New(fault.Forbidden, "Could not attach to network %s: network %s not manually attachable", r.GetNetwork(), n.Spec.Name)
		}
		for _, old := range state.List[*cloud.Attachment](tx, state.ByNode(node)) {
			if old.ContainerID == r.GetContainerId() && old.NetworkID == n.ID {
				if old.Err == "" {
					at = old
					return nil
				}
				if err := tx.Delete(cloud.KindAttachment, old.ID); err != nil {
					return err
				}
			}
		}
		at = &cloud.Attachment{
			Meta: cloud.Meta{ID: cloud.NewID(), Project: n.Project}, NodeID: node, NetworkID: n.ID,
			ContainerID: r.GetContainerId(), Name: r.GetName(), Aliases: r.GetAliases(), Requested: requested,
		}
		return tx.Put(at)
	})
	if err != nil {
		return nil, err
	}
	given, err := t.awaitAddress(ctx, at.ID)
	if err != nil {
		t.forgetAttachment(at.ID)
		return nil, err
	}
	resp := &rpc.AttachResponse{Attachment: encode(given)}
	t.store.View(func(tx state.Tx) {
		if n := state.Get[*cloud.Network](tx, given.NetworkID); n != nil {
			resp.Network = encode(n)
		}
	})
	return resp, nil
}

func findNetwork(tx state.Tx, ref string) *cloud.Network {
	if n := state.Get[*cloud.Network](tx, ref); n != nil {
		return n
	}
	if named := state.List[*cloud.Network](tx, state.ByName(ref)); len(named) > 0 {
		return named[0]
	}
	return nil
}

// attachWait bounds how long the allocator may take.
const attachWait = 10 * time.Second

func (t *term) awaitAddress(ctx context.Context, id string) (*cloud.Attachment, error) {
	ctx, cancel := context.WithTimeout(ctx, attachWait)
	defer cancel()
	var at *cloud.Attachment
	events := t.store.Watch(ctx, func(tx state.Tx) { at = state.Get[*cloud.Attachment](tx, id) }, cloud.KindAttachment)
	for {
		switch {
		case at == nil:
			return nil, fault.New(fault.NotFound, "the attachment was removed meanwhile")
		case at.Err != "":
			return nil, fault.New(fault.Exhausted, "%s", at.Err)
		case len(at.Addrs) > 0:
			return at, nil
		}
		e, ok := <-events
		if !ok {
			return nil, fault.New(fault.DeadlineExceeded, "no address was given in time: try again")
		}
		if e.ID == id {
			at, _ = e.Object.(*cloud.Attachment)
		}
	}
}

func (t *term) forgetAttachment(id string) {
	ctx, cancel := context.WithTimeout(t.ctx, attachWait)
	defer cancel()
	err := t.store.Update(ctx, func(tx state.WriteTx) error { return tx.Delete(cloud.KindAttachment, id) })
	if err != nil && !fault.Is(err, fault.NotFound) {
		t.logger.Warn("remove an attachment that got no address", "attachment", id, "error", err)
	}
}

// Detach gives back the addresses of a standalone container of the calling node.
func (d *Dispatcher) Detach(ctx context.Context, r *rpc.DetachRequest) (*rpc.DetachResponse, error) {
	t, err := d.current()
	if err != nil {
		return nil, err
	}
	node, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	err = t.store.Update(ctx, func(tx state.WriteTx) error {
		mine := slices.Clone(state.List[*cloud.Attachment](tx, state.ByNode(node)))
		for _, a := range mine {
			if a.ContainerID == r.GetContainerId() && (r.GetNetworkId() == "" || r.GetNetworkId() == a.NetworkID) {
				if err := tx.Delete(cloud.KindAttachment, a.ID); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return &rpc.DetachResponse{}, err
}
