package control_test

import (
	"context"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/agent"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

// reach connects an agent with the leading manager.
type reach struct{ h *host }

func (r reach) Update([]string) {}

func (r reach) Connect(ctx context.Context) (agent.Link, error) {
	if err := r.h.passable(ctx); err != nil {
		return agent.Link{}, err
	}
	c := &client{s: r.h.s, node: r.h.name, h: r.h}
	return agent.Link{Dispatcher: c, Heartbeats: c, Report: rpc.FromStatus}, nil
}

// client calls the leader's dispatcher in this process.
type client struct {
	s    *sim
	node string
	h    *host // whose link it goes over; nil: none
}

func (c *client) leader() (*manager, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.leading < 0 {
		return nil, rpc.NotLeader("")
	}
	m := c.s.managers[c.s.leading]
	if h := c.s.hosts[m.node]; h != nil && h.isCut() && c.node != m.node {
		return nil, fault.New(fault.Unavailable, "no route to host")
	}
	return m, nil
}

func (c *client) pass(ctx context.Context) (context.Context, *manager, error) {
	if c.h != nil {
		if err := c.h.passable(ctx); err != nil {
			return nil, nil, err
		}
	}
	m, err := c.leader()
	if err != nil {
		return nil, nil, err
	}
	return rpc.WithCaller(ctx, rpc.Caller{NodeID: c.node, Role: rpc.RoleWorker}), m, nil
}

func call[Req, Resp any](ctx context.Context, c *client, req Req, f func(*manager) func(context.Context, Req) (Resp, error)) (Resp, error) {
	var none Resp
	ctx, m, err := c.pass(ctx)
	if err != nil {
		return none, err
	}
	resp, err := f(m)(ctx, req)
	if c.h != nil { // the answer goes over the link too
		if perr := c.h.passable(ctx); perr != nil {
			return none, perr
		}
	}
	if err != nil {
		return none, rpc.ToStatus(err)
	}
	return resp, nil
}

func (c *client) Heartbeat(ctx context.Context, r *rpc.HeartbeatRequest, _ ...grpc.CallOption) (*rpc.HeartbeatResponse, error) {
	return call(ctx, c, r, func(m *manager) func(context.Context, *rpc.HeartbeatRequest) (*rpc.HeartbeatResponse, error) {
		return m.leader.Dispatcher().Heartbeat
	})
}

func (c *client) UpdateTaskStatus(ctx context.Context, r *rpc.UpdateTaskStatusRequest, _ ...grpc.CallOption) (*rpc.UpdateTaskStatusResponse, error) {
	return call(ctx, c, r, func(m *manager) func(context.Context, *rpc.UpdateTaskStatusRequest) (*rpc.UpdateTaskStatusResponse, error) {
		return m.leader.Dispatcher().UpdateTaskStatus
	})
}

func (c *client) Attach(ctx context.Context, r *rpc.AttachRequest, _ ...grpc.CallOption) (*rpc.AttachResponse, error) {
	return call(ctx, c, r, func(m *manager) func(context.Context, *rpc.AttachRequest) (*rpc.AttachResponse, error) {
		return m.leader.Dispatcher().Attach
	})
}

func (c *client) Detach(ctx context.Context, r *rpc.DetachRequest, _ ...grpc.CallOption) (*rpc.DetachResponse, error) {
	return call(ctx, c, r, func(m *manager) func(context.Context, *rpc.DetachRequest) (*rpc.DetachResponse, error) {
		return m.leader.Dispatcher().Detach
	})
}

// pipe is a stream of two directions in this process. What is sent while the link is cut waits.
type pipe[Up, Down any] struct {
	grpc.ClientStream
	ctx    context.Context
	h      *host
	up     chan *Up
	down   chan *Down
	closed chan struct{} // the caller sends no more
	once   sync.Once
	done   chan struct{} // the handler returned
	err    error
	answer chan *rpc.PublishLogsResponse
}

func open[Up, Down any](ctx context.Context, c *client, handler func(*manager, *pipe[Up, Down]) error) (*pipe[Up, Down], error) {
	ctx, m, err := c.pass(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &pipe[Up, Down]{ctx: ctx, h: c.h, up: make(chan *Up), down: make(chan *Down), closed: make(chan struct{}), done: make(chan struct{}),
		answer: make(chan *rpc.PublishLogsResponse, 1)}
	forget := func() {}
	if c.h != nil {
		c.h.mu.Lock()
		c.h.nextConn++
		n := c.h.nextConn
		c.h.conns[n] = cancel
		c.h.mu.Unlock()
		forget = func() {
			c.h.mu.Lock()
			defer c.h.mu.Unlock()
			delete(c.h.conns, n)
		}
	}
	go func() {
		defer cancel()
		defer forget()
		p.err = rpc.ToStatus(handler(m, p))
		if p.err == nil {
			p.err = io.EOF
		}
		close(p.done)
	}()
	return p, nil
}

func (p *pipe[Up, Down]) Context() context.Context { return p.ctx }

func (p *pipe[Up, Down]) link() error {
	if p.h == nil {
		return nil
	}
	return p.h.passable(p.ctx)
}

// The caller's side.

func (p *pipe[Up, Down]) Send(m *Up) error {
	if err := p.link(); err != nil {
		return err
	}
	select {
	case p.up <- m:
		return nil
	case <-p.done:
		return io.EOF
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pipe[Up, Down]) Recv() (*Down, error) {
	for {
		select {
		case m := <-p.down:
			return m, nil
		case <-p.done:
			if err := p.link(); err != nil {
				return nil, err
			}
			return nil, p.err
		case <-p.ctx.Done():
			select {
			case <-p.done:
				return nil, p.err
			default:
			}
			return nil, p.ctx.Err()
		}
	}
}

func (p *pipe[Up, Down]) CloseSend() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipe[Up, Down]) CloseAndRecv() (*rpc.PublishLogsResponse, error) {
	_ = p.CloseSend()
	select {
	case a := <-p.answer:
		return a, nil
	case <-p.done:
		return &rpc.PublishLogsResponse{}, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

// serverSide is the handler's end of a pipe.
type serverSide[Up, Down any] struct {
	grpc.ServerStream
	p *pipe[Up, Down]
}

func (s serverSide[Up, Down]) Context() context.Context { return s.p.ctx }

func (s serverSide[Up, Down]) Send(m *Down) error {
	if err := s.p.link(); err != nil {
		return err
	}
	select {
	case s.p.down <- m:
		return nil
	case <-s.p.ctx.Done():
		return s.p.ctx.Err()
	}
}

func (s serverSide[Up, Down]) Recv() (*Up, error) {
	select {
	case m := <-s.p.up:
		return m, nil
	case <-s.p.closed:
		return nil, io.EOF
	case <-s.p.ctx.Done():
		return nil, s.p.ctx.Err()
	}
}

func (s serverSide[Up, Down]) SendAndClose(r *rpc.PublishLogsResponse) error {
	s.p.answer <- r
	return nil
}

func (c *client) Session(ctx context.Context, _ ...grpc.CallOption) (rpc.Dispatcher_SessionClient, error) {
	return open(ctx, c, func(m *manager, p *pipe[rpc.AgentMessage, rpc.ManagerMessage]) error {
		return m.leader.Dispatcher().Session(serverSide[rpc.AgentMessage, rpc.ManagerMessage]{p: p})
	})
}

func (c *client) PublishLogs(ctx context.Context, _ ...grpc.CallOption) (rpc.Dispatcher_PublishLogsClient, error) {
	return open(ctx, c, func(m *manager, p *pipe[rpc.LogFrame, rpc.PublishLogsResponse]) error {
		return m.leader.Dispatcher().PublishLogs(serverSide[rpc.LogFrame, rpc.PublishLogsResponse]{p: p})
	})
}

func (c *client) SubscribeLogs(ctx context.Context, r *rpc.LogRequest, _ ...grpc.CallOption) (rpc.Dispatcher_SubscribeLogsClient, error) {
	return open(ctx, c, func(m *manager, p *pipe[rpc.LogRequest, rpc.LogFrame]) error {
		return m.leader.Dispatcher().SubscribeLogs(r, serverSide[rpc.LogRequest, rpc.LogFrame]{p: p})
	})
}
