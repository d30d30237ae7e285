package docker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	apibuild "github.com/moby/moby/api/types/build"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"

	"github.com/sampan-cloud/sampan/internal/build"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// Builder builds images: (*build.Service).
type Builder interface {
	// Forward hands a request on to the program that builds, and its answer back.
	Forward(w http.ResponseWriter, r *http.Request) error
	Usage(ctx context.Context) ([]build.Record, error)
	Prune(ctx context.Context, r build.PruneRequest) (build.PruneReport, error)
}

// buildAPI serves the building of images.
type buildAPI struct {
	builder Builder
	events  Events
}

func (a *buildAPI) routes() []route {
	return []route{
		{method: "POST", pattern: "/build", serve: a.build},
		{method: "POST", pattern: "/build/cancel", serve: a.cancel},
		{method: "POST", pattern: "/build/prune", serve: a.prune, since: 1031},
		{method: "POST", pattern: "/session", serve: a.session},
		{method: "POST", pattern: "/grpc", serve: a.forward},
	}
}

// forward is for BuildKit's own protocols, which are none of the API's business.
func (a *buildAPI) forward(w *response, r *request) error {
	switch proto := r.Header.Get("Upgrade"); {
	case proto == "":
		return fault.New(fault.InvalidArgument, "no upgrade proto in request: it must be h2c")
	case !strings.EqualFold(proto, "h2c"):
		return fault.New(fault.InvalidArgument, "protocol %s not supported: it must be h2c", proto)
	}
	return a.builder.Forward(w, r.Request)
}

// session is forward for a client's own side of a build.
func (a *buildAPI) session(w *response, r *request) error {
	if strings.EqualFold(r.Header.Get("Upgrade"), "h2c") && r.Header.Get("X-Docker-Expose-Session-Uuid") == "" {
		return fault.New(fault.InvalidArgument, "the request names no session: the header X-Docker-Expose-Session-Uuid is missing")
	}
	return a.forward(w, r)
}

func (a *buildAPI) build(w *response, r *request) error {
	req, err := buildRequest(r)
	if err != nil {
		return err
	}
	head, err := json.Marshal(req)
	if err != nil {
		return fault.New(fault.Internal, "build request: %w", err)
	}
	// Progress goes out while the context still comes in.
	_ = http.NewResponseController(w.ResponseWriter).EnableFullDuplex()
	// What is left of the context is perhaps still being read when the answer is over: no other request may follow it.
	w.Header().Set("Connection", "close")
	r.Header.Set(build.HeaderRequest, string(head))
	r.Header.Del("X-Registry-Config")
	r.Header.Del("Upgrade") // a build is no stream of its own, whatever the client asks for
	r.URL.RawQuery = ""
	return a.builder.Forward(w, r.Request)
}

func (a *buildAPI) cancel(w *response, r *request) error {
	if r.query.Get("id") == "" {
		return fault.New(fault.InvalidArgument, "build ID not provided")
	}
	return a.builder.Forward(w, r.Request)
}

// buildRequest reads the parameters of a build.
func buildRequest(r *request) (*build.Request, error) {
	q := r.query
	req := &build.Request{
		Version: q.Get("version"), ID: q.Get("buildid"), Session: q.Get("session"), Remote: q.Get("remote"), Dockerfile: q.Get("dockerfile"),
		Tags: q["t"], Target: q.Get("target"), NoCache: r.flag("nocache"), Pull: r.flag("pull"), Quiet: r.flag("q"),
		Network: q.Get("networkmode"), ExtraHosts: q["extrahosts"], Platform: q.Get("platform"), Parent: q.Get("cgroupparent"),
		CPUSetCPUs: q.Get("cpusetcpus"), CPUSetMems: q.Get("cpusetmems"),
	}
	switch apibuild.BuilderVersion(req.Version) {
	case "":
		req.Version = string(apibuild.BuilderV1)
	case apibuild.BuilderV1, apibuild.BuilderBuildKit:
	default:
		return nil, fault.New(fault.InvalidArgument, "invalid version %q", req.Version)
	}
	if r.flag("squash") {
		return nil, fault.New(fault.InvalidArgument, "squash is only supported with experimental mode")
	}
	if i := q.Get("isolation"); i != "" && i != "default" {
		return nil, fault.New(fault.InvalidArgument, "unsupported isolation: %q", i)
	}
	for name, into := range map[string]*int64{"memory": &req.Memory, "memswap": &req.MemorySwap, "cpuperiod": &req.CPUPeriod,
		"cpuquota": &req.CPUQuota, "shmsize": &req.ShmSize} {
		if err := bytesOf(r, name, into); err != nil {
			return nil, err
		}
	}
	var shares int64
	if err := bytesOf(r, "cpushares", &shares); err != nil {
		return nil, err
	}
	req.CPUShares = uint64(max(shares, 0))
	var ulimits []apicontainer.Ulimit
	for name, into := range map[string]any{"buildargs": &req.Args, "labels": &req.Labels, "cachefrom": &req.CacheFrom, "ulimits": &ulimits, "outputs": &req.Outputs} {
		text := q.Get(name)
		if text == "" {
			continue
		}
		if err := json.Unmarshal([]byte(text), into); err != nil {
			return nil, fault.New(fault.InvalidArgument, "error reading %s: %w", strings.TrimSuffix(name, "s"), err)
		}
	}
	for _, u := range ulimits {
		req.Ulimits = append(req.Ulimits, u.Name+"="+strconv.FormatInt(u.Soft, 10)+":"+strconv.FormatInt(u.Hard, 10))
	}
	if len(req.Outputs) > 0 && req.Version != string(apibuild.BuilderBuildKit) {
		return nil, fault.New(fault.InvalidArgument, "outputs are only supported with BuildKit: ask for version 2")
	}
	var err error
	req.Credentials, err = buildCredentials(r.Header.Get("X-Registry-Config"))
	return req, err
}

// buildCredentials reads what a client knows of registries.
func buildCredentials(header string) (map[string]build.Credentials, error) {
	if header == "" {
		return nil, nil
	}
	text, err := base64.URLEncoding.DecodeString(header)
	if err != nil {
		return nil, nil // as Docker: what cannot be read is as if it were not there
	}
	var all map[string]registry.AuthConfig
	if json.Unmarshal(text, &all) != nil {
		return nil, nil
	}
	out := map[string]build.Credentials{}
	for host, c := range all {
		out[host] = build.Credentials{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
	}
	return out, nil
}

// bytesOf reads a number of bytes, or another that fits no smaller type.
func bytesOf(r *request, name string, into *int64) error {
	text := r.query.Get(name)
	if text == "" {
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return fault.New(fault.InvalidArgument, "%s is in bytes and expects an integer, got %v", name, text)
	}
	*into = n
	return nil
}

// cacheFields are the properties of cache records that can be filtered by.
var cacheFields = []string{"id", "parent", "type", "description", "inuse", "shared", "private"}

func (a *buildAPI) prune(w *response, r *request) error {
	f, err := r.parseFilters(append([]string{"until", "unused-for", "label", "label!"}, cacheFields...)...)
	if err != nil {
		return err
	}
	req := build.PruneRequest{All: r.flag("all")}
	reserved := "reserved-space"
	if r.version < 1048 || r.query.Get(reserved) == "" {
		reserved = "keep-storage"
	}
	for name, into := range map[string]*int64{reserved: &req.ReservedSpace, "max-used-space": &req.MaxUsedSpace, "min-free-space": &req.MinFreeSpace} {
		if name != reserved && r.version < 1048 {
			continue
		}
		if err := bytesOf(r, name, into); err != nil {
			return err
		}
	}
	if req.KeepDuration, err = keepDuration(f); err != nil {
		return err
	}
	var terms []string
	for _, field := range cacheFields {
		values := f[field]
		switch {
		case len(values) == 0:
		case len(values) > 1:
			return fault.New(fault.InvalidArgument, "filters expect only one value")
		case field == "id":
			terms = append(terms, "id~="+values[0])
		default:
			terms = append(terms, field+"=="+values[0])
		}
	}
	if len(terms) > 0 {
		req.Filter = []string{strings.Join(terms, ",")}
	}
	report, err := a.builder.Prune(r.Context(), req)
	if err != nil {
		return err
	}
	tellReclaimed(a.events, "builder", unsigned(report.Freed))
	return writeJSON(w, http.StatusOK, apibuild.CachePruneReport{CachesDeleted: list(report.IDs), SpaceReclaimed: unsigned(report.Freed)})
}

// keepDuration reads how long ago a record must have been used last to go.
func keepDuration(f filters) (time.Duration, error) {
	until, unused := f["until"], f["unused-for"]
	switch {
	case len(until) > 0 && len(unused) > 0:
		return 0, fault.New(fault.InvalidArgument, `conflicting filters: "until" and "unused-for"`)
	case len(until) > 1 || len(unused) > 1:
		return 0, fault.New(fault.InvalidArgument, "filters expect only one value")
	case len(unused) > 0:
		f = filters{"until": unused}
	case len(until) == 0:
		return 0, nil
	}
	t, err := f.until(now())
	if err != nil {
		return 0, err
	}
	return now().Sub(t), nil
}

// cacheUsage lists what the builder keeps, for system df.
func cacheUsage(ctx context.Context, b Builder) (*apibuild.DiskUsage, error) {
	records, err := b.Usage(ctx)
	if err != nil {
		return nil, err
	}
	u := &apibuild.DiskUsage{Items: []apibuild.CacheRecord{}}
	for _, rec := range records {
		u.TotalCount++
		u.TotalSize += rec.Size
		if rec.InUse {
			u.ActiveCount++
		}
		if !rec.InUse && !rec.Shared {
			u.Reclaimable += rec.Size
		}
		u.Items = append(u.Items, apibuild.CacheRecord{ID: rec.ID, Parents: rec.Parents, Type: rec.Type, Description: rec.Description,
			InUse: rec.InUse, Shared: rec.Shared, Size: rec.Size, CreatedAt: rec.CreatedAt, LastUsedAt: rec.LastUsedAt, UsageCount: rec.UsageCount})
	}
	slices.SortFunc(u.Items, func(x, y apibuild.CacheRecord) int { return x.CreatedAt.Compare(y.CreatedAt) })
	return u, nil
}
