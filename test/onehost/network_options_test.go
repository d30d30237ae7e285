package onehost

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

func addressOf(t *testing.T, h *testhost.Host, name, network string) string {
	t.Helper()
	return strings.TrimSpace(Docker(t, h, "inspect", "-f", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network), name))
}

// TestLinks: on the default bridge a link is in the hosts file, and follows its target's restart; on a user's network it
// is a name of the container's own.
func TestLinks(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "db", "-h", "dbhost", image)
	Docker(t, h, "run", "-d", "--name", "web", "--link", "db:store", image)
	hosts := func() string { return Docker(t, h, "exec", "web", "/probe", "cat", "/etc/hosts") }
	was := addressOf(t, h, "db", "bridge")
	for _, name := range []string{"store", "db", "dbhost"} {
		contains(t, "hosts file", hosts(), was+"\t"+name)
		contains(t, "by link", Soon(t, h, "exec", "web", "/probe", "get", "http://"+name+":8080"), "dbhost")
	}
	Docker(t, h, "stop", "-t", "0", "db")
	Docker(t, h, "run", "-d", "--name", "other", image) // takes the address
	Docker(t, h, "start", "db")
	now := addressOf(t, h, "db", "bridge")
	if now == was {
		t.Fatalf("the address is the same: %s", now)
	}
	Eventually(t, 60*time.Second, "the hosts file to follow", func(context.Context) error {
		if text := hosts(); !strings.Contains(text, now+"\tstore") || strings.Contains(text, was+"\t") {
			return fmt.Errorf("%s", text)
		}
		return nil
	})
	Docker(t, h, "stop", "-t", "0", "db")
	Refused(t, h, []string{"Cannot link to a non running container"}, "run", "--rm", "--link", "db", image, "true")

	Docker(t, h, "network", "create", "app")
	Docker(t, h, "run", "-d", "--name", "api", "--network", "app", "--link", "late:first", image)
	Refused(t, h, []string{"probe:"}, "exec", "api", "/probe", "lookup", "first")
	Docker(t, h, "run", "-d", "--name", "late", "--network", "app", image)
	equal(t, "a link to one that came later", Docker(t, h, "exec", "api", "/probe", "lookup", "first"), addressOf(t, h, "late", "app"))
	Refused(t, h, []string{"probe:"}, "exec", "late", "/probe", "lookup", "first")
}

// TestEndpointSettings: what a user asks of an endpoint is what it has, also after a restart.
func TestEndpointSettings(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "network", "create", "--ipv6", "--subnet", "10.20.0.0/24", "--ip-range", "10.20.0.128/25", "--aux-address", "printer=10.20.0.128",
		"--subnet", "fd20::/64", "--gateway", "fd20::9", "front")
	Docker(t, h, "network", "create", "back")
	Docker(t, h, "run", "-d", "--name", "web", "--network", "name=front,ip=10.20.0.7,ip6=fd20::7,alias=www,mac-address=02:00:00:00:00:42,"+
		"driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1,driver-opt=com.docker.network.endpoint.ifname=front0,link-local-ip=169.254.9.9",
		"--network", "name=back,gw-priority=5", image)
	check := func() {
		t.Helper()
		equal(t, "addresses", Docker(t, h, "inspect", "-f", "{{with .NetworkSettings.Networks.front}}{{.IPAddress}} {{.GlobalIPv6Address}} {{.MacAddress}}{{end}}", "web"),
			"10.20.0.7 fd20::7 02:00:00:00:00:42")
		equal(t, "sysctl", Docker(t, h, "exec", "web", "/probe", "cat", "/proc/sys/net/ipv4/conf/front0/log_martians"), "1")
		equal(t, "hardware address", Docker(t, h, "exec", "web", "/probe", "cat", "/sys/class/net/front0/address"), "02:00:00:00:00:42")
		routes := Docker(t, h, "exec", "web", "/probe", "cat", "/proc/net/route")
		if lines := strings.Split(routes, "\n"); len(lines) < 2 || !strings.HasPrefix(lines[1], "eth") {
			t.Errorf("the default route is not by the network of the higher priority:\n%s", routes)
		}
	}
	check()
	other := strings.Fields(Docker(t, h, "run", "--rm", "--network", "front", image, "lookup", "www"))
	if len(other) == 0 || !strings.Contains(strings.Join(other, " "), "10.20.0.7") {
		t.Errorf("the alias: %v", other)
	}
	Docker(t, h, "restart", "-t", "0", "web")
	check()
	equal(t, "past the printer and the gateway", func() string {
		Docker(t, h, "run", "-d", "--name", "next", "--network", "front", image)
		return addressOf(t, h, "next", "front")
	}(), "10.20.0.130")
	id := strings.TrimSpace(Docker(t, h, "network", "inspect", "-f", "{{.Id}}", "front"))
	equal(t, "a network by its ID", Docker(t, h, "run", "--rm", "--network", id, "--mac-address", "02:00:00:00:00:43", image, "cat", "/sys/class/net/eth0/address"), "02:00:00:00:00:43")
	if hosts := Docker(t, h, "run", "--rm", "--sysctl", "net.ipv6.conf.all.disable_ipv6=1", "--network", "front", image, "cat", "/etc/hosts"); strings.Contains(hosts, ":") {
		t.Errorf("IPv6 is off and yet in the hosts file:\n%s", hosts)
	}
	Refused(t, h, []string{"Address already in use"}, "run", "--rm", "--network", "front", "--ip", "10.20.0.7", image, "true")
	Refused(t, h, []string{"user-specified IP address"}, "run", "--rm", "--ip", "172.17.0.99", image, "true")
}

// TestPortRanges: ranges of the host's ports, ranges of both, everything that is exposed, and given addresses.
func TestPortRanges(t *testing.T) {
	l, h := one(t)
	for i, want := range []string{"0.0.0.0:8000", "0.0.0.0:8001", ""} {
		args := []string{"run", "-d", "--name", fmt.Sprint("range", i), "-p", "8000-8001:8080", image}
		if want == "" {
			Refused(t, h, []string{"all ports are allocated"}, args...)
			continue
		}
		Docker(t, h, args...)
		equal(t, "the port of a range", strings.Split(Docker(t, h, "port", fmt.Sprint("range", i), "8080"), "\n")[0], want)
	}
	Docker(t, h, "run", "-d", "--name", "several", "-p", "9080-9082:8080-8082", "-p", h.Addr.String()+":9090:8080", "-p", "[::1]:9091:8080", "-p", "127.0.0.1::8080/udp", image)
	contains(t, "ports", Docker(t, h, "port", "several"), "8080/tcp -> 0.0.0.0:9080", "8081/tcp -> 0.0.0.0:9081", "8082/tcp -> 0.0.0.0:9082",
		"8080/tcp -> "+h.Addr.String()+":9090", "8080/tcp -> [::1]:9091", "8080/udp -> 127.0.0.1:")
	fetch(t, l.Client, fmt.Sprintf("http://%s:9090", h.Addr))
	fetch(t, h.Machine, "http://[::1]:9091")
	Docker(t, h, "run", "-d", "--name", "all", "-P", "--expose", "8080", "--expose", "7000-7002/udp", image)
	if got := strings.Count(Docker(t, h, "port", "all"), "-> 0.0.0.0:"); got != 4 {
		t.Errorf("%d ports published with -P, want 4", got)
	}
	port := strings.TrimSpace(strings.TrimPrefix(strings.Split(Docker(t, h, "port", "all", "8080"), "\n")[0], "0.0.0.0:"))
	fetch(t, l.Client, fmt.Sprintf("http://%s:%s", h.Addr, port))
}

// TestPortsOfALateNetwork: a container that is connected to a network with a way out has its ports published then, and
// inspect says so.
func TestPortsOfALateNetwork(t *testing.T) {
	l, h := one(t)
	Docker(t, h, "network", "create", "--internal", "in")
	Docker(t, h, "network", "create", "out")
	Docker(t, h, "run", "-d", "--name", "web", "--network", "in", "-p", "8080:8080", image)
	equal(t, "ports inside", Docker(t, h, "port", "web"), "")
	Docker(t, h, "network", "connect", "out", "web")
	contains(t, "ports connected", Docker(t, h, "port", "web"), "8080/tcp -> 0.0.0.0:8080")
	fetch(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr))
	Docker(t, h, "network", "disconnect", "out", "web")
	equal(t, "ports disconnected", Docker(t, h, "port", "web"), "")
	Docker(t, h, "network", "disconnect", "in", "web")
	Docker(t, h, "restart", "-t", "0", "web")
	equal(t, "networks of one taken off all", Docker(t, h, "inspect", "-f", "{{.HostConfig.NetworkMode}} {{len .NetworkSettings.Networks}}", "web"), "in 0")
	Docker(t, h, "network", "connect", "out", "web")
	contains(t, "ports connected again", Docker(t, h, "port", "web"), "8080/tcp -> 0.0.0.0:8080")
}

// TestNetworkKinds: networks without IPv4, macvlan, configurations, and what the list and inspect say of them.
func TestNetworkKinds(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "network", "create", "--ipv4=false", "--ipv6", "--label", "k=six", "six")
	Docker(t, h, "run", "-d", "--name", "web", "--network", "six", "-p", "8080:8080", image)
	six := strings.TrimSpace(Docker(t, h, "inspect", "-f", "{{.NetworkSettings.Networks.six.GlobalIPv6Address}}", "web"))
	if a, err := netip.ParseAddr(six); err != nil || !a.Is6() || addressOf(t, h, "web", "six") != "" && addressOf(t, h, "web", "six") != "invalid IP" {
		t.Errorf("addresses: %q and %q", six, addressOf(t, h, "web", "six"))
	}
	equal(t, "the name", Docker(t, h, "run", "--rm", "--network", "six", image, "lookup", "web"), six)
	fetch(t, h.Machine, "http://[::1]:8080")

	Docker(t, h, "network", "create", "-d", "macvlan", "-o", "parent=eth0", "--subnet", "10.99.0.0/24", "--ip-range", "10.99.0.200/29", "phys")
	Docker(t, h, "run", "-d", "--name", "near", "--network", "phys", image)
	contains(t, "macvlan", addressOf(t, h, "near", "phys"), "10.99.0.20")
	Docker(t, h, "network", "create", "--config-only", "--subnet", "10.31.0.0/24", "cfg")
	Docker(t, h, "network", "create", "--config-from", "cfg", "real")
	equal(t, "from a configuration", Docker(t, h, "network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "real"), "10.31.0.0/24")
	Refused(t, h, []string{"configuration network \"cfg\" is in use"}, "network", "rm", "cfg")

	for filter, want := range map[string]string{"driver=macvlan": "phys", "label=k=six": "six", "type=builtin": "bridge\nhost\nnone", "dangling=true": "cfg\nreal",
		"scope=swarm": "", "name=rea": "real"} {
		equal(t, "filter "+filter, Docker(t, h, "network", "ls", "--filter", filter, "--format", "{{.Name}}"), want)
	}
	contains(t, "inspect", Docker(t, h, "network", "inspect", "-v", "six"), `"Name": "web"`, six)
	contains(t, "prune", Docker(t, h, "network", "prune", "-f", "--filter", "label!=k"), "real")
}
