package server

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// keptForClients is how much of a stream stays in its spool for those attached, who may have to ask for it again: what is
// queued for one and what is in its sockets.
const keptForClients = backlogLimit + 1<<20

// spool is the file of a stream: what was taken out of the pipe, at its place in the stream, until the log has it and
// those attached will not ask for it again; that is punched out. Its size is how much was taken.
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

// add puts p at the end. Where there is no room its place stays empty: what comes later is at its place all the same.
func (s *spool) add(p []byte) {
	if n, err := s.f.WriteAt(p, s.size); err != nil && n < len(p) {
		_ = s.f.Truncate(s.size + int64(len(p)))
	}
	s.size += int64(len(p))
}

// release gives back the room of everything before end.
func (s *spool) release(end int64) {
	const step = 256 << 10
	end &^= 4095
	if end-s.punched < step {
		return
	}
	if err := unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.punched, end-s.punched); err == nil {
		s.punched = end
	}
}

// errOutputLost tells that what a client asks for is not there any more.
var errOutputLost = fault.New(fault.FailedPrecondition, "some of the output was lost while the keeper was away")

// replay reads a part of a stream again. It fails if not all of it is there.
func (p *proc) replay(stream int, from, to int64) ([]byte, error) {
	if from == to {
		return nil, nil
	}
	if from > to || to-from > 2*keptForClients {
		return nil, errOutputLost
	}
	f, err := os.Open(spoolPath(p.dir, stream))
	if err != nil {
		return nil, errOutputLost
	}
	defer f.Close()
	if hole, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil || hole < to {
		return nil, errOutputLost
	}
	data := make([]byte, to-from)
	if _, err := f.ReadAt(data, from); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return data, nil
}

// spooled returns how much of a stream of a process that has ended there was.
func (p *proc) spooled(stream int) int64 {
	fi, err := os.Stat(spoolPath(p.dir, stream))
	if err != nil {
		return 0
	}
	return fi.Size()
}

// dropSpools removes the spools of a process that has ended and whose output has reached who asked for it.
func (p *proc) dropSpools() {
	for _, stream := range []int{1, 2} {
		_ = os.Remove(spoolPath(p.dir, stream))
	}
}

func spoolPath(dir string, stream int) string { return fifoPath(dir, streamNames[stream]+".spool") }
