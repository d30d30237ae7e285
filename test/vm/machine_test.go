package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// machine is a virtual machine that boots one kernel from a disk that is thrown away when it ends.
type machine struct {
	kernel  kernel
	ramdisk string // path of the initial RAM disk
	disk    string // path of the root file system's image
	cgroup  int    // version of control groups, 1 or 2
	memory  int    // MiB
}

// qemu is the emulator. Every instruction is translated, which is slow and works anywhere: a /dev/kvm that can be opened
// is no promise that a machine starts on it.
const qemu = "qemu-system-x86_64"

// run boots the machine, has a shell run commands as root and returns how they ended. Every line of its console goes to
// tell as it comes.
func (m *machine) run(ctx context.Context, commands string, tell func(line string)) (exit int, err error) {
	// no_timer_check: a busy machine emulates the timer too late for the kernel's own test of it, which ends in a panic.
	words := []string{"console=ttyS0", "no_timer_check", "quiet", "loglevel=4", "panic=-1", "random.trust_cpu=on", "mitigations=off", "swapaccount=1",
		fmt.Sprintf("vm.cgroup=%d", m.cgroup), "vm.commands=" + base64.StdEncoding.EncodeToString([]byte(commands))}
	cmd := exec.CommandContext(ctx, qemu, "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2", "-m", strconv.Itoa(m.memory),
		"-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot", "-nic", "none",
		"-drive", "if=virtio,format=raw,cache=unsafe,snapshot=on,file="+m.disk,
		"-kernel", m.kernel.image, "-initrd", m.ramdisk, "-append", strings.Join(words, " "))
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	console, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	exit = -1
	lines := bufio.NewScanner(console)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		tell(line)
		if code, ok := strings.CutPrefix(line, "VM-EXIT "); ok {
			if exit, err = strconv.Atoi(code); err != nil {
				exit = -1
			}
		}
	}
	_, _ = io.Copy(io.Discard, console)
	err = cmd.Wait()
	switch {
	case exit >= 0:
		return exit, nil
	case err == nil:
		err = errors.New("it ended before its commands did")
	}
	return exit, fmt.Errorf("virtual machine with kernel %s: %w: %s", m.kernel.release, err, complaint.String())
}

// kernel is an unpacked package of a kernel.
type kernel struct {
	release string // as uname -r says
	image   string // path of vmlinuz
	modules string // path of lib/modules/RELEASE
}

// findKernels returns the kernels below dir, each an unpacked Debian package: those in folders of the names in only, or all.
func findKernels(dir string, only []string) ([]kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "*", "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	var all []kernel
	for _, image := range images {
		release := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
		root := filepath.Dir(filepath.Dir(image))
		if len(only) > 0 && !slices.Contains(only, filepath.Base(root)) {
			continue
		}
		k := kernel{release: release, image: image, modules: filepath.Join(root, "lib", "modules", release)}
		if _, err := os.Stat(k.modules); err != nil { // merged /usr
			k.modules = filepath.Join(root, "usr", "lib", "modules", release)
		}
		all = append(all, k)
	}
	return all, nil
}
