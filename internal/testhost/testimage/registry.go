package testimage

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Faults say how a registry misbehaves. They may be changed at any time with Server.Set. It has a field for each, which
// is why it is long.
type Faults struct {
	// Bearer makes it ask for a token of its own token service, which gives one to anybody, or, with User set, to User
	// with Password only.
	Bearer bool
	// Basic makes it ask for User and Password directly.
	Basic          bool
	User, Password string
	// Redirect sends requests for blobs to another port, where a request that carries credentials fails.
	Redirect bool
	// Cut breaks the connection in the middle of every answer with at least CutFrom bytes of a blob, so many times per
	// blob.
	Cut     int
	CutFrom int64
	// NoRange makes it ignore Range headers, as simple registries do.
	NoRange bool
	// RefuseRange makes it answer requests for the rest of a blob with 416, as others do.
	RefuseRange bool
	// Corrupt flips a bit in every blob of at least CorruptFrom bytes, so many times per blob.
	Corrupt     int
	CorruptFrom int64
	// Hold, if not nil, makes requests for blobs of at least HoldFrom bytes send half and then wait until it is closed.
	Hold     <-chan struct{}
	HoldFrom int64
	// Fail answers every request with this status; with FailFirst, so many times for each method and path only. RetryAfter
	// is the header that goes with it.
	Fail       int
	FailFirst  int
	RetryAfter string
	// CutUploads breaks the connection in the middle of the first so many uploads of at least CutFrom bytes.
	CutUploads int
}

// Request is a request that a registry got.
type Request struct {
	Method, Path, Range string
	Authorization       string
	Redirected          bool // it came to the port that blobs are redirected to
}

// Server is a registry in this process, on a loopback address.
type Server struct {
	// Host is HOST:PORT, the first part of image names: Host + "/name:tag".
	Host string

	front, blobs *httptest.Server
	mu           sync.Mutex
	faults       Faults
	seen         []Request
	hurt         map[string]int // blob → times it was cut or corrupted
	token        string
}

// Registry starts a registry on 127.0.0.1 with plain HTTP and ends it with ctx.
func Registry(ctx context.Context) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return RegistryOn(ctx, l)
}

// RegistryOn is Registry on a listener, of a test host's network namespace for instance.
func RegistryOn(ctx context.Context, l net.Listener) (*Server, error) {
	s := &Server{hurt: map[string]int{}, token: rand.Text(), Host: l.Addr().String()}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s.front = &httptest.Server{Listener: l, Config: &http.Server{Handler: s.handle(handler, false)}}
	s.front.Start()
	second, err := net.Listen("tcp", net.JoinHostPort(hostOf(s.Host), "0"))
	if err != nil {
		s.front.Close()
		return nil, err
	}
	s.blobs = &httptest.Server{Listener: second, Config: &http.Server{Handler: s.handle(handler, true)}}
	s.blobs.Start()
	context.AfterFunc(ctx, s.Close)
	return s, nil
}

func hostOf(hostport string) string {
	h, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return hostport
	}
	return h
}

// Close ends the registry at once, open connections included.
func (s *Server) Close() {
	for _, x := range []*httptest.Server{s.front, s.blobs} {
		x.CloseClientConnections()
		x.Close()
	}
}

// Set makes the registry misbehave as f says from now on, and forgets how often it did so before.
func (s *Server) Set(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
	clear(s.hurt)
}

// Requests returns the requests since the last Forget, in order of arrival.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// Forget empties the list of requests.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = nil
}

var blobPath = regexp.MustCompile(`^/v2/.+/blobs/(sha256:[0-9a-f]{64})$`)

func (s *Server) handle(next http.Handler, redirected bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth := r.Header.Get("Authorization")
		s.mu.Lock()
		s.seen = append(s.seen, Request{r.Method, r.URL.Path, r.Header.Get("Range"), auth, redirected})
		f := s.faults
		s.mu.Unlock()
		if r.URL.Path == "/token" {
			s.giveToken(w, r, f)
			return
		}
		if redirected {
			// Signed addresses of object stores refuse requests that bring credentials as well.
			if auth != "" {
				http.Error(w, "only one auth mechanism allowed", http.StatusBadRequest)
				return
			}
		} else if !s.allowed(w, r, f, auth) {
			return
		}
		if f.Fail != 0 && (f.FailFirst == 0 || s.times(r.Method+r.URL.Path) < f.FailFirst) {
			if f.RetryAfter != "" {
				w.Header().Set("Retry-After", f.RetryAfter)
			}
			http.Error(w, http.StatusText(f.Fail), f.Fail)
			return
		}
		if f.CutUploads > 0 && (r.Method == http.MethodPut || r.Method == http.MethodPatch) && strings.Contains(r.URL.Path, "/blobs/uploads/") &&
			r.ContentLength >= f.CutFrom && s.times("uploads") < f.CutUploads {
			_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			panic(http.ErrAbortHandler)
		}
		m := blobPath.FindStringSubmatch(r.URL.Path)
		if m == nil || r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		if f.Redirect && !redirected {
			http.Redirect(w, r, "http://"+s.blobs.Listener.Addr().String()+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		s.serveBlob(w, r, next, f, m[1])
	})
}

// times counts how often what was hurt before, this time left out.
func (s *Server) times(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.hurt[what]
	s.hurt[what]++
	return n
}

func (s *Server) giveToken(w http.ResponseWriter, r *http.Request, f Faults) {
	if f.User != "" {
		user, password, _ := r.BasicAuth()
		if user == "" && r.Method == http.MethodPost {
			user, password = r.FormValue("username"), r.FormValue("password")
		}
		if user != f.User || password != f.Password {
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}`, http.StatusUnauthorized)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token":%q,"access_token":%q,"expires_in":300}`, s.token, s.token)
}

func (s *Server) allowed(w http.ResponseWriter, r *http.Request, f Faults, auth string) bool {
	switch {
	case f.Bearer && auth != "Bearer "+s.token:
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service=%q,scope="repository:%s:pull,push"`, s.Host, s.Host, repository(r.URL.Path)))
	case f.Basic:
		user, password, _ := r.BasicAuth()
		if user == f.User && password == f.Password {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
	default:
		return true
	}
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	return false
}

func repository(path string) string {
	path = strings.TrimPrefix(path, "/v2/")
	for _, part := range []string{"/manifests/", "/blobs/", "/tags/"} {
		if i := strings.LastIndex(path, part); i >= 0 {
			return path[:i]
		}
	}
	return path
}

// serveBlob serves a blob as the registry has it, with Range, and with the faults asked for.
func (s *Server) serveBlob(w http.ResponseWriter, r *http.Request, next http.Handler, f Faults, blob string) {
	plain := r.Clone(r.Context())
	plain.Header.Del("Range")
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, plain)
	body := rec.Body.Bytes()
	if rec.Code != http.StatusOK {
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
		return
	}
	size := int64(len(body))
	s.mu.Lock()
	n := s.hurt[blob]
	s.hurt[blob]++
	s.mu.Unlock()
	if n < f.Corrupt && size >= f.CorruptFrom {
		body = slices.Clone(body)
		body[size/2] ^= 1
	}
	status, from := http.StatusOK, int64(0)
	if v, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && !f.NoRange {
		first, _, _ := strings.Cut(v, "-")
		if f.RefuseRange && first != "0" {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		if from, _ = strconv.ParseInt(first, 10, 64); from >= size {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
	}
	rest := body[from:]
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(rest)))
	w.WriteHeader(status)
	half := rest[:(len(rest)+1)/2]
	switch {
	case f.Hold != nil && size >= f.HoldFrom:
		_, _ = w.Write(half)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-f.Hold:
		case <-r.Context().Done():
			return
		}
		_, _ = w.Write(rest[len(half):])
	case n < f.Cut && size >= f.CutFrom:
		_, _ = w.Write(half)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // the connection breaks here
	default:
		_, _ = w.Write(rest)
	}
}

// Wait returns when a request for which ok is true has arrived, or the error of ctx.
func (s *Server) Wait(ctx context.Context, ok func(Request) bool) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if slices.ContainsFunc(s.Requests(), ok) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
