package dispatcher

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
)

// The kinds of documents in a view, as they travel.
const (
	kindTask    = "task"
	kindSecret  = "secret"
	kindConfig  = "config"
	kindNetwork = "network"
	kindMember  = "member"
	kindService = "service"
	kindPeer    = "peer"
)

// key names a document in a view.
type key struct{ kind, id string }

// netKey names a document that every node on a network has.
type netKey struct {
	network string
	key
}

// tables are the stored objects that views are made from, as last heard.
type tables struct {
	tasks       map[string]*cloud.Task
	nodes       map[string]*cloud.Node
	networks    map[string]*cloud.Network
	services    map[string]*cloud.Service
	secrets     map[string]*cloud.Secret
	configs     map[string]*cloud.Config
	attachments map[string]*cloud.Attachment
	cluster     *cloud.Cluster
	tasksOn     map[string]map[string]*cloud.Task       // by node
	attachedOn  map[string]map[string]*cloud.Attachment // by node
}

// model derives the views of all nodes from the state, and nothing but the part that a change touches. What it derives
// must at all times equal what it would derive from scratch: a test compares the two after random changes.
type model struct {
	tables
	rev uint64 // of the newest flush that changed something

	down     map[string]bool      // nodes that do not answer
	dead     map[string]bool      // tasks reported as ended, until the state says so
	held     map[string]time.Time // tasks whose stop is held back, since when
	released map[string]bool      // tasks whose stop may go out

	onNet  map[string]map[key][]byte // by network: the documents that every node on it has
	ofTask map[string][]netKey       // what a task, attachment or service has put there
	peers  map[string][]byte

	views   map[string]*view
	viewsOn map[string]map[string]*view // by network and node

	dirty dirtySet
}

// dirtySet is what to look at again in the next flush.
type dirtySet struct {
	tasks, attachments, services, networks, peers, views map[string]bool
}

func newDirtySet() dirtySet {
	return dirtySet{map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}}
}

func newModel() *model {
	return &model{
		tables: tables{
			tasks: map[string]*cloud.Task{}, nodes: map[string]*cloud.Node{}, networks: map[string]*cloud.Network{},
			services: map[string]*cloud.Service{}, secrets: map[string]*cloud.Secret{}, configs: map[string]*cloud.Config{},
			attachments: map[string]*cloud.Attachment{},
			tasksOn:     map[string]map[string]*cloud.Task{}, attachedOn: map[string]map[string]*cloud.Attachment{},
		},
		down: map[string]bool{}, dead: map[string]bool{}, held: map[string]time.Time{}, released: map[string]bool{},
		onNet: map[string]map[key][]byte{}, ofTask: map[string][]netKey{}, peers: map[string][]byte{},
		views: map[string]*view{}, viewsOn: map[string]map[string]*view{},
		dirty: newDirtySet(),
	}
}

// load takes in a whole snapshot.
func (m *model) load(tx state.Tx) {
	for _, kind := range cloud.Kinds() {
		for _, o := range tx.List(kind, state.By{}) {
			m.apply(state.Event{Kind: kind, ID: o.GetMeta().ID, Object: o})
		}
	}
	for id, n := range m.nodes {
		if n.Status.State == cloud.NodeDown {
			m.down[id] = true
		}
	}
}

// apply takes in one change.
func (m *model) apply(e state.Event) {
	switch e.Kind {
	case cloud.KindTask:
		t, _ := e.Object.(*cloud.Task)
		m.applyTask(e.ID, t)
	case cloud.KindAttachment:
		a, _ := e.Object.(*cloud.Attachment)
		m.applyAttachment(e.ID, a)
	case cloud.KindNode:
		n, _ := e.Object.(*cloud.Node)
		if (n == nil) != (m.nodes[e.ID] == nil) {
			m.touchMembers(e.ID)
		}
		put(m.nodes, e.ID, n)
		if n == nil {
			delete(m.down, e.ID)
		}
		m.dirty.peers[e.ID], m.dirty.views[e.ID] = true, true
	case cloud.KindNetwork:
		n, _ := e.Object.(*cloud.Network)
		if (n == nil) != (m.networks[e.ID] == nil) { // what services are on depends on which networks there are
			for id := range m.services {
				m.dirty.services[id] = true
			}
		}
		put(m.networks, e.ID, n)
		m.dirty.networks[e.ID] = true
		if gone, _ := e.Removed.(*cloud.Network); n != nil && n.Spec.Ingress || gone != nil && gone.Spec.Ingress {
			for id := range m.nodes {
				m.dirty.views[id] = true
			}
		}
	case cloud.KindService:
		s, _ := e.Object.(*cloud.Service)
		put(m.services, e.ID, s)
		m.dirty.services[e.ID] = true
	case cloud.KindSecret:
		s, _ := e.Object.(*cloud.Secret)
		put(m.secrets, e.ID, s)
		m.touchUsers(e.ID)
	case cloud.KindConfig:
		c, _ := e.Object.(*cloud.Config)
		put(m.configs, e.ID, c)
		m.touchUsers(e.ID)
	case cloud.KindCluster:
		if c, _ := e.Object.(*cloud.Cluster); c != nil {
			m.cluster = c
		}
	}
}

func put[T any](table map[string]*T, id string, o *T) {
	if o == nil {
		delete(table, id)
		return
	}
	table[id] = o
}

func (m *model) applyTask(id string, t *cloud.Task) {
	if old := m.tasks[id]; old != nil {
		delete(m.tasksOn[old.NodeID], id)
		m.dirty.views[old.NodeID] = true
	}
	put(m.tasks, id, t)
	m.dirty.tasks[id] = true
	if t == nil || t.Status.State.Ended() {
		delete(m.dead, id)
	}
	if t == nil {
		delete(m.held, id)
		delete(m.released, id)
		return
	}
	if m.tasksOn[t.NodeID] == nil {
		m.tasksOn[t.NodeID] = map[string]*cloud.Task{}
	}
	m.tasksOn[t.NodeID][id] = t
	m.dirty.views[t.NodeID] = true
}

func (m *model) applyAttachment(id string, a *cloud.Attachment) {
	if old := m.attachments[id]; old != nil {
		delete(m.attachedOn[old.NodeID], id)
		m.dirty.views[old.NodeID] = true
	}
	put(m.attachments, id, a)
	m.dirty.attachments[id] = true
	if a == nil {
		return
	}
	if m.attachedOn[a.NodeID] == nil {
		m.attachedOn[a.NodeID] = map[string]*cloud.Attachment{}
	}
	m.attachedOn[a.NodeID][id] = a
	m.dirty.views[a.NodeID] = true
}

// touchUsers looks again at the nodes whose tasks use a secret or config.
func (m *model) touchUsers(id string) {
	for _, t := range m.tasks {
		for _, r := range slices.Concat(t.Spec.Container.Secrets, t.Spec.Container.Configs) {
			if r.ID == id {
				m.dirty.views[t.NodeID] = true
			}
		}
	}
}

// setDown says whether a node answers. The members on one that does not are ready nowhere.
func (m *model) setDown(node string, down bool) {
	if m.down[node] == down {
		return
	}
	if down {
		m.down[node] = true
	} else {
		delete(m.down, node)
	}
	m.touchMembers(node)
	m.dirty.views[node] = true
}

// touchMembers looks again at what runs on a node.
func (m *model) touchMembers(node string) {
	for id := range m.tasksOn[node] {
		m.dirty.tasks[id] = true
	}
	for id := range m.attachedOn[node] {
		m.dirty.attachments[id] = true
	}
}

// answers: the node belongs to the cluster and is there.
func (m *model) answers(node string) bool { return m.nodes[node] != nil && !m.down[node] }

// setDead says that a task was reported as ended, ahead of the state.
func (m *model) setDead(id string) {
	if t := m.tasks[id]; t != nil && !t.Status.State.Ended() {
		m.dead[id] = true
		m.dirty.tasks[id] = true
		m.dirty.views[t.NodeID] = true
	}
}

func (m *model) heartbeatPeriod() time.Duration {
	if m.cluster == nil || m.cluster.Spec.HeartbeatPeriod <= 0 || m.cluster.Spec.HeartbeatPeriod == dockerPeriod {
		return HeartbeatPeriod
	}
	return m.cluster.Spec.HeartbeatPeriod
}

// managers returns the addresses of all managers' RPC servers.
func (m *model) managers() []string {
	var out []string
	for _, id := range slices.Sorted(maps.Keys(m.nodes)) {
		if n := m.nodes[id]; n.Manager != nil && n.Manager.Addr != "" {
			out = append(out, n.Manager.Addr)
		}
	}
	return out
}

// placed: the task is known on its node.
func placed(t *cloud.Task) bool {
	return t != nil && t.NodeID != "" && t.Status.State >= cloud.TaskAssigned
}

// flush brings every view up to date with the tables and says which revision that is. Planned stops that every node
// knows of are let go.
func (m *model) flush(now time.Time) {
	for again := true; again; {
		m.derive(now)
		again = m.letGo(now)
	}
}

func (m *model) derive(now time.Time) {
	d := m.dirty
	m.dirty = newDirtySet()
	rev := m.rev + 1
	f := &flushing{model: m, rev: rev, now: now, changed: map[netKey]bool{}}

	for id := range d.tasks {
		f.publish("task/"+id, m.membersOfTask(m.tasks[id]))
	}
	for id := range d.attachments {
		f.publish("attachment/"+id, m.memberOfAttachment(m.attachments[id]))
	}
	for id := range d.services {
		f.publish("service/"+id, m.virtualOf(m.services[id]))
	}
	for id := range d.networks {
		docs := map[netKey][]byte{}
		if n := m.networks[id]; n != nil {
			docs[netKey{id, key{kindNetwork, id}}] = encode(n)
		}
		f.publish("network/"+id, docs)
	}
	for id := range d.views {
		f.view(id)
	}
	for nk := range f.changed {
		doc := m.onNet[nk.network][nk.key]
		for _, v := range m.viewsOn[nk.network] {
			f.set(v, nk.key, doc)
		}
	}
	for id := range d.peers {
		doc := m.peerDoc(id)
		if bytes.Equal(doc, m.peers[id]) {
			continue
		}
		if m.peers[id] = doc; doc == nil {
			delete(m.peers, id)
		}
		for _, v := range m.views {
			f.set(v, key{kindPeer, id}, doc)
		}
	}
	if f.any {
		m.rev = rev
	}
}

// flushing is one flush under way.
type flushing struct {
	*model
	rev     uint64
	now     time.Time
	changed map[netKey]bool
	any     bool
}

// publish replaces what owner has put on networks.
func (f *flushing) publish(owner string, docs map[netKey][]byte) {
	for _, nk := range f.ofTask[owner] {
		if _, stays := docs[nk]; !stays {
			delete(f.onNet[nk.network], nk.key)
			f.changed[nk] = true
		}
	}
	delete(f.ofTask, owner)
	for nk, doc := range docs {
		f.ofTask[owner] = append(f.ofTask[owner], nk)
		if f.onNet[nk.network] == nil {
			f.onNet[nk.network] = map[key][]byte{}
		}
		if !bytes.Equal(f.onNet[nk.network][nk.key], doc) {
			f.onNet[nk.network][nk.key] = doc
			f.changed[nk] = true
		}
	}
}

func (f *flushing) set(v *view, k key, doc []byte) {
	if v.set(k, doc, f.rev) {
		f.any = true
	}
}

// view brings a node's own documents and its choice of networks up to date.
func (f *flushing) view(node string) {
	v := f.views[node]
	if f.nodes[node] == nil {
		if v != nil {
			for net := range v.nets {
				delete(f.viewsOn[net], node)
			}
			delete(f.views, node)
		}
		return
	}
	if v == nil {
		v = newView(node)
		f.views[node] = v
		for id, doc := range f.peers {
			f.set(v, key{kindPeer, id}, doc)
		}
	}
	nets := f.interest(node)
	for net := range v.nets {
		if !nets[net] {
			f.leave(v, net)
		}
	}
	for net := range nets {
		if !v.nets[net] {
			v.nets[net] = true
			if f.viewsOn[net] == nil {
				f.viewsOn[net] = map[string]*view{}
			}
			f.viewsOn[net][node] = v
			for k, doc := range f.onNet[net] {
				f.set(v, k, doc)
			}
		}
	}
	own := map[key][]byte{}
	for id, t := range f.tasksOn[node] {
		if !placed(t) {
			continue
		}
		own[key{kindTask, id}] = f.taskDoc(v, t)
		if t.Status.State.Ended() {
			continue
		}
		for _, r := range t.Spec.Container.Secrets {
			if s := f.secrets[r.ID]; s != nil {
				own[key{kindSecret, r.ID}] = encode(s)
			}
		}
		for _, r := range t.Spec.Container.Configs {
			if c := f.configs[r.ID]; c != nil {
				own[key{kindConfig, r.ID}] = encode(c)
			}
		}
	}
	for k := range v.entries {
		if _, stays := own[k]; !stays && (k.kind == kindTask || k.kind == kindSecret || k.kind == kindConfig) {
			f.set(v, k, nil)
		}
	}
	for k, doc := range own {
		f.set(v, k, doc)
	}
}

// leave takes a network out of a view.
func (f *flushing) leave(v *view, net string) {
	delete(v.nets, net)
	delete(f.viewsOn[net], v.node)
	for k := range v.entries {
		switch k.kind {
		case kindNetwork:
			if k.id == net {
				f.set(v, k, nil)
			}
		case kindMember, kindService: // both are keyed OWNER/NETWORK
			if strings.HasSuffix(k.id, "/"+net) {
				f.set(v, k, nil)
			}
		}
	}
}

// interest returns the networks that a node must know: those of its tasks and containers, and the ingress network, as
// every node takes connections for published ports.
func (m *model) interest(node string) map[string]bool {
	nets := map[string]bool{}
	for id, n := range m.networks {
		if n.Spec.Ingress {
			nets[id] = true
		}
	}
	for _, t := range m.tasksOn[node] {
		if placed(t) && !t.Status.State.Ended() {
			for _, n := range t.Networks {
				nets[n.NetworkID] = true
			}
		}
	}
	for _, a := range m.attachedOn[node] {
		if a.Err == "" {
			nets[a.NetworkID] = true
		}
	}
	return nets
}

// ready: requests may be sent to the task.
func (m *model) ready(t *cloud.Task) bool {
	return t.Serving() && !m.dead[t.ID] && m.answers(t.NodeID)
}

func (m *model) membersOfTask(t *cloud.Task) map[netKey][]byte {
	docs := map[netKey][]byte{}
	if !placed(t) || t.Status.State.Ended() {
		return docs
	}
	for _, n := range t.Networks {
		member := &cloud.Member{
			ID: cloud.MemberID(t.ID, n.NetworkID), NetworkID: n.NetworkID, NodeID: t.NodeID,
			ServiceID: t.ServiceID, ServiceName: t.ServiceName, Name: t.Name(), Aliases: n.Aliases,
			Addrs: plain(n.Addrs), Ready: m.ready(t),
		}
		docs[netKey{n.NetworkID, key{kindMember, member.ID}}] = encode(member)
	}
	return docs
}

func (m *model) memberOfAttachment(a *cloud.Attachment) map[netKey][]byte {
	docs := map[netKey][]byte{}
	if a == nil || len(a.Addrs) == 0 {
		return docs
	}
	member := &cloud.Member{
		ID: cloud.MemberID(a.ID, a.NetworkID), NetworkID: a.NetworkID, NodeID: a.NodeID, Name: a.Name, Aliases: a.Aliases,
		Addrs: plain(a.Addrs), Ready: m.answers(a.NodeID),
	}
	docs[netKey{a.NetworkID, key{kindMember, member.ID}}] = encode(member)
	return docs
}

func (m *model) virtualOf(s *cloud.Service) map[netKey][]byte {
	docs := map[netKey][]byte{}
	if s == nil {
		return docs
	}
	mode := s.Spec.Endpoint.Mode
	if mode == "" {
		mode = cloud.EndpointVIP
	}
	vips := map[string][]netip.Addr{}
	for _, v := range s.Endpoint.VIPs {
		vips[v.NetworkID] = plain(v.Addrs)
	}
	add := func(v *cloud.VirtualService) {
		v.ServiceID, v.Name, v.Mode, v.VIPs = s.ID, s.Spec.Name, mode, vips[v.NetworkID]
		docs[netKey{v.NetworkID, key{kindService, v.Key()}}] = encode(v)
	}
	for _, c := range s.Spec.Task.Networks {
		if id := m.networkID(c.Target); id != "" {
			add(&cloud.VirtualService{ServiceID: s.ID, NetworkID: id, Aliases: c.Aliases, Serves: s.Spec.Serves()})
		}
	}
	if !s.Spec.Endpoint.PublishesIngress() {
		return docs
	}
	for id, n := range m.networks {
		if !n.Spec.Ingress {
			continue
		}
		ports := slices.DeleteFunc(slices.Clone(s.Endpoint.Ports), func(p cloud.PortConfig) bool {
			return !p.IngressMode() || p.Published == 0
		})
		add(&cloud.VirtualService{ServiceID: s.ID, NetworkID: id, Ports: ports})
	}
	return docs
}

func (m *model) networkID(target string) string {
	if m.networks[target] != nil {
		return target
	}
	for id, n := range m.networks {
		if n.Spec.Name == target {
			return id
		}
	}
	return ""
}

func (m *model) peerDoc(id string) []byte {
	n := m.nodes[id]
	if n == nil || len(n.Status.Addrs) == 0 {
		return nil
	}
	return encode(&cloud.Peer{NodeID: id, Addrs: n.Status.Addrs, Ingress: n.Ingress})
}

func plain(prefixes []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.Addr()
	}
	return out
}

func encode(o any) []byte {
	doc, err := json.Marshal(o)
	if err != nil {
		panic(err) // every type here can be encoded: a test does so
	}
	return doc
}
