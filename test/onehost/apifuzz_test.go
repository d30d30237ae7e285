package onehost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestEveryRequestIsAnswered sends requests of all operations of the API's description, right ones and nonsense, from
// many clients at once, to a daemon that is a manager of a swarm of one. None may be answered with an internal error, the
// daemon lives on, and nothing stays. SAMPAN_REQUESTS says how many, SAMPAN_REQUEST_SEED makes others.
func TestEveryRequestIsAnswered(t *testing.T) {
	l, h := one(t)
	count, seed := Number(t, "SAMPAN_REQUESTS", 3000), Number(t, "SAMPAN_REQUEST_SEED", 1)
	d, ops := readDescription(t)
	f := &apiFuzz{t: t, h: h, d: d, ops: ops, seed: seed, left: int64(count)}
	Docker(t, h, "run", "--rm", image, "true")
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	daemon := h.DaemonPID()
	f.furnish(t.Context())
	memory, open := testhost.PSS([]int{daemon}), descriptors(daemon)
	var wg sync.WaitGroup
	for w := range uint64(8) {
		wg.Go(func() { f.work(t.Context(), w) })
	}
	wg.Wait()
	t.Logf("answers: %v", f.statuses())
	if pid := h.DaemonPID(); pid != daemon {
		t.Errorf("the daemon is process %d, was %d:\n%s", pid, daemon, h.LogTail(30))
	}
	log, err := os.ReadFile(h.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.Index(string(log), "panic"); i >= 0 {
		t.Errorf("the daemon's log tells of a panic: %s", log[i:min(i+3000, len(log))])
	}
	keeper, _ := os.ReadFile(filepath.Join(h.ExecRoot(), "keeper.log"))
	if i := strings.Index(string(keeper), "panic"); i >= 0 {
		t.Errorf("the keeper's log tells of a panic: %s", keeper[i:min(i+3000, len(keeper))])
	}
	if t.Failed() {
		return
	}
	f.empty(t.Context())
	NothingLeft(t, l, before)
	Eventually(t, 60*time.Second, "descriptors given back", func(context.Context) error {
		if now := descriptors(daemon); now > open+40 {
			return fmt.Errorf("%d are open, %d were", now, open)
		}
		return nil
	})
	if now := testhost.PSS([]int{daemon}); now > memory+200<<20 {
		t.Errorf("the daemon has %d MB, had %d", now>>20, memory>>20)
	}
	contains(t, "afterwards", Docker(t, h, "run", "--rm", image, "echo", "works"), "works")
}

func descriptors(pid int) int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries)
}

type apiFuzz struct {
	t    *testing.T
	h    *testhost.Host
	d    *description
	ops  []operation
	seed uint64
	left int64 // requests to be made

	wrong atomic.Int64 // answers that may not be; after a few of them it is enough

	mu      sync.Mutex
	names   map[string][]string
	answers map[int]int
}

func (f *apiFuzz) statuses() map[int]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answers
}

// do runs a docker command whose failure does not matter.
func (f *apiFuzz) do(ctx context.Context, args ...string) []string {
	out, _ := f.h.Docker(ctx, args...)
	return strings.Fields(out)
}

// furnish sees to it that there is something to ask for, and not more and more of it.
func (f *apiFuzz) furnish(ctx context.Context) {
	do := func(args ...string) []string { return f.do(ctx, args...) }
	if len(do("images", "-q", image)) == 0 {
		if archive, err := Archive(); err == nil {
			_, _ = f.h.DockerInput(ctx, archive, "load")
		}
	}
	if out := do("info", "-f", "{{.Swarm.LocalNodeState}}"); len(out) != 1 || out[0] != "active" {
		do("swarm", "leave", "--force")
		do("swarm", "init", "--advertise-addr", f.h.Addr.String())
	}
	if out := do("inspect", "-f", "{{.State.Status}}", "fuzz"); len(out) != 1 || out[0] != "running" {
		do("rm", "-f", "fuzz")
		do("run", "-d", "--name", "fuzz", "-v", "fuzz-volume:/data", image, "sleep")
	}
	for _, kind := range []struct{ list, remove []string }{
		{[]string{"service", "ls", "-q"}, []string{"service", "rm"}},
		{[]string{"ps", "-aq"}, []string{"rm", "-fv"}},
		{[]string{"network", "ls", "-q", "--filter", "type=custom"}, []string{"network", "rm"}},
		{[]string{"volume", "ls", "-q"}, []string{"volume", "rm"}},
		{[]string{"secret", "ls", "-q"}, []string{"secret", "rm"}},
		{[]string{"config", "ls", "-q"}, []string{"config", "rm"}},
	} {
		if all := do(kind.list...); len(all) > 12 {
			do(append(kind.remove, all[6:]...)...)
		}
	}
	names := map[string][]string{
		"containers": append(do("ps", "-aq"), "fuzz"),
		"networks":   append(do("network", "ls", "-q"), "bridge", "none", "ingress"),
		"volumes":    append(do("volume", "ls", "-q"), "fuzz-volume"),
		"images":     append(do("images", "-q"), "test/probe:1"),
		"services":   append(do("service", "ls", "-q"), "none"),
		"tasks":      append(do("ps", "-aq", "--filter", "label=com.docker.swarm.task.id", "--format", `{{.Label "com.docker.swarm.task.id"}}`), "none"),
		"nodes":      append(do("node", "ls", "-q"), "self"),
		"secrets":    append(do("secret", "ls", "-q"), "none"),
		"configs":    append(do("config", "ls", "-q"), "none"),
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	names["exec"] = append(f.names["exec"], "none")
	if n := len(names["exec"]); n > 20 {
		names["exec"] = names["exec"][n-20:]
	}
	f.names = names
}

// empty removes everything that requests have made.
func (f *apiFuzz) empty(ctx context.Context) {
	f.do(ctx, "swarm", "leave", "--force")
	for _, id := range f.do(ctx, "ps", "-aq") {
		Docker(f.t, f.h, "rm", "-fv", id)
	}
	Docker(f.t, f.h, "network", "prune", "-f")
	Docker(f.t, f.h, "volume", "prune", "-af")
	f.do(ctx, "network", "rm", "docker_gwbridge")
	if archive, err := Archive(); err == nil && len(f.do(ctx, "images", "-q", image)) == 0 {
		_, _ = f.h.DockerInput(ctx, archive, "load")
	}
}

func (f *apiFuzz) fail(format string, args ...any) {
	f.t.Helper()
	f.wrong.Add(1)
	f.t.Errorf(format, args...)
}

// work is one client's.
func (f *apiFuzz) work(ctx context.Context, n uint64) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", f.h.Socket)
	}}
	defer transport.CloseIdleConnections()
	g := &generator{Rand: rand.New(rand.NewPCG(f.seed, n)), d: f.d}
	for i := 0; ; i++ {
		left := atomic.AddInt64(&f.left, -1)
		if left < 0 || f.wrong.Load() > 15 {
			return
		}
		if left%150 == 0 {
			f.furnish(ctx)
		}
		f.mu.Lock()
		g.names = f.names
		f.mu.Unlock()
		r, op := g.request(f.ops)
		if op.method == http.MethodDelete && g.IntN(4) > 0 {
			continue // or there is nothing to ask for most of the time
		}
		if op.path == "/swarm/join" || op.path == "/swarm/leave" && g.IntN(20) > 0 || op.path == "/swarm/init" && g.IntN(10) > 0 {
			continue // joins wait for hosts that are not there
		}
		dump, _ := httputil.DumpRequestOut(r, true)
		f.ask(ctx, transport, r, op, fmt.Sprintf("request %d of client %d, SAMPAN_REQUEST_SEED=%d: %.3000q", i, n, f.seed, dump))
	}
}

// ask makes one request and looks at its answer.
func (f *apiFuzz) ask(ctx context.Context, transport *http.Transport, r *http.Request, op operation, what string) {
	// Long enough for whatever ends by itself; streams without an end are left after a moment.
	bound := 60 * time.Second
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for _, endless := range []string{"/events", "/attach", "/logs", "/stats", "/wait", "/exec/{id}/start", "/session", "/grpc"} {
		if strings.Contains(op.path, endless) {
			time.AfterFunc(300*time.Millisecond, cancel)
		}
	}
	resp, err := transport.RoundTrip(r.WithContext(ctx))
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			f.fail("%s\nis not answered within %v", what, bound)
		} else if !errors.Is(err, context.Canceled) && f.h.DaemonPID() == 0 {
			f.fail("%s\n%v", what, err)
		}
		return
	}
	defer resp.Body.Close()
	f.mu.Lock()
	if f.answers == nil {
		f.answers = map[int]int{}
	}
	f.answers[resp.StatusCode]++
	f.mu.Unlock()
	var body []byte
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	}
	switch resp.StatusCode {
	case http.StatusNotImplemented, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		if resp.StatusCode >= 500 {
			f.fail("%s\nis answered with %s: %s", what, resp.Status, body)
			return
		}
	}
	if resp.StatusCode >= 400 && r.Method != http.MethodHead && ctx.Err() == nil && len(body) > 0 && !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return // clients older than 1.24, and attach, are told in plain words
	}
	if resp.StatusCode >= 400 && r.Method != http.MethodHead && ctx.Err() == nil {
		var e struct{ Message string }
		if err := json.Unmarshal(body, &e); err != nil || e.Message == "" {
			f.fail("%s\nis refused with %s and no reason: %q", what, resp.Status, body)
		}
	}
	if op.ID == "ContainerExec" && resp.StatusCode == http.StatusCreated {
		var e struct{ ID string }
		if json.Unmarshal(body, &e) == nil {
			f.mu.Lock()
			f.names["exec"] = append(append([]string{}, f.names["exec"]...), e.ID)
			f.mu.Unlock()
		}
	}
}
