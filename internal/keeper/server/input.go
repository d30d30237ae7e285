package server

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// input counts what was written to a process' standard input, in memory shared with a file like a log's journal, so that
// a client whose keeper was killed learns from the next one how far its input has come.
type input struct {
	taking *sync.RWMutex // the server's
	mu     sync.Mutex    // one writer at a time
	j      *journal      // nil once closed
	// unsure: the keeper before was killed while it wrote, and nobody knows whether the process has that piece.
	unsure bool
}

// The words of an input's journal.
const (
	inputDone    = 0 // bytes written, or refused by the process
	inputWriting = 1 // 1: a write is under way
)

func openInput(path string, taking *sync.RWMutex) (*input, error) {
	j, err := openJournal(path)
	if err != nil {
		return nil, err
	}
	in := &input{taking: taking, j: j, unsure: j.get(inputWriting) == 1}
	j.set(inputWriting, 0)
	return in, nil
}

// position returns how many bytes were written, and whether that is certain.
func (in *input) position() (done int64, sure bool) {
	if in == nil {
		return 0, true
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.j == nil {
		return 0, false
	}
	return int64(in.j.get(inputDone)), !in.unsure
}

// write writes all of data to f, waiting while the process does not read. What it does not want counts as written.
func (in *input) write(f *os.File, data []byte) {
	in.mu.Lock()
	defer in.mu.Unlock()
	raw, err := f.SyscallConn()
	for err == nil && in.j != nil && len(data) > 0 {
		n := 0
		var werr error
		err = raw.Write(func(fd uintptr) bool {
			in.taking.RLock()
			defer in.taking.RUnlock()
			in.j.set(inputWriting, 1)
			if n, werr = unix.Write(int(fd), data); n > 0 {
				in.j.set(inputDone, in.j.get(inputDone)+uint64(n))
			}
			in.j.set(inputWriting, 0)
			return !errors.Is(werr, unix.EAGAIN)
		})
		if err == nil && !errors.Is(werr, unix.EINTR) {
			err = werr
		}
		data = data[max(n, 0):]
	}
	if in.j != nil {
		in.j.set(inputDone, in.j.get(inputDone)+uint64(len(data)))
		in.unsure = false
	}
}

// close ends the counting; the files written to are closed before, which ends a write that waits.
func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.j != nil {
		in.j.close()
		in.j = nil
	}
}
