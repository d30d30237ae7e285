//go:build cgo

package enter

// #include <stdlib.h>
// #include "enter.h"
import "C"

import "unsafe"

// homeOf is a user's folder by a passwd file without odd bytes, as a process that enters a container reads it there.
func homeOf(passwd string, uid uint32) string {
	text := C.CString(passwd)
	defer C.free(unsafe.Pointer(text))
	return C.GoString(C.enter_home(text, C.uint32_t(uid)))
}
