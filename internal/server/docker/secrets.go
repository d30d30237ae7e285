package docker

import (
	"context"
	"net/http"

	apiswarm "github.com/moby/moby/api/types/swarm"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// secretRoutes serve secrets and configs, which differ in that a secret's data is never shown.
func secretRoutes(swarm Swarm) []route {
	secrets := &blobAPI[*cloud.Secret]{swarm: swarm, kind: "secret",
		create: Cluster.CreateSecret, update: Cluster.UpdateSecret, remove: Cluster.RemoveSecret, get: Cluster.GetSecret, list: Cluster.ListSecrets,
		spec: func(s *cloud.Secret) (string, *cloud.SecretSpec) { return s.ID, &s.Spec }, wire: wireSecret}
	configs := &blobAPI[*cloud.Config]{swarm: swarm, kind: "config",
		create: Cluster.CreateConfig, update: Cluster.UpdateConfig, remove: Cluster.RemoveConfig, get: Cluster.GetConfig, list: Cluster.ListConfigs,
		spec: func(c *cloud.Config) (string, *cloud.SecretSpec) { return c.ID, &c.Spec }, wire: wireConfigObject}
	return append(secrets.routes("/secrets", 1025), configs.routes("/configs", 1030)...)
}

// blobAPI serves the objects of one kind that are a name, labels and data: what the cluster does with them, and how they
// are shown.
type blobAPI[T any] struct {
	swarm  Swarm
	kind   string
	create func(c Cluster, ctx context.Context, spec cloud.SecretSpec) (id string, err error)
	update func(c Cluster, ctx context.Context, id string, version uint64, spec cloud.SecretSpec) error
	remove func(c Cluster, ctx context.Context, ref string) error
	get    func(c Cluster, ctx context.Context, ref string) (T, error)
	list   func(c Cluster, ctx context.Context) ([]T, error)
	spec   func(T) (id string, spec *cloud.SecretSpec)
	wire   func(T) any
}

func (a *blobAPI[T]) routes(path string, since apiVersion) []route {
	return []route{
		{method: "GET", pattern: path, serve: a.serveList, since: since},
		{method: "POST", pattern: path + "/create", serve: a.serveCreate, since: since},
		{method: "GET", pattern: path + "/{id}", serve: a.serveInspect, since: since},
		{method: "DELETE", pattern: path + "/{id}", serve: a.serveRemove, since: since},
		{method: "POST", pattern: path + "/{id}/update", serve: a.serveUpdate, since: since},
	}
}

func wireSecret(s *cloud.Secret) any {
	return apiswarm.Secret{ID: s.ID, Meta: wireMeta(&s.Meta), Spec: apiswarm.SecretSpec{Annotations: apiswarm.Annotations{Name: s.Spec.Name, Labels: mapping(s.Spec.Labels)}, Templating: wireTemplating(s.Spec.Templating)}}
}

func wireConfigObject(c *cloud.Config) any {
	return apiswarm.Config{ID: c.ID, Meta: wireMeta(&c.Meta), Spec: apiswarm.ConfigSpec{Annotations: apiswarm.Annotations{Name: c.Spec.Name, Labels: mapping(c.Spec.Labels)}, Data: c.Spec.Data, Templating: wireTemplating(c.Spec.Templating)}}
}

// secretFilters reads the filters of both kinds as a predicate over an object's ID, name and labels.
func secretFilters(r *request) (func(id string, spec *cloud.SecretSpec) bool, error) {
	f, err := r.parseFilters("id", "label", "name", "names")
	if err != nil {
		return nil, err
	}
	return func(id string, spec *cloud.SecretSpec) bool {
		return f.prefix("id", id) && f.prefix("name", spec.Name) && f.is("names", spec.Name) && f.labels("label", spec.Labels)
	}, nil
}

// decodeSecret reads the body of a create or update of a secret, or of a config, which is the same less the driver.
func decodeSecret(r *request) (cloud.SecretSpec, error) {
	var body apiswarm.SecretSpec
	if err := r.decode(&body); err != nil {
		return cloud.SecretSpec{}, err
	}
	switch {
	case body.Driver != nil && body.Driver.Name != "":
		return cloud.SecretSpec{}, fault.New(fault.NotImplemented, "secret drivers are not implemented: give the secret's data")
	case body.Templating != nil && body.Templating.Name != cloud.TemplateGo:
		return cloud.SecretSpec{}, fault.New(fault.InvalidArgument, "unrecognized template type %q: it must be %s", body.Templating.Name, cloud.TemplateGo)
	}
	out := cloud.SecretSpec{Name: body.Name, Labels: body.Labels, Data: body.Data}
	if t := body.Templating; t != nil {
		out.Templating = &cloud.Templating{Name: t.Name, Options: t.Options}
	}
	return out, nil
}

func wireTemplating(t *cloud.Templating) *apiswarm.Driver {
	if t == nil {
		return nil
	}
	return &apiswarm.Driver{Name: t.Name, Options: t.Options}
}

func (a *blobAPI[T]) serveList(w *response, r *request) error {
	wanted, err := secretFilters(r)
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	all, err := a.list(cluster, r.Context())
	if err != nil {
		return err
	}
	out := []any{}
	for _, one := range all {
		if wanted(a.spec(one)) {
			out = append(out, a.wire(one))
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func (a *blobAPI[T]) serveCreate(w *response, r *request) error {
	spec, err := decodeSecret(r)
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	id, err := a.create(cluster, r.Context(), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apiswarm.SecretCreateResponse{ID: id}) // a config's is the same
}

func (a *blobAPI[T]) serveInspect(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	one, err := a.get(cluster, r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, a.wire(one))
}

func (a *blobAPI[T]) serveRemove(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	return noContent(w, a.remove(cluster, r.Context(), r.PathValue("id")))
}

func (a *blobAPI[T]) serveUpdate(w *response, r *request) error {
	spec, err := decodeSecret(r)
	if err != nil {
		return err
	}
	version, err := r.objectVersion(a.kind)
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	one, err := a.get(cluster, r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	id, _ := a.spec(one)
	return ok(w, a.update(cluster, r.Context(), id, version, spec))
}
