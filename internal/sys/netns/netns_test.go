package netns_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/sys/link"
	"github.com/sampan-cloud/sampan/internal/sys/netns"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
}

func create(t *testing.T) *netns.NS {
	t.Helper()
	requireRoot(t)
	path := filepath.Join(t.TempDir(), "netns", "one")
	ns, err := netns.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ns.Close()
		if err := netns.Remove(path); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func TestPinnedNamespace(t *testing.T) {
	ns := create(t)
	if _, err := netns.Create(ns.Path()); err == nil {
		t.Error("a path is pinned twice")
	}
	again, err := netns.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	here, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	a, _ := ns.Inode()
	b, _ := again.Inode()
	c, _ := here.Inode()
	if a != b || a == c || a == 0 {
		t.Errorf("inodes: made %d, opened %d, ours %d", a, b, c)
	}
	var inside []string
	err = ns.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			inside = append(inside, l.Name)
		}
		return err
	})
	if err != nil || !slices.Equal(inside, []string{"lo"}) {
		t.Errorf("interfaces inside: %v, %v", inside, err)
	}
	want := errors.New("told")
	if err := ns.Do(func() error { return want }); err != want {
		t.Errorf("Do returns %v", err)
	}
	after, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = after.Close() }()
	if d, _ := after.Inode(); d != c {
		t.Error("the caller was left in another namespace")
	}
}

func TestOpenWhatIsNoNamespace(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{plain, plain + "-not-there"} {
		if _, err := netns.Open(path); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := netns.Remove(plain + "-not-there"); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
	if err := netns.Remove(plain); err != nil {
		t.Errorf("remove what a reboot left: %v", err)
	}
	if _, err := os.Stat(plain); err == nil {
		t.Error("the file is left")
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	requireRoot(t)
	defer failpoint.Enable("sys/netns.create.unshare", failpoint.Fail)()
	path := filepath.Join(t.TempDir(), "ns")
	if _, err := netns.Create(path); err == nil {
		t.Fatal("no error")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file is left")
	}
}

func TestSysctl(t *testing.T) {
	ns := create(t)
	if err := ns.Sysctl(map[string]string{"net.ipv4.ip_forward": "1", "net.ipv4.conf.lo.route_localnet": "1"}); err != nil {
		t.Fatal(err)
	}
	err := ns.Do(func() error {
		for _, k := range []string{"net.ipv4.ip_forward", "net.ipv4.conf.lo.route_localnet"} {
			if v, err := netns.ReadSysctl(k); err != nil || v != "1" {
				t.Errorf("%s is %q, %v", k, v, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"kernel.hostname", "net/../kernel/hostname", "net..ipv4", "", "net."} {
		if err := ns.Sysctl(map[string]string{k: "x"}); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%q: %v", k, err)
		}
	}
}

func TestNetlink(t *testing.T) {
	ns := create(t)
	h, err := ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := link.AddBridge(h, link.Bridge{Name: "only-inside"}); err != nil {
		t.Fatal(err)
	}
	if _, err := net.InterfaceByName("only-inside"); err == nil {
		t.Error("the link was made outside")
	}
}
