// Package cluster drives clusters of real hosts with the stock docker command: several network namespaces, a sampand
// each, cut, killed and healed.
package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	"github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

const image = labtest.Image

// service makes a service of the test image on the network n and waits for its replicas.
func service(t *testing.T, h *testhost.Host, name string, replicas int, args ...string) {
	t.Helper()
	all := append([]string{"service", "create", "-d", "--no-resolve-image", "--name", name, "--replicas", fmt.Sprint(replicas), "--restart-delay", "200ms"}, args...)
	if !contains(all, image) {
		all = append(all, image)
	}
	labtest.Docker(t, h, all...)
	running(t, h, name, replicas)
}

func contains(all []string, s string) bool {
	for _, a := range all {
		if a == s {
			return true
		}
	}
	return false
}

// running waits until the service has n running tasks, none of them on a host in not.
func running(t *testing.T, h *testhost.Host, name string, n int, not ...*testhost.Host) {
	t.Helper()
	labtest.Eventually(t, 60*time.Second, fmt.Sprintf("%d running tasks of %s", n, name), func(ctx context.Context) error {
		return runs(ctx, h, name, n, not...)
	})
}

func runs(ctx context.Context, h *testhost.Host, name string, n int, not ...*testhost.Host) error {
	out, err := h.Docker(ctx, "service", "ps", "--no-trunc", "--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}} {{.Error}}", name)
	if err != nil {
		return err
	}
	got := 0
	for line := range strings.Lines(out) {
		node, state, _ := strings.Cut(line, " ")
		lost := false
		for _, h := range not {
			lost = lost || h.Name == node
		}
		if strings.HasPrefix(state, "Running") && !lost {
			got++
		}
	}
	if got != n {
		return fmt.Errorf("%d of %d run:\n%s", got, n, out)
	}
	return nil
}

// answers asks url from m until n different tasks have answered, and returns them.
func answers(t *testing.T, m *testhost.Machine, url string, n int) map[string]int {
	t.Helper()
	seen := map[string]int{}
	client := m.HTTP(2 * time.Second)
	labtest.Eventually(t, 60*time.Second, fmt.Sprintf("answers of %d tasks at %s", n, url), func(context.Context) error {
		for range 4 * n {
			body, err := get(client, url)
			if err != nil {
				return err
			}
			name, _, _ := strings.Cut(body, " ")
			seen[name]++
		}
		if len(seen) < n {
			return fmt.Errorf("%d answered: %v", len(seen), seen)
		}
		return nil
	})
	return seen
}

func get(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// stream sends requests, a new connection each, until stop is called, which returns how many there were and the first
// errors.
func stream(m *testhost.Machine, url string) (stop func() (sent int64, failed []error)) {
	ctx, cancel := context.WithCancel(context.Background())
	var sent atomic.Int64
	var mu sync.Mutex
	var failed []error
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			client := m.HTTP(5 * time.Second)
			for ctx.Err() == nil {
				sent.Add(1)
				if _, err := get(client, url); err != nil {
					mu.Lock()
					failed = append(failed, fmt.Errorf("%s: %w", time.Now().Format("15:04:05.000"), err))
					mu.Unlock()
				}
			}
		})
	}
	return func() (int64, []error) {
		cancel()
		wg.Wait()
		return sent.Load(), failed
	}
}

func noneFailed(t *testing.T, stop func() (int64, []error)) {
	t.Helper()
	sent, failed := stop()
	if len(failed) > 0 {
		t.Errorf("%d of %d requests failed, the first ones: %v", len(failed), sent, failed[:min(3, len(failed))])
	}
	if sent < 20 {
		t.Errorf("only %d requests were sent", sent)
	}
}

// removed removes a cluster network as soon as nothing uses it any more.
func removed(l *testhost.Lab, name string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := l.Hosts[0].Docker(ctx, "network", "rm", name)
		return err
	}
}
