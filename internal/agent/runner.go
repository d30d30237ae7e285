package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
)

// runner leads one task from its assignment to its end, one transition at a time.
type runner struct {
	a    *Agent
	id   string
	wake chan struct{} // capacity 1: the task, or its container, may have changed

	mu        sync.Mutex
	task      *cloud.Task
	dismissed bool
	stopping  context.CancelFunc // ends a preparation that is not wanted any more

	// The rest belongs to the runner's own goroutine.
	container string
	status    cloud.TaskStatus
	restarts  uint64 // done here, without managers
}

// minRestartDelay is between restarts of a task that are done here: a policy without delay must not keep the host busy.
const minRestartDelay = 100 * time.Millisecond

func newRunner(a *Agent, t *cloud.Task) *runner {
	return &runner{a: a, id: t.ID, task: t, wake: make(chan struct{}, 1)}
}

// tell hands the runner the task as the managers have it now.
func (r *runner) tell(t *cloud.Task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.task = t
	if t.Desired > cloud.TaskRunning && r.stopping != nil {
		r.stopping()
	}
	poke(r.wake)
}

// dismiss says that the task is not this node's any more.
func (r *runner) dismiss() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dismissed = true
	if r.stopping != nil {
		r.stopping()
	}
	poke(r.wake)
}

func (r *runner) look() (t *cloud.Task, unwanted, dismissed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.task, r.dismissed || r.task.Desired > cloud.TaskRunning, r.dismissed
}

// while returns a context that ends when the task is not wanted any more.
func (r *runner) while(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopping = cancel
	if r.dismissed || r.task.Desired > cloud.TaskRunning {
		cancel()
	}
	return ctx, cancel
}

// run leads the task to its end and waits until it may be forgotten. It returns false when ctx ended first.
func (r *runner) run(ctx context.Context) bool {
	r.status, _ = r.a.reports.get(r.id)
	r.execute(ctx)
	for told := false; ; {
		_, _, dismissed := r.look()
		if ctx.Err() != nil {
			return false
		}
		if dismissed {
			break
		}
		var onItsOwn <-chan struct{}
		if !told && r.mayRestartHere() {
			onItsOwn = r.a.onItsOwn()
		}
		select {
		case <-ctx.Done():
			return false
		case <-r.wake:
		case <-onItsOwn:
			if told = r.a.reports.told(r.id); !told && r.restartHere(ctx) {
				r.watch(ctx)
			}
		}
	}
	for r.remove(ctx) != nil {
		if !pause(ctx, time.Second) {
			return false
		}
	}
	return true
}

// remove takes away the task's container and files.
func (r *runner) remove(ctx context.Context) error {
	if c, ok := r.a.tasks.containerOf(r.id); ok {
		r.a.tasks.unbind(c.ID)
		err := r.a.cfg.Engine.Remove(ctx, c.ID, true, true, false)
		if err != nil && !fault.Is(err, fault.NotFound) {
			r.a.cfg.Logger.Error("the container of a task that is gone could not be removed: will try again", "task", r.id, "container", c.ID, "error", err)
			return err
		}
	}
	r.a.secrets.remove(r.id)
	return nil
}

// enter notes and reports that the task is in a state now.
func (r *runner) enter(s cloud.TaskState, message string, edit func(*cloud.TaskStatus)) {
	r.status.State, r.status.Message, r.status.Err = s, message, ""
	r.status.Timestamp = time.Now().UTC()
	if s == cloud.TaskRunning {
		r.status.RunningAt = r.status.Timestamp
	}
	if edit != nil {
		edit(&r.status)
	}
	r.a.reports.set(r.id, r.status) // before the views: they keep the statuses on disk
	switch {
	case s.Ended():
		r.a.views.setDead(r.id)
		r.a.tasks.announce()
	case s == cloud.TaskRunning:
		r.a.views.setAlive(r.id, r.a.isOnItsOwn())
	}
}

func (r *runner) fail(s cloud.TaskState, message string, err error) {
	r.enter(s, message, func(st *cloud.TaskStatus) { st.Err = err.Error() })
}

// execute takes the task from wherever it is to its end, or returns when ctx ends.
func (r *runner) execute(ctx context.Context) {
	t, unwanted, dismissed := r.look()
	c, exists := r.a.tasks.containerOf(r.id)
	if exists {
		r.container = c.ID
		r.a.tasks.bind(c.ID, r)
	}
	switch {
	case dismissed:
		if exists && c.State.Running {
			r.stop(ctx)
		}
		return
	case t.Status.State.Ended() || r.status.State.Ended():
		r.a.views.setDead(r.id)
		if exists && c.State.Running {
			r.stopContainer(ctx)
		}
		return
	case exists && c.State.Running:
		r.adopt(c)
	case exists && !c.State.StartedAt.IsZero():
		r.ended(c)
		return
	case !exists && r.status.State >= cloud.TaskStarting:
		r.fail(cloud.TaskFailed, "failed", errors.New("the task's container is gone"))
		return
	case unwanted:
		r.enter(cloud.TaskShutdown, "shutdown", nil)
		return
	default:
		if !r.prepare(ctx) || !r.begin(ctx) {
			return
		}
	}
	r.watch(ctx)
}

// adopt takes up a container that an earlier agent, or this one, started.
func (r *runner) adopt(c container.Container) {
	if r.status.State == cloud.TaskRunning && r.status.ContainerID == c.ID {
		return // nothing happened
	}
	r.status.ContainerID, r.status.PID = c.ID, c.State.PID
	if r.status.State < cloud.TaskStarting {
		r.enter(cloud.TaskStarting, "starting", nil)
	}
}

// prepare readies image, networks, files and container. It returns whether the task goes on.
func (r *runner) prepare(ctx context.Context) bool {
	pctx, done := r.while(ctx)
	defer done()
	r.enter(cloud.TaskAccepted, "accepted", nil)
	r.enter(cloud.TaskPreparing, "preparing", nil)
	id, err := r.make(pctx)
	switch {
	case ctx.Err() != nil:
		return false
	case err == nil:
	case pctx.Err() != nil:
		r.enter(cloud.TaskShutdown, "shutdown", nil)
		return false
	default:
		r.fail(cloud.TaskRejected, "preparing", err)
		return false
	}
	r.container = id
	r.a.tasks.bind(id, r)
	r.enter(cloud.TaskReady, "prepared", func(s *cloud.TaskStatus) { s.ContainerID = id })
	return true
}

// make creates the task's container with all that it needs.
func (r *runner) make(ctx context.Context) (string, error) {
	if c, ok := r.a.tasks.containerOf(r.id); ok {
		return c.ID, nil
	}
	t, _, _ := r.look()
	values := templateContext(t, r.a.cfg.NodeID, r.a.cfg.Description())
	spec, err := t.Spec.Container.ExpandTemplates(values)
	if err != nil {
		return "", err
	}
	for _, ref := range images(&spec) {
		if err := r.image(ctx, t, ref); err != nil {
			return "", err
		}
	}
	// The networks must know the task before its sandbox is joined to them. If they cannot be made, joining says why.
	needs := func(v *cloud.NodeView) bool { return v.Tasks[r.id] != nil }
	if err := r.a.views.await(ctx, needs); err != nil && ctx.Err() != nil {
		return "", err
	}
	if err := failpoint.Hit("agent.runner.before-create"); err != nil {
		return "", err
	}
	view := r.a.views.current()
	mounts, err := r.a.secrets.write(t, view, values, spec.Env)
	if err != nil {
		return "", err
	}
	cfg := containerConfig(t, spec, view, r.a.cfg.NodeID, mounts)
	id, warnings, err := r.a.cfg.Engine.Create(ctx, cfg, "")
	if err != nil {
		return "", err
	}
	for _, w := range warnings {
		r.a.cfg.Logger.Warn("container of a task", "task", t.Name(), "warning", w)
	}
	return id, nil
}

// images are the task's image and those that it mounts.
func images(spec *cloud.ContainerSpec) []string {
	all := []string{spec.Image}
	for _, m := range spec.Mounts {
		if m.Type == cloud.MountImage && !slices.Contains(all, m.Source) {
			all = append(all, m.Source)
		}
	}
	return all
}

// image sees that the host has an image that the task needs.
func (r *runner) image(ctx context.Context, t *cloud.Task, ref string) error {
	lock := r.a.tasks.pullLock(ref)
	lock.Lock()
	defer lock.Unlock()
	_, err := r.a.cfg.Images.Get(ctx, ref)
	if err == nil || !fault.Is(err, fault.NotFound) {
		return err
	}
	auth, err := registryAuth(t.Spec.Container.PullAuth)
	if err != nil {
		return err
	}
	if _, err := r.a.cfg.Images.Pull(ctx, ref, "", auth, nil); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.New(fault.NotFound, "No such image: %s (pulling it failed: %w)", ref, err)
	}
	return nil
}

// begin starts the container once the managers want it started. It returns whether the task goes on.
func (r *runner) begin(ctx context.Context) bool {
	for {
		t, unwanted, _ := r.look()
		if unwanted {
			r.enter(cloud.TaskShutdown, "shutdown", nil)
			return false
		}
		if t.Desired >= cloud.TaskRunning {
			break
		}
		select {
		case <-ctx.Done():
			return false
		case <-r.wake:
		}
	}
	r.enter(cloud.TaskStarting, "starting", nil)
	sctx, done := r.while(ctx)
	err := r.a.cfg.Engine.Start(sctx, r.container)
	done()
	switch {
	case ctx.Err() != nil:
		return false
	case err == nil:
		r.a.tasks.announce()
		return true
	}
	if _, unwanted, _ := r.look(); unwanted {
		r.stop(ctx)
		return false
	}
	r.fail(cloud.TaskFailed, "starting", fmt.Errorf("starting container failed: %w", err))
	return false
}

// watch follows the started container: it is running when healthy, and failed when it ends, is unhealthy, or is gone.
func (r *runner) watch(ctx context.Context) {
	ended := make(chan struct{})
	wctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(ended)
		_, _, _ = r.a.cfg.Engine.Wait(wctx, r.container, "not-running", nil)
	}()
	r.observe(ctx, ended)
	cancel()
	<-ended
}

// observe looks at the container whenever something may have happened to it, until the task's end.
func (r *runner) observe(ctx context.Context, ended <-chan struct{}) {
	for {
		if _, unwanted, _ := r.look(); unwanted {
			r.stop(ctx)
			return
		}
		c, err := r.a.cfg.Engine.Get(r.container)
		switch {
		case err != nil:
			if fault.Is(err, fault.NotFound) {
				r.fail(cloud.TaskFailed, "failed", errors.New("the task's container is gone"))
				return
			}
			r.a.cfg.Logger.Warn("look at a task's container", "task", r.id, "error", err)
		case !c.State.Running:
			r.ended(c)
			return
		case health(c) == "unhealthy":
			// Said before it is stopped: the others shall not send it requests for the time that takes.
			r.fail(cloud.TaskFailed, "unhealthy", errors.New("task: unhealthy container"))
			r.stopContainer(ctx)
			return
		case health(c) == "starting":
		case r.status.State < cloud.TaskRunning:
			r.enter(cloud.TaskRunning, "started", func(s *cloud.TaskStatus) {
				s.ContainerID, s.PID, s.HostPorts = c.ID, c.State.PID, hostPorts(c)
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-ended:
			ended = nil // its state is read above
		}
	}
}

func health(c container.Container) string {
	if c.State.Health == nil {
		return ""
	}
	return c.State.Health.Status
}

// ended notes how the container ended.
func (r *runner) ended(c container.Container) {
	state, message := cloud.TaskComplete, "finished"
	var why string
	if c.State.ExitCode != 0 || c.State.ExitUnknown || c.State.Error != "" {
		state, message = cloud.TaskFailed, "started"
		why = fmt.Sprintf("task: non-zero exit (%d)", c.State.ExitCode)
		switch {
		case c.State.ExitUnknown:
			why = "task: the exit code is unknown"
		case c.State.OOMKilled:
			why += ": out of memory"
		case c.State.Error != "":
			why += ": " + c.State.Error
		}
	}
	if _, unwanted, _ := r.look(); unwanted {
		state, message, why = cloud.TaskShutdown, "shutdown", ""
	}
	r.enter(state, message, func(s *cloud.TaskStatus) { s.Err, s.ExitCode, s.PID = why, c.State.ExitCode, 0 })
}

// mayRestartHere reports whether the task ended by itself and its restart policy wants it to run again. That is this
// node's business only if no manager has heard of it, and while none can be reached.
func (r *runner) mayRestartHere() bool {
	t, unwanted, _ := r.look()
	policy := t.Spec.Restart
	switch {
	case unwanted, r.container == "", t.Status.State.Ended(),
		r.status.State != cloud.TaskFailed && r.status.State != cloud.TaskComplete,
		policy.Condition == cloud.RestartNone,
		(policy.Condition == cloud.RestartOnFailure || t.Iteration != nil) && r.status.State == cloud.TaskComplete,
		policy.MaxAttempts > 0 && r.restarts >= policy.MaxAttempts:
		return false
	}
	return true
}

// restartHere starts the container again after the policy's delay, unless a session opens before: then the managers
// replace the task.
func (r *runner) restartHere(ctx context.Context) bool {
	t, _, _ := r.look()
	delay := 5 * time.Second
	if d := t.Spec.Restart.Delay; d != nil {
		delay = max(*d, minRestartDelay)
	}
	_, online := r.a.connected()
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for waiting := true; waiting; {
		select {
		case <-ctx.Done():
			return false
		case <-online:
			return false
		case <-r.wake:
			if _, unwanted, _ := r.look(); unwanted {
				return false
			}
		case <-timer.C:
			waiting = false
		}
	}
	r.restarts++
	if err := r.a.cfg.Engine.Start(ctx, r.container); err != nil && !fault.Is(err, fault.NotModified) {
		if ctx.Err() == nil {
			r.a.cfg.Logger.Warn("restart a task without managers", "task", t.Name(), "error", err)
		}
		return false
	}
	r.enter(cloud.TaskStarting, "starting", nil)
	r.a.cfg.Logger.Info("restarted a task without managers", "task", t.Name())
	return true
}

// lastCalls is how long a task on networks goes on after the last node has stopped sending it requests: connections made
// a moment before may not have been accepted yet, and the kernel resets those when the program stops listening.
const lastCalls = 200 * time.Millisecond

// stop ends the task on request.
func (r *runner) stop(ctx context.Context) {
	if t, _, _ := r.look(); t != nil && len(t.Networks) > 0 && !pause(ctx, lastCalls) {
		return
	}
	if !r.stopContainer(ctx) {
		return
	}
	r.enter(cloud.TaskShutdown, "shutdown", func(s *cloud.TaskStatus) {
		s.PID = 0
		if c, err := r.a.cfg.Engine.Get(r.container); err == nil {
			s.ExitCode = c.State.ExitCode
		}
	})
}

// stopContainer stops the container with its grace period; false: ctx ended.
func (r *runner) stopContainer(ctx context.Context) bool {
	for {
		err := r.a.cfg.Engine.Stop(ctx, r.container, "", nil)
		if err == nil || fault.Is(err, fault.NotFound) || fault.Is(err, fault.NotModified) {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		r.a.cfg.Logger.Error("a task's container could not be stopped: will try again", "task", r.id, "container", r.container, "error", err)
		if !pause(ctx, time.Second) {
			return false
		}
	}
}
