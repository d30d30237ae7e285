package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// handed are descriptors of processes that were given to this keeper at its start.
type handed map[wire.Target]map[string]int

// take returns a descriptor, -1 if it was not given.
func (h handed) take(t wire.Target, name string) int {
	fd, ok := h[t][name]
	if !ok {
		return -1
	}
	delete(h[t], name)
	return fd
}

func (h handed) add(hd wire.Handle, fds []int) {
	if h[hd.Target] == nil {
		h[hd.Target] = map[string]int{}
	}
	for i, name := range hd.Names {
		if old, dup := h[hd.Target][name]; dup {
			_ = unix.Close(old)
		}
		h[hd.Target][name] = fds[i]
	}
}

func (h handed) closeRest() {
	for _, set := range h {
		for _, fd := range set {
			_ = unix.Close(fd)
		}
	}
	clear(h)
}

// receiveHandover reads what the daemon holds.
func receiveHandover(c *wire.Conn, into handed) error {
	for {
		m, fds, err := c.Recv()
		if err != nil {
			return fmt.Errorf("handover: %w", err)
		}
		switch m.Op {
		case wire.HandoverDone:
			wire.CloseFDs(fds)
			return nil
		case wire.PushHold:
			var hd wire.Handle
			if err := json.Unmarshal(m.Body, &hd); err != nil || len(hd.Names) != len(fds) {
				wire.CloseFDs(fds)
				return fault.New(fault.InvalidArgument, "handover: malformed message")
			}
			into.add(hd, fds)
		default:
			wire.CloseFDs(fds)
		}
	}
}

// adopt finds every container of a keeper before this one.
func (s *Server) adopt(given handed) {
	dirs, err := os.ReadDir(filepath.Join(s.root, "io"))
	if err != nil {
		s.log.Error("cannot read what there is to adopt", "err", err)
		return
	}
	known := map[string]bool{}
	for _, d := range dirs {
		known[d.Name()] = true
		if err := s.adoptContainer(d.Name(), given); err != nil {
			s.log.Error("cannot adopt a container", "container", d.Name(), "err", err)
		}
	}
	// libcontainer's folder without ours: a create that was cut off at its very beginning or a delete at its end.
	if dirs, err = os.ReadDir(s.stateRoot()); err == nil {
		for _, d := range dirs {
			if !known[d.Name()] {
				lc, _ := libcontainer.Load(s.stateRoot(), d.Name())
				if err := s.destroy(lc, d.Name(), nil); err != nil {
					s.log.Error("cannot remove what is left of a container", "container", d.Name(), "err", err)
				}
			}
		}
	}
}

func (s *Server) adoptContainer(id string, given handed) error {
	dir := s.containerDir(id)
	var rec record
	err := readJSON(filepath.Join(dir, recordName), &rec)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	lc, lerr := libcontainer.Load(s.stateRoot(), id)
	if lerr != nil {
		lc = nil
	}
	if err != nil || rec.Making {
		s.log.Info("taking down a container that was being made when the keeper before ended", "container", id)
		if rec.Status.PID == 0 && lc != nil {
			if st, serr := lc.State(); serr == nil && st.InitProcessPid > 0 {
				if cur, perr := readStat(st.InitProcessPid); perr == nil && cur.ticks == st.InitProcessStartTime {
					_ = unix.Kill(st.InitProcessPid, unix.SIGKILL)
				}
			}
		}
		if err := killCgroup(rec.Cgroups); err != nil {
			return err
		}
		if err := s.destroy(lc, id, rec.Cgroups); err != nil {
			return err
		}
		return os.RemoveAll(dir)
	}
	c := &container{lc: lc, execs: map[string]*proc{}}
	c.proc = &proc{dir: dir, log: s.log.With("container", id), fan: newFanout(false), gone: make(chan struct{}), rec: rec}
	if lc != nil && rec.Status.State != keeper.Exited {
		if st, err := lc.Status(); err == nil {
			c.rec.Status.Paused = st == libcontainer.Paused
			if rec.Status.State == keeper.Created && !rec.Starting && (st == libcontainer.Running || st == libcontainer.Paused) {
				// Its program was let run, and the keeper died before it could note that.
				c.rec.Status.State = keeper.Running
				c.rec.Status.StartedAt = time.Now().UTC()
			}
		}
	}
	s.publish(c)
	s.resumeProc(c, c.proc, given)
	execs, err := os.ReadDir(filepath.Join(dir, "exec"))
	if err != nil {
		return ignoreMissing(err)
	}
	for _, d := range execs {
		edir := filepath.Join(dir, "exec", d.Name())
		p := &proc{dir: edir, log: s.log.With("container", id, "exec", d.Name()), fan: newFanout(true), gone: make(chan struct{})}
		if err := readJSON(filepath.Join(edir, recordName), &p.rec); err != nil {
			_ = os.RemoveAll(edir) // it was being started
			continue
		}
		c.execs[p.rec.ExecID] = p
		s.resumeProc(c, p, given)
	}
	return nil
}

// resumeProc goes on with a process where the keeper before stopped.
func (s *Server) resumeProc(c *container, p *proc, given handed) {
	t := p.target()
	if p.rec.Status.State == keeper.Exited { // told and drained
		p.fan.end()
		close(p.gone)
		if p.rec.ExecID != "" {
			time.AfterFunc(execMemory, func() { c.removeExec(p.rec.ExecID); _ = os.RemoveAll(p.dir) })
		}
		return
	}
	if fd := given.take(t, wire.HandlePIDFD); fd >= 0 {
		p.pidfd, _ = polledFile(fd, "pidfd")
	} else if st, err := readStat(p.rec.Status.PID); err == nil && st.ticks == p.rec.Ticks {
		p.pidfd, _ = openPIDFD(p.rec.Status.PID)
	}
	var pty, stdin *os.File
	if fd := given.take(t, wire.HandlePTY); fd >= 0 {
		pty, _ = polledFile(fd, "pty")
	}
	if fd := given.take(t, wire.HandleStdin); fd >= 0 {
		stdin, _ = polledFile(fd, "stdin")
	}
	if err := p.openIO(pty, stdin); err != nil {
		p.log.Error("cannot go on with a process' streams", "err", err)
	}
	p.run()
	if p.rec.Starting && p.rec.Status.State == keeper.Created && p.pidfd != nil {
		s.resumeStart(p, given.take(t, wire.HandleStart))
	}
	s.pushHold(p)
	switch {
	case p.rec.Final != nil:
		go s.finish(c, p, *p.rec.Final)
	case p.pidfd != nil:
		p.log.Info("adopted", "pid", p.rec.Status.PID)
		s.watch(c, p)
	default:
		go s.ended(c, p) // it went while nobody looked
	}
}
