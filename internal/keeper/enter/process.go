package enter

import "os"

// Process is one to be started in a container.
type Process struct {
	Init       *os.File // pidfd of the container's first process; stays the caller's
	Namespaces int      // CLONE_NEW… flags of those to join: all that the container has of its own or shares with another
	Groups     *os.File // folder of a control group of version 2 that the process begins in; nil: Place puts it into its groups

	Args         []string
	Env          []string // NAME=VALUE each, no name twice; HOME is added from the container's /etc/passwd if it is missing
	Cwd          string   // absolute
	UID, GID     uint32
	OtherGroups  []uint32
	Umask        *uint32
	OOMScoreAdj  int
	NoNewPrivs   bool
	Capabilities Capabilities
	Keyring      string // name of the session keyring to join; none if empty
	Filter       Filter

	Stdin, Stdout, Stderr *os.File

	// Place is called with the process' ID before it is the user's program: it puts it into its control groups and sets
	// its limits. An error ends the process.
	Place func(pid int) error
}

// Capabilities are sets of bits, by the kernel's numbers.
type Capabilities struct{ Bounding, Effective, Permitted, Inheritable, Ambient uint64 }

// Filter is a seccomp filter as the kernel takes it; none if Program is empty.
type Filter struct {
	Flags   uint32 // SECCOMP_FILTER_FLAG_…
	Program []byte // eight bytes an instruction (struct sock_filter)
}
