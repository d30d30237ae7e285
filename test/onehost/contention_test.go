package onehost

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

// TestClientsThatShareNames has eight clients do everything at once with three containers, two images, two networks and
// two volumes, so that what one works with is what another takes away. None may be answered with an internal error or be
// left waiting; afterwards a container that runs has its volumes, all can be removed, and nothing stays.
// SAMPAN_REQUESTS says how many requests are made, SAMPAN_REQUEST_SEED makes others.
func TestClientsThatShareNames(t *testing.T) {
	l, h := one(t)
	c := &contention{t: t, h: h, left: int64(Number(t, "SAMPAN_REQUESTS", 700)), seed: Number(t, "SAMPAN_REQUEST_SEED", 1), answers: map[string]map[int]int{}}
	Docker(t, h, "run", "--rm", image, "true")
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	daemon := h.DaemonPID()
	open := descriptors(daemon)
	Docker(t, h, "tag", image, "shared:0")
	var wg sync.WaitGroup
	for n := range uint64(8) {
		wg.Go(func() { c.work(t.Context(), n) })
	}
	wg.Wait()
	if text, err := json.Marshal(c.answers); err == nil {
		t.Logf("answers: %s", text)
	}
	if pid := h.DaemonPID(); pid != daemon {
		t.Fatalf("the daemon is process %d, was %d:\n%s", pid, daemon, h.LogTail(30))
	}
	log, err := os.ReadFile(h.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"panic", "DATA RACE"} {
		if i := strings.Index(string(log), bad); i >= 0 {
			t.Errorf("the daemon's log tells of a %s: %s", bad, log[i:min(i+4000, len(log))])
		}
	}
	c.volumesOfRunning(t.Context())

	all := func(args ...string) []string { // each once: an image is listed with each of its names
		ids := strings.Fields(Docker(t, h, args...))
		slices.Sort(ids)
		return slices.Compact(ids)
	}
	for _, id := range all("ps", "-aq") {
		Docker(t, h, "inspect", "-s", id)
		Docker(t, h, "rm", "-fv", id)
	}
	for _, name := range all("network", "ls", "-q", "--filter", "type=custom") {
		Docker(t, h, "network", "rm", name)
	}
	for _, name := range all("volume", "ls", "-q") {
		Docker(t, h, "volume", "rm", name)
	}
	for _, id := range all("images", "-q", "--no-trunc") {
		if out := Docker(t, h, "inspect", "-f", "{{.RepoTags}}", id); !strings.Contains(out, image) {
			Docker(t, h, "rmi", "-f", id)
		}
	}
	NothingLeft(t, l, before)
	Eventually(t, 60*time.Second, "descriptors given back", func(context.Context) error {
		if now := descriptors(daemon); now > open+16 {
			return fmt.Errorf("%d are open, %d were", now, open)
		}
		return nil
	})
	contains(t, "afterwards", Docker(t, h, "run", "--rm", image, "echo", "works"), "works")
}

type contention struct {
	t    *testing.T
	h    *testhost.Host
	seed uint64
	left int64 // requests to be made

	wrong atomic.Int64 // answers that may not be; after a few of them it is enough

	mu      sync.Mutex
	answers map[string]map[int]int
}

func (c *contention) fail(format string, args ...any) {
	c.t.Helper()
	c.wrong.Add(1)
	c.t.Errorf(format, args...)
}

// call is a request that clients fight with.
type call struct {
	often  int // how often, compared with others
	method string
	path   string // C, I, N and V stand for the name of a container, an image, a network and a volume
	body   func(r *rand.Rand) any
	after  func(c *contention, client *http.Client, answer []byte) // what the same client does with the answer
}

// names puts names into the places of a text.
func names(r *rand.Rand, text string) string {
	return strings.NewReplacer("{C}", fmt.Sprintf("c%d", r.IntN(3)), "{D}", fmt.Sprintf("c%d", r.IntN(3)), "{I}", fmt.Sprintf("shared:%d", r.IntN(2)),
		"{T}", fmt.Sprint(r.IntN(2)), "{N}", fmt.Sprintf("net%d", r.IntN(2)), "{V}", fmt.Sprintf("vol%d", r.IntN(2))).Replace(text)
}

type fields = map[string]any

// aContainer is a configuration to create a container with.
func aContainer(r *rand.Rand) any {
	pick := func(list ...string) string { return names(r, list[r.IntN(len(list))]) }
	cmd := [][]string{{"sleep"}, {"sleep"}, {"tick"}, {"true"}, {"exit", "3"}, {"count", "100"}, {"sleep", "150ms"}}
	host := fields{"NetworkMode": pick("{N}", "{N}", "{N}", "bridge", "none", "host", "container:{C}"), "AutoRemove": r.IntN(4) == 0,
		"Binds": []string{pick("{V}", "{V}", "fresh") + ":/data"}}
	if host["AutoRemove"] == false && r.IntN(4) == 0 {
		host["RestartPolicy"] = fields{"Name": pick("always", "on-failure")}
	}
	if r.IntN(3) == 0 {
		host["PortBindings"] = fields{"8080/tcp": []any{fields{"HostPort": "1808" + pick("0", "1")}}}
	}
	if r.IntN(6) == 0 {
		host["VolumesFrom"] = []string{pick("{C}")}
	}
	check := fields{"Test": []string{"NONE"}}
	if r.IntN(3) == 0 {
		check = fields{"Test": []string{"CMD", "/probe", "true"}, "Interval": 200 * time.Millisecond, "Timeout": time.Second, "Retries": 1}
	}
	return fields{"Image": pick(image, image, "{I}"), "Healthcheck": check, "Cmd": cmd[r.IntN(len(cmd))], "Labels": fields{"shared": "1"}, "StopTimeout": 1,
		"Volumes": fields{"/anonymous": fields{}}, "OpenStdin": r.IntN(4) == 0, "HostConfig": host}
}

// anImage is an archive with an image under one of the two names.
func anImage(r *rand.Rand) any {
	b, err := testimage.Build(context.Background(), testimage.Spec{Tags: []string{names(r, "{I}")}, Files: map[string]testimage.File{
		"/probe": testimage.Text(names(r, "{I}")), "/large": {Data: bytes.Repeat([]byte("0123456789"), 20000)}}})
	if err != nil {
		panic(err) // which it does not: nothing of it comes from outside
	}
	return b
}

func of(v any) func(*rand.Rand) any { return func(*rand.Rand) any { return v } }

// anArchive is a file to be copied into a container, or to make an image of.
func anArchive(r *rand.Rand) any {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	text := fmt.Sprint(r.IntN(5))
	_ = w.WriteHeader(&tar.Header{Name: "file" + text, Mode: 0o644, Size: int64(len(text))})
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.Bytes()
}

var calls = []call{
	{often: 30, method: "POST", path: "/containers/create?name={C}", body: aContainer},
	{often: 25, method: "POST", path: "/containers/{C}/start"},
	{often: 4, method: "POST", path: "/containers/{C}/stop?t=0"},
	{often: 3, method: "POST", path: "/containers/{C}/kill"},
	{often: 6, method: "POST", path: "/containers/{C}/restart?t=0"},
	{often: 2, method: "POST", path: "/containers/{C}/pause"},
	{often: 2, method: "POST", path: "/containers/{C}/unpause"},
	{often: 3, method: "POST", path: "/containers/{C}/rename?name={D}"},
	{often: 2, method: "POST", path: "/containers/{C}/update", body: of(fields{"Memory": 64 << 20, "MemorySwap": 128 << 20, "RestartPolicy": fields{"Name": "no"}})},
	{often: 5, method: "DELETE", path: "/containers/{C}?force=1&v=1"},
	{often: 2, method: "DELETE", path: "/containers/{C}"},
	{often: 1, method: "POST", path: "/containers/prune"},
	{often: 2, method: "POST", path: "/containers/{C}/wait?condition=not-running"},
	{often: 2, method: "POST", path: "/containers/{C}/wait?condition=next-exit"},
	{often: 2, method: "POST", path: "/containers/{C}/wait?condition=removed"},
	{often: 3, method: "POST", path: "/containers/{C}/attach?stream=1&stdout=1&stderr=1&logs=1"},
	{often: 2, method: "GET", path: "/containers/{C}/logs?stdout=1&stderr=1&follow=1"},
	{often: 2, method: "GET", path: "/containers/{C}/logs?stdout=1"},
	{often: 2, method: "GET", path: "/containers/{C}/stats?stream=0&one-shot=1"},
	{often: 1, method: "GET", path: "/containers/{C}/stats"},
	{often: 2, method: "GET", path: "/containers/{C}/top"},
	{often: 2, method: "GET", path: "/containers/{C}/changes"},
	{often: 2, method: "GET", path: "/containers/{C}/export"},
	{often: 2, method: "GET", path: "/containers/{C}/archive?path=/data"},
	{often: 2, method: "HEAD", path: "/containers/{C}/archive?path=/anonymous"},
	{often: 2, method: "PUT", path: "/containers/{C}/archive?path=/", body: anArchive},
	{often: 2, method: "POST", path: "/containers/{C}/resize?h=20&w=80"},
	{often: 5, method: "GET", path: "/containers/{C}/json?size=1"},
	{often: 3, method: "GET", path: "/containers/json?all=1&size=1"},
	{often: 10, method: "POST", path: "/containers/{C}/exec", body: of(fields{"Cmd": []string{"/probe", "write", "/file", "x"}, "AttachStdout": true, "User": "user"}), after: startExec},
	{often: 4, method: "POST", path: "/commit?container={C}&repo=shared&tag={T}"},
	{often: 2, method: "POST", path: "/commit?container={C}"},

	{often: 4, method: "POST", path: "/images/" + image + "/tag?repo=shared&tag={T}"},
	{often: 3, method: "POST", path: "/images/{I}/tag?repo=shared&tag={T}"},
	{often: 3, method: "DELETE", path: "/images/{I}?force=1"},
	{often: 2, method: "DELETE", path: "/images/{I}"},
	{often: 1, method: "POST", path: "/images/prune"},
	{often: 1, method: "POST", path: "/images/prune?filters=" + url.QueryEscape(`{"dangling":["false"],"label":["shared=1"]}`)},
	{often: 2, method: "GET", path: "/images/{I}/json"},
	{often: 1, method: "GET", path: "/images/{I}/history"},
	{often: 2, method: "GET", path: "/images/json?all=1&shared-size=1&manifests=1"},
	{often: 1, method: "GET", path: "/images/get?names={I}"},
	{often: 2, method: "POST", path: "/images/create?fromSrc=-&repo=shared&tag={T}", body: anArchive},
	{often: 1, method: "POST", path: "/images/create?fromSrc=-", body: anArchive},
	{often: 4, method: "POST", path: "/images/load", body: anImage},

	{often: 12, method: "POST", path: "/networks/create", body: func(r *rand.Rand) any { return fields{"Name": names(r, "{N}")} }},
	{often: 3, method: "POST", path: "/networks/{N}/connect", body: func(r *rand.Rand) any { return fields{"Container": names(r, "{C}")} }},
	{often: 3, method: "POST", path: "/networks/{N}/disconnect", body: func(r *rand.Rand) any { return fields{"Container": names(r, "{C}"), "Force": r.IntN(2) == 0} }},
	{often: 2, method: "DELETE", path: "/networks/{N}"},
	{often: 1, method: "POST", path: "/networks/prune"},
	{often: 2, method: "GET", path: "/networks/{N}?verbose=1"},
	{often: 1, method: "GET", path: "/networks"},

	{often: 3, method: "POST", path: "/volumes/create", body: func(r *rand.Rand) any { return fields{"Name": names(r, "{V}")} }},
	{often: 4, method: "DELETE", path: "/volumes/{V}"},
	{often: 2, method: "DELETE", path: "/volumes/{V}?force=1"},
	{often: 2, method: "POST", path: "/volumes/prune?filters=" + url.QueryEscape(`{"all":["true"]}`)},
	{often: 2, method: "GET", path: "/volumes/{V}"},
	{often: 1, method: "GET", path: "/volumes"},

	{often: 2, method: "GET", path: "/system/df"},
	{often: 1, method: "GET", path: "/events?since=1"},
	{often: 1, method: "GET", path: "/info"},
}

// work is one client's.
func (c *contention) work(ctx context.Context, n uint64) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.h.Socket)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	r := rand.New(rand.NewPCG(c.seed, n))
	var deck []*call
	for i := range calls {
		for range calls[i].often {
			deck = append(deck, &calls[i])
		}
	}
	for atomic.AddInt64(&c.left, -1) >= 0 && c.wrong.Load() <= 15 {
		one := deck[r.IntN(len(deck))]
		var body any
		if one.body != nil {
			body = one.body(r)
		}
		status, answer := c.ask(ctx, client, one.method, names(r, one.path), body)
		if one.after != nil && status == http.StatusCreated {
			one.after(c, client, answer)
		}
	}
}

// startExec starts the exec that has just been made.
func startExec(c *contention, client *http.Client, answer []byte) {
	var e struct{ ID string }
	if err := json.Unmarshal(answer, &e); err != nil {
		c.fail("exec: %v: %s", err, answer)
		return
	}
	c.ask(c.t.Context(), client, "POST", "/exec/"+e.ID+"/start", fields{"Detach": e.ID[0] < '8'})
	c.ask(c.t.Context(), client, "GET", "/exec/"+e.ID+"/json", nil)
}

// ask makes one request and looks at its answer; a status of 0 is none.
func (c *contention) ask(ctx context.Context, client *http.Client, method, path string, body any) (status int, answer []byte) {
	var in io.Reader
	what := method + " " + path
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case []byte:
		in, kind = bytes.NewReader(b), "application/x-tar"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			c.fail("%s: %v", what, err)
			return 0, nil
		}
		in = bytes.NewReader(text)
		what += " " + string(text)
	}
	bound := testhost.Patient(30 * time.Second)
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for _, endless := range []string{"/events", "/attach", "follow=1", "/stats", "/wait", "/start"} { // what waits for others is left after a moment
		if strings.Contains(path, endless) && !strings.HasSuffix(path, "/start") || strings.HasPrefix(path, "/exec/") {
			defer time.AfterFunc(300*time.Millisecond, cancel).Stop()
			break
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://sampan/v1.52"+path, in)
	if err != nil {
		c.fail("%s: %v", what, err)
		return 0, nil
	}
	req.Header.Set("Content-Type", kind)
	resp, err := client.Do(req)
	if err == nil {
		defer resp.Body.Close()
		status = resp.StatusCode
		answer, err = io.ReadAll(io.LimitReader(resp.Body, 8<<20))
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		c.fail("%s is not answered within %v (SAMPAN_REQUEST_SEED=%d)", what, bound, c.seed)
	}
	if status == 0 {
		return 0, nil
	}
	c.mu.Lock()
	short := method + " " + strings.Join(strings.FieldsFunc(path, func(r rune) bool { return r >= '0' && r <= '9' }), "")
	short, _, _ = strings.Cut(short, "?")
	if strings.HasPrefix(path, "/exec/") {
		short = method + " /exec/" + path[strings.LastIndexByte(path, '/')+1:]
	}
	if c.answers[short] == nil {
		c.answers[short] = map[int]int{}
	}
	c.answers[short][status]++
	c.mu.Unlock()
	switch {
	case strings.HasPrefix(path, "/images/") && method == "POST" && bytes.Contains(answer, []byte(`"errorDetail"`)):
		c.fail("%s\nends with %.2000s (SAMPAN_REQUEST_SEED=%d)", what, answer, c.seed)
	case status == http.StatusNotImplemented, status == http.StatusServiceUnavailable:
	case status >= 500:
		c.fail("%s\nis answered with %s: %.2000s (SAMPAN_REQUEST_SEED=%d)", what, resp.Status, answer, c.seed)
	case status >= 400 && method != http.MethodHead:
		var e struct{ Message string }
		if err := json.Unmarshal(answer, &e); err == nil && e.Message == "" {
			c.fail("%s\nis refused with %s and no reason: %q", what, resp.Status, answer)
		}
	}
	return status, answer
}

// volumesOfRunning sees to it that no container which runs has lost a volume.
func (c *contention) volumesOfRunning(ctx context.Context) {
	for _, id := range strings.Fields(Docker(c.t, c.h, "ps", "-q", "--no-trunc")) {
		out, err := c.h.Docker(ctx, "inspect", "-f", "{{range .Mounts}}{{.Name}} {{end}}", id)
		if err != nil {
			continue // it has ended by itself
		}
		for _, name := range strings.Fields(out) {
			if _, err := c.h.Docker(ctx, "volume", "inspect", name); err != nil {
				c.t.Errorf("container %s runs and its volume is gone: %v", id, err)
			}
		}
	}
}
