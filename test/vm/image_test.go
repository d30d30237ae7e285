package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// folders of the machine's root file system beside those that files bring with them.
var folders = []string{"dev", "proc", "sys", "run", "tmp", "root", "var/lib", "etc", "bin", "sbin", "usr/bin"}

// diskSize is the size of the root file system; the image is sparse.
const diskSize = "8G"

// makeDisk makes the root file system: busybox, the kernel's modules and what programs name, by path inside.
func makeDisk(dir string, k kernel, programs map[string]string) (image string, err error) {
	root := filepath.Join(dir, "root-"+k.release)
	if err := os.RemoveAll(root); err != nil {
		return "", err
	}
	defer os.RemoveAll(root)
	for _, f := range folders {
		if err := os.MkdirAll(filepath.Join(root, f), 0o755); err != nil {
			return "", err
		}
	}
	for to, from := range programs {
		if err := place(from, filepath.Join(root, to)); err != nil {
			return "", err
		}
	}
	for name, data := range map[string]string{"etc/hosts": "127.0.0.1 localhost\n", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(data), 0o644); err != nil {
			return "", err
		}
	}
	if err := busybox(root); err != nil {
		return "", err
	}
	modules := filepath.Join(root, "lib", "modules", k.release)
	if err := os.MkdirAll(filepath.Dir(modules), 0o755); err != nil {
		return "", err
	}
	if err := command("cp", "-a", k.modules, modules); err != nil {
		return "", err
	}
	if err := command("depmod", "-b", root, k.release); err != nil {
		return "", err
	}
	image = filepath.Join(dir, "disk-"+k.release+".img")
	_ = os.Remove(image)
	return image, command("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", root, image, diskSize)
}

// place puts a program into a tree, without a copy where it can be had.
func place(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	return command("cp", from, to)
}

func busybox(root string) error {
	if err := command("cp", "/bin/busybox", filepath.Join(root, "bin", "busybox")); err != nil {
		return err
	}
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox: %w", err)
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet == "busybox" {
			continue
		}
		if err := os.Symlink("/bin/busybox", filepath.Join(root, "bin", applet)); err != nil {
			return err
		}
	}
	return os.Symlink("/bin/busybox", filepath.Join(root, "sbin", "modprobe")) // where the kernel calls it
}

// bootModules are what the machine's disk needs.
var bootModules = []string{"virtio_pci", "virtio_blk"}

// makeRAMDisk makes the initial RAM disk: busybox, boot.sh and the modules of the disk, in the order of their loading.
func makeRAMDisk(dir string, k kernel, boot string) (string, error) {
	root := filepath.Join(dir, "depmod-"+k.release)
	defer os.RemoveAll(root)
	if err := os.MkdirAll(filepath.Join(root, "lib", "modules"), 0o755); err != nil {
		return "", err
	}
	if err := os.Symlink(k.modules, filepath.Join(root, "lib", "modules", k.release)); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	out, err := exec.Command("depmod", "-n", "-b", root, k.release).Output()
	if err != nil {
		return "", fmt.Errorf("depmod: %w", err)
	}
	a := newArchive()
	for _, f := range []string{"bin", "dev", "proc", "root", "modules"} {
		a.folder(f)
	}
	if err := a.copy("/bin/busybox", "bin/busybox"); err != nil {
		return "", err
	}
	if err := a.copy(boot, "init"); err != nil {
		return "", err
	}
	var order []string
	for _, file := range dependencies(string(out), bootModules) {
		data, err := plainModule(filepath.Join(k.modules, file))
		if err != nil {
			return "", err
		}
		name := strings.TrimSuffix(path.Base(file), ".xz")
		a.file("modules/"+name, 0o644, data)
		order = append(order, name+"\n")
	}
	a.file("modules/order", 0o644, []byte(strings.Join(order, "")))
	out2 := filepath.Join(dir, "ramdisk-"+k.release+".cpio")
	return out2, os.WriteFile(out2, a.end(), 0o644)
}

// dependencies returns the files of modules and of what they depend on, dependencies first, by lines of modules.dep.
func dependencies(dep string, modules []string) []string {
	var files []string
	seen := map[string]bool{}
	for _, want := range modules {
		for line := range strings.Lines(dep) {
			file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
			base, _, _ := strings.Cut(path.Base(file), ".")
			if !ok || base != want {
				continue
			}
			all := append([]string{file}, strings.Fields(needs)...)
			for i := len(all) - 1; i >= 0; i-- {
				if !seen[all[i]] {
					seen[all[i]] = true
					files = append(files, all[i])
				}
			}
		}
	}
	return files
}

// plainModule reads a module, decompressed.
func plainModule(path string) ([]byte, error) {
	if strings.HasSuffix(path, ".xz") {
		return exec.Command("xz", "-dc", path).Output()
	}
	return os.ReadFile(path)
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// archive is a cpio archive in the kernel's own form ("newc", Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	out   bytes.Buffer
	inode int
}

func newArchive() *archive { return &archive{} }

func (a *archive) folder(name string) { a.entry(name, 0o040755, nil) }

func (a *archive) file(name string, mode int, data []byte) { a.entry(name, 0o100000|mode, data) }

func (a *archive) copy(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	a.file(to, 0o755, data)
	return err
}

func (a *archive) end() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return a.out.Bytes()
}

func (a *archive) entry(name string, mode int, data []byte) {
	a.inode++
	// Magic, inode, mode, owner, group, links, time, size, four device numbers, length of the name, checksum.
	fmt.Fprintf(&a.out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.out.WriteString(name + "\x00")
	a.pad()
	a.out.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.out.Len()%4 != 0 {
		a.out.WriteByte(0)
	}
}
