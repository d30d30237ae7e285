package ship

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/engine/logs"
	"github.com/sampan-cloud/sampan/internal/fault"
)

var (
	about   = Container{ID: strings.Repeat("0123456789ab", 5) + "cdef", Name: "web", Image: "nginx", Tag: "the/tag", Attrs: map[string]string{"com.example.team": "blue"}}
	printed = time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)
)

// collected reads one datagram.
func collected(t *testing.T, c net.PacketConn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	n, _, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestSyslogMessages(t *testing.T) {
	host, _ := os.Hostname()
	unixgram := filepath.Join(t.TempDir(), "log")
	for _, tc := range []struct {
		name, network, listen string
		options               map[string]string
		stderr                bool
		want                  string // a regular expression
	}{
		{"udp", "udp", "127.0.0.1:0", nil, false, `^<30>Mar  4 \d\d:06:07 the/tag\[\d+\]: hello\n?$`},
		{"stderr is an error", "udp", "127.0.0.1:0", nil, true, `^<27>`},
		{"facility by name", "udp", "127.0.0.1:0", map[string]string{"syslog-facility": "local7"}, false, `^<190>`},
		{"facility by number", "udp", "127.0.0.1:0", map[string]string{"syslog-facility": "1"}, false, `^<14>`},
		{"rfc3164", "udp", "127.0.0.1:0", map[string]string{"syslog-format": "rfc3164"}, false,
			`^<30>Mar  4 \d\d:06:07 ` + regexp.QuoteMeta(host) + ` the/tag\[\d+\]: hello\n?$`},
		{"rfc5424", "udp", "127.0.0.1:0", map[string]string{"syslog-format": "rfc5424"}, false,
			`^<30>1 2026-03-0\dT\d\d:06:07\S+ ` + regexp.QuoteMeta(host) + ` the/tag \d+ the/tag - hello\n?$`},
		{"rfc5424micro", "udp", "127.0.0.1:0", map[string]string{"syslog-format": "rfc5424micro"}, false, `^<30>1 2026-03-0\dT\d\d:06:07\.123456\S+ `},
		{"unixgram", "unixgram", unixgram, nil, false, `: hello\n?$`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := net.ListenPacket(tc.network, tc.listen)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			options := map[string]string{"syslog-address": tc.network + "://" + l.LocalAddr().String()}
			for k, v := range tc.options {
				options[k] = v
			}
			c := Collector{Driver: "syslog", Options: options}
			if err := c.Validate(); err != nil {
				t.Fatal(err)
			}
			s, err := c.Dial(about)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, line := range []string{"\n", "hello\n"} { // an empty line is nothing to tell
				if err := s.Send(logs.Entry{Line: []byte(line), Time: printed, Stderr: tc.stderr}); err != nil {
					t.Fatal(err)
				}
			}
			if got := collected(t, l); !regexp.MustCompile(tc.want).MatchString(got) {
				t.Errorf("got %q, want %s", got, tc.want)
			}
		})
	}
}

// certificate makes a server's certificate for 127.0.0.1 and writes it down as its own CA.
func certificate(t *testing.T) (cert tls.Certificate, caFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "collector"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, caFile
}

func TestSyslogOverTLS(t *testing.T) {
	cert, ca := certificate(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			if n, err := conn.Read(b); err == nil {
				got <- string(b[:n])
			}
			_ = conn.Close()
		}
	}()
	address := "tcp+tls://" + l.Addr().String()
	if _, err := (Collector{Driver: "syslog", Options: map[string]string{"syslog-address": address}}).Dial(about); err == nil {
		t.Error("a certificate of an unknown CA was taken")
	}
	for _, options := range []map[string]string{{"syslog-tls-ca-cert": ca}, {"syslog-tls-skip-verify": "true"}} {
		options["syslog-address"], options["syslog-format"] = address, "rfc5424"
		s, err := (Collector{Driver: "syslog", Options: options}).Dial(about)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(logs.Entry{Line: []byte("hello\n"), Time: printed}); err != nil {
			t.Fatal(err)
		}
		length, text, _ := strings.Cut(<-got, " ") // RFC 5425: the length comes first
		if fmt.Sprint(len(text)) != length || !strings.Contains(text, "- hello") {
			t.Errorf("frame %q %q", length, text)
		}
		_ = s.Close()
	}
}

func TestBadOptionsAreNamed(t *testing.T) {
	for want, c := range map[string]Collector{
		"unknown log opt 'x' for syslog":        {Driver: "syslog", Options: map[string]string{"x": "y"}},
		"unknown log opt 'x' for journald":      {Driver: "journald", Options: map[string]string{"x": "y"}},
		"unsupported scheme: 'http'":            {Driver: "syslog", Options: map[string]string{"syslog-address": "http://a"}},
		"proto://address, got localhost":        {Driver: "syslog", Options: map[string]string{"syslog-address": "localhost"}},
		"invalid syslog facility \"99\"":        {Driver: "syslog", Options: map[string]string{"syslog-facility": "99"}},
		"Invalid syslog format \"z\"":           {Driver: "syslog", Options: map[string]string{"syslog-format": "z"}},
		"no such file":                          {Driver: "syslog", Options: map[string]string{"syslog-address": "unixgram:///not/there"}},
		"has no host":                           {Driver: "syslog", Options: map[string]string{"syslog-address": "tcp://"}},
		"could not read CA certificate":         {Driver: "syslog", Options: map[string]string{"syslog-address": "tcp+tls://a", "syslog-tls-ca-cert": "/not/there"}},
		"syslog-tls-cert and syslog-tls-key go": {Driver: "syslog", Options: map[string]string{"syslog-address": "tcp+tls://a", "syslog-tls-key": "/k"}},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) || !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%v: %v, want %q", c, err, want)
		}
	}
}

// fields reads journald's native protocol.
func fields(t *testing.T, b []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			t.Fatalf("no end of line in %q", b)
		}
		if name, value, ok := bytes.Cut(line, []byte("=")); ok {
			out[string(name)], b = string(value), rest
			continue
		}
		n := binary.LittleEndian.Uint64(rest)
		out[string(line)], b = string(rest[8:8+n]), rest[8+n+1:]
	}
	return out
}

func TestJournalMessages(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	if _, err := (Collector{Driver: "journald", JournalSocket: socket}).Dial(about); err == nil || !strings.Contains(err.Error(), "journald is not enabled on this host") {
		t.Errorf("without journald: %v", err)
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := (Collector{Driver: "journald", JournalSocket: socket}).Dial(about)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	send := func(e logs.Entry) map[string]string {
		t.Helper()
		e.Time = printed
		if err := s.Send(e); err != nil {
			t.Fatal(err)
		}
		if err := l.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b, oob := make([]byte, 1<<20), make([]byte, 64)
		n, on, _, _, err := l.ReadMsgUnix(b, oob)
		if err != nil {
			t.Fatal(err)
		}
		if on == 0 {
			return fields(t, b[:n])
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:on])
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fds[0]), "entry")
		defer f.Close()
		text, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<20))
		if err != nil {
			t.Fatal(err)
		}
		return fields(t, text)
	}
	got := send(logs.Entry{Line: []byte("hello = world\n")})
	for k, v := range map[string]string{"MESSAGE": "hello = world", "PRIORITY": "6", "CONTAINER_ID": about.ID[:12], "CONTAINER_ID_FULL": about.ID,
		"CONTAINER_NAME": "web", "IMAGE_NAME": "nginx", "CONTAINER_TAG": "the/tag", "SYSLOG_IDENTIFIER": "the/tag", "COM_EXAMPLE_TEAM": "blue",
		"SYSLOG_TIMESTAMP": "2026-03-04T05:06:07.123456789Z", "CONTAINER_PARTIAL_MESSAGE": ""} {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	if got := send(logs.Entry{Line: []byte("no end"), Stderr: true}); got["PRIORITY"] != "3" || got["CONTAINER_PARTIAL_MESSAGE"] != "true" {
		t.Errorf("a piece of a line on stderr: %v", got)
	}
	if got := send(logs.Entry{Line: []byte("a\rb\nc\n")}); got["MESSAGE"] != "a\rb\nc" {
		t.Errorf("a line break inside: %q", got["MESSAGE"])
	}
	long := strings.Repeat("x", 4<<20)
	if got := send(logs.Entry{Line: []byte(long + "\n")}); got["MESSAGE"] != long || got["CONTAINER_NAME"] != "web" {
		t.Errorf("a long line came as %d bytes", len(got["MESSAGE"]))
	}
}

// spool writes a log as the keeper does.
func spool(t *testing.T, path string, at time.Time, lines ...string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, line := range lines {
		text, err := json.Marshal(map[string]any{"log": line + "\n", "stream": "stdout", "time": at})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(append(text, '\n')); err != nil {
			t.Fatal(err)
		}
	}
}

// A collector that comes late, and goes, and comes back, and a daemon that is started again in between: every line
// arrives once.
func TestEveryLineArrivesOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	w, err := logs.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()
	// Three lines of one moment: the position must tell them apart.
	spool(t, path, printed, "one", "two", "three")
	ship := func(ended chan struct{}) (stop func()) {
		s := Shipment{Collector: Collector{Driver: "syslog", Options: map[string]string{"syslog-address": "tcp://" + address}}, About: about,
			Path: path, Position: filepath.Join(dir, "position"), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx, w, ended, nil) }()
		return func() {
			if ended == nil {
				cancel()
			} else {
				close(ended)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			cancel()
		}
	}
	receive := func(n int) (got []string, away func()) {
		t.Helper()
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewScanner(conn)
		for len(got) < n && r.Scan() {
			_, text, _ := strings.Cut(r.Text(), "]: ")
			got = append(got, text)
		}
		return got, func() { _, _ = conn.Close(), l.Close() }
	}
	stop := ship(nil) // nobody listens yet
	first, away := receive(3)
	stop()
	away()
	spool(t, path, printed, "four")
	spool(t, path, printed.Add(time.Second), "five")
	ended := make(chan struct{})
	stop = ship(ended)
	second, away := receive(2)
	spool(t, path, printed.Add(2*time.Second), "six")
	stop() // the container's end: the last line is sent all the same
	away()
	if got := strings.Join(append(first, second...), " "); got != "one two three four five" {
		t.Errorf("arrived: %s", got)
	}
	text, err := os.ReadFile(filepath.Join(dir, "position"))
	var at position
	if err := errors.Join(err, json.Unmarshal(text, &at)); err != nil || !at.Time.Equal(printed.Add(2*time.Second)) || at.Count != 1 {
		t.Errorf("position %s, %v: want the last line's", text, err)
	}
}
