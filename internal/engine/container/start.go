package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/fault/undo"
	"github.com/sampan-cloud/sampan/internal/keeper"
	"github.com/sampan-cloud/sampan/internal/sys/cgroup"
	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

// Start runs a container. fault.NotModified if it runs already.
func (m *Manager) Start(ctx context.Context, id string) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	switch s := &c.rec.State; {
	case s.Paused:
		c.mu.Unlock()
		return fault.New(fault.Conflict, "cannot start a paused container, try unpause instead")
	case s.Running:
		c.mu.Unlock()
		return fault.New(fault.NotModified, "container %s is already running", c.rec.Config.Name)
	}
	c.restart.reset()
	c.rec.RestartCount = 0
	c.rec.ManuallyStopped = false
	err = m.startLocked(context.WithoutCancel(ctx), c)
	remove := err != nil && c.rec.Config.Host.AutoRemove && !c.rec.State.Dead
	c.mu.Unlock()
	if remove {
		m.autoRemove(c)
	}
	return err
}

// startLocked starts the container whatever brought it here: a user, a restart policy, the daemon's start. A failure is
// undone completely and left in the state. The caller holds c.mu.
func (m *Manager) startLocked(ctx context.Context, c *ctr) (err error) {
	if s := c.rec.State.Status; s == StatusRemoving || s == StatusDead {
		return fault.New(fault.Conflict, "container is marked for removal and cannot be started")
	}
	cgroup.ExpectAttach() // while the root file system and the network are made ready
	l, laps := &launch{}, newLaps()
	defer l.close()
	u := undo.New()
	defer func() {
		if err == nil {
			return
		}
		if ended := l.targetEnded(); ended != nil {
			err = ended
		}
		if uerr := u.Run(); uerr != nil {
			m.log.Error("undoing a failed start", "container", c.id, "error", uerr)
		}
		c.dropPending(err)
		s := &c.rec.State
		s.Error = err.Error()
		if s.ExitCode == 0 || !c.rec.EverStarted {
			s.ExitCode = startExitCode(err)
		}
		s.ExitUnknown = false
		s.Running, s.Restarting, s.PID = false, false, 0
		if c.rec.EverStarted {
			s.Status = StatusExited
		}
		c.rec.Networks = emptied(c.rec.Networks)
		m.saveLogged(c)
	}()

	if err := m.joinTargets(c, l); err != nil {
		return err
	}
	att, err := m.prepare(ctx, c, l, u, laps)
	if err != nil {
		return err
	}
	laps.lap("prepare")
	c.rec.Networks = att
	if err := failpoint.Hit("engine/container.start.after-prepare"); err != nil {
		return err
	}
	bundle, err := m.bundle(c, l)
	if err != nil {
		return err
	}
	log, err := m.prepareLog(c, u)
	if err != nil {
		return err
	}
	st, err := m.Keeper.Create(ctx, keeper.Spec{ID: c.id, Bundle: bundle, Terminal: c.rec.Config.Tty,
		OpenStdin: c.rec.Config.OpenStdin, StdinOnce: c.rec.Config.StdinOnce, Log: log})
	if err != nil {
		return createError(err, m.defaults.Load().ulimits(c.rec.Config.Host.Ulimits))
	}
	laps.lap("create")
	u.Add(func() error { return m.Keeper.Delete(ctx, c.id) })
	if err := failpoint.Hit("engine/container.start.after-create"); err != nil {
		return err
	}
	// Who attached before the start is connected before the first byte is printed.
	if err := m.connectPending(ctx, c); err != nil {
		return err
	}
	if err := failpoint.Hit("engine/container.start.after-attach"); err != nil {
		return err
	}
	laps.lap("attach")
	started, err := m.Keeper.Start(ctx, c.id)
	if err != nil {
		return fmt.Errorf("failed to start container process: %w", err)
	}
	if err := failpoint.Hit("engine/container.start.after-start"); err != nil {
		return err
	}
	if started.PID == 0 {
		started.PID = st.PID
	}
	laps.lap("start")
	u.Done()
	m.running(c, started, true)
	laps.lap("record")
	m.log.Debug("container started", append([]any{"container", c.id}, laps.args...)...)
	m.networkEvents(&c.rec.Container, "connect")
	m.volumeEvents(&c.rec.Container, "mount")
	m.event(&c.rec.Container, "start")
	m.relink(&c.rec.Container)
	return nil
}

// laps are what the steps of a start took, for the log at level debug.
type laps struct {
	last time.Time
	args []any
}

func newLaps() *laps { return &laps{last: time.Now()} }

func (l *laps) lap(step string) {
	now := time.Now()
	l.args = append(l.args, step, now.Sub(l.last))
	l.last = now
}

// running records that the container's process runs and begins what goes with that; whole: this daemon started it. The
// caller holds c.mu.
func (m *Manager) running(c *ctr, st keeper.Status, whole bool) {
	at := st.StartedAt.UTC()
	if at.IsZero() {
		at = time.Now().UTC()
	}
	finished := c.rec.State.FinishedAt
	c.rec.State = State{Status: StatusRunning, Running: true, PID: st.PID, StartedAt: at, FinishedAt: finished}
	if st.Paused {
		c.rec.State.Paused, c.rec.State.Status = true, StatusPaused
	}
	c.rec.EverStarted = true
	c.stopAsked = false
	c.begin()
	c.run.whole = whole // before the health checks look at it
	m.ship(c)
	m.startHealth(c)
	m.saveLogged(c)
}

// begin makes what lives as long as the run. The caller holds c.mu.
func (c *ctr) begin() {
	c.run = &run{began: time.Now(), ended: make(chan struct{}), stopHealth: func() {}}
	c.attachedToRun(c.run)
	var ended <-chan struct{} = c.run.ended
	c.ended.Store(&ended)
}

// prepare mounts the root file system and the sources of mounts and attaches the network, both at once, and writes
// the files that depend on them.
func (m *Manager) prepare(ctx context.Context, c *ctr, l *launch, u *undo.Stack, laps *laps) (Attachment, error) {
	type attached struct {
		a    Attachment
		took time.Duration
		err  error
	}
	u.Add(func() error { return m.removeExecDir(c.id) })
	if err := m.makeUserNS(c, l, u); err != nil {
		return Attachment{}, err
	}
	network := make(chan attached, 1)
	current := c.rec.Container
	go func() {
		began := time.Now()
		a, err := m.attachNetwork(ctx, current, l.seed)
		network <- attached{a, time.Since(began), err}
	}()
	began := time.Now()
	err := m.prepareMounts(ctx, c, l, u)
	mounts := time.Since(began)
	net := <-network
	laps.args = append(laps.args, "mounts", mounts, "network", net.took)
	if net.err == nil && !strings.HasPrefix(current.Config.Host.NetworkMode, "container:") {
		u.Add(func() error { return m.Networks.Detach(ctx, c.id) })
	}
	if err != nil {
		return Attachment{}, err
	}
	if net.err != nil {
		return Attachment{}, net.err
	}
	if err := failpoint.Hit("engine/container.start.after-network"); err != nil {
		return Attachment{}, err
	}
	if l.netns == "" {
		l.netns = net.a.NetNS
	}
	if other, ok := strings.CutPrefix(current.Config.Host.NetworkMode, "container:"); ok {
		donor, err := m.find(other)
		if err != nil {
			return Attachment{}, err
		}
		d := donor.snapshot()
		c.rec.HostsPath, c.rec.ResolvConfPath, c.rec.HostnamePath = d.HostsPath, d.ResolvConfPath, d.HostnamePath
		c.rec.Config.Hostname, c.rec.Config.Domainname = d.Config.Hostname, d.Config.Domainname
	} else if err := m.writeFiles(c, &net.a); err != nil {
		return Attachment{}, err
	}
	l.files = fileMounts(&c.rec.Container)
	return net.a, nil
}

func (m *Manager) attachNetwork(ctx context.Context, c Container, seed string) (Attachment, error) {
	if strings.HasPrefix(c.Config.Host.NetworkMode, "container:") {
		return Attachment{}, nil
	}
	a, err := m.Networks.Attach(ctx, c, seed)
	if err != nil {
		return a, errorf("failed to set up container networking: %w", err)
	}
	return a, nil
}

func (m *Manager) prepareMounts(ctx context.Context, c *ctr, l *launch, u *undo.Stack) error {
	target, err := m.rootfsTarget(c)
	if err != nil {
		return err
	}
	if err := own(l.ids, filepath.Dir(target)); err != nil {
		return err
	}
	if l.shift != nil && c.needsFill() { // what is copied must be seen as it is on disk
		if err := m.fillFromImage(ctx, c); err != nil {
			return err
		}
		if _, err := m.rootfsTarget(c); err != nil {
			return err
		}
	}
	root, err := m.Images.MountRootfsShifted(ctx, c.id, target, l.shift)
	if err != nil {
		return err
	}
	u.Add(func() error { return m.Images.UnmountRootfs(ctx, c.id, target) })
	l.rootfs = root.Path
	if err := failpoint.Hit("engine/container.start.after-rootfs"); err != nil {
		return err
	}
	if err := m.fillVolumes(ctx, c, l.rootfs); err != nil {
		return err
	}
	for i, p := range c.rec.MountPlan {
		src, err := m.makeSource(ctx, c, i, p, l.shift, u)
		if err != nil {
			return err
		}
		sm, shared, err := specMount(p, src)
		if err != nil {
			return err
		}
		if shared == "shared" || l.shared == "" {
			l.shared = shared
		}
		l.mounts = append(l.mounts, sm)
	}
	switch mode := c.rec.Config.Host.IpcMode; {
	case mode == "host":
		l.shm = "/dev/shm"
	case mode == "shareable":
		l.shm = m.shmPath(c.id)
		if err := os.MkdirAll(l.shm, 0o700); err != nil {
			return err
		}
		if err := unix.Mount("shm", l.shm, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV,
			fmt.Sprintf("mode=1777,size=%d%s", c.rec.Config.Host.ShmSize, ownerOption(l.ids))); err != nil {
			return fmt.Errorf("mounting the container's /dev/shm: %w", err)
		}
		u.Add(func() error { return unix.Unmount(l.shm, unix.MNT_DETACH) })
	}
	l.user, err = lookupUser(l.rootfs, c.rec.Config.User, c.rec.Config.Host.GroupAdd)
	if err != nil {
		return err
	}
	if err := makeWorkdir(l.rootfs, c.rec.Config.WorkingDir, c.rec.MountPlan, l.ids); err != nil {
		return err
	}
	def := m.defaults.Load()
	wantsInit := def.Init
	if in := c.rec.Config.Host.Init; in != nil {
		wantsInit = *in
	}
	if wantsInit && c.rec.Config.Host.PidMode == "" {
		l.initPath = m.InitPath
	}
	l.seccomp = def.Seccomp
	return failpoint.Hit("engine/container.start.after-mounts")
}

func (m *Manager) shmPath(id string) string { return filepath.Join(m.execDir(), id, "shm") }

// makeWorkdir makes the working directory in the root file system if no mount covers it.
func makeWorkdir(rootfs, dir string, mounts []plannedMount, ids userns.Mapping) error {
	if dir == "" || dir == "/" {
		return nil
	}
	for _, mt := range mounts {
		if dir == mt.Destination || strings.HasPrefix(dir, mt.Destination+"/") {
			return nil // the runtime makes what lies inside a mount
		}
	}
	real, err := securejoin.SecureJoin(rootfs, dir)
	if err != nil {
		return err
	}
	st, err := os.Stat(real)
	if err == nil && !st.IsDir() {
		return fault.New(fault.InvalidArgument, "Cannot mkdir: %s is not a directory", dir)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return mkdirOwned(ids, real)
}

// joinTargets finds the namespaces of the containers this one joins. They must run.
func (m *Manager) joinTargets(c *ctr, l *launch) error {
	h := &c.rec.Config.Host
	for _, j := range []struct {
		mode, ns, name string
		path           *string
	}{{h.NetworkMode, "net", "network", &l.netns}, {h.IpcMode, "ipc", "IPC", &l.ipcns}, {h.PidMode, "pid", "PID", &l.pidns}} {
		ref, ok := strings.CutPrefix(j.mode, "container:")
		if !ok {
			continue
		}
		other, err := m.find(ref)
		if err != nil {
			return err
		}
		o := other.snapshot()
		switch {
		case other == c:
			return fault.New(fault.InvalidArgument, "cannot join own %s namespace", j.name)
		case j.ns != "net" && !o.State.Running:
			return fault.New(fault.Internal, "failed to join %s namespace: container %s is not running", strings.ToUpper(j.ns), o.ID)
		case !o.State.Running || o.State.Restarting:
			return fault.New(fault.Conflict, "cannot join the %s namespace of a non running container: container %s is %s", j.ns, o.Config.Name, o.State.Status)
		}
		*j.path = fmt.Sprintf("/proc/%d/ns/%s", o.State.PID, j.ns)
		l.targets = append(l.targets, joinTarget{j.name, o.Config.Name, *j.path})
		if err := joinUserNS(c, &o, l); err != nil {
			return err
		}
		if j.ns == "ipc" {
			if o.Config.Host.IpcMode != "shareable" {
				return fault.New(fault.Conflict, "container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", o.Config.Name)
			}
			l.shm = m.shmPath(o.ID)
		}
		if j.ns == "net" && o.Config.Host.NetworkMode == "host" {
			*j.path = ""
		}
	}
	return nil
}

// joinTarget is a container whose namespace is joined.
type joinTarget struct{ kind, name, path string }

// targetEnded is the reason why a start failed if that is the end of a container whose namespace was to be joined, which
// nothing keeps from ending meanwhile.
func (l *launch) targetEnded() error {
	for _, t := range l.targets {
		if _, err := os.Stat(t.path); err != nil {
			return fault.New(fault.Conflict, "cannot join the %s namespace of container %s, which has just ended: start it first", t.kind, t.name)
		}
	}
	return nil
}

// bundle is the OCI spec as the keeper takes it.
func (m *Manager) bundle(c *ctr, l *launch) (json.RawMessage, error) {
	s, err := m.host.buildSpec(m.defaults.Load().effective(&c.rec.Container), l, m.CgroupParent)
	if err != nil {
		return nil, err
	}
	if err := m.devices.inject(s, c.rec.Config.Host.DeviceRequests); err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

// removeExecDir removes the mount points of a container; only empty folders go.
func (m *Manager) removeExecDir(id string) error {
	dir := filepath.Join(m.execDir(), id)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}

// startFailed is the exit code of a container that could not be started for no fault of its program.
const startFailed = 128

// startExitCode is the exit code of a container whose process could not be started, as a shell would give it.
func startExitCode(err error) int {
	text := strings.ToLower(err.Error())
	for _, s := range []string{"executable file not found", "no such file or directory", "system cannot find the file"} {
		if strings.Contains(text, s) {
			return 127
		}
	}
	for _, s := range []string{"permission denied", "not a directory", "is a directory", "exec format error"} {
		if strings.Contains(text, s) {
			return 126
		}
	}
	return startFailed
}

// runtimeFiles is about how many open files a container's init needs. With far less it cannot even tell that it had too few.
const runtimeFiles = 20

// createError says once that it was the container's process that could not be made: libcontainer may have said so too.
func createError(err error, limits []Ulimit) error {
	text := strings.TrimPrefix(err.Error(), "unable to start container process: ")
	if i := slices.IndexFunc(limits, func(l Ulimit) bool { return l.Name == "nofile" }); i >= 0 && (limits[i].Soft < runtimeFiles || strings.Contains(text, unix.EMFILE.Error())) {
		return fault.New(fault.InvalidArgument, "failed to create container process: the limit of open files is too low for the runtime, which needs %d or so: "+
			"--ulimit nofile=%d:%d: %s", runtimeFiles, limits[i].Soft, limits[i].Hard, text)
	}
	return fault.New(fault.KindOf(err), "failed to create container process: %s", text)
}

// emptied is what stays of an attachment when the container does not run: the endpoints that were asked for.
func emptied(a Attachment) Attachment {
	out := Attachment{Endpoints: make(map[string]Endpoint, len(a.Endpoints))}
	for name, e := range a.Endpoints {
		out.Endpoints[name] = Endpoint{Config: e.Config, NetworkID: e.NetworkID, NetworkName: e.NetworkName, DNSNames: slices.Clone(e.DNSNames)}
	}
	return out
}
