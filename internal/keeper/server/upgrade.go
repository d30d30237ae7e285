package server

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// resumeState is what one program leaves to the next in the same process: numbers of open descriptors.
type resumeState struct {
	Lock      int             `json:"lock"`
	Listener  int             `json:"listener"`
	Processes []resumeProcess `json:"processes"`
}

type resumeProcess struct {
	wire.Handle
	FDs      []int `json:"fds"`
	Attached int   `json:"attached,omitempty"`
}

const (
	// hurryAfter is how long what is under way is waited for before starts that a container holds up are given up.
	hurryAfter = 2 * time.Second
	// replaceLimit is how long all of it is waited for: requests that come meanwhile wait as long.
	replaceLimit = 20 * time.Second
)

// upgrade replaces the running program by another one, in this process: the containers stay its children, and what they
// print waits in their pipes meanwhile. It returns only when it fails, with nothing changed.
func (s *Server) upgrade(body json.RawMessage) error {
	var req wire.Upgrade
	if err := json.Unmarshal(body, &req); err != nil {
		return fault.New(fault.InvalidArgument, "malformed request: %w", err)
	}
	if err := unix.Access(req.Binary, unix.X_OK); err != nil {
		return fault.New(fault.InvalidArgument, "cannot upgrade to %q: %w", req.Binary, err)
	}
	hasten := time.AfterFunc(hurryAfter, func() { s.program.hurry.up(errReplacing) })
	defer hasten.Stop()
	var err error
	if !s.program.requests.tryAlone(replaceLimit, func() { err = s.become(req.Binary) }) {
		return fault.New(fault.Unavailable, "the keeper cannot become %s now: something that it was asked for has not come to its end for %v", req.Binary, replaceLimit)
	}
	return err
}

// become is upgrade while nothing else is under way.
func (s *Server) become(binary string) error {
	var inherit []int
	defer func() { wire.CloseFDs(inherit) }()
	keep := func(fd int) (int, error) {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD, 3)
		if err == nil {
			inherit = append(inherit, dup)
		}
		return dup, err
	}
	var state resumeState
	var err error
	if state.Lock, err = keep(int(s.lock.Fd())); err != nil {
		return err
	}
	raw, err := s.listener.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { state.Listener, err = keep(int(fd)) }); cerr != nil || err != nil {
		return fmt.Errorf("listening socket: %w", cmp.Or(cerr, err))
	}
	for _, p := range s.all() {
		names, fds := p.handles()
		rp := resumeProcess{Handle: wire.Handle{Target: p.target(), Names: names}, Attached: p.fan.attached()}
		for _, fd := range fds {
			dup, err := keep(fd)
			if err != nil {
				return err
			}
			rp.FDs = append(rp.FDs, dup)
		}
		state.Processes = append(state.Processes, rp)
	}
	text, err := json.Marshal(state)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("resume", 0)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	inherit = append(inherit, fd)
	if n, err := unix.Pwrite(fd, text, 0); err != nil || n != len(text) {
		return fmt.Errorf("leaving the state: %w", err)
	}
	s.log.Info("replacing the program", "binary", binary)
	s.program.taking.Lock()
	defer s.program.taking.Unlock()
	args := append(slices.Clone(s.cfg.Args), "--resume-fd", strconv.Itoa(fd))
	err = syscall.Exec(binary, args, os.Environ())
	return fault.New(fault.FailedPrecondition, "cannot run %s: %w", binary, err)
}

// readResume reads what the program before left.
func readResume(fd int, into handed) (*resumeState, error) {
	f := os.NewFile(uintptr(fd), "resume")
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<20))
	if err != nil {
		return nil, err
	}
	var state resumeState
	if err := json.Unmarshal(text, &state); err != nil {
		return nil, err
	}
	unix.CloseOnExec(state.Lock)
	unix.CloseOnExec(state.Listener)
	for _, p := range state.Processes {
		for _, fd := range p.FDs {
			unix.CloseOnExec(fd)
		}
		into.attached[p.Target] = p.Attached
		if len(p.FDs) == len(p.Names) {
			into.add(p.Handle, p.FDs)
		}
	}
	return &state, nil
}

// Seal makes the program run from a sealed copy in memory, which no container can write to (CVE-2019-5736). libcontainer
// makes such a copy at every start of a process unless its own program is one. On success it does not return: the copy
// runs from the beginning, with the same arguments and descriptors. An error means that the program stays as it is.
func Seal(args, env []string) error {
	if exeseal.IsSelfExeCloned() {
		return nil
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	fi, err := self.Stat()
	if err != nil {
		return err
	}
	copied, err := exeseal.CloneBinary(self, fi.Size(), "sampan-keeper", os.TempDir())
	if err != nil {
		return err
	}
	defer copied.Close()
	if !exeseal.IsCloned(copied) {
		return fmt.Errorf("no sealed memory file could be made")
	}
	return syscall.Exec("/proc/self/fd/"+strconv.Itoa(int(copied.Fd())), args, env)
}
