// Package docker serves the Docker Engine API: it turns wire types (github.com/moby/moby/api) into the domain's and
// back, and nothing else. One file or package per resource. What it needs of the floors below it declares here, as small
// interfaces; internal/node hands in what implements them.
package docker

import (
	"context"
	"io"
	"net/netip"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/network"
)

// Containers is (*container.Manager).
type Containers interface {
	Create(ctx context.Context, cfg container.Config, platform string) (id string, warnings []string, err error)
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id, signal string, timeout *int) error // seconds; nil: the container's own
	Restart(ctx context.Context, id, signal string, timeout *int) error
	Kill(ctx context.Context, id, signal string) error
	Pause(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	Rename(ctx context.Context, id, name string) error
	Update(ctx context.Context, id string, r container.Resources, p *container.RestartPolicy) (warnings []string, err error)
	Remove(ctx context.Context, id string, force, volumes, link bool) error
	Prune(ctx context.Context, filter func(container.Container) bool) (ids []string, freed int64, err error)
	// Get finds by full ID, name, or unique ID prefix, in that order.
	Get(id string) (container.Container, error)
	// Inspect is Get that waits for the end of a restart that somebody asked for.
	Inspect(ctx context.Context, id string) (container.Container, error)
	List() []container.Container
	// Devices lists the folders with descriptions of devices, the devices' names, and what is wrong with descriptions.
	Devices() (dirs, names, warnings []string)
	Size(ctx context.Context, id string) (rw, rootfs int64, err error)
	// Wait returns when the condition ("not-running", "next-exit", "removed") is met. ready is called once it listens.
	Wait(ctx context.Context, id, condition string, ready func()) (code int, errMsg string, err error)
	Logs(ctx context.Context, id string, o LogOptions) (LogReader, error)
	Attach(ctx context.Context, id string, o container.AttachOptions) (container.Stream, error)
	Resize(ctx context.Context, id string, rows, cols uint16) error
	Top(ctx context.Context, id, psArgs string) (titles []string, processes [][]string, err error)
	Stats(ctx context.Context, id string) (container.Stats, error)
	Diff(ctx context.Context, id string) ([]image.Change, error)
	Export(ctx context.Context, id string, w io.Writer) error
	StatPath(ctx context.Context, id, path string) (container.PathStat, error)
	CopyFrom(ctx context.Context, id, path string) (io.ReadCloser, container.PathStat, error) // tar
	CopyTo(ctx context.Context, id, path string, tar io.Reader, o container.CopyOptions) error
	Commit(ctx context.Context, id string, r image.CommitRequest, pause bool) (image.Image, error)
	Connect(ctx context.Context, id, networkID string, e container.EndpointConfig) error
	Disconnect(ctx context.Context, id, networkID string, force bool) error

	ExecCreate(ctx context.Context, id string, cfg container.ExecConfig) (execID string, err error)
	// ExecStart returns the streams unless detached; the exec runs on when they are closed.
	ExecStart(ctx context.Context, execID string, o container.ExecStartOptions) (container.Stream, error)
	ExecResize(ctx context.Context, execID string, rows, cols uint16) error
	ExecGet(execID string) (container.Exec, error)
}

// LogOptions and LogReader are the engine's.
type (
	LogOptions = container.LogOptions
	LogReader  = container.LogReader
)

// Images is (*image.Store).
type Images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
	// ForPlatform is Get for one platform of an image that is for several; "" is this host's.
	ForPlatform(ctx context.Context, ref, platform string) (image.Image, error)
	List(ctx context.Context) ([]image.Image, error)
	Attestations(ctx context.Context, ref string, platform *ocispec.Platform, types []string, statements bool) ([]image.Attestation, error)
	Pull(ctx context.Context, ref, platform string, auth image.Auth, progress func(image.Progress)) (image.Image, error)
	// Tags returns the tags that a registry has of a repository.
	Tags(ctx context.Context, repository string, auth image.Auth) ([]string, error)
	Push(ctx context.Context, ref string, auth image.Auth, progress func(image.Progress), only ...ocispec.Platform) error
	Load(ctx context.Context, r io.Reader, progress func(image.Progress), only ...ocispec.Platform) ([]image.Image, error)
	Save(ctx context.Context, refs []string, w io.Writer, only ...ocispec.Platform) error
	Import(ctx context.Context, r io.Reader, ref string, o image.ImportOptions) (image.Image, error)
	Tag(ctx context.Context, source, target string) error
	Remove(ctx context.Context, ref string, force, prune bool, inUse func(imageID string) []string) ([]image.Removed, error)
	RemovePlatforms(ctx context.Context, ref string, list []ocispec.Platform, force bool, inUse func(manifest string) []string) ([]image.Removed, error)
	Prune(ctx context.Context, filter func(image.Image) bool, inUse func(imageID string) []string) ([]image.Removed, int64, error)
}

// Registry is (*image.Store) too: what is asked of a registry and leaves nothing on this host.
type Registry interface {
	// Login checks credentials with the registry auth.ServerAddress names ("" is Docker Hub) and returns its identity
	// token, if it gives one. fault.Unauthorized if they are wrong.
	Login(ctx context.Context, auth image.Auth) (identityToken string, err error)
	// Resolve returns the descriptor that a registry has for ref, and the platforms there are of it.
	Resolve(ctx context.Context, ref string, auth image.Auth) (ocispec.Descriptor, []ocispec.Platform, error)
}

// Volumes is (*volume.Store).
type Volumes interface {
	Create(ctx context.Context, v volume.Volume) (volume.Volume, error)
	Get(name string) (volume.Volume, error)
	List() []volume.Volume
	Remove(ctx context.Context, name string, force bool) error
	Users(name string) []string
	Size(name string) (int64, error)
}

// Networks is (*network.Manager): the networks of this host.
type Networks interface {
	Create(ctx context.Context, spec network.Spec) (network.Network, error)
	Remove(ctx context.Context, nameOrID string) error
	Get(nameOrID string) (network.Network, error)
	List() []network.Network
	// Usage is of the subnets of a network of this host.
	Usage(ctx context.Context, nameOrID string) map[netip.Prefix]network.Usage
	// DefaultOptions are those of new networks of a driver that are not given others.
	DefaultOptions(driver string) map[string]string
}

// Events is (*events.Bus).
type Events interface {
	Publish(events.Event)
	Subscribe(ctx context.Context, since time.Time) ([]events.Event, <-chan events.Event)
}

// Swarm is this node's membership: internal/node implements it. On a node that is in no cluster every method but Init,
// Join and Local answers fault.Unavailable with Docker's words ("This node is not a swarm manager. Use \"docker swarm
// init\" …").
type Swarm interface {
	Local() LocalSwarm
	Init(ctx context.Context, r SwarmInit) (nodeID string, err error)
	Join(ctx context.Context, r SwarmJoin) error
	Leave(ctx context.Context, force bool) error
	// Unlock gives a manager that waits for it the key to its own keys.
	Unlock(ctx context.Context, key string) error
	// Cluster is the control API on a manager; fault.Unavailable elsewhere.
	Cluster() (Cluster, error)
}

// LocalSwarm is what this node knows of its membership without asking anybody.
type LocalSwarm struct {
	State            string // inactive, pending, active, error, locked
	NodeID           string
	NodeAddr         string
	ClusterID        string
	ControlAvailable bool
	Error            string
	Managers         []ManagerPeer
	Cluster          *cloud.Cluster // on a manager
	NodesTotal       int            // on a manager
	ManagersTotal    int
}

// ManagerPeer is a manager as a node knows it.
type ManagerPeer struct{ NodeID, Addr string }

// SwarmInit and SwarmJoin are the requests of those names.
type (
	SwarmInit struct {
		ListenAddr      string // HOST:PORT, default 0.0.0.0:2377
		AdvertiseAddr   string // IP, interface name, or either with a port; empty: the only address, else an error that lists them
		DataPathAddr    string
		DataPathPort    uint16
		Pools           []netip.Prefix
		SubnetSize      int
		ForceNewCluster bool
		Availability    cloud.Availability
		Spec            cloud.ClusterSpec
	}
	SwarmJoin struct {
		ListenAddr    string
		AdvertiseAddr string
		DataPathAddr  string
		RemoteAddrs   []string
		Token         string
		Availability  cloud.Availability
	}
)

// Cluster is the control API of a manager: internal/control implements it over the state. Names or IDs or unique ID
// prefixes are taken wherever ref is the parameter's name.
type Cluster interface {
	GetCluster(ctx context.Context) (*cloud.Cluster, error)
	UpdateCluster(ctx context.Context, version uint64, change control.ClusterChange) error

	ListNodes(ctx context.Context) ([]*cloud.Node, error)
	GetNode(ctx context.Context, ref string) (*cloud.Node, error)
	UpdateNode(ctx context.Context, id string, version uint64, spec cloud.NodeSpec) error
	RemoveNode(ctx context.Context, ref string, force bool) error
	// Leader returns the ID of the leading manager's node, "" when there is none.
	Leader() string
	// ManagerReachable reports whether a manager answers.
	ManagerReachable(nodeID string) bool

	CreateService(ctx context.Context, spec cloud.ServiceSpec, idempotencyKey string) (id string, err error)
	// UpdateService: version is the one last read. rollback goes back to the previous specification; spec is then ignored.
	UpdateService(ctx context.Context, id string, version uint64, spec cloud.ServiceSpec, rollback bool) error
	RemoveService(ctx context.Context, ref string) error
	GetService(ctx context.Context, ref string) (*cloud.Service, error)
	ListServices(ctx context.Context) ([]*cloud.Service, error)

	GetTask(ctx context.Context, ref string) (*cloud.Task, error)
	ListTasks(ctx context.Context) ([]*cloud.Task, error)

	CreateNetwork(ctx context.Context, spec cloud.NetworkSpec) (id string, err error)
	RemoveNetwork(ctx context.Context, ref string) error
	GetNetwork(ctx context.Context, ref string) (*cloud.Network, error)
	ListNetworks(ctx context.Context) ([]*cloud.Network, error)

	CreateSecret(ctx context.Context, spec cloud.SecretSpec) (id string, err error)
	UpdateSecret(ctx context.Context, id string, version uint64, spec cloud.SecretSpec) error
	RemoveSecret(ctx context.Context, ref string) error
	GetSecret(ctx context.Context, ref string) (*cloud.Secret, error)
	ListSecrets(ctx context.Context) ([]*cloud.Secret, error)
	CreateConfig(ctx context.Context, spec cloud.SecretSpec) (id string, err error)
	UpdateConfig(ctx context.Context, id string, version uint64, spec cloud.SecretSpec) error
	RemoveConfig(ctx context.Context, ref string) error
	GetConfig(ctx context.Context, ref string) (*cloud.Config, error)
	ListConfigs(ctx context.Context) ([]*cloud.Config, error)

	// Logs streams the logs of tasks wherever they run, until ctx ends or, without Follow, all are read.
	Logs(ctx context.Context, taskIDs []string, o control.LogOptions, emit func(control.TaskLog) error) error
	// WatchEvents delivers changes of nodes, services, networks, secrets and configs as events of scope swarm.
	WatchEvents(ctx context.Context) <-chan control.Event
}

// Host tells what info and version show of the daemon and its host: internal/node implements it.
type Host interface {
	Info() HostInfo
}

// HostInfo is what info shows that no other backend knows. It has a field for each of them, which is why it is long.
type HostInfo struct {
	ID                            string
	Name                          string
	DataRoot                      string
	Driver                        string
	DriverStatus                  [][2]string
	KernelVersion                 string
	OperatingSystem               string
	OSVersion                     string
	Architecture                  string // uname -m
	NCPU                          int
	MemTotal                      int64
	CgroupDriver                  string
	CgroupVersion                 string // "1" or "2"
	SecurityOptions               []string
	Labels                        []string
	GenericResources              []cloud.GenericResource // of the node that this host is in a cluster
	Debug                         bool
	NFd, NGoroutines              int
	InsecureRegistries            []string
	Mirrors                       []string
	DefaultAddressPools           []AddressPool
	Warnings                      []string
	Version, GitCommit, BuildTime string
	InitBinary                    string // program of --init
	LoggingDriver                 string // of containers that choose none
	HTTPProxy, HTTPSProxy         string // by which registries are reached, without credentials
	NoProxy                       string
	Components                    []Component
	Capabilities                  Capabilities
}

// AddressPool is a pool of local networks' subnets.
type AddressPool struct {
	Base netip.Prefix
	Size int
}

// Component is a part with a version of its own.
type Component struct{ Name, Version string }

// Capabilities are what the host's kernel offers for containers.
type Capabilities struct {
	MemoryLimit, SwapLimit, CPUCfsPeriod, CPUCfsQuota, CPUShares, CPUSet, PidsLimit, OomKillDisable bool
	IPv4Forwarding, BridgeNfIptables                                                                bool
}
