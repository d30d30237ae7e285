package docker

import (
	"context"
	"net/http"

	"github.com/moby/moby/api/types/registry"
	apiswarm "github.com/moby/moby/api/types/swarm"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// serviceAPI serves services.
type serviceAPI struct{ swarm Swarm }

func (a *serviceAPI) routes() []route {
	return []route{
		{method: "GET", pattern: "/services", serve: a.list},
		{method: "POST", pattern: "/services/create", serve: a.create},
		{method: "GET", pattern: "/services/{id}", serve: a.inspect},
		{method: "DELETE", pattern: "/services/{id}", serve: a.remove},
		{method: "POST", pattern: "/services/{id}/update", serve: a.update},
		{method: "GET", pattern: "/services/{id}/logs", serve: a.logs},
	}
}

// serviceBody is a service's specification, with the networks where versions before 1.44 had them.
type serviceBody struct {
	apiswarm.ServiceSpec
	Networks []apiswarm.NetworkAttachmentConfig
}

// adjust leaves out what the version does not have, as Docker does.
func (b *serviceBody) adjust(version apiVersion) {
	t := &b.TaskTemplate
	if version < 1052 && t.Resources != nil {
		t.Resources.SwapBytes, t.Resources.MemorySwappiness = nil, nil
	}
	if c := t.ContainerSpec; c != nil && version < 1046 {
		c.OomScoreAdj = 0
		for _, m := range c.Mounts {
			if m.TmpfsOptions != nil {
				m.TmpfsOptions.Options = nil
			}
		}
		if p := c.Privileges; p != nil && version < 1044 {
			p.Seccomp, p.AppArmor, p.NoNewPrivileges = nil, nil, false
		}
	}
	if version < 1044 && len(t.Networks) == 0 {
		t.Networks = b.Networks
	}
	if version < 1041 && t.Resources != nil && t.Resources.Limits != nil {
		t.Resources.Limits.Pids = 0
	}
	if version < 1040 && t.Placement != nil {
		t.Placement.MaxReplicas = 0
	}
}

func (a *serviceAPI) list(w *response, r *request) error {
	f, err := r.parseFilters("id", "label", "mode", "name", "runtime")
	if err != nil {
		return err
	}
	for _, m := range f["mode"] {
		switch m {
		case "replicated", "global", "replicated-job", "global-job":
		default:
			return fault.New(fault.InvalidArgument, "invalid filter 'mode=%s'", m)
		}
	}
	status, err := r.strictBool("status")
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	services, err := cluster.ListServices(r.Context())
	if err != nil {
		return err
	}
	var tasks []*cloud.Task
	if status && r.version >= 1041 {
		if tasks, err = cluster.ListTasks(r.Context()); err != nil {
			return err
		}
	}
	byService := map[string][]*cloud.Task{}
	for _, t := range tasks {
		byService[t.ServiceID] = append(byService[t.ServiceID], t)
	}
	out := []apiswarm.Service{}
	for _, s := range services {
		if !f.prefix("id", s.ID) || !f.prefix("name", s.Spec.Name) || !f.labels("label", s.Spec.Labels) || !f.is("mode", s.Spec.Mode.String()) || !f.is("runtime", "container") {
			continue
		}
		wire := wireService(s)
		if status && r.version >= 1041 {
			wire.ServiceStatus = serviceStatus(s, byService[s.ID])
		}
		out = append(out, wire)
	}
	return writeJSON(w, http.StatusOK, out)
}

// serviceStatus counts a service's tasks; of a job, those of its newest run.
func serviceStatus(s *cloud.Service, tasks []*cloud.Task) *apiswarm.ServiceStatus {
	out := &apiswarm.ServiceStatus{DesiredTasks: s.Spec.Mode.Replicas}
	var wanted uint64
	for _, t := range tasks {
		if s.Job != nil && (t.Iteration == nil || *t.Iteration != s.Job.Iteration) {
			continue
		}
		if t.Status.State == cloud.TaskRunning && t.Desired <= cloud.TaskRunning {
			out.RunningTasks++
		}
		if t.Desired <= cloud.TaskRunning && !(s.Job != nil && t.Status.State == cloud.TaskComplete) {
			wanted++
		}
		if t.Status.State == cloud.TaskComplete {
			out.CompletedTasks++
		}
	}
	switch mode := s.Spec.Mode; {
	case mode.Global:
		out.DesiredTasks = wanted
	case mode.Job:
		out.DesiredTasks = mode.MaxConcurrent
	}
	return out
}

func (a *serviceAPI) inspect(w *response, r *request) error {
	if _, err := r.strictBool("insertDefaults"); err != nil { // they are always shown
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	s, err := cluster.GetService(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, wireService(s))
}

func (a *serviceAPI) create(w *response, r *request) error {
	var body serviceBody
	if err := r.decode(&body); err != nil {
		return err
	}
	body.adjust(r.version)
	spec, err := serviceSpec(&body.ServiceSpec)
	if err != nil {
		return err
	}
	spec.Task.Container.PullAuth = r.Header.Get(registry.AuthHeader)
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	nameless := spec.Name == ""
	var id string
	for range 10 {
		if nameless {
			spec.Name = container.RandomName()
		}
		id, err = cluster.CreateService(r.Context(), spec, r.Header.Get("Idempotency-Key"))
		if !nameless || !fault.Is(err, fault.AlreadyExists) {
			break
		}
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apiswarm.ServiceCreateResponse{ID: id, Warnings: []string{}})
}

func (a *serviceAPI) update(w *response, r *request) error {
	var body serviceBody
	if err := r.decode(&body); err != nil {
		return err
	}
	version, err := r.objectVersion("service")
	if err != nil {
		return err
	}
	rollback := false
	switch v := r.query.Get("rollback"); v {
	case "", "none": // docker 29 says so with every update
	case "previous":
		rollback = true
	default:
		return fault.New(fault.InvalidArgument, "unrecognized rollback option %s: it must be previous or none", v)
	}
	authFrom := apiswarm.RegistryAuthSource(r.query.Get("registryAuthFrom"))
	if authFrom != "" && authFrom != apiswarm.RegistryAuthFromSpec && authFrom != apiswarm.RegistryAuthFromPreviousSpec {
		return fault.New(fault.InvalidArgument, "invalid registryAuthFrom '%s': it must be spec or previous-spec", authFrom)
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	current, err := cluster.GetService(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	var spec cloud.ServiceSpec
	if !rollback {
		body.adjust(r.version)
		if spec, err = serviceSpec(&body.ServiceSpec); err != nil {
			return err
		}
		spec.Task.Container.PullAuth = pullAuth(r.Header.Get(registry.AuthHeader), authFrom, current)
	}
	if err := cluster.UpdateService(r.Context(), current.ID, version, spec, rollback); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, apiswarm.ServiceUpdateResponse{Warnings: []string{}})
}

// pullAuth returns the credentials that an updated service pulls its image with: new ones, or those it has.
func pullAuth(given string, from apiswarm.RegistryAuthSource, current *cloud.Service) string {
	switch {
	case given != "":
		return given
	case from == apiswarm.RegistryAuthFromPreviousSpec && current.PreviousSpec != nil:
		return current.PreviousSpec.Task.Container.PullAuth
	}
	return current.Spec.Task.Container.PullAuth
}

func (a *serviceAPI) remove(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	return ok(w, cluster.RemoveService(r.Context(), r.PathValue("id")))
}

func (a *serviceAPI) logs(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	s, err := cluster.GetService(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	tasks, err := tasksOf(r.Context(), cluster, s.ID)
	if err != nil {
		return err
	}
	return clusterLogs(w, r, cluster, tasks, []string{s.ID}, s.Spec.Task.Container.TTY)
}

// tasksOf returns the tasks of a service that have or had a node: others have printed nothing.
func tasksOf(ctx context.Context, cluster Cluster, serviceID string) ([]*cloud.Task, error) {
	all, err := cluster.ListTasks(ctx)
	if err != nil {
		return nil, err
	}
	var out []*cloud.Task
	for _, t := range all {
		if t.ServiceID == serviceID && t.NodeID != "" {
			out = append(out, t)
		}
	}
	return out, nil
}
