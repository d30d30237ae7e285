package testhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/client"
)

// Host is a machine with a sampand of its own.
type Host struct {
	*Machine
	Dir    string // holds data, exec and logs
	Socket string // of the Docker API
	// Own are files that the host has instead of the machine's, as /etc/subuid: the path there to that of the file. Its
	// daemon and keeper are then in a mount namespace of their own: it is for hosts of which nothing runs yet.
	Own map[string]string
	lab *Lab
	// program is sampand, or the daemon of a peer that takes the same flags.
	program string
	args    []string
	daemon  *exec.Cmd
	exited  chan struct{} // closed when daemon has been waited for
}

// DataRoot is the daemon's --data-root, ExecRoot its --exec-root.
func (h *Host) DataRoot() string { return filepath.Join(h.Dir, "data") }

// ExecRoot is the daemon's --exec-root.
func (h *Host) ExecRoot() string { return filepath.Join(h.Dir, "exec") }

// DockerHost is what DOCKER_HOST takes to reach the host's daemon.
func (h *Host) DockerHost() string { return "unix://" + h.Socket }

// CLI is the docker command that drives the hosts of the lab: Docker's own, or sampan where that is not installed.
func (h *Host) CLI() string { return h.lab.CLI }

// CgroupParent is the group under which everything of this host is.
func (h *Host) CgroupParent() string { return "/" + h.lab.Name + "-" + h.Name }

// LogPath is the file with what the daemon printed.
func (h *Host) LogPath() string { return filepath.Join(h.Dir, "sampand.log") }

// Start runs the daemon, with a host name and network namespace of its own, and returns when its API answers. further
// are flags for this once.
func (h *Host) Start(ctx context.Context, further ...string) error {
	if err := h.Launch(further...); err != nil {
		return err
	}
	return h.WaitReady(ctx)
}

// Launch runs the daemon, with further flags for this once, and does not wait for its API.
func (h *Host) Launch(further ...string) error {
	log, err := os.OpenFile(h.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	daemon := append([]string{h.program, "--data-root", h.DataRoot(), "--exec-root", h.ExecRoot(), "-H", h.DockerHost(),
		"--pidfile", filepath.Join(h.Dir, "sampand.pid"), "--cgroup-parent", h.CgroupParent()}, slices.Concat(h.args, further)...)
	unshare, script := []string{"--net=" + h.NetNS, "unshare", "--uts"}, `hostname "$0"; `
	if len(h.Own) > 0 {
		unshare = append(unshare, "--mount", "--propagation", "slave")
	}
	for place, file := range h.Own {
		script += "mount --bind '" + file + "' '" + place + "' && "
	}
	args := slices.Concat(unshare, []string{"sh", "-c", script + `exec "$@"`, h.Name}, daemon)
	cmd := exec.Command("nsenter", args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start sampand of %s: %w", h.Name, err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	h.daemon, h.exited = cmd, exited
	return nil
}

// Gone is closed when the daemon that was started last has ended.
func (h *Host) Gone() <-chan struct{} { return h.exited }

// WaitReady returns when the daemon's API answers, or with the end of its log if the daemon ends instead.
func (h *Host) WaitReady(ctx context.Context) error {
	var ended error
	err := WaitFor(ctx, 30*time.Second, "sampand of "+h.Name, func(ctx context.Context) error {
		select {
		case <-h.exited:
			ended = fmt.Errorf("sampand of %s ended:\n%s", h.Name, h.LogTail(20))
			return nil // there is nothing to wait for
		default:
		}
		c, err := h.Client()
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Ping(ctx, client.PingOptions{})
		return err
	})
	return errors.Join(err, ended)
}

// Client returns a Docker API client of this host's daemon; the caller closes it.
func (h *Host) Client() (*client.Client, error) {
	return client.New(client.WithHost(h.DockerHost()))
}

// Docker runs the docker command against this host and returns what it printed on standard output. The error holds the
// command line and what it printed on standard error.
func (h *Host) Docker(ctx context.Context, args ...string) (string, error) {
	return h.DockerInput(ctx, nil, args...)
}

// commandBound ends a docker command that hangs, so that whoever waits for it hears of it.
const commandBound = 3 * time.Minute

// DockerInput is Docker with a standard input.
func (h *Host) DockerInput(ctx context.Context, stdin []byte, args ...string) (string, error) {
	return h.DockerEnv(ctx, nil, stdin, args...)
}

// DockerEnv is DockerInput with variables of the environment, as NAME=VALUE.
func (h *Host) DockerEnv(ctx context.Context, env []string, stdin []byte, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, Patient(commandBound))
	defer cancel()
	cmd := exec.CommandContext(ctx, h.lab.CLI, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+h.DockerHost(), "DOCKER_CONFIG="+h.Dir, "DOCKER_CLI_HINTS=false", "NO_COLOR=1")
	cmd.Env = append(cmd.Env, env...)
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: docker %s: %w: %s", h.Name, strings.Join(args, " "), err, strings.TrimSpace(msg.String()))
	}
	return strings.TrimRight(out.String(), "\n"), err
}

// DaemonPID is the daemon's process ID, 0 when it does not run.
func (h *Host) DaemonPID() int { return pidIn(filepath.Join(h.Dir, "sampand.pid")) }

// KeeperPID is the keeper's process ID, 0 when it does not run.
func (h *Host) KeeperPID() int {
	for _, pid := range h.Processes() {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.HasPrefix(line, []byte("sampan-keeper\x00serve\x00")) {
			return pid
		}
	}
	return 0
}

func pidIn(path string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || syscall.Kill(pid, 0) != nil {
		return 0
	}
	return pid
}

// Stop ends the daemon with SIGTERM and waits for it. Containers go on.
func (h *Host) Stop(ctx context.Context) error { return h.end(ctx, syscall.SIGTERM) }

// KillDaemon ends the daemon with SIGKILL. Containers go on.
func (h *Host) KillDaemon(ctx context.Context) error { return h.end(ctx, syscall.SIGKILL) }

func (h *Host) end(ctx context.Context, sig syscall.Signal) error {
	if h.daemon == nil {
		return nil
	}
	if err := h.daemon.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-h.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sampand of %s does not end on %s: %w", h.Name, sig, ctx.Err())
	}
}

// KillKeeper ends the keeper with SIGKILL.
func (h *Host) KillKeeper() error {
	pid := h.KeeperPID()
	if pid == 0 {
		return fmt.Errorf("%s has no keeper", h.Name)
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// Lose is what a power cut looks like to the others: the link goes first, then every process of the host is killed.
func (h *Host) Lose(ctx context.Context) error {
	if err := h.Cut(); err != nil {
		return err
	}
	if err := h.KillDaemon(ctx); err != nil {
		return err
	}
	return h.killEverything(ctx)
}

// Processes are all processes of the host but its containers': those in its network namespace.
func (h *Host) Processes() []int { return processesIn(h.NetNS) }

// killEverything kills the daemon, its helpers and the containers, and returns when they are gone.
func (h *Host) killEverything(ctx context.Context) error {
	return WaitFor(ctx, 30*time.Second, "the end of every process of "+h.Name, func(context.Context) error {
		pids := append(h.Processes(), CgroupProcesses(h.CgroupParent())...)
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		thaw(h.CgroupParent())
		if len(pids) > 0 {
			return fmt.Errorf("processes %v", pids)
		}
		return nil
	})
}

// Reboot is Lose followed by what a boot does: the folder of --exec-root is empty, everything pinned there is gone, the
// link is up, no neighbour's link-layer address is known. The daemon is not started.
func (h *Host) Reboot(ctx context.Context) error {
	if err := h.Lose(ctx); err != nil {
		return err
	}
	if err := h.wipeExec(); err != nil {
		return err
	}
	if err := h.Heal(); err != nil {
		return err
	}
	return h.forgetNeighbours()
}

func (h *Host) wipeExec() error {
	if err := unmountBelow(h.Dir); err != nil {
		return err
	}
	removeCgroups(h.CgroupParent())
	return os.RemoveAll(h.ExecRoot())
}

// LogTail returns the last lines of the daemon's log.
func (h *Host) LogTail(lines int) string {
	text, err := os.ReadFile(h.LogPath())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
