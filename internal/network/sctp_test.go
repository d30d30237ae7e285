package network

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/network/nettest"
)

// sctp is a packet with an INIT (1) or INIT ACK (2) chunk, as RFC 9260 has them.
func sctp(from, to uint16, chunk byte, tag, own uint32) []byte {
	b := make([]byte, 12+20)
	binary.BigEndian.PutUint16(b[0:], from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint32(b[4:], tag)
	b[12], b[15] = chunk, 20
	binary.BigEndian.PutUint32(b[16:], own)
	binary.BigEndian.PutUint32(b[20:], 65536)
	binary.BigEndian.PutUint16(b[24:], 1)
	binary.BigEndian.PutUint16(b[26:], 1)
	binary.BigEndian.PutUint32(b[28:], 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func rawSCTP(t *testing.T, s *nettest.Space) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	if err := s.Do(func() (err error) { c, err = net.ListenPacket("ip4:132", "0.0.0.0"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	return c
}

// TestPublishedSCTP: an association to a published port begins in the container and is answered as by the host. The
// packets are written by hand, as the kernel translates SCTP even where it does not speak it.
func TestPublishedSCTP(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := s.lab.Host("outside")
	spec := on("phone", "bridge")
	spec.Ports = []PortBinding{{Protocol: "sctp", Port: 2905, HostPort: 3905}, {Protocol: "sctp", Port: 2906}}
	phone := s.attach(spec)
	if len(phone.Ports) != 4 || phone.Ports[0] != (BoundPort{"sctp", 2905, netip.IPv4Unspecified(), 3905}) || phone.Ports[2].HostPort == 0 || phone.Ports[2].HostPort != phone.Ports[3].HostPort {
		t.Errorf("ports: %v", phone.Ports)
	}
	inside, caller := rawSCTP(t, phone.Space), rawSCTP(t, outside)
	buf := make([]byte, 1500)
	if _, err := caller.WriteTo(sctp(40000, 3905, 1, 0, 7), &net.IPAddr{IP: s.host.Addr.AsSlice()}); err != nil {
		t.Fatal(err)
	}
	n, from, err := inside.ReadFrom(buf)
	if err != nil {
		t.Fatalf("the container hears nothing: %v", err)
	}
	if want := sctp(40000, 2905, 1, 0, 7); string(buf[:n]) != string(want) || from.String() != outside.Addr.String() {
		t.Errorf("from %s %x, want %x", from, buf[:n], want)
	}
	if _, err := inside.WriteTo(sctp(2905, 40000, 2, 7, 9), from); err != nil {
		t.Fatal(err)
	}
	n, from, err = caller.ReadFrom(buf)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	if want := sctp(3905, 40000, 2, 7, 9); string(buf[:n]) != string(want) || from.String() != s.host.Addr.String() {
		t.Errorf("answered from %s %x, want %x", from, buf[:n], want)
	}
}
