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
