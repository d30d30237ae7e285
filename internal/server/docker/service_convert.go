package docker

import (
	"cmp"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	apicontainer "github.com/moby/moby/api/types/container"
	apiswarm "github.com/moby/moby/api/types/swarm"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// serviceSpec turns a service's specification into the domain's. What the domain has no place for is refused, never
// dropped: a user would believe it is in force.
func serviceSpec(in *apiswarm.ServiceSpec) (cloud.ServiceSpec, error) {
	out := cloud.ServiceSpec{Name: in.Name, Labels: in.Labels}
	var err error
	if out.Mode, err = serviceMode(in.Mode); err != nil {
		return out, err
	}
	if out.Mode.Job && (in.UpdateConfig != nil || in.RollbackConfig != nil) {
		return out, fault.New(fault.InvalidArgument, "Jobs may not have an update config")
	}
	if out.Task, err = taskSpec(&in.TaskTemplate); err != nil {
		return out, err
	}
	if out.Update, err = updateConfig("update", in.UpdateConfig); err != nil {
		return out, err
	}
	if out.Rollback, err = updateConfig("rollback", in.RollbackConfig); err != nil {
		return out, err
	}
	out.Endpoint, err = endpointSpec(in.EndpointSpec)
	return out, err
}

func serviceMode(in apiswarm.ServiceMode) (cloud.ServiceMode, error) {
	set := 0
	for _, given := range []bool{in.Replicated != nil, in.Global != nil, in.ReplicatedJob != nil, in.GlobalJob != nil} {
		if given {
			set++
		}
	}
	switch {
	case set > 1:
		return cloud.ServiceMode{}, fault.New(fault.InvalidArgument, "cannot specify more than one service mode")
	case in.Global != nil:
		return cloud.ServiceMode{Global: true}, nil
	case in.GlobalJob != nil:
		return cloud.ServiceMode{Global: true, Job: true}, nil
	case in.ReplicatedJob != nil:
		mode := cloud.ServiceMode{Job: true, MaxConcurrent: 1}
		if n := in.ReplicatedJob.MaxConcurrent; n != nil {
			mode.MaxConcurrent = *n
		}
		mode.Replicas = mode.MaxConcurrent
		if n := in.ReplicatedJob.TotalCompletions; n != nil {
			mode.Replicas = *n
		}
		return mode, nil
	}
	mode := cloud.ServiceMode{Replicas: 1}
	if in.Replicated != nil && in.Replicated.Replicas != nil {
		if mode.Replicas = *in.Replicated.Replicas; mode.Replicas > math.MaxInt32 {
			return mode, fault.New(fault.InvalidArgument, "invalid number of replicas: %d", mode.Replicas)
		}
	}
	return mode, nil
}

func taskSpec(in *apiswarm.TaskSpec) (cloud.TaskSpec, error) {
	out := cloud.TaskSpec{ForceUpdate: in.ForceUpdate}
	switch {
	case in.PluginSpec != nil || in.Runtime == apiswarm.RuntimePlugin:
		return out, fault.New(fault.NotImplemented, "services of plugins are not implemented")
	case in.NetworkAttachmentSpec != nil || in.Runtime == apiswarm.RuntimeNetworkAttachment:
		return out, fault.New(fault.InvalidArgument, "a service cannot be a network attachment: give a ContainerSpec")
	case in.Runtime != "" && in.Runtime != apiswarm.RuntimeContainer:
		return out, fault.New(fault.InvalidArgument, "unsupported runtime %q", string(in.Runtime))
	case in.ContainerSpec == nil:
		return out, fault.New(fault.InvalidArgument, "ContainerSpec: missing: say which image to run")
	case in.ContainerSpec.Image == "":
		return out, fault.New(fault.InvalidArgument, "ContainerSpec: image reference must be provided")
	}
	var err error
	if out.Container, err = containerSpec(in.ContainerSpec); err != nil {
		return out, err
	}
	if r := in.Resources; r != nil {
		out.SwapBytes, out.MemorySwappiness = r.SwapBytes, r.MemorySwappiness
		if l := r.Limits; l != nil {
			out.Limits = cloud.Resources{NanoCPUs: l.NanoCPUs, MemoryBytes: l.MemoryBytes, Pids: l.Pids}
		}
		if v := r.Reservations; v != nil {
			out.Reservations = cloud.Resources{NanoCPUs: v.NanoCPUs, MemoryBytes: v.MemoryBytes}
			if out.Reservations.Generic, err = genericRequest(v.GenericResources); err != nil {
				return out, err
			}
		}
		if err := checkResources(&out); err != nil {
			return out, err
		}
	}
	if out.Restart, err = restartPolicy(in.RestartPolicy); err != nil {
		return out, err
	}
	if p := in.Placement; p != nil {
		out.Placement = cloud.Placement{Constraints: p.Constraints, MaxReplicas: p.MaxReplicas}
		for _, pref := range p.Preferences {
			if pref.Spread == nil || pref.Spread.SpreadDescriptor == "" {
				return out, fault.New(fault.InvalidArgument, "a placement preference must be spread=LABEL")
			}
			out.Placement.SpreadOver = append(out.Placement.SpreadOver, pref.Spread.SpreadDescriptor)
		}
		for _, plat := range p.Platforms {
			out.Placement.Platforms = append(out.Placement.Platforms, cloud.Platform{OS: plat.OS, Architecture: plat.Architecture})
		}
	}
	for _, n := range in.Networks {
		if n.Target == "" {
			return out, fault.New(fault.InvalidArgument, "a network attachment has no target")
		}
		out.Networks = append(out.Networks, cloud.NetworkConnection{Target: n.Target, Aliases: n.Aliases, DriverOpts: n.DriverOpts})
	}
	if l := in.LogDriver; l != nil {
		out.Log = &cloud.LogConfig{Driver: l.Name, Options: l.Options}
	}
	return out, nil
}

func checkResources(t *cloud.TaskSpec) error {
	const least = 4 << 20
	for what, r := range map[string]*cloud.Resources{"limit": &t.Limits, "reservation": &t.Reservations} {
		if r.NanoCPUs < 0 || r.NanoCPUs > 0 && r.NanoCPUs < 1e6 {
			return fault.New(fault.InvalidArgument, "invalid cpu value %g: Must be at least %g", float64(r.NanoCPUs)/1e9, 0.001)
		}
		if r.MemoryBytes < 0 || r.MemoryBytes > 0 && r.MemoryBytes < least {
			return fault.New(fault.InvalidArgument, "invalid memory value %d: a %s must be at least 4MiB", r.MemoryBytes, what)
		}
		if r.Pids < 0 {
			return fault.New(fault.InvalidArgument, "invalid pids limit %d", r.Pids)
		}
	}
	switch swap, swappiness := t.SwapBytes, t.MemorySwappiness; {
	case swap != nil && t.Limits.MemoryBytes == 0:
		return fault.New(fault.InvalidArgument, "memory swap provided, but no memory-limit was set")
	case swap != nil && *swap < -1:
		return fault.New(fault.InvalidArgument, "invalid memory swap %d: must be -1 for unlimited, or not negative", *swap)
	case swappiness != nil && (*swappiness < -1 || *swappiness > 100):
		return fault.New(fault.InvalidArgument, "invalid value: %d, valid memory swappiness range is 0-100", *swappiness)
	}
	return nil
}

// genericRequest reads what is asked for of generic resources: amounts of kinds, never things by their names.
func genericRequest(in []apiswarm.GenericResource) ([]cloud.GenericResource, error) {
	var out []cloud.GenericResource
	for _, g := range in {
		switch {
		case g.NamedResourceSpec != nil:
			return nil, fault.New(fault.InvalidArgument, "invalid argument for resource %s: ask for a number of them", g.NamedResourceSpec.Kind)
		case g.DiscreteResourceSpec == nil || g.DiscreteResourceSpec.Kind == "":
			return nil, fault.New(fault.InvalidArgument, "malformed generic resource: it needs a kind and a number")
		case g.DiscreteResourceSpec.Value < 0:
			return nil, fault.New(fault.InvalidArgument, "invalid argument for resource %s: %d", g.DiscreteResourceSpec.Kind, g.DiscreteResourceSpec.Value)
		}
		out = append(out, cloud.GenericResource{Kind: g.DiscreteResourceSpec.Kind, Amount: g.DiscreteResourceSpec.Value})
	}
	return out, nil
}

func wireGeneric(in []cloud.GenericResource) []apiswarm.GenericResource {
	var out []apiswarm.GenericResource
	for _, g := range in {
		if g.Named() {
			out = append(out, apiswarm.GenericResource{NamedResourceSpec: &apiswarm.NamedGenericResource{Kind: g.Kind, Value: g.Value}})
		} else {
			out = append(out, apiswarm.GenericResource{DiscreteResourceSpec: &apiswarm.DiscreteGenericResource{Kind: g.Kind, Value: g.Amount}})
		}
	}
	return out
}

func containerSpec(in *apiswarm.ContainerSpec) (cloud.ContainerSpec, error) {
	out := cloud.ContainerSpec{
		Image: in.Image, Labels: in.Labels, Command: in.Command, Args: in.Args, Hostname: in.Hostname, Env: in.Env, Dir: in.Dir, User: in.User,
		Groups: in.Groups, StopSignal: in.StopSignal, StopGracePeriod: in.StopGracePeriod, TTY: in.TTY, OpenStdin: in.OpenStdin, ReadOnly: in.ReadOnly,
		Init: in.Init, Hosts: in.Hosts, Sysctls: in.Sysctls, CapAdd: in.CapabilityAdd, CapDrop: in.CapabilityDrop,
		OOMScoreAdj: in.OomScoreAdj,
	}
	var err error
	if out.Privileges, err = privilegesOf(in.Privileges); err != nil {
		return out, err
	}
	switch {
	case !in.Isolation.IsDefault():
		return out, fault.New(fault.InvalidArgument, "invalid isolation %q: linux has none", string(in.Isolation))
	case in.OomScoreAdj < -1000 || in.OomScoreAdj > 1000:
		return out, fault.New(fault.InvalidArgument, "Invalid value %d, range for oom score adj is [-1000, 1000]", in.OomScoreAdj)
	case in.StopGracePeriod != nil && *in.StopGracePeriod < 0:
		return out, fault.New(fault.InvalidArgument, "the stop grace period cannot be negative")
	}
	for _, m := range in.Mounts {
		converted, err := serviceMount(m)
		if err != nil {
			return out, err
		}
		out.Mounts = append(out.Mounts, converted)
	}
	h, err := healthOf(in.Healthcheck, maxVersion)
	if err != nil {
		return out, err
	}
	if h != nil {
		out.Health = &cloud.HealthConfig{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	if d := in.DNSConfig; d != nil {
		out.DNS = cloud.DNSConfig{Search: d.Search, Options: d.Options}
		for _, a := range d.Nameservers {
			out.DNS.Servers = append(out.DNS.Servers, a.String())
		}
	}
	for _, s := range in.Secrets {
		if s == nil || s.File == nil || s.SecretID == "" {
			return out, fault.New(fault.InvalidArgument, "malformed secret reference: it needs an ID and a file")
		}
		out.Secrets = append(out.Secrets, cloud.FileReference{ID: s.SecretID, Name: s.SecretName, Path: cmp.Or(s.File.Name, s.SecretName), UID: cmp.Or(s.File.UID, "0"), GID: cmp.Or(s.File.GID, "0"), Mode: uint32(s.File.Mode)})
	}
	for _, c := range in.Configs {
		if c == nil || c.File == nil || c.ConfigID == "" {
			return out, fault.New(fault.InvalidArgument, "malformed config reference: it needs an ID and a file")
		}
		out.Configs = append(out.Configs, cloud.FileReference{ID: c.ConfigID, Name: c.ConfigName, Path: cmp.Or(c.File.Name, c.ConfigName), UID: cmp.Or(c.File.UID, "0"), GID: cmp.Or(c.File.GID, "0"), Mode: uint32(c.File.Mode)})
	}
	for _, u := range in.Ulimits {
		if u != nil {
			out.Ulimits = append(out.Ulimits, cloud.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
		}
	}
	return out, nil
}

func restartPolicy(in *apiswarm.RestartPolicy) (cloud.RestartPolicy, error) {
	if in == nil {
		return cloud.RestartPolicy{Condition: cloud.RestartAny}, nil
	}
	out := cloud.RestartPolicy{Condition: cloud.RestartCondition(cmp.Or(in.Condition, apiswarm.RestartPolicyConditionAny)), Delay: in.Delay}
	switch out.Condition {
	case cloud.RestartAny, cloud.RestartNone, cloud.RestartOnFailure:
	default:
		return out, fault.New(fault.InvalidArgument, "invalid RestartCondition: %q: it must be none, on-failure or any", string(in.Condition))
	}
	if in.Delay != nil && *in.Delay < 0 || in.Window != nil && *in.Window < 0 {
		return out, fault.New(fault.InvalidArgument, "TaskSpec: restart-delay and restart-window cannot be negative")
	}
	if in.MaxAttempts != nil {
		out.MaxAttempts = *in.MaxAttempts
	}
	if in.Window != nil {
		out.Window = *in.Window
	}
	return out, nil
}

// updateConfig fills in Docker's defaults where nothing is given.
func updateConfig(what string, in *apiswarm.UpdateConfig) (cloud.UpdateConfig, error) {
	if in == nil {
		in = &apiswarm.UpdateConfig{Parallelism: 1}
	}
	out := cloud.UpdateConfig{
		Parallelism: in.Parallelism, Delay: in.Delay, FailureAction: cloud.FailureAction(cmp.Or(in.FailureAction, apiswarm.UpdateFailureActionPause)),
		Monitor: cmp.Or(in.Monitor, 5*time.Second), MaxFailureRatio: float64(in.MaxFailureRatio), Order: cloud.UpdateOrder(cmp.Or(in.Order, apiswarm.UpdateOrderStopFirst)),
	}
	switch {
	case out.FailureAction != cloud.FailurePause && out.FailureAction != cloud.FailureContinue && (out.FailureAction != cloud.FailureRollback || what == "rollback"):
		return out, fault.New(fault.InvalidArgument, "unrecognized %s failure action %s", what, out.FailureAction)
	case out.Order != cloud.StopFirst && out.Order != cloud.StartFirst:
		return out, fault.New(fault.InvalidArgument, "unrecognized %s order %s", what, out.Order)
	case out.Delay < 0 || out.Monitor < 0:
		return out, fault.New(fault.InvalidArgument, "TaskSpec: %s-delay and %s-monitor cannot be negative", what, what)
	case out.MaxFailureRatio < 0 || out.MaxFailureRatio > 1:
		return out, fault.New(fault.InvalidArgument, "TaskSpec: %s-maxfailureratio cannot be less than 0 or bigger than 1", what)
	}
	return out, nil
}

func endpointSpec(in *apiswarm.EndpointSpec) (cloud.EndpointSpec, error) {
	if in == nil {
		return cloud.EndpointSpec{Mode: cloud.EndpointVIP}, nil
	}
	out := cloud.EndpointSpec{Mode: cloud.EndpointMode(cmp.Or(in.Mode, apiswarm.ResolutionModeVIP))}
	if out.Mode != cloud.EndpointVIP && out.Mode != cloud.EndpointDNSRR {
		return out, fault.New(fault.InvalidArgument, "invalid resolution mode: %q: it must be vip or dnsrr", string(in.Mode))
	}
	for _, p := range in.Ports {
		port := cloud.PortConfig{Name: p.Name, Protocol: cloud.Protocol(strings.ToLower(cmp.Or(string(p.Protocol), "tcp"))), Target: uint16(p.TargetPort),
			Published: uint16(p.PublishedPort), Mode: cloud.PublishMode(cmp.Or(p.PublishMode, apiswarm.PortConfigPublishModeIngress))}
		switch {
		case p.TargetPort == 0 || p.TargetPort > math.MaxUint16 || p.PublishedPort > math.MaxUint16:
			return out, fault.New(fault.InvalidArgument, "EndpointSpec: invalid port: published %d, target %d: ports are 1 to 65535", p.PublishedPort, p.TargetPort)
		case !slices.Contains([]cloud.Protocol{cloud.TCP, cloud.UDP, cloud.SCTP}, port.Protocol):
			return out, fault.New(fault.InvalidArgument, "invalid protocol: %q", string(p.Protocol))
		case port.Mode != cloud.PublishIngress && port.Mode != cloud.PublishHost:
			return out, fault.New(fault.InvalidArgument, "invalid publish mode: %q: it must be ingress or host", string(p.PublishMode))
		case port.Mode == cloud.PublishIngress && out.Mode == cloud.EndpointDNSRR:
			return out, fault.New(fault.InvalidArgument, "EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		}
		for _, other := range out.Ports {
			if port.Published != 0 && other.Published == port.Published && other.Protocol == port.Protocol {
				return out, fault.New(fault.InvalidArgument, "EndpointSpec: duplicate published ports provided")
			}
		}
		out.Ports = append(out.Ports, port)
	}
	return out, nil
}

func wireService(s *cloud.Service) apiswarm.Service {
	out := apiswarm.Service{ID: s.ID, Meta: wireMeta(&s.Meta), Spec: wireServiceSpec(&s.Spec), Endpoint: apiswarm.Endpoint{
		Spec: *wireEndpointSpec(&s.Spec.Endpoint), Ports: wirePorts(s.Endpoint.Ports),
	}}
	if s.PreviousSpec != nil {
		previous := wireServiceSpec(s.PreviousSpec)
		out.PreviousSpec = &previous
	}
	for _, v := range s.Endpoint.VIPs {
		for _, a := range v.Addrs {
			out.Endpoint.VirtualIPs = append(out.Endpoint.VirtualIPs, apiswarm.EndpointVirtualIP{NetworkID: v.NetworkID, Addr: a})
		}
	}
	if j := s.Job; j != nil {
		out.JobStatus = &apiswarm.JobStatus{JobIteration: apiswarm.Version{Index: j.Iteration}, LastExecution: j.LastExecution}
	}
	if u := s.Update; u != nil && u.State != "" {
		out.UpdateStatus = &apiswarm.UpdateStatus{State: apiswarm.UpdateState(u.State), Message: u.Message}
		if !u.StartedAt.IsZero() {
			out.UpdateStatus.StartedAt = &u.StartedAt
		}
		if !u.CompletedAt.IsZero() {
			out.UpdateStatus.CompletedAt = &u.CompletedAt
		}
	}
	return out
}

func wireServiceSpec(s *cloud.ServiceSpec) apiswarm.ServiceSpec {
	out := apiswarm.ServiceSpec{
		Annotations: apiswarm.Annotations{Name: s.Name, Labels: mapping(s.Labels)}, TaskTemplate: wireTaskSpec(&s.Task),
		UpdateConfig: wireUpdateConfig(&s.Update), RollbackConfig: wireUpdateConfig(&s.Rollback), EndpointSpec: wireEndpointSpec(&s.Endpoint),
	}
	switch m := s.Mode; {
	case m.Job && m.Global:
		out.Mode.GlobalJob = &apiswarm.GlobalJob{}
	case m.Job:
		out.Mode.ReplicatedJob = &apiswarm.ReplicatedJob{MaxConcurrent: &m.MaxConcurrent, TotalCompletions: &m.Replicas}
	case m.Global:
		out.Mode.Global = &apiswarm.GlobalService{}
	default:
		out.Mode.Replicated = &apiswarm.ReplicatedService{Replicas: &m.Replicas}
	}
	if s.Mode.Job {
		out.UpdateConfig, out.RollbackConfig = nil, nil
	}
	return out
}

func wireUpdateConfig(u *cloud.UpdateConfig) *apiswarm.UpdateConfig {
	return &apiswarm.UpdateConfig{
		Parallelism: u.Parallelism, Delay: u.Delay, FailureAction: apiswarm.FailureAction(cmp.Or(u.FailureAction, cloud.FailurePause)), Monitor: u.Monitor,
		MaxFailureRatio: float32(u.MaxFailureRatio), Order: apiswarm.UpdateOrder(cmp.Or(u.Order, cloud.StopFirst)),
	}
}

func wireEndpointSpec(e *cloud.EndpointSpec) *apiswarm.EndpointSpec {
	return &apiswarm.EndpointSpec{Mode: apiswarm.ResolutionMode(cmp.Or(e.Mode, cloud.EndpointVIP)), Ports: wirePorts(e.Ports)}
}

func wireTaskSpec(t *cloud.TaskSpec) apiswarm.TaskSpec {
	attempts, window := t.Restart.MaxAttempts, t.Restart.Window
	out := apiswarm.TaskSpec{
		ContainerSpec: wireContainerSpec(&t.Container), ForceUpdate: t.ForceUpdate, Runtime: apiswarm.RuntimeContainer,
		RestartPolicy: &apiswarm.RestartPolicy{Condition: apiswarm.RestartPolicyCondition(cmp.Or(t.Restart.Condition, cloud.RestartAny)), Delay: t.Restart.Delay, MaxAttempts: &attempts, Window: &window},
		Placement:     &apiswarm.Placement{Constraints: t.Placement.Constraints, MaxReplicas: t.Placement.MaxReplicas},
		Resources:     &apiswarm.ResourceRequirements{},
	}
	out.Resources.SwapBytes, out.Resources.MemorySwappiness = t.SwapBytes, t.MemorySwappiness
	if l := t.Limits; !l.IsZero() {
		out.Resources.Limits = &apiswarm.Limit{NanoCPUs: l.NanoCPUs, MemoryBytes: l.MemoryBytes, Pids: l.Pids}
	}
	if v := t.Reservations; !v.IsZero() {
		out.Resources.Reservations = &apiswarm.Resources{NanoCPUs: v.NanoCPUs, MemoryBytes: v.MemoryBytes, GenericResources: wireGeneric(v.Generic)}
	}
	for _, over := range t.Placement.SpreadOver {
		out.Placement.Preferences = append(out.Placement.Preferences, apiswarm.PlacementPreference{Spread: &apiswarm.SpreadOver{SpreadDescriptor: over}})
	}
	for _, p := range t.Placement.Platforms {
		out.Placement.Platforms = append(out.Placement.Platforms, apiswarm.Platform{Architecture: p.Architecture, OS: p.OS})
	}
	for _, n := range t.Networks {
		out.Networks = append(out.Networks, apiswarm.NetworkAttachmentConfig{Target: n.Target, Aliases: n.Aliases, DriverOpts: n.DriverOpts})
	}
	if t.Log != nil {
		out.LogDriver = &apiswarm.Driver{Name: t.Log.Driver, Options: t.Log.Options}
	}
	return out
}

func wireContainerSpec(c *cloud.ContainerSpec) *apiswarm.ContainerSpec {
	out := &apiswarm.ContainerSpec{
		Image: c.Image, Labels: c.Labels, Command: c.Command, Args: c.Args, Hostname: c.Hostname, Env: c.Env, Dir: c.Dir, User: c.User, Groups: c.Groups,
		Init: c.Init, StopSignal: c.StopSignal, TTY: c.TTY, OpenStdin: c.OpenStdin, ReadOnly: c.ReadOnly, StopGracePeriod: c.StopGracePeriod,
		Hosts: c.Hosts, Isolation: apicontainer.IsolationDefault, Sysctls: c.Sysctls, CapabilityAdd: c.CapAdd, CapabilityDrop: c.CapDrop,
		DNSConfig:   &apiswarm.DNSConfig{Search: c.DNS.Search, Options: c.DNS.Options},
		OomScoreAdj: c.OOMScoreAdj, Privileges: wirePrivileges(c.Privileges),
	}
	for _, s := range c.DNS.Servers {
		if a, err := netip.ParseAddr(s); err == nil {
			out.DNSConfig.Nameservers = append(out.DNSConfig.Nameservers, a)
		}
	}
	for _, m := range c.Mounts {
		out.Mounts = append(out.Mounts, wireServiceMount(&m))
	}
	if h := c.Health; h != nil {
		out.Healthcheck = &apicontainer.HealthConfig{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	for _, s := range c.Secrets {
		out.Secrets = append(out.Secrets, &apiswarm.SecretReference{SecretID: s.ID, SecretName: s.Name,
			File: &apiswarm.SecretReferenceFileTarget{Name: s.Path, UID: s.UID, GID: s.GID, Mode: os.FileMode(s.Mode)}})
	}
	for _, s := range c.Configs {
		out.Configs = append(out.Configs, &apiswarm.ConfigReference{ConfigID: s.ID, ConfigName: s.Name,
			File: &apiswarm.ConfigReferenceFileTarget{Name: s.Path, UID: s.UID, GID: s.GID, Mode: os.FileMode(s.Mode)}})
	}
	for _, u := range c.Ulimits {
		out.Ulimits = append(out.Ulimits, &units.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return out
}
