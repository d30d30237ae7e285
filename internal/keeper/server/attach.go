package server

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// attach joins a connection to a process' streams until either ends.
func (s *Server) attach(conn *wire.Conn, m wire.Message) {
	var opts keeper.AttachOptions
	if err := json.Unmarshal(m.Body, &opts); err != nil {
		s.respond(conn, m.ID, nil, fault.New(fault.InvalidArgument, "malformed request: %w", err))
		return
	}
	_, p, err := s.find(wire.Target{ID: opts.ID, ExecID: opts.ExecID})
	if err != nil {
		s.respond(conn, m.ID, nil, err)
		return
	}
	sub, from, err := p.fan.add(opts.Stdout, opts.Stderr, opts.From, p.replay)
	if err != nil {
		s.respond(conn, m.ID, nil, err)
		return
	}
	defer p.fan.remove(sub)
	written, sure := p.inputPosition()
	s.respond(conn, m.ID, wire.AttachReply{Instance: s.program.instance, From: from[:], Input: written, InputUnsure: !sure}, nil)
	_ = conn.Unix.SetWriteDeadline(time.Time{}) // from here on the queue's bound holds
	go func() {
		defer conn.Close()
		if sendOutput(conn, sub) && p.rec.ExecID != "" {
			p.dropSpools()
		}
	}()
	s.takeInput(conn, p, opts.Stdin)
	sub.end("the client has gone")
	p.expectNobody()
}

// expectNobody notes that a client has come and gone: the next keeper is not to wait for one.
func (p *proc) expectNobody() {
	p.mu.Lock()
	stale := p.rec.Attach && p.rec.Status.State != keeper.Exited && p.rec.Final == nil
	p.mu.Unlock()
	if !stale {
		return
	}
	if err := p.change(func(r *record) { r.Attach = false }); err != nil && !errors.Is(err, os.ErrNotExist) {
		p.log.Error("cannot write a record", "err", err)
	}
}

// sendOutput writes what is queued until the end; it reports whether the client has got everything.
func sendOutput(conn *wire.Conn, sub *subscriber) (all bool) {
	var buf []byte
	for {
		list, over, reason := sub.next()
		buf = buf[:0]
		for _, c := range list {
			buf = wire.AppendStreamFrame(buf, c.stream, c.data)
		}
		if over && reason == "" {
			buf = wire.AppendStreamFrame(buf, wire.FrameEnd, nil)
		} else if over {
			buf = wire.AppendStreamFrame(buf, wire.FrameError, []byte(reason))
		}
		if _, err := conn.Unix.Write(buf); err != nil || over {
			return err == nil && reason == ""
		}
	}
}

// takeInput writes what the client sends to the process' standard input, until the client goes.
func (s *Server) takeInput(conn *wire.Conn, p *proc, stdin bool) {
	r := bufio.NewReaderSize(conn.Unix, 4<<10)
	var buf []byte
	for {
		kind, data, err := wire.ReadStreamFrame(r, buf)
		if err != nil {
			if stdin {
				s.endInput(p)
			}
			return
		}
		buf = data[:cap(data)]
		switch {
		case !stdin:
		case kind == wire.FrameStdin:
			p.writeInput(data)
		case kind == wire.FrameClose:
			s.endInput(p)
		}
	}
}

// endInput closes a process' standard input if it is one that ends with its client.
func (s *Server) endInput(p *proc) {
	if !p.rec.StdinOnce || p.rec.Terminal {
		return
	}
	p.mu.Lock()
	w := p.io.stdin
	p.io.stdin = nil
	p.mu.Unlock()
	if w == nil {
		return
	}
	if err := p.change(func(r *record) { r.StdinClosed = true }); err != nil {
		p.log.Error("cannot write a record", "err", err)
	}
	_ = w.Close()
	s.pushDrop(p.target(), wire.HandleStdin)
}
