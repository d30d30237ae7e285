package ingress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// listenAll takes a port of the host for both versions of IP so that no other program can: packets never reach the
// sockets, as they are translated or refused before. It fails if another program was first.
func listenAll(e Endpoint) (io.Closer, error) {
	var both sockets
	for _, v6 := range []bool{false, true} {
		s, err := listen(e, v6)
		switch {
		case v6 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)):
			// a host without IPv6
		case err != nil:
			_ = both.Close()
			return nil, err
		case s != nil:
			both = append(both, s)
		}
	}
	return both, nil
}

type sockets []*os.File

// Close gives the port back.
func (s sockets) Close() error {
	var errs []error
	for _, f := range s {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// listen takes a port of one version of IP; nil for a protocol that the host does not speak, where nobody can.
func listen(e Endpoint, v6 bool) (*os.File, error) {
	domain, kind, protocol := unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP
	if v6 {
		domain = unix.AF_INET6
	}
	switch e.Protocol {
	case cloud.UDP:
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case cloud.SCTP:
		kind, protocol = unix.SOCK_STREAM, unix.IPPROTO_SCTP
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err == unix.EPROTONOSUPPORT || err == unix.ESOCKTNOSUPPORT {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "port "+e.String())
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: int(e.Port)}
	if v6 {
		at = &unix.SockaddrInet6{Port: int(e.Port)}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && e.Protocol != cloud.UDP {
		// Connections of an earlier listener that still linger are no reason to refuse.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, at)
	}
	if err == nil && e.Protocol != cloud.UDP {
		// Only a listening socket keeps others off that also ask to reuse addresses.
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return f, nil
}

func nativeBytes(v uint32) []byte  { return binary.NativeEndian.AppendUint32(nil, v) }
func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
