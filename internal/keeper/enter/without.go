//go:build !cgo

package enter

import "errors"

// Start fails in a program built without C.
func Start(*Process) (pid int, err error) {
	return 0, errors.New("this program was built without what enters containers")
}
