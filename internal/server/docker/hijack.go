package docker

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/moby/moby/api/types"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/engine/container"
)

// lingering is how long a connection waits, after the last byte of output, for its client to close it.
const lingering = 10 * time.Second

// hijacked is a connection that has left HTTP behind and carries a process' streams.
type hijacked struct {
	net.Conn
	in *bufio.Reader // what the client sends, with what was read ahead
}

// hijack takes the connection of a request over and tells the client so: 101 if it asked to upgrade, else the 200 of
// older clients. multiplexed says that frames follow, and not raw bytes.
func hijack(w *response, r *request, multiplexed bool) (*hijacked, error) {
	conn, rw, err := w.Hijack()
	if err != nil {
		return nil, err
	}
	media := types.MediaTypeRawStream
	var head string
	if r.Header.Get("Upgrade") != "" {
		if multiplexed && r.version >= 1042 {
			media = types.MediaTypeMultiplexedStream
		}
		w.status = http.StatusSwitchingProtocols
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + media + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
	} else {
		w.status = http.StatusOK
		head = "HTTP/1.1 200 OK\r\nContent-Type: " + media + "\r\n"
	}
	for _, name := range []string{"Api-Version", "Ostype", "Server"} {
		head += fmt.Sprintf("%s: %s\r\n", name, w.Header().Get(name))
	}
	if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
		conn.Close()
		return nil, err
	}
	return &hijacked{Conn: conn, in: rw.Reader}, nil
}

// finish ends the output, lets the client read it all, and closes the connection. read is closed once nobody reads
// the connection any more. A connection closed while it holds unread input would cost the client output.
func (h *hijacked) finish(read <-chan struct{}) {
	if cw, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
	} else {
		_ = h.Close()
		return
	}
	_ = h.SetReadDeadline(time.Now().Add(lingering))
	go func() {
		<-read
		_, _ = io.Copy(io.Discard, h.in)
		_ = h.Close()
	}()
}

// awaitHangup returns when the peer has closed its end altogether, or the connection is closed here. A peer that only
// sends no more is still there.
func awaitHangup(conn net.Conn) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return // not to be known; the next write will tell
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd)}} //nolint:gosec // a file descriptor
		if _, err := unix.Poll(fds, 0); errors.Is(err, unix.EINTR) {
			return false
		} else if err != nil {
			return true
		}
		return fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
	})
}

// frameWriter writes the frames of a multiplexed stream: a header with stream and length, then the bytes.
type frameWriter struct{ w io.Writer }

// frame writes one piece of a stream, prefix first.
func (f frameWriter) frame(stream container.StdStream, prefix string, p []byte) error {
	buf := make([]byte, 8, 8+len(prefix)+len(p))
	buf[0] = byte(stream)
	binary.BigEndian.PutUint32(buf[4:], uint32(len(prefix)+len(p))) //nolint:gosec // a piece of output
	_, err := f.w.Write(append(append(buf, prefix...), p...))
	return err
}

// copyOutput sends a stream's output to w until its end, in frames or raw.
func copyOutput(w io.Writer, s container.Stream, multiplexed bool) error {
	for {
		stream, p, err := s.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if multiplexed {
			err = frameWriter{w}.frame(stream, "", p)
		} else {
			_, err = w.Write(p)
		}
		if err != nil {
			return err
		}
	}
}
