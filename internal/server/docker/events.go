package docker

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types"
	apievents "github.com/moby/moby/api/types/events"

	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// eventAPI serves what happens, on this host and, on a manager, in the cluster.
type eventAPI struct {
	bus   Events
	swarm Swarm
}

func (a *eventAPI) routes() []route {
	return []route{{method: "GET", pattern: "/events", serve: a.stream}}
}

// legacyEvent repeats some of the message under the names that versions before 1.52 had.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	apievents.Message
}

func (a *eventAPI) stream(w *response, r *request) error {
	since, err := r.timestamp("since")
	if err != nil {
		return err
	}
	until, err := r.timestamp("until")
	if err != nil {
		return err
	}
	if !until.IsZero() && until.Before(since) {
		return fault.New(fault.InvalidArgument, "`since` time (%s) cannot be after `until` time (%s)", r.query.Get("since"), r.query.Get("until"))
	}
	f, err := r.parseFilters("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope",
		"secret", "service", "type", "volume")
	if err != nil {
		return err
	}
	past, next := a.bus.Subscribe(r.Context(), since)
	if since.IsZero() && until.IsZero() {
		past = nil // who names no time wants what comes
	}
	var swarm <-chan control.Event
	if c, err := a.swarm.Cluster(); err == nil && r.version >= 1030 {
		swarm = c.WatchEvents(r.Context())
	}

	media := types.MediaTypeJSON
	if r.version >= 1052 {
		media = types.MediaTypeJSONLines
	}
	if accept := r.Header.Get("Accept"); accept == types.MediaTypeNDJSON || accept == types.MediaTypeJSONLines {
		media = accept
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(http.StatusOK)
	w.Flush()
	out := w.flushed()
	send := func(e events.Event) bool {
		if !includes(f, &e) || !until.IsZero() && e.Time.After(until) || r.version < 1046 && e.Type == "image" && e.Action == "create" {
			return true
		}
		body, err := marshal(wireEvent(&e, r.version))
		if err != nil {
			return true
		}
		_, err = out.Write(body)
		return err == nil
	}
	for _, e := range past {
		if !send(e) {
			return nil
		}
	}
	var end <-chan time.Time
	if !until.IsZero() {
		left := until.Sub(now())
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(left)
		defer timer.Stop()
		end = timer.C
	}
	for {
		select {
		case e, open := <-next:
			if !open || !send(e) { // closed to one that does not keep up: it must not believe it had them all
				return nil
			}
		case e, open := <-swarm:
			if !open {
				swarm = nil
			} else if !send(events.Event{Type: e.Type, Action: e.Action, ID: e.ID, Attrs: e.Attrs, Time: e.Time, Scope: "swarm"}) {
				return nil
			}
		case <-end:
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
}

func wireEvent(e *events.Event, version apiVersion) any {
	m := apievents.Message{
		Type: apievents.Type(e.Type), Action: apievents.Action(e.Action), Actor: apievents.Actor{ID: e.ID, Attributes: mapping(e.Attrs)},
		Scope: e.Scope, Time: e.Time.Unix(), TimeNano: e.Time.UnixNano(),
	}
	if version >= 1052 {
		return m
	}
	legacy := legacyEvent{Message: m}
	switch e.Type {
	case "container":
		legacy.Status, legacy.ID, legacy.From = e.Action, e.ID, e.Attrs["image"]
	case "image":
		legacy.Status, legacy.ID = e.Action, e.ID
	}
	return legacy
}

// includes reports whether an event passes the filters.
func includes(f filters, e *events.Event) bool {
	if !f.is("type", e.Type) || !f.is("scope", e.Scope) || !f.labels("label", e.Attrs) {
		return false
	}
	if f.has("event") && !slices.ContainsFunc(f["event"], func(v string) bool {
		// "health_status" and the exec actions stand for all their results.
		return v == e.Action || slices.Contains([]string{"health_status", "exec_create", "exec_start"}, v) && strings.HasPrefix(e.Action, v)
	}) {
		return false
	}
	for _, kind := range []string{"config", "container", "daemon", "network", "node", "plugin", "secret", "service", "volume"} {
		if f.has(kind) && (e.Type != kind || !f.prefix(kind, e.ID, e.Attrs["name"])) {
			return false
		}
	}
	if f.has("image") {
		name := e.Attrs["image"]
		if e.Type == "image" {
			name = e.Attrs["name"]
		}
		return f.is("image", e.ID, name, bareName(e.ID), bareName(name))
	}
	return true
}

// familiarName is an image's name as people write it, with its tag.
func familiarName(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(named)
}

// bareName is an image's name without its tag.
func bareName(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarName(named)
}
