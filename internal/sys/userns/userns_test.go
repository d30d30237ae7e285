package userns

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes user namespaces with ranges of IDs")
	}
}

func TestMapping(t *testing.T) {
	m := Mapping{UIDs: []Range{{0, 100000, 1000}, {1000, 500, 10}}, GIDs: []Range{{0, 200000, 1000}}}
	for _, tc := range []struct{ in, out [2]int }{
		{[2]int{0, 0}, [2]int{100000, 200000}},
		{[2]int{999, 999}, [2]int{100999, 200999}},
		{[2]int{1005, 5}, [2]int{505, 200005}},
	} {
		if u, g := m.Out(tc.in[0], tc.in[1]); [2]int{u, g} != tc.out {
			t.Errorf("outside %v is %d:%d, want %v", tc.in, u, g, tc.out)
		}
		if u, g := m.In(tc.out[0], tc.out[1]); [2]int{u, g} != tc.in {
			t.Errorf("inside %v is %d:%d, want %v", tc.out, u, g, tc.in)
		}
		if !m.Has(tc.in[0], tc.in[1]) {
			t.Errorf("%v is nobody", tc.in)
		}
	}
	if u, g := m.Out(5000, 1000); u != 65534 || g != 65534 || m.Has(5000, 0) || m.Has(0, 1000) {
		t.Errorf("who is not mapped is %d:%d", u, g)
	}
	if u, g := (Mapping{}).Out(5, 6); u != 5 || g != 6 || !(Mapping{}).None() || !(Mapping{}).Has(1<<31, 0) {
		t.Error("no mapping changes IDs")
	}
}

func TestSubIDs(t *testing.T) {
	text := "# a comment\nalice:100000:65536\nbob:165536:65536\n\nalice:300000:10\nbroken:1\nalice:x:5\n1000:400000:5\nalice:4294967295:5\ncarol:5:0\n"
	want := []Range{{0, 100000, 65536}, {65536, 300000, 10}, {65546, 400000, 5}}
	if got := ParseSubIDs(text, "alice", "1000"); !reflect.DeepEqual(got, want) {
		t.Errorf("alice has %v, want %v", got, want)
	}
	if got := ParseSubIDs(text, "dave"); got != nil {
		t.Errorf("dave has %v", got)
	}
	if got := TakenSubIDs(text); len(got) != 4 || got[1] != (Range{0, 165536, 65536}) {
		t.Errorf("all: %v", got)
	}
}

func FuzzSubIDs(f *testing.F) {
	f.Add("alice:100000:65536\nalice:1:4294967290\nalice:5:5\n")
	f.Fuzz(func(t *testing.T, text string) {
		next := uint64(0)
		for _, r := range ParseSubIDs(text, "alice") {
			if r.Count == 0 || uint64(r.Inside) != next || uint64(r.Outside)+uint64(r.Count) > 1<<32-1 {
				t.Fatalf("%+v after %d", r, next)
			}
			next += uint64(r.Count)
		}
		TakenSubIDs(text)
	})
}

func pinned(t *testing.T) (user, net string) {
	dir := t.TempDir()
	return filepath.Join(dir, "user"), filepath.Join(dir, "net")
}

// ownedBy checks that the user namespace pinned at user owns the network namespace pinned at net.
func ownedBy(t *testing.T, user, net string) {
	t.Helper()
	n, err := os.Open(net)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	owner, err := unix.IoctlRetInt(int(n.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(owner)
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(owner, &a), unix.Stat(user, &b)); err != nil || a.Ino != b.Ino {
		t.Errorf("the network namespace belongs to %d, not to %d (%v)", a.Ino, b.Ino, err)
	}
}

// TestPin: the namespaces are there after the processes that made them, and those of networks belong to the first.
func TestPin(t *testing.T) {
	requireRoot(t)
	user, net := pinned(t)
	m := Mapping{UIDs: []Range{{0, 100000, 65536}}, GIDs: []Range{{0, 200000, 65536}}}
	if err := Pin(user, net, m); err != nil {
		t.Fatal(err)
	}
	ownedBy(t, user, net)
	if err := Pin(user, net, m); err == nil {
		t.Error("a namespace was pinned over another")
	}
	further := net + "-further"
	if err := PinNet(user, further); err != nil {
		t.Fatal(err)
	}
	ownedBy(t, user, further)
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(net, &a), unix.Stat(further, &b)); err != nil || a.Ino == b.Ino {
		t.Errorf("the further network namespace is the first one (%v)", err)
	}
	if err := PinNet(user, net); err == nil {
		t.Error("a network namespace was pinned over another")
	}
	if err := PinNet(net, further+"2"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a network namespace owned by what is no user namespace: %v", err)
	}
	for range 2 {
		if err := errors.Join(Unpin(user), Unpin(net), Unpin(further)); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(filepath.Dir(user)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestPinTakesBack: a step that fails leaves nothing.
func TestPinTakesBack(t *testing.T) {
	requireRoot(t)
	for _, at := range []string{"sys/userns.pin.user", "sys/userns.pin.net"} {
		user, net := pinned(t)
		off := failpoint.Enable(at, failpoint.Fail)
		if err := Pin(user, net, Mapping{UIDs: []Range{{0, 100000, 1}}, GIDs: []Range{{0, 100000, 1}}}); err == nil {
			t.Errorf("%s was not reached", at)
		}
		off()
		if left, _ := os.ReadDir(filepath.Dir(user)); len(left) > 0 {
			t.Errorf("%s left %v", at, left)
		}
	}
}

// TestMount: owners are shifted where it is mounted and are what they were on disk, also for what is written there.
func TestMount(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	from, at := filepath.Join(dir, "from"), filepath.Join(dir, "at")
	if err := errors.Join(os.Mkdir(from, 0o755), os.Mkdir(at, 0o755), os.WriteFile(filepath.Join(from, "x"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	r := []Range{{0, 100000, 65536}}
	ns, err := Open(Mapping{UIDs: r, GIDs: r}.WithRoot())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := Mount(from, at, ns); err != nil {
		if strings.Contains(err.Error(), "no ID-mapped mounts") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(at, unix.MNT_DETACH) }()
	uid := func(path string) uint32 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Uid
	}
	if u := uid(filepath.Join(at, "x")); u != 100000 {
		t.Errorf("a file of root's shows as %d's", u)
	}
	made := filepath.Join(at, "made")
	if err := errors.Join(os.WriteFile(made, nil, 0o644), os.Chown(made, 100005, 100005)); err != nil {
		t.Fatal(err)
	}
	if u := uid(filepath.Join(from, "made")); u != 5 {
		t.Errorf("a file of 100005 is %d's on disk, want 5", u)
	}
}
