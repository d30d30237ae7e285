package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// bufferSize is what one read takes; as much as a pipe holds.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func fifoPath(dir, name string) string { return filepath.Join(dir, name) }

// makeFifo makes a FIFO that a user namespace's root may open; init gives it to the container's user later.
func makeFifo(path string, uid, gid int) error {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	return os.Chown(path, uid, gid)
}

// processEnds are the ends of the pipes that the process gets. They are closed here once it has them.
// hold keeps the input open for writing until our own end is: an exec reads at once, and would take a pipe without a
// writer for the end of its input.
type processEnds struct{ stdin, stdout, stderr, hold *os.File }

func (e processEnds) close() {
	for _, f := range []*os.File{e.stdin, e.stdout, e.stderr, e.hold} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// openProcessEnds opens what the process gets. Output is opened for reading too: so long as the process lives its pipe
// has a reader, and a keeper that dies costs neither a SIGPIPE nor what is in the pipe.
func openProcessEnds(dir string, openStdin bool) (e processEnds, err error) {
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.stdout, err = openBlocking(fifoPath(dir, "stdout"), unix.O_RDWR); err != nil {
		return e, err
	}
	if e.stderr, err = openBlocking(fifoPath(dir, "stderr"), unix.O_RDWR); err != nil {
		return e, err
	}
	if !openStdin {
		e.stdin, err = os.OpenFile(os.DevNull, os.O_RDONLY, 0)
		return e, err
	}
	// For reading only, or the process would never see the end of its input. A FIFO opened so does not block when
	// somebody has it open for writing.
	if e.hold, err = openBlocking(fifoPath(dir, "stdin"), unix.O_RDWR); err != nil {
		return e, err
	}
	e.stdin, err = openBlocking(fifoPath(dir, "stdin"), unix.O_RDONLY)
	return e, err
}

// openBlocking opens a FIFO outside the poller: a process expects its standard streams in blocking mode, and the mode
// belongs to what was opened, not to the descriptor.
func openBlocking(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openPolled opens a FIFO for our side: reads and writes wait in the poller, not in a thread.
func openPolled(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// fdOf returns a file's descriptor without changing its mode, as File.Fd might.
func fdOf(f *os.File) int {
	fd := -1
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(v uintptr) { fd = int(v) })
	}
	return fd
}

// pump moves one stream of a process into its log and to those attached, until its end.
type pump struct {
	stream int
	src    *os.File
	tty    bool
	relay  *os.File // a terminal's: a pipe on the way into the spool, as a terminal cannot be spliced into a file
	spool  *spool
	log    *logFile // nil: none is kept
	fan    *fanout
	done   chan struct{}
	// taking is held for reading while what was read is only in memory; held for writing by one that replaces the program.
	taking *sync.RWMutex
}

// newPump opens what the pump of a stream needs; src is the terminal's master, nil for a pipe.
func (p *proc) newPump(stream int, src *os.File) (*pump, error) {
	pump := &pump{stream: stream, src: src, tty: src != nil, log: p.io.log, fan: p.fan, taking: p.taking, done: make(chan struct{})}
	var err error
	if src == nil {
		if pump.src, err = openPolled(fifoPath(p.dir, streamNames[stream]), unix.O_RDONLY); err != nil {
			return nil, err
		}
	}
	if pump.spool, err = openSpool(spoolPath(p.dir, stream)); err != nil {
		if !pump.tty {
			_ = pump.src.Close()
		}
		return nil, err
	}
	p.fan.begin(stream, pump.spool.size)
	return pump, nil
}

// run moves until the last writer has gone, or stop.
func (p *pump) run() {
	defer close(p.done)
	p.catchUp()
	p.fan.awaitReturn()
	for {
		if err := p.step(); err != nil {
			break
		}
	}
	if p.log != nil {
		p.log.finish(p.stream)
	}
	_ = p.spool.f.Close()
	if p.relay != nil {
		_ = p.relay.Close()
	}
	if !p.tty {
		_ = p.src.Close()
	}
}

// stop ends a pump whose stream may never end, after what is there now.
func (p *pump) stop() { _ = p.src.SetReadDeadline(time.Unix(1, 0)) }

// catchUp logs what a keeper before this one took out of the pipe and did not log.
func (p *pump) catchUp() {
	if p.log == nil {
		return
	}
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for at := p.log.done(p.stream); at < p.spool.size; {
		n, err := p.spool.f.ReadAt(buf[:min(bufferSize, p.spool.size-at)], at)
		if n == 0 || err != nil && !errors.Is(err, io.EOF) {
			return
		}
		p.log.write(p.stream, buf[:n])
		at += int64(n)
	}
}

// step waits for data and moves it. It goes from the source into the spool without ever being in this program's memory
// only, which dies with it.
func (p *pump) step() error {
	n, err := p.splice()
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EDQUOT):
		return p.stepRead() // without the spool's safety
	case errors.Is(err, unix.EIO) && p.tty: // the last process with the terminal open has gone
		return io.EOF
	case err != nil:
		return err
	case n == 0:
		return io.EOF
	}
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	if _, err := p.spool.f.ReadAt(buf[:n], p.spool.size); err != nil {
		return fmt.Errorf("reading the spool: %w", err)
	}
	p.spool.size += int64(n)
	p.deliver(buf[:n])
	return nil
}

func (p *pump) deliver(data []byte) {
	done := p.spool.size
	if p.log != nil {
		p.log.write(p.stream, data)
		done = p.log.done(p.stream)
	}
	p.fan.send(p.stream, data)
	if p.fan.mayAskAgain() {
		done = min(done, p.spool.size-keptForClients)
	}
	p.spool.release(done)
}

// splice moves what is there to the end of the spool; a terminal's output by way of its relay.
func (p *pump) splice() (n int, err error) {
	out := int(p.spool.f.Fd())
	if !p.tty {
		return p.waitSplice(out, &p.spool.size)
	}
	relay := fdOf(p.relay)
	if left, err := unix.IoctlGetInt(relay, unix.TIOCINQ); err != nil || left == 0 {
		if n, err := p.waitSplice(relay, nil); err != nil || n == 0 {
			return 0, err
		}
	}
	end := p.spool.size
	for {
		n, err := unix.Splice(relay, nil, out, &end, bufferSize, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err != unix.EINTR {
			return int(n), err
		}
	}
}

// waitSplice waits for the source and splices once into out, at the place at.
func (p *pump) waitSplice(out int, at *int64) (n int, err error) {
	raw, err := p.src.SyscallConn()
	if err != nil {
		return 0, err
	}
	var serr error
	err = p.waitRead(raw.Read, func(fd uintptr) bool {
		for {
			var moved int64
			var off *int64
			if at != nil {
				v := *at
				off = &v
			}
			moved, serr = unix.Splice(int(fd), nil, out, off, bufferSize, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
			n = int(moved)
			if serr != unix.EINTR {
				return serr != unix.EAGAIN
			}
		}
	})
	if serr != nil && serr != unix.EAGAIN {
		return 0, serr
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// newRelay makes a pipe that is open at both ends by one descriptor, so that one is all there is to hold.
func newRelay() (*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	defer wire.CloseFDs(fds[:])
	return openPolled("/proc/self/fd/"+strconv.Itoa(fds[0]), unix.O_RDWR)
}

// stepRead is step by way of memory, where the spool has no room.
func (p *pump) stepRead() error {
	raw, err := p.src.SyscallConn()
	if err != nil {
		return err
	}
	buf := buffers.Get().(*[bufferSize]byte)
	got := 0
	var rerr error
	try := func(fd uintptr) bool {
		if p.relay != nil { // what is in there comes first
			if left, err := unix.IoctlGetInt(fdOf(p.relay), unix.TIOCINQ); err == nil && left > 0 {
				fd = uintptr(fdOf(p.relay))
			}
		}
		p.taking.RLock()
		defer p.taking.RUnlock()
		for {
			got, rerr = unix.Read(int(fd), buf[:])
			if rerr != unix.EINTR {
				if got > 0 {
					p.spool.add(buf[:got])
				}
				return rerr != unix.EAGAIN
			}
		}
	}
	// No buffer is held while nothing comes.
	if err := p.waitRead(raw.Read, func(fd uintptr) bool {
		if buf == nil {
			buf = buffers.Get().(*[bufferSize]byte)
		}
		if try(fd) {
			return true
		}
		buffers.Put(buf)
		buf = nil
		return false
	}); err != nil {
		if buf != nil {
			buffers.Put(buf)
		}
		return err
	}
	defer buffers.Put(buf)
	switch {
	case rerr == unix.EIO && p.tty: // the last process with the terminal open has gone
		return io.EOF
	case rerr != nil:
		return rerr
	case got <= 0:
		return io.EOF
	}
	p.deliver(buf[:got])
	return nil
}

// waitRead is the poller's Read, but one that has been stopped first takes what is there.
func (p *pump) waitRead(read func(func(uintptr) bool) error, f func(uintptr) bool) error {
	err := read(f)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		raw, rerr := p.src.SyscallConn()
		if rerr != nil {
			return rerr
		}
		taken := false
		if cerr := raw.Control(func(fd uintptr) { taken = f(fd) }); cerr != nil || !taken {
			return io.EOF
		}
		return nil
	}
	return err
}

// receivePTY takes the master of a new terminal from the socket that init was given.
func receivePTY(socket *os.File) (*os.File, error) {
	name := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	var err error
	for {
		n, oobn, _, _, err = unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("no terminal came from the container's init (%d bytes)", n)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		wire.CloseFDs(fds)
		return nil, errors.New("no terminal came from the container's init")
	}
	return polledFile(fds[0], "pty")
}

// polledFile makes a file of a descriptor whose reads and writes wait in the poller.
func polledFile(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
