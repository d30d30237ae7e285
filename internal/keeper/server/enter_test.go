package server

import (
	"errors"
	"os"
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
	_, err = (&Server{}).enter(c, &libcontainer.Process{Args: []string{"/none"}, Cwd: "/", Capabilities: &configs.Capabilities{}}, &configs.Config{OomScoreAdj: &score}, processEnds{})
	if !errors.Is(err, errNoGroups) {
		t.Errorf("it is started in none: %v", err)
	}
}
