package testhost

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Lab is a LAN with hosts on it and a client outside of the cluster.
type Lab struct {
	Name     string // prefix of its cgroups
	Dir      string
	Binaries Binaries
	CLI      string // the docker command
	LAN      *LAN
	Client   *Machine // 10.99.0.100: on the same LAN, runs nothing of Sampan
	Hosts    []*Host

	daemon string
}

// Options are those of a lab. The zero value is good for tests.
type Options struct {
	Binaries string   // folder of the programs; empty: built once for this process
	Dir      string   // empty: a new folder in the temporary directory
	Args     []string // further flags of every daemon
	Daemon   string   // the daemon; empty: sampand. dockerd takes the same flags and is measured beside it
	CLI      string   // the docker command; empty: "docker" in PATH, else the sampan that was built
}

// NewLab makes a lab with n hosts named host1…, 10.99.0.1…; no daemon is started yet.
func NewLab(ctx context.Context, n int, o Options) (*Lab, error) {
	bin, err := FindBinaries(ctx, o.Binaries)
	if err != nil {
		return nil, err
	}
	dir := o.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "sl-"); err != nil { // short: socket paths end at 107 bytes
			return nil, err
		}
	} else if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // a container's user must get through
		return nil, err
	}
	cli := o.CLI
	if cli == "" {
		if cli, err = exec.LookPath("docker"); err != nil {
			cli = bin.Path("sampan")
		}
	}
	l := &Lab{Name: "sampan-" + filepath.Base(dir), Dir: dir, Binaries: bin, CLI: cli, daemon: o.Daemon}
	if l.daemon == "" {
		l.daemon = bin.Path("sampand")
	}
	lan, err := NewLAN(filepath.Join(dir, "ns"), l.Name, netip.MustParsePrefix("10.99.0.0/24"))
	if err != nil {
		return nil, err
	}
	l.LAN = lan
	if l.Client, err = lan.Join("client", 100); err != nil {
		return nil, errors.Join(err, l.Close(ctx))
	}
	for i := range n {
		if _, err := l.Add(i+1, o.Args...); err != nil {
			return nil, errors.Join(err, l.Close(ctx))
		}
	}
	return l, nil
}

// Add joins a further host, named hostN with the address 10.99.0.N; its daemon is not started.
func (l *Lab) Add(n int, args ...string) (*Host, error) {
	m, err := l.LAN.Join(fmt.Sprintf("host%d", n), n)
	if err != nil {
		return nil, err
	}
	h := &Host{Machine: m, Dir: filepath.Join(l.Dir, m.Name), lab: l, program: l.daemon, args: args}
	h.Socket = filepath.Join(h.Dir, "s.sock")
	if err := os.MkdirAll(h.Dir, 0o711); err != nil {
		return nil, err
	}
	l.Hosts = append(l.Hosts, h)
	return h, nil
}

// StartAll starts every host's daemon, all at once.
func (l *Lab) StartAll(ctx context.Context) error {
	return l.Each(func(h *Host) error { return h.Start(ctx) })
}

// Each runs f for every host at once and joins the errors.
func (l *Lab) Each(f func(*Host) error) error {
	errs := make([]error, len(l.Hosts))
	var wg sync.WaitGroup
	for i, h := range l.Hosts {
		wg.Go(func() { errs[i] = f(h) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Swarm makes the hosts one cluster: the first is initialised, the first managers hosts are managers, the others workers.
func (l *Lab) Swarm(ctx context.Context, managers int) error {
	first := l.Hosts[0]
	if _, err := first.Docker(ctx, "swarm", "init", "--advertise-addr", first.Addr.String()); err != nil {
		return err
	}
	worker, err := first.Docker(ctx, "swarm", "join-token", "-q", "worker")
	if err != nil {
		return err
	}
	manager, err := first.Docker(ctx, "swarm", "join-token", "-q", "manager")
	if err != nil {
		return err
	}
	for i, h := range l.Hosts[1:] {
		token := worker
		if i+1 < managers {
			token = manager
		}
		if _, err := h.Docker(ctx, "swarm", "join", "--token", strings.TrimSpace(token), "--advertise-addr", h.Addr.String(), first.Addr.String()+":2377"); err != nil {
			return err
		}
	}
	return WaitFor(ctx, 60*time.Second, "every node ready", func(ctx context.Context) error {
		out, err := first.Docker(ctx, "node", "ls", "--format", "{{.Hostname}} {{.Status}}")
		if err != nil {
			return err
		}
		if n := strings.Count(out, " Ready"); n != len(l.Hosts) {
			return fmt.Errorf("%d of %d ready:\n%s", n, len(l.Hosts), out)
		}
		return nil
	})
}

// Close ends every process of the lab and takes back everything it made; its folder is removed. Control groups with its
// name that are there nevertheless, as those of a daemon that is no host of the lab, are removed and an error.
func (l *Lab) Close(ctx context.Context) error {
	// Closing must work after the caller's context was cancelled (Ctrl-C), within a bound of its own.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Patient(60*time.Second))
	defer cancel()
	errs := []error{l.Each(func(h *Host) error {
		return errors.Join(h.end(ctx, syscall.SIGKILL), h.killEverything(ctx), h.wipeExec())
	})}
	if l.LAN != nil {
		errs = append(errs, l.LAN.Close())
	}
	errs = append(errs, unmountBelow(l.Dir), os.RemoveAll(l.Dir), leftGroups("/"+l.Name+"-"))
	return errors.Join(errs...)
}
