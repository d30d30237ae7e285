package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/entitlements"
	"golang.org/x/sync/errgroup"

	"github.com/sampan-cloud/sampan/internal/build"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// serveBuild carries out a request of /build. Its answer is a stream of messages; what is wrong with the request itself
// is an error before the first.
func (b *Builder) serveBuild(w http.ResponseWriter, r *http.Request) error {
	var req build.Request
	if err := json.Unmarshal([]byte(r.Header.Get(build.HeaderRequest)), &req); err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	ctx, end := b.jobs.begin(r.Context(), req.ID)
	defer end()
	var file *passing
	body := r.Body
	var leaveOut []string
	if req.Version != "2" && req.Remote == "" {
		body, leaveOut = lookAhead(body, req.Dockerfile)
		file = watchFor(body, req.Dockerfile)
		defer file.Close()
		body = file
	}
	url, drop := b.contexts.put(body)
	defer drop()
	solve, err := solveRequest(&req, url, b.gateway)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil
	}
	if len(leaveOut) > 0 {
		if solve.FrontendInputs, err = withoutIgnored(ctx, url, leaveOut); err != nil {
			return err
		}
		delete(solve.FrontendAttrs, "context")
	}
	if req.Version != "2" && len(req.Credentials) > 0 {
		id, end, err := b.withCredentials(ctx, req.Credentials)
		if err != nil {
			return err
		}
		defer end()
		solve.Session = id
	}
	// Answers go out while the context still comes in.
	_ = http.NewResponseController(w).EnableFullDuplex()
	out := newMessages(w)
	var show shower = &trace{out}
	if req.Version != "2" {
		show = newClassic(out, &req, file)
	}
	id, err := b.solve(ctx, solve, show)
	if err == nil {
		err = show.done(id)
	}
	if err != nil {
		show.failure(err)
	}
	return nil
}

// shower shows a client how its build goes.
type shower interface {
	status(*controlapi.StatusResponse) error
	done(imageID string) error
	failure(error)
}

// solve runs a build and returns the ID of the image it made, if it made one.
func (b *Builder) solve(ctx context.Context, req *controlapi.SolveRequest, show shower) (imageID string, err error) {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		res, err := b.controller.Solve(gctx, req)
		if err != nil {
			return err
		}
		imageID = res.ExporterResponse[exptypes.ExporterImageDigestKey] //nolint:staticcheck // the response of the one exporter there is
		return nil
	})
	g.Go(func() error {
		// What happened until the end is shown also when it ends because the client cancelled it.
		return b.controller.Status(&controlapi.StatusRequest{Ref: req.Ref}, &statuses{stream: stream{ctx: context.WithoutCancel(ctx)}, show: show})
	})
	err = g.Wait()
	return imageID, err
}

// statuses hands what the controller tells of a build to a shower.
type statuses struct {
	stream
	show shower
}

// Send shows a status. A client that has gone is no reason to stop listening: the build is being cancelled then.
func (s *statuses) Send(r *controlapi.StatusResponse) error {
	_ = s.show.status(r)
	return nil
}

// SendMsg is Send for those that have the message at hand as any other.
func (s *statuses) SendMsg(m any) error {
	if r, ok := m.(*controlapi.StatusResponse); ok {
		return s.Send(r)
	}
	return nil
}

// solveRequest puts a request into BuildKit's words; contextURL is where the context is, if the request brought it along;
// gateway is what host-gateway stands for.
func solveRequest(r *build.Request, contextURL, gateway string) (*controlapi.SolveRequest, error) {
	attrs := map[string]string{"image-resolve-mode": pb.AttrImageResolveModePreferLocal}
	set := func(key, value string) {
		if value != "" {
			attrs[key] = value
		}
	}
	switch r.Remote {
	case "":
		attrs["context"] = contextURL
	case "client-session":
	default:
		attrs["context"] = r.Remote
	}
	if r.Dockerfile != "." {
		set("filename", r.Dockerfile)
	}
	set("target", r.Target)
	set("cache-from", strings.Join(r.CacheFrom, ","))
	for k, v := range r.Args {
		if v != nil {
			attrs["build-arg:"+k] = *v
		}
	}
	for k, v := range r.Labels {
		attrs["label:"+k] = v
	}
	if r.NoCache {
		attrs["no-cache"] = ""
	}
	if r.Pull {
		attrs["image-resolve-mode"] = pb.AttrImageResolveModeForcePull
	}
	if r.Platform != "" {
		if _, err := platforms.Parse(r.Platform); err != nil {
			return nil, fault.New(fault.InvalidArgument, "invalid platform %q: %w", r.Platform, err)
		}
		attrs["platform"] = r.Platform
	}
	req := &controlapi.SolveRequest{Ref: identity.NewID(), Frontend: "dockerfile.v0", FrontendAttrs: attrs, Session: r.Session, Cache: &controlapi.CacheOptions{}}
	switch r.Network {
	case "", "default", "bridge":
	case "host":
		req.Entitlements = append(req.Entitlements, string(entitlements.EntitlementNetworkHost))
		fallthrough
	case "none":
		attrs["force-network-mode"] = r.Network
	default:
		return nil, fault.New(fault.InvalidArgument, "network mode %q not supported by buildkit: steps of a build are on the default bridge, or on host or none", r.Network)
	}
	hosts, err := extraHosts(r.ExtraHosts, gateway)
	if err != nil {
		return nil, err
	}
	set("add-hosts", hosts)
	if r.ShmSize > 0 {
		attrs["shm-size"] = strconv.FormatInt(r.ShmSize, 10)
	}
	set("ulimit", strings.Join(r.Ulimits, ","))
	set("cgroup-parent", r.Parent)
	set("cpusetcpus", r.CPUSetCPUs)
	set("cpusetmems", r.CPUSetMems)
	for key, n := range map[string]int64{"memory": r.Memory, "memswap": r.MemorySwap, "cpushares": int64(r.CPUShares), "cpuperiod": r.CPUPeriod, "cpuquota": r.CPUQuota} {
		if n != 0 {
			attrs[key] = strconv.FormatInt(n, 10)
		}
	}
	if err := exporterOf(r, req); err != nil {
		return nil, err
	}
	if v := r.Args["BUILDKIT_INLINE_CACHE"]; v != nil {
		if on, err := strconv.ParseBool(*v); err == nil && on {
			req.Cache.Exports = append(req.Cache.Exports, &controlapi.CacheOptionsEntry{Type: "inline"})
		}
	}
	return req, nil
}

// extraHosts puts NAME:ADDRESS, Docker's form, into BuildKit's.
func extraHosts(list []string, gateway string) (string, error) {
	var out []string
	for _, h := range list {
		name, address, ok := strings.Cut(h, ":")
		if !ok || name == "" || address == "" {
			return "", fault.New(fault.InvalidArgument, "invalid host %s: want NAME:ADDRESS", h)
		}
		if address == "host-gateway" {
			if address = gateway; gateway == "" {
				return "", fault.New(fault.InvalidArgument, "unable to derive the IP value for host-gateway")
			}
		}
		out = append(out, name+"="+address)
	}
	return strings.Join(out, ","), nil
}

// exporterOf chooses where the result goes.
func exporterOf(r *build.Request, req *controlapi.SolveRequest) error {
	out := &controlapi.Exporter{Type: exporterMoby, Attrs: map[string]string{}}
	switch len(r.Outputs) {
	case 0:
	case 1:
		if r.Outputs[0].Type == "cacheonly" {
			return nil
		}
		out.Type, out.Attrs = r.Outputs[0].Type, maps.Clone(r.Outputs[0].Attrs)
		if out.Attrs == nil {
			out.Attrs = map[string]string{}
		}
	default:
		return fault.New(fault.InvalidArgument, "multiple outputs not supported")
	}
	if len(r.Tags) > 0 && slices.Contains([]string{exporterMoby, client.ExporterImage}, out.Type) {
		names, err := completeNames(strings.Join(r.Tags, ","))
		if err != nil {
			return err
		}
		out.Attrs[string(exptypes.OptKeyName)] = strings.Join(names, ",")
	}
	req.Exporters = []*controlapi.Exporter{out}
	return nil
}

// plain is the message of an error as a user of /build knows it: without the wrappers of the solver.
func plain(err error) string {
	if errors.Is(err, context.Canceled) {
		return "the build was cancelled"
	}
	return strings.TrimPrefix(err.Error(), "failed to solve: ")
}
