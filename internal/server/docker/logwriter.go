package docker

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types"

	"github.com/sampan-cloud/sampan/internal/engine/container"
)

// logTime is RFC 3339 with all nine digits of the fraction, so that timestamps line up.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

// systemError is the stream number of a frame that says why a stream broke off.
const systemError container.StdStream = 3

// logWriter writes lines of a log as the client asked for them. The headers are sent at once, so that a client that
// follows a silent log knows it is connected.
type logWriter struct {
	mu                  sync.Mutex
	w                   *response
	buf                 []byte      // lines that were not sent yet
	late                *time.Timer // sends them if nothing else does
	raw                 bool
	timestamps, details bool
}

func newLogWriter(w *response, r *request, tty bool) *logWriter {
	media := types.MediaTypeRawStream
	if !tty && r.version >= 1042 {
		media = types.MediaTypeMultiplexedStream
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(http.StatusOK)
	w.Flush()
	return &logWriter{w: w, raw: tty, timestamps: r.flag("timestamps"), details: r.flag("details")}
}

// sendSize is how much is gathered before it is sent, sendDelay how long at the most.
const (
	sendSize  = 32 << 10
	sendDelay = 10 * time.Millisecond
)

// write takes one line. It is sent at once unless more is to follow, which saves most of what a long log costs.
func (l *logWriter) write(line container.LogLine, more bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := len(l.buf)
	if !l.raw {
		l.buf = append(l.buf, byte(line.Stream), 0, 0, 0, 0, 0, 0, 0)
	}
	if l.timestamps {
		l.buf = append(line.Time.UTC().AppendFormat(l.buf, logTime), ' ')
	}
	if l.details {
		l.buf = append(append(l.buf, logAttrs(line.Attrs)...), ' ')
	}
	l.buf = append(l.buf, line.Line...)
	if !l.raw {
		binary.BigEndian.PutUint32(l.buf[at+4:], uint32(len(l.buf)-at-8)) //nolint:gosec // a piece of output
	}
	if !more || len(l.buf) >= sendSize {
		return l.send()
	}
	// What is announced may turn out to be nothing that was asked for.
	if l.late == nil {
		l.late = time.AfterFunc(sendDelay, func() { _ = l.flush() })
	} else if at == 0 {
		l.late.Reset(sendDelay)
	}
	return nil
}

// close sends what was gathered; nothing is written after it.
func (l *logWriter) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.send()
	l.w = nil
	return err
}

// flush sends what was gathered.
func (l *logWriter) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.send()
}

// send sends what was gathered. The caller holds mu.
func (l *logWriter) send() error {
	if l.late != nil {
		l.late.Stop()
	}
	if len(l.buf) == 0 || l.w == nil {
		return nil
	}
	_, err := l.w.Write(l.buf)
	l.buf = l.buf[:0]
	l.w.Flush()
	return err
}

// fail tells the client in the stream why it ends: the status has been sent.
func (l *logWriter) fail(err error) error {
	_ = l.flush()
	msg := fmt.Sprintf("Error grabbing logs: %v\n", err)
	if l.raw {
		_, _ = l.w.Write([]byte(msg))
	} else {
		_ = frameWriter{l.w}.frame(systemError, msg, nil)
	}
	return err
}

// logAttrs writes attributes as KEY=VALUE,…, sorted and escaped, as clients parse them.
func logAttrs(attrs map[string]string) string {
	var pairs []string
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		pairs = append(pairs, url.QueryEscape(k)+"="+url.QueryEscape(attrs[k]))
	}
	return strings.Join(pairs, ",")
}
