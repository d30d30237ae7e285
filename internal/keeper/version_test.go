package keeper_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

// otherKeeper answers greetings with another version or build; told to become another program, it tells which, and goes.
func otherKeeper(t *testing.T, version int, build string) (execRoot string, upgraded <-chan string) {
	t.Helper()
	execRoot = t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: keeper.SocketPath(execRoot), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	out := make(chan string, 1)
	go func() {
		for {
			uc, err := l.AcceptUnix()
			if err != nil {
				return
			}
			c := wire.NewConn(uc)
			for {
				m, _, err := c.Recv()
				if err != nil {
					break
				}
				if m.Op == wire.OpUpgrade {
					var u wire.Upgrade
					_ = json.Unmarshal(m.Body, &u)
					out <- u.Binary
					_ = l.Close()
					_ = uc.Close()
					return
				}
				body, _ := json.Marshal(wire.HelloReply{Version: version, PID: os.Getpid(), Build: build})
				_ = c.Send(wire.Message{ID: m.ID, Body: body})
			}
		}
	}()
	return execRoot, out
}

func TestOtherKeeperIsUpgraded(t *testing.T) {
	requireRoot(t)
	for name, is := range map[string]struct {
		version int
		build   string
	}{
		"older protocol":                    {keeper.ProtocolVersion - 1, ""},
		"another build":                     {keeper.ProtocolVersion, "another"},
		"a build that does not name itself": {keeper.ProtocolVersion, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root, upgraded := otherKeeper(t, is.version, is.build)
			c, err := keeper.Ensure(t.Context(), keeper.Config{Binary: keeperBinary, ExecRoot: root, CgroupParent: cgroupParent})
			if err != nil {
				t.Fatal(err)
			}
			if got := <-upgraded; got != keeperBinary {
				t.Errorf("upgraded to %q", got)
			}
			if err := c.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A keeper that this daemon understands is not made to become a program that is none: better an old one than none.
func TestKeeperStaysWhereItsNextProgramIsBroken(t *testing.T) {
	root, upgraded := otherKeeper(t, keeper.ProtocolVersion, "another")
	broken := filepath.Join(t.TempDir(), "sampan-keeper")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := keeper.Ensure(t.Context(), keeper.Config{Binary: broken, ExecRoot: root})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.PID(); got != os.Getpid() {
		t.Errorf("keeper %d, want the one that ran", got)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	select {
	case got := <-upgraded:
		t.Errorf("it was told to become %s", got)
	default:
	}
}

func TestBuildOf(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	id, err := keeper.BuildOf(self)
	if err != nil || id == "" || strings.HasPrefix(id, "sha256:") {
		t.Errorf("this program: %q %v, want Go's build ID", id, err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if id, err := keeper.BuildOf(script); err != nil || !strings.HasPrefix(id, "sha256:") {
		t.Errorf("a script: %q %v, want its digest", id, err)
	}
	if _, err := keeper.BuildOf("/no/such/program"); err == nil {
		t.Error("a program that is not there has a build")
	}
}

func TestNewerKeeperIsRefused(t *testing.T) {
	root, _ := otherKeeper(t, keeper.ProtocolVersion+1, "")
	_, err := keeper.Ensure(t.Context(), keeper.Config{Binary: "/none", ExecRoot: root})
	if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "newer sampand") {
		t.Errorf("%v", err)
	}
}

func TestEnsureSaysWhatToDo(t *testing.T) {
	if _, err := keeper.Ensure(t.Context(), keeper.Config{ExecRoot: "relative"}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("relative exec root: %v", err)
	}
	_, err := keeper.Ensure(t.Context(), keeper.Config{ExecRoot: t.TempDir(), Binary: filepath.Join(t.TempDir(), "none")})
	if !fault.Is(err, fault.FailedPrecondition) {
		t.Errorf("no program: %v", err)
	}
	// A program that ends at once: the error has its last words.
	script := filepath.Join(t.TempDir(), "keeper")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho cannot do it >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = keeper.Ensure(t.Context(), keeper.Config{ExecRoot: t.TempDir(), Binary: script})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "cannot do it") {
		t.Errorf("a program that ends at once: %v", err)
	}
}
