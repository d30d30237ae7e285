package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state"
)

// CreateService checks a specification and writes it down. The same idempotency key again returns the same service.
func (a *API) CreateService(ctx context.Context, spec cloud.ServiceSpec, idempotencyKey string) (string, error) {
	if err := ValidateService(&spec); err != nil {
		return "", err
	}
	return state.Once(ctx, a.cfg.Store, cloud.DefaultProject, idempotencyKey, func(tx state.WriteTx) (string, error) {
		own := state.Clone(&cloud.Service{Spec: spec}).Spec // the change may run more than once
		if len(state.List[*cloud.Service](tx, state.ByName(own.Name))) > 0 {
			return "", fault.New(fault.AlreadyExists, "name conflicts with an existing object: service %s already exists", own.Name)
		}
		if err := resolve(tx, &own); err != nil {
			return "", err
		}
		if err := checkPorts(tx, "", &own); err != nil {
			return "", err
		}
		s := &cloud.Service{Meta: cloud.Meta{ID: cloud.NewID(), Project: cloud.DefaultProject}, Spec: own, SpecVersion: 1}
		if own.Mode.Job {
			s.Job = &cloud.JobStatus{LastExecution: time.Now().UTC()}
		}
		return s.ID, tx.Put(s)
	})
}

// UpdateService replaces a service's specification; version is the one last read. rollback goes back to the previous
// specification and ignores spec.
func (a *API) UpdateService(ctx context.Context, id string, version uint64, spec cloud.ServiceSpec, rollback bool) error {
	if !rollback {
		if err := ValidateService(&spec); err != nil {
			return err
		}
	}
	return a.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		old, err := find(tx, id, ownName[*cloud.Service])
		if err != nil {
			return err
		}
		if !old.SpecReadAt(version) {
			return errOutOfSequence
		}
		s := state.Clone(old)
		if rollback {
			if s.PreviousSpec == nil {
				return fault.New(fault.FailedPrecondition, "service %s does not have a previous spec", s.ID)
			}
			s.Spec, s.PreviousSpec = *s.PreviousSpec, &state.Clone(old).Spec
			if err := resolve(tx, &s.Spec); err != nil { // a secret of that time, say, is removed since
				return fmt.Errorf("the previous spec of service %s cannot be gone back to: %w", s.Spec.Name, err)
			}
			if s.Job == nil { // a job has no update that would end
				s.Update = &cloud.UpdateStatus{State: cloud.UpdateRollbackStarted, Message: "manually requested rollback"}
			}
		} else {
			own := state.Clone(&cloud.Service{Spec: spec}).Spec
			if own.Name != s.Spec.Name {
				return fault.New(fault.NotImplemented, "renaming services is not supported")
			}
			if own.Mode.String() != s.Spec.Mode.String() {
				return fault.New(fault.NotImplemented, "service mode change is not allowed")
			}
			if err := resolve(tx, &own); err != nil {
				return err
			}
			if own.Task.Container.PullAuth == "" { // credentials are in no answer, so clients cannot send them back
				own.Task.Container.PullAuth = s.Spec.Task.Container.PullAuth
			}
			s.PreviousSpec, s.Spec, s.Update = &state.Clone(old).Spec, own, nil
		}
		if err := checkPorts(tx, s.ID, &s.Spec); err != nil {
			return err
		}
		s.SpecVersion++
		if s.Job != nil {
			s.Job.Iteration++
			s.Job.LastExecution = time.Now().UTC()
		}
		return tx.Put(s)
	})
}

// RemoveService forgets a service; its tasks are stopped and forgotten by the orchestrator.
func (a *API) RemoveService(ctx context.Context, ref string) error {
	return a.cfg.Store.Update(ctx, func(tx state.WriteTx) error {
		s, err := find(tx, ref, ownName[*cloud.Service])
		if err != nil {
			return err
		}
		return tx.Delete(cloud.KindService, s.ID)
	})
}

// GetService finds a service.
func (a *API) GetService(ctx context.Context, ref string) (*cloud.Service, error) {
	a.freshen(ctx)
	s, err := get(a, ref, ownName[*cloud.Service])
	if err != nil {
		return nil, err
	}
	return publicService(s), nil
}

// ListServices returns all services.
func (a *API) ListServices(context.Context) ([]*cloud.Service, error) {
	all := list[*cloud.Service](a)
	for i, s := range all {
		all[i] = publicService(s)
	}
	return all, nil
}

// publicService returns the service without the registry's credentials.
func publicService(s *cloud.Service) *cloud.Service {
	if s.Spec.Task.Container.PullAuth == "" && (s.PreviousSpec == nil || s.PreviousSpec.Task.Container.PullAuth == "") {
		return s
	}
	c := *s
	c.Spec.Task.Container.PullAuth = ""
	if s.PreviousSpec != nil {
		p := *s.PreviousSpec
		p.Task.Container.PullAuth = ""
		c.PreviousSpec = &p
	}
	return &c
}

// resolve replaces names of networks, secrets and configs by IDs; all must exist.
func resolve(tx state.Tx, spec *cloud.ServiceSpec) error {
	for i := range spec.Task.Networks {
		c := &spec.Task.Networks[i]
		n, err := find(tx, c.Target, ownName[*cloud.Network])
		if err != nil {
			if cloud.PredefinedNetwork(c.Target) { // of each host itself
				if len(spec.Task.Networks) > 1 {
					return fault.New(fault.InvalidArgument, "the network %s cannot be combined with others", c.Target)
				}
				if spec.Endpoint.PublishesIngress() {
					return fault.New(fault.InvalidArgument, "a service on the network %s cannot publish ports in ingress mode: publish them with mode=host, or not at all", c.Target)
				}
				continue
			}
			return err
		}
		if n.Spec.Ingress {
			return fault.New(fault.InvalidArgument, "Service cannot be explicitly attached to the ingress network %q", n.Spec.Name)
		}
		c.Target = n.ID
		if slices.ContainsFunc(spec.Task.Networks[:i], func(o cloud.NetworkConnection) bool { return o.Target == n.ID }) {
			return fault.New(fault.InvalidArgument, "network %s is named twice: a service joins a network once", n.Spec.Name)
		}
	}
	if err := resolveFiles[*cloud.Secret](tx, spec.Task.Container.Secrets); err != nil {
		return err
	}
	if err := resolveFiles[*cloud.Config](tx, spec.Task.Container.Configs); err != nil {
		return err
	}
	if spec.Endpoint.PublishesIngress() {
		networks := state.List[*cloud.Network](tx, state.By{})
		if !slices.ContainsFunc(networks, func(n *cloud.Network) bool { return n.Spec.Ingress }) {
			return fault.New(fault.FailedPrecondition, "service needs ingress network, but no ingress network is present")
		}
	}
	return nil
}

func resolveFiles[T cloud.Object](tx state.Tx, refs []cloud.FileReference) error {
	var zero T
	var missing []string
	for i := range refs {
		r := &refs[i]
		ref := r.ID
		if ref == "" {
			ref = r.Name
		}
		o, err := find(tx, ref, ownName[T])
		if err != nil {
			if r.Name != "" {
				ref = r.Name
			}
			missing = append(missing, ref)
			continue
		}
		r.ID, r.Name = o.GetMeta().ID, o.ObjectName()
	}
	if len(missing) == 0 {
		return nil
	}
	word := string(zero.ObjectKind())
	if len(missing) > 1 {
		word += "s"
	}
	return fault.New(fault.InvalidArgument, "%s not found: %s", word, strings.Join(missing, ", "))
}

// checkPorts refuses ports that another service has. An ingress port is on every host, so it collides with host ports.
func checkPorts(tx state.Tx, self string, spec *cloud.ServiceSpec) error {
	for _, p := range spec.Endpoint.Ports {
		if p.Published == 0 {
			continue
		}
		for _, s := range state.List[*cloud.Service](tx, state.By{}) {
			if s.ID == self {
				continue
			}
			for _, o := range slices.Concat(s.Spec.Endpoint.Ports, s.Endpoint.Ports) {
				if o.Published != p.Published || protocol(o) != protocol(p) || !p.IngressMode() && !o.IngressMode() {
					continue
				}
				as := "an ingress port"
				if !o.IngressMode() {
					as = "a host-published port"
				}
				return fault.New(fault.InvalidArgument, "port '%d' is already in use by service '%s' (%s) as %s", p.Published, s.Spec.Name, s.ID, as)
			}
		}
	}
	return nil
}

func protocol(p cloud.PortConfig) cloud.Protocol {
	if p.Protocol == "" {
		return cloud.TCP
	}
	return p.Protocol
}
