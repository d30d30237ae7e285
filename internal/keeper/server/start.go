package server

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
	"github.com/sampan-cloud/sampan/internal/sys/cgroup"
)

// A created container's init waits in the opening of a FIFO for a reader, writes one byte into it, and becomes the
// user's program. A keeper that dies between the two, the only reader going with it, would leave an init that fails.
// So init is stopped while the FIFO is opened and the daemon given a duplicate: from then on it writes whoever dies.

func (s *Server) startFifo(id string) string { return filepath.Join(s.stateRoot(), id, "exec.fifo") }

// letRun lets a created container's init become the user's program.
func (s *Server) letRun(p *proc) error {
	if err := p.change(func(r *record) { r.Starting = true }); err != nil {
		return err
	}
	if err := p.signal(int(unix.SIGSTOP)); err != nil {
		return err
	}
	err := failpoint.Hit("keeper.start.stopped")
	fd := -1
	if err == nil {
		fd, err = unix.Open(s.startFifo(p.rec.ID), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		_ = p.signal(int(unix.SIGCONT))
		return err
	}
	defer unix.Close(fd)
	s.eachWatcher(func(c *wire.Conn) {
		push(c, wire.PushHold, wire.Handle{Target: p.target(), Names: []string{wire.HandleStart}}, fd)
	})
	defer s.pushDrop(p.target(), wire.HandleStart)
	if err := p.signal(int(unix.SIGCONT)); err != nil {
		return err
	}
	_ = failpoint.Hit("keeper.start.continued")
	return s.awaitRun(p, fd)
}

// resumeStart goes on where a keeper died in letRun. held is the daemon's duplicate, -1 if there is none.
func (s *Server) resumeStart(p *proc, held int) {
	fd := held
	if fd < 0 {
		var err error
		if fd, err = unix.Open(s.startFifo(p.rec.ID), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return
		}
	}
	defer unix.Close(fd)
	if err := p.signal(int(unix.SIGCONT)); err != nil {
		return
	}
	if err := s.awaitRun(p, fd); err != nil {
		p.log.Warn("a container that the keeper before was starting did not start", "err", err)
	}
}

var errInitDead = errors.New("container process is already dead")

// awaitRun waits for init's byte, or for its end. It gives up when init has been frozen for a while.
func (s *Server) awaitRun(p *proc, fd int) error {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(fdOf(p.pidfd)), Events: unix.POLLIN}}
	for began := time.Now(); ; {
		if time.Since(began) > patience && cgroup.Frozen(p.rec.Cgroups) {
			if err := notBelowFrozen(p); err != nil {
				return err
			}
			return errFrozen
		}
		n, err := unix.Poll(poll, 100)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 && poll[0].Revents&unix.POLLIN != 0 || !isInit(p.rec.Status.PID) {
			break
		}
		if n > 0 && poll[1].Revents != 0 {
			return errInitDead
		}
		if n > 0 && poll[0].Revents&unix.POLLHUP != 0 {
			time.Sleep(time.Millisecond) // it has written and closed; the byte was another reader's
		}
	}
	if err := ignoreMissing(os.Remove(s.startFifo(p.rec.ID))); err != nil {
		return err
	}
	if err := p.change(func(r *record) {
		r.Starting = false
		r.Status.State = keeper.Running
		r.Status.StartedAt = time.Now().UTC()
	}); err != nil {
		p.log.Error("cannot write a container's record", "err", err)
	}
	return nil
}

// isInit tells whether a process is still libcontainer's init and not yet the user's program; a process that has
// exited is what it was last.
func isInit(pid int) bool {
	comm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return err != nil || bytes.HasPrefix(comm, []byte("runc:["))
}
