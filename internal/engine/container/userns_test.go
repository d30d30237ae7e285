package container

import (
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

func TestIDPool(t *testing.T) {
	p := newIDPool([]userns.Range{{Outside: 1000000, Count: 3*PoolSize + 5}, {Outside: 5000000, Count: PoolSize - 1}})
	first := func(m userns.Mapping) int {
		uid, gid := m.Out(0, 0)
		if uid != gid {
			t.Errorf("user %d and group %d", uid, gid)
		}
		return uid
	}
	old := []userns.Range{{Outside: 1000000 + PoolSize, Count: PoolSize}}
	p.keep("old", userns.Mapping{UIDs: old, GIDs: old}) // of an earlier daemon
	a, err := p.take("a")
	if err != nil || first(a) != 1000000 {
		t.Fatalf("%v, %v", a, err)
	}
	b, err := p.take("b")
	if err != nil || first(b) != 1000000+2*PoolSize {
		t.Fatalf("%v, %v: overlaps what an earlier daemon gave", b, err)
	}
	if _, err := p.take("c"); !fault.Is(err, fault.Exhausted) {
		t.Errorf("a fourth of three ranges: %v", err)
	}
	p.give("b", a) // not its own, as of one that joined a's namespaces
	if _, err := p.take("c"); err == nil {
		t.Error("a range was freed by a container that does not have it")
	}
	p.give("a", a)
	p.give("a", a)
	if c, err := p.take("c"); err != nil || first(c) != first(a) {
		t.Errorf("%v, %v", c, err)
	}
	if _, err := p.take("d"); err == nil {
		t.Error("a range that was given back twice was given out twice")
	}
}

// TestIDPoolAtOnce: nobody shares a range, however many ask at once.
func TestIDPoolAtOnce(t *testing.T) {
	p := newIDPool([]userns.Range{{Outside: 1 << 20, Count: 500 * PoolSize}})
	var mu sync.Mutex
	held := map[uint32]bool{}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 50 {
				m, err := p.take("x")
				if err != nil {
					t.Error(err)
					return
				}
				at := m.UIDs[0].Outside
				mu.Lock()
				if held[at] {
					t.Errorf("%d is given out twice", at)
				}
				held[at] = true
				mu.Unlock()
				mu.Lock()
				delete(held, at)
				mu.Unlock()
				p.give("x", m)
			}
		})
	}
	wg.Wait()
}

func TestUserNSRefusals(t *testing.T) {
	auto := UserNS{Pool: []userns.Range{{Outside: 1 << 20, Count: PoolSize}}}
	for _, tc := range []struct {
		name string
		ns   UserNS
		host HostConfig
		bad  bool
	}{
		{"privileged", auto, HostConfig{Privileged: true}, true},
		{"privileged, in the host's", auto, HostConfig{Privileged: true, UsernsMode: "host"}, false},
		{"privileged, without user namespaces", UserNS{}, HostConfig{Privileged: true}, false},
		{"host network", auto, HostConfig{NetworkMode: "host"}, true},
		{"host network, in the host's", auto, HostConfig{NetworkMode: "host", UsernsMode: "host"}, false},
		{"host PIDs", auto, HostConfig{PidMode: "host"}, true},
		{"plain", auto, HostConfig{}, false},
	} {
		if err := tc.ns.check(&tc.host); (err != nil) != tc.bad {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// TestBindDevices: a device of another name is mounted, also each of a folder; others are the runtime's.
func TestBindDevices(t *testing.T) {
	s := &specs.Spec{Linux: &specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/fuse"}, {Path: "/dev/mine"}, {Path: "/dev/all/a"}, {Path: "/dev/all/b/c"}}}}
	bindDevices(s, []Device{{Host: "/dev/fuse"}, {Host: "/dev/null", Container: "/dev/mine"}, {Host: "/dev/bus", Container: "/dev/all"}})
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/fuse" {
		t.Errorf("left to the runtime: %+v", s.Linux.Devices)
	}
	want := map[string]string{"/dev/mine": "/dev/null", "/dev/all/a": "/dev/bus/a", "/dev/all/b/c": "/dev/bus/b/c"}
	for _, m := range s.Mounts {
		if want[m.Destination] != m.Source {
			t.Errorf("%s is %s, want %s", m.Destination, m.Source, want[m.Destination])
		}
		delete(want, m.Destination)
	}
	if len(want) > 0 {
		t.Errorf("not mounted: %v", want)
	}
}
