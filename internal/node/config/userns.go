package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

// accounts are the files that say which users there are and which IDs are set aside for their namespaces.
type accounts struct{ passwd, group, subuid, subgid string }

var hostAccounts = accounts{passwd: "/etc/passwd", group: "/etc/group", subuid: "/etc/subuid", subgid: "/etc/subgid"}

const (
	remapDefault = "default"
	remapUser    = "dockremap" // who stands for "default", as with dockerd
	autoUser     = "sampan"    // whose ranges --userns=auto uses, if it has some
	subIDStart   = 100_000     // where useradd begins to set IDs aside
	subIDCount   = 65536
)

// autoPool are the IDs that --userns=auto uses where none are set aside for it: a part of the 32 bits that systemd
// leaves to nobody (systemd's UIDS-GIDS document), above what it gives to its own containers.
var autoPool = userns.Range{Outside: 0x70000000, Count: 4094 * container.PoolSize}

// UserNS is what the configuration and this host's accounts say about containers' user namespaces.
func (c *Config) UserNS() (container.UserNS, error) {
	return hostAccounts.userNS(c.UsernsRemap, c.Userns)
}

// userNS is what the flags say about containers' user namespaces.
func (a accounts) userNS(remap, mode string) (container.UserNS, error) {
	switch {
	case remap != "":
		m, err := a.remapped(remap)
		return container.UserNS{Remap: m}, err
	case mode == "auto":
		pool, err := a.pool()
		return container.UserNS{Pool: pool}, err
	}
	return container.UserNS{}, nil
}

// remapped is the mapping that --userns-remap=USER[:GROUP] means; none for root, which is no remapping.
func (a accounts) remapped(spec string) (userns.Mapping, error) {
	name, uid, err := a.remapOwner(spec)
	if err != nil || name == "root" {
		return userns.Mapping{}, err
	}
	owner := []string{name}
	if uid >= 0 {
		owner = append(owner, strconv.Itoa(uid))
	}
	var m userns.Mapping
	for _, f := range []struct {
		path, what string
		ranges     *[]userns.Range
	}{{a.subuid, "subuid", &m.UIDs}, {a.subgid, "subgid", &m.GIDs}} {
		text, err := readIfThere(f.path)
		if err != nil {
			return m, err
		}
		*f.ranges = userns.ParseSubIDs(text, owner...)
		if len(*f.ranges) == 0 && spec == remapDefault {
			if *f.ranges, err = a.setAside(f.path, text); err != nil {
				return m, err
			}
		}
		if len(*f.ranges) == 0 {
			return m, fault.New(fault.FailedPrecondition, "no %s ranges found for user %q in %s: add a line such as %s:%d:%d", f.what, name, f.path, name, subIDStart, subIDCount)
		}
	}
	return m, nil
}

// setAside adds a range for dockremap to a file in the form of subuid(5).
func (a accounts) setAside(path, text string) ([]userns.Range, error) {
	start := uint32(subIDStart)
	for _, r := range userns.TakenSubIDs(text) {
		start = max(start, r.Outside+r.Count)
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text = "\n"
	} else {
		text = ""
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("set user IDs aside for %s: %w", remapUser, err)
	}
	line := fmt.Sprintf("%s%s:%d:%d\n", text, remapUser, start, subIDCount)
	_, err = f.WriteString(line)
	return userns.ParseSubIDs(line, remapUser), errors.Join(err, f.Close())
}

// remapOwner is the user of USER[:GROUP], by name and ID (-1: not known). A name or ID that is no account is refused; so
// is a group.
func (a accounts) remapOwner(spec string) (name string, uid int, err error) {
	parts := strings.Split(spec, ":")
	if len(parts) > 2 || parts[0] == "" {
		return "", -1, fault.New(fault.InvalidArgument, "Invalid user/group specification in --userns-remap: %q", spec)
	}
	if spec == remapDefault {
		return remapUser, -1, nil
	}
	id, numeric := number(parts[0])
	users, err := user.ParsePasswdFileFilter(a.passwd, func(u user.User) bool { return numeric && u.Uid == id || !numeric && u.Name == parts[0] })
	if err != nil {
		return "", -1, err
	}
	switch {
	case len(users) == 0 && numeric:
		return "", -1, fault.New(fault.InvalidArgument, "Uid %d has no entry in /etc/passwd", id)
	case len(users) == 0:
		return "", -1, fault.New(fault.InvalidArgument, "Error during uid lookup for %q: no matching entries in passwd file", parts[0])
	}
	group := parts[len(parts)-1]
	gid, numeric := number(group)
	groups, err := user.ParseGroupFileFilter(a.group, func(g user.Group) bool { return numeric && g.Gid == gid || !numeric && g.Name == group })
	if err != nil {
		return "", -1, err
	}
	switch {
	case len(groups) == 0 && numeric:
		return "", -1, fault.New(fault.InvalidArgument, "Gid %d has no entry in /etc/group", gid)
	case len(groups) == 0:
		return "", -1, fault.New(fault.InvalidArgument, "Error during gid lookup for %q: no matching entries in group file", group)
	}
	return users[0].Name, users[0].Uid, nil
}

func number(s string) (int, bool) {
	n, err := strconv.ParseInt(s, 10, 32)
	return int(n), err == nil
}

// pool are the IDs that containers get ranges of: those set aside for the user sampan in both files, or else autoPool
// without what is set aside for others.
func (a accounts) pool() ([]userns.Range, error) {
	uids, err := readIfThere(a.subuid)
	if err != nil {
		return nil, err
	}
	gids, err := readIfThere(a.subgid)
	if err != nil {
		return nil, err
	}
	groups := userns.ParseSubIDs(gids, autoUser)
	var own []userns.Range
	for _, u := range userns.ParseSubIDs(uids, autoUser) {
		if slices.ContainsFunc(groups, func(g userns.Range) bool { return g.Outside == u.Outside && g.Count == u.Count }) {
			own = append(own, u)
		}
	}
	if len(own) > 0 {
		return own, nil
	}
	if len(groups) > 0 || len(userns.ParseSubIDs(uids, autoUser)) > 0 {
		return nil, fault.New(fault.FailedPrecondition, "the ranges of %s in %s and %s differ: --userns=auto needs the same ones in both", autoUser, a.subuid, a.subgid)
	}
	taken := append(userns.TakenSubIDs(uids), userns.TakenSubIDs(gids)...)
	var free []userns.Range
	for n := uint32(0); n < autoPool.Count; n += container.PoolSize {
		r := userns.Range{Outside: autoPool.Outside + n, Count: container.PoolSize}
		if !slices.ContainsFunc(taken, func(t userns.Range) bool { return t.Outside < r.Outside+r.Count && r.Outside < t.Outside+t.Count }) {
			free = append(free, r)
		}
	}
	return free, nil
}

func readIfThere(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}
