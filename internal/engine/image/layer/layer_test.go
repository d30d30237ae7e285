package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: owners, devices and overlay mounts")
	}
}

// node is a file of the model that random layers are compared with. Two names of one node are hard links.
type node struct {
	kind     byte // of tar
	mode     int64
	uid, gid int
	mtime    time.Time
	data     string
	target   string
	dev      uint32
	xattrs   map[string]string
}

func (n *node) header(name string) *tar.Header {
	h := &tar.Header{Typeflag: n.kind, Name: strings.TrimPrefix(name, "/"), Mode: n.mode, Uid: n.uid, Gid: n.gid, ModTime: n.mtime,
		Size: int64(len(n.data)), Linkname: n.target, Devmajor: int64(unix.Major(uint64(n.dev))), Devminor: int64(unix.Minor(uint64(n.dev))), Format: tar.FormatPAX}
	if n.kind == tar.TypeDir {
		h.Name += "/"
	}
	for k, v := range n.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[XattrRecord+k] = v
	}
	return h
}

type tree map[string]*node // by absolute path; "/" is there

func (t tree) removeBelow(name string) {
	for p := range t {
		if strings.HasPrefix(p, strings.TrimSuffix(name, "/")+"/") && p != name {
			delete(t, p)
		}
	}
}

func (t tree) folders() (out []string) {
	for _, p := range slices.Sorted(maps.Keys(t)) {
		if t[p].kind == tar.TypeDir {
			out = append(out, p)
		}
	}
	return out
}

type maker struct{ *rand.Rand }

func (m maker) node(kind byte) *node {
	n := &node{kind: kind, mode: []int64{0o644, 0o755, 0o4755, 0o2711, 0o1777, 0, 0o600}[m.IntN(7)], uid: m.IntN(3) * 1000, gid: m.IntN(3) * 70000,
		mtime: time.Unix(int64(m.IntN(2_000_000_000))-100_000_000, int64(m.IntN(1_000_000_000)))}
	switch kind {
	case tar.TypeReg:
		n.data = strings.Repeat(string(rune('a'+m.IntN(26))), m.IntN(300))
		if m.IntN(8) == 0 { // holes, at odd places
			n.data = strings.Repeat("\x00", m.IntN(200_000)) + n.data + strings.Repeat("\x00", m.IntN(300_000))
		}
		if m.IntN(3) == 0 {
			n.xattrs = map[string]string{"user.note": fmt.Sprint(m.IntN(100)), "security.capability": "\x01\x00\x00\x02\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
		}
	case tar.TypeSymlink:
		n.mode = 0o777
		n.target = []string{"/etc", "../../../../..", "nowhere", "a/b", "/", strings.Repeat("x", 300)}[m.IntN(6)]
	case tar.TypeChar, tar.TypeBlock:
		n.dev = uint32(unix.Mkdev(uint32(1+m.IntN(200)), uint32(m.IntN(300))))
	}
	return n
}

func (m maker) name() string {
	if m.IntN(30) == 0 {
		return strings.Repeat("long", 63) // 252 bytes
	}
	return []string{"a", "b", "c", "d", "e f", "ü", "g:h"}[m.IntN(7)]
}

// change makes the next layer's tree out of the one below, and its archive.
func (m maker) change(t testing.TB, below tree, lowest bool) (tree, []byte) {
	now := maps.Clone(below)
	if lowest {
		now = tree{"/": m.node(tar.TypeDir)}
	}
	renewed := map[string]bool{} // folders that hide what is below
	for range 5 + m.IntN(25) {
		dirs := now.folders()
		dir := dirs[m.IntN(len(dirs))]
		if strings.Count(dir, "/") > 4 {
			continue
		}
		name := path.Join(dir, m.name())
		switch m.IntN(10) {
		case 0, 1: // remove
			if now[name] != nil {
				now.removeBelow(name)
				delete(now, name)
			}
		case 2: // another name of a file of this layer
			for _, p := range slices.Sorted(maps.Keys(now)) {
				if n := now[p]; n.kind != tar.TypeDir && below[p] != n && now[name] == nil {
					now[name] = n
					break
				}
			}
		case 3, 4, 5: // a folder, new or with other attributes
			if old := now[name]; old == nil || old.kind != tar.TypeDir {
				now[name] = m.node(tar.TypeDir)
			} else if m.IntN(2) == 0 {
				now[name] = m.node(tar.TypeDir)
			} else { // removed and made again
				now.removeBelow(name)
				now[name] = m.node(tar.TypeDir)
				renewed[name] = true
			}
		default:
			kinds := []byte{tar.TypeReg, tar.TypeReg, tar.TypeReg, tar.TypeSymlink, tar.TypeFifo, tar.TypeChar, tar.TypeBlock}
			now.removeBelow(name)
			now[name] = m.node(kinds[m.IntN(len(kinds))])
		}
	}
	return now, m.archive(t, below, now, renewed, lowest)
}

// archive writes what makes now out of below, in any order that the format allows.
func (m maker) archive(t testing.TB, below, now tree, renewed map[string]bool, lowest bool) []byte {
	type entry struct {
		h    *tar.Header
		data string
	}
	var entries, links []entry
	first := map[*node]string{}
	// hides: a folder that is not merged with the one below.
	hides := func(p string) bool { return renewed[p] || below[p] == nil || below[p].kind != tar.TypeDir }
	for _, p := range slices.Sorted(maps.Keys(now)) {
		n := now[p]
		covered := false // something above replaces what was below
		for d := path.Dir(p); p != "/" && d != "/"; d = path.Dir(d) {
			covered = covered || hides(d)
		}
		if below[p] == n && !covered && (n.kind != tar.TypeDir || m.IntN(2) == 0) {
			continue // there already, or a folder that is only implied
		}
		if n.kind != tar.TypeDir {
			if f, ok := first[n]; ok {
				h := n.header(p)
				h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, strings.TrimPrefix(f, "/"), 0, nil
				links = append(links, entry{h: h})
				continue
			}
			first[n] = p
		}
		entries = append(entries, entry{n.header(p), n.data})
		if n.kind == tar.TypeDir && renewed[p] && below[p] != nil && below[p].kind == tar.TypeDir {
			mark := path.Join(p, whiteoutOpaque)
			if m.IntN(2) == 0 {
				mark = path.Join(path.Dir(p), whiteoutPrefix+path.Base(p))
			}
			entries = append(entries, entry{h: &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(mark, "/")}})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(below)) {
		d := path.Dir(p)
		if now[p] != nil || lowest {
			continue
		}
		if up := now[d]; up == nil || up.kind != tar.TypeDir {
			continue // went with what it was in
		}
		gone := false
		for d := path.Dir(p); d != "/"; d = path.Dir(d) {
			gone = gone || hides(d)
		}
		if !gone {
			entries = append(entries, entry{h: &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path.Join(d, whiteoutPrefix+path.Base(p)), "/")}})
		}
	}
	m.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range append(entries, links...) {
		if err := w.WriteHeader(e.h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// scan reads a tree off a folder.
func scan(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		n := &node{mode: int64(st.Mode & 0o7777), uid: int(st.Uid), gid: int(st.Gid), mtime: time.Unix(st.Mtim.Unix())}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			n.kind = tar.TypeDir
		case unix.S_IFREG:
			n.kind = tar.TypeReg
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			n.data = string(b)
			n.xattrs = map[string]string{}
			for _, k := range []string{"user.note", "security.capability"} {
				buf := make([]byte, 100)
				if m, err := unix.Lgetxattr(p, k, buf); err == nil {
					n.xattrs[k] = string(buf[:m])
				}
			}
		case unix.S_IFLNK:
			n.kind = tar.TypeSymlink
			if n.target, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFIFO:
			n.kind = tar.TypeFifo
		case unix.S_IFCHR:
			n.kind, n.dev = tar.TypeChar, uint32(st.Rdev)
		case unix.S_IFBLK:
			n.kind, n.dev = tar.TypeBlock, uint32(st.Rdev)
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
		link := ""
		if n.kind != tar.TypeDir && st.Nlink > 1 {
			if link = inodes[st.Ino]; link == "" {
				inodes[st.Ino] = name
			}
		}
		out[name] = n.String() + link
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// String has all that must be the same.
func (n *node) String() string {
	data := n.data
	if len(data) > 1000 {
		data = fmt.Sprintf("%d bytes, %x", len(data), bytes.TrimLeft([]byte(data), "\x00")[:min(20, len(strings.TrimLeft(data, "\x00")))])
	}
	return fmt.Sprintf("%c %o %d:%d %s %q dev %d %q %q", n.kind, n.mode, n.uid, n.gid, n.mtime.UTC().Format(time.RFC3339Nano), n.target, n.dev, data,
		slices.Sorted(maps.Keys(n.xattrs)))
}

// want is what scan should find. links says whether hard links are told; an overlay shows those of one layer.
func (t tree) want() map[string]string {
	out, seen := map[string]string{}, map[*node]string{}
	for _, p := range slices.Sorted(maps.Keys(t)) {
		n := t[p]
		out[p] = n.String() + seen[n]
		if n.kind != tar.TypeDir && seen[n] == "" {
			seen[n] = p
		}
	}
	return out
}

// TestRandomLayersStackAsTheSpecificationSays: whatever sequence of trees, the layers between them give each tree when
// they are stacked by overlayfs: every kind of file, owner, mode, time, attribute, hard link, whiteout and opaque folder,
// in any order in the archive, and each layer extracted without a look at those below it.
func TestRandomLayersStackAsTheSpecificationSays(t *testing.T) {
	requireRoot(t)
	unix.Umask(unix.Umask(0o077)) // whatever it is
	rounds := 12
	if testing.Short() {
		rounds = 8
	}
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := maker{rand.New(rand.NewPCG(seed, 3))}
			dir, err := os.MkdirTemp("", "sampan-layer-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			now := tree{}
			var lower []string // highest first
			for n := range 4 {
				var archive []byte
				now, archive = m.change(t, now, n == 0)
				at := filepath.Join(dir, fmt.Sprint(n))
				if err := os.Mkdir(at, 0o755); err != nil {
					t.Fatal(err)
				}
				a, err := Apply(t.Context(), at, bytes.NewReader(archive), n == 0)
				if err != nil {
					t.Fatal(err)
				}
				if err := a.Adopt(at, func(name string) (string, error) { return inOverlay(t, dir, lower, name), nil }); err != nil {
					t.Fatal(err)
				}
				lower = append([]string{at}, lower...)
				compare(t, fmt.Sprintf("after layer %d", n), now.want(), scanOverlay(t, dir, lower))
			}
		})
	}
}

func compare(t *testing.T, when string, want, got map[string]string) {
	t.Helper()
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if got[p] != want[p] {
			t.Errorf("%s: %s\n  is     %s\n  should %s", when, p, got[p], want[p])
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if want[p] == "" {
			t.Errorf("%s: %s is there and should not be: %s", when, p, got[p])
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// withOverlay calls f with the layers mounted.
func withOverlay(t testing.TB, dir string, lower []string, f func(at string)) {
	t.Helper()
	if len(lower) == 1 {
		f(lower[0])
		return
	}
	at := filepath.Join(dir, "mnt")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	f(at)
}

func scanOverlay(t testing.TB, dir string, lower []string) (out map[string]string) {
	withOverlay(t, dir, lower, func(at string) { out = scan(t, at) })
	return out
}

// inOverlay finds the folder that the layers show under a name, in the highest of them that has it.
func inOverlay(t testing.TB, dir string, lower []string, name string) (found string) {
	if len(lower) == 0 {
		return ""
	}
	there := false
	withOverlay(t, dir, lower, func(at string) {
		st, err := os.Lstat(filepath.Join(at, name))
		there = err == nil && st.IsDir()
	})
	if !there {
		return ""
	}
	for _, l := range lower {
		if st, err := os.Lstat(filepath.Join(l, name)); err == nil && st.IsDir() {
			return filepath.Join(l, name)
		}
	}
	return ""
}

func archiveOf(t testing.TB, entries ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		h.Format = tar.FormatPAX
		data := ""
		if h.Typeflag == tar.TypeReg { // file puts it there
			data, h.Linkname = h.Linkname, ""
			h.Size = int64(len(data))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, data string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Linkname: data, Uid: os.Getuid(), Gid: os.Getgid()}
}

func symlink(name, target string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Uid: os.Getuid(), Gid: os.Getgid()}
}

func hardlink(name, target string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
}

// TestNothingLeavesTheFolder: links in a layer are seen as from within it, and ".." ends at its top.
func TestNothingLeavesTheFolder(t *testing.T) {
	for name, archive := range map[string][]byte{
		"absolute link":     archiveOf(t, symlink("out", "/"), file("out/../victim", "bad"), file("out/x", "in")),
		"relative link":     archiveOf(t, symlink("out", "../.."), file("out/victim", "bad")),
		"link to the place": archiveOf(t, symlink("out", "OUTSIDE"), file("out/victim", "bad")),
		"dots":              archiveOf(t, file("../../victim", "bad"), file("/../victim", "bad")),
		"link over a link":  archiveOf(t, symlink("a", "OUTSIDE"), symlink("a/b", "OUTSIDE"), file("a/b/victim", "bad")),
		"hard link to it":   archiveOf(t, symlink("s", "OUTSIDE"), hardlink("h", "s/victim"), file("h", "bad")),
		"file over a link":  archiveOf(t, symlink("victim", "OUTSIDE/victim"), file("victim", "bad")),
		"whiteout":          archiveOf(t, symlink("s", "OUTSIDE"), file("s/.wh.victim", "")),
		"opaque":            archiveOf(t, symlink("s", "OUTSIDE"), file("s/.wh..wh..opq", "")),
		"link in a circle":  archiveOf(t, symlink("a", "b"), symlink("b", "a"), file("a/victim", "bad")),
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			victim := filepath.Join(outside, "victim")
			if err := os.WriteFile(victim, []byte("good"), 0o600); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(outside, "deep/in/layer")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			archive = bytes.ReplaceAll(archive, []byte("OUTSIDE"), []byte("../../.")) // of the same length
			_, err := Apply(t.Context(), dir, bytes.NewReader(archive), true)
			t.Log(err)
			if b, err := os.ReadFile(victim); err != nil || string(b) != "good" {
				t.Fatalf("the file outside is %q, %v", b, err)
			}
			entries, err := os.ReadDir(outside)
			if err != nil || len(entries) != 2 {
				t.Errorf("outside there are %v, %v", entries, err)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		archive []byte
		words   string
	}{
		"hard link to nothing":     {archiveOf(t, hardlink("a", "b")), "not in the same layer"},
		"whiteout of nothing":      {archiveOf(t, file("a/.wh.", "")), "invalid name of a whiteout"},
		"whiteout of the folder":   {archiveOf(t, file("a/.wh..", "")), "invalid name of a whiteout"},
		"whiteout of the parent":   {archiveOf(t, file("a/.wh...", "")), "invalid name of a whiteout"},
		"a file as a folder":       {archiveOf(t, file("a", "x"), file("a/b", "y")), "not a directory"},
		"half an archive":          {archiveOf(t, file("a", strings.Repeat("x", 5000)))[:2000], "unexpected EOF"},
		"a type that nobody knows": {bytes.Replace(archiveOf(t, file("a", "")), []byte("\x000ustar"), []byte("\x000ustar"), 1)[:100], "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Apply(t.Context(), t.TempDir(), bytes.NewReader(c.archive), false)
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want %q", err, c.words)
			}
		})
	}
	if _, err := Apply(t.Context(), t.TempDir(), bytes.NewReader(archiveOf(t, hardlink("a", "b"))), true); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("kind of %v", err)
	}
}

// TestHolesStayHoles: a file of zeros takes no space.
func TestHolesStayHoles(t *testing.T) {
	dir := t.TempDir()
	data := "begin" + strings.Repeat("\x00", 8<<20) + "end"
	if _, err := Apply(t.Context(), dir, bytes.NewReader(archiveOf(t, file("f", data), file("z", strings.Repeat("\x00", 1<<20)))), true); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"f": len(data), "z": 1 << 20} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Size != int64(want) || st.Blocks*512 > 200<<10 {
			t.Errorf("%s: %d bytes that take %d", name, st.Size, st.Blocks*512)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != data {
		t.Errorf("the file with a hole differs: %v", err)
	}
}

// TestForgedOverlayMarks: a layer cannot bring along what overlayfs would take for its own.
func TestForgedOverlayMarks(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	h := &tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755, PAXRecords: map[string]string{XattrRecord + OpaqueXattr: "y", XattrRecord + "user.ok": "1"}}
	if _, err := Apply(t.Context(), dir, bytes.NewReader(archiveOf(t, h)), false); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if _, err := unix.Lgetxattr(filepath.Join(dir, "d"), OpaqueXattr, buf); err != unix.ENODATA {
		t.Errorf("the mark is there: %v", err)
	}
	if _, err := unix.Lgetxattr(filepath.Join(dir, "d"), "user.ok", buf); err != nil {
		t.Errorf("the user's attribute: %v", err)
	}
}

// FuzzApply: no bytes make it panic or leave its folder.
func FuzzApply(f *testing.F) {
	f.Add(archiveOf(f, file("a/b", "x"), symlink("l", "a"), file("l/c", "y"), hardlink("h", "a/b"), file("a/.wh.z", ""), file("a/.wh..wh..opq", "")))
	f.Add(archiveOf(f, symlink("l", "/.."), file("l/c", "y"), file("../x", "z")))
	f.Fuzz(func(t *testing.T, archive []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "layer")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = Apply(t.Context(), dir, bytes.NewReader(archive), false)
		if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
			t.Errorf("outside there are %v, %v", entries, err)
		}
	})
}
