package container

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// maxAccounts bounds what is read of a container's /etc/passwd and /etc/group.
const maxAccounts = 4 << 20

// lookupUser resolves USER[:GROUP], by names or numbers, in the accounts of a root file system.
func lookupUser(rootfs, name string, addGroups []string) (specs.User, error) {
	passwd, err := readAccounts(rootfs, "/etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	group, err := readAccounts(rootfs, "/etc/group")
	if err != nil {
		return specs.User{}, err
	}
	u, err := user.GetExecUser(name, nil, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return specs.User{}, fault.New(fault.InvalidArgument, "%w", err)
	}
	out := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid), AdditionalGids: []uint32{uint32(u.Gid)}}
	groups := u.Sgids
	if len(addGroups) > 0 {
		more, err := user.GetAdditionalGroups(addGroups, bytes.NewReader(group))
		if err != nil {
			return specs.User{}, fault.New(fault.InvalidArgument, "%w", err)
		}
		groups = append(groups, more...)
	}
	for _, g := range groups {
		out.AdditionalGids = append(out.AdditionalGids, uint32(g))
	}
	return out, nil
}

// readAccounts reads a file of the container; one that is missing is empty.
func readAccounts(rootfs, name string) ([]byte, error) {
	root, err := os.Open(rootfs)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := openInRoot(root, name, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxAccounts))
}
