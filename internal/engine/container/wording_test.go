package container

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// deafKeeper is a keeper that can send no signal.
type deafKeeper struct{ Keeper }

func (deafKeeper) Signal(context.Context, string, string, int, bool) error {
	return errors.New("no such keeper")
}

// TestErrorsSayItOnce: what could not be done, and to which container, is said by whoever was asked to do it.
func TestErrorsSayItOnce(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{}, "wait")
	bad := b.create(Config{Entrypoint: []string{"nosuch"}})
	err := b.m.Start(t.Context(), bad)
	if err == nil || !strings.HasPrefix(err.Error(), "failed to create container process: ") || strings.Contains(err.Error(), "unable to start container process") ||
		!strings.Contains(err.Error(), "executable file not found") {
		t.Errorf("start of a program that is not there: %v", err)
	}
	if c, _ := b.m.Get(bad); c.State.ExitCode != 127 {
		t.Errorf("exit code %d", c.State.ExitCode)
	}
	// Where init fails for want of files, and whether it can still tell, depends on how many there are.
	for n := int64(5); n < 15; n++ {
		few := b.create(Config{Host: HostConfig{Ulimits: []Ulimit{{Name: "nofile", Soft: n, Hard: n}}}}, "wait")
		if err := b.m.Start(t.Context(), few); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), fmt.Sprintf("--ulimit nofile=%d:%d: ", n, n)) {
			t.Errorf("start with %d open files: %v", n, err)
		}
	}
	b.leave()
	b.wrap = func(k Keeper) Keeper { return deafKeeper{k} }
	b.back()
	defer func() {
		b.leave()
		b.wrap = nil
		b.back()
	}()
	one := 1
	for what, err := range map[string]error{"kill": b.m.Kill(t.Context(), id, "KILL"), "stop": b.m.Stop(t.Context(), id, "", &one)} {
		if err == nil || !strings.Contains(err.Error(), "could not be sent") || strings.Count(err.Error(), id) > 1 ||
			strings.Count(strings.ToLower(err.Error()), "cannot") > 1 {
			t.Errorf("%s: %v", what, err)
		}
	}
}
