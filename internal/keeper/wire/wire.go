// Package wire is how the daemon and its keeper talk: JSON messages, each behind its length, over a Unix stream socket,
// with file descriptors beside a message where it carries some; and the binary frames of an attach. It knows sockets
// and bytes, not what the messages mean.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// MaxFrame bounds one message. A name table of a large cluster is the largest there is.
const MaxFrame = 64 << 20

// MaxFDs bounds the descriptors of one message; the kernel's own limit is 253.
const MaxFDs = 64

// Message is a request, its response (the same ID), or something pushed (ID 0).
type Message struct {
	ID   uint64          `json:"id,omitempty"`
	Op   string          `json:"op,omitempty"`
	Body json.RawMessage `json:"body,omitempty"`
	Err  *Error          `json:"err,omitempty"`
	FDs  int             `json:"fds,omitempty"`
}

// Error is a fault that travels.
type Error struct {
	Kind fault.Kind `json:"kind"`
	Text string     `json:"text"`
}

// ErrorOf returns err as it travels, nil for nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	return &Error{Kind: fault.KindOf(err), Text: err.Error()}
}

// Fault returns the error as a fault, nil for nil.
func (e *Error) Fault() error {
	if e == nil {
		return nil
	}
	return fault.As(e.Kind, errors.New(e.Text))
}

// ReadFrame reads one length and that many bytes. A length that lies costs no more memory than the bytes that came.
func ReadFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return nil, fault.New(fault.InvalidArgument, "a message of %d bytes is above the limit of %d", n, MaxFrame)
	}
	if n <= 64<<10 {
		buf := make([]byte, n)
		if _, err := io.ReadFull(r, buf); err != nil {
			return nil, noEOF(err)
		}
		return buf, nil
	}
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, r, int64(n)); err != nil {
		return nil, noEOF(err)
	}
	return buf.Bytes(), nil
}

// AppendFrame appends a length and payload to dst.
func AppendFrame(dst, payload []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// DecodeMessage reads one message; the descriptors that it announces are not part of r.
func DecodeMessage(r io.Reader) (Message, error) {
	var m Message
	payload, err := ReadFrame(r)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(payload, &m); err != nil {
		return m, fault.New(fault.InvalidArgument, "malformed message: %w", err)
	}
	if m.FDs < 0 || m.FDs > MaxFDs {
		return m, fault.New(fault.InvalidArgument, "a message with %d descriptors; at most %d are allowed", m.FDs, MaxFDs)
	}
	return m, nil
}

// Conn carries messages. Send may be called from any goroutine; Recv from one at a time. It reads no byte past the
// message it returns, so that the socket can go on as a stream after one.
type Conn struct {
	Unix *net.UnixConn
	// SendTimeout bounds how long Send waits for a peer that does not read; 0: for ever. It is set before the first Send.
	SendTimeout time.Duration

	send sync.Mutex
	fds  []int // received, not yet taken by a message
}

// NewConn returns a Conn over c.
func NewConn(c *net.UnixConn) *Conn { return &Conn{Unix: c} }

// Send writes m with descriptors beside it. The descriptors stay the caller's.
func (c *Conn) Send(m Message, fds ...int) error {
	m.FDs = len(fds)
	if len(fds) > MaxFDs {
		return fmt.Errorf("message with %d descriptors; at most %d are allowed", len(fds), MaxFDs)
	}
	payload, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(payload) > MaxFrame {
		return fault.New(fault.InvalidArgument, "a message of %d bytes is above the limit of %d", len(payload), MaxFrame)
	}
	buf := AppendFrame(make([]byte, 0, len(payload)+4), payload)
	c.send.Lock()
	defer c.send.Unlock()
	if c.SendTimeout > 0 {
		if err := c.Unix.SetWriteDeadline(time.Now().Add(c.SendTimeout)); err != nil {
			return err
		}
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for len(buf) > 0 {
		n, _, err := c.Unix.WriteMsgUnix(buf, oob, nil)
		if err != nil {
			return err
		}
		buf, oob = buf[n:], nil
	}
	return nil
}

// Recv reads the next message. The descriptors are the caller's, close-on-exec; they are bare numbers, as to make an
// os.File of one would enter it into this process' poller, to be woken by every byte in a pipe that it only holds.
func (c *Conn) Recv() (Message, []int, error) {
	m, err := DecodeMessage(fdReader{c})
	if err != nil {
		c.dropFDs()
		return m, nil, err
	}
	if len(c.fds) < m.FDs {
		c.dropFDs()
		return m, nil, fault.New(fault.InvalidArgument, "message %q announces %d descriptors, %d came", m.Op, m.FDs, len(c.fds))
	}
	fds := slices.Clone(c.fds[:m.FDs])
	c.fds = slices.Delete(c.fds, 0, m.FDs)
	return m, fds, nil
}

func (c *Conn) dropFDs() {
	CloseFDs(c.fds)
	c.fds = nil
}

// CloseFDs closes descriptors.
func CloseFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Close ends the connection.
func (c *Conn) Close() error { return c.Unix.Close() }

// fdReader reads the socket and keeps the descriptors that come along, in order.
type fdReader struct{ c *Conn }

func (r fdReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	oob := make([]byte, unix.CmsgSpace(4*MaxFDs))
	n, oobn, flags, _, err := r.c.Unix.ReadMsgUnix(p, oob)
	if oobn > 0 {
		msgs, perr := unix.ParseSocketControlMessage(oob[:oobn])
		if perr != nil {
			return n, perr
		}
		for i := range msgs {
			if fds, ferr := unix.ParseUnixRights(&msgs[i]); ferr == nil {
				for _, fd := range fds {
					unix.CloseOnExec(fd)
				}
				r.c.fds = append(r.c.fds, fds...)
			}
		}
	}
	if err != nil {
		return n, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return n, errors.New("descriptors beside a message were cut off")
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// CheckPeer refuses a peer that is neither root nor this process' own user.
func CheckPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return fmt.Errorf("peer of the keeper's socket: %w", cerr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fault.New(fault.Forbidden, "the keeper's socket is for root; the peer is user %d", cred.Uid)
	}
	return nil
}

// FrameKind is what an attach's frame carries.
type FrameKind uint8

// The kinds. Data of the streams is numbered as the streams are.
const (
	FrameStdin  FrameKind = 0
	FrameStdout FrameKind = 1
	FrameStderr FrameKind = 2
	FrameClose  FrameKind = 3 // to the keeper: end of standard input
	FrameEnd    FrameKind = 4 // to the daemon: the process has gone and everything it printed was sent
	FrameError  FrameKind = 5 // to the daemon: the attach is given up; the payload says why
)

// MaxStreamFrame bounds the payload of an attach's frame.
const MaxStreamFrame = 1 << 20

// AppendStreamFrame appends an attach's frame to dst.
func AppendStreamFrame(dst []byte, kind FrameKind, payload []byte) []byte {
	dst = append(dst, byte(kind))
	return AppendFrame(dst, payload)
}

// ReadStreamFrame reads an attach's frame; buf is used for the payload if it is large enough.
func ReadStreamFrame(r io.Reader, buf []byte) (FrameKind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	kind, n := FrameKind(head[0]), binary.BigEndian.Uint32(head[1:])
	if kind > FrameError || n > MaxStreamFrame {
		return 0, nil, fault.New(fault.InvalidArgument, "malformed frame in an attach: kind %d, %d bytes", kind, n)
	}
	if int(n) > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return 0, nil, noEOF(err)
	}
	return kind, buf, nil
}
