package docker

import (
	"bufio"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/engine/container"
)

func TestVersionsOfThePath(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		path   string
		status int
		says   string
	}{
		{"/_ping", 200, "OK"},
		{"/v1.24/_ping", 200, "OK"},
		{"/v1.56/_ping", 200, "OK"},
		{"/v1.44.0/_ping", 200, "OK"},
		{"/v1.23/_ping", 400, "client version 1.23 is too old. Minimum supported API version is 1.24"},
		{"/v1.99/_ping", 400, "client version 1.99 is too new. Maximum supported API version is 1.56"},
		{"/v2.0/_ping", 400, "too new"},
		{"/v1..4/_ping", 400, "invalid API version"},
		{"/v1.44", 404, "page not found"},
		{"/nosuch", 404, "page not found"},
		{"/v1.44/nosuch", 404, "page not found"},
		{"/v1.44/containers//x/json", 404, "No such container: x"}, // docker inspect /x
	} {
		status, h, body := l.do(t, "GET", c.path, "", "")
		if status != c.status || !strings.Contains(body, c.says) {
			t.Errorf("GET %s: %d %s, want %d %q", c.path, status, body, c.status, c.says)
		}
		if h.Get("Api-Version") != "1.56" || h.Get("Ostype") != "linux" {
			t.Errorf("GET %s: headers %v", c.path, h)
		}
	}
	if status, _, body := l.do(t, "GET", "/v1.22/info", "", ""); status != 400 || strings.HasPrefix(body, "{") {
		t.Errorf("clients of before 1.24 print the body as it is, and get %d %s", status, body)
	}
	if status, _, _ := l.do(t, "OPTIONS", "/anything", "", ""); status != 200 {
		t.Errorf("OPTIONS: %d", status)
	}
}

func TestPing(t *testing.T) {
	l := newLab(t)
	for _, method := range []string{"GET", "HEAD"} {
		status, h, body := l.do(t, method, "/_ping", "", "")
		if status != 200 || h.Get("Swarm") != "inactive" || h.Get("Builder-Version") != "2" || h.Get("Api-Version") != "1.56" {
			t.Errorf("%s: %d %v", method, status, h)
		}
		if (body == "OK") != (method == "GET") {
			t.Errorf("%s: body %q", method, body)
		}
	}
	l.swarm.cluster = newFakeCluster(clusterSpecForTest)
	if _, h, _ := l.do(t, "GET", "/_ping", "", ""); h.Get("Swarm") != "active/manager" {
		t.Errorf("a manager says it is %q", h.Get("Swarm"))
	}
}

// TestBadRequestsAreRefused: each is answered with a 4xx, a message that names what is wrong, and changes nothing.
func TestBadRequestsAreRefused(t *testing.T) {
	l := newLab(t)
	l.swarm.cluster = newFakeCluster(clusterSpecForTest)
	l.containers.add(container.Container{ID: "abc", Config: container.Config{Name: "web"}})
	const js = "application/json"
	for _, c := range []struct {
		name, method, path, contentType, body string
		status                                int
		says                                  string
	}{
		{"not JSON", "POST", "/containers/create", js, `{"Image":`, 400, "invalid JSON"},
		{"JSON of the wrong type", "POST", "/containers/create", js, `{"Image": 3}`, 400, "Image cannot be a number"},
		{"a list", "POST", "/containers/create", js, `[]`, 400, "invalid JSON"},
		{"two values", "POST", "/containers/create", js, `{"Image":"x"}{"Image":"y"}`, 400, "unexpected content"},
		{"JSON and rubbish", "POST", "/networks/create", js, `{"Name":"x"} x`, 400, "unexpected content"},
		{"only white space", "POST", "/containers/create", js, "  ", 400, "EOF"},
		{"another content type", "POST", "/containers/create", "text/plain", `{"Image":"x"}`, 400, "must be 'application/json'"},
		{"a malformed content type", "POST", "/containers/create", "a/b/c;=", `{"Image":"x"}`, 400, "malformed Content-Type"},
		{"no content type", "POST", "/volumes/create", "", `{"Name":"x"}`, 400, "Content-Type"},
		{"no body", "POST", "/containers/create", js, ``, 400, "invalid JSON: EOF"},
		{"a malformed query", "GET", "/containers/json?a=%zz", "", "", 400, "malformed query"},
		{"a bad limit", "GET", "/containers/json?limit=ten", "", "", 400, "limit"},
		{"bad filters", "GET", "/containers/json?filters=x", "", "", 400, "invalid filter"},
		{"filters of a wrong shape", "GET", "/containers/json?filters={\"name\":3}", "", "", 400, "invalid filter"},
		{"an unknown filter", "GET", "/containers/json?filters={\"colour\":[\"red\"]}", "", "", 400, "invalid filter 'colour'"},
		{"an unknown status", "GET", "/containers/json?filters={\"status\":[\"asleep\"]}", "", "", 400, "asleep"},
		{"a bad exit code", "GET", "/containers/json?filters={\"exited\":[\"x\"]}", "", "", 400, "exited"},
		{"a bad port", "GET", "/containers/json?filters={\"publish\":[\"99999\"]}", "", "", 400, "publish"},
		{"before nobody", "GET", "/containers/json?filters={\"before\":[\"nosuch\"]}", "", "", 404, "No such container"},
		{"a bad timeout", "POST", "/containers/web/stop?t=soon", "", "", 400, "soon"},
		{"a bad size", "POST", "/containers/web/resize?h=x&w=80", "", "", 400, "invalid resize height"},
		{"a negative size", "POST", "/containers/web/resize?h=24&w=-1", "", "", 400, "invalid resize width"},
		{"no size", "POST", "/containers/web/resize?w=80", "", "", 400, `invalid resize height "": invalid syntax`},
		{"a size out of range", "POST", "/containers/web/resize?h=4294967296&w=80", "", "", 400, `invalid resize height "4294967296": value out of range`},
		{"a checkpoint's bad name", "POST", "/containers/web/start?checkpoint=../x", "", "", 400, `invalid checkpoint ID "../x"`},
		{"a bad condition", "POST", "/containers/web/wait?condition=happy", "", "", 400, `invalid condition: "happy"`},
		{"no stream", "GET", "/containers/web/logs", "", "", 400, "at least one"},
		{"a bad since", "GET", "/containers/web/logs?stdout=1&since=yesterday", "", "", 400, "since"},
		{"bad detach keys", "POST", "/containers/web/attach?detachKeys=ctrl-", "", "", 400, "detach keys"},
		{"bad detach keys of an exec", "POST", "/containers/web/exec", js, `{"Cmd":["true"],"DetachKeys":"ctrl-"}`, 400, "detach keys"},
		{"no path", "GET", "/containers/web/archive", "", "", 400, "path cannot be empty"},
		{"no exec command", "POST", "/containers/web/exec", js, `{}`, 400, "No exec command"},
		{"a bad name", "GET", "/containers/nosuch/json", "", "", 404, "No such container: nosuch"},
		{"a start with a body", "POST", "/containers/web/start", js, `{"Binds":[]}`, 400, "non-empty request body"},
		{"a bind of three colons", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"Binds":["a:b:c:d"]}}`, 400, "invalid volume specification"},
		{"a relative target", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"Binds":["/a:b"]}}`, 400, "must be absolute"},
		{"the root as target", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"Binds":["/a:/"]}}`, 400, "can't be '/'"},
		{"a bad mode", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"Binds":["/a:/b:rwx"]}}`, 400, "invalid mode"},
		{"two modes at once", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"Binds":["/a:/b:ro,rw"]}}`, 400, "invalid mode: ro,rw"},
		{"one target twice", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"Binds":["/a:/b","/c:/b/"]}}`, 400, "Duplicate mount point: /b"},
		{"a bad host port", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"99999"}]}}}`, 400, "99999"},
		{"a range the wrong way", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"20-10"}]}}}`, 400, "20-10"},
		{"port 0", "POST", "/containers/create", js, `{"Image":"x","ExposedPorts":{"0/tcp":{}}}`, 400, "invalid port"},
		{"an unknown protocol", "POST", "/containers/create", js, `{"Image":"x","ExposedPorts":{"80/ipx":{}}}`, 400, "ipx"},
		{"a bad restart policy", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"RestartPolicy":{"Name":"sometimes"}}}`, 400, "sometimes"},
		{"--rm with restart", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}}`, 400, "AutoRemove"},
		{"a bad network mode", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"NetworkMode":"container:"}}`, 400, "invalid container format container:<name|id>"},
		{"a network mode that lacks its container", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"NetworkMode":"container"}}`, 400, "invalid container format"},
		{"a volume with propagation", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"Binds":["vol:/b:shared"]}}`, 400, `invalid mount config for type "volume"`},
		{"an IPv4 address for IPv6", "POST", "/containers/create", js, `{"Image":"x","NetworkingConfig":{"EndpointsConfig":{"n":{"IPAMConfig":{"IPv6Address":"::ffff:10.1.1.1"}}}}}`, 400, "invalid IPv6 address"},
		{"ports in another's network", "POST", "/containers/create", js, `{"Image":"x","HostConfig":{"NetworkMode":"container:a","PortBindings":{"80/tcp":[{}]}}}`, 400, "conflicting options"},
		{"a health check too often", "POST", "/containers/create", js, `{"Image":"x","Healthcheck":{"Interval":1}}`, 400, "Interval in Healthcheck"},
		{"an image that is not there", "POST", "/containers/create?name=n", js, `{"Image":"missing"}`, 404, "No such image"},
		{"a network without a name", "POST", "/networks/create", js, `{}`, 400, "name is empty"},
		{"a subnet with host bits", "POST", "/networks/create", js, `{"Name":"n","IPAM":{"Config":[{"Subnet":"10.1.2.3/24"}]}}`, 400, "it should be 10.1.2.0/24"},
		{"no subnet at all", "POST", "/networks/create", js, `{"Name":"n","IPAM":{"Config":[{"Subnet":"10.1.2.3"}]}}`, 400, "invalid JSON"},
		{"a gateway outside", "POST", "/networks/create", js, `{"Name":"n","IPAM":{"Config":[{"Subnet":"10.1.2.0/24","Gateway":"10.1.3.1"}]}}`, 400, "doesn't contain this address"},
		{"a range outside", "POST", "/networks/create", js, `{"Name":"n","IPAM":{"Config":[{"Subnet":"10.1.2.0/24","IPRange":"10.1.3.0/25"}]}}`, 400, "doesn't contain it"},
		{"a gateway of nothing", "POST", "/networks/create", js, `{"Name":"n","IPAM":{"Config":[{"Gateway":"10.1.3.1"}]}}`, 400, "need a subnet"},
		{"overlapping subnets", "POST", "/networks/create", js, `{"Name":"n","IPAM":{"Config":[{"Subnet":"10.1.0.0/16"},{"Subnet":"10.1.2.0/24"}]}}`, 400, "overlap"},
		{"an unknown driver", "POST", "/networks/create", js, `{"Name":"n","Driver":"weave"}`, 404, "weave"},
		{"an unknown IPAM driver", "POST", "/networks/create", js, `{"Name":"n","IPAM":{"Driver":"dhcp"}}`, 404, "dhcp"},
		{"a predefined network", "POST", "/networks/create", js, `{"Name":"bridge"}`, 403, "operation is not permitted on predefined bridge network"},
		{"a predefined network removed", "DELETE", "/networks/host", "", "", 403, "pre-defined"},
		{"an unknown network", "GET", "/networks/nosuch", "", "", 404, "network nosuch not found"},
		{"verbosely wrong", "GET", "/networks/host?verbose=very", "", "", 400, "very"},
		{"a bad volume name", "POST", "/volumes/create", js, `{"Name":"../etc"}`, 400, "invalid characters"},
		{"an unknown volume driver", "POST", "/volumes/create", js, `{"Name":"vol","Driver":"nfs"}`, 404, "nfs"},
		{"an unknown link", "DELETE", "/containers/nosuch/x", "", "", 404, "No such container: nosuch/x"},
		{"an unknown volume", "DELETE", "/volumes/nosuch", "", "", 404, "no such volume"},
		{"a bad image name", "POST", "/images/create?fromImage=UPPER", "", "", 400, "must be lowercase"},
		{"a bad tag", "POST", "/images/create?fromImage=x&tag=a+b", "", "", 400, "tag"},
		{"scratch", "POST", "/images/create?fromImage=scratch", "", "", 403, "reserved name"},
		{"no image source", "POST", "/images/create", "", "", 400, "fromImage"},
		{"a file as source", "POST", "/images/create?fromSrc=file:///etc/passwd", "", "", 400, "cannot import"},
		{"an unknown image", "GET", "/images/a/b/c/json", "", "", 404, "No such image: a/b/c"},
		{"a bad platform", "POST", "/images/create?fromImage=x&platform=a/b/c/d/e/f", "", "", 400, "platform"},
		{"a bad event time", "GET", "/events?since=then", "", "", 400, "since"},
		{"the end before the start", "GET", "/events?since=20&until=10", "", "", 400, "cannot be after"},
		{"an unknown disk usage", "GET", "/system/df?type=wine", "", "", 400, "wine"},
		{"a service without a version", "POST", "/services/x/update", js, `{}`, 400, "invalid service version ''"},
		{"a node without a version", "POST", "/nodes/node1/update?version=a", js, `{}`, 400, "invalid node version 'a'"},
		{"a node without a role", "POST", "/nodes/node1/update?version=1", js, `{"Availability":"active"}`, 400, "invalid Role"},
		{"a bad availability", "POST", "/nodes/node1/update?version=1", js, `{"Role":"worker","Availability":"asleep"}`, 400, "asleep"},
		{"a service without an image", "POST", "/services/create", js, `{"Name":"x","TaskTemplate":{"ContainerSpec":{}}}`, 400, "image reference must be provided"},
		{"a service of nothing", "POST", "/services/create", js, `{"Name":"x"}`, 400, "ContainerSpec"},
		{"two modes", "POST", "/services/create", js, `{"Name":"x","Mode":{"Global":{},"Replicated":{}},"TaskTemplate":{"ContainerSpec":{"Image":"x"}}}`, 400, "more than one service mode"},
		{"negative replicas", "POST", "/services/create", js, `{"Name":"x","Mode":{"Replicated":{"Replicas":-1}},"TaskTemplate":{"ContainerSpec":{"Image":"x"}}}`, 400, "Replicas cannot be a number -1"},
		{"a bad port", "POST", "/services/create", js, `{"Name":"x","EndpointSpec":{"Ports":[{"TargetPort":70000}]},"TaskTemplate":{"ContainerSpec":{"Image":"x"}}}`, 400, "70000"},
		{"one port twice", "POST", "/services/create", js, `{"Name":"x","EndpointSpec":{"Ports":[{"TargetPort":1,"PublishedPort":9},{"TargetPort":2,"PublishedPort":9}]},"TaskTemplate":{"ContainerSpec":{"Image":"x"}}}`, 400, "duplicate published ports"},
		{"ingress with dnsrr", "POST", "/services/create", js, `{"Name":"x","EndpointSpec":{"Mode":"dnsrr","Ports":[{"TargetPort":1,"PublishedPort":9}]},"TaskTemplate":{"ContainerSpec":{"Image":"x"}}}`, 400, "dnsrr"},
		{"a tiny reservation", "POST", "/services/create", js, `{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"x"},"Resources":{"Reservations":{"MemoryBytes":5}}}}`, 400, "4MiB"},
		{"a bad restart condition", "POST", "/services/create", js, `{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"x"},"RestartPolicy":{"Condition":"maybe"}}}`, 400, "maybe"},
		{"a bad update order", "POST", "/services/create", js, `{"Name":"x","UpdateConfig":{"Order":"sideways"},"TaskTemplate":{"ContainerSpec":{"Image":"x"}}}`, 400, "sideways"},
		{"a job", "POST", "/services/create", js, `{"Name":"x","Mode":{"ReplicatedJob":{}},"UpdateConfig":{},"TaskTemplate":{"ContainerSpec":{"Image":"x"}}}`, 400, "Jobs may not have an update config"},
		{"a bad state", "GET", "/tasks?filters={\"desired-state\":[\"asleep\"]}", "", "", 400, "asleep"},
		{"a bad role", "GET", "/nodes?filters={\"role\":[\"king\"]}", "", "", 400, "king"},
		{"an unknown service", "DELETE", "/services/nosuch", "", "", 404, "service nosuch not found"},
		{"a join to nowhere", "POST", "/swarm/join", js, `{}`, 400, "RemoteAddr"},
		{"a join without a token", "POST", "/swarm/join", js, `{"RemoteAddrs":["a:1"]}`, 400, "token"},
		{"a bad data port", "POST", "/swarm/init", js, `{"DataPathPort":80}`, 400, "80"},
		{"a wrong unlock key", "POST", "/swarm/unlock", js, `{"UnlockKey":"SWMKEY-1-wrong"}`, 401, "invalid key provided"},
		{"a template", "POST", "/configs/create", js, `{"Name":"c","Data":"eA==","Templating":{"Name":"jinja"}}`, 400, "unrecognized template type"},
		{"wrong credentials", "POST", "/auth", js, `{"username":"u","password":"wrong"}`, 401, "incorrect username"},
		{"a build by an unknown builder", "POST", "/build?version=3", "application/x-tar", "x", 400, "invalid version"},
		{"a squashed build", "POST", "/build?squash=1", "application/x-tar", "x", 400, "squash"},
		{"a build with bad arguments", "POST", "/build?buildargs=x", "application/x-tar", "x", 400, "buildarg"},
		{"a session without its protocol", "POST", "/session", "", "", 400, "no upgrade proto in request"},
		{"a cancel of nothing", "POST", "/build/cancel", "", "", 400, "build ID not provided"},
		{"a prune by two rules", "POST", "/build/prune?filters={\"until\":[\"1h\"],\"unused-for\":[\"1h\"]}", "", "", 400, "conflicting filters"},
		{"a plugin", "POST", "/plugins/pull?remote=x", "", "", 501, "plugins"},
		{"a checkpoint", "GET", "/containers/web/checkpoints", "", "", 501, "checkpoints"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, h, body := l.do(t, c.method, "/v1.50"+c.path, c.contentType, c.body)
			var e struct{ Message string }
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Message == "" {
				t.Fatalf("%d, and no message in %q", status, body)
			}
			if status != c.status || !strings.Contains(e.Message, c.says) {
				t.Errorf("%d %q, want %d and %q", status, e.Message, c.status, c.says)
			}
			if got := h.Get("Content-Type"); got != "application/json" {
				t.Errorf("content type %q", got)
			}
		})
	}
	if n := len(l.containers.List()); n != 1 {
		t.Errorf("%d containers after requests that were all refused", n)
	}
	if n := len(l.swarm.cluster.services); n != 0 {
		t.Errorf("%d services after requests that were all refused", n)
	}
}

// TestEveryRouteIsAnswered walks the paths of Docker's own description of its API: none is unknown here.
func TestEveryRouteIsAnswered(t *testing.T) {
	l := newLab(t)
	for _, r := range swaggerRoutes(t) {
		path := regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(r.path, "nosuch")
		if r.method == "GET" && path == "/events" {
			path += "?until=1"
		}
		contentType, body := "", ""
		if r.method == "POST" {
			contentType = "application/json"
		}
		status, _, answer := l.do(t, r.method, "/v1.56"+path, contentType, body)
		if status == 404 && strings.Contains(answer, "page not found") || status >= 500 && status != 501 && status != 503 {
			t.Errorf("%s %s: %d %s", r.method, r.path, status, answer)
		}
	}
}

type swaggerRoute struct{ method, path string }

// swaggerRoutes reads the routes from swagger.yaml of the API's module.
func swaggerRoutes(t *testing.T) []swaggerRoute {
	t.Helper()
	f, err := os.Open(swaggerFile(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []swaggerRoute
	var inPaths bool
	var path string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		switch {
		case line == "paths:":
			inPaths = true
		case !inPaths:
		case strings.HasPrefix(line, "  /"):
			path = strings.TrimSuffix(strings.TrimSpace(line), ":")
		case len(line) > 5 && line[:4] == "    " && line[4] != ' ' && line[4] != '#':
			if m := strings.ToUpper(strings.TrimSuffix(strings.TrimSpace(line), ":")); m == "GET" || m == "HEAD" || m == "POST" || m == "PUT" || m == "DELETE" {
				out = append(out, swaggerRoute{m, path})
			}
		}
	}
	if len(out) < 100 {
		t.Fatalf("only %d routes found in swagger.yaml", len(out))
	}
	return out
}

func TestAPanicStaysInTheLog(t *testing.T) {
	l := newLab(t)
	l.containers.panics = true
	status, _, body := l.do(t, "GET", "/containers/x/json", "", "")
	if status != 500 || strings.Contains(body, "hunter2") || !strings.Contains(body, "internal error") {
		t.Errorf("%d %s", status, body)
	}
	if log := l.log.String(); !strings.Contains(log, "hunter2") || !strings.Contains(log, "fakes_containers_test.go") {
		t.Errorf("the log does not say what happened where: %s", log)
	}
	l.containers.panics = false
	if status, _, _ := l.do(t, "GET", "/_ping", "", ""); status != 200 {
		t.Errorf("after the panic: %d", status)
	}
}
