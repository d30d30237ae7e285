package control

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
)

// The largest blobs.
const (
	maxSecret = 500 * 1024
	maxConfig = 1000 * 1024
)

// blob is a secret or a config: the two differ in who may see them.
type blob[T cloud.Object] struct {
	max  int
	make func(cloud.Meta, cloud.SecretSpec) T
	spec func(T) *cloud.SecretSpec
	uses func(*cloud.ContainerSpec) []cloud.FileReference
}

var (
	secrets = blob[*cloud.Secret]{maxSecret,
		func(m cloud.Meta, s cloud.SecretSpec) *cloud.Secret { return &cloud.Secret{Meta: m, Spec: s} },
		func(s *cloud.Secret) *cloud.SecretSpec { return &s.Spec },
		func(c *cloud.ContainerSpec) []cloud.FileReference { return c.Secrets }}
	configs = blob[*cloud.Config]{maxConfig,
		func(m cloud.Meta, s cloud.SecretSpec) *cloud.Config { return &cloud.Config{Meta: m, Spec: s} },
		func(c *cloud.Config) *cloud.SecretSpec { return &c.Spec },
		func(c *cloud.ContainerSpec) []cloud.FileReference { return c.Configs }}
)

func (b blob[T]) kind() string {
	var zero T
	return string(zero.ObjectKind())
}

func (b blob[T]) create(ctx context.Context, a *API, spec cloud.SecretSpec) (string, error) {
	if err := validateName(spec.Name, blobName, "only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]"); err != nil {
		return "", fault.New(fault.InvalidArgument, "invalid name, %w", err)
	}
	if len(spec.Data) == 0 || len(spec.Data) >= b.max {
		return "", fault.New(fault.InvalidArgument, "%s data must be larger than 0 and less than %d bytes", b.kind(), b.max)
	}
	if t := spec.Templating; t != nil && t.Name != cloud.TemplateGo {
		return "", fault.New(fault.InvalidArgument, "unrecognized template type %q: it must be %s", t.Name, cloud.TemplateGo)
	}
	id := cloud.NewID()
	err := a.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		if len(state.List[T](tx, state.ByName(spec.Name))) > 0 {
			return fault.New(fault.AlreadyExists, "%s %s already exists", b.kind(), spec.Name)
		}
		return tx.Put(b.make(cloud.Meta{ID: id, Project: cloud.DefaultProject}, spec))
	})
	if err != nil {
		return "", err
	}
	return id, nil
}

func (b blob[T]) update(ctx context.Context, a *API, id string, version uint64, spec cloud.SecretSpec) error {
	return a.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		old, err := find(tx, id, ownName[T])
		if err != nil {
			return err
		}
		if old.GetMeta().Version != version {
			return errOutOfSequence
		}
		c := state.Clone(old)
		now := b.spec(c)
		if spec.Name != "" && spec.Name != now.Name || len(spec.Data) > 0 && !bytes.Equal(spec.Data, now.Data) {
			return fault.New(fault.InvalidArgument, "only updates to Labels are allowed")
		}
		now.Labels = spec.Labels
		return tx.Put(c)
	})
}

func (b blob[T]) remove(ctx context.Context, a *API, ref string) error {
	return a.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		o, err := find(tx, ref, ownName[T])
		if err != nil {
			return err
		}
		var users []string
		for _, s := range state.List[*cloud.Service](tx, state.By{}) {
			if slices.ContainsFunc(b.uses(&s.Spec.Task.Container), func(r cloud.FileReference) bool { return r.ID == o.GetMeta().ID }) {
				users = append(users, s.Spec.Name)
			}
		}
		if len(users) > 0 {
			word := "service"
			if len(users) > 1 {
				word = "services"
			}
			return fault.New(fault.InvalidArgument, "%s '%s' is in use by the following %s: %s", b.kind(), o.ObjectName(), word, strings.Join(users, ", "))
		}
		return tx.Delete(o.ObjectKind(), o.GetMeta().ID)
	})
}

func publicSecret(s *cloud.Secret) *cloud.Secret {
	c := *s
	c.Spec.Data = nil
	return &c
}

// CreateSecret keeps a secret.
func (a *API) CreateSecret(ctx context.Context, spec cloud.SecretSpec) (string, error) {
	return secrets.create(ctx, a, spec)
}

// UpdateSecret changes a secret's labels, all that may change.
func (a *API) UpdateSecret(ctx context.Context, id string, version uint64, spec cloud.SecretSpec) error {
	return secrets.update(ctx, a, id, version, spec)
}

// RemoveSecret forgets a secret that no service uses.
func (a *API) RemoveSecret(ctx context.Context, ref string) error { return secrets.remove(ctx, a, ref) }

// GetSecret finds a secret; its content is never shown.
func (a *API) GetSecret(_ context.Context, ref string) (*cloud.Secret, error) {
	s, err := get(a, ref, ownName[*cloud.Secret])
	if err != nil {
		return nil, err
	}
	return publicSecret(s), nil
}

// ListSecrets returns all secrets without their content.
func (a *API) ListSecrets(context.Context) ([]*cloud.Secret, error) {
	all := list[*cloud.Secret](a)
	for i, s := range all {
		all[i] = publicSecret(s)
	}
	return all, nil
}

// CreateConfig keeps a config.
func (a *API) CreateConfig(ctx context.Context, spec cloud.SecretSpec) (string, error) {
	return configs.create(ctx, a, spec)
}

// UpdateConfig changes a config's labels, all that may change.
func (a *API) UpdateConfig(ctx context.Context, id string, version uint64, spec cloud.SecretSpec) error {
	return configs.update(ctx, a, id, version, spec)
}

// RemoveConfig forgets a config that no service uses.
func (a *API) RemoveConfig(ctx context.Context, ref string) error { return configs.remove(ctx, a, ref) }

// GetConfig finds a config.
func (a *API) GetConfig(_ context.Context, ref string) (*cloud.Config, error) {
	return get(a, ref, ownName[*cloud.Config])
}

// ListConfigs returns all configs.
func (a *API) ListConfigs(context.Context) ([]*cloud.Config, error) {
	return list[*cloud.Config](a), nil
}
