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

// Stream is an open attach, on a connection of its own.
type Stream struct {
	conn *wire.Conn
	r    *bufio.Reader
	buf  []byte

	mu  sync.Mutex // guards writes
	out []byte
}

// Attach joins the streams of a container or exec from now on; an exec's first attach also gets what the exec printed
// before. A client that does not read holds up the process only for a bounded time, then its stream ends with an error.
func (c *Client) Attach(ctx context.Context, opts AttachOptions) (*Stream, error) {
	body, err := json.Marshal(opts)
	if err != nil {
		return nil, err
	}
	for {
		if _, err := c.await(ctx); err != nil {
			return nil, err
		}
		s, err := attach(ctx, c.cfg.ExecRoot, body)
		if err == nil || !errors.Is(err, errLost) {
			return s, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func attach(ctx context.Context, execRoot string, body json.RawMessage) (*Stream, error) {
	conn, err := dial(ctx, execRoot)
	if err != nil {
		if nobodyListens(err) {
			return nil, errLost
		}
		return nil, err
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
		return nil, m.Err.Fault()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, fault.New(fault.DeadlineExceeded, "attaching: %w", ctx.Err())
		}
		return nil, errLost
	}
	return &Stream{conn: conn, r: bufio.NewReaderSize(conn.Unix, 32<<10)}, nil
}

// Read returns the next piece of output: io.EOF after the process has ended and everything it printed was returned. The
// slice is valid until the next call.
func (s *Stream) Read() (StdStream, []byte, error) {
	for {
		kind, p, err := wire.ReadStreamFrame(s.r, s.buf)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = fault.New(fault.Unavailable, "the keeper went away; attach again")
			}
			return 0, nil, err
		}
		s.buf = p[:cap(p)]
		switch kind {
		case wire.FrameStdout, wire.FrameStderr:
			return StdStream(kind), p, nil
		case wire.FrameEnd:
			return 0, nil, io.EOF
		case wire.FrameError:
			return 0, nil, fault.New(fault.Exhausted, "%s", p)
		}
	}
}

// Stdin returns the writer to the process' standard input. It blocks while the process does not read.
func (s *Stream) Stdin() io.Writer { return stdinWriter{s} }

type stdinWriter struct{ s *Stream }

func (w stdinWriter) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 {
		n := min(len(p), 32<<10)
		if err := w.s.send(wire.FrameStdin, p[:n]); err != nil {
			return done, err
		}
		done += n
		p = p[n:]
	}
	return done, nil
}

func (s *Stream) send(kind wire.FrameKind, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out = wire.AppendStreamFrame(s.out[:0], kind, p)
	_, err := s.conn.Unix.Write(s.out)
	return err
}

// CloseWrite tells that no more input comes. An exec's standard input is closed by it, and that of a container made
// with StdinOnce; any other container's stays open for the next attach.
func (s *Stream) CloseWrite() error { return s.send(wire.FrameClose, nil) }

// Close gives the attach up and leaves the process alone.
func (s *Stream) Close() error { return s.conn.Close() }
