package container

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// TestLinksDoNotLeadToWhatIsReadOnly: a link in a volume that can be written does not lead into a root file system that
// cannot, whether the container runs or not.
func TestLinksDoNotLeadToWhatIsReadOnly(t *testing.T) {
	b := newBed(t)
	src := filepath.Join(b.dir, "bound")
	if err := os.MkdirAll(filepath.Join(src, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/data", filepath.Join(src, "out")); err != nil {
		t.Fatal(err)
	}
	id := b.create(Config{Host: HostConfig{ReadonlyRootfs: true, Mounts: []Mount{{Type: MountBind, Source: src, Target: "/vol"}}}}, "wait")
	archive := func() io.Reader {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: "new", Mode: 0o644}), w.Close()); err != nil {
			t.Fatal(err)
		}
		return &buf
	}
	for _, state := range []string{"created", "running"} {
		if err := b.m.CopyTo(t.Context(), id, "/vol/out", archive(), CopyOptions{}); !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), "container rootfs is marked read-only") {
			t.Errorf("%s, through a link: %v", state, err)
		}
		if err := b.m.CopyTo(t.Context(), id, "/vol/sub", archive(), CopyOptions{}); err != nil {
			t.Errorf("%s, into the volume: %v", state, err)
		}
		if state == "created" {
			b.start(id)
		}
	}
}

// TestFilesOfAStoppedContainer: the files that the start made are copied, not what is under them.
func TestFilesOfAStoppedContainer(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{Hostname: "box"}, "exit", "0")
	b.wait(id, "not-running")
	for name, want := range map[string]string{"hostname": "box\n", "hosts": "172.30.0.2\tbox", "resolv.conf": "nameserver 127.0.0.11"} {
		r, _, err := b.m.CopyFrom(t.Context(), id, "/etc/"+name)
		if err != nil {
			t.Fatal(err)
		}
		tr := tar.NewReader(r)
		if _, err := tr.Next(); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(tr)
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %q %v", name, text, err)
		}
		_ = r.Close()
	}
}

func TestCopy(t *testing.T) {
	b := newBed(t)
	ctx := t.Context()
	outside := filepath.Join(b.dir, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Volumes: []string{"/vol"}}
	for _, running := range []bool{true, false} {
		t.Run(map[bool]string{true: "running", false: "stopped"}[running], func(t *testing.T) {
			id := b.create(cfg, "wait")
			if running {
				b.start(id)
				b.ready(id, "ready")
			}
			put := func(dir string, o CopyOptions, entries ...*tar.Header) error {
				return b.m.CopyTo(ctx, id, dir, archiveOf(t, entries...), o)
			}
			get := func(name string) map[string]string {
				t.Helper()
				r, _, err := b.m.CopyFrom(ctx, id, name)
				if err != nil {
					t.Fatalf("copy from %s: %v", name, err)
				}
				defer r.Close()
				return unpack(t, r)
			}
			if got := get("/data"); got["data/deep/file"] != "from the image" || got["data/links/abs"] != "-> /etc/passwd" {
				t.Errorf("/data: %v", got)
			}
			// The whole: without what the kernel shows a container that runs, some of which cannot be read.
			whole := get("/")
			if whole["/data/deep/file"] != "from the image" {
				t.Errorf("/: %v", whole)
			}
			for name := range whole {
				if strings.HasPrefix(name, "/proc/") && name != "/proc/" {
					t.Errorf("%s is in the copy of the whole", name)
				}
			}
			if running {
				// Neither by a link, nor asked for by name: a folder of /proc or /sys is itself and nothing else.
				if err := put("/data", CopyOptions{}, &tar.Header{Typeflag: tar.TypeSymlink, Name: "whole", Linkname: "/"},
					&tar.Header{Typeflag: tar.TypeSymlink, Name: "kernel", Linkname: "/proc"}); err != nil {
					t.Fatal(err)
				}
				byLink := get("/data/whole/")
				if byLink["whole/data/deep/file"] != "from the image" {
					t.Errorf("the whole by a link: %v", byLink)
				}
				for name := range byLink {
					if strings.HasPrefix(name, "whole/dev/") && name != "whole/dev/" {
						t.Errorf("%s is in the copy of the whole by a link", name)
					}
				}
				for _, name := range []string{"/proc", "/sys", "/data/kernel/", "/proc/sys/."} {
					if got := get(name); len(got) > 1 {
						t.Errorf("%s has %d entries in its copy", name, len(got))
					}
				}
				if got := get("/proc/version"); !strings.HasPrefix(got["version"], "Linux version ") {
					t.Errorf("a file that the kernel makes up: %q", got)
				}
			}
			if got := get("/data/deep/."); got["./file"] != "from the image" {
				t.Errorf("/data/deep/.: %v", got)
			}
			if got := get("/data/links/abs"); len(got) != 1 || got["abs"] != "-> /etc/passwd" {
				t.Errorf("a link: %v", got)
			}
			st, err := b.m.StatPath(ctx, id, "/data/links/abs")
			if err != nil || st.LinkTarget != "/etc/passwd" || st.Mode&fs.ModeSymlink == 0 || st.Name != "abs" {
				t.Errorf("stat %+v %v", st, err)
			}
			if _, err := b.m.StatPath(ctx, id, "/no/such"); !fault.Is(err, fault.NotFound) || !strings.HasPrefix(err.Error(), "Could not find the file /no/such in container "+id) {
				t.Errorf("missing: %v", err)
			}
			if _, _, err := b.m.CopyFrom(ctx, id, "/no/such"); !fault.Is(err, fault.NotFound) {
				t.Errorf("missing: %v", err)
			}

			if err := put("/vol", CopyOptions{}, dirHeader("sub/"), fileHeader("sub/a", "in the volume")); err != nil {
				t.Fatal(err)
			}
			if got := get("/vol/sub/a"); got["a"] != "in the volume" {
				t.Errorf("/vol/sub/a: %v", got)
			}
			c, _ := b.m.Get(id)
			if got, err := os.ReadFile(filepath.Join(c.Mounts[0].Source, "sub/a")); string(got) != "in the volume" {
				t.Errorf("not in the volume: %q %v", got, err)
			}
			if err := put("/data", CopyOptions{NoOverwriteDirNonDir: true}, fileHeader("deep", "x")); !fault.Is(err, fault.InvalidArgument) {
				t.Errorf("a file over a folder: %v", err)
			}
			if err := put("/data/deep/file", CopyOptions{}, fileHeader("x", "x")); !fault.Is(err, fault.InvalidArgument) {
				t.Errorf("into a file: %v", err)
			}
			if err := put("/tmp", CopyOptions{}, fileHeader("f", "one"), &tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "f"},
				&tar.Header{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o600}); err != nil {
				t.Fatal(err)
			}
			if got := get("/tmp/."); got["./f"] != "one" || got["./l"] != "=> ./f" {
				t.Errorf("/tmp: %v", got)
			}
			// Nothing gets out: not by names, not by links that are there, not by links in the archive.
			err = put("/tmp", CopyOptions{}, fileHeader("../../../../../../../../"+outside+"/1", "evil"),
				&tar.Header{Name: "esc", Typeflag: tar.TypeSymlink, Linkname: outside}, fileHeader("esc/2", "evil"),
				&tar.Header{Name: "esc2", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("../", 20) + outside}, fileHeader("esc2/3", "evil"),
				&tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "../../../../../../../etc/shadow"})
			if left, _ := os.ReadDir(outside); len(left) > 0 {
				t.Errorf("escaped: %v (%v)", left, err)
			}
			if got := get("/data/links/up/."); !strings.Contains(got["./passwd"], "alice") || got["./shadow"] != "" {
				t.Errorf("a link far up leads to %v", got)
			}
			if !running {
				b.start(id) // and what was copied is there
				b.ready(id, "ready")
			}
			if out, _, _ := b.exec(id, ExecConfig{Cmd: []string{"/bin/prog", "cat", "/vol/sub/a", "/tmp/f"}}); out != "in the volumeone" {
				t.Errorf("inside: %q", out)
			}
			var all bytes.Buffer
			if err := b.m.Export(ctx, id, &all); err != nil {
				t.Fatal(err)
			}
			if got := unpack(t, &all); got["tmp/f"] != "one" || got["bin/"] != "dir" {
				t.Errorf("export has %d entries", len(got))
			}
		})
	}
}

// TestCopyOverWhatIsThere: an entry takes the place of what has its name, whatever that is, and has all that the archive
// says of it.
func TestCopyOverWhatIsThere(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{}, "wait")
	put := func(entries ...*tar.Header) {
		t.Helper()
		if err := b.m.CopyTo(t.Context(), id, "/tmp", archiveOf(t, entries...), CopyOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	put(fileHeader("file", "old and longer"), fileHeader("target", "kept"), fileHeader("was-file", ""), fileHeader("pax_global_header", "kept"),
		&tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "target"}, &tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600},
		dirHeader("was-dir/"), fileHeader("was-dir/in", ""), dirHeader("dir/"), fileHeader("dir/stays", "kept"), fileHeader("name", "old"))
	at := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // net_bind_service, effective
	tool := fileHeader("file", "new")
	tool.Mode, tool.Uid, tool.Gid, tool.ModTime, tool.Format = 0o6755, 1000, 50, at, tar.FormatPAX
	tool.PAXRecords["SCHILY.xattr.security.capability"], tool.PAXRecords["SCHILY.xattr.user.colour"] = capability, "blue"
	tool.PAXRecords["SCHILY.xattr.trusted.mark"] = "x" // as overlayfs' own marks, not for an archive to set
	folder := dirHeader("dir/")
	folder.Mode, folder.Uid, folder.Gid, folder.ModTime, folder.Format = 0o1777, 1000, 50, at, tar.FormatPAX
	folder.PAXRecords = map[string]string{"SCHILY.xattr.user.colour": "red"}
	put(&tar.Header{Name: "pax_global_header", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "none"}},
		tool, fileHeader("link", "no link now"), fileHeader("fifo", "no fifo now"), fileHeader("was-dir", "no folder now"),
		dirHeader("was-file/"), fileHeader("was-file/in", "in a folder"), folder, fileHeader("dir/comes", "new"),
		&tar.Header{Name: "name", Typeflag: tar.TypeLink, Linkname: "file"}, &tar.Header{Name: "target2", Typeflag: tar.TypeSymlink, Linkname: "target"})

	r, _, err := b.m.CopyFrom(t.Context(), id, "/tmp/.")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var archive bytes.Buffer
	if _, err := archive.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	got := unpack(t, bytes.NewReader(archive.Bytes()))
	for name, want := range map[string]string{
		"file": "new", "target": "kept", "link": "no link now", "fifo": "no fifo now", "was-dir": "no folder now", "was-file/": "dir",
		"was-file/in": "in a folder", "dir/stays": "kept", "dir/comes": "new", "name": "=> ./file", "target2": "-> target", "pax_global_header": "kept",
	} {
		if got["./"+name] != want {
			t.Errorf("%s is %q, not %q", name, got["./"+name], want)
		}
	}
	for tr := tar.NewReader(&archive); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != "./file" && h.Name != "./dir/" {
			continue
		}
		mode := int64(0o6755)
		if h.Name == "./dir/" {
			mode = 0o1777
		}
		if h.Mode != mode || h.Uid != 1000 || h.Gid != 50 || !h.ModTime.Equal(at) {
			t.Errorf("%s: mode %o, of %d:%d, changed %s", h.Name, h.Mode, h.Uid, h.Gid, h.ModTime)
		}
		if c := h.PAXRecords["SCHILY.xattr.security.capability"]; h.Name == "./file" && c != capability {
			t.Errorf("the file's capabilities: %q", c)
		}
	}
	c, err := b.m.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"file": "blue", "dir": "red"} {
		value := make([]byte, 16)
		n, err := unix.Getxattr(fmt.Sprintf("/proc/%d/root/tmp/%s", c.State.PID, name), "user.colour", value)
		if err != nil || string(value[:n]) != want {
			t.Errorf("attribute of %s: %q %v", name, value[:max(n, 0)], err)
		}
	}
	if _, err := unix.Getxattr(fmt.Sprintf("/proc/%d/root/tmp/file", c.State.PID), "trusted.mark", make([]byte, 16)); err != unix.ENODATA {
		t.Errorf("an archive has set a trusted attribute: %v", err)
	}
}

func fileHeader(name, content string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), PAXRecords: map[string]string{"TEST.content": content}}
}

func dirHeader(name string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}
}

func archiveOf(t *testing.T, hs ...*tar.Header) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range hs {
		content := h.PAXRecords["TEST.content"]
		delete(h.PAXRecords, "TEST.content")
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func unpack(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeSymlink:
			out[h.Name] = "-> " + h.Linkname
		case tar.TypeLink:
			out[h.Name] = "=> " + h.Linkname
		case tar.TypeReg:
			b, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			out[h.Name] = string(b)
		case tar.TypeDir:
			out[h.Name] = "dir"
		default:
			out[h.Name] = "other"
		}
	}
}
