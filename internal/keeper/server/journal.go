package server

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// journal says, in memory shared with a file, how far a log has come, so that a keeper that was killed at any
// instruction is followed by one that goes on exactly there. It is written with plain stores: nothing of it needs to
// survive the machine.
type journal struct {
	mem  []byte
	word []uint64
}

const journalSize = 4096

// The words of a journal. Those of a stream are at streamWords*stream.
const (
	wordDone        = 0 // bytes of the stream that the log has
	wordPartial     = 1 // 1: the last entry was not a line's end
	wordPartialTime = 2 // its time, as all entries of one line have the first one's
	streamWords     = 8

	// What a write to the log under way will have done: set before it, taken back after it.
	wordIntent      = 32 // the stream, 0: no write under way
	wordBefore      = 33 // the log file's size before
	wordAfter       = 34 // and after
	wordThenDone    = 35
	wordThenPartial = 36
	wordThenTime    = 37
)

func openJournal(path string) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(journalSize); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	return &journal{mem: mem, word: unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), journalSize/8)}, nil
}

func (j *journal) get(i int) uint64    { return atomic.LoadUint64(&j.word[i]) }
func (j *journal) set(i int, v uint64) { atomic.StoreUint64(&j.word[i], v) }
func (j *journal) close()              { _ = unix.Munmap(j.mem); j.mem, j.word = nil, nil }

// mark is where a stream stands.
type mark struct {
	done    uint64
	partial bool
	time    int64
}

func (j *journal) mark(stream int) mark {
	b := stream * streamWords
	return mark{j.get(b + wordDone), j.get(b+wordPartial) == 1, int64(j.get(b + wordPartialTime))}
}

func (j *journal) setMark(stream int, m mark) {
	b := stream * streamWords
	j.set(b+wordPartial, flag(m.partial))
	j.set(b+wordPartialTime, uint64(m.time))
	j.set(b+wordDone, m.done)
}

// intend notes a write that takes the log from one size to another, and what holds after it.
func (j *journal) intend(stream int, before, after int64, then mark) {
	j.set(wordBefore, uint64(before))
	j.set(wordAfter, uint64(after))
	j.set(wordThenDone, then.done)
	j.set(wordThenPartial, flag(then.partial))
	j.set(wordThenTime, uint64(then.time))
	j.set(wordIntent, uint64(stream))
}

// settle notes that the write of the last intend is over.
func (j *journal) settle(stream int, m mark) {
	j.setMark(stream, m)
	j.set(wordIntent, 0)
}

// recover finds out, from the size that the log has now, whether a write that was under way happened; it returns the
// size that the log is to be cut to, which is size unless a part was written.
func (j *journal) recover(size int64) int64 {
	stream := int(j.get(wordIntent))
	if stream != 1 && stream != 2 {
		return size
	}
	before, after := int64(j.get(wordBefore)), int64(j.get(wordAfter))
	if size > before && size < after {
		j.set(wordIntent, 0)
		return before
	}
	if size >= after {
		j.setMark(stream, mark{j.get(wordThenDone), j.get(wordThenPartial) == 1, int64(j.get(wordThenTime))})
	}
	j.set(wordIntent, 0)
	return size
}

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
