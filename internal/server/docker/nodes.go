package docker

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"strings"

	apiswarm "github.com/moby/moby/api/types/swarm"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// nodeAPI serves the hosts of the cluster.
type nodeAPI struct{ swarm Swarm }

func (a *nodeAPI) routes() []route {
	return []route{
		{method: "GET", pattern: "/nodes", serve: a.list},
		{method: "GET", pattern: "/nodes/{id}", serve: a.inspect},
		{method: "DELETE", pattern: "/nodes/{id}", serve: a.remove},
		{method: "POST", pattern: "/nodes/{id}/update", serve: a.update},
	}
}

func (a *nodeAPI) list(w *response, r *request) error {
	f, err := r.parseFilters("id", "label", "membership", "name", "node.label", "role")
	if err != nil {
		return err
	}
	for _, v := range f["role"] {
		if v != string(cloud.RoleManager) && v != string(cloud.RoleWorker) {
			return fault.New(fault.InvalidArgument, "Invalid role filter: '%s'", v)
		}
	}
	for _, v := range f["membership"] {
		if v != "accepted" && v != "pending" {
			return fault.New(fault.InvalidArgument, "Invalid membership filter: '%s'", v)
		}
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	nodes, err := cluster.ListNodes(r.Context())
	if err != nil {
		return err
	}
	out := []apiswarm.Node{}
	for _, n := range nodes {
		if f.prefix("id", n.ID) && f.prefix("name", n.Description.Hostname, n.Spec.Name) && f.is("role", string(n.Spec.Role)) &&
			f.is("membership", "accepted") && f.labels("label", n.Description.Labels) && f.labels("node.label", n.Spec.Labels) {
			out = append(out, wireNode(n, cluster))
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func (a *nodeAPI) inspect(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	n, err := cluster.GetNode(r.Context(), a.self(r))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, wireNode(n, cluster))
}

// self replaces "self", as clients call this node, by its ID.
func (a *nodeAPI) self(r *request) string {
	if id := r.PathValue("id"); id != "self" {
		return id
	}
	return a.swarm.Local().NodeID
}

func (a *nodeAPI) remove(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	return ok(w, cluster.RemoveNode(r.Context(), a.self(r), r.flag("force")))
}

func (a *nodeAPI) update(w *response, r *request) error {
	var body apiswarm.NodeSpec
	if err := r.decode(&body); err != nil {
		return err
	}
	version, err := r.objectVersion("node")
	if err != nil {
		return err
	}
	spec := cloud.NodeSpec{Name: body.Name, Labels: body.Labels, Role: cloud.Role(body.Role)}
	if spec.Availability, err = availabilityOf(body.Availability); err != nil {
		return err
	}
	if spec.Role != cloud.RoleManager && spec.Role != cloud.RoleWorker {
		return fault.New(fault.InvalidArgument, "invalid Role: %q: it must be worker or manager", string(spec.Role))
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	n, err := cluster.GetNode(r.Context(), a.self(r))
	if err != nil {
		return err
	}
	return ok(w, cluster.UpdateNode(r.Context(), n.ID, version, spec))
}

func wireNode(n *cloud.Node, cluster Cluster) apiswarm.Node {
	d := &n.Description
	out := apiswarm.Node{
		ID: n.ID, Meta: wireMeta(&n.Meta),
		Spec: apiswarm.NodeSpec{Annotations: apiswarm.Annotations{Name: n.Spec.Name, Labels: mapping(n.Spec.Labels)}, Role: apiswarm.NodeRole(n.Spec.Role), Availability: apiswarm.NodeAvailability(n.Spec.Availability)},
		Description: apiswarm.NodeDescription{
			Hostname: d.Hostname, Platform: apiswarm.Platform{Architecture: d.Architecture, OS: d.OS},
			Resources: apiswarm.Resources{NanoCPUs: d.Resources.NanoCPUs, MemoryBytes: d.Resources.MemoryBytes, GenericResources: wireGeneric(d.Resources.Generic)},
			Engine:    apiswarm.EngineDescription{EngineVersion: d.EngineVersion, Labels: d.Labels, Plugins: nodePlugins()},
			TLSInfo:   tlsInfo(d.TrustRoot),
		},
		Status: apiswarm.NodeStatus{State: apiswarm.NodeState(n.Status.State), Message: n.Status.Message},
	}
	if out.Status.State == "" {
		out.Status.State = apiswarm.NodeStateUnknown
	}
	if a := n.Status.Addr(); a.IsValid() {
		out.Status.Addr = a.String()
	}
	if m := n.Manager; m != nil {
		out.ManagerStatus = &apiswarm.ManagerStatus{Leader: cluster.Leader() == n.ID, Reachability: apiswarm.ReachabilityUnreachable, Addr: m.Addr}
		if cluster.ManagerReachable(n.ID) {
			out.ManagerStatus.Reachability = apiswarm.ReachabilityReachable
		}
	}
	return out
}

// nodePlugins are the drivers of a node in the shape of the plugins that they are with Docker.
func nodePlugins() []apiswarm.PluginDescription {
	var out []apiswarm.PluginDescription
	add := func(kind string, names ...string) {
		for _, n := range names {
			out = append(out, apiswarm.PluginDescription{Type: kind, Name: n})
		}
	}
	add("Log", container.LogDrivers...)
	add("Network", networkDrivers...)
	add("Volume", volumeDrivers...)
	return out
}

// tlsInfo shows the cluster's certificate authority.
func tlsInfo(root string) apiswarm.TLSInfo {
	out := apiswarm.TLSInfo{TrustRoot: root}
	block, _ := pem.Decode([]byte(strings.TrimSpace(root)))
	if block == nil {
		return out
	}
	if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
		out.CertIssuerSubject, out.CertIssuerPublicKey = cert.RawSubject, cert.RawSubjectPublicKeyInfo
	}
	return out
}
