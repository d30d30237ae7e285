// Package metrics counts what the daemon does and shows it in Prometheus' text form. The engine's own metrics have
// dockerd's names, so that what was drawn of a dockerd goes on being drawn; those of the API begin with sampan_.
package metrics

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
)

// Containers says how many there are in which state, and how often their health was looked at.
type Containers interface {
	List() []container.Container
	HealthChecks() (all, failed uint64)
}

// Events are counted as they come.
type Events interface {
	Subscribe(ctx context.Context, since time.Time) ([]events.Event, <-chan events.Event)
}

// Host is what does not change while the daemon runs. Memory is in bytes.
type Host struct {
	ID, Version, Commit, Architecture, Kernel, OS, Driver string
	CPUs                                                  int
	Memory                                                int64
}

// Metrics is all that is counted. Its methods may be called from any goroutine.
type Metrics struct {
	registry         *prometheus.Registry
	containerActions *prometheus.HistogramVec
	networkActions   *prometheus.HistogramVec
	requests         *prometheus.HistogramVec
	events           prometheus.Counter
}

// New returns metrics that show host and the containers as they are when somebody looks.
func New(host Host, containers Containers) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	engine := func(name string) string { return prometheus.BuildFQName("engine", "daemon", name) }
	actions := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: engine(name), Help: help}, []string{"action"})
	}
	gauge := func(name, help string, value float64) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: engine(name), Help: help})
		g.Set(value)
		return g
	}
	m.containerActions = actions("container_actions_seconds", "The number of seconds it takes to process each container action")
	m.networkActions = actions("network_actions_seconds", "The number of seconds it takes to process each network action")
	m.requests = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "sampan_api_request_seconds",
		Help: "The number of seconds until a request to the API was answered; those that follow something last as long as that"},
		[]string{"method", "path", "code"})
	m.events = prometheus.NewCounter(prometheus.CounterOpts{Name: engine("events_total"), Help: "The number of events logged"})
	checks := prometheus.NewCounterFunc(prometheus.CounterOpts{Name: engine("health_checks_total"), Help: "The total number of health checks"},
		func() float64 { all, _ := containers.HealthChecks(); return float64(all) })
	failed := prometheus.NewCounterFunc(prometheus.CounterOpts{Name: engine("health_checks_failed_total"), Help: "The total number of failed health checks"},
		func() float64 { _, failed := containers.HealthChecks(); return float64(failed) })
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: engine("engine_info"), Help: "The information related to the engine and the OS it is running on"},
		[]string{"version", "commit", "architecture", "graphdriver", "kernel", "os", "os_type", "os_version", "daemon_id"})
	info.WithLabelValues(host.Version, host.Commit, host.Architecture, host.Driver, host.Kernel, host.OS, "linux", "", host.ID).Set(1)
	for _, action := range containerActions {
		m.containerActions.WithLabelValues(action)
	}
	m.registry.MustRegister(m.containerActions, m.networkActions, m.requests, m.events, checks, failed, info,
		gauge("engine_cpus_cpus", "The number of cpus that the host system of the engine has", float64(host.CPUs)),
		gauge("engine_memory_bytes", "The number of bytes of memory that the host system of the engine has", float64(host.Memory)),
		states{containers, prometheus.NewDesc(engine("container_states_containers"), "The count of containers in various states", []string{"state"}, nil)},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// ServeHTTP shows the metrics.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry}).ServeHTTP(w, r)
}

// containerActions are what dockerd counts, by the requests that ask for them.
var containerActions = map[string]string{
	"POST /containers/create":      "create",
	"POST /containers/{id}/start":  "start",
	"DELETE /containers/{id}":      "delete",
	"GET /containers/{id}/changes": "changes",
	"POST /commit":                 "commit",
}

var networkActions = map[string]string{
	"POST /networks/create":          "allocate",
	"DELETE /networks/{id}":          "release",
	"POST /networks/{id}/connect":    "connect",
	"POST /networks/{id}/disconnect": "disconnect",
}

// Request counts an answered request: its method, the route's pattern, the answer's status, and how long it took.
func (m *Metrics) Request(method, pattern string, status int, took time.Duration) {
	m.requests.WithLabelValues(method, pattern, strconv.Itoa(status)).Observe(took.Seconds())
	if status >= http.StatusBadRequest {
		return
	}
	if action, ok := containerActions[method+" "+pattern]; ok {
		m.containerActions.WithLabelValues(action).Observe(took.Seconds())
	}
	if action, ok := networkActions[method+" "+pattern]; ok {
		m.networkActions.WithLabelValues(action).Observe(took.Seconds())
	}
}

// Run counts events, those that bus remembers too, until ctx ends.
func (m *Metrics) Run(ctx context.Context, bus Events) {
	past, next := bus.Subscribe(ctx, time.Unix(0, 0))
	m.events.Add(float64(len(past)))
	for range next {
		m.events.Inc()
	}
}

// states counts containers by state at the time of asking.
type states struct {
	containers Containers
	desc       *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (s states) Describe(c chan<- *prometheus.Desc) { c <- s.desc }

// Collect implements prometheus.Collector.
func (s states) Collect(c chan<- prometheus.Metric) {
	n := map[string]float64{"running": 0, "paused": 0, "stopped": 0}
	for _, one := range s.containers.List() {
		switch {
		case one.State.Paused:
			n["paused"]++
		case one.State.Running:
			n["running"]++
		default:
			n["stopped"]++
		}
	}
	for state, count := range n {
		c <- prometheus.MustNewConstMetric(s.desc, prometheus.GaugeValue, count, state)
	}
}
