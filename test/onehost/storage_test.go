package onehost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// small makes a host whose data root is a small file system of its own, with the test image.
func small(t *testing.T, options string) (*testhost.Lab, *testhost.Host) {
	t.Helper()
	l, h := one(t)
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", h.DataRoot(), "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	Load(t, h)
	return l, h
}

// fill leaves no room for data on the file system of dir, and no room for files with files.
func fill(t *testing.T, dir string, files bool) (free func()) {
	t.Helper()
	own := filepath.Join(dir, "fill")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		f, err := os.Create(filepath.Join(own, fmt.Sprint(n)))
		if err == nil && !files {
			for _, size := range []int{1 << 20, 4096} {
				for err = nil; err == nil; {
					_, err = f.Write(make([]byte, size))
				}
			}
		}
		if f != nil {
			_ = f.Close()
		}
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.RemoveAll(own); err != nil {
			t.Error(err)
		}
	}
}

// TestNoRoom: with a data root without room, for data or for files, what runs goes on, what cannot be done is refused with
// the reason and leaves nothing, the daemon can be started anew, and all is well once there is room again.
func TestNoRoom(t *testing.T) {
	for name, files := range map[string]bool{"data": false, "files": true} {
		t.Run(name, func(t *testing.T) {
			l, h := small(t, "size=64m,nr_inodes=3000")
			before, err := l.TakeResidue()
			if err != nil {
				t.Fatal(err)
			}
			Docker(t, h, "run", "-d", "--name", "web", "-p", "8080:8080", image)
			Docker(t, h, "run", "-d", "--name", "ends", image, "tick")
			free := fill(t, h.DataRoot(), files)
			for range 3 {
				Refused(t, h, []string{"no space left on device"}, "run", "--name", "more", "-v", "vol:/data", image, "true")
				Refused(t, h, []string{"no space left on device"}, "network", "create", "n")
			}
			fetch(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr))
			Docker(t, h, "stop", "ends")
			equal(t, "what ended", Docker(t, h, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "ends"), "exited 7")
			if err := h.KillDaemon(t.Context()); err != nil {
				t.Fatal(err)
			}
			fetch(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr))
			if err := h.Start(t.Context()); err != nil {
				t.Fatalf("a daemon is started without room: %v", err)
			}
			equal(t, "what runs", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "web"), "running")
			free()
			contains(t, "with room again", Docker(t, h, "run", "--rm", "--name", "more", "-v", "vol:/data", image, "echo", "works"), "works")
			Docker(t, h, "network", "create", "n")
			Docker(t, h, "run", "--rm", "--network", "n", image, "get", "http://"+h.Addr.String()+":8080")
			Docker(t, h, "network", "rm", "n")
			Docker(t, h, "rm", "-f", "web", "ends")
			Docker(t, h, "volume", "rm", "vol")
			equal(t, "containers left", Docker(t, h, "ps", "-aq"), "")
			NothingLeft(t, l, before)
		})
	}
}

// TestReadOnlyDataRoot: what runs goes on, what would be written is refused with the reason, a daemon says why it does not
// start, and finds everything when it can write again.
func TestReadOnlyDataRoot(t *testing.T) {
	l, h := small(t, "size=64m")
	Docker(t, h, "run", "-d", "--name", "web", "--log-driver", "none", "-p", "8080:8080", image)
	Docker(t, h, "run", "-d", "--name", "ends", image, "exit", "5")
	Docker(t, h, "wait", "ends")
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", h.DataRoot(), "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	remount(unix.MS_RDONLY)
	if err := h.Start(t.Context()); err == nil {
		Refused(t, h, []string{"read-only file system"}, "run", "--rm", image, "true")
		equal(t, "what runs", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "web"), "running")
		if err := h.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	} else {
		contains(t, "the daemon's reason", err.Error(), "read-only file system", h.DataRoot())
	}
	fetch(t, l.Client, fmt.Sprintf("http://%s:8080", h.Addr))
	remount(0)
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "what runs", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "web"), "running")
	equal(t, "what ended", Docker(t, h, "inspect", "-f", "{{.State.ExitCode}}", "ends"), "5")
	contains(t, "works", Docker(t, h, "run", "--rm", image, "echo", "works"), "works")
}

// TestTornDatabase: a daemon whose database was torn by the machine's loss of power names the file and what to do, does
// not crash, and changes nothing; with the file put back everything is there.
func TestTornDatabase(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "web", "-v", "vol:/data", image)
	pid := Docker(t, h, "inspect", "-f", "{{.State.Pid}}", "web")
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"image/metadata.db", "image/overlayfs/metadata.db"} {
		path := filepath.Join(h.DataRoot(), file)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		page := os.Getpagesize()
		for how, torn := range map[string][]byte{
			"empty":             {},
			"cut short":         whole[:page+100],
			"cut in half":       whole[:len(whole)/2],
			"zeros":             make([]byte, len(whole)),
			"pages of zeros":    append(append([]byte{}, whole[:2*page]...), make([]byte, len(whole)-2*page)...),
			"nonsense":          []byte(strings.Repeat("nonsense", len(whole)/8)),
			"pages of nonsense": append(append([]byte{}, whole[:2*page]...), strings.Repeat("nonsense", (len(whole)-2*page)/8)...),
		} {
			if how == "empty" { // as good as none: a new one is made
				continue
			}
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := h.Start(t.Context()); err == nil {
				t.Errorf("%s, %s: the daemon works with it", file, how)
				_ = h.Stop(t.Context())
			} else {
				contains(t, file+", "+how, err.Error(), path, "damaged", "away together")
				for _, bad := range []string{"panic", "goroutine", "unexpected fault"} {
					if strings.Contains(err.Error(), bad+" ") {
						t.Errorf("%s, %s: the daemon crashed: %.1500s", file, how, err)
					}
				}
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "the same process", Docker(t, h, "inspect", "-f", "{{.State.Pid}}", "web"), pid)
	contains(t, "works", Docker(t, h, "run", "--rm", "-v", "vol:/data", image, "echo", "works"), "works")
}

// TestLostImageDatabase: what the daemon advises after a torn database works: images are loaded anew, containers and
// volumes stay.
func TestLostImageDatabase(t *testing.T) {
	_, h := one(t)
	Docker(t, h, "run", "-d", "--name", "web", "-v", "vol:/data", image)
	Docker(t, h, "create", "--name", "later", "-v", "vol:/data", image, "echo", "still", "here")
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"metadata.db", "overlayfs"} {
		path := filepath.Join(h.DataRoot(), "image", file)
		if err := os.Rename(path, path+".damaged"); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "what runs", Docker(t, h, "inspect", "-f", "{{.State.Status}}", "web"), "running")
	contains(t, "and can be entered", Docker(t, h, "exec", "web", "/probe", "cat", "/data/hello"), "from the image")
	Load(t, h)
	Eventually(t, 60*time.Second, "a container that was made before can be started", func(ctx context.Context) error {
		out, err := h.Docker(ctx, "start", "-a", "later")
		if err == nil && out != "still here" {
			err = errors.New(out)
		}
		return err
	})
	contains(t, "works", Docker(t, h, "run", "--rm", image, "echo", "works"), "works")
	Docker(t, h, "rm", "-f", "web", "later")
}
