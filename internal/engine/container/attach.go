package container

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
)

// attachStream is an attach, perhaps to a process that does not run yet: it is connected when that is made.
type attachStream struct {
	m      *Manager
	c      *ctr
	opts   AttachOptions
	replay LogReader // what was printed before, until it is read
	// after is closed when what follows the process' end is done, and its exit code is known; the end of the output is
	// told then, as that is when clients ask. nil: it is told at once. It is set when began is closed; nil: it is set.
	after <-chan struct{}
	began chan struct{}

	ready chan struct{} // closed when ks or err is set
	once  sync.Once
	ks    *keeper.Stream
	err   error

	closed    chan struct{}
	closeOnce sync.Once
}

func newStream(m *Manager, c *ctr, o AttachOptions) *attachStream {
	return &attachStream{m: m, c: c, opts: o, ready: make(chan struct{}), closed: make(chan struct{})}
}

// connected gives the stream its connection, or the reason why there will be none.
func (s *attachStream) connected(ks *keeper.Stream, err error) {
	used := false
	s.once.Do(func() {
		s.ks, s.err, used = ks, err, true
		close(s.ready)
	})
	if !used && ks != nil {
		_ = ks.Close()
	}
}

// Next returns the next piece of output, io.EOF after the last.
func (s *attachStream) Next() (StdStream, []byte, error) {
	for s.replay != nil {
		line, err := s.replay.Next(context.Background())
		if err == nil {
			return line.Stream, line.Line, nil
		}
		_ = s.replay.Close()
		s.replay = nil
		if !errors.Is(err, io.EOF) {
			return 0, nil, err
		}
	}
	if err := s.await(); err != nil {
		return 0, nil, err
	}
	for {
		stream, b, err := s.ks.Read()
		if err != nil {
			if errors.Is(err, io.EOF) {
				s.pause(s.began)
				s.pause(s.after)
			}
			return 0, nil, err
		}
		if len(b) > 0 {
			return StdStream(stream), b, nil
		}
	}
}

// pause waits for done, if there is one, as long as anybody listens.
func (s *attachStream) pause(done <-chan struct{}) {
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-s.closed:
	case <-s.m.ctx.Done():
	}
}

func (s *attachStream) await() error {
	select {
	case <-s.ready:
		return s.err
	case <-s.closed:
		return io.EOF
	}
}

// Write writes to the process' standard input, waiting for the process to be there.
func (s *attachStream) Write(p []byte) (int, error) {
	if err := s.await(); err != nil {
		return 0, err
	}
	return s.ks.Stdin().Write(p)
}

// CloseWrite says that no more input comes.
func (s *attachStream) CloseWrite() error {
	if err := s.await(); err != nil {
		return err
	}
	return s.ks.CloseWrite()
}

// Close gives up the stream; the process goes on.
func (s *attachStream) Close() error {
	s.closeOnce.Do(func() { close(s.closed) })
	select {
	case <-s.ready:
	default:
		s.connected(nil, io.EOF)
	}
	if s.ks == nil {
		return nil
	}
	return s.ks.Close()
}

// Attach joins a container's streams. One that does not run is attached to what its next start makes, from the first
// byte on.
func (m *Manager) Attach(ctx context.Context, id string, o AttachOptions) (Stream, error) {
	c, err := m.find(id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch st := &c.rec.State; {
	case st.Paused:
		return nil, fault.New(fault.Conflict, "container %s is paused, unpause the container before attach", id)
	case st.Restarting && o.Stream:
		return nil, fault.New(fault.Conflict, "container %s is restarting, wait until the container is running", id)
	case st.Status == StatusRemoving || st.Dead:
		return nil, fault.New(fault.Conflict, "container %s is being removed", id)
	}
	s := newStream(m, c, o)
	switch {
	case !o.Stream:
		s.connected(nil, io.EOF)
	case c.rec.State.Running:
		ks, err := m.Keeper.Attach(ctx, keeper.AttachOptions{ID: c.id, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr})
		if err != nil {
			return nil, errorf("attaching to container %s: %w", id, err)
		}
		if c.run != nil {
			s.after = c.run.ended
		}
		s.connected(ks, nil)
	default:
		s.began = make(chan struct{})
		c.pending = slices.DeleteFunc(c.pending, func(p *attachStream) bool { return p.isClosed() })
		c.pending = append(c.pending, s)
	}
	if o.Logs {
		if s.replay, err = m.openLog(c, LogOptions{Stdout: o.Stdout, Stderr: o.Stderr, Tail: -1}); err != nil {
			_ = s.Close()
			return nil, err
		}
	}
	m.event(&c.rec.Container, "attach")
	return s, nil
}

func (s *attachStream) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// connectPending connects those who attached before the start. The caller holds c.mu.
func (m *Manager) connectPending(ctx context.Context, c *ctr) error {
	waiting := c.pending
	c.pending = nil
	for i, s := range waiting {
		if s.isClosed() {
			continue
		}
		ks, err := m.Keeper.Attach(ctx, keeper.AttachOptions{ID: c.id, Stdin: s.opts.Stdin, Stdout: s.opts.Stdout, Stderr: s.opts.Stderr})
		if err != nil {
			for _, rest := range waiting[i:] {
				rest.connected(nil, err)
			}
			return errorf("attaching to container %s: %w", short(c.id), err)
		}
		s.connected(ks, nil)
		c.starting = append(c.starting, s)
	}
	return nil
}

// attachedToRun tells those who attached before the start of which run they see the output; nil: of none, as the start
// has failed. The caller holds c.mu.
func (c *ctr) attachedToRun(r *run) {
	for _, s := range c.starting {
		if r != nil {
			s.after = r.ended
		}
		close(s.began)
	}
	c.starting = nil
}

// dropPending ends the streams that wait for a start which failed or will not come. The caller holds c.mu.
func (c *ctr) dropPending(error) {
	for _, s := range c.pending {
		s.connected(nil, io.EOF)
	}
	c.pending = nil
	c.attachedToRun(nil)
}

// Resize sets the size of a running container's terminal.
func (m *Manager) Resize(ctx context.Context, id string, rows, cols uint16) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	s := c.snapshot()
	if !s.State.Running || s.State.Restarting {
		return fault.New(fault.Conflict, "container %s is not running", id)
	}
	if s.Config.Tty { // otherwise there is nothing that has a size
		if err := m.Keeper.Resize(ctx, c.id, "", rows, cols); err != nil {
			return errorf("resizing container %s: %w", id, err)
		}
	}
	m.event(&s, "resize", "height", utoa(rows), "width", utoa(cols))
	return nil
}
