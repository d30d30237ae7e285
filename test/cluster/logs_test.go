package cluster

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestLogsOfTasksToCome: who follows the logs of a service sees all that its later tasks print, from their first line,
// wherever they run and whichever manager is asked, and none of what was printed before with a tail of none.
func TestLogsOfTasksToCome(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 2, 2)
	service(t, l.Hosts[0], "web", 2)
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	var mu sync.Mutex
	seen := map[string]int{}
	for _, h := range l.Hosts {
		api, err := h.Client()
		if err != nil {
			t.Fatal(err)
		}
		defer api.Close()
		logs, err := api.ServiceLogs(ctx, "web", client.ServiceLogsOptions{ShowStdout: true, ShowStderr: true, Follow: true, Tail: "0"})
		if err != nil {
			t.Fatal(err)
		}
		readers.Go(func() {
			defer logs.Close()
			for s := bufio.NewScanner(logs); s.Scan(); {
				if _, what, ok := strings.Cut(s.Text(), "serving "); ok {
					mu.Lock()
					seen[h.Name+" "+strings.TrimSpace(what)]++
					mu.Unlock()
				}
			}
		})
	}
	Docker(t, l.Hosts[0], "service", "update", "-d", "--replicas", "4", "--force", "web")
	Eventually(t, 60*time.Second, "the lines of four new tasks at both managers", func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if len(seen) != 2*4 {
			return fmt.Errorf("%v", seen)
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	for line, n := range seen {
		if n != 1 {
			t.Errorf("%q came %d times", line, n)
		}
	}
}
