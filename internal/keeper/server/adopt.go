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

// handed is what was given to this keeper at its start: descriptors of processes, how many are attached to each, and
// whether the daemon is one that can have nobody to attach yet.
type handed struct {
	fds      map[wire.Target]map[string]int
	attached map[wire.Target]int
	newcomer *bool
}

func newHanded() handed {
	return handed{fds: map[wire.Target]map[string]int{}, attached: map[wire.Target]int{}, newcomer: new(bool)}
}

// take returns a descriptor, -1 if it was not given.
func (h handed) take(t wire.Target, name string) int {
	fd, ok := h.fds[t][name]
	if !ok {
		return -1
	}
	delete(h.fds[t], name)
	return fd
}

func (h handed) add(hd wire.Handle, fds []int) {
	set := h.fds[hd.Target]
	if set == nil {
		set = map[string]int{}
		h.fds[hd.Target] = set
	}
	for i, name := range hd.Names {
		if old, dup := set[name]; dup {
			_ = unix.Close(old)
		}
		set[name] = fds[i]
	}
}

func (h handed) closeRest() {
	for _, set := range h.fds {
		for _, fd := range set {
			_ = unix.Close(fd)
		}
	}
	clear(h.fds)
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
			var told wire.Handover
			if len(m.Body) > 0 {
				if err := json.Unmarshal(m.Body, &told); err != nil {
					return fault.New(fault.InvalidArgument, "handover: malformed message")
				}
			}
			*into.newcomer = told.New
			for _, t := range told.Attached {
				into.attached[t]++
			}
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

// adopt finds every container of a keeper before this one. It tells whether it could adopt all that it found.
func (s *Server) adopt(given handed) (whole bool) {
	dirs, err := os.ReadDir(filepath.Join(s.root, "io"))
	if err != nil {
		s.log.Error("cannot read what there is to adopt", "err", err)
		return false
	}
	whole = true
	known := map[string]bool{}
	for _, d := range dirs {
		known[d.Name()] = true
		if err := s.adoptContainer(d.Name(), given); err != nil {
			whole = false
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
	return whole
}

func (s *Server) adoptContainer(id string, given handed) error {
	dir := s.containerDir(id)
	var rec record
	err := readJSON(filepath.Join(dir, recordName), &rec)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if rec.Held != nil { // to be done before libcontainer looks, which waits as long as a group is freezing
		if err := errors.Join(rec.takeBackPause(), writeJSON(filepath.Join(dir, recordName), rec)); err != nil {
			s.log.Error("cannot take back the pause that the keeper before was at", "container", id, "err", err)
		}
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
	c.proc = s.newProc(dir, rec)
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
		var rec record
		if err := readJSON(filepath.Join(edir, recordName), &rec); err != nil {
			_ = os.RemoveAll(edir) // it was being started
			continue
		}
		p := s.newProc(edir, rec)
		c.execs[p.rec.ExecID] = p
		s.resumeProc(c, p, given)
	}
	return nil
}

// resumeProc goes on with a process where the keeper before stopped.
func (s *Server) resumeProc(c *container, p *proc, given handed) {
	t := p.target()
	p.fan.adopt(given.attached[t], p.spooled(int(wire.FrameStdout))+p.spooled(int(wire.FrameStderr)), !*given.newcomer)
	if p.rec.Status.State == keeper.Exited { // told and drained
		for _, stream := range []int{1, 2} {
			p.fan.begin(stream, p.spooled(stream))
		}
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
	var pty, stdin, relay *os.File
	if fd := given.take(t, wire.HandlePTY); fd >= 0 {
		pty, _ = polledFile(fd, "pty")
	}
	if fd := given.take(t, wire.HandleStdin); fd >= 0 {
		stdin, _ = polledFile(fd, "stdin")
	}
	if fd := given.take(t, wire.HandleRelay); fd >= 0 {
		relay, _ = polledFile(fd, "relay")
	}
	if err := p.openIO(pty, stdin, relay); err != nil {
		p.log.Error("cannot go on with a process' streams", "err", err)
	}
	p.run()
	if p.rec.Starting && p.rec.Status.State == keeper.Created && p.pidfd != nil {
		s.resumeStart(p, given.take(t, wire.HandleStart))
	}
	s.pushHold(p)
	switch {
	case p.rec.Final != nil:
		// In an upgrade it stayed our child, and its namespace's first process goes after it.
		reap(p.rec.Status.PID, p.rec.Ticks)
		go s.finish(c, p, *p.rec.Final)
	case p.pidfd != nil:
		p.log.Info("adopted", "pid", p.rec.Status.PID)
		s.watch(c, p)
	default:
		go s.ended(c, p) // it went while nobody looked
	}
}
