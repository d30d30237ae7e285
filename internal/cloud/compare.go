package cloud

import (
	"fmt"
	"reflect"
	"slices"
)

// Equal reports whether tasks made from s and o are alike, so that one need not be replaced by the other. Placement is
// left out: a running task stays where it is as long as its node satisfies the new constraints. So are credentials for
// the registry, and the restart policy, which only says what happens after the task.
func (s *TaskSpec) Equal(o *TaskSpec) bool {
	a, b := *s, *o
	for _, t := range []*TaskSpec{&a, &b} {
		t.Placement, t.Restart = Placement{}, RestartPolicy{}
		t.Container.PullAuth = ""
		if p := t.Container.Privileges; p != nil && *p == (Privileges{}) {
			t.Container.Privileges = nil
		}
	}
	return reflect.DeepEqual(normal(reflect.ValueOf(a)).Interface(), normal(reflect.ValueOf(b)).Interface())
}

// normal returns v with empty slices and maps made nil, as a document loses the difference.
func normal(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Struct:
		c := reflect.New(v.Type()).Elem()
		c.Set(v)
		for i := range v.NumField() {
			if f := c.Field(i); f.CanSet() {
				f.Set(normal(v.Field(i)))
			}
		}
		return c
	case reflect.Slice:
		if v.Len() == 0 {
			return reflect.Zero(v.Type())
		}
		c := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			c.Index(i).Set(normal(v.Index(i)))
		}
		return c
	case reflect.Map:
		if v.Len() == 0 {
			return reflect.Zero(v.Type())
		}
	case reflect.Pointer:
		if !v.IsNil() && v.Type().Elem().Kind() == reflect.Struct {
			c := reflect.New(v.Type().Elem())
			c.Elem().Set(normal(v.Elem()))
			return c
		}
	}
	return v
}

// PublishesIngress reports whether the service publishes a port on every node.
func (e *EndpointSpec) PublishesIngress() bool {
	return slices.ContainsFunc(e.Ports, func(p PortConfig) bool { return p.IngressMode() })
}

// IngressMode reports whether the port is published on every node of the cluster.
func (p PortConfig) IngressMode() bool { return p.Mode == PublishIngress || p.Mode == "" }

// Name returns the task's full name, which is its container's: SERVICE.SLOT.ID, with the node's ID for the slot of a
// global service's task.
func (t *Task) Name() string {
	if t.Slot == 0 {
		return fmt.Sprintf("%s.%s.%s", t.ServiceName, t.NodeID, t.ID)
	}
	return fmt.Sprintf("%s.%d.%s", t.ServiceName, t.Slot, t.ID)
}

// Outdated reports whether t was made from another specification than its service now has, and the difference matters
// to it: it is to be replaced. n is the node it is on, nil if it has none, and constraints are the service's.
func (t *Task) Outdated(svc *Service, n *Node, constraints []Constraint) bool {
	if t.SpecVersion == svc.SpecVersion {
		return false
	}
	if !t.Spec.Equal(&svc.Spec.Task) || !t.samePorts(svc) {
		return true
	}
	return n != nil && !n.Satisfies(constraints)
}

// samePorts reports whether the task has what the service's published ports need of it: a place on the ingress network,
// and its own ports on its host. A change of the other ports reaches it without replacing it.
func (t *Task) samePorts(svc *Service) bool {
	split := func(ports []PortConfig) (host []PortConfig, ingress bool) {
		for _, p := range ports {
			if p.IngressMode() {
				ingress = true
			} else {
				host = append(host, p)
			}
		}
		return host, ingress
	}
	if t.Status.State < TaskPending {
		return true // has none yet and will get the newest
	}
	hostA, ingressA := split(t.Ports)
	hostB, ingressB := split(svc.Spec.Endpoint.Ports)
	return slices.Equal(hostA, hostB) && ingressA == ingressB
}
