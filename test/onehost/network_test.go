package onehost

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

func TestNetworks(t *testing.T) {
	l, h := one(t)
	before, err := l.TakeResidue()
	if err != nil {
		t.Fatal(err)
	}
	Docker(t, h, "network", "create", "--subnet", "10.20.0.0/24", "--gateway", "10.20.0.1", "front")
	Docker(t, h, "run", "-d", "--name", "web", "--network", "front", "--network-alias", "www", "-p", "8080:8080", image)
	equal(t, "address", Docker(t, h, "inspect", "-f", "{{.NetworkSettings.Networks.front.IPAddress}}", "web"), "10.20.0.2")
	for _, name := range []string{"web", "www"} {
		equal(t, "name "+name, Docker(t, h, "run", "--rm", "--network", "front", image, "lookup", name), "10.20.0.2")
	}
	contains(t, "by name", Docker(t, h, "run", "--rm", "--network", "front", image, "get", "http://web:8080"), Docker(t, h, "inspect", "-f", "{{.Config.Hostname}}", "web"))
	contains(t, "published, from outside", fetch(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr)), l.Client.Addr.String())
	fetch(t, h.Machine, "http://127.0.0.1:8080")
	fetch(t, h.Machine, fmt.Sprintf("http://%s:8080", h.Addr))
	contains(t, "ps", Docker(t, h, "ps", "--format", "{{.Ports}}"), "0.0.0.0:8080->8080/tcp")
	equal(t, "port", strings.Split(Docker(t, h, "port", "web", "8080"), "\n")[0], "0.0.0.0:8080")

	Refused(t, h, []string{"daemon: failed to set up container networking: driver failed", "port is already allocated"}, "run", "--rm", "-p", "8080:80", image, "true")
	Refused(t, h, []string{"overlaps"}, "network", "create", "--subnet", "10.20.0.0/25", "again")
	Refused(t, h, []string{"already exists"}, "network", "create", "front")
	Refused(t, h, []string{"gateway"}, "network", "create", "--subnet", "10.21.0.0/24", "--gateway", "10.99.0.1", "odd")
	Refused(t, h, []string{"10.21.0.0/99"}, "network", "create", "--subnet", "10.21.0.0/99", "odd")
	Refused(t, h, []string{"nothing"}, "network", "create", "-d", "nothing", "odd")
	Refused(t, h, []string{"network nothing not found"}, "run", "--rm", "--network", "nothing", image, "true")
	Refused(t, h, []string{"active endpoints"}, "network", "rm", "front")

	const back = "web/back $%^" // any name will do
	Docker(t, h, "network", "create", back)
	Docker(t, h, "network", "connect", "--alias", "db", back, "web")
	contains(t, "connected while running", Docker(t, h, "run", "--rm", "--network", back, image, "get", "http://db:8080"), " ")
	Docker(t, h, "network", "disconnect", back, "web")
	Refused(t, h, []string{"probe:"}, "run", "--rm", "--network", back, image, "get", "http://db:8080")
	Docker(t, h, "rm", "-f", "web")
	Docker(t, h, "network", "rm", "front", back)
	NothingLeft(t, l, before)
}

func TestNetworkModes(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "one", image)
	contains(t, "container:", Docker(t, h, "run", "--rm", "--network", "container:one", image, "get", "http://127.0.0.1:8080"), " ")
	Docker(t, h, "run", "-d", "--name", "two", "--network", "host", image)
	Eventually(t, 60*time.Second, "host networking", func(context.Context) error {
		resp, err := h.HTTP(time.Second).Get("http://127.0.0.1:8080")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	Refused(t, h, []string{"probe:"}, "run", "--rm", "--network", "none", image, "get", "http://10.99.0.1:8080")
	contains(t, "egress", Docker(t, h, "run", "--rm", image, "get", "http://10.99.0.1:8080"), " ")
}

func TestUnpublishedIsClosed(t *testing.T) {
	l, h := one(t)
	Docker(t, h, "run", "-d", "--name", "web", "-p", "127.0.0.1:8080:8080", image)
	fetch(t, h.Machine, "http://127.0.0.1:8080")
	if _, err := l.Client.HTTP(time.Second).Get(fmt.Sprintf("http://%s:8080", h.Addr)); err == nil {
		t.Error("a port published on 127.0.0.1 answers outside")
	}
}

// fetch asks until there is an answer, and returns it.
func fetch(t *testing.T, from *testhost.Machine, url string) string {
	t.Helper()
	var body []byte
	Eventually(t, 60*time.Second, url+" from "+from.Name, func(context.Context) error {
		resp, err := from.HTTP(2 * time.Second).Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		return err
	})
	return string(body)
}

// TestRenamedIsFoundByItsNewName: a live rename changes the name that neighbours resolve.
func TestRenamedIsFoundByItsNewName(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "network", "create", "net1")
	Docker(t, h, "run", "-d", "--name", "before", "--network", "net1", image)
	Docker(t, h, "rename", "before", "after")
	contains(t, "the new name", Docker(t, h, "run", "--rm", "--network", "net1", image, "get", "http://after:8080"), " ")
	Refused(t, h, []string{"probe:"}, "run", "--rm", "--network", "net1", image, "lookup", "before")
}

// TestPublishedUDP: datagrams to a published port are answered, from outside, and on the host by every address.
func TestPublishedUDP(t *testing.T) {
	l, h := one(t)
	Docker(t, h, "run", "-d", "--name", "web", "-h", "answerer", "-p", "8081:8081/udp", image)
	for where, from := range map[string]*testhost.Machine{"127.0.0.1:8081": h.Machine, h.Addr.String() + ":8081": l.Client} {
		Eventually(t, 60*time.Second, "an answer at "+where+" to "+from.Name, func(ctx context.Context) error {
			c, err := from.Dial(ctx, "udp", where)
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
			if _, err := c.Write([]byte("who?")); err != nil {
				return err
			}
			buf := make([]byte, 64)
			n, err := c.Read(buf)
			if err == nil && string(buf[:n]) != "answerer" {
				err = fmt.Errorf("answered %q", buf[:n])
			}
			return err
		})
	}
}

// TestNoDefaultNetwork: with --bridge none, a container that names no network, or the default one, has a loopback interface
// alone, until it is connected to another network.
func TestNoDefaultNetwork(t *testing.T) {
	t.Parallel()
	h := New(t, 1, "--bridge", "none").Hosts[0]
	for mode, port := range map[string]string{"default": "8081:80", "bridge": "8080:80"} {
		Docker(t, h, "run", "-d", "--network", mode, "-p", port, "--name", mode, image, "sleep")
		equal(t, "interfaces on "+mode, Docker(t, h, "exec", mode, "/probe", "ls", "/sys/class/net"), "lo")
	}
	Docker(t, h, "network", "create", "other")
	Docker(t, h, "network", "connect", "other", "bridge")
	contains(t, "interfaces once it is connected", Docker(t, h, "exec", "bridge", "/probe", "ls", "/sys/class/net"), "eth0")
	equal(t, "published then", Docker(t, h, "port", "bridge", "80/tcp"), "0.0.0.0:8080\n[::]:8080")
	Docker(t, h, "restart", "-t", "0", "bridge")
	contains(t, "interfaces after a restart", Docker(t, h, "exec", "bridge", "/probe", "ls", "/sys/class/net"), "eth0")
}
