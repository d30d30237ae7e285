package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/testhost"
)

const (
	logSize   = 1 << 30   // of what is printed, without what the log adds
	bigFile   = 512 << 20 // that is copied
	manyFiles = 10000     // that are copied, of about manySize bytes each
	manySize  = 4 << 10
)

// printed is the name of a container that has printed logSize bytes and ended.
const printed = "printed"

// logged makes that container.
func (l *lab) logged(ctx context.Context) error {
	if l.made[printed] {
		return nil
	}
	h := l.first()
	if _, err := h.Docker(ctx, "run", "-d", "--name", printed, image, "print", strconv.Itoa(logSize)); err != nil {
		return err
	}
	// At a hundred megabytes a second a command that waits would be given up.
	err := testhost.WaitFor(ctx, 10*time.Minute, "the end of the container that prints", func(ctx context.Context) error {
		out, err := h.Docker(ctx, "inspect", "-f", "{{.State.Status}}", printed)
		if err == nil && out != "exited" {
			err = fmt.Errorf("it is %s", out)
		}
		return err
	})
	l.note(printed)
	return err
}

func (l *lab) note(what string) {
	if l.made == nil {
		l.made = map[string]bool{}
	}
	l.made[what] = true
}

// logsAPI reads a log of a gigabyte through the API, as a client that does nothing with it.
func logsAPI(ctx context.Context, l *lab) (float64, error) {
	if err := l.logged(ctx); err != nil {
		return 0, err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.first().Socket)
	}}}
	defer client.CloseIdleConnections()
	return l.burning(func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/v1.41/containers/"+printed+"/logs?stdout=1&stderr=1", nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		n, err := io.Copy(io.Discard, res.Body)
		if err == nil && n < logSize {
			err = fmt.Errorf("%d bytes of a log of %d", n, logSize)
		}
		return err
	})
}

// logsCommand reads it through the docker command.
func logsCommand(ctx context.Context, l *lab) (float64, error) {
	if err := l.logged(ctx); err != nil {
		return 0, err
	}
	return l.burning(func() error {
		cmd := exec.CommandContext(ctx, l.CLI, "logs", printed)
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+l.first().DockerHost())
		return cmd.Run() // what it prints goes nowhere
	})
}

// sleeper is the name of a container that runs and does nothing.
const sleeper = "sleeper"

func (l *lab) sleeping(ctx context.Context) error {
	if l.made[sleeper] {
		return nil
	}
	l.note(sleeper)
	_, err := l.first().Docker(ctx, "run", "-d", "--name", sleeper, image, "sleep")
	return err
}

// execOne runs a program that ends at once in a container that runs.
func execOne(ctx context.Context, l *lab) (float64, error) {
	if err := l.sleeping(ctx); err != nil {
		return 0, err
	}
	return repeated(func() error {
		_, err := l.first().Docker(ctx, "exec", sleeper, "/tool", "true")
		return err
	})
}

// tree makes files to be copied in a folder of this machine, once.
func (l *lab) tree() (string, error) {
	dir := filepath.Join(l.tmp, "tree")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	r := rand.New(rand.NewPCG(1, 1))
	p := newProse(r)
	for i := range manyFiles {
		sub := filepath.Join(dir, strconv.Itoa(i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return "", err
			}
		}
		b := make([]byte, 1+r.IntN(2*manySize))
		_, _ = p.Read(b)
		if err := os.WriteFile(filepath.Join(sub, strconv.Itoa(i)), b, 0o644); err != nil { //nolint:gosec // data of a measurement
			return "", err
		}
	}
	return dir, nil
}

// large makes one large file to be copied, once.
func (l *lab) large() (string, error) {
	path := filepath.Join(l.tmp, "large")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = io.CopyN(f, newProse(rand.New(rand.NewPCG(2, 2))), bigFile)
	return path, err
}

func cpFileIn(ctx context.Context, l *lab) (float64, error)  { return l.copyIn(ctx, (*lab).large) }
func cpFileOut(ctx context.Context, l *lab) (float64, error) { return l.copyOut(ctx, (*lab).large) }
func cpTreeIn(ctx context.Context, l *lab) (float64, error)  { return l.copyIn(ctx, (*lab).tree) }
func cpTreeOut(ctx context.Context, l *lab) (float64, error) { return l.copyOut(ctx, (*lab).tree) }

// copyIn copies what make makes into a container that runs, to a new place.
func (l *lab) copyIn(ctx context.Context, what func(*lab) (string, error)) (float64, error) {
	if err := l.sleeping(ctx); err != nil {
		return 0, err
	}
	from, err := what(l)
	if err != nil {
		return 0, err
	}
	unix.Sync()
	return l.burning(func() error {
		_, err := l.first().Docker(ctx, "cp", "-q", from, fmt.Sprintf("%s:/in%d", sleeper, l.round))
		return err
	})
}

// copyOut copies it out again, to a new place.
func (l *lab) copyOut(ctx context.Context, what func(*lab) (string, error)) (float64, error) {
	if err := l.copied(ctx, what); err != nil {
		return 0, err
	}
	to := filepath.Join(l.first().Dir, "copied"+strconv.Itoa(l.round))
	unix.Sync()
	return l.burning(func() error {
		_, err := l.first().Docker(ctx, "cp", "-q", sleeper+":/out", to)
		return err
	})
}

// copied sees that a container that runs has what is copied out, as /out.
func (l *lab) copied(ctx context.Context, what func(*lab) (string, error)) error {
	if err := l.sleeping(ctx); err != nil {
		return err
	}
	from, err := what(l)
	if err != nil || l.made["out"] {
		return err
	}
	l.note("out")
	_, err = l.first().Docker(ctx, "cp", "-q", from, sleeper+":/out")
	return err
}

// putTree gives a container the files as an archive, as a client that has it in its memory.
func putTree(ctx context.Context, l *lab) (float64, error) {
	if err := l.sleeping(ctx); err != nil {
		return 0, err
	}
	from, err := l.tree()
	if err != nil {
		return 0, err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := errors.Join(w.AddFS(os.DirFS(from)), w.Close()); err != nil {
		return 0, err
	}
	to := fmt.Sprintf("/put%d", l.round)
	if _, err := l.first().Docker(ctx, "exec", sleeper, "/tool", "mkdir", to); err != nil {
		return 0, err
	}
	unix.Sync()
	return l.archive(ctx, http.MethodPut, to, &archive)
}

// getTree takes them as an archive, as a client that does nothing with it.
func getTree(ctx context.Context, l *lab) (float64, error) {
	if err := l.copied(ctx, (*lab).tree); err != nil {
		return 0, err
	}
	unix.Sync()
	return l.archive(ctx, http.MethodGet, "/out", nil)
}

// archive is one request about an archive of the container, with what it takes of CPU time.
func (l *lab) archive(ctx context.Context, method, path string, body io.Reader) (float64, error) {
	a := l.api()
	defer a.CloseIdleConnections()
	return l.burning(func() error {
		req, err := http.NewRequestWithContext(ctx, method, "http://docker/v1.41/containers/"+sleeper+"/archive?path="+path, body)
		if err != nil {
			return err
		}
		res, err := a.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		n, err := io.Copy(io.Discard, res.Body)
		switch {
		case err != nil:
			return err
		case res.StatusCode != http.StatusOK:
			return fmt.Errorf("%s of an archive: %s", method, res.Status)
		case method == http.MethodGet && n < manyFiles*manySize:
			return fmt.Errorf("an archive of %d bytes: files are missing", n)
		}
		return nil
	})
}

// burning is timed, and says what CPU time the engine took.
func (l *lab) burning(f func() error) (float64, error) {
	h := l.first()
	before := cpuOf(h.Processes())
	v, err := timed(f)
	if err == nil {
		l.say("%.0f ms, %.0f ms of CPU", v, ms(cpuOf(h.Processes())-before))
	}
	return v, err
}
