package onehost

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

// TestImagesAndRegistries goes the way of an image: pushed, pulled by tag, by digest and with all tags, saved, loaded,
// imported, looked at and removed.
func TestImagesAndRegistries(t *testing.T) {
	t.Parallel()
	l := New(t, 2, testhost.InsecureArg)
	h, other := l.Hosts[0], l.Hosts[1]
	r, err := l.StartRegistry()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	name := r.Addr + "/team/tool"
	for _, tag := range []string{":1", ":2"} {
		Docker(t, h, "tag", image, name+tag)
	}
	contains(t, "push of all tags", Docker(t, h, "push", "-a", name), "1: digest: sha256:", "2: digest: sha256:")
	digest := regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(Docker(t, h, "inspect", "-f", "{{.RepoDigests}}", name+":1"))
	if digest == "" {
		t.Fatal("a pushed image shows no digest")
	}

	contains(t, "pull by digest", Docker(t, other, "pull", name+"@"+digest), "Digest: "+digest)
	contains(t, "an image without a tag", regexp.MustCompile(` +`).ReplaceAllString(Docker(t, other, "images", "--digests"), " "), name+" <none> "+digest)
	contains(t, "run by digest", Docker(t, other, "run", "--rm", name+"@"+digest, "echo", "hello"), "hello")
	contains(t, "pull of all tags", Docker(t, other, "pull", "-a", name), name)
	contains(t, "all tags", Docker(t, other, "images", "--format", "{{.Repository}}:{{.Tag}}", name), name+":1", name+":2")
	contains(t, "pulled again", Docker(t, other, "pull", name+":1"), "Image is up to date for "+name+":1")
	Refused(t, other, []string{"manifest unknown"}, "pull", name+":9")
	Refused(t, other, []string{"does not match the specified platform"}, "run", "--rm", "--pull", "never", "--platform", "linux/s390x", name+":1", "true")
	contains(t, "the tree", Docker(t, other, "image", "ls", "--tree", name+":1"), name)

	// The same image saved twice, and saved again after it was loaded, gives the same bytes.
	save := func(h *testhost.Host, file string) string {
		t.Helper()
		path := filepath.Join(h.Dir, file)
		Docker(t, h, "save", "-o", path, name+":1", name+":2")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := save(h, "first.tar")
	if first != save(h, "second.tar") {
		t.Error("two saves of the same images differ")
	}
	contains(t, "names that go", Docker(t, other, "rmi", "-f", name+":1", name+":2"), "Untagged: "+name+":1", "Untagged: "+name+":2", "Untagged: "+name+"@"+digest)
	contains(t, "load", Docker(t, other, "load", "-i", filepath.Join(h.Dir, "first.tar")), "Loaded image: "+name+":1", "Loaded image: "+name+":2")
	if first != save(other, "third.tar") {
		t.Error("a save of what was loaded differs from what was saved")
	}
	contains(t, "history", Docker(t, other, "history", "--no-trunc", name+":1"), "testimage")

	// Import and what changes are.
	Docker(t, h, "create", "--name", "box", image)
	Docker(t, h, "export", "-o", filepath.Join(h.Dir, "box.tar"), "box")
	Docker(t, h, "import", "--change", `ENTRYPOINT ["`+entrypoint(t, h)+`"]`, "--change", "LABEL made=here", "--message", "by import", filepath.Join(h.Dir, "box.tar"), "imported:1")
	contains(t, "an imported image", Docker(t, h, "run", "--rm", "imported:1", "echo", "hello"), "hello")
	contains(t, "its history", Docker(t, h, "history", "imported:1"), "by import")
	contains(t, "by label", Docker(t, h, "images", "--filter", "label=made=here", "--format", "{{.Repository}}"), "imported")

	// Pruning takes what has no name, or no container, as asked.
	Docker(t, h, "import", filepath.Join(h.Dir, "box.tar"), "imported:1")
	if n := Docker(t, h, "images", "-q", "--filter", "dangling=true"); strings.Count(n, "\n") != 0 || n == "" {
		t.Errorf("dangling are %q, want the one that lost its name", n)
	}
	contains(t, "kept by a label", Docker(t, h, "image", "prune", "-f", "--filter", "label!=made=here"), "reclaimed space: 0B")
	contains(t, "pruned", Docker(t, h, "image", "prune", "-f"), "deleted: sha256:")
	contains(t, "pruned by time", Docker(t, h, "image", "prune", "-a", "-f", "--filter", "until=24h"), "Total reclaimed space")
	Docker(t, h, "rmi", name+":1", name+":2")
	Refused(t, h, []string{"conflict: unable to", "is using its referenced image"}, "rmi", image)
	contains(t, "sizes", Docker(t, h, "system", "df", "-v"), "SHARED SIZE", "UNIQUE SIZE")
}

func entrypoint(t *testing.T, h *testhost.Host) string {
	t.Helper()
	return Docker(t, h, "inspect", "-f", "{{index .Config.Entrypoint 0}}", image)
}

// TestAnImageOfSeveralPlatforms is kept whole as far as it was asked for.
func TestAnImageOfSeveralPlatforms(t *testing.T) {
	t.Parallel()
	l := New(t, 1, testhost.InsecureArg)
	h := l.Hosts[0]
	z, err := testimage.Build(t.Context(), testimage.Spec{Tags: []string{"z:1"}, Architecture: "s390x", Files: map[string]testimage.File{"/arch": testimage.Text("s390x")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.DockerInput(t.Context(), z, "load"); err != nil {
		t.Fatal(err)
	}
	equal(t, "its platform", Docker(t, h, "inspect", "-f", "{{.Os}}/{{.Architecture}}", "z:1"), "linux/s390x")
	c, err := h.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	kept, err := c.ImageInspect(t.Context(), image, client.ImageInspectWithManifests(true))
	if err != nil {
		t.Fatal(err)
	}
	if size := kept.Manifests[0].Size; size.Content < 1<<20 || size.Total <= size.Content+1<<20 {
		t.Errorf("what an image of one platform takes: %+v, packed and unpacked are more", size)
	}
	for _, asked := range []*ocispec.Platform{nil, {OS: "linux", Architecture: "s390x"}} {
		made, err := c.ContainerCreate(t.Context(), client.ContainerCreateOptions{Image: "z:1", Config: &container.Config{Cmd: []string{"/arch"}}, Platform: asked})
		if err != nil {
			t.Fatal(err)
		}
		warned := strings.Contains(strings.Join(made.Warnings, "\n"), "The requested image's platform (linux/s390x) does not match the detected host platform (linux/")
		if warned != (asked == nil) {
			t.Errorf("a container of z:1 for platform %v: warnings %q", asked, made.Warnings)
		}
		Docker(t, h, "rm", made.ID)
	}
	Docker(t, h, "save", "--platform", "linux/s390x", "-o", filepath.Join(h.Dir, "z.tar"), "z:1")
	Refused(t, h, []string{"platform"}, "save", "--platform", "linux/riscv64", "-o", filepath.Join(h.Dir, "no.tar"), "z:1")
	Refused(t, h, []string{"platform"}, "load", "--platform", "linux/riscv64", "-i", filepath.Join(h.Dir, "z.tar"))
	contains(t, "load of a platform", Docker(t, h, "load", "--platform", "linux/s390x", "-i", filepath.Join(h.Dir, "z.tar")), "Loaded image: z:1")
}
