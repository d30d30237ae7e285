package ship

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/engine/logs"
)

// journalSink speaks journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram with fields, or where
// that is too big for one, a sealed file in memory sent along an empty datagram.
type journalSink struct {
	conn  *net.UnixConn
	fixed []byte // the fields that each message has
}

func dialJournal(socket string, about Container) (Sink, error) {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("journald is not enabled on this host: %w", err)
	}
	fields := map[string]string{}
	for k, v := range about.Attrs {
		if name := journalField(k); name != "" {
			fields[name] = v
		}
	}
	id := about.ID
	maps.Copy(fields, map[string]string{"CONTAINER_ID": id[:min(12, len(id))], "CONTAINER_ID_FULL": id, "CONTAINER_NAME": about.Name,
		"CONTAINER_TAG": about.Tag, "IMAGE_NAME": about.Image, "SYSLOG_IDENTIFIER": about.Tag})
	s := &journalSink{conn: conn}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		s.fixed = appendField(s.fixed, name, []byte(fields[name]))
	}
	return s, nil
}

// journalField makes a field's name of any: capital letters, digits and underscores, the first no underscore.
func journalField(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, s)
	s = strings.TrimLeft(s, "_")
	return s[:min(64, len(s))]
}

// appendField writes a field: NAME=value, or for a value with a newline the name, its length and it.
func appendField(b []byte, name string, value []byte) []byte {
	b = append(b, name...)
	if bytes.IndexByte(value, '\n') < 0 {
		b = append(b, '=')
	} else {
		b = append(b, '\n')
		b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	}
	b = append(b, value...)
	return append(b, '\n')
}

// Send implements Sink.
func (s *journalSink) Send(e logs.Entry) error {
	line, whole := bytes.CutSuffix(e.Line, []byte("\n"))
	priority := "6" // informational
	if e.Stderr {
		priority = "3" // error
	}
	msg := slices.Clone(s.fixed)
	msg = appendField(msg, "MESSAGE", line)
	msg = appendField(msg, "PRIORITY", []byte(priority))
	msg = appendField(msg, "SYSLOG_TIMESTAMP", []byte(e.Time.UTC().Format("2006-01-02T15:04:05.999999999Z07:00")))
	if !whole {
		msg = appendField(msg, "CONTAINER_PARTIAL_MESSAGE", []byte("true"))
	}
	_, err := s.conn.Write(msg)
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
		return s.sendFile(msg)
	}
	return err
}

func (s *journalSink) sendFile(msg []byte) error {
	fd, err := unix.MemfdCreate("journal-"+strconv.Itoa(len(msg)), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "journal")
	defer f.Close()
	if _, err := f.Write(msg); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL); err != nil {
		return os.NewSyscallError("sealing a journal entry", err)
	}
	raw, err := s.conn.SyscallConn() // its own way to send descriptors wants a connection that is not connected
	if err != nil {
		return err
	}
	werr := raw.Write(func(conn uintptr) bool {
		err = unix.Sendmsg(int(conn), nil, unix.UnixRights(int(f.Fd())), nil, 0)
		return !errors.Is(err, unix.EAGAIN)
	})
	return errors.Join(werr, os.NewSyscallError("sendmsg", err))
}

// Close implements Sink.
func (s *journalSink) Close() error { return s.conn.Close() }
