package server

import (
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// drainLimit is how long the output of a process that has exited is waited for when something else still holds its
// pipe open; Docker's number.
const drainLimit = 2 * time.Second

// proc is a process that the keeper looks after: a container's first one, or an exec.
type proc struct {
	dir    string // its folder under io
	log    *slog.Logger
	taking *sync.RWMutex // the server's: see pump

	pidfd *os.File
	io    processIO
	fan   *fanout
	gone  chan struct{} // closed when its exit was told
	// starting is held while a container is being started, so that its exit is not told before its start.
	starting sync.Mutex

	mu  sync.Mutex
	rec record
}

// newProc returns a process as its record says, without streams yet.
func (s *Server) newProc(dir string, rec record) *proc {
	log := s.log.With("container", rec.ID)
	if rec.ExecID != "" {
		log = log.With("exec", rec.ExecID)
	}
	return &proc{dir: dir, log: log, taking: &s.program.taking, fan: newFanout(rec.ExecID != "", rec.Attach), gone: make(chan struct{}), rec: rec}
}

// processIO is our side of a process' streams.
type processIO struct {
	pty   *os.File // a terminal's master, nil without one
	stdin *os.File // writing end of the pipe; nil for a terminal, without stdin, or once closed
	input *input   // what was written to stdin or pty; nil where nothing can be
	log   *logFile // nil: none is kept
	pumps []*pump
}

func (p *proc) target() wire.Target { return wire.Target{ID: p.rec.ID, ExecID: p.rec.ExecID} }

// status returns what is known now.
func (p *proc) status() keeper.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec.Status
}

// change changes the record and writes it to disk.
func (p *proc) change(f func(*record)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.rec)
	return writeJSON(filepath.Join(p.dir, recordName), p.rec)
}

// openIO opens our side of the streams. pty is given for a terminal; stdin and a terminal's relay where another holds
// them already.
func (p *proc) openIO(pty, stdin, relay *os.File) (err error) {
	defer func() {
		if err != nil {
			p.closeIO()
		}
	}()
	if p.io.log, err = newLog(p.rec.Log, filepath.Join(p.dir, "journal"), p.log); err != nil {
		return err
	}
	if p.rec.OpenStdin {
		if p.io.input, err = openInput(filepath.Join(p.dir, "input"), p.taking); err != nil {
			return err
		}
	}
	if p.rec.Terminal {
		p.io.pty = pty
		if pty == nil {
			return nil // lost with the keeper and the daemon that held it
		}
		pump, err := p.newPump(int(wire.FrameStdout), pty)
		if err != nil {
			return err
		}
		if pump.relay = relay; relay == nil {
			if pump.relay, err = newRelay(); err != nil {
				return err
			}
		}
		p.io.pumps = append(p.io.pumps, pump)
		return nil
	}
	for _, stream := range []wire.FrameKind{wire.FrameStdout, wire.FrameStderr} {
		pump, err := p.newPump(int(stream), nil)
		if err != nil {
			return err
		}
		p.io.pumps = append(p.io.pumps, pump)
	}
	if p.rec.OpenStdin && !p.rec.StdinClosed {
		if stdin == nil {
			// Fails when nobody has it open for reading any more: there is nobody to write to then.
			stdin, _ = openPolled(fifoPath(p.dir, "stdin"), unix.O_WRONLY)
		}
		p.io.stdin = stdin
	}
	return nil
}

// closeIO closes what openIO opened, when the pumps do not run.
func (p *proc) closeIO() {
	for _, pump := range p.io.pumps {
		_ = pump.spool.f.Close()
		if pump.relay != nil {
			_ = pump.relay.Close()
		}
		if !pump.tty {
			_ = pump.src.Close()
		}
	}
	p.io.pumps = nil
	p.closeStreams()
	if p.io.log != nil {
		p.io.log.close()
		p.io.log = nil
	}
}

func (p *proc) closeStreams() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range []**os.File{&p.io.pty, &p.io.stdin} {
		if *f != nil {
			_ = (*f).Close()
			*f = nil
		}
	}
	if p.io.input != nil {
		p.io.input.close()
	}
}

// drain ends the streams of a process that has exited: everything that it printed is in the log and with those attached
// when it returns.
func (p *proc) drain() {
	deadline := time.NewTimer(drainLimit)
	defer deadline.Stop()
	for _, pump := range p.io.pumps {
		select {
		case <-pump.done:
		case <-deadline.C:
			for _, pump := range p.io.pumps {
				pump.stop()
			}
			<-pump.done
		}
	}
	p.io.pumps = nil
	p.closeStreams()
	if p.io.log != nil {
		p.io.log.close()
		p.io.log = nil
	}
	p.fan.end()
}

// run starts the pumps.
func (p *proc) run() {
	for _, pump := range p.io.pumps {
		go pump.run()
	}
}

// handles returns what the daemon is to hold for the case that this keeper dies. The descriptors stay the process'.
func (p *proc) handles() (names []string, fds []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	add := func(name string, f *os.File) {
		if f == nil {
			return
		}
		if fd := fdOf(f); fd >= 0 {
			names, fds = append(names, name), append(fds, fd)
		}
	}
	add(wire.HandlePIDFD, p.pidfd)
	add(wire.HandlePTY, p.io.pty)
	add(wire.HandleStdin, p.io.stdin)
	for _, pump := range p.io.pumps {
		add(wire.HandleRelay, pump.relay)
		if !pump.tty {
			add(streamNames[pump.stream], pump.src)
		}
	}
	return names, fds
}

// writeInput writes to the process' standard input. A process that closed its input takes no more; that is its right.
func (p *proc) writeInput(data []byte) {
	p.mu.Lock()
	f, in := p.io.stdin, p.io.input
	if p.rec.Terminal {
		f = p.io.pty
	}
	p.mu.Unlock()
	if f != nil && in != nil {
		in.write(f, data)
	}
}

// inputPosition is how much was written to the process' standard input.
func (p *proc) inputPosition() (done int64, sure bool) {
	p.mu.Lock()
	in := p.io.input
	p.mu.Unlock()
	return in.position()
}

// signal sends a signal to the process.
func (p *proc) signal(sig int) error {
	st := p.status()
	if st.State == keeper.Exited || p.pidfd == nil {
		return notRunning(st)
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return notRunning(st)
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), unix.Signal(sig), nil, 0) }); err != nil {
		return notRunning(st)
	}
	switch serr {
	case nil:
		return nil
	case unix.ESRCH:
		return notRunning(st)
	case unix.EINVAL:
		return fault.New(fault.InvalidArgument, "invalid signal: %d", sig)
	}
	return os.NewSyscallError("pidfd_send_signal", serr)
}

func notRunning(st keeper.Status) error {
	if st.ExecID != "" {
		return fault.New(fault.Conflict, "exec %s is not running", st.ExecID)
	}
	return fault.New(fault.Conflict, "container %s is not running", st.ID)
}

// resize sets the terminal's size.
func (p *proc) resize(rows, cols uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.rec.Terminal {
		return fault.New(fault.Conflict, "the process has no terminal to resize")
	}
	if p.io.pty == nil {
		return notRunning(p.rec.Status)
	}
	raw, err := p.io.pty.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err == nil {
		err = serr
	}
	return err
}
