package builder

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	ctdoci "github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/continuity/fs"
	bkexecutor "github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/oci"
	resources "github.com/moby/buildkit/executor/resources/types"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/build/buildrpc"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

// executor runs the steps of builds (BuildKit's executor.Executor). It mounts a step's file systems and writes its
// specification; the daemon gives it a network and runs it in its keeper, as any other container.
type executor struct {
	steps buildrpc.StepsClient
	root  string // a folder for each step that runs
	log   *slog.Logger

	mu      sync.Mutex
	running map[string]*step
}

// step is one that runs.
type step struct {
	id     string // the container's, 64 hex digits
	rootfs string
	spec   *specs.Spec
	ready  chan struct{} // closed when its process was started, or never will be
	done   chan struct{} // closed when it has ended
}

// killTime bounds the wait for a step that was killed.
const killTime = 30 * time.Second

// Run runs a step to its end.
func (e *executor) Run(ctx context.Context, id string, root bkexecutor.Mount, mounts []bkexecutor.Mount, process bkexecutor.ProcessInfo, started chan<- struct{}) (_ resources.Recorder, err error) {
	if id == "" {
		id = identity.NewID()
	}
	if err := bkexecutor.ValidContainerID(id); err != nil {
		return nil, err
	}
	s := &step{id: containerID(), ready: make(chan struct{}), done: make(chan struct{})}
	e.mu.Lock()
	if e.running == nil {
		e.running = map[string]*step{}
	}
	e.running[id] = s
	e.mu.Unlock()
	var once sync.Once
	begun := func() {
		once.Do(func() {
			close(s.ready)
			if started != nil {
				close(started)
			}
		})
	}
	defer func() {
		e.mu.Lock()
		delete(e.running, id)
		e.mu.Unlock()
		close(s.done)
		begun()
	}()
	if process.Meta.Proxy != nil {
		return nil, fault.New(fault.NotImplemented, "a proxied network for steps is not offered")
	}
	mode, err := networkOf(process.Meta.NetMode)
	if err != nil {
		return nil, err
	}
	// The stream is ended by us, when the step's process has: what it had mounted goes only then.
	c, err := e.open(ctx, func(ctx context.Context) (stepStream, error) { return e.steps.Run(ctx) })
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.st.Send(&buildrpc.RunIn{Kind: &buildrpc.RunIn_Prepare{Prepare: &buildrpc.Prepare{Id: s.id, Network: mode, Hostname: hostnameOf(process.Meta)}}}); err != nil {
		return nil, c.failure(err)
	}
	out, err := c.st.Recv()
	if err != nil {
		return nil, c.failure(err)
	}
	dir := filepath.Join(e.root, s.id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	release, err := e.prepare(ctx, s, dir, root, mounts, &process.Meta, out.GetSandbox())
	// The container is gone before what it stands on: its stream is closed first.
	defer release()
	if err != nil {
		return nil, err
	}
	defer c.close()
	document, err := json.Marshal(s.spec)
	if err != nil {
		return nil, err
	}
	err = c.run(ctx, &buildrpc.Start{Id: s.id, Document: document, CgroupParent: process.Meta.CgroupParent, Terminal: process.Meta.Tty,
		Stdin: process.Stdin != nil}, process, begun)
	return nil, outcome(ctx, err, process.Meta.ValidExitCodes)
}

// Exec runs another process in a step that runs.
func (e *executor) Exec(ctx context.Context, id string, process bkexecutor.ProcessInfo) error {
	e.mu.Lock()
	s := e.running[id]
	e.mu.Unlock()
	if s == nil {
		return fmt.Errorf("container %s not found", id)
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-s.done:
		return fmt.Errorf("container %s has stopped", id)
	default:
	}
	p := *s.spec.Process
	p.Terminal, p.Args = process.Meta.Tty, process.Meta.Args
	if process.Meta.Cwd != "" {
		p.Cwd = process.Meta.Cwd
	}
	if len(process.Meta.Env) > 0 {
		p.Env = process.Meta.Env
	}
	if process.Meta.User != "" {
		uid, gid, groups, err := oci.GetUser(s.rootfs, process.Meta.User)
		if err != nil {
			return err
		}
		p.User = specs.User{UID: uid, GID: gid, AdditionalGids: groups}
	}
	document, err := json.Marshal(p)
	if err != nil {
		return err
	}
	c, err := e.open(ctx, func(ctx context.Context) (stepStream, error) { return e.steps.Exec(ctx) })
	if err != nil {
		return err
	}
	defer c.close()
	err = c.run(ctx, &buildrpc.Start{Id: s.id, ExecId: containerID(), Document: document, Terminal: p.Terminal, Stdin: process.Stdin != nil}, process, func() {})
	return outcome(ctx, err, process.Meta.ValidExitCodes)
}

// prepare mounts the step's file systems and writes its specification. release takes all of it away, also after an error.
func (e *executor) prepare(ctx context.Context, s *step, dir string, root bkexecutor.Mount, mounts []bkexecutor.Mount, meta *bkexecutor.Meta, sandbox *buildrpc.Sandbox) (release func(), err error) {
	var undo []func()
	release = func() {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
	resolv, hosts := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts")
	if err := writeNames(resolv, hosts, meta, sandbox); err != nil {
		return release, err
	}
	mountable, err := root.Src.Mount(ctx, false)
	if err != nil {
		return release, err
	}
	rootMounts, unmount, err := mountable.Mount()
	if err != nil {
		return release, err
	}
	if unmount != nil {
		undo = append(undo, func() { _ = unmount() })
	}
	s.rootfs = filepath.Join(dir, "rootfs")
	if err := os.Mkdir(s.rootfs, 0o700); err != nil {
		return release, err
	}
	if err := mount.All(rootMounts, s.rootfs); err != nil {
		return release, fmt.Errorf("root file system of a step: %w", err)
	}
	undo = append(undo, func() {
		if err := mount.UnmountAll(s.rootfs, unix.UMOUNT_NOFOLLOW); err != nil {
			e.log.Warn("root file system of a step", "error", err)
			_ = unix.Unmount(s.rootfs, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	})
	undo = append(undo, bkexecutor.MountStubsCleaner(context.WithoutCancel(ctx), s.rootfs, mounts, meta.RemoveMountStubsRecursive))
	uid, gid, groups, err := oci.GetUser(s.rootfs, meta.User)
	if err != nil {
		return release, err
	}
	opts := []ctdoci.SpecOpts{oci.WithUIDGID(uid, gid, groups)}
	if meta.ReadonlyRootFS {
		opts = append(opts, ctdoci.WithRootFSReadonly())
	}
	spec, cleanup, err := oci.GenerateSpec(ctx, *meta, mounts, s.id, resolv, hosts, namespace{sandbox.GetNetns()}, "", oci.ProcessSandbox,
		nil, "", false, "", nil, opts...)
	if err != nil {
		return release, err
	}
	undo = append(undo, cleanup)
	spec.Root.Path = s.rootfs
	spec.Root.Readonly = spec.Root.Readonly || root.Readonly
	spec.Process.Terminal = meta.Tty
	cwd, err := fs.RootPath(s.rootfs, meta.Cwd)
	if err != nil {
		return release, fmt.Errorf("working directory %s: %w", meta.Cwd, err)
	}
	if _, err := os.Stat(cwd); err != nil {
		if err := user.MkdirAllAndChown(cwd, 0o755, int(uid), int(gid)); err != nil {
			return release, fmt.Errorf("working directory %s: %w", meta.Cwd, err)
		}
	}
	s.spec = spec
	return release, nil
}

// writeNames writes a step's resolv.conf and hosts.
func writeNames(resolv, hosts string, meta *bkexecutor.Meta, sandbox *buildrpc.Sandbox) error {
	conf := sandbox.GetResolvConf()
	if len(conf) == 0 {
		var err error
		if conf, err = os.ReadFile("/etc/resolv.conf"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if len(sandbox.GetHosts()) == 0 {
		fmt.Fprintf(&b, "127.0.0.1\t%s\n", hostnameOf(*meta))
	}
	for _, line := range sandbox.GetHosts() {
		fmt.Fprintln(&b, line)
	}
	for _, h := range meta.ExtraHosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.IP, h.Host)
	}
	return errors.Join(os.WriteFile(resolv, conf, 0o644), os.WriteFile(hosts, []byte(b.String()), 0o644))
}

// defaultHostname is BuildKit's for steps that choose none.
const defaultHostname = "buildkitsandbox"

func hostnameOf(m bkexecutor.Meta) string {
	if m.Hostname == "" {
		return defaultHostname
	}
	return m.Hostname
}

func networkOf(mode pb.NetMode) (string, error) {
	switch mode {
	case pb.NetMode_UNSET:
		return "default", nil
	case pb.NetMode_HOST:
		return "host", nil
	case pb.NetMode_NONE:
		return "none", nil
	}
	return "", fault.New(fault.InvalidArgument, "unknown network mode %s", mode)
}

// namespace is a step's network as BuildKit's specification takes it.
type namespace struct{ path string }

// Set puts the namespace into a specification.
func (n namespace) Set(s *specs.Spec) error {
	kept := s.Linux.Namespaces[:0]
	for _, ns := range s.Linux.Namespaces {
		if ns.Type != specs.NetworkNamespace {
			kept = append(kept, ns)
		}
	}
	s.Linux.Namespaces = kept
	if n.path != "" {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: n.path})
	}
	return nil
}

// Sample measures nothing.
func (namespace) Sample() (*resources.NetworkSample, error) { return nil, nil }

// Close does nothing: the daemon owns it.
func (namespace) Close() error { return nil }

// containerID returns 64 random hex digits.
func containerID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// exited is how a process ended.
type exited struct{ *buildrpc.Exit }

func (e exited) Error() string {
	if e.Unknown {
		return "its end was not seen"
	}
	return fmt.Sprintf("exit code: %d", e.Code)
}

// outcome gives a step's end the form that BuildKit and its clients know.
func outcome(ctx context.Context, err error, valid []int) error {
	exit := &gatewayapi.ExitError{ExitCode: uint32(gatewayapi.UnknownExitStatus), Err: err}
	var ended exited
	switch {
	case err == nil:
		exit = &gatewayapi.ExitError{}
	case errors.As(err, &ended) && !ended.Unknown:
		exit = &gatewayapi.ExitError{ExitCode: uint32(ended.Code)}
		if ended.OomKilled {
			exit.Err = fmt.Errorf("process exited with code %d: %w", ended.Code, unix.ENOMEM)
		}
	}
	if len(valid) == 0 && exit.ExitCode == 0 && err == nil || slices.Contains(valid, int(exit.ExitCode)) {
		return nil
	}
	if ctx.Err() != nil {
		exit.Err = fmt.Errorf("%w: %s", context.Cause(ctx), exit.Error())
	}
	return exit
}

// stepStream is what the streams of a step and of an exec have in common.
type stepStream interface {
	Send(*buildrpc.RunIn) error
	Recv() (*buildrpc.RunOut, error)
	CloseSend() error
}

// conversation is a stream to the daemon about one process.
type conversation struct {
	st     stepStream
	cancel context.CancelFunc
	once   sync.Once
	mu     sync.Mutex // of sending
}

// open begins a conversation that outlives ctx: it is closed by close.
func (e *executor) open(ctx context.Context, begin func(context.Context) (stepStream, error)) (*conversation, error) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	st, err := begin(own)
	if err != nil {
		cancel()
		return nil, rpc.FromStatus(err)
	}
	return &conversation{st: st, cancel: cancel}, nil
}

// close ends the conversation and waits until the daemon has taken down what it was about.
func (c *conversation) close() {
	c.once.Do(func() {
		_ = c.st.CloseSend()
		timer := time.AfterFunc(killTime, c.cancel)
		defer timer.Stop()
		for {
			if _, err := c.st.Recv(); err != nil {
				c.cancel()
				return
			}
		}
	})
}

// failure is the daemon's word for why a stream broke.
func (c *conversation) failure(err error) error {
	if errors.Is(err, io.EOF) {
		_, err = c.st.Recv() // sending tells only that there is an end; receiving tells which
	}
	return rpc.FromStatus(err)
}

func (c *conversation) send(in *buildrpc.RunIn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.st.Send(in)
}

// run starts the process and carries its streams until it has ended. When ctx ends first, the process is killed.
func (c *conversation) run(ctx context.Context, start *buildrpc.Start, process bkexecutor.ProcessInfo, begun func()) error {
	if err := c.send(&buildrpc.RunIn{Kind: &buildrpc.RunIn_Start{Start: start}}); err != nil {
		return c.failure(err)
	}
	kill := context.AfterFunc(ctx, func() {
		_ = c.send(&buildrpc.RunIn{Kind: &buildrpc.RunIn_Signal{Signal: int32(unix.SIGKILL)}})
		time.AfterFunc(killTime, c.cancel)
	})
	defer kill()
	over := make(chan struct{})
	defer close(over)
	for {
		out, err := c.st.Recv()
		if err != nil {
			return rpc.FromStatus(err)
		}
		switch k := out.Kind.(type) {
		case *buildrpc.RunOut_Started:
			begun()
			go c.input(process, over)
		case *buildrpc.RunOut_Stdout:
			write(process.Stdout, k.Stdout)
		case *buildrpc.RunOut_Stderr:
			write(process.Stderr, k.Stderr)
		case *buildrpc.RunOut_Exit:
			if k.Exit.Code == 0 && !k.Exit.Unknown {
				return nil
			}
			return exited{k.Exit}
		}
	}
}

func write(w io.Writer, p []byte) {
	if w != nil {
		_, _ = w.Write(p) // nobody to show it to is no reason to end a step
	}
}

// input carries what is sent to the process until it has ended.
func (c *conversation) input(process bkexecutor.ProcessInfo, over <-chan struct{}) {
	if process.Stdin != nil {
		go func() {
			buf := make([]byte, 32<<10)
			for {
				n, err := process.Stdin.Read(buf)
				if n > 0 && c.send(&buildrpc.RunIn{Kind: &buildrpc.RunIn_Stdin{Stdin: slices.Clone(buf[:n])}}) != nil {
					return
				}
				if err != nil {
					_ = c.send(&buildrpc.RunIn{Kind: &buildrpc.RunIn_CloseStdin{CloseStdin: true}})
					return
				}
			}
		}()
	}
	for {
		var in *buildrpc.RunIn
		select {
		case size, ok := <-process.Resize:
			if !ok {
				process.Resize = nil
				continue
			}
			in = &buildrpc.RunIn{Kind: &buildrpc.RunIn_Resize{Resize: &buildrpc.Size{Rows: size.Rows, Columns: size.Cols}}}
		case sig, ok := <-process.Signal:
			if !ok {
				process.Signal = nil
				continue
			}
			in = &buildrpc.RunIn{Kind: &buildrpc.RunIn_Signal{Signal: int32(sig)}}
		case <-over:
			return
		}
		if c.send(in) != nil {
			return
		}
	}
}
