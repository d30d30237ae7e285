package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/build/host"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

// program is a builder that runs.
type program struct {
	s         *Service
	cmd       *exec.Cmd
	socket    string
	transport *http.Transport
	calls     *http.Transport    // for gRPC: HTTP/2 from the first byte
	end       context.CancelFunc // takes its connection to the daemon away: it ends
	exited    chan struct{}      // closed when the process has ended and it is known how
	done      chan struct{}      // closed when what it left is gone too

	mu     sync.Mutex
	users  int
	idle   *time.Timer
	stale  bool // it was started with options that hold no more
	ending bool
	why    string // how it ended, when that was not asked for
}

// binary returns the path of the builder's program.
func (c Config) binary() (string, error) {
	if c.Binary != "" {
		return c.Binary, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "sampan-builder")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("sampan-builder")
	if err != nil {
		return "", fault.New(fault.NotImplemented, "building images needs the program sampan-builder, which is neither beside sampand nor in the PATH: install it there")
	}
	return path, nil
}

// start starts a builder. s.mu is held.
func (s *Service) start() (_ *program, err error) {
	binary, err := s.cfg.binary()
	if err != nil {
		return nil, err
	}
	s.sweep()
	if err := failpoint.Hit("build.start"); err != nil {
		return nil, err
	}
	for _, dir := range []string{s.cfg.Root, s.cfg.ExecRoot} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("folder of the builder: %w", err)
		}
	}
	p := &program{s: s, socket: filepath.Join(s.cfg.ExecRoot, "api.sock"), exited: make(chan struct{}), done: make(chan struct{})}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", p.socket)
	}
	p.transport = &http.Transport{DisableCompression: true, DialContext: dial}
	p.calls = &http.Transport{DisableCompression: true, DialContext: dial, Protocols: new(http.Protocols)}
	p.calls.Protocols.SetUnencryptedHTTP2(true)
	_ = os.Remove(p.socket)
	listener, err := listen(p.socket)
	if err != nil {
		return nil, fmt.Errorf("socket of the builder: %w", err)
	}
	defer listener.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "builder"), os.NewFile(uintptr(fds[1]), "builder")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	logPath := LogPath(s.cfg.ExecRoot)
	logFile, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("log of the builder: %w", err)
	}
	defer logFile.Close()
	p.cmd = exec.Command(binary, s.args()...)
	p.cmd.Args[0] = "sampan-builder"
	p.cmd.Dir = "/"
	p.cmd.Env = append(os.Environ(), s.cfg.Options.Environ...)
	p.cmd.Stdout, p.cmd.Stderr = logFile, logFile
	p.cmd.ExtraFiles = []*os.File{listener, theirs}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal to the daemon's terminal reaches it
	if err := p.cmd.Start(); err != nil {
		_ = conn.Close()
		return nil, fault.New(fault.FailedPrecondition, "starting the builder: %w", err)
	}
	s.log.Info("started a builder", "pid", p.cmd.Process.Pid, "binary", binary)
	ctx, end := context.WithCancel(context.Background())
	p.end = end
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := host.Serve(ctx, conn, s.cfg.Host); err != nil {
			s.log.Warn("connection to the builder", "error", err)
		}
		_ = conn.Close()
	}()
	go p.watch(served, logPath)
	return p, nil
}

// args are the builder's arguments; the descriptors 3 and 4 are its listener and its connection to the daemon.
func (s *Service) args() []string {
	o := s.cfg.Options
	args := []string{"--root", s.cfg.Root, "--exec-root", s.cfg.ExecRoot, "--version-of-daemon", o.Version}
	if settings, err := json.Marshal(o.Settings); err == nil { // it always can
		args = append(args, "--settings", string(settings))
	}
	if o.Debug {
		args = append(args, "--debug")
	}
	for _, m := range o.Mirrors {
		args = append(args, "--registry-mirror", m)
	}
	for _, i := range o.Insecure {
		args = append(args, "--insecure-registry", i)
	}
	for _, d := range o.CertDirs {
		args = append(args, "--cert-dir", d)
	}
	if o.HostGateway != nil {
		if addr := o.HostGateway(); addr != "" {
			args = append(args, "--host-gateway", addr)
		}
	}
	return args
}

// watch waits for the program's end, however it comes, and takes away what it has left. How it ended is known before that:
// whoever is told of it does not wait for steps to be taken down.
func (p *program) watch(served <-chan struct{}, logPath string) {
	err := p.cmd.Wait()
	p.mu.Lock()
	asked := p.ending
	p.ending = true
	if !asked {
		p.why = endOf(err) + logTail(logPath, err)
	}
	why := p.why
	p.mu.Unlock()
	close(p.exited)
	p.end()
	<-served // every step is down
	if asked {
		p.s.log.Info("the builder has ended")
	} else {
		p.s.log.Error("the builder ended unasked", "how", why)
	}
	p.transport.CloseIdleConnections()
	p.calls.CloseIdleConnections()
	p.s.mu.Lock()
	p.s.sweep()
	if p.s.live == p {
		p.s.live = nil
	}
	p.s.mu.Unlock()
	close(p.done)
}

func endOf(err error) string {
	if err == nil {
		return "it ended by itself"
	}
	return "it ended with " + err.Error()
}

// LogPath returns the path of the log file of a builder with that folder for what need not survive a reboot. It is of the
// builder that was started last.
func LogPath(execRoot string) string { return filepath.Join(filepath.Dir(execRoot), "builder.log") }

// maxLastWords is how much of a builder's log is looked at for the reason of its end: a panic with its stacks.
const maxLastWords = 64 << 10

// logTail returns what the builder said last, for an error message. One that was killed had no last words.
func logTail(path string, end error) string {
	var exit *exec.ExitError
	if errors.As(end, &exit) && !exit.Exited() {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > maxLastWords {
		_, _ = f.Seek(-maxLastWords, io.SeekEnd)
	}
	text, err := io.ReadAll(f)
	if err != nil || len(text) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	last := lines[len(lines)-1]
	for _, l := range lines {
		if strings.HasPrefix(l, "panic:") || strings.HasPrefix(l, "fatal error:") {
			last = l
			break
		}
	}
	return ", saying: " + last
}

// use counts one more user; false: the program is ending.
func (p *program) use() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending {
		return false
	}
	p.users++
	if p.idle != nil {
		p.idle.Stop()
		p.idle = nil
	}
	return true
}

// leave counts one user less. After a while without any, the program is ended.
func (p *program) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users--; p.users > 0 || p.ending {
		return
	}
	if p.stale {
		p.quit()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(p.s.cfg.Idle, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.idle == timer && p.users == 0 && !p.ending {
			p.quit()
		}
	})
	p.idle = timer
}

// quit ends a program without users. Asked politely it closes its databases; it goes all the same when it does not. p.mu
// is held.
func (p *program) quit() {
	p.ending = true
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	time.AfterFunc(10*time.Second, func() { p.end() })
}

// outdate ends the program as soon as it has no users.
func (p *program) outdate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stale = true
	if p.users == 0 && !p.ending {
		p.quit()
	}
}
