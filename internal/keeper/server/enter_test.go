package server

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// What is entered stays the container's that was meant, though it ends and its descriptor's number goes to another.
func TestADuplicateStays(t *testing.T) {
	self, err := openPIDFD(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	again, err := duplicate(self)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	_ = self.Close()
	if err := unix.PidfdSendSignal(int(again.Fd()), 0, nil, 0); err != nil {
		t.Errorf("the duplicate has gone with its original: %v", err)
	}
	if f, err := duplicate(self); err == nil {
		t.Errorf("descriptor %d is a duplicate of a closed one", f.Fd())
	}
}

// A process is not put into a container whose control groups are not known: it would be in the keeper's.
func TestNoProcessOutsideItsGroups(t *testing.T) {
	pidfd, err := openPIDFD(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	c := &container{proc: &proc{pidfd: pidfd, rec: record{ID: "c"}}}
	score := 0
	_, err = (&Server{}).enter(t.Context(), c, &libcontainer.Process{Args: []string{"/none"}, Cwd: "/", Capabilities: &configs.Capabilities{}}, &configs.Config{OomScoreAdj: &score}, processEnds{})
	if !errors.Is(err, errNoGroups) {
		t.Errorf("it is started in none: %v", err)
	}
}

// A process may run on every processor, however many a kernel was built for (8,192 on x86).
func TestAProcessRunsAnywhere(t *testing.T) {
	if n := 8 * len(everyProcessor); n < 8192 {
		t.Errorf("the mask is of %d processors", n)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	var all, one, now unix.CPUSet
	if err := unix.SchedGetaffinity(cmd.Process.Pid, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(cmd.Process.Pid, &one); err != nil {
		t.Fatal(err)
	}
	if err := runAnywhere(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.SchedGetaffinity(cmd.Process.Pid, &now); err != nil || now != all {
		t.Errorf("it may run on %v, want %v (%v)", now, all, err)
	}
}
