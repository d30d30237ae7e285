package names

import "golang.org/x/sys/unix"

// readable is for RawConn.Read: it returns when something can be read, and reads nothing.
func readable(fd uintptr) bool {
	var b [1]byte
	_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_TRUNC)
	return err != unix.EAGAIN
}
