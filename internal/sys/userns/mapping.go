// Package userns makes user namespaces, mounts whose owners are shifted by one, and reads the ranges of IDs that a host
// has set aside for them (subuid(5), subgid(5)).
package userns

import (
	"fmt"
	"strconv"
	"strings"
)

// Range maps Count IDs from Inside on, as a namespace has them, to those from Outside on, as the host has them.
type Range struct {
	Inside, Outside, Count uint32
}

// Mapping is what the IDs of a user namespace are outside of it. The zero value maps nothing and stands for the host's
// own namespace.
type Mapping struct {
	UIDs, GIDs []Range
}

// None reports whether there is nothing to map: IDs are the host's.
func (m Mapping) None() bool { return len(m.UIDs) == 0 && len(m.GIDs) == 0 }

// Out returns what a user and a group of the namespace are outside. IDs that the mapping does not have are the
// overflow IDs, as the kernel shows them.
func (m Mapping) Out(uid, gid int) (int, int) {
	if m.None() {
		return uid, gid
	}
	return shift(m.UIDs, uid, false), shift(m.GIDs, gid, false)
}

// In returns what a user and a group of the host are inside.
func (m Mapping) In(uid, gid int) (int, int) {
	if m.None() {
		return uid, gid
	}
	return shift(m.UIDs, uid, true), shift(m.GIDs, gid, true)
}

// Has reports whether a user and a group of the namespace are somebody outside.
func (m Mapping) Has(uid, gid int) bool {
	return m.None() || has(m.UIDs, uid) && has(m.GIDs, gid)
}

// overflow is the ID that the kernel shows for one that cannot be told (/proc/sys/kernel/overflowuid).
const overflow = 65534

func shift(ranges []Range, id int, in bool) int {
	for _, r := range ranges {
		from, to := r.Inside, r.Outside
		if in {
			from, to = to, from
		}
		if id >= int(from) && id < int(from)+int(r.Count) {
			return id - int(from) + int(to)
		}
	}
	return overflow
}

func has(ranges []Range, id int) bool {
	for _, r := range ranges {
		if id >= int(r.Inside) && id < int(r.Inside)+int(r.Count) {
			return true
		}
	}
	return false
}

// ParseSubIDs reads the ranges of one owner, who is named by name or ID, out of a file in the form of subuid(5), and
// lays them out one after the other from 0 on. Lines that are none are left out.
func ParseSubIDs(text string, owner ...string) []Range {
	var out []Range
	inside := uint32(0)
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || f[0] == "" || strings.HasPrefix(f[0], "#") || !contains(owner, f[0]) {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 || start+count > 1<<32-1 || uint64(inside)+count > 1<<32-1 {
			continue
		}
		out = append(out, Range{Inside: inside, Outside: uint32(start), Count: uint32(count)})
		inside += uint32(count)
	}
	return out
}

// TakenSubIDs reads all ranges of a file in the form of subuid(5), whoever's they are.
func TakenSubIDs(text string) []Range {
	var out []Range
	for line := range strings.Lines(text) {
		if owner, _, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			out = append(out, ParseSubIDs(line, owner)...)
		}
	}
	return out
}

func contains(all []string, s string) bool {
	for _, a := range all {
		if a == s {
			return true
		}
	}
	return false
}

// String writes a mapping as /proc/PID/uid_map does, one range after the other.
func (m Mapping) String() string {
	var b strings.Builder
	for _, r := range m.UIDs {
		fmt.Fprintf(&b, "%d:%d:%d ", r.Inside, r.Outside, r.Count)
	}
	b.WriteString("/")
	for _, r := range m.GIDs {
		fmt.Fprintf(&b, " %d:%d:%d", r.Inside, r.Outside, r.Count)
	}
	return b.String()
}
