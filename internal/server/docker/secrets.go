package docker

import (
	"net/http"

	apiswarm "github.com/moby/moby/api/types/swarm"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// secretAPI serves secrets and configs, which differ in that a secret's data is never shown.
type secretAPI struct{ swarm Swarm }

func (a *secretAPI) routes() []route {
	return []route{
		{method: "GET", pattern: "/secrets", serve: a.listSecrets, since: 1025},
		{method: "POST", pattern: "/secrets/create", serve: a.createSecret, since: 1025},
		{method: "GET", pattern: "/secrets/{id}", serve: a.inspectSecret, since: 1025},
		{method: "DELETE", pattern: "/secrets/{id}", serve: a.removeSecret, since: 1025},
		{method: "POST", pattern: "/secrets/{id}/update", serve: a.updateSecret, since: 1025},
		{method: "GET", pattern: "/configs", serve: a.listConfigs, since: 1030},
		{method: "POST", pattern: "/configs/create", serve: a.createConfig, since: 1030},
		{method: "GET", pattern: "/configs/{id}", serve: a.inspectConfig, since: 1030},
		{method: "DELETE", pattern: "/configs/{id}", serve: a.removeConfig, since: 1030},
		{method: "POST", pattern: "/configs/{id}/update", serve: a.updateConfig, since: 1030},
	}
}

func wireSecret(s *cloud.Secret) apiswarm.Secret {
	return apiswarm.Secret{ID: s.ID, Meta: wireMeta(&s.Meta), Spec: apiswarm.SecretSpec{Annotations: apiswarm.Annotations{Name: s.Spec.Name, Labels: mapping(s.Spec.Labels)}}}
}

func wireConfigObject(c *cloud.Config) apiswarm.Config {
	return apiswarm.Config{ID: c.ID, Meta: wireMeta(&c.Meta), Spec: apiswarm.ConfigSpec{Annotations: apiswarm.Annotations{Name: c.Spec.Name, Labels: mapping(c.Spec.Labels)}, Data: c.Spec.Data}}
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

func (a *secretAPI) listSecrets(w *response, r *request) error {
	wanted, err := secretFilters(r)
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	secrets, err := cluster.ListSecrets(r.Context())
	if err != nil {
		return err
	}
	out := []apiswarm.Secret{}
	for _, s := range secrets {
		if wanted(s.ID, &s.Spec) {
			out = append(out, wireSecret(s))
		}
	}
	return writeJSON(w, http.StatusOK, out)
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
	case body.Templating != nil && body.Templating.Name != "":
		return cloud.SecretSpec{}, fault.New(fault.NotImplemented, "templates in secrets and configs are not implemented: give the final data")
	}
	return cloud.SecretSpec{Name: body.Name, Labels: body.Labels, Data: body.Data}, nil
}

func (a *secretAPI) createSecret(w *response, r *request) error {
	spec, err := decodeSecret(r)
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	id, err := cluster.CreateSecret(r.Context(), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apiswarm.SecretCreateResponse{ID: id})
}

func (a *secretAPI) inspectSecret(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	s, err := cluster.GetSecret(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, wireSecret(s))
}

func (a *secretAPI) removeSecret(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	return noContent(w, cluster.RemoveSecret(r.Context(), r.PathValue("id")))
}

func (a *secretAPI) updateSecret(w *response, r *request) error {
	spec, err := decodeSecret(r)
	if err != nil {
		return err
	}
	version, err := r.objectVersion("secret")
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	s, err := cluster.GetSecret(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return ok(w, cluster.UpdateSecret(r.Context(), s.ID, version, spec))
}

func (a *secretAPI) listConfigs(w *response, r *request) error {
	wanted, err := secretFilters(r)
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	configs, err := cluster.ListConfigs(r.Context())
	if err != nil {
		return err
	}
	out := []apiswarm.Config{}
	for _, c := range configs {
		if wanted(c.ID, &c.Spec) {
			out = append(out, wireConfigObject(c))
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func (a *secretAPI) createConfig(w *response, r *request) error {
	spec, err := decodeSecret(r)
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	id, err := cluster.CreateConfig(r.Context(), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apiswarm.ConfigCreateResponse{ID: id})
}

func (a *secretAPI) inspectConfig(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	c, err := cluster.GetConfig(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, wireConfigObject(c))
}

func (a *secretAPI) removeConfig(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	return noContent(w, cluster.RemoveConfig(r.Context(), r.PathValue("id")))
}

func (a *secretAPI) updateConfig(w *response, r *request) error {
	spec, err := decodeSecret(r)
	if err != nil {
		return err
	}
	version, err := r.objectVersion("config")
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	c, err := cluster.GetConfig(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return ok(w, cluster.UpdateConfig(r.Context(), c.ID, version, spec))
}
