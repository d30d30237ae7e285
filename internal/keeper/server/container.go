package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/keeper/enter"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
	"github.com/sampan-cloud/sampan/internal/sys/cgroup"
)

// execMemory is how long an exec that ended is remembered.
const execMemory = 5 * time.Minute

// container is a container and the execs in it.
type container struct {
	*proc
	op sync.Mutex // one operation at a time: start, pause, resume, update, delete
	// entering is shut while the container is being paused: what is put into it then would be held up until it is thawed.
	entering gate

	mu       sync.Mutex
	lc       *libcontainer.Container
	execs    map[string]*proc
	arriving sync.WaitGroup // execs on their way in; none begins once deleted is set
	deleted  bool
	// filter is what its processes are started with the short way, empty until that is known.
	filter enter.Filter
}

func (s *Server) containerDir(id string) string { return filepath.Join(s.root, "io", id) }
func (s *Server) stateRoot() string             { return filepath.Join(s.root, "containers") }

// create makes a container whose init waits to be started.
func (s *Server) create(spec keeper.Spec) (_ keeper.Status, err error) {
	if err := checkID("container", spec.ID); err != nil {
		return keeper.Status{}, err
	}
	config, process, err := convertSpec(spec)
	if err != nil {
		return keeper.Status{}, err
	}
	end := s.beginStart()
	defer func() { end(err) }()
	u := undo.New()
	defer func() {
		if uerr := u.Run(); uerr != nil {
			s.log.Error("cannot take back all of a failed create", "container", spec.ID, "err", uerr)
		}
	}()
	if !s.reserve(spec.ID) {
		return keeper.Status{}, fault.New(fault.AlreadyExists, "container %s exists already", spec.ID)
	}
	u.Add(func() error { s.release(spec.ID); return nil })

	dir := s.containerDir(spec.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return keeper.Status{}, err
	}
	u.Add(func() error { return os.RemoveAll(dir) })
	p := s.newProc(dir, record{
		ID: spec.ID, Making: true, Terminal: spec.Terminal, OpenStdin: spec.OpenStdin, StdinOnce: spec.StdinOnce,
		Log: spec.Log, SharedPIDs: !config.Namespaces.IsPrivate(configs.NEWPID),
		Status: keeper.Status{ID: spec.ID, State: keeper.Created},
	})
	lc, err := libcontainer.Create(s.stateRoot(), spec.ID, config)
	if err != nil {
		return keeper.Status{}, fmt.Errorf("creating container %s: %w", spec.ID, err)
	}
	u.Add(func() error { return s.destroy(lc, spec.ID, p.rec.Cgroups) })
	if st, err := lc.State(); err == nil {
		p.rec.Cgroups = maps.Clone(st.CgroupPaths) // it takes out of its own what it has removed
	}
	if err := p.change(func(*record) {}); err != nil {
		return keeper.Status{}, err
	}
	if err := failpoint.Hit("keeper.create.after-record"); err != nil {
		return keeper.Status{}, err
	}
	if err := notBelowFrozen(p); err != nil {
		return keeper.Status{}, err
	}
	if err := failpoint.Hit("keeper.create.checked"); err != nil {
		return keeper.Status{}, err
	}
	process.Init = true
	ctx, over := untilFrozen(context.Background(), p.rec.Cgroups)
	defer over()
	if err := s.launch(p, config, u, s.bounded(ctx, p, config, s.byInit(lc, process))); err != nil {
		return keeper.Status{}, startError(err)
	}
	if err := failpoint.Hit("keeper.create.after-init"); err != nil {
		return keeper.Status{}, err
	}
	if err := p.change(func(r *record) { r.Making = false }); err != nil {
		return keeper.Status{}, err
	}
	u.Done()
	c := &container{proc: p, lc: lc, execs: map[string]*proc{}}
	s.publish(c)
	p.run()
	s.watch(c, p)
	go s.learnFilter(config.Seccomp)
	return p.status(), nil
}

// learnFilter sees to it that the next start with this profile has it compiled.
func (s *Server) learnFilter(profile *configs.Seccomp) {
	end := s.beginStart() // it makes a child, which is not a stray
	defer end(nil)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.cfg.Filters.Learn(ctx, profile); err != nil {
		s.log.Debug("a seccomp profile is compiled at every start", "err", err)
	}
}

// launch starts a process of a container with its streams, and opens our side of them. What it did is undone by u.
func (s *Server) launch(p *proc, config *configs.Config, u *undo.Stack, begin beginner) error {
	ends, socket, err := prepareStreams(p, config)
	if err != nil {
		return err
	}
	defer ends.close()
	if socket != nil {
		defer socket.ours.Close()
	}
	pid, err := begin(ends, socket)
	if socket != nil {
		_ = socket.theirs.Close()
	}
	if err != nil {
		return err
	}
	_ = failpoint.Hit("keeper.launch.runs")
	// It is our child and not waited for: the ID is its, whatever becomes of it.
	u.Add(func() error { return enter.End(pid) })
	if p.pidfd, err = openPIDFD(pid); err != nil {
		return err
	}
	u.Add(func() error { return p.pidfd.Close() })
	st, err := readStat(pid)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	p.rec.Ticks, p.rec.Status.PID = st.ticks, pid
	var pty *os.File
	if socket != nil {
		if pty, err = receivePTY(socket.ours); err != nil {
			return err
		}
	}
	if err := p.openIO(pty, nil, nil); err != nil {
		return err
	}
	u.Add(func() error { p.closeIO(); return nil })
	return nil
}

// beginner makes a process that has the ends as its streams, or sends its terminal over the socket, which is nil without.
type beginner func(ends processEnds, socket *consoleSocket) (pid int, err error)

// byInit begins a process by libcontainer's init.
func (s *Server) byInit(lc *libcontainer.Container, process *libcontainer.Process) beginner {
	return func(ends processEnds, socket *consoleSocket) (int, error) {
		if filters := s.cfg.Filters.File(); filters != nil {
			process.ExtraFiles = []*os.File{filters}
		}
		if socket != nil {
			process.ConsoleSocket = socket.theirs
		} else {
			process.Stdin, process.Stdout, process.Stderr = ends.stdin, ends.stdout, ends.stderr
		}
		if err := lc.Start(process); err != nil {
			return 0, err
		}
		return process.Pid()
	}
}

type consoleSocket struct{ ours, theirs *os.File }

// prepareStreams makes the pipes of a process and opens its ends, or for a terminal the socket by which init sends it.
func prepareStreams(p *proc, config *configs.Config) (processEnds, *consoleSocket, error) {
	if p.rec.Terminal {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return processEnds{}, nil, os.NewSyscallError("socketpair", err)
		}
		return processEnds{}, &consoleSocket{os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console")}, nil
	}
	uid, err := config.HostRootUID()
	if err != nil {
		return processEnds{}, nil, err
	}
	gid, err := config.HostRootGID()
	if err != nil {
		return processEnds{}, nil, err
	}
	names := []string{"stdout", "stderr"}
	if p.rec.OpenStdin {
		names = append(names, "stdin")
	}
	for _, name := range names {
		if err := makeFifo(fifoPath(p.dir, name), uid, gid); err != nil {
			return processEnds{}, nil, err
		}
	}
	ends, err := openProcessEnds(p.dir, p.rec.OpenStdin)
	return ends, nil, err
}

// start lets a created container run its program.
func (s *Server) start(id string) (keeper.Status, error) {
	c, err := s.container(id)
	if err != nil {
		return keeper.Status{}, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.starting.Lock()
	defer c.starting.Unlock()
	if st := c.status(); st.State != keeper.Created {
		return st, fault.New(fault.Conflict, "container %s was started already", id)
	}
	if err := s.letRun(c.proc); err != nil {
		return keeper.Status{}, startError(fmt.Errorf("starting container %s: %w", id, err))
	}
	return c.status(), nil
}

// exec starts another process in a container.
func (s *Server) exec(req keeper.Process) (_ keeper.Status, err error) {
	if err := checkID("exec", req.ExecID); err != nil {
		return keeper.Status{}, err
	}
	c, err := s.container(req.Container)
	if err != nil {
		return keeper.Status{}, err
	}
	var spec specs.Process
	if err := json.Unmarshal(req.Process, &spec); err != nil {
		return keeper.Status{}, fault.New(fault.InvalidArgument, "exec %s: malformed OCI process: %w", req.ExecID, err)
	}
	process, err := convertProcess(&spec)
	if err != nil {
		return keeper.Status{}, err
	}
	c.entering.begin()
	defer c.entering.done()
	switch st := c.status(); {
	case st.State != keeper.Running:
		return keeper.Status{}, notRunning(st)
	case st.Paused:
		return keeper.Status{}, fault.New(fault.Conflict, "container %s is paused, unpause the container before exec", req.Container)
	case cgroup.Frozen(c.rec.Cgroups):
		return keeper.Status{}, fault.New(fault.Conflict, "the processes of container %s are frozen, by itself or by who has its cgroup: thaw them before exec", req.Container)
	}
	end := s.beginStart()
	defer func() { end(err) }()
	if err := c.reserveExec(req.ExecID); err != nil {
		return keeper.Status{}, err
	}
	defer c.arriving.Done()
	u := undo.New()
	defer u.Run()
	u.Add(func() error { c.removeExec(req.ExecID); return nil })
	dir := filepath.Join(c.dir, "exec", req.ExecID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return keeper.Status{}, err
	}
	u.Add(func() error { return os.RemoveAll(dir) })
	p := s.newProc(dir, record{
		ID: req.Container, ExecID: req.ExecID, Terminal: req.Terminal, OpenStdin: req.OpenStdin, StdinOnce: true, Attach: req.Attach,
		Status: keeper.Status{ID: req.Container, ExecID: req.ExecID, State: keeper.Running, StartedAt: time.Now().UTC()},
	})
	lc, err := c.runtime()
	if err != nil {
		return keeper.Status{}, err
	}
	if err := failpoint.Hit("keeper.exec.checked"); err != nil {
		return keeper.Status{}, err
	}
	ctx, over := s.boundStart(c)
	defer over()
	config := lc.Config()
	byInit := s.bounded(ctx, c.proc, &config, s.byInit(lc, process))
	if err := s.launch(p, &config, u, s.byEntering(ctx, c, process, &config, byInit)); err != nil {
		return keeper.Status{}, startError(err)
	}
	if err := p.change(func(*record) {}); err != nil {
		return keeper.Status{}, err
	}
	u.Done()
	c.mu.Lock()
	c.execs[req.ExecID] = p
	c.mu.Unlock()
	s.pushHold(p)
	p.run()
	s.watch(c, p)
	return p.status(), nil
}

// watch waits for the exit of a process and tells it.
func (s *Server) watch(c *container, p *proc) {
	go func() {
		if err := awaitExit(p.pidfd); err != nil && !errors.Is(err, os.ErrClosed) {
			p.log.Error("waiting for a process", "err", err)
		}
		s.ended(c, p)
	}()
}

// ended notes that a process has exited, drains its streams and tells it.
func (s *Server) ended(c *container, p *proc) {
	p.starting.Lock()
	defer p.starting.Unlock()
	at := time.Now().UTC()
	st := p.status()
	final := st
	final.ExitCode, final.ExitUnknown = -1, true
	if p.pidfd != nil {
		code, known := exitCode(st.PID, p.rec.Ticks, p.pidfd)
		final.ExitCode, final.ExitUnknown = code, !known
	}
	final.State, final.PID, final.Paused, final.ExitedAt = keeper.Exited, 0, false, at
	if p.rec.ExecID == "" {
		final.OOMKilled = s.wasOOMKilled(c)
	}
	// The code is on disk before anything else: a keeper killed from here on does not lose it.
	if err := p.change(func(r *record) { r.Final = &final }); err != nil {
		p.log.Error("cannot write an exit record", "err", err)
	}
	reap(st.PID, p.rec.Ticks)
	_ = failpoint.Hit("keeper.exit.before-drain")
	s.finish(c, p, final)
}

// finish drains the streams of a process that has exited and tells its exit.
func (s *Server) finish(c *container, p *proc, final keeper.Status) {
	if p.rec.ExecID == "" && p.rec.SharedPIDs {
		if err := killCgroup(p.rec.Cgroups); err != nil {
			p.log.Warn("cannot end all processes that a container left", "err", err)
		}
	}
	p.drain()
	if err := p.change(func(r *record) { r.Status = final }); err != nil && !errors.Is(err, os.ErrNotExist) {
		p.log.Error("cannot write a record", "err", err)
	}
	if p.pidfd != nil {
		_ = p.pidfd.Close()
	}
	close(p.gone)
	s.pushDrop(p.target(), wire.HandlePIDFD, wire.HandlePTY, wire.HandleStdin, wire.HandleStdout, wire.HandleStderr, wire.HandleRelay)
	s.pushEvent(keeper.Event{Type: keeper.EventExit, Status: final})
	if p.rec.ExecID != "" {
		time.AfterFunc(execMemory, func() {
			p.fan.forget()
			c.removeExec(p.rec.ExecID)
			_ = os.RemoveAll(p.dir)
		})
	}
}

// signal sends a signal to a process or to all of a container's.
func (s *Server) signal(req wire.Signal) error {
	c, p, err := s.find(req.Target)
	if err != nil {
		return err
	}
	if req.Signal < 0 || req.Signal > 64 {
		return fault.New(fault.InvalidArgument, "invalid signal: %d", req.Signal)
	}
	if !req.All {
		if err := p.signal(req.Signal); err != nil {
			return err
		}
		switch {
		case req.Signal != int(unix.SIGKILL):
			return nil
		case req.Target.ExecID == "":
			return s.letDie(c)
		case c.status().Paused: // with version 1 of cgroups a frozen process does not die
			return c.thaw()
		}
		return nil
	}
	if st := c.status(); st.State == keeper.Exited {
		return notRunning(st)
	}
	lc, err := c.runtime()
	if err != nil {
		return err
	}
	pids, err := lc.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.Signal(req.Signal)); err != nil && err != unix.ESRCH {
			return fmt.Errorf("signal %d to process %d: %w", req.Signal, pid, err)
		}
	}
	if req.Signal == int(unix.SIGKILL) {
		return s.letDie(c)
	}
	return nil
}

// update changes a container's limits.
func (s *Server) update(id string, doc json.RawMessage) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if st := c.status(); st.State == keeper.Exited {
		return notRunning(st)
	}
	lc, err := c.runtime()
	if err != nil {
		return err
	}
	config := lc.Config()
	group := *config.Cgroups
	if group.Resources, err = mergeResources(config.Cgroups.Resources, doc); err != nil {
		return err
	}
	config.Cgroups = &group
	err = lc.Set(config)
	// What was set says that device rules are to be skipped, and with that no exec would start: what is on disk does not.
	if fresh, lerr := libcontainer.Load(s.stateRoot(), id); lerr == nil {
		c.mu.Lock()
		c.lc = fresh
		c.mu.Unlock()
	}
	switch {
	case errors.Is(err, libcontainer.ErrNotRunning):
		return notRunning(c.status()) // it has ended just now
	case err != nil:
		return fault.As(fault.InvalidArgument, err)
	}
	return nil
}

// delete ends a container and everything of it. One that is being made is waited for: a daemon that died in the middle of
// a start has asked for it, the next one takes the start back, and what came to be after that nobody would know of.
func (s *Server) delete(ctx context.Context, id string) error {
	c, err := s.whenMade(ctx, id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if cur, err := s.container(id); err != nil || cur != c {
		return nil // another call deleted it meanwhile
	}
	if c.status().State != keeper.Exited {
		_ = c.proc.signal(int(unix.SIGKILL))
		if err := s.letDie(c); err != nil {
			return err
		}
	}
	select {
	case <-c.gone:
	case <-ctx.Done():
		return fault.New(fault.DeadlineExceeded, "container %s was killed and does not end", id)
	}
	if err := c.closeToExecs(ctx); err != nil {
		return err
	}
	// Execs in a shared PID namespace do not go with the first process.
	c.mu.Lock()
	execs := slices.Collect(maps.Values(c.execs))
	c.mu.Unlock()
	for _, p := range execs {
		if p == nil {
			continue
		}
		_ = p.signal(int(unix.SIGKILL))
		select {
		case <-p.gone:
		case <-ctx.Done():
			return fault.New(fault.DeadlineExceeded, "exec %s of container %s was killed and does not end", p.rec.ExecID, id)
		}
	}
	if err := s.destroy(c.lib(), id, c.rec.Cgroups); err != nil {
		return fmt.Errorf("deleting container %s: %w", id, err)
	}
	if err := failpoint.Hit("keeper.delete.after-destroy"); err != nil {
		return err
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	s.release(id)
	return nil
}

// destroy removes a container's groups and libcontainer's state.
func (s *Server) destroy(lc *libcontainer.Container, id string, groups map[string]string) error {
	// Its own processes have ended. Others are those of a container that was put below its group: the group cannot go
	// without them, and libcontainer would try for many seconds.
	if len(cgroup.Processes(cmp.Or(groups["devices"], groups[""]), nil)) > 0 {
		if err := killCgroup(groups); err != nil {
			return err
		}
	}
	if lc != nil {
		err := lc.Destroy()
		if err == nil {
			return nil
		}
		s.log.Debug("libcontainer cannot destroy a container; doing so by hand", "container", id, "err", err)
	}
	if err := killCgroup(groups); err != nil {
		return err
	}
	if err := cgroups.RemovePaths(maps.Clone(groups)); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.stateRoot(), id))
}

// killCgroup kills all processes in a container's groups and waits, bounded, until they have gone.
func killCgroup(paths map[string]string) error {
	for wait := time.Millisecond; wait < 2*time.Second; wait *= 2 {
		var all []int
		for _, path := range paths {
			pids, err := cgroups.GetAllPids(path)
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
				return err
			}
			all = append(all, pids...)
		}
		if len(all) == 0 {
			return nil
		}
		for _, pid := range all {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if err := letGroupDie(paths, nil); err != nil {
			return err
		}
		time.Sleep(wait)
	}
	return fault.New(fault.Conflict, "processes in the groups %v do not end", slices.Collect(maps.Values(paths)))
}

// wasOOMKilled tells whether the kernel killed a process of the container for memory.
func (s *Server) wasOOMKilled(c *container) bool {
	if c == nil {
		return false
	}
	lc := c.lib()
	if lc == nil {
		return false
	}
	config := lc.Config()
	m, err := manager.NewWithPaths(config.Cgroups, maps.Clone(c.rec.Cgroups))
	if err != nil {
		return false
	}
	n, err := m.OOMKillCount()
	return err == nil && n > 0
}

// lib returns libcontainer's view, nil for a container whose state was lost.
func (c *container) lib() *libcontainer.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lc
}

// runtime is lib for those that cannot do without.
func (c *container) runtime() (*libcontainer.Container, error) {
	if lc := c.lib(); lc != nil {
		return lc, nil
	}
	return nil, fault.New(fault.FailedPrecondition, "the runtime state of container %s was lost: it can only be ended and deleted", c.rec.ID)
}

// reserveExec takes an exec's ID: until it runs, the map has nil for it. Whoever has it says c.arriving.Done when the exec
// runs or has failed.
func (c *container) reserveExec(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted {
		return notRunning(c.status())
	}
	if _, taken := c.execs[id]; taken {
		return fault.New(fault.AlreadyExists, "exec %s exists already", id)
	}
	c.execs[id] = nil
	c.arriving.Add(1)
	return nil
}

// closeToExecs lets no further exec in and waits for those on their way: they make files where the container has its own,
// and would be in the way of what deletes these, or make them anew.
func (c *container) closeToExecs(ctx context.Context) error {
	c.mu.Lock()
	c.deleted = true
	c.mu.Unlock()
	in := make(chan struct{})
	go func() {
		c.arriving.Wait()
		close(in)
	}()
	select {
	case <-in:
		return nil
	case <-ctx.Done():
		return fault.New(fault.DeadlineExceeded, "container %s has ended, and an exec in it neither runs nor fails", c.rec.ID)
	}
}

func (c *container) removeExec(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, id)
}
