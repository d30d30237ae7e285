package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// binary returns the path of the keeper's program.
func (cfg Config) binary() (string, error) {
	if cfg.Binary != "" {
		return cfg.Binary, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "sampan-keeper")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("sampan-keeper")
	if err != nil {
		return "", fault.New(fault.FailedPrecondition, "the program sampan-keeper is neither beside sampand nor in the PATH: install it there")
	}
	return path, nil
}

// spawn starts a keeper in a session of its own, hands over the held descriptors, and returns when it has adopted what
// runs and listens.
func spawn(ctx context.Context, cfg Config, log *slog.Logger, held *handles, told wire.Handover) error {
	binary, err := cfg.binary()
	if err != nil {
		return err
	}
	logFile, err := openOwnLog(LogPath(cfg.ExecRoot))
	if err != nil {
		return fmt.Errorf("the keeper's log: %w", err)
	}
	defer logFile.Close()
	logEnd, _ := logFile.Seek(0, io.SeekEnd)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "handover"), os.NewFile(uintptr(fds[1]), "handover")
	defer theirs.Close()
	nc, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	conn := wire.NewConn(nc.(*net.UnixConn))
	defer conn.Close()

	args := []string{"serve", "--exec-root", cfg.ExecRoot, "--handover-fd", "3"}
	if cfg.CgroupParent != "" {
		args = append(args, "--cgroup-parent", cfg.CgroupParent)
	}
	if cfg.Debug {
		args = append(args, "--debug")
	}
	if cfg.Failpoints != "" {
		args = append(args, "--failpoint", cfg.Failpoints)
	}
	cmd := exec.Command(binary, args...)
	cmd.Args[0] = "sampan-keeper"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{theirs}
	// A session of its own: no signal to the daemon's process group or terminal reaches it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fault.New(fault.FailedPrecondition, "starting the keeper: %w", err)
	}
	_ = theirs.Close()
	log.Info("started a keeper", "pid", cmd.Process.Pid, "binary", binary)
	go func() { _ = cmd.Wait() }() // it outlives us; if it does not, no zombie stays

	stop := context.AfterFunc(ctx, func() { _ = conn.Unix.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = handOver(conn, held, told)
	if fault.Is(err, fault.AlreadyExists) {
		log.Info("a keeper that a daemon before started is there", "err", err)
		return nil
	}
	if err != nil {
		return fault.New(fault.Unavailable, "the keeper did not start: %w%s", err, logTail(cfg.ExecRoot, logEnd))
	}
	return nil
}

func handOver(conn *wire.Conn, held *handles, told wire.Handover) error {
	err := held.each(func(h wire.Handle, fds []int) error {
		body, err := json.Marshal(h)
		if err != nil {
			return err
		}
		return conn.Send(wire.Message{Op: wire.PushHold, Body: body}, fds...)
	})
	if err == nil {
		body, _ := json.Marshal(told)
		err = conn.Send(wire.Message{Op: wire.HandoverDone, Body: body})
	}
	// A keeper that refuses says why before it goes, so its word comes before the broken pipe.
	m, fds, rerr := conn.Recv()
	wire.CloseFDs(fds)
	switch {
	case rerr == nil && m.Err != nil:
		return m.Err.Fault()
	case err != nil:
		return err
	case rerr != nil:
		return fmt.Errorf("it ended before it was ready: %w", rerr)
	}
	return nil
}

// openOwnLog opens the keeper's log for appending, putting a large one aside first.
func openOwnLog(path string) (*os.File, error) {
	if fi, err := os.Stat(path); err == nil && fi.Size() > 4<<20 {
		_ = os.Rename(path, path+".1")
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// logTail returns what the keeper logged past from, for an error message.
func logTail(execRoot string, from int64) string {
	f, err := os.Open(LogPath(execRoot))
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, from, 2048))
	if err != nil || len(text) == 0 {
		return ""
	}
	return "; its log says: " + strings.TrimSpace(string(text))
}

// nobodyListens tells whether a dial failed because there is no keeper.
func nobodyListens(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

// waitGone waits until a keeper that was told to end has ended.
func waitGone(ctx context.Context, pid int, execRoot string) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(p, 0)
		return n > 0
	})
	if err != nil {
		return fault.New(fault.DeadlineExceeded, "the keeper of %s does not end: %w", execRoot, ctx.Err())
	}
	return nil
}
