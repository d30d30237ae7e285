package keeper_test

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sampan-cloud/sampan/internal/keeper"
)

// The first start with a profile compiles it, later ones take what was learned, an exec too: each denies what the profile
// denies, and none leaves anything of the keeper's open for the program.
func TestEveryProcessHasItsFilter(t *testing.T) {
	h := newHost(t)
	errno := uint(123) // nothing that mkdir says by itself
	filtered := func(noNewPrivileges bool, args ...string) keeper.Spec {
		s := h.spec(args...)
		s.Bundle = bundle(s.ID, func(s *specs.Spec) {
			s.Process.NoNewPrivileges = noNewPrivileges
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
				Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno}}}
		}, args...)
		return s
	}
	const want = "mkdir 123, mode 2, open 0 1 2"
	for start, noNewPrivileges := range []bool{false, false, false, true} {
		s := filtered(noNewPrivileges, "filter")
		h.create(s)
		out := h.attach(keeper.AttachOptions{ID: s.ID, Stdout: true, Stderr: true})
		h.start(s.ID)
		if got, _ := readAll(t, out); got != want {
			t.Errorf("start %d: %q, want %q", start, got, want)
		}
		h.exit(s.ID, "")
		if err := h.c.Delete(h.ctx(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	sleeper := filtered(false, "sleep")
	h.runReady(sleeper)
	for i := range 2 {
		p := keeper.Process{Container: sleeper.ID, ExecID: newID(), Process: mustJSON(process("filter"))}
		if _, err := h.c.Exec(h.ctx(), p); err != nil {
			t.Fatal(err)
		}
		out := h.attach(keeper.AttachOptions{ID: sleeper.ID, ExecID: p.ExecID, Stdout: true, Stderr: true})
		if got, _ := readAll(t, out); got != want {
			t.Errorf("exec %d: %q, want %q", i, got, want)
		}
	}
}
