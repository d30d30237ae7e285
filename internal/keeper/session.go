package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// session is one connection: requests under way, by ID.
type session struct {
	conn     *wire.Conn
	pid      int
	instance string

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan wire.Message
	broken  bool
}

// errNotSent tells that a request did not leave: it is safe to send it again whatever it asks.
var errNotSent = errors.New("the request was not sent")

// hello opens a session. It does not read pushed messages: serve does.
func hello(ctx context.Context, conn *wire.Conn) (*session, wire.HelloReply, error) {
	var r wire.HelloReply
	stop := context.AfterFunc(ctx, func() { _ = conn.Unix.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	body, _ := json.Marshal(wire.Hello{Version: ProtocolVersion, Events: true})
	if err := conn.Send(wire.Message{ID: 1, Op: wire.OpHello, Body: body}); err != nil {
		return nil, r, fault.New(fault.Unavailable, "greeting the keeper: %w", err)
	}
	m, fds, err := conn.Recv()
	wire.CloseFDs(fds)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("the keeper does not answer: %w", ctx.Err())
		}
		return nil, r, fault.New(fault.Unavailable, "greeting the keeper: %w", err)
	}
	if m.Err != nil {
		return nil, r, m.Err.Fault()
	}
	if err := json.Unmarshal(m.Body, &r); err != nil || m.ID != 1 {
		return nil, r, fault.New(fault.FailedPrecondition, "what answers at the keeper's socket is not a keeper")
	}
	return &session{conn: conn, pid: r.PID, instance: r.Instance, next: 1, waiting: map[uint64]chan wire.Message{}}, r, nil
}

// serve reads until the connection breaks.
func (s *session) serve(c *Client) error {
	err := s.read(c)
	_ = s.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = true
	for id, ch := range s.waiting {
		close(ch)
		delete(s.waiting, id)
	}
	return err
}

func (s *session) read(c *Client) error {
	for {
		m, fds, err := s.conn.Recv()
		if err != nil {
			return err
		}
		switch {
		case m.ID != 0:
			wire.CloseFDs(fds)
			s.mu.Lock()
			ch := s.waiting[m.ID]
			delete(s.waiting, m.ID)
			s.mu.Unlock()
			if ch != nil {
				ch <- m
			}
		case m.Op == wire.PushEvent:
			wire.CloseFDs(fds)
			var e Event
			if err := json.Unmarshal(m.Body, &e); err != nil {
				return fmt.Errorf("malformed event: %w", err)
			}
			c.tellEvent(e)
		case m.Op == wire.PushHold, m.Op == wire.PushDrop:
			var h wire.Handle
			if err := json.Unmarshal(m.Body, &h); err != nil || m.Op == wire.PushHold && len(h.Names) != len(fds) {
				wire.CloseFDs(fds)
				return fmt.Errorf("malformed %s message", m.Op)
			}
			if m.Op == wire.PushHold {
				c.held.hold(h, fds)
			} else {
				wire.CloseFDs(fds)
				c.held.drop(h)
			}
		default:
			wire.CloseFDs(fds) // a later version's: not for us
		}
	}
}

func (s *session) roundTrip(ctx context.Context, op string, body json.RawMessage) (json.RawMessage, error) {
	ch := make(chan wire.Message, 1)
	s.mu.Lock()
	if s.broken {
		s.mu.Unlock()
		// The loop is about to replace this session; let it.
		select {
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "no connection to the keeper: %w", ctx.Err())
		case <-time.After(time.Millisecond):
			return nil, errNotSent
		}
	}
	s.next++
	id := s.next
	s.waiting[id] = ch
	s.mu.Unlock()
	if err := s.conn.Send(wire.Message{ID: id, Op: op, Body: body}); err != nil {
		if fault.Is(err, fault.InvalidArgument) {
			return nil, err
		}
		_ = s.conn.Close()
		return nil, errLost
	}
	select {
	case m, ok := <-ch:
		if !ok {
			return nil, errLost
		}
		return m.Body, m.Err.Fault()
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.waiting, id)
		s.mu.Unlock()
		return nil, fault.New(fault.DeadlineExceeded, "waiting for the keeper's answer to %s: %w", op, ctx.Err())
	}
}

// upgrade asks the keeper to become another program: it answers an error, or goes.
func (s *session) upgrade(ctx context.Context, binary string) error {
	body, _ := json.Marshal(wire.Upgrade{Binary: binary})
	_, err := s.roundTrip(ctx, wire.OpUpgrade, body)
	if errors.Is(err, errLost) {
		return nil
	}
	return err
}

// upgradeBeforeServe is upgrade on a session that nobody serves yet.
func (s *session) upgradeBeforeServe(ctx context.Context, binary string) error {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Unix.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer s.conn.Close()
	body, _ := json.Marshal(wire.Upgrade{Binary: binary})
	if err := s.conn.Send(wire.Message{ID: 2, Op: wire.OpUpgrade, Body: body}); err != nil {
		return fmt.Errorf("upgrading the keeper: %w", err)
	}
	for {
		m, fds, err := s.conn.Recv()
		wire.CloseFDs(fds)
		if err != nil {
			return ctx.Err() // the connection ends when the program is replaced
		}
		if m.ID == 2 && m.Err != nil {
			return fmt.Errorf("upgrading the keeper: %w", m.Err.Fault())
		}
	}
}

// eventQueue is a channel without a bound, so that a slow reader of events holds up no response.
type eventQueue struct {
	out  chan Event
	mu   sync.Mutex
	list []Event
	wake chan struct{}
	quit chan struct{}
}

func newEventQueue() *eventQueue {
	q := &eventQueue{out: make(chan Event), wake: make(chan struct{}, 1), quit: make(chan struct{})}
	go q.run()
	return q
}

func (q *eventQueue) put(e Event) {
	q.mu.Lock()
	q.list = append(q.list, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *eventQueue) close() { close(q.quit) }

func (q *eventQueue) run() {
	defer close(q.out)
	for {
		q.mu.Lock()
		list := q.list
		q.list = nil
		q.mu.Unlock()
		for _, e := range list {
			select {
			case q.out <- e:
			case <-q.quit:
				return
			}
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-q.quit:
			return
		}
	}
}
