package control

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/sampan-cloud/sampan/internal/control/dispatcher"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

// leaderPause is the pause before a leader is sought anew.
const leaderPause = 500 * time.Millisecond

// Logs streams the logs of tasks wherever they run, until ctx ends or, without Follow, all are read. Who follows the logs of
// services goes on with the next leader where one has gone, at the line where it was.
func (a *API) Logs(ctx context.Context, taskIDs []string, o LogOptions, emit func(TaskLog) error) error {
	r := &rpc.LogRequest{
		TaskIds: taskIDs, ServiceIds: o.Services, Follow: o.Follow, Stdout: o.Stdout, Stderr: o.Stderr, Tail: int64(o.Tail),
		Since: nanos(o.Since), Until: nanos(o.Until),
	}
	began := time.Now()
	var places dispatcher.LogPlaces
	var refused error // by whom the lines are for
	take := func(f *rpc.LogFrame) error {
		if places.Take(f) {
			refused = emit(TaskLog{TaskID: f.GetTaskId(), NodeID: f.GetNodeId(), Stderr: f.GetStderr(), Time: time.Unix(0, f.GetTime()).UTC(),
				Line: f.GetLine(), Attrs: f.GetAttrs()})
		}
		return refused
	}
	for first := true; ; first = false {
		subscribe, err := a.logSource(ctx)
		if err != nil && first {
			return err
		}
		if err == nil {
			err = subscribe(ctx, r, take)
		}
		endless := o.Follow && len(o.Services) > 0
		if !endless || err == nil || refused != nil || fault.KindOf(err) != fault.Unavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(leaderPause):
		}
		since, ok := places.AllAgain()
		if !ok && o.Tail >= 0 {
			since, ok = max(began.UnixNano(), r.GetSince()), true
		}
		if ok {
			r.Since, r.Tail = since, -1
		}
	}
}

// logSource finds the leading manager, which has the sessions through which logs come.
func (a *API) logSource(ctx context.Context) (func(context.Context, *rpc.LogRequest, func(*rpc.LogFrame) error) error, error) {
	if a.cfg.Local != nil && a.cfg.Local.Leads() {
		return func(ctx context.Context, r *rpc.LogRequest, take func(*rpc.LogFrame) error) error {
			return rpc.FromStatus(a.cfg.Local.Subscribe(ctx, r, take))
		}, nil
	}
	if a.cfg.Leader == nil {
		return nil, rpc.NotLeader("")
	}
	c, err := a.cfg.Leader(ctx)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, r *rpc.LogRequest, take func(*rpc.LogFrame) error) error {
		stream, err := c.SubscribeLogs(ctx, r)
		for err == nil {
			var f *rpc.LogFrame
			if f, err = stream.Recv(); err == nil {
				err = take(f)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return rpc.FromStatus(err)
	}, nil
}
