// Package container owns the life of the containers of one host: their configuration on disk, creation, start, stop,
// restart, health, exec, attach and removal. It runs processes through the keeper, takes root file systems from image,
// and asks for networks through the small interfaces it declares. It knows nothing of clusters or HTTP.
package container

import (
	"net/netip"
	"time"

	"github.com/sampan-cloud/sampan/internal/sys/userns"
)

// Config is what a container was created from. After creation only Update and Rename change it. Field meanings are
// those of Docker's Engine API (ContainerConfig and HostConfig of its swagger), in domain types. It has a field for
// each of theirs, which is why it, HostConfig, Resources and Mount are long.
type Config struct {
	Name         string
	Image        string // as the user named it
	Hostname     string
	Domainname   string
	User         string
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	Env          []string
	Cmd          []string
	Entrypoint   []string // nil: the image's; empty: none
	WorkingDir   string
	Labels       map[string]string
	StopSignal   string
	StopTimeout  *int // seconds, nil: 10; -1: wait for ever
	Health       *Health
	ExposedPorts []Port
	Volumes      []string // anonymous volumes by target
	Shell        []string
	Host         HostConfig
	Network      NetworkConfig
	// NetworkDisabled leaves the container with a loopback interface only.
	NetworkDisabled bool
}

// Health is a health check; see cloud.HealthConfig for the meaning of zero values. Test[0] is NONE, CMD or CMD-SHELL.
type Health struct {
	Test          []string
	Interval      time.Duration
	Timeout       time.Duration
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       int
}

// Port is a port of the container.
type Port struct {
	Port     uint16
	Protocol string // tcp, udp, sctp
}

// PortBinding publishes a port of the container on the host. HostIP invalid: every address. HostPort 0: any free port;
// HostPortEnd > HostPort: any free port of the range.
type PortBinding struct {
	Port        Port
	HostIP      netip.Addr
	HostPort    uint16
	HostPortEnd uint16
}

// HostConfig is the part of the configuration that depends on the host. Its fields are those of the API's HostConfig,
// in groups where they belong together.
type HostConfig struct {
	Binds           []string // SRC:DST[:OPTS] as given, for inspect; the parsed form is Mounts
	Mounts          []Mount
	Tmpfs           map[string]string // target → options
	VolumesFrom     []string
	NetworkMode     string // "default", "bridge", "host", "none", "container:ID", or a network's name or ID
	Ports           []PortBinding
	PublishAllPorts bool
	Restart         RestartPolicy
	AutoRemove      bool
	VolumeDriver    string

	CapAdd          []string
	CapDrop         []string
	Privileged      bool
	ReadonlyRootfs  bool
	SecurityOpt     []string
	MaskedPaths     []string // nil: the default
	ReadonlyPaths   []string // nil: the default
	GroupAdd        []string
	Devices         []Device
	DeviceRequests  []DeviceRequest
	DeviceRules     []string
	Sysctls         map[string]string
	Ulimits         []Ulimit
	ShmSize         int64 // bytes, 0: 64 MiB
	Init            *bool
	OOMScoreAdj     int
	OOMKillDisable  *bool
	CgroupParent    string
	CgroupnsMode    string // "", private, host
	IpcMode         string // "", none, private, shareable, host, container:ID
	PidMode         string // "", host, container:ID
	UTSMode         string // "", host
	UsernsMode      string // "", host
	Runtime         string
	StorageOpt      map[string]string
	Annotations     map[string]string
	Log             LogConfig
	ContainerIDFile string
	ConsoleSize     [2]uint16 // rows and columns that a terminal begins with; zero: unset
	Umask           *uint32   // of the first process; nil: 022

	DNS        []string
	DNSSearch  []string
	DNSOptions []string
	ExtraHosts []string // NAME:IP, IP may be host-gateway
	Links      []string // CONTAINER:ALIAS, the container by its ID once created; see LinkList

	Resources Resources
}

// Resources limit what a container uses. Zero means no limit. A field for each limit that the API knows.
type Resources struct {
	NanoCPUs           int64 // billionths of a core
	CPUShares          int64
	CPUPeriod          int64 // microseconds
	CPUQuota           int64 // microseconds
	CPURealtimePeriod  int64
	CPURealtimeRuntime int64
	CpusetCpus         string
	CpusetMems         string
	Memory             int64 // bytes
	MemorySwap         int64 // bytes, memory included; -1: unlimited
	MemoryReservation  int64
	MemorySwappiness   *int64
	PidsLimit          int64 // -1 or 0: none
	BlkioWeight        uint16
	BlkioWeightDevice  []WeightDevice
	BlkioReadBps       []ThrottleDevice
	BlkioWriteBps      []ThrottleDevice
	BlkioReadIOps      []ThrottleDevice
	BlkioWriteIOps     []ThrottleDevice
}

// WeightDevice gives a device a share of block I/O.
type WeightDevice struct {
	Path   string
	Weight uint16
}

// ThrottleDevice limits a device to Rate bytes or operations per second.
type ThrottleDevice struct {
	Path string
	Rate uint64
}

// Device is a host device given to the container.
type Device struct {
	Host        string
	Container   string
	Permissions string // of r, w, m
}

// Ulimit is a resource limit.
type Ulimit struct {
	Name       string
	Soft, Hard int64
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

// Mount asks for a mount. One type for all kinds of mounts, as in the API; what belongs to one kind says so.
type Mount struct {
	Type         MountType
	Source       string
	Target       string
	ReadOnly     bool
	Mode         string // the option string of a bind ("z,ro"), for inspect
	Propagation  string // bind
	NonRecursive bool   // bind
	// ReadOnlyNonRecursive leaves mounts inside a read-only bind writable; ReadOnlyForceRecursive insists on the default.
	ReadOnlyNonRecursive, ReadOnlyForceRecursive bool
	CreateMountpoint                             bool   // bind: make the source when missing (-v does, --mount does not)
	NoCopy                                       bool   // volume
	Subpath                                      string // volume, image
	Labels                                       map[string]string
	Driver                                       string
	DriverOpts                                   map[string]string
	TmpfsSize                                    int64
	TmpfsMode                                    uint32
	TmpfsOptions                                 [][]string
	// FromSpec is true for --mount and false for -v, which inspect shows in different places.
	FromSpec bool
}

// MountPoint is a mount that a container has.
type MountPoint struct {
	Type        MountType
	Name        string // volume
	Source      string // host path
	Destination string
	Driver      string
	Mode        string
	RW          bool
	Propagation string
}

// RestartPolicy is what happens after a container exits.
type RestartPolicy struct {
	Name       string // "", no, always, unless-stopped, on-failure
	MaxRetries int
}

// LogConfig chooses a log driver and its options.
type LogConfig struct {
	Driver  string
	Options map[string]string
}

// NetworkConfig is how a container is joined to networks, besides HostConfig.NetworkMode, which names the first.
type NetworkConfig struct {
	Endpoints map[string]EndpointConfig // by network name or ID as the user gave it
	MAC       string                    // of the first endpoint
	// Left is the mode that a container had before it was taken off all its networks: its mode is none now, but it can be
	// connected again.
	Left string
}

// EndpointConfig asks for one endpoint.
type EndpointConfig struct {
	Aliases      []string
	Links        []string
	IPv4         netip.Addr // invalid: any
	IPv6         netip.Addr
	LinkLocalIPs []netip.Addr
	MAC          string
	DriverOpts   map[string]string
	GwPriority   int
}

// Endpoint is one endpoint that a container has.
type Endpoint struct {
	Config      EndpointConfig
	NetworkID   string
	NetworkName string
	Driver      string // of the network
	EndpointID  string
	IPv4        netip.Prefix
	Gateway4    netip.Addr
	IPv6        netip.Prefix
	Gateway6    netip.Addr
	MAC         string
	DNSNames    []string
}

// Attachment is the network side of a running container.
type Attachment struct {
	SandboxID  string
	NetNS      string // path of the namespace the container joins; empty: the host's
	Hostname   string // with host networking, else empty
	Endpoints  map[string]Endpoint
	Ports      []BoundPort
	ResolvConf []byte   // content of /etc/resolv.conf; nil: the host's
	Hosts      []string // lines of /etc/hosts for the container's own addresses
	Env        []string // variables that tell of linked containers
}

// BoundPort is a port that is published, as it really is.
type BoundPort struct {
	Port     Port
	HostIP   netip.Addr
	HostPort uint16
}

// State is where a container stands.
type State struct {
	Status      Status
	Running     bool // also while paused or restarting
	Paused      bool
	Restarting  bool
	OOMKilled   bool
	Dead        bool
	PID         int
	ExitCode    int
	ExitUnknown bool // nobody saw the exit code; ExitCode is then 255 for clients
	Error       string
	StartedAt   time.Time
	FinishedAt  time.Time
	Health      *HealthState
}

// Status is a container's state in one word.
type Status string

// The statuses, spelled as Docker spells them.
const (
	StatusCreated    Status = "created"
	StatusRunning    Status = "running"
	StatusPaused     Status = "paused"
	StatusRestarting Status = "restarting"
	StatusRemoving   Status = "removing"
	StatusExited     Status = "exited"
	StatusDead       Status = "dead"
)

// HealthState is what the health check found.
type HealthState struct {
	Status        string // starting, healthy, unhealthy
	FailingStreak int
	Log           []HealthResult // the last five
}

// HealthResult is one run of a health check.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int
	Output     string
}

// Container is a container as inspect shows it: a copy, free of locks. It is everything that inspect shows, which is
// why it is long.
type Container struct {
	ID              string
	Created         time.Time
	Path            string
	Args            []string
	Config          Config
	ImageID         string // the image's; of containers made by older versions the digest of its config
	ImageDigest     string // digest of the manifest of the platform it runs
	State           State
	RestartCount    int
	ManuallyStopped bool
	Driver          string // overlayfs
	Mounts          []MountPoint
	MountedImages   []string       // IDs of images that are mounted besides its own
	Networks        Attachment     // the newest; empty addresses when not running
	IDs             userns.Mapping // what its users are on the host
	LogPath         string
	HostnamePath    string
	HostsPath       string
	ResolvConfPath  string
	ExecIDs         []string
	SizeRw          int64 // bytes, when asked for
	SizeRootFs      int64
}

// Exec is a process run in a container besides its first.
type Exec struct {
	ID          string
	ContainerID string
	Config      ExecConfig
	Running     bool
	ExitCode    *int
	PID         int
}

// ExecConfig is what an exec runs.
type ExecConfig struct {
	User         string
	Privileged   bool
	Tty          bool
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	Detach       bool
	DetachKeys   string
	Env          []string
	WorkingDir   string
	Cmd          []string
	ConsoleSize  [2]uint16 // rows, columns; zero: unset
}
