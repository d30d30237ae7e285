package docker

import (
	"cmp"
	"net/http"

	apinetwork "github.com/moby/moby/api/types/network"
	apiswarm "github.com/moby/moby/api/types/swarm"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// taskAPI serves the tasks that services consist of.
type taskAPI struct{ swarm Swarm }

func (a *taskAPI) routes() []route {
	return []route{
		{method: "GET", pattern: "/tasks", serve: a.list},
		{method: "GET", pattern: "/tasks/{id}", serve: a.inspect},
		{method: "GET", pattern: "/tasks/{id}/logs", serve: a.logs},
	}
}

func (a *taskAPI) list(w *response, r *request) error {
	f, err := r.parseFilters("_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service")
	if err != nil {
		return err
	}
	for _, s := range f["desired-state"] {
		if _, known := taskState(s); !known {
			return fault.New(fault.InvalidArgument, "Invalid desired-state filter: '%s'", s)
		}
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	if err := resolve(f, "service", func(ref string) (string, error) {
		s, err := cluster.GetService(r.Context(), ref)
		if err != nil {
			return "", err
		}
		return s.ID, nil
	}); err != nil {
		return err
	}
	if err := resolve(f, "node", func(ref string) (string, error) {
		if ref == "self" {
			return a.swarm.Local().NodeID, nil
		}
		n, err := cluster.GetNode(r.Context(), ref)
		if err != nil {
			return "", err
		}
		return n.ID, nil
	}); err != nil {
		return err
	}
	tasks, err := cluster.ListTasks(r.Context())
	if err != nil {
		return err
	}
	outdated := func(*cloud.Task) bool { return false }
	if f.has("_up-to-date") {
		if outdated, err = outdatedTasks(r, cluster); err != nil {
			return err
		}
	}
	networks, err := networksByID(r, cluster)
	if err != nil {
		return err
	}
	out := []apiswarm.Task{}
	for _, t := range tasks {
		switch {
		case !f.prefix("id", t.ID), !f.prefix("name", t.ServiceName, t.Name()), !f.is("service", t.ServiceID), !f.is("node", t.NodeID),
			!f.is("desired-state", desiredState(t)), !f.labels("label", t.Spec.Container.Labels), !f.is("runtime", "container"), outdated(t):
			continue
		}
		out = append(out, wireTask(t, networks))
	}
	return writeJSON(w, http.StatusOK, out)
}

// outdatedTasks says which tasks are to be replaced, or belong to no service any more. A client that waits for a change
// of a service looks at the others only; a task that the change does not touch, as scaling, counts as made anew.
func outdatedTasks(r *request, cluster Cluster) (func(*cloud.Task) bool, error) {
	services, err := cluster.ListServices(r.Context())
	if err != nil {
		return nil, err
	}
	nodes, err := cluster.ListNodes(r.Context())
	if err != nil {
		return nil, err
	}
	serviceOf, constraintsOf, nodeOf := map[string]*cloud.Service{}, map[string][]cloud.Constraint{}, map[string]*cloud.Node{}
	for _, s := range services {
		serviceOf[s.ID] = s
		if constraintsOf[s.ID], err = cloud.ParseConstraints(s.Spec.Task.Placement.Constraints); err != nil {
			return nil, err
		}
	}
	for _, n := range nodes {
		nodeOf[n.ID] = n
	}
	return func(t *cloud.Task) bool {
		s := serviceOf[t.ServiceID]
		return s == nil || t.Outdated(s, nodeOf[t.NodeID], constraintsOf[s.ID])
	}, nil
}

// resolve replaces the values of a filter, which users give as names, by IDs.
func resolve(f filters, key string, id func(ref string) (string, error)) error {
	for i, ref := range f[key] {
		resolved, err := id(ref)
		if fault.Is(err, fault.NotFound) {
			continue // matches nothing, or the ID of something that is gone and has left tasks behind
		} else if err != nil {
			return err
		}
		f[key][i] = resolved
	}
	return nil
}

func taskState(s string) (cloud.TaskState, bool) {
	for state := cloud.TaskNew; state.String() != "unknown"; state++ {
		if state.String() == s {
			return state, true
		}
	}
	return 0, s == "allocated" // a state of Docker's that tasks here do not have
}

func networksByID(r *request, cluster Cluster) (map[string]*cloud.Network, error) {
	nets, err := cluster.ListNetworks(r.Context())
	if err != nil {
		return nil, err
	}
	out := map[string]*cloud.Network{}
	for _, n := range nets {
		out[n.ID] = n
	}
	return out, nil
}

func (a *taskAPI) inspect(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	t, err := cluster.GetTask(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	networks, err := networksByID(r, cluster)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, wireTask(t, networks))
}

func (a *taskAPI) logs(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	t, err := cluster.GetTask(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return clusterLogs(w, r, cluster, []*cloud.Task{t}, nil, t.Spec.Container.TTY)
}

// clusterLogs answers with the logs of tasks; while following, also with those of tasks that the services get.
func clusterLogs(w *response, r *request, cluster Cluster, tasks []*cloud.Task, services []string, tty bool) error {
	opts, err := logOptions(r)
	if err != nil {
		return err
	}
	ids, serviceOf := []string{}, map[string]string{}
	for _, t := range tasks {
		ids = append(ids, t.ID)
		serviceOf[t.ID] = t.ServiceID
	}
	out := newLogWriter(w, r, tty)
	err = cluster.Logs(r.Context(), ids, control.LogOptions{
		Stdout: opts.Stdout, Stderr: opts.Stderr, Follow: opts.Follow, Tail: opts.Tail, Since: opts.Since, Until: opts.Until, Services: services,
	}, func(l control.TaskLog) error {
		line := container.LogLine{Stream: container.Stdout, Time: l.Time, Line: l.Line, Attrs: map[string]string{}}
		if l.Stderr {
			line.Stream = container.Stderr
		}
		for k, v := range l.Attrs {
			line.Attrs[k] = v
		}
		service := serviceOf[l.TaskID]
		if service == "" && len(services) == 1 {
			service = services[0] // a task that came while following
		}
		// Clients tell the lines apart by these.
		line.Attrs["com.docker.swarm.node.id"] = l.NodeID
		line.Attrs["com.docker.swarm.service.id"] = service
		line.Attrs["com.docker.swarm.task.id"] = l.TaskID
		return out.write(line, false)
	})
	if err != nil && r.Context().Err() == nil {
		return out.fail(err)
	}
	return nil
}

// desiredState is what is wanted of a task: of a job's, that it completes.
func desiredState(t *cloud.Task) string {
	if t.Iteration != nil && (t.Desired == cloud.TaskRunning || t.Status.State == cloud.TaskComplete && t.Desired < cloud.TaskRemove) {
		return cloud.TaskComplete.String()
	}
	return t.Desired.String()
}

func wireTask(t *cloud.Task, networks map[string]*cloud.Network) apiswarm.Task {
	out := apiswarm.Task{
		ID: t.ID, Meta: wireMeta(&t.Meta), Annotations: apiswarm.Annotations{Labels: mapping(t.Labels)}, Spec: wireTaskSpec(&t.Spec),
		ServiceID: t.ServiceID, Slot: t.Slot, NodeID: t.NodeID, GenericResources: wireGeneric(t.Generic), DesiredState: apiswarm.TaskState(desiredState(t)),
		Status: apiswarm.TaskStatus{Timestamp: t.Status.Timestamp, State: apiswarm.TaskState(t.Status.State.String()), Message: t.Status.Message, Err: t.Status.Err,
			PortStatus: apiswarm.PortStatus{Ports: wirePorts(t.Status.HostPorts)}},
	}
	if t.Status.ContainerID != "" || t.Status.State.Ended() {
		out.Status.ContainerStatus = &apiswarm.ContainerStatus{ContainerID: t.Status.ContainerID, PID: t.Status.PID, ExitCode: t.Status.ExitCode}
	}
	if t.Iteration != nil {
		out.JobIteration = &apiswarm.Version{Index: *t.Iteration}
		out.Slot = max(0, t.Slot-1) // Docker counts the slots of jobs from 0, and its command relies on it
	}
	for _, n := range t.Networks {
		a := apiswarm.NetworkAttachment{Network: apiswarm.Network{ID: n.NetworkID}, Addresses: n.Addrs}
		if net := networks[n.NetworkID]; net != nil {
			a.Network = wireSwarmNetwork(net)
		}
		out.NetworksAttachments = append(out.NetworksAttachments, a)
	}
	return out
}

// wireSwarmNetwork shows a network in the shape that tasks have it in.
func wireSwarmNetwork(n *cloud.Network) apiswarm.Network {
	out := apiswarm.Network{
		ID: n.ID, Meta: wireMeta(&n.Meta),
		Spec: apiswarm.NetworkSpec{
			Annotations: apiswarm.Annotations{Name: n.Spec.Name, Labels: mapping(n.Spec.Labels)}, DriverConfiguration: &apiswarm.Driver{Name: cmp.Or(n.Spec.Driver, cloud.DriverOverlay), Options: n.Spec.Options},
			IPv6Enabled: n.Spec.IPv6, Internal: n.Spec.Internal, Attachable: n.Spec.Attachable, Ingress: n.Spec.Ingress, Scope: "swarm",
		},
		DriverState: apiswarm.Driver{Name: cmp.Or(n.Spec.Driver, cloud.DriverOverlay)}, IPAMOptions: &apiswarm.IPAMOptions{Driver: apiswarm.Driver{Name: "default"}},
	}
	for _, c := range n.Status.Subnets {
		out.IPAMOptions.Configs = append(out.IPAMOptions.Configs, apiswarm.IPAMConfig{Subnet: c.Subnet, Range: c.Range, Gateway: c.Gateway})
	}
	return out
}

func wirePorts(in []cloud.PortConfig) []apiswarm.PortConfig {
	var out []apiswarm.PortConfig
	for _, p := range in {
		out = append(out, apiswarm.PortConfig{Name: p.Name, Protocol: apinetwork.IPProtocol(cmp.Or(p.Protocol, cloud.TCP)), TargetPort: uint32(p.Target),
			PublishedPort: uint32(p.Published), PublishMode: apiswarm.PortConfigPublishMode(cmp.Or(p.Mode, cloud.PublishIngress))})
	}
	return out
}
