//go:build cgo && seccomp

package filtercache

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"slices"
	"testing"

	sc "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
)

// The test binary is also the programs that a keeper would start: one that compiles, and one that is an init.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "compile":
		if err := Compile(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
	case len(os.Args) == 2 && os.Args[1] == "export":
		if err := Use(); err != nil {
			panic(err)
		}
		if err := export(os.Stdin, os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// export describes a filter as libcontainer does and writes the program that comes out.
func export(in io.Reader, out *os.File) error {
	var profile configs.Seccomp
	if err := json.NewDecoder(in).Decode(&profile); err != nil {
		return err
	}
	filter, err := libseccomp.NewFilter(libseccomp.ActErrno.SetReturnCode(1))
	if err != nil {
		return err
	}
	for _, name := range profile.Architectures {
		arch, err := libseccomp.GetArchFromString(name)
		if err != nil {
			return err
		}
		if err := filter.AddArch(arch); err != nil {
			return err
		}
	}
	if slices.Contains(profile.Flags, specs.LinuxSeccompFlagSpecAllow) {
		if err := filter.SetSSB(true); err != nil {
			return err
		}
	}
	if len(profile.Syscalls) > 32 {
		if err := filter.SetOptimize(2); err != nil {
			return err
		}
	}
	if err := filter.SetNoNewPrivsBit(false); err != nil {
		return err
	}
	for _, call := range profile.Syscalls {
		n, err := libseccomp.GetSyscallFromName(call.Name)
		if err != nil {
			continue
		}
		action := libseccomp.ActAllow
		if call.Action == configs.Errno {
			if action = libseccomp.ActErrno.SetReturnCode(int16(*call.ErrnoRet)); *call.ErrnoRet == 1 {
				continue
			}
		}
		var conditions []libseccomp.ScmpCondition
		for _, arg := range call.Args {
			op := map[configs.Operator]libseccomp.ScmpCompareOp{
				configs.EqualTo: libseccomp.CompareEqual, configs.NotEqualTo: libseccomp.CompareNotEqual,
				configs.GreaterThan: libseccomp.CompareGreater, configs.GreaterThanOrEqualTo: libseccomp.CompareGreaterEqual,
				configs.LessThan: libseccomp.CompareLess, configs.LessThanOrEqualTo: libseccomp.CompareLessOrEqual,
				configs.MaskEqualTo: libseccomp.CompareMaskedEqual}[arg.Op]
			c, err := libseccomp.MakeCondition(arg.Index, op, arg.Value, arg.ValueTwo)
			if err != nil {
				return err
			}
			conditions = append(conditions, c)
		}
		if len(conditions) == 0 {
			err = filter.AddRule(n, action)
		} else {
			err = filter.AddRuleConditional(n, action, conditions)
		}
		if err != nil {
			return err
		}
	}
	return filter.ExportBPF(out)
}

// defaultProfile is what a container with the capabilities gets.
func defaultProfile(t *testing.T, capabilities ...string) *configs.Seccomp {
	t.Helper()
	linux, err := sc.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capabilities}}})
	if err != nil {
		t.Fatal(err)
	}
	profile, err := specconv.SetupSeccomp(linux)
	if err != nil {
		t.Fatal(err)
	}
	return profile
}

// program runs the test binary as an init that exports the profile's program.
func program(t *testing.T, profile *configs.Seccomp, learned *os.File) []byte {
	t.Helper()
	text, err := json.Marshal(profile)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "export")
	if learned != nil {
		cmd.ExtraFiles = []*os.File{learned}
	}
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestALearnedProfileIsLibseccompsOwn(t *testing.T) {
	c := New(os.Args[0], "compile")
	plain, admin := defaultProfile(t, "CAP_CHOWN"), defaultProfile(t, "CAP_CHOWN", "CAP_SYS_ADMIN")
	wantPlain, wantAdmin := program(t, plain, nil), program(t, admin, nil)
	if bytes.Equal(wantPlain, wantAdmin) {
		t.Fatal("two profiles have one program: this test would see nothing")
	}
	if got := program(t, plain, c.File()); !bytes.Equal(got, wantPlain) {
		t.Error("with nothing learned yet the program is not libseccomp's")
	}
	for range 2 {
		if err := c.Learn(context.Background(), plain); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.learned) != 1 {
		t.Errorf("a profile learned twice left %d entries", len(c.learned))
	}
	if got := program(t, plain, c.File()); !bytes.Equal(got, wantPlain) {
		t.Error("the learned program is not the one libseccomp makes")
	}
	if got := program(t, admin, c.File()); !bytes.Equal(got, wantAdmin) {
		t.Error("a profile that was not learned does not get its own program")
	}
	if err := c.Learn(context.Background(), admin); err != nil {
		t.Fatal(err)
	}
	for profile, want := range map[*configs.Seccomp][]byte{plain: wantPlain, admin: wantAdmin} {
		if got := program(t, profile, c.File()); !bytes.Equal(got, want) {
			t.Error("of two learned profiles one has the wrong program")
		}
	}
}

// That an init takes what was learned, and does not compile after all, shows when something else was put there.
func TestAnInitTakesWhatWasLearned(t *testing.T) {
	c := New(os.Args[0], "compile")
	profile := defaultProfile(t, "CAP_KILL")
	if err := c.Learn(context.Background(), profile); err != nil {
		t.Fatal(err)
	}
	entry := c.learned[0].entry
	description, length := binary.NativeEndian.Uint32(entry), binary.NativeEndian.Uint32(entry[4:])
	mark := bytes.Repeat([]byte("mark"), int(length)/4)
	copy(entry[8+description:], mark)
	var err error
	if c.file, err = layOut(c.entries()); err != nil {
		t.Fatal(err)
	}
	if got := program(t, profile, c.File()); !bytes.Equal(got, mark) {
		t.Error("an init compiled a profile that was learned")
	}
	// What is torn is passed over.
	if c.file, err = layOut([][]byte{entry[:len(entry)/2]}); err != nil {
		t.Fatal(err)
	}
	if got, want := program(t, profile, c.File()), program(t, profile, nil); !bytes.Equal(got, want) {
		t.Error("with a torn file the program is not libseccomp's")
	}
}

func TestAProfileThatCannotBeCompiledTeachesNothing(t *testing.T) {
	c := New(os.Args[0], "compile")
	good := defaultProfile(t, "CAP_CHOWN")
	if err := c.Learn(context.Background(), good); err != nil {
		t.Fatal(err)
	}
	bad := &configs.Seccomp{DefaultAction: configs.Errno, Architectures: []string{"no such"}}
	for range 2 {
		_ = c.Learn(context.Background(), bad)
	}
	if len(c.learned) != 1 {
		t.Errorf("%d entries, one profile could be compiled", len(c.learned))
	}
	if err := c.Learn(context.Background(), nil); err != nil {
		t.Error("no profile is not an error:", err)
	}
}

func TestManyProfilesAreForgottenOldestFirst(t *testing.T) {
	c := New(os.Args[0], "compile")
	profile := func(i int) *configs.Seccomp {
		ret := uint(i + 2)
		return &configs.Seccomp{DefaultAction: configs.Allow, Architectures: []string{"amd64"},
			Syscalls: []*configs.Syscall{{Name: "mkdir", Action: configs.Errno, ErrnoRet: &ret}}}
	}
	for i := range limit + 2 {
		if err := c.Learn(context.Background(), profile(i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.learned) != limit {
		t.Errorf("%d entries, want the newest %d", len(c.learned), limit)
	}
	// One that was forgotten is learned again when it is used again.
	first := profile(0)
	if _, _, ok := c.Installed(first); ok {
		t.Error("the oldest is still known")
	}
	if err := c.Learn(context.Background(), first); err != nil {
		t.Fatal(err)
	}
	if _, program, ok := c.Installed(first); !ok || len(program) == 0 {
		t.Error("one that was forgotten is not learned again")
	}
}

// TestALearningThatTookTooLongIsTriedAgain: it says nothing of the profile.
func TestALearningThatTookTooLongIsTriedAgain(t *testing.T) {
	c := New(os.Args[0], "compile")
	profile := defaultProfile(t, "CAP_CHOWN")
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Learn(over, profile); err == nil {
		t.Fatal("it was learned in no time")
	}
	if err := c.Learn(context.Background(), profile); err != nil || len(c.learned) != 1 {
		t.Errorf("it is not learned afterwards: %v", err)
	}
}
