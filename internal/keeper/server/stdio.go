package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

// spool is the file between a pipe and the log: what was taken out of the pipe, at its place in the stream. Its size is
// how much was taken. What the log has is punched out.
type spool struct {
	f       *os.File
	size    int64
	punched int64
}

func openSpool(path string) (*spool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &spool{f: f, size: fi.Size()}, nil
}

// release gives back the room of everything before done.
func (s *spool) release(done int64) {
	const step = 256 << 10
	end := done &^ 4095
	if end-s.punched < step {
		return
	}
	if err := unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.punched, end-s.punched); err == nil {
		s.punched = end
	}
}

// pump moves one stream of a process into its log and to those attached, until its end.
type pump struct {
	stream int
	src    *os.File
	tty    bool
	spool  *spool   // nil: there is no log
	log    *logFile // nil with it
	fan    *fanout
	done   chan struct{}
}

// newPump opens what a pump needs. dir has the FIFO, unless src is given.
func newPump(dir string, stream int, src *os.File, log *logFile, fan *fanout) (*pump, error) {
	p := &pump{stream: stream, src: src, tty: src != nil, log: log, fan: fan, done: make(chan struct{})}
	name := streamNames[stream]
	if src == nil {
		var err error
		if p.src, err = openPolled(fifoPath(dir, name), unix.O_RDONLY); err != nil {
			return nil, err
		}
	}
	if log != nil {
		var err error
		if p.spool, err = openSpool(fifoPath(dir, name+".spool")); err != nil {
			if !p.tty {
				_ = p.src.Close()
			}
			return nil, err
		}
	}
	return p, nil
}

// run moves until the last writer has gone, or stop.
func (p *pump) run() {
	defer close(p.done)
	p.catchUp()
	for {
		if err := p.step(); err != nil {
			break
		}
	}
	if p.log != nil {
		p.log.finish(p.stream)
		_ = p.spool.f.Close()
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

// step waits for data and moves it.
func (p *pump) step() error {
	if p.spool == nil || p.tty {
		return p.stepRead()
	}
	n, err := p.splice()
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EDQUOT):
		return p.stepRead() // without the spool's safety
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
	if p.log != nil {
		p.log.write(p.stream, data)
		p.spool.release(p.log.done(p.stream))
	}
	p.fan.send(p.stream, data)
}

// splice moves what is in the pipe to the end of the spool.
func (p *pump) splice() (n int, err error) {
	raw, err := p.src.SyscallConn()
	if err != nil {
		return 0, err
	}
	out, end := int(p.spool.f.Fd()), p.spool.size
	var serr error
	err = p.waitRead(raw.Read, func(fd uintptr) bool {
		for {
			var moved int64
			off := end
			moved, serr = unix.Splice(int(fd), nil, out, &off, bufferSize, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
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

// stepRead is step by way of memory: for terminals, and where there is no log.
func (p *pump) stepRead() error {
	raw, err := p.src.SyscallConn()
	if err != nil {
		return err
	}
	buf := buffers.Get().(*[bufferSize]byte)
	got := 0
	var rerr error
	try := func(fd uintptr) bool {
		for {
			got, rerr = unix.Read(int(fd), buf[:])
			if rerr != unix.EINTR {
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
	if p.spool != nil {
		if n, err := p.spool.f.WriteAt(buf[:got], p.spool.size); err == nil {
			p.spool.size += int64(n)
		}
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
