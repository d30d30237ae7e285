package builder

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sampan-cloud/sampan/internal/build"
)

// tarOf is a context with one file.
func tarOf(t *testing.T, name, text string, compressed bool) io.ReadCloser {
	t.Helper()
	var b bytes.Buffer
	var out io.Writer = &b
	var zip *gzip.Writer
	if compressed {
		zip = gzip.NewWriter(&b)
		out = zip
	}
	w := tar.NewWriter(out)
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	_, err := io.WriteString(w, text)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if zip != nil {
		if err := zip.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return io.NopCloser(&b)
}

// show runs what happened through the classic stream and returns its text, and its error with code.
func show(t *testing.T, r *build.Request, dockerfile string, vertexes []string, end error) (text, failure string, code int) {
	t.Helper()
	file := watchFor(tarOf(t, "Dockerfile", dockerfile, true), "")
	if _, err := io.Copy(io.Discard, file); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	c := newClassic(newMessages(w), r, file)
	now := timestamppb.New(time.Unix(1, 0))
	for _, name := range vertexes {
		name, printed, _ := strings.Cut(name, "|")
		digest := "sha256:" + strings.Repeat("a", 60) + name[len(name)-4:]
		if err := c.status(&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{{Digest: digest, Name: name, Started: now}}}); err != nil {
			t.Fatal(err)
		}
		if err := c.status(&controlapi.StatusResponse{Logs: []*controlapi.VertexLog{{Vertex: digest, Msg: []byte(printed)}}}); err != nil {
			t.Fatal(err)
		}
	}
	if end != nil {
		c.failure(end)
	} else if err := c.done("sha256:" + strings.Repeat("b", 64)); err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(w.Body); ; {
		var m message
		if err := dec.Decode(&m); err != nil {
			return text, failure, code
		}
		text += m.Stream
		if m.Detail != nil {
			failure, code = m.Detail.Message, m.Detail.Code
		}
	}
}

func TestClassicStream(t *testing.T) {
	const dockerfile = "ARG V=1\nFROM base AS one\nENV A=b\nRUN echo hi\nFROM scratch\nCOPY --from=one /a /\nLABEL x=y\n"
	text, _, _ := show(t, &build.Request{Tags: []string{"app", "app:2"}}, dockerfile,
		[]string{"[internal] load build context", "[one 1/2] FROM docker.io/library/base", "[one 2/2] RUN echo hi|hi\n", "[stage-1 1/1] COPY --from=one /a /", "exporting to image|noise"}, nil)
	const want = `Step 1/6 : FROM base AS one
Step 2/6 : ENV A=b
Step 3/6 : RUN echo hi
hi
Step 4/6 : FROM scratch
Step 5/6 : COPY --from=one /a /
Step 6/6 : LABEL x=y
Successfully built bbbbbbbbbbbb
Successfully tagged app:latest
Successfully tagged app:2
`
	if text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	text, _, _ = show(t, &build.Request{Quiet: true}, dockerfile, []string{"[one 2/2] RUN echo hi|hi\n"}, nil)
	if text != "sha256:"+strings.Repeat("b", 64)+"\n" {
		t.Errorf("quiet: %q", text)
	}
	one := "1"
	text, _, _ = show(t, &build.Request{Args: map[string]*string{"V": &one, "X": &one, "Y": nil, "A": &one, "http_proxy": &one}}, dockerfile, []string{"[one 1/2] FROM base"}, nil)
	if !strings.Contains(text, "[Warning] One or more build-args [A X Y] were not consumed\n") {
		t.Errorf("arguments that nothing asks for:\n%s", text)
	}
	// What a base image adds (ONBUILD) moves the numbers.
	text, _, _ = show(t, &build.Request{}, "FROM base\nRUN own\n", []string{"[1/3] FROM base", "[2/3] ONBUILD RUN theirs|theirs\n", "[3/3] RUN own|own\n"}, nil)
	if !strings.HasPrefix(text, "Step 1/2 : FROM base\n# Executing 1 build trigger\ntheirs\nStep 2/2 : RUN own\nown\n") {
		t.Errorf("ONBUILD:\n%s", text)
	}
}

func TestClassicFailures(t *testing.T) {
	for _, c := range []struct {
		err, want string
		code      int
	}{
		{`failed to solve: process "/bin/sh -c exit 7" did not complete successfully: exit code: 7`, "The command '/bin/sh -c exit 7' returned a non-zero code: 7", 7},
		{`process "/bin/sh -c echo \"a\" && false" did not complete successfully: exit code: 1`, `The command '/bin/sh -c echo "a" && false' returned a non-zero code: 1`, 1},
		{`failed to solve: failed to compute cache key: failed to calculate checksum of ref a::b: "/x": not found`, "COPY failed: file not found in build context or excluded by .dockerignore: stat x: file does not exist", 0},
		{"failed to solve: something else", "something else", 0},
	} {
		_, failure, code := show(t, &build.Request{}, "FROM base\nRUN x\n", []string{"[1/2] FROM base"}, errors.New(c.err))
		if failure != c.want || code != c.code {
			t.Errorf("%s: %q, %d", c.err, failure, code)
		}
	}
	// Nothing was said yet: it is the request that is wrong.
	w := httptest.NewRecorder()
	newClassic(newMessages(w), &build.Request{}, nil).failure(errors.New("failed to solve: the Dockerfile cannot be empty"))
	if w.Code != 400 || strings.TrimSpace(w.Body.String()) != "the Dockerfile (Dockerfile) cannot be empty" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestDockerfileOutOfAContext(t *testing.T) {
	for name, asked := range map[string]string{"Dockerfile": "", "./Dockerfile": "Dockerfile", "sub/D": "sub/D", "/sub/D": "./sub/D"} {
		p := watchFor(tarOf(t, name, "FROM x\nRUN y\n", false), asked)
		if _, err := io.Copy(io.Discard, p); err != nil {
			t.Fatal(err)
		}
		if s, _ := p.stages(); len(s) != 1 || len(s[0].Commands) != 1 {
			t.Errorf("%s asked for as %q: %v", name, asked, s)
		}
	}
	p := watchFor(io.NopCloser(strings.NewReader("FROM no tar\n")), "")
	b, err := io.ReadAll(p)
	if s, _ := p.stages(); err != nil || string(b) != "FROM no tar\n" || s != nil {
		t.Errorf("what is no archive: %q, %v, %v", b, err, s)
	}
}

func TestWhatDockerignoreNamesItself(t *testing.T) {
	context := func(files ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(files); i += 2 {
			if err := w.WriteHeader(&tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, files[i+1]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	stdin := ".dockerfile.0123456789abcdef0123"
	for _, c := range []struct {
		begin      []byte
		dockerfile string
		want       []string
	}{
		{context("Dockerfile", "FROM x\n"), "", nil},
		{context(".dockerignore", "other\n", "Dockerfile", "FROM x\n"), "", nil},
		{context(".dockerignore", "Dockerfile\n"), "", []string{"Dockerfile"}},
		{context(".dockerignore", "\ufeffDockerfile\n"), "./Dockerfile", []string{"Dockerfile"}},
		{context("a", "", "./.dockerignore", "*\n!sub\n"), "sub/D", []string{".dockerignore"}},
		{context(".dockerignore", "sub\n"), "sub/D", []string{"sub/D"}},
		{context(".dockerignore", "a\n"+stdin+"\n"), stdin, []string{stdin}},
		{context("big", "x"), stdin, []string{stdin, ".dockerignore"}},
		{[]byte("FROM x\n"), stdin, nil},
		{context(".dockerignore", "[\n"), "", nil},
	} {
		body, got := lookAhead(io.NopCloser(bytes.NewReader(c.begin)), c.dockerfile)
		if !slices.Equal(got, c.want) {
			t.Errorf("%q: left out of the context %q, want %q", c.dockerfile, got, c.want)
		}
		if rest, err := io.ReadAll(body); err != nil || !bytes.Equal(rest, c.begin) {
			t.Errorf("the context was changed by the look at it: %v", err)
		}
	}
}

func FuzzFindInTar(f *testing.F) {
	f.Add([]byte("x"), "Dockerfile")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		p := watchFor(io.NopCloser(bytes.NewReader(b)), name)
		got, err := io.ReadAll(p)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("the context was changed on its way: %v", err)
		}
		if stages, _ := p.stages(); len(stages) > 0 {
			newPlan(stages)
		}
	})
}

func TestOwnSyntax(t *testing.T) {
	for source, own := range map[string]bool{
		"docker/dockerfile": true, "docker/dockerfile:1": true, "docker.io/docker/dockerfile:1.7": true, "docker/dockerfile:1.7.0": true,
		"docker/dockerfile:1.7-labs": false, "docker/dockerfile:labs": false, "docker/dockerfile:2": false, "me/dockerfile:1": false,
		"docker/dockerfile@sha256:" + strings.Repeat("a", 64): false, "": false,
	} {
		if isOwnSyntax(source) != own {
			t.Errorf("%q: want %v", source, own)
		}
	}
}

func TestNamesOfWhatIsBuilt(t *testing.T) {
	names, err := completeNames("app,reg.example:5000/x/y:2,app:latest,")
	if err != nil || strings.Join(names, " ") != "docker.io/library/app:latest reg.example:5000/x/y:2" {
		t.Errorf("%v, %v", names, err)
	}
	for _, bad := range []string{"UPPER", "a@sha256:" + strings.Repeat("a", 64), "a b"} {
		if _, err := completeNames(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestExtraHosts(t *testing.T) {
	got, err := extraHosts([]string{"a:1.2.3.4", "b:::1", "gw:host-gateway"}, "172.17.0.1")
	if err != nil || got != "a=1.2.3.4,b=::1,gw=172.17.0.1" {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"a", ":1.2.3.4", "a:", "gw:host-gateway"} {
		if got, err := extraHosts([]string{bad}, ""); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}
