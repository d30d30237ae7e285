package docker

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
)

// networkAPI serves networks: those of this host and, on a manager, those of the cluster, as one list.
type networkAPI struct {
	local      Networks
	swarm      Swarm
	containers Containers
	events     Events
}

func (a *networkAPI) routes() []route {
	return []route{
		{method: "GET", pattern: "/networks", serve: a.list},
		{method: "POST", pattern: "/networks/create", serve: a.create},
		{method: "POST", pattern: "/networks/prune", serve: a.prune, since: 1025},
		{method: "GET", pattern: "/networks/{name...}", serve: a.inspect},
		{method: "DELETE", pattern: "/networks/{name...}", serve: a.remove},
		{method: "POST", pattern: "/networks/{name...}", serve: named(map[string]handler{"connect": a.connect, "disconnect": a.disconnect})},
	}
}

// anyNetwork is a network of this host, of the cluster, or of the cluster and in use here.
type anyNetwork struct {
	local   *network.Network
	cluster *cloud.Network
}

func (n anyNetwork) id() string {
	if n.cluster != nil {
		return n.cluster.ID
	}
	return n.local.ID
}

func (n anyNetwork) name() string {
	if n.cluster != nil {
		return n.cluster.Spec.Name
	}
	return n.local.Spec.Name
}

func (n anyNetwork) swarm() bool { return n.cluster != nil || n.local.Scope == network.ScopeSwarm }

// all returns every network that this node knows. Off a manager those of the cluster are the ones in use here.
func (a *networkAPI) all(ctx context.Context) ([]anyNetwork, error) {
	var out []anyNetwork
	byID := map[string]int{}
	locals := a.local.List()
	for i := range locals {
		byID[locals[i].ID] = len(out)
		out = append(out, anyNetwork{local: &locals[i]})
	}
	c, err := a.swarm.Cluster()
	if err != nil {
		return out, nil //nolint:nilerr // no manager: the local ones are all there is to show
	}
	nets, err := c.ListNetworks(ctx)
	if fault.Is(err, fault.Unavailable) {
		return out, nil // the managers have no quorum: local networks work on
	} else if err != nil {
		return nil, err
	}
	for _, n := range nets {
		if i, ok := byID[n.ID]; ok {
			out[i].cluster = n
		} else {
			out = append(out, anyNetwork{cluster: n})
		}
	}
	// One that was removed stays on this host until its last container has ended. Were it shown, a stack that is deployed
	// again at once would take it for one that it can use.
	return slices.DeleteFunc(out, func(n anyNetwork) bool { return n.cluster == nil && n.swarm() }), nil
}

// find returns the network of that ID, name or ID prefix, in this order.
func (a *networkAPI) find(ctx context.Context, ref, scope string) (anyNetwork, error) {
	nets, err := a.all(ctx)
	if err != nil {
		return anyNetwork{}, err
	}
	nets = slices.DeleteFunc(nets, func(n anyNetwork) bool { return scope != "" && scope != scopeOf(n) })
	for _, by := range []struct {
		what  string
		match func(anyNetwork) bool
	}{
		{"ID", func(n anyNetwork) bool { return n.id() == ref }},
		{"name", func(n anyNetwork) bool { return n.name() == ref }},
		{"ID prefix", func(n anyNetwork) bool { return ref != "" && strings.HasPrefix(n.id(), ref) }},
	} {
		var found []anyNetwork
		for _, n := range nets {
			if by.match(n) {
				found = append(found, n)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return anyNetwork{}, fault.New(fault.InvalidArgument, "network %s is ambiguous (%d matches found based on %s)", ref, len(found), by.what)
		}
	}
	if scope == string(network.ScopeSwarm) && cloud.PredefinedNetwork(ref) {
		if _, err := a.swarm.Cluster(); err == nil {
			return anyNetwork{cluster: ofEveryHost(ref)}, nil
		}
	}
	return anyNetwork{}, fault.New(fault.NotFound, "network %s not found", ref)
}

// ofEveryHost is what the cluster shows of a network that every host has of its own, for services to be on: the one of the
// host that a task comes to. It is in no list, and its name is its ID.
func ofEveryHost(name string) *cloud.Network {
	driver := name
	if name == "none" {
		driver = "null"
	}
	return &cloud.Network{Meta: cloud.Meta{ID: name}, Spec: cloud.NetworkSpec{Name: name, Driver: driver}}
}

func scopeOf(n anyNetwork) string {
	if n.swarm() {
		return string(network.ScopeSwarm)
	}
	return string(network.ScopeLocal)
}

func (a *networkAPI) list(w *response, r *request) error {
	f, err := r.parseFilters("dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	dangling, err := f.flag("dangling", false)
	if err != nil {
		return err
	}
	for _, t := range f["type"] {
		if t != "builtin" && t != "custom" {
			return fault.New(fault.InvalidArgument, "invalid filter: 'type'='%s'", t)
		}
	}
	for _, s := range f["scope"] {
		if !slices.Contains([]string{"local", "swarm", "global"}, s) {
			return fault.New(fault.InvalidArgument, "invalid filter: 'scope'='%s'", s)
		}
	}
	nets, err := a.all(r.Context())
	if err != nil {
		return err
	}
	inUse := a.used()
	out := []apinetwork.Summary{}
	for _, n := range nets {
		s := wireNetwork(n)
		kind := "custom"
		if predefined(n) {
			kind = "builtin"
		}
		switch {
		case !f.prefix("id", s.ID), !f.match("name", s.Name), !f.is("driver", s.Driver), !f.labels("label", s.Labels), !f.is("scope", s.Scope), !f.is("type", kind):
			continue
		case f.has("dangling") && dangling != (kind == "custom" && !inUse(n)):
			continue
		}
		out = append(out, apinetwork.Summary{Network: s})
	}
	slices.SortStableFunc(out, func(a, b apinetwork.Summary) int { return strings.Compare(a.Name, b.Name) })
	if r.version < 1028 {
		return writeJSON(w, http.StatusOK, a.oldest(nets, out))
	}
	return writeJSON(w, http.StatusOK, out)
}

// oldest is the list in the form of before 1.28, when it had what inspect has.
func (a *networkAPI) oldest(nets []anyNetwork, list []apinetwork.Summary) []apinetwork.Inspect {
	byID := map[string]anyNetwork{}
	for _, n := range nets {
		byID[n.id()] = n
	}
	out := make([]apinetwork.Inspect, len(list))
	for i, s := range list {
		out[i] = apinetwork.Inspect{Network: s.Network, Containers: a.connected(byID[s.ID])}
	}
	return out
}

// connected are the endpoints that this host has on a network, by the container.
func (a *networkAPI) connected(n anyNetwork) map[string]apinetwork.EndpointResource {
	out := map[string]apinetwork.EndpointResource{}
	if n.local == nil {
		return out
	}
	names := a.containerNames()
	for id, e := range n.local.Members {
		out[id] = apinetwork.EndpointResource{Name: cmp.Or(names[id], e.Owner), EndpointID: e.ID, MacAddress: hardwareAddr(e.MAC), IPv4Address: e.IPv4, IPv6Address: e.IPv6}
	}
	if d := n.local.Spec.Driver; d != network.DriverHost && d != network.DriverNull {
		return out
	}
	for _, c := range a.containers.List() { // nothing is made for a container there: it alone knows
		for _, e := range c.Networks.Endpoints {
			if c.State.Running && e.NetworkID == n.id() {
				out[c.ID] = apinetwork.EndpointResource{Name: names[c.ID], EndpointID: e.EndpointID}
			}
		}
	}
	return out
}

// predefined networks cannot be removed.
func predefined(n anyNetwork) bool {
	return !n.swarm() && slices.Contains([]string{network.NameBridge, network.NameHost, network.NameNone}, n.name())
}

// used tells which networks have a container of this host on them.
func (a *networkAPI) used() func(anyNetwork) bool {
	ids := map[string]bool{}
	for _, c := range a.containers.List() {
		for _, e := range c.Networks.Endpoints {
			ids[e.NetworkID] = true
		}
	}
	return func(n anyNetwork) bool { return ids[n.id()] || n.local != nil && len(n.local.Members) > 0 }
}

func (a *networkAPI) inspect(w *response, r *request) error {
	verbose, err := r.strictBool("verbose")
	if err != nil {
		return err
	}
	n, err := a.find(r.Context(), r.PathValue("name"), r.query.Get("scope"))
	if err != nil {
		return err
	}
	out := apinetwork.Inspect{Network: wireNetwork(n), Containers: a.connected(n)}
	cluster, _ := a.swarm.Cluster()
	if n.local != nil {
		out.Peers = peersOf(r.Context(), cluster, n.local, a.swarm)
	}
	if r.version >= 1052 {
		out.Status = &apinetwork.Status{IPAM: apinetwork.IPAMStatus{Subnets: apinetwork.SubnetStatuses{}}}
		for subnet, u := range a.local.Usage(r.Context(), n.id()) {
			out.Status.IPAM.Subnets[subnet] = apinetwork.SubnetStatus{IPsInUse: u.InUse, DynamicIPsAvailable: u.Available}
		}
	}
	if verbose && n.swarm() && cluster != nil {
		if out.Services, err = servicesOn(r.Context(), cluster, n.id()); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// containerNames returns the names that containers have now, by ID: a network remembers those of the start.
func (a *networkAPI) containerNames() map[string]string {
	out := map[string]string{}
	for _, c := range a.containers.List() {
		out[c.ID] = strings.TrimPrefix(c.Config.Name, "/")
	}
	return out
}

func (a *networkAPI) create(w *response, r *request) error {
	var body apinetwork.CreateRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	if r.version < 1048 {
		body.EnableIPv4 = nil
	}
	switch {
	case strings.TrimSpace(body.Name) == "":
		return fault.New(fault.InvalidArgument, "invalid name: name is empty")
	case body.IPAM != nil && body.IPAM.Driver != "" && body.IPAM.Driver != "default" && body.IPAM.Driver != "null":
		return fault.New(fault.NotFound, "could not find plugin %s in v1 plugin registry: IPAM driver %q not found; use \"default\"", body.IPAM.Driver, body.IPAM.Driver)
	}
	overlay := body.Driver == network.DriverOverlay
	switch {
	case body.Scope != "" && body.Scope != "local" && body.Scope != "swarm":
		return fault.New(fault.InvalidArgument, "invalid scope %q: it must be local or swarm", body.Scope)
	case overlay && (body.ConfigOnly || body.ConfigFrom != nil && body.ConfigFrom.Network != ""):
		return fault.New(fault.NotImplemented, "configuration networks are for networks of one host, not for overlays: give the overlay its configuration itself")
	case body.ConfigOnly && body.Scope != "":
		return fault.New(fault.Forbidden, "configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
	case body.Scope == "swarm" && !overlay:
		return fault.New(fault.InvalidArgument, "networks of the driver %q cannot span the swarm: use the driver overlay", body.Driver)
	case body.Ingress && !overlay:
		return fault.New(fault.InvalidArgument, "ingress network can only be created with the driver overlay")
	}
	nets, err := a.all(r.Context())
	if err != nil {
		return err
	}
	if slices.Contains([]string{network.NameBridge, network.NameHost, network.NameNone, "default"}, body.Name) {
		return fault.New(fault.Forbidden, "operation is not permitted on predefined %s network", body.Name)
	}
	if slices.ContainsFunc(nets, func(n anyNetwork) bool { return n.name() == body.Name }) {
		return fault.New(fault.AlreadyExists, "network with name %s already exists", body.Name)
	}
	if err := a.complete(&body); err != nil {
		return err
	}
	var id string
	if overlay {
		cluster, err := a.swarm.Cluster()
		if err != nil {
			return err
		}
		spec, err := clusterNetworkSpec(&body)
		if err != nil {
			return err
		}
		if id, err = cluster.CreateNetwork(r.Context(), spec); err != nil {
			return err
		}
	} else {
		spec, err := localNetworkSpec(&body)
		if err != nil {
			return err
		}
		n, err := a.local.Create(r.Context(), spec)
		if err != nil {
			return err
		}
		id = n.ID
		tell(a.events, "network", "create", id, "name", body.Name, "type", n.Spec.Driver)
	}
	return writeJSON(w, http.StatusCreated, apinetwork.CreateResponse{ID: id})
}

// complete lays the daemon's default options under those of a request, and reads the version of IP from them where the
// request itself does not say.
func (a *networkAPI) complete(body *apinetwork.CreateRequest) error {
	options := maps.Clone(body.Options)
	if body.ConfigFrom == nil || body.ConfigFrom.Network == "" {
		for k, v := range a.local.DefaultOptions(cmp.Or(body.Driver, network.DriverBridge)) {
			if _, ok := options[k]; !ok {
				options = mapping(options)
				options[k] = v
			}
		}
	}
	for key, field := range map[string]**bool{"com.docker.network.enable_ipv4": &body.EnableIPv4, "com.docker.network.enable_ipv6": &body.EnableIPv6} {
		value, ok := options[key]
		if *field != nil {
			delete(options, key) // it would show another thing than what is
			continue
		}
		if !ok {
			continue
		}
		v, err := strconv.ParseBool(value)
		if err != nil {
			return fault.New(fault.InvalidArgument, "driver-opt %q is not a valid bool", key)
		}
		*field = &v
	}
	body.Options = options
	return nil
}

func (a *networkAPI) remove(w *response, r *request) error {
	n, err := a.find(r.Context(), r.PathValue("name"), "")
	if err != nil {
		return err
	}
	if predefined(n) {
		return fault.New(fault.Forbidden, "%s is a pre-defined network and cannot be removed", n.name())
	}
	return noContent(w, a.removeOne(r.Context(), n))
}

func (a *networkAPI) removeOne(ctx context.Context, n anyNetwork) error {
	if !n.swarm() {
		err := a.local.Remove(ctx, n.id())
		if err == nil {
			tell(a.events, "network", "destroy", n.id(), "name", n.name(), "type", wireNetwork(n).Driver)
		}
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	return cluster.RemoveNetwork(ctx, n.id())
}

func (a *networkAPI) connect(w *response, r *request) error {
	var body apinetwork.ConnectRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	if body.Container == "" {
		return fault.New(fault.InvalidArgument, "the field Container is needed: which container to connect")
	}
	cfg, err := endpointConfig(body.EndpointConfig)
	if err != nil {
		return err
	}
	return ok(w, a.containers.Connect(r.Context(), body.Container, a.reference(r), cfg))
}

func (a *networkAPI) disconnect(w *response, r *request) error {
	var body apinetwork.DisconnectRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	if body.Container == "" {
		return fault.New(fault.InvalidArgument, "the field Container is needed: which container to disconnect")
	}
	return ok(w, a.containers.Disconnect(r.Context(), body.Container, a.reference(r), body.Force))
}

// reference turns the network of the path into an ID, if this node knows it: a worker learns of an attachable network
// only when its first container joins it.
func (a *networkAPI) reference(r *request) string {
	ref := r.PathValue("name")
	if n, err := a.find(r.Context(), ref, ""); err == nil {
		return n.id()
	}
	return ref
}

func (a *networkAPI) prune(w *response, r *request) error {
	f, err := r.parseFilters("label", "label!", "until")
	if err != nil {
		return err
	}
	until, err := f.until(now())
	if err != nil {
		return err
	}
	nets, err := a.all(r.Context())
	if err != nil {
		return err
	}
	inUse := a.used()
	_, managerErr := a.swarm.Cluster()
	report := apinetwork.PruneReport{NetworksDeleted: []string{}}
	for _, n := range nets {
		s := wireNetwork(n)
		if predefined(n) || inUse(n) || s.Ingress || n.swarm() && managerErr != nil ||
			!until.IsZero() && !s.Created.Before(until) || !f.labels("label", s.Labels) || !f.notLabels(s.Labels) {
			continue
		}
		switch err := a.removeOne(r.Context(), n); fault.KindOf(err) {
		case fault.Conflict, fault.NotFound, fault.FailedPrecondition, fault.Forbidden: // in use after all, or gone
		default:
			if err != nil {
				return err
			}
			report.NetworksDeleted = append(report.NetworksDeleted, s.Name)
		}
	}
	tellReclaimed(a.events, "network", 0)
	return writeJSON(w, http.StatusOK, report)
}
