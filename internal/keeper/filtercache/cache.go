package filtercache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// Cache is what a keeper has learned.
type Cache struct {
	command []string // a program that calls Compile with its standard input and output

	mu      sync.Mutex
	known   map[[sha256.Size]byte]bool // those that are learned or being learned, and those that can teach nothing
	learned []learned                  // oldest first
	file    *os.File                   // all entries; one that was replaced is closed once no start holds it any more
}

// learned is what there is to know of a profile.
type learned struct {
	profile [sha256.Size]byte
	entry   []byte // for inits: a description and its program
	// The filter as libcontainer's init gives it to the kernel: what libseccomp made of the profile, with the answer to
	// system calls that are newer than the profile in front. The program is empty where that could not be learned.
	flags   uint32
	program []byte
}

// Installed returns the filter of a profile that was learned as libcontainer's init gives it to the kernel, with its flags
// (SECCOMP_FILTER_FLAG_…): eight bytes an instruction (struct sock_filter). ok is false for one that is not known.
func (c *Cache) Installed(profile *configs.Seccomp) (flags uint32, program []byte, ok bool) {
	key, _, err := digest(profile)
	if err != nil {
		return 0, nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.learned {
		if l.profile == key && len(l.program) > 0 {
			return l.flags, l.program, true
		}
	}
	return 0, nil, false
}

func digest(profile *configs.Seccomp) (key [sha256.Size]byte, text []byte, err error) {
	text, err = json.Marshal(profile)
	return sha256.Sum256(text), text, err
}

// New returns an empty cache. command is run to compile a profile: it must call Compile.
func New(command ...string) *Cache {
	return &Cache{command: command, known: map[[sha256.Size]byte]bool{}}
}

// File is what an init must have as its first extra file, nil as long as nothing was learned. It is not to be closed.
func (c *Cache) File() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.file
}

// Learn compiles a profile that is not known yet and lays the result out for the inits to come.
func (c *Cache) Learn(ctx context.Context, profile *configs.Seccomp) error {
	if profile == nil {
		return nil
	}
	key, text, err := digest(profile)
	if err != nil {
		return err
	}
	c.mu.Lock()
	known := c.known[key]
	c.known[key] = true
	c.mu.Unlock()
	if known {
		return nil
	}
	cmd := exec.CommandContext(ctx, c.command[0], c.command[1:]...)
	cmd.Stdin = bytes.NewReader(text)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	taught, err := cmd.Output()
	l, ok := parse(taught)
	if err == nil && !ok {
		err = errors.New("it is not one that libseccomp compiles")
	}
	if err != nil {
		if ctx.Err() != nil { // it took too long: perhaps not the next time
			c.mu.Lock()
			delete(c.known, key)
			c.mu.Unlock()
		}
		return fmt.Errorf("compiling a seccomp profile ahead: %w %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l.profile = key
	if c.learned = append(c.learned, l); len(c.learned) > limit {
		delete(c.known, c.learned[0].profile)
		c.learned = c.learned[1:]
	}
	c.file, err = layOut(c.entries())
	return err
}

func (c *Cache) entries() (all [][]byte) {
	for _, l := range c.learned {
		all = append(all, l.entry)
	}
	return all
}

// parse takes apart what Compile wrote: an entry, which is the lengths of a description and a program, and both; and, if
// libcontainer went on to install a filter, that filter's flags, length and instructions.
func parse(b []byte) (l learned, ok bool) {
	if len(b) < 8 {
		return l, false
	}
	description, program := uint64(binary.NativeEndian.Uint32(b)), uint64(binary.NativeEndian.Uint32(b[4:]))
	if description == 0 || program == 0 || uint64(len(b)) < 8+description+program {
		return l, false
	}
	l.entry, b = b[:8+description+program], b[8+description+program:]
	if len(b) == 0 {
		return l, true
	}
	if len(b) < 8 || uint64(len(b)) != 8+uint64(binary.NativeEndian.Uint32(b[4:])) || len(b)%8 != 0 {
		return l, false
	}
	l.flags, l.program = binary.NativeEndian.Uint32(b), b[8:]
	return l, true
}

// magic begins the file; FILTERCACHE_MAGIC in wrap.h is the same.
const magic = "sampanF\x00"

// layOut puts the entries into a file that nobody can write to.
func layOut(entries [][]byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("seccomp-filters", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "seccomp-filters")
	_, err = file.WriteString(magic)
	for _, e := range entries {
		if err == nil {
			_, err = file.Write(e)
		}
	}
	if err == nil {
		_, err = unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, fmt.Errorf("laying out learned filters: %w", errors.Join(err, file.Close()))
	}
	return file, nil
}
