package nettest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Ping sends one ICMP echo request and waits for its answer from the same address.
func (s *Space) Ping(addr netip.Addr) error {
	var c net.PacketConn
	err := s.Do(func() (err error) {
		c, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	request := []byte{8, 0, 0, 0, 0x5a, 0x4d, 0, 1, 'p', 'i', 'n', 'g'}
	binary.BigEndian.PutUint16(request[2:], checksum(request))
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.WriteTo(request, &net.IPAddr{IP: addr.AsSlice()}); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("ping %s: %w", addr, err)
		}
		if n >= 12 && buf[0] == 0 && from.String() == addr.String() && bytes.Equal(buf[4:n], request[4:]) {
			return nil
		}
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
