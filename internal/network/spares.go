package network

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// sparePrefix begins the file names of sandboxes' namespaces; others in the same folder are not ours to look at.
const sparePrefix = "sb-"

// spareCount is how many namespaces are kept ready: making one takes longer than joining it to a network, and ten
// containers started at once should not wait in line for the kernel.
const spareCount = 4

// spares makes namespaces ahead of their use. A namespace is used once and never comes back.
type spares struct {
	dir   string
	log   *slog.Logger
	ready chan *netns.NS
	stop  chan struct{}
	wg    sync.WaitGroup
}

func newSpares(dir string, log *slog.Logger) *spares {
	return &spares{dir: dir, log: log, ready: make(chan *netns.NS, spareCount-1), stop: make(chan struct{})}
}

func (s *spares) start() {
	s.wg.Go(func() {
		for {
			ns, err := s.make()
			if err != nil {
				s.log.Warn("cannot make a network namespace ahead of time", "error", err)
				return // the next take makes its own, and reports what is wrong
			}
			select {
			case s.ready <- ns:
			case <-s.stop:
				_ = errors.Join(ns.Close(), netns.Remove(ns.Path()))
				return
			}
		}
	})
}

// close removes the namespaces that nobody took.
func (s *spares) close() error {
	close(s.stop)
	s.wg.Wait()
	var errs []error
	for {
		select {
		case ns := <-s.ready:
			errs = append(errs, ns.Close(), netns.Remove(ns.Path()))
		default:
			return errors.Join(errs...)
		}
	}
}

// take returns a namespace with nothing but loopback, up; it is the caller's.
func (s *spares) take() (*netns.NS, error) {
	select {
	case ns := <-s.ready:
		return ns, nil
	default:
		return s.make()
	}
}

func (s *spares) make() (*netns.NS, error) { return s.prepared(netns.Create) }

// adopt makes the namespace that is pinned at path one of these.
func (s *spares) adopt(path string) (*netns.NS, error) {
	return s.prepared(func(to string) (*netns.NS, error) { return netns.Move(path, to) })
}

// prepared returns a namespace that origin makes at a path of its own, with what every sandbox needs.
func (s *spares) prepared(origin func(path string) (*netns.NS, error)) (*netns.NS, error) {
	b := make([]byte, 6)
	_, _ = rand.Read(b)
	ns, err := origin(filepath.Join(s.dir, sparePrefix+hex.EncodeToString(b)))
	if err != nil {
		return nil, err
	}
	if err := prepare(ns); err != nil {
		return nil, errors.Join(err, ns.Close(), netns.Remove(ns.Path()))
	}
	return ns, nil
}

// prepare does what every sandbox needs.
func prepare(ns *netns.NS) error {
	return ns.Do(func() error {
		// As Docker: a container may serve low ports and ping without capabilities. An interface has no IPv6 unless its
		// endpoint does, which saves it a link-local address and the searching for routers.
		for _, kv := range [][2]string{{"net.ipv4.ip_unprivileged_port_start", "0"}, {"net.ipv4.ping_group_range", "0 2147483647"},
			{"net.ipv6.conf.default.disable_ipv6", "1"}} {
			if err := netns.WriteSysctl(kv[0], kv[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		h, err := netlink.NewHandle(0) // NETLINK_ROUTE
		if err != nil {
			return fmt.Errorf("netlink in network namespace %s: %w", ns.Path(), err)
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err == nil {
			err = h.LinkSetUp(lo)
		}
		if err != nil {
			return fmt.Errorf("loopback in network namespace %s: %w", ns.Path(), err)
		}
		return nil
	})
}

// sweep removes pinned namespaces that keep does not name.
func (s *spares) sweep(keep map[string]bool) error {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if strings.HasPrefix(e.Name(), sparePrefix) && !keep[path] {
			errs = append(errs, netns.Remove(path))
		}
	}
	return errors.Join(errs...)
}
