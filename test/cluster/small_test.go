package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestTwoHostsOneService is the least that a cluster is for: a service on two hosts, found by name, balanced by its
// virtual IP and reached by its published port on each. It waits for everything, so that it holds on slow machines too
// (make vm).
func TestTwoHostsOneService(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 2, 1)
	h := l.Hosts[0]
	Docker(t, h, "network", "create", "-d", "overlay", "--attachable", "--subnet", "10.10.0.0/24", "shop")
	service(t, h, "web", 2, "--network", "shop", "-p", "8080:8080", "--replicas-max-per-node", "1")
	for _, host := range l.Hosts {
		for _, name := range []string{"web", "tasks.web"} {
			Eventually(t, 60*time.Second, fmt.Sprintf("an answer of %s on %s", name, host.Name), func(ctx context.Context) error {
				_, err := host.Docker(ctx, "run", "--rm", "--network", "shop", image, "get", "http://"+name+":8080")
				return err
			})
		}
		if seen := answers(t, l.Client, fmt.Sprintf("http://%s:8080", host.Addr), 2); len(seen) != 2 {
			t.Errorf("on %s answered %v", host.Name, seen)
		}
	}
}
