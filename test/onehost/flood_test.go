package onehost

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// lastLine waits until a container that counts has come to a line.
func lastLine(t *testing.T, h *testhost.Host, name string, least int) int {
	t.Helper()
	n := 0
	Eventually(t, 90*time.Second, fmt.Sprintf("line %d of %s", least, name), func(ctx context.Context) error {
		out, err := h.Docker(ctx, "logs", "--tail", "1", name)
		if err != nil {
			return err
		}
		_, number, _ := strings.Cut(out, " ")
		if n, err = strconv.Atoi(strings.TrimSpace(number)); err == nil && n < least {
			err = errors.New(out)
		}
		return err
	})
	return n
}

// memory is what the daemon and the keeper have, in bytes.
func memory(h *testhost.Host) int64 { return testhost.PSS([]int{h.DaemonPID(), h.KeeperPID()}) }

// TestLogFlood: a container that prints without end costs no more disk than its log may have, and no memory.
func TestLogFlood(t *testing.T) {
	_, h := one(t)
	before := memory(h)
	id := Docker(t, h, "run", "-d", "--name", "flood", "--log-opt", "max-size=1m", "--log-opt", "max-file=3", image, "count", "1000000000")
	lastLine(t, h, "flood", 2_000_000) // some 100 MB of log
	var size int64
	files, _ := filepath.Glob(filepath.Join(h.DataRoot(), "containers", id, "*.log*"))
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil {
			size += fi.Size()
		}
	}
	if len(files) > 3 || size > 4<<20 {
		t.Errorf("%d files of %d bytes in all, want 3 of 1 MB each", len(files), size)
	}
	if now := memory(h); now > before+64<<20 {
		t.Errorf("daemon and keeper have %d MB, had %d", now>>20, before>>20)
	}
	Docker(t, h, "rm", "-f", "flood")
}

// dialed makes a request on a connection of its own and reads the head of the answer.
func dialed(t *testing.T, h *testhost.Host, method, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", h.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	fmt.Fprintf(conn, "%s /v1.50%s HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", method, path)
	status, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
	if err != nil || !strings.Contains(status, " 101 ") && !strings.Contains(status, " 200 ") {
		t.Fatalf("%s %s: %q %v", method, path, status, err)
	}
	return conn
}

// TestClientsThatDoNotRead: they cost the daemon no memory to speak of, hold up a container for a bounded time, and other
// clients not at all.
func TestClientsThatDoNotRead(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "flood", "--log-opt", "max-size=1m", image, "count", "1000000000")
	n := lastLine(t, h, "flood", 1000)
	before := memory(h)
	for range 4 {
		dialed(t, h, "GET", "/containers/flood/logs?stdout=1&follow=1")
		dialed(t, h, "POST", "/containers/flood/attach?stdout=1&stream=1")
		dialed(t, h, "GET", "/containers/flood/stats")
		dialed(t, h, "GET", "/events")
	}
	contains(t, "another client", Docker(t, h, "run", "--rm", image, "echo", "works"), "works")
	n = lastLine(t, h, "flood", n+500_000)
	for range 3 {
		Docker(t, h, "run", "--rm", image, "true") // events
	}
	lastLine(t, h, "flood", n+200_000)
	if now := memory(h); now > before+64<<20 {
		t.Errorf("daemon and keeper have %d MB, had %d", now>>20, before>>20)
	}
	Docker(t, h, "rm", "-f", "flood")
}

// TestIdleConnections: thousands of them cost little and are in nobody's way.
func TestIdleConnections(t *testing.T) {
	_, h := one(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	count := int(min(3000, limit.Cur-500))
	before, open := memory(h), descriptors(h.DaemonPID())
	conns := make([]net.Conn, 0, count)
	closeAll := func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}
	defer closeAll()
	for i := range count {
		conn, err := net.Dial("unix", h.Socket)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, conn)
		if i%2 == 0 { // one that has asked something
			fmt.Fprintf(conn, "GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	contains(t, "another client", Docker(t, h, "run", "--rm", image, "echo", "works"), "works")
	if now := memory(h); now > before+int64(count)*40<<10 {
		t.Errorf("daemon and keeper have %d MB with %d connections, had %d", now>>20, count, before>>20)
	}
	closeAll()
	Eventually(t, 60*time.Second, "descriptors given back", func(context.Context) error {
		if now := descriptors(h.DaemonPID()); now > open+20 {
			return fmt.Errorf("%d are open, %d were", now, open)
		}
		return nil
	})
}
