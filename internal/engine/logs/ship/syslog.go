package ship

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/RackSec/srslog"

	"github.com/sampan-cloud/sampan/internal/engine/logs"
)

const overTLS = "tcp+tls"

// facilities are the names of RFC 5424's facility numbers, 12 to 15 left out as in syslog(3).
var facilities = map[string]int{"kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "syslog": 5, "lpr": 6, "news": 7,
	"uucp": 8, "cron": 9, "authpriv": 10, "ftp": 11, "local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20,
	"local5": 21, "local6": 22, "local7": 23}

// syslogConfig is what the options say.
type syslogConfig struct {
	network, address string // both empty: the host's own syslog
	facility         srslog.Priority
	format           string
	tls              *tls.Config
}

func parseSyslog(o map[string]string) (syslogConfig, error) {
	var c syslogConfig
	for k := range o {
		switch k {
		case "syslog-address", "syslog-facility", "syslog-format", "syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify":
		default:
			return c, fmt.Errorf("unknown log opt '%s' for syslog log driver", k)
		}
	}
	switch c.format = o["syslog-format"]; c.format {
	case "", "rfc3164", "rfc5424", "rfc5424micro":
	default:
		return c, fmt.Errorf("Invalid syslog format %q: want rfc3164, rfc5424 or rfc5424micro", c.format) //nolint:staticcheck // Docker's words
	}
	name := cmp.Or(o["syslog-facility"], "daemon")
	number, known := facilities[name]
	if !known {
		n, err := strconv.Atoi(name)
		if err != nil || n < 0 || n > 23 {
			return c, fmt.Errorf("invalid syslog facility %q", name)
		}
		number = n
	}
	c.facility = srslog.Priority(number << 3)
	if err := c.parseAddress(o["syslog-address"]); err != nil {
		return c, err
	}
	if c.network == overTLS {
		return c, c.parseTLS(o)
	}
	return c, nil
}

func (c *syslogConfig) parseAddress(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return err
	}
	switch u.Scheme {
	case "":
		return fmt.Errorf("syslog-address should be in form proto://address, got %s", text)
	case "unix", "unixgram":
		if _, err := os.Stat(u.Path); err != nil {
			return err
		}
		c.network, c.address = u.Scheme, u.Path
		return nil
	case "udp", "tcp", overTLS:
		if u.Hostname() == "" {
			return fmt.Errorf("syslog-address %s has no host", text)
		}
		c.network, c.address = u.Scheme, net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "514"))
		return nil
	}
	return fmt.Errorf("unsupported scheme: '%s'", u.Scheme)
}

func (c *syslogConfig) parseTLS(o map[string]string) error {
	_, skip := o["syslog-tls-skip-verify"]
	c.tls = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: skip} //nolint:gosec // asked for by the option of that name
	if path := o["syslog-tls-ca-cert"]; path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("could not read CA certificate %q: %w", path, err)
		}
		c.tls.RootCAs = x509.NewCertPool()
		if !c.tls.RootCAs.AppendCertsFromPEM(text) {
			return fmt.Errorf("failed to append certificates from PEM file: %q", path)
		}
	}
	cert, key := o["syslog-tls-cert"], o["syslog-tls-key"]
	if (cert == "") != (key == "") {
		return errors.New("syslog-tls-cert and syslog-tls-key go together: one of them is missing")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("could not load X509 key pair: %w", err)
		}
		c.tls.Certificates = []tls.Certificate{pair}
	}
	return nil
}

// syslogSink writes to a syslog server. Messages carry the time at which they were printed, not that of sending.
type syslogSink struct {
	w  *srslog.Writer
	at time.Time // of the message that is being sent
}

func dialSyslog(options map[string]string, about Container) (Sink, error) {
	c, err := parseSyslog(options)
	if err != nil {
		return nil, err
	}
	w, err := srslog.DialWithTLSConfig(c.network, c.address, c.facility, about.Tag, c.tls)
	if err != nil {
		return nil, err
	}
	s := &syslogSink{w: w}
	w.SetFormatter(s.formatter(c.format))
	if c.network == overTLS && (c.format == "rfc5424" || c.format == "rfc5424micro") {
		w.SetFramer(srslog.RFC5425MessageLengthFramer)
	} else {
		w.SetFramer(srslog.DefaultFramer)
	}
	return s, nil
}

// formatter is the message's form: syslog(3)'s, RFC 3164's or RFC 5424's with seconds or microseconds.
func (s *syslogSink) formatter(format string) srslog.Formatter {
	pid := os.Getpid()
	switch format {
	case "rfc3164":
		return func(p srslog.Priority, host, tag, content string) string {
			return fmt.Sprintf("<%d>%s %s %s[%d]: %s", p, s.at.Format(time.Stamp), host, tag, pid, content)
		}
	case "rfc5424", "rfc5424micro":
		layout := time.RFC3339
		if format == "rfc5424micro" {
			layout = "2006-01-02T15:04:05.000000Z07:00"
		}
		return func(p srslog.Priority, host, tag, content string) string {
			return fmt.Sprintf("<%d>1 %s %s %s %d %s - %s", p, s.at.Format(layout), host, tag, pid, tag, content)
		}
	}
	return func(p srslog.Priority, _, tag, content string) string {
		return fmt.Sprintf("<%d>%s %s[%d]: %s", p, s.at.Format(time.Stamp), tag, pid, content)
	}
}

// Send implements Sink. An empty line is not sent, as with Docker.
func (s *syslogSink) Send(e logs.Entry) error {
	line := string(bytes.TrimSuffix(e.Line, []byte("\n")))
	if line == "" {
		return nil
	}
	s.at = e.Time.Local()
	if e.Stderr {
		return s.w.Err(line)
	}
	return s.w.Info(line)
}

// Close implements Sink.
func (s *syslogSink) Close() error { return s.w.Close() }
