package container

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

// UserNS says which user namespaces containers have that do not ask for the host's (--userns=host). The zero value gives
// them the host's. What a container's users are on the host is decided when it is created and stays; on disk its files
// belong to the IDs that they have inside, whatever these are outside.
type UserNS struct {
	// Remap is what the IDs of every container are on the host, as with dockerd's --userns-remap.
	Remap userns.Mapping
	// Pool are host IDs of which each container gets its own: PoolSize of them, as many users and groups.
	Pool []userns.Range
}

// PoolSize is how many IDs a container gets of a pool: as many as images use.
const PoolSize = 65536

// On reports whether there is any.
func (u UserNS) On() bool { return !u.Remap.None() || len(u.Pool) > 0 }

// private reports whether a container has a user namespace of its own.
func (u UserNS) private(h *HostConfig) bool { return u.On() && h.UsernsMode != "host" }

// check refuses what a container with a user namespace of its own cannot have, in Docker's words.
func (u UserNS) check(h *HostConfig) error {
	if !u.private(h) {
		return nil
	}
	switch {
	case h.Privileged:
		return fault.New(fault.InvalidArgument, "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode")
	case h.NetworkMode == "host":
		return fault.New(fault.InvalidArgument, "cannot share the host's network namespace when user namespaces are enabled")
	case h.PidMode == "host":
		return fault.New(fault.InvalidArgument, "cannot share the host PID namespace when user namespaces are enabled")
	}
	return nil
}

// idPool hands out ranges of host IDs. A range belongs to one container from its creation to its removal; one that is
// free again is given out last, so that what an old container left on a bind mount is not soon another's.
type idPool struct {
	mu   sync.Mutex
	free []uint32 // first IDs, the next to give out first
	used map[uint32]string
}

func newIDPool(ranges []userns.Range) *idPool {
	p := &idPool{used: map[uint32]string{}}
	for _, r := range ranges {
		for n := uint32(0); n+PoolSize <= r.Count && n <= math.MaxUint32-PoolSize; n += PoolSize {
			p.free = append(p.free, r.Outside+n)
		}
	}
	return p
}

// take gives a container a range.
func (p *idPool) take(id string) (userns.Mapping, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		return userns.Mapping{}, fault.New(fault.Exhausted, "no range of user IDs is free: %d containers have one each. Remove some, or give this one the host's with --userns=host", len(p.used))
	}
	first := p.free[0]
	p.free = p.free[1:]
	p.used[first] = id
	r := []userns.Range{{Outside: first, Count: PoolSize}}
	return userns.Mapping{UIDs: r, GIDs: r}, nil
}

// keep notes the range that a container of an earlier daemon has.
func (p *idPool) keep(id string, m userns.Mapping) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range m.UIDs {
		if i := slices.Index(p.free, r.Outside); i >= 0 {
			p.free = slices.Delete(p.free, i, i+1)
			p.used[r.Outside] = id
		}
	}
}

// give takes back what a container has, if it has something.
func (p *idPool) give(id string, m userns.Mapping) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range m.UIDs {
		if p.used[r.Outside] == id {
			delete(p.used, r.Outside)
			p.free = append(p.free, r.Outside)
		}
	}
}

// takeIDs decides what a new container's users are on the host. One that joins another's namespaces has that one's: these
// belong to the other's user namespace.
func (m *Manager) takeIDs(id string, h *HostConfig) (userns.Mapping, error) {
	if !m.UserNS.private(h) {
		return userns.Mapping{}, nil
	}
	var joined Container // the first whose namespaces it joins
	for _, mode := range []string{h.NetworkMode, h.IpcMode, h.PidMode} {
		ref, joins := strings.CutPrefix(mode, "container:")
		if !joins {
			continue
		}
		other, err := m.find(ref)
		if err != nil {
			return userns.Mapping{}, fault.As(fault.InvalidArgument, err) // not 404, as in checkJoins
		}
		o := other.snapshot()
		switch {
		case o.IDs.None():
			return userns.Mapping{}, fault.New(fault.InvalidArgument, "container %s is in the host's user namespace: what joins its namespaces must be there too (--userns=host)", o.Config.Name)
		case joined.ID != "" && o.IDs.String() != joined.IDs.String():
			return userns.Mapping{}, inTwoUserNS(joined.Config.Name, o.Config.Name)
		case joined.ID == "":
			joined = o
		}
	}
	if joined.ID != "" {
		return joined.IDs, nil
	}
	if !m.UserNS.Remap.None() {
		return m.UserNS.Remap, nil
	}
	return m.ids.take(id)
}

// inTwoUserNS refuses a container that would join namespaces of two user namespaces: it can be in one.
func inTwoUserNS(a, b string) error {
	return fault.New(fault.InvalidArgument, "containers %s and %s have a user namespace each: a container can join namespaces of one of them only. Create one of them with a namespace of the other (--network, --ipc or --pid container:NAME), or all with --userns=host", a, b)
}

// makeUserNS makes the user namespace of a start, unless there is none, and the network namespace that it owns: a network namespace of the
// host's would leave the container's root no rights in its own network. One that joins others' namespaces joins their
// user namespace too, which joinTargets has found; a network of its own is then in a network namespace which that owns.
func (m *Manager) makeUserNS(c *ctr, l *launch, u *undo.Stack) error {
	l.ids = c.rec.IDs
	if l.ids.None() {
		return nil
	}
	var err error
	if l.shift, err = userns.Open(l.ids.WithRoot()); err != nil {
		return err
	}
	if l.userns != "" && strings.HasPrefix(c.rec.Config.Host.NetworkMode, "container:") {
		return nil
	}
	user, net := m.nsPaths(c.id)
	if err := m.dropUserNS(c.id); err != nil { // of a start that was cut off
		return err
	}
	if _, err := m.rootfsTarget(c); err != nil { // makes the folder
		return err
	}
	if l.userns == "" {
		l.userns, err = user, userns.Pin(user, net, l.ids)
	} else {
		err = userns.PinNet(l.userns, net)
	}
	if err != nil {
		return err
	}
	u.Add(func() error { return m.dropUserNS(c.id) })
	l.seed = net
	return nil
}

// joinUserNS has a start join the user namespace of the container whose other namespaces it joins.
func joinUserNS(c *ctr, other *Container, l *launch) error {
	mine := c.rec.IDs
	if mine.None() {
		return nil // the host's root may join anything
	}
	if mine.String() != other.IDs.String() {
		return fault.New(fault.FailedPrecondition, "container %s is in another user namespace than this one was made for: create this one again", other.Config.Name)
	}
	theirs := fmt.Sprintf("/proc/%d/ns/user", other.State.PID)
	if l.userns != "" { // with --userns-remap two have the same IDs
		a, err := os.Stat(l.userns)
		if err != nil {
			return err
		}
		b, err := os.Stat(theirs)
		if err != nil {
			return err
		}
		if !os.SameFile(a, b) {
			return inTwoUserNS(l.joined, other.Config.Name)
		}
	}
	l.userns, l.joined = theirs, other.Config.Name
	return nil
}

// nsPaths are where a container's user namespace is pinned, and its network namespace until the network has taken it.
func (m *Manager) nsPaths(id string) (user, net string) {
	dir := filepath.Join(m.execDir(), id)
	return filepath.Join(dir, "user"), filepath.Join(dir, "net")
}

// dropUserNS unpins what makeUserNS pinned.
func (m *Manager) dropUserNS(id string) error {
	user, net := m.nsPaths(id)
	if err := userns.Unpin(net); err != nil {
		return err
	}
	return userns.Unpin(user)
}

// own gives a file or folder of the daemon's to the root of a container, so that it may change it or pass through it.
func own(ids userns.Mapping, path string) error {
	if ids.None() {
		return nil
	}
	uid, gid := ids.Out(0, 0)
	return os.Lchown(path, uid, gid)
}

// ownerOption is the option by which a tmpfs belongs to the root of a container.
func ownerOption(ids userns.Mapping) string {
	if ids.None() {
		return ""
	}
	uid, gid := ids.Out(0, 0)
	return fmt.Sprintf(",uid=%d,gid=%d", uid, gid)
}

// mkdirOwned is os.MkdirAll for folders that belong to the root of a container.
func mkdirOwned(ids userns.Mapping, dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if err := mkdirOwned(ids, filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return own(ids, dir)
}

func specMapping(ranges []userns.Range) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, 0, len(ranges))
	for _, r := range ranges {
		out = append(out, specs.LinuxIDMapping{ContainerID: r.Inside, HostID: r.Outside, Size: r.Count})
	}
	return out
}

// bindDevices mounts devices that have another name inside than on the host. In a user namespace no device node can be
// made: the runtime mounts the host's, which it looks for by the name inside.
func bindDevices(s *specs.Spec, wanted []Device) {
	for _, want := range wanted {
		inside := firstNonEmpty(want.Container, want.Host)
		if inside == want.Host {
			continue
		}
		s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool {
			if d.Path != inside && !strings.HasPrefix(d.Path, inside+"/") {
				return false
			}
			s.Mounts = append(s.Mounts, specs.Mount{Destination: d.Path, Type: "bind", Source: want.Host + strings.TrimPrefix(d.Path, inside),
				Options: []string{"bind", "rprivate"}})
			return true
		})
	}
}
