package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestJobs: services whose tasks run to their end: so many completions, so many at a time, or one on every node. What
// fails is tried again, what is done is not done again, and an update is another run.
func TestJobs(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 3, 1)
	h := l.Hosts[0]
	create := func(name, mode string, args ...string) string {
		t.Helper()
		return Docker(t, h, append([]string{"service", "create", "--no-resolve-image", "--name", name, "--mode", mode}, args...)...)
	}
	ls := func(name string) string {
		return Docker(t, h, "service", "ls", "--filter", "name="+name, "--format", "{{.Mode}} {{.Replicas}}")
	}
	// The command waits until the job is complete.
	out := create("sums", "replicated-job", "--replicas", "5", "--max-concurrent", "2", image, "sleep", "200ms")
	if !strings.Contains(out, "job complete") {
		t.Errorf("service create ended with %q", out[max(0, len(out)-200):])
	}
	if got := ls("sums"); got != "replicated job 0/2 (5/5 completed)" {
		t.Errorf("service ls says %q", got)
	}
	states := Docker(t, h, "service", "ps", "--format", "{{.DesiredState}} {{.CurrentState}}", "sums")
	if strings.Count(states, "Complete Complete ") != 5 {
		t.Errorf("service ps says\n%s", states)
	}
	out = create("everywhere", "global-job", image, "true")
	if got := ls("everywhere"); got != "global job 0/0 (3/3 completed)" || !strings.Contains(out, "job complete") {
		t.Errorf("service ls says %q; create ended with %q", got, out[max(0, len(out)-200):])
	}
	out = Docker(t, h, "service", "update", "--force", "sums")
	if !strings.Contains(out, "job complete") || ls("sums") != "replicated job 0/2 (5/5 completed)" {
		t.Errorf("after another run: %q, %q", ls("sums"), out[max(0, len(out)-200):])
	}
	if it := Docker(t, h, "service", "inspect", "-f", "{{.JobStatus.JobIteration.Index}}", "sums"); it != "1" {
		t.Errorf("the second run is number %s", it)
	}

	// At most two at a time, also while they fail; the restart policy says how often.
	create("fails", "replicated-job", "--detach", "--replicas", "4", "--max-concurrent", "2", "--restart-delay", "100ms", "--restart-max-attempts", "1", image, "false")
	Eventually(t, 60*time.Second, "every slot tried twice", func(ctx context.Context) error {
		out, err := h.Docker(ctx, "service", "ps", "--format", "{{.CurrentState}}", "fails")
		if err == nil && (strings.Count(out, "Failed") != 8 || strings.Count(out, "\n") != 7) {
			err = errors.New(out)
		}
		return err
	})
	if got := ls("fails"); got != "replicated job 0/2 (0/4 completed)" {
		t.Errorf("service ls says %q", got)
	}

	// A host is lost in the middle of it.
	create("long", "replicated-job", "--detach", "--replicas", "6", "--max-concurrent", "6", image, "sleep", "4s")
	Eventually(t, 60*time.Second, "work on the host that will be lost", func(ctx context.Context) error {
		out, err := l.Hosts[2].Docker(ctx, "ps", "-q", "--filter", "label=com.docker.swarm.service.name=long")
		if err == nil && out == "" {
			err = errors.New("none yet")
		}
		return err
	})
	if err := l.Hosts[2].Lose(t.Context()); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 60*time.Second, "all six completed", func(ctx context.Context) error {
		if out, err := h.Docker(ctx, "service", "ls", "--filter", "name=long", "--format", "{{.Replicas}}"); err != nil || out != "0/6 (6/6 completed)" {
			return fmt.Errorf("%s %w", out, err)
		}
		return nil
	})
	Refused(t, h, []string{"replicas-max-per-node can only be used"}, "service", "update", "--replicas-max-per-node", "1", "everywhere")
}
