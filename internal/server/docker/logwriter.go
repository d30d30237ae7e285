package docker

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

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
	out                 *flushWriter
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
	return &logWriter{out: w.flushed(), raw: tty, timestamps: r.flag("timestamps"), details: r.flag("details")}
}

func (l *logWriter) write(line container.LogLine) error {
	var prefix string
	if l.timestamps {
		prefix = line.Time.UTC().Format(logTime) + " "
	}
	if l.details {
		prefix += logAttrs(line.Attrs) + " "
	}
	if l.raw {
		_, err := l.out.Write(append([]byte(prefix), line.Line...))
		return err
	}
	return frameWriter{l.out}.frame(line.Stream, prefix, line.Line)
}

// fail tells the client in the stream why it ends: the status has been sent.
func (l *logWriter) fail(err error) error {
	msg := fmt.Sprintf("Error grabbing logs: %v\n", err)
	if l.raw {
		_, _ = l.out.Write([]byte(msg))
	} else {
		_ = frameWriter{l.out}.frame(systemError, msg, nil)
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
