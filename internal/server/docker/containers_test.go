package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/net/websocket"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/fault"
)

func TestContainerFromCreateToRemove(t *testing.T) {
	l := newLab(t)
	c, ctx := l.client(t), t.Context()
	pids := int64(0)
	created, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{Name: "web",
		Config: &apicontainer.Config{Image: "nginx", Env: []string{"A=1"}, Cmd: []string{"serve", "it all"}, Labels: map[string]string{"k": "v"}},
		HostConfig: &apicontainer.HostConfig{
			Binds:         []string{"/srv:/data:ro", "vol:/cache"},
			Mounts:        []mount.Mount{{Type: mount.TypeTmpfs, Target: "/tmp", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20}}},
			PortBindings:  apinetwork.PortMap{apinetwork.MustParsePort("80/tcp"): {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: "8080-8090"}}},
			Resources:     apicontainer.Resources{Memory: 64 << 20, PidsLimit: &pids},
			RestartPolicy: apicontainer.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3},
		},
		NetworkingConfig: &apinetwork.NetworkingConfig{EndpointsConfig: map[string]*apinetwork.EndpointSettings{
			"default": {Aliases: []string{"www"}, IPAMConfig: &apinetwork.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("172.17.0.9")}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(created.Warnings, []string{"a warning"}) {
		t.Errorf("warnings %q", created.Warnings)
	}
	got := l.containers.created
	if len(got.Host.Mounts) != 3 || got.Host.Mounts[0].Type != container.MountBind || !got.Host.Mounts[0].ReadOnly || !got.Host.Mounts[0].CreateMountpoint ||
		got.Host.Mounts[1].Type != container.MountVolume || got.Host.Mounts[1].Source != "vol" || !got.Host.Mounts[2].FromSpec {
		t.Errorf("mounts %+v", got.Host.Mounts)
	}
	if p := got.Host.Ports; len(p) != 1 || p[0].HostPort != 8080 || p[0].HostPortEnd != 8090 || p[0].HostIP != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("ports %+v", p)
	}
	if !slices.Contains(got.ExposedPorts, container.Port{Port: 80, Protocol: "tcp"}) {
		t.Errorf("a published port is not exposed: %v", got.ExposedPorts)
	}
	if got.Host.NetworkMode != "bridge" || got.Network.Endpoints["bridge"].Aliases[0] != "www" {
		t.Errorf("network %q %+v", got.Host.NetworkMode, got.Network)
	}
	if got.Host.Resources.PidsLimit != 0 {
		t.Errorf("a limit of 0 processes asks for none, and became %d", got.Host.Resources.PidsLimit)
	}

	if _, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{Name: "web", Image: "nginx"}); !cerrdefs.IsConflict(err) {
		t.Errorf("the same name again: %v", err)
	}
	for range 2 { // the second answers 304, which clients take for success
		if _, err := c.ContainerStart(ctx, "web", client.ContainerStartOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	in, err := c.ContainerInspect(ctx, "web", client.ContainerInspectOptions{Size: true})
	if err != nil {
		t.Fatal(err)
	}
	ctr := in.Container
	switch {
	case ctr.Name != "/web", !ctr.State.Running, ctr.State.Pid != 42, *ctr.SizeRootFs != 500:
		t.Errorf("inspect: %+v", ctr)
	case ctr.HostConfig.PortBindings[apinetwork.MustParsePort("80/tcp")][0].HostPort != "8080-8090":
		t.Errorf("port bindings %v", ctr.HostConfig.PortBindings)
	case len(ctr.HostConfig.Mounts) != 1 || len(ctr.HostConfig.Binds) != 2:
		t.Errorf("mounts %v, binds %v", ctr.HostConfig.Mounts, ctr.HostConfig.Binds)
	case ctr.HostConfig.RestartPolicy.MaximumRetryCount != 3:
		t.Errorf("restart policy %v", ctr.HostConfig.RestartPolicy)
	}
	list, err := c.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil || len(list.Items) != 1 || !strings.HasPrefix(list.Items[0].Status, "Up ") || list.Items[0].Names[0] != "/web" {
		t.Errorf("list: %+v %v", list.Items, err)
	}
	seconds := 3
	if _, err := c.ContainerStop(ctx, "web", client.ContainerStopOptions{Signal: "SIGINT", Timeout: &seconds}); err != nil {
		t.Error(err)
	}
	if _, err := c.ContainerUpdate(ctx, "web", client.ContainerUpdateOptions{Resources: &apicontainer.Resources{Memory: 5}}); err != nil {
		t.Error(err)
	}
	if notes := l.containers.notes(); !strings.Contains(notes, "signal=SIGINT timeout=3") || !strings.Contains(notes, "memory=5 pids=0 policy=<nil>") {
		t.Errorf("asked of the engine: %s", notes)
	}
	if _, err := c.ContainerRemove(ctx, "web", client.ContainerRemoveOptions{}); !cerrdefs.IsConflict(err) {
		t.Errorf("removing what runs: %v", err)
	}
	if _, err := c.ContainerRemove(ctx, "web", client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if _, err := c.ContainerInspect(ctx, "web", client.ContainerInspectOptions{}); !cerrdefs.IsNotFound(err) {
		t.Errorf("after its removal: %v", err)
	}
}

func TestOldClientsFindTheAddressAtTheTop(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}, State: container.State{Running: true, Status: container.StatusRunning},
		Networks: container.Attachment{Endpoints: map[string]container.Endpoint{"bridge": {NetworkName: "bridge", IPv4: netip.MustParsePrefix("172.17.0.2/16"), MAC: "02:42:ac:11:00:02"}}}})
	var old struct {
		NetworkSettings struct {
			IPAddress, MacAddress string
			Networks              map[string]struct{ IPAddress string }
		}
		GraphDriver *struct{ Name string }
	}
	_, _, body := l.do(t, "GET", "/v1.50/containers/web/json", "", "")
	if err := json.Unmarshal([]byte(body), &old); err != nil || old.NetworkSettings.IPAddress != "172.17.0.2" || old.GraphDriver == nil || old.NetworkSettings.Networks["bridge"].IPAddress != "172.17.0.2" {
		t.Errorf("1.50: %+v %v", old, err)
	}
	_, _, body = l.do(t, "GET", "/v1.52/containers/web/json", "", "")
	if strings.Contains(body, "GraphDriver") || strings.Count(body, "172.17.0.2") != 1 {
		t.Errorf("1.52 has what it should no longer have: %s", body)
	}
}

func TestListFilters(t *testing.T) {
	l := newLab(t)
	at := time.Now().Add(-time.Hour)
	add := func(id, name string, change func(*container.Container)) {
		at = at.Add(time.Minute)
		c := container.Container{ID: id, Created: at, ImageID: "sha256:i", Config: container.Config{Name: name, Image: "img:1", Labels: map[string]string{}, Host: container.HostConfig{NetworkMode: "bridge"}}, State: container.State{Status: container.StatusRunning, Running: true, StartedAt: at}}
		if change != nil {
			change(&c)
		}
		l.containers.add(c)
	}
	add("aaa1", "web-1", func(c *container.Container) {
		c.Config.Labels = map[string]string{"tier": "front", "x": ""}
		c.State.Health = &container.HealthState{Status: "healthy"}
		c.Networks = container.Attachment{Endpoints: map[string]container.Endpoint{"front": {NetworkID: "netid1", NetworkName: "front"}}, Ports: []container.BoundPort{{Port: container.Port{Port: 80, Protocol: "tcp"}, HostPort: 8080}}}
	})
	add("aaa2", "web-2", func(c *container.Container) {
		c.Config.Labels["com.docker.swarm.task.id"] = "t1"
		c.Config.ExposedPorts = []container.Port{{Port: 53, Protocol: "udp"}}
		c.Mounts = []container.MountPoint{{Type: container.MountVolume, Name: "vol", Destination: "/data"}}
	})
	add("bbb1", "db", func(c *container.Container) {
		c.State = container.State{Status: container.StatusExited, ExitCode: 3, FinishedAt: at}
		c.ImageID, c.Config.Image = "sha256:other", "other"
	})
	add("bbb2", "cache", func(c *container.Container) { c.State.Paused, c.State.Status = true, container.StatusPaused })
	step := func(by string) ocispec.History { return ocispec.History{CreatedBy: by, EmptyLayer: by != "ADD"} }
	l.images.all["img:1"] = image.Image{ID: "sha256:i", Layers: []string{"l1"}, History: []ocispec.History{step("ADD"), step("LABEL a")}}
	l.images.all["base"] = image.Image{ID: "sha256:base", Layers: []string{"l1"}, History: []ocispec.History{step("ADD")}}
	l.images.all["sister"] = image.Image{ID: "sha256:sister", Layers: []string{"l1"}, History: []ocispec.History{step("ADD"), step("LABEL b")}}
	l.images.all["sha256:i"] = l.images.all["img:1"]
	c := l.client(t)
	for _, tc := range []struct {
		all     bool
		limit   int
		filters client.Filters
		want    string
	}{
		{want: "cache web-2 web-1"},
		{all: true, want: "cache db web-2 web-1"},
		{limit: 2, want: "cache db"},
		{filters: client.Filters{}.Add("name", "web"), want: "web-2 web-1"},
		{filters: client.Filters{}.Add("name", "^/web-1$"), want: "web-1"},
		{filters: client.Filters{}.Add("name", "web-1", "db"), all: true, want: "db web-1"},
		{filters: client.Filters{}.Add("id", "aaa"), want: "web-2 web-1"},
		{filters: client.Filters{}.Add("label", "tier=front"), want: "web-1"},
		{filters: client.Filters{}.Add("label", "tier=front", "x"), want: "web-1"},
		{filters: client.Filters{}.Add("label", "tier=back"), want: ""},
		{filters: client.Filters{}.Add("status", "exited"), want: "db"},
		{filters: client.Filters{}.Add("status", "paused", "exited"), want: "cache db"},
		{filters: client.Filters{}.Add("exited", "3"), all: true, want: "db"},
		{filters: client.Filters{}.Add("exited", "3"), want: ""}, // of those that run
		{filters: client.Filters{}.Add("exited", "0"), all: true, want: ""},
		{filters: client.Filters{}.Add("ancestor", "img:1"), want: "cache web-2 web-1"},
		{filters: client.Filters{}.Add("ancestor", "base"), want: "cache web-2 web-1"},
		{filters: client.Filters{}.Add("ancestor", "sister"), want: ""},
		{filters: client.Filters{}.Add("ancestor", "docker.io/library/other:latest"), all: true, want: "db"},
		{filters: client.Filters{}.Add("ancestor", "nosuch"), all: true, want: ""},
		{filters: client.Filters{}.Add("network", "front"), want: "web-1"},
		{filters: client.Filters{}.Add("network", "netid"), want: "web-1"},
		{filters: client.Filters{}.Add("volume", "vol"), want: "web-2"},
		{filters: client.Filters{}.Add("volume", "/data"), want: "web-2"},
		{filters: client.Filters{}.Add("health", "healthy"), want: "web-1"},
		{filters: client.Filters{}.Add("publish", "8000-9000"), want: "web-1"},
		{filters: client.Filters{}.Add("publish", "80"), want: ""}, // the container's port, not the host's
		{filters: client.Filters{}.Add("expose", "53/udp"), want: "web-2"},
		{filters: client.Filters{}.Add("expose", "53/udp").Add("publish", "8080"), want: "web-2 web-1"}, // one is enough
		{filters: client.Filters{}.Add("before", "web-2"), all: true, want: "web-1"},
		{filters: client.Filters{}.Add("since", "web-2"), all: true, want: "cache db"},
		{filters: client.Filters{}.Add("is-task", "true"), want: "web-2"},
		{filters: client.Filters{}.Add("is-task", "false"), want: "cache web-1"},
	} {
		res, err := c.ContainerList(t.Context(), client.ContainerListOptions{All: tc.all, Limit: tc.limit, Filters: tc.filters})
		var names []string
		for _, s := range res.Items {
			names = append(names, strings.TrimPrefix(s.Names[0], "/"))
		}
		if got := strings.Join(names, " "); err != nil || got != tc.want {
			t.Errorf("all=%v limit=%d %v: %q %v, want %q", tc.all, tc.limit, tc.filters, got, err, tc.want)
		}
	}
	// The older form, as docker-py sends it.
	_, _, body := l.do(t, "GET", `/v1.40/containers/json?filters={"name":["web-1"]}`, "", "")
	if strings.Count(body, `"Id"`) != 1 {
		t.Errorf("filters as lists: %s", body)
	}
}

func TestStatusLines(t *testing.T) {
	at := time.Now()
	ago := at.Add(-5 * time.Minute)
	for _, c := range []struct {
		state container.State
		want  string
	}{
		{container.State{Status: container.StatusCreated}, "Created"},
		{container.State{Status: container.StatusRunning, Running: true, StartedAt: ago}, "Up 5 minutes"},
		{container.State{Status: container.StatusRunning, Running: true, StartedAt: ago, Health: &container.HealthState{Status: "starting"}}, "Up 5 minutes (health: starting)"},
		{container.State{Status: container.StatusRunning, Running: true, StartedAt: ago, Health: &container.HealthState{Status: "unhealthy"}}, "Up 5 minutes (unhealthy)"},
		{container.State{Status: container.StatusPaused, Running: true, Paused: true, StartedAt: ago}, "Up 5 minutes (Paused)"},
		{container.State{Status: container.StatusRestarting, Running: true, Restarting: true, ExitCode: 1, FinishedAt: ago}, "Restarting (1) 5 minutes ago"},
		{container.State{Status: container.StatusExited, ExitCode: 137, FinishedAt: ago}, "Exited (137) 5 minutes ago"},
		{container.State{Status: container.StatusExited, ExitUnknown: true, FinishedAt: ago}, "Exited (255) 5 minutes ago"},
		{container.State{Status: container.StatusRemoving}, "Removal In Progress"},
		{container.State{Status: container.StatusDead, Dead: true}, "Dead"},
	} {
		if got := statusLine(&c.state, at); got != c.want {
			t.Errorf("%+v: %q, want %q", c.state, got, c.want)
		}
	}
}

// TestWaitAnswersInTwoParts: a client may start the container once the headers are there, and must not have to wait for
// the exit.
func TestWaitAnswersInTwoParts(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}})
	hc := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", l.socket) }}}
	res, err := hc.Post("http://d/v1.50/containers/web/wait?condition=next-exit", "", nil) // returns with the headers
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("status %d", res.StatusCode)
	}
	close(l.containers.exited)
	var out apicontainer.WaitResponse
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil || out.StatusCode != 7 || out.Error != nil {
		t.Errorf("%+v %v", out, err)
	}
	if !strings.Contains(l.containers.notes(), "wait next-exit") {
		t.Errorf("condition not handed on: %s", l.containers.notes())
	}
	if status, _, body := l.do(t, "POST", "/containers/nosuch/wait", "", ""); status != 404 {
		t.Errorf("waiting for nobody: %d %s", status, body)
	}
}

func TestAttachBothWays(t *testing.T) {
	for _, tty := range []bool{false, true} {
		l := newLab(t)
		l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web", Tty: tty}})
		res, err := l.client(t).ContainerAttach(t.Context(), "web", client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		defer res.Close()
		media, _ := res.MediaType()
		if want := map[bool]string{true: "application/vnd.docker.raw-stream", false: "application/vnd.docker.multiplexed-stream"}[tty]; media != want {
			t.Errorf("media type %q, want %q", media, want)
		}
		if _, err := io.WriteString(res.Conn, "hello"); err != nil {
			t.Fatal(err)
		}
		if err := res.CloseWrite(); err != nil { // the process must see its input end, and its output still arrive
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		if tty {
			_, err = io.Copy(&stdout, res.Reader)
		} else {
			_, err = stdcopy.StdCopy(&stdout, &stderr, res.Reader)
		}
		if err != nil {
			t.Fatal(err)
		}
		if tty && stdout.String() != "HELLOhellobye" || !tty && (stdout.String() != "HELLObye" || stderr.String() != "hello") {
			t.Errorf("tty=%v: stdout %q, stderr %q", tty, stdout.String(), stderr.String())
		}
	}
}

// TestAttachOfOldClients: without Upgrade the answer is 200 and the raw stream follows it.
// TestAttachToNobody: who attaches reads a stream, and is told in text.
func TestAttachToNobody(t *testing.T) {
	l := newLab(t)
	status, h, body := l.do(t, "POST", "/containers/nosuch/attach?stream=1", "", "")
	if status != http.StatusNotFound || body != "No such container: nosuch\r\n" || h.Get("Content-Type") != "application/vnd.docker.raw-stream" {
		t.Errorf("%d %q %v", status, body, h)
	}
}

// TestListNamesImagesAsTheyAreNow: a name that has moved on to another image is not the container's any more.
func TestListNamesImagesAsTheyAreNow(t *testing.T) {
	l := newLab(t)
	for name, id := range map[string]string{"moved": "sha256:old", "same": "sha256:new", "gone": "sha256:gone"} {
		l.containers.add(container.Container{ID: name, ImageID: id, Config: container.Config{Name: name, Image: "app:" + map[string]string{"gone": "2"}[name]}})
	}
	l.images.all["app:"] = image.Image{ID: "sha256:new"}
	list, err := l.client(t).ContainerList(t.Context(), client.ContainerListOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Items {
		if want := map[string]string{"/moved": "sha256:old", "/same": "app:", "/gone": "sha256:gone"}[c.Names[0]]; c.Image != want {
			t.Errorf("%s: %q, want %q", c.Names[0], c.Image, want)
		}
	}
}

func TestAttachOfOldClients(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}})
	conn, err := net.Dial("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The input comes right behind the request, in one piece with it.
	_, _ = io.WriteString(conn, "POST /v1.30/containers/web/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\nhi")
	_ = conn.(*net.UnixConn).CloseWrite()
	all, err := io.ReadAll(conn)
	head, body, _ := strings.Cut(string(all), "\r\n\r\n")
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 200 OK") || !strings.Contains(head, "application/vnd.docker.raw-stream") {
		t.Fatalf("%q %v", head, err)
	}
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, strings.NewReader(body)); err != nil || stdout.String() != "HIbye" {
		t.Errorf("stdout %q, stderr %q, %v", stdout.String(), stderr.String(), err)
	}
}

// TestAttachIsGivenUpWhenTheClientGoes: nothing may hold the stream of a process that prints nothing.
func TestAttachIsGivenUpWhenTheClientGoes(t *testing.T) {
	for _, stdin := range []bool{false, true} {
		l := newLab(t)
		l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}})
		s := l.containers.stream("abc")
		res, err := l.client(t).ContainerAttach(t.Context(), "web", client.ContainerAttachOptions{Stream: true, Stdin: stdin, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if !stdin {
			_ = res.CloseWrite() // as docker does: it is still there
			select {
			case <-s.closed:
				t.Fatal("given up although the client only sends nothing")
			default:
			}
		}
		res.Close()
		select {
		case <-s.closed:
		case <-time.After(10 * time.Second):
			t.Fatalf("stdin=%v: the stream is still open after the client went", stdin)
		}
	}
}

func TestDetachKeys(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web", Tty: true, Image: "img"}})
	_, events := l.events.Subscribe(t.Context(), time.Time{})
	res, err := l.client(t).ContainerAttach(t.Context(), "web", client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, DetachKeys: "ctrl-x,y"})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	_, _ = res.Conn.Write([]byte{'a', 24, 'y'})
	out, err := io.ReadAll(res.Reader)
	if err != nil || !strings.HasPrefix(string(out), "A") && len(out) > 0 {
		t.Errorf("%q %v", out, err)
	}
	if e := <-events; e.Action != "detach" || e.ID != "abc" {
		t.Errorf("event %+v", e)
	}
}

func TestAttachOverAWebsocket(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}})
	conn, err := net.Dial("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := websocket.NewConfig("ws://d/v1.50/containers/web/attach/ws?stream=1&stdin=1&stdout=1", "http://d")
	ws, err := websocket.NewClient(cfg, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := websocket.Message.Send(ws, []byte("hi")); err != nil {
		t.Fatal(err)
	}
	var got []byte
	if err := websocket.Message.Receive(ws, &got); err != nil || string(got) != "HI" {
		t.Errorf("%q %v", got, err)
	}
}

func TestExec(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}, State: container.State{Running: true}})
	c, ctx := l.client(t), t.Context()
	e, err := c.ExecCreate(ctx, "web", client.ExecCreateOptions{Cmd: []string{"sh", "-c", "x"}, AttachStdin: true, AttachStdout: true, AttachStderr: true, TTY: true, ConsoleSize: client.ConsoleSize{Height: 24, Width: 80}})
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.ExecAttach(ctx, e.ID, client.ExecAttachOptions{TTY: true, ConsoleSize: client.ConsoleSize{Height: 25, Width: 81}})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	_, _ = io.WriteString(res.Conn, "hello")
	_ = res.CloseWrite()
	if out, err := io.ReadAll(res.Reader); err != nil || string(out) != "HELLOhellobye" {
		t.Errorf("%q %v", out, err)
	}
	if notes := l.containers.notes(); !strings.Contains(notes, "detach=false size=[25 81]") {
		t.Errorf("%s", notes)
	}
	// How output is sent is said at the start, whatever terminal the process has.
	again, err := c.ExecCreate(ctx, "web", client.ExecCreateOptions{Cmd: []string{"sh"}, AttachStdin: true, AttachStdout: true, TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	framed, err := c.ExecAttach(ctx, again.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer framed.Close()
	_ = framed.CloseWrite()
	if _, err := stdcopy.StdCopy(io.Discard, io.Discard, framed.Reader); err != nil {
		t.Errorf("not in frames: %v", err)
	}
	if in, err := c.ExecInspect(ctx, e.ID, client.ExecInspectOptions{}); err != nil || in.ContainerID != "abc" {
		t.Errorf("%+v %v", in, err)
	}
	if _, err := c.ExecResize(ctx, e.ID, client.ExecResizeOptions{Height: 9, Width: 9}); err != nil {
		t.Error(err)
	}
	if _, err := c.ExecStart(ctx, e.ID, client.ExecStartOptions{Detach: true}); err != nil {
		t.Error(err)
	}
	if _, err := c.ExecAttach(ctx, "nosuch", client.ExecAttachOptions{}); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("an exec there is not: %v", err)
	}
}

// TestExecThatCannotStart: clients print the stream for the reason and take the exit code from inspect.
func TestExecThatCannotStart(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}, State: container.State{Running: true}})
	l.containers.execErr = fault.New(fault.InvalidArgument, `exec failed: "nosuch": executable file not found in $PATH`)
	c, ctx := l.client(t), t.Context()
	e, err := c.ExecCreate(ctx, "web", client.ExecCreateOptions{Cmd: []string{"nosuch"}, AttachStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.ExecAttach(ctx, e.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	var stdout bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, io.Discard, res.Reader); err != nil || !strings.Contains(stdout.String(), "executable file not found") {
		t.Errorf("%q %v", stdout.String(), err)
	}
	if _, err := c.ExecStart(ctx, e.ID, client.ExecStartOptions{Detach: true}); !cerrdefs.IsInvalidArgument(err) {
		t.Errorf("detached: %v", err)
	}
}

// TestExecBeginsAfterTheAnswer: clients that read the answer's head through a buffer lose what comes along with it, so
// the head is sent before the process is made.
func TestExecBeginsAfterTheAnswer(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}, State: container.State{Running: true}})
	l.containers.execGate = make(chan struct{})
	c, ctx := l.client(t), t.Context()
	e, err := c.ExecCreate(ctx, "web", client.ExecCreateOptions{Cmd: []string{"x"}, AttachStdin: true, AttachStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.ExecAttach(ctx, e.ID, client.ExecAttachOptions{}) // returns when it has read the head
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	close(l.containers.execGate)
	_ = res.CloseWrite()
	if _, err := stdcopy.StdCopy(io.Discard, io.Discard, res.Reader); err != nil {
		t.Error(err)
	}
}

func TestLogs(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}})
	l.containers.add(container.Container{ID: "def", Config: container.Config{Name: "term", Tty: true}})
	at := time.Date(2026, 1, 2, 3, 4, 5, 60, time.UTC)
	l.containers.logs = []container.LogLine{
		{Stream: container.Stdout, Time: at, Line: []byte("one\n"), Attrs: map[string]string{"b": "2 3", "a": "1"}},
		{Stream: container.Stderr, Time: at, Line: []byte("two\n")},
	}
	c := l.client(t)
	read := func(name string, o client.ContainerLogsOptions) (string, string) {
		t.Helper()
		res, err := c.ContainerLogs(t.Context(), name, o)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Close()
		var stdout, stderr bytes.Buffer
		if name == "term" {
			_, err = io.Copy(&stdout, res)
		} else {
			_, err = stdcopy.StdCopy(&stdout, &stderr, res)
		}
		if err != nil {
			t.Fatal(err)
		}
		return stdout.String(), stderr.String()
	}
	if out, errs := read("web", client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "5", Since: "10", Until: "20.5"}); out != "one\n" || errs != "two\n" {
		t.Errorf("%q %q", out, errs)
	}
	if notes := l.containers.notes(); !strings.Contains(notes, "logs tail=5 since=10 until=20 follow=false") {
		t.Errorf("%s", notes)
	}
	read("web", client.ContainerLogsOptions{ShowStdout: true, Tail: "few"})
	read("web", client.ContainerLogsOptions{ShowStdout: true, Tail: "-3"})
	if notes := l.containers.notes(); strings.Count(notes, "logs tail=-1 ") != 2 {
		t.Errorf("what is no number of lines asks for all: %s", notes)
	}
	if out, errs := read("web", client.ContainerLogsOptions{ShowStderr: true}); out != "" || errs != "two\n" {
		t.Errorf("stderr only: %q %q", out, errs)
	}
	if out, _ := read("web", client.ContainerLogsOptions{ShowStdout: true, Timestamps: true, Details: true}); out != "2026-01-02T03:04:05.000000060Z a=1,b=2+3 one\n" {
		t.Errorf("with timestamps and details: %q", out)
	}
	if out, _ := read("term", client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}); out != "one\ntwo\n" {
		t.Errorf("of a terminal: %q", out)
	}

	// While following, what is there arrives at once, and the client may leave.
	ctx, cancel := context.WithCancel(t.Context())
	res, err := c.ContainerLogs(ctx, "web", client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 12)
	if _, err := io.ReadFull(res, first); err != nil || string(first[8:]) != "one\n" {
		t.Errorf("%q %v", first, err)
	}
	cancel()
	// The client closes the body or the connection, whichever comes first: a read fails in one way or the other.
	if _, err := io.ReadAll(res); err == nil {
		t.Error("after leaving the log ends as if it were over")
	}
}

func TestStats(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}, State: container.State{Running: true}})
	l.containers.add(container.Container{ID: "def", Config: container.Config{Name: "off"}})
	c := l.client(t)
	for _, tc := range []struct {
		name   string
		opts   client.ContainerStatsOptions
		pre    bool
		memory uint64
	}{
		{"web", client.ContainerStatsOptions{}, false, 7},
		{"web", client.ContainerStatsOptions{IncludePreviousSample: true}, true, 7},
		{"off", client.ContainerStatsOptions{}, false, 0},
	} {
		res, err := c.ContainerStats(t.Context(), tc.name, tc.opts)
		if err != nil {
			t.Fatal(err)
		}
		var s apicontainer.StatsResponse
		if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if s.Name != "/"+tc.name || s.MemoryStats.Usage != tc.memory || (s.PreCPUStats.CPUUsage.TotalUsage > 0) != tc.pre || s.PreRead.IsZero() == tc.pre {
			t.Errorf("%s: %+v", tc.name, s)
		}
	}
	res, err := c.ContainerStats(t.Context(), "web", client.ContainerStatsOptions{Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	dec := json.NewDecoder(res.Body)
	for i := range 2 {
		var s apicontainer.StatsResponse
		if err := dec.Decode(&s); err != nil || (s.PreCPUStats.CPUUsage.TotalUsage > 0) != (i > 0) || s.Networks["eth0"].RxBytes != 9 {
			t.Errorf("sample %d: %+v %v", i, s, err)
		}
	}
}

func TestFilesOfAContainer(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}})
	c, ctx := l.client(t), t.Context()
	if s, err := c.ContainerStatPath(ctx, "web", client.ContainerStatPathOptions{Path: "/etc/hosts"}); err != nil || s.Stat.Size != 12 {
		t.Errorf("%+v %v", s, err)
	}
	got, err := c.CopyFromContainer(ctx, "web", client.CopyFromContainerOptions{SourcePath: "/etc/hosts"})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Content.Close()
	if b, _ := io.ReadAll(got.Content); string(b) != "a tar" || got.Stat.Name != "hosts" {
		t.Errorf("%q %+v", b, got.Stat)
	}
	if _, err := c.CopyFromContainer(ctx, "web", client.CopyFromContainerOptions{SourcePath: "/nosuch"}); !cerrdefs.IsNotFound(err) {
		t.Errorf("a file there is not: %v", err)
	}
	if _, err := c.CopyToContainer(ctx, "web", client.CopyToContainerOptions{DestinationPath: "/", Content: strings.NewReader("in")}); err != nil || string(l.containers.copied) != "in" {
		t.Errorf("%q %v", l.containers.copied, err)
	}
	out, err := c.ContainerExport(ctx, "web", client.ContainerExportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if b, _ := io.ReadAll(out); string(b) != "tar of everything" {
		t.Errorf("%q", b)
	}
	diff, err := c.ContainerDiff(ctx, "web", client.ContainerDiffOptions{})
	if err != nil || len(diff.Changes) != 3 || diff.Changes[2].Kind != apicontainer.ChangeDelete {
		t.Errorf("%+v %v", diff, err)
	}
	top, err := c.ContainerTop(ctx, "web", client.ContainerTopOptions{Arguments: []string{"aux"}})
	if err != nil || top.Processes[0][1] != "init aux" {
		t.Errorf("%+v %v", top, err)
	}
	commit, err := c.ContainerCommit(ctx, "web", client.ContainerCommitOptions{Reference: "mine:2", Author: "me", Config: &apicontainer.Config{Cmd: []string{"run"}}})
	if err != nil || commit.ID != "sha256:new" || !strings.Contains(l.containers.notes(), "commit ref=docker.io/library/mine:2 author=me pause=true cmd=[run]") {
		t.Errorf("%+v %v %s", commit, err, l.containers.notes())
	}
}
