package ingress

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// listen takes a port of the host so that no other program can: packets from outside never reach the socket, as they are
// translated or refused before. It fails if another program was first.
func listen(e Endpoint) (io.Closer, error) {
	kind, protocol := unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch e.Protocol {
	case cloud.UDP:
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case cloud.SCTP:
		kind, protocol = unix.SOCK_STREAM, unix.IPPROTO_SCTP
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, protocol)
	if err == unix.EPROTONOSUPPORT || err == unix.ESOCKTNOSUPPORT {
		return io.NopCloser(nil), nil // a protocol that the host does not speak: nobody can listen
	} else if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "port "+e.String())
	if e.Protocol != cloud.UDP {
		// Connections of an earlier listener that still linger are no reason to refuse.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(e.Port)}); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("bind: %w", err)
	}
	if e.Protocol != cloud.UDP {
		// Only a listening socket keeps others off that also ask to reuse addresses.
		if err := unix.Listen(fd, 1); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("listen: %w", err)
		}
	}
	return f, nil
}

func nativeBytes(v uint32) []byte  { return binary.NativeEndian.AppendUint32(nil, v) }
func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
