package onehost

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestClassicBuild drives the stock command without BuildKit of its own: /build in its first version.
func TestClassicBuild(t *testing.T) {
	l, h := one(t)
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	build := func(stdin string, args ...string) (string, error) {
		var in []byte
		if stdin != "" {
			in = []byte(stdin)
		}
		return h.DockerEnv(t.Context(), []string{"DOCKER_BUILDKIT=0"}, in, append([]string{"build"}, args...)...)
	}
	write(t, dir, "Dockerfile", "FROM "+image+" AS base\nARG WHO\nENV A=$WHO\nRUN echo hello $A\nFROM base\nCOPY . /ctx/\nRUN write /made yes\nLABEL x=y\nCMD [\"cat\", \"/made\"]\n")
	write(t, dir, ".dockerignore", "secret\n")
	write(t, dir, "secret", "no")
	out, err := build("", "--build-arg", "WHO=world", "--label", "l=v", "--iidfile", filepath.Join(dir, "iid"), "-t", "app:1", "-t", "app:2", dir)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "output", out, "Step 1/9 : FROM "+image+" AS base\n", "Step 4/9 : RUN echo hello $A\nhello world\n", "Step 5/9 : FROM base\n",
		"Step 9/9 : CMD [\"cat\", \"/made\"]\n", "Successfully built ", "Successfully tagged app:1\nSuccessfully tagged app:2")
	equal(t, "made", Docker(t, h, "run", "--rm", "app:2"), "yes")
	equal(t, "context", Docker(t, h, "run", "--rm", "app:2", "ls", "/ctx"), ".dockerignore\nDockerfile")
	id, err := os.ReadFile(filepath.Join(dir, "iid"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "ID", Docker(t, h, "image", "inspect", "-f", "{{.Id}} {{.Config.Labels.l}}", "app:1"), strings.TrimSpace(string(id))+" v")
	contains(t, "events", Docker(t, h, "events", "--since", "1h", "--until", fmt.Sprint(time.Now().Unix()+1), "--filter", "type=image", "--format", "{{.Action}} {{.Actor.Attributes.name}}"),
		"create "+strings.TrimSpace(string(id)), "tag app:1", "tag app:2")
	out, err = build("", "--build-arg", "WHO=world", dir)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "second time", out, " ---> Using cache\n")
	out, err = build("FROM "+image+"\nRUN echo x\n", "-q", "-")
	if err != nil || !strings.HasPrefix(out, "sha256:") || strings.Contains(out, "\n") {
		t.Errorf("quiet: %q, %v", out, err)
	}
	out, err = build("FROM "+image+"\nRUN cat /etc/hosts\n", "--no-cache", "--add-host", "named:1.2.3.4", "--add-host", "gateway:host-gateway", "-")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "hosts", out, "1.2.3.4\tnamed\n", "172.17.0.1\tgateway\n")
	_, err = build("FROM "+image+"\nRUN exit 7\n", "-")
	if exitCode(err) != 7 || !strings.Contains(err.Error(), "The command '/bin/sh -c exit 7' returned a non-zero code: 7") {
		t.Errorf("a failing step: %v", err)
	}
	for _, c := range []struct{ stdin, want string }{
		{"FRM x\n", "unknown instruction: FRM"},
		{"FROM " + image + "\nCOPY nothing /\n", "COPY failed: file not found in build context or excluded by .dockerignore: stat nothing: file does not exist"},
	} {
		if _, err := build(c.stdin, "-"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.stdin, err, c.want)
		}
	}
	// What .dockerignore names of itself and the Dockerfile is for the builder alone.
	write(t, dir, ".dockerignore", "secret\niid\nDockerfile\n.dockerignore\n")
	write(t, dir, "Dockerfile", "FROM "+image+"\nCOPY . /ctx/\nRUN ls /ctx\n")
	write(t, dir, "kept", "here")
	for _, from := range [][]string{{"-f", filepath.Join(dir, "Dockerfile")}, {"-f", "-"}} {
		out, err = build("FROM "+image+"\nCOPY . /ctx/\nRUN ls /ctx\n", append(append([]string{"--no-cache"}, from...), dir)...)
		if err != nil {
			t.Fatal(err)
		}
		contains(t, "the context without what builds it", out, "RUN ls /ctx\nkept\n ---> ")
	}
	Docker(t, h, "rmi", "app:1", "app:2")
	Docker(t, h, "image", "prune", "-f")
	NothingLeft(t, l, before)
}
