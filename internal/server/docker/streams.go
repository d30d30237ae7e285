package docker

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/moby/moby/api/types"
	"github.com/moby/term"
	"golang.org/x/net/websocket"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// streamAPI serves what a container prints and reads: attach and logs.
type streamAPI struct {
	backend Containers
	events  Events
	logger  *slog.Logger
}

func (a *streamAPI) routes() []route {
	return []route{
		{method: "POST", pattern: "/containers/{id}/attach", serve: a.attach},
		{method: "GET", pattern: "/containers/{id}/attach/ws", serve: a.attachWebsocket},
		{method: "GET", pattern: "/containers/{id}/logs", serve: a.logs},
	}
}

// defaultDetachKeys are ctrl-p ctrl-q.
var defaultDetachKeys = []byte{16, 17}

func detachKeys(r *request) ([]byte, error) { return parseDetachKeys(r.query.Get("detachKeys")) }

// parseDetachKeys reads keys such as "ctrl-p,q"; "" stands for the default.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return defaultDetachKeys, nil
	}
	keys, err := term.ToBytes(s)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "Invalid detach keys (%s) provided: %w", s, err)
	}
	return keys, nil
}

// attach joins a client to a container's streams. Clients of this path expect a stream: an error is text, not JSON.
func (a *streamAPI) attach(w *response, r *request) error {
	keys, err := detachKeys(r)
	if err != nil {
		return err
	}
	err = a.attachStreams(w, r, keys)
	if err == nil || w.hijacked {
		return err
	}
	w.Header().Set("Content-Type", types.MediaTypeRawStream)
	w.WriteHeader(statusOf(err))
	_, _ = io.WriteString(w, err.Error()+"\r\n")
	return err // for the log
}

func (a *streamAPI) attachStreams(w *response, r *request, keys []byte) error {
	c, err := a.backend.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	opts := container.AttachOptions{
		Stdin: r.flag("stdin"), Stdout: r.flag("stdout"), Stderr: r.flag("stderr"), Logs: r.flag("logs"), Stream: r.flag("stream"),
	}
	opts.Stdin = opts.Stdin && opts.Stream
	stream, err := a.backend.Attach(r.Context(), c.ID, opts)
	if err != nil {
		return err
	}
	defer stream.Close()
	conn, err := hijack(w, r, !c.Config.Tty)
	if err != nil {
		return err
	}
	p := pump{logger: a.logger, stream: stream, tty: c.Config.Tty, raw: c.Config.Tty, stdin: opts.Stdin, keys: keys}
	if p.run(conn) {
		a.events.Publish(events.Event{Type: "container", Action: "detach", ID: c.ID, Attrs: containerAttrs(&c)})
	}
	return nil
}

// containerAttrs are the attributes of a container's events.
func containerAttrs(c *container.Container) map[string]string {
	attrs := map[string]string{}
	for k, v := range c.Config.Labels {
		attrs[k] = v
	}
	attrs["image"], attrs["name"] = c.Config.Image, c.Config.Name
	return attrs
}

// pump moves bytes between a client and a process.
type pump struct {
	logger *slog.Logger
	stream container.Stream
	tty    bool // the process has a terminal
	raw    bool // output goes out as it is, else in frames
	stdin  bool
	keys   []byte // that detach, with a terminal
}

// run returns when the output has ended or the client has gone; the process lives on. It reports whether the client
// typed the detach keys.
func (p *pump) run(conn *hijacked) (detached bool) {
	read, left := make(chan struct{}), make(chan bool, 1)
	go func() {
		defer close(read)
		err := p.copyInput(conn.in)
		var escaped term.EscapeError
		switch {
		case errors.As(err, &escaped):
			left <- true
			_ = p.stream.Close()
		case err != nil && !errors.Is(err, io.EOF) && !isTimeout(err):
			left <- false
			_ = p.stream.Close()
		}
	}()
	go func() {
		<-read
		awaitHangup(conn.Conn) // returns at once when finish has closed it
		_ = p.stream.Close()
	}()
	if err := copyOutput(conn, p.stream, !p.raw); err != nil {
		p.logger.Debug("stream ended", "err", err)
		if kind := fault.KindOf(err); kind == fault.Unavailable || kind == fault.Exhausted {
			p.tellWhy(conn, err)
		}
	}
	conn.finish(read)
	select {
	case detached = <-left:
	default:
	}
	return detached
}

// tellWhy tells the client why there is no more output although the process goes on.
func (p *pump) tellWhy(conn *hijacked, why error) {
	if p.tty {
		_, _ = io.WriteString(conn, "\r\n"+why.Error()+"\r\n")
		return
	}
	_ = frameWriter{conn}.frame(systemError, "", []byte(why.Error()))
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// copyInput hands what the client sends to the process, and then its end. Without stdin it is read and dropped, so
// that a client's going is noticed.
func (p *pump) copyInput(in io.Reader) error {
	if !p.stdin {
		_, err := io.Copy(io.Discard, in)
		return err
	}
	if p.tty && len(p.keys) > 0 {
		in = term.NewEscapeProxy(in, p.keys)
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if _, werr := p.stream.Write(buf[:n]); werr != nil {
				// The process reads no more: what comes is dropped, output goes on.
				_, err = io.Copy(io.Discard, in)
				return err
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return p.stream.CloseWrite()
			}
			return err
		}
	}
}

// attachWebsocket attaches over a websocket, whose frames carry raw output.
func (a *streamAPI) attachWebsocket(w *response, r *request) error {
	keys, err := detachKeys(r)
	if err != nil {
		return err
	}
	c, err := a.backend.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	opts := container.AttachOptions{Stdin: true, Stdout: true, Stderr: true, Logs: r.flag("logs"), Stream: r.flag("stream")}
	if r.version >= 1042 {
		opts.Stdin, opts.Stdout, opts.Stderr = r.flag("stdin"), r.flag("stdout"), r.flag("stderr")
	}
	if r.Header.Get("Upgrade") == "" {
		return fault.New(fault.InvalidArgument, "this path speaks the websocket protocol only: the request does not ask to upgrade")
	}
	stream, err := a.backend.Attach(r.Context(), c.ID, opts)
	if err != nil {
		return err
	}
	defer stream.Close()
	websocket.Server{Handler: func(ws *websocket.Conn) {
		if r.version >= 1028 {
			ws.PayloadType = websocket.BinaryFrame
		}
		p := pump{logger: a.logger, stream: stream, tty: true, raw: true, stdin: opts.Stdin, keys: keys}
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_ = p.copyInput(ws)
			if !opts.Stdin {
				_ = stream.Close()
			}
		}()
		_ = copyOutput(ws, stream, false)
		_ = ws.Close()
		<-gone
	}}.ServeHTTP(w, r.Request)
	return nil
}

func (a *streamAPI) logs(w *response, r *request) error {
	opts, err := logOptions(r)
	if err != nil {
		return err
	}
	c, err := a.backend.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	reader, err := a.backend.Logs(r.Context(), c.ID, opts)
	if err != nil {
		return err
	}
	defer reader.Close()
	out := newLogWriter(w, r, c.Config.Tty)
	defer func() { _ = out.close() }()
	// A reader that can tell when there is more saves the sending of every line by itself.
	ready := func() bool { return false }
	if x, ok := reader.(interface{ Ready() bool }); ok {
		ready = x.Ready
	}
	for {
		line, err := reader.Next(r.Context())
		if errors.Is(err, io.EOF) || r.Context().Err() != nil {
			return nil
		} else if err != nil {
			return out.fail(err)
		}
		if line.Stream == container.Stdout && !opts.Stdout || line.Stream == container.Stderr && !opts.Stderr {
			continue
		}
		if err := out.write(line, ready()); err != nil {
			return nil //nolint:nilerr // the client is gone
		}
	}
}

// logOptions reads the parameters that container, service and task logs have in common.
func logOptions(r *request) (LogOptions, error) {
	o := LogOptions{Stdout: r.flag("stdout"), Stderr: r.flag("stderr"), Follow: r.flag("follow"), Tail: -1, Details: r.flag("details")}
	if !o.Stdout && !o.Stderr {
		return o, fault.New(fault.InvalidArgument, "Bad parameters: you must choose at least one stream: must specify at least one of 'stdout' or 'stderr'")
	}
	if format := r.query.Get("format"); format != "" {
		return o, fault.New(fault.InvalidArgument, "unsupported log format %q", format)
	}
	// "all" and whatever else is no number of lines stands for all of them.
	if tail, err := r.integer("tail", 0, 1<<31-1); err == nil && tail != nil {
		o.Tail = *tail
	}
	for name, into := range map[string]*time.Time{"since": &o.Since, "until": &o.Until} {
		if r.query.Get(name) == "0" {
			continue // clients say so for "no bound"
		}
		var err error
		if *into, err = r.timestamp(name); err != nil {
			return o, err
		}
	}
	return o, nil
}
