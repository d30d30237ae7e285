package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/sampan-cloud/sampan/internal/server/docker"
	"github.com/sampan-cloud/sampan/internal/server/metrics"
)

// Run serves the API until ctx ends, then ends everything but the containers.
func (n *Node) Run(ctx context.Context) error {
	h := n.host.Info()
	counted := metrics.New(metrics.Host{ID: h.ID, Version: h.Version, Commit: h.GitCommit, Architecture: h.Architecture, Kernel: h.KernelVersion,
		OS: h.OperatingSystem, Driver: h.Driver, CPUs: h.NCPU, Memory: h.MemTotal}, n.containers)
	go counted.Run(ctx, n.bus)
	api := docker.New(docker.Config{Containers: n.containers, Images: n.images, Volumes: n.volumes, Networks: n.networks,
		Events: n.bus, Swarm: n.cluster, Host: n.host, Builder: n.builds, Registry: n.images, Logger: n.log, Answered: counted.Request})
	server := n.serverOf(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" && r.Method == http.MethodGet {
			counted.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	}))
	alone := http.NewServeMux()
	alone.Handle("GET /metrics", counted)
	metricsServer := n.serverOf(alone)
	failed := make(chan error, len(n.listeners)+1)
	for _, l := range n.listeners {
		go func() { failed <- server.Serve(l) }()
	}
	if n.metricsListener != nil {
		go func() { failed <- metricsServer.Serve(n.metricsListener) }()
	}
	var err error
	select {
	case <-ctx.Done():
		n.log.Info("sampand ends; containers go on")
	case err = <-failed:
	}
	_ = metricsServer.Close()
	deadline, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if server.Shutdown(deadline) != nil {
		_ = server.Close() // follows, attaches and event streams end with the daemon
	}
	return errors.Join(err, n.close())
}

func (n *Node) serverOf(h http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // builds, by clients that speak gRPC without a tunnel
	return &http.Server{Handler: h, Protocols: protocols, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug)}
}

// listenMetrics opens the listener that serves metrics alone, if there is to be one.
func (n *Node) listenMetrics() (err error) {
	if n.cfg.MetricsAddr == "" {
		return nil
	}
	n.metricsListener, err = net.Listen("tcp", n.cfg.MetricsAddr)
	return err
}
