//go:build cgo

package enter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
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
	if p.NoNewPrivs {
		head.flags |= C.ENTER_NO_NEW_PRIVS
	}
	if p.Umask != nil {
		head.flags |= C.ENTER_UMASK
		head.umask = C.uint32_t(*p.Umask)
	}
	return append(C.GoBytes(unsafe.Pointer(&head), C.sizeof_struct_request), body.Bytes()...), err
}

// Start starts the process and returns its ID when it has become the user's program. It is the caller's child, to be waited
// for by it. After an error nothing is left of it, and the same may be tried by libcontainer, which tells why it cannot be.
func Start(p *Process) (pid int, err error) {
	request, err := p.message()
	if err != nil {
		return 0, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "enter"), os.NewFile(uintptr(fds[1]), "enter")
	defer ours.Close()
	cmd := exec.Command("/proc/self/exe", "enter")
	cmd.Args[0] = "sampan-keeper"
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Stdin, p.Stdout, p.Stderr
	cmd.ExtraFiles = []*os.File{theirs, p.Init}
	if p.Groups != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(p.Groups.Fd())}
	}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return 0, fmt.Errorf("starting a process: %w", err)
	}
	_, werr := ours.Write(request)
	pid, err = report(ours)
	waited := cmd.Wait()
	if pid == 0 {
		return 0, fmt.Errorf("entering the container: %w", errors.Join(werr, err, waited))
	}
	// From here on there is a child that waits for a byte, and ends without it.
	if err = p.Place(pid); err == nil {
		if _, err = ours.Write([]byte{1}); err == nil {
			_, err = report(ours)
		}
	}
	if errors.Is(err, io.EOF) { // what it had of the socket went when it became the program
		return pid, nil
	}
	_ = ours.Close()
	return 0, errors.Join(err, end(pid))
}

// report reads one: a process ID, or the error that ended the process.
func report(socket *os.File) (pid int, err error) {
	var r [8]byte
	if _, err := io.ReadFull(socket, r[:]); err != nil {
		return 0, err
	}
	step, value := binary.NativeEndian.Uint32(r[:]), int(int32(binary.NativeEndian.Uint32(r[4:])))
	if step != C.REPORT_PID {
		return 0, fmt.Errorf("step %d: %w", value>>16, syscall.Errno(value&0xffff))
	}
	return value, nil
}

// end kills and reaps a child.
func end(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return os.NewSyscallError("kill", err)
	}
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return os.NewSyscallError("wait4", err)
		}
	}
}
