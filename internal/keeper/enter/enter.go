//go:build cgo

package enter

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

// #include "enter.h"
import "C"

// message is the request as enter.c reads it.
func (p *Process) message() ([]byte, error) {
	var body bytes.Buffer
	body.Write(p.Filter.Program)
	for _, g := range p.OtherGroups {
		_ = binary.Write(&body, binary.NativeEndian, g)
	}
	var err error
	text := func(texts ...string) C.uint32_t {
		before := body.Len()
		for _, s := range texts {
			if strings.IndexByte(s, 0) >= 0 {
				err = fmt.Errorf("%q has a zero byte in it", s)
			}
			body.WriteString(s)
			body.WriteByte(0)
		}
		return C.uint32_t(body.Len() - before)
	}
	home := C.uint32_t(C.ENTER_HOME)
	for _, e := range p.Env {
		if strings.HasPrefix(e, "HOME=") {
			home = 0
		}
	}
	head := C.struct_request{
		magic: C.ENTER_MAGIC, namespaces: C.uint32_t(p.Namespaces), flags: home,
		uid: C.uint32_t(p.UID), gid: C.uint32_t(p.GID), oom_score_adj: C.int32_t(p.OOMScoreAdj),
		bounding: C.uint64_t(p.Capabilities.Bounding), effective: C.uint64_t(p.Capabilities.Effective), permitted: C.uint64_t(p.Capabilities.Permitted),
		inheritable: C.uint64_t(p.Capabilities.Inheritable), ambient: C.uint64_t(p.Capabilities.Ambient),
		groups: C.uint32_t(len(p.OtherGroups)), filter_flags: C.uint32_t(p.Filter.Flags), filter: C.uint32_t(len(p.Filter.Program) / 8),
		args: C.uint32_t(len(p.Args)), env: C.uint32_t(len(p.Env)),
	}
	head.keyring, head.cwd = text(p.Keyring), text(p.Cwd)
	head.args_size, head.env_size = text(p.Args...), text(p.Env...)
	head.size = C.uint32_t(body.Len())
	if p.Groups != nil {
		head.flags |= C.ENTER_GROUP
	}
	if p.NoNewPrivs {
		head.flags |= C.ENTER_NO_NEW_PRIVS
	}
	if p.Umask != nil {
		head.flags |= C.ENTER_UMASK
		head.umask = C.uint32_t(*p.Umask)
	}
	return append(C.GoBytes(unsafe.Pointer(&head), C.sizeof_struct_request), body.Bytes()...), err
}

var (
	// ErrHeldUp tells that the process did not come to be the program while the caller waited, as it was stopped or frozen.
	// It would be no better by libcontainer.
	ErrHeldUp = errors.New("a process that is put into the container does not get on: it is stopped or frozen")
	// ErrStray tells that the process that makes the child was killed, perhaps when it had done so: that one ends, and is
	// the caller's to be found and reaped.
	ErrStray = errors.New("a child may have been left")

	errUnsealed = errors.New("this program does not run from a sealed copy: a container could write to it (CVE-2019-5736)")
)

var sealed = sync.OnceValue(exeseal.IsSelfExeCloned)

// Start starts the process and returns its ID when it has become the user's program. It is the caller's child, to be waited
// for by it. After an error nothing is left of it (but for ErrStray and ErrNotEnded), and the same may be tried by
// libcontainer, which tells why it cannot be (but for ErrHeldUp). When ctx ends, so does the start.
//
// What this makes of its own program is not in the container's control groups: made in one that is frozen, a process does
// not come to its first instruction, and with it, as Go makes it by vfork and under a lock, all who want to make one.
func Start(ctx context.Context, p *Process) (pid int, err error) {
	if !sealed() {
		return 0, errUnsealed
	}
	request, err := p.message()
	if err != nil {
		return 0, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socketpair", err)
	}
	_ = unix.SetNonblock(fds[0], true) // for the deadline
	ours, theirs := os.NewFile(uintptr(fds[0]), "enter"), os.NewFile(uintptr(fds[1]), "enter")
	defer ours.Close()
	cmd := exec.Command("/proc/self/exe", "enter")
	cmd.Args[0] = "sampan-keeper"
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Stdin, p.Stdout, p.Stderr
	cmd.ExtraFiles = []*os.File{theirs, p.Init}
	if p.Groups != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, p.Groups)
	}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return 0, fmt.Errorf("starting a process: %w", err)
	}
	_ = failpoint.Hit("keeper.enter.started")
	stop := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Kill()
		_ = ours.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	_, werr := ours.Write(request)
	waited := cmd.Wait()
	// It has ended: what it did not report by now it never will, though the child, if it made one, holds the socket open.
	if pid, err = report(ours, unix.MSG_DONTWAIT); err != nil {
		switch {
		case errors.As(err, new(*failure)): // it told that there is no child
		case ctx.Err() != nil:
			err = fmt.Errorf("%w (%w, %w)", ErrHeldUp, err, ErrStray)
		default:
			err = fmt.Errorf("%w (%w)", err, ErrStray)
		}
		return 0, fmt.Errorf("entering the container: %w", errors.Join(werr, err, waited))
	}
	// From here on there is a child that waits for a byte, and ends without it.
	if err := p.follow(ours, pid); err != nil {
		return 0, errors.Join(err, End(pid))
	}
	return pid, nil
}

// follow lets a child that waits become the program.
func (p *Process) follow(ours *os.File, pid int) error {
	if err := p.Place(pid); err != nil {
		return err
	}
	if _, err := ours.Write([]byte{1}); err != nil {
		return err
	}
	switch _, err := report(ours, 0); {
	case err == io.EOF: // what it had of the socket went when it became the program
		return nil
	case err == nil:
		return errors.New("the process has told its ID once more: it is not what was started")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w (%w)", ErrHeldUp, err)
	default:
		return err
	}
}

// failure is a step that failed, as the process reports it. It has ended with that.
type failure struct {
	step  int
	errno syscall.Errno
}

func (f *failure) Error() string { return fmt.Sprintf("step %d: %v", f.step, f.errno) }
func (f *failure) Unwrap() error { return f.errno }

// report receives one: a process ID, or the error that ended the process. With MSG_DONTWAIT it does not wait for it.
func report(socket *os.File, flags int) (pid int, err error) {
	var r [8]byte
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			// Sent at once, it comes as a whole.
			if n, _, rerr = unix.Recvfrom(int(fd), r[:], unix.MSG_DONTWAIT); rerr != unix.EINTR {
				return rerr != unix.EAGAIN || flags&unix.MSG_DONTWAIT != 0
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case rerr != nil:
		return 0, os.NewSyscallError("recvfrom", rerr)
	case n == 0:
		return 0, io.EOF
	case n < len(r):
		return 0, io.ErrUnexpectedEOF
	}
	step, value := binary.NativeEndian.Uint32(r[:]), int(int32(binary.NativeEndian.Uint32(r[4:])))
	switch {
	case step == C.REPORT_FAILED:
		return 0, &failure{value >> 16, syscall.Errno(value & 0xffff)}
	case step == C.REPORT_PID && value > 1: // to kill others means other processes than one
		return value, nil
	}
	return 0, fmt.Errorf("a malformed report: %d, %d", step, value)
}
