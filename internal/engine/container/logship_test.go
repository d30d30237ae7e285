package container

import (
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

func TestLogsGoToACollector(t *testing.T) {
	b := newBed(t)
	socket := filepath.Join(b.dir, "collector")
	to := func(options map[string]string) HostConfig {
		all := map[string]string{"syslog-address": "unixgram://" + socket}
		for k, v := range options {
			all[k] = v
		}
		return HostConfig{Log: LogConfig{Driver: "syslog", Options: all}}
	}
	if _, _, err := b.m.Create(t.Context(), Config{Image: "prog", Host: to(nil)}, ""); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("a collector that is not there: %v", err)
	}
	l, err := net.ListenPacket("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	expect := func(want string) {
		t.Helper()
		if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, _, err := l.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:n]); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("the collector got %q, want %s", got, want)
		}
	}
	id := b.run(Config{Name: "talks", Labels: map[string]string{"team": "blue"},
		Host: to(map[string]string{"tag": "{{.Name}}/{{.ImageName}}", "labels": "team"})}, "talk")
	expect(`^<30>.* talks/prog\[\d+\]: ready\n?$`)
	if out := b.output(id); out != "ready\n" {
		t.Errorf("the log can be read here too: %q", out)
	}

	// What a container prints while the daemon is away is sent when it is back, and nothing twice.
	pid := b.state(id).PID
	b.leave()
	if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	b.back()
	expect(`: again\n?$`)
	if err := b.m.Kill(t.Context(), id, "USR1"); err != nil {
		t.Fatal(err)
	}
	expect(`: again\n?$`)

	// The last line of a container that is removed at its end arrives as well.
	gone := b.create(Config{Name: "gone", Host: to(nil)}, "echo", "last words")
	b.m.byID[gone].rec.Config.Host.AutoRemove = true
	b.start(gone)
	expect(`: last words`)

	quiet := b.run(Config{Name: "quiet", Host: to(map[string]string{"cache-disabled": "true"})}, "echo", "hush")
	b.wait(quiet, "")
	expect(`: hush`)
	if _, err := b.m.Logs(t.Context(), quiet, LogOptions{Stdout: true}); !fault.Is(err, fault.NotImplemented) {
		t.Errorf("a log that is kept nowhere: %v", err)
	}

	for want, options := range map[string]map[string]string{
		"unknown log opt 'max-size' for syslog": {"max-size": "1m"},
		"invalid log opt tag":                   {"tag": "{{.Nothing"},
		"invalid log opt cache-max-size=q":      {"cache-max-size": "q"},
	} {
		if _, _, err := b.m.Create(t.Context(), Config{Image: "prog", Host: to(options)}, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", options, err, want)
		}
	}
}
