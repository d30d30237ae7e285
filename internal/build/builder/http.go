package builder

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/tracing"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/sampan-cloud/sampan/internal/build"
)

// newControlServer is the gRPC server of clients: buildx speaks BuildKit's own protocol over it.
func newControlServer(traces *sdktrace.TracerProvider) *grpc.Server {
	return grpc.NewServer(
		grpc.StatsHandler(tracing.ServerStatsHandler(otelgrpc.WithTracerProvider(traces))),
		grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor),
		grpc.ChainStreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
}

// ServeHTTP answers what the daemon hands on of its clients' requests, and the daemon's own.
func (b *Builder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var err error
	if r.ProtoMajor == 2 {
		b.grpc.ServeHTTP(w, r)
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /session":
		// It lasts as long as the connection, not as long as the request's context, which ends with the hijacking.
		err = b.sessions.HandleHTTPRequest(context.WithoutCancel(r.Context()), w, r)
	case "POST /grpc":
		err = b.serveGRPC(w, r)
	case "POST /build":
		err = b.serveBuild(w, r)
	case "POST /build/cancel":
		b.jobs.cancel(r.URL.Query().Get("id"))
	case "POST /usage":
		err = b.serveUsage(w, r)
	case "POST /prune":
		err = b.servePrune(w, r)
	default:
		http.NotFound(w, r)
	}
	if err != nil {
		b.log.Debug("request failed", "path", r.URL.Path, "error", err)
		http.Error(w, err.Error(), http.StatusInternalServerError) // without effect once the connection was taken over
	}
}

// serveGRPC lets a client speak gRPC on the connection of its request.
func (b *Builder) serveGRPC(w http.ResponseWriter, r *http.Request) error {
	if r.Header.Get("Upgrade") != "h2c" {
		return errors.New("the request does not ask for an upgrade to h2c")
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); err != nil {
		return nil
	}
	(&http2.Server{}).ServeConn(conn, &http2.ServeConnOpts{Context: context.WithoutCancel(r.Context()), Handler: b.grpc})
	return nil
}

func (b *Builder) serveUsage(w http.ResponseWriter, r *http.Request) error {
	usage, err := b.controller.DiskUsage(r.Context(), &controlapi.DiskUsageRequest{})
	if err != nil {
		return err
	}
	out := []build.Record{}
	for _, u := range usage.Record {
		rec := build.Record{ID: u.ID, Parents: u.Parents, Type: u.RecordType, Description: u.Description, InUse: u.InUse, Shared: u.Shared,
			Size: u.Size, CreatedAt: u.CreatedAt.AsTime(), UsageCount: int(u.UsageCount)}
		if u.LastUsedAt != nil {
			t := u.LastUsedAt.AsTime()
			rec.LastUsedAt = &t
		}
		out = append(out, rec)
	}
	return json.NewEncoder(w).Encode(out)
}

func (b *Builder) servePrune(w http.ResponseWriter, r *http.Request) error {
	var req build.PruneRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return err
	}
	gone := &pruned{stream: stream{ctx: r.Context()}}
	err := b.controller.Prune(&controlapi.PruneRequest{All: req.All, KeepDuration: int64(req.KeepDuration), ReservedSpace: req.ReservedSpace,
		MaxUsedSpace: req.MaxUsedSpace, MinFreeSpace: req.MinFreeSpace, Filter: req.Filter}, gone)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(gone.report)
}

// stream is a gRPC stream to nobody: for calling the controller in this program.
type stream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context is the caller's.
func (s stream) Context() context.Context { return s.ctx }

// SetHeader has nobody to set it for.
func (stream) SetHeader(metadata.MD) error { return nil }

// SendHeader has nobody to send it to.
func (stream) SendHeader(metadata.MD) error { return nil }

// SetTrailer has nobody to set it for.
func (stream) SetTrailer(metadata.MD) {}

// pruned collects what a prune removes.
type pruned struct {
	stream
	report build.PruneReport
}

// Send takes what was removed.
func (p *pruned) Send(u *controlapi.UsageRecord) error {
	p.report.IDs = append(p.report.IDs, u.ID)
	p.report.Freed += u.Size
	return nil
}

// SendMsg is Send for those that have the message at hand as any other.
func (p *pruned) SendMsg(m any) error {
	if u, ok := m.(*controlapi.UsageRecord); ok {
		return p.Send(u)
	}
	return nil
}
