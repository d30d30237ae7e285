package image

import (
	"archive/tar"
	"errors"
	"io"
	"syscall"
)

// isReset reports a connection that broke.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, io.ErrClosedPipe)
}

// isTarError reports bytes that are no tar archive, or half of one.
func isTarError(err error) bool {
	return errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF)
}
