package host

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/build/buildrpc"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

// cleanupTime bounds the taking down of a step whose stream has ended.
const cleanupTime = time.Minute

// stepService runs the steps of builds.
type stepService struct {
	buildrpc.UnimplementedStepsServer
	Config
}

// stream is what Run and Exec have in common.
type stream interface {
	Send(*buildrpc.RunOut) error
	Recv() (*buildrpc.RunIn, error)
	Context() context.Context
}

// Run carries one step from its sandbox to its exit. Whatever ends it, nothing of the step stays.
func (s *stepService) Run(st buildrpc.Steps_RunServer) error { return rpc.ToStatus(s.run(st)) }

func (s *stepService) run(st stream) error {
	ctx := st.Context()
	u := undo.New()
	defer func() {
		if err := u.Run(); err != nil {
			s.Logger.Error("taking down a step of a build", "error", err)
		}
	}()
	end := func(f func(context.Context) error) {
		u.Add(func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
			defer cancel()
			if err := f(ctx); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
			return nil
		})
	}
	in, err := st.Recv()
	if err != nil {
		return err
	}
	prepare := in.GetPrepare()
	if prepare == nil {
		return fault.New(fault.InvalidArgument, "a step begins with its network")
	}
	end(func(ctx context.Context) error { return s.Networks.DetachStep(ctx, prepare.Id) })
	sandbox, err := s.Networks.AttachStep(ctx, prepare.Id, prepare.Network, prepare.Hostname)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("build/host.step.attached"); err != nil {
		return err
	}
	if err := st.Send(&buildrpc.RunOut{Kind: &buildrpc.RunOut_Sandbox{Sandbox: &buildrpc.Sandbox{
		Netns: sandbox.NetNS, ResolvConf: sandbox.ResolvConf, Hosts: sandbox.Hosts}}}); err != nil {
		return err
	}
	if in, err = st.Recv(); err != nil {
		return err
	}
	start := in.GetStart()
	if start == nil {
		return fault.New(fault.InvalidArgument, "a step that has its network is started next")
	}
	bundle, err := s.bundle(prepare.Id, start)
	if err != nil {
		return err
	}
	end(func(ctx context.Context) error { return s.Keeper.Delete(ctx, prepare.Id) })
	if _, err := s.Keeper.Create(ctx, keeper.Spec{ID: prepare.Id, Bundle: bundle, Terminal: start.Terminal, OpenStdin: start.Stdin,
		StdinOnce: true, Log: keeper.LogSpec{Driver: "none"}}); err != nil {
		return err
	}
	if err := failpoint.Hit("build/host.step.created"); err != nil {
		return err
	}
	return s.converse(st, keeper.AttachOptions{ID: prepare.Id, Stdin: start.Stdin, Stdout: true, Stderr: true}, func() error {
		_, err := s.Keeper.Start(ctx, prepare.Id)
		return err
	})
}

// bundle completes the specification of a step: where its group is, the daemon decides.
func (s *stepService) bundle(id string, start *buildrpc.Start) (json.RawMessage, error) {
	var spec specs.Spec
	if err := json.Unmarshal(start.Document, &spec); err != nil {
		return nil, fault.New(fault.InvalidArgument, "specification of a step: %w", err)
	}
	if spec.Linux == nil {
		return nil, fault.New(fault.InvalidArgument, "specification of a step: it has nothing of Linux")
	}
	spec.Linux.CgroupsPath = s.groupOf(start.CgroupParent, id)
	return json.Marshal(spec)
}

// Exec runs another process in a step.
func (s *stepService) Exec(st buildrpc.Steps_ExecServer) error { return rpc.ToStatus(s.exec(st)) }

func (s *stepService) exec(st stream) error {
	ctx := st.Context()
	in, err := st.Recv()
	if err != nil {
		return err
	}
	start := in.GetStart()
	if start == nil {
		return fault.New(fault.InvalidArgument, "an exec begins with its start")
	}
	if _, err := s.Keeper.Exec(ctx, keeper.Process{Container: start.Id, ExecID: start.ExecId, Process: start.Document, Terminal: start.Terminal,
		OpenStdin: start.Stdin, Attach: true}); err != nil {
		return err
	}
	defer func() {
		// One that is still there when nobody listens any more is ended.
		if ctx.Err() != nil {
			_ = s.Keeper.Signal(context.WithoutCancel(ctx), start.Id, start.ExecId, int(unix.SIGKILL), false)
		}
	}()
	return s.converse(st, keeper.AttachOptions{ID: start.Id, ExecID: start.ExecId, Stdin: start.Stdin, Stdout: true, Stderr: true}, nil)
}

// converse carries a process' streams until it has exited, and its exit.
func (s *stepService) converse(st stream, to keeper.AttachOptions, start func() error) error {
	ctx := st.Context()
	attached, leave, err := s.attach(ctx, to)
	if err != nil {
		return err
	}
	defer func() { leave() }()
	if start != nil {
		if err := start(); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("build/host.step.started"); err != nil {
		return err
	}
	if err := st.Send(&buildrpc.RunOut{Kind: &buildrpc.RunOut_Started{Started: true}}); err != nil {
		return err
	}
	go s.input(ctx, st, attached, to)
	for {
		from, data, err := attached.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			// The keeper went away: the next one goes on with what it left.
			if !fault.Is(err, fault.Unavailable) {
				return err
			}
			leave()
			if attached, leave, err = s.attach(ctx, to); err != nil {
				leave = func() {}
				return err
			}
			continue
		}
		out := &buildrpc.RunOut{Kind: &buildrpc.RunOut_Stdout{Stdout: data}}
		if from == keeper.Stderr {
			out.Kind = &buildrpc.RunOut_Stderr{Stderr: data}
		}
		if err := st.Send(out); err != nil {
			return err
		}
	}
	final, err := s.Keeper.Wait(ctx, to.ID, to.ExecID)
	if err != nil {
		return err
	}
	return st.Send(&buildrpc.RunOut{Kind: &buildrpc.RunOut_Exit{Exit: &buildrpc.Exit{
		Code: int32(final.ExitCode), Unknown: final.ExitUnknown, OomKilled: final.OOMKilled}}})
}

// attach joins a process' streams until leave is called or ctx ends.
func (s *stepService) attach(ctx context.Context, to keeper.AttachOptions) (_ *keeper.Stream, leave func(), err error) {
	stream, err := s.Keeper.Attach(ctx, to)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	return stream, func() { stop(); _ = stream.Close() }, nil
}

// input carries what the builder sends to the process, until the builder ends the stream.
func (s *stepService) input(ctx context.Context, st stream, attached *keeper.Stream, to keeper.AttachOptions) {
	for {
		in, err := st.Recv()
		if err != nil {
			return
		}
		switch k := in.Kind.(type) {
		case *buildrpc.RunIn_Stdin:
			_, err = attached.Stdin().Write(k.Stdin)
		case *buildrpc.RunIn_CloseStdin:
			err = attached.CloseWrite()
		case *buildrpc.RunIn_Resize:
			err = s.Keeper.Resize(ctx, to.ID, to.ExecID, uint16(k.Resize.Rows), uint16(k.Resize.Columns))
		case *buildrpc.RunIn_Signal:
			err = s.Keeper.Signal(ctx, to.ID, to.ExecID, int(k.Signal), false)
		}
		if err != nil {
			s.Logger.Debug("input of a step of a build", "step", to.ID, "error", err)
		}
	}
}
