package onehost

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// description is what is used of the API's own description, the swagger.yaml beside its types.
type description struct {
	Paths       map[string]map[string]operation `yaml:"paths"`
	Definitions map[string]*schema              `yaml:"definitions"`
}

type operation struct {
	ID         string      `yaml:"operationId"`
	Parameters []parameter `yaml:"parameters"`

	method, path string
}

type parameter struct {
	Name   string   `yaml:"name"`
	In     string   `yaml:"in"`
	Type   string   `yaml:"type"`
	Enum   []string `yaml:"enum"`
	Schema *schema  `yaml:"schema"`
}

type schema struct {
	Ref        string             `yaml:"$ref"`
	Type       any                `yaml:"type"`
	Enum       []any              `yaml:"enum"`
	Properties map[string]*schema `yaml:"properties"`
	Values     any                `yaml:"additionalProperties"`
	Items      *schema            `yaml:"items"`
	AllOf      []*schema          `yaml:"allOf"`
	Example    any                `yaml:"example"`
}

// readDescription finds and reads the description in the module of the API's types.
func readDescription(t *testing.T) (*description, []operation) {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatalf("where is the API's module: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "swagger.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var d description
	if err := yaml.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	var all []operation
	for path, methods := range d.Paths {
		for method, op := range methods {
			op.method, op.path = strings.ToUpper(method), path
			all = append(all, op)
		}
	}
	slices.SortFunc(all, func(a, b operation) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	return &d, all
}

// generator makes requests: right ones, nearly right ones, and nonsense.
type generator struct {
	*rand.Rand
	d *description
	// names of what there is, by the word that stands before it in a path.
	names map[string][]string
}

// odd are values that break programs.
var odd = []string{
	"", " ", "0", "-1", "1", "9223372036854775807", "-9223372036854775808", "18446744073709551616", "1e999", "NaN", "0x10", "true", "null", "[]", "{}",
	`{"`, `{"name":`, `{"label":["a=b"]}`, `{"status":{"running":true}}`, `{"until":["-1h"]}`, `{"dangling":["maybe"]}`, `{"name":["("]}`, "..", "a/b", "a:b", "a@sha256:00",
	"sha256:0000000000000000000000000000000000000000000000000000000000000000", "%", "%00", "a\x00b", "\xff\xfe", "ß", "名前", "\u202e", "𝒳", "🙂", "\u2028",
	"10.0.0.0/8", "10.99.0.7/32", "256.1.1.1", "::/0", "fd00::1", "0.0.0.0", "02:42:00:00:00:01", "80/tcp", "70000/udp", "80-90:80-91/sctp", "1h", "-5s", "1970-01-01T00:00:00Z", "99999999999",
	"container:fuzz", "host", "none", "bridge", "default", "overlay", "ctrl-", "ctrl-a,b", "/", "/data", "/data/../../etc", "/proc/self/root", "x=y", "=", "KEY", "all", "ALL", "NET_ADMIN", "CAP_NOPE",
	"SIGKILL", "SIGNOPE", "65", "root:nobody", "999999999999:0", "always", "on-failure:x", "json-file", "json", "test/probe:1", "no/such:image", "UPPER/Case", strings.Repeat("a", 300), strings.Repeat("ä/", 2000),
}

func (g *generator) pick(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return list[g.IntN(len(list))]
}

// text is a string: often one that fits what it is called.
func (g *generator) text(name string) string {
	name = strings.ToLower(name)
	if g.IntN(3) > 0 {
		switch {
		case strings.Contains(name, "image"):
			return g.pick([]string{"test/probe:1", "test/probe", "no/such:1"})
		case name == "filters":
			return g.pick([]string{`{"label":["a"]}`, `{"name":["fuzz"]}`, `{"id":["a"]}`, `{"dangling":["true"]}`, `{"until":["1h"]}`, `{"driver":["bridge"]}`, `{"status":["running"]}`, `{"ancestor":["test/probe:1"]}`})
		case strings.Contains(name, "network"):
			return g.pick(g.names["networks"])
		case strings.Contains(name, "volume"):
			return g.pick(g.names["volumes"])
		case strings.Contains(name, "signal"):
			return g.pick([]string{"TERM", "SIGUSR1", "0", "9"})
		case strings.Contains(name, "path"), strings.Contains(name, "target"), strings.Contains(name, "dir"):
			return g.pick([]string{"/data", "/data/hello", "/probe", "/new", "/etc/passwd"})
		case strings.Contains(name, "container"):
			return g.pick(g.names["containers"])
		}
	}
	return g.pick(odd)
}

func (g *generator) number() any {
	return []any{0, 1, -1, 2, 10, 1000, 64 << 20, 1<<31 - 1, -1 << 31, int64(1) << 53, json.Number("9223372036854775807"), json.Number("-9223372036854775808"),
		json.Number("18446744073709551616"), json.Number("1e400"), 0.5, "7", nil, true}[g.IntN(18)]
}

// unsafe are fields that reach outside of the host under test, or end it.
var unsafe = []string{"CgroupParent", "Runtime", "OomScoreAdj", "CpuRealtimePeriod", "CpuRealtimeRuntime"}

// value makes a document for a schema; now and then one of another shape.
func (g *generator) value(s *schema, name string, depth int) any {
	if s == nil || depth > 7 {
		return nil
	}
	switch g.IntN(40) {
	case 0:
		return nil
	case 1:
		return g.number()
	case 2:
		return g.pick(odd)
	case 3:
		return []any{g.pick(odd), nil}
	case 4:
		return map[string]any{g.pick(odd): g.pick(odd)}
	}
	if s.Ref != "" {
		return g.value(g.d.Definitions[strings.TrimPrefix(s.Ref, "#/definitions/")], name, depth)
	}
	if s.Example != nil && g.IntN(4) == 0 && !reaches(s.Example) {
		return s.Example
	}
	if len(s.Enum) > 0 && g.IntN(4) > 0 {
		return s.Enum[g.IntN(len(s.Enum))]
	}
	kind, _ := s.Type.(string)
	switch {
	case len(s.AllOf) > 0 || len(s.Properties) > 0:
		out := map[string]any{}
		g.fill(out, s, depth)
		return out
	case s.Values != nil:
		out := map[string]any{}
		var each *schema
		if text, err := yaml.Marshal(s.Values); err == nil {
			_ = yaml.Unmarshal(text, &each)
		}
		for range g.IntN(3) {
			key := g.text(name)
			if strings.HasPrefix(key, "/") && name != "Volumes" {
				key = "k"
			}
			out[key] = g.value(each, name, depth+1)
		}
		return out
	case kind == "array":
		var out []any
		for range g.IntN(4) {
			out = append(out, g.value(s.Items, name, depth+1))
		}
		return out
	case kind == "integer", kind == "number":
		return g.number()
	case kind == "boolean":
		return g.IntN(2) == 0
	}
	return g.text(name)
}

func (g *generator) fill(out map[string]any, s *schema, depth int) {
	for _, part := range s.AllOf {
		for part != nil && part.Ref != "" {
			part = g.d.Definitions[strings.TrimPrefix(part.Ref, "#/definitions/")]
		}
		if part != nil {
			g.fill(out, part, depth)
		}
	}
	names := make([]string, 0, len(s.Properties))
	for name := range s.Properties {
		names = append(names, name)
	}
	slices.Sort(names)
	likely := 2
	if len(names) > 12 {
		likely = 8 // of a large document a few fields, so that many get through
	}
	for _, name := range names {
		if g.IntN(likely) > 0 || slices.Contains(unsafe, name) {
			continue
		}
		switch name {
		case "Cmd":
			out[name] = []string{g.pick([]string{"true", "sleep", "tick", "echo", "no-verb"}), g.pick(odd)}
		case "Entrypoint":
			out[name] = []string{g.pick([]string{"/probe", "/no/such", ""})}
		case "Binds", "Devices", "VolumesFrom":
			out[name] = []any{g.pick([]string{"fuzz-volume:/data", "fuzz-volume:/x:ro", "fuzz:ro", "relative/x:/y", ":", "a:b:c:d"}), g.value(s.Properties[name].Items, "", depth+1)}
			if list := out[name].([]any); reaches(list[1]) {
				out[name] = list[:1]
			}
		default:
			if v := g.value(s.Properties[name], name, depth+1); !reaches(v) {
				out[name] = v
			}
		}
	}
}

// reaches tells that a value names a place of the machine itself as a source of mounts or devices.
func reaches(v any) bool {
	text, _ := json.Marshal(v)
	for _, word := range []string{`"Source":"/`, `"device":"/`, `"PathOnHost":"/`, `:/`} {
		if bytes.Contains(text, []byte(word)) && !bytes.Contains(text, []byte("fuzz-volume:/")) {
			return true
		}
	}
	return false
}

// request makes one.
func (g *generator) request(ops []operation) (*http.Request, operation) {
	op := ops[g.IntN(len(ops))]
	path := op.path
	for {
		before, rest, ok := strings.Cut(path, "{")
		if !ok {
			break
		}
		_, after, _ := strings.Cut(rest, "}")
		kind := strings.Split(strings.Trim(before, "/"), "/")[0]
		name := g.pick(g.names[kind])
		if g.IntN(3) == 0 {
			name = g.pick(odd)
		}
		if g.IntN(8) > 0 {
			name = url.PathEscape(name)
		} else {
			name = strings.Map(func(r rune) rune {
				if r <= ' ' || r == '%' || r == '{' || r == '?' || r == '#' || r >= 0x7f {
					return '_'
				}
				return r
			}, name)
		}
		path = before + strings.ReplaceAll(name, "{", "%7B") + after
	}
	query, header := url.Values{}, http.Header{}
	var body []byte
	for _, p := range op.Parameters {
		switch p.In {
		case "query":
			if g.IntN(2) == 0 {
				continue
			}
			v := g.text(p.Name)
			switch {
			case len(p.Enum) > 0 && g.IntN(2) == 0:
				v = g.pick(p.Enum)
			case p.Type == "boolean" && g.IntN(3) > 0:
				v = g.pick([]string{"0", "1", "true", "false"})
			case p.Type == "integer" && g.IntN(3) > 0:
				v = g.pick([]string{"0", "1", "2", "10", "-1", "65536", "9999999999999999999"})
			}
			query.Set(p.Name, v)
		case "header":
			if g.IntN(2) == 0 {
				header.Set(p.Name, url.QueryEscape(g.text(p.Name)))
			}
		case "body":
			if strings.Contains(fmt.Sprint(p.Schema.Type), "string") { // an archive
				body = []byte(g.pick(odd))
				break
			}
			body, _ = json.Marshal(g.value(p.Schema, p.Name, 0))
			switch g.IntN(12) {
			case 0:
				body = body[:g.IntN(len(body)+1)]
			case 1:
				body[g.IntN(len(body))] = byte(g.IntN(256))
			case 2:
				body = []byte(g.pick(odd))
			}
		}
	}
	if g.IntN(10) == 0 {
		query.Set(g.pick([]string{"fromImage", "force", "filters", "since", "t", "x"}), g.pick(odd))
	}
	if op.path == "/containers/{id}/stop" || op.path == "/containers/{id}/restart" {
		query.Set("t", g.pick([]string{"0", "1", "x"})) // the default takes ten seconds
	}
	prefix := "/v" + g.pick([]string{"1.24", "1.40", "1.41", "1.44", "1.47", "1.50", "1.54", "1.56"})
	if g.IntN(30) == 0 {
		prefix = g.pick([]string{"", "/v1.23", "/v9.99", "/v1", "/vx"})
	}
	r, err := http.NewRequest(op.method, "http://docker"+prefix+path+"?"+query.Encode(), bytes.NewReader(body))
	if err != nil {
		return g.request(ops) // not even a client would send that
	}
	r.Header = header
	r.Header.Set("Content-Type", g.pick([]string{"application/json", "application/json", "application/json", "application/x-tar", "text/plain", ""}))
	if g.IntN(6) == 0 || strings.HasSuffix(op.path, "/attach") {
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", g.pick([]string{"tcp", "tcp", "websocket", "h2c", "x"}))
	}
	if g.IntN(40) == 0 {
		r.Header.Set("X-Registry-Auth", g.pick([]string{"e30=", "bm9uc2Vuc2U=", "%%%", strconv.Itoa(g.Int())}))
	}
	return r, op
}
