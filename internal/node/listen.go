package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/node/config"
)

// listeners opens every address of the configuration, all or none.
func listeners(cfg config.Config) (_ []net.Listener, err error) {
	var all []net.Listener
	defer func() {
		if err != nil {
			for _, l := range all {
				_ = l.Close()
			}
		}
	}()
	for _, host := range cfg.Hosts {
		scheme, addr, _ := strings.Cut(host, "://")
		var l net.Listener
		if scheme == "unix" {
			l, err = listenUnix(addr, cfg.Group)
		} else {
			l, err = listenTLS(addr, cfg)
		}
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", host, err)
		}
		all = append(all, l)
	}
	return all, nil
}

func listenUnix(path, group string) (net.Listener, error) {
	gid := 0
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil, err
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	// The pidfile's lock says that no other daemon of ours lives, so a socket that is there is left over, unless it
	// answers: then it is somebody else's.
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, errors.New("another program answers there: stop it, or choose another --host")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o117)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(path, 0, gid); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func listenTLS(addr string, cfg config.Config) (net.Listener, error) {
	t, err := cfg.ServerTLS()
	if err != nil {
		return nil, err
	}
	return tls.Listen("tcp", addr, t)
}
