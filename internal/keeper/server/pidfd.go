package server

import (
	"bytes"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// openPIDFD opens a pidfd that can wait in the poller.
func openPIDFD(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// duplicate makes another descriptor of an open file. The first may be closed at any time: its number is another file's then.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, derr := -1, error(nil)
	if err := raw.Control(func(v uintptr) { fd, derr = unix.FcntlInt(v, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, os.NewSyscallError("fcntl", derr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// awaitExit waits until the process has exited.
func awaitExit(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(p, 0)
			if err != unix.EINTR {
				return n > 0 || err != nil
			}
		}
	})
}

// exitCode returns the exit code of a process that has exited. It does not reap it: until the code is on disk, the
// kernel keeps it for the keeper that follows if this one dies. known is false when nobody knows any more.
func exitCode(pid int, ticks uint64, pidfd *os.File) (code int, known bool) {
	// A child, or one adopted from a keeper that died whose new parent has not reaped it yet…
	if st, err := readStat(pid); err == nil && st.ticks == ticks && st.state == 'Z' {
		return codeOf(unix.WaitStatus(st.exitCode)), true
	}
	// …or has, and the kernel (6.15 and later) tells whoever holds a pidfd.
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(fdOf(pidfd), &info); err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
		return codeOf(unix.WaitStatus(info.Exit_code)), true
	}
	// A child all the same, where /proc does not show it.
	var ws unix.WaitStatus
	if got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil); err == nil && got == pid {
		return codeOf(ws), true
	}
	return -1, false
}

// reap takes an exited child off the kernel's hands; of somebody else's, or another that has got its ID, it does nothing.
func reap(pid int, ticks uint64) {
	if st, err := readStat(pid); err != nil || st.ticks != ticks || st.state != 'Z' {
		return
	}
	for {
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != unix.EINTR {
			return
		}
	}
}

func codeOf(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

type procStat struct {
	state    byte
	ticks    uint64 // when it was started, in clock ticks since boot: tells it from another that gets its ID
	exitCode int
}

// readStat reads /proc/PID/stat.
func readStat(pid int) (procStat, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(text)
}

func parseStat(text []byte) (procStat, error) {
	// The name in parentheses may contain anything; the fields behind the last one count.
	i := bytes.LastIndexByte(text, ')')
	if i < 0 {
		return procStat{}, errors.New("malformed stat")
	}
	f := bytes.Fields(text[i+1:])
	if len(f) < 50 || len(f[0]) != 1 {
		return procStat{}, errors.New("malformed stat")
	}
	ticks, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return procStat{}, err
	}
	code, err := strconv.Atoi(string(f[49]))
	if err != nil {
		return procStat{}, err
	}
	return procStat{state: f[0][0], ticks: ticks, exitCode: code}, nil
}
