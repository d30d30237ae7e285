package container

import (
	"context"
	"io"
	"io/fs"
	"time"
)

// AttachOptions choose the streams of an attach.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	Logs                  bool // first what was printed so far
	Stream                bool // then what comes
}

// StdStream numbers a standard stream.
type StdStream uint8

// The streams.
const (
	Stdin StdStream = iota
	Stdout
	Stderr
)

// Stream is an open attach or exec.
type Stream interface {
	// Next returns the next piece of output; io.EOF after the last. The slice is valid until the next call.
	Next() (StdStream, []byte, error)
	// Write writes to the process' standard input; CloseWrite ends it.
	io.Writer
	CloseWrite() error
	// Close gives up the stream and leaves the process alone.
	Close() error
}

// LogOptions choose lines of a log. Tail -1: all. The zero times are no bounds.
type LogOptions struct {
	Stdout, Stderr bool
	Follow         bool
	Tail           int
	Since, Until   time.Time
	Details        bool
}

// LogLine is one line as it was printed, with its newline if it had one.
type LogLine struct {
	Stream StdStream
	Time   time.Time
	Line   []byte
	Attrs  map[string]string
}

// LogReader reads a log in order of writing.
type LogReader interface {
	// Next returns the next line; io.EOF at the end, which with Follow is the container's removal or exit.
	Next(ctx context.Context) (LogLine, error)
	Close() error
}

// PathStat describes a file in a container.
type PathStat struct {
	Name       string
	Size       int64
	Mode       fs.FileMode
	Mtime      time.Time
	LinkTarget string
}

// CopyOptions are those of an archive extraction into a container.
type CopyOptions struct {
	NoOverwriteDirNonDir bool
	CopyUIDGID           bool
}

// Stats are a container's counters at Read. Times of CPU are nanoseconds, sizes bytes.
type Stats struct {
	ID, Name          string
	Read              time.Time
	NumCPU            int
	CPU               CPUStats
	Memory            MemoryStats
	Pids              uint64
	PidsMax           uint64
	Networks          map[string]NetworkStats // by interface
	BlkioServiceBytes []BlkioEntry
	BlkioServiced     []BlkioEntry
}

// CPUStats are CPU counters.
type CPUStats struct {
	Total, User, Kernel                      uint64
	PerCPU                                   []uint64
	System                                   uint64 // the host's total CPU time over all cores
	Periods, ThrottledPeriods, ThrottledTime uint64
}

// MemoryStats are memory counters.
type MemoryStats struct {
	Usage, MaxUsage, Limit, Failcnt uint64
	Stats                           map[string]uint64 // memory.stat
}

// NetworkStats are an interface's counters.
type NetworkStats struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// BlkioEntry is one counter of block I/O.
type BlkioEntry struct {
	Major, Minor uint64
	Op           string
	Value        uint64
}
