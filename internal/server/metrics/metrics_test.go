package metrics_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/server/metrics"
)

type three struct{}

func (three) List() []container.Container {
	return []container.Container{{State: container.State{Running: true}}, {State: container.State{Running: true, Paused: true}}, {}, {}}
}
func (three) HealthChecks() (all, failed uint64) { return 7, 2 }

func TestWhatPrometheusReads(t *testing.T) {
	m := metrics.New(metrics.Host{ID: "id", Version: "1.2.3", CPUs: 4, Memory: 1 << 30}, three{})
	show := func() string {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Code != http.StatusOK || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
			t.Fatalf("%d %s", w.Code, w.Header().Get("Content-Type"))
		}
		return w.Body.String()
	}
	m.Request("POST", "/containers/{id}/start", 204, 50*time.Millisecond)
	m.Request("POST", "/containers/{id}/start", 404, time.Millisecond)
	m.Request("POST", "/networks/create", 201, time.Millisecond)
	bus := &events.Bus{}
	bus.Publish(events.Event{Type: "image", Action: "pull"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { m.Run(ctx, bus); close(done) }()
	for !strings.Contains(show(), "engine_daemon_events_total 1\n") {
		runtime.Gosched()
	}
	cancel()
	<-done
	text := show()
	for _, want := range []string{
		`engine_daemon_container_actions_seconds_count{action="start"} 1`,
		`engine_daemon_container_actions_seconds_count{action="create"} 0`,
		`engine_daemon_network_actions_seconds_count{action="allocate"} 1`,
		`sampan_api_request_seconds_count{code="404",method="POST",path="/containers/{id}/start"} 1`,
		`engine_daemon_container_states_containers{state="running"} 1`,
		`engine_daemon_container_states_containers{state="paused"} 1`,
		`engine_daemon_container_states_containers{state="stopped"} 2`,
		`engine_daemon_health_checks_total 7`, `engine_daemon_health_checks_failed_total 2`,
		`engine_daemon_engine_cpus_cpus 4`, `engine_daemon_engine_memory_bytes 1.073741824e+09`,
		`version="1.2.3"`, `go_goroutines `, `process_resident_memory_bytes `,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("not there: %s", want)
		}
	}
}
