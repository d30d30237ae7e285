package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// Config says which keeper to find or start.
type Config struct {
	// Binary is the sampan-keeper program. Empty: beside the running program, then in the PATH.
	Binary string
	// ExecRoot is the folder of sockets and runtime state, for example /run/sampan. It must be on a file system that does
	// not survive a boot, as the containers do not either.
	ExecRoot string
	// CgroupParent is where the containers' groups are; the keeper puts its own group beside them. Empty, or a systemd
	// slice's name: the root.
	CgroupParent string
	// Debug makes the keeper's own log talk more.
	Debug bool
	// Failpoints arms failpoints in the first keeper that is started: a list of name=action. Those that follow it when it
	// died of one go without.
	Failpoints string
	Logger     *slog.Logger
}

// SocketPath returns the path of the socket of an exec root's keeper.
func SocketPath(execRoot string) string { return filepath.Join(execRoot, "keeper.sock") }

// LogPath returns the path of a keeper's own log file.
func LogPath(execRoot string) string { return filepath.Join(execRoot, "keeper.log") }

// Client is the daemon's connection to its keeper. Its methods may be called from any goroutine. When the connection
// breaks it connects again; when the keeper died it starts a new one and hands it the descriptors that it holds. Calls
// wait for that as long as their context allows; only an Exec that was under way when the keeper died fails
// (fault.Unavailable), as nobody knows how far it came.
type Client struct {
	cfg     Config
	log     *slog.Logger
	stop    context.CancelFunc
	done    chan struct{} // closed when the connection loop has ended
	events  *eventQueue
	held    handles
	streams streams
	exits   exits

	mu      sync.Mutex
	live    *session      // nil while there is no connection
	change  chan struct{} // closed and replaced when live changes
	closed  bool
	spawned bool                 // a keeper was started by this client
	met     bool                 // there was a keeper that it spoke with
	ending  bool                 // the keeper was told to end: no new one
	seen    map[string]time.Time // exits already told, by target: a reconnection replays them
}

// Ensure finds the keeper of an exec root or starts one, agrees on a protocol, and returns when every container that
// ran before is adopted.
func Ensure(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.ExecRoot == "" || !filepath.IsAbs(cfg.ExecRoot) {
		return nil, fault.New(fault.InvalidArgument, "the exec root must be an absolute path, not %q", cfg.ExecRoot)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.ExecRoot, 0o711); err != nil {
		return nil, fmt.Errorf("exec root: %w", err)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	c := &Client{
		cfg: cfg, log: cfg.Logger.With("component", "keeper"), stop: stop, done: make(chan struct{}),
		events: newEventQueue(), change: make(chan struct{}), seen: map[string]time.Time{},
	}
	s, err := c.connect(ctx)
	if err != nil {
		stop()
		c.events.close()
		return nil, err
	}
	c.setLive(s)
	go c.keepConnected(run, s)
	return c, nil
}

// Events returns what happens to containers and execs; the channel is closed by Close. At every connection the exits of
// all containers that are not deleted yet are told once more, unless this client told them already.
func (c *Client) Events() <-chan Event { return c.events.out }

// PID returns the keeper's process ID, 0 while there is no connection to it.
func (c *Client) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live == nil {
		return 0
	}
	return c.live.pid
}

// Close ends the connection. The keeper, and all it keeps, lives on.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	s := c.live
	c.mu.Unlock()
	c.stop()
	if s != nil {
		_ = s.conn.Close()
	}
	<-c.done
	c.events.close()
	c.held.closeAll()
	return nil
}

// Create makes a container: its init process waits for Start.
func (c *Client) Create(ctx context.Context, spec Spec) (Status, error) {
	var st Status
	for attempt := 1; ; attempt++ {
		err := c.call(ctx, wire.OpCreate, spec, &st, false)
		if !errors.Is(err, errLost) || attempt == 3 {
			return st, err
		}
		// A keeper that died half-way has taken the container down; one that got to the end has adopted it.
		if st, err = c.Status(ctx, spec.ID, ""); err == nil || !fault.Is(err, fault.NotFound) {
			return st, err
		}
	}
}

// Start lets a created container run its program.
func (c *Client) Start(ctx context.Context, id string) (Status, error) {
	var st Status
	for {
		err := c.call(ctx, wire.OpStart, wire.Target{ID: id}, &st, false)
		if !errors.Is(err, errLost) {
			return st, err
		}
		if st, err = c.Status(ctx, id, ""); err != nil || st.State != Created {
			return st, err
		}
	}
}

// Exec starts another process in a running container. What it prints is kept, up to 1 MiB, until the first attach.
func (c *Client) Exec(ctx context.Context, p Process) (Status, error) {
	var st Status
	err := c.call(ctx, wire.OpExec, p, &st, false)
	if errors.Is(err, errLost) {
		if st, serr := c.Status(ctx, p.Container, p.ExecID); serr == nil {
			return st, nil
		}
		err = fault.New(fault.Unavailable, "the keeper went away while exec %s was being started in container %s; try again", p.ExecID, p.Container)
	}
	return st, err
}

// Signal sends a signal to a container's first process or an exec (execID), or to all processes of the container.
func (c *Client) Signal(ctx context.Context, id, execID string, sig int, all bool) error {
	return c.call(ctx, wire.OpSignal, wire.Signal{Target: wire.Target{ID: id, ExecID: execID}, Signal: sig, All: all}, nil, true)
}

// Resize sets the size of a process' terminal.
func (c *Client) Resize(ctx context.Context, id, execID string, rows, cols uint16) error {
	return c.call(ctx, wire.OpResize, wire.Resize{Target: wire.Target{ID: id, ExecID: execID}, Rows: rows, Cols: cols}, nil, true)
}

// Pause freezes all processes of a container. Pausing a paused one does nothing.
func (c *Client) Pause(ctx context.Context, id string) error {
	return c.call(ctx, wire.OpPause, wire.Target{ID: id}, nil, true)
}

// Resume thaws a container. Resuming one that is not paused does nothing.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.call(ctx, wire.OpResume, wire.Target{ID: id}, nil, true)
}

// Update changes the limits of a container; what r does not name stays.
func (c *Client) Update(ctx context.Context, id string, r Resources) error {
	return c.call(ctx, wire.OpUpdate, updateRequest{Target: wire.Target{ID: id}, Resources: r}, nil, true)
}

// Delete forgets a container, killing it first if it runs: nothing of it stays, neither group nor pipes nor exit
// record. It is an error (fault.NotFound) if there is no such container.
func (c *Client) Delete(ctx context.Context, id string) error {
	if s, err := c.await(ctx); err == nil && s.instance != "" {
		c.streams.settle(ctx, id, s.instance)
	}
	err := c.call(ctx, wire.OpDelete, wire.Target{ID: id}, nil, false)
	if errors.Is(err, errLost) {
		if err = c.call(ctx, wire.OpDelete, wire.Target{ID: id}, nil, true); fault.Is(err, fault.NotFound) {
			err = nil
		}
	}
	if err == nil {
		c.held.dropContainer(id)
		c.forget(id)
	}
	return err
}

// List returns every container that is not deleted, and their execs, those that ended in the last five minutes included.
func (c *Client) List(ctx context.Context) ([]Status, error) {
	var list []Status
	err := c.call(ctx, wire.OpList, nil, &list, true)
	return list, err
}

// Status returns what is known of a container, or of an exec.
func (c *Client) Status(ctx context.Context, id, execID string) (Status, error) {
	var st Status
	err := c.call(ctx, wire.OpStatus, wire.Target{ID: id, ExecID: execID}, &st, true)
	return st, err
}

// SetNames replaces the name server's table. The keeper has it on disk when SetNames returns.
func (c *Client) SetNames(ctx context.Context, t NameTable) error {
	return c.call(ctx, wire.OpNames, t, nil, true)
}

// Shutdown ends the keeper. It is refused (fault.Conflict) while there are containers. The client is closed with it.
func (c *Client) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	s := c.live
	c.mu.Unlock()
	if s == nil {
		return fault.New(fault.Unavailable, "no connection to the keeper")
	}
	c.setEnding(true)
	if err := c.call(ctx, wire.OpShutdown, nil, nil, false); err != nil && !errors.Is(err, errLost) {
		c.setEnding(false)
		return err
	}
	err := waitGone(ctx, s.pid, c.cfg.ExecRoot)
	_ = c.Close()
	return err
}

// Abandon is Close for a daemon that did not come to work: a keeper that it has started and that keeps nothing ends with
// it.
func (c *Client) Abandon(ctx context.Context) error {
	c.mu.Lock()
	spawned := c.spawned
	c.mu.Unlock()
	if spawned {
		if err := c.Shutdown(ctx); err == nil {
			return nil
		} else if !fault.Is(err, fault.Conflict) {
			c.log.Warn("the keeper that was started stays", "err", err)
		}
	}
	return c.Close()
}

// Upgrade makes the keeper become another program in place, keeping its containers as children. It returns when the
// new program answers.
func (c *Client) Upgrade(ctx context.Context, binary string) error {
	c.mu.Lock()
	s := c.live
	c.mu.Unlock()
	if s == nil {
		return fault.New(fault.Unavailable, "no connection to the keeper")
	}
	if err := s.upgrade(ctx, binary); err != nil {
		return err
	}
	return c.call(ctx, wire.OpList, nil, nil, true)
}

// newerKeeper tells that the keeper speaks a protocol newer than this daemon's.
func newerKeeper(version int) error {
	return fault.New(fault.FailedPrecondition,
		"the keeper that holds this host's containers speaks protocol %d, this sampand only %d: it was started by a newer sampand; "+
			"run that version, or end the containers and the keeper first", version, ProtocolVersion)
}

type updateRequest struct {
	wire.Target
	Resources Resources `json:"resources"`
}

// errLost tells that the connection broke between a request and its response.
var errLost = fault.New(fault.Unavailable, "the connection to the keeper broke")

// call sends a request and waits for the response, over the connections to come if retry is set.
func (c *Client) call(ctx context.Context, op string, in, out any, retry bool) error {
	var body json.RawMessage
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fault.New(fault.InvalidArgument, "keeper %s: %w", op, err)
		}
	}
	for {
		s, err := c.await(ctx)
		if err != nil {
			return err
		}
		resp, err := s.roundTrip(ctx, op, body)
		if errors.Is(err, errNotSent) || retry && errors.Is(err, errLost) {
			continue
		}
		if err != nil {
			return err
		}
		if out != nil {
			if err := json.Unmarshal(resp, out); err != nil {
				return fmt.Errorf("keeper %s: malformed response: %w", op, err)
			}
		}
		return nil
	}
}

// await returns the live connection, waiting for one.
func (c *Client) await(ctx context.Context) (*session, error) {
	for {
		c.mu.Lock()
		s, change, closed := c.live, c.change, c.closed || c.ending && c.live == nil
		c.mu.Unlock()
		if closed {
			return nil, fault.New(fault.Unavailable, "the client of the keeper is closed")
		}
		if s != nil {
			return s, nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "no connection to the keeper: %w", ctx.Err())
		}
	}
}

func (c *Client) setLive(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live = s
	close(c.change)
	c.change = make(chan struct{})
}

func (c *Client) setEnding(v bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ending = v
}

func (c *Client) isEnding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending
}

// keepConnected serves one connection after the other until Close.
func (c *Client) keepConnected(ctx context.Context, s *session) {
	defer close(c.done)
	for {
		err := s.serve(c)
		c.setLive(nil)
		if ctx.Err() != nil || c.isEnding() {
			return
		}
		c.log.Warn("connection to the keeper broke; connecting again", "err", err)
		for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
			attempt, cancel := context.WithTimeout(ctx, 30*time.Second)
			s, err = c.connect(attempt)
			cancel()
			if err == nil || ctx.Err() != nil {
				break
			}
			c.log.Error("cannot reach or start the keeper; trying again", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
		if ctx.Err() != nil {
			if s != nil {
				_ = s.conn.Close()
			}
			return
		}
		c.setLive(s)
	}
}

// connect dials the keeper, starting one if nobody listens, and agrees on the protocol. A keeper of another build than
// the program that is installed becomes that one first.
func (c *Client) connect(ctx context.Context) (*session, error) {
	asked, tries := false, 0
	for {
		conn, err := dial(ctx, c.cfg.ExecRoot)
		if err != nil {
			if !nobodyListens(err) {
				return nil, err
			}
			c.mu.Lock()
			met := c.met
			c.mu.Unlock()
			err := spawn(ctx, c.cfg, c.log, &c.held, wire.Handover{Attached: c.streams.targets(), New: !met})
			c.cfg.Failpoints = ""
			if err != nil {
				return nil, err
			}
			c.mu.Lock()
			c.spawned = true
			c.mu.Unlock()
			if conn, err = dial(ctx, c.cfg.ExecRoot); err != nil {
				return nil, err
			}
		}
		s, is, err := hello(ctx, conn)
		if err != nil {
			_ = conn.Close()
			if tries++; tries > 50 || ctx.Err() != nil || !fault.Is(err, fault.Unavailable) {
				return nil, err
			}
			// One that was killed this moment: its socket is still there.
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		same := is.Version == ProtocolVersion
		switch {
		case is.Version > ProtocolVersion:
			_ = conn.Close()
			return nil, newerKeeper(is.Version)
		case same && (asked || !c.otherBuild(is.Build)):
			c.mu.Lock()
			c.met = true
			c.mu.Unlock()
			return s, nil
		case asked:
			_ = conn.Close()
			return nil, fault.New(fault.FailedPrecondition, "the keeper program at %s still speaks protocol %d after its upgrade; %d is needed: install the sampan-keeper of this release", c.cfg.Binary, is.Version, ProtocolVersion)
		}
		asked = true
		c.log.Info("upgrading the keeper in place", "pid", is.PID, "fromProtocol", is.Version, "toProtocol", ProtocolVersion)
		if err := c.replaceProgram(ctx, s); err != nil {
			if !same || ctx.Err() != nil {
				return nil, err
			}
			// What runs is understood: better an old keeper than none.
			c.log.Warn("the keeper stays the program it is", "err", err)
		}
	}
}

// otherBuild tells that the keeper's program is not the one that is installed. If that cannot be found out, it is not.
func (c *Client) otherBuild(running string) bool {
	binary, err := c.cfg.binary()
	if err != nil {
		return false
	}
	installed, err := BuildOf(binary)
	return err == nil && installed != running
}

// replaceProgram makes the keeper at the other end of a session that nobody serves yet become the installed program.
func (c *Client) replaceProgram(ctx context.Context, s *session) error {
	defer s.conn.Close()
	binary, err := c.cfg.binary()
	if err == nil {
		err = checkProgram(ctx, binary)
	}
	if err != nil {
		return err
	}
	return s.upgradeBeforeServe(ctx, binary)
}

func dial(ctx context.Context, execRoot string) (*wire.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", SocketPath(execRoot))
	if err != nil {
		return nil, err
	}
	uc := nc.(*net.UnixConn)
	if err := wire.CheckPeer(uc); err != nil {
		_ = uc.Close()
		return nil, err
	}
	return wire.NewConn(uc), nil
}

// tellEvent passes an event on, once.
func (c *Client) tellEvent(e Event) {
	if e.Type == EventExit {
		c.exits.tell(wire.Target{ID: e.Status.ID, ExecID: e.Status.ExecID})
		key := targetKey(e.Status.ID, e.Status.ExecID)
		c.mu.Lock()
		at, told := c.seen[key]
		told = told && at.Equal(e.Status.ExitedAt)
		c.seen[key] = e.Status.ExitedAt
		c.mu.Unlock()
		if told {
			return
		}
	}
	c.events.put(e)
}

// forget drops what is remembered of a deleted container's exits.
func (c *Client) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.seen {
		if key == id || len(key) > len(id) && key[:len(id)+1] == id+"/" {
			delete(c.seen, key)
		}
	}
}

func targetKey(id, execID string) string {
	if execID == "" {
		return id
	}
	return id + "/" + execID
}
