//go:build cgo

package enter

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A program that a container could write to is not put into one: this test's is a file on disk.
func TestOnlyASealedProgramEnters(t *testing.T) {
	if _, err := Start(t.Context(), &Process{Args: []string{"/none"}, Cwd: "/"}); !errors.Is(err, errUnsealed) {
		t.Errorf("it was started from a file that can be written to: %v", err)
	}
}

// A child that a container has got hold of may tell what it likes: it is ended for whatever is no report of it.
func TestAChildThatTellsWhatItWasNotAsked(t *testing.T) {
	for name, told := range map[string][2]int32{"its ID again": {1, 77}, "an ID that means all processes": {1, -1}, "an ID that means the group": {1, 0}, "something else": {7, 7}} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
		if err := binary.Write(theirs, binary.NativeEndian, told); err != nil {
			t.Fatal(err)
		}
		p := &Process{Place: func(int) error { return nil }}
		if err := p.follow(ours, 77); err == nil {
			t.Errorf("%s: taken for a start", name)
		}
		if err := binary.Write(theirs, binary.NativeEndian, told); err != nil {
			t.Fatal(err)
		}
		if pid, err := report(ours, 0); err == nil && pid != 77 {
			t.Errorf("%s: %d is taken for a process ID", name, pid)
		}
		_, _ = ours.Close(), theirs.Close()
	}
}

// One that its container has stopped is ended after a while, and not tried again.
func TestAChildThatIsStopped(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	if err := ours.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	p := &Process{Place: func(int) error { return nil }}
	if err := p.follow(ours, cmd.Process.Pid); !errors.Is(err, ErrHeldUp) {
		t.Errorf("it went on: %v", err)
	}
	if err := End(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
}
