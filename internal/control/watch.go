package control

import (
	"context"
	"strconv"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
)

// WatchEvents delivers changes of nodes, services, networks, secrets and configs until ctx ends. A reader that is slow
// gets several changes of one object as one.
func (a *API) WatchEvents(ctx context.Context) <-chan Event {
	kinds := []cloud.Kind{cloud.KindNode, cloud.KindService, cloud.KindNetwork, cloud.KindSecret, cloud.KindConfig}
	last := map[string]cloud.Object{}
	changes := a.cfg.Store.Watch(ctx, func(tx state.Tx) {
		for _, k := range kinds {
			for _, o := range tx.List(k, state.By{}) {
				last[o.GetMeta().ID] = o
			}
		}
	}, kinds...)
	out := make(chan Event)
	go func() {
		defer close(out)
		for c := range changes {
			e, ok := describe(c, last[c.ID])
			if c.Object == nil {
				delete(last, c.ID)
			} else {
				last[c.ID] = c.Object
			}
			if !ok {
				continue
			}
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// describe puts a change into the words of Docker's events; ok is false for one that no user made or notices.
func describe(c state.Event, old cloud.Object) (e Event, ok bool) {
	e = Event{Type: string(c.Kind), Action: "update", ID: c.ID, Attrs: map[string]string{}, Time: time.Now().UTC()}
	now := c.Object
	switch {
	case now == nil:
		e.Action, now = "remove", c.Removed
	case old == nil:
		e.Action = "create"
	}
	if now == nil {
		return e, false
	}
	e.Attrs["name"] = now.ObjectName()
	differ := func(what, from, to string) {
		if from != to {
			e.Attrs[what+".old"], e.Attrs[what+".new"] = from, to
			ok = true
		}
	}
	switch n := now.(type) {
	case *cloud.Node:
		e.Attrs["name"] = n.Description.Hostname
		if o, was := old.(*cloud.Node); was && e.Action == "update" {
			differ("state", string(o.Status.State), string(n.Status.State))
			differ("availability", string(o.Spec.Availability), string(n.Spec.Availability))
			differ("role", string(o.Spec.Role), string(n.Spec.Role))
			return e, ok
		}
	case *cloud.Service:
		if o, was := old.(*cloud.Service); was && e.Action == "update" {
			differ("updatestate", updateState(o), updateState(n))
			if !n.Spec.Mode.Global {
				differ("replicas", strconv.FormatUint(o.Spec.Mode.Replicas, 10), strconv.FormatUint(n.Spec.Mode.Replicas, 10))
			}
			return e, ok || o.SpecVersion != n.SpecVersion
		}
	case *cloud.Network:
		e.Attrs["type"] = n.Spec.Driver
		if e.Action == "update" {
			return e, false // the allocator's work
		}
	}
	return e, true
}

func updateState(s *cloud.Service) string {
	if s.Update == nil {
		return ""
	}
	return string(s.Update.State)
}
