package docker

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Config is what the API is served from. Every backend is needed; Logger and Registry may be left out.
type Config struct {
	Containers Containers
	Images     Images
	Volumes    Volumes
	Networks   Networks
	Events     Events
	Swarm      Swarm
	Host       Host
	Builder    Builder
	// Registry asks registries about credentials and images; nil: those requests are answered with 501.
	Registry Registry
	Logger   *slog.Logger
	// Answered is told of every request that a route answered: the route's pattern, the answer's status, how long it took.
	// It may be nil.
	Answered func(method, pattern string, status int, took time.Duration)
}

// server takes requests apart, hands them to the handler of their route and turns its error into an answer.
type server struct {
	mux     *http.ServeMux
	name    string // and version, for the Server header
	logger  *slog.Logger
	builder Builder
	told    func(method, pattern string, status int, took time.Duration)
}

// handler answers one route. An error that it returns before anything was written becomes the answer.
type handler func(w *response, r *request) error

// route is one line of the API: the method, a pattern of http.ServeMux without the method, and who answers. Requests
// of API versions older than since find nothing.
type route struct {
	method, pattern string
	serve           handler
	since           apiVersion
}

// New returns the Docker Engine API over the backends of cfg.
func New(cfg Config) http.Handler {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Answered == nil {
		cfg.Answered = func(string, string, int, time.Duration) {}
	}
	s := &server{mux: http.NewServeMux(), logger: cfg.Logger, builder: cfg.Builder, told: cfg.Answered}
	s.name = "Sampan/" + cfg.Host.Info().Version + " (" + runtime.GOOS + ")"
	for _, r := range routes(cfg) {
		s.mux.HandleFunc(r.method+" "+r.pattern, s.adapt(r))
	}
	notFound := s.adapt(route{serve: func(*response, *request) error {
		return fault.New(fault.NotFound, "page not found")
	}})
	s.mux.HandleFunc("/", notFound)
	return s
}

// routes lists every route of the API, resource by resource.
func routes(cfg Config) []route {
	nets := &networkAPI{local: cfg.Networks, swarm: cfg.Swarm, containers: cfg.Containers, events: cfg.Events}
	ctrs := &containerAPI{backend: cfg.Containers, images: cfg.Images, events: cfg.Events, host: cfg.Host, logger: cfg.Logger}
	var all []route
	for _, of := range [][]route{
		ctrs.routes(),
		(&archiveAPI{backend: cfg.Containers}).routes(),
		(&streamAPI{backend: cfg.Containers, events: cfg.Events, logger: cfg.Logger}).routes(),
		(&execAPI{backend: cfg.Containers, logger: cfg.Logger}).routes(),
		(&imageAPI{backend: cfg.Images, containers: cfg.Containers, host: cfg.Host, events: cfg.Events}).routes(),
		(&volumeAPI{backend: cfg.Volumes, events: cfg.Events}).routes(),
		nets.routes(),
		(&systemAPI{Config: cfg}).routes(),
		(&eventAPI{bus: cfg.Events, swarm: cfg.Swarm}).routes(),
		(&swarmAPI{swarm: cfg.Swarm}).routes(),
		(&nodeAPI{swarm: cfg.Swarm}).routes(),
		(&serviceAPI{swarm: cfg.Swarm}).routes(),
		(&taskAPI{swarm: cfg.Swarm}).routes(),
		secretRoutes(cfg.Swarm),
		(&buildAPI{builder: cfg.Builder, events: cfg.Events}).routes(),
		(&distributionAPI{registry: cfg.Registry, host: cfg.Host}).routes(),
		unserved(),
	} {
		all = append(all, of...)
	}
	return all
}

// named serves NAME/VERB by its verb: names have slashes, which a pattern cannot have before a fixed end.
func named(verbs map[string]handler) handler {
	return func(w *response, r *request) error {
		name, verb := path.Split(r.PathValue("name"))
		serve, ok := verbs[verb]
		name = strings.TrimSuffix(name, "/")
		if !ok || name == "" {
			return fault.New(fault.NotFound, "page not found")
		}
		r.SetPathValue("name", name)
		return serve(w, r)
	}
}

// ServeHTTP reads the API version off the path and serves the rest of it.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", s.name)
	w.Header().Set("Api-Version", maxVersion.String())
	w.Header().Set("Ostype", runtime.GOOS)

	res := &response{ResponseWriter: w}
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		// BuildKit's protocol, spoken to the API itself; older clients ask for a tunnel at /grpc.
		if err := s.builder.Forward(w, r); err != nil {
			s.fail(res, r, maxVersion, err)
		}
		return
	}
	version, rest, err := splitVersion(r.URL.EscapedPath())
	if err != nil {
		s.fail(res, r, version, err)
		return
	}
	// Clients send such things as /containers//name/json; a redirect would lose the body and the version.
	rest = path.Clean(rest)
	decoded, err := url.PathUnescape(rest)
	if err != nil {
		s.fail(res, r, version, fault.New(fault.InvalidArgument, "malformed path %q: %w", rest, err))
		return
	}
	inner := r.Clone(context.WithValue(r.Context(), versionKey{}, version))
	inner.URL.Path, inner.URL.RawPath = decoded, rest
	s.mux.ServeHTTP(res, inner)
}

type versionKey struct{}

// adapt wraps a route's handler in what every request gets: a log line, parsed parameters, recovery from panics, and
// errors turned into answers.
func (s *server) adapt(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, hr *http.Request) {
		res, ok := w.(*response)
		if !ok {
			res = &response{ResponseWriter: w}
		}
		version, _ := hr.Context().Value(versionKey{}).(apiVersion)
		start := time.Now()
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // a panic value, compared as net/http does
					panic(p)
				}
				s.logger.Error("a request made its handler panic", "method", hr.Method, "path", hr.URL.Path, "panic", p,
					"stack", string(debug.Stack()))
				s.fail(res, hr, version, fault.New(fault.Internal, "internal error; the daemon's log says more"))
			}
			took := time.Since(start)
			s.logger.Debug("request", "method", hr.Method, "path", hr.URL.Path, "version", version, "status", res.status, "took", took)
			if rt.pattern != "" {
				s.told(rt.method, rt.pattern, cmp.Or(res.status, http.StatusOK), took)
			}
		}()
		query, err := url.ParseQuery(hr.URL.RawQuery)
		if err != nil {
			s.fail(res, hr, version, fault.New(fault.InvalidArgument, "malformed query: %w", err))
			return
		}
		for name, values := range query {
			if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, "\x00") }) {
				s.fail(res, hr, version, fault.New(fault.InvalidArgument, "malformed query: there is a zero byte in %q", name))
				return
			}
		}
		if rt.since > version {
			s.fail(res, hr, version, fault.New(fault.NotFound, "page not found: API version %s or newer has it", rt.since))
			return
		}
		if err := rt.serve(res, &request{Request: hr, version: version, query: query}); err != nil {
			s.fail(res, hr, version, err)
		}
	}
}

// fail answers with err, unless the answer has begun or nobody waits for it any more.
func (s *server) fail(w *response, r *http.Request, version apiVersion, err error) {
	if errors.Is(r.Context().Err(), context.Canceled) {
		s.logger.Debug("the client went away", "method", r.Method, "path", r.URL.Path, "err", err)
		return
	}
	status := statusOf(err)
	if status >= http.StatusInternalServerError && status != http.StatusNotImplemented && status != http.StatusServiceUnavailable {
		s.logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "status", status, "err", err)
	}
	if w.hijacked || w.status != 0 {
		s.logger.Debug("request failed after its answer had begun", "method", r.Method, "path", r.URL.Path, "err", err)
		return
	}
	writeError(w, version, status, err)
}

// splitVersion cuts /v1.NN off path. Without it, the newest version is meant. On an error the version is the one asked
// for, as far as it could be read.
func splitVersion(p string) (apiVersion, string, error) {
	first, rest, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	if len(first) < 2 || first[0] != 'v' || first[1] < '0' || first[1] > '9' {
		return maxVersion, "/" + strings.TrimPrefix(p, "/"), nil
	}
	v, err := parseVersion(first[1:])
	if err != nil {
		return maxVersion, "", err
	}
	switch {
	case v < minVersion:
		return v, "", fault.New(fault.InvalidArgument,
			"client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, minVersion)
	case v > maxVersion:
		return v, "", fault.New(fault.InvalidArgument,
			"client version %s is too new. Maximum supported API version is %s", v, maxVersion)
	}
	return v, "/" + rest, nil
}

// response knows whether an answer has begun.
type response struct {
	http.ResponseWriter
	status   int // 0: nothing was written
	hijacked bool
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Flush sends what was written so far.
func (w *response) Flush() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Hijack takes the connection over; the server leaves it alone from then on.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, fault.New(fault.Internal, "take over the connection: %w", err)
	}
	w.hijacked = true
	return conn, rw, nil
}

// flushed returns a writer that sends every piece at once.
func (w *response) flushed() *flushWriter { return &flushWriter{w} }

type flushWriter struct{ w *response }

func (f *flushWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	f.w.Flush()
	return n, err
}
