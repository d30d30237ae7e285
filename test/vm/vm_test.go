// Package vm runs Sampan in virtual machines: on kernels other than this machine's, with cgroup version 2 alone. What
// runs inside are the tests of the other packages, compiled beforehand.
package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// suite is a compiled test program and the tests of it that run inside.
type suite struct {
	program string // NAME of /tests/NAME.test
	pattern string // of -test.run; empty: all
	bound   time.Duration
}

// TestKernels boots every kernel that is there and runs the suites on it. SAMPAN_VM names a folder with kernels/ (one
// unpacked package each) and tests/ (compiled test programs); scripts/vm makes it. SAMPAN_BIN names the programs' folder.
// SAMPAN_VM_KERNELS are folders in kernels/ to which it keeps; SAMPAN_VM_RUN=PROGRAM:PATTERN,… replaces the suites.
func TestKernels(t *testing.T) {
	dir, bin := os.Getenv("SAMPAN_VM"), os.Getenv("SAMPAN_BIN")
	if dir == "" || bin == "" {
		t.Skip("no kernels to boot: 'make vm' fetches some and runs this")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: the files of the machine's disk belong to it")
	}
	for _, tool := range []string{qemu, "depmod", "mkfs.ext4", "xz"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: 'make vm' installs it", tool)
		}
	}
	kernels, err := findKernels(filepath.Join(dir, "kernels"), strings.Fields(os.Getenv("SAMPAN_VM_KERNELS")))
	if err != nil {
		t.Fatal(err)
	}
	if len(kernels) == 0 {
		t.Fatalf("no kernels in %s", filepath.Join(dir, "kernels"))
	}
	suites, err := suitesOf(os.Getenv("SAMPAN_VM_RUN"))
	if err != nil {
		t.Fatal(err)
	}
	programs, err := insidePrograms(bin, filepath.Join(dir, "tests"))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kernels {
		t.Run(k.release, func(t *testing.T) { boot(t, k, programs, suites) })
	}
}

// insidePrograms are the files of the machine, by their path inside.
func insidePrograms(bin, tests string) (map[string]string, error) {
	guest, err := filepath.Abs("guest")
	if err != nil {
		return nil, err
	}
	files := map[string]string{"init": filepath.Join(guest, "init.sh")}
	for _, p := range []string{"sampand", "sampan", "sampan-keeper", "sampan-builder", "sampan-init"} {
		files["usr/local/bin/"+p] = filepath.Join(bin, p)
	}
	files["usr/local/bin/docker"] = filepath.Join(bin, "sampan")
	compiled, err := filepath.Glob(filepath.Join(tests, "*"))
	for _, c := range compiled {
		files["tests/"+filepath.Base(c)] = c
	}
	return files, err
}

func boot(t *testing.T, k kernel, programs map[string]string, suites []suite) {
	dir := t.TempDir()
	boot, err := filepath.Abs(filepath.Join("guest", "boot.sh"))
	if err != nil {
		t.Fatal(err)
	}
	m := machine{kernel: k, cgroup: 2, memory: 3072}
	if m.disk, err = makeDisk(dir, k, programs); err != nil {
		t.Fatal(err)
	}
	if m.ramdisk, err = makeRAMDisk(dir, k, boot); err != nil {
		t.Fatal(err)
	}
	var commands strings.Builder
	commands.WriteString("echo VM-SUITE doctor; sampan doctor || failed=1\n")
	bound := 2 * time.Minute
	for _, s := range suites {
		fmt.Fprintf(&commands, "echo VM-SUITE %s; mkdir -p /work; cd /work; SAMPAN_BIN=/usr/local/bin SAMPAN_PROBE=/tests/probe SAMPAN_TOOL=/tests/tool SAMPAN_PATIENCE=10 /tests/%s.test -test.v -test.run '%s' -test.parallel 1 -test.timeout %s || failed=1\n",
			s.program, s.program, s.pattern, s.bound)
		bound += s.bound
	}
	commands.WriteString("exit ${failed:-0}\n")
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	began := time.Now()
	exit, err := m.run(ctx, commands.String(), func(line string) {
		t.Logf("%6.1fs %s", time.Since(began).Seconds(), line)
	})
	if err != nil {
		t.Fatal(err)
	}
	if exit != 0 {
		t.Errorf("kernel %s: the tests inside ended with %d", k.release, exit)
	}
}

// suitesOf are the suites to run: those that text names, or all.
func suitesOf(text string) ([]suite, error) {
	if text == "" {
		return []suite{
			{program: "onehost", pattern: "TestRun$|TestLifeCycle|TestLimits|TestCgroup|TestOutOfMemory|TestDeviceRules|TestPause|TestBlockIO|TestPrivileged|" +
				"TestUserNS|TestNetworks$|TestPublishedUDP|TestDaemonGone|TestKeeperGone|TestReboot|TestClockIsSet", bound: time.Hour},
			{program: "keeper", pattern: "TestExec|TestFrozen|TestPaused|TestUpgradeBeside|TestKilledWhile|TestKilledBetween|TestDeletedWhile", bound: 30 * time.Minute},
			{program: "cluster", pattern: "TestTwoHosts", bound: 20 * time.Minute},
		}, nil
	}
	var all []suite
	for part := range strings.SplitSeq(text, ",") {
		program, pattern, _ := strings.Cut(part, ":")
		all = append(all, suite{program: program, pattern: pattern, bound: 20 * time.Minute})
	}
	return all, nil
}
