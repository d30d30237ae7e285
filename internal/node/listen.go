package node

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// listeners opens every address of the configuration, all or none.
func listeners(cfg Config) (_ []net.Listener, err error) {
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

func listenTLS(addr string, cfg Config) (net.Listener, error) {
	t, err := cfg.tlsConfig()
	if err != nil {
		return nil, err
	}
	return tls.Listen("tcp", addr, t)
}

// tlsConfig reads the certificates of tcp://.
func (cfg *Config) tlsConfig() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("--tlscert %s, --tlskey %s: %w", cfg.TLSCert, cfg.TLSKey, err)
	}
	pem, err := os.ReadFile(cfg.TLSCACert)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--tlscacert %s: no certificate in it", cfg.TLSCACert)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}, nil
}
