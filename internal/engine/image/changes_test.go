package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

func TestChanges(t *testing.T) {
	type pick func(c runConfig) any
	cmd := func(c runConfig) any { return c.Cmd }
	env := func(c runConfig) any { return c.Env }
	for _, c := range []struct {
		change string
		pick   pick
		want   any
	}{
		{`CMD ["a", "b c"]`, cmd, []string{"a", "b c"}},
		{`cmd echo  "hi there" $X`, cmd, []string{"/bin/sh", "-c", `echo  "hi there" $X`}},
		{`CMD ["a", 1]`, cmd, []string{"/bin/sh", "-c", `["a", 1]`}},
		{`CMD []`, cmd, []string{}},
		{`CMD`, cmd, []string{}},
		{`ENTRYPOINT ["/x"]`, func(c runConfig) any { return c.Entrypoint }, []string{"/x"}},
		{`ENV A 1 2  3`, env, []string{"P=q", "A=1 2  3"}},
		{`ENV A=1 B="x y" C='$z' D=a\ b`, env, []string{"P=q", "A=1", "B=x y", "C=$z", "D=a b"}},
		{`ENV P=new`, env, []string{"P=new"}},
		{`ENV A=`, env, []string{"P=q", "A="}},
		{`ENV A=b=c`, env, []string{"P=q", "A=b=c"}},
		{`ENV P=/bin:$P A=${P}r B="$P" C='$P' D=\$P E=$NO. F=$`, env, []string{"P=/bin:q", "A=qr", "B=q", "C=$P", "D=$P", "E=.", "F=$"}},
		{`ENV A=${NO:-x$P} B=${P:+y} C=${NO-z} D=${NO:+w}`, env, []string{"P=q", "A=xq", "B=y", "C=z", "D="}},
		{`WORKDIR $P/x`, func(c runConfig) any { return c.WorkingDir }, "/work/q/x"},
		{`LABEL "com.example/x"="1 2" y=z`, func(c runConfig) any { return c.Labels }, map[string]string{"com.example/x": "1 2", "y": "z"}},
		{`EXPOSE 80 53/udp 8000-8002`, func(c runConfig) any { return c.ExposedPorts },
			map[string]struct{}{"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}},
		{`USER me:us`, func(c runConfig) any { return c.User }, "me:us"},
		{`WORKDIR sub`, func(c runConfig) any { return c.WorkingDir }, "/work/sub"},
		{`WORKDIR /a/../b`, func(c runConfig) any { return c.WorkingDir }, "/b"},
		{`VOLUME /a /b`, func(c runConfig) any { return c.Volumes }, map[string]struct{}{"/a": {}, "/b": {}}},
		{`VOLUME ["/a b"]`, func(c runConfig) any { return c.Volumes }, map[string]struct{}{"/a b": {}}},
		{`STOPSIGNAL SIGQUIT`, func(c runConfig) any { return c.StopSignal }, "SIGQUIT"},
		{`SHELL ["/bin/bash", "-c"]`, func(c runConfig) any { return c.Shell }, []string{"/bin/bash", "-c"}},
		{`ONBUILD RUN x`, func(c runConfig) any { return c.OnBuild }, []string{"RUN x"}},
		{`HEALTHCHECK --interval=5s --timeout=1s --retries=2 CMD curl x`, func(c runConfig) any { return *c.Healthcheck },
			Healthcheck{Test: []string{"CMD-SHELL", "curl x"}, Interval: 5 * time.Second, Timeout: time.Second, Retries: 2}},
		{`HEALTHCHECK CMD ["a"]`, func(c runConfig) any { return c.Healthcheck.Test }, []string{"CMD", "a"}},
		{`HEALTHCHECK NONE`, func(c runConfig) any { return c.Healthcheck.Test }, []string{"NONE"}},
		{`  # a comment`, cmd, []string(nil)},
	} {
		rc := runConfig{ImageConfig: ocispec.ImageConfig{Env: []string{"P=q"}, WorkingDir: "/work"}}
		if err := applyChanges(&rc, []string{c.change}); err != nil {
			t.Errorf("%s: %v", c.change, err)
		} else if got := c.pick(rc); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %#v, want %#v", c.change, got, c.want)
		}
	}
	for change, words := range map[string]string{
		"RUN x":                      "run is not a valid change command",
		"ENV":                        "ENV requires an argument",
		"ENV A":                      "must have two arguments",
		"ENV A=${P":                  "missing }",
		"ENV A=${P?x}":               "unsupported modifier",
		"USER ${}":                   "bad substitution",
		"ENV A=1 B":                  "can't find = in",
		`ENV A="1`:                   "looking for matching double-quote",
		"ENV =x":                     "names can not be blank",
		"EXPOSE x":                   "invalid",
		"EXPOSE 70000":               "invalid",
		"USER a b":                   "exactly one argument",
		"STOPSIGNAL NOPE":            "invalid signal",
		"SHELL /bin/sh":              "JSON form",
		"VOLUME [\"\"]":              "empty string",
		"ONBUILD FROM x":             "FROM isn't allowed",
		"HEALTHCHECK --x=1 CMD a":    "unknown flag: --x",
		"HEALTHCHECK RUN a":          "unknown type",
		"HEALTHCHECK --retries=-1 a": "--retries",
		"HEALTHCHECK CMD":            "missing command",
	} {
		wantKind(t, applyChanges(&runConfig{}, []string{change}), fault.InvalidArgument, words)
	}
}

// TestChangesOfSeveralLines: one change may be a piece of a Dockerfile.
func TestChangesOfSeveralLines(t *testing.T) {
	var c runConfig
	if err := applyChanges(&c, []string{"ENV A=b \\\n  C=d\n# no more\nUSER u", "CMD [\"x\"]"}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(c.Env, c.User, c.Cmd); got != "[A=b C=d]u[x]" {
		t.Errorf("got %s", got)
	}
}

func FuzzChanges(f *testing.F) {
	for _, seed := range []string{`CMD ["a"]`, `ENV A="b c" D='e'\ f`, "EXPOSE 1-3/udp", "HEALTHCHECK --interval=1s CMD x", `LABEL "a"=b`, "VOLUME [\"/x\"]", "ONBUILD RUN x", "WORKDIR ../x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		// A range may name the 65535 ports there are; that is right, and slow.
		if strings.Contains(line, "-") && strings.HasPrefix(strings.ToUpper(strings.TrimSpace(line)), "EXPOSE") {
			return
		}
		var c runConfig
		if err := applyChanges(&c, []string{line}); err != nil {
			if !fault.Is(err, fault.InvalidArgument) {
				t.Errorf("%q: %v is not the user's fault", line, err)
			}
			return
		}
		for _, e := range c.Env {
			if strings.HasPrefix(e, "=") {
				t.Errorf("%q: a variable without a name", line)
			}
		}
		if c.WorkingDir != "" && !strings.HasPrefix(c.WorkingDir, "/") {
			t.Errorf("%q: working directory %q", line, c.WorkingDir)
		}
	})
}

// FuzzLoad feeds archives to the loader: whatever comes, it neither panics nor leaves anything outside the store, nor an
// image that cannot be used.
func FuzzLoad(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("needs root: unpacks layers")
	}
	good, err := testimage.Build(f.Context(), testimage.Spec{Tags: []string{"f:1"}, Files: map[string]testimage.File{"/x": testimage.Text("x")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:700])
	for _, evil := range [][2]string{
		{"../../../../etc/evil", "x"}, {"manifest.json", `[{"Config":"a","Layers":["b"]}]`}, {"manifest.json", `{}`}, {"manifest.json", `[null]`},
		{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`}, {"index.json", `{"manifests":[{"digest":"x","size":-1}]}`},
	} {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		_ = tw.WriteHeader(&tar.Header{Name: evil[0], Size: int64(len(evil[1])), Mode: 0o644})
		_, _ = tw.Write([]byte(evil[1]))
		_ = tw.Close()
		f.Add(b.Bytes())
	}
	root, err := os.MkdirTemp("", "sampan-image-")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = os.RemoveAll(root) })
	s := openAt(f, Config{Root: root})
	f.Fuzz(func(t *testing.T, b []byte) {
		imgs, err := s.Load(t.Context(), bytes.NewReader(b), nil)
		if err != nil && !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%v (%v)", err, fault.KindOf(err))
		}
		for _, img := range imgs {
			if _, err := s.Get(t.Context(), img.ID); err != nil {
				t.Error(err)
			}
			if _, err := s.Remove(t.Context(), img.ID, true, true, nil); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestLayerCannotWriteOutsideTheRoot(t *testing.T) {
	s := open(t)
	dir := t.TempDir()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: "link", Typeflag: tar.TypeSymlink, Linkname: dir},
		{Name: "link/evil1", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "../../../../../../../../" + dir + "/evil2", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: dir + "/evil3", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "hard", Typeflag: tar.TypeLink, Linkname: "../../../../../../../../etc/hostname"},
	} {
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	_ = tw.Close()
	_, err := s.Import(t.Context(), bytes.NewReader(b.Bytes()), "evil:1", ImportOptions{})
	if err == nil {
		r := rootfsOf(t, s, "c", "evil:1")
		if _, err := os.Lstat(r.Path + "/hard"); err == nil {
			t.Error("a hard link to a file of the host was made")
		}
	}
	if m, _ := os.ReadDir(dir); len(m) > 0 {
		t.Errorf("files outside the root: %v", m)
	}
}

func TestPlatformChoice(t *testing.T) {
	s := open(t)
	load(t, s, testimage.Spec{Tags: []string{"arm:1"}, Architecture: "arm64", Files: map[string]testimage.File{"/x": testimage.Text("x")}})
	img, err := s.Get(t.Context(), "arm:1")
	if err != nil || img.Architecture != "arm64" {
		t.Errorf("%s, %v", img.Architecture, err)
	}
	l, err := s.List(t.Context())
	if err != nil || len(l) != 1 || !slices.Equal(l[0].RepoTags, []string{"arm:1"}) {
		t.Errorf("%v, %v", l, err)
	}
}
