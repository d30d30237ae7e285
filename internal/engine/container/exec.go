package container

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/sys/cgroup"
)

// execKept is how long an exec that has ended can be inspected.
const execKept = 5 * time.Minute

// execution is a process run in a container besides its first.
type execution struct {
	id  string
	c   *ctr
	cfg ExecConfig

	mu      sync.Mutex
	started bool
	running bool
	pid     int
	code    *int
	endedAt time.Time
	done    chan struct{} // closed when code is known
}

// ExecCreate prepares an exec. The container must run.
func (m *Manager) ExecCreate(ctx context.Context, id string, cfg ExecConfig) (string, error) {
	c, err := m.find(id)
	if err != nil {
		return "", err
	}
	if len(cfg.Cmd) == 0 {
		return "", fault.New(fault.InvalidArgument, "No exec command specified")
	}
	snap := c.snapshot()
	if err := canExec(&snap, id); err != nil {
		return "", err
	}
	if !cgroup.Unified() { // with version 2 the process is made in its group
		cgroup.ExpectAttach()
	}
	if cfg.User != "" {
		// Who is not there is told of now: the start answers with a stream.
		if _, err := lookupUser(m.runningRootfs(c.id), cfg.User, nil); err != nil {
			return "", orEnded(&snap, err)
		}
	}
	e, err := m.newExec(c, cfg)
	if err != nil {
		return "", err
	}
	m.execEvent(&snap, "exec_create", e)
	return e.id, nil
}

// execEvent tells of an exec in Docker's words, which have a space between the program and its arguments also when there
// are none.
func (m *Manager) execEvent(c *Container, action string, e *execution) {
	m.event(c, action+": "+e.cfg.Cmd[0]+" "+strings.Join(e.cfg.Cmd[1:], " "), "execID", e.id)
}

// runningRootfs is where the root file system of a container is mounted while it runs.
func (m *Manager) runningRootfs(id string) string { return filepath.Join(m.execDir(), id, "rootfs") }

// orEnded is err, an error in a container that ran a moment ago, or, if its process is no more, the news of that: whatever
// else went wrong did so for that reason. c is how it ran.
func orEnded(c *Container, err error) error {
	if err == nil {
		return nil
	}
	if _, gone := os.Stat(fmt.Sprintf("/proc/%d/ns/mnt", c.State.PID)); gone != nil {
		return fault.New(fault.Conflict, "container %s is not running", c.ID)
	}
	return err
}

// newExec keeps an exec for as long as its container is there.
func (m *Manager) newExec(c *ctr, cfg ExecConfig) (*execution, error) {
	e := &execution{id: randomID(), c: c, cfg: cfg, done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byID[c.id] != c {
		return nil, fault.New(fault.NotFound, "No such container: %s", c.id)
	}
	maps.DeleteFunc(m.execs, func(_ string, o *execution) bool { return o.old() })
	m.execs[e.id] = e
	return e, nil
}

func (e *execution) old() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.endedAt.IsZero() && time.Since(e.endedAt) > execKept
}

// canExec refuses an exec in a container that the caller knows as ref.
func canExec(c *Container, ref string) error {
	switch s := &c.State; {
	case s.Paused:
		return fault.New(fault.Conflict, "Container %s is paused, unpause the container before exec", ref)
	case s.Restarting:
		return fault.New(fault.Conflict, "container %s is restarting, wait until the container is running", c.ID)
	case !s.Running:
		return fault.New(fault.Conflict, "container %s is not running", c.ID)
	}
	return nil
}

func (m *Manager) findExec(id string) (*execution, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e, ok := m.execs[id]
	if !ok || m.byID[e.c.id] == nil {
		return nil, fault.New(fault.NotFound, "No such exec instance: %s", id)
	}
	return e, nil
}

// ExecStartOptions say how an exec is started.
type ExecStartOptions struct {
	Detach bool
	Size   [2]uint16 // of the terminal, rows and columns; zero: as the exec was made
	// Ready is called when nothing but the process itself can still fail, before it is made: a client is told that its
	// stream begins before the first byte is there. The exec does not start if it fails. It may be nil.
	Ready func() error
}

// ExecStart runs an exec and returns its streams unless detached.
func (m *Manager) ExecStart(ctx context.Context, execID string, o ExecStartOptions) (Stream, error) {
	e, err := m.findExec(execID)
	if err != nil {
		return nil, err
	}
	snap := e.c.snapshot()
	if err := canExec(&snap, snap.ID); err != nil {
		return nil, err
	}
	if o.Size == [2]uint16{} {
		o.Size = e.cfg.ConsoleSize
	}
	// Who asked may leave; whether it runs must be known all the same.
	if err := m.startExec(context.WithoutCancel(ctx), e, &snap, o); err != nil {
		return nil, err
	}
	if o.Detach {
		return nil, nil
	}
	return m.attachExec(ctx, e)
}

func (m *Manager) attachExec(ctx context.Context, e *execution) (*attachStream, error) {
	o := AttachOptions{Stdin: e.cfg.AttachStdin, Stdout: e.cfg.AttachStdout, Stderr: e.cfg.AttachStderr}
	ks, err := m.Keeper.Attach(ctx, keeper.AttachOptions{ID: e.c.id, ExecID: e.id, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr})
	if err != nil {
		return nil, errorf("attaching to exec %s: %w", short(e.id), err)
	}
	s := newStream(m, e.c, o)
	s.after = e.done
	s.connected(ks, nil)
	return s, nil
}

func (m *Manager) startExec(ctx context.Context, e *execution, c *Container, o ExecStartOptions) error {
	e.mu.Lock()
	switch {
	case e.running:
		e.mu.Unlock()
		return fault.New(fault.Conflict, "exec %s is already running", e.id)
	case e.started:
		e.mu.Unlock()
		return fault.New(fault.Conflict, "exec %s has already run", e.id)
	}
	e.started, e.running = true, true
	e.mu.Unlock()

	if o.Ready != nil {
		if err := o.Ready(); err != nil {
			e.ended(startFailed)
			return err
		}
	}
	m.execEvent(c, "exec_start", e) // also of one that will not start
	st, err := m.runExec(ctx, e, c, o)
	if err = orEnded(c, err); err != nil {
		code := startExitCode(err)
		if code == startFailed { // a shell's word for "found and not run"
			code = 126
		}
		e.ended(code)
		return errorf("exec failed: %w", err)
	}
	e.mu.Lock()
	e.pid = st.PID // also of one that has ended meanwhile
	e.mu.Unlock()
	return nil
}

func (m *Manager) runExec(ctx context.Context, e *execution, c *Container, o ExecStartOptions) (keeper.Status, error) {
	p, err := m.execProcess(c, &e.cfg, o.Size)
	if err != nil {
		return keeper.Status{}, err
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return keeper.Status{}, err
	}
	return m.Keeper.Exec(ctx, keeper.Process{
		Container: c.ID, ExecID: e.id, Process: raw, Terminal: e.cfg.Tty, OpenStdin: e.cfg.AttachStdin, Attach: !o.Detach,
	})
}

// execProcess is an exec's process: the container's, with what the exec changes.
func (m *Manager) execProcess(c *Container, cfg *ExecConfig, size [2]uint16) (*specs.Process, error) {
	rootfs := m.runningRootfs(c.ID)
	var add []string
	name := cfg.User
	if name == "" {
		name, add = c.Config.User, c.Config.Host.GroupAdd
	}
	u, err := lookupUser(rootfs, name, add)
	if err != nil {
		return nil, err
	}
	sec, err := parseSecurity(c.Config.Host.SecurityOpt)
	if err != nil {
		return nil, err
	}
	p, err := m.host.process(m.defaults.Load().effective(c), u, sec)
	if err != nil {
		return nil, err
	}
	p.Args, p.Terminal = cfg.Cmd, cfg.Tty
	p.Env = setEnv(mergeEnv(processEnv(&c.Config, cfg.Tty, c.Networks.Env), cfg.Env))
	p.Cwd = firstNonEmpty(cfg.WorkingDir, p.Cwd)
	if cfg.Privileged {
		p.Capabilities = capSet(m.host.caps)
	}
	p.ConsoleSize = nil
	if cfg.Tty && size[0] > 0 && size[1] > 0 {
		p.ConsoleSize = &specs.Box{Height: uint(size[0]), Width: uint(size[1])}
	}
	return p, nil
}

// ended records an exec's exit once; it reports whether this call did.
func (e *execution) ended(code int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.code != nil {
		return false
	}
	e.code, e.running, e.endedAt = &code, false, time.Now()
	close(e.done)
	return true
}

// execEnded takes the keeper's word that an exec has ended.
func (m *Manager) execEnded(st keeper.Status) {
	m.mu.RLock()
	e := m.execs[st.ExecID]
	m.mu.RUnlock()
	code := st.ExitCode
	if st.ExitUnknown {
		code = unknownExit
	}
	if e == nil || !e.ended(code) {
		return
	}
	snap := e.c.snapshot()
	m.event(&snap, "exec_die", "execID", e.id, "exitCode", strconv.Itoa(code))
}

// forgetExecs ends the execs of a container whose processes are gone with it; those that were not started are gone too.
func (m *Manager) forgetExecs(containerID string, code int) {
	for _, e := range m.execsOf(containerID) {
		if e.isRunning() && e.ended(128+9) {
			snap := e.c.snapshot()
			m.event(&snap, "exec_die", "execID", e.id, "exitCode", strconv.Itoa(128+9))
		} else if e.neverStarted() {
			m.mu.Lock()
			delete(m.execs, e.id)
			m.mu.Unlock()
		}
	}
}

func (e *execution) neverStarted() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.started
}

func (e *execution) isRunning() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.running
}

func (m *Manager) execsOf(containerID string) []*execution {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var es []*execution
	for _, e := range m.execs {
		if e.c.id == containerID {
			es = append(es, e)
		}
	}
	return es
}

// runningExecs are the IDs that inspect shows.
func (m *Manager) runningExecs(containerID string) []string {
	var ids []string
	for _, e := range m.execsOf(containerID) {
		if e.isRunning() {
			ids = append(ids, e.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// ExecResize sets the size of an exec's terminal.
func (m *Manager) ExecResize(ctx context.Context, execID string, rows, cols uint16) error {
	e, err := m.findExec(execID)
	if err != nil {
		return err
	}
	if !e.isRunning() {
		return fault.New(fault.Conflict, "exec %s is not running", execID)
	}
	if !e.cfg.Tty {
		return nil // there is nothing that has a size
	}
	return m.Keeper.Resize(ctx, e.c.id, e.id, rows, cols)
}

// ExecGet returns an exec.
func (m *Manager) ExecGet(execID string) (Exec, error) {
	e, err := m.findExec(execID)
	if err != nil {
		return Exec{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return Exec{ID: e.id, ContainerID: e.c.id, Config: e.cfg, Running: e.running, ExitCode: e.code, PID: e.pid}, nil
}

func utoa(n uint16) string { return strconv.Itoa(int(n)) }
