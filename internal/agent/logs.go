package agent

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/rpc"
)

// serveLogs answers a log request with one stream of the lines of all its tasks.
func (a *Agent) serveLogs(ctx context.Context, link Link, r *rpc.LogRequest, wg *sync.WaitGroup) {
	ctx, cancel := context.WithCancel(ctx)
	a.mu.Lock()
	a.logs[r.GetId()] = cancel
	a.mu.Unlock()
	wg.Go(func() {
		defer a.cancelLogs(r.GetId())
		if err := a.publishLogs(ctx, link, r); err != nil && ctx.Err() == nil {
			a.cfg.Logger.Debug("logs were not sent to the end", "error", err)
		}
	})
}

func (a *Agent) cancelLogs(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cancel := a.logs[id]; cancel != nil {
		cancel()
		delete(a.logs, id)
	}
}

func (a *Agent) publishLogs(ctx context.Context, link Link, r *rpc.LogRequest) error {
	stream, err := link.Dispatcher.PublishLogs(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&rpc.LogFrame{RequestId: r.GetId(), Time: time.Now().UnixNano()}); err != nil {
		return err
	}
	var mu sync.Mutex // a stream takes one frame at a time
	send := func(f *rpc.LogFrame) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(f)
	}
	var wg sync.WaitGroup
	for _, task := range r.GetTaskIds() {
		wg.Go(func() {
			if err := a.readLog(ctx, task, r, send); err != nil && ctx.Err() == nil {
				_ = send(&rpc.LogFrame{TaskId: task, Error: err.Error()})
			}
		})
	}
	wg.Wait()
	_, err = stream.CloseAndRecv()
	return err
}

func (a *Agent) readLog(ctx context.Context, task string, r *rpc.LogRequest, send func(*rpc.LogFrame) error) error {
	c, _ := a.tasks.containerOf(task)
	if r.GetFollow() {
		// What follows the log of a container that was not started yet ends at once.
		var err error
		if c, err = a.tasks.awaitStart(ctx, task); err != nil {
			return err
		}
	}
	if c.ID == "" {
		return nil // it never had one: nothing was printed
	}
	lines, err := a.cfg.Engine.Logs(ctx, c.ID, container.LogOptions{
		Stdout: r.GetStdout(), Stderr: r.GetStderr(), Follow: r.GetFollow(), Tail: int(r.GetTail()),
		Since: moment(r.GetSince()), Until: moment(r.GetUntil()), Details: true,
	})
	if err != nil {
		return err
	}
	defer lines.Close()
	for {
		l, err := lines.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = send(&rpc.LogFrame{TaskId: task, Stderr: l.Stream == container.Stderr, Time: l.Time.UnixNano(), Line: l.Line, Attrs: l.Attrs})
		if err != nil {
			return err
		}
	}
}

func moment(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}
