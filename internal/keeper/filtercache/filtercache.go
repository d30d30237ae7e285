//go:build cgo && seccomp

package filtercache

/*
#cgo pkg-config: libseccomp
#cgo LDFLAGS: -Wl,--wrap=seccomp_init -Wl,--wrap=seccomp_release -Wl,--wrap=seccomp_arch_add -Wl,--wrap=seccomp_attr_set
#cgo LDFLAGS: -Wl,--wrap=seccomp_rule_add_array -Wl,--wrap=seccomp_rule_add_exact_array -Wl,--wrap=seccomp_export_bpf
#include "wrap.h"
*/
import "C"

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
)

// Use lets the compilations of this process, an init, take what its keeper has learned, if its first extra file is that.
// It comes before anything else. An error means that the file could not be taken out of the program's way.
func Use() error {
	if errno := C.filtercache_use(firstExtraFile); errno != 0 {
		return fmt.Errorf("taking the learned seccomp filters: %w", syscall.Errno(errno))
	}
	return nil
}

const firstExtraFile = 3

// Compile writes to out what there is to learn of the profile, a configs.Seccomp as JSON, that in holds. It is the work of
// a process made for this alone.
func Compile(in io.Reader, out *os.File) error {
	var profile configs.Seccomp
	if err := json.NewDecoder(in).Decode(&profile); err != nil {
		return fmt.Errorf("reading a seccomp profile: %w", err)
	}
	runtime.LockOSThread() // the trap is the thread's
	C.filtercache_learn(C.int(out.Fd()))
	C.filtercache_trap() // where it cannot, the entry alone is learned
	if _, err := seccomp.InitSeccomp(&profile); err == nil {
		return fmt.Errorf("a seccomp profile was installed and not only compiled")
	}
	// It failed. Whether an entry was written tells the reader the rest.
	return nil
}
