package docker

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
)

// TestAnswersHaveWhatDockersHave: what clients of one version or another look for in an answer.
func TestAnswersHaveWhatDockersHave(t *testing.T) {
	l := newLab(t)
	id := func(c string) string { return strings.Repeat(c, 64) }
	on := func(network, networkID, endpoint string) container.Attachment {
		return container.Attachment{Endpoints: map[string]container.Endpoint{network: {NetworkName: network, NetworkID: id(networkID), EndpointID: endpoint,
			Config: container.EndpointConfig{Aliases: []string{"al"}}}}}
	}
	running := container.State{Status: container.StatusRunning, Running: true}
	for _, c := range []*container.Container{
		{ID: id("a"), State: running, Config: container.Config{Name: "named", Hostname: "hh", Host: container.HostConfig{NetworkMode: "net1"}}, Networks: on("net1", "9", "e1")},
		{ID: id("b"), State: running, Config: container.Config{Name: "onhost", Host: container.HostConfig{NetworkMode: "host", Links: []string{id("a") + ":db"}}}, Networks: on("host", "1", "e2")},
		{ID: id("c"), State: container.State{Status: container.StatusExited, ExitCode: 3, FinishedAt: time.Now()}, Config: container.Config{Name: "over"}, Networks: on("host", "1", "e3")},
	} {
		l.containers.all[c.ID] = c
	}
	l.containers.execs["ex1"] = &container.Exec{ID: "ex1", Config: container.ExecConfig{Cmd: []string{"x"}, DetachKeys: "ctrl-a,b"}}
	l.images.all["app:1"] = image.Image{ID: "sha256:1", RepoTags: []string{"app:1"}}
	l.images.all["pinned"] = image.Image{ID: "sha256:2", RepoDigests: []string{"pinned@sha256:" + id("2")}}
	l.images.all["none"] = image.Image{ID: "sha256:3"}
	const shown = `"Mounts":[{"Type":"bind","Source":"/s","Target":"/t","ReadOnly":true`
	if code, _, text := l.do(t, "POST", "/v1.41/containers/create?name=words", "application/json",
		`{"Image":"app","Cmd":"one word","Entrypoint":"","HostConfig":{`+shown+`}]}}`); code != http.StatusCreated {
		t.Fatal(code, text)
	}
	for name, ipam := range map[string]string{"with": `{"Options":{"a":"b"}}`, "empty": `{"Options":{}}`, "without": `{}`} {
		if code, _, text := l.do(t, "POST", "/networks/create", "application/json", `{"Name":"`+name+`","IPAM":`+ipam+`}`); code != http.StatusCreated {
			t.Fatal(code, text)
		}
	}
	for _, c := range []struct{ path, says, not string }{
		{"/containers/words/json", `"Cmd":["one word"]`, ""},
		{"/containers/words/json", `"Entrypoint":[""]`, ""},
		{"/v1.43/containers/words/json", shown + `}]`, ""},
		{"/v1.44/containers/words/json", shown + `,"BindOptions":{"ReadOnlyNonRecursive":true}}]`, ""},
		{"/v1.44/containers/named/json", `"Aliases":["al","aaaaaaaaaaaa","hh"]`, ""},
		{"/v1.45/containers/named/json", `"Aliases":["al"]`, ""},
		{"/networks/host", `"Containers":{"` + id("b") + `":{"Name":"onhost","EndpointID":"e2","MacAddress":"","IPv4Address":"","IPv6Address":""}}`, ""},
		{"/networks/with", `"IPAM":{"Driver":"default","Options":{"a":"b"},`, ""},
		{"/networks/empty", `"IPAM":{"Driver":"default","Options":{},`, ""},
		{"/networks/without", `"IPAM":{"Driver":"default","Options":null,`, ""},
		{"/v1.27/networks", `"Containers":{"` + id("b") + `":{"Name":"onhost",`, ""},
		{"/v1.28/networks", `"Name":"host"`, "onhost"},
		{"/v1.24/images/json?filter=app", `"RepoTags":["app:1"]`, "sha256:2"},
		{"/v1.25/images/json?filter=app", `"Id":"sha256:2"`, ""},
		{"/v1.42/images/json", `"Id":"sha256:3","Labels":null,"ParentId":"","RepoDigests":["<none>@<none>"],"RepoTags":["<none>:<none>"]`, ""},
		{"/v1.42/images/json", `"RepoDigests":["pinned@sha256:` + id("2") + `"],"RepoTags":[]`, ""},
		{"/v1.42/images/json", `"RepoDigests":[],"RepoTags":["app:1"]`, ""},
		{"/exec/ex1/json", `"DetachKeys":"AWI="`, ""},
		{"/containers/named/stats?stream=0&one-shot=1", `"io_queue_recursive":[],`, "null"},
		{"/v1.41/system/df", `"Names":["/named","/onhost/db"]`, `"Health"`},
		{"/v1.46/info", `"AllowNondistributableArtifactsCIDRs":[]`, ""},
		{"/v1.47/info", `"InsecureRegistryCIDRs":`, "AllowNondistributable"},
		{"/containers/json?filters=%7B%22exited%22%3A%5B%223%22%5D%7D", `[]`, "over"},
		{"/containers/json?all=1&filters=%7B%22exited%22%3A%5B%223%22%5D%7D", `"/over"`, ""},
	} {
		code, _, text := l.do(t, "GET", c.path, "", "")
		if code != http.StatusOK || !strings.Contains(text, c.says) || c.not != "" && strings.Contains(text, c.not) {
			t.Errorf("%s: %d, want %s and not %q in %s", c.path, code, c.says, c.not, text)
		}
	}
}
