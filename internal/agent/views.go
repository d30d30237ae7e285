package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

const (
	applyRetry = time.Second
	// awaitLimit bounds waiting for the networks to agree with the view.
	awaitLimit = 10 * time.Second
)

// views holds the newest view of the cluster, and makes the host's networks agree with it. A view that was handed out is
// never changed: each change makes a new one.
type views struct {
	a *Agent

	mu      sync.Mutex
	view    *cloud.NodeView
	known   bool            // a view was read from disk or came whole from a manager
	session string          // whose revisions the view has
	open    string          // the open session
	local   map[string]bool // tasks of this node that serve, or do not, whatever the managers said last
	applied *cloud.NodeView // that the networks agree with
	ackRev  uint64          // the revision that the networks agree with
	ackOf   string          // the session that ackRev belongs to
	changed chan struct{}   // closed after each application, and made anew

	wake    chan struct{} // capacity 1
	ackable chan struct{} // capacity 1
}

// kept is what is on disk.
type kept struct {
	Session  string                      `json:"session"`
	View     *cloud.NodeView             `json:"view"`
	Statuses map[string]cloud.TaskStatus `json:"statuses"`
}

func newViews(a *Agent) *views {
	return &views{a: a, view: cloud.NewNodeView(), local: map[string]bool{}, changed: make(chan struct{}),
		wake: make(chan struct{}, 1), ackable: make(chan struct{}, 1)}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// load reads what an earlier agent left.
func (v *views) load() error {
	doc, err := os.ReadFile(v.a.cfg.StatePath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	k := kept{View: cloud.NewNodeView()}
	if err := json.Unmarshal(doc, &k); err != nil {
		return err
	}
	if k.View == nil {
		return errors.New("the file holds no view")
	}
	fillMaps(k.View)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.view, v.session, v.known = k.View, k.Session, true
	poke(v.wake)
	maps.DeleteFunc(k.Statuses, func(id string, _ cloud.TaskStatus) bool { return k.View.Tasks[id] == nil })
	v.a.reports.restore(k.Statuses)
	return nil
}

func fillMaps(v *cloud.NodeView) {
	e := cloud.NewNodeView()
	for _, fill := range []func(){
		func() { fillMap(&v.Tasks, e.Tasks) }, func() { fillMap(&v.Secrets, e.Secrets) }, func() { fillMap(&v.Configs, e.Configs) },
		func() { fillMap(&v.Networks, e.Networks) }, func() { fillMap(&v.Members, e.Members) },
		func() { fillMap(&v.Services, e.Services) }, func() { fillMap(&v.Peers, e.Peers) },
	} {
		fill()
	}
}

func fillMap[V any](m *map[string]V, empty map[string]V) {
	if *m == nil {
		*m = empty
	}
}

// held returns the session and revision of the view.
func (v *views) held() (session string, revision uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.session, v.view.Revision
}

// begin says which session is open.
func (v *views) begin(session string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open = session
	maps.DeleteFunc(v.local, func(_ string, serves bool) bool { return serves }) // from here on the managers say so
	// Sessions of one term share their revisions: what was applied under the last one counts for this one.
	if termOf(v.session) == termOf(session) {
		v.session = session
		if v.ackOf != "" {
			v.ackOf = session
		}
		poke(v.ackable)
	}
}

func termOf(session string) string {
	term, _, _ := strings.Cut(session, ".")
	return term
}

// change takes in what the manager sent.
func (v *views) change(c *rpc.ViewChange) error {
	v.mu.Lock()
	if !c.GetFull() && (v.session != v.open || c.GetFrom() != v.view.Revision) {
		v.mu.Unlock()
		return fault.New(fault.Internal, "the manager sent changes from revision %d to a view of revision %d", c.GetFrom(), v.view.Revision)
	}
	var next cloud.NodeView
	if c.GetFull() {
		next = *cloud.NewNodeView()
	} else {
		next = *v.view
	}
	if err := amend(&next, c.GetChanges(), c.GetFull()); err != nil {
		v.mu.Unlock()
		return err
	}
	next.Revision = c.GetRevision()
	v.view, v.session, v.known = &next, v.open, true
	maps.DeleteFunc(v.local, func(id string, _ bool) bool { return next.Tasks[id] == nil })
	v.mu.Unlock()
	poke(v.wake)
	// Most changes are of members elsewhere and concern no task of this node.
	if c.GetFull() || slices.ContainsFunc(c.GetChanges(), func(c *rpc.Change) bool { return c.GetKind() == "task" }) {
		v.a.tasks.sync(&next)
	}
	return nil
}

// amend applies changes to a view whose maps may be shared: each map that changes is copied first.
func amend(view *cloud.NodeView, changes []*rpc.Change, owned bool) error {
	copied := map[string]bool{}
	for _, c := range changes {
		first := !owned && !copied[c.GetKind()]
		copied[c.GetKind()] = true
		var err error
		switch c.GetKind() {
		case "task":
			err = put(&view.Tasks, c, first)
		case "secret":
			err = put(&view.Secrets, c, first)
		case "config":
			err = put(&view.Configs, c, first)
		case "network":
			err = put(&view.Networks, c, first)
		case "member":
			err = put(&view.Members, c, first)
		case "service":
			err = put(&view.Services, c, first)
		case "peer":
			err = put(&view.Peers, c, first)
		default: // of a newer manager; what we do not know we do not need
		}
		if err != nil {
			return fault.New(fault.Internal, "%s %s in the manager's view: %w", c.GetKind(), c.GetKey(), err)
		}
	}
	return nil
}

func put[T any](m *map[string]*T, c *rpc.Change, copyFirst bool) error {
	if copyFirst {
		*m = maps.Clone(*m)
	}
	if len(c.GetDocument()) == 0 {
		delete(*m, c.GetKey())
		return nil
	}
	o := new(T)
	if err := json.Unmarshal(c.GetDocument(), o); err != nil {
		return err
	}
	(*m)[c.GetKey()] = o
	return nil
}

// current returns the newest view.
func (v *views) current() *cloud.NodeView {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.view
}

// isKnown reports whether the view says anything about which tasks this node has.
func (v *views) isKnown() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.known
}

// setDead takes a task of this node out of its own names and virtual addresses at once.
func (v *views) setDead(task string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if serves, known := v.local[task]; known && !serves {
		return
	}
	v.local[task] = false
	poke(v.wake)
}

// setAlive puts a task of this node back where the managers have it; if they cannot be asked, among those that serve.
func (v *views) setAlive(task string, unasked bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	serves, known := v.local[task]
	switch {
	case unasked && !(known && serves):
		v.local[task] = true
	case !unasked && known:
		delete(v.local, task)
	default:
		return
	}
	poke(v.wake)
}

// effective returns the view as the networks are to see it.
func (v *views) effective() (view *cloud.NodeView, session string, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	view = v.view
	var members map[string]*cloud.Member
	for id, serves := range v.local {
		t := view.Tasks[id]
		if t == nil {
			continue
		}
		for _, n := range t.Networks {
			key := cloud.MemberID(id, n.NetworkID)
			m := view.Members[key]
			if m == nil || m.Ready == serves {
				continue
			}
			if members == nil {
				members = maps.Clone(view.Members)
			}
			c := *m
			c.Ready = serves
			members[key] = &c
		}
	}
	if members != nil {
		c := *view
		c.Members = members
		view = &c
	}
	return view, v.session, v.known
}

// run applies the newest view whenever there is a newer one.
func (v *views) run(ctx context.Context) {
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-v.wake:
		case <-retry.C:
		}
		view, session, known := v.effective()
		if !known {
			continue
		}
		v.save(view, session)
		err := failpoint.Hit("agent.views.apply")
		if err == nil {
			err = v.a.cfg.Networks.Apply(ctx, view, v.a.cfg.NodeID)
		}
		if err != nil {
			if ctx.Err() == nil {
				v.a.cfg.Logger.Error("the cluster's networks could not be made on this host: will try again", "revision", view.Revision, "error", err)
				retry.Reset(applyRetry)
			}
			continue
		}
		v.mu.Lock()
		v.applied = view
		v.ackRev, v.ackOf = view.Revision, session
		close(v.changed)
		v.changed = make(chan struct{})
		v.mu.Unlock()
		poke(v.ackable)
	}
}

// toAck returns the revision to acknowledge in the open session.
func (v *views) toAck() (uint64, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ackRev, v.ackOf != "" && v.ackOf == v.open
}

// await waits until the networks agree with a view for which ok holds.
func (v *views) await(ctx context.Context, ok func(*cloud.NodeView) bool) error {
	ctx, cancel := context.WithTimeout(ctx, awaitLimit)
	defer cancel()
	for {
		v.mu.Lock()
		done, changed := v.applied != nil && ok(v.applied), v.changed
		v.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// save writes the view down for the next agent: a rename, so that a reader finds the old or the new one. It is not
// forced to the disk: after a crash of the host no container runs that needed it, and each change would cost a flush.
func (v *views) save(view *cloud.NodeView, session string) {
	// Secrets stay in memory. A view that lacks them cannot be resumed from: the next session brings it whole.
	if len(view.Secrets) > 0 {
		bare := *view
		bare.Secrets = nil
		view, session = &bare, ""
	}
	doc := encode(kept{Session: session, View: view, Statuses: v.a.reports.statuses()})
	tmp := v.a.cfg.StatePath + ".new"
	err := os.MkdirAll(filepath.Dir(tmp), 0o700)
	if err == nil {
		err = os.WriteFile(tmp, doc, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, v.a.cfg.StatePath)
	}
	if err != nil {
		v.a.cfg.Logger.Error("the view of the cluster could not be kept on disk", "file", v.a.cfg.StatePath, "error", err)
	}
}
