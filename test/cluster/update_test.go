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

// TestPlannedChangesFailNoRequest: scaling, a rolling update and a drain while requests stream.
func TestPlannedChangesFailNoRequest(t *testing.T) {
	l := Cluster(t, 3, 1)
	h := l.Hosts[0]
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 4, "--network", "n", "--publish", "8080:8080", "--update-order", "start-first", "--update-parallelism", "2", "--update-monitor", "200ms",
		"--health-cmd", "/probe get http://127.0.0.1:8080", "--health-interval", "300ms", image, "serve", "one")
	url := fmt.Sprintf("http://%s:8080", l.Hosts[1].Addr)
	answers(t, l.Client, url, 4)
	stop := stream(l.Client, url)

	Docker(t, h, "service", "scale", "-d", "web=8")
	running(t, h, "web", 8)
	Docker(t, h, "service", "scale", "-d", "web=3")
	running(t, h, "web", 3)
	Docker(t, h, "service", "update", "-d", "--args", "serve two", "web")
	Eventually(t, 60*time.Second, "the update complete", updated(l.Hosts[0].Docker, "web", "completed"))
	Docker(t, h, "node", "update", "--availability", "drain", l.Hosts[1].Name)
	running(t, h, "web", 3, l.Hosts[1])
	body, err := get(l.Client.HTTP(3*time.Second), url)
	if err != nil || !strings.Contains(body, " two ") {
		t.Errorf("after the update the service answers %q, %v", body, err)
	}
	noneFailed(t, stop)
}

// TestFailedUpdateRollsBack: an update whose tasks fail goes back by itself, and the service never stops answering.
func TestFailedUpdateRollsBack(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 2, 1)
	h := l.Hosts[0]
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 4, "--network", "n", "--publish", "8080:8080", "--update-failure-action", "rollback", "--update-monitor", "2s",
		"--update-parallelism", "1", "--rollback-monitor", "200ms", image, "serve", "good")
	url := fmt.Sprintf("http://%s:8080", h.Addr)
	answers(t, l.Client, url, 4)
	Docker(t, h, "service", "update", "-d", "--args", "exit 1", "web")
	Eventually(t, 60*time.Second, "the rollback complete", updated(h.Docker, "web", "rollback_completed"))
	running(t, h, "web", 4)
	Eventually(t, 60*time.Second, "an answer of the good one", func(context.Context) error { // a task that runs may not listen yet
		body, err := get(l.Client.HTTP(3*time.Second), url)
		if err == nil && !strings.Contains(body, " good ") {
			err = errors.New(body)
		}
		return err
	})
	if args := Docker(t, h, "service", "inspect", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Args}}", "web"); args != "[serve good]" {
		t.Errorf("the specification has %s", args)
	}
}

// TestPromoteAndDemote: a worker becomes a manager and a worker again, live.
func TestPromoteAndDemote(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 2, 1)
	a, b := l.Hosts[0], l.Hosts[1]
	service(t, a, "web", 2)
	Docker(t, a, "node", "promote", b.Name)
	Eventually(t, 60*time.Second, "the API of the new manager", func(ctx context.Context) error {
		_, err := b.Docker(ctx, "service", "ls")
		return err
	})
	Docker(t, b, "service", "scale", "-d", "web=3")
	running(t, a, "web", 3)
	Docker(t, a, "node", "demote", b.Name)
	Eventually(t, 60*time.Second, "a worker again", func(ctx context.Context) error {
		if _, err := b.Docker(ctx, "service", "ls"); err == nil || !strings.Contains(err.Error(), "not a swarm manager") {
			return fmt.Errorf("service ls on the demoted node: %v", err)
		}
		return nil
	})
	Docker(t, a, "service", "scale", "-d", "web=4")
	running(t, a, "web", 4)
	Docker(t, b, "swarm", "leave")
	status(t, a, b, "Down")
	Docker(t, a, "node", "rm", b.Name)
	running(t, a, "web", 4, b)
}

// updated is nil once the service's update is in the state want.
func updated(docker func(context.Context, ...string) (string, error), service, want string) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := docker(ctx, "service", "inspect", "-f", "{{.UpdateStatus.State}} {{.UpdateStatus.Message}}", service)
		if err == nil && !strings.HasPrefix(out, want+" ") {
			err = errors.New(out)
		}
		return err
	}
}
