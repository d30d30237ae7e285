package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestServicesOnTheHostsNetworks: a service may be on the network host, or bridge, of whichever hosts its tasks come to,
// by the docker command and in a stack, and what cannot go with that is refused.
func TestServicesOnTheHostsNetworks(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 2, 1)
	h := l.Hosts[0]
	Docker(t, h, "service", "create", "-d", "--no-resolve-image", "--name", "agent", "--mode", "global", "--network", "host", image)
	running(t, h, "agent", 2)
	for _, host := range l.Hosts {
		Eventually(t, 60*time.Second, host.Name+"'s answer with the client's address", func(context.Context) error { // it runs, and may not listen yet
			answer, err := get(l.Client.HTTP(5*time.Second), fmt.Sprintf("http://%s:8080", host.Addr))
			if err == nil && !strings.Contains(answer, l.Client.Addr.String()) {
				err = errors.New(answer)
			}
			return err
		})
	}
	if shown := Docker(t, h, "service", "inspect", "--pretty", "agent"); !strings.Contains(shown, "Networks: host") {
		t.Errorf("the service shows\n%s", shown)
	}
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	Docker(t, h, "service", "update", "-d", "--network-rm", "host", "--network-add", "n", "agent")
	running(t, h, "agent", 2)
	Docker(t, h, "service", "rm", "agent")

	// Options of an endpoint reach the container.
	service(t, h, "o", 1, "--network", "name=n,driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1", "--constraint", "node.role==manager")
	if got := in(t, h, containerOf(t, h, "o"), "cat", "/proc/sys/net/ipv4/conf/eth0/log_martians"); got != "1" {
		t.Errorf("the sysctl that the service asked for is %s", got)
	}

	file := filepath.Join(h.Dir, "stack.yml")
	if err := os.WriteFile(file, []byte(`
services:
  host: {image: "test/probe:1", networks: [outside]}
  bridge: {image: "test/probe:1", networks: [inside], ports: [{target: 8080, published: 8088, mode: host}]}
networks:
  outside: {external: true, name: host}
  inside: {external: true, name: bridge}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	Docker(t, h, "stack", "deploy", "-d", "--resolve-image", "never", "-c", file, "s")
	running(t, h, "s_host", 1)
	running(t, h, "s_bridge", 1)
	at := Docker(t, h, "service", "ps", "--format", "{{.Node}}", "s_bridge")
	for _, host := range l.Hosts {
		if host.Name == at {
			answers(t, l.Client, fmt.Sprintf("http://%s:8088", host.Addr), 1)
		}
	}

	// A stack that is removed can be deployed again at once, though its last containers hold its network still.
	if err := os.WriteFile(file, []byte(`
services:
  web: {image: "test/probe:1", networks: [own], ports: ["8090:8080"]}
networks: {own: {}}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		Docker(t, h, "stack", "deploy", "-d", "--resolve-image", "never", "-c", file, "again")
		running(t, h, "again_web", 1)
		Docker(t, h, "stack", "rm", "again")
	}
	Docker(t, h, "stack", "deploy", "-d", "--resolve-image", "never", "-c", file, "again")
	answers(t, l.Client, fmt.Sprintf("http://%s:8090", h.Addr), 1)
	Refused(t, h, []string{"cannot be combined"}, "service", "create", "-d", "--network", "host", "--network", "n", image)
	Refused(t, h, []string{"mode=host"}, "service", "create", "-d", "--network", "host", "--publish", "8089:8080", image)
	if out := Docker(t, h, "network", "ls", "--filter", "name=host", "--format", "{{.Name}} {{.Scope}}"); out != "host local" {
		t.Errorf("networks: %s", out)
	}
}
