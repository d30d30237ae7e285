package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// StdStream numbers a standard stream.
type StdStream uint8

// The streams.
const (
	Stdin  StdStream = 0
	Stdout StdStream = 1
	Stderr StdStream = 2
)

const (
	// inputKept is how much of what was sent to a process' input is kept for a keeper that has to be told again: what its
	// socket can hold, and a frame.
	inputKept = 1 << 20
	// resumeLimit bounds how long a stream waits for the next keeper.
	resumeLimit = 30 * time.Second
)

// Stream is an open attach, on a connection of its own. When the keeper goes, the stream goes on with the next one
// exactly where it was: no byte is lost, and none comes twice. Where that cannot be, Read says so. (What several clients
// write to one input at the same time is not told apart.)
type Stream struct {
	c    *Client
	opts AttachOptions
	// ctx ends with Close.
	ctx  context.Context
	stop context.CancelFunc

	// Of the reader.
	r   *bufio.Reader
	buf []byte
	at  []int64 // the next byte of each stream; nil: this keeper cannot go on for another

	mu       sync.Mutex // guards what follows
	conn     *wire.Conn
	instance string        // of the keeper
	owed     *int64        // this keeper has to be told the input from here on, before anything else
	changed  chan struct{} // closed when the connection is another, or given up for good
	over     bool          // given up for good

	input input
}

// input is what was written to a stream, to be told again.
type input struct {
	mu     sync.Mutex
	out    []byte
	base   int64  // bytes the process had from others before
	sent   int64  // bytes sent
	tail   []byte // the last of them
	closed bool   // no more comes
}

// Attach joins the streams of a container or exec from now on; an exec's first attach also gets what the exec printed
// before. A client that does not read holds up the process only for a bounded time, then its stream ends with an error.
func (c *Client) Attach(ctx context.Context, opts AttachOptions) (*Stream, error) {
	s := &Stream{c: c, opts: opts, changed: make(chan struct{})}
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	conn, reply, err := c.attach(ctx, opts)
	if err != nil {
		s.stop()
		return nil, err
	}
	s.conn, s.r = conn, bufio.NewReaderSize(conn.Unix, 32<<10)
	s.at, s.instance, s.input.base = reply.From, reply.Instance, reply.Input
	c.streams.add(s)
	return s, nil
}

// attach opens an attach's connection, to the keeper to come if there is none.
func (c *Client) attach(ctx context.Context, opts AttachOptions) (*wire.Conn, wire.AttachReply, error) {
	var reply wire.AttachReply
	body, err := json.Marshal(opts)
	if err != nil {
		return nil, reply, err
	}
	for {
		if _, err := c.await(ctx); err != nil {
			return nil, reply, err
		}
		conn, reply, err := openAttach(ctx, c.cfg.ExecRoot, body)
		if err == nil || !errors.Is(err, errLost) {
			return conn, reply, err
		}
		select {
		case <-ctx.Done():
			return nil, reply, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func openAttach(ctx context.Context, execRoot string, body json.RawMessage) (*wire.Conn, wire.AttachReply, error) {
	var reply wire.AttachReply
	conn, err := dial(ctx, execRoot)
	if err != nil {
		if nobodyListens(err) {
			return nil, reply, errLost
		}
		return nil, reply, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Unix.SetDeadline(time.Unix(1, 0)) })
	err = conn.Send(wire.Message{ID: 1, Op: wire.OpAttach, Body: body})
	var m wire.Message
	if err == nil {
		m, _, err = conn.Recv()
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil && m.Err != nil {
		_ = conn.Close()
		return nil, reply, m.Err.Fault()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, reply, fault.New(fault.DeadlineExceeded, "attaching: %w", ctx.Err())
		}
		return nil, reply, errLost
	}
	if len(m.Body) > 0 {
		if err := json.Unmarshal(m.Body, &reply); err != nil || len(reply.From) != int(Stderr)+1 {
			_ = conn.Close()
			return nil, reply, fault.New(fault.FailedPrecondition, "attaching: malformed reply of the keeper")
		}
	}
	return conn, reply, nil
}

// Read returns the next piece of output: io.EOF after the process has ended and everything it printed was returned. The
// slice is valid until the next call.
func (s *Stream) Read() (StdStream, []byte, error) {
	for {
		kind, p, err := wire.ReadStreamFrame(s.r, s.buf)
		if err != nil {
			if err := s.resume(err); err != nil {
				s.giveUp()
				return 0, nil, err
			}
			continue
		}
		s.buf = p[:cap(p)]
		switch kind {
		case wire.FrameStdout, wire.FrameStderr:
			if s.at != nil {
				s.at[kind] += int64(len(p))
			}
			return StdStream(kind), p, nil
		case wire.FrameEnd:
			s.giveUp()
			return 0, nil, io.EOF
		case wire.FrameError:
			s.giveUp()
			return 0, nil, fault.New(fault.Exhausted, "%s", p)
		}
	}
}

// resume goes on with the keeper that follows the one whose connection broke with cause.
func (s *Stream) resume(cause error) error {
	if s.ctx.Err() != nil {
		return cause
	}
	if s.at == nil {
		return fault.New(fault.Unavailable, "the keeper went away; attach again")
	}
	ctx, cancel := context.WithTimeout(s.ctx, resumeLimit)
	defer cancel()
	opts := s.opts
	opts.From = s.at
	conn, reply, err := s.c.attach(ctx, opts)
	switch {
	case s.ctx.Err() != nil && err != nil:
		return cause
	case fault.Is(err, fault.NotFound):
		return fault.New(fault.Unavailable, "the keeper went away, and the process with it: %w", err)
	case err != nil:
		return fault.New(fault.Unavailable, "the keeper went away and the stream cannot go on: %w", err)
	}
	if reply.InputUnsure && s.opts.Stdin {
		_ = conn.Close()
		return fault.New(fault.Unavailable, "the keeper was killed in the middle of a write to the process: whether it has all its input is not known")
	}
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		_ = conn.Close()
		return cause
	}
	_ = s.conn.Close()
	s.conn, s.instance, s.owed = conn, reply.Instance, &reply.Input
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	s.r = bufio.NewReaderSize(conn.Unix, 32<<10)
	s.c.streams.changed()
	// In its own time: the process may not read before its output is read.
	go func() {
		s.input.mu.Lock()
		defer s.input.mu.Unlock()
		if conn, owed := s.take(); owed != nil {
			s.tellAgain(conn, *owed)
		}
	}()
	return nil
}

// take returns the connection and what is owed there: whoever takes that pays it. The caller holds input.mu.
func (s *Stream) take() (*wire.Conn, *int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	owed := s.owed
	s.owed = nil
	return s.conn, owed
}

// tellAgain sends what the process has not got of what was sent. If this keeper goes too, the next one is owed it. The
// caller holds input.mu.
func (s *Stream) tellAgain(conn *wire.Conn, got int64) {
	in := &s.input
	lacks := in.sent - max(0, got-in.base)
	lacks = min(max(lacks, 0), int64(len(in.tail)))
	for rest := in.tail[int64(len(in.tail))-lacks:]; len(rest) > 0; {
		n := min(len(rest), 32<<10)
		if s.send(conn, wire.FrameStdin, rest[:n]) != nil {
			return
		}
		rest = rest[n:]
	}
	if in.closed {
		_ = s.send(conn, wire.FrameClose, nil)
	}
}

// giveUp ends the stream for good: those that write to it are told.
func (s *Stream) giveUp() {
	s.mu.Lock()
	if !s.over {
		s.over = true
		close(s.changed)
	}
	s.mu.Unlock()
	s.c.streams.remove(s)
}

// Stdin returns the writer to the process' standard input. It blocks while the process does not read.
func (s *Stream) Stdin() io.Writer { return stdinWriter{s} }

type stdinWriter struct{ s *Stream }

func (w stdinWriter) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 {
		n := min(len(p), 32<<10)
		if err := w.s.tell(wire.FrameStdin, p[:n]); err != nil {
			return done, err
		}
		done += n
		p = p[n:]
	}
	return done, nil
}

// CloseWrite tells that no more input comes. An exec's standard input is closed by it, and that of a container made
// with StdinOnce; any other container's stays open for the next attach.
func (s *Stream) CloseWrite() error { return s.tell(wire.FrameClose, nil) }

// tell sends a frame of input; if the keeper goes meanwhile, the next one is told.
func (s *Stream) tell(kind wire.FrameKind, p []byte) error {
	in := &s.input
	in.mu.Lock()
	defer in.mu.Unlock()
	s.mu.Lock()
	over, changed := s.over, s.changed
	s.mu.Unlock()
	if over {
		return io.ErrClosedPipe
	}
	conn, owed := s.take()
	if s.at == nil {
		return s.send(conn, kind, p)
	}
	if kind == wire.FrameClose {
		in.closed = true
	} else {
		in.sent += int64(len(p))
		if in.tail = append(in.tail, p...); len(in.tail) > 2*inputKept {
			in.tail = append(in.tail[:0:0], in.tail[len(in.tail)-inputKept:]...)
		}
	}
	if owed != nil {
		s.tellAgain(conn, *owed)
		return nil
	}
	if s.send(conn, kind, p) == nil {
		return nil
	}
	// The next keeper is owed it.
	select {
	case <-changed:
	case <-s.ctx.Done():
		return io.ErrClosedPipe
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return io.ErrClosedPipe
	}
	return nil
}

// send writes a frame. The caller holds input.mu.
func (s *Stream) send(conn *wire.Conn, kind wire.FrameKind, p []byte) error {
	s.input.out = wire.AppendStreamFrame(s.input.out[:0], kind, p)
	_, err := conn.Unix.Write(s.input.out)
	return err
}

// Close gives the attach up and leaves the process alone.
func (s *Stream) Close() error {
	s.stop()
	s.giveUp()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.Close()
}

// streams are the open attaches.
type streams struct {
	mu   sync.Mutex
	all  map[*Stream]struct{}
	wake chan struct{} // closed at every change
}

func (t *streams) add(s *Stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[*Stream]struct{}{}
	}
	t.all[s] = struct{}{}
}

func (t *streams) remove(s *Stream) {
	t.mu.Lock()
	delete(t.all, s)
	t.mu.Unlock()
	t.changed()
}

// targets names what each of those that can go on with another keeper is attached to.
func (t *streams) targets() []wire.Target {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []wire.Target
	for s := range t.all {
		if s.keeper() != "" {
			list = append(list, wire.Target{ID: s.opts.ID, ExecID: s.opts.ExecID})
		}
	}
	return list
}

func (t *streams) changed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wake != nil {
		close(t.wake)
		t.wake = nil
	}
}

// settle waits, bounded, until no attach to a container is on its way from a keeper that is gone to the one named: what
// the container printed last is theirs.
func (t *streams) settle(ctx context.Context, id, instance string) {
	bound := time.NewTimer(10 * time.Second)
	defer bound.Stop()
	for {
		t.mu.Lock()
		stale := false
		for s := range t.all {
			stale = stale || s.opts.ID == id && s.keeper() != instance
		}
		if t.wake == nil {
			t.wake = make(chan struct{})
		}
		wake := t.wake
		t.mu.Unlock()
		if !stale {
			return
		}
		select {
		case <-wake:
		case <-bound.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// keeper is the instance of the keeper that serves a stream.
func (s *Stream) keeper() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.instance
}
