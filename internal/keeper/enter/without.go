//go:build !cgo

package enter

import (
	"context"
	"errors"
)

// ErrHeldUp and ErrStray are what Start may tell in a program built with C.
var (
	ErrHeldUp = errors.New("a process that is put into the container does not get on")
	ErrStray  = errors.New("a child may have been left")
)

// Start fails in a program built without C.
func Start(context.Context, *Process) (pid int, err error) {
	return 0, errors.New("this program was built without what enters containers")
}
