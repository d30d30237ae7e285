package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// NameServer answers the containers' questions for names; internal/keeper/names is one.
type NameServer interface {
	// Set replaces the whole table, opening and closing sockets as it says.
	Set(keeper.NameTable) error
	Close() error
}

// FilterCache learns seccomp profiles, so that the next start with one is quicker; internal/keeper/filtercache is one.
type FilterCache interface {
	Learn(context.Context, *configs.Seccomp) error
	// File is the first extra file of each process that is started in a container, nil if it needs none.
	File() *os.File
	// Installed is what the kernel gets for a profile that was learned, with flags; ok is false for another.
	Installed(*configs.Seccomp) (flags uint32, program []byte, ok bool)
}

// Config is what a keeper is started with.
type Config struct {
	ExecRoot     string
	CgroupParent string
	Names        NameServer // nil: name tables are kept and not served
	Filters      FilterCache
	Logger       *slog.Logger
	// HandoverFD is the socket by which the daemon hands over what it holds, -1 without one.
	HandoverFD int
	// ResumeFD is the file by which the program that ran in this process before left what it had, -1 without one.
	ResumeFD int
	// Build tells this program from others (keeper.BuildOf).
	Build string
	// Args are the program's own arguments, for the one that replaces it; those about descriptors left out.
	Args []string
}

// Server is a running keeper.
type Server struct {
	cfg   Config
	log   *slog.Logger
	root  string // EXEC-ROOT/keeper
	lock  *os.File
	names NameServer
	// madeGroups are the control groups above the keeper's own that were made for it, deepest first in each hierarchy.
	madeGroups []string
	oom        oomWatcher
	end        context.CancelFunc

	program program
	starts  starts

	mu         sync.Mutex
	listener   *net.UnixListener
	containers map[string]*container    // nil while one is being made
	making     map[string]chan struct{} // those; closed when it is there, or has failed
	watchers   map[*wire.Conn]bool      // daemons to be told: true once the greeting was answered
	daemon     *wire.Conn               // the newest of them: what an older one had left to be made is not made any more
}

// program is about this run of the program and the one that may replace it in this process.
type program struct {
	instance string // tells it from others
	// requests is shut while the program is replaced: nothing is being made or ended then.
	requests gate
	// hurry ends starts of processes that are held up by their container.
	hurry hurry
	// taking is held for reading while something is only in this program's memory, for writing while it is replaced.
	taking sync.RWMutex
}

// Run is a keeper's whole life: it adopts what runs, answers the daemon, and returns when it was told to end.
func Run(ctx context.Context, cfg Config) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	s := &Server{
		cfg: cfg, log: cfg.Logger, root: filepath.Join(cfg.ExecRoot, "keeper"), names: cfg.Names, end: end, program: program{instance: rand.Text()},
		containers: map[string]*container{}, making: map[string]chan struct{}{}, watchers: map[*wire.Conn]bool{},
	}
	var handover *wire.Conn
	if cfg.HandoverFD >= 0 {
		c, err := connOf(cfg.HandoverFD)
		if err != nil {
			return fmt.Errorf("handover: %w", err)
		}
		handover = c
		defer c.Close()
	}
	err := s.prepare(ctx, handover)
	if handover != nil {
		_ = handover.Send(wire.Message{Op: wire.HandoverReady, Err: wire.ErrorOf(err)})
		_ = handover.Close()
	}
	if err != nil {
		return err
	}
	defer s.lock.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	s.log.Info("ready", "pid", os.Getpid(), "containers", len(s.containers))
	for {
		c, err := s.listener.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			s.log.Error("accepting a connection", "err", err)
			time.Sleep(10 * time.Millisecond) // out of descriptors: not a busy loop
			continue
		}
		go s.serve(c)
	}
	s.log.Info("ending")
	closeNames := func() error {
		if s.names != nil {
			return s.names.Close()
		}
		return nil
	}
	if s.mayEnd() != nil {
		return closeNames()
	}
	_ = os.Remove(keeper.SocketPath(s.cfg.ExecRoot))
	s.starts.alone(func() { // no child is left in the group then, and none comes
		s.leaveOwnCgroup()
		err = closeNames()
	})
	return err
}

// prepare takes the exec root, adopts what runs, and listens.
func (s *Server) prepare(ctx context.Context, handover *wire.Conn) error {
	for _, dir := range []string{"containers", "io"} {
		if err := os.MkdirAll(filepath.Join(s.root, dir), 0o700); err != nil {
			return err
		}
	}
	given := newHanded()
	var resumed *resumeState
	if s.cfg.ResumeFD >= 0 {
		var err error
		if resumed, err = readResume(s.cfg.ResumeFD, given); err != nil {
			return fmt.Errorf("taking over from the program before: %w", err)
		}
		s.lock = os.NewFile(uintptr(resumed.Lock), "lock")
	} else if err := s.takeLock(ctx); err != nil {
		return err
	}
	if handover != nil {
		if err := receiveHandover(handover, given); err != nil {
			return err
		}
	}
	s.joinOwnCgroup()
	whole := s.adopt(given)
	given.closeRest()
	if whole && resumed != nil {
		go s.reapStrays() // of the program before
	}
	s.loadNames()
	if err := failpoint.Hit("keeper.listen"); err != nil {
		return err
	}
	return s.listen(resumed)
}

// takeLock waits for a keeper that is about to end. One that a daemon started which died meanwhile is about to serve
// instead: this one gives way to it.
func (s *Server) takeLock(ctx context.Context) error {
	f, err := os.OpenFile(filepath.Join(s.root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	bound := time.After(5 * time.Second)
	for {
		select {
		case err := <-got:
			s.lock = f
			return err
		case <-look.C:
			if c, err := net.Dial("unix", keeper.SocketPath(s.cfg.ExecRoot)); err == nil {
				_ = c.Close()
				return fault.New(fault.AlreadyExists, "another keeper serves %s", s.cfg.ExecRoot)
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-bound:
			return fault.New(fault.Conflict, "another keeper holds %s and does not listen", f.Name())
		}
	}
}

func (s *Server) listen(resumed *resumeState) error {
	path := keeper.SocketPath(s.cfg.ExecRoot)
	if resumed != nil {
		f := os.NewFile(uintptr(resumed.Listener), path)
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		s.listener = l.(*net.UnixListener)
		return nil
	}
	if err := ignoreMissing(os.Remove(path)); err != nil {
		return err
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	s.listener = l
	return nil
}

// serve answers one connection.
func (s *Server) serve(uc *net.UnixConn) {
	defer uc.Close()
	if err := wire.CheckPeer(uc); err != nil {
		s.log.Warn("refused a connection", "err", err)
		return
	}
	conn := wire.NewConn(uc)
	conn.SendTimeout = 10 * time.Second // a daemon that hangs is cut off: no container waits for it
	defer s.unwatch(conn)
	for {
		m, fds, err := conn.Recv()
		wire.CloseFDs(fds)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.log.Warn("a connection broke", "err", err)
			}
			return
		}
		switch m.Op {
		case wire.OpAttach:
			s.attach(conn, m)
			return
		case wire.OpHello: // in order with what follows
			out, err := s.hello(conn, m.Body)
			s.respond(conn, m.ID, out, err)
			if err == nil {
				go s.catchUp(conn)
			}
		default:
			go s.answer(conn, m)
		}
	}
}

func (s *Server) respond(conn *wire.Conn, id uint64, out any, err error) {
	m := wire.Message{ID: id, Err: wire.ErrorOf(err)}
	if err == nil && out != nil {
		m.Body, err = json.Marshal(out)
		m.Err = wire.ErrorOf(err)
	}
	if err := conn.Send(m); err != nil {
		_ = conn.Close()
	}
}

// answer carries out a request.
func (s *Server) answer(conn *wire.Conn, m wire.Message) {
	if m.Op == wire.OpUpgrade {
		s.respond(conn, m.ID, nil, s.upgrade(m.Body))
		return
	}
	s.program.requests.begin()
	defer s.program.requests.done()
	var out any
	err := s.notReplaced(conn, m.Op)
	if err == nil {
		out, err = s.try(m.Op, m.Body)
	}
	if made, ok := out.(keeper.Status); ok && err == nil && m.Op == wire.OpCreate {
		// The other daemon may have come while it was being made.
		if err = s.notReplaced(conn, m.Op); err != nil {
			s.log.Info("taking down a container that was made for a daemon that is gone", "container", made.ID)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if derr := s.delete(ctx, made.ID); derr != nil && !fault.Is(derr, fault.NotFound) {
				s.log.Error("cannot take it down", "container", made.ID, "err", derr)
			}
		}
	}
	if err != nil {
		s.log.Debug("request failed", "op", m.Op, "err", err)
	}
	s.respond(conn, m.ID, out, err)
	if m.Op == wire.OpShutdown && err == nil {
		s.end()
	}
}

// notReplaced refuses what would make something for a daemon that another one has followed: that one has looked at what
// there is already, and would never hear of it.
func (s *Server) notReplaced(conn *wire.Conn, op string) error {
	if op != wire.OpCreate && op != wire.OpExec {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.daemon != nil && s.daemon != conn {
		return fault.New(fault.Unavailable, "another daemon has taken the keeper over")
	}
	return nil
}

// try is do, but a panic costs its request only: every container's life hangs on this process.
func (s *Server) try(op string, body json.RawMessage) (out any, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("panic: a bug in the keeper", "op", op, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("the keeper failed at %s: %v; its log has more", op, r)
		}
	}()
	return s.do(op, body)
}

func (s *Server) do(op string, body json.RawMessage) (any, error) {
	switch op {
	case wire.OpCreate:
		return with(body, s.create)
	case wire.OpStart:
		return with(body, func(t wire.Target) (keeper.Status, error) { return s.start(t.ID) })
	case wire.OpExec:
		return with(body, s.exec)
	case wire.OpSignal:
		return with(body, func(r wire.Signal) (any, error) { return nil, s.signal(r) })
	case wire.OpResize:
		return with(body, func(r wire.Resize) (any, error) {
			_, p, err := s.find(r.Target)
			if err != nil {
				return nil, err
			}
			return nil, p.resize(r.Rows, r.Cols)
		})
	case wire.OpPause:
		return with(body, func(t wire.Target) (any, error) { return nil, s.pause(t.ID) })
	case wire.OpResume:
		return with(body, func(t wire.Target) (any, error) { return nil, s.resume(t.ID) })
	case wire.OpUpdate:
		return with(body, func(r struct {
			wire.Target
			Resources json.RawMessage `json:"resources"`
		}) (any, error) {
			return nil, s.update(r.ID, r.Resources)
		})
	case wire.OpDelete:
		return with(body, func(t wire.Target) (any, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			return nil, s.delete(ctx, t.ID)
		})
	case wire.OpList:
		return s.list(), nil
	case wire.OpStatus:
		return with(body, func(t wire.Target) (keeper.Status, error) {
			_, p, err := s.find(t)
			if err != nil {
				return keeper.Status{}, err
			}
			return p.status(), nil
		})
	case wire.OpNames:
		return with(body, func(t keeper.NameTable) (any, error) { return nil, s.setNames(t) })
	case wire.OpShutdown:
		return nil, s.mayEnd()
	}
	return nil, fault.New(fault.NotImplemented, "this keeper does not know the request %q", op)
}

// with decodes a request's body for f.
func with[In, Out any](body json.RawMessage, f func(In) (Out, error)) (any, error) {
	var in In
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fault.New(fault.InvalidArgument, "malformed request: %w", err)
	}
	return f(in)
}

// hello opens a connection.
func (s *Server) hello(conn *wire.Conn, body json.RawMessage) (any, error) {
	var h wire.Hello
	if err := json.Unmarshal(body, &h); err != nil {
		return nil, fault.New(fault.InvalidArgument, "malformed greeting: %w", err)
	}
	if h.Events && h.Version == keeper.ProtocolVersion {
		s.mu.Lock()
		s.watchers[conn], s.daemon = false, conn
		s.mu.Unlock()
	}
	return wire.HelloReply{Version: keeper.ProtocolVersion, PID: os.Getpid(), Build: s.cfg.Build, Instance: s.program.instance}, nil
}

// catchUp sends a daemon that has connected the descriptors of all that runs and the exits of all that does not, and
// from then on what happens.
func (s *Server) catchUp(conn *wire.Conn) {
	s.mu.Lock()
	_, wanted := s.watchers[conn]
	if wanted {
		s.watchers[conn] = true
	}
	s.mu.Unlock()
	if !wanted {
		return
	}
	for _, p := range s.all() {
		if st := p.status(); st.State == keeper.Exited {
			sendEvent(conn, keeper.Event{Type: keeper.EventExit, Status: st})
		} else {
			sendHold(conn, p)
		}
	}
}

func (s *Server) unwatch(conn *wire.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers, conn)
}

func (s *Server) eachWatcher(f func(*wire.Conn)) {
	s.mu.Lock()
	list := make([]*wire.Conn, 0, len(s.watchers))
	for c, greeted := range s.watchers {
		if greeted {
			list = append(list, c)
		}
	}
	s.mu.Unlock()
	for _, c := range list {
		f(c)
	}
}

func (s *Server) pushEvent(e keeper.Event) { s.eachWatcher(func(c *wire.Conn) { sendEvent(c, e) }) }
func (s *Server) pushHold(p *proc)         { s.eachWatcher(func(c *wire.Conn) { sendHold(c, p) }) }

func (s *Server) pushDrop(t wire.Target, names ...string) {
	s.eachWatcher(func(c *wire.Conn) { push(c, wire.PushDrop, wire.Handle{Target: t, Names: names}) })
}

func sendEvent(c *wire.Conn, e keeper.Event) { push(c, wire.PushEvent, e) }

func sendHold(c *wire.Conn, p *proc) {
	names, fds := p.handles()
	if len(names) > 0 {
		push(c, wire.PushHold, wire.Handle{Target: p.target(), Names: names}, fds...)
	}
}

func push(c *wire.Conn, op string, v any, fds ...int) {
	body, err := json.Marshal(v)
	if err != nil {
		return
	}
	if err := c.Send(wire.Message{Op: op, Body: body}, fds...); err != nil {
		_ = c.Close()
	}
}

// reserve takes a container's ID: until it is published, it cannot be found.
func (s *Server) reserve(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.containers[id]; taken {
		return false
	}
	s.containers[id] = nil
	s.making[id] = make(chan struct{})
	return true
}

func (s *Server) release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, id)
	s.made(id)
}

// made lets those go on who wait until a container is made. The caller holds s.mu.
func (s *Server) made(id string) {
	if making := s.making[id]; making != nil {
		close(making)
		delete(s.making, id)
	}
}

// whenMade is container, but waits for one that is being made.
func (s *Server) whenMade(ctx context.Context, id string) (*container, error) {
	s.mu.Lock()
	making := s.making[id]
	s.mu.Unlock()
	if making != nil {
		select {
		case <-making:
		case <-ctx.Done():
			return nil, fault.New(fault.DeadlineExceeded, "container %s is still being made", id)
		}
	}
	return s.container(id)
}

// publish makes a container known.
func (s *Server) publish(c *container) {
	s.mu.Lock()
	s.containers[c.rec.ID] = c
	s.made(c.rec.ID)
	s.mu.Unlock()
	s.pushHold(c.proc)
	s.watchOOM(c)
}

func (s *Server) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, fault.New(fault.NotFound, "No such container: %s", id)
}

// find returns a container and the process meant: its first one, or an exec.
func (s *Server) find(t wire.Target) (*container, *proc, error) {
	c, err := s.container(t.ID)
	if err != nil || t.ExecID == "" {
		if err != nil {
			return nil, nil, err
		}
		return c, c.proc, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[t.ExecID]; p != nil {
		return c, p, nil
	}
	return nil, nil, fault.New(fault.NotFound, "No such exec instance: %s", t.ExecID)
}

// all returns every process looked after.
func (s *Server) all() []*proc {
	s.mu.Lock()
	var containers []*container
	for _, c := range s.containers {
		if c != nil {
			containers = append(containers, c)
		}
	}
	s.mu.Unlock()
	var list []*proc
	for _, c := range containers {
		list = append(list, c.proc)
		c.mu.Lock()
		for _, p := range c.execs {
			if p != nil {
				list = append(list, p)
			}
		}
		c.mu.Unlock()
	}
	return list
}

func (s *Server) list() []keeper.Status {
	out := []keeper.Status{}
	for _, p := range s.all() {
		out = append(out, p.status())
	}
	return out
}

func (s *Server) mayEnd() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.containers); n > 0 {
		return fault.New(fault.Conflict, "the keeper has %d containers: delete them first", n)
	}
	return nil
}

func (s *Server) namesPath() string { return filepath.Join(s.root, "names.json") }

// setNames takes a new name table: on disk first, so that it is there for the next keeper.
func (s *Server) setNames(t keeper.NameTable) error {
	if err := writeJSON(s.namesPath(), t); err != nil {
		return fmt.Errorf("name table: %w", err)
	}
	if s.names == nil {
		return nil
	}
	return s.names.Set(t)
}

func (s *Server) loadNames() {
	var t keeper.NameTable
	err := readJSON(s.namesPath(), &t)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err == nil && s.names != nil {
		err = s.names.Set(t)
	}
	if err != nil {
		s.log.Error("cannot serve the name table of before", "err", err)
	}
}

func connOf(fd int) (*wire.Conn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("not a Unix socket")
	}
	return wire.NewConn(uc), nil
}
