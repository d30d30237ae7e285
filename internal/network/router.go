package network

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

// router makes the host pass packets between its interfaces, which networks need to reach the world. A host that did not
// do so before does it for them only: the firewall then drops what concerns none of them, as nobody has asked for a
// router between, say, two physical networks.
type router struct {
	host  *netns.NS
	log   *slog.Logger
	off   bool   // leave the host's settings as they are
	open  bool   // route for everybody
	marks string // a folder that a reboot empties, as it does the setting: who has switched it on

	mu   sync.Mutex
	done [2]bool // IPv4, IPv6
}

var families = [2]struct{ name, key string }{{"IPv4", "net.ipv4.ip_forward"}, {"IPv6", "net.ipv6.conf.all.forwarding"}}

func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

func (r *router) mark(f int) string { return filepath.Join(r.marks, "router-"+families[f].name) }

// forward switches routing on for a version of IP.
func (r *router) forward(v6 bool) error {
	f := family(v6)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.off || r.done[f] {
		return nil
	}
	return r.host.Do(func() error {
		now, err := netns.ReadSysctl(families[f].key)
		if err == nil && now == "0" {
			if !r.open {
				if err := os.WriteFile(r.mark(f), nil, 0o600); err != nil {
					return fmt.Errorf("routing of %s: %w", families[f].name, err)
				}
			}
			if v6 {
				r.keepAdvertised()
			}
			if err = netns.WriteSysctl(families[f].key, "1"); err != nil {
				return err
			}
		} else if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("the kernel has no setting %s: is %s turned off? %w", families[f].key, families[f].name, err)
		}
		r.done[f] = true
		return nil
	})
}

// keepAdvertised lets interfaces that have their address and default route from a router's advertisements keep them: by
// default the kernel stops listening to those where it routes itself.
func (r *router) keepAdvertised() {
	dirs, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*")
	for _, dir := range dirs {
		if name := filepath.Base(dir); name != "all" && name != "default" && name != "lo" {
			key := "net.ipv6.conf." + slashed(name) + ".accept_ra"
			if v, err := netns.ReadSysctl(key); err == nil && v == "1" {
				if err := netns.WriteSysctl(key, "2"); err != nil {
					r.log.Warn("an interface may lose its IPv6 address, as the host routes from now on", "interface", name, "error", err)
				}
			}
		}
	}
}

// only reports whether the host routes only because networks need it.
func (r *router) only(v6 bool) bool {
	if r.open {
		return false
	}
	_, err := os.Stat(r.mark(family(v6)))
	return err == nil
}
