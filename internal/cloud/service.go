package cloud

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Service is a specification that the control loops keep true as tasks.
type Service struct {
	Meta
	Spec         ServiceSpec   `json:"spec"`
	PreviousSpec *ServiceSpec  `json:"previousSpec,omitempty"` // what a rollback goes back to
	SpecVersion  uint64        `json:"specVersion"`            // rises by one with each change of Spec; tasks carry it
	Endpoint     Endpoint      `json:"endpoint"`
	Update       *UpdateStatus `json:"update,omitempty"`
	Job          *JobStatus    `json:"job,omitempty"` // of the job modes
}

// ServiceSpec is what a user asks for.
type ServiceSpec struct {
	Name     string            `json:"name"`
	Labels   map[string]string `json:"labels,omitempty"`
	Mode     ServiceMode       `json:"mode"`
	Task     TaskSpec          `json:"task"`
	Update   UpdateConfig      `json:"update"`
	Rollback UpdateConfig      `json:"rollback"`
	Endpoint EndpointSpec      `json:"endpoint"`
}

// ServiceMode says how many tasks a service has. Global is one on every eligible node; otherwise Replicas. Tasks of a Job
// run to their end: Replicas is how many are to complete then, MaxConcurrent how many run at a time.
type ServiceMode struct {
	Global        bool   `json:"global,omitempty"`
	Job           bool   `json:"job,omitempty"`
	Replicas      uint64 `json:"replicas"`
	MaxConcurrent uint64 `json:"maxConcurrent,omitempty"`
}

// String returns the mode as Docker's filters and commands spell it.
func (m ServiceMode) String() string {
	name := "replicated"
	if m.Global {
		name = "global"
	}
	if m.Job {
		name += "-job"
	}
	return name
}

// JobStatus is which run of a job the newest is. Each change of the service makes another.
type JobStatus struct {
	Iteration     uint64    `json:"iteration"`
	LastExecution time.Time `json:"lastExecution"`
}

// TaskSpec is what one task of a service is. A change of it replaces tasks; see (*TaskSpec).Equal.
type TaskSpec struct {
	Container    ContainerSpec `json:"container"`
	Limits       Resources     `json:"limits"`
	Reservations Resources     `json:"reservations"`
	// SwapBytes is how much swap a task may use beside its memory limit, -1: any amount; nil: as much as memory.
	SwapBytes        *int64              `json:"swapBytes,omitempty"`
	MemorySwappiness *int64              `json:"memorySwappiness,omitempty"` // 0 to 100, nil or -1: the host's
	Restart          RestartPolicy       `json:"restart"`
	Placement        Placement           `json:"placement"`
	Networks         []NetworkConnection `json:"networks,omitempty"`
	Log              *LogConfig          `json:"log,omitempty"`
	ForceUpdate      uint64              `json:"forceUpdate,omitempty"`
}

// ContainerSpec is what the engine runs for a task. It is long because the Docker Engine API gives a service's
// container that many settings.
type ContainerSpec struct {
	Image           string            `json:"image"`
	PullAuth        string            `json:"pullAuth,omitempty"` // X-Registry-Auth as the client sent it (base64 JSON); kept out of every answer
	Labels          map[string]string `json:"labels,omitempty"`
	Command         []string          `json:"command,omitempty"` // replaces the image's entry point
	Args            []string          `json:"args,omitempty"`
	Hostname        string            `json:"hostname,omitempty"`
	Env             []string          `json:"env,omitempty"`
	Dir             string            `json:"dir,omitempty"`
	User            string            `json:"user,omitempty"`
	Groups          []string          `json:"groups,omitempty"`
	StopSignal      string            `json:"stopSignal,omitempty"`
	StopGracePeriod *time.Duration    `json:"stopGracePeriod,omitempty"` // nil: 10 s
	TTY             bool              `json:"tty,omitempty"`
	OpenStdin       bool              `json:"openStdin,omitempty"`
	ReadOnly        bool              `json:"readOnly,omitempty"`
	Init            *bool             `json:"init,omitempty"`
	Mounts          []Mount           `json:"mounts,omitempty"`
	Health          *HealthConfig     `json:"health,omitempty"`
	Hosts           []string          `json:"hosts,omitempty"` // lines of /etc/hosts: "IP NAME [NAME…]"
	DNS             DNSConfig         `json:"dns"`
	Secrets         []FileReference   `json:"secrets,omitempty"`
	Configs         []FileReference   `json:"configs,omitempty"`
	Sysctls         map[string]string `json:"sysctls,omitempty"`
	CapAdd          []string          `json:"capAdd,omitempty"`
	CapDrop         []string          `json:"capDrop,omitempty"`
	Ulimits         []Ulimit          `json:"ulimits,omitempty"`
	OOMScoreAdj     int64             `json:"oomScoreAdj,omitempty"`
	Privileges      *Privileges       `json:"privileges,omitempty"`
}

// Privileges are a container's security options. The empty one is the defaults, as nil is.
type Privileges struct {
	SELinux         *SELinuxContext `json:"selinux,omitempty"`
	Seccomp         *Seccomp        `json:"seccomp,omitempty"`
	AppArmor        AppArmorMode    `json:"apparmor,omitempty"`
	NoNewPrivileges bool            `json:"noNewPrivileges,omitempty"`
}

// SELinuxContext is the label of a container on a host that has SELinux.
type SELinuxContext struct {
	Disable bool   `json:"disable,omitempty"`
	User    string `json:"user,omitempty"`
	Role    string `json:"role,omitempty"`
	Type    string `json:"type,omitempty"`
	Level   string `json:"level,omitempty"`
}

// SeccompMode chooses the filter of system calls.
type SeccompMode string

// The seccomp modes. Empty means default.
const (
	SeccompDefault    SeccompMode = "default"
	SeccompUnconfined SeccompMode = "unconfined"
	SeccompCustom     SeccompMode = "custom" // Profile
)

// Seccomp is the filter of system calls of a container.
type Seccomp struct {
	Mode    SeccompMode `json:"mode,omitempty"`
	Profile []byte      `json:"profile,omitempty"` // JSON, as docker run takes it
}

// AppArmorMode chooses the AppArmor profile on a host that has AppArmor.
type AppArmorMode string

// The AppArmor modes. Empty means that nothing is said, which is the default too.
const (
	AppArmorDefault  AppArmorMode = "default"
	AppArmorDisabled AppArmorMode = "disabled"
)

// DNSConfig replaces what a container's resolver would inherit from its host.
type DNSConfig struct {
	Servers []string `json:"servers,omitempty"`
	Search  []string `json:"search,omitempty"`
	Options []string `json:"options,omitempty"`
}

// Ulimit is a resource limit by its name without RLIMIT_, in lower case.
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// MountType is the source of a mount.
type MountType string

// The mount types.
const (
	MountBind   MountType = "bind"
	MountVolume MountType = "volume"
	MountTmpfs  MountType = "tmpfs"
	MountImage  MountType = "image"
)

// Mount is one mount of a container. One type for all kinds of mounts, as in the API; what belongs to one kind says so.
type Mount struct {
	Type         MountType `json:"type"`
	Source       string    `json:"source,omitempty"` // host path, volume name (empty: anonymous) or image
	Target       string    `json:"target"`
	ReadOnly     bool      `json:"readOnly,omitempty"`
	Propagation  string    `json:"propagation,omitempty"`  // bind only
	NonRecursive bool      `json:"nonRecursive,omitempty"` // bind only
	// Bind only: ReadOnlyNonRecursive leaves mounts inside writable, ReadOnlyForceRecursive insists that they are not.
	ReadOnlyNonRecursive   bool              `json:"readOnlyNonRecursive,omitempty"`
	ReadOnlyForceRecursive bool              `json:"readOnlyForceRecursive,omitempty"`
	CreateMountpoint       bool              `json:"createMountpoint,omitempty"` // bind only: make the source when it is missing
	NoCopy                 bool              `json:"noCopy,omitempty"`           // volume only: leave out the image's content
	Subpath                string            `json:"subpath,omitempty"`          // volume and image only
	VolumeDriver           string            `json:"volumeDriver,omitempty"`
	VolumeOpts             map[string]string `json:"volumeOpts,omitempty"`
	VolumeLabels           map[string]string `json:"volumeLabels,omitempty"`
	TmpfsSize              int64             `json:"tmpfsSize,omitempty"` // bytes, 0: no limit
	TmpfsMode              uint32            `json:"tmpfsMode,omitempty"`
	TmpfsOptions           [][]string        `json:"tmpfsOptions,omitempty"` // each a name, or a name and its value
}

// FileReference puts a secret or config into a container as a file.
type FileReference struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Path string `json:"path"` // absolute, or relative to /run/secrets
	UID  string `json:"uid"`
	GID  string `json:"gid"`
	Mode uint32 `json:"mode"`
}

// HealthConfig is a health check as in a Dockerfile. Zero durations and counts mean "as in the image", then the default.
// Test is {} (inherit), {"NONE"}, {"CMD", …} or {"CMD-SHELL", command}.
type HealthConfig struct {
	Test          []string      `json:"test,omitempty"`
	Interval      time.Duration `json:"interval,omitempty"`
	Timeout       time.Duration `json:"timeout,omitempty"`
	StartPeriod   time.Duration `json:"startPeriod,omitempty"`
	StartInterval time.Duration `json:"startInterval,omitempty"`
	Retries       int           `json:"retries,omitempty"`
}

// LogConfig chooses a log driver.
type LogConfig struct {
	Driver  string            `json:"driver"`
	Options map[string]string `json:"options,omitempty"`
}

// RestartCondition says which ends of a task are followed by a new one.
type RestartCondition string

// The restart conditions. Empty means any.
const (
	RestartNone      RestartCondition = "none"
	RestartOnFailure RestartCondition = "on-failure"
	RestartAny       RestartCondition = "any"
)

// RestartPolicy is how tasks that end are replaced. MaxAttempts 0 means no limit; with a Window, attempts older than it
// are forgotten.
type RestartPolicy struct {
	Condition   RestartCondition `json:"condition,omitempty"`
	Delay       *time.Duration   `json:"delay,omitempty"` // nil: 5 s
	MaxAttempts uint64           `json:"maxAttempts,omitempty"`
	Window      time.Duration    `json:"window,omitempty"`
}

// Placement restricts and spreads the nodes of a service's tasks.
type Placement struct {
	Constraints []string   `json:"constraints,omitempty"` // "node.role==manager", see ParseConstraints
	SpreadOver  []string   `json:"spreadOver,omitempty"`  // "node.labels.rack"
	MaxReplicas uint64     `json:"maxReplicas,omitempty"` // per node, 0: no limit
	Platforms   []Platform `json:"platforms,omitempty"`
}

// NetworkConnection asks for an attachment. Target is a network's ID or name.
type NetworkConnection struct {
	Target     string            `json:"target"`
	Aliases    []string          `json:"aliases,omitempty"`
	DriverOpts map[string]string `json:"driverOpts,omitempty"`
}

// FailureAction is what an update does when tasks fail.
type FailureAction string

// The failure actions. Empty means pause.
const (
	FailurePause    FailureAction = "pause"
	FailureContinue FailureAction = "continue"
	FailureRollback FailureAction = "rollback"
)

// UpdateOrder is which of old and new task comes first. Empty means stop-first.
type UpdateOrder string

// The update orders.
const (
	StopFirst  UpdateOrder = "stop-first"
	StartFirst UpdateOrder = "start-first"
)

// UpdateConfig is how a change of TaskSpec rolls over the tasks. Parallelism 0 means all at once. A task that fails
// within Monitor after it started counts as failed; more than MaxFailureRatio of them trigger FailureAction.
type UpdateConfig struct {
	Parallelism     uint64        `json:"parallelism"`
	Delay           time.Duration `json:"delay,omitempty"`
	FailureAction   FailureAction `json:"failureAction,omitempty"`
	Monitor         time.Duration `json:"monitor,omitempty"` // 0: 5 s
	MaxFailureRatio float64       `json:"maxFailureRatio,omitempty"`
	Order           UpdateOrder   `json:"order,omitempty"`
}

// UpdateState is where an update stands.
type UpdateState string

// The update states, named as Docker names them.
const (
	UpdateUpdating          UpdateState = "updating"
	UpdatePaused            UpdateState = "paused"
	UpdateCompleted         UpdateState = "completed"
	UpdateRollbackStarted   UpdateState = "rollback_started"
	UpdateRollbackPaused    UpdateState = "rollback_paused"
	UpdateRollbackCompleted UpdateState = "rollback_completed"
)

// UpdateStatus is the course of the newest update.
type UpdateStatus struct {
	State       UpdateState `json:"state"`
	StartedAt   time.Time   `json:"startedAt,omitzero"`
	CompletedAt time.Time   `json:"completedAt,omitzero"`
	Message     string      `json:"message,omitempty"`
}

// EndpointMode is how a service's name resolves.
type EndpointMode string

// The endpoint modes. Empty means vip.
const (
	EndpointVIP   EndpointMode = "vip"
	EndpointDNSRR EndpointMode = "dnsrr"
)

// EndpointSpec is how a service is reached.
type EndpointSpec struct {
	Mode  EndpointMode `json:"mode,omitempty"`
	Ports []PortConfig `json:"ports,omitempty"`
}

// Protocol is a transport protocol.
type Protocol string

// The protocols.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// PublishMode says where a published port listens.
type PublishMode string

// The publish modes: ingress is every node of the cluster, host is the node of each task. Empty means ingress.
const (
	PublishIngress PublishMode = "ingress"
	PublishHost    PublishMode = "host"
)

// PortConfig publishes Target, a port of the tasks. In a specification Published may be 0: the allocator picks one.
type PortConfig struct {
	Name      string      `json:"name,omitempty"`
	Protocol  Protocol    `json:"protocol"`
	Target    uint16      `json:"target"`
	Published uint16      `json:"published,omitempty"`
	Mode      PublishMode `json:"mode,omitempty"`
}

// PortLabel begins a service's label that names a port of its tasks, published or not: LABEL + NAME = PORT[/PROTOCOL].
const PortLabel = "sampan.port."

// Serves are the ports of the service's tasks that are known: those it publishes, and those that its labels name. A label
// that says no port is none.
func (s *ServiceSpec) Serves() []PortConfig {
	out := make([]PortConfig, 0, len(s.Endpoint.Ports))
	for _, p := range s.Endpoint.Ports {
		out = append(out, PortConfig{Name: p.Name, Protocol: cmp.Or(p.Protocol, TCP), Target: p.Target})
	}
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		name, ok := strings.CutPrefix(key, PortLabel)
		if !ok || name == "" {
			continue
		}
		number, proto, _ := strings.Cut(s.Labels[key], "/")
		port, err := strconv.ParseUint(number, 10, 16)
		p := PortConfig{Name: name, Protocol: cmp.Or(Protocol(strings.ToLower(proto)), TCP), Target: uint16(port)}
		if err == nil && port > 0 && slices.Contains([]Protocol{TCP, UDP, SCTP}, p.Protocol) {
			out = append(out, p)
		}
	}
	return out
}

// Endpoint is what the allocator gave a service.
type Endpoint struct {
	Mode  EndpointMode `json:"mode,omitempty"`
	Ports []PortConfig `json:"ports,omitempty"`
	VIPs  []VirtualIP  `json:"vips,omitempty"`
}

// VirtualIP is a service's address on one network.
type VirtualIP struct {
	NetworkID string         `json:"networkID"`
	Addrs     []netip.Prefix `json:"addrs"`
}
